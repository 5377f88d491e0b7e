"""Alarms: both sides of each threshold by hand, over windows, healed, on the line that counts, in the pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from browser import writer

from workbench.store import Store
from workbench.views.alarms import LEAST, WINDOW, alarms, alarms_html
from workbench.views.curves import Curves
from workbench.views.dashboard import Dashboard

NAN = float("nan")
HEALTHY = Path(__file__).parent / "healthy_demo.json"
"""metrics of `workbench demo` as it learned: accuracy from 0.2 to 0.8"""


def told(tmp_path, method="grpo", settings=None, **metrics):
    """The alarms of a run that had these values, one a step: {kind: alarm}."""
    return {alarm.kind: alarm for alarm in alarms(curves_of(tmp_path, method, metrics), method, settings or {}, "run")}


def curves_of(tmp_path, method, metrics):
    store = writer.begin(tmp_path / f"run{time.monotonic_ns()}", method)
    steps = max(len(values) for values in metrics.values())
    for i in range(steps):
        values = {name: v[i] for name, v in metrics.items() if i < len(v) and v[i] is not None}
        store.commit_step(i + 1, 0, seconds=0.1, metrics=values, state={}, plan={}, threads=1)
    curves = Curves(store)
    curves.refresh()
    return curves


@pytest.mark.parametrize(
    ("kind", "name", "above", "below"),
    [
        ("dead", "frac_reward_zero_std", 0.51, 0.49),
        ("cut", "completions/clipped_ratio", 0.26, 0.24),
        ("sampler", "sampling/sampling_logp_difference/mean", 0.051, 0.049),
        ("length", "reward_length_corr", 0.51, 0.49),
        ("length", "reward_length_corr", -0.51, -0.49),
    ],
)
def test_a_mean_over_its_threshold(kind, name, above, below, tmp_path):
    assert told(tmp_path, **{name: [below] * 10}) == {}
    alarm = told(tmp_path, **{name: [above] * 10})[kind]
    assert alarm.now and (alarm.first, alarm.last) == (LEAST, 10)
    assert told(tmp_path, **{name: [above] * (LEAST - 1)}) == {}, "too few steps to say"


def test_one_bad_step_is_none_and_a_healed_one_was(tmp_path):
    flicker = [0.3] * 6 + [1.0] + [0.3] * 5
    assert told(tmp_path, **{"frac_reward_zero_std": flicker}) == {}, "(7 * 0.3 + 1) / 8 is 0.39"
    alarm = told(tmp_path, **{"frac_reward_zero_std": [1.0] * 4 + [0.0] * 5})["dead"]
    # means: 1 at step 4, then 4/5, 4/6, 4/7, 4/8 at steps 5 to 8, and 3/8 at step 9
    assert not alarm.now and (alarm.first, alarm.last) == (4, 7)
    assert told(tmp_path, **{"frac_reward_zero_std": [NAN, 1.0] * 8})["dead"].last == 16, "NaN does not count"


def test_alarms_tell_the_call_from_the_settings(tmp_path):
    cut = told(tmp_path, settings={"max_new_tokens": 40}, **{"completions/clipped_ratio": [0.5] * 8})["cut"]
    assert (
        cut.call == "run.set(max_new_tokens=80)"
        and "50 %" in cut.explanation
        and "max_new_tokens=40" in cut.explanation
    )
    dead = {"frac_reward_zero_std": [0.75] * 8}
    assert told(tmp_path, **dead)["dead"].call == "run.set(dynamic_sampling=True)"
    odd = {"max_new_tokens": "<b>", "lr": None, "group_size": [], "dynamic_sampling": True, "entropy_coef": "x"}
    assert told(tmp_path, settings=odd, **dead)["dead"].call == "run.set(group_size=16)"
    drawn = {"dynamic_sampling": True, "group_size": 8}
    assert told(tmp_path, settings=drawn, **dead)["dead"].call == "run.set(group_size=16)"
    apart = {"sampling/sampling_logp_difference/mean": [0.2] * 8}
    assert told(tmp_path, **apart)["sampler"].severity == "bad"
    corrected = told(tmp_path, settings={"sampler_correction": "token_mask"}, **apart)["sampler"]
    assert corrected.severity == "watch" and corrected.call == ""


def test_every_call_can_be_made(tmp_path):
    from workbench import settings as settings_of

    metrics = {
        "frac_reward_zero_std": [0.9] * 20, "completions/clipped_ratio": [0.9] * 20, "reward_length_corr": [0.9] * 20,
        "sampling/sampling_logp_difference/mean": [0.9] * 20, "entropy": [1.0] * 8 + [0.01] * 12,
        "loss": [NAN] * 20, "reward_std": [0.1] * 20,
    }  # fmt: skip
    base = settings_of.make("grpo", {})
    found = told(tmp_path, settings=vars(base), **metrics)
    assert set(found) == {"dead", "cut", "length", "sampler", "entropy", "nan"}
    for alarm in found.values():
        given = eval(alarm.call.replace("run.rewind(0).set", "dict").replace("run.set", "dict"), {"dict": dict})
        settings_of.make("grpo", given, base=base)
    fallen = {"logps/chosen": [-50.0] * 8 + [-80.0] * 8, "rewards/margins": [0.1] * 8 + [2.0] * 8}
    base = settings_of.make("dpo", {})
    given = eval(told(tmp_path, "dpo", vars(base), **fallen)["displacement"].call.replace("run.set", "dict"))
    settings_of.make("dpo", given, base=base)


def test_entropy_collapse_needs_both_a_low_value_and_a_fall(tmp_path):
    assert told(tmp_path, entropy=[1.0] * 8 + [0.009] * 16)["entropy"].now
    assert told(tmp_path, entropy=[1.0] * 8 + [0.11] * 16) == {}, "low for its start, but not low"
    assert told(tmp_path, entropy=[0.2] * 8 + [0.06] * 16) == {}, "low, but not for its start"
    assert told(tmp_path, entropy=[0.03] * 24) == {}, "it never was higher"
    assert told(tmp_path, "sft", entropy=[1.0] * 8 + [0.009] * 16) == {}, "in supervised training that is learning"


def test_a_constant_reward_is_told_instead_of_dead_groups(tmp_path):
    same = {"reward": [0.0] * 12, "reward_std": [0.0] * 12, "frac_reward_zero_std": [1.0] * 12}
    found = told(tmp_path, **same)
    assert set(found) == {"constant"} and found["constant"].first == WINDOW
    once = {**same, "reward": [0.0] * 6 + [0.1] + [0.0] * 5}
    assert set(told(tmp_path, **once)) == {"dead"}
    spread = {**same, "reward_std": [0.1] * 12, "frac_reward_zero_std": [0.2] * 12}
    assert told(tmp_path, **spread) == {}


def test_displacement_needs_a_fall_beyond_the_noise_and_a_margin_that_grows(tmp_path):
    margins = [0.0] * 8 + [1.0] * 8
    fall = {"rewards/margins": margins, "logps/chosen": [-50.0] * 8 + [-53.0] * 8}
    alarm = told(tmp_path, "dpo", **fall)["displacement"]
    assert alarm.now and alarm.last == 16 and "−50 to −53" in alarm.explanation
    assert told(tmp_path, "dpo", **{**fall, "logps/chosen": [-50.0] * 8 + [-52.0] * 8}) == {}, "4 % is within bounds"
    assert told(tmp_path, "dpo", **{**fall, "rewards/margins": [1.0] * 8 + [0.5] * 8}) == {}
    assert told(tmp_path, "kto", **fall) == {}, "its answers are no pairs"
    # a spread of 8 to each side: the error of a difference of two means of 8 is sqrt(2 * 64 / 7) = 4.28
    noisy = [-58.0, -42.0] * 4
    assert told(tmp_path, "dpo", **{**fall, "logps/chosen": noisy + [v - 12.5 for v in noisy]}) == {}
    assert told(tmp_path, "dpo", **{**fall, "logps/chosen": noisy + [v - 13.5 for v in noisy]})["displacement"].now


def test_steps_without_any_reward_are_not_laid_to_the_learning_rate(tmp_path):
    alarm = told(tmp_path, settings={"lr": 1e-4}, reward=[0.1, NAN, NAN], loss=[0.1, 0.0, 0.0])["nan"]
    assert (alarm.title, alarm.call, alarm.first, alarm.last) == ("No reward", "run.browse()", 2, 3) and alarm.now
    assert "gave None" in alarm.explanation
    assert told(tmp_path, reward=[0.1, NAN], loss=[0.1, NAN])["nan"].title == "Not a number"


def test_nan_is_told_at_once_and_says_where_to_go_back_to(tmp_path):
    found = told(tmp_path, settings={"lr": 1e-4}, kl=[0.1, 0.2, NAN], loss=[0.1, 0.1, 0.1])
    assert found["nan"].call == "run.rewind(2).set(lr=5e-05)" and "kl" in found["nan"].explanation
    assert "loss" not in found["nan"].explanation
    assert not told(tmp_path, reward=[NAN, 0.1])["nan"].now
    assert told(tmp_path, kl=[float("inf")])["nan"].now
    assert told(tmp_path, **{"rewards/judge/mean": [NAN] * 5}) == {}, "a function may answer None"


def test_what_a_rewind_gave_up_does_not_count(tmp_path):
    store = writer.begin(tmp_path / "run")
    for step in range(1, 11):
        store.commit_step(
            step, 0, seconds=0.1, metrics={"completions/clipped_ratio": 0.9 if step > 2 else 0.0}, state={}, plan={},
            threads=1,
        )  # fmt: skip
    curves = Curves(store)
    curves.refresh()
    assert [alarm.now for alarm in alarms(curves, "grpo", {})] == [True]
    store.add_branch(0, 2)
    curves.refresh()
    assert alarms(curves, "grpo", {}) == []


def test_a_healthy_run_raises_none(tmp_path):
    recorded = json.loads(HEALTHY.read_text())
    assert told(tmp_path, settings={"max_new_tokens": 40}, **recorded) == {}, "nor was there one on the way"
    stuck = {**recorded, "reward": [0.5] * 45, "reward_std": [0.5] * 45}
    assert set(told(tmp_path, **stuck)) == {"dead", "entropy"}, "with half of the reward out of reach"
    for method in ("dpo", "sft"):
        healthy = Curves(writer.write(writer.begin(tmp_path / method, method), 30, method))
        healthy.refresh()
        assert alarms(healthy, method, {}) == []


def test_runs_of_every_state_have_alarms_or_none(tmp_path):
    for name, store in writer.states(tmp_path).items():
        board = Dashboard(Store(store.folder))
        board.static_text()
        kinds = [alarm.kind for alarm in board.alarms()]
        assert kinds == {"nan": ["nan"], "killed": ["cut"]}.get(name, []), name


def test_the_pictures_tell_alarms(tmp_path):
    store = writer.begin(tmp_path / "run")
    for step in range(1, 20):
        metrics = {"completions/clipped_ratio": 0.9, "frac_reward_zero_std": 0.9 if step < 9 else 0.0}
        store.commit_step(step, 0, seconds=0.1, metrics=metrics, state={}, plan={}, threads=1)
    board = Dashboard(Store(store.folder))
    page, text = board.static_html(), board.static_text()
    assert "Completions are cut off" in page and "run.set(max_new_tokens=128)" in page
    assert "! Completions are cut off since step 4" in text and "was: Dead groups (steps 4 to 11)" in text
    assert "was: Dead groups" in page
    assert alarms_html([]) == ""


def test_alarms_of_a_long_run_are_quick_and_not_looked_for_all_the_time(tmp_path):
    store = writer.long_run(tmp_path / "long", steps=5_000)
    board = Dashboard(Store(store.folder))
    with board._guard:
        board._read()
    began = time.thread_time()
    board.alarms()
    assert time.thread_time() - began < 0.5
    store.commit_step(5_001, 0, seconds=0.1, metrics={"reward": NAN}, state={}, plan={}, threads=1)
    board._read()
    assert not any(alarm.kind == "nan" for alarm in board.alarms()), "looked for a moment ago"
    board._alarms = (*board._alarms[:2], 0.0)
    assert any(alarm.kind == "nan" for alarm in board.alarms())


def test_the_windows_mean_by_hand():
    from workbench.views.alarms import Series

    values = np.array([NAN, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    mean = Series(np.arange(10.0), values).mean
    assert np.isnan(mean[:4]).all() and mean[4] == 2.5 and mean[7] == 4.0 and mean[9] == 5.5
