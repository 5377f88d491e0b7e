"""The sampling grid: estimators against brute force over all sets of samples, and grids of stubs that are known."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import combinations

import numpy as np
import pytest

import workbench as wb
from tests.models import PromptTokens, tiny_policy, tiny_tokenizer
from workbench import worker
from workbench.analyses import grid as grids
from workbench.analyses.fractured_sampling import fractured_sampling, of_grid
from workbench.analyses.grid import Grid, Plan, Thinking, best_of, cuts_of, early_stop, pass_at, vote_entropy, votes
from workbench.analyses.paired import Side
from workbench.errors import DataError, SettingError
from workbench.sampling.rollouts import Rollouts


def exact(completions, answer, **columns):
    return [float(said(text) == str(right)) for text, right in zip(completions, answer, strict=True)]


def said(text):
    return text.rpartition("#")[2] or None if "#" in text else None


exact.extract = said
TASK = wb.Task([{"prompt": f"{i}:", "answer": i} for i in range(3)], rewards=[exact])


class Stub:
    """A policy whose chains are eight letters, and which answers by what `reply(question, thought)` says."""

    def __init__(self, reply):
        self.tokenizer, self.reply, self.asked = tiny_tokenizer(), reply, []

    def at_rest(self):
        return nullcontext()

    def tokens_of(self, prompt, index):
        return PromptTokens(prompt, self.tokenizer(prompt)["input_ids"])

    def sample_prompts(self, prompts, n, *, keys, check, max_new_tokens, temperature, **drawing):
        texts = []
        for prompt in prompts:
            assert self.tokenizer.decode(prompt.ids) == prompt.text
            question, _, thought = prompt.text.partition(":")
            self.asked.append(thought)
            whole = not thought
            answer = self.reply(question, "abcdefgh" if whole else thought.rstrip("#"))
            texts += [f"abcdefgh#{answer}" if whole else str(answer)] * n
        ids = [self.tokenizer(text)["input_ids"] for text in texts]
        logprob = [np.full(len(i), -1.0, np.float32) for i in ids]
        return Rollouts([""] * len(texts), texts, ids=ids, logprob=logprob)


def test_pass_and_votes_are_means_over_all_sets():
    rng = np.random.default_rng(0)
    correct = (rng.random((2, 6, 1, 1)) < 0.4).astype(float)
    scores = rng.integers(0, 3, correct.shape) / 2
    answers = np.where(correct > 0, "right", rng.choice(["a", "b"], correct.shape))
    grid = Grid.of(correct, answers, scores)
    for k in (1, 2, 3, 6):
        sets = [[grid.correct[q, list(some), 0, 0] for some in combinations(range(6), k)] for q in range(2)]
        assert pass_at(grid, k, "n") == pytest.approx(np.mean([[s.max() > 0 for s in some] for some in sets]))
        best = []
        for q in range(2):
            for some in combinations(range(6), k):
                mine = scores[q, list(some), 0, 0]
                best.append(correct[q, list(some), 0, 0][mine == mine.max()].mean())
        assert votes(grid, k, "n")["best"] == pytest.approx(np.mean(best), abs=1e-12)
    assert votes(grid, 1, "n")["majority"] == pytest.approx(correct.mean())


def test_best_of_k_by_hand():
    assert best_of([3, 2, 1], [0, 1, 0], 2) == pytest.approx(1 / 3)  # only {2, 1} has the right one on top
    assert best_of([3, 2, 1], [1, 0, 0], 2) == pytest.approx(2 / 3)
    assert best_of([1, 1], [1, 0], 2) == 0.5 and best_of([1, 1], [1, 0], 1) == 0.5


def test_votes_of_given_answers():
    answers = np.array(["x", "x", "y", None], dtype=object).reshape(1, 4, 1, 1)
    grid = Grid.of([[[[0]], [[0]], [[1]], [[0]]]], answers, np.array([1, 1, 3, 9.0]).reshape(1, 4, 1, 1))
    found = votes(grid, 4, "n")
    assert found["majority"] == 0 and found["weighted"] == 1  # y has the larger sum, x the more votes
    assert found["entropy"] == pytest.approx(-(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3))
    assert vote_entropy(["a", "a"]) == 0 and vote_entropy([None]) == 0
    assert vote_entropy("abcd") == 2


def test_the_axes_of_a_grid():
    correct = np.zeros((1, 2, 4, 3))
    correct[0, 0, 1, 0] = 1  # the second cut of the first chain
    correct[0, 1, 3, 2] = 1  # the last answer to the whole second chain
    grid = Grid.of(correct)
    assert [cuts_of(4, k) for k in (1, 2, 4)] == [[3], [1, 3], [0, 1, 2, 3]]
    assert [cuts_of(16, k) for k in (4, 5)] == [[3, 7, 11, 15], [2, 5, 8, 11, 15]]
    assert [pass_at(grid, k, "H") for k in (1, 2, 4)] == [0, 0.5, 0.5]
    assert pass_at(grid, 1, "m") == pytest.approx(1 / 6) and pass_at(grid, 3, "m") == 0.5
    assert pass_at(grid, 1, "n") == 0 and pass_at(grid, 1, "n", cuts=2, answers=1) == 0.5
    assert pass_at(grid, 2, "n", cuts=4, answers=3) == 1
    assert grid.tokens(2) == 2 and grid.tokens(1, [1, 3], 1) == 2 and grid.tokens(1, (-1,), 3) == 3
    for bad, words in (((5, "H"), "4 samples along"), ((1, "x"), "give 'n'")):
        with pytest.raises(SettingError, match=words):
            pass_at(grid, *bad)
    with pytest.raises(DataError, match="four axes"):
        Grid.of(np.zeros((2, 3)))


def test_early_stopping():
    correct = np.zeros((1, 1, 4, 1))
    correct[0, 0, 2:] = 1
    answers = np.array(["a", None, "b", "b"], dtype=object).reshape(1, 1, 4, 1)
    grid = Grid.of(correct, answers)
    grid.prefix_tokens[0, 0], grid.chain_tokens[:] = [5, 10, 15, 20], 22
    assert early_stop(grid)["tokens"] == 22 + 3  # nothing agrees before the end
    answers[0, 0, 1, 0] = "a"
    found = early_stop(Grid(correct, answers, grid.chain_tokens, grid.answer_tokens, grid.prefix_tokens, grid.scores))
    assert found["tokens"] == 10 + 2 and found["accuracy"] == 0 and found["full_accuracy"] == 1


def test_a_chain_that_is_needed_up_to_its_middle():
    stub = Stub(lambda question, thought: question if len(thought) >= 4 else "?")
    plan = Plan(n=2, cuts=4, answers=2, thinking=Thinking("#", "#"))
    found = worker.call(grids.sample, Side(stub, "stub"), TASK, plan)
    assert found.correct.mean((0, 1, 3)).tolist() == [0, 1, 1, 1]
    assert stub.asked[3:7] == ["ab#", "abcd#", "abcdef#", "ab#"]
    assert found.texts[2, 0, 1, 0] == "abcd#2" and found.answers[2, 0, 0, 0] == "?"
    assert found.prefix_tokens[0, 0].tolist() == [2, 4, 6, 8] and found.chain_tokens[0, 0] == 10
    assert found.scores[0, 0, 0, 0] == pytest.approx(np.exp(-1))
    made = of_grid(found)
    assert made["cuts"]["accuracy"].tolist() == [0, 1, 1, 1] and made["cuts"]["agreement"].tolist() == [0, 1, 1, 1]
    assert made["questions"].shape == (3, 4) and made.figure.data[-1].z.shape == (3, 4)


def test_one_cut_and_one_answer_are_ordinary_sampling(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    task = wb.Task([{"prompt": f"{i}:", "answer": i} for i in range(4)], rewards=[vowels])
    plain = {"n": 4, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "seed": 3}
    made = fractured_sampling(policy, task, cuts=1, answers=1, **plain)
    grid = made.grid
    assert grid.shape == (4, 4, 1, 1) and 0 < grid.correct.mean() < 1
    verdicts = [vowels([text])[0] for text in grid.texts.ravel()]
    assert grid.correct.ravel().tolist() == verdicts
    along = made.frame[made.frame["axis"] == "n"].set_index("k")
    for k in (1, 2, 4):
        sets = [grid.correct[q].ravel()[list(some)].max() for q in range(4) for some in combinations(range(4), k)]
        assert along["pass"][k] == pytest.approx(np.mean(sets))
    assert along["tokens"][2] == pytest.approx(2 * grid.chain_tokens.mean())
    same = fractured_sampling(policy, task, cuts=2, answers=2, mark="e", **plain).grid
    assert (same.texts[:, :, -1, 0] == grid.texts[:, :, 0, 0]).all()  # more cells leave the chains as they are


def vowels(completions, **columns):
    return [float(len(text) % 2) for text in completions]


def test_settings_and_tasks_that_do_not_go(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match="takes a Task"):
        fractured_sampling(policy, [{"prompt": "a"}])
    with pytest.raises(SettingError, match="cuts"):
        fractured_sampling(policy, TASK, cuts=0)
    with pytest.raises(SettingError, match="mixed"):
        fractured_sampling(policy, TASK, cuts=2, mixed=(3, 1))
    with pytest.raises(SettingError, match="mark"):
        fractured_sampling(policy, TASK, mark="")
