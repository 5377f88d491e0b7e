"""Chains cut short, several answers to each: what an answer costs along every axis of the sampling grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench import worker
from workbench.analyses import grid as grids
from workbench.analyses import picture
from workbench.analyses.grid import Grid, Plan, Thinking
from workbench.analyses.paired import side
from workbench.analyses.picture import Result
from workbench.errors import SettingError
from workbench.tasks import Task

QUESTIONS = 40
"""rows of the heat map"""
NAMES = {
    "n": "n: more chains", "H": "H: cuts of one chain", "m": "m: answers to one chain", "nHm": "n, cuts and answers",
}  # fmt: skip


def fractured_sampling(
    model: Any,
    task: Task,
    *,
    n: int = 16,
    cuts: int = 16,
    answers: int = 4,
    max_new_tokens: int = 512,
    max_answer_tokens: int = 64,
    temperature: float = 0.6,
    top_p: float = 0.95,
    mark: str = "</think>",
    force: str | None = None,
    score: Callable | None = None,
    extract: Callable | None = None,
    mixed: tuple[int, int] | None = None,
    seed: int = 0,
) -> Result:
    """Fractured sampling: cut chains of thought early and ask for the answer there, several times.

    `n` chains are sampled for each question. The thought of a chain (its text before `mark`) is cut after i/H of its
    tokens, i = 1 ... H - 1 (H is `cuts`); `force` (default: the mark and an empty line) is written after the cut and
    `answers` (m) answers are drawn. The last cut is the whole chain, whose first answer is its own. So there is one
    array, correct[question, chain, cut, answer], and everything is read off it, against the tokens it costs:

        along n   pass@k = 1 - C(n - c, k) / C(n, k) of whole chains, c of them right: ordinary sampling
        along H   one chain: is one of k evenly spaced cuts, the last among them, right? The mean over chains
        along m   one chain: pass@k of m answers to it
        n H m     pass@k over n, where a chain counts if one of its cells is right; `mixed`: (cuts, answers) of these

    with maj@k (self-consistency), best-of-k by `score`, the vote weighted by it and the entropy of the votes; and early
    stopping, where two cuts in a row that agree end the chain. The heat map of accuracy by cut is the curve of early
    answering, too: flat and high means that the chain was not needed. H = 1 and m = 1 is plain pass@k.

    `model`: a policy, a run, or (run, step). `task`: its verdict judges a completion as if the model had written it
    whole (thought up to the cut, `force`, answer), and its `extract` says what it answers, for the votes; `extract`
    gives another one. `mark`: for the shipped sums mark="####", force="\\n####". `score`: a function with a reward's
    signature; None: exp of the mean log-prob of what was drawn. A chain without a mark is thought from end to end.

    The frame has a row for each axis and k: tokens (mean for a question), pass, majority, best, weighted, entropy.
    Tables: `cuts`, `questions`. `result.grid` is the array (`workbench.analyses.grid`). Raises SettingError for a task
    or settings that do not go.
    """
    if not isinstance(task, Task):
        raise SettingError(f"fractured_sampling takes a Task, whose verdict judges answers, not {type(task).__name__}.")
    plan = Plan(n, cuts, answers, max_new_tokens, max_answer_tokens, temperature, top_p, seed, Thinking(mark, force))
    plan.check()
    mixed = mixed or (min(4, cuts), answers)
    if not (1 <= mixed[0] <= cuts and 1 <= mixed[1] <= answers):
        raise SettingError(f"mixed={mixed}: give (cuts, answers) up to {(cuts, answers)}.")
    one = side(model)
    found = worker.call(grids.sample, one, task, plan, score, extract)
    size = f"{len(task)} questions, n {n}, H {cuts}, m {answers}"
    return of_grid(found, mixed, f"Fractured sampling of {one.name}: {size}")


class Fractured(Result):
    """A result with its grid."""

    grid: Grid


def of_grid(grid: Grid, mixed: tuple[int, int] | None = None, title: str = "Fractured sampling") -> Fractured:
    """The result of a grid that is there."""
    import pandas as pd

    _, n, depth, m = grid.shape
    mixed = mixed or (min(4, depth), m)
    rows = [_along(grid, "n", k, grid.tokens(k)) for k in _powers(n)]
    rows += [_along(grid, "H", k, grid.tokens(1, grids.cuts_of(depth, k))) for k in _powers(depth)]
    rows += [_along(grid, "m", k, grid.tokens(1, (-1,), k)) for k in _powers(m)]
    some = grids.cuts_of(depth, mixed[0])
    for k in _powers(n):
        passed = grids.pass_at(grid, k, "n", *mixed)
        rows.append({"axis": "nHm", "k": k, "tokens": grid.tokens(k, some, mixed[1]), "pass": passed})
    frame = pd.DataFrame(rows)
    by_cut = grid.correct.mean((0, 1, 3))
    own = grid.answers[:, :, -1:, 0:1]
    agrees = ((grid.answers == own) & (own != None)).mean((0, 1, 3))  # noqa: E711, elementwise
    share = [(h + 1) / depth for h in range(depth)]
    tables = {
        "cuts": pd.DataFrame({"share": share, "accuracy": by_cut, "agreement": agrees}),
        "questions": pd.DataFrame(grid.correct.mean((1, 3)), columns=share),
    }
    early = grids.early_stop(grid)
    saved = 1 - early["tokens"] / early["full_tokens"]
    summary = {"accuracy": early["full_accuracy"], f"pass@{n}": grids.pass_at(grid, n, "n")}
    summary[f"maj@{n}"] = grids.votes(grid, n, "n")["majority"]
    summary |= {"accuracy with early stop": early["accuracy"], "tokens saved by it": saved}
    made = Fractured(title, frame, _draw, summary, tables)
    made.grid = grid
    return made


def _along(grid: Grid, axis: str, k: int, tokens: float) -> dict[str, Any]:
    return {"axis": axis, "k": k, "tokens": tokens, "pass": grids.pass_at(grid, k, axis), **grids.votes(grid, k, axis)}


def _powers(most: int) -> Sequence[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({min(2**i, most) for i in range(most.bit_length() + 1)})


def _draw(result: Result) -> Any:
    from plotly.graph_objects import Heatmap

    figure = picture.sheet(result.title, ["solved at least once", "n chains: ways to choose", "right, by cut"])
    for i, (axis, part) in enumerate(result.frame.groupby("axis", sort=False)):
        said = [f"k = {k}" for k in part["k"]]
        name = NAMES[axis]
        picture.curve(figure, part["tokens"], part["pass"], name, i, text=said, hovertemplate="%{text}: %{y:.3f}")
    share = {"range": [-0.02, 1.02]}
    picture.axes(figure, "tokens a question", "pass@k", xaxis=picture.LOG, yaxis=share)
    chains = result.frame[result.frame["axis"] == "n"]
    ways = {"pass": "pass@k", "majority": "majority", "best": "best score", "weighted": "weighted vote"}
    for i, (name, said) in enumerate(ways.items()):
        picture.curve(figure, chains["tokens"], chains[name], said, i and i + 3, panel=1, showlegend=i > 0)
    picture.axes(figure, "tokens a question", "share of questions", panel=1, xaxis=picture.LOG, yaxis=share)
    table = result["questions"].head(QUESTIONS)
    scale = [[0, picture.tint(0, 0.04)], [1, picture.PALETTE[0]]]
    heat = Heatmap(
        z=table.values, x=list(table.columns), y=list(table.index), zmin=0, zmax=1, colorscale=scale, xgap=1, ygap=1,
        showscale=False, hovertemplate="question %{y}, cut at %{x:.2f}: %{z:.2f} right<extra></extra>",
    )  # fmt: skip
    picture.add(figure, heat, panel=2)
    picture.axes(figure, "share of the chain", "question", panel=2, yaxis={"autorange": "reversed"})
    return figure
