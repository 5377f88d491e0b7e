"""What only a model can answer about stored completions: numbers by hand, weights of the past, nothing left behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import letters, make_run, rows_for, weights
from workbench import heads, scoring, worker
from workbench import settings as settings_of
from workbench.objectives.policy_gradient import LOSS_TYPES, policy_gradient, token_shares
from workbench.scoring import TokenScores
from workbench.store import tokens as stored

TEMPERATURE = 0.7


def asked(run, question: str, record, **how) -> dict:
    """The answer; an error as {"trouble": words}."""
    got, done = {}, threading.Event()
    run.asking.ask(
        question, record, lambda answer: (got.update(answer), done.set()),
        lambda error: (got.update(trouble=str(error)), done.set()), **how,
    )  # fmt: skip
    assert done.wait(60)
    return got


def records_of(run, step: int):
    return stored.records(run.store, run.rollouts(step)["id"].tolist())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = make_run(
        "grpo", tmp_path_factory.mktemp("asking"), num_iterations=1, temperature=TEMPERATURE, max_new_tokens=40
    )
    return made.run(3)


def logits_of(policy, record) -> np.ndarray:
    """(T, V) float64, softened: what the model as it is now says of each token of the completion."""
    ids = torch.tensor([[*record.prompt_ids.tolist(), *record.ids.tolist()]])
    with policy.at_rest():
        logits = policy.model(input_ids=ids).logits[0, len(record.prompt_ids) - 1 : -1]
    return logits.double().numpy() / TEMPERATURE


def logprobs_of(policy, record) -> np.ndarray:
    logits = logits_of(policy, record)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_the_sampler_s_step_gives_its_own_log_probs_and_the_likeliest_tokens(run):
    record = records_of(run, 2)[1]
    found = asked(run, "alternatives", record, at=1)
    np.testing.assert_allclose(found["logprob"], record.logprob, atol=3e-5)
    np.testing.assert_allclose(found["entropy"], record.entropy, atol=3e-5)
    with run.engine.policy.holding(run.engine.restore(1).params):
        by_hand = logprobs_of(run.engine.policy, record)
    best = np.argsort(-by_hand, axis=-1)
    assert found["top_id"].reshape(-1, 5).tolist() == best[:, :5].tolist()
    top = np.take_along_axis(by_hand, best[:, :5], -1)
    np.testing.assert_allclose(found["top_logprob"].reshape(-1, 5), top, atol=1e-5)
    assert found["rank"].tolist() == [row.index(token) for row, token in zip(best.tolist(), record.ids, strict=True)]
    assert set(found["top_id"].tolist()) == set(found["pieces"])
    assert found["said"] == "step 1, at the sampling temperature 0.7"


def test_weights_of_any_step_the_reference_and_the_base_are_held_for_one_answer_and_no_longer(run):
    policy, record = run.policy, records_of(run, 3)[0]
    before, holder, trains = weights(run), policy.holder, [p.requires_grad for p in policy.model.parameters()]
    found = {at: asked(run, "alternatives", record, at=at)["logprob"] for at in (0, 2, 3, "reference", "base")}
    assert policy.holder == holder and [p.requires_grad for p in policy.model.parameters()] == trains
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run).items())
    assert all(torch.equal(policy.params()[name], tensor) for name, tensor in before.items())

    def scored():
        ids = record.prompt_ids.tolist(), record.ids.tolist()
        return policy.score([ids[0]], [ids[1]], temperature=TEMPERATURE).logprob[0]

    np.testing.assert_allclose(found[3], scored(), atol=1e-5)
    np.testing.assert_allclose(found[2], record.logprob, atol=3e-5)
    with policy.model.disable_adapter():
        np.testing.assert_allclose(found["base"], scored(), atol=1e-5)
    policy.reset()
    np.testing.assert_allclose(found[0], scored(), atol=1e-5)
    np.testing.assert_allclose(found["reference"], found[0], atol=1e-6)
    for a, b in ((0, 2), (2, 3), (0, "base")):
        assert np.abs(found[a] - found[b]).max() > 1e-3, f"{a} and {b} are the same weights"


def test_a_state_that_is_in_no_memory_comes_by_replay_and_is_not_at_hand_before(run):
    record = records_of(run, 3)[0]
    remembered = asked(run, "alternatives", record, at=2)["logprob"]
    fresh = type(run.asking)(run)
    kept = dict(run.engine.memory)
    run.engine.memory.clear()
    try:
        assert fresh.about([record])["near"] == [0, 3]  # snapshots, and the present
        again = worker.call(fresh.alternatives, record, 2)["logprob"]
        assert fresh.about([record])["near"] == [0, 2, 3]
    finally:
        run.engine.memory.update(kept)
    np.testing.assert_allclose(again, remembered, atol=1e-6)


def test_change_of_log_prob_and_exact_divergence_by_hand(run, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 3 * 260)  # three tokens at a time
    policy, record = run.engine.policy, records_of(run, 2)[0]
    of = {}
    for step in (0, 1, 2):
        with policy.holding(run.engine.restore(step).params):
            of[step] = logprobs_of(policy, record)
    rows = np.arange(len(record.ids))
    change = asked(run, "compare", record, a=1, b=2)
    np.testing.assert_allclose(change["change"], (of[2] - of[1])[rows, record.ids], atol=2e-5)
    assert change["said"] == "log-prob at step 2 less that at step 1, at the sampling temperature 0.7"
    found = asked(run, "divergence", record, at=2)
    np.testing.assert_allclose(found["divergence"], (np.exp(of[2]) * (of[2] - of[0])).sum(-1), atol=1e-5)
    d = (of[0] - of[2])[rows, record.ids]
    np.testing.assert_allclose(found["estimate"], np.exp(d) - d - 1, atol=1e-5)
    assert found["divergence"].min() >= 0 and np.abs(found["divergence"] - found["estimate"]).max() > 1e-3


def test_divergence_where_the_head_itself_trains(tmp_path):
    made = make_run(
        "grpo", tmp_path, tiny_policy(tmp_path / "model", "qwen3"), temperature=TEMPERATURE, snapshot_steps=1
    ).run(1)
    policy, record = made.engine.policy, records_of(made, 1)[0]
    of = {}
    for step in (0, 1):
        with policy.holding(made.engine.restore(step).params):
            of[step] = logprobs_of(policy, record)
    found = asked(made, "divergence", record, at=1)
    np.testing.assert_allclose(found["divergence"], (np.exp(of[1]) * (of[1] - of[0])).sum(-1), atol=1e-5)
    assert found["divergence"].max() > 1e-3


def assert_shares_add_up(run, step: int) -> None:
    """To 1e-5 of the loss; of a loss in which everything cancels, to float32's precision of its parts."""
    shares = np.concatenate([asked(run, "contribution", record)["contribution"] for record in records_of(run, step)])
    precision = 1e-7 * np.abs(shares.astype("f8")).sum()
    assert shares.astype("f8").sum() == pytest.approx(run.metrics.loc[step, "loss"], rel=1e-5, abs=precision)


def test_the_shares_of_all_tokens_of_a_step_add_up_to_its_loss(run):
    lengths = {len(record.ids) for record in records_of(run, 3)}
    assert len(lengths) > 1, "with completions of one length the advantages cancel"
    for step in (1, 3):
        assert_shares_add_up(run, step)
    found = asked(run, "contribution", records_of(run, 3)[0])
    assert "to which the shares of all" in found["said"] and found["counts"].tolist() == [1.0] * len(found["counts"])


def test_shares_of_a_step_of_several_updates_are_those_before_the_first(tmp_path):
    """With a learning rate of next to nothing the weights are the same in every update, and so are the losses."""
    how = dict(steps_per_generation=2, num_iterations=2, lr=1e-12, loss_type="grpo", top_entropy_quantile=0.5)
    made = make_run("grpo", tmp_path, **how, mask_truncated_completions=True, max_new_tokens=60, entropy_coef=0.03)
    made.run(1)
    records = records_of(made, 1)
    cut = [record.finish_reason == "length" for record in records]
    assert any(cut) and not all(cut), "of both kinds some"
    answers = [asked(made, "contribution", record) for record in records]
    total = sum(float(answer["contribution"].astype("f8").sum()) for answer in answers)
    assert total == pytest.approx(made.metrics.loc[1, "loss"], rel=1e-5)
    counts = np.concatenate([answer["counts"] for answer in answers])
    assert 0.4 < counts.sum() / sum(len(r.ids) for r, c in zip(records, cut, strict=True) if not c) < 0.7
    assert all(not answer["counts"].any() for answer, c in zip(answers, cut, strict=True) if c)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("how", [{}, {"top_entropy_quantile": 0.4, "entropy_coef": 0.1}, {"level": "sequence"}])
def test_shares_add_up_for_every_loss(loss_type, how):
    how = dict(how)
    level = how.pop("level", "token")
    settings = settings_of.make("grpo", dict(loss_type=loss_type, beta=0.3, importance_sampling_level=level, **how))
    draw = torch.Generator().manual_seed(1)
    mask = torch.arange(5)[None, :] < torch.tensor([5, 3, 1, 4])[:, None]
    scores = TokenScores(
        logprob=-torch.rand(4, 5, generator=draw) * mask,
        entropy=torch.rand(4, 5, generator=draw) * mask,
        top1=mask,
        mask=mask,
    )
    columns = {
        "advantage": torch.tensor([1.0, -0.5, 0.3, -1.2]), "keep": torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "old_logprob": scores.logprob + 0.3 * torch.randn(4, 5, generator=draw), "ref_logprob": scores.logprob - 0.2,
    }  # fmt: skip
    totals = {"rows": 4.0, "tokens": 12.0, "tokens_share": 12.0, "max_tokens": 5.0}
    coef = settings.entropy_coef
    loss, _ = policy_gradient(scores, columns, totals, settings=settings, entropy_coef=coef)
    shares, counts = token_shares(scores, columns, totals, settings=settings, entropy_coef=coef)
    assert shares.shape == counts.shape == (4, 5) and not shares[~mask].any() and not shares[2].any()
    assert float(shares.sum()) == pytest.approx(float(loss), rel=1e-5)


def test_shares_by_hand():
    """Two rows of two and one tokens, ratio 1: -A / 3 each, and the KL term of its own."""
    settings = settings_of.make("grpo", dict(beta=0.5))
    mask = torch.tensor([[True, True], [True, False]])
    scores = TokenScores(
        logprob=torch.tensor([[-1.0, -2.0], [-0.5, 0.0]]), entropy=torch.zeros(2, 2), top1=mask, mask=mask
    )
    columns = {
        "advantage": torch.tensor([1.0, -2.0]), "keep": torch.ones(2),
        "ref_logprob": torch.tensor([[-1.0, -1.0], [-0.5, 0.0]]),
    }  # fmt: skip
    shares, _ = token_shares(
        scores, columns, {"rows": 2, "tokens": 3, "tokens_share": 3, "max_tokens": 2}, settings=settings
    )
    kl = 0.5 * (np.e - 1 - 1)  # d = 1 at the second token
    np.testing.assert_allclose(shares, [[-1 / 3, (-1 + kl) / 3], [2 / 3, 0]], rtol=1e-6)


def test_completions_that_a_rewind_gave_up_have_no_step_to_go_back_to(tmp_path):
    made = make_run("grpo", tmp_path, num_iterations=1).run(3)
    lost, kept = records_of(made, 3)[0], records_of(made, 1)[0]
    made.rewind(1)
    made.run(1)
    assert made.asking.about([lost, kept])["line"] == [False, True]
    assert "given up by a rewind" in asked(made, "contribution", lost)["trouble"]
    assert len(asked(made, "alternatives", lost, at=2)["logprob"]) == len(lost.ids)
    assert len(asked(made, "divergence", lost, at=2)["divergence"]) == len(lost.ids)
    assert_shares_add_up(made, 1)


def test_a_reference_that_moves_is_the_one_of_the_step_that_trained(tmp_path):
    how = dict(sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=1)
    made = make_run("grpo", tmp_path, num_iterations=1, **how).run(3)
    record = records_of(made, 2)[0]
    of = {at: asked(made, "alternatives", record, at=at)["logprob"] for at in (0, 1, 3, "reference")}
    np.testing.assert_array_equal(of["reference"], of[1])  # it follows the policy after each update
    assert np.abs(of[1] - of[0]).max() > 1e-3 and np.abs(of[1] - of[3]).max() > 1e-3


def test_what_was_frozen_stays_frozen_when_the_adapter_comes_back(tmp_path):
    from workbench import adapters

    model = tiny_policy(tmp_path / "model", lora=True).model
    frozen, trained = [p for name, p in model.named_parameters() if "lora_A" in name][:2]
    frozen.requires_grad_(False)
    with adapters.without(model):
        pass
    assert not frozen.requires_grad and trained.requires_grad


def test_what_cannot_be_answered_is_said(run, monkeypatch):
    record = records_of(run, 1)[0]
    assert "has no step 9" in asked(run, "alternatives", record, at=9)["trouble"]
    assert "no weights 'x'" in asked(run, "alternatives", record, at="x")["trouble"]
    monkeypatch.setattr(scoring, "predictions", lambda *_: 1 / 0)
    said = asked(run, "divergence", record, at=1)["trouble"]
    assert said == "The model could not answer: ZeroDivisionError: division by zero"
    monkeypatch.setattr(run, "_released", "gone")
    assert run.asking.about([record]) == {"able": False, "why": "Numbers that need the model: gone"}
    assert asked(run, "alternatives", record, at=1)["trouble"] == "gone"
    assert wb.open(run.folder).asking is None


def test_an_answer_comes_between_the_steps_of_a_run_that_goes_on(tmp_path):
    def slow(completions, **kwargs):
        time.sleep(0.15)
        return letters(completions)

    policy = tiny_policy(tmp_path / "model", lora=True)
    task = wb.Task(rows_for("grpo"), rewards=[slow])
    made = wb.grpo(policy, task, steps=50, prompts_per_step=2, group_size=2, max_new_tokens=4, out=tmp_path / "run")
    made.run(1)
    record = records_of(made, 1)[0]
    made.start()
    got, done = {}, threading.Event()
    started = time.perf_counter()
    made.asking.ask("alternatives", record, lambda a: (got.update(a), done.set()), print, at=0)
    returned = time.perf_counter() - started
    assert done.wait(20)
    assert made.running and returned < 0.15, "a step takes longer: the question did not wait for one"
    made.pause()
    np.testing.assert_allclose(got["logprob"], record.logprob, atol=3e-5)
    assert made.step >= 2
