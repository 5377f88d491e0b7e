"""Preference losses on pairs: every row of the table by hand, the settings' checks, micro-batches."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import rows_for
from workbench.errors import DataError, SettingError
from workbench.objectives import finish
from workbench.objectives.pairs import DIVERGENCES, PairScores, agreement, pair_scores
from workbench.objectives.preference import LOSSES, log_odds, objective, shaped
from workbench.run import Gradients
from workbench.scoring import TokenScores
from workbench.settings import DPOSettings, make
from workbench.settings import preference as settings_of_pairs
from workbench.tokenise import pairs as tokenise_pairs


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(hc: float = 1.2, hr: float = -0.8, nc: float = 4, nr: float = 5, **more) -> PairScores:
    """One pair with these log-ratios and lengths; the reference's log-probs are -3 and -4."""
    made = dict(
        chosen=numbers(hc - 3), rejected=numbers(hr - 4), ref_chosen=numbers(-3), ref_rejected=numbers(-4),
        chosen_score=numbers(hc), rejected_score=numbers(hr), chosen_length=numbers(nc), rejected_length=numbers(nr),
    )  # fmt: skip
    return PairScores(**made | more)


def means(chosen: float, rejected: float, n: int = 2, **more) -> PairScores:
    """One pair with these mean log-probs over `n` tokens, without a reference."""
    return PairScores(numbers(n * chosen), numbers(n * rejected), numbers(n), numbers(n), **more)


def value(name: str, pairs: PairScores, **settings) -> float:
    return LOSSES[name].function(pairs, **settings).item()


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


# -- each loss by hand


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("sigmoid", {}, 0.59814),
        ("hinge", {}, 0.8),
        ("ipo", {}, 20.6116),
        ("cdpo", {"label_smoothing": 0.1}, 0.61814),
        ("aot", {"label_smoothing": 0.1}, 0.61814),  # one pair: nothing to sort
        ("aot_unpaired", {"label_smoothing": 0.1}, 0.61814),
        ("robust", {"label_smoothing": 0.1}, 0.57314),
        ("bco_pair", {}, 1.28889),
        ("nca_pair", {}, 1.33939),
        ("apo_zero", {}, 0.95005),
        ("apo_down", {}, 1 / (1 + math.exp(-0.12)) + 1 - 1 / (1 + math.exp(-0.2))),
        ("sppo_hard", {}, 32.08),
        ("sigmoid_norm", {}, 0.67041),
    ],
)
def test_losses_by_hand(name, settings, expected):
    assert value(name, pair(), **{"beta": 0.1} | settings) == pytest.approx(expected, abs=6e-6)


def test_exo_by_hand():
    # KL of (p, 1 - p) to (0.9, 0.1), p = sigmoid(0.2)
    p = 1 / (1 + math.exp(-0.2))
    expected = p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)
    assert value("exo_pair", pair(), beta=0.1, label_smoothing=0.1) == pytest.approx(expected, rel=1e-12)
    # it is least, at 0, where the policy holds the label's own odds
    best = math.log(0.9 / 0.1) / 0.1
    assert value("exo_pair", pair(best, 0.0), beta=0.1, label_smoothing=0.1) == pytest.approx(0, abs=1e-12)


def test_discopop_by_hand():
    mix = 1 / (1 + math.exp(-0.2 / 0.05))
    expected = -log_sigmoid(0.2) * (1 - mix) + math.exp(-0.2) * mix
    assert value("discopop", pair(), beta=0.1, discopop_tau=0.05) == pytest.approx(expected, rel=1e-12)


def test_simpo_by_hand():
    settings = {"label_smoothing": 0.0, "alpha": 0.0}
    given = means(-0.5, -1.0)
    assert value("simpo", given, beta=2.0, simpo_gamma=1.0, **settings) == pytest.approx(math.log(2), rel=1e-9)
    settings["label_smoothing"] = 0.25
    expected = -0.75 * log_sigmoid(0.4) - 0.25 * log_sigmoid(-0.4)
    assert value("simpo", given, beta=2.0, simpo_gamma=0.6, **settings) == pytest.approx(expected, rel=1e-9)


def test_cpo_by_hand():
    given = means(-0.5, -1.0)  # sums -1 and -2
    assert value("cpo", given, beta=0.3, label_smoothing=0.0, alpha=0.0) == pytest.approx(-log_sigmoid(0.3))
    smoothed = -0.9 * log_sigmoid(0.3) - 0.1 * log_sigmoid(-0.3)
    assert value("cpo", given, beta=0.3, label_smoothing=0.1, alpha=0.0) == pytest.approx(smoothed)
    assert value("cpo_hinge", given, beta=0.3, alpha=0.0) == pytest.approx(0.7)
    assert value("cpo_ipo", given, beta=0.5, alpha=0.0) == pytest.approx((0.5 - 1) ** 2)


def test_alphapo_shapes_the_reward():
    # (1 - p^-a) / a with p = 1/4, a = 1/2: (1 - 2) * 2
    assert shaped(numbers(math.log(0.25)), 0.5).item() == pytest.approx(-2)
    assert shaped(numbers(-3.0), 1e-9).item() == pytest.approx(-3, rel=1e-6) and shaped(numbers(-3.0), 0.0) == -3
    chosen, rejected = (1 - math.exp(0.5)) / 1, (1 - math.exp(1.0)) / 1
    expected = -log_sigmoid(2 * (chosen - rejected) - 0.5)
    settings = dict(beta=2.0, simpo_gamma=0.5, label_smoothing=0.0, alpha=1.0)
    assert value("simpo", means(-0.5, -1.0), **settings) == pytest.approx(expected)
    assert torch.isfinite(shaped(numbers(-300.0), 0.1)), "p itself would be 0 in float32"


def test_orpo_by_hand():
    given = means(-0.5, -1.0, text_nll=numbers(0.7))
    assert log_odds(given).item() == pytest.approx(0.97408, abs=5e-6)
    assert value("orpo", given, beta=0.1) == pytest.approx(0.7 + 0.03203, abs=5e-6)
    shown = LOSSES["orpo"].shows(given)
    assert shown["nll_loss"].item() == 0.7 and shown["log_odds_ratio"].item() == pytest.approx(-0.3203, abs=5e-5)
    # answers the model is sure of: the odds are infinite, the gradient must not be
    sure = numbers(0.0).requires_grad_()
    log_odds(PairScores(sure, numbers(-1), numbers(2), numbers(2))).sum().backward()
    assert torch.isfinite(sure.grad).all()


def test_aot_sorts_over_the_batch():
    # policy margins (3, -1), reference margins (0.5, 2): sorted (-1, 3) - (0.5, 2)
    given = PairScores(
        numbers(3, -1),
        numbers(0, 0),
        numbers(1, 1),
        numbers(1, 1),
        ref_chosen=numbers(0.5, 2),
        ref_rejected=numbers(0, 0),
    )
    expected = [-log_sigmoid(-1.5), -log_sigmoid(1.0)]
    assert LOSSES["aot"].function(given, beta=1.0, label_smoothing=0.0).tolist() == pytest.approx(expected)
    # log-ratios: chosen (2.5, -3), rejected (1, 0): sorted (-3, 2.5) - (0, 1)
    given = dataclasses.replace(given, rejected=numbers(1, 0))
    expected = [-log_sigmoid(-3.0), -log_sigmoid(1.5)]
    assert LOSSES["aot_unpaired"].function(given, beta=1.0, label_smoothing=0.0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "kind, coef, expected",
    [
        ("reverse_kl", 0.5, 1.2),
        ("forward_kl", 0.5, 1 - math.exp(-1.2)),
        ("js_divergence", 0.5, math.log(2 * math.exp(1.2) / (1 + math.exp(1.2)))),
        ("alpha_divergence", 0.5, (math.exp(-0.6) - 1) / -0.5),
        ("alpha_divergence", 1.0, 1.2),
    ],
)
def test_divergences_by_hand(kind, coef, expected):
    assert DIVERGENCES[kind](numbers(1.2), coef).item() == pytest.approx(expected, rel=1e-9)


# -- from tokens to pairs


def scores(logprob, mask, **more) -> TokenScores:
    logprob = torch.tensor(logprob, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(logprob.shape, dtype=torch.float64)
    return TokenScores(logprob, zeros, zeros.bool(), torch.tensor(mask).bool(), **more)


GIVEN = dict(
    # chosen of 3 and 1 tokens, rejected of 1 and 2; -9 is padding
    logprob=[[-1.0, -2.0, -4.0], [-0.5, -9.0, -9.0], [-3.0, -9.0, -9.0], [-1.0, -0.5, -9.0]],
    mask=[[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]],
)
REF = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -7.0, -7.0], [-1.0, -7.0, -7.0], [-1.0, -1.0, -7.0]]).double()
TOTALS = {"pairs": 2.0, "chosen_tokens": 4.0, "text_tokens": 4.0}


def test_pairs_are_summed_from_tokens():
    made = pair_scores(scores(**GIVEN), {"ref_logprob": REF}, TOTALS)
    assert made.chosen.tolist() == [-7, -3] and made.rejected.tolist() == [-0.5, -1.5]
    assert made.chosen_length.tolist() == [3, 1] and made.rejected_length.tolist() == [1, 2]
    assert made.chosen_ratio.tolist() == [-4, -2] and made.difference.tolist() == [-4 - 0.5, -2 - 0.5]
    assert made.nll.mean().item() == pytest.approx(10 / 4)


def test_tokens_past_the_shorter_answer_count_ld_alpha():
    made = pair_scores(scores(**GIVEN), {"ref_logprob": REF}, TOTALS, ld_alpha=0.25)
    assert made.chosen.tolist() == [-1 - 0.25 * 6, -3] and made.rejected.tolist() == [-0.5, -1 - 0.25 * 0.5]
    assert made.ref_chosen.tolist() == [-1 - 0.25 * 2, -1]
    assert made.nll.mean().item() == pytest.approx(10 / 4), "the likelihood is not weighted"
    uneven = pair_scores(scores(**GIVEN), {"ref_logprob": REF}, TOTALS, ld_alpha=0.3)
    assert uneven.chosen[0].item() == pytest.approx(-1 - 0.3 * 6, rel=1e-15), "0.3 in float64, not in float32"


def test_the_prompts_tokens_count_in_the_text_alone():
    answer = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0]]).double()
    made = pair_scores(scores(**GIVEN), {"answer": answer}, TOTALS | {"chosen_tokens": 3.0})
    assert made.chosen.tolist() == [-6, -3] and made.rejected_length.tolist() == [1, 1]
    assert made.nll.mean().item() == pytest.approx(9 / 3) and made.text_nll.mean().item() == pytest.approx(10 / 4)
    assert made.ref_chosen is None


def options(**settings) -> dict:
    return dataclasses.asdict(make("dpo", settings))


def run_loss(parts, given=None, columns=None, **settings):
    given = given or scores(**GIVEN)
    loss, metrics = objective(parts, options(**settings))(given, columns or {"ref_logprob": REF}, TOTALS)
    return loss, finish(metrics), given


def test_a_mixture_shows_its_parts():
    loss, shown, _ = run_loss({"sigmoid": 0.5, "sft": 2.0}, beta=1.0)
    first = (-log_sigmoid(-4.5) - log_sigmoid(-2.5)) / 2
    assert loss.item() == pytest.approx(0.5 * first + 2 * 2.5)
    assert shown["loss/sigmoid"] == pytest.approx(first) and shown["loss/sft"] == pytest.approx(2.5)
    assert shown["rewards/chosen"] == -3 and shown["rewards/accuracies"] == 0 and shown["logps/chosen"] == -5
    assert not any(name.startswith("loss/") for name in run_loss({"sigmoid": 1.0})[1])


def test_rewards_without_a_reference():
    _, shown, _ = run_loss({"cpo": 1.0}, columns={"none": REF}, beta=0.5)
    assert shown["rewards/chosen"] == pytest.approx(0.5 * -5) and shown["logps/rejected"] == pytest.approx(-1.0)
    _, shown, _ = run_loss({"simpo": 1.0}, columns={"none": REF}, beta=0.5)
    assert shown["logps/chosen"] == pytest.approx((-7 / 3 - 3) / 2) and shown["logps/rejected"] == pytest.approx(-0.625)


def test_weighting_by_hand():
    log_sum_sq = torch.full((4, 3), -1.0).double()
    given = scores(**GIVEN, log_sum_sq=log_sum_sq)
    first, second = math.exp(-7 / 3 + 1) * math.exp(0.5), math.exp(-2) * math.exp(-0.75 + 1)
    assert agreement(given, {}).tolist() == pytest.approx([first, second])
    loss, _, _ = run_loss({"sigmoid": 1.0}, given, beta=1.0, use_weighting=True)
    assert loss.item() == pytest.approx((-log_sigmoid(-4.5) * first - log_sigmoid(-2.5) * second) / 2)
    loss.backward()  # the weights carry no gradient: that of chosen 0 is its share of the slope
    slope = -(1 - 1 / (1 + math.exp(4.5))) * first / 2
    assert given.logprob.grad[0].tolist() == pytest.approx([slope] * 3)
    # one mean over all chosen tokens, times the mean weight
    loss, _, _ = run_loss({"sft": 1.0}, scores(**GIVEN, log_sum_sq=log_sum_sq), use_weighting=True)
    assert loss.item() == pytest.approx(2.5 * (first + second) / 2)


# -- the table and the settings


def test_the_table_is_what_the_settings_say():
    names = settings_of_pairs
    assert tuple(sorted(LOSSES)) == tuple(sorted(names.PAIR_LOSSES))
    assert {n for n, row in LOSSES.items() if not row.reference} == set(names.REFERENCE_FREE)
    assert {n for n, row in LOSSES.items() if row.divergence} == set(names.DIFFERENCE_LOSSES)
    assert {n for n, row in LOSSES.items() if row.coupled} == set(names.SORTED)
    read = {s: {n for n, row in LOSSES.items() if s in row.reads} for s in names.READ_BY if s != "cpo_alpha"}
    assert read == {s: set(losses) for s, losses in names.READ_BY.items() if s != "cpo_alpha"}
    assert {n for n, row in LOSSES.items() if "beta" not in row.reads} == {"sft"}
    known = {field.name for field in dataclasses.fields(DPOSettings)}
    for name, row in LOSSES.items():
        assert set(row.reads) <= known and row.formula and row.paper, name
        assert "arXiv" in row.paper or name == "cdpo", name


@pytest.mark.parametrize(
    "method, given, said",
    [
        ("dpo", {"loss_type": "exo_pair"}, "exo_pair' needs label_smoothing above 0"),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing=0.5 must be below 0.5"),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "has 1 weights, loss_type 2 losses"),
        ("dpo", {"loss_type": ["sigmoid", "sftt"]}, r"loss_type\[1\]='sftt' is not known.*'sft'"),
        ("dpo", {"ld_alpha": 1.5}, "ld_alpha=1.5 must be at most 1"),
        ("dpo", {"ld_alpha": 0.5, "loss_type": "simpo"}, "ld_alpha does not go with 'simpo'"),
        ("dpo", {"use_weighting": True, "loss_type": "aot"}, "use_weighting does not go with 'aot', which sorts"),
        ("dpo", {"use_weighting": True, "loss_type": ["sigmoid", "orpo"]}, "use_weighting does not go with 'orpo'"),
        ("dpo", {"f_divergence_type": "hellinger"}, "f_divergence_type='hellinger' is not known"),
        ("dpo", {"f_divergence_type": "forward_kl", "loss_type": "nca_pair"}, "does not go with loss_type='nca_pair'"),
        ("dpo", {"beta": 0, "loss_type": "ipo"}, "beta=0 gives a constant loss"),
        ("dpo", {"loss_type": "kto"}, r"wb.kto\(policy, rows, loss_type='kto'\)"),
        ("dpo", {"loss_type": "apo_zero_unpaired"}, r"wb.kto\("),
        ("dpo", {"sync_ref_model": True, "precompute_ref_log_probs": True}, "precompute_ref_log_probs=False"),
        ("dpo", {"discopop_tau": 0}, "discopop_tau=0.0 must be above 0"),
        ("dpo", {"ref_model_mixup_alpha": 1.2}, "ref_model_mixup_alpha=1.2 must be at most 1"),
        ("cpo", {"loss_type": "robust"}, "Options: sigmoid, hinge, ipo, simpo, alphapo"),
        ("cpo", {"beta": 0}, "beta=0"),
        ("orpo", {"beta": 0}, "that is wb.sft"),
        ("orpo", {"loss_type": "sigmoid"}, "wb.orpo has no setting 'loss_type'"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_do_not_go(method, given, said):
    with pytest.raises(SettingError, match=said):
        make(method, given)


def test_beta_may_be_zero_where_nothing_reads_it():
    assert make("dpo", {"loss_type": "sft", "beta": 0}).parts() == {"sft": 1.0}


@pytest.mark.parametrize(
    "method, given, said",
    [
        ("dpo", {"label_smoothing": 0.1}, "label_smoothing changes nothing: sigmoid does not read it.*robust.*cdpo"),
        ("dpo", {"simpo_gamma": 1.0, "loss_type": ["ipo", "sft"]}, "simpo_gamma changes nothing: ipo and sft"),
        ("dpo", {"ref_model_sync_steps": 4}, "ref_model_sync_steps changes nothing without sync_ref_model=True"),
        ("dpo", {"f_alpha_divergence_coef": 0.3}, "without f_divergence_type='alpha_divergence'"),
        ("dpo", {"loss_type": "simpo", "sync_ref_model": True}, "sync_ref_model changes nothing: simpo has no ref"),
        ("cpo", {"simpo_gamma": 0.7}, "only loss_type='simpo'"),
        ("cpo", {"label_smoothing": 0.1, "loss_type": "ipo"}, "only loss_type='sigmoid' and 'simpo'"),
        ("cpo", {"loss_type": "alphapo", "cpo_alpha": 0.5}, "'simpo' without the likelihood"),
        ("kto", {"ref_model_mixup_alpha": 0.5}, "without sync_ref_model=True"),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}, None),
        ("dpo", {"loss_type": ["sigmoid", "cdpo"], "label_smoothing": 0.1}, None),
        ("cpo", {"loss_type": "simpo", "simpo_gamma": 0.7, "alpha": 0.1}, None),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_change_nothing_are_named(method, given, said):
    import re

    told = make(method, given).unread(given)
    assert len(told) == (said is not None) and (said is None or re.search(said, told[0]))


def test_what_changes_nothing_is_said_at_the_launch(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    with pytest.warns(UserWarning, match="wb.dpo: label_smoothing changes nothing"):
        wb.dpo(policy, rows_for("dpo"), label_smoothing=0.1, out=tmp_path / "run")


def test_parts():
    assert make("dpo", {"loss_type": "cpo"}).parts() == {"cpo": 1.0, "sft": 1.0}
    assert make("dpo", {"loss_type": ["cpo", "sft"], "loss_weights": [2, 3], "cpo_alpha": 0.5}).parts() == {
        "cpo": 2.0,
        "sft": 4.0,
    }
    assert make("dpo", {"loss_type": "simpo"}).parts() == {"simpo": 1.0}, "the paper's, without likelihood"
    assert make("cpo", {"loss_type": "simpo"}).parts() == {"simpo": 1.0, "sft": 1.0}, "TRL's, with it"
    assert make("cpo", {"loss_type": "alphapo"}).parts() == {"simpo": 1.0}
    assert make("cpo", {"loss_type": "hinge", "cpo_alpha": 0}).parts() == {"cpo_hinge": 1.0}
    assert make("orpo", {}).parts() == {"orpo": 1.0}


def test_labelled_rows_are_sent_to_kto(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    with pytest.raises(DataError, match="single answers with a label, not pairs: wb.kto"):
        wb.dpo(policy, [{"prompt": "a", "completion": "b", "label": True}], out=tmp_path / "run")


def test_the_end_of_a_long_pair_may_be_kept(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    rows = [{"prompt": "0123456789", "chosen": "ab", "rejected": "cdefghijklmnop"}]
    item = tokenise_pairs(rows, policy.tokenizer, max_length=8, truncation="keep_end").items[0]
    (chosen, first), (rejected, second) = item.sequences()
    assert policy.tokenizer.decode(chosen) == "56789ab<eos>" and first == 5
    assert policy.tokenizer.decode(rejected) == "jklmnop<eos>" and second == 1  # nothing predicts the first token
    with pytest.raises(DataError, match="prompt alone fills max_length"):
        tokenise_pairs(rows, policy.tokenizer, max_length=8)


# -- micro-batches


ROWS = [
    {"prompt": f"Say {i}:", "chosen": " abcdefg"[: 3 + i % 3] * (1 + i % 2), "rejected": "qwertzuio"[i : 5 + i]}
    for i in range(7)
]
CASES = [
    {"loss_type": "aot", "beta": 0.5},
    {"loss_type": "aot_unpaired", "beta": 0.5, "label_smoothing": 0.2},
    {"loss_type": ["sigmoid", "sft"], "use_weighting": True, "loss_weights": [1, 50]},
    {"loss_type": ["robust", "bco_pair", "sft"], "label_smoothing": 0.1, "ld_alpha": 0.3},
    {"loss_type": "orpo", "beta": 0.5},
    {"loss_type": ["simpo", "cpo"], "beta": 2.0},
]


@pytest.fixture(scope="module", params=["float32", "float64"])
def away(request, tmp_path_factory):
    """A run whose policy has left its reference."""
    folder = tmp_path_factory.mktemp("away")
    policy = tiny_policy(folder / "model", lora=True, dtype=request.param)
    run = wb.dpo(policy, ROWS, out=folder / "run")
    run._ready()
    draw = torch.Generator().manual_seed(5)
    run.engine.state.params = {
        n: p + 0.1 * torch.randn(p.shape, generator=draw).to(p) for n, p in policy.params().items()
    }
    return run


def difference(a: Gradients, b: Gradients) -> float:
    apart = Gradients(0.0, {}, {n: a.by_name[n] - g for n, g in b.by_name.items()})
    return apart.norm() / b.norm()


NEUTRAL = dict(beta=0.1, label_smoothing=0.0, use_weighting=False, ld_alpha=None, loss_weights=None)


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: str(settings["loss_type"]))
def test_micro_batches_add_up_to_the_whole(away, settings):
    away.set(**NEUTRAL | settings, micro_batch_size=100)
    whole = away.gradients(ROWS)
    assert whole.norm() > 1e-4
    tolerance = 5e-6 if next(iter(whole.by_name.values())).dtype == torch.float32 else 1e-10
    for size in (1, 3):
        away.set(micro_batch_size=size)
        parts = away.gradients(ROWS)
        assert difference(parts, whole) <= tolerance, size
        assert parts.loss == pytest.approx(whole.loss, rel=tolerance)
        for name, expected in whole.metrics.items():
            assert parts.metrics[name] == pytest.approx(expected, rel=2 * tolerance, abs=2 * tolerance), name


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorting_sees_the_whole_update(away, name):
    """Pairs sorted within their micro-batches only would give another loss."""
    away.set(**NEUTRAL | {"loss_type": name, "beta": 0.5}, micro_batch_size=1)
    together = away.gradients(ROWS).loss
    away.set(loss_type="cdpo")  # what both are on each pair alone
    assert abs(away.gradients(ROWS).loss - together) > 1e-3


def test_a_loss_over_prompts_beside_one_with_a_reference(away):
    """Each is what it is alone, though prompts are scored for one and not for the other."""
    seen = {}
    for kept in (False, True):
        for names in ("sigmoid", "orpo", ["sigmoid", "orpo"]):
            away.set(**NEUTRAL | {"loss_type": names}, micro_batch_size=2, precompute_ref_log_probs=kept)
            seen[str(names)] = away.gradients(ROWS).loss
        assert seen["['sigmoid', 'orpo']"] == pytest.approx(seen["sigmoid"] + seen["orpo"], rel=1e-5)
    away.set(precompute_ref_log_probs=False)


def test_kept_reference_log_probs_are_the_same_numbers(away):
    away.set(**NEUTRAL | {"loss_type": "sigmoid"}, micro_batch_size=None)
    plain = away.gradients(ROWS)
    away.set(precompute_ref_log_probs=True)
    kept = away.gradients(ROWS)
    assert difference(kept, plain) <= 5e-6 and kept.loss == pytest.approx(plain.loss, rel=5e-6)
    away.set(precompute_ref_log_probs=False)
