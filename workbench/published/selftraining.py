"""Records of the family `selftraining`: methods that sample, keep and train in rounds."""

from workbench.published.entry import Entry, Paper

WRITTEN = """
written = wb.Task(rows, rewards=task.rewards)  # sums with the column `completion`, a worked solution
"""
SSR = Paper(
    "Gupta et al.",
    2024,
    "Selective Self-Rehearsal: A Fine-Tuning Approach to Improve Generalization in Large Language Models",
    "https://arxiv.org/abs/2409.04787",
)

ENTRIES: list[Entry] = [
    Entry(
        id="S219",
        name="star",
        paper=Paper(
            "Zelikman et al.", 2022, "STaR: Bootstrapping Reasoning With Reasoning", "https://arxiv.org/abs/2203.14465"
        ),
        kind="self-training",
        call="star",
        summary="In rounds: train the first weights on rationales that ended right, some of them after a hint.",
        needs="a verifier, a column with the right answer for the hint",
        differs="a batch is rows, not packed sequences; the hint is a template with a column of the task.",
        example="""
run = wb.method("star")(policy, task, rounds=1, fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S100",
        name="rft",
        paper=Paper(
            "Yuan et al.",
            2023,
            "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models",
            "https://arxiv.org/abs/2308.01825",
        ),
        kind="self-training",
        call="rft",
        summary="Train on own right solutions, one of each kind: those with the same equations count as one.",
        needs="a verifier; written solutions are trained on beside the own where `gold` names them",
        differs="equations of plain text count where there are no calculator marks; arithmetic is never executed.",
        example=WRITTEN
        + """
run = wb.method("rft")(policy, written, gold="completion", n=4, fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S073",
        name="concise",
        paper=Paper(
            "Munkhbat et al.",
            2025,
            "Self-Training Elicits Concise Reasoning in Large Language Models",
            "https://arxiv.org/abs/2502.20122",
        ),
        kind="self-training",
        call="concise",
        summary="Train on the shortest of one's own right answers, so that reasoning takes fewer tokens.",
        needs="a verifier; a few short worked examples help",
        example="""
short = "Q: What is 20 + 30?\\nA: 20+30=50\\n#### 50\\n\\n{prompt}"
run = wb.method("concise")(policy, task, short=short, n=2, fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S115",
        name="lmsi",
        paper=Paper("Huang et al.", 2022, "Large Language Models Can Self-Improve", "https://arxiv.org/abs/2210.11610"),
        kind="self-training",
        call="lmsi",
        summary="Train on the rationales that end in the majority's answer, in four formats; no right answers needed.",
        needs="a function that tells what a completion answers",
        differs="the templates hold instructions to be replaced by few-shot examples.",
        example="""
run = wb.method("lmsi")(policy, task, n=4, target=" #### {answer}", fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S230",
        name="ssr",
        paper=SSR,
        kind="self-training",
        call="ssr",
        summary="SFT in which the policy's own answer replaces the written one wherever a judge accepts it.",
        needs="written answers, a judge: the verdict, or another reward function",
        differs="the judge is a reward function, the verdict by default; the paper has a larger model.",
        example=WRITTEN
        + """
run = wb.method("ssr")(policy, written, fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S087",
        name="s3ft",
        paper=Paper(
            "Gupta et al.",
            2025,
            "Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models",
            "https://arxiv.org/abs/2502.08130",
        ),
        kind="self-training",
        call="s3ft",
        summary="SFT on the policy's own answer, else its rewording of the written one, else that: the first accepted.",
        needs="written answers, a judge: the verdict, or another reward function",
        differs="the words that ask for a paraphrase are ours; a paraphrase that repeats the written answer is that.",
        example=WRITTEN
        + """
run = wb.method("s3ft")(policy, written, fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S059",
        name="fine_tune_cot",
        paper=Paper(
            "Ho et al.", 2022, "Large Language Models Are Reasoning Teachers", "https://arxiv.org/abs/2212.10071"
        ),
        kind="self-training",
        call="fine_tune_cot",
        summary="Train on several chains of thought for each question, from a teacher or oneself, that end right.",
        needs="a verifier; the chains of a better teacher as a column",
        differs="by default the verdict reads the chain itself, and no marks stand around it.",
        example="""
run = wb.method("fine_tune_cot")(
    policy, task, template="{prompt}", n=2, fit_steps=2, lr=1e-4, max_new_tokens=32, out=out / "run"
)
run.run()
run
""",
    ),
    Entry(
        id="S011",
        name="trice",
        paper=Paper(
            "Phan et al.",
            2023,
            "Training Chain-of-Thought via Latent-Variable Inference",
            "https://arxiv.org/abs/2312.02179",
        ),
        kind="self-training",
        call="trice",
        summary="Raise the likelihood of right answers over all rationales, by remembered ones and a control variate.",
        needs="a verifier, a column with the right answer for the hint",
        differs="adapters or weights are trained, not a soft prompt; a step whose gradient is exactly 0 moves nothing.",
        example="""
run = wb.method("trice")(policy, task, batch_size=16, fit_steps=2, max_new_tokens=32, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S013",
        name="dpo_st",
        paper=Paper(
            "Wang et al.",
            2024,
            "Self-Training with Direct Preference Optimization Improves Chain-of-Thought Reasoning",
            "https://arxiv.org/abs/2407.18248",
        ),
        kind="self-training",
        call="dpo_st",
        summary="Rounds of DPO on own right and wrong answers, then SFT of the first weights on what comes of it.",
        needs="a verifier; written solutions unless gold=None",
        differs="no calculator at decoding.",
        example=WRITTEN
        + """
run = wb.method("dpo_st")(
    policy, written, rounds=1, sft_steps=0, dpo_steps=1, fit_steps=1, n=4, n_fit=2, max_new_tokens=32, out=out / "run"
)
run.run()
run
""",
    ),
]
