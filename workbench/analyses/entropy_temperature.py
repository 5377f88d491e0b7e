"""The sampling temperature at which a policy's entropy is what one wants, found before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench import worker
from workbench.analyses import picture
from workbench.analyses.picture import Result
from workbench.errors import SettingError
from workbench.policy import Policy
from workbench.sampling.decoder import check_whole
from workbench.tasks import Task

BAND = (0.2, 0.4)


@worker.on_worker
def entropy_temperature(
    policy: Policy,
    prompts: Any,
    target: float = 0.3,
    *,
    temperatures: Sequence[float] = (0.4, 0.6, 0.8, 1.0, 1.2),
    n: int = 4,
    max_new_tokens: int = 128,
    rows: int = 32,
    seed: int = 0,
) -> Result:
    """Sweep the sampling temperature tau, and find where the entropy of the policy's own samples is `target` nats.

    For each tau, `n` completions of the first `rows` prompts are sampled at tau, and H(tau) is the mean over their
    tokens of the entropy of softmax(logits / tau), in nats: the distributions that were sampled from. The temperature
    is where the line through the measured points first crosses the target; the ends of the sweep stand in where it does
    not. All temperatures use the same random numbers.

    Returns a Result: `.summary["temperature"]`, a table with temperature, entropy, mean length and share of completions
    cut off, and the curve. `prompts`: a Task, rows with prompts, or a list of prompts. Nothing is trained. During
    training wb.method("entropy_band") watches the same number. Raises SettingError for numbers that make no sense.

    Liu et al. 2025, "AceReason-Nemotron 1.1", arXiv 2506.13284: reinforcement learning works best at a temperature
    whose entropy stays near 0.3. How they swept is not said; this is ours.
    """
    _check(policy, target, temperatures)
    check_whole("entropy_temperature: n", n, 1)
    check_whole("entropy_temperature: rows", rows, 1)
    chosen = _prompts(prompts)[:rows]
    found = []
    for tau in sorted(float(tau) for tau in temperatures):
        worker.check()
        made = policy.sample(chosen, n=n, max_new_tokens=max_new_tokens, temperature=tau, seed=seed)
        cut = np.mean([reason == "length" for reason in made.finish_reason])
        lengths = [len(ids) for ids in made.ids]
        found.append([tau, float(np.concatenate(made.entropy).mean()), float(np.mean(lengths)), float(cut)])
    return _result(found, float(target))


def crossing(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """Where the line through the points (x ascending) first reaches the target; None where it does not."""
    for i, (a, b) in enumerate(zip(y, y[1:], strict=False)):
        if min(a, b) <= target <= max(a, b):
            share = 0.0 if a == b else (target - a) / (b - a)
            return float(x[i] + share * (x[i + 1] - x[i]))
    return float(x[0]) if len(x) == 1 and y[0] == target else None


def _check(policy: Any, target: float, temperatures: Sequence[float]) -> None:
    if not isinstance(policy, Policy):
        raise SettingError(f"entropy_temperature takes a policy: wb.load(...). Got {type(policy).__name__}.")
    if not target > 0:
        raise SettingError(f"target={target!r} must be an entropy above 0, in nats a token.")
    if len(temperatures) < 2 or not all(tau > 0 for tau in temperatures):
        raise SettingError(f"temperatures={list(temperatures)!r} must be two or more numbers above 0.")


def _prompts(given: Any) -> list[Any]:
    if isinstance(given, Task):
        given = given.rows
    made = [row["prompt"] if isinstance(row, dict) and "prompt" in row else row for row in given]
    if not made:
        raise SettingError("entropy_temperature needs prompts: a Task, rows with a prompt, or a list of prompts.")
    return made


def _result(found: list[list[float]], target: float) -> Result:
    import pandas as pd

    frame = pd.DataFrame(found, columns=["temperature", "entropy", "mean_length", "cut_off"])
    taus, entropies = frame["temperature"].tolist(), frame["entropy"].tolist()
    at, notes = crossing(taus, entropies, target), []
    if at is None:
        at = taus[int(np.abs(np.array(entropies) - target).argmin())]
        notes = [
            f"No temperature from {taus[0]:g} to {taus[-1]:g} gives {target:g} nats a token; {at:g} comes nearest."
            f" Sweep {'higher' if max(entropies) < target else 'lower'} ones."
        ]
    summary = {"temperature": round(at, 3), "target": target}
    return Result("Sampling temperature by entropy", frame, _draw, summary, notes=notes)


def _draw(result: Result) -> Any:
    figure = picture.sheet(result.title)
    picture.curve(figure, result.frame["temperature"], result.frame["entropy"], "entropy of samples", 0)
    picture.axes(figure, "temperature", "nats per token")
    figure.add_hrect(*BAND, opacity=0.12, line_width=0, fillcolor=picture.PALETTE[2])
    figure.add_hline(result["target"], line={"dash": "dot", "width": 1})
    figure.add_vline(result["temperature"], line={"dash": "dot", "width": 1})
    return figure
