"""SLiCK: stubs that know, know sometimes, or do not know; the rows that come back; accuracies over a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import workbench as wb
from tests.models import tiny_policy
from workbench.analyses.slick import CATEGORIES, aliases, categories, followed, normalised, readout, slick
from workbench.errors import DataError, SettingError

ROWS = [{"prompt": f"Q: capital {i}?\nA:", "answer": f"The Town {i}", "completion": f" Town {i}"} for i in range(6)]


class Stub:
    """Answers by the number of the question; `asked` keeps the prompts."""

    def __init__(self, reply):
        self.reply, self.asked, self.calls = reply, [], []

    def sample(self, prompts, n, *, temperature, max_new_tokens, seed, top_k=0):
        self.asked += prompts
        self.calls.append((n, temperature, top_k))
        texts = []
        for prompt in prompts:
            question = int(prompt.rpartition("capital ")[2].partition("?")[0])
            texts += [f" {self.reply(question, prompt, temperature > 0, s)}\nnext" for s in range(n)]
        return SimpleNamespace(text=texts)


def test_each_category_has_its_stub():
    def reply(question, prompt, drawn, s):
        if question == 0:
            return "town 0!"  # case, punctuation and articles do not count
        if question == 1:
            return "Town 1" if "capital 0" in prompt else "Village"  # right behind some examples only
        if question == 2:
            return "Town 2" if drawn and s == 3 else "Village"  # right only when sampled
        return "Village"

    policy = Stub(reply)
    made = slick(policy, ROWS, examples=10, shots=3, samples=4)
    assert made.frame["category"].tolist() == [*CATEGORIES, "Unknown", "Unknown"]
    assert made.frame["p_greedy"][0] == made.frame["p_sampled"][0] == 1
    assert 0 < made.frame["p_greedy"][1] < 1 and made.frame["p_greedy"][2] == 0
    assert made.frame["p_sampled"][2] == pytest.approx(0.25)
    assert made.summary == {"HighlyKnown": 1, "MaybeKnown": 1, "WeaklyKnown": 1, "Unknown": 3}
    assert policy.calls[0] == (1, 0, 0) and policy.calls[-1] == (4, 0.5, 40)
    assert len(made.figure.data) == 8


def test_examples_are_other_questions_and_change_by_number_and_seed():
    first, again, other = (Stub(lambda *given: "x") for _ in range(3))
    slick(first, ROWS, examples=5, shots=2, samples=1)
    slick(again, ROWS, examples=5, shots=2, samples=1)
    slick(other, ROWS, examples=5, shots=2, samples=1, seed=1)
    assert first.asked == again.asked != other.asked and len(first.asked) == 2 * 6 * 5
    for i, prompt in enumerate(first.asked[:30]):
        own = i // 5
        assert prompt.endswith(ROWS[own]["prompt"]) and prompt.count("capital") == 3
        assert prompt.count(f"capital {own}?") == 1 and prompt.count("A: The Town") == 2
    assert len(set(first.asked[:5])) > 1
    bare = Stub(lambda *given: "x")
    slick(bare, ROWS[:1], examples=2, shots=0, samples=1)
    assert bare.asked == [ROWS[0]["prompt"]] * 4


def test_rows_come_back_by_what_was_known():
    made = slick(Stub(lambda q, *given: f"Town {q}" if q < 4 else "no"), ROWS, examples=2, shots=1, samples=2)
    dropped = made.rows()
    assert [row["answer"] for row in dropped] == [f"The Town {i}" for i in range(4)]
    admitted = made.rows("admit")
    assert [row["completion"] for row in admitted[3:]] == [" Town 3"] + [" I don't know."] * 2
    assert made.rows("keep")[5]["category"] == "Unknown" and ROWS[5]["completion"] == " Town 5"
    with pytest.raises(SettingError, match="drop"):
        made.rows("forget")


def test_rules_and_words():
    assert categories(np.array([1, 0.5, 0, 0]), np.array([0, 1, 0.1, 0])) == list(CATEGORIES)
    assert normalised("  The  Élan, of: a Dog! ") == "elan of dog" and normalised(12) == "12"
    assert aliases(["a", None, ""], 0) == ["a"] and aliases(7, 0) == ["7"]
    with pytest.raises(DataError, match="Row 3 has no answer"):
        aliases(" ", 3)


def test_accuracies_over_a_run(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    rows = [{"prompt": f"{c}:", "completion": c * 2, "answer": c * 2} for c in "abc"]
    known = slick(policy, rows, examples=1, shots=0, samples=1, max_new_tokens=3)
    assert known.summary["Unknown"] == 3
    run = wb.sft(policy, rows, steps=12, batch_size=3, lr=3e-2, out=tmp_path / "run")
    made = followed(run, known, every=6, max_new_tokens=3)
    assert made.frame["step"].tolist() == [0, 6, 12] and run.status == "finished"
    assert made.frame["accuracy"].tolist()[0] == 0 and made.frame["accuracy"].tolist()[-1] == 1
    again = followed(run, known, every=12, max_new_tokens=3)  # all of it restored
    assert again.frame["accuracy"].tolist() == made.frame["accuracy"].tolist()[::2]


def test_the_readout_finds_planted_coefficients():
    known, unknown = np.array([0, 50, 80, 100, 100]), np.array([0, 0, 20, 60, 100])
    accuracy = 0.3 + 0.4 * known / 200 - 0.25 * unknown / 200
    found = readout(accuracy, known, unknown, 200)
    assert (found["intercept"], found["known"], found["unknown"]) == pytest.approx((0.3, 0.4, -0.25))
    assert found["r2"] == pytest.approx(1)
    with pytest.raises(DataError, match="three or more"):
        readout([1], [1], [1], 10)


def test_bad_input_is_refused_before_anything_is_sampled():
    policy = Stub(lambda *given: "x")
    with pytest.raises(DataError, match="answer"):
        slick(policy, [{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(DataError, match="at least two rows"):
        slick(policy, ROWS[:1])
    with pytest.raises(SettingError, match="examples"):
        slick(policy, ROWS, examples=0)
    with pytest.raises(SettingError, match="asks a policy"):
        slick(None, ROWS)
    assert not policy.asked
