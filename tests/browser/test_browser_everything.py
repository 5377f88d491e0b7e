"""One notebook with every view over a run that trains: the views live beside each other, come back after the page was
reloaded, and leave their last state in the saved notebook."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import workbench as wb
policy = wb.load("tiny").attach(wb.LoRA(r=4))
task = wb.task("sums", size=16)
made = wb.grpo(policy, task, steps=2, prompts_per_step=2, group_size=3, max_new_tokens=12, lr=1e-3, out="runs/made")
for step in made: pass
other = made.fork(1, lr=1e-4, out="runs/other")
for step in other: pass
rows = [{"prompt": row["prompt"], "completion": " " + str(row["answer"])} for row in task.rows[:4]]
def shorter(completions, **columns):
    return [-len(text) for text in completions]
live = wb.grpo(policy, task, steps=9999, prompts_per_step=1, group_size=2, max_new_tokens=4, out="runs/live").start()
"""
VIEWS = {  # the cell, what the living view has, and what its picture says
    "live.show()": (".wb-dashboard[data-status=running] .wb-chart-title", "finished|paused|stopped"),
    "live.browse()": (".wb-rollouts .wb-row:not(.wb-blank)", "completion.*tokens"),
    "made.tokens(int(made.rollouts()['id'].iloc[0]))": (".wb-tokens .wb-block", "log-prob"),
    "policy.sample(['1+1='], n=2, max_new_tokens=4).show()": (".wb-rollouts .wb-row:not(.wb-blank)", r"1\+1="),
    "wb.show_mask(policy, rows)": (".wb-mask-unit", "trained"),
    "wb.check_rewards(task, n=2)": (".wb-bench-table tbody tr", "answers to 2 rows"),
    "made.rescore([shorter])": (".wb-rescored .wb-tile", "Rescored"),
    "wb.compare(made, other)": (".wb-compare .wb-metrics tr", "forked from made after step 1"),
    "box = made.policy.play(max_new_tokens=4); box": (".wb-play textarea", "How much is 2 and 2"),
    "wb.label(made, out='labels')": (".wb-label-side", "1 of "),
}
CELLS = [SETUP, *VIEWS]
# Lab skips what is out of sight, so each view is looked at in turn
LOOK = "i => window.jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')"
SOURCES = "() => [...window.jupyterapp.shell.currentWidget.content.model.cells].map(c => c.sharedModel.getSource())"


def cell(page, i: int):
    page.evaluate(LOOK, i)
    return page.locator(".jp-Notebook .jp-Cell").nth(i)


def all_live(page) -> None:
    for i, (wanted, _) in enumerate(VIEWS.values(), 1):
        cell(page, i).locator(f".wb-live {wanted}, .wb-live{wanted}").first.wait_for(state="attached")
    assert page.locator(".wb-live").count() == len(VIEWS)


def columns_line_up(page) -> None:
    """The table's cells stand under their headings, whatever other views bring along in style sheets."""
    starts = "row => [...row.children].map(cell => Math.round(cell.getBoundingClientRect().left))"
    table = cell(page, 2).locator(".wb-rollouts")
    assert table.locator(".wb-head").evaluate(starts) == table.locator(".wb-row").first.evaluate(starts)


def test_every_view_in_one_notebook(lab, page, shot):
    lab.open("everything.ipynb", *CELLS).run_all(len(CELLS))
    all_live(page)
    columns_line_up(page)
    shot("everything")

    # in a notebook these keys cut and insert cells
    for i in range(1, len(CELLS)):
        for kind in ("button", "[tabindex='0']"):
            part = cell(page, i).locator(f".wb-live {kind}:enabled:visible").first
            if part.count():
                part.focus()
                page.keyboard.type("ddabx")
    assert page.evaluate(SOURCES) == CELLS

    lab.save()
    lab.load()  # in the middle of the training
    all_live(page)
    assert "running" in cell(page, 1).locator(".wb-status").text_content()

    # something happens in the views that a reload brought back
    box = cell(page, 9)
    box.locator(".wb-play-input").fill("How much is 2 and 2?")
    box.locator(".wb-play-input").press("Enter")
    box.locator(".wb-play[data-status=done] .wb-play-answer").wait_for()
    cell(page, 10).locator(".wb-label-prompt").click()
    page.keyboard.press("1")
    cell(page, 10).locator(".wb-label[data-done='1']").wait_for()
    cell(page, 1).get_by_role("button", name="Pause").click()
    page.wait_for_function("() => document.querySelector('.wb-status')?.textContent === 'paused'")
    for i, (_, said) in enumerate(VIEWS.values(), 1):
        page.wait_for_function(
            "([i, said]) => window.jupyterapp.shell.currentWidget.content.model.cells.get(i).outputs.toJSON()"
            ".some(({data}) => new RegExp(said).test([data['text/html']].flat().join('').replace(/<[^>]*>/g, '')))",
            arg=[i, said],
        )

    made = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--stdout", str(lab.save())],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    parts = re.split(r'<div class="wb-place ', made)[1:]
    assert len(parts) == len(VIEWS)
    for part, (_, said) in zip(parts, VIEWS.values(), strict=True):
        assert re.search(said, re.sub("<[^>]*>", "", part)), said
    step = int(re.search(r"step (\d+) of 9999", parts[0])[1])
    assert step > 2, "the picture is of the end, not of the moment at which the page was reloaded"
