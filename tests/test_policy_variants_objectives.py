"""Losses and advantages of the policy variants, on numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench import methods
from workbench.methods.policy import bon_aware, uft
from workbench.methods.policy.aapo import REWARD, bonus
from workbench.objectives.demonstrations import entropy_weighted, imitation, off_policy, with_hints
from workbench.objectives.likelihood import LIKELIHOOD, UNCLIPPED
from workbench.objectives.policy_gradient import policy_gradient
from workbench.sampling.rollouts import Rollouts
from workbench.settings import make
from workbench.settings.rl import GRPOSettings

GRPO = GRPOSettings(group_size=2)


def scores(logprob, entropy=None, mask=None):
    logprob = torch.tensor(logprob, dtype=torch.float64).requires_grad_()
    entropy = torch.zeros_like(logprob) if entropy is None else torch.tensor(entropy, dtype=torch.float64)
    mask = torch.ones_like(logprob) if mask is None else torch.tensor(mask, dtype=torch.float64)
    return SimpleNamespace(logprob=logprob, entropy=entropy.detach().requires_grad_(), mask=mask)


def columns(**named):
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in named.items()}


def totals(tokens, rows):
    return {"rows": rows, "tokens": tokens, "tokens_share": tokens, "max_tokens": 8.0}


# -- AAPO


def test_aapo_weighs_cross_entropy_by_the_advantage_and_nothing_else():
    made = scores([[-1.0, -2.0], [-0.5, -3.0]], mask=[[1, 1], [1, 0]])
    given = columns(advantage=[0.28, -0.2], keep=[1, 1], old_logprob=[[-9.0, -9.0], [-9.0, -9.0]])
    loss, _ = policy_gradient(made, given, totals(3.0, 2.0), settings=GRPO, surrogate=LIKELIHOOD)
    # -(0.28 (-1 - 2) - 0.2 (-0.5)) / 3 tokens, whatever the old policy said
    assert float(loss) == pytest.approx((0.28 * 3 - 0.2 * 0.5) / 3, abs=1e-12)
    loss.backward()
    assert made.logprob.grad.tolist() == pytest.approx(np.array([[-0.28, -0.28], [0.2, 0.0]]) / 3)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(1, 0, 0.28), (0, 1, -0.2), (1, 1, 0.0), (0.1, 0, 0.1), (1, math.nan, 0.0)]
)
def test_the_bonus_of_beating_the_reference(ours, theirs, expected):
    made = Rollouts.of(["a"] * 2, ["x", "y"], rewards=[ours] * 2, columns={REWARD: [theirs] * 2})
    assert bonus(made, SimpleNamespace(bonus_low=-0.2, bonus_high=0.28)) == pytest.approx([expected] * 2)


# -- SRFT

ONE = {"imitation": 0.5, "imitation_rises": False, "off_policy": 1.0, "shaping": 0.0, "right_weight": 0.1}


def srft(**changes):
    return make(methods.get("srft").name, {"group_size": 2, **ONE, **changes})


@pytest.mark.parametrize(("entropy", "first", "second"), [(1.0, 0.184, 0.272), (0.2, 0.409, 0.122)])
def test_srft_weights_follow_the_entropy(entropy, first, second):
    made = scores([[-1.0, -1.0], [-2.0, -4.0]], [[entropy] * 2, [7.0] * 2])
    given = columns(advantage=[0.0, 0.0], keep=[1, 1], demonstration=[0, 1], right=[1, 0])
    loss, metrics = entropy_weighted(made, given, totals(4.0, 2.0), settings=srft())
    assert float(metrics["srft/imitation_weight"][0]) == pytest.approx(first, abs=5e-4)
    assert float(metrics["srft/right_weight"][0]) == pytest.approx(second, abs=5e-4)
    # NLL of the demonstration 3, own right row 1, over 4 tokens in the second term
    expected = 0.5 * math.exp(-entropy) * 3 + 0.1 * math.exp(entropy) * 2 / 4
    assert float(loss) == pytest.approx(expected, abs=1e-9)
    loss.backward()
    assert made.entropy.grad is None, "no gradient flows through H"
    rising, _ = entropy_weighted(made, given, totals(4.0, 2.0), settings=srft(imitation_rises=True))
    assert float(rising - loss) == pytest.approx(0.5 * 3 * (math.exp(entropy) - math.exp(-entropy)), abs=1e-9)


def test_srft_without_wrong_rows_and_demonstrations_is_weighted_likelihood():
    made = scores([[-1.0, -2.0], [-0.5, -0.5]], [[0.3] * 2] * 2)
    given = columns(advantage=[0.7, -0.7], keep=[1, 1], demonstration=[0, 0], right=[1, 1])
    loss, _ = entropy_weighted(made, given, totals(4.0, 2.0), settings=srft())
    assert float(loss) == pytest.approx(0.1 * math.exp(0.3) * 4 / 4, abs=1e-9)


def test_srft_pushes_wrong_rows_down_and_leaves_out_the_unjudged():
    made = scores([[-1.0], [-2.0], [-3.0]], [[0.0]] * 3)
    given = columns(advantage=[0, 0, 0], keep=[1, 1, 1], demonstration=[0, 0, 0], right=[1, -1, 0])
    loss, _ = entropy_weighted(made, given, totals(3.0, 3.0), settings=srft())
    assert float(loss) == pytest.approx((0.1 * 1 - 2) / 3, abs=1e-9)
    loss.backward()
    assert made.logprob.grad[:, 0].tolist() == pytest.approx([-0.1 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("shaping", [0.0, 0.1])
def test_a_demonstration_has_behaviour_probability_one_and_no_clip(shaping):
    made = scores([[math.log(0.3), math.log(0.9)]], [[0.0, 0.0]])
    given = columns(advantage=[2.0], keep=[1], demonstration=[1], right=[0])
    given["old_logprob"] = torch.full((1, 2), -50.0, dtype=torch.float64)
    loss, _ = entropy_weighted(made, given, totals(2.0, 1.0), settings=srft(imitation=0.0, shaping=shaping))
    ratio = [p / (p + shaping) if shaping else p for p in (0.3, 0.9)]
    assert float(loss) == pytest.approx(-2.0 * sum(ratio) / 2, abs=1e-9)
    loss.backward()
    # d rho / d log p = p, and of p / (p + g): g p / (p + g)^2
    slope = [p * shaping / (p + shaping) ** 2 if shaping else p for p in (0.3, 0.9)]
    assert made.logprob.grad[0].tolist() == pytest.approx([-2.0 * s / 2 for s in slope])
    assert float(off_policy(torch.tensor(0.0), torch.tensor(1.0))) == -1


# -- UFT


def test_hints_get_cross_entropy_alone_and_completions_none_of_it():
    settings = SimpleNamespace(**{**vars(GRPO), "hint_coef": 0.5, "beta": 0.04})
    made = scores([[-1.0, -2.0], [-0.5, -800.0]], mask=[[1, 1], [1, 1]])
    given = columns(
        advantage=[1.0, 0.0], keep=[1, 0], hint=[0, 0.5], ref_logprob=[[-1.5, -2.0], [0, 0]],
        old_logprob=[[-1.0, -2.0], [0, 0]],
    )  # fmt: skip
    loss, metrics = with_hints(made, given, totals(2.0, 1.0), settings=settings)
    own = {name: values[:1] for name, values in given.items()}
    first = SimpleNamespace(logprob=made.logprob[:1], entropy=made.entropy[:1], mask=made.mask[:1])
    base, _ = policy_gradient(first, own, totals(2.0, 1.0), settings=settings)
    assert float(loss - base) == pytest.approx(0.5 * 0.5 * 800.5, abs=1e-9)
    assert math.isfinite(float(loss)) and float(metrics["hint/nll"][0]) == pytest.approx(800.5)
    (whole,) = torch.autograd.grad(loss, made.logprob, retain_graph=True)
    (plain,) = torch.autograd.grad(base, made.logprob)
    assert whole[0].tolist() == pytest.approx(plain[0].tolist()) and whole[1].tolist() == [-0.25, -0.25]


def test_the_chance_of_a_piece_falls_along_a_cosine():
    settings = SimpleNamespace(hint_steps=300, hint_low=0.05, hint_high=0.95, seed=1, hint_schedule="binomial")
    assert [uft.chance(t, settings) for t in (0, 150, 300)] == pytest.approx([0.95, 0.5, 0.05])
    counts = np.array([uft.drawn(settings, 151, row, 5) for row in range(4000)])
    assert counts.mean() == pytest.approx(2.5, abs=0.06) and counts.var() == pytest.approx(1.25, abs=0.08)
    assert uft.drawn(settings, 151, 7, 5) == uft.drawn(settings, 151, 7, 5)
    assert all(uft.drawn(settings, 302, row, 5) == 0 for row in range(50)), "t = 301 is past T_hint"
    settings.hint_schedule = "stage"  # 300 // 6 = 50 steps for each
    assert [uft.drawn(settings, t + 1, 0, 5) for t in (0, 49, 50, 249, 250, 300)] == [5, 5, 4, 1, 0, 0]
    settings.hint_schedule = "uniform"
    counts = np.array([uft.drawn(settings, 999, row, 5) for row in range(6000)])
    assert np.bincount(counts) / 6000 == pytest.approx([1 / 6] * 6, abs=0.02)
    settings.hint_steps = 0
    assert uft.drawn(settings, 1, 0, 5) == 0


# -- ReLIFT


def test_relift_has_no_clip():
    made = scores([[0.0, -1.0]])
    given = columns(advantage=[2.0], keep=[1], old_logprob=[[-1.0, -1.0]])
    loss, _ = policy_gradient(made, given, totals(2.0, 1.0), settings=GRPO, surrogate=UNCLIPPED)
    assert float(loss) == pytest.approx(-2 * (math.e + 1) / 2, abs=1e-9)


def test_imitation_is_a_token_mean_with_an_entropy_bonus():
    made = scores([[-1.0, -2.0], [-3.0, -9.0]], [[1.0, 1.0], [4.0, 9.0]], mask=[[1, 1], [1, 0]])
    loss, metrics = imitation(made, {}, {"tokens": 3.0}, entropy_coef=0.001)
    assert float(loss) == pytest.approx(2 - 0.001 * 2, abs=1e-12)
    assert float(metrics["nll"][0] / metrics["nll"][1]) == 2


# -- best of N


def test_the_gradient_of_best_of_n_is_that_of_its_success():
    """A policy over five answers, two of them right: the exact and the positive form against autograd of 1 - p^N."""
    logits = torch.tensor([0.3, -0.4, 0.1, 0.8, -1.0], dtype=torch.float64).requires_grad_()
    right, n = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64), 8
    policy = torch.softmax(logits, 0)
    failure = (policy * (1 - right)).sum()
    (expected,) = torch.autograd.grad(1 - failure**n, logits, retain_graph=True)
    p = np.full(5, float(failure))
    exact, plus, minus = bon_aware.weights(p, n, most=1e9)
    centred = (right - (policy * right).sum()).detach()

    def gradient(advantage):
        return torch.autograd.grad((policy.detach() * advantage * policy.log()).sum(), logits, retain_graph=True)[0]

    assert torch.allclose(gradient(torch.tensor(exact) * centred), expected, atol=1e-12)
    assert torch.allclose(gradient(torch.tensor(exact) * right), expected, atol=1e-12)
    both = gradient(torch.where(right > 0, torch.tensor(plus), -torch.tensor(minus)))
    assert torch.allclose(both / both.norm(), expected / expected.norm(), atol=1e-12), "the same direction"
    # of best-of-N samples 1 - p^N are right, so that the published weight is the same one there
    published = exact[0] * float((1 - failure) / (1 - failure**n))
    assert published * float(1 - failure**n) / float(1 - failure) == pytest.approx(exact[0])


def test_weights_of_best_of_n():
    exact, plus, minus = bon_aware.weights(np.array([0.0, 0.5, 0.9, 1.0]), 4, most=3.0)
    assert exact == pytest.approx([0, 4 * 0.125, 4 * 0.729, 4])
    assert plus == pytest.approx([0, 0.5 / 0.9375, min(3, 2.916 / (1 - 0.6561)), 3])
    assert minus == pytest.approx([0, 3, 3, 3]), "4 * 0.5 / 0.5 is above the bound already"


def test_failures_are_counted_over_the_others():
    right, group = np.array([1.0, 0, 0, 1, 1, np.nan, 0]), [0, 0, 0, 0, 1, 1, 1]
    assert bon_aware.failures(right, group, "group") == pytest.approx([0.5] * 4 + [0.5, np.nan, 0.5], nan_ok=True)
    expected = [2 / 3, 1 / 3, 1 / 3, 2 / 3, 1, np.nan, 0]
    assert bon_aware.failures(right, group, "leave_one_out") == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("form", ["exact", "positive", "two_sided"])
def test_advantages_of_best_of_n(form):
    """One right of four: for the right one all others fail (p = 1), for a wrong one two of three."""
    settings = SimpleNamespace(best_of=4, form=form, failure="leave_one_out", most=3.0)
    ctx = SimpleNamespace(settings=settings, data=SimpleNamespace(task=SimpleNamespace(verdict="reward")))
    made = Rollouts.of(["a"] * 4, [*"xyzw"], rewards=[1, 0, 0, 0])
    centred = np.array([0.75, -0.25, -0.25, -0.25])
    found = bon_aware.advantages(ctx, made, centred)
    weight = 4 * (2 / 3) ** 3
    wanted = {
        "exact": [4 * 0.75] + [weight * -0.25] * 3,
        "positive": [4.0, 0, 0, 0],
        "two_sided": [3.0] + [-3.0] * 3,  # g- = 4 (2/3) / (1/3) = 8, held to 3
    }[form]
    assert found == pytest.approx(wanted)
    solved = Rollouts.of(["a"] * 4, [*"xyzw"], rewards=[1, 1, 1, 1])
    assert not bon_aware.advantages(ctx, solved, np.zeros(4)).any(), "p = 0 teaches nothing"
