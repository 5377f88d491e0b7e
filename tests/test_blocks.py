"""One token through a decoder layer in few operations: the layer's own numbers, or the layer itself."""

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.models import noisy_adapter, tiny_policy
from workbench.adapters import blocks, folding, sums
from workbench.adapters.folding import folded

TEXTS = ["Hello", "What is 12 + 30?", "a"]
USUAL = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "a head for each query": ("llama", {"num_key_value_heads": 4}),
    "a head for each query, biases": (
        "llama",
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "norms of heads": ("qwen3", {}),
    "a window": ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "an eager attention": ("llama", {"attn_implementation": "eager"}),
}


def policy_of(folder, kind="llama", dtype="float32", **changes):
    policy = tiny_policy(folder, kind, dtype=dtype, **changes)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return noisy_adapter(policy.attach(config))


def light(policy, kind=blocks._OneToken):
    """The decoder layers (or the trunk) that take a token in few operations, by name."""
    return [n for n, m in policy.model.named_modules() if isinstance(m.__dict__.get("forward"), kind)]


def compared(policy, monkeypatch, texts=TEXTS, n=4):
    """What sampling with and without gives: whether the tokens agree, and how far log-probs are apart, by norm."""
    ours = policy.sample(texts, n=n, max_new_tokens=30)
    monkeypatch.setattr(folding, "PAYS", 1000)
    plain = policy.sample(texts, n=n, max_new_tokens=30)
    a, b = (np.concatenate(rollouts.logprob) for rollouts in (ours, plain))
    return ours.ids == plain.ids, np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("case", USUAL)
def test_usual_layers_draw_what_they_drew(tmp_path, monkeypatch, case):
    kind, changes = USUAL[case]
    policy = policy_of(tmp_path / "m", kind, **changes)
    with folded(policy.model):
        assert len(light(policy)) == 2 and len(light(policy, blocks._OneTokenTrunk)) == 1
    same, apart = compared(policy, monkeypatch)
    assert same and 0 < apart < 1e-5
    assert light(policy) == []


@pytest.mark.parametrize("rows, parts", [(2, [2, 2]), (1, [1, 1])])
@pytest.mark.parametrize("case", ["llama", "biases"])
def test_what_a_layer_is_given_stays_and_what_it_makes_is_its_own(tmp_path, monkeypatch, rows, parts, case):
    policy = policy_of(tmp_path / "m", hidden_size=64, intermediate_size=96, **USUAL[case][1])
    with folded(policy.model, rows=rows):
        layers = [policy.model.get_submodule(name).forward for name in light(policy)]
        assert [layer.parts for layer in layers] == parts
        rng = torch.Generator().manual_seed(0)
        x, past = (torch.randn(shape, generator=rng) for shape in ((rows, 1, 64), (2, rows, layers[0].keys, 3, 16)))
        before, past = x.clone(), blocks._Past(*past)
        turn = (torch.ones(rows, 1, layers[0].width), torch.zeros(rows, 1, layers[0].width))
        inputs = {"attention_mask": torch.zeros(rows, 1, 1, 4), "position_embeddings": turn, "past_key_values": past}
        made, own = (f(x, **inputs) for f in (layers[0], layers[0].own))
    assert torch.equal(x, before) and (made - own).abs().max() < 1e-5 * own.abs().max()
    same, apart = compared(policy, monkeypatch, TEXTS[:1], rows)
    assert same and 0 < apart < 1e-5


def test_in_float64_it_is_exact_to_rounding(tmp_path, monkeypatch):
    def exact(norm, x):
        return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)  # transformers' computes in float32
    monkeypatch.setitem(blocks.CLOSE, torch.float64, 1e-12)
    policy = policy_of(tmp_path / "m", dtype="float64")
    with folded(policy.model):
        assert len(light(policy)) == 2 and len(light(policy, blocks._OneTokenTrunk)) == 1
    same, apart = compared(policy, monkeypatch)
    assert same and apart < 1e-10


def test_transformers_own_norms_are_float32_and_told_apart(tmp_path):
    policy = policy_of(tmp_path / "m", dtype="float64")  # 3e-8 apart: more than rounding in float64
    with folded(policy.model):
        assert light(policy) == []


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_other_layers_stay_as_they_are(tmp_path, monkeypatch, kind):
    policy = policy_of(tmp_path / "m", kind)
    with folded(policy.model):
        assert light(policy) == []
    assert compared(policy, monkeypatch)[0]


class Scaled(nn.Module):
    """A norm that looks like an RMSNorm and is none."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


def test_what_only_looks_usual_is_found_out(tmp_path):

    changes = {
        "norm": lambda layer: setattr(layer, "post_attention_layernorm", Scaled(layer.post_attention_layernorm)),
        "activation": lambda layer: setattr(layer.mlp, "act_fn", nn.GELU()),
    }
    for name, change in changes.items():
        policy = policy_of(tmp_path / name)
        change(policy.model.get_base_model().model.layers[1])
        with folded(policy.model):
            assert len(light(policy)) == 1 and light(policy)[0].endswith("layers.0"), name
            assert not light(policy, blocks._OneTokenTrunk)


def test_hooks_are_called(tmp_path):
    policy = policy_of(tmp_path / "m")
    seen = []
    layer = policy.model.get_base_model().model.layers[1]
    hook = layer.self_attn.register_forward_hook(lambda *args: seen.append(1))
    policy.sample("Hello", n=2, max_new_tokens=10)
    assert seen
    hook.remove()
    with folded(policy.model):
        assert len(light(policy)) == 2


def test_weights_that_are_no_numbers_are_not_remembered(tmp_path):
    policy = policy_of(tmp_path / "m")
    weight = policy.model.get_base_model().model.layers[0].mlp.down_proj.base_layer.weight
    before = weight.data.clone()
    weight.data.fill_(torch.nan)
    with folded(policy.model):
        assert len(light(policy)) == 1
    weight.data.copy_(before)
    with folded(policy.model):
        assert len(light(policy)) == 2


def test_bytes_are_those_that_are_made(tmp_path):
    policy = policy_of(tmp_path / "m")
    with folded(policy.model):
        made = [
            forward.args[0].data.nbytes
            for module in policy.model.modules()
            if (forward := module.__dict__.get("forward")) is not None and hasattr(forward, "args")
        ]
        (kept,) = sums._buffers[policy.model].values()
    assert folding.size(policy.model) == sum(made) > 0
    assert 0 <= len(kept) - sum(made) < sums.LINE * len(made)
    assert folding.size(policy.model, folding.PAYS - 1) == 0


def test_a_trunk_with_something_in_between_stays(tmp_path, monkeypatch):
    policy = policy_of(tmp_path / "m")
    trunk = policy.model.get_base_model().model
    own = type(trunk).forward
    monkeypatch.setattr(type(trunk), "forward", lambda self, *args, **inputs: _doubled(own(self, *args, **inputs)))
    with folded(policy.model):
        assert len(light(policy)) == 2 and not light(policy, blocks._OneTokenTrunk)


def _doubled(output):
    output.last_hidden_state = 2 * output.last_hidden_state
    return output
