"""What the rollout browser reads and compares with: its filter language, and differences by word."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from workbench.errors import DataError
from workbench.views import differences, filters
from workbench.views.records import Records


def frame_of(n: int = 450) -> pd.DataFrame:
    frame = pd.DataFrame({
        "step": np.arange(n) // 90 + 1, "group_id": np.arange(n) // 3, "prompt": ["p"] * n,
        "completion": [f"answer {i}" for i in range(n - 1)] + ["<b>"], "reward": np.arange(n) % 7 * 0.5,
        "rewards/correct": np.arange(n) % 2 * 1.0, "rewards/odd name": [None, 2.0] * (n // 2),
        "finish_reason": ["stop", "stop", "length"] * (n // 3), "n_tokens": np.arange(n),
        "answer": ["7", None, "8"] * (n // 3),
    })  # fmt: skip
    frame.loc[3, "reward"] = np.nan
    return frame


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("reward < 0.5 and n_tokens > 200", lambda f: (f.reward < 0.5) & (f.n_tokens > 200)),
        ("0.5 <= reward < 1.5 or not step != 3", lambda f: f.reward.between(0.5, 1.5, "left") | (f.step == 3)),
        ("correct == 1", lambda f: f["rewards/correct"] == 1),
        (
            "rewards.correct > 0 and group in (1, 2, 3)",
            lambda f: (f["rewards/correct"] > 0) & f.group_id.isin([1, 2, 3]),
        ),
        ('rewards["odd name"] is None', lambda f: f["rewards/odd name"].isna()),
        ('columns["rewards/odd name"] is not nan', lambda f: f["rewards/odd name"].notna()),
        ("reward is None", lambda f: f.reward.isna()),
        ("reward != 0.5", lambda f: f.reward != 0.5),
        ("not reward < 0.5", lambda f: ~(f.reward < 0.5)),
        ('finish_reason == "length"', lambda f: f.finish_reason == "length"),
        ("finish not in ['length', 'x']", lambda f: f.finish_reason != "length"),
        ('contains(completion, "ANSWER 44")', lambda f: f.completion.str.contains("answer 44")),
        ('"ANSWER" in completion', lambda f: f.reward > 99),
        ('"swer 7" in completion and endswith(completion, "1")', lambda f: f.completion.str.match(r"answer 7\d*1$")),
        ("len(completion) == 8", lambda f: f.completion.str.len() == 8),
        ("answer is None or answer == '8'", lambda f: f.answer.isna() | (f.answer == "8")),
        ("answer != '8'", lambda f: f.answer != "8"),
        ("answer < '8'", lambda f: f.answer == "7"),
        ("len(answer) > 0", lambda f: f.answer.notna()),
        ("abs(reward - 1) * 2 / 4 + 1 > -n_tokens + 440", lambda f: (f.reward - 1).abs() / 2 + 1 > 440 - f.n_tokens),
        ("n_tokens / 0 > 1", lambda f: f.n_tokens > 0),
        ("true and startswith(lower(completion), 'a')", lambda f: f.completion.str.startswith("a")),
        ("  ", lambda f: f.step > 0),
    ],
)
def test_a_filter_means_what_pandas_would(expression, same):
    frame = frame_of()
    assert Records(frame).fits(expression).tolist() == same(frame).tolist()


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rewrd < 1", r"no column 'rewrd'\. Did you mean 'reward'\? \(at character 1"),
        ("reward > 1 and corect > 0", r"no column 'corect'\. Did you mean 'correct'\? \(at character 16"),
        ("'é' == completion and x > 1", r"no column 'x'.*\(at character 23"),
        ("rewards.corect > 0", "no reward is called 'corect'. Did you mean 'correct'"),
        ("rewards['x'] > 0", "no reward is called 'x'. Its parts: correct, odd name"),
        ("columns['stepp'] > 0", "no column 'stepp'. Did you mean 'step'"),
        ("reward = 1", r"cannot be read at character 8 \(for equal write ==\)"),
        ("reward && 1", r"\(write and\)"),
        ("reward <", "ends too early: reward <"),
        ("reward < 0.5 & n_tokens > 2", "Write and for &"),
        ("reward < 'x'", "reward is a number and 'x' is a text"),
        ("completion > 3", "completion is a text and 3 is a number"),
        ("completion + 1 > 3", "completion is a text, not a number"),
        ("n_tokens", "n_tokens is a number; compare it"),
        ("reward > None", "None has no size"),
        ("reward is 1", "`is` goes with None only"),
        ("step in ('a',)", "the list holds a text each"),
        ("step in (1, 'a')", "either numbers or texts"),
        ("3 in step", "`in` looks into a text or a list"),
        ("foo(1) > 0", "no function 'foo'"),
        ("contain(completion, 'x')", "Did you mean 'contains'"),
        ("contains(completion)", "takes 2 values"),
        ("completion.upper() == 'A'", "cannot be called"),
        ("[x for x in step]", "it has no listcomp"),
        ("(lambda: 1)() > 0", "cannot be called"),
        ("reward ** 9 > 1", "only [+] - [*] / are known"),
        ("~(reward > 1)", "write not"),
        ("__import__('os').system('true') == 0", "cannot be called"),
        ("reward.__class__ == 1", "only rewards.<name> has a dot"),
        ("-" * 3000 + "1 > 0", "cannot be read|nested"),
        ("(" * 100 + "reward > 0" + ")" * 100, "cannot be read|nested|^$"),
        ("-" * 70 + "reward > 0", "nested too deeply"),
        ("reward > \0", "cannot be read|ends too early"),
        ("x" * 5000, "5,000 characters long"),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_read_says_where(expression, said):
    if expression.startswith("(((("):  # parentheses are no depth: they leave nothing behind
        assert Records(frame_of()).fits(expression).any()
        return
    with pytest.raises(DataError, match=said) as error:
        Records(frame_of()).fits(expression)
    assert len(str(error.value)) < 420 and "\0" not in str(error.value)


def test_a_filter_runs_nothing_and_takes_odd_columns():
    frame = pd.DataFrame({
        "completion": ["a", None, "c"], "lists": [[1, 2], None, []], "dicts": [{"a": 1}, {}, None],
        "raw": [b"x", None, b""],
        "mixed": [1, "two", None], "flag": [True, False, None], "whole": [True, False, True], 7: [1, 2, 3],
        "é": [1, 2, 3],
    })  # fmt: skip
    records = Records(frame)
    for expression, kept in {
        "lists is None": [1], "len(lists) > 2": [0], 'contains(dicts, "a")': [0], "raw is not None": [0, 2],
        'mixed == "two"': [1], "flag == true": [0], "whole or flag == false": [0, 1, 2], "flag is None": [2],
        "not whole": [1], 'columns["7"] > 1': [1, 2], "é == 3": [2],
        "len(completion) == 1": [0, 2], "whole + 1 == 2": [0, 2],
    }.items():  # fmt: skip
        assert np.flatnonzero(records.fits(expression)).tolist() == kept, expression
    assert filters.mask("1 < 2", records.column, records.names, 0).shape == (0,)


def test_differences_are_by_word_and_lose_nothing():
    assert differences.segments("the cat sat\n", "the dog sat\n") == [
        ("same", "the "), ("delete", "cat"), ("insert", "dog"), ("same", " sat\n"),
    ]  # fmt: skip
    assert differences.segments("a b c", "a c") == [("same", "a "), ("delete", "b "), ("same", "c")]
    assert differences.segments("", "x") == [("insert", "x")] and differences.segments("", "") == []
    assert differences.segments("same", "same") == [("same", "same")]
    rng = np.random.default_rng(0)
    for n in [*range(300), 20_000]:
        a, b = ("".join(rng.choice(list("ab \n"), min(n, 30) if n < 300 else n)) for _ in range(2))
        made = differences.segments(a, b)
        assert "".join(text for kind, text in made if kind != "insert") == a
        assert "".join(text for kind, text in made if kind != "delete") == b
        assert all(text for _, text in made) and all(x[0] != y[0] for x, y in zip(made, made[1:], strict=False))
    words = " ".join(str(i) for i in range(3000))
    changed = words.replace(" 1500 ", " x ")
    assert [s for s in differences.segments(words, changed) if s[0] != "same"] == [("delete", "1500"), ("insert", "x")]
    started = time.thread_time()
    differences.segments("a b c d " * 20_000, "d c b a " * 20_000)
    assert time.thread_time() - started < 1.0
    assert differences.shown([("same", "\x1b\u202e")]) == [["same", "⟨ESC⟩⟨U+202E⟩"]]
