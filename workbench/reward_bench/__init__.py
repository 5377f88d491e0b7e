"""A bench for reward functions: known answers go through them before the first step of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench import worker
from workbench.errors import DataError, SettingError, did_you_mean
from workbench.reward_bench import answers as making
from workbench.reward_bench import calls
from workbench.reward_bench.answers import KINDS, Answer
from workbench.reward_bench.findings import (
    SUM,
    Finding,
    Scores,
    agreement,
    find,
    length_correlation,
    sample_correlation,
)
from workbench.tasks import Task
from workbench.text import clean
from workbench.views.reward_bench import RewardBench

if TYPE_CHECKING:
    from workbench.policy import Policy

__all__ = ["Finding", "RewardCheck", "check_rewards"]


def check_rewards(
    task: Task,
    policy: Policy | None = None,
    n: int = 8,
    samples: int = 4,
    answers: Sequence[str] | str | Mapping[str, Sequence[str] | str] | None = None,
    seed: int = 0,
    timeout: float = 10.0,
    max_new_tokens: int = 128,
) -> RewardCheck:
    """Run a task's reward functions on answers whose worth is known, before any training. Returns a RewardCheck.

    The first `n` rows are tried with: the reference (in several forms; the one that scores best is taken for the
    task's own, the others stay as "other form"), wrong answers (off by one, another row's, the right one denied),
    nothing, answers cut short, repetition, tricks (the prompt again, orders to a judge, every number, the form alone,
    scripts, odd characters, ...), and the same answer after more and more filler. The reference is what the task's
    own `reference(row)` gives, or comes from columns such as `answer`, `completion` or `solution`; where there is
    none, answers that need one are left out and a finding says so.

    `policy`: also score `samples` completions of each row, of up to `max_new_tokens` tokens, drawn by `seed`; and give
    functions the token ids of all answers. `answers`: more completions, a list of texts (tried on every row) or the
    name of a column; or a dict of these by kind, {"good": "gold", "bad": ["I do not know"]}.

    Functions are called as training calls them (`rewards.score`), twice, with copies of what they are to see. Errors
    become findings. A call past `timeout` seconds is stopped where Python can stop it; after three a function is not
    called any more. What functions log goes nowhere. Nothing is trained or stored, and the global random generators
    are left as they were.

    Raises SettingError for arguments that make no sense, DataError for a column that is not there.
    """
    _check(task, n, samples, seed, timeout)
    with calls.randomness_kept():
        return _checked(task, policy, n, answers, timeout, (samples, seed, max_new_tokens))


def _checked(
    task: Task, policy: Policy | None, n: int, answers: Any, timeout: float, sampling: tuple[int, int, int]
) -> RewardCheck:
    rows = list(range(min(n, len(task))))
    given = _given(task, answers, rows)
    label = policy_ids(policy)
    rights = making.right(task, rows)
    good = label([*(answer for answer in given if answer.kind == "good"), *rights])
    functions = task.functions
    scored = calls.run(functions, good, task.rows, timeout)
    form = _best_form(task, good, scored)
    own = any(answer.kind == "good" for answer in given)  # the caller knows best
    first = [a if i < len(good) - len(rights) or (a.label == form and not own) else replace(a, kind="other form")
             for i, a in enumerate(good)]  # fmt: skip
    rest = label([*making.wrong(task, rows, form), *(a for a in given if a.kind != "good")])
    rest += [] if policy is None else sampled(policy, task, rows, *sampling)
    more = calls.run(functions, rest, task.rows, timeout, scored)
    return RewardCheck(task, *_together((first, scored), (rest, more)), timeout)


class RewardCheck(RewardBench):
    """What `check_rewards` found: shown in a notebook, and as data.

    `table`: a DataFrame with one row an answer: `kind`, `answer` (what it is), `row` (of the task), `completion`, then
    `rewards/<function>` (NaN where it gave no number), `reward` (their weighted sum) and `trouble` (what went wrong).
    `summary`: a DataFrame with one row a function, and `reward` for the sum: the mean by kind, `ms` a completion, how
    often it gave `none`, `nan` (or infinity), raised (`exceptions`) or ran past the time-out (`late`), how many
    `distinct` values, and `corr_length`, the correlation with length among answers that differ in nothing else.
    `findings`: what to look at, the worst first. `agreement`: correlations of the functions, (F, F).
    `changes`: after `again`, the mean by kind before and now; else None.
    """

    def __init__(
        self,
        task: Task,
        answers: Sequence[Answer],
        called: Mapping[str, calls.Called],
        timeout: float,
        before: RewardCheck | None = None,
    ):
        self.task, self.answers, self.timeout = task, list(answers), timeout
        self._called = called
        scores = Scores.of(self.answers, called, task.weight_of, task.verdict)
        self.table = _table(scores)
        self.summary = _summary(scores)
        self.findings: list[Finding] = find(scores)
        names, matrix = agreement(scores)
        self.agreement = pd.DataFrame(matrix, index=names, columns=names)
        self.changes = None if before is None else _changes(before, self)
        super().__init__(
            table=self.table,
            summary=self.summary,
            findings=[vars(finding) for finding in self.findings],
            agreement=self.agreement,
            changes=self.changes,
            traces={name: [cell.trace for cell in one.cells] for name, one in called.items()},
            prompts=[_asked(task.rows[answer.row]["prompt"]) for answer in self.answers],
            gone=[] if before is None else _gone(before.findings, self.findings),
        )

    def again(
        self,
        rewards: Sequence[Callable] | Mapping[str, Callable] | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
    ) -> RewardCheck:
        """The same answers through other functions (None: the same ones once more), with what changed beside it.

        Nothing is sampled anew. Raises SettingError and DataError as `wb.Task` does.
        """
        task = self.task
        if rewards is not None:
            task = task.with_rewards(rewards, weights)
        elif weights is not None:
            task = task.with_rewards(task.functions, weights)
        with calls.randomness_kept():
            called = calls.run(task.functions, self.answers, task.rows, self.timeout)
        return RewardCheck(task, self.answers, called, self.timeout, before=self)


# Arguments


def _check(task: Any, n: Any, samples: Any, seed: Any, timeout: Any) -> None:
    if not isinstance(task, Task):
        raise SettingError(f"wb.check_rewards takes a Task: wb.Task(rows, rewards=[...]). Got {type(task).__name__}.")
    for name, value, least in (("n", n, 1), ("samples", samples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"wb.check_rewards: {name}={value!r} must be a whole number from {least}.")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise SettingError(f"wb.check_rewards: timeout={timeout!r} must be a number of seconds above 0.")


def _given(task: Task, answers: Any, rows: Sequence[int]) -> list[Answer]:
    """The caller's own answers, by row."""
    made = []
    for kind, values in (answers if isinstance(answers, Mapping) else {"given": answers}).items():
        if kind not in KINDS:
            raise SettingError(
                f"answers: there is no kind {kind!r}.{did_you_mean(str(kind), KINDS)} Kinds: {', '.join(KINDS)}."
            )
        if isinstance(values, str):
            task.rows.require(values, what="wb.check_rewards: answers")
        elif values is not None and not all(isinstance(text, str) for text in values):
            raise DataError(f"answers[{kind!r}] must be texts, or the name of a column of the rows.")
        for i in rows if values is not None else ():
            own = task.rows[i].get(values) if isinstance(values, str) else values
            texts = [own] if isinstance(own, str) else own or []
            named = values if isinstance(values, str) else "yours"
            earns = "no" if kind in ("empty", "adversarial") else "any"
            made += [
                Answer(kind, f"{named} {at}" if len(texts) > 1 else named, i, clean(str(t)), earns)
                for at, t in enumerate(texts)
            ]
    return made


def policy_ids(policy: Policy | None) -> Callable[[list[Answer]], list[Answer]]:
    """Gives answers their token ids, where there is a policy whose tokenizer can make them."""

    def label(answers: list[Answer]) -> list[Answer]:
        if policy is None or not answers:
            return answers
        coded = worker.call(policy.tokenizer, [a.text for a in answers], add_special_tokens=False, verbose=False)
        return [replace(a, ids=tuple(ids)) for a, ids in zip(answers, coded["input_ids"], strict=True)]

    return label


def sampled(
    policy: Policy, task: Task, rows: Sequence[int], samples: int, seed: int, max_new_tokens: int
) -> list[Answer]:
    """Completions of the policy as it is now, with their ids."""
    prompts = [task.rows[i]["prompt"] for i in rows]
    made = policy.sample(prompts, n=samples, max_new_tokens=max_new_tokens, seed=seed)
    return [
        Answer("sample", f"sample {made.sample[k]}", rows[made.group[k]], made.text[k], ids=tuple(made.ids[k]))
        for k in range(len(made))
    ]


def _best_form(task: Task, good: Sequence[Answer], scored: Mapping[str, calls.Called]) -> str:
    """The form in which right answers score best: by the function that says right or wrong, then by the sum."""
    if not good:
        return next(iter(making.forms(task)))
    scores = Scores.of(good, scored, task.weight_of, task.verdict)
    names = [name for name in making.forms(task) if any(answer.label == name for answer in good)]

    def mean(values: np.ndarray, name: str) -> float:
        own = [v for v, a in zip(values, good, strict=True) if a.label == name]
        return round(float(np.mean(np.nan_to_num(own, nan=0.0))), 9)

    return max(names or [""], key=lambda name: (mean(scores.values[task.verdict], name), mean(scores.total, name))) or (
        next(iter(making.forms(task)))
    )


def _together(*parts: tuple[list[Answer], Mapping[str, calls.Called]]) -> tuple[list[Answer], dict[str, calls.Called]]:
    """Answers of several calls of `calls.run` and what came of them, in the order of kinds."""
    answers = [answer for own, _ in parts for answer in own]
    order = sorted(range(len(answers)), key=lambda i: (KINDS.index(answers[i].kind), answers[i].row, i))
    place = {old: new for new, old in enumerate(order)}
    made = {}
    for name in parts[0][1]:
        one, offset = calls.Called(name), 0
        for own, called in parts:
            part = called[name]
            one.cells += part.cells
            one.seconds += part.seconds
            one.differs += [place[offset + i] for i in part.differs]
            one.together = one.together or part.together
            one.late, one.stuck = max(one.late, part.late), one.stuck or part.stuck
            offset += len(own)
        one.cells = [one.cells[i] for i in order]
        one.differs.sort()
        made[name] = one
    return [answers[i] for i in order], made


# Data


def _table(scores: Scores) -> pd.DataFrame:
    troubles = [
        "; ".join(f"{name}: {one.cells[i].trouble}" for name, one in scores.called.items() if one.cells[i].trouble)
        for i in range(len(scores.answers))
    ]
    return pd.DataFrame({
        "kind": [answer.kind for answer in scores.answers],
        "answer": [answer.label for answer in scores.answers],
        "row": [answer.row for answer in scores.answers],
        "completion": [answer.text for answer in scores.answers],
        **{f"rewards/{name}": values for name, values in scores.values.items()},
        SUM: scores.total,
        "trouble": troubles,
    })  # fmt: skip


def _summary(scores: Scores) -> pd.DataFrame:
    made = {}
    for name, values in {**scores.values, scores.sum_name: scores.total}.items():
        by_kind = {kind: _mean(values[own]) for kind in KINDS if len(own := scores.where(kind))}
        called = scores.called.get(name)
        states = [cell.state for cell in called.cells] if called else []
        count = {
            "ms": 1000 * float(np.median(called.seconds)) if called and called.seconds else np.nan,
            "none": states.count("none") if called else int(np.isnan(values).sum()),
            "nan": states.count("nan") + states.count("infinite"),
            "exceptions": states.count("raised") + states.count("wrong"),
            "late": states.count("late"),
            "distinct": len(np.unique(values[~np.isnan(values)])),
            "corr_length": length_correlation(scores, values),
            "corr_length_samples": sample_correlation(scores, values),
        }
        made[name] = by_kind | count
    return pd.DataFrame.from_dict(made, orient="index").rename_axis("function")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _changes(before: RewardCheck, now: RewardCheck) -> pd.DataFrame:
    """The mean of the sum and of each function by kind: `<function> before`, `<function> now`."""
    kinds = [kind for kind in KINDS if kind in now.summary]
    columns = {}
    for name in dict.fromkeys(
        [now.summary.index[-1], *now.summary.index, *before.summary.index]
    ):  # the sum stands first
        for when, check in (("before", before), ("now", now)):
            known = name in check.summary.index
            columns[f"{name} {when}"] = [check.summary.loc[name, kind] if known else np.nan for kind in kinds]
    return pd.DataFrame(columns, index=pd.Index(kinds, name="kind"))


def _gone(before: Sequence[Finding], now: Sequence[Finding]) -> list[str]:
    """What was found before and is not found now, of the same function or of one that is not there any more."""
    still = {(finding.function, finding.text) for finding in now}
    return [f"{one.function}: {one.text}" for one in before if (one.function, one.text) not in still]


def _asked(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message.get('role', '?')}] {message.get('content', '')}" for message in prompt)
