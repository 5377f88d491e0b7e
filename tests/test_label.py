"""A person's choices: what is asked, that nothing is lost or asked twice, and the rows that come of them."""

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.browser import writer
from tests.models import tiny_policy
from workbench.errors import DataError, SettingError, StoreError
from workbench.preferring import APART, candidates_of, paired, queue
from workbench.store.choices import Item, Labels

GROUPS = [("2 + 2 = ", ["4", "5", "four", "22", "4"]), ("The sky is ", ["blue", "green", ""])]


def rollouts(rewards=True):
    """Two groups, of 4 and of 2 different answers that are not empty."""
    prompts = [prompt for prompt, texts in GROUPS for _ in texts]
    texts = [text for _, texts in GROUPS for text in texts]
    parts = {"right": [1, 0, 0.9, 0, 1, 1, 0, 0], "short": [1, 1, 0, 0.5, 1, 0, 0, 0]} if rewards else None
    return wb.Rollouts.of(prompts, texts, rewards=parts)


class Page:
    """A page without a browser: answers whatever question the view asks."""

    def __init__(self, view):
        self.view = view
        view.send = lambda content, buffers=None: None

    @property
    def question(self):
        return self.view._state()["question"]

    def texts(self):
        return ["".join(text for _, text in answer["parts"]) for answer in self.question["answers"]]

    def choose(self, choice, **changes):
        asked = {"item": self.question["item"], "round": self.question["round"], "seconds": 1.5} | changes
        return self.view.on_choose(None, choice=choice, **asked)


def all_of(view, choose=lambda page: "left"):
    page = Page(view)
    while page.question:
        page.choose(choose(page))
    return view


# What is asked


def test_pairs_are_of_one_prompt_differ_and_use_no_answer_twice():
    items = paired(candidates_of(rollouts()), "random", seed=0)
    assert sorted(item.prompt for item in items) == ["2 + 2 = "] * 2 + ["The sky is "]
    used = [(item.prompt, answer) for item in items for answer in item.answers]
    assert len(set(used)) == len(used) == 6 and all(a < b for a, b in (item.answers for item in items))
    assert {item.key for item in paired(candidates_of(rollouts()), "random", seed=0)} == {item.key for item in items}
    other = [{i.key for i in paired(candidates_of(rollouts()), "random", seed=s)} for s in range(8)]
    assert len({frozenset(keys) for keys in other}) > 1


def test_close_pairs_have_the_nearest_rewards_and_disagreeing_ones_divided_functions():
    made = wb.Rollouts.of(["p"] * 5, list("abcde"), rewards=[0.0, 1.0, 0.1, None, 0.9])
    close = paired(candidates_of(made), "close", seed=0)
    assert {item.answers for item in close} == {("a", "c"), ("b", "e")}
    # right: 4 > four > 5 = 22; short: 4 = 5 > 22 > four
    divided = paired(candidates_of(rollouts()), "disagree", seed=0)
    assert len(divided) == 1 and "four" in divided[0].answers and "4" not in divided[0].answers


def test_order_and_sides_hang_on_the_seed_and_repeats_come_later_with_the_sides_changed():
    items = paired(candidates_of(wb.Rollouts.of(["p"] * 200, [f"answer {i}" for i in range(200)])), "random", seed=0)
    first, again = queue(items, 0), queue(items[::-1], 0)
    assert first == again and queue(items, 1) != first and len(first) == 100
    assert 30 < sum(q.swapped for q in first) < 70
    asked = queue(items, 0, repeats=0.2)
    twice = [q for q in asked if q.round]
    assert 8 < len(twice) < 35
    for q in twice:
        before = next(p for p in asked if p.item == q.item and not p.round)
        assert q.swapped is not before.swapped
        assert asked.index(q) - asked.index(before) > APART or q in asked[-APART:]
    assert len([q for q in queue(items, 0, limit=7) if not q.round]) == 7


def test_any_source_gives_the_same_questions(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run"), 3)
    every = len(candidates_of(store))
    assert every == 24 == len(candidates_of(str(store.folder))) == len(candidates_of(store.rollouts()))
    assert len(candidates_of(store, step=2)) == 8 and len(candidates_of(store, where="reward > 0.5")) < every
    assert candidates_of(store)[0].facts["step"] == 1 and "rewards/correct" in candidates_of(store)[0].facts
    frame = pd.DataFrame({"prompt": ["p", "p"], "completion": ["a", "b"], "reward": [1.0, math.nan]})
    given = [{"prompt": "p", "completions": ["b", "a"]}]
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    loose = [{"prompt": "p", "completion": "b"}, {"prompt": "p", "completion": "a"}]
    made = [paired(candidates_of(source), "random", 0) for source in (frame, given, rows, loose)]
    assert len({items[0].key for items in made}) == 1 and all(len(items) == 1 for items in made)
    assert candidates_of(frame)[0].facts == {"reward": 1.0} and candidates_of(frame)[1].facts == {}
    with pytest.raises(StoreError, match="rewad"):
        candidates_of(store, where="rewad > 1")
    with pytest.raises(DataError, match="has no such rollouts"):
        candidates_of(store, step=99)
    with pytest.raises(DataError, match="only runs that sample"):
        candidates_of(writer.states(tmp_path / "s")["sft"])


def test_a_run_whose_prompts_are_conversations_gives_conversational_rows(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    task = wb.Task(
        [
            {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Hi {i}"}]}
            for i in range(2)
        ],
        rewards=[lambda completions, **_: [float(len(c[0]["content"])) for c in completions]],
    )
    run = wb.grpo(
        policy, task, steps=1, prompts_per_step=2, group_size=4, max_new_tokens=5, temperature=1.0, out=tmp_path / "run"
    ).run()
    view = all_of(wb.label(run, out=tmp_path / "labels"))
    row = view.rows[0]
    assert row["prompt"][0] == {"role": "system", "content": "Be kind."} and row["chosen"][0]["role"] == "assistant"
    assert wb.rows(view.rows).conversational
    wb.dpo(policy, view.rows, steps=1, batch_size=2, out=tmp_path / "dpo").run()


# What is kept


def test_choices_become_rows_and_ties_and_skips_none(tmp_path):
    view = wb.label(rollouts(), out=tmp_path)
    page, chosen = Page(view), []
    for choice in ("left", "tie", "right"):
        texts = page.texts()
        chosen.append({"left": texts, "right": texts[::-1]}.get(choice))
        page.choose(choice)
    assert page.question is None
    rows = view.rows
    assert [[row["chosen"], row["rejected"]] for row in rows] == [pair for pair in chosen if pair]
    assert set(rows[0]) == {"prompt", "chosen", "rejected"} and wb.rows(rows).form == "preference"
    frame = view.labels.to_pandas()
    assert list(frame["choice"].isin(["first", "second"])) == [True, False, True] and set(frame["seconds"]) == {1.5}
    assert list(frame["place"]) == [0, 1, 2] and set(frame["seed"]) == {0}
    left = frame["choice"] == frame["on_left"]
    assert list(left)[0] and not list(left)[2]


def test_marks_become_rows_for_kto_and_the_good_ones_for_sft(tmp_path):
    view = wb.label(rollouts(), mode="mark", out=tmp_path)
    assert view._state()["total"] == 6 and view.notes == [
        "Left out: 1 without text, as no training row can be made of them."
    ]
    said = {"4": "good", "blue": "good", "22": "skip"}
    all_of(view, lambda page: said.get(page.texts()[0], "bad"))
    assert {(row["completion"], row["label"]) for row in view.rows} == {
        ("4", True), ("5", False), ("four", False), ("blue", True), ("green", False),
    }  # fmt: skip
    assert {row["completion"] for row in view.good} == {"4", "blue"} and "label" not in view.good[0]
    assert wb.labels(tmp_path).rows == view.rows
    with pytest.raises(DataError, match="one of good, bad, skip"):
        view.labels.add(view.questions[0].item, "left")


def test_another_process_goes_on_where_this_one_was_killed(tmp_path):
    """The child is ended without any goodbye right after its second choice."""
    script = f"""
import os, workbench as wb
rows = [{{"prompt": prompt, "completions": [text for text in texts if text]}} for prompt, texts in {GROUPS!r}]
view = wb.label(rows, out={str(tmp_path)!r})
for choice in ("left", "skip"):
    asked = view._state()["question"]
    view.on_choose(None, item=asked["item"], round=0, choice=choice)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).returncode == 9
    read = wb.labels(tmp_path)
    assert len(read) == len(read.pairs) == 1 and "1 skip" in repr(read)
    asked = {q.item.key: q for q in wb.label(rollouts(), out=tmp_path).questions}
    view = wb.label(rollouts(), out=tmp_path)
    state = view._state()
    assert (state["done"], state["total"]) == (2, 3)
    assert (state["question"]["item"], 0) not in view.labels.answered() and state["question"]["item"] in asked
    all_of(view)
    assert Page(wb.label(rollouts(), out=tmp_path)).question is None
    # the same answers from another source are known, too; another rater is asked all of them
    rows = [{"prompt": p, "completions": sorted(filter(None, set(texts)))} for p, texts in GROUPS[1:]]
    assert wb.label(rows, out=tmp_path)._state()["done"] == 1
    assert wb.label(rows, out=tmp_path, rater="Ann")._state()["done"] == 0


def test_two_views_on_one_folder_count_nothing_twice_and_undo_their_own(tmp_path):
    one, two = (Page(wb.label(rollouts(), out=tmp_path)) for _ in range(2))
    asked = one.question
    assert two.question["item"] == asked["item"]
    assert one.choose("left") == {"note": ""}
    late = two.choose("right", item=asked["item"], round=0)
    assert "another view" in late["note"] and len(one.view.rows) == 1
    second = two.question
    two.choose("tie")
    assert one.view._state()["done"] == 2
    one.view.on_undo(None)  # its own, not the later one of the other view
    assert one.question["item"] == asked["item"] and (second["item"], 0) in one.view.labels.answered()
    assert one.view.on_undo(None) == {"note": "There is nothing to take back."}
    later = Page(wb.label(rollouts(), out=tmp_path))  # a new view may take back what came before it
    assert later.view.on_undo(None) == {"note": ""} and later.view._state()["done"] == 0
    with pytest.raises(DataError, match="not one of this view"):
        one.choose("left", item="nothing")


def test_agreement_and_what_was_answered_in_two_ways(tmp_path):
    """By hand: 4 pairs, of which the last two are asked twice, one of them answered differently."""
    labels = Labels(tmp_path, write=True)
    facts = ({"reward": 1.0}, {"reward": 0.0})
    items = [Item("p", (f"a{i}", f"b{i}"), facts) for i in range(4)]
    labels.add(items[0], "first", on_left="first")  # agrees, left
    labels.add(items[1], "second", on_left="first")  # disagrees, right
    labels.add(items[2], "first", on_left="second")  # agrees, right
    labels.add(items[2], "first", on_left="first", round=1)  # agrees, left
    labels.add(items[3], "first", on_left="first")  # agrees, left
    labels.add(items[3], "second", on_left="second", round=1)  # disagrees, left
    labels.add(Item("p", ("x", "y"), ({"reward": 1.0}, {"reward": 1.0})), "first", on_left="second")  # equal rewards
    labels.add(Item("p", ("x", "z"), facts), "tie", on_left="first")
    assert labels.agreement() == {"reward": (4, 6), "self": (1, 2), "left": (4, 7), "good": (0, 0)}
    assert [row["chosen"] for row in labels.pairs] == ["a0", "b1", "a2", "x"]
    assert labels.agreement("Ann")["reward"] == (0, 0)
    assert labels.add(items[1], "first", rater="Ann") and not labels.add(items[1], "second", rater="Ann")
    assert labels.pairs[-1]["rater"] == "Ann" and labels.agreement("Ann")["reward"] == (1, 1)
    labels.add(Item("p", ("m",), ({},)), "good")
    with pytest.raises(DataError, match="take labels.pairs or labels.marks"):
        wb.rows(labels)
    assert labels.good == [{"prompt": "p", "completion": "m"}]


def test_labels_are_rows_for_dpo_and_kto_as_they_are(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    all_of(wb.label(rollouts(), out=tmp_path / "pairs", repeats=0.5))
    run = wb.dpo(policy, wb.labels(tmp_path / "pairs"), steps=1, batch_size=2, out=tmp_path / "dpo")
    assert next(iter(run)).metrics["loss"] == pytest.approx(math.log(2), abs=1e-4)
    all_of(
        wb.label(rollouts(), mode="mark", out=tmp_path / "marks"), lambda p: "good" if "4" in p.texts()[0] else "bad"
    )
    run = wb.kto(policy, wb.labels(tmp_path / "marks"), steps=1, batch_size=4, out=tmp_path / "kto")
    assert np.isfinite(next(iter(run)).metrics["loss"])


# Views and words


def test_blind_until_asked_and_hostile_text_is_text(tmp_path):
    made = wb.Rollouts.of([writer.HOSTILE] * 2, [writer.HOSTILE + "1", "<img src=x>\x1b[31m\ud800"], rewards=[1, 0])
    view = wb.label(made, out=tmp_path, rater="<b>Ann</b>")
    state = json.dumps(view._state(), ensure_ascii=False)
    state.encode()
    assert "\x1b" not in state and "\u202e" not in state and "⟨ESC⟩" in state
    all_of(view)
    html = view.static_html()
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
    assert "\x1b" not in view.static_text() and "1 of 1 answered (1 preferred)" in view.static_text()
    assert view.rows[0]["rater"] == "<b>Ann</b>"


def test_differences_are_of_the_sides_as_they_stand(tmp_path):
    view = wb.label([{"prompt": "p", "completions": ["one two three", "one 2 three"]}], out=tmp_path)
    left, right = view._state()["question"]["diff"]
    texts = Page(view).texts()
    assert ["".join(text for _, text in side) for side in (left, right)] == texts
    assert {kind for kind, _ in left} == {"same", "delete"} and {kind for kind, _ in right} == {"same", "insert"}


def test_what_cannot_be_is_said_in_words(tmp_path):
    same = wb.Rollouts.of(["p", "p"], ["a", "a"])
    for call, error, words in (
        (lambda: wb.label(same, out=tmp_path), DataError, "no prompt has two different ones"),
        (lambda: wb.label(rollouts(False), pairs="close", out=tmp_path), DataError, "with rewards"),
        (lambda: wb.label(rollouts(False), pairs="disagree", out=tmp_path), DataError, "two reward functions disagree"),
        (lambda: wb.label(rollouts(), pairs="closest", out=tmp_path), SettingError, "Did you mean 'close'"),
        (lambda: wb.label(rollouts(), mode="marks", out=tmp_path), SettingError, "Did you mean 'mark'"),
        (lambda: wb.label(rollouts(), repeats=2, out=tmp_path), SettingError, "share from 0 to 1"),
        (lambda: wb.label(rollouts(), limit=0, out=tmp_path), SettingError, "at least 1"),
        (lambda: wb.label(rollouts(), step=3, out=tmp_path), SettingError, "no run"),
        (lambda: wb.label([{"prompt": "p"}], out=tmp_path), DataError, "no answer to ask about"),
        (lambda: wb.label(wb.Rollouts.of(["p"], [[1, 2, 3]]), mode="mark", out=tmp_path), DataError, "ids alone"),
        (lambda: wb.labels(tmp_path / "none"), StoreError, "There is no labels.db"),
    ):
        with pytest.raises(error, match=words):
            call()
    assert not (tmp_path / "labels.db").exists(), "nothing is made before all is known to be well"
    (tmp_path / "labels.db").write_text("not a database, and long enough to be read as one" * 30)
    with pytest.raises(StoreError, match="not a readable file of choices"):
        wb.labels(tmp_path)
