"""Verifiable rewards. A reward is a plain function with TRL's signature:

    def fn(prompts, completions, completion_ids, **columns) -> list[float | None]

One number per completion, None where the function does not apply. `score` calls such functions as TRL 1.16's
GRPO trainer does; the others here are ready-made ones. No torch.
"""

from workbench.rewards.maths import math_answer
from workbench.rewards.score import RewardTable, TrainerState, score
from workbench.rewards.signature import check_functions, names
from workbench.rewards.text import completion_text, exact_match, last_number, matches, number

__all__ = [
    "RewardTable",
    "TrainerState",
    "check_functions",
    "completion_text",
    "exact_match",
    "last_number",
    "matches",
    "math_answer",
    "names",
    "number",
    "score",
]
