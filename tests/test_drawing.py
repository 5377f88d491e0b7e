"""Drawing a token from logits: frequencies, truncation as in transformers, and large vocabularies in blocks."""

import pytest
import torch

from workbench import keys
from workbench.errors import RunError
from workbench.sampling import drawing
from workbench.sampling.choices import Sampling
from workbench.sampling.drawing import draw, penalised, truncate


def test_frequencies_are_the_probabilities():
    p = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.15, 0.1])
    n = 20000
    uniform = torch.from_numpy(keys.uniforms(keys.key("frequencies"), n))
    for settings, expected in [
        (Sampling(), p),
        (Sampling(temperature=0.5), p**2 / (p**2).sum()),
        (Sampling(top_k=2), torch.tensor([0, 4 / 7, 0, 3 / 7, 0, 0])),
        (Sampling(top_p=0.8), torch.tensor([0, 0.4, 0, 0.3, 0.15, 0]) / 0.85),
        (Sampling(top_k=3, top_p=0.5), torch.tensor([0, 4 / 7, 0, 3 / 7, 0, 0])),
    ]:
        tokens, logprob, entropy = draw(p.log().expand(n, -1), uniform, settings)
        counts = torch.bincount(tokens, minlength=6).double() / n
        # four standard deviations of a share
        assert ((counts - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt() + 1e-12).all(), (
            settings
        )
        at = settings.temperature
        whole = torch.log_softmax(p.log().double() / at, -1)  # what is recorded knows no truncation
        assert torch.allclose(logprob, whole[tokens])
        assert torch.allclose(entropy, -(whole.exp() * whole).nan_to_num().sum().expand(n))


def test_inverse_cdf_by_hand():
    p = torch.tensor([0.25, 0.0, 0.25, 0.5])
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, *_ = draw(p.log().expand(6, -1), uniform, Sampling())
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    last_impossible = torch.tensor([0.5, 0.5, 0.0]).log().expand(1, -1)
    assert draw(last_impossible, uniform[-1:], Sampling())[0].tolist() == [1]
    first_impossible = torch.tensor([0.0, 0.5, 0.5]).log().expand(1, -1)
    assert draw(first_impossible, uniform[:1], Sampling())[0].tolist() == [1]


def test_truncation_equals_transformers():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = 2 * torch.randn(20, 50, generator=torch.Generator().manual_seed(3)).double()
    for top_k, top_p in [(0, 0.7), (5, 1.0), (10, 0.5), (60, 0.99), (0, 1e-9)]:
        theirs = logits
        if 0 < top_k:
            theirs = TopKLogitsWarper(top_k)(None, theirs)
        if top_p < 1:
            theirs = TopPLogitsWarper(top_p)(None, theirs)
        mine = truncate(torch.softmax(logits, -1), top_k, top_p)
        assert torch.allclose(mine / mine.sum(-1, keepdim=True), torch.softmax(theirs, -1)), (top_k, top_p)


def test_chunks_of_a_draw_do_not_matter(monkeypatch):
    logits = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    uniform = torch.from_numpy(keys.uniforms(1, 9))
    whole = draw(logits, uniform, Sampling(top_p=0.9))
    monkeypatch.setitem(drawing.CHUNK, "cpu", 60)
    assert all(
        torch.equal(a, b) for a, b in zip(whole, draw(logits, uniform, Sampling(top_p=0.9)), strict=True)
    )


def test_broken_logits_are_an_error():
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(2, 5)
        logits[1, 3] = bad
        with pytest.raises(RunError, match="not numbers"):
            draw(logits, torch.zeros(2, dtype=torch.float64), Sampling())


def logits_of(rows, width, seed=0, spread=3.0):
    return spread * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_min_p_equals_transformers():
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = logits_of(20, 50).double()
    for top_k, top_p, min_p in [(0, 1.0, 0.1), (0, 1.0, 1.0), (10, 1.0, 0.02), (30, 0.9, 0.05), (5, 0.3, 0.5)]:
        theirs = logits
        theirs = TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
        theirs = TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
        theirs = MinPLogitsWarper(min_p)(None, theirs)
        mine = truncate(torch.softmax(logits, -1), top_k, top_p, min_p)
        assert torch.allclose(mine / mine.sum(-1, keepdim=True), torch.softmax(theirs, -1)), (top_k, top_p, min_p)


def test_the_repetition_penalty_equals_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, ids = logits_of(6, 40), torch.randint(0, 40, (6, 9), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, 40, dtype=torch.bool).scatter_(1, ids, True)
    for penalty in (1.3, 0.7, 5.0):
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(penalised(logits, seen, penalty), theirs)
        greedy = Sampling(temperature=0, repetition_penalty=penalty)
        assert torch.equal(draw(logits, torch.zeros(6).double(), greedy, seen)[0], theirs.argmax(-1))


def test_frequencies_under_a_repetition_penalty():
    n, logits = 20000, torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    seen = torch.tensor([True, True, False, False, False])
    uniform = torch.from_numpy(keys.uniforms(keys.key("penalty"), n))
    settings = Sampling(temperature=0.8, repetition_penalty=1.5)
    tokens, logprob, entropy = draw(logits.expand(n, -1), uniform, settings, seen.expand(n, -1))
    expected = torch.softmax(torch.tensor([1 / 1.5, -0.5 * 1.5, 0.3, 2.0, -1.0]).double() / 0.8, -1)
    counts = torch.bincount(tokens, minlength=5).double() / n
    assert ((counts - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt()).all()
    own = torch.log_softmax(logits.double() / 0.8, -1)  # recorded is the model's own
    assert torch.allclose(logprob, own[tokens], atol=1e-6)
    assert torch.allclose(entropy, -(own.exp() * own).sum().expand(n), atol=1e-6)


@pytest.mark.parametrize("width", [5, 4096, 4097, 5000, 9 * 512, 50000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_find_the_token_of_the_whole_sum(width, dtype):
    logits = logits_of(16, width).to(dtype)
    logits[:, torch.randperm(width, generator=torch.Generator().manual_seed(2))[: width // 2]] = -torch.inf
    logits[0, 0] = -torch.inf
    logits[3] = -torch.inf
    logits[3, width - 1] = 0.0  # the only token, in the last, short block
    uniform = torch.from_numpy(keys.uniforms(7, 16))
    uniform[0], uniform[1] = 0.0, 1 - 2**-53
    tokens, logprob, entropy = draw(logits, uniform, Sampling())
    p = torch.softmax(logits.double(), -1)
    cdf, row = p.cumsum(-1), torch.arange(16)
    slack = 1e-6 if dtype == torch.float32 else 1e-12
    assert (p[row, tokens] > 0).all() and tokens[3] == width - 1
    assert (cdf[row, tokens] > uniform - slack).all() and (cdf[row, tokens] - p[row, tokens] <= uniform + slack).all()
    assert torch.allclose(logprob, p[row, tokens].log(), atol=1e-5)
    assert torch.allclose(entropy, torch.special.entr(p).sum(-1), atol=1e-5)


def test_a_float64_draw_is_that_of_the_plain_running_sum():
    logits = logits_of(400, 6000).double()
    uniform = torch.from_numpy(keys.uniforms(8, 400))
    cdf = torch.softmax(logits, -1).cumsum(-1)
    expected = torch.searchsorted(cdf, uniform[:, None], right=True)[:, 0]
    assert torch.equal(draw(logits, uniform, Sampling())[0], expected)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_of_a_large_vocabulary(top_p):
    p = torch.softmax(logits_of(6, 20000, spread=1.0), -1)  # flat: the likeliest 512 do not hold it
    ordered, index = p.sort(dim=-1, descending=True, stable=True)
    kept = ordered.double().cumsum(-1) - ordered < top_p * p.sum(-1, keepdim=True).double()
    expected = torch.zeros_like(p).scatter(-1, index, ordered.where(kept, 0.0))
    assert torch.equal(truncate(p, 0, top_p), expected)


def test_of_tokens_that_tie_only_as_many_as_needed_stay():
    assert truncate(torch.full((1, 10), 0.1), 0, 0.45).tolist()[0] == pytest.approx([0.1] * 5 + [0.0] * 5)
    assert truncate(torch.tensor([[0.2, 0.4, 0.2, 0.2]]), 0, 0.5).tolist()[0] == pytest.approx([0.2, 0.4, 0, 0])
