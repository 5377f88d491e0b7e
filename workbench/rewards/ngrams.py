"""Texts as vectors, without a model: hashed counts of character n-grams. It knows spelling and order of letters, and
nothing of meaning; for that, put an encoder of your own beside it in ENCODERS.

`ENCODERS`: name -> function(list of texts) -> (N, D) numbers. Like reward functions, encoders are code: a process that
resumes a run has to have those that the run used.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from workbench.errors import SettingError, did_you_mean

SIZE = 512
LENGTHS = (2, 3, 4)
Encoder = Callable[[list[str]], np.ndarray]


def ngram_vectors(texts: Sequence[str]) -> np.ndarray:
    """(N, 512) unit vectors: the signed, hashed counts of each text's character 2-, 3- and 4-grams, under a root so
    that repetition counts less. The empty text is 0. The same on every machine."""
    made = np.zeros((len(texts), SIZE))
    for i, text in enumerate(texts):
        letters = f" {' '.join(text.lower().split())} ".encode("utf-8", "replace")
        for n in LENGTHS:
            for start in range(len(letters) - n + 1):
                code = zlib.crc32(letters[start : start + n])
                made[i, code % SIZE] += 1.0 if code & 0x10000 else -1.0
        if not text.strip():
            made[i] = 0.0
    return unit(np.sign(made) * np.sqrt(np.abs(made)))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


ENCODERS: dict[str, Encoder] = {"ngrams": ngram_vectors}


def encoder(name: str) -> Encoder:
    """The encoder `name`. Raises SettingError."""
    if name not in ENCODERS:
        raise SettingError(
            f"encoder={name!r} is not there.{did_you_mean(name, ENCODERS)} Known: {', '.join(ENCODERS)}. One of yours:"
            " workbench.rewards.ngrams.ENCODERS['mine'] = function of a list of texts, which gives a vector for each."
        )
    return ENCODERS[name]
