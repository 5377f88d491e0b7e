"""How familiar a policy is with each row, and other targets for rows that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.errors import DataError, SettingError
from workbench.transforms import parts
from workbench.transforms.samples import judged

UNSURE = "I don't know."
STYLES = ("unfamiliar", "random")


def unfamiliar(
    rows: Any,
    threshold: float = 0.5,
    relabel_percent: float | None = None,
    unsure: str = UNSURE,
    style: str = "unfamiliar",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows with the column `familiarity`: those below `threshold` get the target `unsure` ("I don't know.").

    `familiarity` is the share of a base model's samples that are right (`familiarity` measures it). `relabel_percent`
    sets the threshold at that percentile of the column in its stead (40: up to 40 % of the rows lie below it). `style`
    "random" relabels as many rows, drawn by `seed` whatever their familiarity: the control. A threshold of 0 returns
    the rows as they were; one above 1 relabels all. Raises DataError for a row without a familiarity.
    """
    if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or threshold < 0:
        raise SettingError(f"threshold={threshold!r}: give a number from 0 (no row) to above 1 (all rows).")
    if style not in STYLES:
        raise SettingError(f"style={style!r}: give one of {', '.join(map(repr, STYLES))}.")
    if relabel_percent is not None and not 0 <= relabel_percent <= 100:
        raise SettingError(f"relabel_percent={relabel_percent!r}: give a percentage from 0 to 100, or None.")
    found = parts.read(rows)
    if threshold == 0 and relabel_percent is None:
        return found
    known = [_familiarity(row, index) for index, row in enumerate(found)]
    if relabel_percent is not None:
        threshold = float(np.percentile(known, relabel_percent))
    below = {index for index, value in enumerate(known) if value < threshold}
    if style == "random":
        below = parts.drawn(len(found), len(below) / len(found), seed, "unfamiliar")
    for index in below:
        parts.answer_of(found[index], index)
    return [parts.with_answer(row, unsure) if index in below else row for index, row in enumerate(found)]


def _familiarity(row: dict[str, Any], index: int) -> float:
    value = row.get("familiarity")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise DataError(
            f"row {index} (counting from 0): the column 'familiarity' holds {parts.shown(value)}, not a number."
            " workbench.transforms.unfamiliar.familiarity measures it."
        )
    return float(value)


def familiarity(
    policy: Any,
    rows: Any,
    verdict: Callable | None = None,
    *,
    n: int = 12,
    shots: Sequence[dict[str, Any]] = (),
    seed: int = 0,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """The rows with the column `familiarity`: the share of `n` samples of the (base) policy that are right.

    `rows`: a Task, judged by its verdict, or rows with a prompt and a reward function `verdict` (right: 1.0 or more).
    `shots`: plain rows with prompt and completion that stand before each question as examples, which a base model needs
    to answer in the form asked for. `sampling` goes to `policy.sample`. `wb.method("unfamiliar")` trains on the result.
    """
    found = parts.read(getattr(rows, "rows", rows))
    before = "".join(
        parts.plain(shot, "prompt", i, "an example") + parts.plain(shot, "completion", i, "an example") + "\n\n"
        for i, shot in enumerate(shots)
    )
    asked = found
    if before:
        asked = [{**row, "prompt": before + parts.plain(row, "prompt", i, "few-shot")} for i, row in enumerate(found)]
    if verdict is None and hasattr(rows, "functions"):
        verdict = rows.functions[rows.verdict]
    answers = judged(policy, asked, verdict, n=n, seed=seed, **sampling)
    return [
        {**row, "familiarity": sum(right for _, right in samples) / len(samples)}
        for row, samples in zip(found, answers, strict=True)
    ]


def by_familiarity(
    known: Sequence[float], texts: Sequence[str], right: Sequence[bool], unsure: str = UNSURE, bins: int = 4
) -> list[dict[str, float]]:
    """Answers by how familiar their question is: for each of `bins` equal steps of familiarity from 0 to 1 the number
    of answers and the shares `right`, `wrong` and `abstained` (the text is `unsure`). Relabelling should move wrong to
    abstained at the low end only."""
    counts = [{"right": 0, "wrong": 0, "abstained": 0} for _ in range(bins)]
    for value, text, correct in zip(known, texts, right, strict=True):
        kind = "abstained" if text.strip() == unsure else "right" if correct else "wrong"
        counts[min(int(value * bins), bins - 1)][kind] += 1
    made = []
    for step, found in enumerate(counts):
        n = sum(found.values())
        shares = {kind: count / n if n else float("nan") for kind, count in found.items()}
        made.append({"from": step / bins, "to": (step + 1) / bins, "n": n} | shares)
    return made
