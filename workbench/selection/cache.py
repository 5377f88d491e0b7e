"""A rollout cache: completions of a policy that were sampled once are there for every filter that looks at them.

A completion is known by its prompt, by which weights sampled it, by the settings, and by the seed and its number among
those of the prompt: nothing else decides its tokens. So with more samples per prompt only the new ones are drawn, and
after a training step all of them. (Within a run the store is this cache: see `workbench.methods.bootstrap`.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench import keys, worker
from workbench.policy import Policy
from workbench.sampling.rollouts import Rollouts

FIELDS = ("text", "ids", "logprob", "finish_reason")


class Cache:
    """Completions of one policy; with a `folder` they are there in the next process, too (JSON, a file a prompt)."""

    def __init__(self, policy: Policy, folder: str | Path | None = None):
        self.policy = policy
        self.folder = None if folder is None else Path(folder)
        self.known: dict[str, dict[str, Any]] = {}
        self.drawn = 0
        """completions that had to be sampled"""

    @worker.on_worker
    def rollouts(self, prompts: Sequence[Any], n: int, seed: int = 0, **sampling: Any) -> Rollouts:
        """`n` completions of each prompt, as `policy.sample` gives them for the settings in `sampling`; the draws of a
        prompt depend on its text and the seed, not on its place in the list."""
        version = version_of(self.policy)
        named = [self._name(prompt, version, seed, sampling) for prompt in prompts]
        for prompt, name in dict(zip(map(repr, prompts), zip(prompts, named, strict=True), strict=True)).values():
            self._fill(prompt, name, n, seed, sampling)
        made = [self._load(name)[i] for name in named for i in range(n)]
        found = Rollouts.of([prompt for prompt in prompts for _ in range(n)], [one["ids"] for one in made])
        found.prompt = [prompt for prompt in prompts for _ in range(n)]
        found.text = [one["text"] for one in made]
        found.finish_reason = [one["finish_reason"] for one in made]
        found.logprob = [torch.tensor(one["logprob"]).numpy() for one in made]
        found.group = found.row = [p for p in range(len(prompts)) for _ in range(n)]
        found.sample = [i for _ in prompts for i in range(n)]
        return found

    def _fill(self, prompt: Any, name: str, n: int, seed: int, sampling: dict[str, Any]) -> None:
        have = self._load(name)
        if len(have) >= n:
            return
        tokens = self.policy.tokens_of(prompt, 0)
        wanted = range(len(have), n)
        drawn = self.policy.sample_prompts(
            [tokens], len(wanted), keys=[keys.key(seed, "cache", tokens.text, i) for i in wanted], **sampling
        )
        self.drawn += len(wanted)
        have += [
            {"text": drawn.text[i], "ids": drawn.ids[i], "logprob": drawn.logprob[i].tolist(),
             "finish_reason": drawn.finish_reason[i]}
            for i in range(len(wanted))
        ]  # fmt: skip
        self.known[name] = have
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self.folder / f"{name}.new"
            new.write_text(json.dumps(have), encoding="utf-8")
            new.replace(self.folder / f"{name}.json")

    def _load(self, name: str) -> list[dict[str, Any]]:
        if name not in self.known and self.folder is not None and (path := self.folder / f"{name}.json").exists():
            self.known[name] = json.loads(path.read_text(encoding="utf-8"))
        return self.known.get(name, [])

    def _name(self, prompt: Any, version: str, seed: int, sampling: dict[str, Any]) -> str:
        said = json.dumps([prompt, version, seed, sorted(sampling.items())], default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:24]


def version_of(policy: Policy) -> str:
    """A digest of the weights that decide what is sampled: the base's name and what trains."""
    made = hashlib.sha256(json.dumps(policy.describe(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(policy.params().items()):
        made.update(name.encode())
        made.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]
