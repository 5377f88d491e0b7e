"""The dashboard in a real JupyterLab: its curves grow, it survives a reload, and it leaves a picture behind."""

from __future__ import annotations

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDGET = "application/vnd.jupyter.widget-view+json"
DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"
POINTS = """() => Math.max(0, ...[...document.querySelectorAll('.wb-plot')]
    .flatMap(plot => (plot.data ?? []).map(trace => trace.x.length)))"""
LOADED = "() => [...document.querySelectorAll('.wb-static img')].filter(i => i.complete && i.naturalWidth > 0).length"
SETUP = """
import writer
from workbench.store import Store
from workbench.views import show_dashboard
store = writer.begin("runs/{name}", steps={steps})
writer.train(store, {steps}, {seconds}, hostile={hostile});
"""


def test_curves_grow_while_a_thread_trains_and_a_reload_brings_them_back(lab, page, shot):
    setup = SETUP.format(name="live", steps=400, seconds=0.1, hostile=True)
    lab.open("live.ipynb", setup, "show_dashboard(Store('runs/live'))").run_all(2)
    assert len(lab.outputs(1)) == 1, "the value of the cell must not be displayed a second time"
    page.wait_for_function(DRAWN, arg=3)
    first = page.evaluate(POINTS)
    page.wait_for_function(DRAWN, arg=first + 10)
    assert page.evaluate(POINTS) > first
    assert page.locator(".wb-status").inner_text() == "running"
    assert "of 400" in page.locator(".wb-progress").inner_text()
    titles = page.locator(".wb-groups .wb-chart-title").all_inner_texts()
    assert titles[0] == "Reward" and "loss" not in titles
    name = page.locator(".wb-key-name").nth(1).inner_text()
    assert name.startswith("rewards/<img src=x onerror=") and "⟨U+202E⟩" in page.locator(".wb-key").nth(
        1
    ).get_attribute("title")
    page.locator(".wb-plot").first.hover()
    page.wait_for_selector(".wb-plot .hoverlayer text")
    assert page.locator(".wb-plot .hoverlayer a, .wb-plot .hoverlayer b").count() == 0
    page.locator(".wb-folded summary").click()
    page.wait_for_function("() => document.querySelector('.wb-folded .wb-plot .main-svg')")
    shot("live-hover")
    lab.save()
    before = page.evaluate(POINTS)
    lab.load()
    page.wait_for_function(DRAWN, arg=before + 1)
    assert page.evaluate(POINTS) >= before


ASTRAY = """
from comm import get_comm_manager
for comm in get_comm_manager().comms.values():
    comm._reply_subshell_id = "gone"
"""


def test_a_view_is_heard_where_the_subshell_it_last_spoke_from_is_gone(lab, page):
    """ipykernel 7.4 answers a comm where it last spoke; after a reload that subshell may be gone."""
    setup = SETUP.format(name="astray", steps=1, seconds=0, hostile=False)
    lab.open("astray.ipynb", setup, "show_dashboard(Store('runs/astray'))", ASTRAY).run_all(3)
    page.wait_for_function(DRAWN, arg=1)
    lab.save()
    lab.load()
    page.wait_for_function(DRAWN, arg=1)


BUSY = """
import time
from pathlib import Path
import writer
from workbench.store import Store
from workbench.views import show_dashboard
store = writer.begin("runs/busy", steps=1000)
show_dashboard(Store("runs/busy"))
for step in range(1, 1000):
    writer.commit(store, step, steps=1000)
    time.sleep(0.05)
    if Path("enough").exists():
        break
store.set_meta(status="finished")
"""


def test_a_run_in_a_busy_cell_is_drawn_and_its_end_leaves_a_picture_that_the_notebook_keeps(lab, page, shot):
    lab.open("busy.ipynb", BUSY)
    lab.command("notebook:run-all-cells")
    page.wait_for_function(DRAWN, arg=1)  # even where the view's hello waits until the cell ends
    first = page.evaluate(POINTS)
    page.wait_for_function(DRAWN, arg=first + 10)
    assert (
        page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.cells.get(0).executionState")
        == "running"
    )
    (lab.server.root / "enough").touch()

    page.wait_for_function("() => document.querySelector('.wb-status')?.textContent === 'finished'")
    page.wait_for_function("() => document.querySelector('.wb-place').textContent.includes('finished')")
    (output,) = lab.outputs(0)
    assert WIDGET not in output["data"]
    assert "finished" in "".join(output["data"]["text/plain"])
    shot("end")
    saved = nbformat.read(lab.save(), as_version=4)
    (kept,) = saved.cells[0].outputs
    assert "<script" not in kept.data["text/html"] and "finished" in kept.data["text/html"]

    # on another machine: no kernel, and the notebook is not trusted
    saved.metadata["kernelspec"] = {"name": "gone", "display_name": "gone", "language": "python"}
    for cell in saved.cells:
        cell.metadata.pop("trusted", None)
        cell.source += "\n# changed, so that its signature is another"
    nbformat.write(saved, lab.server.root / "sent.ipynb")
    page.goto(f"{lab.server.url}/lab/tree/sent.ipynb?token={lab.server.token}&reset")
    page.wait_for_selector(".wb-static img")
    page.wait_for_function(f"n => ({LOADED})() >= n", arg=5)
    assert "model not found" not in page.locator(".jp-Notebook").inner_text()
    shot("sent")
