"""What is looked at beside a run, in a page: rescored rollouts, and two runs next to each other."""

from __future__ import annotations

import pytest
import writer
from test_views_compare import run
from test_views_rescored import by_answer, by_length, stored

from workbench import rescoring
from workbench.comparing import compare
from workbench.text import clean

pytestmark = pytest.mark.browser

ANSWERED = "([where, n]) => Number(document.querySelector(where)?.dataset.ask) >= n"
DOTS = "n => Number(document.querySelector('.wb-scatter')?.dataset.dots) === n"


def test_rescored_rollouts_from_the_numbers_to_the_rollout(page, host, tmp_path, shot):
    store = stored(tmp_path / "run", 12, hostile=True)
    before = rescoring.rescore(store, [by_answer], None)
    made = rescoring.rescore(store, {writer.HOSTILE_NAME: by_length}, None, before)
    host.open(page, made._widget())
    page.wait_for_function(DOTS, arg=144)
    tiles = page.locator(".wb-rescored .wb-tiles").inner_text()
    assert "24 → 36" in tiles and "0 died, 12 came alive" in tiles
    assert page.locator(".wb-change").count() == 25 and "1–25 of 36" in page.locator(".wb-count").inner_text()
    shot("rescored", ".wb-rescored")

    page.locator("select[aria-label='which groups']").select_option("alive")
    page.wait_for_function(ANSWERED, arg=[".wb-rescored", 2])
    assert set(page.locator(".wb-badge").all_inner_texts()) == {"came alive"}
    page.locator(".wb-steps-slider").evaluate("s => { s.value = 3; s.dispatchEvent(new Event('input')); }")
    page.wait_for_function(DOTS, arg=12)
    page.wait_for_function("() => document.querySelectorAll('.wb-change').length === 1")
    assert page.locator(".wb-step-said").inner_text() == "step 3"

    page.locator(".wb-change").click()
    page.wait_for_selector(".wb-changed-members tbody tr")
    page.locator(".wb-changed-members tbody tr").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-unfolded .wb-whole")
    page.keyboard.press("Escape")
    assert page.locator(".wb-change-detail").is_hidden()

    # a dot opens its group, with its rollout unfolded
    shown = made[made["step"] == 3]
    old, new = shown["advantage"], shown["new_advantage"]
    dot = shown[shown["flips"]].iloc[0]
    side = page.locator(".wb-scatter canvas").bounding_box()["width"] - 42  # without the axes
    at = [(dot["advantage"] / old.abs().max() / 1.06 + 1) / 2, (1 - dot["new_advantage"] / new.abs().max() / 1.06) / 2]
    page.locator(".wb-scatter canvas").click(position={"x": 34 + side * at[0], "y": 8 + side * at[1]})
    page.wait_for_selector(".wb-chosen + .wb-unfolded")
    assert "wb-flip" in page.locator(".wb-chosen td").nth(1).get_attribute("class")

    page.locator("select[aria-label='held against']").select_option("before")
    page.wait_for_function("() => document.querySelector('.wb-tiles').innerText.includes('0 → 3')")
    page.locator("select[aria-label='which groups']").select_option("all")
    page.wait_for_function("() => document.querySelectorAll('.wb-change').length === 3")
    page.locator(".wb-change").nth(1).click()
    page.wait_for_selector(".wb-changed-members tbody tr")
    assert "<script>window.hacked=1</script>" in page.locator(".wb-change-detail").inner_text()
    assert page.locator(".wb-rescored img, .wb-rescored script").count() == 0


def test_two_runs_from_the_settings_to_both_texts(page, host, tmp_path, shot):
    bad = clean(writer.HOSTILE)
    one = run(tmp_path / "one", [{f"p{i}": [0.5, i / 90], bad: [1]} for i in range(60)])
    two = run(tmp_path / "two", [{f"p{i}": [0.25, 0.75], bad: [0]} for i in range(60)], lr=3e-5)
    two.set_meta(name=bad)
    view = compare(one, two)._widget()
    host.open(page, view)
    page.wait_for_selector(".wb-compare[data-drawn]")
    assert "lr" in page.locator(".wb-settings").inner_text() and "3e-05" in page.locator(".wb-settings").inner_text()
    assert page.locator(".wb-pair-row").count() == 50
    shot("compare", ".wb-compare")

    # one range of steps for all charts
    plots = page.evaluate("() => [...document.querySelectorAll('.wb-plot')].filter(p => p.data).length")
    assert plots >= 2
    box = page.locator(".wb-plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 60, steps=4)
    page.mouse.up()
    page.wait_for_function("""() => {
        const ranges = [...document.querySelectorAll('.wb-plot')].filter(p => p.data).map(p => p.layout.xaxis.range);
        const near = (a, b) => Math.abs(a - b) < 1e-6;
        return ranges.every(r => r[0] > 1 && near(r[0], ranges[0][0]) && near(r[1], ranges[0][1]));
    }""")

    page.locator("select[aria-label='which prompts']").select_option("a")
    page.wait_for_function(ANSWERED, arg=[".wb-compare", 3])
    page.locator(".wb-find").fill("p5")
    page.wait_for_function("() => document.querySelector('.wb-count').textContent.endsWith('of 10')")
    page.locator(".wb-pair-row").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-both .wb-only-a")
    texts = page.locator(".wb-both .wb-whole").all_inner_texts()
    assert texts[0].startswith("one says") and texts[1].startswith("two says 0.75")
    assert page.locator(".wb-only-a").first.inner_text().strip() == "one"
    page.locator("[data-turn='b+']").click()
    page.wait_for_function("() => document.querySelectorAll('.wb-both .wb-whole')[1].innerText.includes('0.25')")
    assert page.evaluate("() => document.querySelector('.wb-both .wb-whole').innerText") == texts[0]
    page.keyboard.press("Escape")
    assert page.locator(".wb-pair").is_hidden()

    page.locator(".wb-find").fill("<script>")
    page.wait_for_function("() => document.querySelectorAll('.wb-pair-row').length === 1")
    assert "<script>window.hacked=1</script>" in page.locator(".wb-pair-row").inner_text()
    assert page.locator(".wb-compare img, .wb-compare script").count() == 0
    page.evaluate("() => window.theme('dark')")
    shot("compare-dark", ".wb-compare")
