"""Objectives and reductions against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.objectives import finish
from workbench.objectives.policy_gradient import clipped, k3, reduce
from workbench.objectives.preference import sigmoid
from workbench.objectives.supervised import nll
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
    loss, metrics = nll(given, {"weight": column([1, 1], [1, 0])}, {"tokens": 3.0})
    assert loss.item() == pytest.approx((1 + 2 + 4) / 3)
    assert finish(metrics) == pytest.approx({"mean_token_accuracy": 1 / 3, "entropy": 3.0})
    loss.backward()
    assert given.logprob.grad.tolist() == [[pytest.approx(-1 / 3)] * 2, [pytest.approx(-1 / 3), 0.0]]


def test_nll_weights_count_in_the_sum_and_not_in_the_number_of_tokens():
    given = scores([[-1.0, -2.0, -4.0]])
    loss, metrics = nll(given, {"weight": column([0.5, 3, 1])}, {"tokens": 3.0})
    assert loss.item() == pytest.approx((0.5 + 6 + 4) / 3)
    assert metrics["entropy"][1].item() == 3


# -- preference


def pair(chosen: float, rejected: float, ref_chosen: float = 0.0, ref_rejected: float = 0.0):
    return scores([[chosen], [rejected]]), {"ref_logprob": column([ref_chosen], [ref_rejected])}


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


# -- policy gradient


def surrogate(given, advantage, old=None, *, loss_type="bnpo", epsilon_high=0.28, beta=0.0, **columns):
    """`clipped` on rows with these advantages, its totals being those of the batch alone."""
    how = {"correct_kl": columns.pop("correct_kl")} if "correct_kl" in columns else {}
    keep = columns.pop("keep", torch.ones(len(given.logprob)))
    made = {"advantage": column(*advantage), "keep": keep} | columns
    if old is not None:
        made["old_logprob"] = old
    tokens = float((given.mask * keep[:, None]).sum())
    totals = {"tokens": tokens, "tokens_share": tokens, "rows": float(len(advantage)), "max_tokens": 4.0}
    return clipped(
        given, made, totals, loss_type=loss_type, epsilon_low=0.2, epsilon_high=epsilon_high, beta=beta, **how
    )


CLIPPED = [
    (1.5, 1.0, 1.28, 0.0),
    (1.5, -1.0, -1.5, -1.5),
    (0.5, 1.0, 0.5, 0.5),
    (0.5, -1.0, -0.8, 0.0),
    (1.1, 2.0, 2.2, 2.2),
]


@pytest.mark.parametrize("ratio, advantage, expected, gradient", CLIPPED)
def test_clipped_surrogate_by_hand(ratio, advantage, expected, gradient):
    given = scores([[math.log(ratio) - 3.0]])
    loss, _ = surrogate(given, [advantage], column([-3.0]))
    assert -loss.item() == pytest.approx(expected)
    loss.backward()  # d rho / d logprob = rho, or 0 where clipped
    assert -given.logprob.grad.item() == pytest.approx(gradient)


def test_without_old_log_probs_the_ratio_is_one_and_has_a_gradient():
    given = scores([[-3.0, -1.0]])
    loss, metrics = surrogate(given, [2.0])
    assert loss.item() == -2.0
    loss.backward()
    assert given.logprob.grad.tolist() == [[-1.0, -1.0]]
    assert finish(metrics)["clip_ratio/region_mean"] == 0


def test_clip_ratios_count_what_the_clip_changes():
    # ratios 1.5, 0.5 with advantage 1 (clipped above: 1 of 2), and with advantage -1 (clipped below: 1 of 2);
    # the last token is masked
    logs = [math.log(1.5), math.log(0.5), math.log(1.5)]
    given = scores([logs, logs], mask=[[1, 1, 0], [1, 1, 0]])
    _, metrics = surrogate(given, [1.0, -1.0], torch.zeros(2, 3))
    shown = finish(metrics)
    assert shown["clip_ratio/high_mean"] == 0.25 and shown["clip_ratio/low_mean"] == 0.25
    assert shown["clip_ratio/region_mean"] == 0.5


def test_k3_by_hand():
    d = column(0.5, -0.5, 0.0)
    assert k3(column(-2, -2, -2), -2 + d).tolist() == pytest.approx([0.14872, 0.10653, 0.0], abs=5e-6)


@pytest.mark.parametrize("correct, slope", [(False, 1 - math.exp(0.5)), (True, -0.5)])
def test_kl_term_and_its_gradient(correct, slope):
    # d = ref - policy = 0.5, on policy: the value is k3 either way. Its gradient is 1 - exp(d); with the
    # correction k3 + (1 - exp(d)) = -d, which is that of the KL itself
    given = scores([[-2.0]])
    loss, metrics = surrogate(given, [0.0], ref_logprob=column([-1.5]), beta=0.1, correct_kl=correct)
    assert loss.item() == pytest.approx(0.1 * 0.14872, abs=1e-6)
    assert finish(metrics)["kl"] == pytest.approx(0.14872, abs=5e-6)
    loss.backward()
    assert given.logprob.grad.item() == pytest.approx(0.1 * slope)


def test_kl_is_weighted_by_the_stale_ratio():
    given = scores([[-2.0]])
    _, metrics = surrogate(given, [0.0], column([-2.0 - math.log(3)]), ref_logprob=column([-1.5]), beta=0.1)
    assert finish(metrics)["kl"] == pytest.approx(3 * 0.14872, abs=2e-5)


def test_the_gap_to_the_sampler_is_shown():
    given = scores([[-2.0, -1.0]])
    _, metrics = surrogate(given, [1.0], sampler_logprob=column([-2.25, -0.25]))
    assert finish(metrics)["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5)


REDUCTIONS = {"grpo": 1.5, "bnpo": 1.75, "dapo": 1.75, "dr_grpo": 0.875}
"""of two rows with 1 token of loss 1 and 3 tokens of loss 2, with a limit of 4 tokens"""


@pytest.mark.parametrize("loss_type, expected", REDUCTIONS.items())
def test_reductions_by_hand(loss_type, expected):
    token_loss, mask = column([1, 9, 9], [2, 2, 2]), column([1, 0, 0], [1, 1, 1])
    totals = {"tokens": 4.0, "tokens_share": 4.0, "rows": 2.0, "max_tokens": 4.0}
    assert reduce(token_loss, mask, totals, loss_type).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss_type, expected", REDUCTIONS.items())
def test_reductions_of_parts_add_up(loss_type, expected):
    token_loss, mask = column([1, 9, 9], [2, 2, 2]), column([1, 0, 0], [1, 1, 1])
    totals = {"tokens": 4.0, "tokens_share": 4.0, "rows": 2.0, "max_tokens": 4.0}
    parts = [reduce(token_loss[i : i + 1], mask[i : i + 1], totals, loss_type).item() for i in range(2)]
    assert sum(parts) == pytest.approx(expected) and parts[0] > 0


def test_dapo_divides_by_the_tokens_of_the_sampling_and_bnpo_by_those_of_the_update():
    totals = {"tokens": 4.0, "tokens_share": 10.0, "rows": 2.0, "max_tokens": 4.0}
    token_loss, mask = column([1, 9, 9], [2, 2, 2]), column([1, 0, 0], [1, 1, 1])
    assert reduce(token_loss, mask, totals, "dapo").item() == pytest.approx(0.7)
    assert reduce(token_loss, mask, totals, "bnpo").item() == pytest.approx(1.75)


LEFT_OUT = {"grpo": 1.0, "bnpo": 2.0, "dapo": 2.0, "dr_grpo": 0.75}


@pytest.mark.parametrize("loss_type, expected", LEFT_OUT.items())
def test_rows_left_out_have_no_loss_and_no_metrics(loss_type, expected):
    # row 0 is left out: "grpo" and "dr_grpo" still count it among the rows, as TRL does
    given = scores([[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]], entropy=[[5.0] * 3, [1.0] * 3])
    loss, metrics = surrogate(given, [-7.0, -2.0], loss_type=loss_type, keep=column(0, 1))
    assert loss.item() == pytest.approx(expected)
    assert finish(metrics)["entropy"] == 1.0
    loss.backward()
    assert given.logprob.grad[0].tolist() == [0, 0, 0]


def test_unknown_reduction():
    with pytest.raises(ValueError, match="median"):
        reduce(column([1]), column([1]), {}, "median")


def test_finish_gives_nan_where_nothing_was_counted():
    assert math.isnan(finish({"kl": (0.0, 0.0)})["kl"])
