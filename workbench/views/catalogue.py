"""The catalogue of methods in a notebook: a list to search, and the card of the method that is chosen.

From the page: {kind: "card", view, ask, name}; the answer has the card's text. The list travels with the widget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import traitlets

from workbench.errors import WorkbenchError
from workbench.views.base import Ask, View, assets
from workbench.views.picture import table_html, table_text
from workbench.views.text import escape, one_line

COLUMNS = ("name", "id", "kind", "year", "summary", "status")


class CatalogueView(View):
    """`records`: a dict for each method with COLUMNS, `paper` and `needs`; `card(name)` gives the help text of one."""

    _esm = assets("frame.js", "catalogue.js", main="WbCatalogue")
    _css = assets("common.css", "catalogue.css")

    head = traitlets.Dict().tag(sync=True)

    def __init__(self, records: Sequence[dict[str, Any]], card: Callable[[str], str]):
        self.records, self.card = [dict(record) for record in records], card
        kinds = list(dict.fromkeys(record["kind"] for record in self.records))
        super().__init__(head={"records": self.records, "kinds": kinds})

    def on_card(self, ask: Ask, name: str) -> dict[str, str]:
        """The card of a method."""
        if name not in {record["name"] for record in self.records}:
            raise WorkbenchError(f"There is no method {name!r}.")
        return {"name": name, "card": self.card(name)}

    def _cells(self) -> list[list[str]]:
        return [[one_line(str(record[name] or ""), 160) for name in COLUMNS] for record in self.records]

    def static_html(self) -> str:
        """The list as a table, without script."""
        said = escape(f'{len(self.records)} methods; wb.method("name") gives one, help(wb.method("name")) its card')
        return f'<div class="wb-static"><div>{said}</div>{table_html(COLUMNS, self._cells())}</div>'

    def static_text(self) -> str:
        """The same for a terminal."""
        return table_text(COLUMNS, self._cells())
