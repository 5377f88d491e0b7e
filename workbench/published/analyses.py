"""Records of the family `analyses`."""

from workbench.published.entry import Entry, Paper

FAITHFULNESS = Entry(
    id="S009",
    name="faithfulness",
    paper=Paper(
        "Lobo et al.",
        2024,
        "On the Impact of Fine-Tuning on Chain-of-Thought Reasoning",
        "https://arxiv.org/abs/2411.15382",
    ),
    kind="analysis",
    call="workbench.analyses.faithfulness:faithfulness",
    summary="Cuts chains of thought early, or fills them with dots, and counts the answers that stay as they were.",
    needs="questions whose answers can be told",
    example="""
run = wb.sft(policy, rows, steps=4, batch_size=8, lr=5e-3, out=out)
run.run()
sums = wb.task("sums", size=6, seed=1)
wb.method("faithfulness")(run, sums, mark="####", force="\\n####", max_new_tokens=40, max_answer_tokens=6)
""",
    differs="One chain a question, drawn greedily; the paraphrase is a function of yours.",
)

SLICK = Entry(
    id="S122",
    name="slick",
    paper=Paper(
        "Gekhman et al.",
        2024,
        "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?",
        "https://arxiv.org/abs/2405.05904",
    ),
    kind="analysis",
    call="workbench.analyses.slick:slick",
    summary="Sorts questions into highly known, maybe known, weakly known and unknown, by the model's own answers.",
    needs="questions with short answers",
    example="""
last = lambda text: text.rpartition("####")[2].partition("\\n")[0]
wb.method("slick")(policy, rows[:8], examples=3, shots=2, samples=4, max_new_tokens=24, extract=last)
""",
    differs="The questions of the rows themselves serve as examples for each other.",
)

TOKEN_SHIFT = Entry(
    id="S156",
    name="token_shift",
    paper=Paper(
        "Ghosh et al.",
        2024,
        "A Closer Look at the Limitations of Instruction Tuning",
        "https://arxiv.org/abs/2402.05119",
    ),
    kind="analysis",
    call="workbench.analyses.token_shift:token_shift",
    summary="Ranks each token of the tuned model's answers under the base: unshifted, marginal or shifted.",
    needs="a policy with an adapter, or a base beside it",
    example="""
run = wb.sft(policy, rows, steps=4, batch_size=8, lr=5e-3, out=out)
run.run()
wb.method("token_shift")(run, [row["prompt"] for row in rows[:8]], rows=rows, max_new_tokens=24)
""",
    differs="Wrong spans are not marked, so all shifted tokens are looked up in the training rows.",
)

LEARNING_DYNAMICS = Entry(
    id="S164",
    name="learning_dynamics",
    paper=Paper("Ren and Sutherland", 2024, "Learning Dynamics of LLM Finetuning", "https://arxiv.org/abs/2407.10490"),
    kind="analysis",
    call="workbench.analyses.learning_dynamics:learning_dynamics",
    summary="Follows the log-probs of chosen, rejected and unrelated answers over a run, and marks where DPO squeezes.",
    needs="a run",
    example="""
run = wb.dpo(policy, pairs, steps=6, batch_size=4, lr=2e-3, out=out)
wb.method("learning_dynamics")(run, every=2, most=6, max_new_tokens=24)
""",
    differs="Rephrasings of the answers are not made; a table of one's own may have them.",
)

FRACTURED_SAMPLING = Entry(
    id="S189",
    name="fractured_sampling",
    paper=Paper("Liao et al.", 2025, "Fractured Chain-of-Thought Reasoning", "https://arxiv.org/abs/2505.12992"),
    kind="decoding",
    call="workbench.analyses.fractured_sampling:fractured_sampling",
    summary="Cuts chains at many depths, draws several answers at each, and reads pass@k and votes off one grid.",
    needs="a task with a verdict",
    example="""
sums = wb.task("sums", size=6, seed=1)
short = {"max_new_tokens": 40, "max_answer_tokens": 6}
wb.method("fractured_sampling")(policy, sums, n=4, cuts=4, answers=2, mark="####", force="\\n####", **short)
""",
    differs="Cuts of one chain do not share its cache, so each reads it again; answers have 64 tokens, not 2,048.",
)

FORGETTING_LAWS = Entry(
    id="S201",
    name="forgetting_laws",
    paper=Paper(
        "Kalajdzievski",
        2024,
        "Scaling Laws for Forgetting When Fine-Tuning Large Language Models",
        "https://arxiv.org/abs/2401.05605",
    ),
    kind="analysis",
    call="workbench.analyses.forgetting_laws:forgetting_laws",
    summary="Plots drift from the base model on general text against the loss on the task, and fits two laws to it.",
    needs="a run and general texts",
    example="""
run = wb.sft(policy, rows[:24], steps=8, batch_size=8, lr=3e-3, out=out)
texts = ["Mia has 27 apples and buys 38 more.", "Q: Spell apples.\\nA: a p p l e s", "There are 5 stones in a box."]
wb.method("forgetting_laws")(run, texts, rows[24:], every=2)
""",
    differs="A law for steps and one for parameters are fitted apart; the paper's joint law is not.",
)

TUCO = Entry(
    id="S221",
    name="tuco",
    paper=Paper(
        "Nuti et al.",
        2025,
        "TuCo: Measuring the Contribution of Fine-Tuning to Individual Responses of LLMs",
        "https://arxiv.org/abs/2506.23423",
    ),
    kind="analysis",
    call="workbench.analyses.tuco:tuco",
    summary="Runs every layer with and without the tuning: the share of tuning in each token of a response.",
    needs="a policy with an adapter, or a base beside it",
    example="""
run = wb.sft(policy, rows, steps=4, batch_size=8, lr=5e-3, out=out)
run.run()
prompts = [row["prompt"] for row in rows[:6]] + ["There are 5 stones in a box."]
kinds = ["task"] * 6 + ["plain text"]
wb.method("tuco")(run, prompts, kinds=kinds, scales=(0, 0.5, 1, 1.5), max_new_tokens=24)
""",
    differs="Also measured at each token of the response, which the paper does for the last token of the prompt.",
)

WEIGHT_MAP = Entry(
    id="S229",
    name="weight_map",
    paper=Paper(
        "Rajani et al.",
        2025,
        "Scalpel vs. Hammer: GRPO Amplifies Existing Capabilities, SFT Replaces Them",
        "https://arxiv.org/abs/2507.10616",
    ),
    kind="analysis",
    call="workbench.analyses.weights:weight_map",
    summary="How far training moved each weight, by layer and module, of several runs side by side.",
    needs="a policy with a LoRA, or full weights",
    example="""
a = wb.sft(policy, rows, steps=2, lr=1e-3, out=out / "sft")
list(a)
b = wb.grpo(policy, task, steps=2, lr=1e-3, group_size=4, max_new_tokens=12, out=out / "grpo")
list(b)
wb.method("weight_map")(policy, {"SFT": a, "GRPO": b})
""",
)

BASE_LIKELIHOOD = Entry(
    id="S076",
    name="base_likelihood",
    paper=Paper(
        "Harada et al.",
        2025,
        "Massive Supervised Fine-tuning Experiments Reveal How Data, Layer, and Training Factors Shape LLM Alignment"
        " Quality",
        "https://arxiv.org/abs/2506.14681",
    ),
    kind="analysis",
    call="workbench.analyses.weights:base_likelihood",
    summary="The base model's loss on data sets, which foretells what tuning on them gives.",
    example="""
halves = {"first": rows[:16], "second": rows[16:]}
wb.method("base_likelihood")(policy, halves)
""",
)

ENTRIES: list[Entry] = [
    FAITHFULNESS, SLICK, TOKEN_SHIFT, LEARNING_DYNAMICS, FRACTURED_SAMPLING, FORGETTING_LAWS, TUCO, WEIGHT_MAP,
    BASE_LIKELIHOOD,
]  # fmt: skip
