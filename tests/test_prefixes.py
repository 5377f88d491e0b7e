"""Rows in one line, a prompt that several share once in it, and no number changes."""

from __future__ import annotations

import pytest
import torch

from tests.models import KINDS, exact_norms, noisy_adapter, tiny_model_folder, tiny_policy
from tests.test_scoring_heads import distance, gradients
from workbench import flat, prefixes, recompute, trunk
from workbench.adapters import LoRA
from workbench.errors import DataError
from workbench.policy import load

TALKERS = [kind for kind in KINDS if kind != "mamba"]
PROMPTS = [[(7 * i + 3 * g) % 250 for i in range(n)] for g, n in enumerate((20, 13, 9))]
GROUPS = [5, 1, 5, 5, 1, 0]
"""unequal, not in order, one alone; longer than a window of 8"""
NUMBER = {5: 0, 1: 1, 0: 2}
SEQUENCES = [PROMPTS[NUMBER[g]] + [(5 * i + 11 * b) % 250 for i in range(n)]
             for b, (g, n) in enumerate(zip(GROUPS, (3, 12, 1, 7, 5, 10), strict=True))]  # fmt: skip
STARTS = [len(PROMPTS[NUMBER[g]]) for g in GROUPS]


def weighted(scores) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn(scores.mask.shape, generator=draw, dtype=torch.float64).to(scores.logprob.dtype)
    return ((scores.logprob + 0.3 * scores.entropy * weights.cos()) * weights * scores.mask).sum()


def both(policy, **how):
    """Scores and gradients with every row by itself, and with prompts shared."""
    alone = [policy.token_scores([s], [at]) for s, at in zip(SEQUENCES, STARTS, strict=True)]
    width = max(len(s) - at for s, at in zip(SEQUENCES, STARTS, strict=True))
    table = {}
    for name in ("logprob", "entropy", "mask"):
        parts = [torch.nn.functional.pad(getattr(one, name), (0, width - one.mask.shape[1])) for one in alone]
        table[name] = torch.cat(parts)
    plain = type(alone[0])(**table, top1=table["mask"])
    by_row = gradients(policy, weighted(plain))
    once = policy.token_scores(SEQUENCES, STARTS, groups=GROUPS)
    return plain, by_row, once, gradients(policy, weighted(once))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", TALKERS)
def test_sharing_changes_no_number(tmp_path, kind, dtype):
    policy = tiny_policy(tmp_path / "m", kind, lora=True, dtype=dtype)
    if dtype == "float64":
        exact_norms(policy)
    assert prefixes.takes_spans(policy)
    plain, by_row, once, shared = both(policy)
    # gemma's norms and eager softmax are in float32 whatever the model's dtype
    close = 1e-10 if dtype == "float64" and kind != "gemma2" else 5e-6
    assert torch.equal(once.mask, plain.mask)
    assert distance(once.logprob, plain.logprob) <= min(close, 1e-6) and distance(once.entropy, plain.entropy) <= close
    assert by_row.norm() > 1e-2 and distance(shared, by_row) <= close


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_sharing_with_either_attention(tmp_path, attention):
    policy = tiny_policy(tmp_path / "m", "qwen3", lora=True)
    policy.model.get_base_model().set_attn_implementation(attention)
    plain, by_row, once, shared = both(policy)
    assert distance(once.logprob, plain.logprob) <= 1e-6 and distance(shared, by_row) <= 5e-6


def test_sharing_when_all_trains_and_when_layers_are_recomputed(tmp_path):
    policy = tiny_policy(tmp_path / "m", "qwen3")
    _, by_row, _, shared = both(policy)
    assert distance(shared, by_row) <= 5e-6
    policy = tiny_policy(tmp_path / "n", "gemma2", lora=True)
    _, by_row, once, shared = both(policy)
    with recompute.recomputing(policy.model), flat.attending(policy.model):
        again = policy.token_scores(SEQUENCES, STARTS, groups=GROUPS)
        recomputed = gradients(policy, weighted(again))
    assert torch.equal(again.logprob, once.logprob) and distance(recomputed, shared) <= 1e-6
    assert distance(recomputed, by_row) <= 5e-6


def test_sharing_over_an_nf4_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tiny_model_folder(tmp_path / "m", hidden_size=64, intermediate_size=128)
    policy = noisy_adapter(load(folder, quantize="nf4", dtype="float32", device="cpu").attach(LoRA(r=4, alpha=8)))
    assert prefixes.takes_spans(policy)
    plain, by_row, once, shared = both(policy)
    assert distance(once.logprob, plain.logprob) <= 1e-5 and distance(shared, by_row) <= 5e-6


def test_two_threads_give_the_same_bits_each_time(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama", lora=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = []
        for _ in range(4):
            scores = policy.token_scores(SEQUENCES * 4, STARTS * 4, groups=GROUPS * 4)
            made.append((scores.logprob.detach(), gradients(policy, weighted(scores))))
    finally:
        torch.set_num_threads(threads)
    for logprob, gradient in made[1:]:
        assert torch.equal(logprob, made[0][0]) and torch.equal(gradient, made[0][1])


def test_rows_without_a_scored_token_and_of_one(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama")
    prompt = list(range(1, 9))
    scores = policy.token_scores([prompt, [*prompt, 4], [*prompt, 4, 5]], [8, 8, 8], groups=[0, 0, 0])
    assert scores.mask.tolist() == [[False, False], [True, False], [True, True]]
    assert scores.logprob[1, 0] == scores.logprob[2, 0] != 0
    one = policy.token_scores([prompt, [*prompt, 4]], [8, 8], groups=[0, 0])
    assert abs((one.logprob[1, 0] - scores.logprob[1, 0]).item()) < 1e-6
    assert policy.token_scores([prompt, prompt], [8, 8], groups=[0, 0]).logprob.shape == (2, 0)


def test_the_trunk_sees_each_prompt_once(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", "llama", lora=True)
    seen, run = [], trunk.Trunk.run
    monkeypatch.setattr(trunk.Trunk, "run", lambda self, ids, **more: seen.append(ids.shape) or run(self, ids, **more))
    policy.token_scores(SEQUENCES, STARTS, groups=GROUPS)
    # three prompts, one of them of a single row; the last token of a row predicts nothing
    assert seen == [(1, 20 + 13 + 9 + 2 + 11 + 0 + 6 + 4 + 9)]


def test_layout_by_hand():
    sequences, starts = [[1, 2, 7, 5], [3, 9, 8, 5], [1, 2, 6, 4, 7], [6, 7], [1, 2, 9, 3]], [2, 1, 2, 1, 2]
    made = flat.layout(sequences, starts, [0, 1, 0, 2, 0], "cpu")
    # rows 0, 2 and 4 after their prompt, the longest first; then row 1, then row 3, whose one token predicts another
    assert made.ids.tolist() == [[1, 2, 6, 4, 7, 9, 3, 9, 8, 6]]
    assert made.positions.tolist() == [[0, 1, 2, 3, 2, 2, 0, 1, 2, 0]]
    assert made.blocks == [
        flat.Block(1, 2, prompt=True), flat.Block(1, 2, ahead=True), flat.Block(2, 1, ahead=True), flat.Block(1, 3),
        flat.Block(1, 1),
    ]  # fmt: skip
    assert made.ends.tolist() == [1] and made.counts == [3]
    assert made.row.tolist() == [0, 2, 4, 2, 2, 0, 4, 1, 1, 1, 3]
    assert made.column.tolist() == [0, 0, 0, 1, 2, 1, 1, 0, 1, 2, 0]
    assert made.target.tolist() == [7, 6, 9, 4, 7, 5, 3, 9, 8, 5, 7]
    assert made.place.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert made.mask.sum(1).tolist() == [2, 3, 3, 1, 2] and made.mask[3].tolist() == [True, False, False]


def test_masks_by_hand():
    spans = flat.Spans([], [None])
    assert spans.mask(3, 3, None, "cpu") is None and spans.mask(3, 3, 3, "cpu") is None
    assert spans.mask(2, 4, None, "cpu")[0, 0].tolist() == [[True, True, True, False], [True] * 4]
    assert spans.mask(2, 4, 2, "cpu")[0, 0].tolist() == [[False, True, True, False], [False, False, True, True]]


def test_attention_is_put_back(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama")
    config = policy.model.config
    with pytest.raises(KeyError), flat.attending(policy.model):
        assert config._attn_implementation == flat.NAME
        raise KeyError
    assert config._attn_implementation == "sdpa"


def test_groups_without_a_common_prompt_are_refused(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama")
    with pytest.raises(DataError, match="group 3 do not begin with the same prompt"):
        policy.token_scores([[1, 2, 3], [1, 4, 3]], [2, 2], groups=[3, 3])
    with pytest.raises(DataError, match="sequence 0 .*predicts a first token"):
        policy.token_scores([[1, 2, 3], [1, 4, 3]], [0, 0], groups=[3, 3])


# -- which rows, which models


def batch_of(prompt: int, rows: int, completion: int = 20):
    sequences = [[*range(1, prompt + 1), *([7 + b] * completion)] for b in range(rows)]
    return sequences, [prompt] * rows


def test_of_numbers_the_prompts(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama", lora=True)
    sequences, starts = batch_of(64, 8)
    other = [[9, *sequence[1:]] for sequence in sequences[:2]]
    assert prefixes.of(policy, sequences + other, starts + starts[:2]) == [0] * 8 + [1] * 2
    assert prefixes.of(policy, sequences[:1], starts[:1]) == [0]
    assert prefixes.of(policy, sequences, [3] * 8) == list(range(8))  # no prompt to speak of
    assert prefixes.of(tiny_policy(tmp_path / "mamba", "mamba"), sequences, starts) is None


def test_dropout_is_not_shared(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama").attach(LoRA(r=4, alpha=8, dropout=0.1))
    sequences, starts = batch_of(64, 8)
    assert prefixes.of(policy, sequences, starts) == [0] * 8
    policy.model.train()
    assert prefixes.of(policy, sequences, starts) == list(range(8))


def test_models_that_give_other_numbers_are_found_out(tmp_path, monkeypatch):
    from peft import PromptTuningConfig

    virtual = tiny_policy(tmp_path / "virtual").attach(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not prefixes.takes_spans(virtual)
    run = trunk.Trunk.run

    def anew(self, ids, **more):
        # a model that counts places by itself
        return run(self, ids, **{name: value for name, value in more.items() if name != "position_ids"})

    monkeypatch.setattr(trunk.Trunk, "run", anew)
    assert not prefixes.takes_spans(tiny_policy(tmp_path / "m", "llama"))
    monkeypatch.undo()
    assert prefixes.takes_spans(tiny_policy(tmp_path / "m2", "llama"))
