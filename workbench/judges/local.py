"""A local model as the judge: its probabilities of two options, where its verdict would stand.

For two answers it is asked in both orders, so that a liking for the first place cancels. With P1, P2 the probabilities
in the two orders, the first answer has a = (P1(A) + P2(B)) / 2, the second b = (P1(B) + P2(A)) / 2, and the probability
that the first is better is a / (a + b): the decision is that of Lee et al. 2024 (arXiv 2402.11253), whose code compares
a and b. Several principles vote; where the vote is split, the mean of their probabilities decides.

A judge that gives the two options together less than `least_mass` would have said something else: that is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import adapters, tokenise, trunk, worker
from workbench.errors import SettingError
from workbench.judges.base import Judge, Verdicts
from workbench.judges.prompts import JudgePrompt

WEIGHTS = ("now", "off", "start")
Reader = Callable[[list[list[int]], list[int]], list[Sequence[float]]]
"""(sequences, starts) -> of each sequence the log-probs of its tokens from its start on"""


@dataclass(frozen=True)
class Verdict:
    """Of two answers, which is better.

    value      the probability that the first is; None: no verdict
    in_front   the same where the first stood in front (P1(A) / (P1(A) + P1(B))), mean over principles
    behind     the same where it stood behind; the two differ by the judge's liking for a place
    mass       the probability of the two options together, the least over orders and principles
    """

    value: float | None
    in_front: float = float("nan")
    behind: float = float("nan")
    mass: float = 0.0


class ModelJudge(Judge):
    """A local model that is asked by `prompt`. `read` gives log-probs (see Reader); `model` makes one from a policy.

    `limit`: tokens that it can see; questions that do not fit have no verdict.
    """

    def __init__(
        self,
        tokenizer: Any,
        read: Reader,
        prompt: JudgePrompt | None = None,
        least_mass: float = 0.01,
        limit: int | None = None,
        name: str = "model_judge",
    ):
        if not 0 <= least_mass < 1:
            raise SettingError(f"{name}: least_mass={least_mass!r} must be from 0 to below 1.")
        self.tokenizer, self.read, self.prompt = tokenizer, read, prompt or JudgePrompt()
        self.least_mass, self.limit, self.name = least_mass, limit, name

    def compare(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[Verdict]:
        """What `prefer` gives, and what it is made of. Nothing is told here of missing verdicts."""
        principles = self.prompt.principles
        questions = [
            self.prompt.comparing(prompt, *order, principle)
            for prompt, one, other in zip(prompts, first, second, strict=True)
            for principle in principles
            for order in ((one, other), (other, one))
        ]
        found = self._read(questions, self.prompt.options)  # (N * K * 2, 2)
        return [self._verdict(table) for table in found.reshape(len(prompts), len(principles), 2, 2)]

    def _verdict(self, table: np.ndarray) -> Verdict:
        """table (K, 2, 2): principle, order, option."""
        mass = float(table.sum(-1).min())
        if np.isnan(mass) or mass <= 0 or mass < self.least_mass:
            return Verdict(None, mass=0.0 if np.isnan(mass) else mass)
        one = (table[:, 0, 0] + table[:, 1, 1]) / 2  # (K,)
        other = (table[:, 0, 1] + table[:, 1, 0]) / 2
        each = one / (one + other)
        votes = float(((each > 0.5) + 0.5 * (each == 0.5)).mean())
        value = votes if len(each) > 1 and votes != 0.5 else float(each.mean())
        front, behind = table[:, 0, 0] / table[:, 0].sum(-1), table[:, 1, 1] / table[:, 1].sum(-1)
        return Verdict(value, float(front.mean()), float(behind.mean()), mass)

    def _prefer(self, prompts: list, first: list, second: list, columns: dict[str, Any]) -> Verdicts:
        return [verdict.value for verdict in self.compare(prompts, first, second)]

    def _score(self, prompts: list, completions: list, columns: dict[str, Any]) -> Verdicts:
        questions = [self.prompt.grading(*pair) for pair in zip(prompts, completions, strict=True)]
        found = self._read(questions, self.prompt.yes_no)  # (N, 2)
        mass = found.sum(-1)
        return [
            float(yes / total) if total > 0 and total >= self.least_mass else None
            for yes, total in zip(found[:, 0], mass, strict=True)
        ]

    def _read(self, questions: list[str], options: tuple[str, ...]) -> np.ndarray:
        """(N, 2) the probabilities of the options after each question; NaN where it does not fit."""
        ends = self.option_ids(options)
        asked = [self._ids(question) for question in questions]
        longest = max(len(end) for end in ends)
        fits = [i for i, ids in enumerate(asked) if self.limit is None or len(ids) + longest <= self.limit]
        made = np.full((len(questions), 2), np.nan)
        if fits:
            sequences = [asked[i] + end for i in fits for end in ends]
            logprobs = self.read(sequences, [len(asked[i]) for i in fits for _ in ends])
            made[fits] = np.exp([float(np.sum(row, dtype=np.float64)) for row in logprobs]).reshape(-1, 2)
        return made

    def _ids(self, question: str) -> list[int]:
        prompt = self.prompt
        if not prompt.chat:
            return tokenise.prompt(f"{question}\n{prompt.lead}", self.tokenizer).ids
        text = tokenise.prompt(prompt.turns(question), self.tokenizer).text + prompt.lead
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def option_ids(self, options: tuple[str, ...]) -> list[list[int]]:
        """The token ids of the two options. Raises SettingError where this tokenizer does not tell them apart."""
        ends = [list(self.tokenizer(option, add_special_tokens=False)["input_ids"]) for option in options]
        shorter, longer = sorted(ends, key=len)
        if not shorter or longer[: len(shorter)] == shorter:
            raise SettingError(
                f"{self.name}: this tokenizer does not tell the options {options[0]!r} and {options[1]!r} apart: one"
                " begins as the other. Give other options."
            )
        return ends


def model(
    policy: Any,
    weights: str = "now",
    prompt: JudgePrompt | None = None,
    least_mass: float = 0.01,
    name: str = "model_judge",
) -> ModelJudge:
    """A policy as the judge: the one that is trained, or another one.

    `weights`: as they are when it is asked ("now"), without the adapter ("off"), or as they were loaded or attached
    ("start"). A policy that is trained against its own verdict of "now" can please itself by liking what it writes:
    take "off", "start" or another policy for a reward. A completion is untrusted text, and may talk a judge round.
    """
    if weights not in WEIGHTS:
        raise SettingError(f"model: weights={weights!r} must be one of {', '.join(map(repr, WEIGHTS))}.")
    if weights == "off" and not policy.has_adapter:
        raise SettingError("model: weights='off' switches the adapter off, and this policy has none.")

    def read(sequences: list[list[int]], starts: list[int]) -> list[np.ndarray]:
        return worker.call(_logprobs, policy, weights, sequences, starts)

    return ModelJudge(policy.tokenizer, read, prompt, least_mass, context_of(policy), name)


def context_of(policy: Any) -> int | None:
    """The tokens that the policy's model can see; None: there is no limit."""
    config = trunk.base_of(policy.model).config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)


def _logprobs(policy: Any, weights: str, sequences: list[list[int]], starts: list[int]) -> list[np.ndarray]:
    before = [ids[:start] for ids, start in zip(sequences, starts, strict=True)]
    after = [ids[start:] for ids, start in zip(sequences, starts, strict=True)]
    if weights == "off":
        with adapters.without(policy.model):
            return policy.score(before, after).logprob
    if weights == "start" and policy._start:
        with policy.holding(policy._start, "start"):
            return policy.score(before, after).logprob
    return policy.score(before, after).logprob
