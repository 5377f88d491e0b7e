"""The chat box and the choosing of answers in a page: keys, streams, colours; what is chosen is trained on."""

from __future__ import annotations

import time

import pytest
import writer

import workbench as wb
from tests.models import tiny_policy
from workbench import playing

pytestmark = pytest.mark.browser

STATUS = "status => document.querySelector('.wb-play')?.dataset.status === status"
DONE = "n => Number(document.querySelector('.wb-label')?.dataset.done ?? -1) === n"
INPUT = ".wb-play-input"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    made = tiny_policy(tmp_path_factory.mktemp("play") / "m", lora=True)
    made.stop_ids = ()
    return made


def test_an_answer_streams_in_on_both_sides_and_escape_stops_it(page, host, policy, monkeypatch, shot):
    view = playing.play(policy, compare=["off"], max_new_tokens=30, temperature=0)
    host.open(page, view)
    page.wait_for_selector(INPUT)
    page.keyboard.press("Tab")
    page.fill(INPUT, "")
    page.press(INPUT, "Enter")
    assert "write something first" in page.locator(".wb-play-said").inner_text() and not view.turns
    page.type(INPUT, "one")
    page.press(INPUT, "Shift+Enter")
    page.type(INPUT, "<img src=x onerror='window.hacked=1'>")
    page.press(INPUT, "Enter")
    page.wait_for_function(STATUS, arg="done")
    # a frame after it is done the texts stand there
    page.wait_for_function("() => document.querySelectorAll('.wb-play-answer > .wb-play-text').length === 2")
    assert view.turns[0].text == "one\n<img src=x onerror='window.hacked=1'>"
    texts = [text.replace("\xa0", " ") for text in page.locator(".wb-play-answer > .wb-play-text").all_inner_texts()]
    expected = [answer.sent_text for answer in view.turns[0].answers]
    assert [" ".join(text.split()) for text in texts] == [" ".join(text.split()) for text in expected]
    assert expected[0] != expected[1] and page.locator(".wb-play-asked img").count() == 0

    page.select_option("[aria-label=colours]", "entropy")
    page.wait_for_function("() => document.querySelectorAll('.wb-strip .wb-block span').length === 60")
    assert page.locator(".wb-play .wb-scale-bar").count() == 1
    page.locator(".wb-strip .wb-block span").nth(4).hover()
    page.wait_for_function(
        "() => /token 4 .* log-prob .* entropy/.test(document.querySelector('.wb-play-said').textContent)"
    )
    shot("play")

    heard, counts = view.heard_token, []

    def slowly(*args):
        time.sleep(0.02)
        heard(*args)
        counts.append(len(view.turns[-1].answers[0].ids))

    monkeypatch.setattr(view, "heard_token", slowly)
    page.fill(INPUT, "two")
    page.press(INPUT, "Enter")
    page.wait_for_function(STATUS, arg="answering")
    page.wait_for_function(
        "() => document.querySelectorAll('.wb-play-turn:last-child .wb-strip .wb-block span').length > 3"
    )
    page.press(INPUT, "Escape")
    page.wait_for_function(STATUS, arg="done")
    assert 3 < counts[-1] < 30 and view.turns[1].answers[0].finish == "stopped"
    assert page.locator(".wb-play-turn").nth(1).locator(".wb-play-says").first.inner_text() == "stopped"
    page.wait_for_function(
        "() => document.activeElement.classList.contains('wb-play-input')"
    )  # also after the new picture

    host.open(page, view)  # the page is loaded anew: all of it comes back
    page.wait_for_function("() => document.querySelectorAll('.wb-play-turn').length === 2")
    page.wait_for_function(
        "text => document.querySelectorAll('.wb-play-answer > .wb-play-text')[2].textContent === text",
        arg=view.turns[1].answers[0].sent_text,
    )


def test_six_pairs_are_labelled_by_keyboard_and_trained_on(page, host, policy, tmp_path, shot):
    prompts = [f"{writer.HOSTILE if i == 2 else 'Say'} {i}:" for i in range(7) for _ in range(2)]
    texts = [f" {'good' if i % 2 else 'bad'} answer {i // 2}" for i in range(13)] + [writer.HOSTILE]
    made = wb.Rollouts.of(prompts, texts, rewards=[float(i % 2) for i in range(14)])
    view = wb.label(made, out=tmp_path / "labels")
    host.open(page, view)
    page.wait_for_selector(".wb-label-side")
    assert "reward" not in page.locator(".wb-label-sides").inner_text()
    page.locator(".wb-label-prompt").click()
    for done in range(6):
        left = page.locator(".wb-label-side").first.inner_text()
        page.keyboard.press("ArrowLeft" if "good" in left or "script" in left else "2")
        page.wait_for_function(DONE, arg=done + 1)
    page.keyboard.press("u")
    page.wait_for_function(DONE, arg=5)
    page.keyboard.press(" ")
    page.keyboard.press("d")
    page.wait_for_selector(".wb-label-known")
    assert page.locator(".wb-label-differs").count() >= 2
    shot("label")
    page.keyboard.press("1")
    page.wait_for_function(DONE, arg=6)
    page.keyboard.press("0")
    page.wait_for_function(DONE, arg=7)
    assert "All 7 are answered" in page.locator(".wb-label-end").inner_text()
    assert len(view.rows) == 6 and view.labels.agreement()["left"][1] == 6
    assert all(seconds > 0 for seconds in view.labels.to_pandas()["seconds"])
    view.keep()
    page.wait_for_function("() => document.activeElement.classList.contains('wb-label')")
    run = wb.dpo(policy, view.rows, steps=1, batch_size=6, out=tmp_path / "dpo")
    (step,) = list(run)
    assert step.metrics["loss"] == pytest.approx(0.6931, abs=1e-3)
    policy.reset()


STUB = """
import workbench as wb
from workbench.views.play import PlayView
class Echo:
    model, opened, modes = "echo", "start", ("plain",)
    def sides(self): return {"now": "as it is now"}
    def check(self, settings): return settings
    def examples(self, mode): return []
    def answer(self, prompt, sides, settings, heard):
        heard.started()
        heard.ended("there is no model here", False)
box = PlayView(Echo(), {"n": 1, "seed": 0, "max_new_tokens": 9}, "plain", "", ["now"]).show()
"""
MARKS = "label = wb.label([{'prompt': 'p', 'completions': ['a', 'b', 'c', 'd']}], mode='mark')"


@pytest.mark.slow
def test_in_lab_keys_reach_the_view_and_no_shortcut_of_the_notebook(lab, page):
    """In Lab nearly every letter is a shortcut: b adds a cell, x cuts one, Enter edits."""
    lab.open("play.ipynb", STUB, MARKS, "1").run_all(3)
    page.locator(".wb-label-prompt").click()
    for done, key in enumerate(("b", "g", "ArrowUp", "s")):
        page.keyboard.press(key)
        page.wait_for_function(DONE, arg=done + 1)
    page.keyboard.press("x")
    page.keyboard.press("u")
    page.wait_for_function(DONE, arg=3)
    page.locator(INPUT).click()
    page.keyboard.type("Spell bad xyz.")
    page.keyboard.press("Enter")
    page.wait_for_function(STATUS, arg="done")
    # what was sent goes from the box once Python has said that it took it
    page.wait_for_function("box => document.activeElement.matches(box) && !document.activeElement.value", arg=INPUT)
    page.keyboard.type("dd")
    assert page.locator(INPUT).input_value() == "dd"
    assert page.locator(".wb-play-asked > .wb-play-text").inner_text() == "Spell bad xyz."
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 3
