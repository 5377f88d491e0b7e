"""Memory-R+: bonuses from what earlier steps left, read from the store and kept nowhere."""

from __future__ import annotations

import types

import numpy as np
import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_weights, letters, rows_for, weights
from workbench.errors import SettingError
from workbench.launch import launch
from workbench.methods.actors import memory_r_plus as method
from workbench.methods.actors.memory_r_plus import Memory, MemorySettings, bonuses, scaled
from workbench.rewards import ngrams

SMALL = dict(steps=3, prompts_per_step=3, group_size=3, max_new_tokens=6, lr=1e-2, seed=3, explore_start=2)
AXES = {"east": (1.0, 0.0), "north": (0.0, 1.0), "q east": (1.0, 0.1), "q north": (0.1, 1.0)}


@pytest.fixture(autouse=True)
def axes(monkeypatch):
    """An encoder whose vectors are known; other texts lie between."""
    made = lambda texts: np.array([AXES.get(text, (1.0, 1.0)) for text in texts])  # noqa: E731
    monkeypatch.setitem(ngrams.ENCODERS, "axes", made)


def test_vectors_of_ngrams():
    same, other, near, empty = ngrams.ngram_vectors(["the answer is 7", "Zebra!", "The  answer is 8", " "])
    assert np.linalg.norm([same, other, near], axis=1) == pytest.approx([1, 1, 1]) and not empty.any()
    assert same @ near > 0.7 > 0.3 > same @ other
    assert (ngrams.ngram_vectors(["the answer is 7"])[0] == same).all()


def settings(**changes):
    return MemorySettings(encoder="axes", **changes)


def test_near_successes_and_unlike_failures():
    memory = Memory({"q east": ["east", "north"]}, {"q east": ["east"], "q north": ["north"]})
    made = bonuses(memory, ["q east"] * 3, ["east", "north", "both"], settings())
    # centroid (0.5, 0.5): "both" points there, at length 1
    assert made["exploit"] == pytest.approx([-(0.5**0.5), -(0.5**0.5), -(1 - 0.5**0.5)])
    assert made["explore"] == pytest.approx([0, 1, 1 - 0.5**0.5])  # the failure itself: 0
    several = Memory({}, {"q east": ["east", "north"]})
    assert bonuses(several, ["q east"], ["east"], settings())["explore"] == pytest.approx([0])  # the nearest counts
    assert bonuses(Memory({"q east": ["east"]}), ["q east"], ["east"], settings())["exploit"] == [
        0.0
    ]  # the centroid: most


def test_the_nearest_questions_are_read():
    memory = Memory({"q north": ["north"]}, {"q east": ["east"]})
    one = bonuses(memory, ["q east"], ["east"], settings(neighbours=1))
    assert one["exploit"] == [None] and one["explore"] == pytest.approx([0])
    two = bonuses(memory, ["q east"], ["east"], settings(neighbours=2))
    assert two["exploit"] == pytest.approx([-(2**0.5)])
    assert bonuses(Memory(), ["q"], ["east"], settings()) == {"exploit": [None], "explore": [None]}


def test_scaling_is_by_the_last_values_and_those_of_the_step():
    assert scaled([0.0, 1.0, None], [-9.0, 3.0, -1.0], window=2) == pytest.approx([0.25, 0.5, 0])
    assert scaled([2.0, 2.0], [], window=5) == pytest.approx([0, 0])
    assert scaled([None], [], window=5).tolist() == [0]
    assert scaled([1.0], [5.0, 0.0], window=0 + 1) == pytest.approx([1])


def stored(texts, solved, question="q"):
    columns = {"memory_r_plus/solved": solved, "memory_r_plus/exploit": [None] * len(texts)}
    columns["memory_r_plus/explore"] = [0.5, *[None] * (len(texts) - 1)]
    return types.SimpleNamespace(prompt_text=[question] * len(texts), text=texts, columns=columns)


def test_the_oldest_drop_out():
    memory = Memory()
    memory.add(stored(["a", "b", "c", "d"], [True, False, True, None]), 2)
    memory.add(stored(["e", "f"], [True, True]), 2)
    assert memory.successes == {"q": ["e", "f"]} and memory.failures == {"q": ["b"]}
    assert memory.values == {"exploit": [], "explore": [0.5, 0.5]}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


@pytest.fixture
def make_run(policy, tmp_path):
    def made(out="run", name="memory_r_plus", rewards=(letters,), **changes):
        task = wb.Task(rows_for("grpo", 3), rewards=list(rewards))
        return launch(name, policy.reset(), task, tmp_path / out, None, SMALL | changes, None)

    return made


def some_right(completions, **kwargs):
    return [float(sum(map(ord, text)) % 3 == 0) for text in completions]


def test_bonuses_of_a_run_are_those_of_its_stored_steps(make_run):
    run = make_run(rewards=(some_right,), exploit_weight=2.0)
    first, second, third = list(run)
    assert not first.rollouts.rewards["exploit"].any() and not first.rollouts.rewards["explore"].any()
    memory = Memory()
    for step in (first, second):
        memory.add(step.rollouts, 100)
    assert sum(map(len, [*memory.successes.values(), *memory.failures.values()])) == 18
    texts, questions = third.rollouts.text, third.rollouts.prompt_text
    raw = bonuses(memory, questions, texts, MemorySettings())
    task = np.array(some_right(texts))
    for name, weight in (("exploit", 2.0), ("explore", 1.0)):
        wanted = weight * scaled(raw[name], memory.values[name], 100)
        assert third.rollouts.rewards[name] == pytest.approx(wanted) and wanted.any()
        task = task + wanted
    assert third.rollouts.reward == pytest.approx(task)


def test_the_memory_follows_a_rewind(make_run, policy):
    run = make_run(steps=4)
    after = [weights(run)] + [weights(run) for _ in run]
    run.rewind(1)
    context = run.engine._context_for(run.engine.live)
    written = method.remembered(context, 2)
    books = [*written.successes.values(), *written.failures.values()]
    assert sorted(text for book in books for text in book) == sorted(run.rollouts(1)["completion"])
    assert len(method.remembered(context, 1).successes) == 0
    run.run()
    assert_same_weights(weights(run), after[4])
    reach = make_run("short", steps=3, memory_steps=1)
    reach.run()
    context = reach.engine._context_for(reach.engine.live)
    assert sum(map(len, method.remembered(context, 4).successes.values())) <= 9


def test_exploring_begins_later(make_run):
    run = make_run(explore_start=3)
    first, second, third = list(run)
    assert not second.rollouts.rewards["explore"].any() and third.rollouts.rewards["explore"].any()
    assert any(value is not None for value in second.rollouts.columns["memory_r_plus/explore"])


def explore(completions, **kwargs):
    return [0.0] * len(completions)


def test_what_does_not_go(make_run):
    with pytest.raises(SettingError, match="encoder='ngram' is not there. Did you mean 'ngrams'"):
        make_run(encoder="ngram")
    with pytest.raises(SettingError, match="a reward named 'explore'"):
        make_run(rewards=(explore,))
