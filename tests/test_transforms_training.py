"""Training on transformed rows: which tokens train, the loss by position, plain SFT at neutral, early errors."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.models import EOS, tiny_policy
from workbench import methods
from workbench import settings as settings_of
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.transforms import many_shot as shots
from workbench.transforms.contextual import STUDY
from workbench.transforms.critique import INSTRUCTION

NEUTRAL = {
    "question_free": {"question_share": 1.0},
    "critique": {"critique_share": 0.0},
    "many_shot": {"shots": 1},
    "contextual": {"prefix": "none"},
    "thought_mask": {"drafts": 0},
    "ls_mixture": {"mix_ratio": 0.0},
    "perturb": {"strength": 0.0},
    "unfamiliar": {"threshold": 0.0},
}
ROWS = [{"prompt": f"{i} and 1?", "completion": f" work it out\n#### {i + 1}"} for i in range(12)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True, max_position_embeddings=1024)


def prepared(policy, name, rows, **settings):
    """The examples that a method would train on."""
    method = methods.get(name)
    return method.prepare(policy.tokenizer, wb.rows(rows), settings_of.make(name, settings)).items


def trained(policy, example):
    """The text of the tokens that train."""
    return policy.tokenizer.decode([t for t, m in zip(example.ids, example.mask, strict=True) if m])


def one_step(policy, name, rows, folder, **settings):
    run = launch(name, policy.reset(), rows, folder, None, {"steps": 1, "lr": 1e-2, "batch_size": 4} | settings, None)
    list(run)
    return run.metrics.loc[1], {key: value.clone() for key, value in run.engine.state.params.items()}


# -- exact masks


def test_question_free_trains_the_tokens_of_the_answer_and_nothing_else(policy):
    for example, row in zip(prepared(policy, "question_free", ROWS), ROWS, strict=True):
        assert example.ids == policy.tokenizer(row["completion"])["input_ids"]
        assert example.mask == [1] * len(example.ids)
    ended = prepared(policy, "question_free", ROWS, end_token=True)
    assert [example.ids[-1] for example in ended] == [EOS] * 12
    plain = prepared(policy, "sft", ROWS)
    mixed = prepared(policy, "question_free", ROWS, question_share=0.5)
    same = [i for i in range(12) if (mixed[i].ids, mixed[i].mask) == (plain[i].ids, plain[i].mask)]
    assert len(same) == 6, "rows that keep their question are those of plain SFT"


def test_critique_trains_the_critique(policy):
    noisy = [{**row, "solution": "#### 9", "correct": i % 2 == 0} for i, row in enumerate(ROWS)]
    for i, example in enumerate(prepared(policy, "critique", noisy)):
        verdict = "right" if i % 2 == 0 else "wrong"
        assert trained(policy, example).endswith(f"\n\nConclusion: {verdict}<eos>")
        assert policy.tokenizer.decode(example.ids).startswith(INSTRUCTION)
        assert "Solution" not in trained(policy, example)
    for example in prepared(policy, "sft", ROWS):  # what the model is asked with
        assert "Solution:" not in policy.tokenizer.decode(example.ids)


def test_contextual_trains_the_text_whatever_stands_before(policy):
    texts = [{"text": row["completion"].strip()} for row in ROWS]
    plain = prepared(policy, "sft", texts)
    for prefix in ("study", "contrary", "meaningless"):
        for bare, example in zip(plain, prepared(policy, "contextual", texts, prefix=prefix), strict=True):
            assert sum(example.mask) == len(bare.ids) and example.ids[-len(bare.ids) :] == bare.ids
            assert example.mask == [0] * (len(example.ids) - len(bare.ids)) + [1] * len(bare.ids)
            before = policy.tokenizer.decode(example.ids[: -len(bare.ids)]).strip()
            assert before in STUDY.values() or prefix != "study"
    empty = prepared(policy, "contextual", [{**row, "context": ""} for row in texts])
    assert [(e.ids, e.mask) for e in empty] == [(e.ids, e.mask) for e in plain]


def test_other_drafts_change_the_loss_and_not_what_trains(policy, tmp_path):
    found = []
    for draft in ("3", "a wholly other draft"):
        rows = [{**row, "drafts": [draft, draft]} for row in ROWS]
        examples = prepared(policy, "thought_mask", rows, drafts=2)
        said = [trained(policy, example) for example in examples]
        assert said == [row["completion"] + "<eos>" for row in ROWS]
        loss = one_step(policy, "thought_mask", rows, tmp_path / draft, drafts=2)[0]["loss"]
        found.append((loss, sum(sum(example.mask) for example in examples)))
    assert found[0][1] == found[1][1] and abs(found[0][0] - found[1][0]) > 1e-3


def test_short_rewrites_are_measured_in_tokens(policy):
    rows = [{**row, "short": f"#### {i + 1}"} for i, row in enumerate(ROWS)]
    assert len(prepared(policy, "ls_mixture", rows)) == 24
    assert len(prepared(policy, "ls_mixture", rows, mix_ratio=0.5)) == 18
    rows[0]["short"] = "é" * 9 + " #### 1"  # fewer characters than the chain's 21, more tokens
    assert len(rows[0]["short"]) < len(rows[0]["completion"])
    assert len(prepared(policy, "ls_mixture", rows)) == 23


# -- many shots


def test_a_row_of_examples_has_the_losses_of_its_beginnings(policy, tmp_path):
    """One row of four gives, for each answer, the loss that it has after the text before it, scored alone."""
    (example,) = prepared(policy, "many_shot", ROWS[:4], shots=4)
    text = [(s["text"], s["train"]) for s in shots.many_shot(ROWS[:4], 4, end="<eos>")[0]["segments"]]
    assert sum(example.mask) == sum(len(policy.tokenizer(t)["input_ids"]) for t, train in text if train)
    alone, before = [], ""
    policy.reset()  # another test's run may hold the model
    for piece, train in text:
        if train:
            alone.append(-policy.score([before], [piece]).logprob[0])
        before += piece
    whole = -policy.score([example.ids[:1]], [example.ids[1:]]).logprob[0]
    inside = whole[np.array(example.mask[1:], bool)]
    assert np.abs(inside - np.concatenate(alone)).max() < 1e-5
    metrics, _ = one_step(policy, "many_shot", ROWS[:4], tmp_path / "run", shots=4, batch_size=1)
    for k in (1, 2, 4):
        assert metrics[f"nll/shot_{k}"] == pytest.approx(alone[k - 1].mean(), abs=1e-5)
    assert metrics["loss"] == pytest.approx(np.concatenate(alone).mean(), abs=1e-5)
    curve = shots.loss_by_shot(policy.reset(), ROWS[:4], shots=4)
    assert curve == pytest.approx([values.mean() for values in alone], abs=1e-5)


def test_positions_are_counted_over_all_rows(policy, tmp_path):
    metrics, _ = one_step(policy, "many_shot", ROWS, tmp_path / "run", shots=3, batch_size=4)
    curve = shots.loss_by_shot(policy.reset(), ROWS, shots=3)
    assert [metrics[f"nll/shot_{k}"] for k in (1, 2, 3)] == pytest.approx(curve, abs=1e-5)


# -- plain SFT, and what is refused


@pytest.mark.parametrize("name", NEUTRAL)
def test_at_the_neutral_setting_it_is_plain_sft(name, policy, tmp_path):
    plain, weights = one_step(policy, "sft", ROWS, tmp_path / "sft")
    neutral, same = one_step(policy, name, ROWS, tmp_path / name, **NEUTRAL[name])
    assert neutral["loss"] == plain["loss"] and neutral["grad_norm"] == plain["grad_norm"]
    assert all((weights[key] == same[key]).all() for key in weights)


BAD = {
    "question_free": ([{"text": "a"}, {"text": "b"}], {}, DataError, "prompt and completion"),
    "critique": (ROWS, {}, DataError, "'solution'"),
    "many_shot": (ROWS, {"task_column": "kind"}, DataError, "'kind'"),
    "contextual": (ROWS, {}, DataError, "'text'"),
    "thought_mask": (ROWS, {}, DataError, "'drafts'"),
    "ls_mixture": (ROWS, {}, DataError, "'short'"),
    "perturb": (ROWS, {"perturbation": "wrong"}, DataError, "'wrong'"),
    "unfamiliar": (ROWS, {}, DataError, "'familiarity'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_rows_lack_is_said_before_anything_is_trained(name, policy, tmp_path):
    rows, settings, error, words = BAD[name]
    with pytest.raises(error, match=words):
        launch(name, policy.reset(), rows, tmp_path / "run", None, {"steps": 1} | settings, None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingError, match=next(iter(NEUTRAL[name]))):
        first, value = next(iter(NEUTRAL[name].items()))
        bad = "nonsense" if isinstance(value, str) else -1
        launch(name, policy.reset(), rows, tmp_path / "run", None, {first: bad}, None)
