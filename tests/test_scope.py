"""What trains (`optimiser.Scope`): only masked entries move, whatever decay and moments say; masks that change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workbench import optimiser, update
from workbench.optimiser import OPTIMISERS, PLACES
from workbench.settings import make
from workbench.state import State

GIVEN = dict(lr=0.01, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7, max_grad_norm=0.0)


class Toy(torch.nn.Module):
    """A matrix of more than 4096 entries (bitsandbytes keeps 8-bit moments of it), a small one and a bias."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in {"large": (96, 64), "small": (4, 3), "bias": (5,)}.items():
            setattr(self, name, torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype)))


def masks(share: float, seed: int, *names: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in Toy().named_parameters()}
    return {name: torch.rand(shapes[name], generator=draw) < share for name in names or shapes}


def stepped(model: Toy, state: State, step: int, scope, **changes) -> dict[str, float]:
    draw = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p.dtype)
    policy = SimpleNamespace(model=model, trainable=lambda: dict(model.named_parameters()))
    return update.apply(policy, state, make("sft", GIVEN | changes), step, scope)


def values(model: Toy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class ByHand:
    """AdamW entry by entry, in float64: moments of every entry, used and moved on only where a mask says so. An entry
    that leaves the mask loses its moments; the count of steps is the parameter's."""

    def __init__(self, model: Toy):
        self.now = values(model)
        self.m = {name: torch.zeros_like(p) for name, p in self.now.items()}
        self.v = {name: torch.zeros_like(p) for name, p in self.now.items()}
        self.steps = dict.fromkeys(self.now, 0)

    def step(self, number: int, scope) -> None:
        draw = torch.Generator().manual_seed(number)
        for name, p in self.now.items():
            g = torch.randn(p.shape, generator=draw, dtype=torch.float64)
            if name not in scope:
                continue
            on = torch.ones_like(p, dtype=torch.bool) if scope[name] is None else scope[name]
            self.steps[name] += 1
            self.m[name] = torch.where(on, 0.8 * self.m[name] + 0.2 * g, 0.0)
            self.v[name] = torch.where(on, 0.95 * self.v[name] + 0.05 * g * g, 0.0)
            t, decay = self.steps[name], 0.0 if name == "bias" else 0.1
            mean, root = self.m[name] / (1 - 0.8**t), (self.v[name] / (1 - 0.95**t)).sqrt()
            self.now[name] = torch.where(on, p * (1 - 0.01 * decay) - 0.01 * mean / (root + 1e-7), p)


ALL = dict.fromkeys(("large", "small", "bias"))
CHANGING = (
    ALL, masks(0.3, 1), masks(0.3, 1), masks(0.3, 2), ALL, {"small": None}, masks(0.5, 3, "large", "bias"),
    ALL | masks(0.2, 4, "small"), masks(1.1, 0), ALL, masks(0.5, 5),
    {name: mask.flip(0) for name, mask in masks(0.5, 5).items()},
)  # fmt: skip
"""all; a mask, twice; another; all; one parameter; two; one of three masked; masks of all entries; all; a mask, and
others with as many entries"""


def test_masks_that_change_give_adamw_by_hand(tmp_path):
    model, state = Toy(), State({})
    hand = ByHand(model)
    for step, scope in enumerate(CHANGING, 1):
        stepped(model, state, step, scope)
        hand.step(step, scope)
        for name, p in values(model).items():
            torch.testing.assert_close(p, hand.now[name], rtol=1e-12, atol=1e-13)
        state.save(tmp_path / "state.safetensors")  # all that goes on is in the file
        state = State.load(tmp_path / "state.safetensors")
    assert hand.steps == {"large": 11, "small": 11, "bias": 11}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_only_masked_entries_move(name, tmp_path):
    model, state = Toy(torch.float32), State({})
    for step in (1, 2):
        stepped(model, state, step, None, optim=name)  # moments of all entries, now stale
    for step, scope in enumerate((masks(0.3, 1), masks(0.3, 1), masks(0.6, 2), {"large": None}), 3):
        before = values(model)
        stepped(model, state, step, scope, optim=name)
        for param, p in values(model).items():
            moved, mask = p != before[param], scope.get(param, torch.zeros(p.shape, dtype=torch.bool))
            assert not moved[~mask].any() if mask is not None else moved.all(), (step, param)
            assert mask is None or moved[mask].float().mean() > 0.95 or not mask.any(), (step, param)
        state.save(tmp_path / "state.safetensors")
        state = State.load(tmp_path / "state.safetensors")


@pytest.mark.parametrize("name", OPTIMISERS)
def test_all_named_without_masks_is_no_scope(name):
    scoped, plain = (Toy(torch.float32), State({})), (Toy(torch.float32), State({}))
    for step in (1, 2, 3):
        assert stepped(*scoped, step, ALL, optim=name) == stepped(*plain, step, None, optim=name)
    for ours, theirs in zip(scoped[0].parameters(), plain[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert scoped[1].optim.keys() == plain[1].optim.keys()
    assert not any(PLACES in slots for optim in scoped[1].optim.values() for slots in optim.values())


def test_moments_are_those_of_masked_entries_alone():
    model, state, scope = Toy(), State({}), masks(0.1, 1, "large")
    stepped(model, state, 1, scope)
    slots = state.optim["adamw"]
    count = int(scope["large"].sum())
    assert list(slots) == ["large"] and slots["large"]["exp_avg"].shape == (count,)
    assert slots["large"][PLACES].dtype == torch.int32
    assert torch.equal(slots["large"][PLACES].long(), scope["large"].flatten().nonzero()[:, 0])


def test_8_bit_moments_begin_anew_where_the_mask_changes_and_go_on_where_it_does_not():
    model, state = Toy(torch.float32), State({})
    for step, (share, seed) in enumerate(((0.8, 1), (0.8, 1), (0.9, 2)), 1):
        stepped(model, state, step, masks(share, seed), optim="adamw_8bit")
        assert state.optim["adamw_8bit"]["large"]["state1"].dtype == torch.uint8
        assert int(state.optim["adamw_8bit"]["large"]["step"]) == (1, 2, 1)[step - 1]


def test_the_gradient_norm_counts_and_clips_what_trains():
    scope = masks(0.3, 1, "large", "small")
    model = Toy()
    draw = torch.Generator().manual_seed(1)
    grads = {name: torch.randn(p.shape, generator=draw, dtype=torch.float64) for name, p in model.named_parameters()}
    norm = sum(float((grads[name][mask] ** 2).sum()) for name, mask in scope.items()) ** 0.5
    assert stepped(model, State({}), 1, scope)["grad_norm"] == pytest.approx(norm, rel=1e-12)
    clipped, scaled = Toy(), Toy()
    stepped(clipped, State({}), 1, scope, optim="sgd", max_grad_norm=1.0, weight_decay=0.0)
    stepped(scaled, State({}), 1, scope, optim="sgd", lr=0.01 / norm, weight_decay=0.0)
    for ours, theirs in zip(clipped.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_stage_begins_without_moments_and_shares_are_counted():
    model, state = Toy(), State({})
    stepped(model, state, 1, None)
    optimiser.restart(state)
    assert not state.optim
    trained = dict(model.named_parameters())
    assert optimiser.share(trained, None) == 1
    mask = torch.zeros(96, 64, dtype=torch.bool)
    mask[0] = True
    assert optimiser.share(trained, {"large": mask, "small": None}) == pytest.approx((64 + 12) / (6144 + 12 + 5))
