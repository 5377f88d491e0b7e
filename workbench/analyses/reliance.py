"""How much an answer leans on the reasoning before it: what its log-prob loses when a part of the chain is spoilt (the
perturbation analysis of Viteri et al. 2024, "Markovian Transformers for Informative Language Modeling", arXiv
2404.18988).

    drop(kind, share) = mean over rows of  log p(answer | chain) - log p(answer | spoilt chain)     in nats a token

without the question, as Markovian training scores it (`markovian`), and with it (`control`). A large drop means that
the chain carries the information. The authors compare two trained models, each in its own context; for that, call it
for either policy.

Kinds, each by a share of the chain: "delete" (of its characters, at random), "truncate_back" and "truncate_front" (cut
off at that end), "digits" and "characters" (each digit, or letter and digit, becomes a random one with that
probability).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench import keys, worker
from workbench.errors import DataError, SettingError
from workbench.policy import Policy

KINDS = ("delete", "truncate_back", "truncate_front", "digits", "characters")
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
LETTERS = string.ascii_letters + string.digits


def spoilt(chain: str, kind: str, share: float, key: int) -> str:
    """The chain with a share of it spoilt; the same for the same key, and spoilt further by a larger share."""
    count = int(len(chain) * share)
    if kind == "truncate_back":
        return chain[: len(chain) - count]
    if kind == "truncate_front":
        return chain[count:]
    draws = keys.uniforms(keys.key(key, kind), 2 * len(chain))
    chosen, what = draws[: len(chain)], draws[len(chain) :]
    if kind == "delete":
        gone = set(np.argsort(chosen, kind="stable")[:count].tolist())
        return "".join(letter for i, letter in enumerate(chain) if i not in gone)
    pool = string.digits if kind == "digits" else LETTERS
    return "".join(
        pool[int(what[i] * len(pool))] if letter in pool and chosen[i] < share else letter
        for i, letter in enumerate(chain)
    )


@worker.on_worker
def chain_reliance(
    policy: Policy,
    questions: Sequence[str],
    chains: Sequence[str],
    answers: Sequence[Any],
    kinds: Sequence[str] = KINDS,
    shares: Sequence[float] = SHARES,
    answer_header: str = "\nAnswer:",
    stand_in: str = "<Redacted>",
    seed: int = 0,
) -> pd.DataFrame:
    """For each kind and share the mean drop of the answer's log-prob (nats a token): `markovian`, `control` and their
    `difference`. Raises DataError where lists differ in length, SettingError for another kind or share."""
    questions, chains, answers = list(questions), list(chains), [f" {answer}" for answer in answers]
    if not questions or not len(questions) == len(chains) == len(answers):
        raise DataError(
            f"chain_reliance: {len(questions)} questions, {len(chains)} chains and {len(answers)} answers; give as many"
            " of each, and one at least."
        )
    for kind in kinds:
        if kind not in KINDS:
            raise SettingError(f"chain_reliance: the kind {kind!r} is not known. Kinds: {', '.join(KINDS)}.")
    for share in shares:
        if not 0 < share <= 1:
            raise SettingError(f"chain_reliance: the share {share!r} must be above 0 and at most 1.")

    starts = {"markovian": [stand_in] * len(chains), "control": questions}
    ways = [(kind, share) for kind in kinds for share in shares]
    own = [keys.key(seed, "reliance", i) for i in range(len(chains))]
    texts = [chains] + [[spoilt(c, *way, key) for c, key in zip(chains, own, strict=True)] for way in ways]
    contexts = [
        f"{before}{chain}{answer_header}"
        for name in starts
        for given in texts
        for before, chain in zip(starts[name], given, strict=True)
    ]
    scores = policy.score(contexts, answers * (len(contexts) // len(answers))).logprob
    told = np.array([values.mean() for values in scores]).reshape(len(starts), len(texts), len(chains))
    drop = (told[:, :1] - told[:, 1:]).mean(-1)  # (2, ways)
    rows = [
        {"kind": kind, "share": share, "markovian": alone, "control": asked, "difference": alone - asked}
        for (kind, share), alone, asked in zip(ways, *drop, strict=True)
    ]
    return pd.DataFrame(rows)
