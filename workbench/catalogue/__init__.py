"""The catalogue: published methods under their names, each a few lines over shared parts.

    wb.catalogue()                          what there is, as a DataFrame
    wb.method("masked_thought")             the callable; help() on it reads like a card

One record a method (`entry.Entry`), in a module by family; everything else follows from it: the signature and the help,
the page in the docs, the tests that go over all methods. A training method is called with a policy and data and returns
a Run, like `wb.sft`; a merge, a selector, an analysis return what they are.
"""

from __future__ import annotations

from importlib import import_module

from workbench.catalogue.entry import Entry, Paper

__all__ = ["FAMILIES", "Entry", "Paper", "entries"]

FAMILIES = (
    "supervised", "transformed", "preference", "policy", "actors", "selftraining", "selection", "adapting", "merging", "analyses",
)  # fmt: skip
"""modules of this package, each with ENTRIES; none imports torch"""


def entries() -> dict[str, Entry]:
    """All records, by name."""
    return {entry.name: entry for family in FAMILIES for entry in _of(family)}


def _of(family: str) -> list[Entry]:
    return import_module(f"workbench.catalogue.{family}").ENTRIES
