"""Judges: what says whether an answer is right, or which of two is better.

    judge.score(prompts, completions, **columns)      how good each answer is, 0 to 1; None: no verdict
    judge.prefer(prompts, first, second, **columns)   the probability that the first of two is better; None: no verdict

    rule(fn)            any verifier or reward function
    comparison(fn)      a reward function that is shown both answers
    endpoint(url, ...)  a model behind an OpenAI-compatible server (`workbench.rewards.judge`)
    model(policy, ...)  a local model: the policy itself, now, without its adapter or as it started, or another policy

All are a `Judge`, which is a reward function, too: `wb.Task(rows, rewards=[judge])`. Built on them:

    tournament, best_of   the best of n answers, by knockout
    trees                 tree search over the steps of an answer: sample, judge, keep
    judge_rows            rows that teach a model to judge

A verdict that is not to be had (a judge that is silent, or answers something else) is None: it is counted and told,
and never guessed.
"""

from workbench.judges.base import Judge
from workbench.judges.local import ModelJudge, Verdict, model
from workbench.judges.prompts import JudgePrompt, judge_rows
from workbench.judges.rules import comparison, endpoint, rule
from workbench.judges.tournament import Tournament, best_of, tournament
from workbench.judges.trees import trees

__all__ = [
    "Judge",
    "JudgePrompt",
    "ModelJudge",
    "Tournament",
    "Verdict",
    "best_of",
    "comparison",
    "endpoint",
    "judge_rows",
    "model",
    "rule",
    "tournament",
    "trees",
]
