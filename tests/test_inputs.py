"""What a model reads in place of its rows (`Batch.inputs`, `share`): other ids, or a blend of embeddings."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.models import KINDS, tiny_policy
from workbench import lines, prefixes, trunk, update
from workbench.errors import DataError
from workbench.micro_batches import Batch
from workbench.objectives import Objective
from workbench.objectives.supervised import weighted

PROMPT = [11, 12, 13, 14, 15]
ROWS = [PROMPT + [20, 21, 22, 23], PROMPT + [30, 31], [7, 8] + [40, 41, 42, 43, 44, 45], PROMPT + [50, 51, 52]]
STARTS = [5, 5, 2, 5]
READ = [PROMPT + [99, 21, 98, 23], PROMPT + [30, 97], [7, 8] + [40, 96, 95, 43, 44, 94], PROMPT + [93, 51, 52]]
"""the rows with holes"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = tiny_policy(tmp_path_factory.mktemp(kind), kind, lora=kind != "mamba")
        return made[kind]

    return of


def close(one, other, room=5e-6):
    return (one - other).norm() <= room * other.norm()


def scored(policy, rows=ROWS, starts=STARTS, **how):
    with torch.no_grad():
        return policy.token_scores(rows, starts, **how).logprob


def by_hand(policy, share):
    """The same by a plain forward of each row's embeddings, with what is asked for unchanged."""
    embed = policy.model.get_input_embeddings()
    made = torch.zeros(len(ROWS), max(len(r) - s for r, s in zip(ROWS, STARTS, strict=True)))
    for b, (row, read, start) in enumerate(zip(ROWS, READ, STARTS, strict=True)):
        with torch.no_grad():
            own, other = (embed(torch.tensor([ids])) for ids in (row, read))
            logits = policy.model(inputs_embeds=(1 - share) * own + share * other, use_cache=False).logits[0]
        logp = torch.log_softmax(logits.float(), -1)
        for t in range(start, len(row)):
            made[b, t - start] = logp[t - 1, row[t]]
    return made


def layouts_of(policy):
    """Every way in which the policy's model takes these rows."""
    made = {"padded": {}}
    if lines.kept_apart(policy):
        made["packed"] = {"lines": [0, 0, 1, 1]}
    if prefixes.takes_spans(policy):
        made["flat"] = {"groups": prefixes.of(policy, ROWS, STARTS)}
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", (1.0, 0.3))
def test_targets_stay_and_every_layout_agrees_with_a_plain_forward(policies, kind, share):
    policy = policies(kind)
    expected = by_hand(policy, share)
    assert not close(expected, scored(policy), 1e-2), "the holes change something"
    found = layouts_of(policy)
    assert kind == "mamba" or set(found) == {"padded", "packed", "flat"}
    for name, how in found.items():
        assert close(scored(policy, inputs=READ, share=share, **how), expected), name


@pytest.mark.parametrize("kind", KINDS)
def test_reading_the_rows_themselves_or_none_of_the_inputs_changes_nothing(policies, kind):
    policy = policies(kind)
    for name, how in layouts_of(policy).items():
        plain = scored(policy, **how)
        assert torch.equal(scored(policy, inputs=ROWS, **how), plain), name
        assert torch.equal(scored(policy, inputs=READ, share=0.0, **how), plain), name
        assert close(scored(policy, inputs=ROWS, share=0.3, **how), plain), name


def test_a_hole_changes_only_what_comes_after_it(policies):
    policy = policies("llama")
    plain, holed = scored(policy), scored(policy, inputs=READ)
    for b, (row, read, start) in enumerate(zip(ROWS, READ, STARTS, strict=True)):
        first = next(t for t in range(len(row)) if row[t] != read[t]) - start
        assert torch.allclose(plain[b, : first + 1], holed[b, : first + 1], atol=1e-5)
        later = slice(first + 1, len(row) - start)
        assert (plain[b, later] != holed[b, later]).all()


def test_a_policy_that_nothing_was_asked_of_yet_can_be_blended(tmp_path):
    policy = tiny_policy(tmp_path / "one")
    assert policy.model not in trunk._kinds.known
    first = scored(policy, inputs=READ, share=0.3)
    assert trunk._kinds.known[policy.model] is not None, "the model was tried with blended embeddings"
    assert torch.equal(first, scored(policy, inputs=READ, share=0.3))


@pytest.mark.parametrize(
    "inputs, said",
    [
        ([[1, *READ[0][1:]], *READ[1:]], "input 0"),
        ([READ[0][:-1], *READ[1:]], "input 0"),
        ([*READ[:3], [*PROMPT[:4], 1, 50, 51, 52]], "input 3"),
        (READ[:3], "4 sequences but 3 inputs"),
    ],
)
@pytest.mark.parametrize("share", (1.0, 0.5))
def test_inputs_that_do_not_fit_are_refused(policies, inputs, said, share):
    policy = policies("llama")
    for how in layouts_of(policy).values():
        with pytest.raises(DataError, match=said):
            scored(policy, inputs=inputs, share=share, **how)


def batch(share=1.0):
    weights = [[1.0 + (t % 2) for t in range(len(r) - s)] for r, s in zip(ROWS, STARTS, strict=True)]
    return Batch(ROWS, STARTS, {"weight": weights}, inputs=READ, share=share)


def squared(scores, columns, totals):
    """A loss whose rows depend on each other."""
    return (scores.logprob * scores.mask).sum() ** 2 / 100, {}


LOSSES = {"token": Objective(weighted), "coupled": Objective(squared, coupled=True)}


def gradients(policy, of, micro_batches, loss="token", **how):
    totals = update.totals_of(of)
    outcome = update.gradients(policy, of, LOSSES[loss], totals, micro_batches=micro_batches, train_mode=False, **how)
    made = torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return outcome.loss, made


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", (1.0, 0.3))
@pytest.mark.parametrize("kind", ("llama", "gpt2", "mamba"))
def test_no_cut_into_micro_batches_and_no_layout_changes_gradients(policies, kind, share, loss, monkeypatch):
    policy, whole = policies(kind), batch(share)
    expected, grads = gradients(policy, whole, [[0, 1, 2, 3]], loss)
    plain, _ = gradients(policy, Batch(ROWS, STARTS, whole.columns), [[0, 1, 2, 3]], loss)
    assert abs(plain - expected) > 1e-4 * abs(plain)
    ways = [partial(gradients, policy, whole, cut, loss) for cut in ([[2, 0], [1, 3]], [[3], [1], [0], [2]])]
    ways.append(partial(gradients, policy, whole, [[0, 1, 2, 3]], loss, padding_free=True))
    if kind != "mamba":
        ways.append(partial(gradients, policy, whole, [[0, 1, 2, 3]], loss, gradient_checkpointing=True))
    for way in ways:
        found, made = way()
        assert found == pytest.approx(expected, rel=5e-6) and close(made, grads)
    monkeypatch.setattr(prefixes, "takes_spans", lambda policy: False)
    found, made = gradients(policy, whole, [[0, 2], [1, 3]], loss)
    assert found == pytest.approx(expected, rel=5e-6) and close(made, grads)


def test_packs_of_a_line_read_their_inputs_too(policies):
    policy, whole = policies("llama"), batch(0.3)
    expected, grads = gradients(policy, whole, [[0, 1, 2, 3]])
    whole.lines = [0, 0, 1, 1]
    found, made = gradients(policy, whole, [[0, 1], [2, 3]])
    assert found == pytest.approx(expected, rel=5e-6) and close(made, grads)


def test_no_gradient_goes_through_the_embeddings_that_are_mixed_in(tmp_path):
    """A model that trains as a whole: the rows' own part of a blend is what moves its embeddings."""
    policy = tiny_policy(tmp_path / "model")
    embed = policy.model.get_input_embeddings()
    policy.token_scores(ROWS, STARTS, inputs=READ, share=0.3).logprob.sum().backward()
    own = embed.weight.grad.clone()
    policy.model.zero_grad(set_to_none=True)
    read_only = sorted({t for r in READ for t in r} - {t for r in ROWS for t in r})
    assert len(read_only) == 7 and not own[read_only].any()
    total = 0.0
    for row, read, start in zip(ROWS, READ, STARTS, strict=True):
        ids, other = torch.tensor([row]), embed(torch.tensor([read])).detach()
        holes = (ids != torch.tensor([read]))[..., None]  # prompts, and what both have, are no blends
        mixed = torch.where(holes, 0.7 * embed(ids) + 0.3 * other, embed(ids))
        logits = policy.model(inputs_embeds=mixed, use_cache=False).logits[0]
        logp = torch.log_softmax(logits, -1)
        total = total + sum(logp[t - 1, row[t]] for t in range(start, len(row)))
    total.backward()
    assert close(own, embed.weight.grad)


def test_a_part_of_a_batch_keeps_its_inputs_and_share():
    part = batch(0.3).take([2, 0])
    assert part.inputs == [READ[2], READ[0]] and part.share == 0.3 and part.sequences == [ROWS[2], ROWS[0]]
