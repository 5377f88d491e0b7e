"""What one looks at before training, in a page: the mask of rows, and the bench of reward functions."""

from __future__ import annotations

import numpy as np
import pytest
import writer

import workbench as wb
from workbench.text import clean
from workbench.views.mask import MaskView, Strip, Trouble, Unit

pytestmark = pytest.mark.browser

WORDS = ["Q:", " what", " is", " 2", "+", "3", "?", "\n", "A:", " 2+3=5", "\n", "####", " 5", "<|im_end|>"]


def mask_view(units: int = 30, hostile: bool = False) -> MaskView:
    """Rows of a question and an answer; every fifth is cut, the last is dropped."""
    words = [clean(writer.HOSTILE), *WORDS[1:]] if hostile else WORDS
    made = []
    for i in range(units):
        why = np.array([0] * 9 + [1] * 5, np.uint8)
        cut, dropped = i % 5 == 0, i == units - 1
        why[9 if dropped else 12 if cut else 14 :] = Strip.CUT_END
        why[:] = Strip.ROW if dropped else why
        weight = np.where(why == 1, 0.5 + i % 3, 0).astype(np.float32)
        said = (
            (("masked", "nothing is left to train on"),) if dropped else (("cut", "longer than max_length: cut"),) * cut
        )
        made.append(Unit(f"Row {i}", (i,), (Strip(f"Row {i}", np.arange(14, dtype=np.int32), why, weight),), said))
    troubles = [
        Trouble("cut", "longer than max_length: cut", 6, tuple(range(0, units, 5))),
        Trouble("masked", "nothing is left to train on", 1, (units - 1,), words[0] if hostile else ""),
    ]
    return MaskView(
        made, troubles, ["a note"], rows=(units, 100), given=units, kept=units - 1,
        pieces=lambda ids: [(words[i], i == 13) for i in ids],
    )  # fmt: skip


def test_the_mask_turns_pages_filters_and_says_what_a_token_is(page, host, shot):
    host.open(page, mask_view())
    page.wait_for_selector(".wb-mask-unit")
    units = page.locator(".wb-live .wb-mask-unit h5")
    assert units.all_inner_texts() == [f"Row {i}" for i in range(12)]
    shot("mask")
    page.locator(".wb-strip .wb-mask-trained").first.hover()
    assert "id 9" in page.inner_text(".wb-mask-word") and "weight 0.5" in page.inner_text(".wb-mask-word")
    line = "e => getComputedStyle(e).textDecorationLine"
    assert page.locator(".wb-strip .wb-mask-trained").first.evaluate(line) == "underline"
    assert page.locator(".wb-strip .wb-mask-dropped").first.evaluate(line) == "line-through"
    page.focus(".wb-mask-body")
    for key, start in (
        ("ArrowRight", 12),
        ("ArrowRight", 24),
        ("ArrowRight", 24),
        ("ArrowLeft", 12),
        ("End", 24),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        page.wait_for_function("n => document.querySelector('.wb-mask').dataset.start === String(n)", arg=start)
    page.click(".wb-mask-troubles button >> nth=0")
    page.wait_for_function("() => document.querySelector('.wb-mask').dataset.only === 'cut'")
    assert units.all_inner_texts() == [f"Row {i}" for i in range(0, 30, 5)]
    page.check(".wb-mask-only input")
    page.wait_for_function("() => document.querySelector('.wb-mask').dataset.only === 'problems'")
    assert units.all_inner_texts() == [*(f"Row {i}" for i in range(0, 30, 5)), "Row 29"]
    page.uncheck(".wb-mask-only input")
    page.wait_for_function("() => document.querySelector('.wb-mask').dataset.only === ''")
    page.focus(".wb-strip >> nth=1")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator(".wb-strip .wb-marked").count() == 1 and "token 2 " in page.inner_text(".wb-mask-word")
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.className").startswith("wb-mask-body")


def test_the_mask_shows_hostile_text_as_text(page, host):
    host.open(page, mask_view(hostile=True))
    page.wait_for_selector(".wb-mask-unit")
    page.locator(".wb-strip span").first.hover()
    assert "<script>" in page.inner_text(".wb-mask-unit >> nth=0") and "⟨U+202E⟩" in page.inner_text(
        ".wb-mask-troubles"
    )
    assert page.locator(".wb-live script, .wb-live img").count() == 0


def right(completions, answer, **kwargs):
    return [float(text.strip() == str(a)) for text, a in zip(completions, answer, strict=True)]


def lenient(completions, answer, **kwargs):
    return [float(str(a) in text) for text, a in zip(completions, answer, strict=True)]


def fragile(completions, answer, **kwargs):
    return [float(int(text) == a) for text, a in zip(completions, answer, strict=True)]


ROWS = [{"prompt": f"What is {a} + {b}?", "answer": a + b} for a, b in ((27, 38), (40, 12))]


def test_the_bench_shows_findings_scores_and_whole_answers(page, host, shot):
    found = wb.check_rewards(wb.Task(ROWS, [lenient, fragile]))
    host.open(page, found)
    page.wait_for_selector(".wb-bench-table tbody tr")
    rows = page.locator(".wb-bench-table tbody tr[data-index]")
    assert rows.count() == len(found.table)
    kinds = page.locator(".wb-bench-kind th").all_inner_texts()
    assert kinds == list(dict.fromkeys(found.table["kind"]))
    assert page.locator(".wb-bench-findings > li").count() == len(found.findings)
    shot("bench")
    failed = page.locator(".wb-bench-findings > li", has_text="raised an error")
    failed.get_by_role("button").click()
    (finding,) = [f for f in found.findings if "raised" in f.text]
    assert rows.count() == len(finding.rows) and failed.get_by_role("button").get_attribute("aria-pressed") == "true"
    rows.first.click()
    page.wait_for_selector(".wb-bench-detail h5 >> text=traceback of fragile")
    assert "ValueError" in page.inner_text(".wb-bench-detail")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="show all").click()
    page.select_option(".wb-bench-tools select", "bad")
    assert rows.count() == (found.table["kind"] == "bad").sum()
    page.select_option(".wb-bench-tools select", "")
    page.get_by_role("button", name="lenient", exact=True).click()
    scores = [row.split("\t")[3] for row in rows.all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and set(scores) == {"0", "1"}
    rows.nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-bench-table tr[aria-selected]")
    assert page.evaluate("() => document.activeElement.matches('[aria-selected]')")


def test_the_bench_shows_what_changed_and_hostile_text_as_text(page, host):
    def hostile(completions, **kwargs):
        raise ValueError(writer.HOSTILE)

    task = wb.Task([{"prompt": clean(writer.HOSTILE), "answer": clean(writer.HOSTILE)}], {writer.HOSTILE_NAME: hostile})
    first = wb.check_rewards(task, answers=[clean(writer.HOSTILE)])
    host.open(page, first, first.again({writer.HOSTILE_NAME: right}))
    page.wait_for_selector(".wb-bench-changes")
    assert "– → 1" in page.inner_text(".wb-bench-changes") and "no more:" in page.inner_text(".wb-bench-gone")
    page.locator(".wb-bench-table tbody tr[data-index]").first.click()
    page.wait_for_selector(".wb-bench-detail h5")
    assert "<script>" in page.inner_text(".wb-bench-detail")
    assert page.locator(".wb-live script, .wb-live img").count() == 0
