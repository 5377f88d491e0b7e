"""Changing the settings of a published method within a run: what it reads is prepared and checked again, as a resume
does, or the change is refused."""

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_weights, letters, weights
from workbench.errors import DataError, SettingError

ROWS = [{"prompt": f"Say {i}:", "answer": i} for i in range(6)]
SMALL = {"steps": 4, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 6, "lr": 1e-2}


def uft(folder, rows, **settings):
    policy = tiny_policy(folder / "m", lora=True)
    task = wb.Task(rows, rewards=[letters])
    return wb.method("uft")(policy, task, out=folder / "run", **(SMALL | settings))


def test_what_a_change_asks_for_is_checked_at_once(tmp_path):
    run = uft(tmp_path, ROWS, hint_steps=0)
    next(iter(run))
    with pytest.raises((DataError, SettingError), match="solution"):
        run.set(hint_steps=100)
    with pytest.raises((DataError, SettingError), match="solution"):
        run.fork(hint_steps=100)
    assert run.step == 1 and len(list(run)) == 3  # nothing was changed


def test_a_changed_method_is_prepared_anew_and_resumes(tmp_path):
    rows = [{**row, "solution": "one two three four five"} for row in ROWS]
    runs = []
    for name in ("whole", "stopped"):
        run = uft(tmp_path / name, rows, hint_steps=0)
        next(iter(run))
        run.set(hint_steps=100)
        step = next(iter(run))
        assert step.metrics["hint/share"] > 0
        if name == "stopped":
            run.stop()
            run = wb.resume(tmp_path / name / "run", rewards=[letters])
        list(run)
        runs.append(run)
    assert_same_weights(weights(runs[0]), weights(runs[1]))
    fork = runs[0].fork(2, hint_coef=0.5)
    list(fork)
    fork.stop()
    assert wb.resume(fork.folder, rewards=[letters]).step == 4
