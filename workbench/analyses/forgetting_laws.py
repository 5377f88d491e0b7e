"""What a model forgets while it learns: drift from its own predictions on general text, against the task's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench import glossary, settings, tokenise, worker
from workbench.analyses import during, fits, picture
from workbench.analyses.paired import Pair, Side, batches, compared, pair
from workbench.analyses.picture import Result
from workbench.data import rows as read_rows
from workbench.errors import DataError, SettingError

MEASURES = ("forgetting", "entropy", "kl", "hard")


def forgetting_laws(
    runs: Any,
    texts: Sequence[str],
    rows: Any = None,
    *,
    every: int = 10,
    metric: str = "reward",
    base: Any = None,
    max_length: int = 256,
) -> Result:
    """The learn-forget plane: how far a run drifts from its base model on general text, for what it learns.

        L_f  = mean over tokens of -sum_v p_base(v | text so far) log p_tuned(v | text so far)
        KL   = L_f - H(p_base), 0 at the start
        L_ft = the mean negative log-likelihood of held-out `rows` of the task

    Forgetting is measured against the base model's own predictions, so it needs no labels, and it counts all that
    changed. Two laws are fitted:

        L_f = s - h L_ft              a line over the states of each run, and of all
        L_f = c - A x^(-alpha)        x the steps of a run; or its trained parameters, where there are three sizes

    Lower and further left is better: less forgotten, more learnt. The paper finds one line for all ranks and lengths of
    LoRA training, so that neither early stopping nor a smaller rank avoids forgetting; to beat the line takes another
    method. Its joint law in parameters and steps is not fitted here.

    `runs`: a run, a list, or a dict by name; each is stepped to its end (steps that are made are restored), and looked
    at every `every` steps. A run goes first to last, so runs may share one policy. `texts`: a few hundred general ones,
    cut after `max_length` tokens. `rows`: prompt and completion, messages or text; None: the x axis is the run's own
    `metric` ("reward"). `base`: see `workbench.analyses.paired`; None: the adapter off, or how a run began.

    The frame has a row for each run and step: params, loss (or the metric), forgetting, entropy, kl, and hard, the loss
    against the base's likeliest token. Table `fits`. Raises SettingError for what is no run and DataError for texts.
    """
    named = _named(runs)
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError("forgetting_laws: give general texts as a list of strings.")
    x = "loss" if rows is not None else metric
    held_out = None if rows is None else read_rows(rows)
    if held_out is None:
        for run in named.values():
            _check_metric(run, metric)
    looks = {name: _Look(run, texts, held_out, base, max_length) for name, run in named.items()}
    found = []
    for name, run in named.items():
        look = looks[name]
        for step, one in during.visits(run, every):
            learnt = None if held_out is not None else _metric(run, metric, step)
            found.append({"run": name, "step": step, "params": look.params} | worker.call(look.at, one, x, learnt))
    return _result(found, x)


def _named(runs: Any) -> dict[str, Any]:
    given = runs if isinstance(runs, Mapping) else None
    if given is None:
        listed = list(runs) if isinstance(runs, (list, tuple)) else [runs]
        given = {getattr(run, "name", str(i)): run for i, run in enumerate(listed)}
        if len(given) < len(listed):
            raise SettingError("Some of these runs have one name; give a dict: {'rank 4': run, ...}.")
    for run in given.values():
        during.checked(run)
    if not given:
        raise SettingError("forgetting_laws: no run given.")
    return {str(name): run for name, run in given.items()}


def _check_metric(run: Any, metric: str) -> None:
    """Raises SettingError where the run will never have it."""
    method = run.engine.method
    known = set(glossary.metric(metric).methods)
    # a published method has the metrics of its loop, whose settings its own extend
    own = {method.name} | {name for name, kind in settings.METHODS.items() if isinstance(run.engine.settings, kind)}
    if known and not known & own and method.takes != "task":
        raise SettingError(f"{run.name} is a run of {method.name}, which has no {metric!r}. Give held-out rows.")


def _metric(run: Any, metric: str, step: int) -> float:
    """The metric at a step, NaN where that has none (as a start has no reward)."""
    table = run.metrics
    return float(table[metric].get(step, np.nan)) if metric in table else float("nan")


class _Look:
    """What is read at every state of a run."""

    def __init__(self, run: Any, texts: Sequence[str], rows: Any, base: Any, max_length: int):
        policy = run.engine.policy
        both = pair(run, base)
        self.base = both.base
        made = [policy.tokenizer(text)["input_ids"][:max_length] for text in texts]
        self.texts = [ids for ids in made if len(ids) > 1]
        if not self.texts:
            raise DataError("forgetting_laws: no text has two tokens, so there is nothing to predict.")
        self.rows = None if rows is None else tokenise.fit_rows(rows, policy.tokenizer).items
        self.params = sum(tensor.numel() for tensor in run.engine.state.params.values())

    def at(self, one: Side, x: str, learnt: float | None) -> dict[str, float]:
        """What the state `one` has learnt and forgotten; on the worker."""
        both = Pair(self.base, one).pinned()
        learnt = loss(both.tuned, self.rows) if self.rows is not None else learnt
        return {x: learnt} | drift(both, self.texts)


def drift(both: Pair, texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Means over the tokens of `texts` (ids), on the worker: `forgetting` (cross-entropy of the tuned model with the
    base as the truth), `entropy` of the base, their difference `kl`, and `hard`, with the base's top as the truth."""
    sums, count = dict.fromkeys(("forgetting", "entropy", "hard"), 0.0), 0
    for part in compared(both, texts, [1] * len(texts)):
        p = part.base.exp()
        sums["forgetting"] -= float((p * part.tuned).sum(1).double().sum())
        sums["entropy"] -= float((p * part.base).sum(1).double().sum())
        sums["hard"] -= float(part.tuned.gather(1, part.base.argmax(1, keepdim=True)).double().sum())
        count += len(part.target)
    means = {name: value / count for name, value in sums.items()}
    return {name: means[name] if name != "kl" else means["forgetting"] - means["entropy"] for name in MEASURES}


def loss(one: Side, examples: Sequence[Any]) -> float:
    """The mean negative log-likelihood of the trained tokens of prepared rows (`tokenise.fit_rows`); on the worker."""
    total, count = 0.0, 0
    for batch in batches([len(example.ids) for example in examples]):
        worker.check()
        with one.held() as policy:
            sequences = [examples[i].ids for i in batch]
            scores = policy.token_scores(sequences, [1] * len(batch), needs=frozenset())
        for row, i in enumerate(batch):
            mask = np.asarray(examples[i].mask[1:], dtype=bool)
            said = scores.logprob[row, : len(mask)].double().cpu().numpy()
            total, count = total - float(said[mask].sum()), count + int(mask.sum())
    return total / count


def _result(found: list[dict[str, Any]], x: str) -> Result:
    import pandas as pd

    frame = pd.DataFrame(found)
    made = [{"run": name} | _laws(part, x) for name, part in frame.groupby("run", sort=False)]
    if len(made) > 1:
        made.append({"run": "all"} | fits.line(frame[x], frame["forgetting"]))
    last = frame.groupby("run", sort=False).last()
    if last["params"].nunique() >= 3:
        law = fits.power_law(last["params"], last["forgetting"])
        made.append({"run": "by parameters"} | _power(law))
    table = pd.DataFrame(made)
    whole = (table[table["run"] == "all"] if len(last) > 1 else table).iloc[0]
    summary = {"KL at the end": float(last["kl"].mean())}
    summary |= {"slope": float(whole["slope"]), "Pearson": float(whole["pearson"])}
    return Result(f"Learning and forgetting: {', '.join(last.index)}", frame, _draw, summary, {"fits": table})


def _laws(part: Any, x: str) -> dict[str, float]:
    return fits.line(part[x], part["forgetting"]) | _power(fits.power_law(part["step"], part["forgetting"]))


def _power(law: dict[str, float]) -> dict[str, float]:
    return {name if name != "r2" else "r2_power": value for name, value in law.items()}


def _draw(result: Result) -> Any:
    from plotly.graph_objects import Scatter

    frame, table = result.frame, result["fits"]
    x = frame.columns[3]
    figure = picture.sheet(result.title, ["learnt and forgotten", "over the steps"])
    for i, (name, part) in enumerate(frame.groupby("run", sort=False)):
        sizes = {"size": 5 + 7 * part["step"] / max(1, part["step"].max()), "color": picture.PALETTE[i % 6]}
        said = [f"step {step}" for step in part["step"]]
        trail = {"mode": "lines+markers", "marker": sizes, "line": {"width": 1, "color": picture.tint(i % 6, 0.5)}}
        named = {"name": picture.told(name), "legendgroup": picture.told(name)}
        picture.add(figure, Scatter(x=part[x], y=part["kl"], text=said, **named, **trail))
        law = table[table["run"] == name].iloc[0]
        if np.isfinite(law["slope"]):
            ends = np.array([part[x].min(), part[x].max()])
            fitted = law["intercept"] + law["slope"] * ends - part["entropy"].mean()
            line = {"dash": "dot", "width": 1.5}
            picture.curve(figure, ends, fitted, f"{name}: line, R² {law['r2']:.2f}", i, mode="lines", line=line)
        picture.curve(figure, part["step"], part["kl"], name, i, panel=1, showlegend=False, mode="markers")
        if np.isfinite(law["alpha"]):
            steps = np.linspace(max(1, part["step"].min()), part["step"].max(), 60)
            fitted = law["c"] - law["A"] * steps ** -law["alpha"] - part["entropy"].mean()
            shown = f"{name}: power law, α {law['alpha']:.2f}"
            picture.curve(figure, steps, fitted, shown, i, panel=1, mode="lines", line={"dash": "dot", "width": 1.5})
    picture.axes(figure, "loss on the task, nats per token" if x == "loss" else x, "KL from the base, nats per token")
    picture.axes(figure, "step", "KL from the base, nats per token", panel=1)
    return figure
