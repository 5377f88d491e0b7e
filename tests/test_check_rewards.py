"""`wb.check_rewards`: known answers through reward functions. A finding is there where it should be, and only there."""

from __future__ import annotations

import functools
import itertools
import math
import time

import numpy as np
import pytest

import workbench as wb
from tests.browser.writer import HOSTILE, HOSTILE_NAME
from tests.models import tiny_policy
from workbench.errors import DataError, SettingError
from workbench.reward_bench import answers as making
from workbench.reward_bench import calls
from workbench.reward_bench.answers import Reference
from workbench.text import clean

KNOW_NOTHING = "answers that know nothing are rewarded"
SUMS = ((27, 38), (40, 12), (81, 15), (33, 41))
ROWS = [{"prompt": f"What is {a} + {b}?", "answer": a + b} for a, b in SUMS]
WORKED = [row | {"solution": f"{a}+{b}={a + b}, so it is {a + b}"} for row, (a, b) in zip(ROWS, SUMS, strict=True)]


def right(completions, answer):
    return [float(text.strip() == str(a)) for text, a in zip(completions, answer, strict=True)]


def check(*functions, rows=ROWS, weights=None, **settings):
    return wb.check_rewards(wb.Task(rows, functions, weights), **settings)


def said(found, words: str, function: str | None = None) -> list:
    """The findings with these words (about this function)."""
    return [f for f in found.findings if words in f.text and function in (None, f.function)]


# -- good against bad


def test_a_sound_function_has_no_findings():
    found = check(right)
    assert found.findings == [] and "nothing found" in repr(found)
    mean = found.summary.loc["right"]
    assert mean["good"] == 1 and all(mean[kind] == 0 for kind in ("bad", "empty", "truncated", "repeated"))
    assert mean["exceptions"] == mean["none"] == mean["nan"] == mean["late"] == mean["corr_length"] == 0
    assert mean["distinct"] == 2 and mean["ms"] > 0


def test_a_bad_answer_that_outscores_the_reference():
    def inverted(completions, answer):
        return [
            0.5 if f"{a}" in text else float(text.strip().isdecimal())
            for text, a in zip(completions, answer, strict=True)
        ]

    (finding,) = said(check(inverted), "outscores")
    assert (
        finding.severity == "error" and "in 4 of 4 rows" in finding.text and "gets 1, the reference 0.5" in finding.text
    )
    assert not said(check(right), "outscores")


def test_answers_that_cannot_be_told_from_the_reference():
    def any_number(completions, **kwargs):
        return [float(text.strip().isdecimal()) for text in completions]

    same = said(check(any_number), "scores as high as the reference in 4 of 4 rows")
    assert {f.text.partition("' scores")[0] for f in same} == {"'off by one", "'another row's answer"}
    assert all(f.severity == "error" and len(f.rows) == 4 for f in same)
    both = check(any_number, lambda completions, **kwargs: [0.5] * len(completions))
    assert [f.function for f in said(both, "scores as high as the reference")] == ["reward"] * 2  # of the sum, once


@pytest.mark.parametrize(
    ("earns", "words", "severity"),
    [
        (lambda text, a: not text.strip(), "empty answers are rewarded: empty, white space", "error"),
        (lambda text, a: text.strip() == "The answer is correct.", f"{KNOW_NOTHING}: says it is right", "error"),
        (lambda text, a: "full marks" in text, f"{KNOW_NOTHING}: orders to a judge", "error"),
        (lambda text, a: text.startswith("What is"), f"{KNOW_NOTHING}: the prompt again", "error"),
        (lambda text, a: "<script>" in text, f"{KNOW_NOTHING}: script of a page", "error"),
        (lambda text, a: "and so it goes on" in text, f"{KNOW_NOTHING}: a phrase 100 times", "error"),
        (lambda text, a: "\x1b" in text, f"{KNOW_NOTHING}: control characters", "error"),
        (lambda text, a: text.count("word ") > 999, f"{KNOW_NOTHING}: very long", "error"),
        (lambda text, a: f" {a} 0 1" in text, "naming everything earns as much as the answer: every number", "warning"),
    ],
)
def test_short_cuts_that_are_rewarded(earns, words, severity):
    def hackable(completions, answer):
        return [
            float(good or earns(text, a))
            for text, a, good in zip(completions, answer, right(completions, answer), strict=True)
        ]

    (finding,) = check(hackable).findings
    assert (finding.severity, finding.function) == (severity, "hackable") and finding.text.startswith(words)
    assert len(finding.rows) in (4, 8)
    table = check(hackable).table.iloc[list(finding.rows)]
    assert set(table["rewards/hackable"]) == {1.0} and not set(table["kind"]) & {"good", "bad"}


def test_a_little_for_an_empty_answer_is_no_finding_before_a_quarter():
    def little(completions, answer, least):
        return [
            max(good, least * (not text)) for text, good in zip(completions, right(completions, answer), strict=True)
        ]

    for least, count in ((0.2, 0), (0.3, 1)):
        assert len(said(check(functools.partial(little, least=least)), "empty answers")) == count


def test_a_short_cut_that_pays_on_few_rows_is_a_warning():
    rows = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(4)]

    def lenient(completions, answer, prompts, **kwargs):
        rows = zip(completions, answer, prompts, strict=True)
        return [1.0 if c == a else 0.5 * (c == p and p[0] in shown) for c, a, p in rows]

    shown = "0"
    (finding,) = said(check(lenient, rows=rows), "answers that know nothing are rewarded: the prompt again")
    assert finding.severity == "warning" and len(finding.rows) == 1
    shown = "01"
    (finding,) = said(check(lenient, rows=rows), "answers that know nothing are rewarded: the prompt again")
    assert finding.severity == "error" and len(finding.rows) == 2


def test_a_form_alone_and_unfinished_answers():
    def boxed(completions, **kwargs):
        return [float("boxed{}" in text) for text in completions]

    def both(completions, answer):
        return [a + 0.5 * b for a, b in zip(truth(completions, answer), boxed(completions), strict=True)]

    def truth(completions, answer):
        return [float(f"boxed{{{a}}}" in text) for text, a in zip(completions, answer, strict=True)]

    assert any("form without an answer" in f.text for f in said(check(both), "answers that know nothing"))
    assert not said(check(truth), "form without an answer")

    def somewhere(completions, answer):
        return [float(f"={a}" in text) for text, a in zip(completions, answer, strict=True)]

    def at_the_end(completions, answer):
        return [float(text.endswith(f"so it is {a}")) for text, a in zip(completions, answer, strict=True)]

    assert said(check(somewhere, rows=WORKED), "unfinished answers earn as much")[0].severity == "warning"
    assert check(at_the_end, rows=WORKED).findings == []


def test_the_form_that_scores_best_is_the_task_s_own():
    def boxed(completions, answer):
        return [float(text.strip() == f"$\\boxed{{{a}}}$") for text, a in zip(completions, answer, strict=True)]

    found = check(boxed)
    good = found.table[found.table["kind"] == "good"]
    assert not found.table[found.table["kind"].isin(["good", "other form"])].duplicated(["row", "completion"]).any()
    assert set(good["answer"]) == {"boxed"} and list(good["completion"]) == [
        f"$\\boxed{{{r['answer']}}}$" for r in ROWS
    ]
    assert found.summary.loc["boxed", "other form"] == 0 and found.findings == []


def test_ready_made_rewards_are_given_the_format_they_ask_for():
    form = wb.rewards.tag_format(["plan", "result"], strict=True)
    for functions, label in (([form], "in tags plan, result"), ([wb.rewards.think_format], "thought, then bare"),
                             ([wb.rewards.number], "as it stands")):  # fmt: skip
        found = check(*functions)
        good = found.table[found.table["kind"] == "good"]
        assert set(good["answer"]) == {label} and set(good["reward"]) == {1.0}
    task = wb.task("sums", size=8)
    assert wb.check_rewards(task).findings == []
    assert wb.check_rewards(task).summary.loc["correct", "good"] == 1
    gym = wb.check_rewards(wb.task("leg_counting", size=4))
    assert gym.summary.loc["leg_counting", "good"] == 1 and gym.summary.loc["leg_counting", "bad"] < 0.5


def test_math_verify_runs_as_in_training():
    found = wb.check_rewards(wb.Task(ROWS, [wb.rewards.math_answer]), n=2)
    assert found.summary.loc["math_answer", ["good", "bad", "exceptions"]].tolist() == [1, 0, 0]
    assert set(found.table[found.table["kind"] == "good"]["answer"]) == {"boxed"}


# -- where references come from


def test_references():
    def of(row):
        row = {"prompt": [{"role": "user", "content": "p"}]} | row
        return making.reference(wb.Task([row], [lambda completions, **kwargs: [0.0]]), row)

    assert of({"answer": 5}) == Reference("5") and of({"solution": "so 5"}) == Reference("so 5", "so 5")
    assert of({"answer": "5", "worked": "2+3=5"}) == Reference("5", "2+3=5")
    assert of({"completion": [{"role": "assistant", "content": "five"}]}) == Reference("five", "five")
    assert of({"target": ["a", "b"]}) == Reference("a") and of({"gold": None}) is None and of({"level": 3}) is None

    def wants(completions, truth, hint=None):
        return [0.0]

    task = wb.Task([{"prompt": "p", "truth": 4, "hint": 2}], [wants])
    assert making.reference(task, task.rows[0]) == Reference("4")
    task.reference = lambda row: f"it is {row['truth']}"
    assert making.reference(task, task.rows[0]) == Reference("it is 4", "it is 4")
    sums = wb.task("sums", size=1)
    assert making.reference(sums, sums.rows[0]).worked.endswith(f"\n#### {sums.rows[0]['answer']}")


def test_rows_without_a_reference():
    found = check(
        lambda completions, **kwargs: [float(not text) for text in completions], rows=[{"prompt": "Tell a joke"}]
    )
    assert [f.severity for f in found.findings] == ["warning", "note"] and "no reference" in found.findings[1].text
    assert "nothing scores higher than answers that know nothing: empty" in found.findings[0].text
    assert not {"good", "bad", "truncated"} & set(found.table["kind"])


def test_off_by_one():
    assert making.off_by_one(Reference("65")).answer == "66" and making.off_by_one(Reference("-1")).answer == "0"
    assert making.off_by_one(Reference("x = 2.5")).answer == "x = 3.5" and making.off_by_one(Reference("red")) is None
    assert making.off_by_one(Reference("5", "2+3=5, so 5.")).worked == "2+3=5, so 6."


# -- what goes wrong in a function


def test_an_error_is_told_with_its_row_its_answer_and_its_line():
    def fragile(completions, answer):
        return [float(int(text) == a) for text, a in zip(completions, answer, strict=True)]  # here

    found = check(fragile)
    (finding,) = said(found, "raised an error")
    assert finding.severity == "error" and "ValueError: invalid literal for int()" in finding.text
    assert "test_check_rewards.py: return [float(int(text)" in finding.text and "first on row 0" in finding.text
    hurt = found.table[found.table["trouble"] != ""]
    assert list(hurt.index) == list(finding.rows) and hurt["rewards/fragile"].isna().all()
    assert found.summary.loc["fragile", "exceptions"] == len(hurt) and found.summary.loc["fragile", "good"] == 1
    fields = {field["name"]: field["text"] for field in found.record(finding.rows[0])}
    assert "# here" in fields["traceback of fragile"] and "workbench/" not in fields["traceback of fragile"]
    assert not said(check(right), "raised")


@pytest.mark.parametrize(
    ("value", "state", "words"),
    [
        (math.nan, "nan", "gave NaN"),
        (math.inf, "nan", "gave an infinite reward"),
        (-math.inf, "nan", "gave an infinite reward"),
        ("1.0", "exceptions", "which is no number"),
        ([1.0], "exceptions", "which is no number"),
        (None, "none", ""),
        (np.float32(0.5), "", ""),
        (True, "", ""),
    ],
)
def test_values_that_are_no_rewards(value, state, words):
    def odd(completions, answer):
        return [value if not text else good for text, good in zip(completions, right(completions, answer), strict=True)]

    found = check(odd)
    assert found.summary.loc["odd", ["nan", "exceptions", "none"]].to_dict() == {
        name: 4 if name == state else 0 for name in ("nan", "exceptions", "none")
    }
    assert bool(said(found, words)) if words else all(f.function == "odd" and "empty" in f.text for f in found.findings)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: None, "is a `return` missing?"),
        (lambda n: 0.5, "not a list of"),
        (lambda n: "ab", "not a list of"),
        (lambda n: [0.5] * (n + 1), "rewards for"),
        (lambda n: {"a": 1}, "not a list of"),
        (lambda n: np.zeros((n, 1)), "not a list of"),
    ],
)
def test_answers_that_are_no_list_of_rewards(answer, words):
    (finding,) = said(
        check(lambda completions, **kwargs: answer(len(completions))), "did not answer with one reward each"
    )
    assert finding.severity == "error" and words in finding.text


def test_lists_of_every_sort_are_rewards():
    for make in (tuple, np.array, lambda values: (v for v in values)):
        assert check(lambda completions, answer: make(right(completions, answer))).findings == []  # noqa: B023


def test_constants_and_nones():
    (finding,) = check(lambda completions, **kwargs: [0.25] * len(completions)).findings
    assert finding.severity == "error" and "gave 0.25 for all" in finding.text
    (finding,) = check(lambda completions, **kwargs: [None] * len(completions)).findings
    assert finding.severity == "error" and "gave None for all" in finding.text

    def shy(completions, answer):
        return [
            None if good else 0.1 * len(text)
            for text, good in zip(completions, right(completions, answer), strict=True)
        ]

    (finding,) = said(check(shy, answers={"good": ["65", "52"]}, n=2), "of 4 good answers")
    assert finding.severity == "warning" and "gave None for 2 of 4" in finding.text
    assert not said(check(right), "gave")


def test_a_batch_that_fails_though_no_answer_alone_does():
    def alone(completions, answer):
        assert len(completions) == 1, "one at a time"
        return right(completions, answer)

    (finding,) = check(alone).findings
    assert finding.severity == "error" and "though on none of them alone: AssertionError: one at a time" in finding.text
    found = check(lambda completions, **kwargs: [1.0])
    assert said(found, "returned 1 rewards for")


def test_a_second_call_that_differs():
    count = itertools.count()

    def drifting(completions, answer):
        n = next(count)
        return [
            good + (1e-6 * n if not text else 0)
            for text, good in zip(completions, right(completions, answer), strict=True)
        ]

    (finding,) = check(drifting).findings
    assert finding.severity == "warning" and "scored 4 of " in finding.text and finding.function == "drifting"
    assert set(check(drifting).table.loc[list(finding.rows), "answer"]) == {"empty"}

    times = itertools.count()

    def now_and_then(completions, answer):
        none = next(times) % 2
        return [
            None if none and not text else good
            for text, good in zip(completions, right(completions, answer), strict=True)
        ]

    (finding,) = check(now_and_then).findings
    assert "scored 4 of " in finding.text

    def chance(completions, **kwargs):
        return [math.sin(next(count) * 1.7 + i) for i, _ in enumerate(completions)]

    (finding,) = [f for f in check(chance).findings if f.severity == "error"]  # and nothing is made of its scores
    assert "otherwise when called again" in finding.text


def test_a_call_that_hangs_is_cut_off(monkeypatch):
    started = []

    def hangs(completions, **kwargs):
        started.append(len(completions))
        while True:
            pass

    began = time.monotonic()
    found = check(hangs, right, timeout=0.15)
    assert time.monotonic() - began < 5
    (finding,) = said(found, "took too long")
    assert finding.severity == "error" and finding.function == "hangs" and "took longer than 0.15 s" in finding.text
    assert found.summary.loc["right", "good"] == 1 and 1 <= found.summary.loc["hangs", "late"] <= 3
    assert len(started) == calls.LATE_CALLS and not said(found, "could not be stopped")

    monkeypatch.setattr(calls, "GRACE", 0.05)
    stuck = check(lambda completions, **kwargs: time.sleep(0.5), right, timeout=0.05)
    assert said(stuck, "hangs in a way that could not be stopped") and stuck.summary.loc["right", "good"] == 1


def test_completion_ids_need_a_policy(tmp_path):
    def tokens(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    (finding,) = [f for f in check(tokens).findings if f.severity == "note"]
    assert "was not called: it needs completion_ids" in finding.text and "policy=" in finding.advice
    policy = tiny_policy(tmp_path)
    found = check(tokens, policy=policy, samples=2, max_new_tokens=4)
    good = found.table[found.table["kind"] == "good"]
    assert list(good["rewards/tokens"]) == [
        len(policy.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in good["completion"]
    ]
    assert (found.table[found.table["kind"] == "sample"]["rewards/tokens"] <= 4).all()


# -- length


def test_length_is_told_where_it_matters():
    def longer(completions, answer):
        return [good + 0.0005 * len(text) for text, good in zip(completions, right(completions, answer), strict=True)]

    (finding,) = said(check(longer), "with length in the same answer")
    assert finding.text.startswith("rises") and check(longer).summary.loc["longer", "corr_length"] > 0.9

    def shorter(completions, answer):
        return [0.0 - 0.001 * len(text) for text in completions]

    assert said(check(shorter), "falls with length in the same answer")

    def hardly(completions, answer):
        return [good + 1e-7 * len(text) for text, good in zip(completions, right(completions, answer), strict=True)]

    assert not said(check(hardly), "with length") and check(hardly).summary.loc["hardly", "corr_length"] == 0


# -- functions beside each other


def test_functions_that_oppose_are_told():
    found = check(right, lambda completions, answer: [1 - 2 * good for good in right(completions, answer)])
    assert found.agreement.loc["right", "lambda"] == pytest.approx(-1) and found.agreement.loc["right", "right"] == 1
    assert said(found, "pull in opposite directions")


def test_samples_of_a_policy(tmp_path):
    policy = tiny_policy(tmp_path)

    def letters(completions, **kwargs):
        return [float(sum(map(ord, text)) % 7) for text in completions]

    found = check(letters, right, policy=policy, samples=3, n=2, seed=5, max_new_tokens=6)
    samples = found.table[found.table["kind"] == "sample"]
    made = policy.sample([row["prompt"] for row in ROWS[:2]], n=3, max_new_tokens=6, seed=5)
    assert list(samples["completion"]) == made.text and list(samples["row"]) == [0, 0, 0, 1, 1, 1]
    assert not said(found, "all samples of the policy")
    assert said(
        check(right, policy=policy, samples=3, n=2, max_new_tokens=6), "all samples of the policy score the same (0)"
    )


# -- the caller's own answers, and again


def test_own_answers():
    rows = [row | {"gold": str(row["answer"]), "wrongs": ["1", "2"]} for row in ROWS]
    found = check(right, rows=rows, n=2, answers={"good": "gold", "bad": "wrongs", "given": ["x", "65"]})
    own = found.table[found.table["answer"].str.startswith(("wrongs", "yours", "gold"))]
    assert list(own["completion"]) == ["65", "52", "1", "2", "1", "2", "x", "65", "x", "65"]
    assert list(own["reward"]) == [1, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert (check(right, answers=["65"]).table["kind"] == "given").sum() == 4
    for answers, error, words in (
        ("gild", DataError, "'gild'"),
        ({"godo": ["x"]}, SettingError, "Did you mean 'good'"),
        ([1], DataError, "texts"),
    ):
        with pytest.raises(error, match=words):
            check(right, answers=answers)


def test_again_with_the_edited_function_on_the_same_answers():
    def lenient(completions, answer):
        return [float(str(a) in text) for text, a in zip(completions, answer, strict=True)]

    first = check(lenient)
    second = first.again([right], weights=[3.0])
    assert list(second.table["completion"]) == list(first.table["completion"]) and first.changes is None
    assert second.changes.loc["good", ["reward before", "reward now"]].tolist() == [1.0, 3.0]
    assert second.changes.loc["bad", "lenient before"] > 0 and math.isnan(second.changes.loc["bad", "lenient now"])
    assert second.changes.loc["bad", "right now"] == 0 and second.findings == []
    assert "before → now" in repr(second) and "no more: lenient: 'the right one denied'" in repr(second)
    same = second.again()
    assert same.summary.drop(columns="ms").equals(second.summary.drop(columns="ms"))
    with pytest.raises(SettingError):
        first.again([])


def test_arguments():
    task = wb.Task(ROWS, [right])
    for wrong in ({"n": 0}, {"samples": 0}, {"seed": -1}, {"timeout": 0}, {"n": True}, {"timeout": "1"}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            wb.check_rewards(task, **wrong)
    with pytest.raises(SettingError, match="takes a Task"):
        wb.check_rewards(ROWS)
    assert set(wb.check_rewards(task, n=99).table["row"]) == {0, 1, 2, 3}


def test_hostile_names_and_texts_show_as_text():
    def hostile(completions, **kwargs):
        if not completions[0]:
            raise ValueError(clean(HOSTILE))
        return [0.0] * len(completions)

    task = wb.Task([{"prompt": clean(HOSTILE), "answer": clean(HOSTILE)}], {HOSTILE_NAME: hostile, "right": right})
    found = wb.check_rewards(task, answers=[clean(HOSTILE)])
    for text in (found.static_html(), found.again([right]).static_html()):
        assert "<script" not in text and "<img" not in text
    every = (
        "".join(field["text"] for i in range(len(found.table)) for field in found.record(i))
        + repr(found)
        + str(found.shown)
    )
    assert not {"\x1b", "\u202e", "\u200b", "\x00"} & set(every)
