"""Rewards. A reward is a plain function with TRL's signature:

    def fn(prompts, completions, completion_ids, **columns) -> list[float | None]

One number per completion, None where the function does not apply. `score` calls such functions as TRL 1.16's
GRPO trainer does; the others here are ready-made ones:

    answers     exact_match, number, math_answer, reasoning_math_answer
    form        matches, think_format, tag_format, tag_count
    length      length, soft_overlong, cosine_length
    language    repetition, language_share
    a judge     judge: a language model behind an OpenAI-compatible server

Those with settings are made by calling them: `rewards=[number, soft_overlong(512, 128)]`. No torch.
"""

from workbench.rewards.formats import tag_count, tag_format, think_format
from workbench.rewards.judging import judge
from workbench.rewards.language import language_share, repetition
from workbench.rewards.lengths import cosine_length, length, soft_overlong
from workbench.rewards.maths import after_reasoning, math_answer, reasoning_math_answer
from workbench.rewards.score import RewardTable, TrainerState, score
from workbench.rewards.signature import check_functions, names
from workbench.rewards.text import boxed, completion_text, exact_match, last_number, matches, number

__all__ = [
    "RewardTable",
    "TrainerState",
    "after_reasoning",
    "boxed",
    "check_functions",
    "completion_text",
    "cosine_length",
    "exact_match",
    "judge",
    "language_share",
    "last_number",
    "length",
    "matches",
    "math_answer",
    "names",
    "number",
    "reasoning_math_answer",
    "repetition",
    "score",
    "soft_overlong",
    "tag_count",
    "tag_format",
    "think_format",
]
