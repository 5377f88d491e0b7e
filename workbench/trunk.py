"""A causal LM in two halves: the trunk, from tokens to hidden states, and the head, from hidden states to logits.

Logits are the largest tensor of all: (tokens, vocabulary). Whoever has the hidden states can make the logits of a
few tokens at a time, and of no other tokens than those that count.

The head is not rebuilt from the config (soft-capping, scaling, adapters on the head, tied or quantised weights): it is
the model's own forward, with hidden states put where its trunk would compute them. Whether that gives the model's own
logits is not looked up in a list but tried on the model itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.forwards import replaced
from workbench.trials import Once

CLOSE = 1e-3
"""of the largest logit: more is not rounding"""
_kinds: Once[type | None] = Once()
"""what the trunk of a model returns; None: it cannot be cut in two"""


class Trunk:
    """The two halves of a model; `of` makes it."""

    def __init__(self, model: nn.Module, kind: type):
        self.base = base_of(model)
        self.kind = kind
        """what the trunk returns"""

    def run(self, ids: Tensor, **inputs: Any) -> Any:
        """The trunk's output for `ids` (B, L): `.last_hidden_state` (B, L, D), after the final norm, and
        `.past_key_values`."""
        return self.base.base_model(input_ids=ids, **inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, D), by the model's own head. Differentiable."""
        output = self.kind(last_hidden_state=hidden[None])
        with replaced({self.base.base_model: lambda *args, **inputs: output}):  # the trunk computes nothing
            return self.base(inputs_embeds=hidden[None], use_cache=False).logits[0]


def of(model: nn.Module) -> Trunk | None:
    """The halves of `model`, a transformers model or a peft model around one; None where it cannot be cut in two: its
    trunk is not a module of its own, or an adapter puts virtual tokens before the text."""
    kind = _kinds(model, lambda: _tried(model))
    return None if kind is None else Trunk(model, kind)


def base_of(model: torch.nn.Module) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return (
        model.get_base_model()
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        else model
    )


def last_logits(model: torch.nn.Module, keep: int, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits (B, keep, V) of the last `keep` positions, and the output. Computes no others where the model
    can.
    """
    if "logits_to_keep" in inspect.signature(base_of(model).forward).parameters:
        inputs["logits_to_keep"] = keep
    output = model(**inputs)
    return output.logits[:, -keep:], output


@contextmanager
def blended(model: nn.Module, ids: Tensor, share: float) -> Iterator[None]:
    """Within the block each embedding of a token is (1 - share) of its own and `share` of that of the token which
    stands in its place in `ids` (P, L). No gradient reaches the embeddings that are mixed in. Where `ids` has the token
    itself, in a prompt say, nothing is mixed in, and the gradient is all of its own."""
    embed = base_of(model).get_input_embeddings()
    own = embed.forward

    def mixed(given: Tensor) -> Tensor:
        plain = own(given)
        return torch.where((ids == given)[..., None], plain, (1 - share) * plain + share * own(ids).detach())

    with replaced({embed: mixed}):
        yield


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether any dropout of the model is on (modules; attention dropout stands in the config)."""
    config = getattr(model, "config", None)
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0):
        return True
    return any(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())


def _tried(model: nn.Module) -> tuple[type | None, bool]:
    """What the trunk returns, and whether that is certain."""
    base = base_of(model)
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None) is not None:
            return None, True
    inner = getattr(base, "base_model", base)
    taken = inspect.signature(base.forward).parameters
    if inner is base or getattr(base.config, "is_encoder_decoder", False) or "inputs_embeds" not in taken:
        return None, True
    device = next(model.parameters()).device
    vocabulary = base.config.get_text_config().vocab_size
    ids = torch.tensor([[(7 * i + 1) % vocabulary for i in range(5)]], device=device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            output = inner(input_ids=ids, use_cache=False)
            if not torch.is_tensor(getattr(output, "last_hidden_state", None)):
                return None, True
            parts = Trunk(model, type(output)).logits(output.last_hidden_state[0])
            whole = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        for module in training:
            module.training = True
    same = whole.shape == parts.shape and (whole - parts).abs().max() <= CLOSE * whole.abs().max()
    return type(output) if same else None, bool(whole.isfinite().all())
