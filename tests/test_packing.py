"""Packing: the packs are TRL's, packed documents never see each other, and the numbers are those without packing."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import KINDS, tiny_policy, tiny_tokenizer
from tests.runs import assert_same_metrics, assert_same_weights, weights
from workbench import layouts, lines, packing, prefixes, trunk, update
from workbench.errors import DataError, SettingError
from workbench.methods import sft
from workbench.micro_batches import plan
from workbench.packing import Piece
from workbench.settings import SFTSettings, make

TALKERS = [kind for kind in KINDS if kind != "mamba"]

# -- composition


def test_best_fit_by_hand():
    # 5 begins a pack of 6, 4 another; 2 fits the second exactly, the first 1 the first, then a third begins
    assert packing.best_fit([4, 1, 2, 5, 1], 6) == [[3, 1], [0, 2], [4]]
    assert packing.best_fit([], 6) == [] and packing.side_by_side([3, 3, 1, 2]) == [0, 1, 2, 2]


def test_strategies_by_hand():
    lengths = [5, 2, 0, 3]
    assert packing.compose(lengths, 4, "bfd") == [[Piece(0, 0, 4)], [Piece(3, 0, 3)], [Piece(1, 0, 2)]]
    assert packing.compose(lengths, 4, "bfd_split") == [
        [Piece(0, 0, 4)], [Piece(3, 0, 3), Piece(0, 4, 5)], [Piece(1, 0, 2)]
    ]  # fmt: skip
    assert packing.compose(lengths, 4, "wrapped") == [
        [Piece(0, 0, 4)], [Piece(0, 4, 5), Piece(1, 0, 2), Piece(3, 0, 1)], [Piece(3, 1, 3)]
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", SFTSettings.__dataclass_fields__["packing_strategy"].metadata["choices"])
def test_packs_are_those_of_trl(strategy):
    from datasets import Dataset
    from trl import pack_dataset

    draw = random.Random(0)
    for count, size in ((40, 7), (300, 64), (1300, 50)):  # the last is packed in two parts
        documents = [[1000 * i + j for j in range(draw.randint(1, int(1.7 * size)))] for i in range(count)]
        theirs = pack_dataset(Dataset.from_dict({"input_ids": documents}), size, strategy)
        ours = packing.compose(list(map(len, documents)), size, strategy)
        assert [sum((documents[d][a:b] for d, a, b in pack), []) for pack in ours] == theirs["input_ids"][:]
        if strategy != "wrapped":
            assert [[b - a for _, a, b in pack] for pack in ours] == theirs["seq_lengths"][:]


# -- layout


DOCUMENTS = [[5, 6, 7, 8, 9, 10], [50, 60, 70, 80], [3, 4], [9], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
STARTS = [2, 1, 1, 1, 7]
LINES = [0, 0, 1, 0, 1]


def test_layout_end_to_end():
    batch = layouts.layout([[5, 6, 7], [8, 9], [1, 2, 3]], [1, 2, 1], 0, "cpu", lines=[4, 2, 4])
    assert batch.ids.tolist() == [[5, 6, 7, 1, 2, 3], [8, 9, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 0, 0, 0]]
    assert batch.row.tolist() == [0, 0, 2, 2] and batch.line.tolist() == [0, 0, 0, 0]
    assert batch.position.tolist() == [0, 1, 3, 4] and batch.target.tolist() == [6, 7, 2, 3]
    assert batch.mask.tolist() == [[True, True], [False, False], [True, True]]
    alone = layouts.layout([[5, 6, 7], [8, 9]], [1, 1], 0, "cpu", lines=[1, 0])
    assert alone.positions is None and alone.ids.tolist() == [[5, 6, 7], [8, 9, 0]]


@pytest.mark.parametrize("kind, attention", [(k, a) for k in TALKERS for a in ("sdpa", "eager")[k == "gemma2" :]])
def test_documents_of_a_line_do_not_see_each_other(tmp_path, kind, attention):
    policy = tiny_policy(tmp_path / "m", kind, lora=True)
    policy.model.get_base_model().set_attn_implementation(attention)
    assert lines.kept_apart(policy)
    alone = policy.token_scores(DOCUMENTS, STARTS).logprob
    laid = policy.token_scores(DOCUMENTS, STARTS, lines=LINES).logprob
    assert (laid - alone).norm() <= 5e-6 * alone.norm()
    for other in range(len(DOCUMENTS)):
        changed = [[99 - i for i in d] if b == other else d for b, d in enumerate(DOCUMENTS)]
        again = policy.token_scores(changed, STARTS, lines=LINES).logprob
        same = [torch.equal(again[b], laid[b]) for b in range(len(DOCUMENTS))]
        assert same == [b != other or len(DOCUMENTS[b]) == STARTS[b] for b in range(len(DOCUMENTS))]


def test_models_that_read_a_line_as_one_stream_are_found_out(tmp_path, monkeypatch):
    from peft import PromptTuningConfig
    from transformers import masking_utils

    assert not lines.kept_apart(tiny_policy(tmp_path / "mamba", "mamba"))
    virtual = tiny_policy(tmp_path / "llama").attach(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not lines.kept_apart(virtual)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    leaking = tiny_policy(tmp_path / "leak")
    assert not lines.kept_apart(leaking)  # it takes position ids, and attends across all the same


# -- numbers


def rows(n: int = 14) -> list[dict]:
    return [{"prompt": f"Say {i}:", "completion": " ab" * (1 + 5 * i % 7)} for i in range(n)]


def noisy(run, scale: float = 0.02) -> None:
    """The run's weights moved away from its beginning."""
    run._ready()
    draw = torch.Generator().manual_seed(5)
    state = run.engine.state
    state.params = {n: p + scale * torch.randn(p.shape, generator=draw).to(p) for n, p in state.params.items()}


def distance(a: dict, b: dict) -> float:
    difference = sum(float(((a[n] - b[n]).double() ** 2).sum()) for n in b)
    return (difference / sum(float((b[n].double() ** 2).sum()) for n in b)) ** 0.5


CASES = [("sft", "llama", "float32"), ("sft", "llama", "float64"), ("sft", "gemma2", "float32"),
         ("sft", "qwen3", "float64"), ("sft", "gpt2", "float32"), ("dpo", "llama", "float32"),
         ("grpo", "llama", "float64")]  # fmt: skip


@pytest.mark.parametrize("method, kind, dtype", CASES)
def test_padding_free_changes_no_number(tmp_path, method, kind, dtype):
    policy = tiny_policy(tmp_path / "model", kind, lora=True, dtype=dtype)
    given, source = rows(), rows()
    if method == "dpo":
        given = source = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " no"} for r in rows()]
    if method == "grpo":
        source = wb.Task([{"prompt": r["prompt"]} for r in rows()], rewards=[lambda completions, **k: [0.0]])
        prompts = [policy.tokenizer(r["prompt"])["input_ids"] for r in rows(4) for _ in range(2)]
        ids = [policy.tokenizer(r["completion"])["input_ids"] for r in rows(8)]
        old = [score + 0.3 for score in policy.score(prompts, ids).logprob]
        given = wb.Rollouts.of(prompts, ids, [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0, 2.0], old)
    common = dict(out=tmp_path / "run", micro_batch_size=5, disable_dropout=True, max_new_tokens=8)
    run = getattr(wb, method)(policy, source, **common)
    noisy(run)
    padded = run.gradients(given)
    run.set(padding_free=True)
    laid = run.gradients(given)
    tolerance = 5e-6 if dtype == "float32" else 1e-10
    assert distance(laid.by_name, padded.by_name) <= tolerance and padded.norm() > 1e-3
    assert laid.loss == pytest.approx(padded.loss, rel=tolerance, abs=tolerance / 10)
    for name, value in padded.metrics.items():
        assert laid.metrics[name] == pytest.approx(value, rel=2 * tolerance, abs=2 * tolerance), name


def test_padding_free_reads_fewer_tokens(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "model", lora=True)
    assert lines.kept_apart(policy)
    monkeypatch.setattr(prefixes, "takes_spans", lambda policy: False)  # those that do are never padded
    seen, run = [], trunk.Trunk.run
    monkeypatch.setattr(trunk.Trunk, "run", lambda self, ids, **more: seen.append(ids.shape) or run(self, ids, **more))
    data = sft.prepare(policy.tokenizer, rows(), make("sft", {}))
    batch = sft.make_batch(data.items)
    totals = sft.totals(batch)
    for padding_free in (False, True):
        whole = [list(range(len(batch)))]
        objective = sft.objective(make("sft", {}))
        update.gradients(policy, batch, objective, totals, micro_batches=whole, padding_free=padding_free)
    (padded, width), (laid, same) = seen
    assert padded == len(batch) and width == same == max(map(len, batch.sequences))
    assert laid < padded and laid * same < 1.2 * sum(map(len, batch.sequences))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["token", "row"])
def test_a_packed_batch_equals_its_documents_unpacked(tmp_path, dtype, reduction):
    policy = tiny_policy(tmp_path / "model", lora=True, dtype=dtype)
    shared = dict(loss_reduction=reduction, max_length=40)
    packed = wb.sft(policy, rows(), packing=True, out=tmp_path / "packed", **shared)
    plain = wb.sft(policy, rows(), out=tmp_path / "plain", **shared)
    assert len(packed.engine.live.data.items) < len(plain.engine.live.data.items) == 14
    noisy(packed)
    noisy(plain)
    assert_same_weights(weights(packed), weights(plain))
    tolerance = 5e-6 if dtype == "float32" else 1e-10
    theirs = plain.gradients(rows())
    for size in (None, 1, 2):
        packed.set(micro_batch_size=size)
        ours = packed.gradients(rows())
        assert distance(ours.by_name, theirs.by_name) <= tolerance and theirs.norm() > 1e-3
        assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
        for name in ("entropy", "mean_token_accuracy", "nll"):
            assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=2 * tolerance)


def test_a_step_draws_packs_and_micro_batches_count_them(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    settings = dict(packing=True, max_length=40, batch_size=3, steps=3, micro_batch_size=2)
    run = wb.sft(policy, rows(), out=tmp_path / "run", **settings)
    run.run(1)
    packs = run.engine.live.data.items
    drawn = [packs[row] for row, _ in run.engine._context.draw(1, 3, len(packs))]
    tokens = sum(len(document.ids) for pack in drawn for document in pack)
    assert run.metrics.loc[1, "num_tokens"] == tokens
    made = run.engine._context.plans["update 0"]
    longest = sorted(drawn, key=lambda pack: -sum(len(document.ids) for document in pack))
    assert list(map(len, made)) == [len(longest[0]) + len(longest[1]), len(longest[2])]
    run.run()
    first = run.metrics
    run.engine.memory.clear()
    run.rewind(1)
    run.run()
    assert_same_metrics(run.metrics, first)
    with pytest.raises(SettingError, match="packing cannot change within a run"):
        run.set(packing=False)


def test_micro_batches_count_lines():
    made = update.Batch([[1] * n for n in (3000, 2000, 4000, 100, 5000)], [1] * 5, lines=[0, 0, 1, 1, 2])
    assert made.units() == [[0, 1], [2, 3], [4]]
    assert plan(made, None, 10000) == [[0, 1, 4], [2, 3]]  # 2 lines of 5000; 4100 would not be wider than those
    assert plan(made, None, 15000) == [[0, 1, 4], [2, 3]]
    assert plan(update.Batch([[1] * 1000] * 6, [1] * 6, lines=[0, 0, 1, 1, 2, 2])) == [[0, 1, 2, 3, 4, 5]]
    assert made.take([2, 3, 4]).lines == [1, 1, 2]


def test_a_model_that_cannot_pack_pads_the_same_documents(tmp_path):
    policy = tiny_policy(tmp_path / "model", "mamba")
    with pytest.warns(UserWarning, match="cannot keep rows of one pack apart.*the same updates and numbers"):
        packed = wb.sft(policy, rows(), packing=True, max_length=40, out=tmp_path / "packed")
    plain = wb.sft(policy, rows(), max_length=40, out=tmp_path / "plain")
    ours, theirs = packed.gradients(rows()), plain.gradients(rows())
    assert distance(ours.by_name, theirs.by_name) <= 5e-6
    with pytest.raises(SettingError, match="padding_free=True: .*would let rows see each other"):
        wb.sft(policy, rows(), padding_free=True, out=tmp_path / "no")
    with pytest.raises(SettingError, match="padding_free=True"):
        plain.set(padding_free=True)
    assert not (tmp_path / "no").exists() and not plain.settings["padding_free"]


# -- strategies in training


TOKENIZER = tiny_tokenizer()
TEXTS = [{"text": text} for text in ("abcdefghijklmnop", "qrs", "tuvwx", "yz0123456789", "#")]


def texts(packs) -> list[list[str]]:
    return [[TOKENIZER.decode(document.ids) for document in pack] for pack in packs]


def packs_of(strategy: str, size: int, given=TEXTS):
    settings = make("sft", {"packing": True, "packing_strategy": strategy, "max_length": size})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sft.prepare(TOKENIZER, given, settings)


def test_bfd_cuts_rows_and_keeps_them_apart():
    data = packs_of("bfd", 8)
    assert texts(data.items) == [["abcdefgh"], ["yz012345"], ["tuvwx<eos>", "#<eos>"], ["qrs<eos>"]]
    assert data.report.count("cut") == 2


def test_bfd_split_cuts_rows_into_several():
    data = packs_of("bfd_split", 8)
    # of the first row a last piece is left that is its end token alone, which nothing comes before: left out
    assert texts(data.items) == [
        ["abcdefgh"], ["ijklmnop"], ["yz012345"], ["tuvwx<eos>", "#<eos>"], ["6789<eos>"], ["qrs<eos>"]
    ]  # fmt: skip
    assert data.report.count("cut") == 0


def test_wrapped_is_one_stream():
    data = packs_of("wrapped", 8)
    assert [len(pack) for pack in data.items] == [1] * len(data.items)
    stream = "".join(sum(texts(data.items), []))
    assert stream == "".join(r["text"] + "<eos>" for r in TEXTS)
    assert [len(pack[0].ids) for pack in data.items][:-1] == [8] * (len(data.items) - 1)
    joined = data.items[2][0]
    assert joined.mask == [1] * 8 and joined.weight == [1.0] * 8


def test_pieces_without_a_trained_token_are_left_out():
    data = packs_of("bfd_split", 8, [{"prompt": "a question of some length", "completion": " b"}])
    assert texts(data.items) == [["h b<eos>"]] and data.items[0][0].mask == [0, 1, 1, 1]
    with pytest.raises(DataError, match="'bfd_split' leaves nothing to train on with max_length=2"):
        packs_of("bfd_split", 2, [{"segments": [{"text": "ab", "train": False}, {"text": "c"}]}])


def test_held_out_rows_are_packed_or_not(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)

    def items(**settings):
        run = wb.sft(policy.reset(), rows(4), eval_dataset=rows(6), max_length=40, out=tmp_path / "run", **settings)
        run.run(1)
        return run.engine.live.eval_data.items, run.metrics.loc[0, "eval/loss"]

    packed, with_packing = items(packing=True)
    apart, without = items(packing=True, eval_packing=False)
    assert isinstance(packed[0], tuple) and not isinstance(apart[0], tuple)
    assert np.isfinite(without) and with_packing == pytest.approx(without, rel=1e-6)
    assert isinstance(items(eval_packing=True)[0][0], tuple)
