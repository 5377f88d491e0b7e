"""The catalogue as a DataFrame that can show itself as a list to search."""

from __future__ import annotations

import inspect
from typing import Any

import pandas as pd


class Catalogue(pd.DataFrame):
    """One row a method. `show()`: a list to search, with the cards, in a notebook."""

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame  # a part of it is a plain frame

    def show(self) -> None:
        """A list to search, with each method's card, in a notebook; a table in a terminal."""
        from workbench.views.catalogue import CatalogueView

        CatalogueView(self.astype(object).where(self.notna(), None).to_dict("records"), card).show()


def card(name: str) -> str:
    """What `help` says of a method."""
    from workbench.published import method

    called = method(name)
    return f"wb.method({name!r}){inspect.signature(called)}\n\n{inspect.cleandoc(called.__doc__)}"
