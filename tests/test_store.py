"""The store by itself: what it keeps, what it refuses, and what a reader sees of branches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.errors import StoreError
from workbench.sampling.rollouts import Rollouts
from workbench.store import Store
from workbench.store import file as store_module

HOSTILE = "<script>x</script> \x1b[31m \u202e \u200b \x00 \ud83d end"


def new(folder, **meta) -> Store:
    store = Store.create(folder, {"method": "grpo", "settings": {"lr": 1.0, "steps": 9}, "branch": 0} | meta)
    commit(store, 0)
    store.publish()
    return store


def commit(store: Store, step: int, branch: int = 0, rollouts=None, **metrics) -> None:
    store.commit_step(
        step, branch, seconds=0.5, metrics=metrics, state={"k": step}, plan={}, threads=1, rollouts=rollouts
    )


def rollouts(*texts: str) -> Rollouts:
    made = Rollouts.of(["p"] * len(texts), list(texts), rewards=[1.0] * (len(texts) - 1) + [None])
    made.ids = [list(range(len(text))) for text in texts]
    made.prompt_ids = [[7]] * len(texts)
    made.logprob = [np.full(len(text), -0.1, np.float32) for text in texts]
    made.entropy = [np.full(len(text), 0.2, np.float32) for text in texts]
    return made


def test_text_and_numbers_come_back(tmp_path):
    store = new(tmp_path)
    commit(store, 1, rollouts=rollouts(HOSTILE, "b"), x=math.nan, y=math.inf, **{"a'; DROP TABLE steps;--": 1.0})
    frame = Store(tmp_path).rollouts(1)
    assert frame["completion"][0] == HOSTILE.replace("\ud83d", "\ufffd")
    assert frame["reward"][0] == 1.0 and math.isnan(frame["reward"][1])
    metrics = Store(tmp_path).metrics()
    assert math.isnan(metrics.loc[1, "x"]) and metrics.loc[1, "y"] == math.inf
    assert metrics.loc[1, "a'; DROP TABLE steps;--"] == 1.0 and math.isnan(metrics.loc[0, "y"])
    loaded = store.load_rollouts(1)
    assert loaded.ids == [list(range(len(HOSTILE))), [0]] and math.isnan(loaded.reward[1])
    assert loaded.logprob[0].dtype == np.float32 and (loaded.logprob[0] == np.float32(-0.1)).all()


def test_a_line_of_branches(tmp_path):
    store = new(tmp_path)
    for step in (1, 2, 3):
        commit(store, step, x=float(step))
    first = store.add_branch(0, 2)
    commit(store, 3, first, x=30.0)
    commit(store, 4, first, x=40.0)
    second = store.add_branch(first, 3)
    commit(store, 4, second, x=400.0)
    assert store.branch == second and store.path_to()[0][0] == second
    assert store.metrics()["x"].tolist()[1:] == [1.0, 2.0, 30.0, 400.0]
    assert store.metrics(0)["x"].tolist()[1:] == [1.0, 2.0, 3.0]
    assert [store.home(step) for step in (0, 2, 3, 4)] == [0, 0, first, second]
    assert store.last_step() == 4 and len(store.metrics_long(["x"], branch="all")) == 6
    back = store.add_branch(second, 1)  # before the fork of the fork
    assert store.metrics(back)["x"].tolist()[1:] == [1.0]
    with pytest.raises(StoreError, match="no step 2 on this branch; the last one is 1"):
        store.home(2)


def test_settings_follow_the_events_of_the_line(tmp_path):
    store = new(tmp_path)
    commit(store, 1)
    store.add_event(2, 0, "set", settings={"lr": [1.0, 2.0]})
    assert store.settings()["lr"] == 2.0 and store.settings(1)["lr"] == 1.0
    store.add_branch(0, 1)
    assert store.settings()["lr"] == 1.0, "the change belonged to the step that was given up"


def test_a_step_is_all_or_nothing(tmp_path):
    store = new(tmp_path)
    broken = rollouts("a", "b")
    broken.entropy = [broken.entropy[0]]  # the second row cannot be written
    with pytest.raises(IndexError):
        commit(store, 1, rollouts=broken, x=1.0)
    assert store.last_step() == 0 and store.query("SELECT COUNT(*) FROM rollouts")[0][0] == 0
    commit(store, 1, rollouts=rollouts("a", "b"), x=1.0)
    with pytest.raises(StoreError, match="last whole step is intact"):
        commit(store, 1, x=2.0)  # twice the same step
    assert store.metrics().loc[1, "x"] == 1.0


def test_a_reader_cannot_write_and_conditions_cannot_either(tmp_path):
    new(tmp_path)
    reader = Store(tmp_path)
    with pytest.raises(StoreError, match="readonly"):
        reader.set_meta(status="mine")
    with pytest.raises(StoreError):
        reader.rollouts(where="1); DELETE FROM steps; --")
    assert reader.last_step() == 0


def test_messages_for_what_is_not_there(tmp_path):
    new(tmp_path)
    with pytest.raises(StoreError, match="no rollout 5"):
        Store(tmp_path).tokens(5)
    with pytest.raises(StoreError, match="no branch 3; it has"):
        Store(tmp_path).metrics(3)
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match="holds no run"):
        Store(tmp_path / "other")
    (tmp_path / "other" / "run.db").write_text("not a database, but long enough to look at " * 40)
    with pytest.raises(StoreError, match="not a readable run"):
        Store(tmp_path / "other")


def test_status_of_a_writer_that_is_gone(tmp_path):
    import os

    store = new(tmp_path, status="running", writer={"pid": os.getpid(), "host": os.uname().nodename})
    assert store.status == "running" and store.alive
    store.set_meta(writer={"pid": 2**22 - 1, "host": os.uname().nodename})
    assert store.status == "killed"
    store.set_meta(status="finished")
    assert store.status == "finished"


def test_network_drives_get_no_write_ahead_log(tmp_path, monkeypatch):
    assert new(tmp_path)._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    monkeypatch.setattr(store_module, "_filesystem", lambda folder: "nfs4")
    (tmp_path / "net").mkdir()
    store = new(tmp_path / "net")
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    commit(store, 1, x=1.0)
    assert Store(tmp_path / "net").metrics().loc[1, "x"] == 1.0
