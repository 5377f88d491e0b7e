"""CLEAR: noisy targets dropped or rewritten by the confidence of the very model that is trained (Chen and Mueller 2024,
"Automated Data Curation for Robust Language Model Fine-Tuning", arXiv 2403.12776). Confidence is BSDetector's (Chen
and Mueller 2023, arXiv 2308.16175):

    O = mean_i [a (1 - p(contradiction of y and y_i)) + (1 - a) 1[y = y_i]]      over k sampled answers y_i
    S = mean over two questions to the model itself: right 1, wrong 0, unsure 1/2
    confidence = b O + (1 - b) S                                                 a 0.8, b 0.7, k 5

Filter: rows with a confidence of at least the median stay; the model is tuned on them. Correct: the tuned model writes
y'; the base judges whether y' is better than y, in both orders (ours: the paper asks once); a row becomes y' where that
verdict is surer than `eta` (0.8), stays y where its confidence is at least `gamma` (the median), else it is dropped.
Then the base is tuned anew.

p(contradiction) is asked of `contradicts(question, a, b)`; the default says 1 for answers that differ after
normalising, which does for short answers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench import judges, worker
from workbench.errors import SettingError
from workbench.likelihoods import choices, text_of, texts_of
from workbench.policy import Policy
from workbench.selection import parts
from workbench.selection.abstention import normalised
from workbench.selection.cache import Cache
from workbench.selection.parts import Selection

CHECKS = (
    "Question: {prompt}\nProposed answer: {answer}\n"
    "Is the proposed answer (A) correct, (B) incorrect or (C) not sure?\nAnswer: (",
    "Question: {prompt}\nProposed answer: {answer}\n"
    "Are you really sure that the proposed answer is right? (A) yes (B) no (C) not sure\nAnswer: (",
)
"""the two questions; ours, after BSDetector's"""
Contradicts = Callable[[Any, str, str], float]


def confidence(
    policy: Policy,
    rows: Any,
    k: int = 5,
    a: float = 0.8,
    b: float = 0.7,
    contradicts: Contradicts | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    cache: Cache | None = None,
) -> np.ndarray:
    """(N,) how sure the policy is of each row's completion, 0 to 1."""
    pool = parts.pool_of(rows)
    prompts, answers = texts_of(pool)
    drawn = (cache or Cache(policy)).rollouts(prompts, k, seed, temperature=1.0, max_new_tokens=max_new_tokens)
    against = contradicts or (lambda question, x, y: float(normalised(x) != normalised(y)))
    observed = np.array(
        [
            np.mean(
                [
                    a * (1 - against(q, y, s)) + (1 - a) * (normalised(y) == normalised(s))
                    for s in drawn.text[i * k : (i + 1) * k]
                ]
            )
            for i, (q, y) in enumerate(zip(prompts, answers, strict=True))
        ]
    )
    return b * observed + (1 - b) * reflected(policy, prompts, answers)


@worker.on_worker
def reflected(policy: Policy, prompts: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
    """(N,) what the policy says of the answers: right 1, wrong 0, unsure 1/2, by its probabilities of A, B and C."""
    made = np.zeros((len(prompts), len(CHECKS)))
    for j, check in enumerate(CHECKS):
        asked = [
            check.format(prompt=text_of(policy, q, i), answer=y)
            for i, (q, y) in enumerate(zip(prompts, answers, strict=True))
        ]
        p = choices(policy, asked, ("A", "B", "C"))
        made[:, j] = p[:, 0] + 0.5 * p[:, 2]
    return made.mean(1)


def filtered(rows: Any, scores: Sequence[float], gamma: float | None = None) -> Selection:
    """The rows whose confidence is at least `gamma`; None: the median."""
    pool = parts.pool_of(rows)
    values = _scores(scores, len(pool))
    return Selection(pool, parts.threshold(values, float(np.median(values)) if gamma is None else gamma), values)


def corrected(
    base: Policy,
    tuned: Policy,
    rows: Any,
    scores: Sequence[float],
    gamma: float | None = None,
    eta: float = 0.8,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The rows to tune the base on anew, each with `source`: "kept" or "corrected". `scores`: the rows' confidence.

    Raises SettingError where there is not one score a row, DataError for rows without prompt and completion.
    """
    pool = parts.pool_of(rows)
    values = _scores(scores, len(pool))
    least = float(np.median(values)) if gamma is None else gamma
    prompts, answers = texts_of(pool)
    written = Cache(tuned).rollouts(prompts, 1, seed, temperature=0.0, max_new_tokens=max_new_tokens).text
    sure = preferred(base, prompts, written, answers)
    made = []
    for row, own, p, score in zip(pool.to_list(), written, sure, values, strict=True):
        if p > eta and own.strip():
            made.append({**row, "completion": own, "source": "corrected"})
        elif score >= least:
            made.append({**row, "source": "kept"})
    return made


def preferred(policy: Policy, prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """(N,) the probability that the policy calls `first` the better answer, the mean over both orders."""
    judged = judges.model(policy, least_mass=0.0).prefer(prompts, first, second)
    return np.array([0.5 if p is None else p for p in judged])  # no probability at all: as good as the other


def _scores(scores: Sequence[float], rows: int) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (rows,):
        raise SettingError(
            f"There are {rows} rows and {values.size} scores; give one a row (confidence(policy, rows))."
        )
    return values
