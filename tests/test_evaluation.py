"""pass@k and accuracy against hand-worked numbers."""

import math
from itertools import combinations

import numpy as np
import pytest

from workbench import evaluation
from workbench.errors import SettingError

NAN = float("nan")


def test_pass_at_k_by_hand():
    # 4 samples, 1 right: of the 6 pairs 3 hold the right one
    assert evaluation.pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert evaluation.pass_at_k(4, 1, 1) == pytest.approx(0.25)
    assert evaluation.pass_at_k(4, 0, 4) == 0.0
    assert evaluation.pass_at_k(4, 1, 4) == 1.0
    assert evaluation.pass_at_k(10, 3, 8) == 1.0  # only 7 are wrong: 8 samples hold a right one


def test_pass_at_k_counts_the_subsets():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                assert evaluation.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_stays_a_probability():
    # C(100000, 50000) overflows a float; with one right the chance is k/n
    assert evaluation.pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
    assert evaluation.pass_at_k(100_000, 50_000, 100) == pytest.approx(1.0)
    exact = 1 - math.comb(900, 8) / math.comb(1000, 8)
    assert evaluation.pass_at_k(1000, 100, 8) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_makes_no_sense(n, c, k):
    with pytest.raises(SettingError, match=f"n={n}, c={c}, k={k}"):
        evaluation.pass_at_k(n, c, k)


def test_accuracy_counts_full_reward_only_and_leaves_out_what_was_not_judged():
    assert evaluation.accuracy([1.0, 0.9, 0.0, 2.0]) == 0.5
    assert evaluation.accuracy([1.0, NAN, 0.0]) == 0.5
    assert math.isnan(evaluation.accuracy([NAN, NAN]))
    assert evaluation.accuracy([0.6, 0.4], threshold=0.5) == 0.5


def test_mean_pass_at_k_averages_over_groups():
    # group 7: 1 of 2 right, pass@1 = 0.5, pass@2 = 1; group 9: 0 of 2
    verdict, groups = [1.0, 0.0, 0.0, 0.0], [7, 9, 7, 9]
    assert evaluation.mean_pass_at_k(verdict, groups, 1) == 0.25
    assert evaluation.mean_pass_at_k(verdict, groups, 2) == 0.5


def test_mean_pass_at_k_without_verdicts():
    # group 0: one of the two judged samples is right; group 1 has one judged sample, too few for pass@2
    verdict, groups = [1.0, 0.0, NAN, 1.0, NAN, NAN], [0, 0, 0, 1, 1, 1]
    assert evaluation.mean_pass_at_k(verdict, groups, 2) == 1.0
    assert evaluation.mean_pass_at_k(verdict, groups, 1) == 0.75
    assert math.isnan(evaluation.mean_pass_at_k(verdict, groups, 3))
    with pytest.raises(SettingError, match="pass@4 needs 4 samples.*group 0 has 3"):
        evaluation.mean_pass_at_k(verdict, groups, 4)


def test_metrics_names_and_numbers():
    groups = np.repeat([0, 1], 8)
    verdict = np.array([1.0] + [0.0] * 7 + [0.0] * 8)
    found = evaluation.metrics(verdict, verdict * 2 + 0.5, groups, ks=(1, 8))
    assert found == {
        "eval/accuracy": 1 / 16,
        "eval/reward": 0.625,
        "eval/pass@1": pytest.approx(1 / 16),
        "eval/pass@8": 0.5,
    }


def test_metrics_say_how_many_were_not_judged():
    found = evaluation.metrics([1.0, NAN], [1.0, NAN], [0, 0], ks=(1,))
    assert found == {"eval/accuracy": 1.0, "eval/reward": 1.0, "eval/pass@1": 1.0, "eval/unjudged": 0.5}
