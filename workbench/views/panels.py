"""Which charts a run has: those that fit its method, in groups, and the other metrics folded away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from workbench.errors import SettingError
from workbench.glossary import Metric, metric
from workbench.store.metrics import RATE
from workbench.views.text import one_line, visible

OTHER = "Other metrics"

DERIVED = Metric(
    RATE, "tokens per second", "What num_tokens grew by in the step, over the seconds of the step.",
    "Steady. It falls as completions grow longer than the cache or the memory likes, or when the machine has other"
    " work; it says nothing about learning.",
)  # fmt: skip
"""worked out for the curves, and no metric of the run"""


@dataclass(frozen=True)
class Chart:
    """A chart: as a method asks for it, and, once `arrange` has filled in the names, as a run has it."""

    title: str
    unit: str
    names: tuple[str, ...]
    """metrics; as a method asks for it, one `*` in a name stands for any text"""
    low: float | None = None
    high: float | None = None
    band: tuple[str, ...] = ()
    """metrics drawn as a band: one is a spread to each side of the first curve, two are its lower and upper edge"""
    always: bool = False
    """shown before the first value comes, too"""
    group: str = ""
    """the heading it stands under"""
    main: bool = True
    """in front; the others are folded away"""

    def to_dict(self) -> dict[str, Any]:
        """For the page: also the names as text, and what each metric is."""
        labels = [one_line(name, 60) for name in self.names]
        known = [(one_line(name, 60), *explain(name)) for name in (*self.names, *self.band)]
        return asdict(self) | {
            "names": list(self.names),
            "band": list(self.band),
            "labels": labels,
            "about": [{"name": name, "what": what, "read": read} for name, what, read in known if what],
        }


def explain(name: str) -> tuple[str, str]:
    """What the metric is and how to read it; ("", "") for one that only this run knows."""
    try:
        known = DERIVED if name == RATE else metric(name)
    except SettingError:
        return "", ""
    return known.what, known.read


def _share(title: str, *names: str, **more: Any) -> Chart:
    return Chart(title, "share", names, 0, 1, **more)


def _group(name: str, *charts: Chart) -> tuple[Chart, ...]:
    return tuple(replace(chart, group=name) for chart in charts)


# Charts that several methods show.
_GRADIENT = Chart("Gradient norm", "norm", ("grad_norm",), always=True)
_SCHEDULE = Chart("Learning rate", "learning rate", ("learning_rate",))
_UPDATE = _group("Update", _GRADIENT, _SCHEDULE)
_SPEED = _group("Speed", Chart("Tokens per second", "tokens per second", (RATE,)))
_REWARDS = Chart(
    "Implicit rewards", "beta × nats per answer",
    ("rewards/margins", "rewards/chosen", "rewards/rejected"), always=True,
)  # fmt: skip
_HELD_OUT_REWARDS = Chart(
    "Held-out implicit rewards", "beta × nats per answer",
    ("eval/rewards/margins", "eval/rewards/chosen", "eval/rewards/rejected"),
)  # fmt: skip
_RANKED = _share("Pairs ranked right", "rewards/accuracies", "eval/rewards/accuracies", always=True)
_ENTROPY = Chart("Entropy", "nats per token", ("entropy", "eval/entropy"))


def _logps(unit: str) -> Chart:
    return Chart("Log-probability of the answers", unit, ("logps/chosen", "logps/rejected"), always=True)


def _loss(unit: str) -> Chart:
    return Chart("Loss", unit, ("loss", "eval/loss"), always=True)


# The loss never comes first in RL: with one update a step and no KL it is zero by construction.
PANELS: dict[str, tuple[Chart, ...]] = {
    "grpo": (
        *_group(
            "Reward",
            Chart("Reward", "reward", ("reward", "rewards/*/mean", "eval/reward"), band=("reward_std",), always=True),
            _share("Held-out tasks solved", "eval/accuracy", "eval/pass@*", "eval/maj@*"),
            _share("Groups that teach nothing", "frac_reward_zero_std", "sampling/yield", always=True),
        ),
        *_group(
            "Policy",
            replace(_ENTROPY, band=("entropy/p10", "entropy/p90"), always=True),
            Chart("KL to the reference", "nats per token", ("kl",)),
        ),
        *_group(
            "Completions",
            Chart(
                "Completion length", "tokens", ("completions/mean_length", "eval/completions/mean_length"), always=True
            ),
            _share("Cut off at the limit", "completions/clipped_ratio", "eval/completions/clipped_ratio", always=True),
            Chart("Reward and length", "correlation", ("reward_length_corr",), -1, 1),
        ),
        *_group(
            "Update",
            _GRADIENT,
            Chart("Clipped by the ratio", "share", ("clip_ratio/low_mean", "clip_ratio/high_mean", "cispo_clip_ratio")),
            Chart(
                "Sampler against trainer", "nats",
                ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"),
            ),
        ),
        *_SPEED,
    ),
    "dpo": (
        *_group("Preferences", _REWARDS, _RANKED, _HELD_OUT_REWARDS),
        *_group(
            "Loss and likelihood",
            _loss("nats per pair"),
            Chart("Parts of the loss", "loss, before its weight", ("loss/*",)),
            _logps("nats per answer"),
            _ENTROPY,
        ),
        *_UPDATE,
        *_SPEED,
    ),
    "orpo": (
        *_group(
            "Preferences",
            Chart("Log-odds of chosen over rejected", "nats", ("log_odds_chosen", "eval/log_odds_chosen"), always=True),
            _RANKED,
            replace(_REWARDS, always=False),
            _HELD_OUT_REWARDS,
        ),
        *_group(
            "Loss and likelihood",
            _loss("nats"),
            Chart("Likelihood of the chosen text", "nats per token", ("nll_loss", "eval/nll_loss"), always=True),
            _logps("nats per token"),
            _ENTROPY,
        ),
        *_UPDATE,
        *_SPEED,
    ),
    "kto": (
        *_group(
            "Preferences",
            _REWARDS,
            Chart("Baseline: estimate of the KL", "nats per answer", ("kl", "eval/kl"), always=True),
            _HELD_OUT_REWARDS,
        ),
        *_group("Loss and likelihood", _loss("loss per answer"), _logps("nats per answer"), _ENTROPY),
        *_UPDATE,
        *_SPEED,
    ),
    "sft": (
        *_group(
            "Loss",
            _loss("nats per token"),
            _share("Tokens predicted right", "mean_token_accuracy", "eval/mean_token_accuracy", always=True),
            replace(_ENTROPY, always=True),
        ),
        *_UPDATE,
        *_SPEED,
    ),
}  # fmt: skip
PANELS["cpo"] = PANELS["dpo"]
PANELS["rloo"] = PANELS["grpo"]


UNITS = {
    "num_tokens": "tokens", "completions/": "tokens", "eval/completions/": "tokens", "learning_rate": "learning rate",
    "grad_norm": "norm", "clip_ratio/": "share", "frac_": "share", "rewards/": "reward", "eval/reward": "reward",
    "logps/": "nats per answer", "entropy_coef": "coefficient", "entropy": "nats per token", "kl": "nats per token",
    "sampling/rounds": "rounds", "sampling/importance": "weight", "sampling/": "nats", "cispo_clip_ratio": "share",
    "vespo/": "weight", "policy_loss": "loss", "loss": "loss", RATE: RATE,
}  # fmt: skip
"""of metrics that stand in no panel, by the beginning of their name"""


def arrange(method: str, names: Sequence[str]) -> list[Chart]:
    """The charts of a run that has the metrics `names`: those that fit the method, then all others, folded.

    Each metric is in one chart, as a curve or in its band. A method that is not known has all its charts in front.
    """
    charts, used = [], set()
    for panel in PANELS.get(method, ()):
        found = tuple(n for pattern in panel.names for n in _matches(pattern, names) if n not in used)
        band = panel.band if found and all(name in names for name in panel.band) else ()
        if found or panel.always:
            charts.append(replace(panel, names=found, band=band))
            used |= {*found, *band}
    families = defaultdict(list)
    for name in names:
        if name not in used:
            # metrics of one family and ending share a scale; others get a chart each
            head, _, tail = name.rpartition("/")
            families[f"{head.split('/')[0]} {tail}" if head.startswith("rewards") else head or name].append(name)
    main = not charts
    for found in families.values():
        title = visible(found[0] if len(found) == 1 else _common(found))
        unit = next((unit for start, unit in UNITS.items() if found[0].startswith(start)), "value")
        charts.append(Chart(title, unit, tuple(found), group="Metrics" if main else OTHER, main=main))
    return charts


def grouped(charts: Sequence[Chart]) -> dict[str, list[Chart]]:
    """Heading -> its charts, in their order."""
    groups: dict[str, list[Chart]] = {}
    for chart in charts:
        groups.setdefault(chart.group, []).append(chart)
    return groups


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    head, star, tail = pattern.partition("*")
    if not star:
        return [pattern] if pattern in names else []
    return [n for n in names if n.startswith(head) and n.endswith(tail) and len(n) > len(head) + len(tail)]


def _common(names: list[str]) -> str:
    head = names[0].split("/")[0]
    return head + " " + names[0].rpartition("/")[2] if head == "rewards" else names[0].rpartition("/")[0]
