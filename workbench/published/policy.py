"""Records of the family `policy`."""

from workbench.published.entry import Entry, Paper

SHOWN = """
rows = [{**row, "demonstration": f" {row['sum']}={row['answer']}\\n#### {row['answer']}"} for row in task.rows]
shown = wb.Task(rows, rewards=task.rewards)
"""

ENTRIES: list[Entry] = [
    Entry(
        id="S031",
        name="aapo",
        paper=Paper(
            "Xiong et al.",
            2025,
            "AAPO: Enhance the Reasoning Capabilities of LLMs with Advantage Momentum",
            "https://arxiv.org/abs/2505.14264",
        ),
        kind="reinforcement",
        call="aapo",
        summary="GRPO whose advantages add how far a completion beats the frozen reference: equal rewards teach, too.",
        needs="a verifier",
        base="grpo",
        neutral={"bonus_low": 0.0, "bonus_high": 0.0, "likelihood": False},
        example="""
run = wb.method("aapo")(policy, task, steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24, out=out)
run.run()
""",
        differs="a cache of the reference's mean reward by prompt is offered beside the paper's sampling in each step.",
    ),
    Entry(
        id="S097",
        name="srft",
        paper=Paper(
            "Fu et al.",
            2025,
            "SRFT: A Single-Stage Method with Supervised and Reinforcement Fine-Tuning for Reasoning",
            "https://arxiv.org/abs/2506.19767",
        ),
        kind="reinforcement",
        call="srft",
        summary="Demonstrations and own completions in one loss, weighted by the policy's entropy.",
        needs="a verifier; demonstrations (column demonstration)",
        base="grpo",
        neutral={"imitation": 0.0, "off_policy": 0.0, "right_weight": None},
        example=SHOWN
        + """
run = wb.method("srft")(policy, shown, steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24, out=out)
run.run()
""",
        differs="the entropy is that of the policy on its own completions in the update, one number for all weights.",
    ),
    Entry(
        id="S113",
        name="uft",
        paper=Paper(
            "Liu et al.",
            2025,
            "UFT: Unifying Supervised and Reinforcement Fine-Tuning",
            "https://arxiv.org/abs/2505.16984",
        ),
        kind="reinforcement",
        call="uft",
        summary="Completions start from a fading part of a known solution, which a small likelihood loss teaches.",
        needs="a verifier; worked solutions (column solution)",
        base="grpo",
        neutral={"hint_steps": 0, "beta": 0.0},
        example="""
rows = [{**row, "solution": [f" {row['sum']}", f"={row['answer']}\\n", f"#### {row['answer']}"]} for row in task.rows]
hinted = wb.Task(rows, rewards=task.rewards)
run = wb.method("uft")(
    policy, hinted, steps=2, hint_steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24, out=out
)
run.run()
""",
        differs="a hint's tokens go through the loss once for its group, which is the mean over the group's copies.",
    ),
    Entry(
        id="S145",
        name="relift",
        paper=Paper(
            "Ma et al.",
            2025,
            "Learning What Reinforcement Learning Can't: Interleaved Online Fine-Tuning for Hardest Questions",
            "https://arxiv.org/abs/2506.07527",
        ),
        kind="reinforcement",
        call="relift",
        summary="Policy gradients, and a supervised step on demonstrations whenever enough prompts went unsolved.",
        needs="a verifier; demonstrations (column demonstration)",
        base="grpo",
        neutral={
            "buffer_size": 0, "clipped": True, "scale_rewards": "group", "loss_type": "dapo", "entropy_coef": 0.0,
            "max_grad_norm": 1.0,
        },
        example=SHOWN
        + """
run = wb.method("relift")(
    policy, shown, steps=2, buffer_size=2, prompts_per_step=4, group_size=2, max_new_tokens=8, out=out
)
run.run()
""",
        differs="the constant divisor is rows times max_new_tokens; a buffer's batch is one update.",
    ),
    Entry(
        id="S150",
        name="bon_aware",
        paper=Paper(
            "Chow et al.",
            2024,
            "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models",
            "https://arxiv.org/abs/2412.15287",
        ),
        kind="reinforcement",
        call="bon_aware",
        summary="Policy gradients that raise the chance that the best of N samples is right.",
        needs="a verifier",
        base="grpo",
        neutral={"best_of": 1, "scale_rewards": "group"},
        example="""
run = wb.method("bon_aware")(
    policy, task, steps=2, best_of=8, prompts_per_step=2, group_size=8, max_new_tokens=24, out=out
)
run.run()
""",
        differs="samples are ordinary ones, not best-of-N ones, with weights to match; binary verdicts only.",
    ),
    Entry(
        id="S241",
        name="entropy_temperature",
        paper=Paper(
            "Liu et al.",
            2025,
            "AceReason-Nemotron 1.1: Advancing Math and Code Reasoning through SFT and RL Synergy",
            "https://arxiv.org/abs/2506.13284",
        ),
        kind="analysis",
        call="workbench.analyses.entropy_temperature:entropy_temperature",
        summary="Sweeps the sampling temperature and finds the one at which samples have a given entropy.",
        example="""
found = wb.method("entropy_temperature")(policy, task, 0.3, temperatures=[0.5, 1.0], n=2, rows=4, max_new_tokens=24)
found
""",
        differs="how the paper swept is not said; stages and data of its recipe are settings of separate runs.",
    ),
    Entry(
        id="S241",
        name="entropy_band",
        paper=Paper(
            "Liu et al.",
            2025,
            "AceReason-Nemotron 1.1: Advancing Math and Code Reasoning through SFT and RL Synergy",
            "https://arxiv.org/abs/2506.13284",
        ),
        kind="reinforcement",
        call="entropy_band",
        summary="GRPO that warns when the entropy of its samples leaves a band: the temperature no longer suits.",
        needs="a verifier",
        base="grpo",
        neutral={},
        example="""
run = wb.method("entropy_band")(policy, task, steps=2, prompts_per_step=2, group_size=4, max_new_tokens=24, out=out)
run.run()
""",
        differs="the band is ours; the paper gives its middle.",
    ),
    Entry(
        id="S010",
        name="length_cosine",
        paper=Paper(
            "Yeo et al.",
            2025,
            "Demystifying Long Chain-of-Thought Reasoning in LLMs",
            "https://arxiv.org/abs/2502.03373",
        ),
        kind="reward",
        call="workbench.rewards.long_cot:length_cosine",
        summary="A reward by length along a cosine, falling for right answers and rising for wrong ones.",
        needs="a verifier",
        example="""
reward = wb.method("length_cosine")(24, correct="number")
shaped = wb.Task(task.rows, rewards=[reward, wb.rewards.repeated_tokens(ngram=4)])
run = wb.grpo(policy, shaped, steps=1, prompts_per_step=2, group_size=4, max_new_tokens=24, out=out)
run.run()
run.rollouts()
""",
        differs="rewards of whole completions in GRPO, where the paper has PPO with a discount for each.",
    ),
    Entry(
        id="S036",
        name="step_grpo",
        paper=Paper(
            "Zhang et al.",
            2025,
            "R1-VL: Learning to Reason with Multimodal Large Language Models via Step-wise Group Relative Policy"
            " Optimization",
            "https://arxiv.org/abs/2503.12937",
        ),
        kind="reward",
        call="workbench.rewards.steps:step_grpo",
        summary="A reward of a right answer, key steps that occur and steps in order.",
        needs="key steps (column key_steps); a verifier",
        example="""
reward = wb.method("step_grpo")(correct="number")
text = "### Step 1: 3 + 4 = 7\\n### Step 3: so it is 7\\n### The final answer is: 7"
reward([text], answer=["7"], key_steps=[["3 + 4", "= 7", "carry", ["ten", "10"]]])
""",
        differs="text alone; key steps are data, where the paper has a strong model extract them.",
    ),
    Entry(
        id="S069",
        name="classify",
        paper=Paper(
            "Li et al.",
            2025,
            "CLS-RL: Image Classification with Rule-Based Reinforcement Learning",
            "https://arxiv.org/abs/2503.16188",
        ),
        kind="task",
        call="workbench.tasks.classify:classify",
        summary="Classification of texts by rewards, with thinking and without, to compare the two.",
        needs="texts and labels",
        example="""
texts, labels = ["it purrs", "it barks", "it meows", "it growls"], ["cat", "dog", "cat", "dog"]
direct = wb.method("classify")(texts, labels, thinking=False)
run = wb.grpo(policy, direct, steps=1, prompts_per_step=2, group_size=4, max_new_tokens=8, out=out)
run.run()
run.rollouts()
""",
        differs="texts instead of images; labels are compared as text, without a symbolic verifier before.",
    ),
]  # fmt: skip
