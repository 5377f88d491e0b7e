"""Time: any step can be gone back to exactly, whatever happened in between."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import METHODS, assert_same_metrics, assert_same_weights, letters, make_run, rows_for, weights
from workbench import methods, update, worker
from workbench.state import State
from workbench.store import Store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Per method one run that nothing happened to: its metrics and its weights at the end."""
    made = {}
    for method in METHODS:
        run = make_run(method, tmp_path_factory.mktemp(method))
        list(run)
        made[method] = run.metrics, weights(run), run.rollouts()
    return made


@pytest.mark.parametrize("where", ["memory", "snapshot"])
@pytest.mark.parametrize("method", METHODS)
def test_rewind_is_bit_equal(method, where, whole, tmp_path):
    run = make_run(method, tmp_path)
    list(run)
    if where == "snapshot":
        run.engine.memory.clear()  # so that steps 4 and 5 are replayed from the snapshot of step 3
    run.rewind(5)
    assert run.step == 5
    list(run)
    assert_same_metrics(run.metrics, whole[method][0])
    assert_same_weights(weights(run), whole[method][1])
    assert sorted(run.store.steps("all")["branch"].unique()) == [0, 1]
    assert len(run.store.steps(0)) == 7, "the abandoned branch stays in the store"


@pytest.mark.parametrize("method", METHODS)
def test_rewind_restores_weights_of_every_step(method, tmp_path):
    run = make_run(method, tmp_path)
    run.rewind(0)
    seen = {0: weights(run)}
    for step in run:
        seen[step.index] = weights(run)
    run.engine.memory.clear()
    for step in (4, 2, 0):
        run.rewind(step)
        assert_same_weights(weights(run), seen[step])
        assert run.engine.state.step == step


@pytest.mark.parametrize("method", METHODS)
def test_generator_restarted_at_every_step_gives_the_same_numbers(method, whole, tmp_path):
    run = make_run(method, tmp_path)
    for _ in run:
        run.engine._loop = None
    assert_same_metrics(run.metrics, whole[method][0])
    assert_same_weights(weights(run), whole[method][1])


@pytest.mark.parametrize("method", METHODS)
def test_fork_without_changes_equals_its_parent(method, whole, tmp_path):
    run = make_run(method, tmp_path)
    run.run(4)
    before = weights(run)
    run.engine.memory.clear()
    fork = run.fork(2)
    assert_same_weights(weights(run), before)
    list(fork)
    assert_same_metrics(fork.metrics, whole[method][0], first=3)
    assert_same_weights(weights(fork), whole[method][1])
    list(run)  # the parent goes on as if the fork had never been
    assert_same_weights(weights(run), whole[method][1])
    parent = fork.store.get("parent")
    assert (parent["name"], parent["step"], parent["branch"]) == ("run", 2, 0)
    assert fork.metrics.index[0] == 2


def test_fork_with_changes_differs_and_says_so(tmp_path):
    run = make_run("sft", tmp_path)
    run.run(3)
    fork = run.fork(3, lr=1e-3)
    fork.run(1)
    run.run(1)
    assert fork.metrics.loc[4, "learning_rate"] == 1e-3 and run.metrics.loc[4, "learning_rate"] == 1e-2
    assert fork.metrics.loc[4, "loss"] == run.metrics.loc[4, "loss"], "the batch and the weights before it are the same"
    assert fork.store.settings()["lr"] == 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_resume_in_this_process(method, whole, tmp_path):
    run = make_run(method, tmp_path)
    run.run(4)
    rewards = [letters] if method == "grpo" else None
    again = wb.resume(run.folder, rewards=rewards)
    list(again)
    assert_same_metrics(again.metrics, whole[method][0])
    assert_same_weights(weights(again), whole[method][1])
    with pytest.raises(wb.RunError, match="opened again"):
        next(iter(run))


def test_two_runs_share_a_policy_and_take_turns(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    alone = make_run("sft", tmp_path, out="alone", policy=tiny_policy(tmp_path / "other", lora=True))
    list(alone)
    a, b = make_run("sft", tmp_path, policy, out="a"), make_run("sft", tmp_path, policy, out="b", seed=9)
    for _ in zip(a, b, strict=True):
        pass
    assert policy.holder == "b"
    assert_same_weights(weights(a), weights(alone))
    policy.reset()
    start = policy.params()
    assert all(not torch.equal(start[name], weights(a)[name]) for name in start)


# -- interrupts ------------------------------------------------------------------------------------------------


def break_sampling(monkeypatch, run, error):
    original = run.engine.policy.sample_prompts
    monkeypatch.setattr(run.engine.policy, "sample_prompts", lambda *a, **k: (original(*a, **k), raising(error))[1])


def break_reward(monkeypatch, run, error):
    task = run.engine.live.data.task
    monkeypatch.setitem(
        task.rewards.__class__.__call__ and task.__dict__,
        "rewards",
        [lambda completions, **k: raising(error)],
    )


def break_update(monkeypatch, run, error):
    """After the first of the step's two updates has moved the weights."""
    original, calls = update.apply, []

    def apply(*args):
        calls.append(original(*args))
        return calls[-1] if len(calls) < 2 else raising(error)

    monkeypatch.setattr(update, "apply", apply)


def break_commit(monkeypatch, run, error):
    """After the step's rows have been written, before they are committed."""
    monkeypatch.setattr(Store, "_insert_rollouts", lambda *a: raising(error))


def raising(error):
    raise error


@pytest.mark.parametrize("where", [break_sampling, break_reward, break_update, break_commit])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("boom")], ids=["interrupt", "error"])
def test_a_step_that_breaks_leaves_the_last_whole_step(where, error, whole, tmp_path, monkeypatch):
    run = make_run("grpo", tmp_path)
    run.run(3)
    before = weights(run)
    with monkeypatch.context() as patch:
        where(patch, run, error)
        with pytest.raises((KeyboardInterrupt, ValueError, wb.RewardError)):
            next(iter(run))
    assert run.step == 3 and run.store.last_step() == 3
    assert len(run.rollouts()) == 3 * 12
    assert_same_weights(weights(run), before)
    list(run)
    assert_same_metrics(run.metrics, whole["grpo"][0])
    assert_same_weights(weights(run), whole["grpo"][1])


@pytest.mark.parametrize("where", [break_update, break_commit])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_supervised_steps_break_whole_too(method, where, whole, tmp_path, monkeypatch):
    run = make_run(method, tmp_path)
    run.run(2)
    with monkeypatch.context() as patch:
        if where is break_update:
            original = update.apply
            patch.setattr(update, "apply", lambda *a: (original(*a), raising(ValueError("boom")))[1])
        else:
            patch.setattr(run.engine.store, "commit_step", lambda *a, **k: raising(ValueError("boom")))
        with pytest.raises(ValueError):
            next(iter(run))
    list(run)
    assert_same_metrics(run.metrics, whole[method][0])
    assert_same_weights(weights(run), whole[method][1])


def test_ctrl_c_in_the_main_thread_undoes_the_step_and_returns(tmp_path, capsys):
    import _thread

    run = make_run("grpo", tmp_path, steps=2000)
    timer = threading.Timer(1.0, _thread.interrupt_main)
    timer.start()
    run.run()
    assert 0 < run.step < 2000 and run.status == "paused"
    assert "can go on" in capsys.readouterr().out
    last = run.step
    run.run(2)
    assert run.step == last + 2


def test_ctrl_c_while_iterating_goes_on_to_the_caller(tmp_path):
    import _thread

    run = make_run("grpo", tmp_path, steps=2000)
    threading.Timer(1.0, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in run:
            pass
    assert run.step == run.store.last_step() and run.status == "paused"


def test_out_of_disk_leaves_the_last_step_and_goes_on_when_there_is_room(whole, tmp_path):
    run = make_run("grpo", tmp_path)
    run.run(2)
    db = run.engine.store._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    worker.call(lambda: db.execute(f"PRAGMA max_page_count={pages}"))
    with pytest.raises(wb.StoreError, match="full.*last whole step is intact"):
        list(run)
    assert run.step == run.store.last_step() < 6
    worker.call(lambda: db.execute(f"PRAGMA max_page_count={2**30}"))
    list(run)
    assert_same_metrics(run.metrics, whole["grpo"][0])


# -- other processes -------------------------------------------------------------------------------------------

READER = """
import sys, time
from workbench.state import State
from workbench.store import Store
folder, seen = sys.argv[1], 0
end = time.time() + 60
while time.time() < end:
    store = Store(folder)
    store._db.execute("BEGIN")
    steps = [s for s, in store.query("SELECT step FROM steps WHERE step > 0")]
    counts = dict(store.query("SELECT step, COUNT(*) FROM rollouts GROUP BY step"))
    always = "step > 0 AND name != 'reward_length_corr'"
    named = dict(store.query(f"SELECT step, COUNT(*) FROM metrics WHERE {always} GROUP BY step"))
    tokens = store.query("SELECT COUNT(*) FROM tokens")[0][0]
    assert set(counts) == set(steps) == set(named), (steps, counts, named)
    assert set(counts.values()) <= {12} and len(set(named.values())) <= 1 and tokens == 12 * len(steps)
    seen = max(seen, len(steps))
    store.close()
    if len(steps) >= 40:
        break
print("whole", seen)
"""


def test_concurrent_readers_see_whole_steps_only(tmp_path):
    run = make_run("grpo", tmp_path, steps=40)
    run.run(1)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(run.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    run.run()
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert reader.returncode == 0 and out.startswith("whole 40"), err


def test_a_second_writer_is_refused(tmp_path):
    run = make_run("sft", tmp_path)
    run.run(1)
    code = f"import workbench as wb\nwb.resume({str(run.folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "is being written by another process" in done.stderr


@pytest.mark.timeout(300)
def test_twenty_kills_and_resumes_equal_one_run_never_killed(tmp_path):
    """A process of its own starts lives with fork, so that torch is imported once; each is killed with SIGKILL."""
    tiny_policy(tmp_path / "model")
    seed = random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_driver.py")), str(tmp_path), "20", str(seed)],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-1500:]} {done.stderr[-3000:]}"
    killed, never = wb.open(tmp_path / "killed"), wb.open(tmp_path / "never")
    assert_same_metrics(killed.metrics, never.metrics)
    drop = ["id", "branch"]
    assert killed.rollouts().drop(columns=drop).equals(never.rollouts().drop(columns=drop))
    snapshots = [
        torch.load if False else path for path in sorted((tmp_path / "killed" / "snapshots").glob("*.safetensors"))
    ]

    last = snapshots[-2] if snapshots[-1].name.startswith("reference") else snapshots[-1]
    twin = tmp_path / "never" / "snapshots" / last.name
    assert_same_weights(State.load(last).params, State.load(twin).params)


# -- the background --------------------------------------------------------------------------------------------


def test_background_pause_resume_stop(whole, tmp_path):
    run = make_run("grpo", tmp_path, steps=500)
    run.start()
    assert run.running
    while run.store.last_step() < 3:
        time.sleep(0.02)
    run.pause()
    stood = run.step
    time.sleep(0.3)
    assert run.step == stood == run.store.last_step() and run.status == "paused" and not run.running
    run.resume()
    sampled = run.engine.policy.sample(["Say"], n=1, max_new_tokens=2)  # comes in between two steps
    assert len(sampled) == 1 and run.running
    run.set(lr=1e-3)
    run.pause()
    assert run.settings["lr"] == 1e-3
    run.start()
    run.stop()
    assert run.status == "stopped"
    stood = run.step
    run.run(1)  # nobody else took it up
    assert run.step == stood + 1
    run.stop()
    assert_same_metrics(run.metrics.loc[:2], whole["grpo"][0].loc[:2])
    again = wb.resume(run.folder, rewards=[letters])
    assert again.step == run.metrics.index[-1]
    again.run(1)
    again.stop()
    with pytest.raises(wb.RunError, match="opened again|went on"):
        run.run(1)


def test_background_to_the_end_and_wait(whole, tmp_path):
    run = make_run("sft", tmp_path)
    run.start()
    assert run.wait(timeout=60)
    assert run.status == "finished" and run.step == 6
    assert_same_metrics(run.metrics, whole["sft"][0])


def test_background_error_is_raised_by_wait_and_the_run_goes_on(tmp_path, capsys):
    def fails(completions, **kwargs):
        raise ZeroDivisionError("seven")

    policy = tiny_policy(tmp_path / "model", lora=True)
    task = wb.Task(rows_for("grpo"), rewards=[fails])
    run = wb.grpo(policy, task, steps=2, prompts_per_step=2, group_size=2, max_new_tokens=3, out=tmp_path / "r")
    run.start()
    with pytest.raises(wb.RewardError, match="fails.*ZeroDivisionError.*seven"):
        run.wait()
    assert run.status == "failed" and "fails" in capsys.readouterr().err
    assert "error" in set(run.store.events()["kind"])
    run.set(rewards=[letters])
    list(run)
    assert run.step == 2 and run.status == "finished"


def test_replay_that_does_not_fit_the_record_is_refused(tmp_path):
    run = make_run("sft", tmp_path)
    list(run)
    run.engine.memory.clear()
    with run.engine.store.transaction() as db:
        db.execute("UPDATE metrics SET value = value * 1.5 WHERE name = 'loss' AND step = 4")
    with pytest.raises(wb.RunError, match="Replaying step 4"):
        run.rewind(5)
    assert run.step == 6, "the run stands where it stood"


def test_methods_keep_nothing_between_steps():
    """The loops are generators over the State alone: no closure, no module state."""
    for name in METHODS:
        loop = methods.get(name).loop
        assert loop.__closure__ is None
