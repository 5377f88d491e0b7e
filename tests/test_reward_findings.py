"""What scores of known answers say: each bound on both sides, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.reward_bench import findings
from workbench.reward_bench.answers import Answer
from workbench.reward_bench.calls import Called, Cell
from workbench.reward_bench.findings import Scores


def scored(values: dict, answers=None, weights=None) -> Scores:
    """Scores given by hand, of answers that do not matter."""
    n = len(next(iter(values.values())))
    answers = answers or [Answer("given", "a", i, "") for i in range(n)]
    cells = {name: Called(name, [Cell("none" if v is None else "number", math.nan if v is None else v) for v in own])
             for name, own in values.items()}  # fmt: skip
    return Scores.of(answers, cells, weights or dict.fromkeys(values, 1.0), next(iter(values)))


def test_length_of_samples_by_hand():
    answers = [Answer("sample", "s", i, "x" * n) for i, n in enumerate((1, 2, 3, 4, 5, 6, 7, 80))]
    up = scored({"f": [1, 2, 3, 4, 5, 6, 7, 8]}, answers)
    assert findings.sample_correlation(up, up.total) == pytest.approx(1.0)  # by rank: 80 is no outlier
    some = scored({"f": [0, 1, 0, 1, 0, 1, 0, 1]}, answers)
    # ranks of f: 2.5 and 6.5 in turn, those of the lengths 1 to 8: covariance 1, variances 5.25 and 4
    assert findings.sample_correlation(some, some.total) == pytest.approx(1 / math.sqrt(5.25 * 4))
    few = scored({"f": [1, 2, 3, 4, 5, 6, 7]}, answers[:7])
    assert findings.sample_correlation(few, few.total) == 0
    assert [f.text[:5] for f in findings.length(up, "f", up.total)] == ["rises"] and not findings.length(
        some, "f", some.total
    )


def test_ranks_and_correlation_by_hand():
    assert findings.ranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert findings.correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 7])) == pytest.approx(
        5 / math.sqrt(2 * 38 / 3)
    )
    assert findings.correlation(np.array([1.0, 2]), np.array([3.0, 3])) == 0


def test_time_a_completion_takes():
    called = {"f": Called("f", [Cell("number", 0.0), Cell("number", 1.0)], seconds=[0.049])}
    scores = Scores.of([Answer("good", "a", 0, "x"), Answer("bad", "b", 0, "y")], called, {"f": 1.0}, "f")
    assert not any("ms a completion" in f.text for f in findings.health(scores, "f", called["f"]))
    called["f"].seconds = [0.051, 0.2, 0.01]
    (finding,) = findings.health(scores, "f", called["f"])
    assert finding.severity == "warning" and "takes 51 ms a completion" in finding.text and "3.3 s" in finding.advice


def test_functions_that_agree_or_oppose():
    def texts(**values):
        return [f.text for f in findings.pairs(scored(values))]

    assert texts(a=[0, 1, None, 1], b=[0, 1, 0, 1]) == ["agree exactly on all 3 answers."]
    assert texts(a=[0, 1, 0, 1], b=[0, 2, 0, 2]) == ["differ only in scale."]
    assert texts(a=[0, 1, 0, 1], b=[1, 0, 1, 0]) == ["pull in opposite directions (correlation -1.00)."]
    assert texts(a=[0, 1, 0, 1], b=[0, 1, 1, 0]) == [] and texts(a=[1, 1], b=[1, 1]) == []


def test_one_part_that_drowns_the_others():
    values = {"a": [0.0, 1.0], "b": [0.0, 8.9]}  # 8.9 / 9.9 = 0.899
    assert findings.dominance(scored(values)) == []
    (finding,) = findings.dominance(scored(values, weights={"a": 1.0, "b": 1.02}))  # 9.078 / 10.078 = 0.9008
    assert finding.function == "b" and "90 % of the spread" in finding.text
    assert findings.dominance(scored(values, weights={"a": 10.0, "b": 1.0})) == []
    assert findings.dominance(scored({"a": [0.0, 1.0], "b": [3.0, 3.0]})) == []


def test_groups_of_samples_without_spread():
    def groups(*values):
        answers = [Answer("sample", "s", i // 2, "x") for i in range(len(values))]
        return findings.groups(scored({"f": list(values)}, answers))

    assert groups(0, 1, 0, 0, 1, 0) == []
    (finding,) = groups(0, 1, 0, 0)
    assert finding.severity == "warning" and "1 of 2 groups of 2 samples have no spread (50 %)" in finding.text
    (finding,) = groups(1, 1, 0, 0)
    assert finding.severity == "warning" and "2 of 2" in finding.text
    (finding,) = groups(0, 0, 0, 0)
    assert finding.severity == "error" and "all samples of the policy score the same (0)" in finding.text
    assert groups(None, None) == []
