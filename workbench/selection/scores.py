"""Scores of rows, and the baseline that every one of them must beat: random rows, and long rows (Xia et al. 2024,
"Rethinking Data Selection at Scale", arXiv 2410.09335: on pools of a million rows random choice nearly ties clever
scores).

    random     no score: several seeds show how much chance alone varies
    length     tokens of prompt and response (or of the response alone)
    ce         L(y | x), the mean negative log-likelihood of the response
    ifd        L(y | x) / L(y): how little the prompt helps; above 1 discarded, then the highest (Li et al. 2023, arXiv
               2308.12032)
    selectit   the policy rates the row from 1 to 5 by several prompts: best digit times how sure it is, over 1 + 0.2
    std
               over the prompts (Liu et al. 2024, arXiv 2402.16705)
    k_center   no score: from some random rows on, always the row farthest from those picked
    zip        greedy: rows that keep the picked set hardest to compress
    less       how well a row's gradient agrees with that of validation rows (Xia et al. 2024, arXiv 2402.04333)

`pick(rows, k, by=...)` gives a `Selection`, which can always be compared with random rows of the same size and seed.
Higher scores are picked first. What a score asks for is in `SCORES`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import worker
from workbench.data import Rows
from workbench.errors import SettingError, did_you_mean
from workbench.likelihoods import choices, nll, nll_alone, text_of, texts_of
from workbench.policy import Policy
from workbench.selection import parts
from workbench.selection.embeddings import embed
from workbench.selection.gradients import agreement
from workbench.selection.parts import Selection

RATINGS = (
    "Rate the quality of the following answer from 1 (poor) to 5 (excellent).",
    "How helpful is the following answer, on a scale from 1 to 5?",
    "On a scale from 1 to 5, how correct is the following answer?",
    "Judge whether the answer follows the instruction, from 1 (not at all) to 5 (fully).",
    "How useful is this example for teaching, from 1 to 5?",
)
"""prompts of `selectit`, ours: the authors' are longer"""
ASKED = "{rating}\n\nInstruction: {prompt}\nAnswer: {completion}\nRating:"
STAGES = (10_000, 200, 100)
"""of `zip`: how many rows stay in the running at each of its three looks"""


@dataclass(frozen=True)
class Score:
    """A way to pick rows: `function(policy, pool, **options)` gives scores (N,), or `picks` indices themselves."""

    price: str
    function: Callable[..., np.ndarray] | None = None
    picks: Callable[..., list[int]] | None = None


def length(policy: Policy, pool: Rows, response_only: bool = False) -> np.ndarray:
    """(N,) tokens."""
    prompts, completions = texts_of(pool)
    counts = [len(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in completions]
    if not response_only:
        before = [len(policy.tokens_of(prompt, i).ids) for i, prompt in enumerate(prompts)]
        counts = [a + b for a, b in zip(before, counts, strict=True)]
    return np.array(counts, dtype=np.float64)


def ifd(policy: Policy, pool: Rows) -> np.ndarray:
    """(N,) L(y | x) / L(y), NaN above 1."""
    given, alone = nll_alone(policy, pool)
    ratio = given / alone
    return np.where(ratio > 1, np.nan, ratio)


@worker.on_worker
def selectit(policy: Policy, pool: Rows, ratings: Sequence[str] = RATINGS) -> np.ndarray:
    """(N,) from the probabilities of the digits 1 to 5 after each rating prompt."""
    prompts, completions = texts_of(pool)
    said = [text_of(policy, prompt, i) for i, prompt in enumerate(prompts)]
    made = np.zeros((len(prompts), len(ratings)))
    for j, rating in enumerate(ratings):
        asked = [ASKED.format(rating=rating, prompt=q, completion=y) for q, y in zip(said, completions, strict=True)]
        made[:, j] = [_rated(p) for p in choices(policy, asked, ("1", "2", "3", "4", "5"))]
    return made.mean(1) / (1 + 0.2 * made.std(1))


def _rated(p: np.ndarray) -> float:
    """The best digit times how far its probability is above the others, of probabilities (5,) of 1 to 5."""
    best = int(p.argmax())
    return float((best + 1) * np.mean([p[best] - p[j] for j in range(5) if j != best]))


def compress(policy: Policy | None, pool: Rows, k: int, seed: int, stages: Sequence[int] = STAGES) -> list[int]:
    """`k` rows, greedily: always one with which the picked texts compress least (bytes over zlib's at level 9).

    Three looks at each pick, as its authors do: the rows that compress least alone, of those the ones that compress
    least with what is picked, of those one after the other.
    """
    data = ["".join(map(str, row.values())).encode() for row in pool.to_list()]
    left = sorted(range(len(data)), key=lambda i: (_ratio(data[i]), i))
    picked: list[int] = []
    chosen = b""
    while len(picked) < k:
        near = left[: stages[0]]
        near = sorted(near, key=lambda i: (_ratio(chosen + data[i]), i))[: stages[1]]
        batch = b""
        for _ in range(min(stages[2], k - len(picked), len(near))):
            best = min(near, key=lambda i: (_ratio(chosen + batch + data[i]), i))
            near.remove(best)
            left.remove(best)
            picked.append(best)
            batch += data[best]
        chosen += batch
    return picked


def _ratio(data: bytes) -> float:
    return len(data) / len(zlib.compress(data, 9))


def far_apart(policy: Policy, pool: Rows, k: int, seed: int, start: int = 1000) -> list[int]:
    """`k` rows: some random ones, then always the one farthest from those picked, by the policy's own embeddings."""
    first = parts.random(len(pool), min(start, max(1, k // 2)), seed)
    return first + parts.k_center(embed(policy, pool), k - len(first), first)


SCORES = {
    "random": Score("text", picks=lambda policy, pool, k, seed: parts.random(len(pool), k, seed)),
    "length": Score("text", length),
    "ce": Score("one forward", lambda policy, pool: nll(policy, pool)),
    "ifd": Score("one forward", ifd),
    "selectit": Score("one forward", selectit),
    "k_center": Score("embeddings", picks=far_apart),
    "zip": Score("text", picks=compress),
    "less": Score("gradients", agreement),
}


def pick(policy: Policy, rows: Any, k: int, by: str = "length", seed: int = 0, **options: Any) -> Selection:
    """`k` of the rows, by one of SCORES ("random", "length", "ce", "ifd", "selectit", "k_center", "zip", "less").

    `options`: those of the score (`response_only` of length, `ratings` of selectit, `start` of k_center, `stages` of
    zip, `validation` of less). Raises SettingError for an unknown score or a k that makes no sense, DataError for rows
    without prompt and completion, and where fewer rows have a score than are wanted.
    """
    pool = parts.pool_of(rows)
    k = parts.check_count(k, len(pool))
    if by not in SCORES:
        raise SettingError(f"by={by!r} is no score.{did_you_mean(str(by), SCORES)} There are {', '.join(SCORES)}.")
    score = SCORES[by]
    if score.picks is not None:
        return Selection(pool, score.picks(policy, pool, k, seed, **options), seed=seed)
    scores = score.function(policy, pool, **options)
    notes = []
    if by == "ifd" and np.isnan(scores).any():
        notes.append(f"{int(np.isnan(scores).sum())} rows are discarded: their prompt makes them less likely.")
    return Selection(pool, parts.top_k(scores, k), scores, seed, notes)
