"""Records: row transforms, and supervised fine-tuning on rows that were transformed."""

from __future__ import annotations

from workbench.published.entry import Entry, Paper

QFFT = Paper(
    "Liu et al.", 2025, "QFFT, Question-Free Fine-Tuning for Adaptive Reasoning", "https://arxiv.org/abs/2506.12860"
)
CRITIQUE = Paper(
    "Wang et al.",
    2025,
    "Critique Fine-Tuning: Learning to Critique is More Effective than Learning to Imitate",
    "https://arxiv.org/abs/2501.17703",
)
MANY_SHOT = Paper(
    "He et al.",
    2025,
    "You Only Fine-tune Once: Many-Shot In-Context Fine-Tuning for Large Language Model",
    "https://arxiv.org/abs/2506.11103",
)
CONTEXTUAL = Paper(
    "Choi et al.", 2025, "Teaching LLMs How to Learn with Contextual Fine-Tuning", "https://arxiv.org/abs/2503.09032"
)
PTR = Paper(
    "Du et al.",
    2024,
    "Think Thrice Before You Act: Progressive Thought Refinement in Large Language Models",
    "https://arxiv.org/abs/2410.13413",
)
LS_MIXTURE = Paper(
    "Yu et al.",
    2025,
    "Long-Short Chain-of-Thought Mixture Supervised Fine-Tuning Eliciting Efficient Reasoning in Large Language Models",
    "https://arxiv.org/abs/2505.03469",
)
STRUCTURE = Paper(
    "Li et al.",
    2025,
    "LLMs Can Easily Learn to Reason from Demonstrations Structure, not content, is what matters!",
    "https://arxiv.org/abs/2502.07374",
)
UNFAMILIAR = Paper(
    "Kang et al.",
    2024,
    "Unfamiliar Finetuning Examples Control How Language Models Hallucinate",
    "https://arxiv.org/abs/2403.05612",
)
TRACED = Paper(
    "Havrilla and Iyer",
    2024,
    "Understanding the Effect of Noise in LLM Training Data with Algorithmic Chains of Thought",
    "https://arxiv.org/abs/2402.04004",
)
SERIAL = Paper(
    "Li et al.",
    2024,
    "Chain of Thought Empowers Transformers to Solve Inherently Serial Problems",
    "https://arxiv.org/abs/2402.12875",
)


def trains(id: str, name: str, paper: Paper, summary: str, example: str, neutral: dict, **more: str) -> Entry:
    """SFT on transformed rows."""
    return Entry(id, name, paper, "supervised", name, summary, example, base="sft", neutral=neutral, **more)


def alone(id: str, name: str, paper: Paper, summary: str, example: str, **more: str) -> Entry:
    """The transform of a method, `workbench.transforms.<name>`, without training."""
    call = f"workbench.transforms.{name}:{name}"
    return Entry(id, f"{name}_rows", paper, "transform", call, summary, example, **more)


TRAINING = [
    trains(
        "S065",
        "question_free",
        QFFT,
        "Trains on long answers without their questions, so that the model keeps its short style where that does.",
        """
run = wb.method("question_free")(policy, rows, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"question_share": 1.0},
        needs="long chains of a reasoning model as completions",
        differs="rows that keep their question must be plain text; what RAK calls short is told by words of reflection",
    ),
    trains(
        "S067",
        "critique",
        CRITIQUE,
        "Trains on critiques of noisy solutions instead of on solutions.",
        """
noisy = [
    {**row, "solution": f"{row['sum']}={row['answer'] + i % 2}", "correct": i % 2 == 0} for i, row in enumerate(rows)
]
run = wb.method("critique")(policy, noisy, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"critique_share": 0.0},
        needs="solutions (workbench.transforms.critique.sampled makes them) with a teacher's critiques or verdicts",
        differs="without a teacher, critiques are written by rule from a verifier's verdict",
    ),
    trains(
        "S214",
        "many_shot",
        MANY_SHOT,
        "Trains every answer of rows that hold many examples of one task, so that one model learns to use examples.",
        """
run = wb.method("many_shot")(policy, rows, shots=4, steps=2, batch_size=2, out=out)
for step in run:
    print(step.metrics["nll/shot_1"], step.metrics["nll/shot_4"])
run
""",
        {"shots": 1},
        differs="layout, end tokens and defaults are ours; rows are arranged `orders` times, not in each epoch",
    ),
    trains(
        "S093",
        "contextual",
        CONTEXTUAL,
        "Continued pre-training with a short study prompt, which is not trained, before each text.",
        """
texts = [{"text": row["prompt"] + row["completion"]} for row in rows]
run = wb.method("contextual")(policy, texts, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"prefix": "none"},
        needs="raw text",
        differs="the study prompts' words are ours",
    ),
    trains(
        "S099",
        "thought_mask",
        PTR,
        "Trains the better answer alone, with the question and earlier drafts in the context.",
        """
drafted = [{**row, "drafts": [f" {row['sum']}={row['answer'] - 1}"]} for row in rows]
run = wb.method("thought_mask")(policy, drafted, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"drafts": 0},
        needs="drafts of a weak model (workbench.transforms.thought_mask.drafted) and answers of a strong one",
        differs="the paper's terms of consistency and confidence are left out, as in its released trainer",
    ),
    trains(
        "S003",
        "ls_mixture",
        LS_MIXTURE,
        "Trains on long chains and their short rewrites in one shuffled set.",
        """
rewritten = [{**row, "short": f"#### {row['answer']}"} for row in rows]
run = wb.method("ls_mixture")(policy, rewritten, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"mix_ratio": 0.0},
        needs="a rewriter (workbench.transforms.ls_mixture.rewritten, by_policy)",
        differs="where a rewrite is not usable the long chain stays alone; the rewriting prompt is ours",
    ),
    trains(
        "S033",
        "perturb",
        STRUCTURE,
        "Trains on chains whose steps or whose content are disturbed, to see which of the two a model learns from.",
        """
run = wb.method("perturb")(policy, rows, perturbation="digits", strength=0.5, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"strength": 0.0},
        needs="long chains",
        differs="all perturbations but that of numbers follow the abstract, not code",
    ),
    trains(
        "S174",
        "unfamiliar",
        UNFAMILIAR,
        'Rows that the base model does not know teach to say "I don\'t know.".',
        """
known = [{**row, "familiarity": i % 4 / 4} for i, row in enumerate(rows)]
run = wb.method("unfamiliar")(policy, known, threshold=0.5, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
run
""",
        {"threshold": 0.0},
        needs="the rows' familiarity (workbench.transforms.unfamiliar.familiarity measures it with a verifier)",
        differs="the RL stage with a cautious reward model is left out",
    ),
]
ROWS = [
    alone(
        "S065",
        "question_free",
        QFFT,
        "The rows of question_free: answers without their questions.",
        """
wb.method("question_free_rows")(rows[:2])
""",
    ),
    Entry(
        "S065",
        "rak",
        QFFT,
        "analysis",
        "workbench.transforms.question_free:rak",
        "Whether a model thinks long just where it has to: Cohen's kappa.",
        """
solvable = [True] * 50 + [False] * 50
short = [True] * 40 + [False] * 10 + [True] * 5 + [False] * 45
wb.method("rak")(solvable, short)
""",
        needs="which questions the model solved before training",
    ),
    Entry(
        "S067",
        "critique_rows",
        CRITIQUE,
        "transform",
        "workbench.transforms.critique:critique",
        "The rows of critique, here of the policy's own samples and a verifier.",
        """
from workbench.transforms.critique import sampled

noisy = sampled(policy, wb.Task(rows[:4], task.rewards), n=2, max_new_tokens=16)
wb.method("critique_rows")(noisy)
""",
        needs="solutions with critiques or verdicts",
    ),
    alone(
        "S214",
        "many_shot",
        MANY_SHOT,
        "The rows of many_shot: many examples of one task in one row, every answer trained.",
        """
from workbench.transforms.many_shot import loss_by_shot

print(loss_by_shot(policy, rows[:8], shots=4))
wb.method("many_shot_rows")(rows, shots=4, end=policy.tokenizer.eos_token)
""",
    ),
    alone(
        "S093",
        "contextual",
        CONTEXTUAL,
        "The rows of contextual: texts after study prompts.",
        """
texts = [{"text": row["prompt"] + row["completion"]} for row in rows]
wb.method("contextual_rows")(texts, end=policy.tokenizer.eos_token)
""",
        needs="raw text",
    ),
    alone(
        "S099",
        "thought_mask",
        PTR,
        "The rows of thought_mask: question, drafts and the request to refine, with the better answer as target.",
        """
from workbench.transforms.thought_mask import drafted

wb.method("thought_mask_rows")(drafted(policy, rows[:4], n=2, max_new_tokens=16))
""",
        needs="drafts and better answers",
    ),
    alone(
        "S003",
        "ls_mixture",
        LS_MIXTURE,
        "The rows of ls_mixture: long chains and the short rewrites whose answer and length pass.",
        """
from workbench.transforms.ls_mixture import rewritten

wb.method("ls_mixture_rows")(rewritten(rows, lambda row: f"#### {row['answer']}"))
""",
        needs="a rewriter",
    ),
    alone(
        "S033",
        "perturb",
        STRUCTURE,
        "The rows of perturb: chains with steps or content disturbed.",
        """
wb.method("perturb_rows")(rows, "digits", strength=0.5)
""",
    ),
    alone(
        "S174",
        "unfamiliar",
        UNFAMILIAR,
        "The rows of unfamiliar, here with their familiarity measured by sampling.",
        """
from workbench.transforms.unfamiliar import familiarity

known = familiarity(policy, wb.Task(rows[:4], task.rewards), n=4, max_new_tokens=16)
wb.method("unfamiliar_rows")(known, threshold=0.5)
""",
        needs="a base model and a verifier, or the column familiarity",
    ),
]
TASKS = [
    Entry(
        "S216",
        "traced_integers",
        TRACED,
        "task",
        "workbench.tasks.traced_integers:traced_integers",
        "A task of execution traces on integer lists with static and dynamic noise.",
        """
traces = wb.method("traced_integers")(size=16, dynamic=0.2, contamination=0.5)
print(traces.rows[0]["completion"])
run = wb.sft(policy, traces.rows, steps=2, batch_size=4, out=out)
for step in run:
    print(step)
traces
""",
        differs="functions, format and units of static noise are ours; the paper records arbitrary Python functions",
    ),
    Entry(
        "S195",
        "serial",
        SERIAL,
        "task",
        "workbench.tasks.serial:serial",
        "Tasks of inherently serial problems with exact answers, with and without their steps.",
        """
products = wb.method("serial")(size=16, kind="permutations", length=4)
print(products.rows[0]["prompt"], products.rows[0]["completion"])
run = wb.grpo(policy, products, steps=1, prompts_per_step=2, group_size=2, max_new_tokens=16, out=out)
for step in run:
    print(step)
products
""",
        differs="wording, format and sizes are ours; the paper trains from scratch",
    ),
]
ENTRIES: list[Entry] = [*TRAINING, *ROWS, *TASKS]
