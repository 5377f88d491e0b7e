"""The best of n answers, by knockout: n - 1 games of two, instead of a score for each.

Tournament rejection of Lee et al. 2024 (arXiv 2402.11253). The answers of a prompt are paired by the draw, the winners
go on, an odd one out has no game in that round; games of all prompts are judged together. A game without a verdict is
played by nobody: both answers go on, and meet others. Where a whole round of a prompt has no verdict, the prompt has no
winner (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench import keys
from workbench.errors import DataError
from workbench.judges.base import Judge


@dataclass(frozen=True)
class Game:
    """`first` and `second` are places among the prompt's answers; `value` is the probability that the first is better;
    None: it was not judged."""

    prompt: int
    round: int
    first: int
    second: int
    value: float | None


@dataclass(frozen=True)
class Tournament:
    """`winners`: by prompt the place of the best answer, None where no verdict was to be had."""

    winners: list[int | None]
    games: list[Game]

    @property
    def unjudged(self) -> int:
        """Games without a verdict."""
        return sum(game.value is None for game in self.games)


def tournament(
    judge: Judge, prompts: Sequence[Any], answers: Sequence[Sequence[Any]], seed: int = 0, **columns: Sequence
) -> Tournament:
    """Who wins among the answers of each prompt. `columns`: a value for each prompt, for judges that read them.

    The draw follows from `seed`, the prompt's place and the round. Of two answers that are as good the first in the
    draw goes on. Raises DataError for a prompt without answers.
    """
    if len(prompts) != len(answers):
        raise DataError(f"tournament: {len(prompts)} prompts but {len(answers)} lists of answers.")
    for i, given in enumerate(answers):
        if not given or isinstance(given, str):
            raise DataError(f"tournament: prompt {i} needs a list of at least one answer.")
    left: list[list[int]] = [list(range(len(given))) for given in answers]
    ended, games, number = [len(given) == 1 for given in answers], [], 0
    while not all(ended):
        drawn = [game for i, places in enumerate(left) if not ended[i] for game in _draw(places, seed, i, number)]
        judged = judge.prefer(
            [prompts[i] for i, _, _ in drawn],
            [answers[i][one] for i, one, _ in drawn],
            [answers[i][other] for i, _, other in drawn],
            **{name: [values[i] for i, _, _ in drawn] for name, values in columns.items()},
        )
        played = [Game(i, number, *pair, value) for (i, *pair), value in zip(drawn, judged, strict=True)]
        games += played
        for i in range(len(left)):
            mine = [game for game in played if game.prompt == i and game.value is not None]
            left[i] = [place for place in left[i] if place not in {_loser(game) for game in mine}]
            ended[i] = ended[i] or not mine or len(left[i]) == 1
        number += 1
    return Tournament([places[0] if len(places) == 1 else None for places in left], games)


def _draw(places: list[int], seed: int, prompt: int, number: int) -> list[tuple[int, int, int]]:
    order = [places[i] for i in keys.permutation(keys.key(seed, "tournament", prompt, number), len(places))]
    return [(prompt, one, other) for one, other in zip(order[0::2], order[1::2], strict=False)]


def _loser(game: Game) -> int:
    return game.second if game.value >= 0.5 else game.first


def best_of(judge: Judge, rollouts: Any, seed: int = 0) -> list[int | None]:
    """For each group of Rollouts the place of its best completion, by tournament:
    `rollouts.take([i for i in best_of(judge, rollouts) if i is not None])`."""
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(rollouts.group):
        groups.setdefault(group, []).append(place)
    members = list(groups.values())
    columns = {name: [values[places[0]] for places in members] for name, values in rollouts.columns.items()}
    prompts = [rollouts.prompt[places[0]] for places in members]
    found = tournament(judge, prompts, [[rollouts.text[i] for i in places] for places in members], seed, **columns)
    return [None if won is None else places[won] for won, places in zip(found.winners, members, strict=True)]
