"""Every view over real runs of the shipped model, doing what docs/views.md says of it.

`make shots` runs this file with WORKBENCH_SHOTS=docs/images: its pictures are those of the page, and its runs are then
longer.
"""

from __future__ import annotations

import os
import re

import pytest

import workbench as wb
from workbench.control import Control
from workbench.tasks.sums import correct, worked
from workbench.views import Dashboard, RolloutTable, TokenView

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = 24 if os.environ.get("WORKBENCH_SHOTS") else 6
DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"
PAINTED = "() => Number(document.querySelector('.wb-tokens')?.dataset.painted ?? 0) > 0"
ANSWERED = "() => document.querySelector('.wb-play')?.dataset.status === 'done'"
SOLUTION = "{sum}={answer}\n#### {answer}"
AS_IN_LAB = """body { font: 14px system-ui; background: white } .wb-live { padding: 12px }
table { border-collapse: collapse; font-size: 13px } th { border-bottom: 1px solid #bdbdbd }
th, td { padding: 4px 10px }
tbody tr:nth-child(odd) { background: #f5f5f5 }"""
"""what JupyterLab does to HTML that is no widget"""


def right_and_worked(completions, answer, **kwargs):
    pairs = zip(correct(completions, answer), worked(completions), strict=True)
    return [right if shown == 1 else 0.0 for right, shown in pairs]


def first_number(completions, answer, **kwargs):
    found = [re.search(r"-?\d+", text) for text in completions]
    return [float(hit is not None and int(hit[0]) == a) for hit, a in zip(found, answer, strict=True)]


def thorough(completions, answer, completion_ids, **kwargs):
    pairs = zip(correct(completions, answer), completion_ids, strict=True)
    return [right + 0.06 * len(ids) for right, ids in pairs]


@pytest.fixture(scope="module")
def policy():
    return wb.load("tiny").attach(wb.LoRA(r=16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shots")


@pytest.fixture(scope="module")
def run(policy, folder):
    """A run that was gone back in once, with another learning rate from there on."""
    made = wb.grpo(
        policy, wb.task("sums", size=128), steps=2 * STEPS, prompts_per_step=6, max_new_tokens=40, lr=1e-3,
        eval_dataset=wb.task("sums", size=16, split="test"), eval_steps=max(2, STEPS // 6), out=folder / "sums",
    )  # fmt: skip
    made.run(STEPS * 2 // 3)
    made.rewind(STEPS // 2)
    made.set(lr=2e-3)
    return made.run(STEPS // 2)


@pytest.fixture(scope="module")
def other(run, folder):
    return run.fork(STEPS // 2, lr=2e-4, out=folder / "slower").run(STEPS // 3)


@pytest.fixture
def show(page, host):
    """Show a view in a page 900 wide; what it leaves in a saved notebook and in a terminal says something, too."""

    def open(view, height: int = 900):
        page.set_viewport_size({"width": 900, "height": height})
        host.open(page, view)
        page.wait_for_selector(".wb-live")
        assert len(view.static_text()) > 20 and len(view.static_html()) > 80
        assert "<script" not in view.static_html()

    return open


def test_dashboard(page, show, run, shot):
    show(Dashboard(run.store, control=Control(run)), height=702)
    page.wait_for_function(DRAWN, arg=run.step)
    titles = page.locator(".wb-chart-title").all_inner_texts()
    assert titles[:3] == ["Reward", "Held-out tasks solved", "Groups that teach nothing"]
    buttons = " ".join(page.locator(".wb-dashboard button").all_inner_texts())
    assert all(name in buttons for name in ("Start", "One step", "Stop", "Rewind", "Fork", "Settings", "Overlay runs"))
    assert "2 events" in buttons, "the way back, and the new learning rate"
    assert page.locator(".wb-status").inner_text() == "paused"
    page.wait_for_timeout(300)  # curves are drawn when a page has nothing else to do
    shot("dashboard")


def test_alarm(page, show, policy, folder, shot):
    policy.reset()
    paid = wb.Task(wb.task("sums", size=64).rows, rewards=[thorough])
    longer = wb.grpo(policy, paid, steps=60, prompts_per_step=4, max_new_tokens=56, lr=2e-3, out=folder / "longer")
    longer.run(max(5, STEPS // 3))
    show(Dashboard(longer.store, control=Control(longer)), height=508)
    page.wait_for_function(DRAWN, arg=longer.step)
    page.locator(".wb-live").get_by_text("The reward follows the length").click()
    page.get_by_text("overlong_cache=14").first.wait_for()
    page.wait_for_timeout(300)
    shot("alarm")


def test_rollouts(page, show, run, shot):
    table = RolloutTable(run.store, model=run.asking)
    show(table)
    page.wait_for_selector(".wb-row")
    assert page.locator(".wb-count").inner_text() == f"{len(run.rollouts()):,} rollouts"
    page.locator(".wb-where").fill("step == 1 and n_tokens > 14")
    page.wait_for_function("() => / of /.test(document.querySelector('.wb-count').textContent)")
    assert len(table.frame) > len(table.selection) == len(run.rollouts(1, where="n_tokens > 14"))
    shot("rollouts", ".wb-live")
    page.locator(".wb-row").first.click()
    page.get_by_role("tab", name="group").click()
    page.get_by_label("order of the members").select_option("reward")
    page.wait_for_function("() => document.querySelectorAll('.wb-card .wb-badge-best').length > 0")
    assert page.locator(".wb-card").count() == 8
    shot("group", ".wb-detail")


def test_tokens(page, show, run, shot):
    best = run.rollouts(1, where="reward = 1").sort_values("n_tokens").iloc[-1]
    show(TokenView(run.store, [int(best["id"])], model=run.asking))
    page.wait_for_function(PAINTED)
    spans = page.locator(".wb-block:not(.wb-context) span")
    assert spans.count() == best["n_tokens"]
    spans.first.click()
    page.wait_for_function("() => document.querySelector('.wb-token-likely')?.children.length > 2")
    shot("tokens", ".wb-live")


def test_rescored(page, show, run, shot):
    again = run.rescore([right_and_worked])
    show(again._widget())
    page.wait_for_selector(".wb-change")
    tiles = page.locator(".wb-rescored .wb-tiles").inner_text()
    assert f"\n{int(again['flips'].sum())}\n" in tiles and "groups alive" in tiles
    shot("rescored", ".wb-live")


def test_compare(page, show, run, other, shot):
    found = wb.compare(run, other)
    show(found._widget(), height=1042)
    page.wait_for_selector(".wb-compare[data-drawn]")
    assert "lr" in page.locator(".wb-settings").inner_text()
    page.wait_for_timeout(300)
    shot("compare")


def test_check_rewards(page, show, shot):
    rows = [row | {"solution": SOLUTION.format(**row)} for row in wb.task("sums", size=32).rows if row["terms"] == 2]
    show(wb.check_rewards(wb.Task(rows, rewards=[first_number]), answers={"good": "solution"}))
    page.wait_for_selector(".wb-bench-table tbody tr")
    assert "a known-bad answer outscores the reference" in page.locator(".wb-bench-findings").inner_text()
    shot("check_rewards", ".wb-live")


def test_mask(page, show, policy, shot):
    rows = [
        {"prompt": row["prompt"], "completion": " " + SOLUTION.format(**row)} for row in wb.task("sums", size=16).rows
    ]
    show(wb.show_mask(policy, rows, max_length=48))
    page.wait_for_selector(".wb-mask-unit")
    assert page.locator(".wb-mask-troubles").inner_text()
    page.locator(".wb-strip .wb-mask-trained").nth(3).hover()
    assert "trained" in page.inner_text(".wb-mask-word")
    shot("mask", ".wb-live")


def test_play(page, show, run, shot):
    show(run.policy.play(compare=["off"], max_new_tokens=40, seed=3))
    page.fill(".wb-play-input", "Work out 97 - 92 + 12.")
    page.press(".wb-play-input", "Enter")
    page.wait_for_function("() => document.querySelectorAll('.wb-play-answer').length === 2")
    page.wait_for_function(ANSWERED)
    page.select_option("[aria-label=colours]", "entropy")
    page.wait_for_selector(".wb-play-legend .wb-scale")
    shot("play", ".wb-live")


def test_label(page, show, run, tmp_path, shot):
    view = wb.label(run, out=tmp_path / "labels")
    show(view)
    page.wait_for_selector(".wb-label-side")
    page.locator(".wb-label-prompt").click()
    page.keyboard.press("1")
    page.wait_for_function("() => document.querySelector('.wb-label')?.dataset.done === '1'")
    assert len(view.rows) == 1
    shot("label", ".wb-live")


def test_forecast(page, policy, shot):
    plan = dict(steps=10, prompts_per_step=8, group_size=16, max_new_tokens=256, micro_batch_size=32)
    foretold = wb.forecast(policy.reset(), "grpo", wb.task("sums", size=128), **plan)
    html = foretold.picture().static_html()
    assert "<script" not in html
    page.set_viewport_size({"width": 900, "height": 900})
    page.set_content(f'<style>{AS_IN_LAB}</style><div class="wb-live">{html}</div>')
    assert page.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 700
    assert "What would take less" in page.locator(".wb-static").inner_text()
    shot("forecast", ".wb-live")


def test_report(page, run, folder, shot):
    page.set_viewport_size({"width": 900, "height": 900})
    page.goto(run.report(folder / "report.html").as_uri())
    page.wait_for_function("() => [...document.querySelectorAll('.wb-plot')].filter(p => p.data?.length).length > 1")
    assert page.locator(".wb-card").count() > 3
    shot("report")
