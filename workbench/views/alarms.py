"""What is going wrong in a run, told from its metrics alone: in plain words, with the call to try next.

An alarm looks at the mean of the last `WINDOW` steps that have the metric (`LEAST` of them at least), so that one bad
step raises none, and goes away when the mean is healthy again; then it is listed as having been. What a rewind gave up
does not count. NaN is told at once.

    dead groups      mean of frac_reward_zero_std above 0.5, and the task is not solved (then groups are all right)
    constant reward  every completion of the window earned the same
    cut off          mean of completions/clipped_ratio above 0.25
    entropy          mean below 0.1 nat a token, and below a quarter of what it was over the run's first steps, and the
                     task is not solved, and the reward is not rising (a policy that learns grows sure of itself)
    sampler          mean of sampling/sampling_logp_difference/mean above 0.05 nat a token
    length           mean of reward_length_corr above 0.5 or below -0.5
    displacement     (pairs) the chosen answers' log-prob is lower than over the run's first steps by more than 5 % and
                     by three standard errors of the difference, while the margin has grown
    NaN              a loss, gradient norm, reward, entropy, KL or log-prob that is NaN or infinite; the reward alone
                     is NaN where no completion of a step has one

"Solved" is a mean reward above 0.85 of the best that is to be had. That is not recorded, but rewards from 0 to R with
mean m and variance v have v <= (R - m) m (Bhatia and Davis 2000), so R is at least m + v / m, with equality where each
is 0 or R: the largest of these over the run's steps is taken. "Rising" is by 0.05 of it within a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workbench.views.curves import Curves
from workbench.views.text import escape, number, visible

WINDOW = 8
"""steps with the metric that an alarm looks at"""
LEAST = 4
"""of them, before anything is said"""
DEAD, CUT, MISMATCH, LENGTH = 0.5, 0.25, 0.05, 0.5
ENTROPY, QUARTER = 0.1, 0.25
FALL, ERRORS = 0.05, 3.0
SOLVED, RISING = 0.85, 0.05
RL, PAIRS = ("grpo",), ("dpo", "cpo", "orpo")
CORE = ("loss", "grad_norm", "reward", "entropy", "kl", "logps/chosen", "logps/rejected")
"""metrics that are never NaN in a healthy run (a part of the reward may be: a function may answer None)"""


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong (`now`), or was, over steps `first` to `last`."""

    kind: str
    severity: str
    """'bad': what is learned is wrong or nothing; 'watch': look into it"""
    title: str
    explanation: str
    attempt: str
    """what to try next, in words"""
    call: str
    """the same as a call, or an empty string"""
    first: int
    last: int
    now: bool

    def steps(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"steps": self.steps()}


@dataclass(frozen=True)
class Series:
    """A metric along the line that counts: `steps` and `values` (n,), and `mean`, that of the window that ends at each
    step, NaN where it holds fewer than `LEAST` numbers."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        good = np.isfinite(self.values)
        total = np.cumsum(np.where(good, self.values, 0.0))  # (n,)
        count = np.cumsum(good)
        total[WINDOW:] -= total[:-WINDOW].copy()
        count[WINDOW:] -= count[:-WINDOW].copy()
        return np.where(count >= LEAST, total / np.maximum(count, 1), math.nan)

    @property
    def start(self) -> np.ndarray:
        """The numbers of the run's first window."""
        return self.values[np.isfinite(self.values)][:WINDOW]


def alarms(curves: Curves, method: str, settings: Mapping[str, Any], variable: str = "run") -> list[Alarm]:
    """What is wrong, and then what was; the worst first. `variable`: what the notebook calls the run."""
    read = _reader(curves)
    found = [made for rule in RULES for made in rule(read, method, settings, variable)]
    if any(alarm.kind == "constant" and alarm.now for alarm in found):
        found = [alarm for alarm in found if alarm.kind != "dead" or not alarm.now]
    return sorted(found, key=lambda alarm: (not alarm.now, alarm.severity != "bad", -alarm.last))


def _reader(curves: Curves) -> Callable[[str], Series]:
    """Metrics of the training: without step 0, which is evaluated only."""
    known: dict[str, Series] = {}

    def read(name: str) -> Series:
        if name not in known:
            steps, values = curves.main(name)
            known[name] = Series(steps[steps > 0], values[steps > 0])
        return known[name]

    return read


def _over(steps: np.ndarray, on: np.ndarray) -> tuple[int, int, bool] | None:
    """First and last step of the latest stretch in which `on` (n,) holds, and whether it goes on; None without any."""
    if not on.any():
        return None
    last = int(np.flatnonzero(on)[-1])
    before = np.flatnonzero(~on[:last])
    first = int(before[-1]) + 1 if len(before) else 0
    return int(steps[first]), int(steps[last]), last == len(on) - 1


def _told(series: Series, on: np.ndarray, kind: str, severity: str, title: str, *words: str) -> list[Alarm]:
    stretch = _over(series.steps, on)
    return [] if stretch is None else [Alarm(kind, severity, title, *words, *stretch)]


def _worst(series: Series, on: np.ndarray) -> float:
    """The mean at the last step at which the alarm was on."""
    return float(series.mean[np.flatnonzero(on)[-1]]) if on.any() else math.nan


def _progress(read: Callable, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the task is solved, and whether the reward is rising, at each of `steps`: see the module."""
    reward, spread = read("reward"), read("reward_std")
    if not np.array_equal(reward.steps, steps) or not np.array_equal(spread.steps, steps):
        return np.zeros(len(steps), bool), np.zeros(len(steps), bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        best = reward.values + spread.values**2 / reward.values
    best = best[(reward.values > 0) & np.isfinite(best)].max(initial=0.0)
    before = np.concatenate([np.full(min(WINDOW, len(steps)), math.nan), reward.mean[:-WINDOW]])
    return (reward.mean > SOLVED * best) & (best > 0), reward.mean - before > RISING * best


def _set(settings: Mapping[str, Any], name: str, default: float) -> Any:
    """The setting as a number, whatever another version wrote into the store."""
    value = settings.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# -- the rules -------------------------------------------------------------------------------------------------


def _dead(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    dead = read("frac_reward_zero_std")
    solved, _ = _progress(read, dead.steps)
    on = (dead.mean > DEAD) & ~solved
    again = f"group_size={2 * _set(settings, 'group_size', 8)}"
    return _told(
        dead, on, "dead", "watch", "Dead groups",
        f"In {_percent(_worst(dead, on))} of the groups all completions earn the same reward, so they teach nothing:"
        " the prompts are too easy, too hard, or the reward is too coarse.",
        "Draw until enough groups are alive, or compare more completions of a prompt; or give other prompts.",
        f"{run}.set({again if settings.get('dynamic_sampling') else 'dynamic_sampling=True'})",
    )  # fmt: skip


def _constant(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    reward, spread = read("reward"), read("reward_std")
    if len(reward.steps) != len(spread.steps):
        return []
    still = np.concatenate([[True], np.abs(np.diff(reward.values)) < 1e-9]) & (np.abs(spread.values) < 1e-9)  # (n,)
    count = np.cumsum(still)  # (n,)
    count[WINDOW:] -= count[:-WINDOW].copy()
    on = count >= WINDOW  # as many steps in a row as make a window
    value = number(reward.values[np.flatnonzero(on)[-1]]) if on.any() else "–"
    return _told(
        reward, on, "constant", "bad", "The reward is constant",
        f"Every completion of {WINDOW} steps earned {value}: there is nothing to learn from.",
        "Look at what the reward function sees: a format it does not expect, a column that is empty, a limit that is"
        " too short. Try another one over the stored completions first.",
        f"{run}.rescore([other_reward])",
    )  # fmt: skip


def _cut(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    cut = read("completions/clipped_ratio")
    on = cut.mean > CUT
    limit = _set(settings, "max_new_tokens", 512)
    return _told(
        cut, on, "cut", "watch", "Completions are cut off",
        f"{_percent(_worst(cut, on))} of the completions reach max_new_tokens={limit} before they end, and are scored"
        " unfinished.",
        "Let them end, or leave those that do not end out of the loss (mask_truncated_completions=True).",
        f"{run}.set(max_new_tokens={2 * limit})",
    )  # fmt: skip


def _entropy(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    entropy = read("entropy")
    if method not in RL or len(entropy.start) < LEAST:
        return []
    first = float(entropy.start.mean())
    solved, rising = _progress(read, entropy.steps)
    on = (entropy.mean < ENTROPY) & (entropy.mean < QUARTER * first) & ~solved & ~rising
    return _told(
        entropy, on, "entropy", "bad", "Entropy has collapsed",
        f"{number(_worst(entropy, on))} nats a token, {number(first)} over the first steps: the model writes nearly the"
        " same whatever it draws, and finds nothing new.",
        "Go back to before it fell, and go on with an entropy bonus or a lower learning rate.",
        f"{run}.set(entropy_coef={2 * _set(settings, 'entropy_coef', 0.0) or 0.01:g})",
    )  # fmt: skip


def _sampler(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    apart = read("sampling/sampling_logp_difference/mean")
    on = apart.mean > MISMATCH
    corrected = settings.get("sampler_correction") is not None
    return _told(
        apart, on, "sampler", "watch" if corrected else "bad", "Sampler and trainer disagree",
        f"By {number(_worst(apart, on))} nats a token: the completions were drawn by other probabilities than those"
        " that are trained, as with a quantised or half-precision sampler.",
        "Weigh tokens by the ratio of the two; or sample in the precision that trains." if not corrected
        else "It is corrected for already; bring the two precisions together.",
        "" if corrected else f"{run}.set(sampler_correction='token_truncate')",
    )  # fmt: skip


def _length(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    tied = read("reward_length_corr")
    on = np.abs(tied.mean) > LENGTH
    worst = _worst(tied, on)
    longer, limit = worst > 0, _set(settings, "max_new_tokens", 512)
    return _told(
        tied, on, "length", "watch", "The reward follows the length",
        f"Their correlation is {number(round(worst, 2) if math.isfinite(worst) else worst)}:"
        f" {'longer' if longer else 'shorter'} completions earn more, so length may be what is learned.",
        "See in the table what pays: take a term for length out of the reward, or punish what is overlong." if longer
        else "See in the table whether short answers are right ones; else reward what they leave out.",
        f"{run}.set(overlong_cache={max(1, limit // 4)})" if longer and method in RL else "",
    )  # fmt: skip


def _displaced(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    chosen, margin = read("logps/chosen"), read("rewards/margins")
    if method not in PAIRS or len(chosen.start) < WINDOW or len(margin.start) < WINDOW:
        return []
    if len(chosen.steps) != len(margin.steps):
        return []
    first, late = chosen.start.mean(), np.arange(len(chosen.steps)) >= 2 * WINDOW - 1  # windows that do not overlap
    squares = Series(chosen.steps, chosen.values**2)
    error = np.sqrt((chosen.start.var() + np.maximum(squares.mean - chosen.mean**2, 0.0)) / (WINDOW - 1))  # (n,)
    fall = first - chosen.mean
    on = late & (fall > FALL * abs(first)) & (fall > ERRORS * error) & (margin.mean > margin.start.mean())
    worst = _worst(chosen, on)
    return _told(
        chosen, on, "displacement", "watch", "Chosen answers grow less likely",
        f"Their log-probability went from {number(first)} to {number(worst)} while the margin grew: both answers fall,"
        " the rejected one faster, and what rises instead is neither.",
        "Hold the chosen answers up with their likelihood, or learn more slowly.",
        f"{run}.set(loss_type=['sigmoid', 'sft'], loss_weights=[1.0, 0.2])" if method == "dpo"
        else f"{run}.set(lr={_set(settings, 'lr', 1e-6) / 2:g})",
    )  # fmt: skip


def _nan(read: Callable, method: str, settings: Mapping[str, Any], run: str) -> list[Alarm]:
    bad = {}
    for name in CORE:
        series = read(name)
        if len(series.steps) and (stretch := _over(series.steps, ~np.isfinite(series.values))):
            bad[name] = stretch
    if not bad:
        return []
    now = [name for name in bad if bad[name][2]] or list(bad)
    first, last = min(bad[name][0] for name in now), max(bad[name][1] for name in now)
    lr = settings.get("lr")
    back = max(0, first - 1)
    if now == ["reward"]:  # a reward that is not a number is refused, so this is the mean of none
        return [
            Alarm(
                "nan", "bad", "No reward", "At some steps every reward function gave None for every completion.",
                "Read those completions: the functions should answer 0 where an answer is wrong.", f"{run}.browse()",
                first, last, bad["reward"][2],
            )
        ]  # fmt: skip
    return [
        Alarm(
            "nan", "bad", "Not a number", f"{', '.join(map(visible, now))} is NaN or infinite.",
            f"Go back to step {back}, before it came, and go on with a lower learning rate.",
            f"{run}.rewind({back}).set(lr={lr / 2:g})" if isinstance(lr, float) else f"{run}.rewind({back})",
            first, last, any(bad[name][2] for name in bad),
        )
    ]  # fmt: skip


RULES = (_nan, _constant, _dead, _cut, _entropy, _sampler, _length, _displaced)


# -- static forms ----------------------------------------------------------------------------------------------


def alarms_html(found: list[Alarm]) -> str:
    """The alarms as HTML without script; nothing where there are none."""
    rows = []
    for alarm in found:
        if alarm.now:
            call = f" <code>{escape(alarm.call)}</code>" if alarm.call else ""
            body = f"{escape(alarm.explanation)} {escape(alarm.attempt)}{call}"
            rows.append(f"<li><b>⚠ {escape(alarm.title)}</b> (since step {alarm.first}). {body}</li>")
        else:
            rows.append(f"<li>was: {escape(alarm.title)} ({escape(alarm.steps())})</li>")
    return f'<ul class="wb-alarms-static">{"".join(rows)}</ul>' if rows else ""


def alarms_lines(found: list[Alarm]) -> list[str]:
    """The same for a terminal."""
    return [
        f"  ! {alarm.title} since step {alarm.first}: {alarm.explanation}"
        + (f" Try {alarm.call}" if alarm.call else "")
        if alarm.now
        else f"  was: {alarm.title} ({alarm.steps()})"
        for alarm in found
    ]
