"""What the benchmarks share: models made on the spot, turns taken one after the other, and the line they end in.

Both sides of a comparison run in one process and on one thread, in turns (A B A B ...), so that other work on the
machine meets both alike; a side's best round is the one that was disturbed least. The last line a script prints is one
JSON object:

    bench, date, seconds      which benchmark, when, and how long all of it took
    machine                   processor, cores, threads, device, versions, and the rate of matrix products there
    cases                     a list; each has
        case, settings        what was compared
        unit, better          "s" or "MiB" or "tokens/s", and whether "less" or "more" of it is better
        sides                 per side: best, median and all its rounds, and what else it counted
        ratio                 per other side, its best and median over ours: above 1, ours is better; "cpu": of the mean
                              processor seconds, which other work on the machine moves less
        floor, near           the least the machine allows, in the same unit, and how near our best is to it (1: there)

The floor of a time is the floating-point operations that must be done (see `floor.py`) over the rate at which this
machine multiplied large matrices in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

OURS = "workbench"
VERSIONS = ("workbench", "torch", "transformers", "peft", "trl")
ADAPTER = {"r": 16, "alpha": 32}
"""of every benchmark, on all linear layers"""
SIZES = {"256x6": (256, 6), "512x8": (512, 8)}
"""hidden size and layers of the models; heads of 64, half as many for keys and values"""
TINY = {"64x2": (64, 2)}
"""what `--small` takes instead"""

Turn = Callable[[], dict[str, float]]
"""one round of a side; returns what it counted"""


# -- models


def symbols(count: int) -> list[str]:
    """So many different characters: printable ASCII first; no surrogates, which are not text."""
    return [chr(33 + i) if i < 94 else chr(0x100 + i + (0x800 if 0x100 + i >= 0xD800 else 0)) for i in range(count)]


def symbol_tokenizer(vocab: int):
    """A tokenizer of `vocab` ids with one character a token, so that a text's length is known; 0 is <bos>, 1 the end,
    2 <pad>."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ids = {"<bos>": 0, "<|endoftext|>": 1, "<pad>": 2}
    ids |= {symbol: 3 + i for i, symbol in enumerate(symbols(vocab - 3))}
    inner = Tokenizer(models.BPE(vocab=ids, merges=[]))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<|endoftext|>", pad_token="<pad>"
    )


def symbol_text(length: int, vocab: int, seed: int) -> str:
    """`length` tokens for the tokenizer of `vocab` ids."""
    draw, known = random.Random(seed), symbols(min(vocab, 90) - 3)
    return "".join(draw.choice(known) for _ in range(length))


def trained_tokenizer(texts: list[str], vocab: int):
    """A byte-level BPE of `vocab` ids, trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<bos>", "<|endoftext|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<|endoftext|>", pad_token="<pad>"
    )


def model_folder(
    folder: Path, size: tuple[int, int], vocab: int, tokenizer: Any, *, kind: str = "qwen2", **changes: Any
) -> Path:
    """Writes a random model (Qwen2's or Qwen3's shape) and its tokenizer to `folder`, the same one each time."""
    import transformers as t

    hidden, layers = size
    heads = max(2, hidden // 64)
    config = {"qwen2": t.Qwen2Config, "qwen3": t.Qwen3Config}[kind](
        **dict(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=hidden // heads,
            max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        ) | changes
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def our_policy(folder: Path, device: str = "auto", *, adapter: Path | None = None, **how: Any):
    """The model of `folder` with a fresh adapter, which is written to `adapter` for the other side."""
    import workbench as wb

    policy = wb.load(folder, device=device, **how).attach(wb.LoRA(**ADAPTER))
    if adapter is not None:
        policy.save(adapter)
    return policy


def gsm8k() -> Path | None:
    """The folder of GSM8K as published: $WORKBENCH_DATA/gsm8k, else shared/data/gsm8k in the checkout or beside it."""
    named = os.environ.get("WORKBENCH_DATA")
    places = [Path(named)] if named else [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    return next((place / "gsm8k" for place in places if (place / "gsm8k" / "train.jsonl").is_file()), None)


# -- turns


def interleave(sides: Mapping[str, Turn], rounds: int, warmup: int = 1) -> dict[str, list[dict[str, float]]]:
    """`rounds` turns of every side in turn, after `warmup` rounds that are not counted: what each turn returned, with
    its `seconds`, and the processor seconds of this process (`cpu`), which other work on the machine moves less."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    gc.collect()
    gc.freeze()  # what is there already need not be looked through again, in nobody's turn
    try:
        for number in range(warmup + rounds):
            for name, turn in sides.items():
                gc.collect()
                settle()
                started, used = time.perf_counter(), time.process_time()
                counted = turn()
                settle()
                spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
                counted = {**counted, **spent}
                if number >= warmup:
                    turns[name].append(counted)
    finally:
        gc.unfreeze()
    return turns


def settle() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 2048, times: int = 8) -> float:
    """Floating-point operations a second in products of large square matrices: the best of so many."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(times + 1):
        settle()
        started = time.perf_counter()
        a @ b
        settle()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# -- results


def summary(turns: list[dict[str, float]], key: str = "seconds", better: str = "less") -> dict[str, Any]:
    """best, median and all of `key`, and the mean of whatever else was counted."""
    values = [turn[key] for turn in turns]
    made: dict[str, Any] = {
        "best": (min if better == "less" else max)(values),
        "median": statistics.median(values),
        "all": values,
    }
    return made | {name: statistics.fmean(turn[name] for turn in turns) for name in turns[0] if name != key}


def case(
    name: str,
    sides: Mapping[str, Mapping[str, Any]],
    *,
    unit: str = "s",
    better: str = "less",
    floor: float | None = None,
    ours: str = OURS,
    **more: Any,
) -> dict[str, Any]:
    """One comparison from the summaries of its sides; the ratios and the nearness to the floor are worked out here."""

    def over(other: float, mine: float) -> float:
        return other / mine if better == "less" else mine / other

    ratio = {
        side: {what: over(found[what], sides[ours][what]) for what in ("best", "median")}
        for side, found in sides.items()
        if side != ours
    }
    for side, ratios in ratio.items():
        if "cpu" in sides[side]:
            ratios["cpu"] = sides[side]["cpu"] / sides[ours]["cpu"]
    made = {"case": name, "unit": unit, "better": better, "sides": dict(sides), "ratio": ratio, **more}
    if floor is not None:
        made |= {"floor": floor, "near": 1 / over(sides[ours]["best"], floor)}
    return made


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: str = "cpu", flops: float | None = None) -> dict[str, Any]:
    """Where this runs: processor, cores, threads, GPU, versions; `flops`: what `rate` found."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    made: dict[str, Any] = {
        "processor": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}},
    }
    return made if flops is None else made | {"gflops": flops / 1e9}


def rounded(value: Any) -> Any:
    """The same with four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def line(
    bench: str, cases: list[dict], started: float, device: str = "cpu", flops: float | None = None, **more: Any
) -> dict:
    """The result of a benchmark that began at `started` (of `time.perf_counter`)."""
    made = {
        "bench": bench,
        "date": datetime.date.today().isoformat(),
        "seconds": time.perf_counter() - started,
        "machine": machine(device, flops),
        "cases": cases,
        **more,
    }
    return rounded(made)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments all benchmarks have."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--small", action="store_true", help="tiny sizes, to see that it works; the numbers mean nothing")
    made.add_argument("--rounds", type=int, default=5, help="turns of each side that count (5)")
    made.add_argument("--models", help="only these, as in 256x6 or 256x6,512x8")
    made.add_argument("--threads", type=int, help="threads of torch (its own choice)")
    return made


def sizes(options: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """The models that were asked for. Raises SystemExit for one there is not."""
    every = TINY if options.small else SIZES
    names = options.models.split(",") if options.models else list(every)
    if unknown := [name for name in names if name not in every]:
        raise SystemExit(f"There is no model {', '.join(unknown)}; there are {', '.join(every)}.")
    return {name: every[name] for name in names}


def run(measure: Callable[..., dict], options: argparse.Namespace) -> None:
    """Has `measure(options, folder)` run on the thread that does all torch work of a process, and prints its line.

    Both sides run there: a second thread with a pool of its own would slow the OpenMP runtime down for both.
    """
    import datasets
    import transformers

    from workbench import worker

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")

    def whole() -> dict:
        if options.threads:
            torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            return measure(options, Path(folder))

    print(json.dumps(worker.call(whole)))


def say(text: str) -> None:
    """A word on how far it is, beside the result."""
    print(text, file=sys.stderr, flush=True)
