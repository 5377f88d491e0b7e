"""Preference losses on pairs, as a table: one row a published loss.

A loss is a function of a pair's few numbers (`PairScores`) and of the settings that it names, and gives one number a
pair (P,). `LOSSES` holds every loss with its formula and paper; `objective` makes any weighted sum of them.

In the formulas L is the summed log-prob of an answer's tokens (nats, stop token included), c the chosen and r the
rejected answer, n the number of tokens, h = L - L_ref, D = h_c - h_r, l = L / n. Names and numbers are TRL 1.16's;
where the paper differs, or TRL has no such loss, the row says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.objectives import Metrics, Objective, mean_of, mean_over
from workbench.objectives.pairs import PairScores, agreement, answer_mask, pair_scores


@dataclass(frozen=True)
class PairLoss:
    """A row of the table.

    function    (PairScores, **settings) -> (P,)
    formula     the loss of a pair
    paper       authors, year, arXiv id
    note        where TRL 1.16 has it, and where paper and TRL differ
    reference   it reads reference log-probs
    divergence  it is built on D, so that other f-divergences than the reverse KL fit (see DIVERGENCES)
    coupled     it sorts over the batch: a pair's loss depends on the other pairs
    pooled      its value is one mean over all chosen tokens of the update
    mean        it compares log-probs per token (l), and `logps/...` and `rewards/...` are those
    whole       it reads the prompt's tokens, too
    shows       more metrics: (PairScores) -> {name: (P,)}
    """

    function: Callable[..., Tensor]
    formula: str
    paper: str
    note: str = ""
    reference: bool = True
    divergence: bool = False
    coupled: bool = False
    pooled: bool = False
    mean: bool = False
    whole: bool = False
    shows: Callable[[PairScores], dict[str, Tensor]] = lambda pairs: {}

    @property
    def reads(self) -> tuple[str, ...]:
        """The settings it reads: the keyword arguments of its function."""
        kinds = signature(self.function).parameters.values()
        return tuple(p.name for p in kinds if p.kind is Parameter.KEYWORD_ONLY)


LOSSES: dict[str, PairLoss] = {}
"""every pair loss, by the name that `loss_type` takes"""


def _row(formula: str, paper: str, **more) -> Callable:
    """Puts a function into LOSSES, under its own name."""

    def enter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        LOSSES[function.__name__] = PairLoss(function, formula, paper, **more)
        return function

    return enter


# -- with a reference ------------------------------------------------------------------------------------------------


@_row("-log σ(β D)", "DPO: Rafailov et al. 2023, arXiv 2305.18290, eq. 7", divergence=True)
def sigmoid(pairs: PairScores, *, beta: float) -> Tensor:
    return -F.logsigmoid(beta * pairs.difference)


@_row(
    "max(0, 1 - β D)",
    "SLiC-HF: Zhao et al. 2023, arXiv 2305.10425; on log-ratios: RSO, Liu et al. 2023, arXiv 2309.06657",
    divergence=True,
)
def hinge(pairs: PairScores, *, beta: float) -> Tensor:
    return torch.relu(1 - beta * pairs.difference)


@_row(
    "(h_c / n_c - h_r / n_r - 1 / (2 β))²",
    "IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17",
    note="The means over tokens are TRL's (its authors asked those of the paper); the paper's formula has D. β is τ.",
    divergence=True,
)
def ipo(pairs: PairScores, *, beta: float) -> Tensor:
    return (pairs.mean_difference - 1 / (2 * beta)) ** 2


@_row(
    "KL of (σ(β D), σ(-β D)) to (1 - ε, ε)",
    "EXO: Ji et al. 2024, arXiv 2402.00856, eq. 16",
    note="ε is label_smoothing and must be above 0; the paper takes 1e-3.",
    divergence=True,
)
def exo_pair(pairs: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    margin = beta * pairs.difference
    first = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    return first + torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))


@_row(
    "-log σ(β h_c) - ½ log σ(-β h_c) - ½ log σ(-β h_r)",
    "NCA: Chen et al. 2024, arXiv 2402.05369",
)
def nca_pair(pairs: PairScores, *, beta: float) -> Tensor:
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@_row(
    "[-(1 - ε) log σ(β D) + ε log σ(-β D)] / (1 - 2 ε)",
    "Robust DPO: Chowdhury et al. 2024, arXiv 2403.00409",
    note="ε is label_smoothing: how often a label is flipped. The loss is unbiased under such flips.",
    divergence=True,
)
def robust(pairs: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    margin = beta * pairs.difference
    kept = -(1 - label_smoothing) * F.logsigmoid(margin)
    return (kept + label_smoothing * F.logsigmoid(-margin)) / (1 - 2 * label_smoothing)


@_row("-log σ(β h_c) - log σ(-β h_r)", "BCO: Jung et al. 2024, arXiv 2404.04656", note="Without the paper's shift δ.")
def bco_pair(pairs: PairScores, *, beta: float) -> Tensor:
    return -F.logsigmoid(beta * pairs.chosen_ratio) - F.logsigmoid(-beta * pairs.rejected_ratio)


@_row(
    "(h_c - 1 / (2 β))² + (h_r + 1 / (2 β))²",
    "SPPO: Wu et al. 2024, arXiv 2405.00675, eq. 4.7",
    note="Hard form: the chosen answer wins with probability 1. β is 1 / η.",
)
def sppo_hard(pairs: PairScores, *, beta: float) -> Tensor:
    return (pairs.chosen_ratio - 0.5 / beta) ** 2 + (pairs.rejected_ratio + 0.5 / beta) ** 2


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - ε) log σ(m) - ε log σ(-m)."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


@_row(
    "-(1 - ε) log σ(β d) - ε log σ(-β d), d = sorted(L_c - L_r) - sorted(L_c,ref - L_r,ref)",
    "AOT: Melnyk et al. 2024, arXiv 2406.05882",
    note="ε is label_smoothing. Sorted over the update; TRL sorts over a micro-batch.",
    coupled=True,
)
def aot(pairs: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    policy, reference = pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected
    return _smoothed(beta * (policy.sort().values - reference.sort().values), label_smoothing)


@_row(
    "-(1 - ε) log σ(β d) - ε log σ(-β d), d = sorted(h_c) - sorted(h_r)",
    "AOT: Melnyk et al. 2024, arXiv 2406.05882",
    note="ε is label_smoothing. Sorted over the update; TRL sorts over a micro-batch.",
    coupled=True,
)
def aot_unpaired(pairs: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    margin = pairs.chosen_ratio.sort().values - pairs.rejected_ratio.sort().values
    return _smoothed(beta * margin, label_smoothing)


@_row("1 - σ(β h_c) + σ(β h_r)", "APO-zero: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7")
def apo_zero(pairs: PairScores, *, beta: float) -> Tensor:
    return 1 - torch.sigmoid(beta * pairs.chosen_ratio) + torch.sigmoid(beta * pairs.rejected_ratio)


@_row("σ(β h_c) + 1 - σ(β (h_c - h_r))", "APO-down: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8")
def apo_down(pairs: PairScores, *, beta: float) -> Tensor:
    chosen, rejected = pairs.chosen_ratio, pairs.rejected_ratio
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


@_row(
    "-(1 - m) log σ(β D) + m exp(-β D), m = σ(β D / τ)",
    "DiscoPOP: Lu et al. 2024, arXiv 2406.08414, eq. 5",
    note="τ is discopop_tau.",
    divergence=True,
)
def discopop(pairs: PairScores, *, beta: float, discopop_tau: float) -> Tensor:
    margin = beta * pairs.difference
    mix = torch.sigmoid(margin / discopop_tau)
    return -F.logsigmoid(margin) * (1 - mix) + torch.exp(-margin) * mix


@_row(
    "-log σ(β (h_c / n_c - h_r / n_r))",
    "length-normalised DPO: Lambert et al. 2024 (Tülu 3), arXiv 2411.15124",
    divergence=True,
)
def sigmoid_norm(pairs: PairScores, *, beta: float) -> Tensor:
    return -F.logsigmoid(beta * pairs.mean_difference)


@_row(
    "-(1 - ε) log σ(β D) - ε log σ(-β D)",
    "conservative DPO: Mitchell 2023, A note on DPO with noisy preferences",
    note="ε is label_smoothing. Not in TRL, whose `sigmoid` ignores label_smoothing; its `aot` on one pair is this.",
    divergence=True,
)
def cdpo(pairs: PairScores, *, beta: float, label_smoothing: float) -> Tensor:
    return _smoothed(beta * pairs.difference, label_smoothing)


# -- without one -----------------------------------------------------------------------------------------------------


@_row(
    "-L_c, as a mean over all chosen tokens of the update",
    "the NLL term of RPO: Pang et al. 2024, arXiv 2404.19733; of MPO: Wang et al. 2024, arXiv 2411.10442",
    note="As in TRL every token counts the same; RPO's paper divides each answer's NLL by its own length.",
    reference=False,
    divergence=True,
    pooled=True,
    shows=lambda pairs: {"nll_loss": pairs.nll},
)
def sft(pairs: PairScores) -> Tensor:
    return pairs.nll


def shaped(logprob: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward (1 - p^-α) / α of p = exp(logprob) (Gupta et al. 2025, arXiv 2501.03884); α = 0: log p."""
    return -torch.expm1(-alpha * logprob) / alpha if alpha else logprob


@_row(
    "-log σ(β (l_c - l_r) - γ), and ε of it with the sign turned",
    "SimPO: Meng et al. 2024, arXiv 2405.14734",
    note="γ is simpo_gamma, ε label_smoothing, alpha shapes l (AlphaPO). wb.cpo adds cpo_alpha times the NLL, as TRL's"
    " CPOTrainer does; wb.dpo adds nothing, as in the paper. The paper takes β 2 to 2.5 and γ 0.3 to 1.6.",
    reference=False,
    mean=True,
)
def simpo(pairs: PairScores, *, beta: float, simpo_gamma: float, label_smoothing: float, alpha: float) -> Tensor:
    difference = shaped(pairs.chosen_mean, alpha) - shaped(pairs.rejected_mean, alpha)
    return _smoothed(beta * difference - simpo_gamma, label_smoothing)


@_row(
    "-log σ(β (L_c - L_r)), and ε of it with the sign turned",
    "CPO: Xu et al. 2024, arXiv 2401.08417",
    note="wb.dpo and wb.cpo add cpo_alpha times the NLL of the chosen answer (`sft`), as the paper does. ε is"
    " label_smoothing, alpha shapes L (AlphaPO). TRL: CPOTrainer, loss_type='sigmoid'.",
    reference=False,
)
def cpo(pairs: PairScores, *, beta: float, label_smoothing: float, alpha: float) -> Tensor:
    return _smoothed(beta * (shaped(pairs.chosen, alpha) - shaped(pairs.rejected, alpha)), label_smoothing)


@_row(
    "max(0, 1 - β (L_c - L_r))",
    "SLiC-HF: Zhao et al. 2023, arXiv 2305.10425",
    note="TRL: CPOTrainer, loss_type='hinge'. alpha shapes L (AlphaPO).",
    reference=False,
)
def cpo_hinge(pairs: PairScores, *, beta: float, alpha: float) -> Tensor:
    return torch.relu(1 - beta * (shaped(pairs.chosen, alpha) - shaped(pairs.rejected, alpha)))


@_row(
    "(l_c - l_r - 1 / (2 β))²",
    "IPO (Azar et al. 2023, arXiv 2310.12036) without its reference",
    note="TRL: CPOTrainer, loss_type='ipo'. alpha shapes l (AlphaPO).",
    reference=False,
    mean=True,
)
def cpo_ipo(pairs: PairScores, *, beta: float, alpha: float) -> Tensor:
    return (shaped(pairs.chosen_mean, alpha) - shaped(pairs.rejected_mean, alpha) - 1 / (2 * beta)) ** 2


def log_odds(pairs: PairScores) -> Tensor:
    """log of the odds ratio of the answers, the probability of each being exp(l): (P,)."""

    def against(mean: Tensor) -> Tensor:
        """log(1 - exp(l)), by the form that keeps its digits; l is kept from 0, where it is -infinity."""
        mean = mean.clamp(max=-1e-6)
        return torch.where(mean < -math.log(2), torch.log1p(-torch.exp(mean)), torch.log(-torch.expm1(mean)))

    chosen, rejected = pairs.chosen_mean, pairs.rejected_mean
    return (chosen - rejected) - (against(chosen) - against(rejected))


@_row(
    "NLL - β log σ(o), o = l_c - l_r - log(1 - exp l_c) + log(1 - exp l_r)",
    "ORPO: Hong et al. 2024, arXiv 2403.07691",
    note="The NLL is a mean over the tokens of prompt and chosen answer of the update, as in TRL's ORPOTrainer and the"
    " authors' code; the paper's formula has the answer's alone. β is λ.",
    reference=False,
    mean=True,
    whole=True,
    shows=lambda pairs: {
        "nll_loss": pairs.text_nll,
        "log_odds_chosen": log_odds(pairs),
        "log_odds_ratio": F.logsigmoid(log_odds(pairs)),
    },
)
def orpo(pairs: PairScores, *, beta: float) -> Tensor:
    return pairs.text_nll - beta * F.logsigmoid(log_odds(pairs))


# -- the objective ---------------------------------------------------------------------------------------------------

PAIR_OPTIONS = ("ld_alpha", "f_divergence_type", "f_alpha_divergence_coef")


def objective(parts: Mapping[str, float], options: Mapping) -> Objective:
    """The sum of `weight` times each loss of `parts` (name -> weight), with these settings; see `pair_loss`."""
    rows = [LOSSES[name] for name in parts]
    weighting = options.get("use_weighting", False)
    return Objective(
        partial(pair_loss, parts=dict(parts), options=dict(options)),
        needs=frozenset({"log_sum_sq"} if weighting else ()),
        coupled=any(row.coupled or (weighting and row.pooled) for row in rows),
    )


def pair_loss(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, parts: Mapping[str, float], options: Mapping
) -> tuple[Tensor, Metrics]:
    """The mean over pairs of a weighted sum of losses. Columns and totals: see `pair_scores`.

    With `use_weighting` each pair's loss is multiplied by its `agreement` (WPO). Several losses are shown each as
    `loss/<name>`, before its weight. The implicit reward shown is beta * h, or without a reference beta * L (beta * l
    for the losses that compare those).
    """
    pairs = pair_scores(scores, columns, totals, **{k: options[k] for k in PAIR_OPTIONS if k in options})
    weight = agreement(scores, columns) if options.get("use_weighting", False) else None  # (P,)
    loss, metrics = pairs.chosen.new_zeros(()), _metrics(scores, columns, pairs, parts, options)
    for name, share in parts.items():
        row = LOSSES[name]
        each = row.function(pairs, **{setting: options[setting] for setting in row.reads})  # (P,)
        if weight is not None:
            each = (each.mean() if row.pooled else each) * weight
        loss = loss + share * each.sum() / totals["pairs"]
        metrics |= {more: mean_of(values) for more, values in row.shows(pairs).items()}
        if len(parts) > 1:
            metrics[f"loss/{name}"] = mean_of(each)
    return loss, metrics


def _metrics(scores, columns, pairs: PairScores, parts: Mapping[str, float], options: Mapping) -> Metrics:
    chosen, rejected = pairs.chosen, pairs.rejected  # (P,)
    if pairs.ref_chosen is None and any(LOSSES[name].mean for name in parts):
        chosen, rejected = pairs.chosen_mean, pairs.rejected_mean
    if pairs.ref_chosen is None:
        values = [shaped(value, options.get("alpha", 0.0)) for value in (chosen, rejected)]
    else:
        values = [pairs.chosen_ratio, pairs.rejected_ratio]
    rewards = [options["beta"] * value for value in values]  # (P,) each
    mask = answer_mask(scores, columns)  # (B, T)
    return {
        "rewards/chosen": mean_of(rewards[0]),
        "rewards/rejected": mean_of(rewards[1]),
        "rewards/margins": mean_of(rewards[0] - rewards[1]),
        "rewards/accuracies": mean_of((rewards[0] > rewards[1]).to(chosen.dtype)),
        "logps/chosen": mean_of(chosen),
        "logps/rejected": mean_of(rejected),
        "entropy": mean_over(scores.entropy, mask),
        "mean_token_accuracy": mean_over(scores.top1[0::2].to(chosen.dtype), mask[0::2]),
    }
