"""Records of the family `adapting`: what trains, and how strong it is."""

from workbench.published.entry import Entry, Paper

CAFT = Paper(
    "Casademunt et al.",
    2025,
    "Steering Out-of-Distribution Generalization with Concept Ablation Fine-Tuning",
    "https://arxiv.org/abs/2507.16795",
)
COT_VALVE = Paper(
    "Ma et al.", 2025, "CoT-Valve: Length-Compressible Chain-of-Thought Tuning", "https://arxiv.org/abs/2502.09601"
)

ENTRIES: list[Entry] = [
    Entry(
        id="S105",
        name="concept_ablation",
        paper=CAFT,
        kind="adapter",
        call="concept_ablation",
        summary="SFT during which unwanted directions are taken out of the residual stream; afterwards they are back.",
        needs="directions, from concept_directions or elsewhere",
        base="sft",
        neutral={"basis": {}},
        example="""
import torch

basis = {1: torch.eye(160)[:2], 2: torch.ones(160)}
wb.method("concept_ablation")(policy, rows, basis=basis, steps=2, batch_size=4, lr=1e-3, out=out)
""",
        differs="The basis stays in float32 where the authors' code rounds it to bfloat16.",
    ),
    Entry(
        id=None,
        name="concept_directions",
        paper=CAFT,
        kind="analysis",
        call="workbench.adapters.directions:find_directions",
        summary="Principal directions of what a tuning changed in the residual stream, layer by layer.",
        needs="a policy tuned once without ablation, and generic rows",
        example="""
list(wb.sft(policy, rows, steps=2, batch_size=4, lr=1e-3, out=out))
found = wb.method("concept_directions")(policy, rows[:8], layers=[1, 2], count=3)
found.tokens(policy, rows[:4], layer=2, number=0, count=3)
""",
        differs="Exact eigenvectors instead of a randomised SVD.",
    ),
    Entry(
        id="S074",
        name="half",
        paper=Paper(
            "Hui et al.", 2024, "HFT: Half Fine-Tuning for Large Language Models", "https://arxiv.org/abs/2404.18466"
        ),
        kind="adapter",
        call="half",
        summary="SFT of a random half of the weight matrices, drawn anew each round; the other half stays as it is.",
        base="sft",
        neutral={"fraction": 1.0},
        example="""
wb.method("half")(policy, rows, steps=3, round_steps=2, batch_size=4, lr=1e-3, out=out)
""",
        differs="A round is an epoch by default; the paper's are tasks or stages.",
    ),
    Entry(
        id="S090",
        name="chain_of_lora",
        paper=Paper(
            "Xia et al.",
            2024,
            "Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning",
            "https://arxiv.org/abs/2401.04151",
        ),
        kind="adapter",
        call="chain_of_lora",
        summary="SFT of a chain of LoRAs, each trained on what those before it left; the rank of the update grows.",
        needs="a LoRA of rank links * r",
        base="sft",
        neutral={"links": 1},
        example="""
wb.method("chain_of_lora")(policy, rows, links=2, steps=3, batch_size=4, lr=1e-3, out=out)
""",
        differs="Links are slices of one LoRA and never folded; the numbers are those of folding.",
    ),
    Entry(
        id="S095",
        name="lift",
        paper=Paper(
            "Liu et al.",
            2025,
            "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused"
            " Supervised Fine-Tuning",
            "https://arxiv.org/abs/2506.00772",
        ),
        kind="adapter",
        call="lift",
        summary="SFT of the few entries of each matrix that are largest in its low-rank approximation.",
        needs="a model without an adapter",
        base="sft",
        neutral={"rank": None, "others": True},
        example="""
model = wb.load("tiny")
wb.method("lift")(model, rows, rank=4, filter_rank=16, refresh_steps=2, steps=3, batch_size=4, lr=1e-3, out=out)
""",
        differs="SVD and refresh differ from the authors' code in details that the card names.",
    ),
    Entry(
        id="S167",
        name="valve",
        paper=COT_VALVE,
        kind="adapter",
        call="valve",
        summary="SFT of a LoRA whose strength sets the length of reasoning: each row trains at a strength of its own.",
        needs="right solutions of several lengths to each question, e.g. from mix_chain",
        base="sft",
        neutral={"strength": 1.0},
        example="""
chains = [{**row, "completion": " so" * k + row["completion"]} for row in rows[:8] for k in (0, 2, 5)]
wb.method("valve")(policy, chains, steps=2, batch_size=4, lr=1e-3, out=out)
""",
        differs="No training code was published; this follows the text.",
    ),
    Entry(
        id=None,
        name="mix_chain",
        paper=COT_VALVE,
        kind="transform",
        call="workbench.adapters.chains:mix_chain",
        summary="Right answers of different lengths to the same questions, sampled at several adapter strengths.",
        needs="a verifier, and an adapter that shortens",
        example="""
easy = wb.task("sums", size=8)
wb.method("mix_chain")(policy, easy, strengths=(0.0, 1.0), n=4, max_new_tokens=24)
""",
    ),
    Entry(
        id=None,
        name="valve_curve",
        paper=COT_VALVE,
        kind="analysis",
        call="workbench.adapters.chains:valve_curve",
        summary="Accuracy, length and accuracy per computation unit against the strength of the adapter.",
        needs="a verifier",
        example="""
wb.method("valve_curve")(policy, wb.task("sums", size=4), strengths=(0.0, 1.0), max_new_tokens=16)
""",
    ),
    Entry(
        id=None,
        name="scaled",
        paper=COT_VALVE,
        kind="decoding",
        call="workbench.adapters.scaling:scaled",
        summary="The policy with any multiple of its adapter, for the length of a block.",
        example="""
with wb.method("scaled")(policy, 0.5) as halfway:
    rollouts = halfway.sample(["2+3="], n=2, max_new_tokens=8)
rollouts
""",
    ),
    Entry(
        id="S168",
        name="corda",
        paper=Paper(
            "Yang et al.",
            2024,
            "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
            "https://arxiv.org/abs/2406.05223",
        ),
        kind="adapter",
        call="workbench.adapters.corda:corda",
        summary="A LoRA that starts from the directions of the weights that given text uses most, or least.",
        needs="calibration rows; a model without an adapter",
        example="""
model = wb.method("corda")(wb.load("tiny"), rows, r=4, method="ipm", samples=8)
run = wb.sft(model, rows, steps=2, batch_size=4, lr=1e-4, out=out)
run.run()
model
""",
    ),
]
