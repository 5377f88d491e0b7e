"""The rollout browser in a page: a hundred thousand rows, and all that a person does there. One test is in real Lab."""

from __future__ import annotations

import json
import re
import statistics
import time

import pandas as pd
import pytest
import writer

from workbench.store import Store
from workbench.views import RolloutTable

pytestmark = pytest.mark.browser

ROWS = ".wb-row:not(.wb-blank):not([hidden])"
LOADED = "n => Number(document.querySelector('.wb-rollouts')?.dataset.loaded ?? 0) >= n"
# Steps of so many pixels, one a frame; what each frame showed is read after it was drawn.
SCROLL = """async ([step, frames]) => {
  const grid = document.querySelector(".wb-grid");
  const head = grid.querySelector(".wb-head").offsetHeight;
  let blank = 0, rows = 0, bare = 0;
  for (let i = 0; i < frames; i++) {
    grid.scrollTop += step;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const box = grid.getBoundingClientRect();
    let covered = 0;
    for (const row of grid.querySelectorAll(".wb-row:not([hidden])")) {
      const at = row.getBoundingClientRect();
      const seen = Math.min(at.bottom, box.bottom) - Math.max(at.top, box.top + head);
      if (seen <= 0) continue;
      covered += seen;
      rows++;
      if (row.classList.contains("wb-blank")) blank++;
    }
    if (covered < box.height - head - 4) bare++;
  }
  return { blank, rows, bare, top: grid.scrollTop };
}"""
# From what a person types to the rows on the screen.
TYPE = """async ([name, texts]) => {
  const view = document.querySelector(".wb-rollouts");
  const field = view.querySelector(name);
  const times = [];
  for (const text of texts) {
    const before = Number(view.dataset.loaded);
    const start = performance.now();
    field.value = text;
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    while (Number(view.dataset.loaded) <= before) await new Promise((done) => setTimeout(done, 2));
    await new Promise((done) => requestAnimationFrame(done));
    times.push(performance.now() - start);
  }
  return times;
}"""


def column(page, at: int) -> list[str]:
    """What a column's cells say, in the order of the rows."""
    return page.evaluate(
        """([rows, at]) => [...document.querySelectorAll(rows)].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
             .map((row) => row.children[at + 1].textContent)""",
        [ROWS, at],
    )


def loads(page) -> int:
    return page.evaluate("() => Number(document.querySelector('.wb-rollouts').dataset.loaded)")


def after(page, act) -> None:
    """Do something that changes which rows there are, and wait until they are there."""
    before = loads(page)
    act()
    page.wait_for_function(LOADED, arg=before + 1)


def count(page) -> str:
    return page.locator(".wb-count").inner_text()


def test_a_hundred_thousand_rows_come_scroll_and_answer_at_once(page, host, tmp_path):
    folder = writer.many_rollouts(tmp_path / "big").folder
    host.open(page, RolloutTable(Store(writer.begin(tmp_path / "small").folder)))  # what is loaded once, is loaded
    started = time.perf_counter()
    table = RolloutTable(Store(folder))
    made = time.perf_counter() - started
    host.open(page, table)
    shown = page.evaluate(
        """async () => {
          while (!document.querySelector(".wb-row:not(.wb-blank)")) await new Promise(requestAnimationFrame);
          return performance.now() / 1000;
        }"""
    )  # from the start of loading the page
    assert made + shown < 0.9, f"{made:.2f} s to make, {shown:.2f} s to load the page and show"  # alone: 0.05 and 0.2
    page.wait_for_function(LOADED, arg=1)
    assert count(page) == "100,000 rollouts"
    smooth = page.evaluate(SCROLL, [600, 300])
    assert smooth["blank"] == smooth["bare"] == 0 and smooth["top"] == 180_000 and smooth["rows"] > 2500, smooth
    fling = page.evaluate(SCROLL, [6000, 100])  # 360,000 pixels a second: what a busy machine cannot follow, it skips
    assert fling["bare"] == 0 and fling["top"] == 780_000
    page.wait_for_function("() => !document.querySelector('.wb-row.wb-blank:not([hidden])')", timeout=5000)
    filters = ["reward < 0.5 and n_tokens > 20", "correct > 0.9", 'contains(completion, "answer is 44")', ""]
    assert statistics.median(page.evaluate(TYPE, [".wb-where", filters])) < 300
    assert statistics.median(page.evaluate(TYPE, [".wb-find", ["answer is 44", "plus 7", "nowhere", ""]])) < 300


def test_rows_are_sorted_filtered_and_read_by_mouse_and_keys(page, host, tmp_path, shot):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 20, hostile=True)
    table = RolloutTable(Store(store.folder))
    host.open(page, table)
    page.wait_for_function(LOADED, arg=1)
    page.wait_for_selector(".wb-steps:visible")
    assert count(page) == "160 rollouts"
    headings = page.locator(".wb-head .wb-sort bdi").all_inner_texts()
    reward = headings.index("reward")
    after(page, page.locator(".wb-sort").nth(reward).click)
    high = [float(text) for text in column(page, reward)]
    after(page, page.locator(".wb-sort").nth(reward).click)
    low = [float(text) for text in column(page, reward)]
    assert high == sorted(high, reverse=True) and low == sorted(low) and low[0] < high[-1]
    assert page.locator(".wb-head [aria-sort=ascending]").count() == 1
    after(page, page.locator(".wb-sort").nth(reward).click)

    page.locator(".wb-grid").click(position={"x": 200, "y": 60})
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.className") == "wb-find"
    after(page, lambda: page.keyboard.type("<script>window.hacked"))
    assert count(page) == "40 of 160" and table.wish.find == "<script>window.hacked"
    after(page, lambda: page.locator(".wb-find").fill(""))
    page.locator(".wb-where").fill("rewrd < 1")
    page.get_by_text("Did you mean 'reward'").wait_for()
    assert len(column(page, reward)) > 5, "the rows stay where they were"
    after(page, lambda: page.locator(".wb-where").fill("reward < 0.5 and step in (2, 3)"))
    assert page.locator(".wb-trouble").is_hidden() and set(column(page, 0)) <= {"2", "3"}
    after(page, lambda: page.locator(".wb-where").fill(""))

    page.locator(".wb-grid").focus()
    after(page, lambda: page.keyboard.press("]"))
    after(page, lambda: page.keyboard.press("]"))
    assert set(column(page, 0)) == {"2"} and page.locator(".wb-step").input_value() == "2"
    after(page, lambda: page.keyboard.press("["))
    after(page, lambda: page.locator(".wb-step").fill("3-4"))
    assert set(column(page, 0)) == {"3", "4"} and table.wish.steps == (3, 4)
    after(page, lambda: page.get_by_label("finish reason").select_option("length"))
    assert count(page) == "4 of 160"
    after(page, lambda: page.get_by_label("reward part").select_option(label="format missing"))
    assert page.locator(".wb-where").input_value() == 'rewards["format"] is None' and 0 < len(column(page, 0)) < 4
    host.views[table.place].filter()
    page.wait_for_function("() => document.querySelector('.wb-count').textContent === '160 rollouts'")
    assert page.locator(".wb-where").input_value() == page.locator(".wb-step").input_value() == ""
    assert page.get_by_label("finish reason").input_value() == ""

    page.locator(".wb-menu summary").click()
    after(
        page, lambda: page.locator(".wb-menu-list label").filter(has_text=re.compile("^row$")).locator("input").check()
    )
    assert "row" in page.locator(".wb-head .wb-sort bdi").all_inner_texts()
    page.keyboard.press("Escape")
    assert page.locator(".wb-menu-list").is_hidden()
    assert page.locator(".wb-rollouts img, .wb-rollouts script, .wb-rollouts iframe").count() == 0
    shot("table")


def opened(page, tab: str, rollout: int) -> None:
    page.wait_for_selector(f".wb-detail[data-shown='{tab} {rollout}']")


def test_one_rollout_and_its_group(page, host, tmp_path, shot):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 12, hostile=True)
    host.open(page, RolloutTable(Store(store.folder)))
    page.wait_for_function(LOADED, arg=1)
    page.locator(ROWS).first.wait_for()
    page.locator(".wb-row[aria-rowindex='2']").click()
    opened(page, "text", 1)
    text = page.locator(".wb-reading").inner_text()
    assert "<script>window.hacked=1</script><img src=x" in text and "⟨ESC⟩[31mred" in text and "⟨U+202E⟩" in text
    page.keyboard.press("j")
    opened(page, "text", 2)
    page.keyboard.press("ArrowDown")
    opened(page, "text", 3)
    page.keyboard.press("k")
    opened(page, "text", 2)
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    opened(page, "text", 96)
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    opened(page, "text", 1)

    page.get_by_role("tab", name="group").click()
    opened(page, "group", 1)
    assert page.locator(".wb-card").count() == 4 and page.locator(".wb-badge-best").count() == 1
    assert page.locator(".wb-badge-worst").count() == 1 and page.locator("ins.wb-insert").count() > 0
    rewards = page.locator(".wb-card .wb-parts > :nth-child(3)").all_inner_texts()
    page.get_by_label("order of the members").select_option("reward")
    page.wait_for_function(
        "() => document.querySelector('.wb-card .wb-badge-best') === document.querySelector('.wb-card .wb-badge')"
    )
    ordered = page.locator(".wb-card .wb-parts > :nth-child(3)").all_inner_texts()
    assert [float(r) for r in ordered] == sorted((float(r) for r in rewards), reverse=True)
    page.locator(".wb-card").nth(2).get_by_text("compare").click()
    page.wait_for_function("() => document.querySelectorAll('.wb-card')[2].textContent.includes('reference')")
    for width in (700, 1400):
        page.set_viewport_size({"width": width, "height": 1000})
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), (
            "cards scroll by themselves"
        )
        shot(f"group-{width}")


def test_its_task_over_the_steps_and_its_tokens(page, host, tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 12, hostile=True)
    host.open(page, RolloutTable(Store(store.folder)))
    page.locator(".wb-row[aria-rowindex='2']").click()
    page.get_by_role("tab", name="time").click()
    opened(page, "time", 1)
    assert page.locator(".wb-time-dot").count() == 12 and "12 steps" in page.locator(".wb-group-line").inner_text()
    page.wait_for_selector(".wb-time-compare[data-shown]")
    assert (
        page.locator("del.wb-delete").count()
        and page.locator("ins.wb-insert").count()
        and "→" in page.locator(".wb-time-moved").inner_text()
    )
    page.locator("select[aria-label=to]").select_option("10")
    page.wait_for_selector(".wb-time-compare[data-shown$=' 10']")
    styles = """() => ["del.wb-delete", "ins.wb-insert"].map(
      (name) => getComputedStyle(document.querySelector(`.wb-time-compare ${name}`)).textDecorationLine)"""
    assert page.evaluate(styles) == ["line-through", "underline"], "told by more than colour"

    page.get_by_role("tab", name="tokens").click()
    opened(page, "tokens", 1)
    page.locator(".wb-tokens").wait_for()
    page.wait_for_function("() => document.querySelector('.wb-tokens').textContent.length > 40")
    page.locator(".wb-scrolls").focus()
    page.keyboard.press("n")  # the heading and the row go to the next of the group, too
    opened(page, "tokens", 2)
    assert page.locator(".wb-detail-title").inner_text() == "step 1 · group 0 · rollout 2"
    assert page.locator(".wb-row.wb-active").get_attribute("aria-rowindex") == "3"
    page.keyboard.press("Escape")
    page.locator(".wb-detail").wait_for(state="hidden")
    assert page.evaluate("() => document.activeElement.className") == "wb-grid"
    assert page.locator(".wb-rollouts img, .wb-rollouts script").count() == 0


def test_rows_are_picked_copied_and_saved(page, host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({
        "group_id": [0, 0, 1, 1, 2, 2], "prompt": ["p", "p", "q", "q", "r", "r"], "completion": list("abcdef"),
        "reward": [0, 1, 1, 1, 2, 3],
    })  # fmt: skip
    table = RolloutTable(frame)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    host.open(page, table)
    page.wait_for_function(LOADED, arg=1)
    boxes = page.locator(".wb-row .wb-check input")
    boxes.nth(1).click()
    boxes.nth(3).click(modifiers=["Shift"])
    page.get_by_text("3 picked").wait_for()
    page.wait_for_function("() => document.querySelectorAll('.wb-row.wb-picked').length === 3")
    assert table.selection["completion"].tolist() == ["b", "c", "d"]
    page.locator(".wb-head input").check()
    page.get_by_text("6 picked").wait_for()
    page.locator(".wb-grid").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    page.wait_for_function("() => document.querySelectorAll('.wb-row.wb-picked').length === 5")
    page.get_by_text("save for DPO").click()
    page.get_by_text("2 pairs for wb.dpo").wait_for()
    assert "left out 1 group with fewer than two rewards" in page.locator(".wb-said").inner_text()
    pairs = [json.loads(line) for line in (tmp_path / "rollouts-dpo.jsonl").read_text().splitlines()]
    assert pairs == [{"prompt": "p", "chosen": "b", "rejected": "a"}, {"prompt": "r", "chosen": "f", "rejected": "e"}]
    page.get_by_text("pick none").click()
    page.get_by_text("none picked").wait_for()
    assert len(table.picked) == 0
    page.locator(".wb-row").nth(1).click()
    opened(page, "text", 1)
    for button, said in (
        ("copy JSON", '"completion": "b"'),
        ("copy text", "--- completion\nb\n"),
        ("copy as Python", "rollouts.show()"),
    ):
        page.get_by_text(button).click()
        page.get_by_text("Copied the").wait_for()
        assert said in page.evaluate("() => navigator.clipboard.readText()")
    table.pick([2])
    page.get_by_text("1 picked").wait_for()
    table.look_at(4)
    opened(page, "text", 4)


def test_a_run_that_goes_on_and_goes_back(page, host, tmp_path, shot):
    store = writer.write(writer.begin(tmp_path / "run"), 6)
    table = RolloutTable(Store(store.folder))
    host.open(page, table)
    page.wait_for_function(LOADED, arg=1)
    writer.commit(store, 7)
    page.get_by_text("8 new").click()
    page.wait_for_function("() => document.querySelector('.wb-count').textContent === '56 rollouts'")
    page.evaluate("() => { const grid = document.querySelector('.wb-grid'); grid.scrollTop = grid.scrollHeight }")
    page.wait_for_function("() => [...document.querySelectorAll('.wb-row')].some((row) => row.ariaRowIndex === '57')")
    writer.commit(store, 8)
    page.wait_for_function(
        "() => document.querySelector('.wb-count').textContent === '64 rollouts'"
    )  # by itself, at the end
    page.wait_for_function("() => [...document.querySelectorAll('.wb-row')].some((row) => row.ariaRowIndex === '65')")
    writer.rewind(store, 5, 6)
    page.wait_for_function("() => document.querySelector('.wb-count').textContent === '48 rollouts'")
    page.get_by_text("also steps given up").click()
    page.wait_for_function("() => document.querySelector('.wb-count').textContent.startsWith('72')")
    page.evaluate("() => { const grid = document.querySelector('.wb-grid'); grid.scrollTop = grid.scrollHeight / 2 }")
    page.wait_for_selector(".wb-row.wb-gone")
    shot("given-up")
    # the picture is made anew: the view moves, and stays where it was scrolled to
    before = page.evaluate("() => document.querySelector('.wb-grid').scrollTop")
    page.locator(".wb-where").fill("reward >= 0")
    page.wait_for_function("() => document.querySelector('.wb-place').textContent.includes('reward >= 0')")
    page.wait_for_function("() => document.querySelector('.wb-live .wb-grid')")
    assert before > 0 and page.evaluate("() => document.activeElement.className") == "wb-where", "typing goes on"


def test_a_table_opened_before_the_first_step_fills_by_itself_and_is_as_tall_as_its_rows(page, host, tmp_path):
    store = writer.begin(tmp_path / "run")
    host.open(page, RolloutTable(Store(store.folder)))
    page.wait_for_function(LOADED, arg=1)
    assert page.locator(".wb-none").inner_text() == "No rollouts."
    height = "() => document.querySelector('.wb-grid').offsetHeight"
    assert page.evaluate(height) == 240
    writer.commit(store, 1)
    page.wait_for_selector(ROWS)
    assert page.locator(".wb-count").inner_text() == "8 rollouts" and page.locator(".wb-fresh:visible").count() == 0
    assert page.evaluate(height) == 8 * 40 + 52
    page.locator(".wb-where").fill("n_tokens < 0")
    page.wait_for_function("() => document.querySelector('.wb-count').textContent === '0 of 8'")
    assert page.locator(".wb-none").inner_text() == "No rollout is like that."
    assert page.evaluate(height) == 8 * 40 + 52, "what stands below does not jump"
    writer.commit(store, 2)
    page.get_by_text("8 new").click()
    page.wait_for_function("() => document.querySelector('.wb-count').textContent === '0 of 16'")
    assert page.evaluate(height) == 440


CELLS = """
import writer
from workbench.store import Store
from workbench.views import RolloutTable
store = writer.write(writer.begin("runs/table", status="finished"), 40, hostile=True)
RolloutTable(Store("runs/table"), where="reward >= 0")
"""


@pytest.mark.slow
def test_in_lab_its_keys_are_its_own_and_a_saved_notebook_shows_the_rows(lab, page, shot):
    lab.open("table.ipynb", CELLS, "1").run_all(2)
    page.wait_for_function(LOADED, arg=1)
    page.locator(".wb-row[aria-rowindex='3']").click()
    opened(page, "text", 2)
    cells = "() => window.jupyterapp.shell.currentWidget.content.model.cells.length"
    for key in ("j", "k", "j", "x", "b", "Enter", "]"):  # in Lab's command mode: down, up, cut, insert, edit
        page.keyboard.press(key)
    page.wait_for_function("() => document.querySelector('.wb-step').value === '1'")
    assert page.evaluate(cells) == 2 and page.evaluate("() => document.activeElement.className") == "wb-grid"
    page.wait_for_function(
        """() => JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.cells.get(0).outputs.toJSON())
             .includes("steps 1 to 1")"""
    )
    (output,) = lab.outputs(0)
    assert (
        "8 of 320 rollouts: reward &gt;= 0; steps 1 to 1" in output["data"]["text/html"]
        and "<script" not in output["data"]["text/html"]
    )
    page.wait_for_selector(".wb-live .wb-row")
    shot("table-lab")
