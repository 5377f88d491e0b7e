"""Trackers that fail, hang or cannot be had: the run goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import workbench as wb
from tests.runs import make_run
from tests.trackers import WAIT, Notebook, offline, wandb_records  # noqa: F401
from workbench.errors import RunError, SettingError
from workbench.tracking import Tracker, feed, trackers


@pytest.mark.parametrize("where", ["start", "log", "rollouts", "finish"])
def test_a_failure_is_said_once_tried_again_and_leaves_no_hole(tmp_path, capsys, where):
    mine = Notebook(fails={where: 2})
    run = make_run("grpo", tmp_path, track=mine, steps=3)
    run.run()
    assert run.tracking.wait(WAIT)
    assert mine.steps() == [0, 1, 2, 3] and mine.of("finish") == [("finished",)]
    assert run.tracking.feeds[0].failures == 2 and run.status == "finished"
    said = capsys.readouterr().err
    assert said.count("notebook failed, and is tried again: OSError: no network in") == 1
    events = run.store.events()
    assert list(events["kind"]) == ["tracking"] and f"no network in {where}" in events["payload"][0]["message"]


def test_after_failures_in_a_row_it_is_off_and_can_be_sent_later(tmp_path, capsys):
    mine, good = Notebook(fails={"log": 1000}), Notebook()
    good.label = "good"
    run = make_run("sft", tmp_path, track=[mine, good])
    run.run()
    assert not run.tracking.wait(WAIT)
    assert run.step == 6 and run.status == "finished" and good.steps() == list(range(7))
    assert mine.steps() == [] and mine.fails["log"] == 1000 - 3
    assert "switched off" in capsys.readouterr().err and "off: OSError" in repr(run.tracking)
    assert ["switched off" in p["message"] for p in run.store.events()["payload"]] == [False, True]
    mine.fails.clear()
    wb.open(run.folder).track(mine)
    assert mine.steps() == list(range(7))
    mine.fails["start"] = 1000
    mine.label = "third"
    with pytest.raises(RunError, match="could not be sent to third .OSError: no network in start"):
        wb.open(run.folder).track(mine)


def test_a_hanging_tracker_does_not_hold_up_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feed, "SLOW_SECONDS", 0.05)
    mine = Notebook(hang=threading.Event())
    run = make_run("sft", tmp_path, track=mine)
    began = time.monotonic()
    for step in run:
        time.sleep(0.2 if step.index == 1 else 0.02)
        run.engine.tracking.wait(0.01)
    assert time.monotonic() - began < 10 and run.step == 6
    assert not run.tracking.wait(0.05)
    assert capsys.readouterr().err.count("has not answered") == 1
    mine.hang.set()
    assert run.tracking.wait(WAIT) and mine.steps() == list(range(7))


def test_a_hanging_tracker_does_not_hold_up_the_exit(tmp_path):
    code = f"""
        import sys, time; sys.path.insert(0, {str(Path.cwd())!r})
        from pathlib import Path
        from workbench.store import Store
        from workbench.tracking import Tracker, Tracking, feed
        feed.EXIT_SECONDS = 0.5
        class Stuck(Tracker):
            def log(self, step): time.sleep(600)
        folder = Path({str(tmp_path)!r})
        store = Store.create(folder, dict(name="r", method="sft", settings={{}}, policy={{}}, data=None, versions={{}}))
        store.commit_step(0, 0, seconds=1.0, metrics=dict(loss=1.0), state={{}}, plan={{}}, threads=1)
        store.publish()
        tracking = Tracking(folder, [Stuck()])
        tracking.ring()
        Path({str(tmp_path / "ended")!r}).write_text(str(time.time()))
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=170, capture_output=True, text=True)
    took = time.time() - float((tmp_path / "ended").read_text())
    assert out.returncode == 0 and took < 30, out.stderr  # half a second where nothing else runs
    assert "stuck did not take everything within" in out.stderr


# -- asking for one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ("wandbb", "Did you mean 'wandb'"),
        (["tensorbord"], "Did you mean 'tensorboard'"),
        (7, "give a name"),
        ([Tracker], "a class: pass an instance"),
        (wb.Wandb(mode="onlin"), "Did you mean 'online'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(tmp_path, track, said):
    with pytest.raises(SettingError, match=said):
        make_run("sft", tmp_path, track=track)
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(wb.TensorBoard, "package", "no_such_package")
    monkeypatch.setattr(wb.TensorBoard, "install", "tensorboard")
    with pytest.raises(SettingError, match="pip install tensorboard"):
        make_run("sft", tmp_path, track="tensorboard")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_a_tracker_that_cannot_be_had_again(tmp_path, capsys):
    run = make_run(
        "sft", tmp_path, track=[Notebook(hang=None, fails={"log": 0}, lines=[(1,)]), wb.Wandb(mode="disabled")]
    )
    run.run(1)
    run.stop()
    again = wb.resume(run.folder, policy=run.engine.policy)
    assert [feed.key for feed in again.tracking.feeds][-1] == "wandb"
    made = make_run("sft", tmp_path, out="local", track=local_tracker())
    made.run(1)
    made.stop()
    again = wb.resume(made.folder, policy=made.engine.policy)
    assert again.tracking.feeds == [] and "goes on without its tracker local" in capsys.readouterr().out
    assert again.run().step == 6


def local_tracker():
    class Local(Tracker):
        pass

    return Local()


def test_without_a_login_wandb_is_offline_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "place"))
    monkeypatch.setenv("WANDB_PROJECT", "from-env")
    run = make_run("sft", tmp_path, track="wandb", steps=2)
    run.run(1)
    assert run.tracking.wait(WAIT)
    run.run()
    assert run.tracking.wait(WAIT)
    said = capsys.readouterr()
    assert said.out.count("there is no W&B login here") == 1 and "wandb sync" in said.out and "wandb:" not in said.err
    (file,) = (tmp_path / "place" / "wandb").glob("offline-run-*/*.wandb")
    assert [r.run.project for r in wandb_records(file) if r.WhichOneof("record_type") == "run"] == ["from-env"]


def test_wandb_with_a_key_but_no_network_is_offline(tmp_path, monkeypatch, capsys):
    from workbench.tracking import wandb as tracker

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert tracker.logged_in()
    monkeypatch.setattr(tracker, "answers", lambda: False)
    assert wb.Wandb()._mode() == ("offline", "W&B cannot be reached")
    monkeypatch.setattr(tracker, "answers", lambda: True)
    assert wb.Wandb()._mode() == ("online", "") and wb.Wandb(mode="disabled")._mode() == ("disabled", "")


def test_trackers_named_twice_are_kept_apart(tmp_path):
    first, second = Notebook(), Notebook()
    run = make_run("sft", tmp_path, track=[first, second], steps=1)
    run.run()
    assert run.tracking.wait(WAIT)
    assert [feed.key for feed in run.tracking.feeds] == ["notebook", "notebook-2"]
    assert first.steps() == second.steps() == [0, 1]
    assert [type(t).__name__ for t in trackers(["wandb", first])] == ["Wandb", "Notebook"] and trackers(None) == []
