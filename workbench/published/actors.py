"""Records of the family `actors`."""

from workbench.published.entry import Entry, Paper

ENTRIES: list[Entry] = [
    Entry(
        id=None,
        name="ppo",
        paper=Paper(
            "Schulman et al.", 2017, "Proximal Policy Optimization Algorithms", "https://arxiv.org/abs/1707.06347"
        ),
        kind="reinforcement",
        call="ppo",
        summary="Policy gradient with a value head: each token is compared with what was expected before it (GAE).",
        needs="a verifier",
        example="""
run = wb.method("ppo")(
    policy, task, steps=2, prompts_per_step=8, max_new_tokens=24, num_iterations=2, lr=1e-4, value_lr=1e-3, out=out)
run.run()
""",
        differs="The value head shares the policy's layers; the KL coefficient is fixed, not adaptive.",
    ),
    Entry(
        id="S160",
        name="markovian",
        paper=Paper(
            "Viteri et al.",
            2024,
            "Markovian Transformers for Informative Language Modeling",
            "https://arxiv.org/abs/2404.18988",
        ),
        kind="reinforcement",
        call="markovian",
        summary="Reasoning is rewarded by how likely it makes the answer when the question is taken away.",
        needs="reference answers",
        example="""
run = wb.method("markovian")(
    policy, task, steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24, answer_header="\\n####", out=out)
run.run()
""",
        differs="The KL is estimated on sampled tokens, not summed over the vocabulary; a chain may end early.",
    ),
    Entry(
        id="S160",
        name="chain_reliance",
        paper=Paper(
            "Viteri et al.",
            2024,
            "Markovian Transformers for Informative Language Modeling",
            "https://arxiv.org/abs/2404.18988",
        ),
        kind="analysis",
        call="workbench.analyses.reliance:chain_reliance",
        summary="Spoils chains of thought and tells how much less likely answers get, with and without the question.",
        needs="chains with reference answers",
        example="""
sums = rows[:4]
drawn = policy.sample([row["prompt"] for row in sums], n=1, max_new_tokens=24)
wb.method("chain_reliance")(
    policy, drawn.prompt, drawn.text, [row["answer"] for row in sums],
    kinds=["delete", "truncate_back"], shares=[0.5, 1.0], answer_header="\\n####")
""",
        differs="One model with and without the question; the authors compare a model trained for each.",
    ),
    Entry(
        id="S124",
        name="memory_r_plus",
        paper=Paper(
            "Le et al.",
            2025,
            "Reasoning Under 1 Billion: Memory-Augmented Reinforcement Learning for Large Language Models",
            "https://arxiv.org/abs/2504.02273",
        ),
        kind="reinforcement",
        call="memory_r_plus",
        summary="Adds rewards for being near earlier successes and unlike earlier failures of the same question.",
        needs="a verifier; a text encoder (one that counts character n-grams is there)",
        base="grpo",
        neutral={"exploit_weight": 0.0, "explore_weight": 0.0},
        example="""
run = wb.method("memory_r_plus")(
    policy, task, steps=3, prompts_per_step=2, group_size=4, max_new_tokens=24, explore_start=2, out=out)
run.run()
""",
        differs="The default encoder counts character n-grams; the memory reaches `memory_steps` steps back.",
    ),
    Entry(
        id="S038",
        name="adaptive_thinking",
        paper=Paper(
            "Wang et al.",
            2025,
            "Adaptive Deep Reasoning: Triggering Deep Thinking When Needed",
            "https://arxiv.org/abs/2505.20101",
        ),
        kind="reinforcement",
        call="adaptive_thinking",
        summary="Half of a group thinks long, half short; reward and a loss on the first token teach which to choose.",
        needs="a verifier; a model that knows both modes",
        base="grpo",
        neutral={"long_instruction": "", "short_instruction": "", "mode_bonus": 0.0, "mode_loss_coef": 0.0},
        example="""
run = wb.method("adaptive_thinking")(
    policy, task, steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24,
    long_opening=" I", short_opening=" The", out=out)
run.run()
""",
        differs="The paper's exact formulas were not found: threshold, bonus and switching loss are ours.",
    ),
    Entry(
        id="S147",
        name="mind",
        paper=Paper(
            "Zeng et al.",
            2025,
            "Done Is Better than Perfect: Unlocking Efficient Reasoning by Structured Multi-Turn Decomposition",
            "https://arxiv.org/abs/2505.19788",
        ),
        kind="reinforcement",
        call="mind",
        summary="Answers in turns of a thought and an answer, rewarded for right last answers and one thought a turn.",
        needs="a verifier; a model that answers in turns (mind_rows)",
        base="grpo",
        neutral={"format_weight": 0.0, "unit_weight": 0.0, "loss_type": "grpo"},
        example="""
run = wb.method("mind")(policy, task, steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24, out=out)
run.run()
""",
        differs="The weights of the rewards and the markers of a new line of attack are ours.",
    ),
    Entry(
        id="S147",
        name="mind_rows",
        paper=Paper(
            "Zeng et al.",
            2025,
            "Done Is Better than Perfect: Unlocking Efficient Reasoning by Structured Multi-Turn Decomposition",
            "https://arxiv.org/abs/2505.19788",
        ),
        kind="transform",
        call="workbench.rewards.turns:mind_rows",
        summary="Long chains of thought as turns, each with the answer reached by then: what MinD is fine-tuned on.",
        needs="traces; an answer for each prefix (`answering(policy)`)",
        example="""
from workbench.rewards.turns import answering
traces = [{"prompt": "Q: What is 3 + 4?\\nA:", "completion": " 3 + 4 = 8. Wait, it is 7."}]
wb.method("mind_rows")(traces, answering(policy, lead="\\n####", max_new_tokens=8))
""",
        differs="Units are cut at markers (or by `split`); the authors let a large model cut them.",
    ),
]
