"""Which rows to train on."""

from workbench.published.entry import Entry, Paper

ZOO = Paper("Xia et al.", 2024, "Rethinking Data Selection at Scale: Random Selection is Almost All You Need",
            "https://arxiv.org/abs/2410.09335")  # fmt: skip
CLEAR = Paper(
    "Chen and Mueller",
    2024,
    "Automated Data Curation for Robust Language Model Fine-Tuning",
    "https://arxiv.org/abs/2403.12776",
)
HARD = Paper(
    "Yu et al.", 2025,
    "Rethinking the Generation of High-Quality CoT Data from the Perspective of LLM-Adaptive Question Difficulty"
    " Grading",
    "https://arxiv.org/abs/2504.11919",
)  # fmt: skip
DIVERSE = Paper(
    "Yu et al.",
    2024,
    "Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement",
    "https://arxiv.org/abs/2409.11378",
)
NEW = Paper(
    "Isonuma and Titov", 2024, "What's New in My Data? Novelty Exploration via Contrastive Generation",
    "https://arxiv.org/abs/2410.14765",
)  # fmt: skip
TUNED = """run = wb.sft(policy, rows, steps=2, lr=1e-3, out=out / "tuned")
list(run)
"""

ENTRIES: list[Entry] = [
    Entry(
        "S205",
        "pick_rows",
        ZOO,
        "selector",
        "workbench.selection.scores:pick",
        "Rows by one of eight scores, beside the baseline that each must beat: random rows, and long ones.",
        'wb.method("pick_rows")(policy, rows, k=8, by="ifd").report()',
    ),
    Entry(
        "S118",
        "learnability",
        Paper(
            "Zhou et al.",
            2023,
            "LoBaSS: Gauging Learnability in Supervised Fine-tuning Data",
            "https://arxiv.org/abs/2310.13008",
        ),
        "selector",
        "workbench.selection.learnability:learnability",
        "Rows whose loss falls most, relatively, when this model is tuned.",
        TUNED + 'wb.method("learnability")(policy, rows, k=8)',
        needs="a policy whose adapter was tuned on the pool",
    ),
    Entry(
        "S029",
        "difficulty_mix",
        HARD,
        "selector",
        "workbench.selection.difficulty:mix",
        "A chosen mix of levels of difficulty, graded by how this model does.",
        """from workbench.selection.difficulty import grade
grades = grade(policy, task, n=2, max_new_tokens=16)
wb.method("difficulty_mix")(task.rows, grades, k=8)""",
        needs="a verifier, or a process reward model",
        differs="levels by pass rate in equal bins where no process reward model is given",
    ),
    Entry(
        "S130",
        "semantic_abstention",
        Paper(
            "Tjandra et al.",
            2024,
            "Fine-Tuning Large Language Models to Appropriately Abstain with Semantic Entropy",
            "https://arxiv.org/abs/2410.17234",
        ),
        "selector",
        "workbench.selection.abstention:grade",
        "Questions graded by how far the model's answers scatter in meaning; rows that teach it to abstain there.",
        """questions = [row["prompt"] for row in rows[:4]]
wb.method("semantic_abstention")(policy, questions, m=3, max_new_tokens=12).rows(tau=0.7)""",
        needs="an entailment model or judge, for more than short answers",
    ),
    Entry(
        "S110",
        "clear",
        CLEAR,
        "selector",
        "workbench.selection.clear:filtered",
        "Noisy targets dropped, or rewritten, by the confidence of the model that is trained.",
        """from workbench.selection.clear import confidence
scores = confidence(policy, rows[:6], k=2, max_new_tokens=12)
wb.method("clear")(rows[:6], scores)""",
        needs="an entailment model or judge, for more than short answers",
        differs="the verdict between old and new target is asked in both orders",
    ),
    Entry(
        "S226",
        "diversify",
        DIVERSE,
        "selector",
        "workbench.selection.diversify:refined",
        "Diverse rows, cluster by cluster; clusters that teach little lose their budget round by round.",
        """def tune(picked):
    policy.reset()
    list(wb.sft(policy, picked, steps=1, lr=1e-3, out=out / f"round-{len(picked)}"))
    return policy

def reward(prompts, answers):
    return [float("####" in answer) for answer in answers]

wb.method("diversify")(policy, rows, 8, tune, reward, clusters=4, rounds=2, max_new_tokens=12)""",
        needs="a reward or judge for the feedback",
        differs="picks its whole budget, where the authors' script divides once too often",
    ),
    Entry(
        "S141",
        "contrastive_generation",
        NEW,
        "analysis",
        "workbench.selection.contrast:generate",
        "Texts that show what is new in tuning data, from the tuned model and its base alone.",
        TUNED + 'wb.method("contrastive_generation")(policy, n=4, prompt="Q:", max_new_tokens=12)',
        needs="a policy with an adapter",
        differs="without the iterative form",
    ),
]
