"""The parts of policy-gradient losses against numbers worked by hand, and the tables they stand in."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from workbench.advantages import AGGREGATIONS, ESTIMATORS
from workbench.objectives import finish
from workbench.objectives.kl import KL, k1, k2, k3
from workbench.objectives.policy_gradient import LOSS_TYPES, high_entropy, objective
from workbench.objectives.reductions import REDUCTIONS
from workbench.objectives.sampler import MODES, correction
from workbench.objectives.surrogates import SURROGATES, Terms, ratio_of
from workbench.scoring import TokenScores
from workbench.settings import GRPOSettings, make
from workbench.settings import rl as rl_settings

log = math.log


def scores(logprob, mask=None, entropy=None) -> TokenScores:
    """TokenScores of (B, T) lists; every token counts unless `mask` says otherwise."""
    logprob = torch.tensor(logprob, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(logprob.shape) if mask is None else torch.tensor(mask)
    entropy = torch.zeros(logprob.shape) if entropy is None else torch.tensor(entropy)
    return TokenScores(logprob, entropy.double(), torch.zeros(logprob.shape).bool(), mask.bool())


def column(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(given, advantage, old=None, columns=None, max_tokens=4, **settings):
    """Loss and shown metrics of rows with these advantages, the totals being those of the batch alone. bnpo unless
    said otherwise: the mean over tokens."""
    made = {"advantage": column(*advantage), "keep": torch.ones(len(advantage))} | (columns or {})
    if old is not None:
        made["old_logprob"] = old
    tokens = float((given.mask * made["keep"][:, None]).sum())
    totals = {"tokens": tokens, "tokens_share": tokens, "rows": float(len(advantage)), "max_tokens": float(max_tokens)}
    settings = make("grpo", {"loss_type": "bnpo"} | settings)
    loss, metrics = objective(settings)(given, made, totals)
    return loss, finish(metrics)


def one_token(ratio: float, advantage: float, **settings) -> tuple[float, float]:
    """Objective (minus the loss) and its slope in the log-prob, for one token with log-prob -3."""
    given = scores([[-3.0]])
    loss, _ = loss_of(given, [advantage], column([-3.0 - log(ratio)]), **settings)
    loss.backward()
    return -loss.item(), -given.logprob.grad.item()


# -- surrogates


CLIPPED = [
    (1.5, 1.0, 1.28, 0.0),
    (1.5, -1.0, -1.5, -1.5),
    (0.5, 1.0, 0.5, 0.5),
    (0.5, -1.0, -0.8, 0.0),
    (1.1, 2.0, 2.2, 2.2),
]


@pytest.mark.parametrize("ratio, advantage, value, slope", CLIPPED)
def test_clip(ratio, advantage, value, slope):
    # d rho / d logprob = rho, or 0 where clipped
    assert one_token(ratio, advantage, epsilon_high=0.28) == pytest.approx((value, slope))


@pytest.mark.parametrize("ratio, value, slope", [(1.5, -1.5, -1.5), (3.0, -2.0, 0.0), (0.5, -0.8, 0.0)])
def test_delta_bounds_the_ratio_of_negative_advantages(ratio, value, slope):
    assert one_token(ratio, -1.0, delta=2.0) == pytest.approx((value, slope))
    assert one_token(ratio, 1.0, delta=2.0) == pytest.approx(one_token(ratio, 1.0))


@pytest.mark.parametrize(
    "ratio, advantage, weight", [(0.5, 1.0, 0.5), (3.0, 1.0, 3.0), (9.0, 1.0, 5.0), (9.0, -2.0, 5.0)]
)
def test_cispo_caps_the_weight_and_keeps_the_gradient(ratio, advantage, weight):
    value, slope = one_token(ratio, advantage, loss_type="cispo", epsilon_high=5.0)
    assert (value, slope) == pytest.approx((weight * advantage * -3.0, weight * advantage))


def test_cispo_shows_what_it_caps():
    given = scores([[-1.0, -1.0], [-1.0, -1.0]])
    old = column([-1 - log(6), -1], [-1 - log(6), -1])
    _, shown = loss_of(given, [1.0, -1.0], old, loss_type="cispo", epsilon_high=5.0)
    assert shown["cispo_clip_ratio"] == 0.25 and "clip_ratio/low_mean" not in shown


@pytest.mark.parametrize("advantage, k", [(1.0, 2.0), (-1.0, 3.0)])
def test_sapo(advantage, k):
    value, slope = one_token(1.5, advantage, loss_type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=3.0)
    gate = 1 / (1 + math.exp(-k * 0.5))
    assert value == pytest.approx(4 / k * gate * advantage)
    assert slope == pytest.approx(4 * gate * (1 - gate) * 1.5 * advantage)
    at_one = one_token(1.0, advantage, loss_type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=3.0)
    assert at_one == pytest.approx((2 / k * advantage, advantage)), "on policy the gradient is that of rho A"


def test_sequence_ratio_is_the_geometric_mean():
    # log-ratios 0.2 and 0.4: s = exp(0.3), the same for both tokens; a masked third does not count
    given = scores([[-1.0, -1.0, -9.0]], mask=[[1, 1, 0]])
    old = column([-1.2, -1.4, 0.0])
    loss, shown = loss_of(given, [-2.0], old, importance_sampling_level="sequence", loss_type="grpo")
    assert loss.item() == pytest.approx(2 * math.exp(0.3))
    loss.backward()
    assert given.logprob.grad.tolist() == [pytest.approx([math.exp(0.3)] * 2 + [0.0])]
    _, shown = loss_of(given, [2.0], old, importance_sampling_level="sequence", loss_type="grpo")
    assert shown["clip_ratio/high_mean"] == 1 and shown["clip_ratio/low_mean"] == 0


def test_sequence_sum_is_the_ratio_of_whole_completions():
    given = scores([[-1.0, -1.0]])
    loss, _ = loss_of(given, [-2.0], column([-1.2, -1.4]), importance_sampling_level="sequence_sum", loss_type="grpo")
    assert loss.item() == pytest.approx(2 * math.exp(0.6))
    assert ratio_of(column([0.2, 0.4]), column([0, 0]), "sequence_sum").item() == 1


def test_gmpo():
    # log-ratios 0.1 and 0.9, the second cut at 0.4 where A > 0; the low side is cut where A < 0
    given = scores([[-1.0, -1.0]])
    old = column([-1.1, -1.9])
    loss, shown = loss_of(given, [2.0], old, loss_type="gmpo", epsilon=0.4)
    assert -loss.item() == pytest.approx(2 * math.exp(0.25)) and shown["clip_ratio/high_mean"] == 0.5
    loss.backward()
    assert -given.logprob.grad[0] == pytest.approx(column(math.exp(0.25), 0.0))
    loss, shown = loss_of(given, [-2.0], old, loss_type="gmpo", epsilon=0.4)
    assert loss.item() == pytest.approx(2 * math.exp(0.5)) and shown["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("advantage, k, fall", [(1.0, 2.0, 3.0), (-1.0, 3.0, 2.0)])
def test_vespo(advantage, k, fall):
    given = scores([[-1.0, -2.0]])
    loss, shown = loss_of(given, [advantage], column([-1.1, -2.2]), loss_type="vespo")
    w = math.exp(0.3)
    phi = math.exp(fall) * w**k * math.exp(-fall * w)
    assert shown["vespo/phi_seq_mean"] == pytest.approx(phi)
    assert loss.item() == pytest.approx(phi * advantage * 1.5)
    _, shown = loss_of(given, [advantage], loss_type="vespo")
    assert shown["vespo/phi_seq_mean"] == 1, "on policy it is 1"


def test_without_old_log_probs_the_ratio_is_one_and_has_a_gradient():
    given = scores([[-3.0, -1.0]])
    loss, shown = loss_of(given, [2.0])
    assert loss.item() == -2.0
    loss.backward()
    assert given.logprob.grad.tolist() == [[-1.0, -1.0]]
    assert shown["clip_ratio/region_mean"] == 0


def test_clip_ratios_count_what_the_clip_changes():
    # ratios 1.5, 0.5 with advantage 1 (clipped above: 1 of 2), and with advantage -1 (clipped below: 1 of 2); the
    # last token is masked, and so is the last row
    logs = [log(1.5), log(0.5), log(1.5)]
    given = scores([logs, logs, logs], mask=[[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    _, shown = loss_of(given, [1.0, -1.0, 1.0], torch.zeros(3, 3))
    assert shown["clip_ratio/high_mean"] == 0.25 and shown["clip_ratio/low_mean"] == 0.25
    assert shown["clip_ratio/region_mean"] == 0.5
    assert shown["clip_ratio/high_max"] == 0.5 and shown["clip_ratio/low_min"] == 0


def test_advantages_of_single_tokens():
    given = scores([[-1.0, -1.0], [-1.0, -1.0]])
    loss, _ = loss_of(given, [[1.0, 3.0], [0.0, -2.0]])
    assert loss.item() == pytest.approx(-0.5)
    loss.backward()
    assert given.logprob.grad.tolist() == [[-0.25, -0.75], [0.0, 0.5]]


# -- KL, entropy, masks


def test_kl_estimates():
    ref = column(-1.5, -2.5, -2.0)  # d = 0.5, -0.5, 0
    lp = column(-2, -2, -2)
    assert k1(lp, ref).tolist() == [-0.5, 0.5, 0.0]
    assert k2(lp, ref).tolist() == [0.125, 0.125, 0.0]
    assert k3(lp, ref).tolist() == pytest.approx([0.14872, 0.10653, 0.0], abs=5e-6)


SLOPES = [
    ("k3", False, 1 - math.exp(0.5)), ("k3", True, -0.5), ("k2", False, -0.5), ("k2", True, -0.5 + 0.125),
    ("k1", False, 1.0), ("k1", True, 1.0 - 0.5),
]  # fmt: skip


@pytest.mark.parametrize("kind, correct, slope", SLOPES)
def test_kl_term_and_its_gradient(kind, correct, slope):
    # d = ref - policy = 0.5, on policy: the value is the estimate either way; the gradient is that of the KL, -d,
    # for corrected k3 and plain k2 (and in expectation for corrected k1, where the mean of 1 * grad lp is 0)
    given = scores([[-2.0]])
    how = {"beta": 0.1, "kl_estimator": kind, "use_bias_correction_kl": correct}
    loss, shown = loss_of(given, [0.0], columns={"ref_logprob": column([-1.5])}, **how)
    value = {"k1": -0.5, "k2": 0.125, "k3": 0.1487213}[kind]
    assert loss.item() == pytest.approx(0.1 * value) and shown["kl"] == pytest.approx(value)
    loss.backward()
    assert given.logprob.grad.item() == pytest.approx(0.1 * slope)


def test_kl_is_weighted_by_the_stale_ratio():
    given, ref = scores([[-2.0]]), {"ref_logprob": column([-1.5])}
    _, shown = loss_of(given, [0.0], column([-2.0 - log(3)]), ref, beta=0.1)
    assert shown["kl"] == pytest.approx(3 * 0.14872, abs=2e-5)


def test_with_the_kl_in_the_reward_the_loss_has_none():
    loss, shown = loss_of(scores([[-2.0]]), [0.0], columns={"ref_logprob": column([-1.5])}, beta=0.1, kl_in_reward=True)
    assert loss.item() == 0 and "kl" not in shown


def test_entropy_bonus_is_the_mean_entropy_whatever_the_reduction():
    for loss_type in ("bnpo", "grpo", "dr_grpo", "luspo", "gmpo"):
        given = scores([[-1.0, -9.0], [-1.0, -1.0]], mask=[[1, 0], [1, 1]], entropy=[[1.0, 50.0], [2.0, 6.0]])
        plain, _ = loss_of(given, [1.0, -1.0], loss_type=loss_type)
        loss, shown = loss_of(given, [1.0, -1.0], loss_type=loss_type, entropy_coef=0.5)
        assert loss.item() == pytest.approx(plain.item() - 0.5 * 3.0), loss_type
        assert shown["policy_loss"] == pytest.approx(plain.item()) and shown["entropy"] == pytest.approx(3.0)


def test_high_entropy_tokens():
    # of entropies 1, 2, 4, 8 (and a masked 100) the upper 40 % is at or above the quantile 0.6, 2 + 0.8 * 2 = 3.6
    entropy, mask = column([1, 8, 100], [2, 4, 100]), column([1, 1, 0], [1, 1, 0])
    assert high_entropy(entropy, mask, 0.4).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert high_entropy(entropy, mask, 1e-9).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert high_entropy(entropy, torch.zeros(2, 3), 0.4).sum() == 0
    given = scores([[-1.0, -1.0, -9.0]] * 2, mask=[[1, 1, 0]] * 2, entropy=entropy.tolist())
    loss, shown = loss_of(given, [3.0, 5.0], top_entropy_quantile=0.4, entropy_coef=0.5)
    assert loss.item() == pytest.approx(-(3.0 + 5.0) / 4 - 0.5 * 6), "the loss is still over all four tokens"
    assert shown["entropy"] == pytest.approx(15 / 4) and shown["entropy/trained_tokens"] == pytest.approx(6.0)
    loss.backward()
    assert given.logprob.grad.tolist() == [[0, -0.75, 0], [0, -1.25, 0]]


def test_rows_that_are_off_policy_are_dropped_where_the_advantage_is_negative():
    # mean (old - logprob): 0.3 for rows 0 and 1, 0.1 for row 2; the threshold is 0.2
    given = scores([[-1.0, -1.0]] * 3)
    old = column([-0.9, -0.5], [-0.9, -0.5], [-0.9, -0.9])
    loss, _ = loss_of(given, [-1.0, 1.0, -1.0], old, off_policy_mask_threshold=0.2, epsilon=0.9)
    loss.backward()
    assert (given.logprob.grad != 0).tolist() == [[False] * 2, [True] * 2, [True] * 2]
    # the sampler's log-probs go before the old ones; one that is missing counts as equal
    given.logprob.grad = None
    sampler = {"sampler_logprob": column([-1.0, math.nan], [0, 0], [0.0, 0.0])}
    loss, _ = loss_of(given, [-1.0, 1.0, -1.0], old, sampler, off_policy_mask_threshold=0.2, epsilon=0.9)
    loss.backward()
    assert (given.logprob.grad != 0).tolist() == [[True] * 2, [True] * 2, [False] * 2]


def test_the_gap_to_the_sampler_is_shown():
    given = scores([[-2.0, -1.0, -5.0]])
    _, shown = loss_of(given, [1.0], columns={"sampler_logprob": column([-2.25, -0.25, math.nan])})
    assert shown["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5)
    assert shown["sampling/sampling_logp_difference/max"] == pytest.approx(0.75)


WEIGHTS = {
    "token_truncate": [[2.0, 0.5, 1.0, 1.0]],
    "token_mask": [[0.0, 0.5, 1.0, 1.0]],
    "sequence_truncate": [[2.0]],
    "sequence_mask": [[0.0]],
}


@pytest.mark.parametrize("mode, expected", WEIGHTS.items())
def test_correction_for_the_sampler(mode, expected):
    # ratios 8 and 1/2; the sampler did not give the third, the fourth is masked: 4 in all
    old, mask = column([0.0, 0.0, 0.0, 0.0]), column([1, 1, 1, 0])
    sampler = column([-log(8), log(2), math.nan, 7.0])
    assert correction(old, sampler, mask, mode, None, 2.0).tolist() == [pytest.approx(row) for row in expected]
    if mode == "token_mask":
        assert correction(old, sampler, mask, mode, 0.6, None).tolist() == [pytest.approx([8.0, 0.0, 1.0, 1.0])]
    if mode == "sequence_truncate":
        assert correction(old, sampler, mask, mode, 5.0, None).item() == 5


def test_the_correction_weighs_the_policy_term_and_not_the_kl():
    given = scores([[-1.0, -1.0]])
    columns = {"ref_logprob": column([-0.5, -0.5]), "sampler_weight": column([0.5, 2.0])}
    loss, shown = loss_of(given, [2.0], columns=columns, beta=0.1)
    assert loss.item() == pytest.approx(-2 * 1.25 + 0.1 * 0.1487213) and shown["kl"] == pytest.approx(0.1487213)
    columns["sampler_weight"] = column(0.5)  # one for the row
    assert loss_of(given, [2.0], columns=columns)[0].item() == pytest.approx(-1.0)


# -- reductions


REDUCED = {"grpo": 1.5, "bnpo": 1.75, "dapo": 1.75, "dr_grpo": 0.875, "luspo": 3.5}
"""of two rows with 1 token of loss 1 and 3 tokens of loss 2, with a limit of 4 tokens"""
LOSS, MASK = column([1, 9, 9], [2, 2, 2]), column([1, 0, 0], [1, 1, 1])
TOTALS = {"tokens": 4.0, "tokens_share": 4.0, "rows": 2.0, "max_tokens": 4.0}


@pytest.mark.parametrize("name, expected", REDUCED.items())
def test_reductions(name, expected):
    reduce = REDUCTIONS[name].function
    assert reduce(LOSS, MASK, TOTALS).item() == pytest.approx(expected)
    parts = [reduce(LOSS[i : i + 1], MASK[i : i + 1], TOTALS).item() for i in range(2)]
    assert sum(parts) == pytest.approx(expected) and parts[0] > 0, "the parts of an update add up"


def test_dapo_divides_by_the_tokens_of_the_sampling_and_bnpo_by_those_of_the_update():
    totals = TOTALS | {"tokens_share": 10.0}
    assert REDUCTIONS["dapo"].function(LOSS, MASK, totals).item() == pytest.approx(0.7)
    assert REDUCTIONS["bnpo"].function(LOSS, MASK, totals).item() == pytest.approx(1.75)


LEFT_OUT = {"grpo": 1.0, "bnpo": 2.0, "dapo": 2.0, "dr_grpo": 0.75, "luspo": 3.0, "gmpo": 1.0, "sapo": 2.0 / 1.05}


@pytest.mark.parametrize("loss_type, expected", LEFT_OUT.items())
def test_rows_left_out_have_no_loss_and_no_metrics(loss_type, expected):
    # row 0 is left out: the means over rows still count it among the rows, as TRL does
    given = scores([[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]], entropy=[[5.0] * 3, [1.0] * 3])
    loss, shown = loss_of(given, [-7.0, -2.0], columns={"keep": column(0, 1)}, loss_type=loss_type)
    assert loss.item() == pytest.approx(expected)
    assert shown["entropy"] == 1.0
    loss.backward()
    assert given.logprob.grad[0].tolist() == [0, 0, 0] and given.logprob.grad[1].sum() > 0


# -- tables


def test_the_tables_and_the_settings_know_the_same_names():
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(GRPOSettings) if f.metadata.get("choices")}
    assert list(choices["loss_type"]) == list(LOSS_TYPES)
    assert list(choices["kl_estimator"]) == list(KL) and list(choices["sampler_correction"]) == list(MODES)
    assert list(choices["advantage_estimator"]) == list(ESTIMATORS)
    assert list(choices["multi_objective_aggregation"]) == list(AGGREGATIONS)
    assert set(rl_settings.COMPARING) == {name for name, row in ESTIMATORS.items() if row.compares}
    for kind in LOSS_TYPES.values():
        assert kind.surrogate in SURROGATES and kind.reduction in REDUCTIONS
    readers: dict[str, set] = {}
    for name, kind in LOSS_TYPES.items():
        for setting in SURROGATES[kind.surrogate].reads:
            readers.setdefault(setting, set()).add(name)
    # cispo falls back to epsilon, which is told, but does not need it
    assert {name: set(kinds) for name, kinds in rl_settings.READ_BY.items()} == readers


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_reads_the_settings_it_names(name):
    row = SURROGATES[name]
    values = dataclasses.asdict(make("grpo", {"epsilon_high": 0.3}))
    bare = SimpleNamespace(**{setting: values[setting] for setting in row.reads})
    lp, mask = column([-1.0, -2.0]), column([1, 1])
    ratio = torch.exp(column([0.3, -0.4]))
    terms = Terms(lp, column([0.3, -0.4]), ratio, column([1.0]), mask, mask)
    bare.epsilon = values["epsilon"]  # asked for together with epsilon_high
    loss, metrics = row.function(terms, bare)
    assert loss.isfinite().all() and all(math.isfinite(v) for v in finish(metrics).values())
    assert row.paper and row.formula


def test_what_an_objective_asks_for():
    assert objective(make("grpo", {})).needs == frozenset() and not objective(make("grpo", {})).coupled
    assert objective(make("grpo", {"entropy_coef": 0.1})).needs == {"entropy"}
    assert objective(make("grpo", {"use_adaptive_entropy": True})).needs == {"entropy"}
    assert objective(make("grpo", {"top_entropy_quantile": 0.2})).coupled
