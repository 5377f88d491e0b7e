"""The rollout browser without a browser: filters, order, groups, steps, selection, and what it writes for training."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pandas as pd
import pytest
from browser import writer
from test_views import Tags, assert_inert
from test_views_filters import frame_of

import workbench as wb
from workbench import views
from workbench.errors import DataError, SettingError
from workbench.sampling.rollouts import Rollouts
from workbench.store import Store
from workbench.store import rollouts as stored
from workbench.views import exports
from workbench.views.records import Records
from workbench.views.rollouts import Wish, wish_of

HOSTILE = writer.HOSTILE


def ask(view, kind: str, **values) -> dict:
    """The answer to one question of a page, with its packed columns."""
    heard = []
    view.send = lambda content, buffers=None: heard.append((content, buffers or []))
    view._receive(view, {"kind": kind, "view": "a", "ask": 1, **values}, [])
    content, buffers = next((c, b) for c, b in heard if c.get("ask") == 1)
    json.dumps(content, allow_nan=False, ensure_ascii=False).encode()  # as a kernel sends it
    if "trouble" in content:
        raise DataError(content["trouble"])
    rows, buffers = {}, list(buffers)
    for name, kind in content.get("packed", ()):
        if kind == "text":
            ends, text = np.frombuffer(buffers.pop(0), "<u4"), buffers.pop(0)
            rows[name] = [text[a:b].decode() for a, b in zip(ends[:-1], ends[1:], strict=True)]
        else:
            rows[name] = np.frombuffer(buffers.pop(0), {"u1": "|u1"}.get(kind, f"<{kind}")).tolist()
    return content | {"rows": rows, "heard": [c for c, _ in heard]}


def with_tokens(made: Rollouts) -> Rollouts:
    """Given rollouts as a store takes them: two tokens each."""
    n = len(made)
    made.prompt_ids, made.ids = [[1]] * n, [[2, 3]] * n
    made.logprob = made.entropy = [np.zeros(2, "f4")] * n
    return made


def page(view, count: int = 1000, start: int = 0, **wish) -> list[int]:
    return ask(view, "page", wish=wish, start=start, count=count)["rows"]["id"]


# -- rows --------------------------------------------------------------------------------------------------------


def test_rows_are_sorted_found_and_paged():
    table = views.RolloutTable(frame_of())
    first = ask(table, "page", wish={}, start=0, count=200)
    assert [h["label"] for h in first["headings"]] == [
        "step", "group", "prompt", "completion", "reward", "correct", "odd name", "finish", "tokens",
    ]  # fmt: skip
    assert (len(first["rows"]["id"]), first["matched"], first["total"]) == (200, 450, 450)
    assert first["rows"]["stripe"][:7] == [0, 0, 0, 1, 1, 1, 2]
    assert first["rows"]["c3"][:2] == ["answer 0", "answer 1"] and math.isnan(first["rows"]["c4"][3])
    assert page(table, start=400, count=200) == list(range(400, 450)) and page(table, start=9999) == []
    down = page(table, sort="reward", descending=True)
    assert down[:3] == [6, 13, 20] and down[-1] == 3, "equal rewards stay in their order; no reward comes last"
    up = page(table, sort="reward")
    assert up[0] == 0 and up[-1] == 3 and sorted(up) == list(range(450))
    assert page(table, find="ANSWER 44") == [44, *range(440, 449)] and page(table, find="nowhere") == []
    assert page(table, steps=[2, 3], finish="length") == list(range(92, 270, 3))
    assert page(table, where="step == 2", find="answer 9", sort="n_tokens", descending=True) == list(range(99, 89, -1))
    assert page(table, sort="no column") == list(range(450))
    assert page(table, where=3, find=None, steps=["x"], finish=[], sort={}) == list(range(450)), "a page is no Python"
    with pytest.raises(DataError, match="no column 'rewrd'"):
        page(table, where="rewrd > 1")
    assert table.wish == Wish(), "a filter that cannot be read changes nothing"
    narrow = ask(table, "page", wish={}, columns=["answer", "nothing"])
    assert [h["name"] for h in narrow["headings"]] == ["answer"] and narrow["rows"]["c0"][:3] == ["7", "–", "8"]
    mixed = Records(pd.DataFrame({"completion": ["b", None, "a", "b"]}))
    assert mixed.order("completion", False).tolist() == [2, 0, 3, 1]
    assert mixed.order("completion", True).tolist() == [0, 3, 2, 1], "equal texts stay in their order, too"
    table.close()


def test_a_store_is_read_as_a_frame_is(tmp_path):
    store = writer.rewind(writer.write(writer.begin(tmp_path / "run"), 8), 3, 5)
    read, table = Store(store.folder), views.RolloutTable(Store(store.folder))
    assert table._records is None, "the first rows come before everything is read"
    whole = read.rollouts()
    assert table.first["rows"]["id"] == whole["id"][:40].tolist() and table.first["matched"] == 40
    assert page(table) == whole["id"].tolist()
    everything = page(table, gone=True)
    assert len(everything) == 80 and sum(ask(table, "page", wish={"gone": True})["rows"]["gone"]) == 40
    for where in (
        "reward > 0.8",
        'rewards["format"] is None',
        "correct > 0.5 and step in (4, 5)",
        'contains(completion, "makes 4")',
    ):
        frame = Records(whole)
        assert page(table, where=where) == whole["id"][frame.fits(where)].tolist(), where
    for name in ("reward", "completion", "finish_reason", "rewards/format"):
        for descending in (False, True):
            order = Records(whole).order(name, descending)
            assert page(table, sort=name, descending=descending) == whole["id"].iloc[order].tolist(), name
    about = ask(table, "about")
    assert (about["steps"], about["gone"], about["live"]) == ([1, 2, 3, 4, 5, 6, 7, 8], 40, True)
    assert [f["value"] for f in about["finish"]] == ["length", "stop"] and [p["value"] for p in about["parts"]] == [
        "correct",
        "format",
    ]
    got = table.filter("reward > 0.8", step=(2, 4), sort="reward", descending=True).selection
    want = whole[(whole.reward > 0.8) & whole.step.between(2, 4)].sort_values("reward", ascending=False, kind="stable")
    pd.testing.assert_frame_equal(
        got[["id", "step", "completion", "reward", "rewards/format"]],
        want[["id", "step", "completion", "reward", "rewards/format"]].reset_index(drop=True), check_dtype=False,
    )  # fmt: skip
    few = views.RolloutTable(Store(store.folder), ids=[3, 5, 5, 999])
    assert page(few) == [3, 5] and few.total == 2
    for view in (table, few):
        view.close()


def test_rollouts_that_come_later_are_read_without_the_others(tmp_path, monkeypatch):
    store = writer.write(writer.begin(tmp_path / "run"), 3)
    table = views.RolloutTable(Store(store.folder))
    assert len(page(table)) == 24 and ask(table, "news") == ask(table, "news") | {"new": 0, "running": True}
    writer.commit(store, 4)
    assert ask(table, "news")["new"] == 8 and len(page(table)) == 24, "what is shown stays until it is asked for"
    seen, read = [], stored.numbers
    monkeypatch.setattr(stored, "numbers", lambda store, since=0: seen.append(since) or read(store, since))
    fresh = ask(table, "page", wish={"where": "step == 4"}, refresh=True)
    assert fresh["matched"] == 8 and fresh["total"] == 32 and seen == [24]
    assert ask(table, "page", wish={"find": "4 = ?"})["matched"] == 8, "the search knows the new ones, too"
    want = Store(store.folder).rollouts()
    np.testing.assert_array_equal(table.records.column("rewards/format"), want["rewards/format"])
    writer.rewind(store, 2, 3)
    assert ask(table, "news")["new"] == -1
    assert ask(table, "page", wish={}, refresh=True)["total"] == 24
    assert [ask(table, "page", wish={"gone": True})[k] for k in ("matched", "total")] == [40, 40]
    odd = with_tokens(Rollouts.of(["p"], ["c"], rewards={"another": [1.0]}))
    store.commit_step(4, 1, seconds=1, metrics={}, state={}, plan={}, threads=1, rollouts=odd)
    ask(table, "page", wish={}, refresh=True)
    assert page(table, where="another is not None") == [41] and math.isnan(table.records.column("rewards/correct")[-1])
    table.close()


def test_many_rollouts_answer_at_once(tmp_path):
    store = writer.many_rollouts(tmp_path / "big", 40_000)
    started = time.thread_time()
    table = views.RolloutTable(Store(store.folder))
    assert time.thread_time() - started < 1.0 and len(table.first["rows"]["id"]) == 40
    started = time.thread_time()
    page(table)
    assert time.thread_time() - started < 3.0  # 0.2 s by itself
    took = {}
    for wish in (
        {"where": "reward < 0.5 and n_tokens > 20"}, {"where": 'finish_reason == "length"'}, {"find": "answer is 44"},
        {"where": 'contains(completion, "answer is 44")'}, {"sort": "reward"}, {"sort": "completion"},
        {"steps": [3, 9]},
    ):  # fmt: skip
        started = time.thread_time()
        assert page(table, **wish)
        took[str(wish)] = time.thread_time() - started
    assert sorted(took.values())[3] < 0.3 and max(took.values()) < 1.0, took
    table.close()


def test_frames_of_any_kind():
    empty = views.RolloutTable(pd.DataFrame())
    assert page(empty) == [] and empty.static_text() == "No rollouts." and ask(empty, "about")["columns"] == []
    other = views.RolloutTable(pd.DataFrame({
        "a": [1.5, None], "b": ["x", None], "c": [True, False], "d": [[1], None], "e": [{"k": 1}, None],
        "f": [b"\xff", None],
        "g": [math.inf, -math.inf], 3: [1, 2], "h": pd.Series([1, None], dtype="Int64"),
        "i": pd.to_datetime(["2026-01-01", None]),
        "j": [np.float32(0.5), None], "k": [np.arange(2), None],
    }))  # fmt: skip
    names = other.records.names
    rows = ask(other, "page", wish={}, columns=names)["rows"]
    shown = {name: rows[f"c{i}"] for i, name in enumerate(names)}
    assert shown["b"] == ["x", "–"] and shown["c"] == ["True", "False"] and shown["d"] == ["[1]", "–"]
    assert (
        shown["g"] == [math.inf, -math.inf]
        and shown["3"] == [1, 2]
        and shown["h"][0] == 1
        and math.isnan(shown["h"][1])
    )
    assert shown["f"][0] == "b'\\xff'" and shown["j"][0] == 0.5 and shown["k"][0] == "[0 1]"
    for name in names:
        assert len(page(other, sort=name)) == 2
    ask(other, "detail", id=0)
    with pytest.raises(DataError, match="no column `step`"):
        ask(other, "time", id=0)
    chat = views.RolloutTable(
        pd.DataFrame({"prompt": [[{"role": "user", "content": "hi"}]], "completion": ["yo"], "reward": [1]})
    )
    assert ask(chat, "detail", id=0)["prompt"] == "[user] hi"
    twice = pd.DataFrame([["p", "c", 1]], columns=["prompt", "completion", "completion"])
    assert page(views.RolloutTable(twice)) == [0]
    made = Rollouts.of(["p", "p"], ["a", "b"], rewards=[1.0, None]).show()
    assert made.first["rows"]["c4"] == [1.0, None] and "reward" in made.static_text()
    for view in (empty, other, chat, made):
        view.close()


# -- one rollout -------------------------------------------------------------------------------------------------


def test_a_group_stands_side_by_side_against_its_best():
    frame = pd.DataFrame({
        "id": [10, 11, 12, 13, 14], "step": 2, "group_id": [0, 0, 0, 0, 1], "sample": [0, 1, 2, 3, 0], "prompt": "p",
        "answer": "7",
        "completion": ["it is 5", "it is 7", "", "it is 5 or 6", "z"], "reward": [0.0, 1.0, np.nan, 0.0, 1.0],
        "advantage": [-0.5, 1.0, 0.0, -0.5, 0.0], "rewards/correct": [0.0, 1.0, np.nan, -1.0, 1.0],
        "finish_reason": "stop", "n_tokens": 3,
    })  # fmt: skip
    table = views.RolloutTable(frame)
    group = ask(table, "group", id=12)
    assert [m["id"] for m in group["members"]] == [10, 11, 12, 13] and group["against"] == 11
    assert [m["best"] for m in group["members"]] == [False, True, False, False]
    assert [m["worst"] for m in group["members"]] == [True, False, False, True], "a missing reward is not the worst"
    assert group["members"][0]["segments"] == [["same", "it is "], ["insert", "5"]]
    assert group["members"][1]["segments"] == [["same", "it is 7"]] and group["members"][2]["segments"] == []
    assert group["members"][3]["parts"] == [["correct", -1.0]] and group["members"][2]["parts"] == [["correct", None]]
    assert group["facts"] == [["answer", "7"]] and group["prompt"] == "p" and group["title"] == "step 2, group 0"
    other = ask(table, "group", id=12, against=10, sort="reward")
    assert [m["id"] for m in other["members"]] == [11, 10, 13, 12] and other["against"] == 10
    assert other["members"][2]["segments"] == [["same", "it is "], ["insert", "5 or 6"]]
    assert ask(table, "group", id=14)["members"][0]["best"] is False, "alone it is neither best nor worst"
    detail = ask(table, "detail", id=13)
    assert (detail["members"], detail["member"]) == ([0, 1, 2, 3], 3) and json.loads(detail["json"])["answer"] == "7"
    assert (
        ["answer", "7"] in detail["facts"]
        and ["advantage", "−0.5"] in detail["facts"]
        and detail["parts"] == [["correct", -1.0]]
    )
    assert json.loads(ask(table, "detail", id=12)["json"])["reward"] is None
    with pytest.raises(DataError, match="no rollout 99"):
        ask(table, "detail", id=99)
    table.close()


def test_large_groups_have_the_one_that_was_asked_for():
    frame = pd.DataFrame({"group_id": 0, "prompt": "p", "completion": [f"c{i}" for i in range(100)], "reward": 1.0})
    table = views.RolloutTable(frame)
    group = ask(table, "group", id=77)
    assert len(group["members"]) == 32 and group["more"] == 68 and group["members"][0]["id"] == 77
    table.close()


def test_the_same_task_over_the_steps(tmp_path):
    store = writer.begin(tmp_path / "run")
    for step in (1, 2, 3):
        made = writer.rollouts_of(step)
        made.row = [5, 5, 5, 5, 6, 6, 6, 6]
        store.commit_step(step, 0, seconds=1, metrics={}, state={}, plan={}, threads=1, rollouts=made)
    store.add_branch(0, 2)
    table = views.RolloutTable(Store(store.folder))
    seen = ask(table, "time", id=2)
    assert [s["id"] for s in seen["samples"]] == [1, 2, 3, 4, 9, 10, 11, 12] and seen["by"] == "row 5 of the task"
    assert [s["step"] for s in seen["samples"]] == [1] * 4 + [2] * 4
    everything = ask(table, "time", id=2, gone=True)["samples"]
    assert (
        [s["id"] for s in everything][-4:] == [17, 18, 19, 20] and everything[-1]["gone"] and not everything[0]["gone"]
    )
    by_prompt = views.RolloutTable(
        pd.DataFrame({"step": [2, 1, 1], "prompt": ["a", "b", "a"], "completion": ["x y", "y", "x z"]})
    )
    assert [s["id"] for s in ask(by_prompt, "time", id=0)["samples"]] == [2, 0]
    difference = ask(by_prompt, "difference", a=2, b=0)
    assert difference["segments"] == [["same", "x "], ["delete", "z"], ["insert", "y"]] and difference["prompt"] is None
    assert ask(by_prompt, "difference", a=1, b=0)["prompt"] == [["delete", "b"], ["insert", "a"]]
    for view in (table, by_prompt):
        view.close()


# -- from Python ---------------------------------------------------------------------------------------------------


def test_the_same_filter_from_python_and_the_line_that_repeats_it(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run"), 4)
    table = views.RolloutTable(Store(store.folder))
    heard = []
    table.send = lambda content, buffers=None: heard.append(content)
    assert table.filter("reward > 0.5", step=2, find="makes", finish="stop", sort="reward", descending=True) is table
    assert heard[-1]["wish"] == {
        "where": "reward > 0.5", "find": "makes", "steps": (2, 2), "finish": "stop", "gone": False, "sort": "reward",
        "descending": True,
    }  # fmt: skip
    line = table.line()
    assert line == (
        f"wb.open({str(store.folder)!r}).browse().filter('reward > 0.5', find='makes', finish='stop', sort='reward',"
        " step=(2, 2), descending=True)"
    )
    wished, shown = table.wish, table.order().tolist()
    again = eval(line, {"wb": wb})
    assert again.wish == wished and again.order().tolist() == shown and shown
    assert table.filter(group=1, where="reward > 0").wish.where == "(reward > 0) and group == 1"
    assert table.filter(step=range(2, 4)).wish.steps == (2, 3) and table.filter().wish == Wish()
    for call, error in (
        (lambda: table.filter("rewrd > 1"), "no column 'rewrd'"),
        (lambda: table.filter(stepp=1), "'stepp' is unknown. Did you mean 'step'"),
        (lambda: table.filter(sort="rewad"), "no column 'rewad' to sort by. Did you mean 'reward'"),
        (lambda: table.filter(step=(1, 2, 3)), "neither a step"), (lambda: table.filter(3), "3 is no text"),
        (lambda: views.RolloutTable(Store(store.folder), where="x >"), "ends too early"),
        (lambda: table.look_at(0), "no rollout 0"),
    ):  # fmt: skip
        with pytest.raises((DataError, SettingError), match=error):
            call()
    assert table.wish == Wish(), "what cannot be done changes nothing"
    table.look_at(3)
    assert heard[-1] == heard[-1] | {"kind": "open", "id": 3}
    assert wish_of("", {"gone": True}).gone
    again.close()
    table.close()


def test_the_picture_follows_the_filter_once_it_rests(tmp_path, monkeypatch):
    from workbench.views import rollouts

    monkeypatch.setattr(rollouts, "KEEP_AFTER", 0.05)
    store = writer.write(writer.begin(tmp_path / "run"), 4)
    table, kept = views.RolloutTable(Store(store.folder)), []

    class Handle:
        def update(self, data, metadata=None, raw=True):
            kept.append(data)

    table._handle = Handle()
    keep, keeps = table.keep, []
    table.keep = lambda: keeps.append(keep())
    assert "32 of 32" not in table.static_html() and "30 of 32 rollouts" in table.static_html()
    for text in ("m", "ma", "makes 1"):
        page(table, find=text)
    limit = time.monotonic() + 5
    while not kept and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(kept) == len(keeps) == 1, "one picture once it rests, not one a keystroke"
    matched = len(page(table, find="makes 1"))
    assert f"{matched} of 32 rollouts: with &#x27;makes 1&#x27;" in kept[0]["text/html"]
    assert table.static_text().startswith(f"{matched} of 32 rollouts") and table.first["wish"]["find"] == "makes 1"
    page(table, find="nothing has this")
    assert "0 of 32 rollouts" in table.static_text() and "0 of 32 rollouts" in table.static_html()
    table.close()


def shown(value):
    """What a page shows of an answer: not the names by which it asks, and no JSON that is copied as it is."""
    if isinstance(value, dict):
        return {k: shown(v) for k, v in value.items() if k not in ("name", "value", "json", "heard", "line")}
    return [shown(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_hostile_text_and_names_are_text(tmp_path):
    text = pd.Series([HOSTILE], dtype=object)  # pandas' own text cannot hold half a surrogate pair
    name = HOSTILE.replace("\ud800", "")
    frame = pd.DataFrame(
        {"step": 1, "group_id": 0, "prompt": text, "completion": text, "finish_reason": text, name: text}
    )
    frame[f"rewards/{name}"] = 1.0
    store = writer.write(writer.begin(tmp_path / "run"), 2, hostile=True)
    for table in (views.RolloutTable(frame), views.RolloutTable(Store(store.folder))):
        one = int(table.first["rows"]["id"][0])
        asked = {"about": {}, "detail": {"id": one}, "group": {"id": one}, "time": {"id": one}}
        asked |= {"difference": {"a": one, "b": one}, "page": {"wish": {}, "columns": table.records.choosable}}
        answers = {kind: ask(table, kind, **values) for kind, values in asked.items()} | {"first": table.first}
        for kind, answer in answers.items():
            said = json.dumps(shown(answer), ensure_ascii=False)
            said.encode()
            assert "\\u0000" not in said and "\\u001b" not in said and not any(c in said for c in "\u200b\u202e\ud800")
            assert "<script>" in said or "<img src=x" in said or kind == "time", kind
        assert_inert(table.static_html(), images=False)
        assert "img" not in Tags(table.static_html()).tags and "&lt;img src=x" in table.static_html()
        assert "\x1b" not in table.static_text() and "\x00" not in table.static_text()
        for finish in answers["about"]["finish"]:
            assert one in page(table, finish=finish["value"]) or finish["value"] == "stop"
        table.close()
    rows, _ = exports.sft_rows([exports.Rollout(HOSTILE, HOSTILE)])
    written = exports.write([exports.Rollout(HOSTILE, HOSTILE)], tmp_path / "h.jsonl", "sft")
    assert wb.rows(written.path)[0]["prompt"] == HOSTILE.replace("\ud800", "\ufffd") and len(rows) == 1


def test_a_run_without_rollouts(tmp_path):
    table = views.RolloutTable(Store(writer.begin(tmp_path / "run", "sft").folder))
    assert page(table) == [] == page(table, where="step >= 0 and reward is None", find="x", sort="step")
    about = ask(table, "about")
    assert about["steps"] == [] and about["gone"] == 0 and ask(table, "news")["new"] == 0
    assert len(table.selection) == 0 and table.static_text() == "No rollouts."
    with pytest.raises(DataError, match="no row for wb.sft in 0 rollouts"):
        table.to_jsonl(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="no rollout 1 here"):
        ask(table, "detail", id=1)
    table.close()
