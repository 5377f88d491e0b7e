"""The table of rollouts in a real JupyterLab."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROWS = "n => document.querySelectorAll('.wb-table tbody tr').length === n"
ANSWERED = "n => Number(document.querySelector('.wb-rollouts')?.dataset.ask) >= n"
CELLS = """
import writer
from workbench.store import Store
from workbench.views import RolloutTable
store = writer.write(writer.begin("runs/table"), 40, hostile=True)
RolloutTable(Store("runs/table"))
"""


def column(page, at: int) -> list[str]:
    return page.locator(f".wb-table tbody tr td:nth-child({at + 1})").all_inner_texts()


def test_it_sorts_filters_pages_and_shows_hostile_text_as_text(lab, page, shot):
    lab.open("table.ipynb", CELLS).run_all(1)
    page.wait_for_function(ROWS, arg=200)
    assert page.locator(".wb-count").inner_text() == "1–200 of 320"
    headings = page.locator(".wb-table th").all_inner_texts()
    reward = headings.index("reward")

    page.locator(".wb-sort").nth(reward).click()
    page.wait_for_function(ANSWERED, arg=2)
    shown = [float(text) for text in column(page, reward)]
    assert shown == sorted(shown, reverse=True) and shown[0] > shown[-1]
    page.locator(".wb-sort").nth(reward).click()
    page.wait_for_function(ANSWERED, arg=3)
    lowest = [float(text) for text in column(page, reward)]
    assert lowest == sorted(lowest) and lowest[0] < shown[-1]
    page.get_by_text("next ›").click()
    page.wait_for_function(ROWS, arg=120)
    assert page.locator(".wb-count").inner_text() == "201–320 of 320"

    page.locator(".wb-find").fill("<script>window.hacked")
    page.wait_for_function(ROWS, arg=80)
    attacked = page.locator(".wb-table tbody tr").filter(has_text="2 = ?").first
    attacked.click()
    page.wait_for_selector(".wb-detail .wb-whole")
    text = page.locator(".wb-whole").all_inner_texts()
    assert any(
        "<script>window.hacked=1</script><img src=x" in part and "⟨ESC⟩[31mred" in part and "⟨U+202E⟩" in part
        for part in text
    )
    assert page.locator(".wb-rollouts img, .wb-rollouts script").count() == 0
    shot("table")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => document.querySelectorAll('.wb-table [aria-selected]').length === 1")

    page.locator(".wb-find").fill("nothing has this in it")
    page.wait_for_function(ROWS, arg=0)
    assert page.locator(".wb-count").inner_text() == "none of 320"
