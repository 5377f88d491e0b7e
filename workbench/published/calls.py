"""The callable of a record: its signature, and a help text that reads like a card."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from workbench import methods
from workbench import settings as settings_of
from workbench.launch import launch
from workbench.published.entry import Entry
from workbench.run import Run
from workbench.settings.meanings import meanings

SHARED = ("steps", "lr", "batch_size", "prompts_per_step", "group_size", "max_new_tokens", "seed")
"""settings of all methods that stand in a signature; the others are taken all the same"""


_LOOPS = {kind: f"wb.{name}" for name, kind in reversed(settings_of.METHODS.items())}
"""by a loop's settings, how it is called"""


def callable_of(entry: Entry) -> Callable[..., Any]:
    """What `wb.method` gives for a record."""
    return _training(entry) if entry.trains else _function(entry)


def _training(entry: Entry) -> Callable[..., Run]:
    method = methods.get(entry.call)

    def call(
        policy: Any, data: Any, *, out: Any = None, eval_dataset: Any = None, track: Any = None, **settings: Any
    ) -> Run:
        given = dict(entry.sets) | settings
        return launch(entry.call, policy, data, out or f"runs/{entry.name}", eval_dataset, given, track)

    call.__name__ = call.__qualname__ = entry.name
    call.__module__ = "workbench.published"
    call.__signature__ = _signature(entry, method)
    card = inspect.cleandoc(entry.card or _module_of(method).__doc__)
    call.__doc__ = "\n\n".join([card, _settings(entry, method), *_more(entry)])
    return call


def _module_of(method: methods.Method) -> Any:
    return import_module(methods.names()[method.name].partition(":")[0])


def own_settings(method: methods.Method) -> list[dataclasses.Field]:
    """The settings that a method has beside those of its loop, or with another default."""
    named = settings_of.own(method.name)
    return [field for field in dataclasses.fields(settings_of.of(method.name)) if field.name in named]


def _signature(entry: Entry, method: methods.Method) -> inspect.Signature:
    kind, keyword = settings_of.of(method.name), inspect.Parameter.KEYWORD_ONLY
    data = "task" if method.takes == "task" else "rows"
    fields = {field.name: field for field in dataclasses.fields(kind)}
    own = [] if method.name in settings_of.METHODS else own_settings(method)
    shared = [name for name in SHARED if name in fields and (name != "max_new_tokens" or method.takes == "task")]
    shown = [fields[name] for name in [*shared, *entry.sets]] + own
    shown = list({field.name: field for field in shown}.values())
    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("policy", data)]
    named = [inspect.Parameter(name, keyword, default=None) for name in ("out", "eval_dataset", "track")]
    named[0] = named[0].replace(default=f"runs/{entry.name}")
    named += [
        inspect.Parameter(f.name, keyword, default=_default(entry, method, f), annotation=f.type) for f in shown
    ]
    rest = inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature([*first, *named, rest], return_annotation=Run)


def _default(entry: Entry, method: methods.Method, field: dataclasses.Field) -> Any:
    if field.name == "steps" and method.steps is not None:
        return None  # as many as its rounds have
    return entry.sets.get(field.name, field.default)


def _settings(entry: Entry, method: methods.Method) -> str:
    """The method's own settings, one a line, and where the others are from."""
    words, base = meanings(method.name), _LOOPS[settings_of.loop_of(settings_of.of(method.name))]
    if method.name in settings_of.METHODS:
        sets = ", ".join(f"{name}={value!r}" for name, value in entry.sets.items())
        return f"This is wb.{method.name} with {sets}; its other settings are those of wb.{method.name}."
    lines = [f"    {f.name} = {f.default!r}\n        {words[f.name]}" for f in own_settings(method)]
    own = "\n".join(["Settings of its own:", "", *lines]) if lines else "It has no settings of its own."
    return f"{own}\n\nAll other settings are those of {base}. Returns a Run, like wb.sft and its kin."


def _function(entry: Entry) -> Callable[..., Any]:
    module, _, name = entry.call.partition(":")
    made = getattr(import_module(module), name)

    @wraps(made)
    def call(*args: Any, **how: Any) -> Any:
        return made(*args, **how)

    call.__name__ = call.__qualname__ = entry.name
    card = inspect.cleandoc(import_module(module).__doc__)
    call.__doc__ = "\n\n".join([card, inspect.cleandoc(made.__doc__), *_more(entry)])
    return call


def _more(entry: Entry) -> list[str]:
    paper = entry.paper
    parts = [", ".join(str(part) for part in (paper.authors, paper.year, paper.title, paper.link) if part)]
    made = [f"Paper: {parts[0]}."]
    made += [f"Needs: {entry.needs}."] * bool(entry.needs)
    made += [f"Differs: {entry.differs}"] * bool(entry.differs)
    example = "\n".join(f"    {line}" for line in entry.example.strip().splitlines())
    return [*made, f"Example:\n\n{example}"]
