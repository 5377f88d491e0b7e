"""Loading: from a name to a model in eval mode and a checked tokenizer, with errors that say what to do.

A name is "tiny" (the model that ships with workbench), a folder, or a Hub id; a folder or an id may hold a
whole model or a PEFT adapter. Code from a repository is never run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workbench import quantisation, worker
from workbench.errors import DataError, SettingError, did_you_mean

SHIPPED = Path(__file__).parent / "models" / "tiny"
DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
    "float64": torch.float64,
}  # fmt: skip
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Place:
    """Where model files are read from: a folder, or a Hub repository at one commit."""

    name: str
    """what transformers is given: an absolute folder, or a Hub id"""
    revision: str | None = None
    """commit of a Hub repository"""
    folder: bool = True
    local_only: bool = True
    """read the Hub cache only, there is no network"""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for every `from_pretrained`."""
        return {"revision": self.revision, "local_files_only": self.local_only, "trust_remote_code": False}


@dataclass(frozen=True)
class Origin:
    """How a policy was loaded, so that it can be loaded so again."""

    model: str
    """as given, folders made absolute; "tiny" stays"""
    base: str
    """the model itself: another name than `model` if that is an adapter"""
    revision: str | None
    """as asked for"""
    commit: str | None
    """the Hub commit it stood for"""
    quantize: quantisation.Record
    """how the weights are held; a base saved by bitsandbytes says so itself"""
    dtype: str
    device: str
    seed: int


@dataclass
class Loaded:
    """A model ready to be a policy's."""

    model: torch.nn.Module
    tokenizer: Any
    origin: Origin
    stop_ids: tuple[int, ...]
    """ids that end a completion, those of the generation config and of the tokenizer"""
    notes: list[str] = field(default_factory=list)
    """what is worth knowing about the model and its tokenizer"""


def load_parts(
    path_or_id: str | Path, quantize: Any, dtype: Any, device: str, revision: str | None, seed: int
) -> Loaded:
    """Everything `workbench.load` needs. Raises SettingError for settings, DataError for model files."""
    how = quantisation.record(quantize)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    notes: list[str] = []
    if where.type == "cuda" and dtype == "auto" and kind == torch.float32:
        notes.append(
            "This GPU has no bfloat16, so the model is in float32; dtype='float16' halves the memory."
        )
    given = find(path_or_id, revision)
    adapter = adapter_config(given)
    place = given if adapter is None else find_base(adapter, given)
    with quiet():
        model, how = load_model(place, how, kind, where, notes)
        tokenizer = load_tokenizer(given, place)
        stop_ids = check_tokenizer(tokenizer, model, notes)
        if adapter is not None:
            model = load_adapter(model, given)
            notes += note_of_other_base(given, how)
    model.eval()
    for note in notes:
        if note.startswith("!"):
            worker.warn(note[1:])
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        origin=Origin(
            model="tiny" if str(path_or_id) == "tiny" else given.name,
            base="tiny" if place.name == str(SHIPPED) else place.name,
            revision=revision,
            commit=given.revision,
            quantize=how,
            dtype=str(kind).removeprefix("torch."),
            device=str(where),
            seed=int(seed),
        ),
        stop_ids=stop_ids,
        notes=[note.lstrip("!") for note in notes],
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps to itself what transformers, peft and bitsandbytes say that a user can do nothing about.

    That is progress bars over weights already on disk, a missing optional kernel, and peft's use of a name
    that transformers is renaming.
    """
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        transformers_logging.disable_progress_bar()
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()


def pick_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto": cuda, else mps, else cpu. Raises SettingError if it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingError(f'device={device!r} is not known; use "auto", "cuda", "mps" or "cpu".') from error
    if not available.get(where.type, True) or (
        where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count()
    ):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise SettingError(
            f"device={device!r} is not on this machine (there is: {there}); use device='auto'."
        )
    return where


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype asked for. "auto": bfloat16 on a GPU that computes in it, float32 everywhere else.

    float16 is never chosen by itself: it trains only with loss scaling. Raises SettingError for an unknown
    name.
    """
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise SettingError(f'dtype={dtype!r} is not known; use "auto", {", ".join(map(repr, DTYPES))}.')
    if DTYPES[name] == torch.float64 and device.type == "mps":
        raise SettingError('dtype="float64" does not exist on mps; use device="cpu".')
    return DTYPES[name]


def find(path_or_id: str | Path, revision: str | None = None) -> Place:
    """The folder or Hub repository that a name means. Raises DataError, with what is near, if none is."""
    name = str(path_or_id)
    if name == "tiny":
        if not (SHIPPED / "config.json").is_file():
            raise DataError(f"The shipped model is missing from {SHIPPED}; install workbench again.")
        return Place(str(SHIPPED))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _model_folder(folder.resolve())
    if isinstance(path_or_id, Path) or not HUB_ID.fullmatch(name) or name.startswith("."):
        parent = folder.parent
        near = did_you_mean(
            folder.name, [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        )
        here = "" if parent.is_dir() else f" (the folder {parent} does not exist either)"
        raise DataError(f"There is no folder {name!r}{here}.{near}")
    return _hub_repository(name, revision)


def _model_folder(folder: Path) -> Place:
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return Place(str(folder))
    if (folder / "run.db").is_file():
        raise DataError(f"{folder} is a run, not a model; open it with wb.open, or go on with wb.resume.")
    inside = sorted(
        p.parent.name
        for p in folder.glob("*/*config.json")
        if p.name in ("config.json", "adapter_config.json")
    )
    hint = f" It holds model folders, though: {', '.join(inside[:5])}." if inside else ""
    raise DataError(f"{folder} holds no model: neither config.json nor adapter_config.json is in it.{hint}")


def _hub_repository(name: str, revision: str | None) -> Place:
    # One request, no retries: without a network from_pretrained takes a minute and a half to say so.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    try:
        info = HfApi().model_info(name, revision=revision, timeout=10)
        return Place(name, revision=info.sha, folder=False, local_only=False)
    except GatedRepoError as error:
        raise DataError(
            f"{name!r} is gated: accept its terms at https://huggingface.co/{name} and log in (`hf auth "
            "login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"The Hub has {name!r}, but not revision {revision!r}; use a branch, a tag or a commit."
        ) from error
    except RepositoryNotFoundError as error:
        near = did_you_mean(name, _cached_ids())
        raise DataError(
            f"There is no model {name!r} on the Hub and no folder of that name.{near} A private model needs "
            "`hf auth login`."
        ) from error
    except HfHubHTTPError as error:
        raise DataError(f"The Hub did not answer for {name!r}{at}: {error}. Try again later.") from error
    except Exception as error:  # no network: whatever the http library calls it; the cache may do
        return _from_cache(name, revision, at, error)


def _from_cache(name: str, revision: str | None, at: str, error: Exception) -> Place:
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Place(name, revision=Path(found).parent.name, folder=False, local_only=True)
    cached = _cached_ids()
    there = f" In the cache: {', '.join(cached[:8])}." if cached else ""
    raise DataError(
        f"There is no folder {name!r}, and the Hub cannot be reached to look for it there{at} "
        f"({type(error).__name__}).{did_you_mean(name, [*cached, 'tiny'])}{there} wb.load('tiny') needs no "
        "network."
    ) from error


def _cached_ids() -> list[str]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        return []


def adapter_config(place: Place) -> dict[str, Any] | None:
    """The adapter_config.json of a place that holds an adapter and no whole model, else None."""
    if place.folder:
        if (Path(place.name) / "config.json").is_file():
            return None
        path = Path(place.name) / "adapter_config.json"
    else:
        from transformers.utils.peft_utils import find_adapter_config_file

        options = {"revision": place.revision, "local_files_only": place.local_only}
        found = find_adapter_config_file(place.name, **options)
        if found is None:
            return None
        path = Path(found)
    return json.loads(path.read_text(encoding="utf-8"))


def find_base(config: dict[str, Any], adapter: Place) -> Place:
    """The model that an adapter belongs on. Raises DataError if it is nowhere."""
    base = config.get("base_model_name_or_path")
    if not base:
        raise DataError(
            f"The adapter in {adapter.name} does not say which model it is for (base_model_name_or_path)."
        )
    if Path(base).parts[-3:] == SHIPPED.parts[-3:]:  # saved on top of the shipped model, perhaps elsewhere
        return find("tiny")
    try:
        return find(base, config.get("revision"))
    except DataError as error:
        raise DataError(
            f"The adapter in {adapter.name} needs its base model {base!r}, which cannot be loaded. {error}"
        ) from error


def load_model(
    place: Place, how: quantisation.Record, dtype: torch.dtype, device: torch.device, notes: list[str]
) -> tuple[torch.nn.Module, quantisation.Record]:
    """The bare causal LM on its device, and how its weights are held. Raises DataError if its files do not make one,
    SettingError if it cannot be quantised.
    """
    from transformers import AutoModelForCausalLM, PretrainedConfig

    try:
        files, _ = PretrainedConfig.get_config_dict(place.name, **place.options)
    except Exception as error:  # transformers raises many kinds; `_why_not` tells them apart
        raise DataError(_why_not(place.name, error)) from error
    plan = quantisation.plan(how, files, place.name, dtype, device)
    extra: dict[str, Any] = {} if plan.config is None else {"quantization_config": plan.config}
    if plan.how is not None or device.type == "cuda":
        extra["device_map"] = {"": device}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            place.name, dtype=dtype, output_loading_info=True, **place.options, **extra
        )
    except Exception as error:  # transformers raises many kinds; `_why_not` tells them apart
        raise DataError(_why_not(place.name, error)) from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise DataError(
            f"{place.name} lacks {len(absent)} weights of a {type(model).__name__} ({', '.join(absent[:3])}, "
            "...), which would be random. It was saved for another kind of model (a classifier or an "
            "encoder?), or is incomplete."
        )
    if plan.how is not None:
        quantisation.mend(model, dtype)
        quantisation.check(model.eval(), plan.how, notes)
    return model if "device_map" in extra else model.to(device), plan.how


def _why_not(name: str, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"{name} comes with Python code of its own, which workbench never runs: a model's repository "
            "could do anything with your files and keys. Use a version of the model that transformers "
            "supports by itself."
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return f"{name} is of a kind that this version of transformers does not know: {_short(text)}"
    if "Unrecognized configuration class" in text:
        return f"{name} is not a causal language model, so it cannot be a policy: {_short(text)}"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{name} does not fit into memory; try quantize='nf4' or a smaller model. {_short(text)}"
    return f"{name} cannot be loaded: {type(error).__name__}: {_short(text)}"


def _short(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."


def load_adapter(model: torch.nn.Module, place: Place) -> torch.nn.Module:
    """The model with the adapter of `place` on it, trainable."""
    from peft import PeftConfig, PeftModel

    options = {} if place.folder else {"revision": place.revision, "local_files_only": place.local_only}
    try:
        config = PeftConfig.from_pretrained(place.name, **options)
        loaded = PeftModel.from_pretrained(
            model, place.name, is_trainable=not config.is_prompt_learning, **options
        )
    except Exception as error:
        raise DataError(
            f"The adapter in {place.name} cannot be loaded: {type(error).__name__}: {_short(str(error))}"
        ) from error
    if config.is_prompt_learning:
        # Only the virtual tokens are saved, not the network that may have made them; peft calls that not
        # trainable, but the tokens are.
        loaded.prompt_encoder[loaded.active_adapter].embedding.requires_grad_(True)
    return loaded


def note_of_other_base(adapter: Place, how: quantisation.Record) -> list[str]:
    """A note if an adapter that workbench saved was trained on a base held in another way."""
    path = Path(adapter.name) / "workbench.json"
    if not adapter.folder or not path.is_file():
        return []
    then = json.loads(path.read_text(encoding="utf-8")).get("quantize")
    if then == how:
        return []
    said = [f"in {quantisation.name_of(h)}" if h else "not quantised" for h in (then, how)]
    return [f"This adapter was trained on a base {said[0]}; here the base is {said[1]}, and says a little else."]


def load_tokenizer(given: Place, base: Place) -> Any:
    """The tokenizer saved with what was asked for, else the base model's. Raises DataError if none is."""
    from transformers import AutoTokenizer

    error: Exception | None = None
    own = not given.folder or (Path(given.name) / "tokenizer_config.json").is_file() or given == base
    for place in [given, base] if own and given != base else [base]:
        try:
            return AutoTokenizer.from_pretrained(place.name, **place.options)
        except Exception as caught:  # whatever is wrong with this one, the other may do
            error = caught
    raise DataError(f"{base.name} has no tokenizer that can be loaded: {_short(str(error))}") from error


def check_tokenizer(tokenizer: Any, model: torch.nn.Module, notes: list[str]) -> tuple[int, ...]:
    """Makes sure of end and pad tokens and gathers notes (those that matter start with "!"). Returns the stop
    ids.

    Raises DataError if there is no end token at all, or if the tokenizer knows more ids than the model.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise DataError(
            f"The tokenizer has {len(tokenizer)} tokens but the model only {rows}: they do not belong "
            "together. Load the tokenizer's own model, or save the model again with its embeddings resized."
        )
    from_model = model.generation_config.eos_token_id
    listed = [] if from_model is None else from_model if isinstance(from_model, list) else [from_model]
    listed = [int(i) for i in listed]
    if tokenizer.eos_token_id is None:
        if not listed:
            raise DataError(
                "The tokenizer has no end token and the model names none, so completions could never stop. "
                "Set "
                '"eos_token" in tokenizer_config.json to the token that ends a text.'
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(listed[0])
        notes.append(f"!The tokenizer has no end token; {tokenizer.eos_token!r} is used, the model's own.")
    stop_ids = tuple(dict.fromkeys([tokenizer.eos_token_id, *listed]))
    if len(stop_ids) > 1:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in stop_ids)
        notes.append(f"Completions stop at any of {names}; training ends them with {tokenizer.eos_token!r}.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(
            f"The tokenizer has no pad token; {tokenizer.eos_token!r} stands in (pads are never scored)."
        )
    notes += template_notes(tokenizer)
    return stop_ids


def template_notes(tokenizer: Any) -> list[str]:
    """What is worth knowing about the chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return ["There is no chat template: give prompts as plain strings, not as messages."]
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except Exception as error:
        return [f"!The chat template fails on a single user message: {_short(str(error))}"]
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return [f"The chat template writes {bos!r} itself; workbench adds no second one to templated text."]
    return []
