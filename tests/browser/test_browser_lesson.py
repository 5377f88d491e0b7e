"""The quickstart lesson in a real JupyterLab: it trains the shipped model in the background, and its curves grow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LESSON = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
LAST_STEP = """() => Math.max(0, ...[...document.querySelectorAll('.wb-plot')]
    .flatMap(plot => (plot.data ?? []).flatMap(trace => [...trace.x])))"""


def test_the_quickstart_trains_and_draws(lab, page, server, shot):
    shutil.copyfile(LESSON, server.root / LESSON.name)
    lab.name = LESSON.name
    lab.load().command("notebook:run-all-cells")
    page.wait_for_selector(".wb-dashboard", state="attached")
    # Lab scrolls to its last cell and draws nothing that is out of sight
    page.evaluate("() => document.querySelector('.wb-dashboard').scrollIntoView()")
    page.wait_for_function("() => document.querySelector('.wb-status')?.textContent === 'running'")
    page.wait_for_function(f"() => ({LAST_STEP})() >= 3")
    first = page.evaluate(LAST_STEP)
    page.wait_for_function(f"() => ({LAST_STEP})() >= {first + 3}")
    shot("lesson")
    for output in [output for i in range(12) for output in lab.outputs(i)]:
        assert output["output_type"] != "error", output
