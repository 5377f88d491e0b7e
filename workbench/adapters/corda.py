"""CorDA: a LoRA that starts from directions of the weights that matter, or do not, on given text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workbench import adapters, tokenise, trunk, worker
from workbench.errors import DataError, SettingError

METHODS = ("kpm", "ipm")


@worker.on_worker
def corda(
    policy: Any,
    rows: Any,
    r: int = 128,
    alpha: float | None = None,
    method: str = "kpm",
    targets: str | Sequence[str] = "all-linear",
    samples: int = 256,
    max_length: int | None = 2048,
) -> Any:
    """Attaches a LoRA that starts from context-oriented directions of the weights; returns the policy.

    At each linear layer, with X (T, in) its inputs on a sample, divided by their maximum, and C the mean of X^T X over
    the samples (damped by 0.01 of its mean diagonal, doubled until the inverse is accurate):

        W C = U S V^T,    W = U S (C^-1 V)^T
        B = U_r sqrt(S_r / s),  A = sqrt(S_r / s) (C^-1 V)_r^T,  and W - s B A stays frozen        s = alpha / r

    method "kpm" (knowledge preserved): the r smallest, those that the samples use least; give questions whose answers
    the model should still know afterwards. "ipm" (instruction previewed): the r largest; give rows of the task, for a
    faster start. The policy says what it said before, up to rounding: nothing is added, only what trains is chosen.

    `rows`: calibration text in any form that SFT takes; the first `samples` of them are read whole (prompt and
    completion), one by one, up to `max_length` tokens each. alpha None: r. The defaults are the paper's: 256 samples of
    2048 tokens, r 128; it trains at lr 2e-5, batch 128, cosine, warm-up 0.03, one epoch.

    The work is PEFT's (`preprocess_corda`, CordaConfig), which follows the authors' code and holds about two more
    copies of the targeted weights meanwhile. `save` and `export` work as with any adapter that changes its base. A run
    is resumed in a new process with the policy made again by the same call: `wb.resume(folder, policy=corda(...))`.
    Raises SettingError for a policy that has an adapter, is quantised, or is in float64, and where r is more than a
    layer has.
    """
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    if policy.has_adapter:
        raise SettingError("corda attaches an adapter, and this policy has one. Load the model again.")
    if method not in METHODS:
        raise SettingError(f"corda: method={method!r} is not known. Options: {', '.join(METHODS)}.")
    names = _targets(policy.model, targets)
    plain = adapters.LoRA(r=r, alpha=r if alpha is None else alpha, targets=names).config()  # checks r and alpha
    config = adapters.as_peft(
        LoraConfig(
            r=plain.r,
            lora_alpha=plain.lora_alpha,
            target_modules=names,
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method=method),
        ),
        bool(policy.origin.quantize),
    )
    _check_weights(policy.model, names, r)
    texts = _texts(policy, rows, samples, max_length)

    def run() -> None:
        for ids in texts:
            trunk.last_logits(policy.model, 1, input_ids=torch.tensor([ids], device=policy.device), use_cache=False)

    try:
        with policy.at_rest():
            preprocess_corda(policy.model, config, run_model=run)
    except ValueError as error:
        _clean(policy.model)
        raise DataError(f"corda: the calibration rows give no usable statistics: {error}") from error
    except ZeroDivisionError:
        _clean(policy.model)
        raise SettingError(f"corda: some layers of targets={names} are never called; name others.") from None
    return policy.attach(config)


def _targets(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The names that targeted layers end in; "all-linear": all but the output head."""
    if targets != "all-linear":
        return [targets] if isinstance(targets, str) else list(targets)
    head = model.get_output_embeddings()
    linear = [name for name, module in _linear(model) if module is not head]
    return sorted({name.rpartition(".")[2] for name in linear})


def _linear(model: nn.Module) -> list[tuple[str, nn.Module]]:
    from transformers.pytorch_utils import Conv1D

    return [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def _check_weights(model: nn.Module, names: list[str], r: int) -> None:
    found = [(name, module.weight) for name, module in _linear(model) if name.rpartition(".")[2] in names]
    if not found:
        known = sorted({name.rpartition(".")[2] for name, _ in _linear(model)})
        raise SettingError(f"corda: no linear layer is called {' or '.join(names)}. There are: {', '.join(known)}.")
    for name, weight in found:
        if r > min(weight.shape):
            raise SettingError(f"corda: r={r} is more than {name} has: its weight is {tuple(weight.shape)}.")
        if weight.dtype == torch.float64:
            raise SettingError('corda works in float32 and 16 bits; load the model with dtype="float32".')


def _texts(policy: Any, rows: Any, samples: int, max_length: int | None) -> list[list[int]]:
    from workbench.data import rows as read

    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise SettingError(f"corda: samples={samples!r} must be a whole number of at least 1.")
    found = tokenise.fit_rows(read(rows)[:samples], policy.tokenizer, max_length=max_length).items
    return [example.ids for example in found]


def _clean(model: nn.Module) -> None:
    """Removes what an attempt that failed has left on the layers."""
    for _, module in _linear(model):
        for name in ("sample_count", "covariance_matrix", "corda_method", "rank", "eigens"):
            module.__dict__.pop(name, None)
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "peft.tuners.lora.corda":
                del module._forward_hooks[key]
