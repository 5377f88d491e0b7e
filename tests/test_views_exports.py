"""What is taken along from the rollout browser: the selection, and rows that `wb.sft` and `wb.dpo` read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from browser import writer
from models import tiny_tokenizer
from test_views_filters import frame_of
from test_views_rollouts import ask, page, with_tokens

import workbench as wb
from workbench import methods, settings, views
from workbench.errors import DataError, SettingError
from workbench.sampling.rollouts import Rollouts
from workbench.store import Store


def test_picked_rows_are_the_selection():
    table = views.RolloutTable(frame_of())
    page(table, where="step == 2", sort="n_tokens", descending=True)
    assert table.selection["n_tokens"].tolist() == list(range(179, 89, -1)), "without a pick, what is shown"
    assert ask(table, "pick", ids=[100, 101], on=True)["count"] == 2
    assert ask(table, "pick", rows=[2, 0], on=True)["heard"][0]["count"] == 5
    assert table.selection["n_tokens"].tolist() == [100, 101, 177, 178, 179]
    assert ask(table, "pick", ids=[100], on=False)["count"] == 4
    page(table, where="step == 3")
    assert len(table.selection) == 4, "what was picked stays picked under another filter"
    assert table.line() == "rollouts.show().filter('step == 3').pick([101, 177, 178, 179])"
    assert ask(table, "pick", rows="all", on=True)["count"] == 94 and ask(table, "pick", clear=True)["count"] == 0
    assert table.pick([7, 8]).selection["n_tokens"].tolist() == [7, 8] and table.pick().picked == set()
    with pytest.raises(DataError, match="no rollout 9999"):
        table.pick([9999])
    table.close()


def test_what_is_written_trains_by_sft_and_by_dpo(tmp_path):
    frame = pd.DataFrame({
        "step": [1] * 9, "group_id": [0, 0, 0, 1, 1, 2, 2, 3, 3],
        "prompt": [f"p{g}" for g in (0, 0, 0, 1, 1, 2, 2, 3, 3)],
        "completion": ["bad", "good", "middle", "same", "also", "x", "y", "low", "high"],
        "reward": [0, 1, 0.5, 1, 1, np.nan, 1, -2, -1],
    })  # fmt: skip
    table = views.RolloutTable(frame)
    made = table.to_jsonl(tmp_path / "deep" / "sft.jsonl")
    rows = wb.rows(made.path)
    assert rows.form == "prompt_completion" and len(rows) == made.rows == 9 and rows[1]["completion"] == "good"
    made = table.to_jsonl(tmp_path / "dpo.jsonl", form="dpo")
    pairs = wb.rows(made.path)
    assert pairs.form == "preference" and [(r["prompt"], r["chosen"], r["rejected"]) for r in pairs] == [
        ("p0", "good", "bad"), ("p3", "high", "low"),
    ]  # fmt: skip
    assert made.left_out == ["left out 1 group with equal rewards", "left out 1 group with fewer than two rewards"]
    assert str(made) == "; ".join([f"2 pairs for wb.dpo in {made.path}", *made.left_out]) + "."
    assert made.path.read_text().count("\n") == 2
    table.filter("group == 1")
    with pytest.raises(DataError, match="no row for wb.dpo in 2 rollouts. left out 1 group with equal rewards"):
        table.to_jsonl(tmp_path / "none.jsonl", form="dpo")
    assert not (tmp_path / "none.jsonl").exists()
    with pytest.raises(SettingError, match="form='dop' is unknown; it is 'sft' or 'dpo'. Did you mean 'dpo'"):
        table.to_jsonl(tmp_path / "x.jsonl", form="dop")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        table.to_jsonl(tmp_path / "file" / "x.jsonl")
    table.close()


def test_prompts_that_are_messages_stay_messages(tmp_path):
    chat = [{"role": "user", "content": "How much is 2 + 2?"}]
    store = writer.begin(tmp_path / "run")
    store.add_rows("train", [{"prompt": "plain"}, {"prompt": chat, "answer": "4"}])
    made = Rollouts.of(
        ["plain", "plain", "x", "x"],
        ["a", "b", "4", "5"],
        rewards=[0, 1, 1, 0],
        columns={"answer": ["1", "1", "4", "4"]},
    )
    made.prompt_text, made.row = ["plain", "plain", "<user>How", "<user>How"], [0, 0, 1, 1]
    store.commit_step(1, 0, seconds=1, metrics={}, state={}, plan={}, threads=1, rollouts=with_tokens(made))
    of_store = views.RolloutTable(Store(store.folder))
    of_store.filter("answer == '4'")
    made.prompt = ["plain", "plain", chat, chat]
    of_rollouts = made.show().filter("answer == '4'")
    for table in (of_store, of_rollouts):
        row = wb.rows(table.to_jsonl(tmp_path / "a.jsonl").path)[0]
        assert row == {"prompt": chat, "completion": [{"role": "assistant", "content": "4"}]}
        pair = wb.rows(table.to_jsonl(tmp_path / "b.jsonl", form="dpo").path)[0]
        assert pair["prompt"] == chat and pair["rejected"] == [{"role": "assistant", "content": "5"}]
        table.close()


def test_a_button_writes_into_the_notebooks_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = views.RolloutTable(frame_of(6))
    said = ask(table, "export", form="sft")
    assert (
        said["said"] == f"6 rows for wb.sft in {tmp_path / 'rollouts-sft.jsonl'}."
        and said["line"] == 'wb.sft(policy, "rollouts-sft.jsonl", ...)'
    )
    assert "rollouts-sft-2.jsonl" in ask(table, "export", form="sft")["said"], "nothing is written over"
    with pytest.raises(DataError, match="unknown"):
        ask(table, "export", form="../x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rollouts-sft-2.jsonl", "rollouts-sft.jsonl"]
    assert len(wb.rows("rollouts-sft-2.jsonl")) == 6
    table.close()


def test_saved_rows_are_what_the_methods_prepare(tmp_path):
    table = views.RolloutTable(
        pd.DataFrame({"group_id": 0, "prompt": "Q: 1 + 1 = ?\nA:", "completion": [" 2", " 3"], "reward": [1.0, 0.0]})
    )
    for form in ("sft", "dpo"):
        made = table.to_jsonl(tmp_path / f"{form}.jsonl", form=form)
        prepared = methods.get(form).prepare(tiny_tokenizer(), wb.rows(made.path), settings.make(form, {}))
        assert len(prepared.items) == made.rows and prepared.report.ok
    table.close()
