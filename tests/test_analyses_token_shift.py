"""Token shift: ranks and divergences under the base, of tokens that are known to be shifted."""

from __future__ import annotations

import math

import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from workbench import worker
from workbench.analyses import paired
from workbench.analyses.token_shift import KINDS, kind_of, token_shift
from workbench.errors import DataError

ROWS = [{"prompt": f"Say {i}:", "completion": f" {word}"} for i, word in enumerate(("red", "blue", "green", "zest"))]


def test_classes_by_rank():
    assert [kind_of(r) for r in (1, 2, 3, 4, 900)] == [KINDS[0], KINDS[1], KINDS[1], KINDS[2], KINDS[2]]


def test_an_adapter_that_adds_nothing_shifts_nothing(tmp_path):
    policy = tiny_policy(tmp_path / "m").attach(wb.LoRA(r=4))
    made = token_shift(policy, ["ab", "cde"], max_new_tokens=8)
    assert (made.frame["rank"] == 1).all() and (made.frame["kl"] == 0).all()
    assert made.summary["unshifted"] == 1 and len(made["tokens"]) == 0 and len(made.figure.data) >= 4


def test_a_bias_for_one_token_at_position_0_shifts_that_position(tmp_path):
    """The answer of a model that is its base but for a push to one token as the first one of an answer."""
    policy = tiny_policy(tmp_path / "m")
    other = wb.load(tmp_path / "m", dtype="float32", device="cpu")
    prompt = policy.tokens_of("ab", 0).ids
    token = int(policy.logits(torch.tensor([prompt]), 1)[0, -1].argsort(descending=True)[20])
    rest = [*prompt, token]
    for _ in range(5):
        rest.append(int(policy.logits(torch.tensor([rest]), 1)[0, -1].argmax()))
    made = token_shift(policy, ["ab"], [rest[len(prompt) :]], base=other)
    assert made.frame["kind"].tolist() == ["shifted"] + ["unshifted"] * 5
    assert made.frame["rank"][0] == 21 and made["tokens"]["shifted"].tolist() == [1]
    positions = made["positions"]
    assert positions["shifted"].iloc[0] == 1 and (positions["shifted"].iloc[1:] == 0).all()


def test_rank_kl_and_logprobs_are_those_of_the_logits(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    made = token_shift(policy, ["ab"], max_new_tokens=6)
    ids = policy.tokens_of("ab", 0).ids + made.frame["id"].tolist()
    base, tuned = (x[0].log_softmax(-1) for x in paired.pair(policy).logits([ids]))
    start = len(ids) - len(made.frame)
    for t, row in enumerate(made.frame.itertuples()):
        p, q = base[start + t - 1], tuned[start + t - 1]
        assert row.rank == 1 + int((p > p[row.id]).sum())
        assert row.kl == pytest.approx(float((q.exp() * (q - p)).sum()), abs=1e-5)
        assert (row.logprob, row.base_logprob) == pytest.approx((float(q[row.id]), float(p[row.id])), abs=1e-5)
        assert row.id == int(q.argmax())
    assert made.summary["KL per token"] > 0 and math.isclose(sum(made.summary[k] for k in KINDS), 1)


def test_borrowed_tokens_come_from_the_nearest_rows_that_have_them(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    made = token_shift(policy, ["Say 3:"], [" zq"], rows=ROWS, nearest=2)
    kinds = dict(zip(made.frame["token"], made.frame["kind"], strict=True))
    borrowed = made["borrowed"]
    assert kinds["z"] == "shifted"  # a random model's choice, which the adapter does not change
    assert list(borrowed[borrowed["token"] == "z"]["from_row"]) == [3]
    assert not (borrowed["token"] == "q").any()  # no row has one
    near = worker.call(paired.means, paired.pair(policy).base, ["Say 3:", "Say 3:", "other"])
    assert torch.equal(near[0], near[1]) and near.shape == (3, 32)


def test_what_does_not_go_is_refused(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    with pytest.raises(DataError, match="no prompts"):
        token_shift(policy, [])
    with pytest.raises(DataError, match="all completions are empty"):
        token_shift(policy, ["a"], [""])
    with pytest.raises(DataError, match="completion"):
        token_shift(policy, ["a"], rows=[{"prompt": "x"}])
