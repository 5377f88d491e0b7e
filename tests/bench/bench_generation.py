"""Sampling alone, with the adapter on: `policy.sample` beside transformers' `generate` and `generate_batch`.

32 sequences (4 prompts of 32 tokens x 8), up to 128 new tokens, temperature 1. "fixed": nothing ends a sequence before
the limit, on any side. "varied": a vocabulary of 48 makes a random model stop after about 40 tokens; samples differ
from side to side, so "per_token" is the ratio of seconds per token over all rounds. Ours records the log-prob and the
entropy of every token, which the others do not. A fresh `generate_batch` manager is part of its turn, as it is in TRL,
for the weights change between two samplings.
"""

from __future__ import annotations

import time
from pathlib import Path

import common
import theirs
import torch
from bench_grpo import SETTINGS, SMALL, VARIED
from common import ADAPTER, OURS
from floor import Floor

GENERATE, BATCH = "generate", "generate_batch"
PAGE = 32
"""tokens a page of generate_batch's cache holds: its own 256 are more than a whole sequence here"""


def continuous(sequences: int, longest: int):
    """The settings of continuous batching that were fastest on a CPU (tests/bench/LOG.md)."""
    from transformers.generation import ContinuousBatchingConfig

    pages = sequences * (-(-longest // PAGE) + 1)
    return ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages, max_batch_tokens=max(sequences, longest), max_requests_per_batch=sequences
    )


def generation(settings: dict, fixed: bool):
    """Plain sampling from the whole distribution."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=settings["tokens"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True,
        eos_token_id=None if fixed else 1, pad_token_id=2, bos_token_id=0,
    )  # fmt: skip


def tokens_before(rows: list[list[int]], end: int | None) -> float:
    """Tokens of each row up to and with the first `end`, added up."""
    return float(sum(row.index(end) + 1 if end is not None and end in row else len(row) for row in rows))


def sides(folder: Path, size: tuple[int, int], settings: dict, fixed: bool, device: str) -> dict:
    """The turn of each side; `lengths` collects those of ours."""
    vocab, group = settings["vocab"], settings["group"]
    tokenizer = common.symbol_tokenizer(vocab)
    common.model_folder(folder, size, vocab, tokenizer)
    policy = common.our_policy(folder, device, adapter=folder / "adapter")
    model = theirs.model(folder, folder / "adapter", device, trainable=False).eval()
    prompts = [common.symbol_text(settings["prompt_tokens"], vocab, i) for i in range(settings["prompts"])]
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts for _ in range(group)]
    if fixed:
        policy.stop_ids = ()
        model.generation_config.eos_token_id = None
    plain, seed = generation(settings, fixed), iter(range(10**6))
    end = None if fixed else 1
    batched = continuous(len(ids), settings["prompt_tokens"] + settings["tokens"])
    table = torch.tensor(ids, device=device)
    lengths: list[list[int]] = []

    def ours() -> dict[str, float]:
        rollouts = policy.sample(prompts, n=group, max_new_tokens=settings["tokens"], seed=next(seed))
        lengths.append([len(row) for row in rollouts.ids])
        return {"tokens": float(sum(lengths[-1]))}

    def generate() -> dict[str, float]:
        with torch.no_grad():
            made = model.generate(input_ids=table, attention_mask=torch.ones_like(table), generation_config=plain)
        return {"tokens": tokens_before(made[:, table.shape[1] :].tolist(), end)}

    def generate_batch() -> dict[str, float]:
        with torch.no_grad():
            made = model.generate_batch(
                ids, generation_config=plain, continuous_batching_config=batched, progress_bar=False
            )
        return {"tokens": tokens_before([output.generated_tokens for output in made.values()], end)}

    turns = {OURS: ours, GENERATE: generate, BATCH: generate_batch}
    return {"turns": turns, "lengths": lengths, "policy": policy}


def compare(
    folder: Path, name: str, size: tuple[int, int], settings: dict, *, fixed: bool, device: str, rounds: int, rate
) -> dict:
    """One case. Raises RuntimeError where a length that should be fixed is not."""
    made = sides(folder, size, settings, fixed, device)
    turns = common.interleave(made["turns"], rounds)
    sequences = settings["prompts"] * settings["group"]
    for side, counted in turns.items():
        if fixed and any(turn["tokens"] != sequences * settings["tokens"] for turn in counted):
            raise RuntimeError(f"{side}: {counted[0]['tokens']} tokens, not {sequences} x {settings['tokens']}.")
    work, group = Floor.of(made["policy"].model.config, ADAPTER["r"]), settings["group"]
    least = [
        work.sampling([(settings["prompt_tokens"], row[i : i + group]) for i in range(0, sequences, group)]) / rate
        for row in made["lengths"][-rounds:]
    ]
    result = common.case(
        name, {side: common.summary(counted) for side, counted in turns.items()},
        floor=sum(least) / len(least), settings=dict(settings, hidden=size[0], layers=size[1], fixed=fixed),
    )  # fmt: skip
    per_token = {side: sum(t["seconds"] for t in ts) / sum(t["tokens"] for t in ts) for side, ts in turns.items()}
    for side in (GENERATE, BATCH):
        result["ratio"][side]["per_token"] = per_token[side] / per_token[OURS]
    common.say(f"{name}: {result['ratio']}")
    return result


def measure(options, folder: Path) -> dict:
    started = time.perf_counter()
    flops = common.rate(options.device)
    settings = SMALL if options.small else SETTINGS
    cases = []
    for label, size in common.sizes(options).items():
        for fixed in (True, False):
            changed = settings if fixed else settings | {"vocab": VARIED}
            cases.append(
                compare(
                    folder / f"{label}-{fixed}", f"{label}, {'fixed' if fixed else 'varied'} length", size, changed,
                    fixed=fixed, device=options.device, rounds=options.rounds, rate=flops,
                )
            )  # fmt: skip
    return common.line("generation", cases, started, options.device, flops)


def arguments(argv: list[str] | None = None):
    parser = common.parser(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    common.run(measure, arguments())
