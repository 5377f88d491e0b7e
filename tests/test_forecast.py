"""The forecast of a run's memory: its formulas against hand-worked numbers and real runs, its tries on the model, its
words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noisy_adapter, tiny_policy
from torch import nn

import workbench as wb
from workbench import engine, footprint, forecasting, ledger, micro_batches, optimiser, planned, probe, update
from workbench import settings as settings_of
from workbench.errors import DataError, SettingError
from workbench.methods.context import Context, Replay
from workbench.objectives import Objective
from workbench.state import State

BENCH = Path(__file__).parent / "bench" / "bench_forecast.py"
ROWS = [{"prompt": "ab", "completion": "c" * (5 * i + 5)} for i in range(8)]
SUM = Objective(lambda scores, columns, totals: (scores.logprob.sum(), {}))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"))


def peak_of(function) -> int:
    return ledger.recorded(function).peak()


# -- the ledger ------------------------------------------------------------------------------------------------


def test_a_record_counts_what_comes_and_goes():
    old = torch.zeros(1000)

    def work():
        a = old + 1  # 4000 bytes
        b = torch.cat([a, a])  # 8000 more
        view = b[:10]  # none
        del a, b  # 4000 go
        c = view.double()  # 80
        return view, c, old.view(10, 100)  # none: it was there before

    record = ledger.recorded(work)
    assert record.sizes.tolist() == [4000, 8000, 80]
    assert record.events.tolist() == [1, 2, -1, 3]
    assert record.peak() == 12000


def test_growth_is_told_from_three_sizes_and_holds_at_others():
    def work(n: int):
        fixed, temporary = torch.zeros(300), torch.zeros(50)
        a = fixed.new_zeros(n) + 1
        square = a[:, None] * a[None]
        del temporary
        return fixed, square.sum()

    found = ledger.growth([ledger.recorded(lambda n=n: work(n)) for n in (8, 16, 24)], (8, 16, 24))
    for n in (40, 1000):
        assert found.at(n).bytes == peak_of(lambda n=n: work(n))
    assert found.at(1000).gradients == 1200, "what is fixed and stays"
    assert found.at(100, more=2.0).bytes > 2 * 4 * 100 * 100


def test_records_that_do_not_match_are_scaled_from_the_largest():
    one = ledger.Record(np.array([400, 64]), np.array([1, 2]), np.zeros(2, bool))
    other = ledger.Record(np.array([400, 128, 8]), np.array([1, 2, 3, -3]), np.zeros(3, bool))
    found = ledger.growth([one, ledger.Record(one.sizes.copy(), one.events, one.between), other], (1, 2, 4))
    assert found.at(8).bytes == 400 + 2 * 128 + 2 * 8


def test_what_lies_between_two_halves_is_folded_into_one():
    sizes, events = [10, 20, 30, 40], [1, 2, 3, -2, -1, 4, -3]
    made = ledger._folded(sizes, events, [(1, 5)])
    assert made.sizes.tolist() == [10, 50, 30, 40] and made.between.tolist() == [False, True, False, False]
    assert made.events.tolist() == [1, 2, -2, 3, -1, 4, -3]
    assert made.peak() == 30 + 40, "more than the 10 + 50 before"


# -- tries on the model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"padding_free": True}])
@pytest.mark.parametrize("again", [False, True])
def test_an_update_allocates_what_was_foretold(policy, whole, changes, again):
    settings = settings_of.make("sft", changes)
    for one in (policy, whole):
        part = update.Batch([[5] * 96] * 6, [12] * 6)
        shared = probe.shared_prompts(one, part, settings)
        found = probe.learning(one, part, SUM, settings, again=again).peak(one, part, settings.padding_free, shared)
        count = 2 if again else 1
        batch = update.Batch(part.sequences * count, part.starts * count)
        plan = [list(range(6 * i, 6 * i + 6)) for i in range(count)]
        ctx = Context(one, settings, None, replay=Replay(None, {"x": plan}))
        real = peak_of(lambda b=batch, c=ctx: c.look(b, SUM, update.totals_of(b), "x"))
        one.model.zero_grad(set_to_none=True)
        assert found.bytes == pytest.approx(real, rel=0.06)
        assert found.bytes == pytest.approx(found.gradients + found.activations + found.head)


def test_prompts_that_rows_share_are_foretold_as_shared(policy):
    settings = settings_of.make("grpo", {})
    prompt = [7] * 100
    part = update.Batch([prompt + [1 + i] * 40 for i in range(8)], [100] * 8)
    shared = probe.shared_prompts(policy, part, settings)
    assert shared == [0] * 8 and probe.places(part, False, shared) == 8 * 39 + 100
    found = probe.learning(policy, part, SUM, settings, again=False).peak(policy, part, False, shared)
    ctx = Context(policy, settings, None, replay=Replay(None, {"x": [list(range(8))]}))
    real = peak_of(lambda: ctx.look(part, SUM, update.totals_of(part), "x"))
    policy.model.zero_grad(set_to_none=True)
    assert found.bytes == pytest.approx(real, rel=0.1)
    apart = probe.learning(policy, part.take([0]), SUM, settings, again=False)
    assert apart.peak(policy, part, False, None).bytes > 1.4 * real, "alone each row would have its prompt"


def test_a_forecast_leaves_no_trace(policy):
    before = {name: tensor.clone() for name, tensor in policy.params().items()}
    some = next(iter(policy.trainable().values()))
    some.grad = torch.ones_like(some)
    policy.model.get_base_model().model.layers[0].train()
    modes, state = [m.training for m in policy.model.modules()], torch.get_rng_state()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.model.modules()]
    try:
        wb.forecast(policy, "grpo", max_new_tokens=8, steps=2, beta=0.1, gradient_checkpointing=True)
        assert all(torch.equal(before[name], tensor) for name, tensor in policy.params().items())
        assert [name for name, p in policy.model.named_parameters() if p.grad is not None] == [
            name for name, p in policy.model.named_parameters() if p is some
        ]
        assert torch.equal(some.grad, torch.ones_like(some))
        assert [m.training for m in policy.model.modules()] == modes and policy.holder == "start"
        assert torch.equal(torch.get_rng_state(), state)
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.model.modules()] == hooks
    finally:
        some.grad = None
        policy.model.eval()


# -- formulas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", list(optimiser.OPTIMISERS))
def test_slots_and_workspace_are_those_of_the_real_optimiser(optim):
    model = nn.ModuleDict({"a": nn.Linear(96, 64), "b": nn.Linear(48, 64, bias=False)})
    trained = dict(model.named_parameters())
    for decay in (0.0, 0.1):
        settings, state = settings_of.make("sft", {"optim": optim, "weight_decay": decay}), State({})
        for _ in range(2):
            for p in trained.values():
                p.grad = torch.ones_like(p)
            before = sum(p.grad.numel() * 4 for p in trained.values())
            record = ledger.recorded(lambda s=settings, t=state: optimiser.step(model, trained, t, s, 1e-4))
        assert footprint.slots_of(trained, optim) == state.nbytes()
        assert before and footprint.workspace(trained, settings) >= record.peak() - 1024
    assert footprint.workspace(trained, settings) <= 5 * 4 * 96 * 64


def test_slots_by_hand():
    params = {"w": torch.zeros(64, 128), "b": torch.zeros(64)}
    by_name = {"adamw_torch": 2 * 4 * (8192 + 64) + 8, "sgd": 0, "rmsprop": 4 * (8192 + 64) + 8}
    by_name["adamw_8bit"] = 2 * (8192 + 4 * 32 + 1024) + 8 + 2 * 4 * 64 + 8
    by_name["adafactor"] = 4 * (64 + 128) + 12 + 4 * 64 + 12
    assert {optim: footprint.slots_of(params, optim) for optim in by_name} == by_name


def test_past_states_are_those_that_the_engine_keeps(monkeypatch):
    monkeypatch.setattr(engine, "MEMORY_BUDGET", 100)
    assert footprint.past_states(10, 30, 1) == 10
    assert footprint.past_states(10, 30, 4) == 100
    assert footprint.past_states(10, 30, 5) == 90, "the first has gone"
    assert footprint.past_states(10, 101, 5) == 10 and footprint.past_states(101, 101, 5) == 0
    assert footprint.saved(10, 30, 2, on_cpu=True) == {"past states": 70, "snapshot": 30}
    assert footprint.saved(10, 30, 4, on_cpu=True) == {"past states": 130}
    assert footprint.saved(10, 30, 2, on_cpu=False) == {"past states": 70, "snapshot": 0}


def test_columns_grow_as_the_buffers_do(policy):
    from workbench.sampling.sources import Slotted

    for prompt, new in ((5, 20), (60, 300)):
        ids = [policy.filler] * prompt
        longest = prompt + new
        first = longest - max(0, new - footprint.decoder.COLUMNS)
        with torch.no_grad():
            source = Slotted(policy.model, policy.filler, 1, first)
            source.place([(source.prefill([ids])[0], 1)])
            for _ in range(new - 1):
                source.slots.begin()
                source.slots.end()
        assert footprint.columns(prompt, new) == source.slots.capacity
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in source.slots.layers)
        assert footprint.cache(policy, 1, [prompt], new) == held


# -- the forecast ----------------------------------------------------------------------------------------------


def test_the_parts_of_an_adapters_run(policy):
    found = wb.forecast(policy, "grpo", max_new_tokens=16, prompts_per_step=2, group_size=4, steps=3, beta=0.1)
    trained = sum(p.numel() * 4 for p in policy.trainable().values())
    table = found.to_pandas()
    assert list(table.index) == ["sampling", "scoring", "update", "optimiser", "saving"]
    assert (table["adapter"] == trained).all() and (table["trained copy"] == trained).all()
    assert (table["reference"] == trained).all()
    assert (table["weights"] == sum(policy.memory().values()) - trained).all()
    slots = footprint.slots_of(policy.params(), "adamw_torch")
    assert (table["optimiser"] == slots).all()
    assert table.loc["update", "past states"] == trained + 2 * (trained + slots)
    assert table.loc["saving", "past states"] == trained + 3 * (trained + slots)
    assert table.loc["saving", "snapshot"] == trained + slots
    # 2 layers, 2 heads of 8, keys and values, 8 rows of 128 + 16 tokens
    assert table.loc["sampling", "KV cache"] == 2 * 2 * 2 * 8 * 4 * 8 * (128 + 16)
    assert found.peak == table["total"].max() == sum(found.parts.values())
    assert found.needed == found.peak - sum(policy.memory().values())
    assert found.tokens["sampled"] == 8 * 16 and found.tokens["trained"] == 8 * 144
    assert sum(found.micro_batches) == 8


def test_a_whole_models_run_has_its_copy_and_only_what_it_needs(whole):
    found = wb.forecast(whole, "sft", steps=1, batch_size=2, max_length=32, optim="sgd")
    weights = sum(whole.memory().values())
    assert found.phases["weights"].eq(weights).all() and found.phases["trained copy"].eq(weights).all()
    assert not {"adapter", "reference", "optimiser", "KV cache"} & set(found.phases)
    assert found.phases.loc["optimiser", "gradients"] == weights
    moving = wb.forecast(whole, "dpo", steps=1, batch_size=1, max_length=16, sync_ref_model=True)
    assert moving.phases["reference"].eq(2 * weights).all()
    assert "optimiser" not in moving.phases.loc["update"][moving.phases.loc["update"] > 0], "before its first step"
    assert "reference" not in wb.forecast(whole, "cpo", steps=1, batch_size=1, max_length=16).phases


def test_rows_that_are_given_count_as_the_run_draws_them(policy):
    longest = wb.forecast(policy, "sft", ROWS, batch_size=2, steps=4)
    first = wb.forecast(policy, "sft", ROWS, batch_size=2, steps=1, shuffle_dataset=False)
    assert first.tokens["trained"] == (2 + 5 + 1) + (2 + 10 + 1), "prompt, completion, end token"
    assert longest.tokens["trained"] >= 2 + 40 + 1 + 2 + 5 + 1
    assert longest.peak > first.peak
    rows = [{"prompt": "abc"}, {"prompt": "a" * 50}]
    task = wb.Task(rows, rewards=[lambda completions, **kwargs: [0.0] * len(completions)])
    found = wb.forecast(policy, "grpo", task, prompts_per_step=2, group_size=2, max_new_tokens=10)
    assert found.tokens["trained"] == 2 * 13 + 2 * 60
    with pytest.raises(DataError, match="too long"):
        wb.forecast(policy, "grpo", task, prompts_per_step=2, group_size=2, max_new_tokens=220)


@pytest.mark.parametrize("method", ["sft", "dpo", "cpo", "orpo", "kto", "rloo"])
def test_every_method_has_a_forecast(policy, method):
    found = wb.forecast(policy, method, max_new_tokens=8, steps=2, **{"max_length": 24} if method != "rloo" else {})
    assert found.peak > sum(policy.memory().values()) and found.fits
    assert {"update", "optimiser", "saving"} <= set(found.phases.index)
    assert found.phases.notna().all().all() and (found.phases >= 0).all().all()


def test_without_an_adapter_of_its_own_a_state_space_model_has_a_forecast_too(tmp_path):
    mamba = tiny_policy(tmp_path, "mamba")
    found = wb.forecast(mamba, "grpo", prompts_per_step=1, group_size=2, max_new_tokens=2, prompt_tokens=4, steps=1)
    assert "KV cache" not in found.phases, "it is sampled without one"
    assert (found.phases.loc[["sampling", "update"], "activations"] > 0).all()


def test_a_run_tells_what_it_measured(policy, tmp_path):
    policy.reset()
    run = wb.sft(policy, ROWS, steps=3, batch_size=2, out=tmp_path / "r")
    before = run.forecast()
    assert before.measured == {} and before.tokens == wb.forecast(policy, "sft", ROWS, batch_size=2, steps=3).tokens
    run.run(2)
    found = run.forecast()
    steps = run.store.steps()["seconds"].iloc[1:]
    assert found.measured["seconds_per_step"] == pytest.approx(steps.median())
    assert found.measured["seconds_left"] == found.measured["seconds_per_step"]
    counts = run.metrics["num_tokens"]
    assert found.measured["tokens_per_step"] == np.median([counts[1], counts[2] - counts[1]])
    assert found.peak == before.peak and found.needed < before.needed, "the run holds its state already"
    assert "measured: seconds left" in str(found)
    run.stop()
    policy.reset()


# -- does it fit, and what if not ------------------------------------------------------------------------------


def test_what_does_not_fit_comes_with_advice_the_most_effective_first(policy, monkeypatch):
    plan = dict(batch_size=8, max_length=64, steps=2, micro_batch_size=8)
    roomy = wb.forecast(policy, "sft", **plan)
    assert roomy.fits
    saved = {change.change: change.peak for change in roomy.advice}
    assert set(saved) >= {"micro_batch_size=1", "gradient_checkpointing=True", "max_length=32"}
    assert list(saved.values()) == sorted(saved.values()) and max(saved.values()) < roomy.peak
    one = wb.forecast(policy, "sft", **plan | {"micro_batch_size": 1})
    assert saved["micro_batch_size=1"] == pytest.approx(one.peak, rel=0.03)
    again = wb.forecast(policy, "sft", **plan | {"gradient_checkpointing": True})
    assert saved["gradient_checkpointing=True"] == pytest.approx(again.peak, rel=0.01)
    half = wb.forecast(policy, "sft", **plan | {"max_length": 32})
    assert saved["max_length=32"] == pytest.approx(half.peak, rel=0.03)

    room = int((one.needed + roomy.needed) / 2 / forecasting.MARGIN)
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: room)
    tight = wb.forecast(policy, "sft", **plan)
    assert tight.fits is False and "does not fit" in repr(tight)
    verdicts = {change.change: change.fits for change in tight.advice}
    assert verdicts["micro_batch_size=1"] is True
    assert "It does not fit" in str(tight) and "What to change" in tight.picture().static_html()
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: None)
    assert wb.forecast(policy, "sft", **plan).fits is None


def test_wrong_questions_are_answered(policy, whole):
    for wrong, said in (
        (lambda: wb.forecast(policy, "grop"), "grpo"),
        (lambda: wb.forecast("tiny", "sft"), "wb.load"),
        (lambda: wb.forecast(policy, "sft", batch_sise=4), "batch_size"),
        (lambda: wb.forecast(policy, "sft", batch_size=0), "at least 1"),
        (lambda: wb.forecast(policy, "grpo", prompt_tokens=0, max_new_tokens=8), "at least 1"),
        (lambda: wb.forecast(policy, "grpo", prompt_tokens=250, max_new_tokens=8), "at most 248"),
        (lambda: wb.forecast(policy, "grpo", max_new_tokens=256), "no room for a prompt"),
    ):
        with pytest.raises(SettingError, match=said):
            wrong()
    with pytest.raises(DataError, match="Task"):
        wb.forecast(policy, "grpo", ROWS)


def test_the_longest_rows_are_found_among_those_drawn():
    settings = settings_of.make("sft", {"steps": 2, "batch_size": 2, "shuffle_dataset": False})
    ctx = Context(None, settings, None)
    assert planned._longest(ctx, [4, 4, 2, 5, 99]) == [2, 3]
    assert planned._longest(ctx, [1, 5, 2, 5, 99]) == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft full", "grpo full beta recomputed"])
def test_the_forecast_is_near_the_measured_peak(name):
    done = subprocess.run([sys.executable, str(BENCH), name], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["ratio"] == pytest.approx(1, abs=0.15)


def test_an_adapter_that_trains_is_foretold_the_same(policy):
    before = wb.forecast(policy, "sft", batch_size=2, max_length=24, steps=2).peak
    assert wb.forecast(noisy_adapter(policy), "sft", batch_size=2, max_length=24, steps=2).peak == before
