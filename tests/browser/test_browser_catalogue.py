"""The catalogue in a page: words find methods, a method opens its card, keys go through the list."""

from __future__ import annotations

import pytest

from workbench.views.catalogue import CatalogueView

pytestmark = pytest.mark.browser

RECORDS = [
    {"name": "masked_thought", "id": "S058", "kind": "supervised", "year": 2024, "paper": "Chen et al.: Masked Thought",
     "summary": "Hides part of the reasoning input.", "needs": "", "status": "works"},
    {"name": "srft", "id": "S097", "kind": "reinforcement", "year": 2025, "paper": "Fu et al.: SRFT",
     "summary": "Demonstrations and rollouts together.", "needs": "demonstrations", "status": "works"},
    {"name": "soup", "id": None, "kind": "merge", "year": None, "paper": "<b>who</b>",
     "summary": "<img src=x onerror='window.hacked=1'>", "needs": "", "status": "changed"},
]  # fmt: skip
SHOWN = "n => Number(document.querySelector('.wb-catalogue')?.dataset.shown) === n"


def test_words_find_methods_and_a_method_opens_its_card(page, host, shot):
    view = CatalogueView(RECORDS, lambda name: f"card of {name}\n<script>window.hacked=1</script>")
    host.open(page, view)
    page.wait_for_function(SHOWN, arg=3)
    page.fill(".wb-catalogue-search", "Thought masked")
    page.wait_for_function(SHOWN, arg=1)
    page.locator("[data-name=masked_thought]").click()
    page.wait_for_function("() => document.querySelector('.wb-catalogue-card pre').textContent.startsWith('card of')")
    assert "<script>" in page.locator(".wb-catalogue-card pre").inner_text()
    page.fill(".wb-catalogue-search", "")
    page.select_option("[aria-label=kind]", "reinforcement")
    page.wait_for_function(SHOWN, arg=1)
    page.fill(".wb-catalogue-search", "nothing like it")
    page.wait_for_function(SHOWN, arg=0)
    page.fill(".wb-catalogue-search", "")
    page.select_option("[aria-label=kind]", "")
    page.locator("[data-name=masked_thought]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.wb-catalogue-card pre').textContent.includes('srft')")
    assert page.locator(".wb-catalogue img, .wb-catalogue b").count() == 0
    assert page.evaluate("() => window.hacked") is None
    shot("catalogue")


def test_without_a_script_it_is_a_table():
    view = CatalogueView(RECORDS, str)
    assert "masked_thought" in view.static_html() and "<img" not in view.static_html()
    assert "srft" in view.static_text()
