"""Supervised methods with another loss: iw-SFT, PoFT, intuitive and discriminative fine-tuning."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, rows_for, weights
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.methods import sft
from workbench.methods.supervised import discriminative, intuitive
from workbench.methods.supervised.discriminative import NORMALISER, sample_negatives
from workbench.methods.supervised.poft import panel_logprobs
from workbench.objectives.sequences import discounted, discriminated, importance, preferred, propagated
from workbench.objectives.supervised import weighted

ROWS = rows_for("sft", 6)


def run_of(name, policy, rows, out, **settings):
    return launch(
        name, policy.reset(), rows, out, None, {"steps": 3, "lr": 0.1, "optim": "sgd", "seed": 3} | settings, None
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


def scores(logprob):
    logprob = torch.tensor(logprob, dtype=torch.float64, requires_grad=True)
    return SimpleNamespace(
        logprob=logprob, entropy=torch.zeros_like(logprob), top1=torch.zeros_like(logprob, dtype=torch.bool)
    )


def table(values):
    return torch.tensor(values, dtype=torch.float64)


def logp(policy, rows):
    """Per row the log-probs of its completion and the end token."""
    end = policy.tokenizer.eos_token
    made = policy.score([r["prompt"] for r in rows], [r["completion"] + end for r in rows])
    return [torch.tensor(values).double() for values in made.logprob]


# -- iw-SFT


@pytest.mark.parametrize(
    "level, clip, expected",
    [
        ("sequence", (0, 16), [[1.2214, 1.2214], [0.9048, 0.9048]]),
        ("sequence", (0, 1.1), [[1.1, 1.1], [0.9048, 0.9048]]),
        ("token", (0.2, 1.8), [[1.8, 0.7408], [0.9048, 1.0]]),
    ],
)
def test_importance_weights_by_hand_and_without_gradient(level, clip, expected):
    """Mean log-ratios 0.2 and -0.1; of the second row only the first token is trained."""
    made = scores([[-1.0, -1.5], [-2.0, -9.0]])
    columns = {"ref_logprob": table([[-1.7, -1.2], [-1.9, -9.0]]), "weight": table([[1, 1], [1, 0]])}
    trained = columns["weight"] > 0
    found, metrics = importance(made, columns, None, trained, level=level, exponent=1.0, clip=clip)
    assert torch.allclose(found.expand(2, 2)[trained], table(expected)[trained], atol=5e-5) and not found.requires_grad
    assert float(metrics["importance/max"].value) == pytest.approx(max(expected[0]), abs=5e-5)
    raised = float(metrics["importance/clipped"][0]), float(metrics["importance/clipped"][1])
    assert raised == (float(clip[1] < 1.9), 3.0 if level == "token" else 2.0)

    def weigh(*args):
        return importance(*args, level=level, exponent=1.0, clip=clip)

    loss, _ = weighted(made, columns, {"tokens": 3.0, "weight": 3.0, "rows": 2.0}, weigh=weigh)
    loss.backward()
    assert torch.allclose(made.logprob.grad, -table(expected) * columns["weight"] / 3, atol=5e-5)


@pytest.mark.parametrize("level", ("sequence", "token"))
def test_iw_sft_is_sft_in_its_first_step_and_then_follows_the_reference(policy, tmp_path, level):
    ours = run_of("iw_sft", policy, ROWS, tmp_path / "ours", importance_sampling_level=level, batch_size=4)
    plain = run_of("sft", policy, ROWS, tmp_path / "plain", batch_size=4)
    start = weights(plain)
    next(iter(ours)), next(iter(plain))
    assert all(torch.allclose(weights(ours)[n], weights(plain)[n], atol=1e-6) for n in start)
    assert ours.metrics.loc[1, "importance/mean"] == pytest.approx(1, abs=1e-5)
    drawn = [
        ROWS[ours.engine.live.data.items[row].row]
        for row, _ in ours.engine._context_for(ours.engine.live).draw(2, 4, 6)
    ]
    after = logp(ours.policy, drawn)  # the run's weights are held
    before = logp(policy.reset(), drawn)
    ratio = [a - b for a, b in zip(after, before, strict=True)]
    if level == "sequence":
        w = [torch.full_like(r, float(r.mean().exp().clamp(0, 16))) for r in ratio]
    else:
        w = [r.exp().clamp(0.2, 1.8) for r in ratio]
    expected = -sum(float((a * b).sum()) for a, b in zip(w, after, strict=True)) / sum(map(len, after))
    next(iter(ours))
    assert ours.metrics.loc[2, "loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(ours.metrics.loc[2, "importance/mean"] - 1) > 1e-3


def test_rows_are_drawn_by_their_scores(policy, tmp_path):
    scored = [row | {"score": score} for row, score in zip(ROWS, (1, 0, 2, 5, 0, 2.0), strict=True)]
    run = run_of("iw_sft", policy, scored, tmp_path / "run", score_column="score", batch_size=100)
    context = run.engine._context_for(run.engine.live)
    from workbench.methods.supervised.iw_sft import draw

    counted = Counter(item.row for index in range(1, 41) for item in draw(context, index))
    assert set(counted) == {0, 2, 3, 5}
    for row, share in ((0, 0.1), (2, 0.2), (3, 0.5), (5, 0.2)):
        assert counted[row] / 4000 == pytest.approx(share, abs=0.02)
    assert [i.row for i in draw(context, 7)] == [i.row for i in draw(context, 7)] != [i.row for i in draw(context, 8)]


@pytest.mark.parametrize(
    "scores, said",
    [(["a"] * 6, "row 0"), ([1, -1, 1, 1, 1, 1], "row 1"), ([0] * 6, "0 in all rows"), (None, "quality")],
)
def test_scores_that_are_none_are_refused(policy, tmp_path, scores, said):
    rows = ROWS if scores is None else [r | {"quality": s} for r, s in zip(ROWS, scores, strict=True)]
    with pytest.raises(DataError, match=said):
        run_of("iw_sft", policy, rows, tmp_path / "run", score_column="quality")


def test_scores_of_which_only_dropped_rows_are_above_0_are_refused(policy, tmp_path):
    rows = [row | {"score": 0} for row in ROWS[:3]] + [ROWS[3] | {"prompt": "x" * 99, "score": 1}]
    with pytest.raises(DataError, match="'score' is 0 in all rows that have a token to train on.*max_length=60"):
        run_of("iw_sft", policy, rows, tmp_path / "run", score_column="score", max_length=60)
    assert not (tmp_path / "run").exists()
    list(run_of("iw_sft", policy, rows, tmp_path / "run", score_column="score", max_length=200, steps=1))


# -- PoFT


@pytest.mark.parametrize("aligned, loss, factor", [(-1.5, 0.6931, 0.5), (-2.5, 0.3133, 0.2689), (-0.5, 1.3133, 0.7311)])
def test_poft_by_hand(aligned, loss, factor):
    made = scores([[-1.0, -2.0, -7.0]])
    columns = {"weight": table([[1, 1, 0]]), "aligned": table([aligned])}
    found, metrics = preferred(made, columns, {"rows": 1.0}, beta=1.0, gamma=0.0)
    assert float(found) == pytest.approx(loss, abs=5e-5)
    found.backward()
    assert torch.allclose(made.logprob.grad, table([[-factor / 2, -factor / 2, 0]]), atol=5e-5)
    assert float(metrics["row_weight"][0]) == pytest.approx(factor, abs=5e-5)


def test_a_row_s_weight_multiplies_its_loss_in_poft():
    columns = {"aligned": table([-1.0, -1.0])}
    made = scores([[-1.0, -2.0], [-3.0, -2.0]])
    losses = [
        float(preferred(made, columns | {"weight": table(w)}, {"rows": 2.0}, beta=2.0, gamma=0.3)[0])
        for w in ([[1, 1], [1, 1]], [[2, 2], [1, 1]], [[1, 1], [2, 2]])
    ]
    assert losses[1] + losses[2] == pytest.approx(3 * losses[0], abs=1e-12)


def test_the_panel_scores_what_is_trained_and_poft_goes_by_it(policy, tmp_path):
    other = tiny_policy(tmp_path / "other", seed=5)
    scored = panel_logprobs([policy.reset(), other], ROWS)
    means = [[float(v.mean()) for v in logp(p, ROWS)] for p in (policy, other)]
    assert scored.column("aligned_logprob") == pytest.approx(np.mean(means, 0), abs=1e-5)
    run = run_of("poft", policy, scored, tmp_path / "run", beta=0.7, gamma=0.2)
    margin = np.array(means[0]) - np.mean(means, 0)
    expected = np.log1p(np.exp(-(0.7 * margin + 0.2))).mean()
    looked = run.gradients(scored)
    assert looked.loss == pytest.approx(expected, rel=1e-5) and looked.metrics["margin"] == pytest.approx(
        margin.mean(), abs=1e-5
    )


def test_the_panel_scores_trained_tokens_alone(policy):
    texts = {"Say:": False, " red": True, " and": False, " blue": True}
    row = {"segments": [{"text": text, "train": train} for text, train in texts.items()]}
    (mean,) = panel_logprobs([policy.reset()], [row]).column("aligned_logprob")
    (said,) = policy.score(["Say:"], [" red and blue"]).logprob
    assert mean == pytest.approx(float((said[:4].sum() + said[8:].sum()) / 9), abs=1e-5)


@pytest.mark.parametrize(
    "rows, said", [(ROWS, "panel_logprobs"), ([r | {"aligned_logprob": math.nan} for r in ROWS], "row 0")]
)
def test_poft_needs_its_column(policy, tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        run_of("poft", policy, rows, tmp_path / "run")
    with pytest.raises(SettingError, match="policies"):
        panel_logprobs(["tiny"], ROWS)


# -- intuitive


@pytest.mark.parametrize("gamma, expected", [(1.0, (1.6, 1.2, 0.8, 0.4)), (0.95, (1.560, 1.199, 0.820, 0.421))])
def test_propagated_weights_by_hand(gamma, expected):
    trained = torch.tensor([[True] * 4 + [False]])
    found, metrics = propagated(None, {}, torch.ones(1, 5, dtype=torch.float64), trained, gamma=gamma, detach=True)
    assert found[0, :4].tolist() == pytest.approx(expected, abs=5e-4) and found[0, 4] == 0
    assert float(metrics["propagation/first"][0]) == pytest.approx(expected[0], abs=5e-4)


def test_gamma_zero_is_a_switch_and_gradients_go_through_the_weights_unless_detached():
    loss = table([[1.0, 2.0, 0.5], [3.0, 1.0, 7.0]])
    trained = torch.tensor([[True] * 3, [True, True, False]])
    assert (propagated(None, {}, loss, trained, gamma=0.0, detach=False)[0] == 1).all()

    def total(values, detach, of=None):
        weight = propagated(None, {}, values if of is None else of, trained, gamma=0.9, detach=detach)[0]
        return (weight * values * trained).sum()

    attached, held = loss.clone().requires_grad_(), loss.clone().requires_grad_()
    total(attached, False).backward(), total(held, True).backward()
    for grad, how in ((attached.grad, {}), (held.grad, {"of": loss})):
        for b, t in ((0, 0), (0, 2), (1, 1)):
            nudge = torch.zeros_like(loss)
            nudge[b, t] = 1e-6
            slope = (total(loss + nudge, True, **how) - total(loss - nudge, True, **how)) / 2e-6
            assert float(slope) == pytest.approx(float(grad[b, t]), abs=1e-6)
    assert (attached.grad - held.grad).abs().max() > 0.1


@pytest.mark.parametrize("width", (1, 2, 5, 8, 13))
def test_discounted_sums(width):
    values = torch.rand(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = [[sum(0.7 ** (j - t) * float(v[j]) for j in range(t, width)) for t in range(width)] for v in values]
    assert torch.allclose(discounted(values, 0.7), table(plain), atol=1e-12)


@pytest.mark.parametrize("kind", ("llama", "gpt2", "mamba"))
def test_guesses_are_the_likeliest_tokens_and_prompts_stay(tmp_path, kind):
    policy = tiny_policy(tmp_path / "model", kind)
    run = run_of("intuitive", policy, ROWS, tmp_path / "run")
    context = run.engine._context_for(run.engine.live)
    batch = sft.make_batch(run.engine.live.data.items)
    batch.columns["weight"][0][1] = 0.0  # a token that is read and not trained
    read, share = intuitive.blended(context, batch, 1)
    assert share == 0.2 and read != batch.sequences
    for b, (ids, start) in enumerate(zip(batch.sequences, batch.starts, strict=True)):
        with torch.no_grad():
            best = policy.model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
        expected = ids[:start] + best[start - 1 : -1]
        expected[start + 1] = ids[start + 1] if b == 0 else expected[start + 1]
        assert read[b] == expected


def test_intuitive_is_what_its_formula_says(policy, tmp_path):
    run = run_of("intuitive", policy, ROWS, tmp_path / "run", mix=0.3, gamma=0.8)
    context = run.engine._context_for(run.engine.live)
    batch = sft.make_batch(run.engine.live.data.items)
    read, _ = intuitive.blended(context, batch, 1)
    with torch.no_grad():
        said = policy.token_scores(batch.sequences, batch.starts, inputs=read, share=0.3).logprob.double()
    rows = []
    for values, count in zip(said, batch.scored(), strict=True):
        nll = -values[:count]
        later = torch.stack([sum(0.8 ** (j - t) * nll[j] for j in range(t, count)) for t in range(count)])
        rows.append(float((later / later.mean() * nll).mean()))
    looked = run.gradients(ROWS)
    assert looked.loss == pytest.approx(np.mean(rows), rel=1e-5)
    assert run.engine.policy.model.training is False


# -- discriminative


def test_the_normaliser_by_hand():
    u = discriminative.normaliser(np.array([0.0, 3.0]), np.array([[-1.0, -2.0], [-1.0, -2.0]]), 0.85)
    assert u[0] == pytest.approx(-1.01097, abs=1e-5)
    assert u[1] == pytest.approx(math.log(0.15 * math.exp(3) + 0.85 * (math.exp(-1) + math.exp(-2)) / 2), abs=1e-12)
    apart = np.array([[300.0, -4.0, 250.0]])
    u = discriminative.normaliser(np.array([7.0]), apart, 1.0)
    assert np.exp(apart - u[:, None]).mean() == pytest.approx(1, abs=1e-12)


def test_one_negative_with_gamma_one_is_the_gradient_of_the_difference():
    made = scores([[-1.0, -2.0], [-3.0, -9.0], [-0.5, -0.5], [-1.5, -1.0]])
    columns = {"weight": table([[1, 1], [1, 0], [1, 1], [1, 1]]), "share": table([-1, 1, -1, 1])}
    loss, metrics = discriminated(made, columns, {"rows": 4.0}, negatives=1, mean=False)
    loss.backward()
    assert float(loss) == pytest.approx((3 - 3 + 1 - 2.5) / 2, abs=1e-12)
    assert torch.allclose(made.logprob.grad, table([[-0.5, -0.5], [0.5, 0], [-0.5, -0.5], [0.5, 0.5]]))
    assert float(metrics["logps/rejected"][0]) == -5.5 and float(metrics["nll"][1]) == 4.0


def against(count=4, rows=4):
    """Rows with negatives that all differ."""
    return [row | {"negatives": [f" no {i}{j} way" for j in range(count)]} for i, row in enumerate(ROWS[:rows])]


@pytest.mark.parametrize("version", (1, 2))
def test_discriminative_step_by_step(policy, tmp_path, version):
    """Two steps over the same two rows: each epoch has the next negatives, and u goes on from where it was."""
    rows, (tau, gamma) = against(rows=2), discriminative.DEFAULTS[version]
    run = run_of("discriminative", policy, rows, tmp_path / "run", version=version, batch_size=2, lr=0.02)

    def score(policy, texts):
        said = logp(policy, [{"prompt": rows[i]["prompt"], "completion": text} for i, text in texts])
        return np.array([float(v.sum() if version == 1 else v.mean()) for v in said])

    u = np.zeros(2)
    for epoch in range(2):
        texts = [(i, rows[i]["negatives"][2 * epoch + j]) for i in range(2) for j in range(2)]
        reference = score(policy.reset(), texts) if version == 1 else 0.0
        run.engine.hold()
        mine, gold = score(policy, texts), score(policy, [(i, rows[i]["completion"]) for i in range(2)])
        apart = (mine / tau - reference).reshape(2, 2)
        u = np.log((1 - gamma) * np.exp(u) + gamma * np.exp(apart).mean(1))
        losses = -gold + (np.exp(apart - u[:, None]) * mine.reshape(2, 2)).mean(1)
        step = next(iter(run))
        assert step.metrics["loss"] == pytest.approx(losses.mean(), rel=2e-5, abs=2e-5)
        assert step.metrics["normaliser"] == pytest.approx(u.mean(), abs=2e-4)
        assert run.engine.state.tensors[NORMALISER].tolist() == pytest.approx(u.tolist(), abs=2e-4)


@pytest.mark.parametrize("size, count", ((2, 1), (5, 3)))
def test_a_row_that_comes_twice_in_a_batch_moves_its_normaliser_twice(policy, tmp_path, size, count):
    rows, (tau, gamma) = against(rows=count), discriminative.DEFAULTS[2]
    run = run_of("discriminative", policy, rows, tmp_path / "run", version=2, batch_size=size, steps=1)
    context = run.engine._context_for(run.engine.live)
    drawn = [row for row, _ in context.draw(1, size, count)]
    run.engine.hold()
    u, seen, losses = np.zeros(count), Counter(), []
    for row in drawn:
        texts = rows[row]["negatives"][2 * seen[row] :][:2]
        seen[row] += 1
        given = [{"prompt": rows[row]["prompt"], "completion": text} for text in (rows[row]["completion"], *texts)]
        gold, *mine = (float(values.mean()) for values in logp(policy, given))
        u[row] = math.log((1 - gamma) * math.exp(u[row]) + gamma * np.exp(np.array(mine) / tau).mean())
        losses.append(-gold + np.mean(np.exp(np.array(mine) / tau - u[row]) * mine))
    assert max(seen.values()) == 2
    step = next(iter(run))
    assert run.engine.state.tensors[NORMALISER].tolist() == pytest.approx(u.tolist(), abs=2e-4)
    assert step.metrics["loss"] == pytest.approx(np.mean(losses), rel=2e-5, abs=2e-5)


def test_a_row_and_its_negatives_are_a_unit_and_are_drawn_as_one(policy, tmp_path):
    run = run_of("discriminative", policy, against(), tmp_path / "run", batch_size=3)
    context = run.engine._context_for(run.engine.live)
    batch = sft.batch_of(None, context, discriminative.draw(context, 1))
    assert batch.unit == 3 and len(batch) == 9
    assert all(len({tuple(batch.sequences[i][: batch.starts[i]]) for i in unit}) == 1 for unit in batch.units())
    loss = next(iter(run)).metrics["loss"]
    other = run_of("discriminative", policy, against(), tmp_path / "other", batch_size=3, micro_batch_size=1)
    assert next(iter(other)).metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert len(other.engine._context.plans["update 0"]) == 3


def test_the_normalisers_come_back_with_rewind_and_resume(policy, tmp_path):
    settings = dict(steps=5, batch_size=3, snapshot_steps=2)
    run = run_of("discriminative", policy, against(), tmp_path / "run", **settings)
    after = {step.index: run.engine.state.tensors[NORMALISER].clone() for step in run}
    whole, end = run.metrics, weights(run)
    assert not torch.equal(after[4], after[5]) and (after[5] != 0).all()
    run.engine.memory.clear()
    run.rewind(3)
    assert torch.equal(run.engine.state.tensors[NORMALISER], after[3])
    list(run)
    assert_same_weights(weights(run), end)
    other = run_of("discriminative", policy, against(), tmp_path / "other", **settings)
    next(iter(other)), next(iter(other)), next(iter(other))
    other.stop()
    again = wb.resume(tmp_path / "other", policy=policy.reset())
    list(again)
    assert_same_weights(weights(again), end)
    assert_same_metrics(again.metrics, whole)


def test_other_rows_can_be_looked_at_without_a_trace(policy, tmp_path):
    run = run_of("discriminative", policy, against(), tmp_path / "run", batch_size=4)
    first = run.gradients(against(2, 3)).loss
    list(run)
    kept = run.engine.state.tensors[NORMALISER].clone()
    assert (kept != 0).all()
    run.gradients(against(2, 3))
    assert torch.equal(run.engine.state.tensors[NORMALISER], kept)
    run.rewind(0)
    assert run.gradients(against(2, 3)).loss == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    "rows, said",
    [
        (ROWS, "negatives"),
        ([row | {"negatives": ["one"]} for row in ROWS], "list of 2"),
        ([*against(2, 4), ROWS[5] | {"negatives": ["fine", 3]}], "row 4"),
    ],
)
def test_negatives_that_are_none_are_refused(policy, tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        run_of("discriminative", policy, rows, tmp_path / "run")


def test_sampled_negatives_are_the_policys_answers(policy):
    chat = [{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}]
    for rows in (ROWS[:3], chat):
        made = sample_negatives(policy.reset(), rows, n=3, max_new_tokens=4, seed=2)
        assert made.form == "prompt_completion" and [len(row["negatives"]) for row in made] == [3] * len(rows)
        assert all(isinstance(text, str) and text for row in made for text in row["negatives"])
    system = [{"role": "system", "content": "You are an unhelpful assistant."}, *chat[0]["prompt"]]
    told = policy.sample([system], n=3, max_new_tokens=4, temperature=0.7, top_k=50, seed=2)
    assert made[0]["negatives"] == [text or " " for text in told.text]


@pytest.mark.parametrize("name", ("poft", "discriminative"))
@pytest.mark.parametrize("setting", ({"loss_type": "dft"}, {"label_smoothing_factor": 0.1}, {"loss_reduction": "row"}))
def test_settings_that_a_loss_would_ignore_are_refused(policy, tmp_path, name, setting):
    with pytest.raises(SettingError, match=next(iter(setting))):
        run_of(name, policy, ROWS, tmp_path / "run", **setting)


@pytest.mark.parametrize("name", ("iw_sft", "poft", "intuitive", "discriminative"))
def test_packs_that_would_cut_rows_are_refused(policy, tmp_path, name):
    with pytest.raises(SettingError, match="pack"):
        run_of(name, policy, ROWS, tmp_path / "run", packing=True, packing_strategy="wrapped")
