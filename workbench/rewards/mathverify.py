"""One comparison by math-verify, without time-outs: for the process that `math_answer` can kill."""

from __future__ import annotations

import logging

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

CONFIG = LatexExtractionConfig(
    normalization_config=NormalizationConfig(units=True),
    boxed_match_priority=0,
    try_extract_without_anchor=False,
)
"""as in TRL's accuracy_reward: LaTeX only, boxed first"""

for name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(name).setLevel(logging.ERROR)  # they warn that time-outs are off


def verdict(gold: str, text: str) -> float | None:
    """1.0 where the text's answer equals the reference, else 0.0; None where the reference cannot be read."""
    reference = parse(gold, parsing_timeout=None)
    if not reference:
        return None
    found = parse(text, extraction_config=[CONFIG], extraction_mode="first_match", parsing_timeout=None)
    return float(verify(reference, found, timeout_seconds=None))
