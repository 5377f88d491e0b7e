"""Settings: few, flat, typed, frozen, documented under the field, checked in one place.

Names, values and meanings are TRL 1.16's where TRL has one. A TRL name that is spelt differently here is
answered with ours; any other unknown name with the nearest one. A setting's rule stands beside its default.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from workbench.errors import SettingError, did_you_mean, nearest
from workbench.settings import schedules
from workbench.settings.base import Settings
from workbench.settings.preference import CPOSettings, DPOSettings, KTOSettings, ORPOSettings
from workbench.settings.rl import GRPOSettings
from workbench.settings.supervised import SFTSettings
from workbench.settings.trl import ANSWERS, ARGUMENTS, TRL_NAMES, say

__all__ = ["METHODS", "TRL_NAMES", "CPOSettings", "DPOSettings", "GRPOSettings", "KTOSettings", "ORPOSettings"]
__all__ += ["SFTSettings", "Settings", "check", "evaluation_due", "fixed", "known", "make", "typed"]

METHODS: dict[str, type[Settings]] = {
    "sft": SFTSettings,
    "dpo": DPOSettings,
    "cpo": CPOSettings,
    "orpo": ORPOSettings,
    "kto": KTOSettings,
    "grpo": GRPOSettings,
}


_VARIANTS: dict[str, type[Settings]] = {}


def register(method: str, kind: type[Settings]) -> None:
    """The settings of a method that is none of METHODS."""
    _VARIANTS[method] = kind


def of(method: str) -> type[Settings]:
    """The settings of `method`."""
    return METHODS.get(method) or _VARIANTS[method]


def find(method: str) -> type[Settings] | None:
    """The same; None for a method that nothing has loaded in this process."""
    return METHODS.get(method) or _VARIANTS.get(method)


def loop_of(kind: type[Settings]) -> type[Settings]:
    """The settings of the loop that these extend."""
    return next(owner for owner in kind.__mro__ if owner in METHODS.values() or owner is Settings)


def own(method: str) -> list[str]:
    """The settings that a published method has beside those of its loop, or with another default; none of METHODS."""
    kind = of(method)
    above = list(kind.__mro__)[: kind.__mro__.index(loop_of(kind))]
    named = {name for owner in above for name in owner.__dict__.get("__annotations__", ())}
    return [field.name for field in dataclasses.fields(kind) if field.name in named]


def called(method: str) -> str:
    """How a user calls `method`."""
    return f"wb.{method}" if method in METHODS else f"wb.method({method!r})"


def make(method: str, given: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings of `method` with `given` over the defaults (or over `base`), checked.

    Raises SettingError for a name that is unknown, a wrong type, a value out of range, or values that do not
    go together.
    """
    kind = of(method)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = kind.resolve(given, base)
    for name in given:
        if name not in fields:
            raise SettingError(f"{called(method)} has no setting {name!r}.{_ours(method, name, fields)}")
    values = {name: typed(name, value, str(fields[name].type)) for name, value in given.items()}
    settings = dataclasses.replace(base, **values) if base else kind(**values)
    check(method, settings)
    return settings


def known(method: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the stored settings that this version still has."""
    return {name: value for name, value in stored.items() if name in of(method).__dataclass_fields__}


def fixed(method: str) -> set[str]:
    """The settings of `method` that cannot change within a run."""
    return {field.name for field in dataclasses.fields(of(method)) if field.metadata.get("fixed")}


def _ours(method: str, name: str, fields: Mapping[str, Any]) -> str:
    """What to write instead of `name`, which is no setting of `method`."""
    if having := [f"wb.{other}" for other, kind in METHODS.items() if name in kind.__dataclass_fields__]:
        longer = [field for field in fields if field.startswith(name) or name.startswith(f"{field}_")]
        near = f" Did you mean {longer[0]!r}?" if longer else ""
        has = "have" if len(having) > 1 else "has"
        return f"{near} {' and '.join(having)} {has} it. Settings: {', '.join(sorted(fields))}."
    if name in ARGUMENTS:
        later = " A run that has begun is followed by run.track(...)." if name == "track" else ""
        return f" It is an argument of {called(method)} ({ARGUMENTS[name]}), given when a run begins.{later}"
    if name in ANSWERS:
        return f" {say(name)}"
    hit = nearest(name, [*fields, *ANSWERS])
    hint = f" Did you mean {hit!r}?" if hit else ""
    if hit in ANSWERS:
        hint = f" Did you mean TRL's {hit}? {say(hit)}"
    return f"{hint} Settings: {', '.join(sorted(fields))}."


def typed(name: str, value: Any, kind: str) -> Any:
    """`value` as the field's type, which is written as `int`, `float | None`, `str | tuple[str, ...]` and so on.

    Whole floats pass for int, ints for float, numpy scalars for both, lists for tuples; a list of one is that one
    where the field takes it alone.
    """
    kinds = kind.split(" | ")
    if value is None:
        if "None" in kinds:
            return None
        raise SettingError(f"{name}=None: this setting needs a value ({kind}).")
    if isinstance(value, (list, tuple)):
        element = next((k[len("tuple[") : -len(", ...]")] for k in kinds if k.startswith("tuple[")), None)
        if element is None or not value:
            raise SettingError(f"{name}={value!r}: expected {kind}, got {'an empty ' * (not value)}list.")
        made = tuple(typed(f"{name}[{i}]", item, element) for i, item in enumerate(value))
        return made[0] if len(made) == 1 and element in kinds else made
    if isinstance(value, Mapping) and "dict" in kinds:
        return dict(value)
    return _scalar(name, value, kind, kinds)


def _scalar(name: str, value: Any, kind: str, kinds: list[str]) -> Any:
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, bool) and "bool" in kinds:
        return value
    if isinstance(value, str) and "str" in kinds:
        return value
    if isinstance(value, float) and math.isnan(value):
        raise SettingError(f"{name}={value!r} is not a number; it must be {kind}.")
    if not isinstance(value, bool) and isinstance(value, (int, float)):
        if "int" in kinds and float(value).is_integer():
            return int(value)
        if "float" in kinds:
            return float(value)
    hint = f" Give a list: {name}=[{value!r}]." if isinstance(value, str) and "tuple[str, ...]" in kinds else ""
    raise SettingError(f"{name}={value!r}: expected {kind}, got {type(value).__name__}.{hint}")


def check(method: str, settings: Settings) -> None:
    """Raise SettingError for the first value out of range, and for values that do not go together."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        several = isinstance(value, tuple)
        for i, item in enumerate(value if several else [value]):
            if several and item == "":
                raise SettingError(f"wb.{method}: {field.name}[{i}] is an empty text. Leave it out.")
            if item is not None and not isinstance(item, dict):
                _check_one(method, f"{field.name}[{i}]" if several else field.name, item, field.metadata)
    s = settings
    schedule = schedules.problem(s.lr_scheduler_type, s.lr_scheduler_kwargs, s.lr, s.warmup_steps)
    if problem := schedule or settings.problem():
        raise SettingError(f"{called(method)}: {problem}")


def _check_one(method: str, name: str, value: Any, rule: Mapping[str, Any]) -> None:
    options = rule.get("choices")
    if options and isinstance(value, str) and value not in options:
        hint = f" {said}" if (said := rule.get("hints", {}).get(value)) else did_you_mean(value, options)
        raise SettingError(f"{called(method)}: {name}={value!r} is not known.{hint} Options: {', '.join(options)}.")
    if isinstance(value, (str, bool)):
        return
    for what, keeps in (
        ("at_least", lambda bound: value >= bound),
        ("above", lambda bound: value > bound),
        ("at_most", lambda bound: value <= bound),
        ("below", lambda bound: value < bound),
    ):
        bound = rule.get(what)
        if bound is not None and not keeps(bound):
            raise SettingError(f"{called(method)}: {name}={value!r} must be {what.replace('_', ' ')} {bound}.")
    if math.isinf(value):
        raise SettingError(f"{called(method)}: {name}={value!r} must be finite.")


def evaluation_due(settings: Settings, step: int) -> bool:
    """Whether step `step` is one to evaluate at: 0, every `eval_steps`, and the last."""
    every = settings.eval_steps or max(1, settings.steps // 10)
    return step % every == 0 or step == settings.steps
