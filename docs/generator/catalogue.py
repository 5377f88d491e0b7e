"""docs/catalogue.md: every record of the catalogue as a table, and each method's card."""

from __future__ import annotations

import inspect

import workbench as wb
from docs.generator.markdown import code, doc, line, table, with_anchors
from workbench.published import FAMILIES, _of, entries
from workbench.published.entry import Entry

HEAD = """# Catalogue

Published methods under their names: `wb.method("masked_thought")` gives the callable, `help()` on it the card that
stands here, `wb.catalogue()` this table as a DataFrame. A training method takes a policy and data and returns a
[Run](reference.md#run), like `wb.sft`: it is stepped, paused, rewound, forked and looked at in the same way. A merge, a
selector, a transform, a reward or an analysis returns what it is.

Nearly all of them change one or two places of three loops. Which places there are stands in
[how the source is laid out](source.md#the-catalogue). "Neutral" is the setting at which a method is its base method,
in loss and gradients; tests hold every method to it, and to the exactness of the three loops: how rows are cut into
micro-batches or laid out changes nothing, any step can be gone back to, a stopped run goes on.

The examples run on small things: `policy` is the shipped model with `wb.LoRA(r=8)`, `rows` have a prompt and a
completion, `pairs` a prompt, a chosen and a rejected answer, `task` is `wb.task("sums", size=32)`, and `out` is a
folder.
"""
TITLES = {
    "supervised": "Supervised: other losses, weights and inputs",
    "transformed": "Rows: transforms, and tasks that make rows",
    "preference": "Preference",
    "policy": "Reinforcement: small changes to a step in groups",
    "actors": "Reinforcement: value heads, memories, modes",
    "selftraining": "Self-training: sample, filter, train",
    "selection": "Selection: which rows to train on",
    "adapting": "Adapters, and what trains",
    "merging": "Weights after training, and decoding",
    "analyses": "Seeing and measuring",
}


def page() -> str:
    known = entries()
    rows = [_row(known[name]) for name in sorted(known)]
    made = [HEAD, table(("method", "id", "kind", "what it does", "paper"), rows)]
    for family in FAMILIES:
        if found := _of(family):
            made += [f"## {TITLES[family]}", *(_card(entry) for entry in found)]
    return with_anchors("\n\n".join(made) + "\n")


def _row(entry: Entry) -> tuple[str, ...]:
    paper = entry.paper
    named = f"[{paper.authors} {paper.year}]({paper.link})" if paper.link else f"{paper.authors} {paper.year or ''}"
    return f"[{entry.name}](#={entry.name}=)", entry.id or "", entry.kind, line(entry.summary), named


def _card(entry: Entry) -> str:
    called = wb.method(entry.name)
    heading = f"### {entry.name}"
    signature = f"wb.method({entry.name!r}){_short(called)}"
    neutral = ""
    if entry.neutral is not None:
        settings = ", ".join(f"{name}={value!r}" for name, value in entry.neutral.items()) or "any setting"
        neutral = f"Neutral: {code(settings)} is `wb.{entry.base}`."
    parts = [heading, code(signature), doc(inspect.cleandoc(called.__doc__)), neutral]
    return "\n\n".join(part for part in parts if part)


def _short(called) -> str:
    """The signature without annotations and defaults."""
    names = []
    for name, parameter in inspect.signature(called).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            names.append("...")
        elif parameter.default is parameter.empty:
            names.append(name)
        else:
            names.append(f"{name}={parameter.default!r}" if len(repr(parameter.default)) < 20 else f"{name}=...")
    return f"({', '.join(names)})"
