"""Optimisers: each against its own library's loop, its slots through a file, and runs that go back and go on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.models import KINDS, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, make_run, weights
from workbench import optimiser, update
from workbench.errors import SettingError
from workbench.optimiser import OPTIMISERS
from workbench.settings import base, make
from workbench.state import State

GIVEN = dict(lr=0.01, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7, max_grad_norm=0)


class Toy(torch.nn.Module):
    """Two matrices (one so large that bitsandbytes keeps 8-bit moments of it) and a bias."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.large = torch.nn.Parameter(torch.randn(96, 64, generator=draw))
        self.small = torch.nn.Parameter(torch.randn(4, 3, generator=draw))
        self.bias = torch.nn.Parameter(torch.randn(5, generator=draw))


def slope(model: Toy, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)


def theirs(name: str, model: Toy):
    """The optimiser as its library makes it, once, over all steps, with what transformers' Trainer would give it."""
    import bitsandbytes
    from transformers.optimization import Adafactor

    groups = [
        {"params": [model.large, model.small], "weight_decay": GIVEN["weight_decay"]},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    adam = dict(lr=GIVEN["lr"], betas=(0.8, 0.95), eps=1e-7)
    return {
        "adamw_torch": lambda: torch.optim.AdamW(groups, **adam),
        "adamw_torch_fused": lambda: torch.optim.AdamW(groups, fused=True, **adam),
        "adamw_8bit": lambda: bitsandbytes.optim.AdamW8bit(groups, **adam),
        "adamw_bnb_8bit": lambda: bitsandbytes.optim.AdamW8bit(groups, **adam),
        "adafactor": lambda: Adafactor(groups, lr=GIVEN["lr"], scale_parameter=False, relative_step=False),
        "sgd": lambda: torch.optim.SGD(groups, lr=GIVEN["lr"]),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=GIVEN["lr"]),
    }[name]()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps_equal_the_librarys_own_loop(name, tmp_path):
    model, plain, state = Toy(), Toy(), State({})
    policy = SimpleNamespace(model=model, trainable=lambda: dict(model.named_parameters()))
    optimizer = theirs(name, plain)
    for step in range(1, 6):
        slope(model, step)
        slope(plain, step)
        update.apply(policy, state, make("sft", GIVEN | {"optim": name}), step)
        optimizer.step()
        for ours, others in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, others), step
        state.params = {n: p.detach() for n, p in model.named_parameters()}
        state.save(tmp_path / "state.safetensors")  # all that goes on is in the file
        state = State.load(tmp_path / "state.safetensors")
    assert not torch.equal(plain.large, Toy().large)
    if name.endswith("8bit"):
        slots = state.optim["adamw_8bit"]
        assert slots["large"]["state1"].dtype == torch.uint8 and slots["small"]["state1"].dtype == torch.float32


def test_the_table_is_that_of_the_setting():
    assert tuple(OPTIMISERS) == base.OPTIMISERS


def test_8_bit_moments_take_a_quarter():
    sizes = {}
    for name in ("adamw_torch", "adamw_8bit"):
        model, state = Toy(), State({})
        slope(model, 1)
        policy = SimpleNamespace(model=model, trainable=lambda model=model: dict(model.named_parameters()))
        update.apply(policy, state, make("sft", {"optim": name}), 1)
        slots = next(iter(state.optim.values()))["large"]
        sizes[name] = sum(t.numel() * t.element_size() for slot, t in slots.items() if "qmap" not in slot)
    assert sizes["adamw_8bit"] < 0.27 * sizes["adamw_torch"]


# -- runs


@pytest.mark.parametrize("name", [name for name in OPTIMISERS if name not in ("adamw_torch", "adamw_bnb_8bit")])
def test_a_run_that_goes_back_and_is_resumed_equals_one_that_never_stopped(name, tmp_path):
    large = dict(hidden_size=64, intermediate_size=64)  # whole-model training: matrices of 4096 and more

    def policy(folder):
        return tiny_policy(tmp_path / folder, **large)

    settings = dict(optim=name, lr=1e-3, steps=5, snapshot_steps=2)
    whole = make_run("sft", tmp_path, policy("a"), out="whole", **settings)
    whole.run()
    run = make_run("sft", tmp_path, policy("b"), **settings)
    run.run(4)
    run.engine.memory.clear()
    run.rewind(3)  # the snapshot of step 2, and one step replayed
    run.run(1)
    again = wb.resume(run.folder)
    again.run()
    assert_same_metrics(again.metrics, whole.metrics)
    assert_same_weights(weights(again), weights(whole))
    assert list(again.engine.state.optim) in ([OPTIMISERS[name].slots], []), "sgd keeps nothing"


def test_another_optimiser_starts_without_moments(tmp_path):
    run = make_run("sft", tmp_path, lr=1e-3)
    run.run(2)
    run.set(optim="rmsprop")
    run.run(1)
    assert list(run.engine.state.optim) == ["rmsprop"]
    assert all(int(slots["step"]) == 1 for slots in run.engine.state.optim["rmsprop"].values())
    run.set(optim="adamw_torch_fused")
    run.run(1)
    assert {int(slots["step"]) for slots in run.engine.state.optim["adamw"].values()} == {1}
    run.set(optim="adamw_torch")  # another form of the same: its moments are taken over
    run.run(1)
    assert {int(slots["step"]) for slots in run.engine.state.optim["adamw"].values()} == {2}
    last = weights(run)
    run.engine.memory.clear()
    run.rewind(4)  # which drops the change that belonged to step 5
    run.set(optim="adamw_torch")
    run.run(1)
    assert_same_weights(weights(run), last)


def test_optimisers_that_do_not_run_here_are_refused_before_any_work(tmp_path):
    far = {"w": torch.zeros(2, device="meta")}
    with pytest.raises(SettingError, match="optim='adamw_8bit' does not run on w .*on meta.*adamw_torch"):
        optimiser.check(far, make("sft", {"optim": "adamw_8bit"}))
    for name in OPTIMISERS:
        optimiser.check({"w": torch.zeros(2)}, make("sft", {"optim": name}))
    optimiser.check(far, make("sft", {}))


# -- weight decay


ADAPTED = [(k, a) for k in KINDS for a in ("none", "ln_tuning", "lora", "dora")[: 2 if k == "mamba" else 4]]


@pytest.mark.parametrize("kind, adapter", ADAPTED)
def test_what_is_decayed_is_what_transformers_decays(tmp_path, kind, adapter):
    import peft
    from transformers import Trainer

    policy = tiny_policy(tmp_path / "model", kind)
    if adapter in ("lora", "dora"):
        policy.attach(peft.LoraConfig(target_modules="all-linear", use_dora=adapter == "dora", bias="all"))
    if adapter == "ln_tuning":
        names = {"gpt2": ["ln_1", "ln_f"], "mamba": ["norm", "norm_f"]}.get(kind, ["input_layernorm", "norm"])
        policy.attach(peft.LNTuningConfig(target_modules=names))
    spared = optimiser.undecayed(policy.model)
    decayed = set(Trainer.get_decay_parameter_names(None, policy.model))
    everything = {name for name, _ in policy.model.named_parameters()}
    assert everything - spared == decayed & everything
    assert spared and decayed
