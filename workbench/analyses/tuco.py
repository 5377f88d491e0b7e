"""How much of a forward pass comes from tuning, for each token of a response; and what less or more of it would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench import scoring, worker
from workbench.analyses import picture
from workbench.analyses.paired import Pair, batches, blocks, greedy, laid, pair, put, sequences_of, whole
from workbench.analyses.picture import Result
from workbench.errors import DataError, SettingError
from workbench.forwards import replaced


def tuco(
    tuned: Any,
    prompts: Sequence[Any],
    completions: Sequence[Any] | None = None,
    *,
    base: Any = None,
    kinds: Sequence[str] | None = None,
    scales: Sequence[float] = (),
    max_new_tokens: int = 64,
) -> Result:
    """TuCo, the tuning contribution: one number between 0 and 1 for each token of a response.

    A decoder layer f adds f(x) to the hidden state x. On the stream of the tuned model every layer runs twice on the
    same x, with the tuned and with the base weights:

        PTC_l = f_base(x_l)        FTC_l = f_tuned(x_l) - PTC_l        x_{l+1} = x_l + PTC_l + a FTC_l

        TuCo = |sum_l FTC_l| / (|sum_l PTC_l| + |sum_l FTC_l|)         at one position, with a = 1

    The paper's number is that of the last prompt token: column `prompt` of the table `responses`, and position 0 of the
    frame, whose number t is that of the position which predicts token t. It is 0 where tuning does nothing there, and
    lower on plain text than on prompts like those of the training. Embeddings and the final norm stay outside the sums.

    `tuned`: a policy with its adapter on, a run, (run, step). `base`: what it is compared with; None: the adapter off
    (see `workbench.analyses.paired`). `completions`: text or ids; None: the greedy ones. `kinds`: a word for each
    prompt, by which the histogram is split ("task", "plain text", ...). `scales`: values of a; for each the mean
    log-prob of the completions' tokens is measured (table `steering`): a = 1 is the tuned model, a = 0 the base with
    the tuned model's embedding and final norm. `continued` writes text at a given a. Each costs two forwards.

    Raises SettingError where there is no base or the model is not a stack of blocks, DataError for completions that do
    not go with the prompts.
    """
    both = pair(tuned, base)
    checked(both)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise DataError("tuco: no prompts given.")
    if kinds is not None and len(kinds) != len(prompts):
        raise DataError(f"tuco: {len(kinds)} kinds for {len(prompts)} prompts; give one a prompt.")
    found = worker.call(_measured, both, prompts, completions, [float(a) for a in scales], max_new_tokens)
    return _result(both, found, kinds or ["prompts"] * len(prompts))


def checked(both: Pair) -> None:
    """Raises SettingError unless both are stacks of as many blocks."""
    depths = [len(blocks(one.policy)) for one in both.sides]
    config = both.tuned.policy.adapter
    if config is not None and config.is_prompt_learning:
        raise SettingError(f"{config.peft_type.value} adds tokens and changes no block, so no block can be run twice.")
    if depths[0] != depths[1]:
        raise SettingError(f"The base has {depths[0]} blocks and the tuned model {depths[1]}: they cannot be paired.")


@contextmanager
def twice(both: Pair, a: float = 1.0, look: Callable[[int, Tensor, Tensor], None] | None = None) -> Iterator[None]:
    """Within the block every decoder layer of the tuned policy, which must be held, runs with the base's weights, too,
    and goes on with a part `a` of the difference. `look(layer, PTC, FTC)` sees both (B, L, D)."""
    own, other = (blocks(one.policy) for one in (both.tuned, both.base))
    plain = {layer: layer.forward for layer in (*own, *other)}
    base = both.base.pinned()

    def forward(number: int, *args: Any, **inputs: Any) -> Any:
        hidden = args[0] if args else inputs["hidden_states"]
        with base.weights():
            there = whole(plain[other[number]](*args, **inputs))
        output = plain[own[number]](*args, **inputs)
        here = whole(output)
        if look is not None:
            look(number, there - hidden, here - there)
        return output if a == 1 else put(output, there if a == 0 else there + a * (here - there))

    with replaced({layer: partial(forward, number) for number, layer in enumerate(own)}):
        yield


@worker.on_worker
def steered(both: Pair, ids: Sequence[Sequence[int]] | Tensor, a: float) -> Tensor:
    """Logits (B, L, V) with a part `a` of the tuning, for `ids` (B, L)."""
    with both.tuned.held() as policy, twice(both, a):
        given = torch.as_tensor(ids, dtype=torch.long, device=policy.device)
        return policy.logits(given, given.shape[1])


@worker.on_worker
def continued(tuned: Any, prompts: Sequence[Any], a: float, *, base: Any = None, max_new_tokens: int = 32) -> list[str]:
    """What follows each prompt greedily with a part `a` of the tuning: 0 the base, 1 the tuned model, more is more. The
    whole text is read again for every token."""
    both = pair(tuned, base)
    checked(both)
    texts = []
    for i, prompt in enumerate(prompts):
        policy = both.tuned.policy
        ids = list(policy.tokens_of(prompt, i).ids)
        start = len(ids)
        while len(ids) < start + max_new_tokens and (len(ids) == start or ids[-1] not in policy.stop_ids):
            worker.check()
            ids.append(int(steered(both, [ids], a)[0, -1].argmax()))
        texts.append(policy.text_of(ids[start:]))
    return texts


def _measured(
    both: Pair, prompts: list[Any], completions: Sequence[Any] | None, scales: list[float], most: int
) -> dict[str, Any]:
    """By name what was measured, on the worker."""
    policy, both = both.tuned.policy, both.pinned()
    if completions is None:
        completions = greedy(both.tuned, prompts, most).ids
    sequences, starts = sequences_of(policy, prompts, completions)
    # where nothing follows a prompt, its last position is looked at all the same
    sequences = [s if len(s) > start else [*s, policy.filler] for s, start in zip(sequences, starts, strict=True)]
    rows, columns, targets, shares, layers = [], [], [], [], []
    for batch in batches([len(s) for s in sequences]):
        worker.check()
        with both.tuned.held():
            layout, row = laid(policy, sequences, starts, batch)
            sums = _Sums(layout)
            with twice(both, look=sums):
                policy.logits(layout.ids, 1)
        rows += row.tolist()
        columns += layout.column.tolist()
        targets += layout.target.tolist()
        shares += sums.share().tolist()
        layers.append(sums.by_layer())
    steering = [(a, _mean_logprob(both, sequences, starts, a)) for a in scales]
    pieces = policy.pieces.of(sequences)
    lengths = [len(s) - start for s, start in zip(sequences, starts, strict=True)]
    return {
        "row": rows, "position": columns, "token": [pieces[t][0] for t in targets], "tuco": shares,
        "layers": torch.cat(layers, 1).mean(1).tolist(), "steering": steering, "lengths": lengths,
    }  # fmt: skip


class _Sums:
    """P and F, the sums over layers of PTC and FTC, at the N positions of a layout."""

    def __init__(self, layout: Any):
        self.at = layout.line, layout.position
        self.total: list[Any] = [0.0, 0.0]
        self.norms: list[Tensor] = []

    def __call__(self, number: int, base: Tensor, tuning: Tensor) -> None:
        parts = [part[self.at].float() for part in (base, tuning)]  # (N, D)
        self.total = [total + part for total, part in zip(self.total, parts, strict=True)]
        self.norms.append(_share(*parts))

    def share(self) -> Tensor:
        """(N,)"""
        return _share(*self.total)

    def by_layer(self) -> Tensor:
        """(layers, N): the share of tuning in what a layer adds."""
        return torch.stack(self.norms)


def _share(base: Tensor, tuning: Tensor) -> Tensor:
    """|tuning| / (|base| + |tuning|) of (N, D); 0 where both are 0."""
    p, f = base.norm(dim=-1), tuning.norm(dim=-1)
    return f / (p + f).clamp(min=torch.finfo(p.dtype).tiny)


def _mean_logprob(both: Pair, sequences: list[list[int]], starts: list[int], a: float) -> float:
    """Of a completion's token, with a part `a` of the tuning."""
    total, count = 0.0, 0
    for batch in batches([len(s) for s in sequences]):
        worker.check()
        with both.tuned.held() as policy, twice(both, a):
            layout, _ = laid(policy, sequences, starts, batch)
            ahead = scoring.predictions(policy.model, layout)
        with both.tuned.held() as policy:
            made = scoring.alternatives(ahead, policy.vocab_size, 1)
        total, count = total + float(made.logprob.sum()), count + len(made.logprob)
    return total / count


def _result(both: Pair, found: dict[str, Any], kinds: Sequence[str]) -> Result:
    import pandas as pd

    frame = pd.DataFrame({name: found[name] for name in ("row", "position", "token", "tuco")})
    frame = frame.sort_values(["row", "position"], ignore_index=True)
    by_row = frame.groupby("row")["tuco"]
    responses = pd.DataFrame({"prompt": by_row.first(), "mean": by_row.mean(), "tokens": by_row.size()}).reset_index()
    responses.insert(1, "kind", [str(kinds[row]) for row in responses["row"]])
    layers = pd.DataFrame({"layer": range(len(found["layers"])), "share": found["layers"]})
    tables = {"responses": responses, "layers": layers}
    if found["steering"]:
        tables["steering"] = pd.DataFrame(found["steering"], columns=["a", "logprob"])
    summary = {"TuCo at the prompt": float(responses["prompt"].mean()), "in the response": float(frame["tuco"].mean())}
    title = f"Tuning contribution: {both.tuned.name} over {both.base.name}"
    return Result(title, frame, _draw, summary, tables)


def _draw(result: Result) -> Any:
    from plotly.graph_objects import Bar, Histogram

    steering = result.tables.get("steering")
    names = ["share of tuning, by token", "at the prompt", "by layer", *(["steering"] if steering is not None else [])]
    figure = picture.sheet(result.title, names, wide=True)
    top = max(result.frame["tuco"].max(), 1e-6)
    scale = [[0, picture.pale(5, 0.06)], [1, picture.pale(5, 1.0)]]
    picture.ribbon(figure, result.frame, "tuco", scale, top, "TuCo")
    most = max(result["responses"]["prompt"].max(), 1e-3)
    bins = {"start": 0, "end": most * 1.05, "size": most / 20}
    for i, (kind, part) in enumerate(result["responses"].groupby("kind", sort=False)):
        look = {"name": picture.told(kind), "marker": {"color": picture.tint(i, 0.7)}, "xbins": bins}
        picture.add(figure, Histogram(x=part["prompt"], **look), panel=1)
    whole = {"range": [0, most * 1.05]}
    picture.axes(figure, "TuCo at the last prompt token", "responses", panel=1, xaxis=whole)
    layers = result["layers"]
    bars = Bar(x=layers["layer"], y=layers["share"], showlegend=False, marker={"color": picture.PALETTE[0]})
    picture.add(figure, bars, panel=2)
    rest = {"rangemode": "nonnegative"}
    picture.axes(figure, "layer", "share of what it adds", panel=2, yaxis=rest)
    if steering is not None:
        picture.curve(figure, steering["a"], steering["logprob"], "log-prob", 1, panel=3, showlegend=False)
        picture.axes(figure, "a, the part of the tuning", "nats per token", panel=3)
    figure.update_layout(showlegend=result["responses"]["kind"].nunique() > 1)
    return figure
