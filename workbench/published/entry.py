"""What the catalogue knows of a method: one record, from which help, docs, tests and the status come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = (
    "supervised", "preference", "reinforcement", "self-training", "adapter", "merge", "decoding", "selector",
    "analysis", "transform", "reward", "task",
)  # fmt: skip


@dataclass(frozen=True)
class Paper:
    """Where a method is from."""

    authors: str
    """the first author, and "et al." where there are more"""
    year: int | None
    title: str
    link: str | None = None
    """an address that was seen to exist or an arXiv number that is known; None: not known"""


@dataclass(frozen=True)
class Entry:
    """A method.

    id       its number in the literature list (S058), or None
    name     what `wb.method` calls it: lower case, words joined by "_"
    paper    where it is from
    kind     one of KINDS
    call     a method of `workbench.methods` ("masked_thought"): a training method, called with a policy and data; or
             "module:function" of anything else
    summary  one sentence: what it does
    needs    what it asks for beside a policy: "a verifier", "demonstrations", ...; empty: nothing
    sets     settings that make the method of `call` this one, where it is a preset
    neutral  the settings at which it is its base method, `base`: "sft", "dpo" or "grpo"; None: it has none
    example  Python that runs it on small things: `wb`, `policy` (the shipped model with an adapter), `rows` (prompt and
             completion), `pairs` (prompt, chosen, rejected), `task` (sums) and `out` (a folder) are there; the last
             line is an expression, its result
    card     the card of a preset, whose module is that of its loop; else the module's docstring is the card
    differs  what differs from the paper, in a sentence; empty: nothing that we know of
    """

    id: str | None
    name: str
    paper: Paper
    kind: str
    call: str
    summary: str
    example: str
    needs: str = ""
    base: str | None = None
    neutral: Mapping[str, Any] | None = None
    sets: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    differs: str = ""

    @property
    def trains(self) -> bool:
        """Whether it takes a policy and data and returns a Run."""
        return ":" not in self.call
