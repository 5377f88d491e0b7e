"""The probe set: a fixed table of prompt, response and tag, whose log-probs are looked at again and again.

Nothing is generated: the model reads each response and says how likely it finds it, so a look costs one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import keys, scoring, worker
from workbench.analyses.paired import Side, batches, greedy, laid, sequences_of
from workbench.data import rows as read_rows
from workbench.errors import DataError

NUMBERS = ("logprob", "argmax", "outside", "gap", "distance", "entropy")
"""what is measured of a response; see `measured`"""


@dataclass(frozen=True)
class Probe:
    """A response to a prompt. `tag` says what it is to the training, `row` which question it is about."""

    prompt: Any
    response: Any
    """text or ids"""
    tag: str
    row: int


def probes(table: Any) -> list[Probe]:
    """Probes from rows with `prompt`, `response` and `tag`, and, if there is one, `row`. Raises DataError."""
    if isinstance(table, Sequence) and table and all(isinstance(one, Probe) for one in table):
        return list(table)
    found = read_rows(table)
    found.require("prompt", "response", "tag", what="A probe set")
    return [Probe(r["prompt"], r["response"], str(r["tag"]), int(r.get("row", i))) for i, r in enumerate(found)]


def of_pairs(
    pairs: Any, one: Side | None = None, *, most: int = 32, seed: int = 0, max_new_tokens: int = 64
) -> list[Probe]:
    """The probe set of preference rows (or of rows with a completion), of their first `most`:

    chosen      the answer that training raises          rejected   the one that it lowers, where there is one
    other       the chosen answer of another question    permuted   the chosen answer's words in another order
    random      words of all answers, drawn at random    initial    what `one` answers now, where it is given
    """
    given = read_rows(pairs)
    answer = "chosen" if "chosen" in given.columns else "completion"
    given.require("prompt", answer, what="A probe set")
    rows = [row for row in given][:most]
    if not all(isinstance(row[answer], str) for row in rows):
        raise DataError("Probes are made of plain answers; for messages give a table with prompt, response and tag.")
    words = [word for row in rows for word in row[answer].split()]
    made = []
    for i, row in enumerate(rows):
        own = row[answer].split()
        shuffled = [own[j] for j in keys.permutation(keys.key(seed, "permuted", i), len(own))]
        drawn = [words[int(u * len(words))] for u in keys.uniforms(keys.key(seed, "random", i), len(own))]
        made.append(Probe(row["prompt"], row[answer], "chosen", i))
        if "rejected" in row:
            made.append(Probe(row["prompt"], row["rejected"], "rejected", i))
        if len(rows) > 1:
            made.append(Probe(row["prompt"], rows[(i + 1) % len(rows)][answer], "other", i))
        if shuffled != own:
            made.append(Probe(row["prompt"], " " + " ".join(shuffled), "permuted", i))
        if own:
            made.append(Probe(row["prompt"], " " + " ".join(drawn), "random", i))
    if one is not None:
        prompts = [row["prompt"] for row in rows]
        said = worker.call(greedy, one, prompts, max_new_tokens).ids
        made += [Probe(prompts[i], ids, "initial", i) for i, ids in enumerate(said) if ids]
    return made


def read(one: Side, table: Sequence[Probe]) -> tuple[list[list[int]], list[int]]:
    """The probes as ids, and where each response begins. Raises DataError for a response without a token."""
    found = sequences_of(one.policy, [probe.prompt for probe in table], [probe.response for probe in table])
    for i, (ids, start) in enumerate(zip(*found, strict=True)):
        if len(ids) == start:
            raise DataError(f"Probe {i} ({table[i].tag}) has an empty response; there is nothing to look at.")
    return found


def measured(one: Side, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[str, np.ndarray]:
    """Of each response of T tokens, on the worker, (N,) each:

    logprob   the sum over its tokens of log p(token), nats
    argmax    the sum of log p of the likeliest token at the same positions
    outside   the sum of log(1 - p of the likeliest token): the mass that is left to all others
    gap       the mean of 1 - p(token): what is still to be learnt
    distance  the mean of |p - onehot(token)|, the norm of the gradient by the logits
    entropy   the mean entropy; and `tokens`, T
    """
    sums = {name: np.zeros(len(sequences)) for name in NUMBERS}
    tokens = np.array([len(s) - start for s, start in zip(sequences, starts, strict=True)])
    for batch in batches([len(s) for s in sequences]):
        worker.check()
        with one.held() as policy:
            layout, row = laid(policy, sequences, starts, batch)
            ahead = scoring.predictions(policy.model, layout)
            for part in ahead.parts(policy.vocab_size):
                logp = scoring.softened(ahead.logits(part), 1.0)
                for name, values in _numbers(logp, layout.target[part]).items():
                    np.add.at(sums[name], row[part].cpu().numpy(), values.double().cpu().numpy())
    means = {name: sums[name] / tokens for name in ("gap", "distance", "entropy")}
    return sums | means | {"tokens": tokens}


def _numbers(logp: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of each token, (n,), from log-probs (n, V)."""
    own = logp.gather(1, target[:, None])[:, 0]
    top = logp.max(1)
    others = logp.scatter(1, top.indices[:, None], -torch.inf).logsumexp(1)  # 1 - p loses its digits near 1
    p = logp.exp()
    distance = (p.square().sum(1) - 2 * own.exp() + 1).clamp(min=0).sqrt()
    return {
        "logprob": own, "argmax": top.values, "outside": others, "gap": -torch.expm1(own), "distance": distance,
        "entropy": -torch.linalg.vecdot(p, logp),
    }  # fmt: skip
