"""Rewards. A reward is a plain function with TRL's signature:

    def fn(prompts, completions, completion_ids, **columns) -> list[float | None]

One number per completion, None where the function does not apply. `score` calls such functions as TRL 1.16's
GRPO trainer does; the others here are ready-made ones:

    answers     exact_match, number, math_answer, reasoning_math_answer
    form        matches, think_format, tag_format, tag_count
    length      length, soft_overlong, cosine_length, length_cosine, repeated_tokens
    steps       key_steps, valid_steps, step_grpo
    labels      tagged_label, tagged_form, whole_label
    language    repetition, language_share
    tools       tool_call
    a judge     judge: a language model behind an OpenAI-compatible server

Those with settings are made by calling them: `rewards=[number, soft_overlong(512, 128)]`. No torch.
"""

from workbench.rewards.formats import tag_count, tag_format, think_format
from workbench.rewards.judging import judge
from workbench.rewards.labels import tagged_form, tagged_label, whole_label
from workbench.rewards.language import language_share, repetition
from workbench.rewards.lengths import cosine_length, length, soft_overlong
from workbench.rewards.long_cot import length_cosine, repeated_tokens
from workbench.rewards.maths import after_reasoning, math_answer, reasoning_math_answer
from workbench.rewards.score import RewardTable, TrainerState, score
from workbench.rewards.signature import check_functions, names
from workbench.rewards.steps import key_steps, step_grpo, valid_steps
from workbench.rewards.text import boxed, completion_text, exact_match, last_number, matches, number
from workbench.rewards.tool_calls import tool_call

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
    "key_steps",
    "language_share",
    "last_number",
    "length",
    "length_cosine",
    "matches",
    "math_answer",
    "names",
    "number",
    "reasoning_math_answer",
    "repeated_tokens",
    "repetition",
    "score",
    "soft_overlong",
    "step_grpo",
    "tag_count",
    "tag_format",
    "tagged_form",
    "tagged_label",
    "think_format",
    "tool_call",
    "valid_steps",
    "whole_label",
]
