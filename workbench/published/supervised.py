"""Records of the family `supervised`: fine-tuning with another loss, other weights or other inputs."""

from workbench.published.entry import Entry, Paper

ENTRIES: list[Entry] = [
    Entry(
        id="S058",
        name="masked_thought",
        paper=Paper(
            "Chen et al.",
            2024,
            "Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning Learning of"
            " Language Models",
            "https://arxiv.org/abs/2403.02178",
        ),
        kind="supervised",
        call="masked_thought",
        summary="SFT that reads the answer with random tokens in some of its places and is still asked for all of it.",
        base="sft",
        neutral={"rate": 0.0},
        differs="replace='mask' takes the tokenizer's mask or pad token, not a token added to the vocabulary.",
        example="""
run = wb.method("masked_thought")(policy, rows, rate=0.4, steps=2, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S173",
        name="iw_sft",
        paper=Paper(
            "Qin and Springenberg",
            2025,
            "Supervised Fine Tuning on Curated Data is Reinforcement Learning (and can be improved)",
            "https://arxiv.org/abs/2507.12856",
        ),
        kind="supervised",
        call="iw_sft",
        summary="SFT in which each row, or token, is weighted by how much likelier it has become since the start.",
        needs="curated rows; with score_column a column of scores",
        base="sft",
        neutral={"exponent": 0.0},
        differs="the reference is scored anew in each step, by the same model without its training.",
        example="""
run = wb.method("iw_sft")(policy, rows, steps=2, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S182",
        name="discriminative",
        paper=Paper(
            "Guo et al.",
            2025,
            "Discriminative Finetuning of Generative Large Language Models without Reward Models and Preference Data",
            "https://arxiv.org/abs/2502.18679",
        ),
        kind="supervised",
        call="discriminative",
        summary="Raises the given answer against bad answers that the starting model wrote itself.",
        needs="a column `negatives`, answers of the starting model as texts; sample_negatives makes it",
        differs="the negatives' weights come from a pass of their own before the update, without dropout.",
        example="""
from workbench.methods.supervised.discriminative import sample_negatives

against = sample_negatives(policy.reset(), rows[:8], n=2, max_new_tokens=12)
run = wb.method("discriminative")(policy, against, steps=2, batch_size=4, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S114",
        name="poft",
        paper=Paper(
            "Fan et al.",
            2024,
            "Preference-Oriented Supervised Fine-Tuning: Favoring Target Model Over Aligned Large Language Models",
            "https://arxiv.org/abs/2412.12865",
        ),
        kind="supervised",
        call="poft",
        summary="Rewards the policy for finding a row likelier than a panel of aligned models does.",
        needs="a column `aligned_logprob`; panel_logprobs makes it with other models, once",
        differs="both log-probs are means over the trained tokens; the authors' trainer averages the policy's over the"
        " whole text.",
        example="""
from workbench.methods.supervised.poft import panel_logprobs

scored = panel_logprobs([wb.load("tiny")], rows)
run = wb.method("poft")(policy, scored, steps=2, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S163",
        name="intuitive",
        paper=Paper(
            "Hua et al.",
            2024,
            "Intuitive Fine-Tuning: Towards Unifying SFT and RLHF into a Single Process",
            "https://arxiv.org/abs/2405.11870",
        ),
        kind="supervised",
        call="intuitive",
        summary="SFT on prefixes blended with the model's own guesses, early tokens weighted by what they cost later.",
        base="sft",
        neutral={"mix": 0.0, "gamma": 0.0, "loss_reduction": "token"},
        differs="the embeddings that are blended are the policy's own, not a frozen copy.",
        example="""
run = wb.method("intuitive")(policy, rows, steps=2, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id="S102",
        name="key_token",
        paper=Paper(
            "Ye et al.",
            2024,
            "TL-Training: A Task-Feature-Based Framework for Training Large Language Models in Tool Use",
            "https://arxiv.org/abs/2412.15495",
        ),
        kind="supervised",
        call="key_token",
        summary="SFT on tool calls that weights the tokens which decide the tool, and leaves failed calls out.",
        needs="dialogues or prompts with tool calls, and a column `tools`",
        base="sft",
        neutral={"max_weight": 1.0},
        differs="weights are divided by their sum over the update; in a JSON call the key begins at the name.",
        example="""
tools = ["add_two", "add_three", "multiply"]
calls = [{"prompt": f"Add {i} and 7.\\n", "completion": f"add_two(a={i}, b=7)", "tools": tools} for i in range(12)]
run = wb.method("key_token")(policy, calls, steps=2, batch_size=4, out=out / "run")
run.run()
run
""",
    ),
    Entry(
        id=None,
        name="tool_call",
        paper=Paper(
            "Ye et al.",
            2024,
            "TL-Training: A Task-Feature-Based Framework for Training Large Language Models in Tool Use",
            "https://arxiv.org/abs/2412.15495",
        ),
        kind="reward",
        call="workbench.rewards.tool_calls:tool_call",
        summary="A reward for tool calls by what is wrong with them, from an invented tool (-2) to all right (1).",
        needs="columns `answer` (the right call) and `tools`",
        example="""
tools = [{"name": "weather", "parameters": {"properties": {"city": {}, "days": {}}}}]
written = ['weather(city="Oslo", days=3)', 'weather(city="Rome", days=3)', 'weather(town="Oslo")', "Hello!"]
wb.method("tool_call")(written, answer=['weather(city="Oslo", days=3)'] * 4, tools=[tools] * 4)
""",
    ),
    Entry(
        id=None,
        name="dynamic",
        paper=Paper(
            "Wu et al.",
            2025,
            "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
            "https://arxiv.org/abs/2508.05629",
        ),
        kind="supervised",
        call="sft",
        sets={"loss_type": "dft"},
        card="""Dynamic fine-tuning (DFT): SFT with each token's loss multiplied by its probability, without gradient.

    loss = mean over trained tokens of -sg(p_t) log p_t      p_t the policy's probability of the token, sg: no gradient

Seen as a policy gradient, plain SFT weights each token by 1 / p_t, so that what the policy finds unlikely pulls
hardest; the factor takes that back. Unlikely tokens then hardly train, which helps where they are noise and hurts where
they are what there is to learn.

Wu et al. 2025, arXiv 2508.05629, as TRL has it (loss_type="dft"). Not to be mixed up with discriminative fine-tuning,
which has the same letters: wb.method("discriminative").""",
        summary="Dynamic fine-tuning: SFT with each token's loss multiplied by its probability, without gradient.",
        base="sft",
        neutral={"loss_type": "nll"},
        example="""
run = wb.method("dynamic")(policy, rows, steps=2, out=out / "run")
run.run()
run
""",
    ),
]
