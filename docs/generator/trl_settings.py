"""Tables for docs/from_trl.md: every setting and trainer argument of the installed TRL, and where it is here.

TRL's files are read, not imported: names and defaults stand in them.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docs.generator.markdown import code, line, table
from docs.generator.settings_tables import literal
from workbench import settings
from workbench.settings.presets import PRESETS
from workbench.settings.trl import ANSWERS, ARGUMENTS

TRAINERS = {
    "SFT": ("sft", "trainer/sft"),
    "DPO": ("dpo", "trainer/dpo"),
    "GRPO": ("grpo", "trainer/grpo"),
    "RLOO": ("rloo", "trainer/rloo"),
    "KTO": ("kto", "trainer/kto"),
    "CPO": ("cpo", "experimental/cpo/cpo"),
    "ORPO": ("orpo", "experimental/orpo/orpo"),
}
"""TRL's trainer -> our method, and the beginning of the file names"""
NOTES = {
    "lr_scheduler_type": "moves once a step, not once an update",
    "warmup_steps": "steps, not updates; below 1 a share of all steps, in both",
    "optim": "fused or not, the numbers agree",
    "eval_steps": "step 0 and the last step always; None: about ten times in the run",
    "bf16": "in TRL None means wherever the hardware has it; sampling and the head's logits stay float32 here",
    "seed": "also of sampling; no seed gives TRL's samples",
    "steps_per_generation": "updates that a sampling is split into; in TRL None means gradient_accumulation_steps",
    "num_generations_eval": "in TRL None means num_generations",
    "SFT.shuffle_dataset": "a new order each epoch; in TRL train_sampling_strategy sees to that",
    "DPO.loss_type": "None means sigmoid",
}
"""differences of settings that have TRL's name"""
DEFAULTS = {"default_optim": "adamw_torch_fused"}
"""what a default that is no literal comes to, with torch 2.8 and later"""
CODE = re.compile(r"wb\.\S.*|[a-z_.]+\(.*\)\S*|[a-z_.]+ ?= ?\S+|for step in run: \.\.\.")
"""an answer that is to be typed as it stands"""
NO_VALUE = object()
"""the default of a field that must be given"""


# -- what TRL has


def _class(package: str, file: str, name: str) -> ast.ClassDef:
    folder = Path(find_spec(package).submodule_search_locations[0])
    body = ast.parse((folder / f"{file}.py").read_text(encoding="utf-8")).body
    return next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)


def _fields(owner: ast.ClassDef) -> dict[str, Any]:
    """Name -> default of the annotated fields; what is no literal stays as its source."""
    return {
        node.target.id: _default(node.value)
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_")
    }


def _default(value: ast.expr | None) -> Any:
    if value is None:
        return NO_VALUE
    if isinstance(value, ast.Call):  # field(default=..., metadata=...)
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default_factory" in given:
            return {"list": [], "dict": {}}.get(ast.unparse(given["default_factory"]), None)
        return _default(given.get("default"))
    try:
        return ast.literal_eval(value)
    except ValueError:
        source = ast.unparse(value)
        return DEFAULTS.get(source, source)


@cache
def common() -> dict[str, Any]:
    """What every config has: transformers' TrainingArguments with TRL's own defaults."""
    base = _fields(_class("transformers", "training_args", "TrainingArguments"))
    return base | _fields(_class("trl", "trainer/base_config", "_BaseConfig"))


@cache
def of_config(trainer: str) -> dict[str, Any]:
    """What this config has of its own, or with another default."""
    fields = _fields(_class("trl", f"{TRAINERS[trainer][1]}_config", f"{trainer}Config"))
    return {name: value for name, value in fields.items() if common().get(name, NO_VALUE) != value}


@cache
def arguments() -> dict[str, list[str]]:
    """Argument -> the trainers that take it."""
    taken: dict[str, list[str]] = {}
    for trainer, (_, file) in TRAINERS.items():
        owner = _class("trl", f"{file}_trainer", f"{trainer}Trainer")
        init = next(n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        for argument in (init.args.args + init.args.kwonlyargs)[1:]:
            taken.setdefault(argument.arg, []).append(trainer)
    return taken


# -- where it is here


def ours(trainer: str | None) -> dict[str, Any]:
    """Our settings and their defaults: of the trainer's method, or (None) those of every method."""
    if trainer is None:
        kind, changed = settings.Settings, {}
    elif trainer == "RLOO":  # wb.grpo with a preset
        kind, changed = settings.METHODS["grpo"], PRESETS["rloo"].sets
    else:
        kind, changed = settings.METHODS[TRAINERS[trainer][0]], {}
    return {field.name: field.default for field in dataclasses.fields(kind)} | dict(changed)


def _section(theirs: dict[str, Any], here: dict[str, Any], trainer: str = "") -> str:
    """A table of what differs, then what is the same, then what is not there."""
    rows, same = [], []
    for name, default in theirs.items():
        note = line(NOTES.get(f"{trainer}.{name}") or NOTES.get(name, ""))
        if name in here and here[name] == default and not note:
            same.append(code(name))
        elif name in here:
            rows.append([code(name), code(name), _defaults(default, here[name]), note])
        elif name in ANSWERS and ANSWERS[name].here is None:
            continue  # see `absent`
        elif name in ANSWERS:
            other = ANSWERS[name].here
            rows.append([code(name), _typed(other, here), _defaults(default, here.get(other, NO_VALUE)), _why(name)])
        else:
            rows.append([code(name), _of_some_methods(name), "", note])
    parts = [table(["TRL", "here", "default in TRL → here", "the difference"], rows)] if rows else []
    if same:
        parts.append(f"Same name, same default: {', '.join(same)}.")
    return "\n\n".join(parts)


def absent() -> str:
    """The settings of all trainers that have nothing here, by the reason."""
    reasons: dict[str, list[str]] = {}
    for name in dict.fromkeys([*common(), *(name for trainer in TRAINERS for name in of_config(trainer))]):
        if name in ANSWERS and ANSWERS[name].here is None:
            reasons.setdefault(ANSWERS[name].why, []).append(code(name))
    return "\n".join(f"- {', '.join(names)}: {line(why)}" for why, names in reasons.items())


def _why(name: str) -> str:
    why = line(ANSWERS[name].why)
    return "" if why == "the same" else why


def _typed(answer: str, here: dict[str, Any]) -> str:
    """What to write instead; as code where it is to be typed as it stands."""
    return code(answer) if answer in here or answer in ARGUMENTS or CODE.fullmatch(answer) else line(answer)


def _of_some_methods(name: str) -> str:
    owners = [method for method, kind in settings.METHODS.items() if name in kind.__dataclass_fields__]
    if not owners:
        raise SystemExit(f"settings/trl.py: ANSWERS says nothing about TRL's {name!r}.")
    return f"{code(name)} of {', '.join(code(f'wb.{method}') for method in owners)}"


def _defaults(theirs: Any, here: Any) -> str:
    """Both defaults, where they differ and there are two."""
    if NO_VALUE in (theirs, here) or theirs == here:
        return ""
    return f"{code(literal(theirs))} → {code(literal(here))}"


def common_table() -> str:
    return _section(common(), ours(None))


def trainer_table(trainer: str) -> str:
    return _section(of_config(trainer), ours(trainer), trainer)


def all_trainers() -> str:
    parts = []
    for trainer, (method, _) in TRAINERS.items():
        parts += [f"#### {trainer}Config and `wb.{method}`", trainer_table(trainer)]
    return "\n\n".join(parts)


def arguments_table() -> str:
    rows = []
    for name, trainers in arguments().items():
        takers = "all" if len(trainers) == len(TRAINERS) else ", ".join(trainers)
        if name in ARGUMENTS:
            rows.append([code(name), takers, code(name), line(ARGUMENTS[name])])
        else:
            other = ANSWERS[name].here
            rows.append([code(name), takers, "not here" if other is None else _typed(other, {}), _why(name)])
    return table(["argument in TRL", "of", "here", "the difference"], rows)
