"""docs/reference.md: every public name by noun, from signatures, docstrings and the rules of settings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import griffe

import workbench
from docs.generator import command_line, settings_tables, source
from docs.generator.markdown import code, doc, first_sentence, line, link, table, with_anchors

HEAD = """# Reference

Every public name, by noun. `wb` is `import workbench as wb`. Elsewhere: [losses and estimators](losses.md),
[metrics](metrics.md), [coming from TRL](from_trl.md), [how the source is laid out](source.md).
"""


@dataclass(frozen=True)
class Section:
    """A noun: its heading, a sentence or two, and the public names under it."""

    title: str
    names: tuple[str, ...]
    about: str = ""


SECTIONS = (
    Section("Policy", ("load", "LoRA", "Policy"), "A causal LM, its tokenizer and its adapter."),
    Section("Rows", ("rows", "Rows", "show_mask"), "What training reads. Which columns make which form:"),
    Section("Task", ("task", "Task"), "Rows with the functions that score what a model makes of them: what RL needs."),
    Section("Rewards", ("rewards", "check_rewards")),
    Section("Judges", ("judges",), "What says whether an answer is right, or which of two is better."),
    Section("Rollouts", ("Rollouts",), "Completions, and what is known about each."),
    Section(
        "Methods",
        ("sft", "dpo", "cpo", "orpo", "kto", "grpo", "rloo"),
        "Each makes a [Run](#run); nothing trains yet. Their losses, and which to take: [losses](losses.md).",
    ),
    Section(
        "Catalogue",
        ("catalogue", "method"),
        "Published methods under their names. All of them: [catalogue](catalogue.md).",
    ),
    Section("Run", ("Run", "open", "resume", "runs", "compare"), "A method being executed, with its record."),
    Section("Evaluation", ("evaluate",), "What a policy can do, without a run."),
    Section("Forecast", ("forecast",), "Whether a run fits into memory, before it begins."),
    Section("Choices", ("label", "labels"), "A person's choices between answers, as rows to train on."),
    Section("Tracking", ("Tracker", "Wandb", "TensorBoard", "Trackio"), "A run's numbers sent on while it goes."),
    Section("Metrics", ("metric", "metrics"), "What the curves mean. All of them, by group: [metrics](metrics.md)."),
    Section("Errors", ("WorkbenchError", "SettingError", "DataError", "RewardError", "StoreError", "RunError")),
)
"""the order of the page; a public name that stands nowhere here is an error of `make docs`"""

EVERYDAY = {
    "Policy": ("attach", "sample", "score", "play", "save", "export", "push", "reset"),
    "Run": (
        "__iter__", "run", "start", "pause", "stop", "wait", "set", "rewind", "fork", "rescore", "gradients",
        "forecast", "rollouts", "show", "browse", "tokens", "report", "push",
    ),
    "Rows": ("map", "column", "as_form", "to_list", "to_pandas"),
    "Rollouts": ("of", "to_pandas", "take", "show"),
    "Task": ("with_rewards", "score"),
}  # fmt: skip
"""methods that get a heading of their own, in this order; the others stand in a table after them"""

BESIDE = {
    "Policy": (("workbench.scoring", "Scores"), ("workbench.export", "Agreement")),
    "Run": (("workbench.methods.context", "Step"), ("workbench.looking", "Gradients"),
            ("workbench.rescoring", "Rescored"), ("workbench.comparing", "Comparison")),
    "Rewards": (("workbench.reward_bench", "RewardCheck"), ("workbench.reward_bench.findings", "Finding")),
    "Evaluation": (("workbench.evaluate_policy", "Evaluation"),),
    "Choices": (("workbench.store.choices", "Labels"),),
    "Forecast": (("workbench.forecasting", "Forecast"),),
}
"""what calls answer with: not made by users, but read by them"""


def page() -> str:
    sections = [section for section in SECTIONS if any(name in workbench._NAMES for name in section.names)]
    placed = {name for section in SECTIONS for name in section.names}
    if missing := sorted(set(workbench._NAMES) - placed):
        raise SystemExit(f"docs/generator/reference.py: give {', '.join(missing)} a place in SECTIONS.")
    body = "\n\n".join(_section(section) for section in sections)
    return with_anchors(f"{HEAD}\n{_contents(sections)}\n\n{body}\n\n{command_line.section()}")


def _contents(sections) -> str:
    rows = []
    for section in sections:
        names = [name for name in section.names if name in workbench._NAMES]
        rows.append([link(section.title, section.title), " · ".join(_links(name) for name in names)])
    commands = " · ".join(link(code(name), name) for name in command_line.names())
    return table(["noun", "names"], [*rows, [link("Shell", "Shell"), commands]])


def _links(name: str) -> str:
    """The name, and what is called on it most: `wb.Policy`: `.attach`, `.sample`, ..."""
    made = link(code(f"wb.{name}"), f"wb.{name}")
    if workbench._NAMES[name].endswith(":"):
        called = {f".{member}": f"wb.{name}.{member}" for member in _ready(workbench._NAMES[name][:-1])}
    else:
        found = _everyday(name)
        called = {f".{method}": _called(name, method, found) for method in found}
    return f"{made}: {', '.join(link(code(short), whole) for short, whole in called.items())}" if called else made


def _everyday(name: str) -> dict[str, griffe.Function]:
    """The methods of the class `wb.<name>` that have a heading of their own."""
    if name not in EVERYDAY:
        return {}
    module, _, attribute = workbench._NAMES[name].partition(":")
    members = source.find(module, attribute or name).members
    return {method: members[method] for method in EVERYDAY[name] if method in members and method != "__iter__"}


def _called(name: str, method: str, found) -> str:
    """`policy.sample`; `wb.Rollouts.of` where it is called on the class."""
    return f"wb.{name}.{method}" if "classmethod" in found[method].labels else f"{name.lower()}.{method}"


def _section(section: Section) -> str:
    parts = [f"## {section.title}", section.about]
    if section.title == "Rows":
        parts.append(_forms())
    for name in section.names:
        if name in workbench._NAMES:
            parts.append(_entry(name))
    if section.title == "Methods":
        parts.append(settings_tables.common())
    for module, name in BESIDE.get(section.title, ()):
        parts.append(_class(name, source.find(module, name), called=""))
    return "\n\n".join(part for part in parts if part)


def _entry(name: str) -> str:
    module, colon, attribute = workbench._NAMES[name].partition(":")
    if colon and not attribute:
        return _module(name, module)
    thing = source.find(module, attribute or name)
    if thing.is_class:
        return _class(f"wb.{name}", thing, called=f"wb.{name}")
    parts = [f"### `wb.{name}`", source.signature(f"wb.{name}", thing), doc(source.docstring(thing))]
    if name in settings_tables.methods():
        parts.append(settings_tables.own(name))
    return "\n\n".join(parts)


def _class(title: str, owner: griffe.Class, called: str) -> str:
    parts = [f"### `{title}`"]
    if called and not _is_error(owner) and owner.name not in ("Policy", "Run", "Rows"):
        parts.append(source.constructor(called, owner))
    parts.append(doc(_class_docstring(owner)))
    if rows := source.attribute_rows(owner):
        parts.append(table(["attribute", ""], rows))
    parts += _methods(title.removeprefix("wb."), owner)
    return "\n\n".join(part for part in parts if part)


def _methods(name: str, owner: griffe.Class) -> list[str]:
    first = _everyday(name)
    parts = []
    if "__iter__" in EVERYDAY.get(name, ()):
        parts += [f"#### `for step in {name.lower()}`", doc(source.docstring(owner.members["__iter__"]))]
    for method, function in first.items():
        called = _called(name, method, first)
        parts += [f"#### `{called}`", source.signature(called, function), doc(source.docstring(function))]
    rows = [
        [_call(method, function), line(_brief(source.docstring(function)))]
        for method, function in source.public(owner).items()
        if function.is_function and method not in first and source.docstring(function)
    ]
    if rows:
        parts.append(table(["also" if first else "method", ""], rows))
    return parts


def _call(name: str, function: griffe.Function) -> str:
    return code(f"{name}({source.required(function)})")


def _brief(docstring: str) -> str:
    return docstring.split("\n\n")[0]


def _class_docstring(owner: griffe.Class) -> str:
    """A class that says "See the module" is told by its module."""
    said = source.docstring(owner)
    if said.startswith("See the module."):
        return f"{source.docstring(owner.module)}\n\n{said.removeprefix('See the module.').strip()}"
    return said


def _is_error(owner: griffe.Class) -> bool:
    return any(str(base).endswith(("Error", "Exception")) for base in owner.bases)


def _forms() -> str:
    data = importlib.import_module("workbench.data")
    kinds = {"messages": "conversational", "text": "plain"}
    forms = data.FORMS.items()
    rows = [[code(form), ", ".join(map(code, columns)), kinds.get(form, "both")] for form, columns in forms]
    return table(["form", "columns", "plain or conversational"], rows)


def _module(name: str, module: str) -> str:
    """A module whose members are used as wb.<name>.<member>: a table, then an entry each."""
    owner = source.module(module)
    members = {member: source.find(module, member) for member in importlib.import_module(module).__all__}
    ready = _ready(module)
    rows = [
        [link(code(f"wb.{name}.{n}"), f"wb.{name}.{n}"), line(first_sentence(source.docstring(m)))]
        for n, m in ready.items()
    ]
    parts = [f"### `wb.{name}`", doc(source.docstring(owner)), table(["", ""], rows)]
    for member, thing in ready.items():
        called = f"wb.{name}.{member}"
        made = source.constructor(called, thing) if thing.is_class else source.signature(called, thing)
        parts += [f"#### `{called}`", made, doc(source.docstring(thing))]
        if thing.is_class and (rows := source.attribute_rows(thing)):
            parts.append(table(["setting", ""], rows))
    others = [
        [code(m.name if m.is_class else f"{n}({source.required(m)})"), line(_brief(source.docstring(m)))]
        for n, m in members.items()
        if n not in ready
    ]
    parts.append(table(["also", ""], others))
    return "\n\n".join(part for part in parts if part)


def _ready(module: str) -> dict[str, griffe.Object]:
    """The ready-made rewards of a module."""
    members = {name: source.find(module, name) for name in importlib.import_module(module).__all__}
    return {name: thing for name, thing in members.items() if _is_reward(name, thing)}


def _is_reward(name: str, thing: griffe.Object) -> bool:
    """Ready-made: a function of completions, or a class in small letters that makes one."""
    if thing.is_class:
        return name[0].islower()
    return any(parameter.name == "completions" for parameter in thing.parameters) and name != "score"
