"""bfloat16 mixed precision: close to float32, the same twice, and refused where it makes no sense."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models import noisy_adapter, tiny_model_folder, tiny_policy
from torch.nn.functional import cosine_similarity

import workbench as wb
from workbench import objectives, precision, update
from workbench.adapters import fused
from workbench.errors import SettingError
from workbench.policy import load
from workbench.settings import make

TEXTS = [[(7 * i + 3 * j) % 250 for i in range(14 + 5 * j)] for j in range(4)]
ROWS = [{"prompt": f"{i} plus {i}", "completion": f" is {2 * i}"} for i in range(8)]


@pytest.fixture(autouse=True)
def able(monkeypatch):
    """A machine that computes in bfloat16; one that does not emulates it, which is as good for a test."""
    monkeypatch.setattr(precision, "computes", lambda device: True)


def gradient(policy, **how):
    """Loss and the gradient (all of it, flat) of a mean of log-probs."""
    batch = update.Batch(TEXTS, [4, 6, 3, 5])
    objective = objectives.Objective(lambda scores, columns, totals: (-scores.logprob.sum() / totals["tokens"], {}))
    outcome = update.gradients(
        policy, batch, objective, update.totals_of(batch), micro_batches=[[0, 1], [2, 3]], train_mode=False, **how
    )
    return outcome.loss, torch.cat([p.grad.flatten() for p in policy.trainable().values()])


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("lora", [True, False])
def test_gradients_are_close_to_float32_and_stay_float32(tmp_path, kind, lora):
    policy = tiny_policy(tmp_path, kind, lora=lora, initializer_range=0.1)
    (exact, theirs), (loss, ours) = gradient(policy), gradient(policy, bf16=True)
    _, recomputed = gradient(policy, bf16=True, gradient_checkpointing=True)
    assert loss == pytest.approx(exact, rel=5e-3) and loss != exact
    assert 0.99 < cosine_similarity(ours, theirs, dim=0) < 0.999999
    assert cosine_similarity(ours, recomputed, dim=0) > 0.9999
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in policy.trainable().values())
    assert not any("forward" in module.__dict__ for module in policy.model.modules())
    again, same = gradient(policy)
    assert again == exact and torch.equal(same, theirs)  # nothing is left behind


def test_the_trunk_is_in_bfloat16_and_what_it_returns_and_the_head_are_not(tmp_path):
    policy = tiny_policy(tmp_path, lora=True)
    base, seen = policy.model.get_base_model(), {}
    hooks = [
        base.model.layers[1].mlp.down_proj.base_layer.register_forward_hook(
            lambda module, args, out: seen.update(trunk=out.dtype)
        ),
        base.lm_head.register_forward_hook(lambda module, args, out: seen.update(head=out.dtype)),
    ]
    with torch.no_grad(), precision.mixed(policy.model, True):
        hidden = base.model(input_ids=torch.tensor([TEXTS[0]])).last_hidden_state
        logits = policy.model(input_ids=torch.tensor([TEXTS[0]])).logits
    [hook.remove() for hook in hooks]
    assert seen == {"trunk": torch.bfloat16, "head": torch.float32}
    assert hidden.dtype == logits.dtype == torch.float32
    with pytest.raises(KeyError), precision.mixed(policy.model, True):
        raise KeyError
    assert "forward" not in base.model.__dict__


def test_a_model_that_cannot_be_cut_runs_whole(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path, lora=True, initializer_range=0.1)
    monkeypatch.setattr(precision.trunk, "of", lambda model: None)
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        exact = policy.model(input_ids=ids).logits
        with precision.mixed(policy.model, True):
            ours = policy.model(input_ids=ids).logits
    assert ours.dtype == torch.float32 and 0 < (ours - exact).abs().max() < 0.05 * exact.abs().max()


def test_frozen_weights_are_rounded_once_an_update(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path, lora=True)
    made, plain = [], fused._Copies.weights
    monkeypatch.setattr(fused._Copies, "weights", lambda *given: made.append(plain(*given)[0]) or made[-1:] + [None])
    gradient(policy, bf16=True)
    layers = sum(type(module).__name__ == "Linear" and hasattr(module, "lora_A") for module in policy.model.modules())
    assert len(made) == 2 * layers and len({id(weight) for weight in made}) == layers


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_run_is_the_same_twice_and_after_a_rewind(tmp_path, method):
    policy = tiny_policy(tmp_path / "model", lora=True)

    def reward(completions, **columns):
        return [float(len(set(text))) for text in completions]

    def begun(name, **how):
        policy.reset()
        if method == "sft":
            return wb.sft(policy, ROWS, steps=3, batch_size=4, lr=1e-2, out=tmp_path / name, **how)
        task = wb.Task(ROWS, rewards=[reward])
        how |= dict(prompts_per_step=2, group_size=3, max_new_tokens=6, num_iterations=2, beta=0.1)
        return wb.grpo(policy, task, steps=3, lr=1e-2, out=tmp_path / name, **how)

    run, again, exact = begun("a", bf16=True), begun("b", bf16=True), begun("c")
    for each in (run, again, exact):
        each.run()
    losses = [each.metrics["loss"].loc[1:].tolist() for each in (run, again, exact)]
    assert losses[0] == losses[1] != losses[2] and losses[0][0] == pytest.approx(losses[2][0], rel=2e-2, abs=2e-2)
    if method == "grpo":  # old log-probs are the trainer's own, and so differ from the sampler's
        apart = [each.metrics["sampling/sampling_logp_difference/mean"].loc[1] for each in (run, exact)]
        assert apart[1] < 1e-5 < apart[0] < 0.1
    run.rewind(1)
    run.run(2)
    assert run.metrics["loss"].loc[1:].tolist() == losses[0]
    assert all(p.dtype == torch.float32 for p in policy.trainable().values())


def test_sampling_is_in_the_weights_own_precision(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    task = wb.Task(ROWS, rewards=[lambda completions, **columns: [1.0 * len(text) for text in completions]])
    ids = []
    for bf16 in (False, True):
        run = wb.grpo(
            policy.reset(), task, steps=1, prompts_per_step=2, group_size=2, max_new_tokens=8, bf16=bf16,
            out=tmp_path / f"run{bf16}",
        )  # fmt: skip
        ids.append([step.rollouts.logprob for step in run])
    assert [[list(map(float, row)) for row in step] for step in ids[0]] == [
        [list(map(float, row)) for row in step] for step in ids[1]
    ]


def test_a_model_loaded_in_bfloat16_trains_with_and_without(tmp_path):
    policy = load(tiny_model_folder(tmp_path, initializer_range=0.1), dtype="bfloat16", device="cpu")
    noisy_adapter(policy.attach(wb.LoRA(r=4)))
    (loss, plain), (other, ours) = gradient(policy), gradient(policy, bf16=True)
    assert cosine_similarity(plain, ours, dim=0) > 0.85 and other == pytest.approx(loss, rel=2e-2)


def test_refused_with_a_reason(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "model", lora=True)
    on = make("sft", {"bf16": True})
    update.check(policy, on)
    monkeypatch.setattr(policy, "origin", dataclasses.replace(policy.origin, quantize="nf4"))
    with pytest.raises(SettingError, match="a quantised model .* dtype='bfloat16'"):
        update.check(policy, on)
    monkeypatch.undo()
    monkeypatch.setattr(precision, "computes", lambda device: True)
    policy.model.double()
    with pytest.raises(SettingError, match="the weights are float64"):
        update.check(policy, on)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "amx_bf16": False})
    with pytest.raises(SettingError, match="bf16=True: this CPU .* has no bfloat16 arithmetic"):
        wb.sft(policy, ROWS, steps=1, batch_size=2, bf16=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    update.check(policy, make("sft", {}))


@pytest.mark.parametrize(
    ("able", "there"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True}, False)],
)
def test_which_processors_have_it(monkeypatch, able, there):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision.computes(torch.device("cpu")) is there
    assert precision.computes(torch.device("mps")) is False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    assert precision.computes(torch.device("cuda")) is there
