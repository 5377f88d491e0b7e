"""Writing a policy to a folder: its adapter in PEFT's format, or one merged model in transformers' own.

A folder is written beside its place and moved there whole. A small file in it, `workbench.json`, says what
was written, so that a later save replaces what an earlier one wrote and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench import adapters, quantisation, scoring, trunk
from workbench.errors import SettingError, WorkbenchError
from workbench.sharing import card

if TYPE_CHECKING:
    from workbench.policy import Policy

RECORD = "workbench.json"
PROBES = (
    "The capital of France is",
    "12 + 30 =",
    "Once upon a time, in a small house by the sea,",
    "def add(a, b):\n    return",
    "Q: Which is heavier, a kilogram of iron or a kilogram of feathers?\nA:",
    "To be or not to be,",
)
PROBE_TOKENS = 16
"""how many tokens the policy writes after each probe"""


@dataclass(frozen=True)
class Agreement:
    """How well a written model agrees with the policy it was made from, token by token on probe texts."""

    folder: str
    tokens: int
    """next-token distributions compared"""
    prompts: int
    kl_mean: float
    """mean over tokens of KL(policy || written), in nats"""
    kl_max: float
    top1: float
    """share of tokens after which both have the same first choice"""
    dtype: str
    """of the written weights"""
    against: str = "the policy"
    """what it was compared with; a quantised policy computes with its decoded weights, and so does what is written"""

    def __repr__(self) -> str:
        return (
            f"<Agreement: {self.folder} in {self.dtype} against {self.against}, {self.tokens} tokens of "
            f"{self.prompts} probes: KL {self.kl_mean:.2g} nats on average, {self.kl_max:.2g} at most; same "
            f"first choice {100 * self.top1:.1f} %>"
        )


def save(policy: Policy, folder: str | Path, store: Any = None, script: str = "") -> Path:
    """The adapter in PEFT's format, or the whole model if there is none, with the tokenizer and a model card. See
    `Policy.save`. `store`: of the run that trained it, for the card, and its `script`.
    """
    if policy.origin.quantize and not policy.has_adapter:
        raise SettingError(
            f"The model is quantised ({quantisation.name_of(policy.origin.quantize)}) and has no adapter, so there is "
            "nothing new to save; policy.export(folder) writes it dequantised."
        )
    record = {"kind": "adapter" if policy.has_adapter else "model", **policy.describe()}
    with _replacing(folder, record) as new:
        if not policy.has_adapter:
            policy.model.save_pretrained(new)
        elif adapters.edits_base(policy.adapter):
            _save_relative(policy, new)
        else:
            policy.model.save_pretrained(new, save_embedding_layers=False)
        policy.tokenizer.save_pretrained(new)
        record |= card.write(new, Path(folder).expanduser(), policy.describe(), store, script)
    return Path(folder)


def _save_relative(policy: Policy, new: Path) -> None:
    """An adapter whose start changed the base (PiSSA and its kin), as a plain LoRA of twice the rank for the
    base.

    peft takes the start away from it: B A - B0 A0 is what was learnt.
    """
    first = new / "start"
    config = copy.deepcopy(policy.adapter)
    now, holder = policy.params(), policy.holder
    try:
        policy.reset()
        policy.model.save_pretrained(first, save_embedding_layers=False)
        policy.hold(now, holder)
        policy.model.save_pretrained(
            new, save_embedding_layers=False, path_initial_model_for_weight_conversion=str(first)
        )
    finally:
        policy.hold(now, holder)
        policy.model.peft_config[policy.model.active_adapter] = config
    shutil.rmtree(first)


def export(policy: Policy, folder: str | Path, probes: Sequence[str] | None = None) -> Agreement:
    """One plain model with the adapter merged in, and how well it agrees with the policy. See
    `Policy.export`.
    """
    if policy.has_adapter:
        refusal = _why_not_merged(policy)
        if refusal:
            raise SettingError(f"{refusal} Use policy.save(folder), which writes the adapter by itself.")
    dtype = getattr(torch, policy.origin.dtype)
    merged = _merged(policy).to(dtype)
    with _replacing(folder, {"kind": "merged", **policy.describe()}) as new:
        merged.save_pretrained(new)
        policy.tokenizer.save_pretrained(new)
    del merged
    return compare(policy, folder, probes or PROBES)


def _why_not_merged(policy: Policy) -> str | None:
    kind = policy.adapter.peft_type.value
    if policy.adapter.is_prompt_learning:
        return f"{kind} puts virtual tokens before the prompt, which no plain model can hold."
    if not hasattr(policy.model.base_model, "merge_and_unload"):
        return f"{kind} adapters cannot be merged into their model."
    return None


def _merged(policy: Policy) -> nn.Module:
    """A plain model on the CPU, in float32 or finer, that says what the policy says, which stays as it is."""
    if policy.origin.quantize:
        model = _dequantised(policy)
    else:
        model = copy.deepcopy(policy.model, _copies_on_cpu(policy.model))
        if torch.finfo(getattr(torch, policy.origin.dtype)).bits < 32:
            model = model.float()  # rounded once, at the end
    if not policy.has_adapter:
        return model.eval()
    _part_embeddings(trunk.base_of(model))
    try:
        model = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise SettingError(
            f"This adapter cannot be merged: {error} policy.save(folder) writes the adapter by itself."
        ) from error
    return model.eval()


def _part_embeddings(model: nn.Module) -> None:
    """Unties embeddings that an adapter sits on; else what is merged into one lands in the other as well."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if not (hasattr(inputs, "base_layer") or hasattr(outputs, "base_layer")):
        return
    inputs, outputs = getattr(inputs, "base_layer", inputs), getattr(outputs, "base_layer", outputs)
    if outputs is None or inputs.weight is not outputs.weight:
        return
    outputs.weight = nn.Parameter(inputs.weight.detach().clone())
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False


def _copies_on_cpu(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` by which every parameter and buffer becomes a copy on the CPU; ties stay
    ties.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach().cpu().clone(), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = b.detach().cpu().clone()
    return memo


def _dequantised(policy: Policy) -> nn.Module:
    """A float32 model on the CPU with the quantised base's very values, and the policy's adapter on it."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = trunk.base_of(policy.model)
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    values: dict[str, Tensor] = {}
    for name, module in base.named_modules():
        own = {n: p.data for n, p in module.named_parameters(recurse=False)}
        own |= {n: b for n, b in module.named_buffers(recurse=False)}
        if "weight" in own:
            own["weight"] = _as_in(model, name, quantisation.decoded(module))
        for part, tensor in own.items():
            values[_plain_name(f"{name}.{part}")] = tensor.detach().float().cpu()
    wanted = model.state_dict()
    absent = [name for name in wanted if name not in values and not _is_tied(model, name)]
    if absent:
        raise WorkbenchError(f"export: {len(absent)} weights of the model were not found ({absent[0]}, ...).")
    model.load_state_dict({name: values[name] for name in wanted if name in values}, strict=False)
    model.tie_weights()
    model.generation_config = copy.deepcopy(base.generation_config)
    if policy.has_adapter:
        adapter = copy.deepcopy(policy.adapter)
        if adapters.edits_base(adapter):
            adapter.init_lora_weights = True  # the base has been changed already
        model = get_peft_model(model, adapter)
        set_peft_model_state_dict(model, get_peft_model_state_dict(policy.model, save_embedding_layers=False))
    return model


def _plain_name(name: str) -> str:
    """A weight's name in the bare model: adapters put layers that they sit on one level down."""
    return re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", name)


def _as_in(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A layer's weight the way round that the bare model has it: GPT-2's layers store (in, out)."""
    from transformers.pytorch_utils import Conv1D

    plain = dict(model.named_modules()).get(_plain_name(f"{name}.")[:-1])
    return weight.T.contiguous() if isinstance(plain, Conv1D) else weight


def _is_tied(model: nn.Module, name: str) -> bool:
    return name not in dict(model.named_parameters()) and name not in dict(model.named_buffers())


@torch.no_grad()
def compare(policy: Policy, folder: str | Path, probes: Sequence[str]) -> Agreement:
    """Loads a plain model from a folder, next to the policy if it fits and on the CPU if not, and compares
    the two.
    """
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, policy.origin.dtype)
    device = _roomy(policy)
    with policy.at_rest():
        drawn = policy.sample(list(probes), n=1, max_new_tokens=PROBE_TOKENS, temperature=1.0, seed=0)
        texts = [a + b for a, b in zip(drawn.prompt_ids, drawn.ids, strict=True)]
        mine = [policy.logits(_batch(ids, policy.device), len(ids))[0].double().cpu() for ids in texts]
    written, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise WorkbenchError(
            f"export: {folder} lacks weights it should have: {sorted(info['missing_keys'])[:3]}."
        )
    written = written.to(device).eval()
    kl, same = [], []
    for ids, z in zip(texts, mine, strict=True):
        other = trunk.last_logits(written, len(ids), input_ids=_batch(ids, device), use_cache=False)[0]
        divergence, agree = scoring.divergence(z, other[0].double().cpu())
        kl.append(divergence)
        same.append(agree)
    kl, same = torch.cat(kl), torch.cat(same)
    return Agreement(
        folder=str(folder),
        tokens=kl.numel(),
        prompts=len(texts),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1=float(same.double().mean()),
        dtype=policy.origin.dtype,
        against=_what(policy),
    )


def _what(policy: Policy) -> str:
    if not policy.origin.quantize:
        return "the policy"
    adapter = " and its adapter" if policy.has_adapter else ""
    return f"the policy (its {quantisation.name_of(policy.origin.quantize)} base{adapter})"


def _batch(ids: Sequence[int], device: torch.device) -> Tensor:
    return torch.as_tensor([list(ids)], dtype=torch.long, device=device)  # (1, L)


def _roomy(policy: Policy) -> torch.device:
    """The policy's device if a second model surely fits there, else the CPU."""
    if policy.device.type != "cuda" or policy.origin.quantize:
        return torch.device("cpu") if policy.device.type == "cuda" else policy.device
    size = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    free, _ = torch.cuda.mem_get_info(policy.device)
    return policy.device if free > 1.5 * size else torch.device("cpu")


@contextlib.contextmanager
def _replacing(folder: str | Path, record: dict[str, Any]) -> Iterator[Path]:
    """A new folder to write to, which takes the place of `folder` once the block ends well.

    Raises SettingError, before anything is written, if `folder` is a file or holds what no earlier save
    wrote.
    """
    folder = Path(folder).expanduser()
    _check_ours(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    new.mkdir()
    try:
        yield new
        files = sorted(str(p.relative_to(new)) for p in new.rglob("*") if p.is_file())
        (new / RECORD).write_text(json.dumps({**record, "files": files}, indent=1), encoding="utf-8")
        old = folder.parent / f"{new.name}.old"
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_ours(folder: Path) -> None:
    if folder.is_file():
        raise SettingError(f"{folder} is a file; give the name of a folder to write.")
    there = (
        {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} if folder.exists() else set()
    )
    if not there:
        return
    record = folder / RECORD
    ours = set(json.loads(record.read_text(encoding="utf-8"))["files"]) if record.is_file() else set()
    foreign = sorted(there - ours - {RECORD})
    if foreign:
        raise SettingError(
            f"{folder} holds files that no earlier save wrote "
            f"({', '.join(foreign[:3])}{', ...' * (len(foreign) > 3)}); nothing was overwritten. Give "
            "another folder, or empty this one."
        )
