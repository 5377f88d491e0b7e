"""Self-judgment: the policy, as it began, judges pairs of its own answers, and learns from its verdicts by DPO.

Two stages. First SFT teaches one model to answer and to judge (JSFT): `workbench.judges.judge_rows(pairs)` makes of
preference pairs the chosen answers, and questions "which of the two is better, A or B?" in both orders. Then this
method. A step draws `batch_size` prompts of the task, samples two answers to each, and asks the policy with the weights
that the run began with (an adapter that is new is off), in both orders:

    a = (P1(A) + P2(B)) / 2     b = (P1(B) + P2(A)) / 2     the first answer is chosen if a > b

Several `principles` vote; where the vote is split, the mean of a / (a + b) decides. The pair makes one DPO update,
-log sigmoid(beta * D), against the same start. Pairs without a verdict (the two options have less than `least_mass`
together, or the question does not fit into the context) and ties teach nothing: they are left out and counted. At the
end `judges.best_of(judge, policy.sample(prompts, n=5))` picks answers by tournament.

The rewards of the task are not learned from: they are shown, and metrics say how the judge agrees with them. Stored
with the step are both answers and, as the reward `judge`, the probability of each to be the better one: a replay
neither samples nor judges.

Metrics: judge/none_share, judge/mass (of the two options), judge/position_bias (how much of its probability the first
place gets beyond one half), judge/accuracy (share of pairs that the task's verdict tells apart, in which the judge says
the same), judge/pairs (that were trained on).

Defaults: lr 5e-6, beta 0.1, top_p 0.9, temperature 1, batch_size 8, from the authors' configuration (where answers have
up to 768 tokens and the schedule is constant after a warm-up of a tenth). least_mass 0.01 is ours.

Paper: Lee et al. 2024, Aligning Large Language Models by On-Policy Self-Judgment, arXiv 2402.11253. Source read:
oddqueue/self-judge. What differs: an answer that ran into max_new_tokens gets no end token (there all get one), equal
scores give no pair (there the second answer), and the judge's question is shorter (`judge_prompt` takes any). Left out:
rationales beside verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from workbench import tokenise, update, worker
from workbench.errors import DataError
from workbench.evaluation import mean
from workbench.judges.local import ModelJudge, Verdict, context_of
from workbench.judges.prompts import COMPARE, LEAD, JudgePrompt, problem
from workbench.mask_report import MaskReport
from workbench.methods import Method, dpo, grpo, reference, rl_batch
from workbench.methods.context import Context, Step
from workbench.methods.evaluate import evaluate_task, sample, score
from workbench.methods.rounds import describe
from workbench.sampling.rollouts import Rollouts
from workbench.settings.base import knob
from workbench.settings.preference import DPOSettings
from workbench.state import State
from workbench.transforms.pairs import best_over_worst

JUDGE = "judge"
"""the name of the reward that the judge gives"""


@dataclass(frozen=True, kw_only=True)
class SelfJudgmentSettings(DPOSettings):
    """DPO on pairs that are sampled and judged at each step."""

    lr: float = knob(5e-6, at_least=0.0)
    top_p: float = knob(0.9, above=0.0, at_most=1.0)
    max_length: int | None = knob(None, at_least=2, fixed=True)
    """changes nothing: answers have at most `max_new_tokens`"""
    judge_prompt: str = COMPARE
    """the question, with {prompt}, {first} and {second}, and {principle} where there are several"""
    judge_lead: str = LEAD
    """how the judge's answer begins; an option follows"""
    judge_options: tuple[str, ...] = (" A", " B")
    """the two options: the first answer is better, the second one is"""
    judge_chat: bool = False
    """ask in a conversation, by the chat template"""
    principles: tuple[str, ...] = ("better",)
    """by what answers are compared; several vote"""
    least_mass: float = knob(0.01, at_least=0.0, below=1.0)
    """a judge that gives the two options together less probability has no verdict"""

    # a pair compares two answers: what `run.rescore` shows of other rewards
    advantage_estimator, multi_objective_aggregation, scale_rewards = "rloo", "sum_then_normalize", "none"
    normalize_advantages, reward_clip_range, overlong_cache = False, None, None

    def problem(self) -> str | None:
        if said := problem(self.judge_prompt, self.judge_options, self.principles):
            return f"judge_prompt, judge_options, principles: {said}"
        if self.precompute_ref_log_probs:
            return "precompute_ref_log_probs keeps log-probs of rows, and every step here has new ones: leave it out."
        return super().problem()


def check_task(task, settings: SelfJudgmentSettings) -> None:
    rl_batch.check_free([JUDGE], task.reward_names, "self_judgment")


def prepare(tokenizer, task, settings: SelfJudgmentSettings) -> grpo.Prompts:
    """The tokenised prompts. Raises DataError where one cannot be used."""
    check_task(task, settings)
    made = grpo.prepare(tokenizer, task, settings)
    ModelJudge(tokenizer, None, asked(settings)).option_ids(settings.judge_options)
    return made


def asked(settings: SelfJudgmentSettings) -> JudgePrompt:
    return JudgePrompt(
        compare=settings.judge_prompt,
        lead=settings.judge_lead,
        options=settings.judge_options,
        principles=settings.principles,
        chat=settings.judge_chat,
    )


def loop(state: State, ctx: Context) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rollouts, metrics = gather(state, ctx, index)
        yield Step(index, metrics | train(state, ctx, rollouts, index), rollouts)


def gather(state: State, ctx: Context, index: int) -> tuple[Rollouts, dict[str, float]]:
    """Two answers to each of the step's prompts, the task's rewards, and the judge's."""
    if ctx.replay is not None:
        return ctx.replay.rollouts, {}
    settings = ctx.settings
    drawn = ctx.draw(index, settings.batch_size, len(ctx.data.prompts))
    made = sample(ctx, ctx.data, drawn, 2, (index,))
    ctx.check()
    logged = score(ctx, ctx.data.task, made, state.step).logged_metrics
    judge = ModelJudge(
        ctx.policy.tokenizer, partial(read, ctx), asked(settings), settings.least_mass, context_of(ctx.policy)
    )
    verdicts = judge.compare(made.prompt[0::2], made.text[0::2], made.text[1::2])
    metrics = logged | described(verdicts, made.rewards[ctx.data.task.verdict])
    values = [np.nan if one.value is None else one.value for one in verdicts]
    made.reward = np.array([side for value in values for side in (value, 1 - value)])
    made.rewards = {**made.rewards, JUDGE: made.reward}
    made.advantage = np.nan_to_num(2 * made.reward - 1)
    return made, metrics | describe(made)


def read(ctx: Context, sequences: list[list[int]], starts: list[int]) -> list[list[float]]:
    """Log-probs under the weights that the run began with."""
    with reference.in_place(ctx, ctx.reference()):
        return ctx.logprobs(update.Batch(sequences, starts), JUDGE)


def described(verdicts: Sequence[Verdict], right: np.ndarray) -> dict[str, float]:
    """The metrics of the judge; `right` is the task's verdict of all answers, in pairs."""
    given = [one for one in verdicts if one.value is not None]
    told = right[0::2] - right[1::2]  # NaN, or 0: not told apart
    agreed = [
        float((one.value - 0.5) * gap > 0)
        for one, gap in zip(verdicts, told, strict=True)
        if one.value is not None and abs(gap) > 0
    ]
    return {
        "judge/none_share": 1 - len(given) / len(verdicts),
        "judge/mass": mean([one.mass for one in verdicts]),
        "judge/position_bias": mean([(one.in_front + 1 - one.behind) / 2 - 0.5 for one in given]),
        "judge/accuracy": mean(agreed),
    }


def pairs_of(rollouts: Rollouts) -> dpo.PairData:
    """Of each group the answer with the highest reward over that with the lowest."""
    prompts, ids = rollouts.prompt_ids, rollouts.ids
    made = [
        tokenise.Pair(prompts[best], ids[best], ids[worst], rollouts.row[best])
        for best, worst in best_over_worst(rollouts.reward.tolist(), rollouts.group)
        if ids[best] != ids[worst] and ids[best] and ids[worst]
    ]
    return dpo.PairData(made, MaskReport(len(set(rollouts.group)), len(made), 0, 0))


def train(state: State, ctx: Context, rollouts: Rollouts, index: int) -> dict[str, float]:
    """One DPO update on the judged pairs; none where there is no pair."""
    data = pairs_of(rollouts)
    metrics = {"judge/pairs": float(len(data.items))}
    if not data.items:
        worker.warn(f"Step {index}: the judge has no verdict on any pair, so this step teaches nothing.")
        return metrics | {"loss": float("nan")}
    return metrics | dpo.fit(state, ctx, data, range(len(data.items)), index)


def evaluate(ctx: Context) -> dict[str, float]:
    return evaluate_task(ctx, ctx.eval_data)


def preview(ctx: Context, rollouts: Rollouts) -> update.Outcome:
    """The update on given completions: of each prompt the one with the highest reward over that with the lowest."""
    data = pairs_of(rollouts)
    if not data.items:
        raise DataError("There is no pair: give two completions of a prompt with different rewards.")
    return dpo.preview(ctx, data)


METHOD = Method(
    "self_judgment", "task", prepare, loop, evaluate, preview, check_task=check_task, settings=SelfJudgmentSettings
)
