"""Style sheets of all views meet on one page: what one view styles must not change another."""

from __future__ import annotations

import re

import pytest

from workbench.views.base import HERE

SHARED = {"common.css"}  # what every view has
ALONE = {"report.css"}  # a page of its own


def selectors(name: str) -> list[str]:
    text = re.sub(r"/\*.*?\*/", "", (HERE / name).read_text("utf-8"), flags=re.DOTALL)
    found = [part.strip() for head in re.findall(r"([^{}]+)\{", text) for part in head.split(",")]
    return [one for one in found if one and not one.startswith(("@", "from", "to", "100%", "50%"))]


def loaded() -> dict[str, tuple[set[str], set[str]]]:
    """By the module of a view: its scripts and its style sheets."""
    made = {}
    for path in HERE.glob("*.py"):
        text = path.read_text("utf-8")
        scripts = re.search(r"_esm = assets\((.*?)main=", text, re.DOTALL)
        styles = re.search(r"_css = assets\((.*?)\)", text, re.DOTALL)
        if scripts and styles:
            more = {"tokens.js", "token_card.js", "token_chart.js", "strip.js"} if "SCRIPTS" in scripts[1] else set()
            made[path.stem] = {*re.findall(r"\w+\.js", scripts[1]), *more}, {*re.findall(r"\w+\.css", styles[1])}
    return made


@pytest.mark.parametrize("view", sorted(loaded()))
def test_no_style_of_another_view_reaches_this_one(view):
    scripts, styles = loaded()[view]
    used = {"wb", *re.findall(r"wb-[\w-]+", "".join((HERE / name).read_text("utf-8") for name in scripts))}
    others = {path.name for path in HERE.glob("*.css")} - styles - SHARED - ALONE
    reach = [
        f"{name}: {one}"
        for name in sorted(others)
        for one in selectors(name)
        if (classes := re.findall(r"\.(wb[\w-]*)", one)) and set(classes) <= used
    ]
    assert reach == []


def test_the_views_are_found():
    assert {"dashboard", "rollouts", "tokens", "compare", "play", "label", "mask"} <= set(loaded())
