"""The live views in a real JupyterLab: they grow, answer, survive a reload, and leave a picture behind."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDGET = "application/vnd.jupyter.widget-view+json"
DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"
POINTS = "() => Math.max(...[...document.querySelectorAll('.wb-plot')].flatMap(p => (p.data ?? []).map(t => t.x.length)))"
SETUP = """
import writer
from workbench.store import Store
from workbench.views import RolloutTable, show_dashboard
store = writer.begin("runs/{name}", steps={steps})
thread = writer.train(store, {steps}, {seconds}, hostile={hostile})
"""


def test_curves_grow_while_a_thread_trains_and_a_reload_brings_them_back(lab, page, shot):
    lab.open("live.ipynb", SETUP.format(name="live", steps=300, seconds=0.1, hostile=True), "show_dashboard(Store('runs/live'))")
    lab.run_all(2)
    assert len(lab.outputs(1)) == 1, "the value of the cell must not be displayed a second time"
    page.wait_for_function(DRAWN, arg=3)
    first = page.evaluate(POINTS)
    page.wait_for_function(DRAWN, arg=first + 8)
    assert page.evaluate(POINTS) > first
    assert page.locator(".wb-status").inner_text() == "running"
    assert "of 300" in page.locator(".wb-progress").inner_text()
    titles = page.locator(".wb-board > .wb-grid").first.locator(".wb-chart-title").all_inner_texts()
    assert titles[0] == "Reward" and "Loss" not in titles
    page.locator(".wb-folded summary").click()
    page.wait_for_function("() => document.querySelector('.wb-folded .wb-plot .main-svg')")
    shot("live", ".wb-dashboard")
    before = page.evaluate(DRAWN.replace(">= n", "+ 0").replace("n =>", "() =>"))
    lab.command("docmanager:save")
    lab.load()
    page.wait_for_timeout(6000); page.screenshot(path="/tmp/w/shots/reload.png"); print(page.evaluate("document.querySelector(\".wb-dashboard\")?.outerHTML.slice(0,3000)"), lab.outputs(1), page.url)
    page.wait_for_function(DRAWN, arg=before + 1, timeout=10000)
    assert page.evaluate(POINTS) >= before
