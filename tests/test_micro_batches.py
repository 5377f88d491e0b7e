"""Micro-batches: which rows go together, by hand and against every other way; what fits; and that nothing changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.models import tiny_policy
from tests.runs import assert_same_metrics, make_run
from workbench import micro_batches, update
from workbench.methods import sft
from workbench.micro_batches import Batch, Budget, Rate, plan
from workbench.settings import make


def batch(lengths: list[int], unit: int = 1, start: int = 1) -> Batch:
    return Batch([[1] * n for n in lengths], [start] * len(lengths), {"n": [float(n) for n in lengths]}, unit)


def test_a_given_size_takes_the_longest_first():
    assert plan(batch([3] * 5), 2) == [[0, 1], [2, 3], [4]]
    assert plan(batch([3, 9, 5, 7]), 2) == [[1, 3], [2, 0]]
    assert plan(batch([3] * 6, unit=2), 2) == [[0, 1, 2, 3], [4, 5]]
    assert plan(batch([3] * 4), 10) == [[0, 1, 2, 3]]


def test_a_given_size_that_does_not_fit_is_cut():
    # of two and two, 9 + 7 fit into 18 places together, and 5 + 3 into 10
    assert plan(batch([3, 9, 5, 7]), 2, 18) == [[1, 3], [2, 0]]
    assert plan(batch([3, 9, 5, 7]), 2, 17) == [[2, 0], [1], [3]]


def test_rows_are_cut_where_that_costs_least():
    # one micro-batch 4 x 100 + 10; the two short ones apart 2 x 100 + 2 x 20 + 20
    assert plan(batch([20, 100, 100, 20]), rate=Rate(10)) == [[1, 2], [0, 3]]
    assert plan(batch([20, 100, 100, 20]), rate=Rate(161)) == [[1, 2, 0, 3]]
    # padding away a little is not worth a pass
    assert plan(batch([96, 100, 98, 97]), rate=Rate(10)) == [[1, 2, 3, 0]]


def test_tokens_bound_a_micro_batch_and_a_longer_row_goes_alone():
    assert plan(batch([4096, 4096, 2048, 2048, 9000, 10]), None, 8192) == [[4], [0, 1], [2, 3], [5]]
    assert plan(batch([4096] * 4, unit=2), None, 8192) == [[0, 1], [2, 3]]
    assert plan(batch([4096] * 4, unit=2), None, 100) == [[0, 1], [2, 3]]


def test_rows_end_to_end_count_by_their_sum():
    flat = Rate(10, padded=False)
    assert plan(batch([20, 100, 100, 20]), None, 240, rate=flat) == [[0, 1, 2, 3]]
    assert plan(batch([20, 100, 100, 20]), None, 220, rate=flat) == [[1, 2, 3], [0]]


def test_a_prompt_counts_once_in_each_micro_batch():
    flat, shared = Rate(10, padded=False), [0, 1, 0, 1]
    made = batch([10 + 90, 10 + 90, 10 + 20, 10 + 20], start=10)
    # together 216 tokens of answers that predict others, and two prompts of 10
    assert plan(made, rate=flat, shared=shared) == [[0, 2, 1, 3]]
    assert plan(made, None, 235, rate=flat, shared=shared) == [[0, 2], [1, 3]]
    # a group takes 118, so none stays whole
    assert plan(made, None, 117, rate=flat, shared=shared) == [[0], [1], [2], [3]]
    # a group that does not fit is cut, the other stays
    uneven = batch([1000 + n for n in (300, 300, 20, 20)], start=1000)
    assert plan(uneven, None, 1299, rate=flat, shared=[0, 0, 1, 1]) == [[0], [1], [2, 3]]
    # a prompt of one row is that row's
    assert micro_batches.tokens_of(micro_batches.units_of(made, [0, 1, 2, 3]), padded=False) == 256


def ways(rows: list[int]):
    """Every split of `rows` into parts."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for count in range(len(rest) + 1):
        for others in itertools.combinations(rest, count):
            for more in ways([row for row in rest if row not in others]):
                yield [[first, *others], *more]


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_split_costs_less(seed, shares):
    draw = np.random.default_rng(seed)
    lengths = sorted(int(n) for n in draw.integers(1, 60, 7))
    made, shared = batch(lengths), None
    if shares:
        shared = [0, 1, 0, 0, 1, 1, 0]
        starts = [[20, 9][prompt] for prompt in shared]
        made = Batch([[1] * (n + start) for n, start in zip(lengths, starts, strict=True)], starts)
    most, rate = int(draw.integers(80, 300)), Rate(int(draw.integers(0, 60)), padded=not shares)
    units = micro_batches.units_of(made, shared)

    def allowed(split):
        return all(micro_batches.tokens_of([units[i] for i in part], not shares) <= most for part in split)

    def cost(split):
        return sum(micro_batches.cost_of([units[row] for row in part], rate) for part in split)

    ours = plan(made, None, most, rate=rate, shared=shared)
    assert sorted(sum(ours, [])) == list(range(7)) and allowed(ours)
    every = [split for split in ways(list(range(7))) if allowed(split)]
    if shares:  # the best of those that keep the order of a plan: prompt by prompt, the longest first
        order = [6, 3, 2, 0, 5, 4, 1]
        every = [[[order[i] for i in part] for part in split] for split in ways(list(range(7)))
                 if all(part == list(range(part[0], part[-1] + 1)) for part in split)]  # fmt: skip
        every = [split for split in every if allowed(split)]
        assert micro_batches.tokens_of(units, False) == 20 + 9 + sum(lengths) - 7
    assert cost(ours) == min(map(cost, every))
    sizes = [micro_batches.tokens_of([units[row] for row in part], not shares) for part in ours]
    assert sizes == sorted(sizes, reverse=True)


def test_a_thousand_rows_are_planned_in_no_time():
    draw = np.random.default_rng(0)
    made = batch([int(n) for n in draw.integers(10, 400, 1000)])
    ours = plan(made, None, 2048)
    assert sorted(sum(ours, [])) == list(range(1000))
    widths = [[len(made.sequences[row]) for row in part] for part in ours]
    assert all(max(w) * len(w) <= 2048 for w in widths)
    assert sum(max(w) * len(w) for w in widths) < 1.03 * sum(map(sum, widths))


# -- budget


def test_bytes_a_token_are_those_that_the_backward_pass_keeps(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    small = micro_batches.bytes_per_token(policy)

    def kept(length: int) -> int:
        found = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: found.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
        )
        with hooks:
            policy.token_scores([list(range(length))] * 3, [1] * 3, needs=frozenset())
        return sum(t.untyped_storage().nbytes() for t in found.values())

    assert (kept(200) - kept(100)) / 300 == pytest.approx(small, rel=0.05)
    # far more than what a token has of hidden state, far less than with all logits many times over
    assert 2 * 32 * 4 * 10 < small < 2 * 32 * 4 * 100 + 8 * 260 * 4
    assert micro_batches.bytes_per_token(policy, grad=False) == small / 2
    assert micro_batches.bytes_per_token(policy, gradient_checkpointing=True) == small / 2 + 2 * 32 * 4
    assert not policy.model.training and all(p.grad is None for p in policy.model.parameters())


def test_the_budget_follows_free_memory(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "model", lora=True)
    each = micro_batches.bytes_per_token(policy)
    for free, tokens in ((10**12, 2048), (2 * 1000 * each, 512), (2 * 512 * each, 512), (10, 1)):
        monkeypatch.setattr(micro_batches, "free_bytes", lambda device, free=free: free)
        assert micro_batches.budget(policy) == tokens
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: 2 * 512 * each)
    assert micro_batches.budget(policy, grad=False) == 1024
    assert micro_batches.budget(policy, gradient_checkpointing=True) == 512
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: None)
    assert micro_batches.budget(policy) == 2048


def test_free_memory_is_that_of_this_machine():
    assert 2**20 < micro_batches.free_bytes(torch.device("cpu")) < 2**45
    assert micro_batches.free_bytes(torch.device("meta")) is None


def test_a_run_asks_once_and_goes_only_down(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(micro_batches, "budget", lambda policy, grad, again: asked.append(grad) or 1000)
    budget, settings = Budget(), make("sft", {})
    assert budget.tokens(None, settings, True) == budget.tokens(None, settings, True) == 1000
    budget.lower(300, True)
    budget.lower(400, True)
    assert budget.tokens(None, settings, True) == 300 and budget.tokens(None, settings, False) == 1000
    assert asked == [True, False]
    given = make("sft", {"micro_batch_size": 3})
    assert budget.tokens(None, given, True) == 300 and budget.tokens(None, given, False) is None


# -- the same numbers


def tokens_through(policy, monkeypatch) -> list[int]:
    """Padded tokens of each micro-batch from now on."""
    seen, scores = [], policy.token_scores

    def spied(sequences, starts, **how):
        seen.append(len(sequences) * max(map(len, sequences)))
        return scores(sequences, starts, **how)

    monkeypatch.setattr(policy, "token_scores", spied)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_plan_changes_gradients(tmp_path, monkeypatch, dtype):
    policy = tiny_policy(tmp_path / "model", lora=True, dtype=dtype)
    rows = [{"prompt": f"Say {i}:", "completion": " ab" * (1 + 11 * i % 37)} for i in range(16)]
    settings = make("sft", {})
    made = sft.make_batch(sft.prepare(policy.tokenizer, rows, settings).items)
    how = dict(totals=sft.totals(made), objective=sft.objective(settings))

    def gradients(plan):
        outcome = update.gradients(policy, made, micro_batches=plan, **how)
        return outcome, torch.cat([p.grad.flatten() for p in policy.trainable().values()]).double()

    whole, expected = gradients([list(range(16))])
    tolerance = 5e-6 if dtype == "float32" else 1e-10
    seen = tokens_through(policy, monkeypatch)
    for size, most in ((None, None), (None, 512), (3, None), (1, None)):
        outcome, found = gradients(plan(made, size, most, rate=Rate(16)))
        assert (found - expected).norm() <= tolerance * expected.norm() and expected.norm() > 1e-3
        assert outcome.loss == pytest.approx(whole.loss, rel=tolerance)
        if most:
            assert 1 < len(seen) < 16 and max(seen) <= most and sum(seen) < 1.15 * sum(made.lengths())
            assert seen == sorted(seen, reverse=True)
        seen.clear()


def test_a_stored_plan_is_replayed_as_it_stands(tmp_path):
    run = make_run("sft", tmp_path)
    run.run(3)
    first = run.metrics
    stored = run.engine.store.step_row(2, 0)["plan"]
    assert sorted(sum(stored["update 0"], [])) == list(range(4))
    old = [[3, 1], [0], [2]]  # as another version may have cut it
    context = run.engine.context_at(run.engine.state, 2)
    context.replay.plans["update 0"] = old
    assert context.plan(batch([3] * 4), "update 0") == old == context.plans["update 0"]
    run.engine.memory.clear()
    run.rewind(2)
    run.run(1)
    assert_same_metrics(run.metrics, first)
