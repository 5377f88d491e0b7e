"""What the scores of known answers say about reward functions, in words. Pure functions of scores.

A finding is an "error" (training would break, or learn the wrong thing), a "warning" (look at it; it may be meant) or
a "note". Every bound is a constant here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.reward_bench.answers import Answer
from workbench.reward_bench.calls import Called
from workbench.rewards.score import total as weighted_total

SLOW = 0.05
"""seconds a completion"""
LENGTH = 0.5
"""correlation with length, from which on it is told"""
MATTERS = 0.05
"""share of a function's range that length must move to be told"""
SHARE = 0.25
"""of the way from a bad answer's score to the good one's: what earns more is rewarded"""
ALIKE, OPPOSED = 0.999, -0.9
"""correlations of two functions"""
DOMINATES = 0.9
"""share of one function in the spread of the weighted sum"""
DEAD = 0.5
"""share of groups without any spread"""
FEW = 8
"""samples that it takes to say something of their lengths"""
SUM = "reward"
"""the weighted sum, as metrics and tables call it"""

STATES = {
    "raised": "raised an error", "late": "took too long", "wrong": "did not answer with one reward each",
    "nan": "gave NaN", "infinite": "gave an infinite reward",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing to know: `severity` ("error", "warning" or "note"), the `function` it is about, `text`, what to do
    (`advice`), and the rows of the table that show it."""

    severity: str
    function: str
    text: str
    advice: str
    rows: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(map(int, self.rows)))  # numpy's own do not go into JSON

    def __str__(self) -> str:
        return f"{self.severity}: {self.function}: {self.text} {self.advice}".strip()


@dataclass(frozen=True)
class Scores:
    """Everything scored: `values` by function, float64 (N,), NaN where it gave no number; `total`, (N,)."""

    answers: Sequence[Answer]
    called: Mapping[str, Called]
    weights: Mapping[str, float]
    verdict: str
    values: dict[str, np.ndarray] = field(default_factory=dict)
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, answers: Sequence[Answer], called: Mapping[str, Called], weights: Mapping[str, float], verdict: str):
        values = {name: np.array([cell.value for cell in one.cells], dtype=np.float64) for name, one in called.items()}
        finite = {name: np.where(np.isfinite(own), own, np.nan) for name, own in values.items()}
        total = weighted_total(finite, [weights[name] for name in finite])
        return cls(answers, called, weights, verdict, finite, total)

    def where(self, kind: str) -> np.ndarray:
        """Positions of the answers of a kind."""
        return np.array([i for i, answer in enumerate(self.answers) if answer.kind == kind], dtype=int)

    @property
    def sum_name(self) -> str:
        """What tables of functions call the weighted sum; a function may have taken its name."""
        return SUM if SUM not in self.values else f"{SUM} (sum)"

    @property
    def judged(self) -> dict[str, np.ndarray]:
        """What decides: the weighted sum and, beside others, the function that says right or wrong."""
        if len(self.values) == 1:
            return dict(self.values)
        return {self.sum_name: self.total, self.verdict: self.values[self.verdict]}


def find(scores: Scores) -> list[Finding]:
    """All findings, the worst first."""
    found: list[Finding] = []
    for name, called in scores.called.items():
        found += health(scores, name, called)
    if not any(_random(called) for called in scores.called.values()):
        said = set()
        for name, values in scores.judged.items():
            made = judgement(scores, name, values) if spread(values) else []
            found += [finding for finding in made if (finding.severity, finding.rows) not in said]
            said |= {(finding.severity, finding.rows) for finding in made}  # of the sum; a part need not repeat it
    for name, values in {
        **scores.values,
        **({scores.sum_name: scores.total} if len(scores.values) > 1 else {}),
    }.items():
        found += length(scores, name, values)
    found += pairs(scores) + dominance(scores) + groups(scores)
    if not len(scores.where("good")):
        advice = "Give answers={'good': a column or a list of texts}, or rows with a column such as 'answer'."
        found.append(Finding("note", SUM, "No known-good answers: the rows have no reference.", advice))
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _random(called: Called) -> bool:
    """Whether scores come out by chance, so that comparing them says nothing."""
    return 2 * len(called.differs) > len(called.cells)


def spread(values: np.ndarray) -> float:
    """From the least number to the greatest; 0 where there is none."""
    known = values[~np.isnan(values)]
    return float(known.max() - known.min()) if len(known) else 0.0


# One function, whatever it is for


def health(scores: Scores, name: str, called: Called) -> list[Finding]:
    """Errors, NaN, None, constants, time, and answers that a second call does not repeat."""
    states, found = [cell.state for cell in called.cells], []
    if not called.seconds and not called.late:
        trouble = next((cell.trouble for cell in called.cells if cell.trouble), "")
        advice = (
            "Give policy=, whose tokenizer makes the ids." if "completion_ids" in trouble else "Mend its parameters."
        )
        severity = "note" if "completion_ids" in trouble else "error"
        return [Finding(severity, name, f"was not called: it {trouble}", advice)]
    for state, words in STATES.items():
        rows = [i for i, one in enumerate(states) if one == state]
        if rows:
            found.append(_failed(scores, called, state, words, rows))
    if called.together:
        advice = "Training calls it with a whole batch of completions: look at what it does with several."
        text = f"fails on several completions together, though on none of them alone: {called.together}."
        found.append(Finding("error", name, text, advice))
    if called.stuck:
        advice = "Restart the kernel to be rid of it, and give the function a time-out of its own."
        found.append(Finding("error", name, "hangs in a way that could not be stopped.", advice))
    known = scores.values[name][~np.isnan(scores.values[name])]
    nones = [i for i, state in enumerate(states) if state == "none"]
    if len(nones) == len(states):
        advice = "None means 'does not apply', so nothing would be learned. Does it find the column and the format?"
        found.append(Finding("error", name, f"gave None for all {len(states)} answers.", advice, tuple(nones[:5])))
    elif good := [i for i in scores.where("good") if states[i] == "none"]:
        text = f"gave None for {len(good)} of {len(scores.where('good'))} good answers."
        found.append(Finding("warning", name, text, "Such completions count for nothing.", tuple(good[:5])))
    if len(known) > 1 and spread(known) == 0:
        advice = "A constant teaches nothing: check the columns and the format it looks for."
        text = f"gave {known[0]:g} for all {len(known)} answers it scored, good and bad alike."
        found.append(Finding("error", name, text, advice, tuple(scores.where("good")[:5])))
    if called.seconds and (seconds := float(np.median(called.seconds))) > SLOW:
        advice = "A step of 64 completions would wait " + f"{64 * seconds:.1f} s for it, unless it is async."
        found.append(Finding("warning", name, f"takes {1000 * seconds:.0f} ms a completion.", advice))
    if called.differs:
        text = f"scored {len(called.differs)} of {len(states)} answers otherwise when called again."
        advice = "Runs could not be repeated exactly. Seed what is random; a judge wants temperature 0."
        found.append(Finding("error" if _random(called) else "warning", name, text, advice, tuple(called.differs[:5])))
    return found


def _failed(scores: Scores, called: Called, state: str, words: str, rows: list[int]) -> Finding:
    first = scores.answers[rows[0]]
    kinds = list(dict.fromkeys(scores.answers[i].label for i in rows))
    some = ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    text = f"{words} on {len(rows)} of {len(scores.answers)} answers ({some}), first on row {first.row}: "
    advice = {
        "raised": "A run stops there. Let it return 0.0 or None for what it cannot read.",
        "late": "A run would wait. Give the function a time-out of its own.",
        "nan": "A run stops there. Return None where the function does not apply.",
    }.get(state, "A run stops there. Return one number or None for each completion.")
    return Finding("error", called.name, text + called.cells[rows[0]].trouble + ".", advice, tuple(rows))


# Good against bad


def judgement(scores: Scores, name: str, values: np.ndarray) -> list[Finding]:
    """Whether right answers earn more than wrong, empty, unfinished and tricky ones; row by row."""
    good = {scores.answers[i].row: values[i] for i in scores.where("good") if not np.isnan(values[i])}
    if not good:
        return _without_reference(scores, name, values)
    found, bad = [], [i for i in scores.where("bad") if scores.answers[i].row in good]
    over = [i for i in bad if values[i] > good[scores.answers[i].row] + 1e-9]
    if over:
        a = scores.answers[over[0]]
        text = (
            f"a known-bad answer outscores the reference in {len({scores.answers[i].row for i in over})} of {len(good)}"
            f" rows: in row {a.row} '{a.label}' gets {values[over[0]]:.4g}, the reference {good[a.row]:.4g}."
        )
        found.append(Finding("error", name, text, "Training would teach the wrong answer.", tuple(over)))
    base = {}
    for row in good:
        own = [values[i] for i in bad if scores.answers[i].row == row and not np.isnan(values[i])]
        own = own or [v for v, a in zip(values, scores.answers, strict=True) if a.row == row and not np.isnan(v)]
        base[row] = min(own, default=np.nan)
    return found + _equal(scores, name, values, good, bad) + _beaten(scores, name, values, good) + [
        finding
        for kinds, earns, severity, least, text, advice in (
            (("empty",), "no", "error", SHARE, "empty answers are rewarded", "The policy can learn to say nothing."),
            (("adversarial", "repeated"), "no", "error", SHARE, "answers that know nothing are rewarded",
             "A policy finds such short cuts: make the function ask for the answer itself."),
            (("adversarial", "repeated"), "little", "warning", 1.0, "naming everything earns as much as the answer",
             "Look at one place for one answer, such as the last line."),
            (("truncated",), "little", "warning", 1.0, "unfinished answers earn as much as whole ones",
             "Fine where the answer comes first; else ask for the end as well."),
        )
        for finding in _rewarded(scores, name, values, good, base, (kinds, earns, severity, least, text, advice))
    ]  # fmt: skip


def _equal(scores: Scores, name: str, values: np.ndarray, good: dict, bad: list[int]) -> list[Finding]:
    found = []
    for label in dict.fromkeys(scores.answers[i].label for i in bad):
        own = [i for i in bad if scores.answers[i].label == label]
        same = [i for i in own if abs(values[i] - good[scores.answers[i].row]) <= 1e-9]
        if same:
            severity = "error" if 2 * len(same) >= len(own) else "warning"
            text = f"'{label}' scores as high as the reference in {len(same)} of {len(own)} rows."
            advice = "It cannot tell right from wrong there; if it judges only the form, this is meant."
            found.append(Finding(severity, name, text, advice, tuple(same)))
    return found


def _beaten(scores: Scores, name: str, values: np.ndarray, good: dict) -> list[Finding]:
    """Where what may well be right (another form of the reference, a sample) earns more than the reference."""
    maybe = [i for i, a in enumerate(scores.answers) if a.row in good and a.kind in ("other form", "sample", "given")]
    more = [i for i in maybe if values[i] > good[scores.answers[i].row] + 1e-9]
    if not more or 2 * len({scores.answers[i].row for i in more}) < len(good):
        return []
    a = scores.answers[more[0]]
    text = f"'{a.label}' outscores the reference, in row {a.row} by {values[more[0]]:.4g} to {good[a.row]:.4g}."
    return [Finding("warning", name, text, "Does the function ask for another format than the rows have?", tuple(more))]


def _rewarded(
    scores: Scores,
    name: str,
    values: np.ndarray,
    good: dict,
    base: dict,
    rule: tuple[Sequence[str], str, str, float, str, str],
) -> list[Finding]:
    kinds, earns, severity, least, words, advice = rule
    hits, tried = [], []
    for i, answer in enumerate(scores.answers):
        if answer.kind not in kinds or answer.earns != earns or answer.row not in good:
            continue
        tried.append(answer.label)
        low, high = base[answer.row], good[answer.row]
        bound = low + least * (high - low)
        if high > low and values[i] >= bound - 1e-9 and values[i] > low + 1e-9:
            hits.append(i)
    if not hits:
        return []
    labels = list(dict.fromkeys(scores.answers[i].label for i in hits))
    often = any(2 * sum(scores.answers[i].label == label for i in hits) >= tried.count(label) for label in labels)
    severity = severity if often else "warning"  # partial credit that comes about by chance
    a = scores.answers[hits[0]]
    text = (
        f"{words}: {', '.join(labels)}. In row {a.row} '{a.label}' gets {values[hits[0]]:.4g}, the reference"
        f" {good[a.row]:.4g}."
    )
    return [Finding(severity, name, text, advice, tuple(hits))]


def _without_reference(scores: Scores, name: str, values: np.ndarray) -> list[Finding]:
    top = np.nanmax(values)
    hits = [i for i, a in enumerate(scores.answers) if a.earns == "no" and values[i] == top]
    if not hits:
        return []
    labels = ", ".join(dict.fromkeys(scores.answers[i].label for i in hits))
    text = f"nothing scores higher than answers that know nothing: {labels} ({top:.4g})."
    return [Finding("warning", name, text, "Give answers={'good': ...} to see what a right answer gets.", tuple(hits))]


# Length


def length_correlation(scores: Scores, values: np.ndarray) -> float:
    """Of score and length among answers that differ in their length alone, (-1 to 1); 0 where it plays no part: where
    the longest get what the shortest do, but for MATTERS of all there is to get."""
    families: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for answer, value in zip(scores.answers, values, strict=True):
        if answer.kind == "longer" and not np.isnan(value):
            families.setdefault((answer.row, answer.family), []).append((answer.filler, value))
    x, y, apart = [], [], []
    for own in families.values():
        if len(own) > 1:
            ordered = [value for _, value in sorted(own)]
            mean = sum(ordered) / len(ordered)
            x += [rank - (len(ordered) - 1) / 2 for rank in range(len(ordered))]
            y += [value - mean for value in ordered]
            apart.append(ordered[-1] - ordered[0])
    if not apart or abs(np.mean(apart)) < MATTERS * spread(values):
        return 0.0
    return correlation(np.array(x), np.array(y))


def sample_correlation(scores: Scores, values: np.ndarray) -> float:
    """Of score and characters among the policy's samples, by rank; 0 for fewer than FEW of them."""
    own = [i for i in scores.where("sample") if not np.isnan(values[i])]
    if len(own) < FEW:
        return 0.0
    sizes = np.array([len(scores.answers[i].text) for i in own], dtype=np.float64)
    return correlation(ranks(sizes), ranks(values[own]))


def ranks(values: np.ndarray) -> np.ndarray:
    """The places of the values in order, (N,); equal ones share the mean of theirs."""
    _, at, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[at]


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, 0 where one of the two does not vary."""
    if len(x) < 2 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def length(scores: Scores, name: str, values: np.ndarray) -> list[Finding]:
    found, advice = [], "Fine if that is what it is for; else the policy learns to change its length."
    for found_in, value in (
        ("the same answer after more filler", length_correlation(scores, values)),
        ("the policy's samples", sample_correlation(scores, values)),
    ):
        if abs(value) > LENGTH:
            way = "rises" if value > 0 else "falls"
            text = f"{way} with length in {found_in} (correlation {value:.2f})."
            found.append(Finding("warning", name, text, advice, tuple(scores.where("longer"))))
    return found


# Functions beside each other


def agreement(scores: Scores) -> tuple[list[str], np.ndarray]:
    """Correlations (F, F) of the functions' scores over the answers that both scored; NaN where one does not vary."""
    names = list(scores.values)
    made = np.full((len(names), len(names)), np.nan)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            x, y = _both(scores.values[a], scores.values[b])
            if spread(x) > 0 and spread(y) > 0:
                made[i, j] = 1.0 if i == j else correlation(x, y)
    return names, made


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(a) & ~np.isnan(b)
    return a[known], b[known]


def pairs(scores: Scores) -> list[Finding]:
    found, (names, matrix) = [], agreement(scores)
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            x, y = _both(scores.values[a], scores.values[b])
            pair = f"{b} and {a}"
            if len(x) > 1 and spread(x) > 0 and np.array_equal(x, y):
                advice = "One of them is enough: the other only doubles its weight."
                found.append(Finding("warning", pair, f"agree exactly on all {len(x)} answers.", advice))
            elif matrix[i, j] > ALIKE:
                advice = "One of them is enough, with another weight."
                found.append(Finding("warning", pair, "differ only in scale.", advice))
            elif matrix[i, j] < OPPOSED:
                text = f"pull in opposite directions (correlation {matrix[i, j]:.2f})."
                found.append(Finding("warning", pair, text, "What one rewards the other punishes: is that meant?"))
    return found


def dominance(scores: Scores) -> list[Finding]:
    """Whether one weighted part makes nearly all of the sum's spread (standard deviations over all answers)."""
    sizes = {
        name: abs(scores.weights[name]) * float(np.nanstd(values))
        for name, values in scores.values.items()
        if spread(values) > 0
    }
    if len(sizes) < 2 or not sum(sizes.values()):
        return []
    name = max(sizes, key=sizes.get)
    share = sizes[name] / sum(sizes.values())
    if share <= DOMINATES:
        return []
    text = f"makes {100 * share:.0f} % of the spread of the weighted sum: the others hardly count."
    return [Finding("warning", name, text, "Scale it down, or give weights=.")]


def groups(scores: Scores) -> list[Finding]:
    """How many groups of samples would teach nothing because all in them score the same."""
    rows: dict[int, list[int]] = {}
    for i in scores.where("sample"):
        rows.setdefault(scores.answers[i].row, []).append(i)
    own = [scores.total[places] for places in rows.values() if len(places) > 1]
    own = [values for values in own if not np.isnan(values).all()]
    if not own:
        return []
    dead = sum(spread(values) < 1e-8 for values in own)
    share, every = dead / len(own), scores.total[scores.where("sample")]
    about = f"{dead} of {len(own)} groups of {len(own[0])} samples have no spread ({100 * share:.0f} %)"
    if spread(every) == 0:
        text = f"all samples of the policy score the same ({np.nanmax(every):.4g}): {about}."
        return [Finding("error", SUM, text, "Nothing would be learned. Easier rows, partial credit, or SFT before?")]
    if share < DEAD:
        return []
    return [
        Finding("warning", SUM, f"{about}: they would teach nothing.", "Larger groups, or rows of another difficulty.")
    ]
