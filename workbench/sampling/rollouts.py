"""Rollouts: a columnar batch of completions, the one record that everything downstream reads.

Text, ids and per-token numbers of a completion stand in parallel lists of length N. A group is the set of
completions drawn for one prompt. Token arrays cover the completion only, stop token included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import DataError
from workbench.text import clean


@dataclass
class Rollouts:
    """N completions and what is known about each.

    `reward`, `advantage`: float64 (N,), or None while unknown; a reward of NaN means that no reward function
    applied. `rewards`: one float64 (N,) by reward name, NaN where that function returned None.
    `logprob`, `entropy`: per completion a float32 (n_tokens,) array in nats, as the sampler saw them, at the
    sampling temperature. `finish_reason`: "stop" (an end token came), "length" (the limit came first) or
    "given". `columns`: the row's further columns (say, `answer`), repeated for each completion.
    """

    prompt: list[Any]
    """as the row has it: a string, or a list of chat messages"""
    text: list[str]
    """the completion as text, without special tokens"""
    prompt_text: list[str] = field(default_factory=list)
    """the prompt as the model reads it (chat template applied)"""
    prompt_ids: list[list[int]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    """completion ids, the stop token included; empty lists where only text was given"""
    group: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    """index of the prompt's row in the task (or the position of the prompt in the call)"""
    sample: list[int] = field(default_factory=list)
    """0 .. n-1 within the group"""
    finish_reason: list[str] = field(default_factory=list)
    logprob: list[np.ndarray] = field(default_factory=list)
    entropy: list[np.ndarray] = field(default_factory=list)
    old_logprob: list[np.ndarray] | None = None
    """given log-probs of the policy that made these completions; None: the sampler's own"""
    rewards: dict[str, np.ndarray] = field(default_factory=dict)
    reward: np.ndarray | None = None
    advantage: np.ndarray | None = None
    columns: dict[str, list] = field(default_factory=dict)
    temperature: float = 1.0
    pieces: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """by token id its text and whether it is special (`workbench.pieces`), where a policy sampled these"""

    @classmethod
    def of(
        cls,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rewards: Sequence[float | None] | dict[str, Sequence[float | None]] | None = None,
        old_logprobs: Sequence[Sequence[float]] | None = None,
        columns: dict[str, Sequence] | None = None,
    ) -> Rollouts:
        """Rollouts from given prompts and completions, to score or to test.

        A prompt is a string, a list of chat messages or a list of token ids; a completion is a string or a
        list of token ids. Text is tokenised as it stands: no end token is added. Equal prompts form a group.
        `old_logprobs`: per completion one number per token. Raises DataError on lengths that differ.
        """
        prompts, completions = [_listed(p) for p in prompts], [_listed(c) for c in completions]
        n = len(prompts)
        if len(completions) != n:
            raise DataError(
                f"Rollouts.of: {n} prompts but {len(completions)} completions; give one completion a prompt."
            )
        groups: dict[str, int] = {}
        group, sample, seen = [], [], {}
        for prompt in prompts:
            g = groups.setdefault(repr(prompt), len(groups))
            group.append(g)
            sample.append(seen.get(g, 0))
            seen[g] = sample[-1] + 1
        prompt_is_ids = [is_ids(p) for p in prompts]
        done_is_ids = [is_ids(c) for c in completions]
        made = cls(
            prompt=["" if flag else p for p, flag in zip(prompts, prompt_is_ids, strict=True)],
            text=["" if flag else c for c, flag in zip(completions, done_is_ids, strict=True)],
            prompt_text=[
                "" if flag or not isinstance(p, str) else p for p, flag in zip(prompts, prompt_is_ids, strict=True)
            ],
            prompt_ids=[list(map(int, p)) if flag else [] for p, flag in zip(prompts, prompt_is_ids, strict=True)],
            ids=[list(map(int, c)) if flag else [] for c, flag in zip(completions, done_is_ids, strict=True)],
            group=group,
            row=list(group),
            sample=sample,
            finish_reason=["given"] * n,
            columns={name: list(values) for name, values in (columns or {}).items()},
        )
        for name, values in made.columns.items():
            made._check_length(f"column {name!r}", values)
        if rewards is not None:
            parts = rewards if isinstance(rewards, dict) else {"reward": rewards}
            for name, values in parts.items():
                made._check_length(f"rewards {name!r}", values)
                made.rewards[name] = np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)
            stacked = np.stack(list(made.rewards.values()))
            made.reward = np.where(np.isnan(stacked).all(0), np.nan, np.nansum(stacked, 0))
        if old_logprobs is not None:
            made._check_length("old_logprobs", old_logprobs)
            made.old_logprob = [np.asarray(values, dtype=np.float64) for values in old_logprobs]
        return made

    def _check_length(self, what: str, values: Sequence) -> None:
        if len(values) != len(self):
            raise DataError(f"Rollouts: {what} has {len(values)} entries for {len(self)} completions.")

    def __len__(self) -> int:
        return len(self.text)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.record(i) for i in range(len(self)))

    def record(self, i: int) -> dict[str, Any]:
        """One completion as a plain dict: what a table shows and what the store keeps."""
        return {
            "group_id": self.group[i],
            "row": self.row[i],
            "sample": self.sample[i],
            "prompt": self.prompt_text[i] if self.prompt_text else self.prompt[i],
            "completion": clean(self.text[i]),
            "reward": None if self.reward is None else float(self.reward[i]),
            "advantage": None if self.advantage is None else float(self.advantage[i]),
            "finish_reason": self.finish_reason[i],
            "n_tokens": len(self.ids[i]),
            **{f"rewards/{name}": float(values[i]) for name, values in self.rewards.items()},
        }

    def to_pandas(self):
        """One row a completion; token arrays in the object columns `prompt_ids`, `ids`, `logprob`, `entropy`."""
        import pandas as pd

        frame = pd.DataFrame([self.record(i) for i in range(len(self))])
        for name in ("prompt_ids", "ids", "logprob", "entropy"):
            values = getattr(self, name)
            if values:
                frame[name] = values
        for name, values in self.columns.items():
            if name not in frame:
                frame[name] = values
        return frame

    def take(self, indices: Sequence[int]) -> Rollouts:
        """The completions at `indices`, in that order."""

        def pick(values):
            return [values[i] for i in indices] if values else []

        index = np.asarray(indices, dtype=np.int64)
        return Rollouts(
            **{name: pick(getattr(self, name)) for name in _LISTS},
            old_logprob=None if self.old_logprob is None else pick(self.old_logprob),
            rewards={name: values[index] for name, values in self.rewards.items()},
            reward=None if self.reward is None else self.reward[index],
            advantage=None if self.advantage is None else self.advantage[index],
            columns={name: pick(values) for name, values in self.columns.items()},
            temperature=self.temperature,
            pieces=self.pieces,
        )

    def show(self):
        """The browser of completions in a notebook (see `run.browse`); plain text in a terminal."""
        from workbench.views.rollouts import RolloutTable

        return RolloutTable(self.to_pandas(), prompts=self.prompt, pieces=self.pieces).show()

    def __repr__(self) -> str:
        groups = len(set(self.group))
        reward = "" if self.reward is None else f", mean reward {np.nanmean(self.reward):.3f}"
        return f"<Rollouts: {len(self)} completions of {groups} prompts{reward}>"


_LISTS = (
    "prompt",
    "text",
    "prompt_text",
    "prompt_ids",
    "ids",
    "group",
    "row",
    "sample",
    "finish_reason",
    "logprob",
    "entropy",
)


def is_ids(value: Any) -> bool:
    """Whether `value` is a list (array, tensor) of token ids, rather than text or messages; an empty one is."""
    return not isinstance(value, str) and all(isinstance(v, (int, np.integer)) for v in _listed(value))


def _listed(value: Any) -> Any:
    """Arrays and tensors as lists."""
    return value.tolist() if hasattr(value, "tolist") else value
