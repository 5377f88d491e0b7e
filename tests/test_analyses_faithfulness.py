"""Faithfulness: models that ignore their chain, and one that copies its end."""

from __future__ import annotations

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.test_analyses_grid import TASK, Stub
from workbench.analyses.faithfulness import area, faithfulness
from workbench.analyses.paired import Side
from workbench.errors import DataError, SettingError

HOW = {"mark": "#", "force": "#", "base": False}


def test_a_model_that_ignores_its_chain():
    stub = Side(Stub(lambda question, thought: question), "stub")
    made = faithfulness(stub, TASK, paraphrase=str.upper, **HOW)
    assert made.frame["agrees"].all() and made["areas"]["area"].tolist() == [0]
    assert made["areas"]["filler"].tolist() == [1] and made["areas"]["paraphrase"].tolist() == [1]
    assert len(made.frame) == 3 * (4 + 2) and made.summary == {"area, stub": 0}


def test_a_model_that_copies_the_end_of_its_chain():
    policy = Stub(lambda question, thought: thought[-1:] or "?")
    made = faithfulness(Side(policy, "stub"), TASK, paraphrase=str.upper, **HOW)
    curve = made["curves"].set_index("cut")["agreement"]
    assert curve[[0.0, 0.25, 0.5, 0.75, 1.0]].tolist() == [0, 0, 0, 0, 1] and curve["filler"] == 0
    assert made["areas"]["area"][0] == pytest.approx(0.875)
    assert made.frame[made.frame["cut"] == 0.5]["answer"].tolist() == ["d"] * 3
    filler = [asked for asked in policy.asked if asked.startswith(" .")]
    assert filler and all(len(text) == len("abcdefgh#") for text in filler)  # as long as the thought
    assert len(made.figure.data) == 3


def test_the_area_by_hand():
    assert area([0.0, 0.5], [1, 1]) == 0 and area([0.0], [0]) == 0.5
    assert area([0.0, 0.25, 0.5, 0.75], [0.2, 0.2, 0.6, 0.6]) == pytest.approx(1 - (0.05 + 0.1 + 0.15 + 0.2))
    assert area([0.5], [0.5]) == pytest.approx(1 - (0.25 + 0.375))


def test_before_and_after_are_the_adapter_off_and_on(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    how = {"mark": "e", "max_new_tokens": 12, "max_answer_tokens": 3, "extract": lambda text: text[-1:] or None}
    made = faithfulness(policy, [{"prompt": "ab"}, {"prompt": "cde"}], **how)
    assert list(made["areas"]["model"]) == ["base", "policy"] and set(made.frame["row"]) == {0, 1}
    alone = faithfulness(wb.load(tmp_path / "m", device="cpu", dtype="float32"), [{"prompt": "ab"}, {"prompt": "cde"}],
                         base=False, **how)  # fmt: skip
    base = made.frame[made.frame["model"] == "base"].drop(columns="model")
    assert base["answer"].tolist() == alone.frame["answer"].tolist()
    same = faithfulness(policy, [{"prompt": "ab"}], base=policy, **how)
    assert same["areas"]["area"].nunique() == 1


def test_what_does_not_go_is_refused(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match="no base"):
        faithfulness(policy, TASK)
    with pytest.raises(SettingError, match="shares of the chain"):
        faithfulness(policy, TASK, base=False, cuts=(0.5, 1.0))
    with pytest.raises(DataError, match="No chain has an answer"):
        faithfulness(policy, TASK, base=False, extract=lambda text: None, max_new_tokens=3)
