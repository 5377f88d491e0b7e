"""The ready-made rewards by hand-worked examples; verifiers that hang are killed."""

import os
import threading
import time
from decimal import Decimal

import numpy as np
import pytest

from workbench import rewards
from workbench.errors import RewardError, SettingError
from workbench.rewards import maths
from workbench.rewards.killable import Killable, StartError, Unanswered

NAN = float("nan")


def test_exact_match():
    assert rewards.exact_match(
        ["yes\n", "Yes", [{"role": "assistant", "content": " 5"}]], ["yes", "yes", 5]
    ) == [1, 0, 1]


@pytest.mark.parametrize(
    "text, value",
    [
        ("so 3 + 4 = 7.\n#### 1,007.", "1007"),
        ("#### 7 (because 3)", "7"),
        ("#### nothing, though 3", "3"),
        ("It costs $-2.50.", "-2.5"),
        ("-$2.50", "-2.5"),
        ("16-3", "3"),
        ("16 - 3", "3"),
        ("= -3 apples", "-3"),
        ("(\u22125)", "-5"),
        ("1,2", "2"),
        ("1,000,000.5%", "1000000.5"),
        ("1.2.3", "1.2"),
        ("wait...18", "18"),
        (".5", "0.5"),
        ("\u517118\u4e2a", "18"),
        (r"\boxed{18}", "18"),
        (r"\boxed{18} in 3 days", "18"),
        (r"\boxed{2}, no: \boxed{x = \text{ 18 }} in 3 days", "18"),
        (r"\boxed{1{,}234.5} or 7", "1234.5"),
        (r"\boxed{1\,000} or 7", "1000"),
        (r"\boxed{-\$2.50} or 7", "-2.5"),
        (r"\boxed{\frac{1}{2}} or 7", "7"),
        (r"\boxed{18", "18"),
        ("\\boxed{3}\n#### 4", "4"),
        ("The answer is 18.", "18"),
        ("The answer is -1,234.50 dollars", "-1234.5"),
        ("<<6*3=18>>18", "18"),
        ("**18**", "18"),
        ("3rd of A4", "3"),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text, value):
    assert rewards.last_number(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    "text, inside",
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed { 2 }", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"} \boxed{1} \boxed{{2}", "1"),
        (r"\boxed{}", ""),
        ("1", None),
    ],
)
def test_boxed(text, inside):
    assert rewards.boxed(text) == inside


def test_boxes_of_a_long_text_take_no_long_time():
    started = time.process_time()
    assert rewards.boxed("\\boxed{" * 20_000) is None
    assert time.process_time() - started < 1


def test_rows_without_an_answer_are_not_judged():
    assert rewards.exact_match(["None", "a"], [None, "a"]) == [None, 1.0]
    assert rewards.number(["3"], [None]) == [None]
    assert rewards.math_answer([r"\boxed{3}"], [None]) == [None]


def test_what_completions_answer():
    assert rewards.exact_match.extract(" a\n") == "a" and rewards.exact_match.extract(" ") is None
    assert rewards.number.extract("it is 18.0") == Decimal(18) and rewards.number.extract("no") is None
    assert rewards.math_answer.extract(r"\boxed{ x + 1 }") == "x+1" and rewards.math_answer.extract("3") is None
    extract = rewards.reasoning_math_answer.extract
    assert extract(r"\boxed{1}</think>\boxed{2}") == "2"
    assert extract(r"\boxed{1}</think>2") is None and extract(r"\boxed{1}") is None


def test_number_is_exact():
    answers = ["18", "18.0", "$18", "18.01", "0.1", "x"]
    texts = ["It is 18.", "18", "so $ 18 in all", "18.010000000000000000001", "0.10", "18"]
    assert rewards.number(texts, answers) == [1.0, 1.0, 1.0, 0.0, 1.0, None]
    assert rewards.number(["9" * 5000], ["9" * 4999 + "8"]) == [0.0]


def test_matches():
    reward = rewards.matches(r"<think>.*</think>\s*\d+")
    assert reward(["<think>a\nb</think>\n5", "<think>a</think>5!", "5"]) == [1.0, 0.0, 0.0]
    with pytest.raises(SettingError, match=r"'\(' is not a regular expression"):
        rewards.matches("(")


# Verifiers that hang


def test_math_answer_decides_as_trl_does_also_off_the_main_thread():
    from trl.rewards import accuracy_reward

    texts = [
        r"\boxed{\frac{1}{2}}",
        r"$0.5$",
        r"\boxed{0.51}",
        "it is 0.5",
        r"\boxed{x+1}",
        r"\boxed{2}",
        "$$",
    ]
    gold = [r"\frac{1}{2}", "0.5", "0.5", "0.5", "$1+x$", "", "1"]
    theirs = accuracy_reward([[{"role": "assistant", "content": text}] for text in texts], gold)
    found = []
    thread = threading.Thread(target=lambda: found.extend(rewards.math_answer(texts, gold)))
    thread.start()
    thread.join(60)
    assert found == theirs
    assert set(found) == {0.0, 1.0, None}


def test_reasoning_math_answer_decides_as_trl_does():
    from trl.rewards import reasoning_accuracy_reward

    texts = [
        r"<think>x</think> \boxed{2}",
        r"<think>\boxed{2}",
        r"\boxed{3}</think>\boxed{3}</think>\boxed{2}",
        r"\boxed{2}</think>3",
        r"a</think>\boxed{2}",
        r"no end \boxed{2}",
        r"a</r> \boxed{2} </think> \boxed{3}",
    ]
    gold = ["2", "2", "2", "2", "", "", "2"]
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    found = rewards.reasoning_math_answer(chat, gold)
    assert found == reasoning_accuracy_reward(chat, gold) == [1.0, 0.0, 1.0, 0.0, None, 0.0, 0.0]
    for delimiters in (["</r>", "</think>"], ["</think>", "</r>"]):
        ours = rewards.reasoning_math_answer(texts, gold, reasoning_delimiters=delimiters)
        assert ours == reasoning_accuracy_reward(chat, gold, reasoning_delimiters=delimiters)


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    (tmp_path / "slow_judge.py").write_text(
        "import os, time\n"
        "def judge(gold, text):\n"
        "    print('noise')\n"
        "    if text == 'hang': time.sleep(600)\n"
        "    if text == 'die': os._exit(1)\n"
        "    if text == 'raise': raise ValueError('bad')\n"
        "    if text == 'eat': bytearray(64 << 30)\n"
        "    return float(gold == text)\n"
        "def me(): return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_verifier_that_hangs_is_killed_and_counted(slow_module, monkeypatch):
    judge = Killable("slow_judge:judge", timeout=1.0)
    monkeypatch.setattr(maths, "_verifier", judge)
    judge("a", "a")
    hanging = judge.pid
    started = time.monotonic()
    with pytest.warns(UserWarning, match=r"no verdict for 1 of 3.*ran past 1 s"):
        table = rewards.score(
            [rewards.math_answer], None, ["p"] * 3, ["a", "hang", "c"], None, {"answer": ["a", "b", "b"]}
        )
    assert time.monotonic() - started < 10
    np.testing.assert_array_equal(table.total, [1.0, NAN, 0.0])
    assert table.logged_metrics == {"rewards/math_answer/unanswered": 1.0}
    assert judge.pid != hanging
    with pytest.raises(ProcessLookupError):
        os.kill(hanging, 0)
    judge.close()
    assert judge.pid is None


def test_a_verifier_that_dies_raises_or_eats_memory(slow_module):
    judge = Killable("slow_judge:judge", timeout=20.0)
    for text, words in [("raise", "ValueError: bad"), ("eat", "MemoryError"), ("die", "process died")]:
        with pytest.raises(Unanswered, match=words):
            judge("a", text)
        assert judge("a", "a") == 1.0  # and the next call is answered
    judge.close()


def test_a_verifier_that_cannot_be_imported(monkeypatch):
    broken = Killable("no_such_module:judge")
    with pytest.raises(StartError, match="ModuleNotFoundError.*no_such_module"):
        broken("a")
    monkeypatch.setattr(maths, "_verifier", broken)
    with pytest.raises(RewardError, match="math_answer needs math-verify"):
        rewards.math_answer(["a"], ["a"])
