"""Records of the family `preference`: what pairs are built of, and losses on answers that were compared."""

from workbench.published.entry import Entry, Paper

ENTRIES: list[Entry] = [
    Entry(
        id="S034",
        name="thinkpo",
        paper=Paper("Yang et al.", 2025, "Thinking Preference Optimization", "https://arxiv.org/abs/2502.13173"),
        kind="preference",
        call="thinkpo",
        summary="DPO that prefers the long chain of thought to a short answer that is right as well.",
        needs="long answers, and short ones that a verifier has checked",
        base="dpo",
        neutral={"beta": 0.1},
        example="""
from workbench.transforms.pairs import long_over_short

answers = [{**row, "short": f" #### {row['answer']}", "short_correct": True} for row in rows]
pairs = long_over_short(answers)    # the method does this by itself where rows have these columns
wb.method("thinkpo")(policy, pairs, steps=2, batch_size=4, lr=1e-4, out=out)
""",
    ),
    Entry(
        id="S064",
        name="chain_of_preference",
        paper=Paper(
            "Zhang et al.",
            2024,
            "Chain of Preference Optimization: Improving Chain-of-Thought Reasoning in LLMs",
            "https://arxiv.org/abs/2406.09136",
        ),
        kind="preference",
        call="chain_of_preference",
        summary="DPO on single steps: those on right paths of a search tree over the siblings that it threw away.",
        needs="a verifier, and answers that come in steps",
        base="dpo",
        neutral={"beta": 0.1, "open_steps": False},
        differs="The judge's probability of Yes is read instead of counting verdicts that it writes.",
        example="""
from workbench import judges
from workbench.transforms.pairs import sibling_steps

some = judges.rule(lambda completions, **columns: [0.5 for _ in completions])    # a judge that likes all steps
trees = judges.trees(policy.reset(), task, some, candidates=4, keep=2, steps=3, step_tokens=16, limit=8)
print(trees[1])                     # + on a right path, - thrown away
wb.method("chain_of_preference")(policy, sibling_steps(trees), steps=2, batch_size=4, lr=1e-4, out=out)
""",
    ),
    Entry(
        id="S062",
        name="aft",
        paper=Paper(
            "Wang et al.",
            2023,
            "Making Large Language Models Better Reasoners with Alignment",
            "https://arxiv.org/abs/2309.02144",
        ),
        kind="preference",
        call="aft",
        summary="SFT on right answers beside a ranking of right over wrong ones, which holds the wrong ones up.",
        needs="several answers to a question, and a verifier",
        base="sft",
        neutral={"ranking_weight": 0.0},
        differs="The boundary is checked against a summary of the paper; no code was to be had.",
        example="""
# wrong answers made by hand; of sampled ones: workbench.transforms.pairs.answer_groups(rollouts, "correct")
wrong = [[f" #### {row['answer'] + off}" for off in (1, 10)] for row in rows]
groups = [{**row, "answers": some, "correct": [False, False]} for row, some in zip(rows, wrong)]
wb.method("aft")(policy, groups, steps=2, batch_size=4, constraint="boundary", lr=1e-4, out=out)
""",
    ),
    Entry(
        id="S240",
        name="self_judgment",
        paper=Paper(
            "Lee et al.",
            2024,
            "Aligning Large Language Models by On-Policy Self-Judgment",
            "https://arxiv.org/abs/2402.11253",
        ),
        kind="preference",
        call="self_judgment",
        summary="Samples two answers, lets the start of the run judge them in both orders, and learns by DPO.",
        needs="a policy that was taught to judge (`workbench.judges.judge_rows`)",
        differs="Answers that were cut get no end token, and ties give no pair.",
        example="""
# the shipped model was not taught to judge: it hardly ever says A or B, and least_mass=0 takes what there is
wb.method("self_judgment")(
    policy, task, steps=2, batch_size=4, max_new_tokens=24, least_mass=0.0, lr=1e-4, out=out
)
""",
    ),
]
