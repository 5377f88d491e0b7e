"""TuCo: nothing where nothing was tuned, the right number where the blocks are known, and the ends of steering."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests.models import noisy_adapter, tiny_policy
from workbench.analyses import paired
from workbench.analyses.tuco import continued, steered, tuco
from workbench.errors import DataError, SettingError

IDS = [[5, 9, 30, 41, 7, 77], [8, 2, 2, 60, 61, 90]]


def test_an_adapter_that_adds_nothing_has_no_share(tmp_path):
    policy = tiny_policy(tmp_path / "m").attach(wb.LoRA(r=4))
    made = tuco(policy, ["ab", "cde"], max_new_tokens=3)
    assert (made.frame["tuco"] == 0).all() and made.summary["TuCo at the prompt"] == 0
    assert (made["layers"]["share"] == 0).all()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_the_ends_of_steering_are_the_two_models(tmp_path, kind):
    policy = noisy_adapter(tiny_policy(tmp_path / kind, kind).attach(wb.LoRA(r=4)), 0.2)
    both = paired.pair(policy)
    base, tuned = both.logits(IDS)
    assert (base - tuned).abs().max() > 1e-2
    torch.testing.assert_close(steered(both, IDS, 1.0), tuned, atol=1e-6, rtol=0)
    torch.testing.assert_close(steered(both, IDS, 0.0), base, atol=1e-6, rtol=0)
    half = steered(both, IDS, 0.5)
    assert (half - base).abs().max() > 1e-3 and (half - tuned).abs().max() > 1e-3


def test_it_is_the_formula(tmp_path):
    """By hand: each block twice on the tuned stream, sums at one position."""
    policy = noisy_adapter(tiny_policy(tmp_path / "m", num_hidden_layers=3).attach(wb.LoRA(r=4)), 0.2)
    both = paired.pair(policy)
    inputs: list[torch.Tensor] = []
    with both.tuned.held(), paired.traced(policy) as seen:
        hooks = [
            layer.register_forward_pre_hook(lambda m, args, kw: inputs.append((args, kw)), with_kwargs=True)
            for layer in paired.blocks(policy)
        ]
        policy.logits(torch.tensor(IDS[:1]), 1)
        for hook in hooks:
            hook.remove()
        outputs = list(seen)
    p = f = 0
    with both.base.held():
        for layer, (args, kw), after in zip(paired.blocks(policy), inputs, outputs, strict=True):
            there = layer(*args, **kw)
            p, f = p + (there - args[0])[0, 2], f + (after - there)[0, 2]
    expected = float(f.norm() / (p.norm() + f.norm()))
    made = tuco(policy, [IDS[0][:3]], [IDS[0][3:]])
    assert made["responses"]["prompt"][0] == pytest.approx(expected, abs=1e-5) and 0 < expected < 1
    # prompts without a response are looked at at their last token
    assert tuco(policy, [IDS[0][:3]], [[]]).frame["tuco"].tolist() == pytest.approx([expected], abs=1e-5)
    assert len(made.frame) == 3 and made["responses"]["tokens"][0] == 3


def test_more_tuning_is_a_larger_share(tmp_path):
    policy = noisy_adapter(tiny_policy(tmp_path / "m", num_hidden_layers=3).attach(wb.LoRA(r=4)), 0.1)
    start = {name: p.detach().clone() for name, p in policy.trainable().items()}
    shares = []
    for scale in (0.1, 0.3, 1, 3, 10):
        scaled = {n: p * scale if ".lora_B." in n else p for n, p in start.items()}
        with policy.holding(scaled):
            shares.append(tuco(policy, IDS, [[4], [5]]).summary["TuCo at the prompt"])
    assert shares == sorted(shares) and shares[0] < 0.2 and shares[-1] > 0.5


def test_steering_is_measured_and_writes(tmp_path):
    policy = noisy_adapter(tiny_policy(tmp_path / "m").attach(wb.LoRA(r=4)), 0.2)
    prompts = ["ab", "cde"]
    made = tuco(policy, prompts, kinds=["x", "y"], scales=(0, 1), max_new_tokens=5)
    rollouts = policy.sample(prompts, n=1, temperature=0, max_new_tokens=5)
    own = policy.score(rollouts.prompt_ids, rollouts.ids)
    tokens = sum(len(ids) for ids in rollouts.ids)
    assert made["steering"]["logprob"][1] == pytest.approx(sum(v.sum() for v in own.logprob) / tokens, abs=1e-5)
    assert made["steering"]["logprob"][0] < made["steering"]["logprob"][1]  # greedy under the tuned model
    assert continued(policy, prompts, 1.0, max_new_tokens=5) == rollouts.text
    assert len(made.figure.data) == 5 and list(made["responses"]["kind"]) == ["x", "y"]


def test_what_does_not_go_is_refused(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    with pytest.raises(DataError, match="1 kinds for 2"):
        tuco(policy, ["a", "b"], kinds=["x"])
    with pytest.raises(DataError, match="no prompts"):
        tuco(policy, [])
    deep = wb.load(tmp_path / "m", dtype="float32", device="cpu")
    with pytest.raises(SettingError, match="base is gone"):
        tuco(deep, ["a"])
    other = tiny_policy(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(SettingError, match="3 blocks"):
        tuco(policy, ["a"], base=other)
