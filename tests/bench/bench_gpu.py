"""On a CUDA GPU: decoding, a step of GRPO beside TRL's, and what QLoRA takes, with a model of Qwen3-0.6B's shape.

Random weights, bfloat16, LoRA on all linear layers. "decode": 256 new tokens a sequence at batch 1, 8, 32 and 64, in
tokens a second. The floor of decoding is memory traffic: a token reads all weights, once for the whole batch, and the
keys and values of its own sequence, at the bandwidth measured in the same run by copying a large tensor. "grpo": 4
prompts x 8 completions of 256 tokens, one update. "QLoRA": peak memory of a step of SFT on an nf4 base, 8 rows of 512
tokens.

Without CUDA it says so and ends. `--device cpu` runs the same code on a tiny model, to see that it works.
"""

from __future__ import annotations

import time
from pathlib import Path

import bench_grpo
import bench_memory
import common
import torch
from common import OURS

import workbench as wb

QWEN3 = dict(
    size=(1024, 28), vocab=151_936, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, tie_word_embeddings=True,
)  # fmt: skip
TINY = dict(size=(64, 2), vocab=512)
SYMBOLS = 2048
BATCHES = (1, 8, 32, 64)
"""of decoding"""


def bandwidth(device: str, size: int = 2**28, times: int = 10) -> float:
    """Bytes a second, read and written, of copying a tensor of `size` bytes: the best of so many."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(times):
        common.settle()
        started = time.perf_counter()
        target.copy_(source)
        common.settle()
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


def traffic(policy, sequences: int, prompt: int, tokens: int) -> float:
    """Bytes that decoding must read: the weights for every token, the cache of every sequence so far."""
    config = policy.model.config
    element = next(policy.model.parameters()).element_size()
    weights = sum(p.numel() for name, p in policy.model.named_parameters() if "lora_" not in name) * element
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * size * element
    return tokens * weights + sequences * cache * sum(range(prompt, prompt + tokens))


def written(folder: Path, small: bool) -> tuple[Path, int]:
    """The model's folder, and how many symbols its tokenizer knows."""
    shape = dict(TINY if small else QWEN3)
    size, vocab = shape.pop("size"), shape.pop("vocab")
    known = min(SYMBOLS, vocab)
    return common.model_folder(folder, size, vocab, common.symbol_tokenizer(known), kind="qwen3", **shape), known


def decode(folder: Path, options) -> list[dict]:
    """Tokens a second at each batch size. Raises RuntimeError if a sequence ended early."""
    place, known = written(folder, options.small)
    policy = common.our_policy(place, options.device)
    policy.stop_ids = ()
    speed, tokens, prompt = bandwidth(options.device, 2**20 if options.small else 2**28), 256, 32
    if options.small:
        tokens = 4
    cases = []
    for batch in BATCHES[:2] if options.small else BATCHES:
        prompts = [common.symbol_text(prompt, known, seed) for seed in range(batch)]

        def turn(prompts=prompts) -> dict[str, float]:
            done = policy.sample(prompts, n=1, max_new_tokens=tokens, seed=1)
            if any(len(ids) != tokens for ids in done.ids):
                raise RuntimeError("A sequence ended before its limit.")
            return {}

        turns = common.interleave({OURS: turn}, options.rounds)[OURS]
        found = common.summary([{"rate": batch * tokens / t["seconds"]} for t in turns], "rate", better="more")
        most = batch * tokens / (traffic(policy, batch, prompt, tokens) / speed)
        cases.append(
            common.case(f"decode, batch {batch}", {OURS: found}, unit="tokens/s", better="more", floor=most)
        )
    return cases


def qlora(folder: Path, options) -> dict:
    """Peak memory of a step of SFT on an nf4 base, weights included."""
    place, known = written(folder, options.small)
    policy = common.our_policy(place, options.device, quantize="nf4")
    rows, tokens = (2, 16) if options.small else (8, 512)
    data = [
        {"prompt": common.symbol_text(tokens // 2, known, i), "completion": common.symbol_text(tokens // 2, known, -i)}
        for i in range(rows)
    ]
    run = iter(wb.sft(policy, data, steps=2, batch_size=rows, out=folder / "run"))
    next(run)
    mib = bench_memory.added(lambda: next(run), options.device)
    weights = sum(policy.memory().values()) / bench_memory.MIB
    side = {"best": weights + mib, "median": weights + mib, "all": [weights + mib], "weights": weights}
    return common.case("QLoRA, nf4: weights and peak of a step", {OURS: side}, unit="MiB")


def grpo(folder: Path, options, rate: float) -> dict:
    """A step of GRPO beside TRL's, at fixed length."""
    if options.small:
        model, settings = dict(TINY), bench_grpo.SMALL
    else:
        model, settings = dict(QWEN3), bench_grpo.SETTINGS | {"tokens": 256, "vocab": QWEN3["vocab"]}
    model.pop("vocab")
    return bench_grpo.compare(
        folder, "grpo", model.pop("size"), settings,
        fixed=True, device=options.device, rounds=options.rounds, rate=rate, kind="qwen3", **model,
    )  # fmt: skip


def measure(options, folder: Path) -> dict:
    started = time.perf_counter()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    flops = common.rate(options.device, dtype, 256 if options.small else 8192)
    cases = [*decode(folder / "decode", options), grpo(folder / "grpo", options, flops), qlora(folder / "nf4", options)]
    return common.line("gpu", cases, started, options.device, flops)


def arguments(argv: list[str] | None = None):
    parser = common.parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="cpu: a tiny model, to see it work")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_gpu.py needs a CUDA GPU, and torch sees none. --device cpu tries it on a tiny model.")
    options.small |= options.device == "cpu"
    return options


if __name__ == "__main__":
    common.run(measure, arguments())
