"""The buttons of the dashboard: in a real JupyterLab on a run that trains, and in a page without Jupyter."""

from __future__ import annotations

import json
import statistics

import pytest
import writer

import workbench as wb
from workbench.store import Store
from workbench.views import Dashboard

pytestmark = pytest.mark.browser

DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"
SAID = "text => document.querySelector('.wb-said').textContent.includes(text)"

# The time from a press to its acknowledgement, and to the word that it is in effect, as the page has them.
PRESS = """([selector, nth, form]) => new Promise((done) => {
    const said = document.querySelector('.wb-said'), began = performance.now(), seen = {};
    const watch = new MutationObserver(() => {
        const state = said.dataset.state, now = performance.now() - began;
        if (state !== 'sent' && seen.ack === undefined) seen.ack = now;
        if (state !== 'done' && state !== 'failed') return;
        watch.disconnect();
        done({ ...seen, effect: now, state, words: said.textContent });
    });
    watch.observe(said, { attributes: true, childList: true });
    setTimeout(() => done({ state: 'late', words: said.textContent, ...seen }), 15000);
    const thing = document.querySelectorAll(selector)[nth];
    if (form) thing.requestSubmit(); else thing.click();
})"""

SETUP = """
import workbench as wb
def correct(completions, **kwargs):
    return [float(len(text) % 3) for text in completions]
policy = wb.load("tiny").attach(wb.LoRA(r=4))
task = wb.Task([{"prompt": f"{i} + 1 ="} for i in range(64)], rewards=[correct])
settings = dict(steps=5000, prompts_per_step=4, group_size=4, max_new_tokens=8, lr=1e-4)
demo = wb.grpo(policy, task, out="runs/pressed", **settings)
"""
EDIT = "def correct(completions, **kwargs):\n    return [float(len(text) % 4) for text in completions]"


WAITS = """
import time
from pathlib import Path
while not Path("enough").exists():
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_buttons_are_heard_while_a_cell_runs(lab, page):
    lab.open("heard.ipynb", SETUP, "demo.start().show()", WAITS)
    lab.command("notebook:run-all-cells")
    page.wait_for_function(DRAWN, arg=1)
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("() => document.querySelector('.wb-status')?.textContent === 'paused'")
    state = "() => window.jupyterapp.shell.currentWidget.content.model.cells.get(2).executionState"
    assert page.evaluate(state) == "running"
    (lab.server.root / "enough").touch()


@pytest.mark.slow
def test_presses_are_acknowledged_while_a_run_trains_and_are_in_the_store(lab, page, shot):
    lab.open("controls.ipynb", SETUP, "demo.show()", "demo.start()", EDIT, "demo.stop()")
    for cell in range(3):
        run_cell(lab, cell)
    page.wait_for_function(DRAWN, arg=3)
    store = Store(lab.server.root / "runs" / "pressed")
    seen = []

    def press(selector, nth=0, form=False, fill=None):
        page.wait_for_selector(".wb-row")  # the view moves when its picture is made anew
        if fill:
            page.locator(selector).locator("input").first.fill(fill)
        one = page.evaluate(PRESS, [selector, nth, form])
        assert one["state"] == "done", one
        seen.append(one)
        return one["words"]

    def open_panel(name):
        page.locator(".wb-row button", has_text=name).click()
        page.wait_for_selector(".wb-panel form")

    open_panel("Fork")
    page.wait_for_selector(".wb-setting input")
    page.locator(".wb-setting input").first.fill("3e-4")
    words = press(".wb-panel form", form=True)  # from here on another run trains, whatever is pressed
    assert "demo.forks[-1] is pressed-fork" in words and words.endswith("going on")
    fork = Store(lab.server.root / "runs" / "pressed-fork")
    assert fork.settings()["lr"] == 3e-4 and fork.get("parent")["name"] == "pressed"
    page.wait_for_selector(".wb-panel", state="hidden")

    for k in range(4):
        words = press(".wb-row button", 0)  # pause
        step = store.last_step()
        assert words == f"✓ paused after step {step}" and store.status == "paused"
        assert press(".wb-row button", 1) == f"✓ made step {step + 1}" and store.last_step() == step + 1
        press(".wb-row button", 0)  # start
        assert store.status == "running" or store.last_step() == step + 1
        open_panel("Rewind")
        press(".wb-panel form", form=True, fill=str(step - 1))
        assert store.query("SELECT COUNT(*) FROM events WHERE kind = 'rewind'")[0][0] == k + 1
        page.wait_for_selector(".wb-panel", state="hidden")
    open_panel("Settings")
    for lr in ("2e-4", "4e-4", "5e-4"):
        page.wait_for_selector(".wb-setting input")
        page.locator(".wb-setting input").first.fill(lr)
        assert press(".wb-panel form", form=True).startswith("✓ lr ")
        page.wait_for_function("lr => Number(document.querySelector('.wb-setting input').value) === Number(lr)", arg=lr)
        page.wait_for_selector(".wb-changed", state="detached")
    page.locator(".wb-row button", has_text="Settings").click()
    acks, effects = [one["ack"] for one in seen], [one["effect"] for one in seen]
    print(f"\n{len(seen)} presses: acknowledged in {statistics.median(acks):.0f} ms, {max(acks):.0f} ms at worst;"
          f" in effect in {statistics.median(effects):.0f} ms, {max(effects):.0f} ms")  # fmt: skip
    assert len(seen) == 20 and statistics.median(acks) < 250
    sets = [json.loads(p)["settings"]["lr"] for (p,) in store.query("SELECT payload FROM events WHERE kind = 'set'")]
    assert sets == [[1e-4, 2e-4], [2e-4, 4e-4], [4e-4, 5e-4]] and store.settings()["lr"] == 5e-4
    assert fork.last_step() > 3, "the other run trained all the time"
    shot("controls-lab")

    a_reward_is_edited_and_taken_up(lab, page)
    run_cell(lab, 4)


def a_reward_is_edited_and_taken_up(lab, page):
    run_cell(lab, 3)
    (output,) = lab.outputs(3)
    assert "`correct` was edited" in output["text"] and "demo.set(rewards=[correct])" in output["text"]
    page.wait_for_selector(".wb-alarm[data-kind=edited]")
    page.locator(".wb-alarm[data-kind=edited] summary").click()
    page.locator(".wb-alarm[data-kind=edited] button").click()
    page.wait_for_selector(".wb-alarm[data-kind=edited]", state="detached")


def run_cell(lab, cell):
    lab.page.evaluate("i => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i; }", cell)
    lab.command("notebook:run-cell")
    lab.page.wait_for_function(
        "i => { const cell = window.jupyterapp.shell.currentWidget.content.model.cells.get(i);"
        " return cell.executionState === 'idle' && cell.executionCount }",
        arg=cell,
    )


# -- without Jupyter -------------------------------------------------------------------------------------------


class Control:
    """A control that takes everything up, and notes it."""

    variable = "run"

    def __init__(self, store):
        self.store, self.seen, self.going, self.why, self.edits = store, [], "", "", []

    def state(self):
        can = dict.fromkeys(("start", "pause", "step", "stop", "rewind", "fork", "set", "use"), "")
        last = self.store.last_step()
        return {"can": can, "why": self.why, "going": self.going, "pausing": False, "first": 0, "last": last}

    def notices(self):
        return self.edits

    def pulse(self):
        return self.going, self.why, len(self.edits)

    def act(self, action, values, said):
        if action == "set" and "beta" in values["settings"]:
            raise wb.SettingError(f"beta={values['settings']['beta']!r} <b>is</b> wrong")
        self.seen.append((action, values))
        self.going = {"start": "background", "pause": ""}.get(action, self.going)
        said("" if action == "stop" else f"did {action}", writer.HOSTILE if action == "stop" else "")
        return f"{action} asked"


@pytest.fixture
def board(page, host, tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="paused"), 20, hostile=True)
    store.set_meta(settings={"steps": 40, "lr": 1e-5, "beta": 0.0, "seed": 0, "preset": writer.HOSTILE_NAME})
    made = Dashboard(Store(store.folder), refresh=0.05, control=Control(store))
    host.open(page, made)
    page.wait_for_function(DRAWN, arg=20)
    return made


def test_the_handle_is_dragged_and_moved_by_keys_and_one_press_confirms(page, board, shot):
    page.wait_for_selector(".wb-grip:visible")
    grip = page.locator(".wb-grip").first
    box, axis = grip.bounding_box(), page.evaluate("() => document.querySelector('.wb-plot')._fullLayout.xaxis._length")
    x, y = box["x"] + 8, box["y"] + 8
    span = page.evaluate(
        "() => { const [a, b] = document.querySelector('.wb-plot')._fullLayout.xaxis.range; return b - a }"
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 8 * axis / span, y + 30, steps=4)
    assert page.locator(".wb-box-word:visible").inner_text() == "rewind to step 12"
    page.mouse.up()
    assert page.evaluate("() => document.activeElement.textContent") == "Rewind to 12" and board.control.seen == []
    shot("controls-rewind")
    page.keyboard.press("Escape")
    assert page.locator(".wb-confirm:visible").count() == 0
    grip.focus()
    for key in ("ArrowLeft", "ArrowLeft", "PageDown", "ArrowRight"):
        page.keyboard.press(key)
    assert grip.get_attribute("aria-valuenow") == "17"
    page.keyboard.press("Enter")
    page.wait_for_function(SAID, arg="did rewind")
    assert board.control.seen == [("rewind", {"step": 17})]
    assert page.evaluate("() => document.querySelector('.wb-line').classList.contains('wb-aimed')") is False


def test_buttons_keys_and_settings(page, board, shot):
    outside = page.evaluate(
        "() => { window.heard = []; document.addEventListener('keydown', (e) => heard.push(e.key)); }"
    )
    assert outside is None
    page.locator(".wb-row").focus()
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.wb-row button').textContent.includes('Pause')")
    page.keyboard.press("s")
    page.wait_for_function(SAID, arg="did step")
    page.locator(".wb-row").focus()
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.wb-row button').textContent.includes('Start')")
    page.get_by_role("button", name="Settings…").click()
    page.wait_for_selector(".wb-setting")
    names = page.locator(".wb-setting-name").all_inner_texts()
    assert names == ["lr", "steps", "seed", "preset", "beta"]
    assert page.locator(".wb-setting", has_text="seed").locator("input").is_disabled()
    page.keyboard.type("learn")  # the filter has the focus
    assert page.locator(".wb-setting:visible").count() == 1
    assert page.evaluate("() => heard") == [], "no key of ours reaches the notebook"
    page.locator(".wb-filter").fill("")
    beta = page.locator(".wb-setting", has_text="beta").last
    beta.locator("input").fill("<i>1")
    beta.locator("input").press("Enter")
    page.wait_for_selector(".wb-setting-error:visible")
    assert beta.locator(".wb-setting-error").inner_text() == "beta='<i>1' <b>is</b> wrong"
    shot("controls-settings")
    beta.locator("input").fill("0.0")
    page.locator(".wb-setting input").first.fill("2e-5")
    page.locator(".wb-setting input").nth(1).fill("50")
    assert page.get_by_role("button", name="Apply 2 changes").is_enabled()
    page.get_by_role("button", name="Apply 2 changes").click()
    page.wait_for_function(SAID, arg="did set")
    assert board.control.seen[-1] == ("set", {"settings": {"lr": "2e-5", "steps": "50"}})
    page.keyboard.press("Escape")
    assert page.locator(".wb-panel:visible").count() == 0
    page.get_by_role("button", name="■ Stop").click()
    page.wait_for_selector(".wb-said[data-state=failed]")
    assert "<script>" in page.locator(".wb-said").inner_text() and "⟨U+202E⟩" in page.locator(".wb-said").inner_text()


def test_a_panel_that_waits_for_a_cell_says_so(page, board, monkeypatch):
    held, answer = [], type(board).on_settings
    monkeypatch.setattr(type(board), "on_settings", lambda self, ask: held.append(ask))
    page.get_by_role("button", name="Settings…").click()
    page.wait_for_selector(".wb-waiting")
    assert "a cell is running" in page.locator(".wb-panel .wb-waiting").inner_text()
    held[0].answer(answer(board, held[0]))
    page.wait_for_selector(".wb-setting")
    assert page.locator(".wb-waiting").count() == 0


def test_two_views_agree_and_alarms_open_and_a_run_that_is_lost_has_no_buttons(page, host, tmp_path, shot):
    store = writer.begin(tmp_path / "run", status="paused")
    for step in range(1, 9):
        metrics = {"completions/clipped_ratio": 0.9, "reward": 0.5, "reward_std": 0.1}
        store.commit_step(step, 0, seconds=0.1, metrics=metrics, state={}, plan={}, threads=1)
    control = Control(store)
    first, second = (Dashboard(Store(store.folder), refresh=0.05, control=control) for _ in range(2))
    host.open(page, first, second)
    page.wait_for_function("() => document.querySelectorAll('.wb-row').length === 2")
    page.wait_for_function("() => document.querySelectorAll('.wb-alarm[data-kind=cut]').length === 2")
    page.locator(".wb-alarm summary").first.click()
    assert "run.set(max_new_tokens=128)" in page.locator(".wb-alarm").first.inner_text()
    page.locator(".wb-row").first.get_by_role("button", name="Start").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.wb-row')].every(row => row.textContent.includes('Pause'))"
    )
    control.edits.append({"name": "correct", "variable": "<b>correct</b>", "call": "run.set(rewards=[correct])"})
    page.wait_for_function("() => document.querySelectorAll('.wb-alarm[data-kind=edited]').length === 2")
    assert page.locator(".wb-alarm[data-kind=cut]").first.get_attribute("open") is not None, "it stays open"
    shot("controls-alarms")
    control.why = "The run's folder is gone: <b>run</b>."
    page.wait_for_function("() => document.querySelector('.wb-why').textContent.includes('<b>run</b>')")
    pause = page.locator(".wb-row").first.get_by_role("button", name="Pause")
    assert pause.get_attribute("aria-disabled") == "true"
    pause.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-said[data-state=failed]")
    assert page.locator(".wb-said").first.inner_text() == "✗ The run's folder is gone: <b>run</b>."
    second.close()
