"""Stateless randomness: every draw is a pure function of what it is for.

A draw is keyed by (run seed, purpose, step, row id, sample, round) instead of coming from a generator that
moves on. So a step can be replayed alone, a batch can be laid out differently, a run can be killed and
resumed, and the same draw comes out.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: int | str) -> int:
    """A 64-bit key for the given parts, the same in every process and on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(key: int) -> np.random.Generator:
    """A numpy generator that starts at `key` (Philox: counter based, well mixed from any key)."""
    return np.random.Generator(np.random.Philox(key=key))


def uniforms(key: int, n: int) -> np.ndarray:
    """`n` float64 numbers in [0, 1); a longer draw starts with the shorter one."""
    return generator(key).random(n)


def permutation(key: int, n: int) -> np.ndarray:
    """A permutation of range(n), int64."""
    return generator(key).permutation(n)


def torch_seed(key: int) -> int:
    """The key as a seed that torch.manual_seed takes (a signed 63-bit number)."""
    return key & 0x7FFF_FFFF_FFFF_FFFF
