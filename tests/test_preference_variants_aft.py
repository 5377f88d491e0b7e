"""AFT: the ranking losses by hand, their gradients, and the method beside SFT."""

from __future__ import annotations

import math

import pytest
import torch

from tests.models import tiny_policy
from tests.runs import WORDS, assert_same_metrics, assert_same_weights, weights
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.objectives import finish
from workbench.objectives.ranking import aligned, ranking_loss
from workbench.objectives.supervised import weighted
from workbench.scoring import TokenScores


def numbers(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- by hand

GOOD = numbers(1, 1, 0, 0)


def test_ranking_losses_by_hand():
    s = numbers(-0.5, -0.8, -0.6, -1.2)
    plain = sum(math.exp(n - p) for p in (-0.5, -0.8) for n in (-0.6, -1.2))
    assert ranking_loss(s, GOOD, "none").item() == pytest.approx(math.log(1 + plain), abs=1e-12)
    assert ranking_loss(s, GOOD, "detached").item() == pytest.approx(math.log(1 + plain), abs=1e-12)
    floor = -0.8 - 0.15
    held = sum(math.exp(2 * floor - n - p) for p in (-0.5, -0.8) for n in (-0.6, -1.2))
    made = ranking_loss(s, GOOD, "boundary", margin=0.15).item()
    assert made == pytest.approx(math.log(1 + plain + held), abs=1e-12)
    terms = (0.904837, 1.221403, 0.496585, 0.670320, 0.449329, 0.606531, 0.818731, 1.105171)
    assert made == pytest.approx(math.log(1 + sum(terms)), abs=1e-5) and made == pytest.approx(1.984156, abs=1e-5)


def slopes(s: torch.Tensor, quality: torch.Tensor, constraint: str, margin: float = 0.15) -> torch.Tensor:
    s = s.clone().requires_grad_()
    ranking_loss(s, quality, constraint, margin).backward()
    return s.grad


def test_the_boundary_turns_the_pull_round():
    floor = -0.8 - 0.15
    for wrong, sign in ((floor, 0), (floor + 0.1, 1), (floor - 0.1, -1)):
        slope = slopes(numbers(-0.5, -0.8, wrong), numbers(1, 1, 0), "boundary")[2].item()
        assert (abs(slope) < 1e-12) if sign == 0 else slope * sign > 1e-3
    # the floor is a constant: the lowest right answer is only ever raised
    assert (slopes(numbers(-0.5, -0.8, -2.0), numbers(1, 1, 0), "boundary")[:2] < 0).all()


def test_the_detached_form_leaves_wrong_answers_alone():
    s = numbers(-0.5, -0.8, -0.6, -1.2)
    assert slopes(s, GOOD, "detached")[2:].tolist() == [0, 0]
    assert (slopes(s, GOOD, "none")[2:] > 0).all() and (slopes(s, GOOD, "none")[:2] < 0).all()
    assert slopes(s, GOOD, "detached")[:2].tolist() == pytest.approx(slopes(s, GOOD, "none")[:2].tolist())


def test_nothing_to_rank_is_nothing():
    s = numbers(-0.5, -0.8)
    assert ranking_loss(s, numbers(1, 1)).item() == 0 and slopes(s, numbers(0, 0), "none").tolist() == [0, 0]


def test_ranks_are_summed_over_ordered_pairs():
    s, quality = numbers(-0.5, -0.9, -0.7), numbers(1.0, 0.5, 0.2)
    pairs = [(-0.5, -0.9), (-0.5, -0.7), (-0.9, -0.7)]
    plain = sum(math.exp(worse - better) for better, worse in pairs)
    assert ranking_loss(s, quality, "none").item() == pytest.approx(math.log(1 + plain))
    # the floor of the second answer is below the first, that of the third below the second
    floors = {-0.9: -0.5 - 0.1, -0.7: -0.9 - 0.1}
    held = sum(math.exp(2 * floors[worse] - worse - better) for better, worse in pairs)
    assert ranking_loss(s, quality, "boundary", 0.1).item() == pytest.approx(math.log(1 + plain + held))


def test_the_objective_by_hand():
    logprob = numbers([-0.2, -0.4], [-1.0, -9], [-0.5, -0.5]).requires_grad_()
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    scores = TokenScores(logprob, logprob.detach() * 0, mask, mask)
    columns = {
        "weight": numbers([1, 1], [0, 0], [1, 1]),
        "answer": numbers([1, 1], [1, 0], [1, 1]),
        "question": numbers(0, 0, 1),
        "quality": numbers(1, 0, 1),
    }
    totals = {"tokens": 4.0, "weight": 4.0, "rows": 3.0}
    loss, metrics = aligned(scores, columns, totals, supervised=weighted, weight=2.0, constraint="detached", margin=0.1)
    ranked = math.log(1 + math.exp(-1.0 + 0.3))
    assert loss.item() == pytest.approx((0.2 + 0.4 + 0.5 + 0.5) / 4 + 2 * ranked / 2)
    found = finish(metrics)
    assert found["ranking_loss"] == pytest.approx(ranked / 2) and found["assessment_accuracy"] == 1.0
    assert (found["scores/right"], found["scores/wrong"]) == pytest.approx((-0.4, -1.0))
    loss.backward()
    assert logprob.grad[1].tolist() == [0, 0] and logprob.grad[0, 0] < logprob.grad[2, 0] < 0


# -- the method


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


def questions(n: int = 6, **more) -> list[dict]:
    return [
        {
            "prompt": f"Say {i}:",
            "completion": f" {WORDS[i % 10]} {i}",
            "answers": [f" {WORDS[(i + 2) % 10]}", f" {WORDS[(i + 5) % 10]}, {i}"],
            "correct": [False, False],
        }
        | more
        for i in range(n)
    ]


def start(policy, rows, out, name="aft", **settings):
    return launch(name, policy.reset(), rows, out, None, dict(steps=3, batch_size=3, lr=1e-2) | settings, None)


def apart(one, other) -> float:
    gap = sum(float((one.by_name[n].double() - other.by_name[n].double()).norm() ** 2) for n in one.by_name)
    return gap**0.5 / one.norm()


def test_without_the_ranking_it_is_sft_on_the_right_answers(policy, tmp_path):
    rows = questions()
    ours, base = start(policy, rows, tmp_path / "a", ranking_weight=0.0), start(policy, rows, tmp_path / "b", "sft")
    mine, theirs = ours.gradients(rows), base.gradients(rows)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-6) and apart(mine, theirs) < 5e-6
    ranked = start(policy, rows, tmp_path / "c", constraint="none").gradients(rows)
    assert apart(mine, ranked) > 0.05 and ranked.metrics["nll"] == pytest.approx(theirs.metrics["nll"], rel=1e-6)
    list(ours), list(base)
    assert_same_weights(weights(ours), weights(base))
    ours = start(policy, rows, tmp_path / "d", ranking_weight=0.0)
    # right answers count as completions do
    right = [{"prompt": q["prompt"], "answers": [q["completion"]], "correct": [True]} for q in questions()]
    assert apart(ours.gradients(right), theirs) < 5e-6


@pytest.mark.parametrize("ranking_weight", [0.0, 1.0])
def test_wrong_answers_are_no_rows_of_the_likelihood(policy, tmp_path, ranking_weight):
    """By rows, the likelihood is a mean over right answers, whether the wrong ones go through the model or not."""
    rows = [
        {"prompt": "Say 1:", "answers": [" one", " two", " three"], "correct": [True, False, False]},
        {"prompt": "Say 2:", "answers": [" two", " nine, or so"], "correct": [True, False]},
    ]
    more = dict(loss_reduction="row", batch_size=2, steps=1)
    ours = start(policy, rows, tmp_path / "a", ranking_weight=ranking_weight, **more)
    logprobs = policy.score(["Say 1:", "Say 2:"], [" one<eos>", " two<eos>"]).logprob
    by_hand = -sum(float(sum(row)) / len(row) for row in logprobs) / 2
    seen = ours.gradients(rows)
    expected = by_hand + ranking_weight * seen.metrics["ranking_loss"]
    assert seen.loss == pytest.approx(expected, rel=1e-5)
    assert next(iter(ours)).metrics["loss"] == pytest.approx(expected, rel=1e-5)
    if not ranking_weight:
        right = [{"prompt": row["prompt"], "completion": row["answers"][0]} for row in rows]
        assert apart(seen, start(policy, right, tmp_path / "b", "sft", **more).gradients(right)) < 5e-6


def test_rows_of_sft_are_sft(policy, tmp_path):
    rows = [{"prompt": q["prompt"], "completion": q["completion"]} for q in questions()]
    with pytest.warns(UserWarning, match="so this is wb.sft"):
        ours = start(policy, rows, tmp_path / "a")
    base = start(policy, rows, tmp_path / "b", "sft")
    assert apart(ours.gradients(rows), base.gradients(rows)) < 5e-6


@pytest.mark.parametrize("constraint", ["detached", "boundary"])
def test_micro_batches_change_nothing(policy, tmp_path, constraint):
    rows = questions()
    whole = start(policy, rows, tmp_path / "a", constraint=constraint).gradients(rows)
    for size in (1, 2):
        parts = start(policy, rows, tmp_path / f"m{size}", constraint=constraint, micro_batch_size=size)
        made = parts.gradients(rows)
        assert apart(whole, made) < 5e-6 and made.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_question_drawn_twice_is_two_questions(policy, tmp_path):
    """More questions a step than there are: each drawing is ranked by itself."""
    rows = questions(2)
    run = start(policy, rows, tmp_path / "run", batch_size=4, steps=1)
    once = run.gradients(rows)
    step = next(iter(run))
    assert step.metrics["ranking_loss"] == pytest.approx(once.metrics["ranking_loss"], rel=1e-5)
    assert step.metrics["loss"] == pytest.approx(once.loss, rel=1e-5)


def test_it_learns_to_tell_right_from_wrong(policy, tmp_path):
    rows = questions()
    run = start(policy, rows, tmp_path / "run", steps=8, batch_size=6, constraint="none", lr=3e-2)
    before = run.gradients(rows).metrics
    list(run)
    after = run.gradients(rows).metrics
    assert after["ranking_loss"] < before["ranking_loss"] and after["assessment_accuracy"] == 1.0
    gap = {name: m["scores/right"] - m["scores/wrong"] for name, m in (("before", before), ("after", after))}
    assert gap["after"] > gap["before"] + 0.5


def test_it_goes_back_and_on(policy, tmp_path):
    run = start(policy, questions(), tmp_path / "run", constraint="boundary", steps=4, snapshot_steps=100)
    list(run)
    after, metrics = weights(run), run.metrics
    run.engine.memory.clear()
    run.rewind(2)
    run.engine._loop = None
    list(run)
    assert_same_weights(weights(run), after)
    assert_same_metrics(run.metrics, metrics)


def test_held_out_questions(policy, tmp_path):
    run = launch(
        "aft", policy.reset(), questions(), tmp_path / "run", questions(3), {"steps": 1, "batch_size": 2}, None
    )
    list(run)
    held = run.metrics.loc[0]
    assert 0 <= held["eval/assessment_accuracy"] <= 1
    assert held["eval/loss"] == pytest.approx(held["eval/nll"] + held["eval/ranking_loss"], rel=1e-5)


def test_rows_that_cannot_be_used(policy, tmp_path):
    with pytest.raises(DataError, match="Row 0: 2 answers need as many"):
        start(policy, [{"prompt": "p", "answers": ["a", "b"], "correct": [True]}], tmp_path / "a")
    for answers in (5, math.nan, {"a": 1}):
        with pytest.raises(DataError, match="Row 0: column 'answers' is .*, not a list of texts"):
            start(policy, [{"prompt": "p", "completion": "c", "answers": answers, "correct": [1]}], tmp_path / "f")
    with pytest.raises(DataError, match="Row 0: column 'answers' has 5, neither a text"):
        start(policy, [{"prompt": "p", "answers": [5], "correct": [1]}], tmp_path / "g")
    with pytest.raises(DataError, match="No row has a right answer"):
        start(policy, [{"prompt": "p", "answers": ["a"], "correct": [0]}], tmp_path / "b")
    with pytest.raises(SettingError, match="packing does not go with aft"):
        start(policy, questions(), tmp_path / "c", packing=True)
    with pytest.raises(SettingError, match="constraint='floor'"):
        start(policy, questions(), tmp_path / "d", constraint="floor")
    # a question without a right answer is left out, the others stay
    mixed = [{"prompt": "p", "answers": ["a", "b"], "correct": [right, False]} for right in (True, False, True)]
    assert len(start(policy, mixed, tmp_path / "e").engine.live.data.items) == 2
