"""Objectives against numbers worked by hand; those of policy gradients stand in test_policy_gradient.py."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.objectives import finish, least_of, most_of
from workbench.objectives.preference import objective
from workbench.objectives.supervised import weighted
from workbench.scoring import TokenScores


def scores(logprob, mask=None, entropy=None, top1=None) -> TokenScores:
    """TokenScores of (B, T) lists; every token counts unless `mask` says otherwise."""
    logprob = torch.tensor(logprob, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(logprob.shape) if mask is None else torch.tensor(mask)
    entropy = torch.zeros(logprob.shape) if entropy is None else torch.tensor(entropy)
    top1 = torch.zeros(logprob.shape) if top1 is None else torch.tensor(top1)
    return TokenScores(logprob, entropy.double(), top1.bool(), mask.bool())


def column(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- supervised


def test_nll_by_hand():
    # trained tokens -1, -2, -4; the -9 is context, the last 0 padding
    given = scores([[-1.0, -2.0], [-4.0, -9.0]], entropy=[[1.0, 2.0], [6.0, 50.0]], top1=[[1, 0], [0, 1]])
    loss, metrics = weighted(given, {"weight": column([1, 1], [1, 0])}, {"tokens": 3.0})
    assert loss.item() == pytest.approx((1 + 2 + 4) / 3)
    assert finish(metrics) == pytest.approx({"mean_token_accuracy": 1 / 3, "entropy": 3.0, "nll": 7 / 3})
    loss.backward()
    assert given.logprob.grad.tolist() == [[pytest.approx(-1 / 3)] * 2, [pytest.approx(-1 / 3), 0.0]]


def test_nll_weights_count_in_the_sum_and_not_in_the_number_of_tokens():
    given = scores([[-1.0, -2.0, -4.0]])
    loss, metrics = weighted(given, {"weight": column([0.5, 3, 1])}, {"tokens": 3.0})
    assert loss.item() == pytest.approx((0.5 + 6 + 4) / 3)
    assert metrics["entropy"][1].item() == 3


# -- preference


def pair(chosen: float, rejected: float, ref_chosen: float = 0.0, ref_rejected: float = 0.0):
    return scores([[chosen], [rejected]]), {"ref_logprob": column([ref_chosen], [ref_rejected])}


def sigmoid(given, columns, totals, beta: float):
    """DPO's loss and metrics; every other loss on pairs is worked by hand in test_preference.py."""
    tokens = float(given.mask[0::2].sum())
    return objective({"sigmoid": 1.0}, {"beta": beta})(
        given, columns, totals | {"chosen_tokens": tokens, "text_tokens": tokens}
    )


def test_sigmoid_by_hand():
    # log-ratios 1.2 and -0.8: -log sigmoid(0.1 * 2)
    given, columns = pair(-2.0, -5.0, -3.2, -4.2)
    loss, metrics = sigmoid(given, columns, {"pairs": 1.0}, beta=0.1)
    assert loss.item() == pytest.approx(0.59814, abs=5e-6)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2)), rel=1e-12)
    shown = finish(metrics)
    assert shown["rewards/chosen"] == pytest.approx(0.12)
    assert shown["rewards/rejected"] == pytest.approx(-0.08)
    assert shown["rewards/margins"] == pytest.approx(0.2) and shown["rewards/accuracies"] == 1
    assert shown["logps/chosen"] == -2 and shown["logps/rejected"] == -5
    # d loss / d chosen = -beta * sigmoid(-beta D)
    loss.backward()
    slope = 0.1 / (1 + math.exp(0.2))
    assert given.logprob.grad[:, 0].tolist() == pytest.approx([-slope, slope])


def test_sigmoid_at_the_reference_is_log_two():
    given, columns = pair(-2.0, -5.0, -2.0, -5.0)
    loss, metrics = sigmoid(given, columns, {"pairs": 1.0}, beta=0.7)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert finish(metrics)["rewards/accuracies"] == 0  # a tie is not right


def test_sigmoid_of_several_pairs():
    # pair 0: log-ratios 1 and 0 over two tokens; pair 1: -1 and 1. A masked token (-7) counts nowhere
    given = scores(
        [[-1.0, -1.0], [-2.0, -7.0], [-3.0, -7.0], [-1.0, -1.0]],
        mask=[[1, 1], [1, 0], [1, 0], [1, 1]],
        entropy=[[1.0, 1.0], [2.0, 9.0], [3.0, 9.0], [4.0, 4.0]],
        top1=[[1, 0], [1, 1], [1, 1], [1, 1]],
    )
    columns = {"ref_logprob": column([-1.5, -1.5], [-2, -5], [-2, -5], [-2, -1])}
    loss, metrics = sigmoid(given, columns, {"pairs": 2.0}, beta=1.0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2)
    shown = finish(metrics)
    assert shown["rewards/accuracies"] == 0.5 and shown["rewards/margins"] == pytest.approx((1 - 2) / 2)
    assert shown["logps/chosen"] == pytest.approx(-2.5) and shown["logps/rejected"] == pytest.approx(-2.0)
    assert shown["entropy"] == pytest.approx((1 + 1 + 2 + 3 + 4 + 4) / 6)
    assert shown["mean_token_accuracy"] == pytest.approx(2 / 3)  # of the chosen answers' tokens, as in TRL


# -- metrics


def test_finish_gives_nan_where_nothing_was_counted():
    assert math.isnan(finish({"kl": (0.0, 0.0)})["kl"])


def test_finish_adds_pairs_up_and_takes_extremes_over_the_parts():
    parts = [
        {"mean": (column(3.0)[0], column(2.0)[0]), "low": least_of(column(2, math.nan)), "high": most_of(column(2, 5))},
        {"mean": (column(1.0)[0], column(6.0)[0]), "low": least_of(column(1, 3)), "high": most_of(column(math.nan))},
    ]
    assert finish(*parts) == {"mean": 0.5, "low": 1.0, "high": 5.0}
    assert math.isnan(finish({"low": least_of(column(math.nan))})["low"])
