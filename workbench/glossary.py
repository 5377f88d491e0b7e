"""What every metric of a run means, and how to read it: one table, for `wb.metric`, the docs and the views.

A name may be a pattern: `<name>` in `rewards/<name>/mean` stands for any text. `eval/` before a metric of the
training is the same number over held-out data. A reward function's `log_metric` may record names of its own, which
no table knows. What methods of the catalogue add stands in `glossary_of_methods`. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from workbench import glossary_of_methods
from workbench.errors import SettingError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

RL = ("grpo", "rloo")
PREFERENCE = ("dpo", "cpo", "kto", "orpo")
PAIRS = ("dpo", "cpo", "orpo")


@dataclass(frozen=True, repr=False)
class Metric:
    """One metric: what `run.metrics` has as a column, and a chart as a curve."""

    name: str
    """or a pattern, in which `<...>` stands for any text"""
    unit: str
    """or range"""
    what: str
    """what it is; a formula in words"""
    read: str
    """what is healthy, and what to do where it is not"""
    group: str = ""
    """its heading in the documentation"""
    methods: tuple[str, ...] = ()
    """the methods that record it, and with them those of the catalogue that change their loop; () for all"""
    trl: str = ""
    """TRL 1.16's name, where that is another"""

    def matches(self, name: str) -> bool:
        """Whether `name` is this metric's name, or fits its pattern."""
        pattern = re.sub(r"<\w+>", ".+", re.sub(r"[^<>\w/]", lambda found: re.escape(found[0]), self.name))
        return re.fullmatch(pattern, name) is not None

    def __repr__(self) -> str:
        where = f"{', '.join(self.methods) or 'every method'}; {self.unit}"
        trl = f"\n  TRL: {self.trl}" if self.trl else ""
        return f"{self.name}  ({where})\n  {self.what}\n  {self.read}{trl}"


def metric(name: str) -> Metric:
    """What the metric `name` is: `wb.metric("kl")`, `wb.metric("rewards/number/mean")`.

    Returns a Metric with `name`, `unit`, `what`, `read`, `group`, `methods` and `trl`. SettingError, with the nearest
    name, for one that no run records.
    """
    for known in METRICS:
        if known.matches(name):
            return replace(known, name=name)
    if name.startswith("eval/"):
        for known in METRICS:
            if known.matches(name.removeprefix("eval/")):
                said = f"Over held-out data: {known.what[0].lower()}{known.what[1:]}"
                return replace(known, name=name, what=said, group=HELD_OUT)
    raise SettingError(
        f"No run records a metric {name!r}.{did_you_mean(name, [known.name for known in METRICS])} wb.metrics() lists"
        " all of them; other names come from log_metric in a reward function."
    )


def metrics() -> pd.DataFrame:
    """Every metric that a run can record: one row each, with the columns of `Metric`."""
    import pandas as pd

    return pd.DataFrame([asdict(known) | {"methods": ", ".join(known.methods) or "all"} for known in METRICS])


EVERYWHERE = "Every method"
SUPERVISED = "Supervised fine-tuning"
PREFERENCES = "Preferences"
REINFORCED = "Reinforcement learning: rewards"
COMPLETIONS = "Reinforcement learning: completions"
POLICY = "Reinforcement learning: the update"
SAMPLING = "Reinforcement learning: sampler and trainer"
REWARDS = "Logged by reward functions"
HELD_OUT = "Held-out data"

GROUPS = {
    EVERYWHERE: "",
    SUPERVISED: "",
    PREFERENCES: "Of pairs, and of single answers labelled good or bad. L is the summed log-prob of an answer's tokens,"
    " h = L - L_ref its distance from the reference.",
    REINFORCED: "Taken over the completions of a step, before any update. In RL these are the numbers to watch, never"
    " the loss.",
    COMPLETIONS: "",
    POLICY: "Means over the updates of a step.",
    SAMPLING: "How far apart the log-probs of sampler and trainer are, which compute them in two ways; and what"
    " `dynamic_sampling` found.",
    REWARDS: "Further names come from `log_metric` in functions of your own.",
    **glossary_of_methods.GROUPS,
    HELD_OUT: "There with `eval_dataset`, from step 0 on, every `eval_steps`. Rows give the loss and the other metrics"
    " of the method, with `eval/` before the name; a Task gives these:",
}
"""heading -> what goes for all of its metrics"""


def _in(group: str, methods: Iterable[str], *rows: tuple[str, ...]) -> tuple[Metric, ...]:
    """Rows of (name, unit, what, read[, TRL's name])."""
    return tuple(Metric(*row[:4], group, tuple(methods), *row[4:]) for row in rows)


METRICS: tuple[Metric, ...] = (
    *_in(
        EVERYWHERE, (),
        ("loss", "nats; in RL without a unit",
         "What the update minimised: per trained token (sft), per pair or answer (preferences), or the surrogate's"
         " reduction (RL).",
         "sft: falls fast, then slowly; when eval/loss rises while it falls, the run learns its rows by heart: stop"
         " there, or use more rows or a lower lr. dpo starts at ln 2 = 0.693. In RL it says nothing: with one update"
         " a step and no KL it is near zero by construction; watch reward."),
        ("grad_norm", "≥ 0",
         "The L2 norm of all gradients together, before they are clipped at max_grad_norm.",
         "Steady within a factor of a few. Spikes that grow: lower lr or use a warm-up. Zero in RL: every group's"
         " rewards were equal."),
        ("learning_rate", "≥ 0",
         "The learning rate of the step, after schedule and warm-up.",
         "Moves once a step, however many updates the step has. With a warm-up the first step has 0."),
        ("num_tokens", "tokens",
         "Tokens of all sequences that the run has seen so far, prompts included, padding not.",
         "Only grows. To compare runs by data instead of steps, plot against it."),
        ("entropy", "nats per token",
         "The mean entropy of the next-token distributions at the scored tokens: trained ones (sft), answers"
         " (preferences), completions at the sampling temperature (RL).",
         "RL: falls slowly as the policy becomes sure. Near zero early on, groups have no variety and learning ends:"
         " raise epsilon_high, temperature or beta, or lower lr. A rise without end is a policy that falls apart."),
    ),
    *_in(
        SUPERVISED, ("sft", *PAIRS),
        ("mean_token_accuracy", "share, 0 to 1",
         "The share of tokens that were the policy's first choice: of the trained tokens (sft), of the chosen answers"
         " (preferences).",
         "Rises as the loss falls. Close to 1 on the rows trained on and not on held-out ones: learned by heart."),
    ),
    *_in(
        SUPERVISED, ("sft",),
        ("nll", "nats per trained token",
         "The plain mean of -log p over the trained tokens, whatever loss_type, weights and smoothing make of the"
         " loss.",
         "Compare runs with different losses by it. exp of it is the perplexity."),
    ),
    *_in(
        PREFERENCES, PREFERENCE,
        ("rewards/chosen", "beta × nats per answer",
         "The mean implicit reward of the chosen (desirable) answers: beta × h; without a reference beta × L, or"
         " beta × L per token for the losses that compare means.",
         "It often falls, only less than rewards/rejected does. Falling far (tens of nats): raise beta, lower lr, or"
         " add an NLL term (`sft` among the loss types)."),
        ("rewards/rejected", "beta × nats per answer",
         "The same of the rejected (undesirable) answers.",
         "Falls. Where it falls and the chosen ones fall with it, the policy unlearns both."),
        ("rewards/margins", "beta × nats",
         "rewards/chosen minus rewards/rejected.",
         "Grows from 0 (with a reference) and then levels off. Growing without end while eval/rewards/accuracies"
         " stands still is overfitting."),
    ),
    *_in(
        PREFERENCES, PAIRS,
        ("rewards/accuracies", "share, 0 to 1",
         "The share of pairs whose chosen answer has the larger implicit reward. poft: of rows that the policy finds"
         " likelier than the panel does.",
         "From about 0.5 (exactly 0 at a first step in which the policy is its own reference) to 0.6-0.9. At 1 on"
         " rows trained on, look at the held-out one. Stuck at 0.5: labels are noise, or lr is too low."),
    ),
    *_in(
        PREFERENCES, PREFERENCE,
        ("logps/chosen", "nats per answer",
         "The mean of L over the chosen (desirable) answers; per token for the losses that compare means."
         " discriminative: over the given ones, and the negatives are the rejected.",
         "Should not fall much: these are answers one wants."),
        ("logps/rejected", "nats per answer",
         "The same of the rejected (undesirable) answers.",
         "Falls, more than that of the chosen ones."),
    ),
    *_in(
        PREFERENCES, PAIRS,
        ("nll_loss", "nats per token",
         "The negative log-likelihood of the chosen answers; for orpo of prompt and chosen answer.",
         "Falls, or stays where it is. Rising: the likelihood has too little weight."),
    ),
    *_in(
        PREFERENCES, ("dpo", "cpo"),
        ("loss/<name>", "as the loss",
         "One loss of several, before its weight; there with a list as loss_type.",
         "See that none drowns the others; loss_weights balances them."),
    ),
    *_in(
        PREFERENCES, ("orpo", "dpo"),
        ("log_odds_chosen", "log of odds",
         "The log of the odds ratio of chosen to rejected answer, the probability of each being exp(l).",
         "Rises above 0: chosen answers are the likelier ones."),
        ("log_odds_ratio", "≤ 0", "log σ of log_odds_chosen: the term that beta weighs.", "Rises towards 0."),
    ),
    *_in(
        REINFORCED, RL,
        ("reward", "reward",
         "The mean over the step's completions of the weighted sum of their rewards; completions that no function"
         " scored are left out.",
         "Rises, with noise. Flat from the start: see frac_reward_zero_std. Rising while eval/accuracy does not: the"
         " policy found a way to please a reward function; read completions, and rescore with another function."),
        ("reward_std", "reward",
         "The standard deviation of these totals (n - 1), over all completions of the step.",
         "Well above 0. As it goes to 0 there is less and less to learn from."),
        ("frac_reward_zero_std", "share, 0 to 1",
         "The share of groups whose completions all got the same total: they have no advantage and teach nothing.",
         "Below about 0.5. Near 1 with a low reward: too hard, so easier prompts, a larger group_size, or partial"
         " credit. Near 1 with a high reward: solved, so harder prompts."),
        ("rewards/<name>/mean", "reward",
         "The mean answer of one reward function, before its weight; None is left out.",
         "One curve rising at another's cost: change weights."),
        ("rewards/<name>/std", "reward",
         "The standard deviation of one function's answers (n - 1).",
         "0 means the function tells nothing apart, whatever its weight."),
    ),
    *_in(
        COMPLETIONS, RL,
        ("completions/mean_length", "tokens", "The mean number of sampled tokens, stop token included.",
         "Growth is fine where tasks need thought. Growth without reward: a length reward, or loss_type='dr_grpo',"
         " which does not favour long wrong answers. Towards a handful: the reward pays for silence."),
        ("completions/min_length", "tokens", "The shortest completion.", "1: the policy stops at once."),
        ("completions/max_length", "tokens", "The longest completion; at most max_new_tokens.",
         "At max_new_tokens in every step: see completions/clipped_ratio."),
        ("completions/clipped_ratio", "share, 0 to 1",
         "The share of completions that ran into max_new_tokens before they ended.",
         "Below about 0.1. Higher: raise max_new_tokens, or mask_truncated_completions=True, or soft_overlong among"
         " the rewards. 1 from the start: the policy never learned to stop; sft first."),
        ("completions/mean_terminated_length", "tokens",
         "The mean length of the completions that ended by themselves; 0 where none did.",
         "Compare with completions/mean_length: far below it, the cut-off ones make up the mean."),
        ("completions/min_terminated_length", "tokens", "The shortest of those; 0 where there are none.",
         "1: some answers are nothing but the stop token."),
        ("completions/max_terminated_length", "tokens", "The longest of those; 0 where there are none.",
         "Well below max_new_tokens: the limit could be lower. Near it: it may cut answers that were about to end."),
        ("reward_length_corr", "-1 to 1",
         "Pearson's correlation of reward and number of tokens over the step's completions that have a reward; left out"
         " where all rewards or all lengths are equal.",
         "Near 0. Steadily above about 0.5: longer answers are paid better, whatever they say, and the policy will grow"
         " them; below -0.5: short ones are. Where tasks need more thought for more reward, some of it is fine."),
        ("entropy/p10", "nats per token",
         "The 10th percentile of the entropies of the step's sampled tokens, at the sampling temperature.",
         "Near 0: most tokens are certain, as they should be in running text."),
        ("entropy/p90", "nats per token",
         "The 90th percentile of the same: the few tokens at which the text could go several ways.",
         "It should fall more slowly than entropy does. At 0 no token is in doubt any more: completions of a prompt are"
         " all the same, and learning ends."),
    ),
    *_in(
        POLICY, (*RL, "kto"),
        ("kl", "nats per token; kto: nats per answer",
         "RL: the estimate of KL(policy || reference) per token, by kl_estimator; there with beta above 0. kto: the"
         " baseline z that log-ratios are compared with, never below 0.",
         "Starts at 0 and stays small (0.001 to 0.1). A jump: lower lr or raise beta. Far above 1, the policy has"
         " left the language of the reference. kto: 0 at first; where it grows as fast as the margins, the policy"
         " moves everywhere and not only on good answers."),
    ),
    *_in(
        POLICY, RL,
        ("clip_ratio/low_mean", "share, 0 to 1",
         "The share of tokens (completions, for ratios of sequences) with advantage below 0 and ratio below"
         " 1 - epsilon: no gradient comes from them.",
         "0 with one update a step. With more, 0.001 to 0.1; higher: fewer num_iterations or a lower lr."),
        ("clip_ratio/high_mean", "share, 0 to 1",
         "The same with advantage above 0 and ratio above 1 + epsilon_high.",
         "As above. Where it is the larger one and entropy falls, raise epsilon_high (0.28 in DAPO)."),
        ("clip_ratio/region_mean", "share, 0 to 1", "The sum of both.", "0 with one update a step; else below 0.2."),
        ("clip_ratio/low_min", "share, 0 to 1", "The smallest clip_ratio/low of a completion.",
         "Above 0: every completion was cut somewhere."),
        ("clip_ratio/high_max", "share, 0 to 1", "The largest clip_ratio/high of a completion.",
         "1: a whole completion taught nothing."),
        ("cispo_clip_ratio", "share, 0 to 1",
         "loss_type='cispo': the share of tokens with advantage above 0 whose ratio is held at epsilon_high.",
         "Small. They still train, with that weight."),
        ("vespo/phi_seq_mean", "≥ 0", "loss_type='vespo': the mean weight phi of a completion.",
         "1 where old and new policy agree; towards 0, completions are too stale to teach."),
        ("policy_loss", "without a unit",
         "The loss before the entropy bonus is taken off; there with one. ppo: the loss without that of the values.",
         "Compare with loss: a bonus of the same size leads the policy, not the reward."),
        ("entropy_coef", "≥ 0", "The weight of the entropy bonus after the step.",
         "With use_adaptive_entropy it rises while the entropy is at or below entropy_target. At entropy_coef_max:"
         " the bonus cannot hold the entropy; lower lr."),
        ("entropy/trained_tokens", "nats per token",
         "The entropy of the tokens that train, with top_entropy_quantile below 1.", "Well above entropy."),
    ),
    *_in(
        SAMPLING, RL,
        ("sampling/sampling_logp_difference/mean", "nats",
         "The mean over tokens of |log-prob at training - log-prob at sampling|.",
         "About 1e-6 in float32, 1e-3 to 1e-2 in bfloat16. More: sampler_correction, and find out why."),
        ("sampling/sampling_logp_difference/max", "nats", "The largest such difference.",
         "In bfloat16 up to about 1 now and then. Rare large ones do no harm; often: see the mean."),
        ("sampling/importance_sampling_ratio/mean", "≥ 0",
         "The mean weight that sampler_correction gives tokens, or completions, after its bounds.",
         "Near 1. Far below, much of the batch is masked and does not train."),
        ("sampling/importance_sampling_ratio/min", "≥ 0", "The smallest of these weights.", "0 where one is masked."),
        ("sampling/importance_sampling_ratio/max", "≥ 0", "The largest of these weights.",
         "Often at sampler_correction_max: sampler and trainer disagree."),
        ("sampling/yield", "share, 0 to 1",
         "dynamic_sampling: the groups that the step trains on over all that were sampled.",
         "Low: most of the sampling is thrown away; choose harder or easier prompts."),
        ("sampling/rounds", "rounds", "dynamic_sampling: how often prompts were drawn for the step.",
         "1 at best. At max_sampling_rounds the batch may be smaller than asked for."),
    ),
    *_in(
        REWARDS, RL,
        ("rewards/<name>/unanswered", "completions",
         "math_answer, reasoning_math_answer: completions that got no verdict (time-out, memory, an error).",
         "0. They count as None: no reward and no advantage."),
        ("rewards/<name>/unreadable", "share, 0 to 1",
         "wb.task of a reasoning-gym data set: the share of completions whose answer its verifier could not read.",
         "Falls. They count as 0; high, the policy has not found the form of an answer yet."),
        ("step_grpo/<part>", "share, 0 to 1",
         "step_grpo: the mean of one of its parts: right (the answer), key_steps (their share that is named), valid"
         " (headings and steps in order).",
         "right should rise with the reward; where the others rise alone, lower key_weight or show the form by sft."),
        ("judge/<name>/none_share", "share, 0 to 1", "The share of completions that the judge gave no score.",
         "0. The counts that follow say why."),
        ("judge/<name>/timeouts", "completions", "Requests that were not answered in time.",
         "Raise timeout and deadline, or lower concurrency."),
        ("judge/<name>/refused", "completions", "Requests to an address at which nothing answers.",
         "Start the server, or correct url."),
        ("judge/<name>/errors", "completions", "Requests that the server answered with an error.",
         "The warning has its words."),
        ("judge/<name>/unparsable", "completions", "Answers of the judge without a score that can be read.",
         "Ask for the score more plainly in the prompt, or give parse=."),
        ("judge/<name>/out_of_range", "completions", "Scores outside of scale.",
         "Say the scale in the prompt: {low} and {high}."),
    ),
    *(row for group, methods, *rows in glossary_of_methods.ROWS for row in _in(group, methods, *rows)),
    *_in(
        HELD_OUT, (),
        ("eval/accuracy", "share, 0 to 1",
         "The share of held-out completions that the task's verdict function calls right (1.0 or more): pass@1.",
         "The number to improve. Its noise is about sqrt(a (1 - a) / prompts): 0.05 for 100 prompts."),
        ("eval/pass@<k>", "share, 0 to 1",
         "The chance that at least one of k completions of a prompt is right, by the unbiased estimate of Chen et al."
         " 2021 (arXiv 2107.03374); k is num_generations_eval.",
         "What the policy can reach by trying. When eval/accuracy rises and this falls, it gained certainty at the"
         " cost of variety."),
        ("eval/maj@<k>", "share, 0 to 1",
         "The share of prompts that the most frequent answer among k completions solves (Wang et al. 2022, arXiv"
         " 2203.11171); there where the verdict function can say what a completion answers.",
         "Above eval/accuracy where wrong answers scatter."),
        ("eval/unjudged", "share, 0 to 1",
         "The share of held-out completions without a verdict; there where there are any.",
         "0. The other numbers are over the rest."),
        ("eval/reward", "reward", "The mean weighted reward of held-out completions.",
         "Compare with reward: a gap that grows is overfitting to the prompts."),
    ),
)  # fmt: skip
"""every metric, by group"""
