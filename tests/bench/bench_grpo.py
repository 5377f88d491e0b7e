"""A step of GRPO, ours and TRL's: sampling, reward, one update.

4 prompts of 32 tokens x 8 completions of up to 128 tokens, LoRA on all linear layers, float32 (bfloat16 on a GPU). A
step is counted whole: drawing the prompts, sampling, the reward, advantages, the update, and what each side records (we
store every rollout with its log-probs and entropies; TRL logs its metrics). In the case "fixed" no token ends a
completion, on either side; in "varied" a vocabulary of 48 makes a random model stop after about 40 tokens. What the two
sides sample differs, so "per_token" is the ratio of seconds per token sampled, over all rounds.

`--grow`: how the step grows with completion length, group size, prompts and vocabulary instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import common
import theirs
from common import ADAPTER, OURS
from floor import Floor

import workbench as wb

SETTINGS = {"prompts": 4, "group": 8, "tokens": 128, "prompt_tokens": 32, "vocab": 2048}
SMALL = {"prompts": 2, "group": 2, "tokens": 6, "prompt_tokens": 5, "vocab": 64}
VARIED = 48
"""the vocabulary with which completions end by themselves"""
GROWING = {"tokens": (32, 64, 128, 256), "group": (4, 16), "prompts": (1, 8), "vocab": (16_384, 65_536)}
"""one setting at a time; the others as in SETTINGS, but completions of 64 tokens"""


def reward(completions: list[str], **columns) -> list[float]:
    """Cheap, and different within a group."""
    return [len(set(text)) + sum(map(ord, text)) % 7 / 7 for text in completions]


def sides(folder: Path, size: tuple[int, int], settings: dict, fixed: bool, device: str, model: dict) -> dict:
    """The turn of each side, and the lengths that ours sampled so far."""
    vocab, rows = settings["vocab"], settings["prompts"] * settings["group"]
    common.model_folder(folder, size, vocab, common.symbol_tokenizer(vocab), **model)
    policy = common.our_policy(folder, device, adapter=folder / "adapter")
    prompts = [{"prompt": common.symbol_text(settings["prompt_tokens"], vocab, i)} for i in range(settings["prompts"])]
    if fixed:
        policy.stop_ids = ()
    run = iter(
        wb.grpo(
            policy, wb.Task(prompts, rewards=[reward]), steps=theirs.ENDLESS, prompts_per_step=settings["prompts"],
            group_size=settings["group"], max_new_tokens=settings["tokens"], lr=1e-5, out=folder / "run",
        )
    )  # fmt: skip
    trainer = theirs.trainer(
        "GRPO", folder, folder / "adapter", prompts, device=device, learning_rate=1e-5, beta=0.0,
        per_device_train_batch_size=rows, num_generations=settings["group"],
        max_completion_length=settings["tokens"], more={"reward_funcs": [reward]},
    )  # fmt: skip
    if fixed:
        trainer.generation_config.eos_token_id = None
        trainer.eos_token_ids = [-1]
    lengths: list[list[int]] = []

    def ours() -> dict[str, float]:
        step = next(run)
        lengths.append([len(ids) for ids in step.rollouts.ids])
        return {"tokens": float(sum(lengths[-1])), "mean_length": step.metrics["completions/mean_length"]}

    def counted(made) -> dict[str, float]:
        mean = theirs.metric(made, "completions/mean_length")
        return {"tokens": mean * rows, "mean_length": mean}

    return {"turns": {OURS: ours, "trl": theirs.steps(trainer, counted)}, "lengths": lengths, "policy": policy}


def compare(
    folder: Path, name: str, size: tuple[int, int], settings: dict,
    *, fixed: bool, device: str, rounds: int, rate: float, **model,
) -> dict:  # fmt: skip
    """One case; `model` goes to `common.model_folder`. Raises RuntimeError where a length that should be fixed is
    not."""
    made = sides(folder, size, settings, fixed, device, model)
    turns = common.interleave(made["turns"], rounds)
    if fixed:
        for side, counted in turns.items():
            odd = [turn["mean_length"] for turn in counted if turn["mean_length"] != settings["tokens"]]
            if odd:
                raise RuntimeError(f"{side}: completions of {odd[0]} tokens on average, not {settings['tokens']}.")
    work, group, prompt = _floor(made["policy"]), settings["group"], settings["prompt_tokens"]
    each = [
        [(prompt, lengths[i : i + group]) for i in range(0, len(lengths), group)]
        for lengths in made["lengths"][-rounds:]
    ]
    least = [(work.sampling(groups) + work.update(groups)) / rate for groups in each]
    result = common.case(
        name, {side: common.summary(counted) for side, counted in turns.items()},
        floor=sum(least) / len(least), settings=dict(settings, hidden=size[0], layers=size[1], fixed=fixed),
    )  # fmt: skip
    per_token = {side: sum(t["seconds"] for t in ts) / sum(t["tokens"] for t in ts) for side, ts in turns.items()}
    result["ratio"]["trl"]["per_token"] = per_token["trl"] / per_token[OURS]
    common.say(f"{name}: {result['ratio']['trl']}")
    return result


def _floor(policy) -> Floor:
    return Floor.of(policy.model.config, ADAPTER["r"])


def plan(options) -> Iterator[tuple[str, tuple[int, int], dict, bool]]:
    """Name, size, settings, and whether lengths are fixed, of every case."""
    sizes, settings = common.sizes(options), SMALL if options.small else SETTINGS
    if not options.grow:
        for label, size in sizes.items():
            yield f"{label}, fixed length", size, settings, True
            yield f"{label}, varied length", size, settings | {"vocab": VARIED}, False
        return
    label, size = next(iter(sizes.items()))
    settings = settings if options.small else settings | {"tokens": 64}
    for name, values in GROWING.items():
        for value in (settings[name] * 2,) if options.small else values:
            yield f"{label}, {name} {value}", size, settings | {name: value}, True


def measure(options, folder: Path) -> dict:
    started = time.perf_counter()
    flops = common.rate(options.device)
    cases = []
    for number, (name, size, settings, fixed) in enumerate(plan(options)):
        cases.append(
            compare(
                folder / str(number), name, size, settings,
                fixed=fixed, device=options.device, rounds=options.rounds, rate=flops,
            )
        )  # fmt: skip
    return common.line("grpo_growth" if options.grow else "grpo", cases, started, options.device, flops)


def arguments(argv: list[str] | None = None):
    parser = common.parser(__doc__)
    parser.add_argument("--grow", action="store_true", help="how a step grows with its settings")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    common.run(measure, arguments())
