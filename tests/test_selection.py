"""Scores and selectors: the cards' numbers, and what every selection keeps."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from workbench import adapters
from workbench.errors import DataError, SettingError
from workbench.likelihoods import choices, nll, nll_alone, nll_of_base
from workbench.merging.fusion import GRID  # noqa: F401  the layers may import each other
from workbench.selection import (
    abstention,
    clear,
    contrast,
    difficulty,
    diversify,
    gradients,
    learnability,
    parts,
    scores,
)
from workbench.selection.cache import Cache, version_of
from workbench.selection.embeddings import embed

ROWS = [{"prompt": f"Say {i}:", "completion": f" {'word ' * (1 + i % 5)}{i}", "source": "ab"[i % 2]} for i in range(12)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("m") / "m", lora=True)


# -- selectors


def test_selectors_by_hand():
    assert parts.top_k([0.1, math.nan, 3.0, 0.1, 2.0], 3) == [2, 4, 0]
    with pytest.raises(DataError, match="Only 1 of 2"):
        parts.top_k([1.0, math.nan], 2)
    assert parts.threshold([1, 3, 2], 2) == [1, 2]
    assert sorted(parts.random(10, 10, 0)) == list(range(10)) and parts.random(10, 4, 0) == parts.random(10, 10, 0)[:4]
    assert parts.random(10, 4, 0) != parts.random(10, 4, 1)


def test_a_level_that_runs_short_is_filled_from_the_nearest():
    bins = ["easy"] * 5 + ["mid"] * 1 + ["hard"] * 9
    picked, notes = parts.quota_by_bin(bins, {"easy": 2, "mid": 4, "hard": 2}, seed=0)
    counts = {name: sum(bins[i] == name for i in picked) for name in ("easy", "mid", "hard")}
    assert counts == {"easy": 5, "mid": 1, "hard": 2} and len(set(picked)) == 8
    assert notes == ["3 rows of 'easy' stand in for 'mid', which ran short."]


def test_the_curriculum_of_the_card():
    assert difficulty.quotas_of(150, (5, 4, 3, 2, 1)) == {1: 50, 2: 40, 3: 30, 4: 20, 5: 10}
    assert sum(difficulty.quotas_of(7, (1, 1, 1, 1, 1)).values()) == 7
    assert difficulty.levels([1.0, 0.81, 0.79, 0.5, 0.21, 0.0]) == [1, 1, 2, 3, 4, 5]
    rows = ROWS * 20
    grades = [1 + i % 5 for i in range(240)]
    made = difficulty.mix(rows, grades, 90)
    assert np.bincount([grades[i] for i in made.indices])[1:].tolist() == [30, 24, 18, 12, 6]
    for wrong in ({"grades": [1]}, {"shares": (1, 2)}, {"k": 0}):
        with pytest.raises(SettingError):
            difficulty.mix(**({"rows": rows, "grades": grades, "k": 10} | wrong))


def test_levels_are_how_this_model_does():
    tiny = wb.load("tiny")
    task = wb.task("sums", size=6)
    found = difficulty.grade(tiny, task, n=4, max_new_tokens=16)
    right = wb.evaluate(tiny, task, n=4, max_new_tokens=16).rollouts
    rate = np.asarray(right.rewards["correct"]).reshape(6, 4).mean(1)
    assert found == difficulty.levels(rate) and len(set(found)) > 1
    graded = difficulty.grade(tiny, task, n=4, process=lambda prompts, texts: [0.0] * len(texts), max_new_tokens=16)
    assert [level == 1 for level in graded] == [r > 0 for r in rate] and max(graded) == 5
    with pytest.raises(SettingError, match="process"):
        difficulty.grade(tiny, task, n=2, process=lambda prompts, texts: [0.5], max_new_tokens=8)


def test_k_center_goes_to_the_corners():
    centre = np.random.default_rng(0).normal(0, 0.1, (96, 2))
    corners = np.array([[9.0, 9], [-9, 9], [9, -9], [-9, -9]])
    picked = parts.k_center(np.concatenate([centre, corners]), 4, start=[0])
    assert sorted(picked) == [96, 97, 98, 99]


def test_k_means_finds_what_is_apart():
    rng = np.random.default_rng(1)
    blobs = np.concatenate([rng.normal(c, 0.1, (20, 3)) for c in (0, 5, 10)])
    labels = parts.k_means(blobs, 3, seed=0)
    assert [len(set(labels[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1] and len(set(labels)) == 3
    assert np.array_equal(labels, parts.k_means(blobs, 3, seed=0))
    assert len(set(parts.k_means(np.zeros((5, 2)), 3, seed=0))) == 1  # all the same: one cluster


def test_rows_of_a_cluster_are_drawn_by_weight():
    drawn = [parts.cluster_quota([0, 0], {0: 1}, [3.0, 1.0], seed) for seed in range(400)]
    share = np.mean([picked == [0] for picked in drawn])
    assert abs(share - 0.75) < 0.09
    assert parts.cluster_quota([0, 0, 1], {0: 2, 1: 1}, [1, 1, 1], 0, taken=[0]) == [1, 2]


# -- scores


def test_likelihoods_are_means_over_tokens(policy):
    pool = wb.rows(ROWS)
    values = nll(policy, pool)
    one = policy.score([ROWS[3]["prompt"]], [ROWS[3]["completion"]]).logprob[0]
    assert values[3] == pytest.approx(-one.mean(), rel=1e-6)
    base = nll_of_base(policy, pool)
    with adapters.without(policy.model):
        assert np.allclose(base, nll(policy, pool), atol=1e-6)
    assert not np.allclose(base, values)


def test_a_model_that_ignores_the_prompt_has_ifd_1(policy):
    """A trunk without attention over other tokens is one that reads each token alone."""
    model = policy.model.get_base_model().model
    own = [layer.self_attn.forward for layer in model.layers]
    for layer in model.layers:
        layer.self_attn.forward = lambda hidden_states, **inputs: (torch.zeros_like(hidden_states), None)
    try:
        given, alone = nll_alone(policy, wb.rows(ROWS))
    finally:
        for layer, forward in zip(model.layers, own, strict=True):
            layer.self_attn.forward = forward
    # the first token differs in what comes before it, the prompt's last token or the start token
    assert policy.tokenizer.bos_token_id is not None
    later = [len(policy.tokenizer(r["completion"], add_special_tokens=False)["input_ids"]) for r in ROWS]
    assert np.all(np.abs(given - alone) * np.array(later) < 12) and not np.allclose(given, alone)


def test_ifd_discards_what_the_prompt_makes_unlikelier(policy, monkeypatch):
    pool = wb.rows(ROWS)
    monkeypatch.setattr(scores, "nll_alone", lambda policy, pool: (np.arange(1.0, 13), np.full(12, 6.0)))
    made = scores.pick(policy, pool, 3, by="ifd")
    assert made.indices == [5, 4, 3] and made.scores[5] == 1.0 and math.isnan(made.scores[6])
    assert "6 rows are discarded" in made.notes[0]


def test_length_is_of_tokens_and_knows_no_padding(policy):
    pool = wb.rows(ROWS)
    both, answer = scores.length(policy, pool), scores.length(policy, pool, response_only=True)
    ids = policy.tokenizer(ROWS[4]["completion"], add_special_tokens=False)["input_ids"]
    assert answer[4] == len(ids) and both[4] == len(ids) + len(policy.tokens_of(ROWS[4]["prompt"], 0).ids)
    assert np.array_equal(scores.length(policy, wb.rows(ROWS[:3])), both[:3])


def test_selectit_by_hand():
    p = np.array([0.1, 0.1, 0.1, 0.6, 0.1])
    assert scores._rated(p) == pytest.approx(4 * 0.5)
    assert scores._rated(np.full(5, 0.2)) == 0


def test_every_score_picks_and_is_compared_with_chance(policy):
    for by in scores.SCORES:
        options = {"validation": ROWS[:2]} if by == "less" else {}
        made = scores.pick(policy, ROWS, 4, by=by, seed=1, **options)
        assert len(set(made.indices)) == len(made) == 4 and len(made.rows()) == 4, by
        assert made.chance() == parts.random(12, 4, 1)
    report = made.report()
    assert report.summary["picked"] == 4 and set(report.frame["rows"]) == {"picked", "random", "pool"}
    assert report.figure.data
    with pytest.raises(SettingError, match="Did you mean 'length'"):
        scores.pick(policy, ROWS, 2, by="lenght")
    with pytest.raises(SettingError, match="from 1 to 12"):
        scores.pick(policy, ROWS, 13)
    with pytest.raises(SettingError, match="validation"):
        scores.pick(policy, ROWS, 2, by="less")
    with pytest.raises(DataError, match="prompt"):
        scores.pick(policy, [{"text": "a"}], 1, by="ce")


def test_zip_takes_what_compresses_least():
    rng = np.random.default_rng(0)
    noise = "".join(chr(97 + c) for c in rng.integers(0, 26, 400))
    rows = [{"text": "abcabcabc" * 40}, {"text": noise}, {"text": noise[::-1]}, {"text": noise}]
    assert set(scores.compress(None, wb.rows(rows), 2, 0)) in ({1, 2}, {2, 3})


def test_less_finds_rows_that_pull_the_same_way(policy):
    same = gradients.agreement(policy, wb.rows(ROWS), validation=[ROWS[7]])
    assert int(same.argmax()) == 7 and same[7] == pytest.approx(1.0, abs=1e-5)
    exact = gradients.projected(policy, wb.rows(ROWS[:3]), size=10**6)
    small = gradients.projected(policy, wb.rows(ROWS[:3]), size=2048)
    exact, small = (t @ t.T for t in (exact, small))
    assert (exact - small).abs().max() < 0.15 * exact.abs().max()


def test_embeddings_do_not_know_their_batch(policy):
    pool = wb.rows(ROWS)
    whole = embed(policy, pool)
    assert whole.shape == (12, 32)
    for i in (0, 4):
        assert np.allclose(embed(policy, wb.rows([ROWS[i]]))[0], whole[i], atol=1e-5)


# -- methods


def test_learnability_of_the_card():
    base, ref = [2, 4, 1], [1, 3, 0.9]
    assert learnability.scores_of(base, ref).tolist() == pytest.approx([0.5, 0.25, 0.1])
    assert learnability.scores_of(base, ref, normalised=False).tolist() == pytest.approx([1, 1, 0.1])


def test_rows_without_rhyme_or_reason_are_learnt_least(tmp_path):
    policy = wb.load("tiny").attach(wb.LoRA(r=8))
    rng = np.random.default_rng(0)
    plain = [{"prompt": f"Q: {i}\nA:", "completion": " it is so\n#### 7"} for i in range(8)]
    texts = ["".join(chr(int(c)) for c in rng.integers(33, 120, 18)) for _ in range(8)]
    noise = [{"prompt": f"Q: {i}\nA:", "completion": text} for i, text in enumerate(texts)]
    made = learnability.learnability(policy, plain + noise, 8)
    assert made.notes and "adds nothing" in made.notes[0]
    list(wb.sft(policy, plain + noise, steps=8, batch_size=16, lr=5e-3, out=tmp_path / "ref"))
    made = learnability.learnability(policy, plain + noise, 8)
    assert sum(i < 8 for i in made.indices) >= 7 and not made.notes
    with pytest.raises(SettingError, match="no.*adapter|without its adapter"):
        learnability.learnability(wb.load("tiny"), plain, 2)


def test_semantic_entropy_of_the_card():
    assert abstention.entropy_of([5, 3, 2]) == pytest.approx(1.0297, abs=5e-5)
    assert abstention.entropy_of([1] * 10) == pytest.approx(2.3026, abs=5e-5)
    assert abstention.entropy_of([10]) == 0
    assert abstention.distance(750, 1750, 2500) == pytest.approx(0.300, abs=5e-4)
    assert abstention.distance(3, 7, 2500) == pytest.approx(0.705, abs=5e-4)


def test_meanings_are_asked_both_ways():
    asked = []

    def same(question, a, b):
        asked.append((a, b))
        return a[0] == b[0]

    assert abstention.sizes("q", ["ab", "ac", "b", "bc", "a"], same) == [3, 2]
    assert ("ab", "ac") in asked and ("ac", "ab") in asked
    one_way = abstention.sizes("q", ["a", "b"], lambda question, a, b: a < b)
    assert one_way == [1, 1]


def test_rows_that_abstain(policy):
    graded = abstention.grade(policy, ["Say 1:", "Say 2:"], m=4, max_new_tokens=4, same=lambda q, a, b: q == "Say 1:")
    assert graded.entropy.tolist() == pytest.approx([0, math.log(4)])
    rows = graded.rows(tau=1.0).to_list()
    assert [row["completion"] for row in rows] == [graded.answers[0], abstention.ABSTAIN]
    with pytest.raises(SettingError, match="m=1"):
        abstention.grade(policy, ["a"], m=1)


def test_the_cache_draws_only_what_it_has_not(policy, tmp_path):
    cache = Cache(policy, tmp_path / "cache")
    first = cache.rollouts(["Hello", "a"], 2, max_new_tokens=6)
    assert cache.drawn == 4
    more = cache.rollouts(["a", "Hello", "a"], 3, max_new_tokens=6)
    assert cache.drawn == 6 and more.text[0:2] == first.text[2:4] and more.text[3:5] == first.text[0:2]
    assert more.text[6:9] == more.text[0:3]
    again = Cache(policy, tmp_path / "cache")
    assert again.rollouts(["Hello"], 3, max_new_tokens=6).ids == more.ids[3:6] and again.drawn == 0
    again.rollouts(["Hello"], 1, max_new_tokens=6, temperature=0.5)
    assert again.drawn == 1
    before = version_of(policy)
    other = {name: p + 0.1 for name, p in policy.params().items()}
    with policy.holding(other):
        assert version_of(policy) != before
        again.rollouts(["Hello"], 1, max_new_tokens=6)
    assert again.drawn == 2 and version_of(policy) == before


def test_confidence_adds_up(policy, monkeypatch):
    rows = [{"prompt": "q", "completion": " yes"}, {"prompt": "q", "completion": " no"}]
    monkeypatch.setattr(clear, "reflected", lambda policy, prompts, answers: np.array([1.0, 0.5]))

    class Said:
        def rollouts(self, prompts, k, seed, **sampling):
            return type("R", (), {"text": ["yes", "Yes.", "no", "yes"] * 2})

    made = clear.confidence(policy, rows, k=4, cache=Said())
    assert made.tolist() == pytest.approx([0.7 * 0.75 + 0.3 * 1.0, 0.7 * 0.25 + 0.3 * 0.5])


def test_clear_keeps_corrects_and_drops(policy, monkeypatch):
    rows = [{"prompt": f"q{i}", "completion": f"c{i}"} for i in range(3)]
    assert clear.filtered(rows, [0.2, 0.9, 0.5]).indices == [1, 2]
    monkeypatch.setattr(clear, "preferred", lambda *args: np.array([0.9, 0.9, 0.1]))
    made = clear.corrected(policy, policy, rows, [0.1, 0.9, 0.2], gamma=0.5, max_new_tokens=4)
    assert [row["source"] for row in made] == ["corrected", "corrected"]
    same = clear.corrected(policy, policy, rows, [0.1, 0.9, 0.2], gamma=0.0, eta=1.0, max_new_tokens=4)
    assert [{k: v for k, v in row.items() if k != "source"} for row in same] == rows
    with pytest.raises(SettingError, match="3 rows and 1 scores"):
        clear.filtered(rows, [0.5])


def test_a_preference_is_turned_round_with_the_answers(policy):
    one = clear.preferred(policy, ["q"], ["good"], ["bad"])
    other = clear.preferred(policy, ["q"], ["bad"], ["good"])
    assert one[0] == pytest.approx(1 - other[0], abs=1e-9)
    assert np.allclose(choices(policy, ["a", "b"], ("A", "B", "C")).sum(1), 1)


def test_the_weights_of_the_card():
    assert diversify.scaled([0.5, 0.5], [0.6, 0.2]).tolist() == pytest.approx([0.75, 0.25])
    made = diversify.reweighted(np.full(2, 0.5), [1.0, 1.0, -1.0], [0, 0, 1])
    assert made[0] == pytest.approx(math.exp(1) / (math.exp(1) + math.exp(-1)))


def test_clusters_with_spoilt_answers_lose_their_budget(policy, monkeypatch):
    rows = [{"prompt": f"{'ab'[i % 2] * 4} {i}", "completion": " good" if i % 2 else " spoilt"} for i in range(24)]
    vectors = np.array([[float(i % 2), 0.0] for i in range(24)])
    monkeypatch.setattr(diversify, "embed", lambda policy, pool: vectors)

    def reward(prompts, answers):
        return [{" good": 1.0, " spoilt": -1.0}.get(answer, 0.0) for answer in answers]

    tuned = []

    def tune(picked):
        tuned.append(len(picked))
        return policy

    made, history = diversify.refined(policy, rows, 9, tune, reward, clusters=2, rounds=3, max_new_tokens=4)
    assert len(set(made.indices)) == 9 and tuned == [3, 6, 9]
    spoilt = 0 if diversify.parts.k_means(vectors, 2, 0)[0] == 0 else 1
    assert [round(float(w[spoilt]), 3) for w in history][0] == 0.5 and history[-1][spoilt] < 0.2
    with pytest.raises(SettingError, match="rounds=10"):
        diversify.refined(policy, rows, 9, tune, reward, clusters=2, rounds=10)
    with pytest.raises(SettingError, match="clusters=99"):
        diversify.by_quality(policy, rows, 9, clusters=99)
    plain = diversify.by_quality(policy, rows, 8, clusters=2)
    assert sorted(i % 2 for i in plain.indices) == [0] * 4 + [1] * 4


def test_contrast_of_the_card():
    base, tuned = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.5, 0.49, 0.01], [0.45, 0.40, 0.15]))
    assert int(contrast.contrasted(tuned, base, 0.1).argmax()) == 2
    assert int(contrast.contrasted(tuned, base, 0.5).argmax()) == 0
    assert contrast.contrasted(tuned, tuned, 0.1).max() == 0


def test_what_is_new_is_found(tmp_path):
    policy = wb.load("tiny").attach(wb.LoRA(r=8))
    usual = [{"prompt": "Q:", "completion": f" {i}+{i}={2 * i}\n#### {2 * i}"} for i in range(10, 29)]
    odd = [{"prompt": "Q:", "completion": " zzz yyy zzz xxx"}]
    list(wb.sft(policy, usual + odd, steps=25, batch_size=20, lr=1e-2, out=tmp_path / "run"))
    scores_of = contrast.novelty(policy, usual + odd)
    assert int(scores_of.argmax()) == 19
    how = {"n": 24, "prompt": "Q:", "max_new_tokens": 10, "alpha": 0.01}  # one row in twenty: below 0.1 of the best
    texts = contrast.generate(policy, **how)
    plain = policy.sample(["Q:"], n=24, max_new_tokens=10).text
    new, drawn = (sum("z" in text or "y" in text for text in found) for found in (texts, plain))
    assert new > 2 * drawn and new >= 18 and texts == contrast.generate(policy, **how)
    for wrong in ({"alpha": 0.0}, {"n": 0}):
        with pytest.raises(SettingError):
            contrast.generate(policy, **wrong)
    with pytest.raises(SettingError, match="no adapter"):
        contrast.generate(wb.load("tiny"))
