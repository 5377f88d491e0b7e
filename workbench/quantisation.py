"""Quantised bases: weights held in 4 or 8 bits by bitsandbytes, on which only an adapter trains.

"nf4" is QLoRA's (Dettmers et al. 2023, arXiv 2305.14314): each block of 64 weights stores its largest magnitude and,
per weight, one of 16 levels placed where normally distributed weights are; the magnitudes are stored in 8 bits
themselves ("double quantisation"). "int8" stores each row of a weight in 8 bits with the row's largest magnitude
(Dettmers et al. 2022, arXiv 2208.07339); that paper's LLM.int8() also rounds the activations, which is left out.

Linear layers are quantised; embeddings, the output head, norms and biases stay in the policy's dtype, and layers
compute in that dtype. What peft's `prepare_model_for_kbit_training` does is done here, or is not needed:
- the base is frozen, by `attach`, and adapters are in float32 even where the policy is in bfloat16;
- norms and the output head are not raised to float32: norms and log-probs compute in float32 anyway, and a QLoRA run
  then differs from a LoRA run of the same dtype by the quantisation alone. `dtype="float32"` raises everything;
- inputs need no gradient for gradient checkpointing, as transformers checkpoints without re-entering autograd.

`mend` puts right what bitsandbytes 0.50 gets wrong, so that one base gives the same numbers in every mode, in every
batch and on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import DataError, SettingError, did_you_mean
from workbench.text import SIZES, scaled

NAMES = ("nf4", "int8")
Record = str | dict[str, Any] | None
"""how a base is quantised, as JSON: None, "nf4", "int8", or the fields of a `transformers.BitsAndBytesConfig`"""
READ_DIRECTLY = {name: ["lm_head", "dt_proj"] for name in ("mamba", "falcon_mamba")}
"""model types that multiply by the weight of a layer without calling it: what cannot be quantised there"""


# ---------------------------------------------------------------- settings


def record(quantize: Any) -> Record:
    """`quantize` as it is written down. Raises SettingError for what is none of the known ways."""
    if quantize is None or (isinstance(quantize, str) and quantize in NAMES):
        return quantize
    from transformers import BitsAndBytesConfig

    if isinstance(quantize, dict):  # a record read back
        quantize = BitsAndBytesConfig(**quantize)
    if not isinstance(quantize, BitsAndBytesConfig):
        near = did_you_mean(quantize, NAMES) if isinstance(quantize, str) else ""
        raise SettingError(
            f'quantize={quantize!r} is not known; use None, "nf4" or "int8" (or a transformers.BitsAndBytesConfig).'
            f"{near}"
        )
    if not (quantize.load_in_4bit or quantize.load_in_8bit):
        raise SettingError("quantize: this BitsAndBytesConfig quantises nothing; say load_in_4bit or load_in_8bit.")
    if quantize.llm_int8_has_fp16_weight:
        raise SettingError("quantize: llm_int8_has_fp16_weight keeps weights in 16 bits; leave quantize out instead.")
    fields = {name: value for name, value in quantize.to_diff_dict().items() if not name.startswith("_")}
    return {name: fields[name] for name in sorted(fields) if name not in ("bnb_4bit_compute_dtype", "quant_method")}


def name_of(how: Record) -> str:
    """A word for it: "nf4", "fp4" or "int8"."""
    if isinstance(how, dict):
        return "int8" if how.get("load_in_8bit") else how.get("bnb_4bit_quant_type", "fp4")
    return str(how)


@dataclass(frozen=True)
class Plan:
    """How one model is to be loaded."""

    how: Record
    """how its weights will be held"""
    config: Any = None
    """transformers' `quantization_config`, unless the files say it"""


def plan(how: Record, files: dict[str, Any], name: str, dtype: torch.dtype, device: torch.device) -> Plan:
    """What to ask of transformers. `files` is the model's config.json, which may say that it is quantised already.

    A model saved by bitsandbytes is loaded as it is; fp8 and mxfp4 files are decoded. Raises SettingError where
    quantisation cannot work or does not go with the files, DataError for files in a format that cannot be used.
    """
    stored = files.get("quantization_config")
    if not stored:
        if how is not None:
            _check_machine(how, dtype, device)
        return Plan(how, None if how is None else _config(how, dtype, files.get("model_type", "")))
    method = str(stored.get("quant_method") or "bitsandbytes")
    if method == "bitsandbytes":
        here = name_of({key: stored.get(key) for key in ("load_in_8bit", "bnb_4bit_quant_type")})
        found = here if here in NAMES else record({k: v for k, v in stored.items() if k[0] != "_" and v is not None})
        if how not in (None, found):
            raise SettingError(
                f"{name} is saved in {here} already and cannot be quantised again; leave quantize out, or load the "
                "model it was made from."
            )
        _check_machine(found, dtype, device)
        return Plan(found)
    if how is not None or method not in ("fp8", "mxfp4"):
        todo = 'load the model it was made from, with quantize="nf4" if memory is short.'
        if method in ("fp8", "mxfp4"):
            todo = f"leave quantize out ({method} files are decoded), or {todo}"
        raise DataError(
            f"{name} is quantised already, by {method}, and cannot be "
            f"{'trained on here' if how is None else 'quantised again'}; {todo}"
        )
    from transformers import FineGrainedFP8Config, Mxfp4Config

    return Plan(None, (FineGrainedFP8Config if method == "fp8" else Mxfp4Config)(dequantize=True))


def _check_machine(how: Record, dtype: torch.dtype, device: torch.device) -> None:
    said = f"quantize={name_of(how)!r}"
    if device.type not in ("cuda", "cpu"):
        raise SettingError(f"{said} does not work on {device.type}; use device='cpu', or no quantize.")
    if dtype == torch.float64:
        raise SettingError(f"{said} computes in float32, bfloat16 or float16, not float64.")
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # a missing package, or a library it cannot load
        raise SettingError(
            f"{said} needs bitsandbytes, which does not load here ({error}). "
            "Install it (pip install bitsandbytes), or load without quantize."
        ) from error


def _config(how: Record, dtype: torch.dtype, model_type: str) -> Any:
    from transformers import BitsAndBytesConfig

    if isinstance(how, dict):
        return BitsAndBytesConfig(**how, bnb_4bit_compute_dtype=dtype)
    skip = READ_DIRECTLY.get(model_type)
    if how == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


# ---------------------------------------------------------------- the layers


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantised linear layers of a model, by name."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {name: m for name, m in model.named_modules() if isinstance(m, (Linear4bit, Linear8bitLt))}


def decoded(module: nn.Module) -> Tensor:
    """The weight that a layer computes with, (out, in); of a layer that is not quantised, its weight.

    peft's helper for this leaves int8 layers on a CPU broken, and bitsandbytes' own misreads some 4-bit layers there
    (see `mend`).
    """
    weight, kind = module.weight, type(module.weight).__name__
    if kind == "Params4bit":
        return _decoded_in_one_row(weight)
    if kind == "Int8Params":
        state = module.state
        rows, size = (weight.CB, weight.SCB) if state.CB is None else (state.CB, state.SCB)
        return _scaled(rows, size, torch.float32)
    return weight.data


def _decoded_in_one_row(weight: Any) -> Tensor:
    """4-bit weights decoded block after block, wherever the rows end."""
    from bitsandbytes.functional import dequantize_4bit

    state = weight.quant_state
    shape, size = state.shape, state.blocksize
    state.shape = torch.Size((shape.numel() // size, size) if shape.numel() % size == 0 else (1, shape.numel()))
    try:
        return dequantize_4bit(weight.data, state).reshape(shape)
    finally:
        state.shape = shape


def _scaled(rows: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 rows (out, in), each with the size that 127 stands for, as floats; rounded once."""
    return rows.to(dtype, copy=True).mul_((size.float() / 127)[:, None])


def mend(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes quantised layers compute in `dtype` and say the same in every mode and batch.

    - On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in the first eval-mode forward; from then on
      gradients of adapters, and decoded weights, are silently wrong. That is switched off.
    - A file that stores its own compute dtype would be trained in that one, and gradients would go through weights
      rounded to the dtype they were saved from.
    - With AVX512, 4-bit weights are decoded with the scales of neighbouring blocks where rows end within a block.
    - int8 layers round activations too, in eval mode on a CPU and always on a GPU: what was sampled is then not what
      is trained, and a row's scores depend on the other rows of its batch.
    """
    for name, module in layers(model).items():
        if hasattr(module, "quant_storage"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.weight.quant_state.dtype = dtype
            if not _align(module.weight):
                model.set_submodule(name, _plain(module))
        else:
            module.__class__ = _float_activations()


def _align(weight: Any) -> bool:
    """Whether bitsandbytes decodes a 4-bit weight rightly, row by row; blocks are halved where that makes it so.

    Halves keep the block's scale: every weight stays what it was.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = weight.quant_state
    if state.shape[-1] % state.blocksize == 0:
        return True
    right = _decoded_in_one_row(weight)
    if torch.equal(dequantize_4bit(weight.data, state), right):
        return True
    if state.blocksize != 64 or state.shape[-1] % 32:
        return False
    state.blocksize = weight.blocksize = 32
    state.absmax = state.absmax.repeat_interleave(2)
    if state.nested:  # 256 scales share a scale of theirs
        state.state2.absmax = state.state2.absmax.repeat_interleave(2)
    return torch.equal(dequantize_4bit(weight.data, state), right)


def _plain(module: nn.Module) -> nn.Linear:
    """A layer of the same values in float, for one that bitsandbytes cannot decode."""
    weight = _decoded_in_one_row(module.weight)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), module.bias
    return made


class _TimesDecoded(torch.autograd.Function):
    """x W^T with W decoded from int8 in either direction, so that no float copy of it waits for the backward."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, size: Tensor) -> Tensor:
        ctx.save_for_backward(rows, size)
        return x @ _scaled(rows, size, x.dtype).T

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, size = ctx.saved_tensors
        return grad @ _scaled(rows, size, grad.dtype), None, None


@cache
def _float_activations() -> type:
    """bitsandbytes' 8-bit layer, computing with its decoded weights and unrounded activations."""
    from bitsandbytes.nn import Linear8bitLt

    class Linear8bit(Linear8bitLt):
        def forward(self, x: Tensor) -> Tensor:
            if self.state.CB is None:
                self.init_8bit_state()
            out = _TimesDecoded.apply(x, self.state.CB, self.state.SCB)
            return out if self.bias is None else out + self.bias.to(out.dtype)

    return Linear8bit


# ---------------------------------------------------------------- what came of it


@torch.no_grad()
def check(model: nn.Module, how: Record, notes: list[str]) -> None:
    """Makes sure that a quantised model runs, and notes what stayed in float (notes that matter start with "!").

    Raises SettingError if nothing was quantised or the model cannot be called.
    """
    kind, name = name_of(how), type(model).__name__
    if not layers(model):
        raise SettingError(f"quantize={kind!r}: {name} has no linear layers that could be quantised; leave it out.")
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        raise SettingError(
            f"quantize={kind!r} does not work with {name}, which reads the weights of a layer directly ({text}). Load "
            "it without quantize, or name those layers in transformers.BitsAndBytesConfig(..., "
            "llm_int8_skip_modules=[...])."
        ) from error
    stacked = [n for n, p in model.named_parameters() if p.ndim == 3 and p.is_floating_point() and "conv" not in n]
    if stacked:
        held = memory(model)
        share = sum(size for what, size in held.items() if what not in NAMES and what != "fp4") / sum(held.values())
        notes.append(
            f"!Only linear layers are quantised: {share:.0%} of the memory is still float, the experts among it "
            f"({stacked[0]}, ...)."
        )


def memory(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's weights by what they are held in: {"nf4": ..., "float32": ...}; ties count once.

    The scales of quantised weights count as theirs; gradients, optimiser and activations are not in it.
    """
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if id(p) in seen:
                continue
            seen.add(id(p))
            kind, parts = str(p.dtype).removeprefix("torch."), [p.data]
            if type(p).__name__ == "Params4bit":
                state = p.quant_state
                kind = state.quant_type
                parts += [state.absmax] + ([state.state2.absmax] if state.nested else [])
            elif type(p).__name__ == "Int8Params":
                parts += [module.state.SCB if p.SCB is None else p.SCB]
            sizes[kind] = sizes.get(kind, 0) + sum(part.numel() * part.element_size() for part in parts)
    return sizes


def in_words(sizes: dict[str, int]) -> str:
    """What `memory` gives as text: "5.08 MB", or "1.16 MB in float32 + 620 KB in nf4"."""

    if len(sizes) == 1:
        return scaled(*sizes.values(), SIZES)
    return " + ".join(f"{scaled(n, SIZES)} in {kind}" for kind, n in sizes.items())
