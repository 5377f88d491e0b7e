"""What training on some answers does to the likelihood of others, step by step; the squeezing effect of DPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import worker
from workbench.analyses import during, picture, probes
from workbench.analyses.paired import Side, side
from workbench.analyses.picture import Result
from workbench.analyses.probes import Probe
from workbench.errors import DataError, SettingError
from workbench.run import Run

LRS = (1e-2, 1e-3, 1e-4)
TAGS = ("chosen", "rejected", "other", "initial", "permuted", "random")
"""in this order in the picture, others after them"""


def learning_dynamics(
    run: Run, table: Any = None, *, every: int = 10, most: int = 32, max_new_tokens: int = 64, seed: int = 0
) -> Result:
    """Learning dynamics: how the log-probs of a fixed set of answers move while a run trains.

    A step on (x_o, y_o) with a small learning rate lr moves the log-probs at any other x_u by

        d log pi(.|x_u) = -lr A(x_u) K(x_u, x_o) G(x_o) + O(lr^2)

        A = I - 1 pi^T;  K = J(x_u) J(x_o)^T of the Jacobians of the logits;  G = pi - onehot(y_o)  (SFT)
        DPO: K(., x+) G+ - K(., x-) G-, with G+- = beta (1 - a) (pi - onehot(y+-)), a = sigmoid(beta * log-ratio margin)

    So SFT lifts answers like the chosen one for a while, too. The minus term of DPO takes mass from the rejected answer
    and gives nearly all of it to the likeliest token, the more so the more peaked the policy and the less likely the
    answer: the margin grows all along while the chosen answer turns down and the argmax climbs (squeezing). The
    remedy of the paper is SFT on chosen and rejected answers before DPO. `one_step` checks the formula on a run.

    The run is stepped to its end (steps that are made are restored), and every `every` steps it reads the probes:
    `table`, rows with prompt, response and tag; None: made of the run's own first `most` rows, with the tags chosen,
    rejected, other (the answer to another question), permuted and random words, and initial (the greedy answer before
    training). Rephrasings have to be given. Nothing else is generated.

    The frame has a row for each step, tag and probe with the sums over its tokens `logprob`, `argmax` (of the likeliest
    token at each position) and `outside` (log of the mass beside it), the means `gap` (1 - p), `distance`
    (|pi - onehot|) and `entropy`, and `tokens`. Table `curves`: means by step and tag, also `per_token`. Headline: the
    step at which the chosen answers turn down, NaN where they do not; the margin, chosen less rejected, first and last.

    Raises SettingError for what is no run, DataError for rows that give no probes.
    """
    during.checked(run)
    states = during.visits(run, every)
    step, one = next(states)
    known = probes.probes(table) if table is not None else _own(run, one, most, seed, max_new_tokens)
    if not known:
        raise DataError("learning_dynamics: the probe set is empty.")
    read = probes.read(one, known)
    frames = [_look(one, step, known, read)]
    frames += [_look(now, step, known, read) for step, now in states]
    return _result(run, frames)


def _own(run: Run, first: Side, most: int, seed: int, max_new_tokens: int) -> list[Probe]:
    """The probe set of the rows that the run trains on."""
    rows = run.store.rows("train")
    if not rows or not {"chosen", "completion"} & set(rows[0]):
        raise DataError(
            "The rows of this run have no answers to look at (chosen or completion). Give a table with prompt, response"
            " and tag."
        )
    kept = ("prompt", "chosen", "rejected") if "chosen" in rows[0] else ("prompt", "completion")
    rows = [{name: row[name] for name in kept if name in row} for row in rows[:most]]
    return probes.of_pairs(rows, first, most=most, seed=seed, max_new_tokens=max_new_tokens)


def _look(one: Side, step: int, known: Sequence[Probe], read: Any) -> Any:
    import pandas as pd

    found = worker.call(lambda: probes.measured(one.pinned(), *read))
    named = {"step": step, "tag": [probe.tag for probe in known], "row": [probe.row for probe in known]}
    return pd.DataFrame(named | found)


def _result(run: Run, frames: list[Any]) -> Result:
    import pandas as pd

    frame = pd.concat(frames, ignore_index=True)
    per_token = frame.assign(per_token=frame["logprob"] / frame["tokens"], peak=frame["argmax"] / frame["tokens"])
    curves = per_token.drop(columns="row").groupby(["step", "tag"], sort=False).mean().reset_index()
    order = [*TAGS, *(tag for tag in dict.fromkeys(frame["tag"]) if tag not in TAGS)]
    curves = curves.sort_values(["step", "tag"], key=lambda c: c.map(order.index) if c.name == "tag" else c)
    wide = curves.pivot(index="step", columns="tag", values="logprob")
    tables, summary = {"curves": curves.reset_index(drop=True)}, {}
    if "chosen" in wide:
        turned = turn(wide.index.to_numpy(), wide["chosen"].to_numpy())
        tops = curves[curves["tag"] == "chosen"].set_index("step")["argmax"]
        summary["chosen turns down at step"] = turned
        summary["chosen"] = _change(wide["chosen"])
        summary["its argmax"] = _change(tops)
        if "rejected" in wide:
            margin = wide["chosen"] - wide["rejected"]
            summary["margin"] = _change(margin)
            tables["margin"] = margin.rename("margin").reset_index()
    return Result(f"Learning dynamics of {run.name}", frame, _draw, summary, tables)


def turn(steps: np.ndarray, values: np.ndarray) -> float:
    """The step of the highest value, where it comes neither first nor last; else NaN, as nothing turned."""
    best = int(np.argmax(values))
    return float(steps[best]) if 0 < best < len(values) - 1 else float("nan")


def _change(values: Any) -> str:
    return f"{values.iloc[0]:.4g} → {values.iloc[-1]:.4g}"


def _draw(result: Result) -> Any:
    titles = ["answers, nats per token", "chosen, rejected and margin", "mass beside the likeliest token"]
    figure = picture.sheet(result.title, titles)
    curves = result["curves"]
    for i, tag in enumerate(dict.fromkeys(curves["tag"])):
        mine = curves[curves["tag"] == tag]
        picture.curve(figure, mine["step"], mine["per_token"], tag, i)
        outside = mine["outside"] / mine["tokens"]
        picture.curve(figure, mine["step"], outside, tag, i, panel=2, showlegend=False)
        if tag == "chosen":
            dotted = {"dash": "dot", "width": 1.5}
            picture.curve(figure, mine["step"], mine["peak"], "argmax, at chosen", i, line=dotted, legendgroup="argmax")
        if tag in ("chosen", "rejected"):
            picture.curve(figure, mine["step"], mine["logprob"], tag, i, panel=1, showlegend=False)
    if "margin" in result.tables:
        margin = result["margin"]
        grey = {"color": picture.GREY}
        picture.curve(figure, margin["step"], margin["margin"], "margin", 6, panel=1, line=grey)
    turned = result.summary.get("chosen turns down at step", float("nan"))
    if np.isfinite(turned):
        for panel in (0, 1):
            look = {"line": {"color": picture.GREY, "dash": "dot", "width": 1}}
            figure.add_vline(x=turned, **look, **picture.place(figure, panel))
    picture.axes(figure, "step", "log-prob")
    picture.axes(figure, "step", "nats per answer", panel=1)
    picture.axes(figure, "step", "log(1 - p) per token", panel=2)
    return figure


# -- one step -------------------------------------------------------------------------------------------------


def one_step(run: Run, rows: Any, table: Any, lrs: Sequence[float] = LRS) -> Result:
    """What the run's next update on `rows` would do to the probes by plain SGD, and what first order predicts.

    For each probe u and learning rate lr the change of log pi(y_u | x_u), the sum over its tokens: `actual`, by taking
    the step in a copy, and `predicted`, -lr <grad log pi(y_u | x_u), grad loss>, which is -lr A K G summed up by the
    chain rule, for the loss of whatever method the run is. `second` = (actual - predicted) / lr^2 stays the same while
    lr falls, as what is left out is of second order (until rounding drowns it: use a float64 model to see it).

    Nothing is trained. Raises SettingError and DataError.
    """
    during.checked(run)
    if not lrs or not all(lr > 0 for lr in lrs):
        raise SettingError(f"lrs={tuple(lrs)!r}: give learning rates above 0.")
    known = probes.probes(table)
    loss = run.gradients(rows).by_name
    found = worker.call(_one_step, side(run), loss, known, lrs)
    import pandas as pd

    frame = pd.DataFrame(found, columns=["lr", "tag", "row", "actual", "predicted", "second"])
    worst = frame.assign(off=(frame["actual"] - frame["predicted"]).abs()).groupby("lr")["off"].max()
    summary = {f"largest error at lr {lr:g}": float(worst[lr]) for lr in lrs}
    return Result(f"One step of {run.name}: predicted and actual", frame, _draw_step, summary)


def _one_step(one: Side, loss: dict[str, Tensor], known: list[Probe], lrs: Sequence[float]) -> list[list[Any]]:
    """On the worker."""
    one = one.pinned()
    sequences, starts = probes.read(one, known)
    rows = []
    with one.weights():
        params = one.policy.trainable()
        names = [name for name in params if name in loss]
        slopes = [_slope(one.policy, [params[n] for n in names], *pair) for pair in zip(sequences, starts, strict=True)]
        now = one.policy.params()
        before = _logprobs(one, sequences, starts)
        for lr in lrs:
            moved = {name: p - lr * loss[name] if name in loss else p for name, p in now.items()}
            with one.policy.holding(moved):
                after = _logprobs(Side(one.policy, one.name), sequences, starts)
            for i, probe in enumerate(known):
                products = (_inner(slope, loss[n]) for n, slope in zip(names, slopes[i], strict=True))
                told = -lr * sum(products)
                change = after[i] - before[i]
                rows.append([lr, probe.tag, probe.row, change, told, (change - told) / lr**2])
    return rows


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _slope(policy: Any, params: list[Tensor], ids: list[int], start: int) -> tuple[Tensor, ...]:
    """The gradient of a response's log-prob, without dropout."""
    with policy.at_rest(), torch.enable_grad():
        total = policy.token_scores([ids], [start], needs=frozenset()).logprob.sum()
        found = torch.autograd.grad(total, params, allow_unused=True)
    return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True))


def _logprobs(one: Side, sequences: list[list[int]], starts: list[int]) -> list[float]:
    with one.held() as policy:
        return [
            float(policy.token_scores([ids], [start], needs=frozenset()).logprob.sum())
            for ids, start in zip(sequences, starts, strict=True)
        ]


def _draw_step(result: Result) -> Any:
    from plotly.graph_objects import Scatter

    figure = picture.sheet(result.title)
    frame = result.frame
    for i, (lr, part) in enumerate(frame.groupby("lr", sort=False)):
        look = {"mode": "markers", "marker": {"color": picture.PALETTE[i % 6]}, "name": f"lr {lr:g}"}
        said = [picture.told(f"{tag} {row}") for tag, row in zip(part["tag"], part["row"], strict=True)]
        scaled = Scatter(x=part["predicted"] / lr, y=part["actual"] / lr, text=said, **look)
        picture.add(figure, scaled)
    ends = [float((frame["predicted"] / frame["lr"]).min()), float((frame["predicted"] / frame["lr"]).max())]
    line = {"dash": "dot", "color": picture.GREY, "width": 1}
    picture.add(figure, Scatter(x=ends, y=ends, mode="lines", line=line, name="first order", hoverinfo="skip"))
    picture.axes(figure, "predicted change / lr, nats", "actual change / lr, nats")
    return figure
