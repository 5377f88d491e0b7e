"""The reference: the policy as the run began, asked only where a loss reads it, kept in memory, or following."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from peft import IA3Config, LoraConfig

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, make_run, rows_for, weights
from workbench import adapters
from workbench.errors import SettingError
from workbench.methods import reference
from workbench.methods.context import Context


def passes(monkeypatch) -> list[str]:
    """The purposes for which the reference is scored from now on."""
    seen, original = [], reference.logprobs
    monkeypatch.setattr(reference, "logprobs", lambda *a, **k: seen.append("pass") or original(*a, **k))
    return seen


@pytest.mark.parametrize(
    "loss, count", [("sigmoid", 3), ("simpo", 0), ("orpo", 0), ("sft", 0), (["cpo", "sigmoid"], 3)]
)
def test_the_reference_is_asked_only_where_a_loss_reads_it(tmp_path, monkeypatch, loss, count):
    run = make_run("dpo", tmp_path, loss_type=loss)
    run._ready()
    seen = passes(monkeypatch)
    run.run(3)
    assert len(seen) == count


def test_kept_log_probs_are_computed_once_a_row_and_survive_time(tmp_path, monkeypatch):
    run = make_run("dpo", tmp_path, precompute_ref_log_probs=True, eval_dataset=rows_for("dpo", 3), eval_steps=1)
    seen, counted, original = passes(monkeypatch), [], Context.scored
    monkeypatch.setattr(Context, "scored", lambda self, b, **k: counted.extend(b.sequences) or original(self, b, **k))
    list(run)  # 6 steps of 4 pairs of 12 and 7 evaluations of 3
    assert not seen and len(counted) == 2 * (12 + 3)
    again = make_run("dpo", tmp_path / "again", precompute_ref_log_probs=True)
    again.run(2)
    again.rewind(1)
    resumed = wb.resume(again.folder)
    list(resumed)
    assert_same_weights(weights(resumed), weights(run))


def test_dpo_starts_at_log_two_from_any_adapter_and_stays_there(tmp_path):
    """After SFT; with the adapter saved and loaded; after fork, rewind and resume, here and in a new process."""
    policy = tiny_policy(tmp_path / "model").attach(wb.LoRA(r=4, alpha=8))
    tuned = wb.sft(policy, rows_for("sft"), steps=3, lr=1e-2, out=tmp_path / "sft")
    tuned.run()
    adapter = weights(tuned)
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    policy.save(tmp_path / "adapter")

    loaded = wb.load(tmp_path / "adapter", dtype="float32", device="cpu")
    settings = dict(steps=3, batch_size=4, lr=1e-2, seed=2, snapshot_steps=1)
    for start, out in ((policy, "from_sft"), (loaded, "from_folder")):
        run = wb.dpo(start, rows_for("dpo"), out=tmp_path / out, **settings)
        run.run(2)
        assert run.metrics.loc[1, "loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert run.metrics.loc[1, "rewards/margins"] == 0
        assert_same_weights(run.engine.reference_params(), adapter)
    moved = run.metrics.loc[2, "loss"]
    assert abs(moved - math.log(2)) > 1e-4

    fork = run.fork(1)
    fork.run(1)
    run.rewind(1)
    run.run(1)
    assert fork.metrics.loc[2, "loss"] == run.metrics.loc[2, "loss"] == moved
    assert_same_weights(fork.engine.reference_params(), adapter)
    run.rewind(0)
    run.stop()
    code = (
        "import sys, workbench as wb; run = wb.resume(sys.argv[1]); run.run(2); print(run.metrics.loc[2, 'loss'].hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float.fromhex(done.stdout.split()[-1]) == moved
    assert wb.open(run.folder).metrics.loc[1, "loss"] == pytest.approx(math.log(2), abs=1e-6)


SYNC = dict(sync_ref_model=True, ref_model_mixup_alpha=0.6, ref_model_sync_steps=2)


def test_the_reference_follows_after_every_so_many_updates(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    run = make_run("dpo", tmp_path, policy, lr=1e-3, **SYNC)
    run._ready()
    start = weights(run)
    expected = start
    for step in run:
        if step.index == 1:
            assert not run.engine.state.tensors
        if step.index % 2 == 0:
            now = weights(run)
            expected = {n: 0.4 * expected[n] + 0.6 * now[n] for n in start}
            held = reference.params(run.engine.state, run.engine._context)
            assert all(torch.allclose(held[n], expected[n], rtol=1e-6, atol=1e-7) for n in start), step.index
    assert any(not torch.equal(held[n], start[n]) for n in start)


def test_the_reference_becomes_the_adapter_with_alpha_one(tmp_path):
    run = make_run("dpo", tmp_path, **SYNC | {"ref_model_mixup_alpha": 1.0}, eval_dataset=rows_for("dpo", 3))
    run.run(2)
    assert_same_weights({n[len(reference.PREFIX) :]: t for n, t in run.engine.state.tensors.items()}, weights(run))
    assert run.gradients(rows_for("dpo")).loss == pytest.approx(math.log(2), abs=1e-6)
    assert run.metrics.loc[2, "eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    before = run.metrics
    with pytest.raises(SettingError, match="does not. Set ref_model_mixup_alpha=1.0"):
        run.set(ref_model_mixup_alpha=0.5)
    assert_same_metrics(run.metrics, before)
    run.set(sync_ref_model=False, precompute_ref_log_probs=True)  # it stays where it is, and is no longer the beginning
    run.run(1)
    assert run.metrics.loc[3, "loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_mixing_an_adapter_is_refused_before_work(tmp_path):
    with pytest.raises(SettingError, match="mixing the factor matrices.*ref_model_mixup_alpha=1.0.*without an adapter"):
        make_run("dpo", tmp_path, **SYNC)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run with a moving reference that nothing happened to."""
    folder = tmp_path_factory.mktemp("followed")
    run = make_run("dpo", folder, tiny_policy(folder / "model"), lr=1e-3, **SYNC)
    list(run)
    return run


@pytest.mark.parametrize("what", ["memory", "replay", "restart", "fork", "resume"])
def test_time_with_a_moving_reference_is_bit_equal(what, followed, tmp_path):
    run = make_run("dpo", tmp_path, tiny_policy(tmp_path / "model"), lr=1e-3, **SYNC)
    run.run(5)
    if what == "replay":
        run.engine.memory.clear()  # steps 4 and 5 come again from the snapshot of step 3, across a move
    if what in ("memory", "replay"):
        run.rewind(5 if what == "replay" else 3)
    if what == "restart":
        run.engine._loop = None
    if what == "fork":
        run.engine.memory.clear()
        run = run.fork(5)
    if what == "resume":
        run.stop()
        run = wb.resume(run.folder)
    list(run)
    assert_same_weights(weights(run), weights(followed))
    assert_same_metrics(run.metrics, followed.metrics, first=6 if what == "fork" else 1)
    assert_same_weights(run.engine.state.tensors, followed.engine.state.tensors)


def test_a_mixture_of_coupled_losses_is_restored_and_resumed(tmp_path):
    settings = dict(loss_type=["aot", "sft"], loss_weights=[1, 0.5], beta=0.5, label_smoothing=0.1, micro_batch_size=2)
    run = make_run("dpo", tmp_path, **settings)
    run.run(5)
    run.engine.memory.clear()
    run.rewind(4)
    run.stop()
    again = wb.resume(run.folder)
    list(again)
    whole = make_run("dpo", tmp_path / "whole", **settings)
    list(whole)
    assert_same_weights(weights(again), weights(whole))
    assert_same_metrics(again.metrics, whole.metrics)
    assert again.engine.settings.parts() == {"aot": 1.0, "sft": 0.5}


def test_an_adapter_that_starts_at_zero_is_its_own_reference(tmp_path):
    policy = tiny_policy(tmp_path / "model").attach(wb.LoRA(r=4, alpha=8))
    run = wb.dpo(policy, rows_for("dpo"), loss_type="sppo_hard", beta=0.5, steps=1, out=tmp_path / "run")
    run.run()
    assert run.metrics.loc[1, "loss"] == pytest.approx(2.0, abs=1e-5)


# -- what need not exist


def adapters_off(monkeypatch) -> list[str]:
    """The passes for which the adapter is switched off from now on."""
    seen, original = [], adapters.without
    monkeypatch.setattr(adapters, "without", lambda model: seen.append("pass") or original(model))
    return seen


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_reference_that_adds_nothing_is_the_base_alone(tmp_path, monkeypatch, kind):
    policy = tiny_policy(tmp_path / "model", kind).attach(wb.LoRA(r=4, alpha=8, dropout=0.1))
    settings = dict(steps=3, batch_size=4, lr=1e-2)
    seen = adapters_off(monkeypatch)
    run = wb.dpo(policy, rows_for("dpo"), out=tmp_path / "run", **settings)
    marks = [p.requires_grad for p in policy.model.parameters()]
    run.run()
    assert len(seen) == 3 and [p.requires_grad for p in policy.model.parameters()] == marks
    monkeypatch.setattr(reference, "adds_nothing", lambda policy, params: False)
    plain = wb.dpo(policy.reset(), rows_for("dpo"), out=tmp_path / "plain", **settings)
    plain.run()
    assert len(seen) == 3
    assert_same_metrics(run.metrics, plain.metrics)
    assert_same_weights(weights(run), weights(plain))


def test_a_reference_that_adds_something_keeps_its_adapter(tmp_path):
    zero = tiny_policy(tmp_path / "model").attach(wb.LoRA(r=4))
    assert reference.adds_nothing(zero, zero.params())
    one = zero.params() | {n: t.clone().index_fill_(0, torch.tensor([0]), 1e-9) for n, t in _last(zero).items()}
    assert not reference.adds_nothing(zero, one)
    more = dict(r=4, target_modules="all-linear")
    dora, biased = LoraConfig(use_dora=True, **more), LoraConfig(bias="lora_only", lora_bias=False, **more)
    for number, config in enumerate((dora, biased, IA3Config())):
        other = tiny_policy(tmp_path / str(number), attention_bias=True).attach(config)
        assert not reference.adds_nothing(other, other.params())
    bare = tiny_policy(tmp_path / "bare")
    assert not reference.adds_nothing(bare, bare.params())


def _last(policy) -> dict:
    return {n: t for n, t in list(policy.params().items())[-1:] if ".lora_B." in n}


def test_without_kl_there_is_no_reference(tmp_path, monkeypatch):
    """No pass, no copy in memory; and no moments before the first update."""
    seen, off = passes(monkeypatch), adapters_off(monkeypatch)
    run = make_run("grpo", tmp_path, beta=0.0, num_iterations=1)
    run._ready()
    assert not run.engine.state.optim and not run.engine.state.tensors
    scored, original = [], Context.scored
    monkeypatch.setattr(Context, "scored", lambda *a, **k: scored.append("pass") or original(*a, **k))
    run.run(2)
    assert not seen and not off and not scored and run.engine.reference is None
    assert run.engine._context.plans.keys() == {"update 0"}
    again = make_run("grpo", tmp_path / "kl", beta=0.1, num_iterations=1)
    again.run(1)
    assert seen == scored == ["pass"] and again.engine.reference is not None
