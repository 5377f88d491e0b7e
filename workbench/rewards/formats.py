"""Rewards for the form of a completion: reasoning and answer between tags."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import SettingError
from workbench.rewards.base import Named, store
from workbench.rewards.signature import short
from workbench.rewards.text import completion_text

TAG = re.compile(r"[A-Za-z_][\w.:-]*")


def think_format(completions: list, **kwargs: Any) -> list[float]:
    """1.0 where a completion starts with `<think>`, has no other `<think>`, and has a `</think>` after it; else 0.0.

    What follows the reasoning does not matter; a second `</think>` does not either. Never None. The decisions are
    those of TRL's `think_format_reward`; the format is DeepSeek-R1's (Guo et al. 2025, arXiv 2501.12948).
    """
    return [float(_thinks(completion_text(completion))) for completion in completions]


def _thinks(text: str) -> bool:
    return text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text


def _tag_names(reward: str, tags: Any) -> list[str]:
    """The tags as a list, which JSON can carry; SettingError unless they are different names."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise SettingError(f"{reward}: tags must be a list of names such as ['think', 'answer'], not {short(tags)}.")
    made = list(tags)
    for tag in made:
        if not isinstance(tag, str) or not TAG.fullmatch(tag):
            raise SettingError(f"{reward}: the tag {short(tag)} must be a name without brackets, such as 'think'.")
    if not made or len(set(made)) < len(made):
        raise SettingError(f"{reward}: tags must be one name or more, each once, not {short(made)}.")
    return made


@dataclass(frozen=True)
class tag_format(Named):
    """A reward: 1.0 where a completion is built of the tags, `<think>...</think> <answer>...</answer>`, else 0.0.

    Every opening and closing tag must be there exactly once, in the order given, one block after the other.
    `strict`: nothing but white space stands outside the blocks; otherwise text may. `filled`: each block holds more
    than white space, which keeps a policy from earning the reward by empty tags. `opened`: the prompt ends in the
    first opening tag (some chat templates write it), so completions lack it. Never None.

    The format reward of DeepSeek-R1 (Guo et al. 2025, arXiv 2501.12948). SettingError for tags that are not
    different names. Can be rebuilt in a new process.
    """

    tags: list[str] = field(default_factory=lambda: ["think", "answer"])
    strict: bool = True
    filled: bool = False
    opened: bool = False

    def __post_init__(self) -> None:
        store(self, tags=_tag_names("tag_format", self.tags))

    def __call__(self, completions: list, **kwargs: Any) -> list[float]:
        before = f"<{self.tags[0]}>" if self.opened else ""
        return [float(self._built(before + completion_text(completion))) for completion in completions]

    def _built(self, text: str) -> bool:
        outside, rest = [], text
        for tag in self.tags:
            if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
                return False
            before, opening, rest = rest.partition(f"<{tag}>")
            inside, closing, rest = rest.partition(f"</{tag}>")
            if not opening or not closing or (self.filled and not inside.strip()):
                return False
            outside.append(before)
        return not self.strict or not "".join([*outside, rest]).strip()


@dataclass(frozen=True)
class tag_count(Named):
    """A reward: the share, 0 to 1, of the opening and closing tags that a completion has exactly once.

    (number of t in {<a>, </a>, <b>, </b>, ...} that occur once) / (2 x number of tags). Order and nesting do not
    matter: it is the partial credit on the way to `tag_format`. Never None. Guo et al. 2025 (arXiv 2501.12948)
    reward the whole format; counting its tags is what replications of it do. SettingError for tags that are not
    different names. Can be rebuilt in a new process.
    """

    tags: list[str] = field(default_factory=lambda: ["think", "answer"])

    def __post_init__(self) -> None:
        store(self, tags=_tag_names("tag_count", self.tags))

    def __call__(self, completions: list, **kwargs: Any) -> list[float]:
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        texts = [completion_text(completion) for completion in completions]
        return [sum(text.count(mark) == 1 for mark in marks) / len(marks) for text in texts]
