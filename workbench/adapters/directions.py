"""Directions in the residual stream: found by what a tuning changed, looked at, kept in a file, read from one.

Directions are rows, (k, D), by the number of the layer (from 0) after which they stand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench import adapters, tokenise, trunk, worker
from workbench.adapters import hooks
from workbench.errors import DataError, SettingError

if TYPE_CHECKING:
    import pandas as pd

NAME = re.compile(r"(?:.*[^0-9.+-]|.*[A-Za-z_]\.)?([0-9]+)")
"""of a tensor in a file: it ends in the layer's number, which is no part of a longer one (-1, 0.5)"""
DEPENDENT = 1e-5
"""of its length: what a direction must have beside those before it"""


@dataclass(frozen=True)
class Directions:
    """Principal directions by layer.

    vectors   layer -> (k, D), orthonormal rows, the first explains most
    variance  layer -> (k,), of the differences along each
    """

    vectors: dict[int, Tensor]
    variance: dict[int, Tensor]

    def keep(self, chosen: Mapping[int, Sequence[int]]) -> Directions:
        """Those with these numbers: `keep({2: [0, 3]})`. Layers that are not named are left out."""
        for layer, numbers in chosen.items():
            known = len(self.vectors.get(layer, ()))
            for number in numbers:
                if not 0 <= number < known:
                    raise SettingError(f"keep: layer {layer} has {known} directions, and none with number {number}.")
        rows = {layer: list(numbers) for layer, numbers in chosen.items()}
        return Directions(
            {layer: self.vectors[layer][numbers] for layer, numbers in rows.items()},
            {layer: self.variance[layer][numbers] for layer, numbers in rows.items()},
        )

    def save(self, path: str | Path) -> Path:
        """Writes the vectors as safetensors, for `basis=path`. Returns the path."""
        save_file({f"layer.{n}": vectors.contiguous() for n, vectors in self.vectors.items()}, str(path))
        return Path(path)

    @worker.on_worker
    def tokens(self, policy: Any, rows: Any, layer: int, number: int, count: int = 10) -> pd.DataFrame:
        """The tokens of `rows` that lie farthest along a direction, either way, each with the text before it: what a
        direction is about. Without the adapter."""
        import pandas as pd

        direction, found = self.keep({layer: [number]}).vectors[layer][0], []
        for example in _examples(policy, rows):
            stream = _streams(policy, example, [layer], tuned=False)[layer]  # (T, D)
            along = (stream @ direction.to(stream)).tolist()
            found += [(value, example.row, place, example.ids) for place, value in enumerate(along)]
        found.sort(key=lambda one: one[0], reverse=True)
        ends = found if len(found) <= 2 * count else found[:count] + found[-count:]
        say = policy.tokenizer.decode
        return pd.DataFrame(
            [(value, row, say(ids[place : place + 1]), say(ids[:place][-12:])) for value, row, place, ids in ends],
            columns=["along", "row", "token", "before"],
        )


@worker.on_worker
def find_directions(
    policy: Any,
    rows: Any,
    layers: Sequence[int] | None = None,
    count: int = 20,
    base: Any = None,
    max_length: int | None = 1024,
) -> Directions:
    """What a tuning changed in the residual stream: principal directions of h_tuned - h_base, layer by layer.

    The policy is one that was tuned without any ablation; `rows` are generic ones, not those it was tuned on. Both
    models read each row, and at its trained tokens (the completion) the streams after each of `layers` (None: all) are
    taken from each other; the differences are centred, and their `count` principal directions are the result
    (`Directions`: `.vectors`, `.variance`; `.tokens(...)` shows what one is about, `.keep(...)` chooses, `.save(path)`
    writes). `base`: another policy to compare with; None: this one without its adapter. Raises SettingError where
    nothing was tuned.

    The exact eigenvectors of the D x D covariance, not the random projections of the authors' code; signs are chosen so
    that a direction's largest entry is positive.
    """
    if base is None and not policy.has_adapter:
        raise SettingError("find_directions compares the policy with its base: attach and train an adapter, or base=.")
    known = len(hooks.decoder_layers(policy.model))
    layers = list(range(known)) if layers is None else check_layers(layers, known)
    sums: dict[int, list[Tensor]] = {}
    tokens = 0
    for example in _examples(policy, rows, max_length):
        tuned = _streams(policy, example, layers, tuned=True)
        plain = _streams(base or policy, example, layers, tuned=base is not None)
        trained = torch.tensor(example.mask, dtype=torch.bool)
        tokens += int(trained.sum())
        for layer in layers:
            change = (tuned[layer] - plain[layer])[trained]  # (t, D)
            parts = [change.sum(0), change.t() @ change]
            sums[layer] = parts if layer not in sums else [a + b for a, b in zip(sums[layer], parts, strict=True)]
    if not any(bool(whole.any()) for _, whole in sums.values()):
        raise SettingError("find_directions: the policy and its base are the same on these rows; tune it first.")
    found = {layer: _principal(*parts, tokens, count) for layer, parts in sums.items()}
    return Directions(*({layer: pair[part] for layer, pair in found.items()} for part in (0, 1)))


def _principal(total: Tensor, squares: Tensor, tokens: int, count: int) -> tuple[Tensor, Tensor]:
    """(k, D) and (k,) from sum (D,) and sum of squares (D, D)."""
    mean = total / tokens
    values, vectors = torch.linalg.eigh((squares - tokens * torch.outer(mean, mean)) / max(1, tokens - 1))
    vectors = vectors.t().flip(0)[:count]  # eigh: ascending, in columns
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return (vectors * signs).float(), values.flip(0)[:count].clamp(min=0).float()


def _examples(policy: Any, rows: Any, max_length: int | None = 1024) -> list[tokenise.Example]:
    from workbench.data import rows as read

    return tokenise.fit_rows(read(rows), policy.tokenizer, max_length=max_length).items


def _streams(policy: Any, example: tokenise.Example, layers: Sequence[int], tuned: bool) -> dict[int, Tensor]:
    """(T, D) in float64 on the CPU after each of `layers`."""
    made: dict[int, Tensor] = {}

    def keeper(layer: int):
        def keep(stream: Tensor) -> None:
            made[layer] = stream[0, -len(example.ids) :].double().cpu()  # after virtual tokens, if any

        return keep

    off = nullcontext() if tuned or not policy.has_adapter else adapters.without(policy.model)
    ids = torch.tensor([example.ids], device=policy.device)
    with policy.at_rest(), off, hooks.outputs(policy.model, {layer: keeper(layer) for layer in layers}):
        trunk.last_logits(policy.model, 1, input_ids=ids, use_cache=False)
    return made


def check_layers(layers: Sequence[int], known: int) -> list[int]:
    """The numbers, or SettingError for one that no layer has."""
    for layer in layers:
        if not 0 <= layer < known:
            raise SettingError(f"There is no layer {layer}: the model has {known}, numbered from 0 to {known - 1}.")
    return list(layers)


# -- given directions


def read_file(path: str | Path) -> dict[int, Tensor]:
    """Directions from a safetensors file whose tensors are named by the layer: "layer.5", or "5". SettingError."""
    try:
        found = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise SettingError(f"basis={str(path)!r} cannot be read as safetensors: {error}.") from error
    return by_layer(found)


def by_layer(given: Mapping[Any, Any]) -> dict[int, Tensor]:
    """layer -> the directions that stand by a name of it, in float64. Raises SettingError for a name that is none,
    a layer that has two, and for what are no numbers of one shape."""
    made: dict[int, Tensor] = {}
    for name, rows in given.items():
        if (layer := layer_of(name)) in made:
            raise SettingError(f"basis: {name!r} is a second name of layer {layer}. Put its directions together.")
        try:
            table = torch.tensor(rows, dtype=torch.float64) if isinstance(rows, Sequence) else torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise SettingError(
                f"basis: the directions of layer {layer} are no table of numbers, rows of equal length: {error}."
            ) from error
        if table.is_complex():
            raise SettingError(f"basis: the directions of layer {layer} are complex numbers; they must be real.")
        made[layer] = table.detach().double()
    return made


def layer_of(name: Any) -> int:
    """The layer that a name ends in; of a whole number, itself."""
    match = NAME.fullmatch(str(name))
    if match is None or isinstance(name, (float, bool)):
        raise SettingError(
            f"basis: {name!r} does not end in the number of a layer, as 'layer.5' or 5 do; they are counted from 0."
        )
    return int(match.group(1))


def orthonormal(given: Mapping[Any, Any], width: int, known: int) -> dict[int, Tensor]:
    """layer -> (D, k) orthonormal columns, in float64, that span the given rows (k, D). Raises SettingError where they
    are no directions of a model of `known` layers and this width."""
    made = {}
    for layer, rows in by_layer(given).items():
        check_layers([layer], known)
        rows = torch.atleast_2d(rows)  # (k, D)
        if rows.dim() != 2 or rows.shape[1] != width:
            turned = " Turn it round (.T)." if rows.dim() == 2 and rows.shape[0] == width else ""
            raise SettingError(
                f"basis: the directions of layer {layer} are {tuple(rows.shape)}; they must be rows of {width} numbers,"
                f" the width of the model.{turned}"
            )
        if not torch.isfinite(rows).all():
            raise SettingError(f"basis: the directions of layer {layer} are not all finite.")
        if not len(rows):
            continue
        q, r = torch.linalg.qr(rows.t().cpu())
        own = r.diagonal().abs() <= DEPENDENT * rows.norm(dim=1)[: len(r)]
        if len(rows) > width or own.any():
            which = int(own.nonzero()[0]) if own.any() else width
            raise DataError(f"basis: direction {which} of layer {layer} is zero, or a sum of those before it.")
        made[layer] = q
    return made
