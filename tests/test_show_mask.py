"""`wb.show_mask`: the tokens that a run would train on, in a page and in a terminal."""

from __future__ import annotations

import pytest

import workbench as wb
from tests.models import tiny_policy
from workbench.errors import DataError, SettingError


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"))


def test_the_completion_and_its_stop_token_train(policy):
    shown = wb.show_mask(policy, [{"prompt": "Say: ", "completion": "yes"}, {"prompt": "No: ", "completion": "no"}])
    first, second, report = repr(shown).split("\n\n")
    assert first == "Row 0\nSay: «yes<eos>»" and second == "Row 1\nNo: «no<eos>»"
    assert report.startswith("2 of 2 rows") and "trained" in report


def test_settings_are_those_of_the_run(policy):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert "«[user]hi<end>[assistant]ho<end>»" in repr(wb.show_mask(policy, [{"messages": talk}]))
    shown = wb.show_mask(policy, [{"messages": talk}], assistant_only_loss=True)
    assert "[user]hi<end>[assistant]«ho<end>»" in repr(shown)
    with pytest.raises(SettingError, match="assistant_only_loss"):
        wb.show_mask(policy, [{"messages": talk}], asistant_only_loss=True)
    with pytest.raises(DataError):
        wb.show_mask(policy, [{"number": 3}])


def test_what_is_cut_is_told(policy):
    shown = wb.show_mask(policy, [{"prompt": "Say: ", "completion": "yes or no"}], max_length=9)
    assert "Say: «yes »" in repr(shown) and "removed the stop token" in repr(shown)


def test_pairs_and_labels(policy):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert repr(wb.show_mask(policy, [pair])).startswith("Row 0, chosen\na«b<eos>»\n\nRow 0, rejected\na«c<eos>»")
    labelled = {"prompt": "a", "completion": "b", "label": False}
    assert repr(wb.show_mask(policy, [labelled])).startswith("Row 0, undesirable\na«b<eos>»")


def test_documents_of_a_pack_each_have_a_strip(policy):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    shown = wb.show_mask(policy, rows, packing=True, max_length=32)
    assert [strip.title for strip in shown.strips] == ["Row 0", "Row 1"]


def test_weights_show_and_text_cannot_act(policy):
    segments = [{"text": "<b>&", "train": False}, {"text": "x", "weight": 0.5}, {"text": "<script>", "weight": 2.0}]
    page = wb.show_mask(policy, [{"segments": segments}])._repr_html_()
    assert "<b>&" not in page and "<script>" not in page and "&lt;" in page
    assert page.count("weight 0.5") == 1 and page.count("weight 2") >= 8 and page.count("context") == 4
    assert page.index("0.22)") < page.index("0.45)")  # a lighter colour for the lesser weight
