"""Accuracy, pass@k and maj@k against hand-worked numbers."""

import math
import random
from collections import Counter
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


def test_maj_at_k_by_hand():
    # 7 has two votes of four, 8 and 9 one each: 7 wins
    assert evaluation.maj_at_k([7, 8, 7, 9], [1, 0, 1, 0], 4) == pytest.approx(1.0)
    assert evaluation.maj_at_k([7, 8, 7, 9], [0, 1, 0, 0], 4) == 0.0
    # one draw: the share that is right
    assert evaluation.maj_at_k([7, 8, 7, 9], [0, 1, 0, 0], 1) == pytest.approx(0.25)
    # pairs of a b b None: ab twice (half each), a and None once (right), b... never: (2 x 1/2 + 1) / 6
    assert evaluation.maj_at_k(["a", "b", "b", None], [1, 0, 0, 0], 2) == pytest.approx(2 / 6)
    # ties of 2 and of 3 count by the share of tied answers that are right
    assert evaluation.maj_at_k([7, 7, 8, 8], [1, 1, 0, 0], 4) == pytest.approx(0.5)
    assert evaluation.maj_at_k([1, 2, 3], [0, 0, 1], 3) == pytest.approx(1 / 3)
    # nobody votes, or only one does
    assert evaluation.maj_at_k([None, None], [0, 0], 2) == 0.0
    assert evaluation.maj_at_k([None, None, 5], [0, 0, 1], 3) == pytest.approx(1.0)
    # samples of one answer judged differently: the share of them that is right
    assert evaluation.maj_at_k(["x", "x", "y"], [1, 0, 0], 3) == pytest.approx(0.5)


def test_maj_at_k_is_the_mean_over_all_subsets():
    draw = random.Random(0)
    for _ in range(150):
        n = draw.randint(1, 8)
        answers = [draw.choice(["a", "b", "c", None]) for _ in range(n)]
        solved = {answer: draw.random() < 0.5 for answer in "abc"} | {None: False}
        for k in range(1, n + 1):
            values = []
            for subset in combinations(answers, k):
                votes = Counter(answer for answer in subset if answer is not None)
                winners = [answer for answer, count in votes.items() if count == max(votes.values())]
                values.append(sum(map(solved.get, winners)) / len(winners) if winners else 0.0)
            found = evaluation.maj_at_k(answers, [float(solved[answer]) for answer in answers], k)
            assert found == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_maj_at_k_of_many_samples():
    # two draws of three from many: right with chance 0.6, so 0.6^3 + 3 x 0.6^2 x 0.4 as n grows
    answers = ["right"] * 600 + ["wrong"] * 400
    correct = [1.0] * 600 + [0.0] * 400
    assert evaluation.maj_at_k(answers, correct, 3) == pytest.approx(0.648, abs=1e-3)
    assert evaluation.maj_at_k(list(range(128)), [1.0] * 128, 128) == pytest.approx(1.0)


def test_mean_maj_at_k_averages_over_groups_and_leaves_out_what_was_not_judged():
    answers = [7, 8, 7, 1, 1, 2]
    groups = [0, 0, 0, 5, 5, 5]
    assert evaluation.mean_maj_at_k(answers, [1, 0, 1, 0, 0, 1], groups, 3) == pytest.approx(0.5)
    # without the unjudged 1, group 5 ties between 1 and 2; with k = 3 too few of it are left
    verdict = [1, 0, 1, 0, NAN, 1]
    assert evaluation.mean_maj_at_k(answers, verdict, groups, 2) == pytest.approx((1 / 3 + 2 / 3 * 0.5 + 0.5) / 2)
    assert evaluation.mean_maj_at_k(answers, verdict, groups, 3) == pytest.approx(1.0)
    assert math.isnan(evaluation.mean_maj_at_k(answers, [NAN] * 6, groups, 1))
    with pytest.raises(SettingError, match="maj@4 needs 4 samples.*group 0 has 3"):
        evaluation.mean_maj_at_k(answers, verdict, groups, 4)
    with pytest.raises(SettingError, match="maj@2: 6 verdicts for 2 group numbers"):
        evaluation.mean_maj_at_k(answers, verdict, [0, 0], 2)
    for k in (0, 4):
        with pytest.raises(SettingError, match=f"k={k}"):
            evaluation.maj_at_k([1, 2, 3], [0, 0, 1], k)


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


def test_metrics_with_answers():
    found = evaluation.metrics([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0, 0, 0], ks=(1, 3), answers=["a", "b", "b"])
    assert found["eval/maj@1"] == pytest.approx(1 / 3) and found["eval/maj@3"] == 0.0 and found["eval/pass@3"] == 1.0


def test_metrics_say_how_many_were_not_judged():
    found = evaluation.metrics([1.0, NAN], [1.0, NAN], [0, 0], ks=(1,))
    assert found == {"eval/accuracy": 1.0, "eval/reward": 1.0, "eval/pass@1": 1.0, "eval/unjudged": 0.5}
