"""Traced integers and serial problems: exact answers and traces, what noise does, the rows in SFT and GRPO."""

from __future__ import annotations

from collections import Counter
from functools import reduce

import pytest

import workbench as wb
from tests.models import tiny_policy
from workbench.errors import SettingError
from workbench.tasks import rebuild
from workbench.tasks.serial import final_text, replayed
from workbench.tasks.traced_integers import FUNCTIONS, held

REFERENCE = {
    "sum": sum,
    "difference": lambda xs: xs[0] - sum(xs[1:]),
    "max": max,
    "min": min,
    "product": lambda xs: reduce(lambda a, b: a * b, xs[1:], xs[0]) % 100,
    "digits": lambda xs: reduce(lambda a, b: (10 * a + b) % 1000, xs[1:], xs[0]),
}


def checked(row):
    return held(row["function"], row["numbers"], row["completion"])


def said(row):
    return int(row["completion"].rpartition("####")[2])


# -- traced integers


@pytest.mark.parametrize("function", FUNCTIONS)
def test_clean_traces_execute_again(function):
    for row in wb.task("traced_integers", size=40, function=function, length=5).rows:
        assert row["answer"] == said(row) == REFERENCE[function](row["numbers"])
        assert checked(row) == [True] * 4 and not row["noised"]


def test_a_trace_by_hand():
    assert held("sum", [3, 9, 2], "\n3 + 9 = 12\n12 + 2 = 14\n#### 14") == [True, True]
    assert held("sum", [3, 9, 2], "\n3 + 9 = 13\n13 + 2 = 15\n#### 15") == [False, True]  # dynamic
    assert held("sum", [3, 9, 2], "\n3 + 9 = 13\n12 + 2 = 14\n#### 14") == [False, False]  # static
    assert held("sum", [3, 9, 2], "\n12 + 2 = 14\n#### 14") == [False]
    assert held("sum", [3, 9], "3 + 9 = 12\nextra = 5") == [True, False]


def test_dynamic_noise_goes_on_from_the_altered_value():
    clean = wb.task("traced_integers", size=200, length=6).rows
    noisy = wb.task("traced_integers", size=200, length=6, dynamic=0.3).rows
    assert [row["numbers"] for row in noisy] == [row["numbers"] for row in clean], "the questions stay"
    wrong = [line for row in noisy for line in checked(row)].count(False)
    assert 0.24 < wrong / 1000 < 0.36
    for row in noisy:
        assert row["answer"] == sum(row["numbers"]), "the answer is right whatever the trace says"
        assert (said(row) == row["answer"]) or not all(checked(row))
        lines = row["completion"].strip().split("\n")[:-1]
        assert all(one.rpartition("= ")[2] == two.split(" ")[0] for one, two in zip(lines, lines[1:], strict=False))
    every = wb.task("traced_integers", size=20, dynamic=1.0).rows
    assert not any(line for row in every for line in checked(row))


@pytest.mark.parametrize("unit", ["character", "digit", "line"])
def test_static_noise_leaves_the_answer(unit):
    noisy = wb.task("traced_integers", size=100, length=6, static=0.2, unit=unit).rows
    clean = wb.task("traced_integers", size=100, length=6).rows
    assert all(said(row) == row["answer"] for row in noisy)
    assert sum(all(checked(row)) and len(checked(row)) == 5 for row in noisy) < 50
    changed = total = 0
    for row, whole in zip(noisy, clean, strict=True):
        lines, old = (r["completion"].strip("\n").split("\n")[:-1] for r in (row, whole))
        if unit == "line":
            rest = iter(old)
            assert all(line in rest for line in lines), "what is left stays in order"
            changed, total = changed + len(old) - len(lines), total + len(old)
        else:
            pairs = [(a, b) for one, two in zip(old, lines, strict=True) for a, b in zip(one, two, strict=True)]
            pairs = [(a, b) for a, b in pairs if unit == "character" or a.isdigit() or a != b]
            assert unit == "character" or all(a.isdigit() and b.isdigit() for a, b in pairs)
            changed, total = changed + sum(a != b for a, b in pairs), total + len(pairs)
    assert 0.15 < changed / total < 0.25


def test_contamination_is_the_share_of_noised_rows():
    rows = wb.task("traced_integers", size=400, dynamic=1.0, contamination=0.25).rows
    noised = [row for row in rows if row["noised"]]
    assert 0.19 < len(noised) / 400 < 0.31
    assert all(all(checked(row)) for row in rows if not row["noised"])
    assert not any(wb.task("traced_integers", size=20, dynamic=1.0, contamination=0.0).rows.column("noised"))


def test_splits_are_apart_and_longer_calls_begin_with_shorter_ones():
    train, test = (wb.task("traced_integers", size=200, split=split, length=3).rows for split in ("train", "test"))
    assert not set(train.column("prompt")) & set(test.column("prompt"))
    assert len(set(train.column("prompt"))) == 200
    few = {"kind": "sums", "length": 1, "modulus": 60}  # of 60 problems in all
    train_sums, test_sums = (wb.task("serial", size=n, split=s, **few).rows for n, s in ((30, "train"), (5, "test")))
    assert not set(train_sums.column("prompt")) & set(test_sums.column("prompt"))
    assert wb.task("traced_integers", size=20, length=3).rows.to_list() == train[:20].to_list()
    assert wb.task("traced_integers", size=20, length=3, seed=1).rows.to_list() != train[:20].to_list()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("traced_integers", {"function": "sums"}, "'mixed' or one of sum"),
        ("traced_integers", {"static": 1.5}, "static=1.5"),
        ("traced_integers", {"noise": 1}, "has no option 'noise'"),
        ("traced_integers", {"length": 2, "largest": 1, "size": 50}, "not enough different questions"),
        ("serial", {"kind": "permutation"}, "one of permutations"),
        ("serial", {"length": 0}, "length=0"),
        ("serial", {"kind": "sums", "length": 1, "modulus": 3, "size": 50}, "not enough different problems"),
        ("serial", {"path": "x"}, "takes no path"),
    ],
)
def test_options_out_of_range_are_said(name, options, words):
    with pytest.raises(SettingError, match=words):
        wb.task(name, **options)


# -- serial problems


def test_permutations_replay_and_are_uniform():
    rows = wb.task("serial", size=2400, kind="permutations", length=3).rows
    for row in rows[:200]:
        drawn = row["prompt"].split(": ")[2].split("\n")[0].split(" ")
        state = "12345"
        for one, step in zip(drawn, row["steps"], strict=True):
            state = "".join(one[int(place) - 1] for place in state)
            assert state == step
        assert state == row["answer"] == final_text(row["completion"])
    counts = Counter(rows.column("answer"))
    assert len(counts) == 120 and set(map("".join, map(sorted, counts))) == {"12345"}
    square = sum((count - 20) ** 2 / 20 for count in counts.values())
    assert square < 180, "119 degrees of freedom: 180 is its 99.97th percentile"


def test_squares_sums_and_circuits_by_other_ways():
    for row in wb.task("serial", size=50, kind="squaring", length=5, modulus=101).rows:
        start = int(row["prompt"].split()[2])
        assert int(row["answer"]) == pow(start, 2**5, 101)
    for row in wb.task("serial", size=50, kind="sums", length=6, modulus=10).rows:
        numbers = row["prompt"].removeprefix("Q: ").split(" modulo")[0].split(" + ")
        assert int(row["answer"]) == sum(map(int, numbers)) % 10 and len(numbers) == 6
    for row in wb.task("serial", size=100, kind="circuit", length=7).rows:
        value = {}
        for line in row["prompt"].removeprefix("Q: ").split("; ")[:-1]:
            name, says = line.split(" = ")
            words = [value.get(word, word) for word in says.split(" ")]
            if len(words) == 1:
                value[name] = int(words[0])
            elif words[0] == "NOT":
                value[name] = 1 - words[1]
            else:
                value[name] = min(words[0], words[2]) if words[1] == "AND" else max(words[0], words[2])
        assert value["g7"] == int(row["answer"])
        assert row["steps"] == [f"g{i} = {value[f'g{i}']}" for i in range(1, 8)]
    assert set(wb.task("serial", size=100, kind="circuit").rows.column("answer")) == {"0", "1"}


@pytest.mark.parametrize("kind", ["permutations", "squaring", "circuit", "sums"])
def test_with_and_without_its_steps_the_answer_is_the_same(kind):
    with_steps, bare = (wb.task("serial", size=20, kind=kind, trace=trace) for trace in (True, False))
    for one, other in zip(with_steps.rows, bare.rows, strict=True):
        assert one["prompt"] == other["prompt"] and one["answer"] == other["answer"]
        assert other["completion"] == f"\n#### {one['answer']}"
        assert replayed(one["completion"], one["steps"]) == 1.0 and replayed(other["completion"], one["steps"]) == 0.0
    lines = with_steps.rows[0]["completion"].split("\n")
    lines[3] = "x"
    assert replayed("\n".join(lines), with_steps.rows[0]["steps"]) == 2 / 8


# -- as tasks


@pytest.mark.parametrize("name", ["traced_integers", "serial"])
def test_rows_serve_sft_and_grpo(name, tmp_path):
    task = wb.task(name, size=8, length=3)
    rows = task.rows
    columns = {column: rows.column(column) for column in rows.columns if column != "prompt"}
    assert task.score(rows.column("prompt"), rows.column("completion"), None, columns).total.tolist() == [1.0] * 8
    assert task.score(rows.column("prompt"), ["\n#### x"] * 8, None, columns).total.tolist() == [0.0] * 8
    assert (
        rebuild(task.spec(), rows)
        .score(["p"], rows.column("completion")[:1], None, {"answer": [rows[0]["answer"]]})
        .total[0]
        == 1
    )
    policy = tiny_policy(tmp_path / "model", lora=True, max_position_embeddings=512)
    assert len(list(wb.sft(policy, rows, steps=1, batch_size=4, out=tmp_path / "sft"))) == 1
    more = dict(steps=1, prompts_per_step=2, group_size=2, max_new_tokens=4, out=tmp_path / "grpo")
    (step,) = wb.grpo(policy.reset(), task, **more)
    assert step.metrics["reward"] == 0.0 and len(step.rollouts) == 4
