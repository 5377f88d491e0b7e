"""Markdown as GitHub reads it: tables, anchors, and docstrings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(``.*?``|`[^`]*`)", re.S)
ARXIV = re.compile(r"arXiv\s+(\d{4}\.\d{4,5})")
ITEM = re.compile(r"^(\S+(?: \S+)*?) {2,}(\S.*)$")
"""a line of an aligned list: a term, two spaces or more, what it is"""
NAMED = re.compile(r"^((?:\"[^\"]+\"|`[^`]+`|[A-Z][\w ]{0,30})): (\S.*)$")
"""a line that is an entry of its own: a term, a colon, what it is"""


def text(plain: str) -> str:
    """Plain text with code spans, so that nothing else of it is taken for markup."""
    parts = CODE.split(plain)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*<\[\]$])", r"\\\1", parts[i])
        parts[i] = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", parts[i])
        parts[i] = ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", parts[i])
    return "".join(parts)


def line(plain: str) -> str:
    """The same on one line, for a table's cell or a list's item."""
    return " ".join(text(plain).split())


def code(value: str) -> str:
    """A code span; text with backticks in it gets longer fences."""
    return f"`` {value} ``" if "`" in value else f"`{value}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; `|` is escaped, in code too, as GitHub wants it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in lines)


def _cell(markdown: str) -> str:
    return " ".join(re.sub(r"(?<!\\)\|", r"\\|", markdown).split())


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"<[^>]*>", "", heading.replace("`", ""))
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def anchors(page: str) -> dict[str, str]:
    """Heading -> anchor, in order; GitHub numbers those that would be the same (`wb.rows`, `wb.Rows`)."""
    made: dict[str, str] = {}
    count: dict[str, int] = {}
    fenced = False
    for row in page.splitlines():
        fenced ^= row.startswith("```")
        found = None if fenced else re.match(r"#{1,6} (.+)", row)
        if found:
            plain = slug(found[1])
            count[plain] = count.get(plain, -1) + 1
            made.setdefault(found[1].replace("`", ""), f"{plain}-{count[plain]}" if count[plain] else plain)
    return made


def link(label: str, heading: str) -> str:
    """A link to a heading of the same page, for `with_anchors` to finish."""
    return f"[{label}](#={heading}=)"


def with_anchors(page: str) -> str:
    known = anchors(page)
    return re.sub(r"\(#=(.+?)=\)", lambda found: f"(#{known[found[1]]})", page)


def first_sentence(docstring: str) -> str:
    """Up to the first full stop that ends a sentence, or the first paragraph."""
    paragraph = docstring.strip().split("\n\n")[0]
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`\"])", " ".join(paragraph.split()), maxsplit=1)[0]


def doc(docstring: str) -> str:
    """A docstring as Markdown: paragraphs, lists of aligned terms, and indented examples."""
    return "\n\n".join(_block(block) for block in _blocks(docstring) if block.strip())


def _blocks(docstring: str) -> list[str]:
    """Paragraphs; neighbouring indented ones stay together, as the example they are."""
    blocks: list[str] = []
    for part in re.split(r"\n\s*\n", textwrap.dedent(docstring.strip("\n"))):
        if blocks and _indented(part) and _indented(blocks[-1]):
            blocks[-1] += "\n\n" + part
        else:
            blocks.append(part)
    return blocks


def _indented(block: str) -> bool:
    return all(row.startswith("    ") for row in block.splitlines() if row.strip())


def _block(block: str) -> str:
    if _indented(block):
        inside = textwrap.dedent(block)
        if all(ITEM.match(row) for row in inside.splitlines()):
            return _items(inside.splitlines())
        return f"```python\n{inside}\n```"
    rows = block.splitlines()
    if sum(row.startswith('"') for row in rows) > 1 and all(NAMED.match(row) for row in rows):
        return "\n".join(f"- {line(row)}" for row in rows)
    start = next((i for i, row in enumerate(rows) if ITEM.match(row)), None)
    if rows[0].lstrip().startswith(("- ", "* ")):
        return "\n".join(rows)
    if start is None:
        return text("\n".join(row.strip() for row in rows))
    before = text("\n".join(rows[:start]))
    return "\n\n".join(part for part in (before, _items(rows[start:])) if part.strip())


def _items(rows: Sequence[str]) -> str:
    items: list[list[str]] = []
    for row in rows:
        found = ITEM.match(row)
        if found:
            items.append([found[1], found[2]])
        else:
            items[-1][1] += " " + row.strip()
    return "\n".join(f"- {_term(term)}: {line(said)}" for term, said in items)


def _term(term: str) -> str:
    return text(term) if "`" in term else code(term)
