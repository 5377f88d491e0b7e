"""Model soups: the average of several fine-tunes of one base (Wortsman et al. 2022, arXiv 2203.05482).

    uniform   theta = mean_i theta_i
    greedy    in order of their scores: a member stays if the mean with it scores more than the best so far

Members are averaged as what they added to the base, which for LoRAs is a LoRA of all their ranks (averages of A and of
B are no average of B A). The greedy form compares strictly (>), as the authors' code does; their text allows equality.
Nothing is trained; a score is whatever you measure on held-out data, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench import worker
from workbench.errors import SettingError
from workbench.merging.vectors import Member, Vector, combined, vectors
from workbench.policy import Policy


@dataclass(frozen=True)
class Soup:
    """The averaged `policy`; `kept`, the members in it by number; with scores, that of each member and of the soup."""

    policy: Policy
    kept: list[int]
    scores: list[float] | None = None
    score: float | None = None


@worker.on_worker
def uniform(policy: Policy, members: Sequence[Member]) -> Policy:
    """The mean of all members, as a new policy."""
    return _mean(policy, vectors(policy, members, 2))


@worker.on_worker
def greedy(policy: Policy, members: Sequence[Member], score: Callable[[Policy], float]) -> Soup:
    """The greedy soup. `score(policy)`: a number, higher is better, on data that is held out (and is not the test set).

    Returns the Soup; its score is never below that of the best member. Raises SettingError where a score is no number.
    """
    taus = vectors(policy, members, 2)
    scores = [_number(score(_mean(policy, [tau])), i) for i, tau in enumerate(taus)]
    order = sorted(range(len(taus)), key=lambda i: -scores[i])
    kept, best = [order[0]], scores[order[0]]
    made = _mean(policy, [taus[order[0]]])
    for i in order[1:]:
        candidate = _mean(policy, [taus[j] for j in [*kept, i]])
        found = _number(score(candidate), i)
        if found > best:
            kept, best, made = [*kept, i], found, candidate
    return Soup(made, kept, scores, best)


def _mean(policy: Policy, taus: list[Vector]) -> Policy:
    return combined(policy, taus, lambda name, i: 1 / len(taus))


def _number(value: float, member: int) -> float:
    value = float(value)
    if value != value:
        raise SettingError(f"score gave NaN for members[{member}] or a soup with it; it must give a number.")
    return value
