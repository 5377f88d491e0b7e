"""What tokenising found wrong with rows: counted by problem, with the first rows, to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from workbench.errors import DataError

PROBLEMS = {
    "masked": "nothing is left to train on after cutting to max_length: dropped",
    "empty": "no token is trained (nothing in it is to be, its weight is 0, or it is one token): dropped",
    "prompt_too_long": "the prompt alone fills max_length: dropped",
    "cut": "longer than max_length: cut",
    "stop_cut": "the cut removed the stop token: these rows do not teach the model to stop",
    "no_stop": "the chat template writes no stop token after the turn: the model cannot learn to stop",
    "doubled_start": "two start tokens in a row: the text begins with one, and the tokenizer adds another",
    "doubled_stop": "two end tokens in a row: the text is given one, and the tokenizer adds another",
    "merged": "the prompt's end is tokenised otherwise before the completion (trained from there, as in TRL)",
    "prompt_differs": "the chat template ends the prompt otherwise when sampling; that end is not in the row",
    "no_prompt": "the template renders nothing before the turn; it begins where its content does",
    "rewritten": "the chat template drops or changes text of the completion",
    "turn_differs": "an earlier turn is trained as it stands, which is not as it is written when sampled",
    "turn_left_out": "an assistant turn is not trained, because the template cannot be split around it",
    "no_context": "the prompt melts into the first token of the answers, which differ: dropped",
    "same": "chosen and rejected are the same: the pair teaches nothing",
}
"""what a MaskReport counts, in words"""


@dataclass(frozen=True)
class Problem:
    """Rows that share a problem: how many, the first of them (from 0), and an example of some."""

    name: str
    count: int
    first: tuple[int, ...]
    detail: str = ""
    rows: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)
    """all of them, and what there is to say of each"""


@dataclass(frozen=True)
class MaskReport:
    """What tokenising found: `rows` given and `kept`; `tokens` and `trained` are counts over the kept; `weights` the
    least and the greatest weight of a trained token."""

    rows: int
    kept: int
    tokens: int
    trained: int
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    weights: tuple[float, float] = (1.0, 1.0)

    @property
    def ok(self) -> bool:
        return not self.problems and not self.notes

    def count(self, name: str) -> int:
        """How many rows have the problem `name`, one of PROBLEMS."""
        return next((problem.count for problem in self.problems if problem.name == name), 0)

    def lines(self) -> list[str]:
        """For people: what is kept, then one line for each problem."""
        share = 100 * self.trained / self.tokens if self.tokens else 0.0
        lines = [
            f"{self.kept} of {self.rows} rows, {self.tokens} tokens, "
            f"{self.trained} of them trained ({share:.0f} %)"
        ]
        if self.weights != (1.0, 1.0):
            lines.append("weights of trained tokens from {:g} to {:g}".format(*self.weights))
        for problem in self.problems:
            rows = ", ".join(map(str, problem.first)) + (
                ", ..." if problem.count > len(problem.first) else ""
            )
            detail = f" ({problem.detail})" if problem.detail else ""
            many = "row" if problem.count == 1 else "rows"
            lines.append(
                f"{problem.count} {many}: {PROBLEMS[problem.name]}{detail}. {many.capitalize()} {rows}"
            )
        return [*lines, *self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class Tally:
    """Counts of problems while rows go by."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, str]] = {}

    def add(self, name: str, row: int, detail: str = "") -> None:
        self._rows.setdefault(name, {}).setdefault(row, detail)

    def problems(self) -> tuple[Problem, ...]:
        return tuple(
            Problem(name, len(rows), tuple(islice(rows, 5)), next(iter(rows.values())), rows)
            for name in PROBLEMS
            if (rows := self._rows.get(name))
        )


def unless_empty(report: MaskReport, max_length: int | None) -> MaskReport:
    """The report, or DataError when no row is left to train on."""
    if report.kept:
        return report
    why = "; ".join(
        f"{problem.count}: {PROBLEMS[problem.name]}" + f" ({problem.detail})" * bool(problem.detail)
        for problem in report.problems
    )
    raise DataError(f"None of the {report.rows} rows can be trained on (max_length={max_length}). {why}.")
