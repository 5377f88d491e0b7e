"""Masked thought: holes in what the model reads; and the neutral settings of the supervised methods."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy, tiny_tokenizer
from tests.runs import assert_same_metrics, assert_same_weights, rows_for, weights
from workbench import settings as settings_of
from workbench import update
from workbench.errors import SettingError
from workbench.launch import launch
from workbench.methods import get, sft
from workbench.methods.supervised import masked_thought
from workbench.published.supervised import ENTRIES

ROWS = rows_for("sft", 6)
TOOLS = ["say_it", "say_all", "other"]
CALLS = [row | {"completion": f"say_it(a={i})", "tools": TOOLS} for i, row in enumerate(ROWS)]
ENTRY = {entry.name: entry for entry in ENTRIES}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


def run_of(name, policy, rows, out, **settings):
    given = {"steps": 3, "lr": 0.1, "optim": "sgd", "seed": 3, "batch_size": 4} | settings
    return launch(name, policy.reset(), rows, out, None, given, None)


@pytest.mark.parametrize("name", [name for name, entry in ENTRY.items() if entry.neutral is not None])
def test_neutral_settings_give_plain_sft(policy, tmp_path, name):
    entry, rows = ENTRY[name], CALLS if name == "key_token" else ROWS
    ours = run_of(entry.call, policy, rows, tmp_path / "ours", **entry.sets | entry.neutral)
    list(ours)
    plain = run_of("sft", policy, rows, tmp_path / "plain")
    start = weights(plain)
    list(plain)
    change = torch.cat([(weights(plain)[n] - start[n]).flatten() for n in start])
    apart = torch.cat([(weights(plain)[n] - weights(ours)[n]).flatten() for n in start])
    assert change.norm() > 0.01 and apart.norm() <= 5e-6 * change.norm()
    for metric in ("loss", "grad_norm"):
        assert ours.metrics[metric].iloc[1:].tolist() == pytest.approx(
            plain.metrics[metric].iloc[1:].tolist(), rel=5e-6
        )
    if name == "masked_thought":
        assert_same_weights(weights(ours), weights(plain))  # byte for byte


def holed(rows=100, length=120, index=3, vocabulary=256, **settings):
    """A batch of rows whose last hundred tokens are trained, every fifth of them not, and what is read of it."""
    settings_of.register("masked_thought", get("masked_thought").settings)
    made = settings_of.make("masked_thought", {"steps": 3} | settings)
    tokenizer = SimpleNamespace(vocab_size=vocabulary, mask_token_id=None, pad_token_id=1000)
    context = SimpleNamespace(settings=made, policy=SimpleNamespace(tokenizer=tokenizer, vocab_size=vocabulary + 4))
    weight = [[float(t % 5 > 0) for t in range(length - 20)] for _ in range(rows)]
    batch = update.Batch([[2000 + t for t in range(length)] for _ in range(rows)], [20] * rows, {"weight": weight})
    return batch, masked_thought.holed(context, batch, index), context


def test_the_share_of_holes_and_where_they_are():
    batch, (read, share), context = holed()
    assert share == 1.0
    ids, seen = np.array(batch.sequences), np.array(read)
    changed = ids != seen
    trained = np.concatenate([np.zeros((100, 20)), np.array(batch.columns["weight"])], 1) > 0
    assert not changed[~trained].any()
    assert changed[trained].mean() == pytest.approx(0.4, abs=0.015)
    fill = seen[changed]
    assert fill.min() >= 0 and fill.max() < 256 and len(set(fill.tolist())) > 250
    assert np.bincount(fill, minlength=256).std() < 2 * (len(fill) / 256) ** 0.5, "uniform over the vocabulary"
    assert changed.any(0)[20:][1::5].all() and not np.array_equal(changed[0], changed[1])
    assert batch.sequences[0] == [2000 + t for t in range(120)], "what is asked for stays"
    batch.inputs = read
    told = masked_thought.after(None, context, batch, 3)
    assert told == {"mask_rate": 0.4, "masked_fraction": changed.sum() / trained.sum()}


def test_holes_are_drawn_anew_each_step_and_the_same_again():
    _, first, _ = holed(index=3, ramp=0.0)
    assert first == holed(index=3, ramp=0.0)[1]
    assert first != holed(index=2, ramp=0.0)[1] and first != holed(index=3, ramp=0.0, seed=1)[1]


def test_a_hole_can_be_the_mask_token():
    batch, (read, _), context = holed(replace="mask")
    changed = {
        b for one, other in zip(batch.sequences, read, strict=True) for a, b in zip(one, other, strict=True) if a != b
    }
    assert changed == {1000}
    context.policy.tokenizer.mask_token_id = 77
    again, _ = masked_thought.holed(context, batch, 3)
    assert {b for one in again for b in one if b < 2000} == {77}
    bare = tiny_tokenizer(pad_token=None)
    settings = settings_of.make("masked_thought", {"replace": "mask"})
    with pytest.raises(SettingError, match="has neither"):
        masked_thought.prepare(bare, ROWS, settings)
    padded = tiny_tokenizer(pad_token="<eos>")  # as loading leaves a tokenizer without one
    with pytest.raises(SettingError, match="here that is '<eos>', the end token"):
        masked_thought.prepare(padded, ROWS, settings)
    masked_thought.prepare(padded, ROWS, settings_of.make("masked_thought", {}))
    padded.mask_token = "<end>"
    masked_thought.prepare(padded, ROWS, settings)


def test_what_stands_in_holes_can_change_within_a_run_and_is_checked_then(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    run = run_of("masked_thought", policy, ROWS, tmp_path / "run")
    run.set(replace="mask")
    context = run.engine._context_for(run.engine.live)
    batch = sft.make_batch(run.engine.live.data.items)
    read, _ = masked_thought.holed(context, batch, 3)
    pad = policy.tokenizer.pad_token_id
    assert sum(ids.count(pad) for ids in read) > 0 == sum(ids.count(pad) for ids in batch.sequences)
    run.set(replace="random")
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    with pytest.raises(SettingError, match="holes would read as ends"):
        run.set(replace="mask")
    assert run.engine.settings.replace == "random"


def test_the_rate_rises_and_stays():
    made = settings_of.make("masked_thought", {"steps": 300})
    assert [masked_thought.rate_at(made, s) for s in (50, 100, 200, 201, 300)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.4, 0.4]
    )
    made = settings_of.make("masked_thought", {"steps": 300, "rate": 0.2, "ramp": 0})
    assert masked_thought.rate_at(made, 1) == 0.2


def test_training_reads_the_holes_and_evaluation_does_not(policy, tmp_path):
    given = dict(ramp=0.0, rate=0.5, batch_size=6, lr=0.0, shuffle_dataset=False)
    run = launch(
        "masked_thought", policy.reset(), ROWS, tmp_path / "run", ROWS, {"steps": 2, "eval_steps": 1} | given, None
    )
    list(run)
    plain = run_of("sft", policy, ROWS, tmp_path / "plain", batch_size=6).gradients(ROWS).loss
    assert run.metrics["eval/loss"].tolist() == pytest.approx([plain] * 3, rel=1e-5)
    for index in (1, 2):
        context = run.engine._context_for(run.engine.live)
        batch = sft.make_batch(run.engine.live.data.items)
        read, _ = masked_thought.holed(context, batch, index)
        with torch.no_grad():
            said = policy.token_scores(batch.sequences, batch.starts, inputs=read)
        expected = -float(said.logprob.sum() / said.mask.sum())
        assert run.metrics.loc[index, "loss"] == pytest.approx(expected, rel=1e-5)
        assert abs(expected - plain) > 1e-3
    assert run.metrics["masked_fraction"].iloc[1:].mean() == pytest.approx(0.5, abs=0.1)


def test_rewound_and_resumed_runs_draw_the_same_holes(policy, tmp_path):
    run = run_of("masked_thought", policy, ROWS, tmp_path / "run", snapshot_steps=2)
    list(run)
    whole, end = run.metrics, weights(run)
    run.engine.memory.clear()
    run.rewind(1)
    list(run)
    assert_same_weights(weights(run), end)
    other = run_of("masked_thought", policy, ROWS, tmp_path / "other", snapshot_steps=2)
    next(iter(other))
    other.stop()
    again = wb.resume(tmp_path / "other", policy=policy.reset())
    list(again)
    assert_same_metrics(again.metrics, whole)


@pytest.mark.parametrize(
    "name, setting, said",
    [
        ("masked_thought", {"rate": 1.1}, "rate"),
        ("masked_thought", {"replace": "pad"}, "Options: random, mask"),
        ("iw_sft", {"weight_max": 0.5}, "weight_max"),
        ("intuitive", {"mix": -0.1}, "mix"),
        ("discriminative", {"version": 3}, "version"),
        ("poft", {"beta": 0}, "beta"),
        ("key_token", {"max_weight": 0.5}, "max_weight"),
        ("key_token", {"assistant_only_loss": True}, "leave assistant_only_loss"),
    ],
)
def test_settings_out_of_range_are_refused(policy, tmp_path, name, setting, said):
    with pytest.raises(SettingError, match=said):
        run_of(name, policy, ROWS, tmp_path / "run", **setting)
