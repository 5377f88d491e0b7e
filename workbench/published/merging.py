"""Merges of fine-tunes, and models fused while they decode."""

from workbench.published.entry import Entry, Paper

TWO = """
runs = [wb.sft(policy, rows, steps=2, lr=1e-3, seed=seed, out=out / f"seed-{seed}") for seed in (0, 1)]
for run in runs:
    list(run)
"""
SOUPS = Paper(
    "Wortsman et al.",
    2022,
    "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
    "https://arxiv.org/abs/2203.05482",
)

ENTRIES: list[Entry] = [
    Entry(
        "S179",
        "uniform_soup",
        SOUPS,
        "merge",
        "workbench.merging.soups:uniform",
        "The average of several fine-tunes of one base, as a new policy.",
        TWO + 'wb.method("uniform_soup")(policy, runs)',
        needs="two or more fine-tunes of one base",
    ),
    Entry(
        None,
        "greedy_soup",
        SOUPS,
        "merge",
        "workbench.merging.soups:greedy",
        "The average of those fine-tunes that do not lower a held-out score.",
        TWO
        + """held_out = wb.task("sums", size=8, split="test")
score = lambda policy: wb.evaluate(policy, held_out, n=1, max_new_tokens=16).accuracy
wb.method("greedy_soup")(policy, runs, score)""",
        needs="two or more fine-tunes of one base, a score on held-out data",
        differs="compares strictly, as the authors' code does; their text keeps a member that scores the same",
    ),
    Entry(
        "S094",
        "lines",
        Paper(
            "Wang et al.",
            2024,
            "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
            "https://arxiv.org/abs/2410.17146",
        ),
        "merge",
        "workbench.merging.lines:lines",
        "A fine-tune's update scaled linearly with depth: shallow layers keep what the base could do.",
        """run = wb.sft(policy, rows, steps=2, lr=1e-3, out=out / "tuned")
list(run)
wb.method("lines")(policy, [run], a=0.1)""",
    ),
    Entry(
        "S146",
        "model_stock",
        Paper("Jang et al.", 2024, "Model Stock: All we need is just a few fine-tuned models",
              "https://arxiv.org/abs/2403.19522"),
        "merge",
        "workbench.merging.stock:model_stock",
        "Two fine-tunes pulled towards the centre of all of them, by the angle between them.",
        TWO + 'wb.method("model_stock")(policy, runs).policy',
        needs="two fine-tunes that differ by seed",
        differs="without the merge at every epoch",
    ),
    Entry(
        "S137",
        "breadcrumbs",
        Paper(
            "Davari and Belilovsky",
            2023,
            "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
            "https://arxiv.org/abs/2312.06795",
        ),
        "merge",
        "workbench.merging.breadcrumbs:breadcrumbs",
        "Task vectors without their outliers and their dust, added up.",
        TWO + 'wb.method("breadcrumbs")(policy, runs)',
        needs="fine-tunes of one base, on tasks of their own",
    ),
    Entry(
        "S194",
        "logit_fusion",
        Paper("Fan et al.", 2024, "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion",
              "https://arxiv.org/abs/2406.15480"),
        "decoding",
        "workbench.merging.fusion:fuse",
        "Small tuned models steer a large one while it decodes, as strongly as each token asks for.",
        """large = wb.load("tiny")
wb.method("logit_fusion")(large, policy, None, ["Q: 12 + 30 = ?\\nA:"], n=2, max_new_tokens=16)""",
        needs="a small base, one or more models tuned from it, and a large model with the same vocabulary",
    ),
]  # fmt: skip
