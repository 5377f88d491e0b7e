"""Tracking: what each tracker wrote is read back and compared with the store; failures never reach the run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_metrics, letters, make_run
from tests.trackers import WAIT, Notebook, offline, wandb_records  # noqa: F401
from workbench.tracking.record import digest


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


def wandb_runs(folder: Path) -> list[dict]:
    """What each .wandb file under `folder` holds, once W&B's own process has written its end."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        made = read_wandb(folder)
        if all(run["exit"] is not None for run in made):
            break
        time.sleep(0.1)
    return made


def read_wandb(folder: Path) -> list[dict]:
    """What each .wandb file under `folder` holds now, oldest first: id, name, group, config, history, metrics."""
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
