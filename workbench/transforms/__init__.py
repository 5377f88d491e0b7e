"""Row transforms: rows to rows, before anything is tokenised. Pure functions of rows, settings and a seed.

    question_free   the answer without its question
    critique        a critique of a given solution as the target
    many_shot       many examples of a task in one row, every answer trained
    contextual      a study prompt before a text
    thought_mask    drafts in the context, the better answer trained
    ls_mixture      long chains and their short rewrites
    perturb         chains with steps or content disturbed
    unfamiliar      other targets for rows that a model does not know

Each reads anything that `wb.rows` reads and gives a list of dicts; at its neutral setting the rows are as they were.
Rows of which a part trains are written as `segments` (see `workbench.data`), with `end` for the tokenizer's end token.
`parts` has what they share, `samples` a policy's own answers, judged. `workbench.methods.transformed` trains on them.
No torch.
"""
