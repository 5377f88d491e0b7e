"""What every training method of the catalogue must keep, over the catalogue itself: a method added later is covered.

At its neutral setting it is its base method; how rows are cut, laid out and shared never changes a result; nothing is
kept across a step; any step can be gone back to, and a stopped run goes on.
"""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests.catalogued import ENTRIES, STEPS, TRAINING, call_of, takes
from tests.runs import assert_same_metrics, assert_same_weights, weights
from workbench import glossary, glossary_of_methods, methods, prefixes
from workbench.launch import launch
from workbench.published import examples

CLOSE = 1e-6
"""by norm, of what a run changed in its weights"""


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the examples run on; the adapter is not zero, and the model has no dropout."""
    policy = wb.load("tiny", dtype="float64").attach(wb.LoRA(r=8))  # what differs is then no rounding
    made = examples.namespace(tmp_path_factory.mktemp("out"), policy)
    generator = torch.Generator().manual_seed(1)
    policy = made["policy"]
    noisy = {
        name: p + 0.02 * torch.randn(p.shape, generator=generator) if "lora_B" in name else p.clone()
        for name, p in policy.params().items()
    }
    policy.hold(noisy, "start")
    policy._start = policy.params()
    return made


@pytest.fixture(scope="module")
def whole(names, tmp_path_factory):
    """By method a run that nothing happened to: the run, its weights after each step, its metrics."""
    made = {}

    def of(name):
        if name not in made:
            run = call_of(name, names).run(tmp_path_factory.mktemp(name) / "run")
            after = [weights(run)]
            after += [weights(run) for _ in run]
            made[name] = run, after, run.metrics
        return made[name]

    return of


def apart(one: dict, other: dict, before: dict) -> float:
    """How far weights are apart, relative to what training changed."""
    change = sum(float((one[name] - before[name]).double().norm() ** 2) for name in one) ** 0.5
    distance = sum(float((one[name] - other[name]).double().norm() ** 2) for name in one) ** 0.5
    return distance / change if change else distance


@pytest.mark.parametrize("name", TRAINING)
def test_it_trains(name, whole):
    _, after, metrics = whole(name)
    assert len(after) == STEPS + 1 and not metrics["loss"].iloc[1:].isna().all()
    assert apart(after[-1], after[0], after[0]) > 0, "nothing was trained"


@pytest.mark.parametrize("name", TRAINING)
def test_every_metric_is_explained(name, whole):
    """The glossary has each metric of the run; and of what it says the method adds, the run has each."""
    method, recorded = ENTRIES[name].call, set(whole(name)[2].columns)
    added = [known for known in glossary.METRICS if known.group in glossary_of_methods.GROUPS]
    for column in sorted(recorded):
        found = glossary.metric(column)
        assert found.group not in glossary_of_methods.GROUPS or method in found.methods, f"{column}: of {method}, too"
    promised = [known for known in added if method in known.methods]
    assert [known.name for known in promised if not any(map(known.matches, recorded))] == []


NEUTRAL = [name for name in TRAINING if ENTRIES[name].neutral is not None]


@pytest.mark.parametrize("name", NEUTRAL)
def test_at_its_neutral_setting_it_is_its_base(name, names, tmp_path):
    entry, call = ENTRIES[name], call_of(name, names)
    neutral = call.run(tmp_path / "neutral", optim="sgd", **entry.neutral)
    list(neutral)
    base_fields = methods.settings_of.of(entry.base).__dataclass_fields__
    shared = {key: value for key, value in (call.settings | entry.neutral).items() if key in base_fields}
    settings = shared | {"lr": 1e-3, "seed": 5, "snapshot_steps": 100, "steps": STEPS, "optim": "sgd"}
    base = launch(entry.base, call.policy.reset(), call.data, tmp_path / "base", None, settings, None)
    start = weights(base)
    list(base)
    assert apart(weights(neutral), weights(base), start) < CLOSE
    for metric in ("loss", "grad_norm"):
        ours, theirs = neutral.metrics[metric].iloc[1:], base.metrics[metric].iloc[1:]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-7, metric


PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "lr": 0.1}
"""with which a step is the gradient itself: Adam's first step is hardly more than its signs"""


@pytest.fixture(scope="module")
def stepped(names, tmp_path_factory):
    """By method its weights before and after one step along the gradient."""
    made = {}

    def of(name):
        if name not in made:
            run = call_of(name, names).run(tmp_path_factory.mktemp(name) / "step", **PLAIN)
            before = weights(run)
            next(iter(run))
            made[name] = before, weights(run)
        return made[name]

    return of


@pytest.mark.parametrize("name", TRAINING)
def test_micro_batches_change_nothing(name, names, stepped, tmp_path):
    before, after = stepped(name)
    run = call_of(name, names).run(tmp_path / "run", micro_batch_size=2, **PLAIN)
    next(iter(run))
    assert apart(after, weights(run), before) < CLOSE


@pytest.mark.parametrize("name", TRAINING)
def test_padded_rows_give_the_same(name, names, stepped, tmp_path, monkeypatch):
    before, after = stepped(name)
    monkeypatch.setattr(prefixes, "takes_spans", lambda policy: False)
    run = call_of(name, names).run(tmp_path / "run", **PLAIN)
    next(iter(run))
    assert apart(after, weights(run), before) < CLOSE


@pytest.mark.parametrize("name", TRAINING)
def test_a_restarted_generator_goes_on_the_same(name, names, whole, tmp_path):
    _, after, metrics = whole(name)
    run = call_of(name, names).run(tmp_path / "run")
    for _ in run:
        run.engine._loop = None
    assert_same_weights(weights(run), after[-1])
    assert_same_metrics(run.metrics, metrics)


@pytest.mark.parametrize("name", TRAINING)
def test_any_step_can_be_gone_back_to(name, whole):
    run, after, _ = whole(name)
    run.engine.memory.clear()  # so that steps are replayed from the snapshot of the start
    for step in (2, 1):
        state = run.engine.restore(step)
        assert_same_weights(state.params, after[step])


@pytest.mark.parametrize("name", TRAINING)
def test_a_stopped_run_goes_on_from_its_folder(name, names, whole, tmp_path):
    _, after, metrics = whole(name)
    call = call_of(name, names)
    run = call.run(tmp_path / "run")
    next(iter(run))
    run.stop()
    rewards = call.data.functions if takes(name) == "task" else None
    again = wb.resume(tmp_path / "run", policy=call.policy.reset(), rewards=rewards)
    list(again)
    assert_same_weights(weights(again), after[-1])
    assert_same_metrics(again.metrics, metrics)


@pytest.mark.parametrize("name", TRAINING)
def test_it_can_be_forked_and_looked_at(name, names, whole, tmp_path):
    run, after, _ = whole(name)
    fork = run.fork(1, out=tmp_path / "fork", lr=1e-3)
    next(iter(fork))
    assert_same_weights(weights(fork), after[2])
    run.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
