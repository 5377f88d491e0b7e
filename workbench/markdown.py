"""Text of strangers inside Markdown: prompts, completions, names of data sets. Nothing in it becomes a mark or tag."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from workbench.text import visible

_MARKS = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:@^=])")


def escape(value: Any) -> str:
    """`value` as plain text on one line of Markdown: marks and HTML stand as themselves, hidden characters are shown.

    New lines become `<br>`, so that the text can stand in a cell of a table.
    """
    text = html.escape(visible(value).replace("\r\n", "\n"), quote=True)
    # entities are written first, so their & ; and # must not be escaped a second time
    parts = re.split(r"(&(?:amp|lt|gt|quot|#x27);)", text)
    text = "".join(part if i % 2 else _MARKS.sub(r"\\\1", part) for i, part in enumerate(parts))
    return text.replace("\t", "    ").replace("\n", "<br>")


def code(value: Any) -> str:
    """`value` as inline code: HTML code tags, because backticks end at a backtick of the text."""
    text = html.escape(visible(value), quote=True).replace("\n", " ")
    return f"<code>{_MARKS.sub(lambda m: f'&#{ord(m[0])};', text) if _MARKS.search(text) else text}</code>"


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table of text; '' where there are no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in [headings, *rows]]
    return "\n".join([lines[0], "|" + " --- |" * len(headings), *lines[1:]]) + "\n"
