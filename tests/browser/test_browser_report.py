"""The report, opened from the disk."""

from __future__ import annotations

import pytest
import writer

from workbench.store.tokens import add_pieces
from workbench.text import clean
from workbench.views import write_report

pytestmark = pytest.mark.browser

DRAWN = "n => [...document.querySelectorAll('.wb-plot')].filter(p => p.data?.length).length >= n"


def written(tmp_path, **how):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 40, hostile=True)
    with store.transaction() as db:
        add_pieces(db, {i: (clean(writer.HOSTILE) if i == 5 else f" w{i}", False) for i in range(99)})
    return write_report(writer.rewind(store, 20, 40), tmp_path / "report.html", **how)


def test_it_shows_curves_and_rollouts_without_a_network(page, tmp_path, shot):
    page.goto(written(tmp_path, sample=120).as_uri())
    page.wait_for_function(DRAWN, arg=2)
    assert "0.1 → 0.77" in page.locator(".wb-tiles").inner_text()
    assert page.locator(".wb-group-title").first.inner_text() == "Reward"
    assert page.locator(".wb-card").count() == 12 and page.locator(".wb-member").count() > 24
    shot("report")

    def choose(name, value):
        page.locator(f"select[aria-label='{name}']").select_option(value)

    def rewards():
        found = page.locator(".wb-member .wb-card-facts > span:nth-child(1) b").all_inner_texts()
        return [float(text) for text in found]

    choose("view", "single")
    choose("order", "-reward")
    assert rewards() == sorted(rewards(), reverse=True) and len(rewards()) == 48
    page.get_by_label("reward from").fill("0.5")
    page.get_by_label("reward to").fill("0.8")
    assert rewards() and all(0.5 <= r <= 0.8 for r in rewards())
    choose("finish reason", "length")
    assert set(page.locator(".wb-cut").all_inner_texts()) == {"length"}
    assert page.locator(".wb-cut").count() == page.locator(".wb-member").count()
    for label in ("reward from", "reward to"):
        page.get_by_label(label).fill("")
    choose("finish reason", "")
    choose("step", "1")
    assert set(page.locator(".wb-card-facts > b").all_inner_texts()) == {"step 1"}
    choose("step", "")
    page.locator(".wb-find").fill("<script>window.hacked")
    assert "<script>window.hacked=1</script>" in page.locator(".wb-card").first.inner_text()

    page.locator(".wb-find").fill("")
    choose("colour of tokens", "logprob")
    painted = page.locator(".wb-strip span").evaluate_all("all => all.filter(s => s.style.background).length")
    assert painted > 100 and "nats" in page.locator(".wb-legends").inner_text()
    assert "log-prob −" in page.locator(".wb-strip span").nth(1).get_attribute("title")
    assert page.locator(".wb-card img, .wb-card script, .wb-board img, .wb-board script").count() == 0
    page.locator(".wb-plot").first.hover()
    page.wait_for_selector(".wb-plot .hoverlayer text")


def test_it_follows_the_theme_and_prints_all_of_it(page, tmp_path):
    page.goto(written(tmp_path, sample=100).as_uri())
    page.wait_for_function(DRAWN, arg=1)
    ink = "() => getComputedStyle(document.querySelector('.wb-report')).color"
    before = page.evaluate(ink)
    page.get_by_text("dark page").click()
    assert page.evaluate(ink) != before and page.get_by_text("light page").is_visible()
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(DRAWN, arg=6)
    cards = page.locator(".wb-member").count()
    assert 90 < cards <= 100, "all that are in the file go to the paper"
    assert page.evaluate(ink) == before, "paper is light"
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ink) != before
    assert page.locator(".wb-member").count() < cards
