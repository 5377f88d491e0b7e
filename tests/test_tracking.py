"""Tracking: what each tracker wrote is read back and compared with the store; failures never reach the run."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_metrics, letters, make_run
from workbench.errors import RunError, SettingError
from workbench.tracking import Tracker, feed, trackers
from workbench.tracking.record import digest

WAIT = 60


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(feed, "DELAYS", (0.01, 0.01))
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Notebook(Tracker):
    """A stand-in: keeps what it is sent, in lists, and can fail or hang where it is told to."""

    lines: list = field(default_factory=list)
    fails: dict = field(default_factory=dict)
    """method -> how many more times it raises"""
    hang: threading.Event | None = None
    remember: dict | None = None

    label = "notebook"
    table_steps = 2

    def _call(self, kind, *what):
        if self.hang is not None and kind == "log":
            self.hang.wait(60)
        if self.fails.get(kind, 0) > 0:
            self.fails[kind] -= 1
            raise OSError(f"no network in {kind}")
        self.lines.append((kind, *what))

    def start(self, begin):
        self._call("start", begin)
        return self.remember

    def log(self, step):
        self._call("log", step)

    def event(self, step, kind, text, payload):
        self._call("event", step, kind, text)

    def rollouts(self, step, columns, rows):
        self._call("rollouts", step, columns, rows)

    def finish(self, status):
        self._call("finish", status)

    def of(self, kind):
        return [line[1:] for line in self.lines if line[0] == kind]

    def steps(self):
        return [logged.step for (logged,) in self.of("log")]


def same(value, other) -> bool:
    return value == other or (math.isnan(value) and math.isnan(other))


def assert_logged(store, logged: dict[int, dict[str, float]], branch=None) -> None:
    """Every metric of every step of the line, and no other, with the store's value."""
    wide = store.metrics(branch)
    assert sorted(logged) == list(wide.index)
    for step in wide.index:
        stored = store.step_metrics(step, branch)
        assert stored.keys() <= logged[step].keys()
        assert all(same(value, logged[step][name]) for name, value in stored.items()), step


# -- reading back W&B ------------------------------------------------------------------------------------------


def wandb_records(path: Path) -> list:
    """The records of a .wandb file: blocks of 32 KiB after a header of 7 bytes; chunks of checksum, length, kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def wandb_runs(folder: Path) -> list[dict]:
    """What each .wandb file under `folder` holds, oldest first: id, name, group, config, history, metrics."""
    made = []
    for path in sorted(folder.glob("tracking/wandb/wandb/*run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        run = {"config": {}, "history": [], "axes": {}, "folder": path.parent, "exit": None}
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"id": record.run.run_id, "name": record.run.display_name, "group": record.run.run_group}
                run |= {"project": record.run.project, "kind": record.run.job_type}
            config = record.run.config if kind == "run" else record.config if kind == "config" else None
            for item in config.update if config is not None else ():
                run["config"][item.key or item.nested_key[0]] = json.loads(item.value_json)
            if kind == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                run["history"].append(items)
            if kind == "metric":
                run["axes"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
            if kind == "exit":
                run["exit"] = record.exit.exit_code
        made.append(run)
    return made


def by_step(history: list[dict]) -> dict[int, dict]:
    """Step -> its scalars. JSON has no NaN; W&B writes it as text."""
    steps = {}
    for items in history:
        if "rollouts/path" not in items:
            numbers = {name: float(value) for name, value in items.items()}
            assert items["train/step"] not in steps, "a step was logged twice"
            steps[int(items["train/step"])] = numbers
    return steps


def test_wandb_file_holds_the_store(tmp_path):
    run = make_run("grpo", tmp_path, track=wb.Wandb(project="lesson", table_steps=4, table_rows=5, table_chars=6))
    run.run(3)
    assert run.tracking.wait(WAIT)  # it has begun with the old learning rate
    run.set(lr=5e-3)
    run.run()
    assert run.tracking.wait(WAIT)
    (sent,) = wandb_runs(run.folder)
    assert (sent["name"], sent["group"], sent["project"], sent["kind"]) == ("run", "run", "lesson", "grpo")
    assert sent["axes"]["train/step"] == "" and sent["axes"]["*"] == "train/step"
    assert_logged(run.store, by_step(sent["history"]))
    assert sent["exit"] == 0
    config = sent["config"]
    assert config["lr"] == 5e-3 and config["group_size"] == 4 and config["method"] == "grpo" and config["branch"] == 0
    assert config["policy"]["adapter"]["r"] == 4 and config["versions"]["torch"]
    assert config["data"]["digest"] == digest(run.store, "train") and config["data"]["rows"] == 12
    assert len(config["events"]) == 1 and config["events"][0].startswith("step 4: set: lr 0.01 → 0.005")
    tables = [(items["train/step"], items["rollouts/path"]) for items in sent["history"] if "rollouts/path" in items]
    assert [step for step, _ in tables] == [4, 6]  # every fourth, and the last
    for step, path in tables:
        shown = json.loads((sent["folder"] / "files" / path).read_text())
        stored = run.rollouts(step).head(5)
        assert len(shown["data"]) == 5 and "rewards/letters" in shown["columns"]
        columns = dict(zip(shown["columns"], zip(*shown["data"], strict=True), strict=True))
        assert list(columns["reward"]) == list(stored["reward"]) and set(columns["step"]) == {step}
        assert list(columns["rewards/letters"]) == list(stored["rewards/letters"])
        assert list(columns["advantage"]) == pytest.approx(list(stored["advantage"]))
        assert list(columns["finish_reason"]) == list(stored["finish_reason"])
        cut = [text[:6] + "…" * (len(text) > 6) for text in stored["prompt"]]
        assert list(columns["prompt"]) == cut


def test_wandb_goes_on_after_resume_and_a_fork_names_its_parent(tmp_path):
    run = make_run("sft", tmp_path, track="wandb")
    run.run(2)
    run.stop()
    assert run.tracking.wait(WAIT)
    again = wb.resume(run.folder, policy=run.engine.policy)
    again.run(2)
    fork = again.fork(3, lr=1e-3)
    fork.run()
    again.run()
    assert again.tracking.wait(WAIT) and fork.tracking.wait(WAIT)
    first, second = wandb_runs(run.folder)
    assert first["id"] == second["id"]
    assert sorted(by_step(first["history"])) == [0, 1, 2] and sorted(by_step(second["history"])) == [3, 4, 5, 6]
    assert_logged(again.store, by_step(first["history"] + second["history"]))
    (child,) = wandb_runs(fork.folder)
    assert child["id"] != first["id"] and child["config"]["parent"]["name"] == "run"
    assert child["config"]["parent"]["step"] == 3 and child["config"]["lr"] == 1e-3
    assert_logged(fork.store, by_step(child["history"]))


def test_wandb_after_a_rewind_has_a_whole_curve_for_each_line(tmp_path):
    run = make_run("sft", tmp_path, track="wandb")
    run.run(4)
    assert run.tracking.wait(WAIT)
    run.rewind(2)
    run.set(lr=2e-3)
    run.run()
    assert run.tracking.wait(WAIT)
    old, new = wandb_runs(run.folder)
    assert old["id"] != new["id"] and old["group"] == new["group"] == "run" and new["name"] == "run (branch 1)"
    assert_logged(run.store, by_step(old["history"]), branch=0)
    assert_logged(run.store, by_step(new["history"]))
    assert [items["train/branch"] for items in new["history"]] == [0, 0, 0, 1, 1, 1, 1]
    assert new["config"]["came_from"] == {"branch": 0, "step": 2} and new["config"]["lr"] == 2e-3


# -- TensorBoard, trackio, several -----------------------------------------------------------------------------


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    steps: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in steps.setdefault(event.step, {}), "a value was logged twice"
            steps[event.step][name] = event.value
    steps["texts"] = {
        name: [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
    }
    return steps


def float32(store, branch=None):
    """The store's values as TensorBoard keeps them."""
    wide = store.metrics(branch).astype("float32")
    return {
        step: {n: v for n, v in row.items() if n in store.step_metrics(step, branch)} for step, row in wide.iterrows()
    }


def test_several_at_once_and_tensorboard_holds_the_store(tmp_path):
    pytest.importorskip("tensorboard")
    mine = Notebook()
    run = make_run(
        "grpo", tmp_path, track=["tensorboard", "wandb", mine], eval_dataset=[{"prompt": "Say x:", "answer": 1}]
    )
    run.run(3)
    run.stop()
    assert run.tracking.wait(WAIT)
    again = wb.resume(run.folder, rewards=[letters], policy=run.engine.policy)
    again.run()
    assert again.tracking.wait(WAIT)
    found = scalars(run.folder / "tracking" / "tensorboard")
    texts = found.pop("texts")
    wanted = float32(again.store)
    assert found.keys() == wanted.keys() == set(range(7))
    for step, values in wanted.items():
        assert all(same(value, found[step][name]) for name, value in values.items()), step
        assert found[step].keys() - values.keys() == {"train/seconds"}
    assert "| group\\_size | 4 |" in texts["settings/text_summary"][0][1]
    assert [step for step, _ in texts["rollouts/text_summary"]] == [3, 6]
    assert sum(len(by_step(sent["history"])) for sent in wandb_runs(run.folder)) == 7
    assert mine.steps() == [0, 1, 2, 3] and mine.of("finish") == [("stopped",)]


def test_tensorboard_after_a_rewind(tmp_path):
    pytest.importorskip("tensorboard")
    run = make_run("sft", tmp_path, track="tensorboard")
    run.run(4)
    assert run.tracking.wait(WAIT)
    run.rewind(1)
    run.set(lr=1e-3)
    run.run(2)
    assert run.tracking.wait(WAIT)
    for place, branch in ((".", 0), ("branch-1", 1)):
        folder = run.folder / "tracking" / "tensorboard" / place
        files = list(folder.glob("events*"))
        assert len(files) == 1
        found = scalars(files[0])
        found.pop("texts")
        assert {s: v["loss"] for s, v in found.items() if "loss" in v} == {
            s: v["loss"] for s, v in float32(run.store, branch).items() if "loss" in v
        }


def test_model_text_cannot_act_in_markdown():
    from workbench import markdown

    nasty = "<img src=x onerror=alert(1)> [a](javascript:x) | `b` **c** &lt; \u202e $x$\n# head"
    cell = markdown.escape(nasty)
    assert "<img" not in cell and "\n" not in cell and "\u202e" not in cell and "&amp;lt;" in cell
    for mark in ("](", " | ", "`b`", "**c**", "$x$"):
        assert mark not in cell
    assert markdown.table(["a"], [[nasty]]).count("\n") == 3
    assert "`" not in markdown.code("`<b>`") and "<b>" not in markdown.code("`<b>`")


def test_trackio_is_sent_the_same(tmp_path, monkeypatch):
    """Against trackio's own store where trackio is installed."""
    pytest.importorskip("trackio", reason="trackio is not installed (pip install workbench[trackio])")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    code = f"""
        import sys; sys.path.insert(0, {str(Path.cwd())!r})
        from pathlib import Path
        from tests.runs import make_run
        run = make_run("grpo", Path({str(tmp_path)!r}), track="trackio", steps=3)
        run.run(2); run.tracking.wait(20); run.rewind(1); run.set(lr=1e-3); run.run(); assert run.tracking.wait(20)
        run.metrics.to_json({str(tmp_path / "metrics.json")!r}, double_precision=15)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=170, capture_output=True)
    read = """
        import json, trackio, sys
        from trackio.sqlite_storage import SQLiteStorage as S
        runs = S.get_runs("workbench")
        print("RESULT" + json.dumps({r: S.get_logs("workbench", r) for r in runs}, default=str))
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(read)], check=True, timeout=60, capture_output=True, text=True
    )
    logs = json.loads(out.stdout.split("RESULT")[1])
    wanted = json.loads((tmp_path / "metrics.json").read_text())
    name = next(n for n in logs if "branch 1" in n)
    for metric in ("loss", "reward", "grad_norm"):
        sent = {str(entry["step"]): entry[metric] for entry in logs[name] if metric in entry}
        assert sent == pytest.approx({step: value for step, value in wanted[metric].items() if value is not None})
    assert len(logs) == 2


# -- what a tracker is sent ------------------------------------------------------------------------------------


def test_only_committed_steps_and_in_order(tmp_path):
    mine = Notebook()
    run = make_run("sft", tmp_path, track=mine)
    assert not mine.lines  # nothing before there is a step
    run.run(2)
    broken = run.engine.method.loop

    def breaks(state, ctx):
        for step in broken(state, ctx):
            if step.index == 3:
                raise RuntimeError("no step 3")
            yield step

    object.__setattr__(run.engine.method, "loop", breaks)
    try:
        run.engine.undo()
        with pytest.raises(RuntimeError, match="no step 3"):
            run.run()
    finally:
        object.__setattr__(run.engine.method, "loop", broken)
    assert run.tracking.wait(WAIT)
    assert mine.steps() == [0, 1, 2]
    assert mine.of("event") == [(2, "error", "RuntimeError: no step 3")] and mine.of("finish") == [("failed",)]
    run.run()
    assert run.tracking.wait(WAIT)
    assert mine.steps() == list(range(7)) and len(mine.of("start")) == 2
    assert mine.of("start")[1][0].remembered == {}
    for (logged,) in mine.of("log"):
        assert logged.metrics == run.store.step_metrics(logged.step) and logged.branch == 0


def test_a_rewound_line_is_ended_and_a_new_one_begun_with_its_first_step(tmp_path):
    mine = Notebook(remember={"id": "x"})
    run = make_run("grpo", tmp_path, track=mine)
    run.run(4)
    assert run.tracking.wait(WAIT)
    run.rewind(2)
    run.engine.tracking.ring()
    assert run.tracking.wait(WAIT)
    assert len(mine.of("start")) == 1 and not mine.of("finish")  # nothing new yet
    run.run(1)
    assert run.tracking.wait(WAIT)
    assert mine.of("finish") == [("rewound",)]
    assert mine.steps() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    second = mine.of("start")[1][0]
    assert second.remembered == {} and second.branch == 1 and second.name == "run (branch 1)" and second.run == "run"
    assert (3, "rewind") not in [line[:2] for line in mine.of("event")]
    assert [step for step, *_ in mine.of("rollouts")] == [2, 4, 2]
    run.stop()
    assert run.tracking.wait(WAIT)
    assert [step for step, *_ in mine.of("rollouts")] == [2, 4, 2, 3] and mine.of("finish")[-1] == ("stopped",)


def test_added_later_it_gets_everything(tmp_path):
    mine, late = Notebook(), Notebook()
    run = make_run("sft", tmp_path, steps=3)
    run.run(2)
    run.track(mine)
    assert run.tracking.wait(WAIT) and mine.steps() == [0, 1, 2]
    run.run()
    assert run.tracking.wait(WAIT) and mine.steps() == [0, 1, 2, 3]
    looked = wb.open(run.folder)
    looked.track(late)
    assert late.steps() == [] and late.of("finish") == []  # the first of that name has sent it all
    other = Notebook()
    other.label = "other"
    looked.track(other)
    assert other.steps() == [0, 1, 2, 3] and other.of("finish") == [("finished",)]


def test_tracked_and_untracked_runs_are_the_same(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    plain = make_run("grpo", tmp_path, policy=policy, steps=3)
    plain.run()
    policy.reset()
    tracked = make_run("grpo", tmp_path, policy=policy, out="tracked", steps=3, track=Notebook())
    tracked.run()
    assert_same_metrics(plain.metrics, tracked.metrics, first=0)


# -- failures --------------------------------------------------------------------------------------------------


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
