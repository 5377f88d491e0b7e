"""The report, opened from the disk."""

from __future__ import annotations

import pytest
import writer

from workbench.views import write_report

pytestmark = pytest.mark.browser


def test_it_shows_curves_and_rollouts_without_a_network(page, tmp_path, shot):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 40, hostile=True)
    path = write_report(writer.rewind(store, 20, 40), tmp_path / "report.html", sample=100)
    page.goto(path.as_uri())
    page.wait_for_function("() => [...document.querySelectorAll('.wb-plot')].filter(p => p.data?.length).length >= 5")
    assert "0.1 → 0.77" in page.locator(".wb-tiles").inner_text()
    assert page.locator(".wb-card").count() == 50
    shot("report")

    page.locator(".wb-choice").nth(1).select_option("-reward")
    rewards = [float(text) for text in page.locator(".wb-card-facts > span:nth-child(2) b").all_inner_texts()]
    assert rewards == sorted(rewards, reverse=True)
    page.locator(".wb-choice").first.select_option("1")
    assert set(page.locator(".wb-card-facts > b").all_inner_texts()) == {"step 1"}
    page.locator(".wb-choice").first.select_option("")
    page.locator(".wb-find").fill("<script>window.hacked")
    assert "<script>window.hacked=1</script>" in page.locator(".wb-card").first.inner_text()
    assert page.locator(".wb-card img, .wb-card script, .wb-board img, .wb-board script").count() == 0
    page.locator(".wb-plot").first.hover()
    page.wait_for_selector(".wb-plot .hoverlayer text")
