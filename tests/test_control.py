"""What a dashboard does to a run: taken up at once, in effect between two steps, in the store; and what is refused."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
from browser import writer
from filelock import FileLock, Timeout

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_metrics, make_run
from workbench import settings as settings_of
from workbench import worker
from workbench.control import Control, parse
from workbench.settings.meanings import meanings
from workbench.store import Store
from workbench.views.controls import described, written
from workbench.views.dashboard import Dashboard

AT_ONCE = 1.0
"""seconds; the machine may be busy"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model", lora=True)


@pytest.fixture
def run(policy, tmp_path):
    made = make_run("grpo", tmp_path, policy, steps=400)
    made._ready()
    yield made
    if not made._released:
        made.stop()


class Said:
    """What a control says when an action is in effect."""

    def __init__(self):
        self.words, self.failed, self.event = "", "", threading.Event()

    def __call__(self, words, failed):
        assert not self.event.is_set(), "said once"
        self.words, self.failed = words, failed
        self.event.set()

    def wait(self):
        assert self.event.wait(20)
        return self


def do(run, action, **values) -> Said:
    said = Said()
    began = time.perf_counter()
    asked = Control(run).act(action, values, said)
    assert time.perf_counter() - began < AT_ONCE and asked
    return said.wait()


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def events(run, kind):
    frame = run.store.events()
    return frame[frame["kind"] == kind]


def test_start_pause_and_one_step(run):
    assert do(run, "step").words == "made step 1"
    assert (run.step, run.status, run.running) == (1, "paused", False)
    assert do(run, "start").words == "going on from step 1"
    until(lambda: run.step >= 3)
    assert run.status == "running" and Control(run).state()["going"] == "background"
    said = do(run, "pause")
    assert said.words == f"paused after step {run.step}" and run.status == "paused" and not run.running
    step = run.step
    assert do(run, "step").words == f"made step {step + 1}" and run.step == step + 1
    assert Store(run.folder).last_step() == step + 1


def test_two_presses_of_step_make_two_steps(run):
    free = threading.Event()
    worker.submit(free.wait)
    said = [Said(), Said()]
    for one in said:  # both before the worker comes to the first
        Control(run).act("step", {}, one)
    free.set()
    assert [one.wait().words for one in said] == ["made step 1", "made step 2"] and run.step == 2


def test_a_start_that_follows_a_pause_is_not_taken_back_by_it(run):
    run.start()
    paused = run._background
    run.pause()
    run.start()  # while what the pause still has to say waits for the worker
    assert "started again" in worker.call(Control(run)._paused, paused)
    assert run.running
    run.pause()


def test_a_run_to_the_end_gets_there_after_a_rewind_on_the_way(policy, tmp_path):
    run = make_run("grpo", tmp_path, policy, steps=5)
    step, pressed = run.engine.step, []

    def rewound():
        made = step()
        if made is not None and made.index == 3 and not pressed:
            pressed.append(Said())
            Control(run).act("rewind", {"step": 1}, pressed[0])
        return made

    run.engine.step = rewound
    run.run()
    assert pressed[0].words == "back at step 1" and (run.step, run.status) == (5, "finished")


def test_a_loop_that_stops_its_run_ends_and_leaves_it_stopped(run):
    seen = []
    for step in run:
        seen.append(step.index)
        run.stop()
    assert seen == [1] and run.status == "stopped" and run._lock is None
    held = iter(run)
    assert next(held).index == 2, "iterating again takes the run up"
    run.stop()
    held.close()
    assert run.status == "stopped"


def test_at_exit_what_waits_finds_itself_cancelled_and_runs_end_as_paused_ones():
    own, free, seen = worker.Worker(), threading.Event(), []

    def last():
        seen.append(own.current.cancelled.is_set())

    def first():
        free.wait()
        own.jobs.put(worker.Job(last))  # behind the end, as the next step of a run

    own.jobs.put(worker.Job(first))
    end = threading.Thread(target=worker._shut_down, args=(own,))
    end.start()
    until(lambda: own.closing and not own.jobs.empty())
    free.set()
    end.join()
    assert seen == [True] and not own.thread.is_alive()


def test_an_iterator_that_is_held_at_exit_leaves_its_run_paused(run):
    held, own = iter(run), worker.Worker()
    assert next(held).index == 1 and run.status == "running"
    worker._shut_down(own)
    assert run.status == "paused" and not own.thread.is_alive()
    assert next(held, None) is None, "that loop is over; another goes on"
    assert next(iter(run)).index == 2


def test_every_action_returns_while_the_worker_is_busy(run):
    run.run(2)
    free = threading.Event()
    worker.submit(free.wait)
    said = []
    values = {"rewind": {"step": 1}, "fork": {"step": 1}, "set": {"settings": {"lr": "0.02"}}}
    for action in ("rewind", "set", "fork", "start", "pause", "stop"):
        said.append(Said())
        began = time.perf_counter()
        if action == "pause":
            with pytest.raises(wb.RunError, match="stands still"):  # the start waits for the worker, too
                Control(run).act(action, {}, said[-1])
        else:
            Control(run).act(action, values.get(action, {}), said[-1])
        assert time.perf_counter() - began < AT_ONCE
        assert not said[-1].event.is_set()
    free.set()
    words = [one.wait().words for one in said if one is not said[4]]
    assert words[0] == "back at step 1" and words[1] == "lr 0.01 → 0.02 from step 2 on"
    assert words[2].startswith("forked at step 1: run.forks[-1] is run-fork, in ")
    assert words[4].startswith("stopped after step") and run.status == "stopped"


def test_stop_undoes_the_step_in_flight_and_lets_go(run, monkeypatch):
    entered = threading.Event()
    step = run.engine.step

    def long_step():
        entered.set()
        while True:
            worker.check()
            time.sleep(0.01)

    do(run, "step")
    monkeypatch.setattr(run.engine, "step", long_step)
    do(run, "start")
    assert entered.wait(10)
    with pytest.raises(Timeout):
        FileLock(run.folder / "lock").acquire(timeout=0)
    assert "stopped after step 1, with a snapshot" in do(run, "stop").words
    assert run.status == "stopped" and run.step == 1 and (run.folder / "snapshots").exists()
    other = FileLock(run.folder / "lock")
    other.acquire(timeout=0)  # the lock was taken on the worker, and is free for others now
    other.release()
    assert "let go of already" in Control(run).state()["can"]["stop"]
    monkeypatch.setattr(run.engine, "step", step)
    assert do(run, "step").words == "made step 2" and run.status == "paused"


def test_stop_in_a_cell_lets_go_of_a_lock_that_the_worker_took(policy, tmp_path):
    run = make_run("sft", tmp_path, policy)
    held = run.run(1)._lock  # else the lock would be given up with the object
    run.stop()
    other = FileLock(run.folder / "lock")
    other.acquire(timeout=0)
    other.release()
    assert not held.is_locked and run.run(1).step == 2, "and takes the run up again"
    run.stop()


def test_a_rewind_while_running_goes_on_from_there(run):
    do(run, "start")
    until(lambda: run.step >= 4)
    assert do(run, "rewind", step=2).words == "back at step 2, going on from there"
    until(lambda: run.step >= 4)
    do(run, "pause")
    assert run.store.branch == 1 and len(events(run, "rewind")) == 1
    assert_same_metrics(run.metrics.loc[:4], run.store.metrics(0).loc[:4])
    do(run, "rewind", step=1)
    assert run.step == 1


def test_a_fork_reaches_the_user_and_names_its_parent(run):
    run.run(3)
    words = do(run, "fork", step=2, settings={"lr": "0.5"}, start=False).words
    (fork,) = run.forks
    assert words == f"forked at step 2: run.forks[-1] is {fork.name}, in {fork.folder}"
    assert fork.step == 2 and fork.settings["lr"] == 0.5 and not fork.running and run.step == 3
    parent = fork.store.get("parent")
    assert (parent["name"], parent["step"]) == ("run", 2)
    assert do(run, "fork", start=True).words.endswith("going on") and run.forks[-1].running
    run.forks[-1].stop()
    assert run.forks[-1].store.get("parent")["step"] == 3


def test_settings_take_effect_at_the_next_step_and_are_events(run):
    run.run(1)
    assert do(run, "set", settings={"lr": "3e-3", "epsilon_high": "0.3"}).words == (
        "lr 0.01 → 0.003, epsilon_high None → 0.3 from step 2 on"
    )
    (event,) = events(run, "set").itertuples()
    assert event.step == 2 and event.payload["settings"] == {"lr": [0.01, 0.003], "epsilon_high": [None, 0.3]}
    do(run, "step")
    assert run.metrics["learning_rate"][2] == pytest.approx(3e-3)
    assert "sapo_temperature_pos changes nothing" in do(run, "set", settings={"sapo_temperature_pos": "2"}).words


def test_what_is_wrong_with_a_setting_is_said_at_once_and_changes_nothing(run):
    control = Control(run)
    for settings, words in [
        ({"lr": "fast"}, "lr='fast'"),
        ({"lr": "-1"}, "at least 0"),
        ({"lrr": "1"}, "Did you mean 'lr'"),
        ({"seed": "4"}, "cannot change within a run"),
        ({"lr": "0.01"}, "Nothing changes"),
        ({"group_size": "1"}, "group_size=1 must be at least 2"),
        ({"loss_type": writer.HOSTILE}, "is not known"),
        ({"lr": "9" * 6000}, "too many"),
    ]:
        with pytest.raises(wb.SettingError, match=words):
            control.act("set", {"settings": settings}, Said())
    with pytest.raises(wb.SettingError, match="above 0"):
        control.act("fork", {"settings": {"temperature": "0"}}, Said())
    with pytest.raises(wb.StoreError, match="has no step 7"):
        control.act("rewind", {"step": 7}, Said()) if run.step else control.act("fork", {"step": 7}, Said())
    with pytest.raises(wb.RunError, match="no action '_submit'"):
        control.act("_submit", {}, Said())
    # what only the model knows comes later, and changes nothing either
    assert "max_new_tokens" in do(run, "set", settings={"max_new_tokens": "100000"}).failed
    assert run.settings["max_new_tokens"] == 6 and not len(events(run, "set")) and not run.forks


def test_an_error_of_the_step_is_told_to_who_pressed(run, capsys):
    def broken(completions, **kwargs):
        raise KeyError("gone")

    run.set(rewards=[broken])
    assert "broken" in do(run, "step").failed
    assert run.status == "failed" and not run.running
    assert "broken" in capsys.readouterr().err


def test_a_finished_run_says_why_it_does_not_start_and_how_to_go_on(policy, tmp_path):
    run = make_run("sft", tmp_path, policy, steps=2)
    assert list(run) and run.status == "finished"
    with pytest.raises(wb.RunError, match="All 2 steps are made. For more: Settings, steps"):
        Control(run).act("start", {}, Said())
    do(run, "set", settings={"steps": "3"})
    assert do(run, "step").words == "made step 3" and run.status == "finished"
    do(run, "set", settings={"steps": "9", "time_limit": "0.000001"})
    assert "time_limit of 1e-06 s is used up" in Control(run).state()["can"]["start"]


def test_a_loop_in_a_cell_is_paused_as_by_break_and_not_stepped_twice(run):
    heard, control = [], Control(run)

    def press(action):  # as from a kernel's subshell, while the main thread is in the loop
        try:
            heard.append(control.act(action, {}, Said()))
        except wb.RunError as error:
            heard.append(str(error))

    for step in run:
        if step.index == 2:
            for action in ("start", "step", "stop", "pause"):
                thread = threading.Thread(target=press, args=(action,))
                thread.start()
                thread.join()
    assert run.step == 2 and run.status == "paused"
    assert "A cell is stepping this run" in heard[0] == heard[1] and "interrupt the cell" in heard[2]
    assert "ends after the step in flight" in heard[3]
    assert [step.index for _, step in zip(range(2), run, strict=False)] == [3, 4], "iterating again goes on"


def test_an_iterator_that_is_held_does_not_block_the_buttons(run):
    steps = iter(run)
    next(steps)
    assert run.status == "running"
    assert do(run, "start").words == "going on from step 1"  # no loop can be going: the main thread is here
    do(run, "pause")
    steps.close()


def test_a_cell_and_a_button_may_stop_it_at_once(run):
    run.run(1)
    free, said, errors = threading.Event(), Said(), []
    worker.submit(free.wait)
    Control(run).act("stop", {}, said)

    def stop():
        try:
            run.stop()
        except AttributeError as error:
            errors.append(error)

    cell = threading.Thread(target=stop)
    cell.start()
    until(lambda: not worker._worker.jobs.empty() and worker._worker.jobs.qsize() == 2)
    free.set()
    cell.join()
    assert said.wait().words.startswith("stopped after step 1") and run.status == "stopped" and not errors


def test_settings_that_another_process_changed_are_not_passed_over(run):
    run.run(1)
    run.stop()
    other = Store(run.folder, write=True)  # as `wb.resume(...).set(lr=...)` elsewhere, which takes no step
    other.add_event(2, 0, "set", settings={"lr": [0.01, 0.5]})
    other.close()
    with pytest.raises(wb.RunError, match="Another process went on"):
        run.run(1)


def test_one_who_lost_the_run_is_told(run, tmp_path):
    run.run(1)
    again = wb.resume(run.folder, rewards=run.engine.live.data.task.rewards, policy=run.engine.policy)
    assert again.store.last_step() == 1
    assert "opened again by this process" in Control(run).state()["why"]
    with pytest.raises(wb.RunError, match="opened again"):
        Control(run).act("start", {}, Said())
    shutil.rmtree(again.folder)
    assert "folder is gone" in Control(again).state()["why"] and Control(again).notices() == []
    again._released = "gone"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1e-3", "float", 1e-3), (" 4 ", "int", 4), ("None", "int | None", None), ("", "float | None", None),
        ("true", "bool", True), ("False", "bool", False), ("dapo", "str", "dapo"), ("none", "str", "none"),
        ("12", "str", "12"), ("['sigmoid', 'sft']", "str | tuple[str, ...]", ["sigmoid", "sft"]),
        ("(0, 1)", "tuple[float, ...] | None", (0, 1)), ('{"min_lr_rate": 0.1}', "dict | None", {"min_lr_rate": 0.1}),
        ("0.1", "int | float", 0.1), ("'x'", "str", "x"), ("__import__('os')", "str", "__import__('os')"),
    ],
)  # fmt: skip
def test_what_is_typed_becomes_a_value(text, kind, value):
    made = parse("x", text, kind)
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize("text", ["[1,", "__import__('os')", "x", "None", "9" * 5001])
def test_what_is_typed_may_be_no_value(text):
    with pytest.raises(wb.SettingError):
        parse("x", text, "float")


def test_what_is_shown_of_a_setting_is_what_may_be_typed():
    for method, kind in settings_of.METHODS.items():
        settings = settings_of.make(method, {})
        for name, field in kind.__dataclass_fields__.items():
            value = getattr(settings, name)
            assert settings_of.typed(name, parse(name, written(value), str(field.type)), str(field.type)) == value, name
        assert not [name for name, words in meanings(method).items() if not words], "every setting has a meaning"
    assert meanings("grpo")["sapo_temperature_pos"].startswith("steepness") and written(1e-5) == "1e-5"


# -- the view --------------------------------------------------------------------------------------------------


def test_the_list_of_settings(run, tmp_path):
    listed = {setting["name"]: setting for setting in described(run.store)}
    assert list(listed)[:2] == ["lr", "steps"] and listed["lr"]["value"] == "0.01"
    assert listed["loss_type"]["choices"][0] == "dapo" and listed["preset"]["choices"][0] == "None"
    assert listed["padding_free"]["choices"] == ["True", "False"]
    assert "cannot change" in listed["seed"]["fixed"] and not listed["lr"]["fixed"]
    hostile = writer.begin(tmp_path / "hostile")
    hostile.set_meta(settings={"steps": 3, "lr": writer.HOSTILE_NAME}, method="other")
    assert "\u202e" not in str(described(hostile)) and "⟨U+202E⟩" in str(described(hostile))


def heard_by(view):
    heard = []
    view.send = lambda content, buffers=None: heard.append(content)
    return heard


def test_a_view_passes_actions_on_and_tells_all_views_when_they_are_in_effect(run):
    view = Dashboard(run.store, control=Control(run))
    heard = heard_by(view)
    view._receive(view, {"kind": "act", "view": "v", "ask": 7, "action": "step", "values": {}}, [])
    until(lambda: any(one["kind"] == "acted" for one in heard))
    (ack,) = [one for one in heard if one["kind"] == "act"]
    assert ack == {"kind": "act", "to": "v", "ask": 7, "words": "one step asked"}
    (acted,) = [one for one in heard if one["kind"] == "acted"]
    assert acted == {"kind": "acted", "to": None, "by": "v", "number": 7, "words": "made step 1", "failed": ""}
    assert any(one["kind"] == "curves" and one["head"]["step"] == 1 for one in heard[: heard.index(acted)])
    assert [one for one in heard if one["kind"] == "curves"][-1]["control"]["can"]["start"] == ""
    view._receive(view, {"kind": "act", "view": "v", "ask": 8, "action": "rewind", "values": {"step": "x"}}, [])
    assert "step='x'" in heard[-1]["trouble"]
    view._receive(view, {"kind": "act", "view": "v", "ask": 9, "action": "set", "values": [1]}, [])
    assert "Nothing" in heard[-1]["trouble"]
    assert view.watching, "a run that stands still may be started"
    view.close()


def test_a_run_to_look_at_has_no_buttons_and_says_how_to_go_on(run):
    run.run(1)
    view = Dashboard(Store(run.folder))
    heard = heard_by(view)
    view._receive(view, {"kind": "act", "view": "v", "ask": 1, "action": "start", "values": {}}, [])
    assert f"wb.resume('{run.folder}')" in heard[-1]["trouble"]
    view._receive(view, {"kind": "settings", "view": "v", "ask": 2}, [])
    assert heard[-1]["settings"][0]["name"] == "lr"
    assert view.beside()["control"]["can"] == {}


def test_show_hands_the_control_in(run, capsys):
    assert isinstance(run.show().control, Control)
    assert wb.open(run.folder).show().control is None
    assert "step 0" in capsys.readouterr().out
