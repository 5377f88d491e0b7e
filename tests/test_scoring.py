"""Scores of given tokens: hand-worked numbers, and parity with a plain float64 computation."""

import math

import numpy as np
import pytest
import torch

from tests.models import tiny_policy
from workbench import heads, layouts, scoring
from workbench.errors import DataError


def test_statistics_by_hand():
    # three tokens with odds 1 : 2 : 5
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    made = scoring.statistics(logits, torch.tensor([1, 2]))
    logprob, entropy, top1 = made["logprob"], made["entropy"], made["top1"]
    assert logprob.tolist() == pytest.approx([math.log(2 / 8), math.log(5 / 8)])
    by_hand = -(1 / 8 * math.log(1 / 8) + 2 / 8 * math.log(2 / 8) + 5 / 8 * math.log(5 / 8))
    assert entropy.tolist() == pytest.approx([by_hand, by_hand])
    assert top1.tolist() == [False, True]


def test_temperature_divides_the_logits():
    # at temperature 2 odds 1 : 4 become 1 : 2
    logits = torch.log(torch.tensor([[1.0, 4.0]]))
    made = scoring.statistics(logits, torch.tensor([0]), temperature=2.0)
    logprob, entropy = made["logprob"], made["entropy"]
    assert logprob.item() == pytest.approx(math.log(1 / 3), abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(3) - 2 / 3 * math.log(2), abs=1e-6)


def test_half_precision_logits_are_normalised_in_float32():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    made = scoring.statistics(logits, torch.arange(5))
    logprob, entropy = made["logprob"], made["entropy"]
    assert logprob.dtype == entropy.dtype == torch.float32
    exact = torch.log_softmax(logits.double(), -1)[torch.arange(5), torch.arange(5)]
    assert (logprob - exact).abs().max() < 1e-6


def test_layout():
    batch = layouts.layout([[5, 6, 7, 8], [9, 10]], [2, 1], filler=0, device="cpu")
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert batch.target.tolist() == [7, 8, 10] and batch.position.tolist() == [1, 2, 0]
    assert batch.first == 0 and batch.keep == 4


def test_divergence_by_hand():
    a, b = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.75]]))
    kl, same = scoring.divergence(a, b)
    assert kl.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert same.item() is False


SEQUENCES = [[104, 101, 32, 8, 9, 10, 77], [5, 6, 7], [50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 33, 4, 5]]
STARTS = [3, 1, 12]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2", "mamba"])
def test_token_scores_equal_a_plain_float64_computation(tmp_path, kind):
    policy = tiny_policy(tmp_path / "m", kind)
    scores = policy.token_scores(SEQUENCES, STARTS, temperature=0.7)
    assert scores.logprob.shape == scores.entropy.shape == (3, 4) and scores.logprob.dtype == torch.float32
    exact = tiny_policy(tmp_path / "m", kind, dtype="float64").model
    for b, (sequence, start) in enumerate(zip(SEQUENCES, STARTS, strict=True)):
        logp = torch.log_softmax(exact(torch.tensor([sequence])).logits[0].double() / 0.7, -1)
        count = len(sequence) - start
        assert scores.mask[b].tolist() == [t < count for t in range(4)]
        assert scores.logprob[b, count:].tolist() == [0.0] * (4 - count)
        for t in range(count):
            row, token = logp[start + t - 1], sequence[start + t]
            assert abs(scores.logprob[b, t].item() - row[token].item()) < 2e-5
            assert abs(scores.entropy[b, t].item() + (row.exp() * row).sum().item()) < 2e-5
            assert scores.top1[b, t].item() == (row.argmax().item() == token)


def test_float64_models_keep_float64(tmp_path):
    policy = tiny_policy(tmp_path / "m", dtype="float64")
    together = policy.token_scores(SEQUENCES, STARTS)
    alone = policy.token_scores(SEQUENCES[:1], STARTS[:1])
    assert together.logprob.dtype == together.entropy.dtype == torch.float64
    assert (together.logprob[0] - alone.logprob[0]).abs().max() < 1e-12


def test_gradients_and_their_absence(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    scores = policy.token_scores(SEQUENCES, STARTS)
    (scores.logprob.sum() + scores.entropy.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.trainable().values())
    with torch.no_grad():
        quiet = policy.token_scores(SEQUENCES, STARTS)
    assert not quiet.logprob.requires_grad
    assert torch.equal(quiet.logprob, scores.logprob.detach())


def test_gradient_equals_autograd_of_the_whole_logits(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True, dtype="float64")
    policy.token_scores(SEQUENCES, STARTS).logprob.sum().backward()
    mine = {name: p.grad.clone() for name, p in policy.trainable().items()}
    policy.model.zero_grad()
    for sequence, start in zip(SEQUENCES, STARTS, strict=True):
        logp = torch.log_softmax(policy.model(torch.tensor([sequence])).logits[0], -1)
        sum(logp[t - 1, sequence[t]] for t in range(start, len(sequence))).backward()
    for name, p in policy.trainable().items():
        assert (p.grad - mine[name]).norm() <= 1e-10 * p.grad.norm()


def test_chunks_do_not_change_scores(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", dtype="float64")
    whole = policy.token_scores(SEQUENCES, STARTS)
    monkeypatch.setattr(heads, "TOKENS", {"cpu": 3})
    monkeypatch.setattr(heads, "TILE", {"cpu": 600})
    parts = policy.token_scores(SEQUENCES, STARTS)
    for name in ("logprob", "entropy"):
        assert (getattr(whole, name) - getattr(parts, name)).abs().max() <= 1e-12
    assert torch.equal(whole.top1, parts.top1)


def test_nothing_to_score(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    scores = policy.token_scores([[1, 2], [3]], [2, 1])
    assert scores.logprob.shape == scores.mask.shape == scores.top1.shape == (2, 0)
    assert policy.token_scores([[1, 2], [3, 4, 5]], [2, 1]).mask.tolist() == [[False, False], [True, True]]


def test_a_first_token_cannot_be_scored(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(DataError, match="sequence 1 .*predicts a first token"):
        policy.token_scores([[1, 2], [3, 4]], [1, 0])
    with pytest.raises(DataError, match="2 sequences but 1 starts"):
        policy.token_scores([[1, 2], [3, 4]], [1])


def test_score_takes_text_as_it_stands(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    scores = policy.score(["Hello", "Hi there", [72, 105]], [" you", "!", [10, 259]])
    assert scores.ids[0] == policy.tokenizer(" you")["input_ids"]  # four bytes and no end token
    assert [len(x) for x in scores.ids] == [len(x) for x in scores.logprob] == [4, 1, 2]
    before = policy.tokenizer("Hello")["input_ids"]
    direct = policy.token_scores([before + scores.ids[0]], [5])
    assert np.abs(scores.logprob[0] - direct.logprob[0].detach().numpy()).max() < 1e-5
    assert np.abs(scores.entropy[0] - direct.entropy[0].detach().numpy()).max() < 1e-5
    assert scores.logprob[0].dtype == np.float32


def test_score_batches_do_not_matter(tmp_path, monkeypatch):
    from workbench import text_scores as module

    policy = tiny_policy(tmp_path / "m")
    prompts, completions = ["ab", "a long prompt", "c"], ["x", "yy", "a longer completion"]
    whole = policy.score(prompts, completions)
    monkeypatch.setattr(module, "SCORE_TOKENS", 1)
    parts = policy.score(prompts, completions)
    for a, b in zip(whole.logprob, parts.logprob, strict=True):
        assert np.abs(a - b).max() < 1e-5


def test_score_errors(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(DataError, match="2 prompts but 1 completions"):
        policy.score(["a", "b"], ["c"])
    with pytest.raises(DataError, match="completion 0 is neither"):
        policy.score(["a"], [{"role": "assistant"}])
    with pytest.raises(DataError, match="Prompt 0.* empty"):
        policy.score([""], ["c"])
