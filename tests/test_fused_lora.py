"""LoRA layers as one operation: the numbers of PEFT's layers, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from models import noisy_adapter, tiny_model_folder, tiny_policy
from torch import nn

import workbench as wb
from workbench import objectives, update
from workbench.adapters import fused
from workbench.policy import load

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-10}
TEXTS = [[(7 * i + 3 * j) % 250 for i in range(12 + 9 * j)] for j in range(4)]


def layer(dtype=torch.float32, *, features=(24, 40), shift=True, seed=0, **config):
    """A LoRA layer of PEFT over a frozen linear one, with a B that is not zero, in a model of its own."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    inner = nn.Sequential()
    inner.add_module("linear", nn.Linear(*features, bias=shift))
    model = get_peft_model(inner, LoraConfig(r=4, lora_alpha=12, target_modules=["linear"], **config)).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, dtype=dtype))
    return model


def passed(model, x, weights):
    """What the layer returns, and the gradients of x and of all that is trained."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    (out * weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def apart(ours, theirs):
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize("shift", [True, False])
def test_a_layer_gives_pefts_numbers(dtype, rows, shift):
    model = layer(dtype, shift=shift)
    x, weights = torch.randn(2, rows, 24, dtype=dtype), torch.randn(2, rows, 40, dtype=dtype)
    theirs = passed(model, x, weights)
    with fused.linears(model) as chosen:
        assert len(chosen) == 1
        assert type(model(x).grad_fn).__name__ == "_ProductBackward"
        ours = passed(model, x, weights)
    assert len(ours) == 4 and apart(ours, theirs) < TOLERANCE[dtype] / 5


def test_by_hand():
    model = layer(torch.float64, features=(2, 1), shift=False)
    linear = model.base_model.model.linear
    linear.scaling["default"] = 0.5
    with torch.no_grad():
        linear.base_layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.lora_A["default"].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
        linear.lora_B["default"].weight.copy_(torch.tensor([[4.0, 6.0, 0.0, 0.0]]))
    x = torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    with fused.linears(model):
        out, dx, da, db = passed(model, x, torch.ones(1, 1, dtype=torch.float64))
    assert out.tolist() == [[1 + 20 + 0.5 * (4 + 60)]] and dx.tolist() == [[1 + 2.0, 2 + 3.0]]
    assert da.tolist() == [[2, 20], [3, 30], [0, 0], [0, 0]] and db.tolist() == [[0.5, 5, 0, 0]]


def gradients(policy, **how):
    """Gradients of an update with stale old log-probs, over ragged rows in two micro-batches."""
    batch = update.Batch(TEXTS, [5, 8, 3, 6])
    draw = torch.Generator().manual_seed(0)
    counts = batch.scored()
    batch.columns["old_logprob"] = [(-5 + torch.randn(n, generator=draw)).tolist() for n in counts]
    batch.columns["advantage"] = [1.0, -0.5, 0.25, -1.0]

    def loss(scores, columns, totals):
        ratio = (0.1 * (scores.logprob - columns["old_logprob"])).exp()
        return -(ratio * columns["advantage"][:, None] * scores.mask).sum() / totals["tokens"], {}

    objective = objectives.Objective(loss)
    outcome = update.gradients(
        policy, batch, objective, update.totals_of(batch), micro_batches=[[0, 1], [2, 3]], train_mode=False, **how
    )
    return outcome.loss, {name: p.grad.clone() for name, p in policy.trainable().items()}


@pytest.fixture
def unfused(monkeypatch):
    """A switch: within it updates run PEFT's own layers."""

    def off():
        monkeypatch.setattr(fused, "_plain", lambda module: False)

    yield off


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_update_has_the_same_gradients(tmp_path, unfused, kind, dtype):
    policy = load(tiny_model_folder(tmp_path, kind), dtype="float32", device="cpu")
    noisy_adapter(policy.attach(wb.LoRA(r=4, alpha=8)))
    policy.model.to(getattr(torch, dtype))
    ours, seen = {}, []
    for name, how in {"plain": {}, "recomputed": {"gradient_checkpointing": True}}.items():
        ours[name] = gradients(policy, **how)
    with fused.linears(policy.model) as chosen:
        seen += chosen
    assert bool(seen) == (kind != "gpt2")  # its layers are no nn.Linear: they stay PEFT's
    unfused()
    loss, theirs = gradients(policy)
    room = TOLERANCE[getattr(torch, dtype)]
    for value, made in ours.values():
        assert value == pytest.approx(loss, rel=room)
        together = [torch.cat([grads[name].flatten() for name in theirs]) for grads in (made, theirs)]
        assert apart(together[:1], together[1:]) < room


def test_an_update_uses_it_and_scores_before_it_too(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "model", lora=True)
    used, plain = [], fused._Product.apply
    monkeypatch.setattr(fused._Product, "apply", lambda *given: used.append(torch.is_grad_enabled()) or plain(*given))
    task = wb.Task([{"prompt": "ab"}, {"prompt": "cd"}], rewards=[lambda completions, **_: list(map(len, completions))])
    settings = dict(steps=1, prompts_per_step=2, group_size=2, max_new_tokens=4, num_iterations=2)
    wb.grpo(policy, task, out=tmp_path / "run", **settings).run()
    assert used.count(False) > 0 and used.count(True) > 0
    assert not any("forward" in module.__dict__ for module in policy.model.modules())


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"lora_bias": True}, {"bias": "all"}, {"layers": "hook"}, {"layers": "dtype"}],
    ids=str,
)
def test_what_is_not_plain_stays_pefts(config):
    odd = config.pop("layers", None)
    model = layer(**config)
    linear = model.base_model.model.linear
    if odd == "hook":
        linear.base_layer.register_forward_hook(lambda module, args, out: out + 1)
    if odd == "dtype":  # PEFT keeps float32 adapters over a bfloat16 base
        linear.base_layer.to(torch.bfloat16)
    x, weights = torch.randn(30, 24).to(linear.base_layer.weight.dtype), torch.randn(30, 40)
    theirs = passed(model, x, weights)
    with fused.linears(model) as chosen:
        assert len(chosen) == (odd == "dtype")
        ours = passed(model, x, weights)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_dropout_off_layers_merged_ones_and_a_second_adapter():
    from peft import LoraConfig

    model = layer(lora_dropout=0.5)
    x, weights = torch.randn(30, 24), torch.randn(30, 40)

    def both():
        torch.manual_seed(3)
        theirs = passed(model, x, weights)
        with fused.linears(model):
            torch.manual_seed(3)
            return passed(model, x, weights), theirs

    model.train()
    assert apart(*both()) == 0  # the same draws
    model.eval()
    assert 0 < apart(*both()) < 1e-6
    with fused.linears(model), model.disable_adapter():
        assert torch.equal(model(x), model.base_model.model.linear.base_layer(x))
    with fused.linears(model):
        model.merge_adapter()
        assert torch.equal(model(x), model.base_model.model.linear.base_layer(x))
        model.unmerge_adapter()
        model.add_adapter("other", LoraConfig(r=2, target_modules=["linear"]))
        model.set_adapter("other")
        assert torch.allclose(model(x), model.base_model.model.linear.base_layer(x))  # its B is zero


def test_a_frozen_adapter_and_inputs_without_gradients():
    model = layer()
    linear = model.base_model.model.linear
    linear.lora_A["default"].weight.requires_grad_(False)
    x, weights = torch.randn(30, 24), torch.randn(30, 40)
    theirs = passed(model, x, weights)
    with fused.linears(model):
        ours = passed(model, x, weights)
        model.zero_grad()
        (model(x) * weights).sum().backward()
    assert len(ours) == 3 and apart(ours, theirs) < 1e-6 and linear.lora_A["default"].weight.grad is None
    assert torch.equal(linear.lora_B["default"].weight.grad, ours[2])


@pytest.mark.parametrize("room", [0, fused.SUMS])
def test_sums_are_kept_while_they_are_true(monkeypatch, room):
    monkeypatch.setattr(fused, "SUMS", room)
    model, other = layer(torch.float64), layer(torch.float64, seed=1)
    draw = torch.Generator().manual_seed(2)
    x, weights = (torch.randn(7, n, dtype=torch.float64, generator=draw) for n in (24, 40))
    expected = passed(model, x, weights)
    mine = [p.data for p in model.parameters() if p.requires_grad]
    theirs = [p.data for p in other.parameters() if p.requires_grad]
    with fused.linears(model):
        assert apart(passed(model, x, weights), expected) < 1e-12
        first = model(x).detach()
        for p, data in zip([p for p in model.parameters() if p.requires_grad], theirs, strict=True):
            p.data = data  # as a reference is held for a while
        assert (model(x).detach() - first).norm() > 0.1
        with torch.no_grad():
            mine[0].mul_(2)
        for p, data in zip([p for p in model.parameters() if p.requires_grad], mine, strict=True):
            p.data = data
        assert (model(x).detach() - first).norm() > 0.1
        again = passed(model, x, weights)
    assert apart(again, passed(model, x, weights)) < 1e-12


def test_products_that_are_rounded_anyway_do_not_swallow_a_small_adapter():
    model = layer(shift=False)
    linear = model.base_model.model.linear
    with torch.no_grad():
        linear.lora_B["default"].weight.mul_(1e-4)
    x = torch.randn(200, 24)
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    with torch.no_grad(), fused.linears(model):
        effect = model(x) - linear.base_layer(x)
        switch.fp32_precision = "bf16"
        try:
            rounded = model(x) - linear.base_layer(x)
        finally:
            switch.fp32_precision = before
    assert apart([rounded], [effect]) < 0.05


def test_all_is_put_back_after_an_error():
    model = layer()
    mine = model.base_model.model.linear.forward
    model.base_model.model.linear.forward = mine
    with pytest.raises(KeyError), fused.linears(model):
        raise KeyError
    assert model.base_model.model.linear.__dict__["forward"] is mine


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_update_twice_is_equal_to_the_bit(tmp_path, threads):
    policy = tiny_policy(tmp_path, "qwen3", lora=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, again = gradients(policy), gradients(policy)
    finally:
        torch.set_num_threads(before)
    assert first[0] == again[0] and all(torch.equal(first[1][name], again[1][name]) for name in first[1])


def test_under_autocast_weights_are_rounded_once_and_inputs_shared():
    model = layer(features=(64, 64))
    linear = model.base_model.model.linear
    x, weights = torch.randn(50, 64), torch.randn(50, 64)
    theirs = passed(model, x, weights)
    with torch.autocast("cpu", torch.bfloat16), fused.linears(model):
        ours = passed(model, x, weights)
        copies = linear.forward.args[3]
        weight = copies.weights(linear.base_layer, torch.bfloat16)[0]
        assert weight is copies.weights(linear.base_layer, torch.bfloat16)[0] and weight.dtype == torch.bfloat16
        shared = copies.input(x, torch.bfloat16)
        assert copies.input(x, torch.bfloat16) is shared
        x.add_(1)
        assert copies.input(x, torch.bfloat16) is not shared
    assert ours[0].dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in ours[1:])
    assert 1e-4 < apart(ours, theirs) < 2e-2
