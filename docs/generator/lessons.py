"""The lessons of docs/index.md: title of each notebook, and the sentence that says what you do in it."""

from __future__ import annotations

import json

from docs.generator.markdown import first_sentence, table
from docs.generator.source import ROOT

ORDER = ("quickstart", "sft", "dpo", "grpo")
"""these first; others follow by name"""


def lessons() -> str:
    """A row a lesson."""
    found = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    names = [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]
    rows = []
    for name in names:
        title, *paragraphs = _opening(found[name]).split("\n\n")
        rows.append([f"[{title.lstrip('# ')}](../notebooks/{name}.ipynb)", first_sentence(paragraphs[:2][-1])])
    return table(["lesson", "what you do in it"], rows)


def _opening(path) -> str:
    """The first cell: the heading, a paragraph on the subject, a paragraph on what you do."""
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    return "".join(cell["source"]).strip()
