"""The page that hosts views without Jupyter: a view lives in its place, else its picture stands there."""

from __future__ import annotations

import pytest
import writer

from workbench.store import Store
from workbench.views import Dashboard, RolloutTable

pytestmark = pytest.mark.browser

DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"


def test_views_live_in_their_places_and_move_when_the_picture_is_made_anew(page, host, tmp_path, shot):
    store = writer.write(writer.begin(tmp_path / "run"), 20, hostile=True)
    board, table = Dashboard(Store(store.folder), refresh=0.05), RolloutTable(Store(store.folder))
    host.open(page, board, table)
    page.wait_for_function(DRAWN, arg=20)
    page.wait_for_selector(".wb-row")
    assert page.locator(".wb-place:visible").count() == 0 and page.locator(".wb-live").count() == 2
    page.evaluate("() => { document.querySelector('.wb-dashboard').dataset.mark = 'same' }")
    writer.commit(store, 21)
    page.wait_for_function(DRAWN, arg=21)
    board.keep()
    page.wait_for_function("() => document.querySelector('.wb-place').textContent.includes('step 21')")
    page.wait_for_function("() => document.querySelector('.wb-live .wb-dashboard')?.dataset.mark === 'same'")
    assert page.locator(".wb-place:visible").count() == 0
    page.evaluate("() => window.theme('dark')")
    shot("host-dark")
