"""Adapters folded into the weights: the same numbers, and a model that was never touched."""

import numpy as np
import peft
import pytest
import torch

from tests.models import noisy_adapter, tiny_policy
from workbench import adapters
from workbench.adapters import folding, sums
from workbench.adapters.folding import folded
from workbench.adapters.products import BLOCK, Weight

IDS = torch.tensor([[5, 9, 200, 31, 7], [3, 3, 80, 1, 0]])


def attached(folder, kind="llama", changes=None, **config):
    policy = tiny_policy(folder, kind, **(changes or {}))
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    return noisy_adapter(policy.attach(peft.LoraConfig(**config)))


def logits(policy):
    with torch.no_grad():
        return policy.model(input_ids=IDS, use_cache=False).logits


def replaced(policy):
    return [name for name, module in policy.model.named_modules() if "forward" in module.__dict__]


def state(policy):
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in policy.model.state_dict().items()}


def assert_untouched(policy, before):
    now = policy.model.state_dict()
    assert replaced(policy) == [] and list(now) == list(before)
    assert all(t.data_ptr() == before[name][0] and torch.equal(t, before[name][1]) for name, t in now.items())


def plain(weight):
    """A `Weight` as a tensor (out, in): what it makes of each input alone."""
    return weight(torch.eye(weight.inputs, dtype=weight.data.dtype)).T


CASES = {
    "lora": ("llama", {}, {}),
    "rank stabilised": ("llama", {"use_rslora": True}, {}),
    "ranks by layer": ("qwen3", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}, {}),
    "on the head": ("llama", {"target_modules": ["q_proj", "lm_head"]}, {}),
    "a whole head": ("llama", {"modules_to_save": ["lm_head"]}, {}),
    "tied": ("qwen3", {}, {}),
    "biases": ("llama", {}, {"attention_bias": True, "mlp_bias": True}),
    "turned weights": ("gpt2", {"fan_in_fan_out": True}, {}),
    "soft-capped": ("gemma2", {}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 2])
def test_folding_changes_no_logit(tmp_path, case, rows):
    kind, config, changes = CASES[case]
    policy = attached(tmp_path / "m", kind, changes, **config)
    before, plain = state(policy), logits(policy)
    with folded(policy.model, rows=rows):
        assert any(name.endswith(("q_proj", "c_attn")) for name in replaced(policy))
        inside = logits(policy)
        assert not torch.equal(inside, plain), "nothing was folded"
        assert (inside - plain).abs().max() < 1e-5 * plain.abs().max()
    assert_untouched(policy, before)
    assert torch.equal(logits(policy), plain)


def test_the_sum_is_that_of_peft(tmp_path):
    policy = attached(tmp_path / "m", use_rslora=True)
    layers = [m for m in policy.model.modules() if type(m) is peft.tuners.lora.Linear]
    cut = []
    with folded(policy.model):
        for layer in layers:
            expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
            made = layer.forward.args[0]
            assert torch.allclose(plain(made), expected, rtol=1e-6, atol=1e-7)
            cut.append(made.blocks)
    assert len(layers) == 14 and cut.count(True) == 8, "keys and values have 16 outputs, and queries go with them"
    with folded(policy.model, rows=1):
        assert not any(layer.forward.args[0].blocks for layer in layers)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1,), (0,)])
def test_a_product_in_blocks_is_the_product(shape):
    rng = torch.Generator().manual_seed(0)
    weight, b, a = (torch.randn(n, k, generator=rng, dtype=torch.float64) for n, k in ((96, 7), (96, 2), (2, 7)))
    x = torch.randn(*shape, 7, generator=rng, dtype=torch.float64)
    cut, rows = Weight(torch.empty(3, 7, BLOCK, dtype=torch.float64)), Weight(torch.empty(96, 7, dtype=torch.float64))
    for made in (cut, rows):
        made.set(weight, [(0.5, b, a), (2.0, b, a)])
        assert torch.allclose(plain(made), weight + 2.5 * b @ a, rtol=1e-12)
        assert torch.allclose(made(x), x @ (weight + 2.5 * b @ a).T, rtol=1e-12, atol=1e-12)
        parts = [plain(part) for part in made.split([32, 64])]
        assert [len(part) for part in parts] == [32, 64] and torch.equal(torch.cat(parts), plain(made))


def test_in_float64_it_is_exact_to_rounding(tmp_path):
    policy = attached(tmp_path / "m")
    policy.model.double()
    plain = logits(policy)
    with folded(policy.model):
        assert len(replaced(policy)) == 14 and (logits(policy) - plain).abs().max() < 1e-10 * plain.abs().max()


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_bias": True, "target_modules": ["q_proj"]}])
def test_what_is_no_plain_sum_stays_as_it_is(tmp_path, config):
    changes = {"attention_bias": True} if "lora_bias" in config else {}
    policy = attached(tmp_path / "m", changes=changes, **config)
    plain = logits(policy)
    with folded(policy.model):
        assert not [name for name in replaced(policy) if name.endswith("q_proj")]
        assert (logits(policy) - plain).abs().max() < 1e-5 * plain.abs().max()


def test_half_precision_and_merged_layers_and_those_with_hooks_stay(tmp_path):
    half = attached(tmp_path / "half")
    half.model.bfloat16()
    with folded(half.model):
        assert replaced(half) == []
    policy = attached(tmp_path / "m")
    layers = [m for m in policy.model.modules() if type(m) is peft.tuners.lora.Linear]
    layers[0].register_forward_hook(lambda module, given, made: made + 1)
    layers[1].merge()
    plain = logits(policy)
    with folded(policy.model):
        assert "forward" not in layers[0].__dict__ and "forward" not in layers[1].__dict__
        assert "forward" in layers[2].__dict__
        assert (logits(policy) - plain).abs().max() < 1e-5 * plain.abs().max()


def test_an_adapter_that_is_off_is_not_folded_in(tmp_path):
    policy = attached(tmp_path / "m")
    with adapters.without(policy.model):
        plain = logits(policy)
        with folded(policy.model):
            assert (logits(policy) - plain).abs().max() < 1e-5 * plain.abs().max()
    assert (logits(policy) - plain).abs().max() > 1e-2


def test_weights_are_never_stale(tmp_path):
    policy = attached(tmp_path / "m")
    with folded(policy.model):
        first = logits(policy)
    for p in policy.params().values():
        p.mul_(1.5)  # in place through `.data`, as a run may
    moved = {name: tensor.clone() + 0.01 for name, tensor in policy.params().items()}
    for context in (policy.holding(policy.params()), policy.holding(moved)):
        with context:
            plain = logits(policy)
            with folded(policy.model):
                assert (logits(policy) - plain).abs().max() < 1e-5 * plain.abs().max()
            assert (plain - first).abs().max() > 1e-2


def test_an_error_inside_puts_everything_back(tmp_path, monkeypatch):
    policy = attached(tmp_path / "m")
    before = state(policy)
    with pytest.raises(KeyboardInterrupt), folded(policy.model):
        raise KeyboardInterrupt
    assert_untouched(policy, before)
    done = Weight.set

    def runs_out(weight, *given, left=[3]):  # noqa: B006
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("full")
        done(weight, *given)

    monkeypatch.setattr(Weight, "set", runs_out)
    with pytest.raises(torch.OutOfMemoryError), folded(policy.model):
        pass
    assert_untouched(policy, before)


def test_it_is_left_where_it_does_not_fit_or_pay(tmp_path, monkeypatch):
    policy = attached(tmp_path / "m", changes={"vocab_size": 288})
    with folded(policy.model, folding.PAYS - 1):
        assert replaced(policy) == []
    whole = folding.size(policy.model)
    head = policy.model.get_output_embeddings().weight.nbytes
    assert folding.size(policy.model, rows=1) == whole - head, "a head without an adapter gains only by its layout"
    monkeypatch.setattr(folding, "MOST", whole - 1)
    with folded(policy.model):
        assert replaced(policy) and not any(name.endswith("lm_head") for name in replaced(policy))
    monkeypatch.setattr(folding, "MOST", 2 * whole)
    for free in (2 * whole - 2, None):
        monkeypatch.setattr(folding, "free_bytes", lambda device, free=free: free)
        assert folding.size(policy.model) == (whole - head if free else whole)
    monkeypatch.setattr(folding, "MOST", 1000)
    with folded(policy.model):
        assert replaced(policy) == []


def test_buffers_are_kept_only_while_small(tmp_path, monkeypatch):
    policy = attached(tmp_path / "m")
    layer = next(m for m in policy.model.modules() if type(m) is peft.tuners.lora.Linear)
    with folded(policy.model):
        first = layer.forward.args[0].data.data_ptr()
    assert policy.model in sums._buffers
    with folded(policy.model):
        assert layer.forward.args[0].data.data_ptr() == first
    monkeypatch.setattr(folding, "KEPT", 0)
    with folded(policy.model):
        pass
    assert policy.model not in sums._buffers


def test_gradients_after_sampling_are_those_before(tmp_path):
    policy = attached(tmp_path / "m")

    def gradients():
        policy.model.zero_grad()
        policy.model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in policy.trainable().values()]

    before = gradients()
    policy.sample(["Hello", "b"], n=2, max_new_tokens=10)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_samples_are_those_of_the_unfolded_model(tmp_path, monkeypatch, kind):
    policy = tiny_policy(tmp_path / "m", kind, lora=True)
    texts = ["Hello", "What is 12 + 30?", "a"]
    with_it = policy.sample(texts, n=4, max_new_tokens=30)
    monkeypatch.setattr(folding, "PAYS", 1000)
    without = policy.sample(texts, n=4, max_new_tokens=30)
    assert with_it.ids == without.ids
    ours, plain = (np.concatenate(rollouts.logprob) for rollouts in (with_it, without))
    assert np.linalg.norm(ours - plain) < 1e-5 * np.linalg.norm(plain) and not np.array_equal(ours, plain)
