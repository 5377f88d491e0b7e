"""The report: one file that tells the run, holds whole groups of its rollouts, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from browser import writer
from test_views import Tags, assert_inert

from workbench import views
from workbench.errors import SettingError, StoreError
from workbench.store import Store
from workbench.store.tokens import add_pieces
from workbench.text import clean
from workbench.views import report

HOSTILE = writer.HOSTILE


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="wb-data">(.*?)</script>', page, re.S)
    assert not re.search("[<>&\u2028\u2029]", text), "data cannot end its script tag"
    return json.loads(text)


def test_it_tells_the_run_and_is_safe(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished", name=HOSTILE), 40, hostile=True)
    writer.rewind(store, 20, 40)
    path = views.write_report(Store(tmp_path / "run"), tmp_path / "deep" / "report.html", sample=50)
    assert path == tmp_path / "deep" / "report.html" and [p.name for p in path.parent.iterdir()] == ["report.html"]
    page = path.read_text()
    shell = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "hacked=1&lt;/script&gt;" in shell and "<script" not in shell
    assert_inert(shell)
    assert page.count("<script") == 3, "the data, plotly, and our own"
    assert re.search(r"Held-out accuracy</div><b>0\.1 → 0\.77</b><small>step 0 → 40", shell)
    for said in (
        "GRPO", "tiny", "40 of 40", "went back here from step 40", "lr 1e-5 → 3e-5", "group_size",
        "completions/max_length", "whole groups evenly spread over the run", "was: Completions are cut off",
    ):  # fmt: skip
        assert said in shell, said
    data = data_of(page)
    assert json.loads(report.in_json("</script><!--\u2028&'")) == "</script><!--\u2028&'"
    assert data["charts"][0]["title"] == "Reward" and data["charts"][0]["group"] == "Reward"
    assert {e["mark"] for e in data["curves"]["events"]} == {"rewind", "set"}


def test_the_sample_is_whole_groups_over_all_of_the_run(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 40)
    writer.rewind(store, 20, 30)
    stored = Store(tmp_path / "run").rollouts()
    sizes = stored.groupby(["step", "group_id"]).size()
    ids, total = report._sample(store, 50)
    assert total == len(stored) == 240 and 40 < len(ids) <= 50 and len(set(ids)) == len(ids)
    for most in range(20, 60):
        part = stored.set_index("id").loc[report._sample(store, most)[0]]
        assert len(part) <= most
        for key, size in part.groupby(["step", "group_id"]).size().items():
            assert size == sizes[key], "no group is torn"
    sampled = stored.set_index("id").loc[ids]
    steps = sampled["step"].tolist()
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 30 and len(set(steps)) >= 10
    assert set(sampled.loc[sampled["step"] > 20, "branch"]) == {1}, "what a rewind gave up is not shown"
    assert len(report._sample(store, 3)[0]) == 3 and report._sample(store, 0) == ([], 240)
    assert len(report._sample(store, 9999)[0]) == 240
    for wrong in (-1, 2.5, True, "all"):
        with pytest.raises(SettingError, match="sample="):
            views.write_report(store, tmp_path / "r.html", sample=wrong)
    page = views.write_report(store, tmp_path / "r.html", sample=0).read_text()
    assert "None of the 240 are in this file." in page and data_of(page)["rollouts"] == []


def test_the_tokens_of_a_rollout_and_their_numbers(tmp_path, monkeypatch):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 3, hostile=True)
    page = views.write_report(store, tmp_path / "r.html").read_text()
    assert all("tokens" not in r for r in data_of(page)["rollouts"]), "an older run knows no pieces"
    with store.transaction() as db:
        add_pieces(db, {i: (clean(HOSTILE) if i == 5 else f" w{i}", i == 7) for i in range(99)})
    data = data_of(views.write_report(store, tmp_path / "r.html").read_text())
    assert len(data["rollouts"]) == 24
    for rollout, i in zip(data["rollouts"], Store(store.folder).rollouts()["id"], strict=True):
        kept = store.tokens(i)
        texts = [data["pieces"][at] for at in rollout["tokens"]]
        assert [text for text, _ in texts if "script" not in text] == [f" w{t}" for t in kept["ids"] if t != 5]
        np.testing.assert_allclose(np.array(rollout["logprob"]) / 100, kept["logprob"], atol=0.00501)
        np.testing.assert_allclose(np.array(rollout["entropy"]) / 100, kept["entropy"], atol=0.00501)
    assert [" w7", 1] in data["pieces"] and [" w8", 0] in data["pieces"]
    assert not any(char in text for text, _ in data["pieces"] for char in "\x00\x1b\u202e\u200b")
    assert report._hundredths(np.array([-1.234, np.nan, 0.0], "f4")) == [-123, None, 0]
    lengths = [r["n"] for r in data["rollouts"]]
    monkeypatch.setattr(report, "MOST_TOKENS", sum(lengths[:10]))
    fewer = data_of(views.write_report(store, tmp_path / "r.html").read_text())["rollouts"]
    assert ["tokens" in r for r in fewer] == [True] * 10 + [False] * 14, "a file of sane size"


def test_every_part_of_a_rollout(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 2)
    first = data_of(views.write_report(store, tmp_path / "r.html").read_text())["rollouts"][0]
    row = store.rollouts().iloc[0]
    assert (first["step"], first["group"], first["reward"]) == (1, row["group_id"], row["reward"])
    assert first["parts"] == [["correct", str(row["rewards/correct"])], ["format", "–"]]
    assert (first["finish"], first["n"], first["completion"]) == ("length", row["n_tokens"], row["completion"])


def test_the_policy_names_exactly_its_own_scripts(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 3)
    page = views.write_report(store, tmp_path / "r.html").read_bytes().decode()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; script-src " + " ".join(f"'sha256-{h}'" for h in hashes) + ";")
    assert "http" not in policy and "unsafe-eval" not in policy
    assert len(page) < 5_500_000, "the chart library and little else"


def test_every_state_has_a_report(tmp_path):
    said = {
        "nan": "NaN", "bare": "The run has no metrics yet", "empty": "Waiting for the first step",
        "one": "step 1 of 40", "killed": "The process that wrote this run is gone", "dpo": "Pairs ranked right",
        "sft": "Held-out loss",
    }  # fmt: skip
    for name, store in writer.states(tmp_path).items():
        page = views.write_report(Store(store.folder), tmp_path / f"{name}.html").read_text()
        shell = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert said[name] in shell and f"<title>{store.get('name') or 'bare'}" in shell, name
        assert (">Rollouts<" in shell) == (name in ("one", "killed")), name
        assert Tags(shell).tags
        data_of(page)


def test_one_that_cannot_be_written_says_so(tmp_path):
    store = writer.begin(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written to .*file"):
        views.write_report(store, tmp_path / "file" / "report.html")
    with pytest.raises(StoreError, match="give the name of a file"):
        views.write_report(store, "")
