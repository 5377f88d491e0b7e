"""What recording costs: log-prob and entropy of every sampled token, and the commit of a step to the store.

A GRPO run on the shipped model, 64 completions of up to 40 tokens a step. Each step's commit is timed within the step.
The log-prob and the entropy have no switch, so their price is taken beside the run: drawing tokens from logits of the
run's own shape with the two numbers and without them, in turns, times the tokens of a step. Drawing needs the
probabilities anyway; what is left is a logarithm, a product and a sum. Last, both as shares of the median step.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import common
import torch
from common import OURS
from torch import Tensor

import workbench as wb
from workbench.store import Store

ROWS, TOKENS = 64, 40


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) of logits (B, V) by the inverse CDF in float64."""
    shares = logits.double().softmax(-1)
    return torch.searchsorted(shares.cumsum(-1), uniform[:, None]).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def drawn_and_recorded(logits: Tensor, uniform: Tensor) -> tuple[Tensor, list[float], list[float]]:
    """The same tokens, with the log-prob and the entropy (nats) of each."""
    logs = logits.double().log_softmax(-1)
    shares = logs.exp()
    tokens = torch.searchsorted(shares.cumsum(-1), uniform[:, None]).clamp(max=logits.shape[-1] - 1)
    entropy = -(shares * logs).sum(-1)
    return tokens.squeeze(-1), logs.gather(1, tokens).squeeze(-1).tolist(), entropy.tolist()


def recording_seconds(rows: int, vocab: int, tokens: int, rounds: int = 5) -> float:
    """Seconds that the two numbers add to a sampling of `rows` x `tokens` tokens, by the median round; at least 0."""
    logits, uniform = torch.randn(rows, vocab), torch.rand(rows, dtype=torch.float64)

    def turn(function):
        def many() -> dict[str, float]:
            for _ in range(tokens):
                function(logits, uniform)
            return {}

        return many

    turns = common.interleave({"without": turn(drawn), "with": turn(drawn_and_recorded)}, rounds)
    without, with_them = (statistics.median(t["seconds"] for t in turns[side]) for side in ("without", "with"))
    return max(0.0, with_them - without)


def measure(options, folder: Path) -> dict:
    started = time.perf_counter()
    commits: list[float] = []
    commit = Store.commit_step

    def timed(self, *args, **kwargs):
        began = time.perf_counter()
        commit(self, *args, **kwargs)
        commits.append(time.perf_counter() - began)

    steps = 2 if options.small else 12
    policy = wb.load("tiny", device="cpu").attach(wb.LoRA(r=16))
    Store.commit_step = timed
    try:
        task = wb.task("sums", size=64)
        run = wb.grpo(policy, task, steps=steps, max_new_tokens=TOKENS, lr=5e-4, out=folder / "run")
        seconds = [step.seconds for step in run][1:]
        run.stop()
    finally:
        Store.commit_step = commit
    step = statistics.median(seconds)
    parts = {
        "commit": statistics.median(commits[2:]),  # the first is that of step 0
        "log-prob and entropy": recording_seconds(ROWS, policy.vocab_size, TOKENS),
    }
    side = {"best": min(seconds), "median": step, "all": seconds}
    case = common.case(
        "GRPO step on the shipped model", {OURS: side}, parts=parts,
        shares={name: value / step for name, value in parts.items()}, settings={"steps": steps, "rows": ROWS},
    )  # fmt: skip
    return common.line("recording", [case], started)


if __name__ == "__main__":
    common.run(measure, common.parser(__doc__).parse_args())
