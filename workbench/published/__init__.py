"""The catalogue: published methods under their names, each a few lines over shared parts.

    wb.catalogue()                          what there is, as a DataFrame
    wb.method("masked_thought")             the callable; help() on it reads like a card

One record a method (`entry.Entry`), in a module by family; everything else follows from it: the signature and the help,
the page in the docs, the tests that go over all methods. A training method is called with a policy and data and returns
a Run, like `wb.sft`; a merge, a selector, an analysis return what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.errors import SettingError, did_you_mean
from workbench.published.entry import Entry, Paper

if TYPE_CHECKING:
    from workbench.published.frame import Catalogue

__all__ = ["FAMILIES", "Entry", "Paper", "catalogue", "entries", "method"]

FAMILIES = (
    "supervised", "transformed", "preference", "policy", "actors", "selftraining", "selection", "adapting", "merging",
    "analyses",
)  # fmt: skip
"""modules of this package, each with ENTRIES; none imports torch"""


def entries() -> dict[str, Entry]:
    """All records, by name."""
    return {entry.name: entry for family in FAMILIES for entry in _of(family)}


def _of(family: str) -> list[Entry]:
    return import_module(f"workbench.published.{family}").ENTRIES


def method(name: str) -> Callable[..., Any]:
    """The method `name` of the catalogue, as a callable; `help()` on it reads like a card.

    A training method takes a policy and data and returns a Run, like `wb.sft`; a merge, a selector, a transform, a
    reward or an analysis returns what it is. Also found by its number in the list, as in "S058". Raises SettingError
    for a name that there is not.
    """
    from workbench.published.calls import callable_of

    known = entries()
    found = known.get(name) or next((entry for entry in known.values() if entry.id == name), None)
    if found is None:
        raise SettingError(f"There is no method {name!r}.{did_you_mean(str(name), known)} wb.catalogue() lists them.")
    return callable_of(found)


def catalogue() -> Catalogue:
    """All published methods that are here: id, name, paper, year, kind, call, summary, needs, status.

    `status` is "works" where the tests passed for the source as it is, "changed" where it changed since. `.show()` is a
    list to search, with the cards, in a notebook.
    """
    from workbench.published import status
    from workbench.published.frame import Catalogue

    return Catalogue(
        {
            "id": entry.id or "",
            "name": entry.name,
            "paper": f"{entry.paper.authors}: {entry.paper.title}",
            "year": entry.paper.year,
            "kind": entry.kind,
            "call": called(entry),
            "summary": entry.summary,
            "needs": entry.needs,
            "status": status.of(entry),
        }
        for entry in entries().values()
    )


def called(entry: Entry) -> str:
    """How a user calls it."""
    return f"wb.method({entry.name!r})"
