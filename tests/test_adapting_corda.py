"""CorDA: the start from given text, its formula, what follows a run, and what is refused."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_weights, rows_for, weights
from workbench.adapters.corda import corda
from workbench.errors import SettingError

ROWS = rows_for("sft", 12)


def logits(policy, text: str = "Say something") -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([list(text.encode())])).logits


def used_by(policy, text: str) -> dict[str, float]:
    """By layer how much of its output on `text` goes through A and B."""
    from peft.tuners.lora import LoraLayer

    found = {}

    def hook(name):
        def measure(layer, inputs, output):
            through = layer.lora_B["default"](layer.lora_A["default"](inputs[0])) * layer.scaling["default"]
            found[name] = float(through.norm() / output.norm())

        return measure

    layers = {name: module for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)}
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    logits(policy, text)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_policy_says_what_it_said_and_ipm_takes_what_the_text_uses(kind, tmp_path):
    used = {}
    for method in ("ipm", "kpm"):
        policy = tiny_policy(tmp_path / "m", kind)
        before, random = logits(policy), torch.random.get_rng_state()
        made = corda(policy, ROWS, r=4, method=method, samples=6)
        assert made is policy and torch.equal(torch.random.get_rng_state(), random)
        assert (logits(policy) - before).abs().max() <= 1e-4 * before.abs().max()
        assert not any(module._forward_hooks for module in policy.model.modules())
        assert not any(hasattr(m, name) for m in policy.model.modules() for name in ("eigens", "covariance_matrix"))
        used[method] = used_by(policy, ROWS[0]["prompt"] + ROWS[0]["completion"])
        assert policy.adapter.init_lora_weights == "corda" and "lm_head" not in policy.adapter.target_modules
    assert all(used["ipm"][layer] > used["kpm"][layer] > 0 for layer in used["ipm"])
    assert sum(used["ipm"].values()) > 2 * sum(used["kpm"].values())


def test_a_and_b_are_those_of_the_decomposition(tmp_path):
    """The formula, computed here, for one layer; the adapter's product is B A of `r` of the singular directions."""
    policy = tiny_policy(tmp_path / "m")
    layer, inputs = policy.model.get_submodule("model.layers.1.mlp.down_proj"), []
    weight = layer.weight.detach().double().clone()
    handle = layer.register_forward_hook(lambda m, i, o: inputs.append(i[0][0].detach().double()))
    with torch.no_grad():
        for row in ROWS[:6]:
            ids = policy.tokenizer(row["prompt"] + row["completion"])["input_ids"] + [policy.tokenizer.eos_token_id]
            policy.model(input_ids=torch.tensor([ids]))
    handle.remove()
    scaled = [x / x.max().abs() for x in inputs]
    c = sum(x.T @ x for x in scaled) / len(scaled)
    c += 0.01 * c.diagonal().mean() * torch.eye(len(c), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(weight @ c, full_matrices=False)
    v = vh @ torch.linalg.inv(c)
    for method, part in (("ipm", slice(0, 3)), ("kpm", slice(-3, None))):
        policy = corda(tiny_policy(tmp_path / "m"), ROWS, r=3, alpha=6, method=method, samples=6)
        made = policy.model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
        a, b = made.lora_A["default"].weight.double(), made.lora_B["default"].weight.double()
        truth = u[:, part] @ torch.diag(s[part]) @ v[part]
        assert (2 * b @ a - truth).norm() <= 2e-3 * truth.norm(), method
        assert (made.base_layer.weight.double() + truth - weight).norm() <= 1e-4 * weight.norm()
        torch.testing.assert_close(b.norm(dim=0), (s[part] / 2).sqrt(), rtol=1e-3, atol=1e-5)


def test_it_trains_is_resumed_with_the_same_call_and_saved(tmp_path):
    def made():
        return corda(tiny_policy(tmp_path / "m"), ROWS, r=2, samples=4, method="ipm", targets=["q_proj", "v_proj"])

    settings = dict(steps=3, batch_size=4, lr=1e-2, snapshot_steps=100)
    whole = wb.sft(made(), ROWS, out=tmp_path / "whole", **settings)
    list(whole)
    run = wb.sft(made(), ROWS, out=tmp_path / "run", **settings)
    run.run(2)
    run.stop()
    again = wb.resume(tmp_path / "run", policy=made())
    list(again)
    assert_same_weights(weights(again), weights(whole))
    with pytest.raises(SettingError, match="preprocess_corda"):
        wb.resume(tmp_path / "whole")  # without calibration there is no start
    said = logits(whole.policy)
    whole.policy.save(tmp_path / "adapter")
    loaded = wb.load(tmp_path / "adapter", device="cpu")
    assert (logits(loaded) - said).abs().max() <= 1e-4 * said.abs().max()


def test_what_it_cannot_do_is_said_and_leaves_the_policy_as_it_was(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    before = logits(policy)
    for how, said in (
        (dict(method="best"), "method='best' is not known. Options: kpm, ipm"),
        (dict(r=33), "r=33 is more than .* has: its weight is"),
        (dict(r=0), "r=0 must be a whole number of at least 1"),
        (dict(targets=["nowhere"]), "no linear layer is called nowhere. There are: down_proj"),
        (dict(samples=0), "samples=0 must be a whole number"),
    ):
        with pytest.raises(SettingError, match=said):
            corda(policy, ROWS, **{"r": 2} | how)
    assert torch.equal(logits(policy), before) and not policy.has_adapter
    policy.attach(wb.LoRA(r=2))
    with pytest.raises(SettingError, match="this policy has one"):
        corda(policy, ROWS, r=2)
    with pytest.raises(SettingError, match='load the model with dtype="float32"'):
        corda(tiny_policy(tmp_path / "m", dtype="float64"), ROWS, r=2)
    mamba = tiny_policy(tmp_path / "mamba", "mamba")
    with pytest.raises(SettingError, match="are never called"):
        corda(mamba, ROWS, r=2, targets=["dt_proj"], samples=2)
    assert not any(module._forward_hooks for module in mamba.model.modules())
