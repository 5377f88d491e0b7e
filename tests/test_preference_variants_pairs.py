"""What pairs are built of, ThinkPO, and Chain of Preference Optimization."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.models import END, EOS, tiny_policy, tiny_tokenizer
from tests.runs import assert_same_weights, rows_for, weights
from workbench import methods
from workbench.data import make as make_rows
from workbench.errors import DataError
from workbench.launch import launch
from workbench.methods import dpo
from workbench.methods.preference import chain_of_preference, thinkpo
from workbench.sampling.rollouts import Rollouts
from workbench.settings import make
from workbench.transforms.pairs import (
    Node,
    Tree,
    answer_groups,
    best_over_worst,
    flat_answers,
    long_over_short,
    sibling_steps,
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


def start(name, policy, rows, out, **settings):
    return launch(name, policy.reset(), rows, out, None, dict(steps=2, batch_size=4, lr=1e-2) | settings, None)


def apart(one, other) -> float:
    """How far the gradients of two previews are apart, by norm."""
    gap = sum(float((one.by_name[n].double() - other.by_name[n].double()).norm() ** 2) for n in one.by_name)
    return gap**0.5 / one.norm()


# -- builders


def test_the_best_over_the_worst():
    scores = [0.1, 0.9, None, 0.9, math.nan, 0.5, 0.5, 0.5, 1.0, 0.0]
    groups = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    # group 1 has one score, group 2 is a tie; of equal ones the first counts
    assert best_over_worst(scores, groups) == [(1, 0), (8, 9)]
    assert best_over_worst([], []) == []


def test_long_over_short_keeps_what_is_right_and_there():
    rows = [
        {"prompt": "p", "completion": "a long one", "short": "right", "short_correct": True, "id": 7},
        {"prompt": "p", "completion": "a long one", "short": "wrong", "short_correct": False},
        {"prompt": "p", "completion": "a long one", "short": " \n", "short_correct": True},
        {"prompt": "p", "completion": "a long one", "short": "unknown", "short_correct": None},
        {"prompt": "p", "completion": "a long one", "short": "half", "short_correct": 0.5},
        {"prompt": "q", "completion": "another", "short": "1.0", "short_correct": 1.0},
    ]
    made = long_over_short(rows)
    assert made == [
        {"prompt": "p", "id": 7, "chosen": "a long one", "rejected": "right"},
        {"prompt": "q", "chosen": "another", "rejected": "1.0"},
    ]
    with pytest.raises(DataError, match="Row 1 has no 'short_correct'"):
        long_over_short([rows[0], {"prompt": "p", "completion": "x", "short": "y"}])
    numpy_said = [{**rows[0], "short_correct": value} for value in (np.True_, np.float64(1), np.int64(1), np.False_)]
    assert len(long_over_short(numpy_said)) == 3
    for bad, said in (
        ({"short_correct": "yes"}, "column 'short_correct' is 'yes'; it takes True, False"),
        ({"short_correct": "1"}, "column 'short_correct' is '1'"),
        ({"short": 5}, "column 'short' is 5, neither a text nor a list of messages"),
        ({"short": ["a"]}, r"column 'short' is \['a'\]"),
    ):
        with pytest.raises(DataError, match=f"Row 1: {said}"):
            long_over_short([rows[0], rows[0] | bad])


def hand_made() -> Tree:
    """Q: a -> (x right, y wrong), b -> (z wrong), c not kept."""
    nodes = [
        Node(-1, 0, "a\n", 0.9, kept=True),
        Node(-1, 0, "b\n", 0.8, kept=True),
        Node(-1, 0, "c\n", 0.1),
        Node(-1, 0, "cut", cut=True),
        Node(0, 1, "x", ends=True, right=1.0),
        Node(0, 1, "y", ends=True, right=0.0),
        Node(0, 1, " x ", ends=True, right=0.0),
        Node(1, 1, "z", ends=True, right=0.0),
        Node(0, 1, "", ends=True, right=0.0),
    ]
    return Tree("Q:", "Q:", 5, nodes)


def test_sibling_steps_of_a_tree_made_by_hand():
    pairs = sibling_steps([hand_made()])
    ends = dict(chosen_ends=True, rejected_ends=True, row=5)
    open_ = dict(chosen_ends=False, rejected_ends=False, row=5)
    assert pairs == [
        {"prompt": "Q:", "chosen": "a\n", "rejected": "b\n", "depth": 0, **open_},
        {"prompt": "Q:", "chosen": "a\n", "rejected": "c\n", "depth": 0, **open_},
        {"prompt": "Q:a\n", "chosen": "x", "rejected": "y", "depth": 1, **ends},
    ]
    right = {tree.nodes[i].text for tree in (hand_made(),) for i in tree.on_right_paths()}
    assert right == {"a\n", "x"} and not right & {pair["rejected"] for pair in pairs}


def test_a_tree_without_a_right_answer_gives_no_pair():
    assert sibling_steps([Tree("Q:", "Q:", 0, [Node(-1, 0, "a", ends=True, right=0.0), Node(-1, 0, "b")])]) == []


def test_groups_of_scored_rollouts():
    rollouts = Rollouts.of(["p", "p", "q"], ["a", "b", "c"], rewards={"right": [1, 0, None], "long": [0.5, 2, None]})
    assert answer_groups(rollouts, "right") == [{"prompt": "p", "answers": ["a", "b"], "correct": [1.0, 0.0]}]
    with pytest.raises(DataError, match="They have: right, long"):
        answer_groups(rollouts, "write")


def test_flat_answers():
    rows = [
        {"prompt": "p", "completion": "ref", "answers": ["a", "b", "c"], "correct": [True, False, None], "weight": 2.0},
        {"prompt": [{"role": "user", "content": "q"}], "answers": ["d"], "correct": [0.5]},
    ]
    found = flat_answers(rows)
    assert [(row["completion"], row["question"], row["quality"]) for row in found[:3]] == [
        ("ref", 0, 1.0), ("a", 0, 1.0), ("b", 0, 0.0),
    ]  # fmt: skip
    assert found[0]["weight"] == 2.0
    assert found[3]["completion"] == [{"role": "assistant", "content": "d"}] and found[3]["quality"] == 0.5
    for row, said in (
        ({"prompt": "p"}, "needs prompt and answers"),
        ({"prompt": "p", "answers": "text", "correct": [1]}, "list of texts"),
        ({"prompt": "p", "answers": 5, "correct": [1]}, "column 'answers' is 5, not a list of texts"),
        ({"prompt": "p", "answers": math.nan}, "column 'answers' is nan, not a list of texts"),
        ({"prompt": "p", "completion": 7}, "column 'completion' has 7, neither a text"),
        ({"prompt": "p", "answers": ["a", "b"], "correct": [1]}, "2 answers need as many"),
        ({"prompt": "p", "answers": ["a"], "correct": [3]}, "correct has 3"),
    ):
        with pytest.raises(DataError, match=f"Row 0.*{said}"):
            flat_answers([row])


# -- ThinkPO


def chains(n: int = 8) -> list[dict]:
    return [
        {
            "prompt": f"Say {i}:",
            "completion": f" first {i}, then {i}, so it is {i}",
            "short": f" {i}" if i % 4 else " nine",
            "short_correct": bool(i % 4),
        }
        for i in range(n)
    ]


def test_thinkpo_builds_its_pairs_and_says_what_it_left_out(policy, tmp_path):
    with pytest.warns(UserWarning, match="2 of 8 rows have no short answer that is right"):
        run = start("thinkpo", policy, chains(), tmp_path / "run")
    data = run.engine.live.data
    assert len(data.items) == 6
    ratio = np.mean([len(pair.chosen) / len(pair.rejected) for pair in data.items])
    assert ratio > 3
    before = policy.score([row["prompt"] for row in chains()], [row["completion"] for row in chains()])
    run.set(lr=5e-2)
    run.run()
    after = policy.score([row["prompt"] for row in chains()], [row["completion"] for row in chains()])
    gain = [np.sum(a) - np.sum(b) for a, b in zip(after.logprob, before.logprob, strict=True)]
    assert np.mean(gain) > 0.1, "the long answers are no likelier"


def test_thinkpo_on_pairs_is_dpo(policy, tmp_path):
    rows = rows_for("dpo", 8)
    ours = start("thinkpo", policy, rows, tmp_path / "ours", beta=0.1)
    mine = ours.gradients(rows)
    base = start("dpo", policy, rows, tmp_path / "base")
    theirs = base.gradients(rows)
    assert mine.loss == theirs.loss and apart(mine, theirs) == 0
    list(ours), list(base)
    assert_same_weights(weights(ours), weights(base))
    assert make("thinkpo", {}).beta == 0.01 and make("thinkpo", {}).lr == 3e-7


def test_thinkpo_tells_of_rows_it_cannot_use(policy, tmp_path):
    wrong = [{**row, "short_correct": False} for row in chains()]
    with pytest.raises(DataError, match="None of the 8 rows"):
        start("thinkpo", policy, wrong, tmp_path / "a")
    with pytest.raises(DataError, match="Row 3: column 'short_correct' is 'yes'"):
        start("thinkpo", policy, [*chains(3), chains()[3] | {"short_correct": "yes"}], tmp_path / "d")
    with pytest.raises(DataError, match="Row 3: column 'short' is 5"):
        start("thinkpo", policy, [*chains(3), chains()[3] | {"short": 5}], tmp_path / "e")
    with pytest.raises(DataError, match="has no 'short'"):
        start("thinkpo", policy, [{"prompt": "p", "completion": "c"}], tmp_path / "b")
    with pytest.warns(UserWarning, match="wants the long"):
        start("thinkpo", policy, [{"prompt": "p", "chosen": "a", "rejected": "a long one"}], tmp_path / "c")


# -- chain of preference


STEPS = [
    {"prompt": "Q:", "chosen": "a\n", "rejected": "ccc\n", "chosen_ends": False, "rejected_ends": False},
    {"prompt": "Q:a\n", "chosen": "x1", "rejected": "more\n", "chosen_ends": True, "rejected_ends": False},
    {"prompt": "Q:a\n", "chosen": "x1", "rejected": "y2"},
]


def test_steps_in_the_midst_get_no_end_token():
    settings = make_settings(open_steps=True)
    data = chain_of_preference.prepare(tiny_tokenizer(), make_rows(STEPS), settings)
    ends = [(pair.chosen[-1] == EOS, pair.rejected[-1] == EOS) for pair in data.items]
    assert ends == [(False, False), (True, False), (True, True)]
    assert [len(pair.rejected) for pair in data.items] == [4, 5, 3]
    closed = chain_of_preference.prepare(tiny_tokenizer(), make_rows(STEPS), make_settings(open_steps=False))
    assert all(pair.chosen[-1] == EOS == pair.rejected[-1] for pair in closed.items)
    # a step whose end was cut off keeps its last token
    cut = chain_of_preference.prepare(tiny_tokenizer(), make_rows(STEPS[:1]), make_settings(max_length=5))
    assert [len(cut.items[0].chosen), len(cut.items[0].rejected)] == [2, 3]


def talk(prompt: str, chosen: str, rejected: str, **ends) -> dict:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **ends,
    }


def test_steps_of_conversations_get_no_stop_token_of_the_template():
    """The template ends turns by <end>, which is not the tokenizer's end token."""
    rows = [
        talk("Q", "a", "ccc", chosen_ends=False, rejected_ends=False),
        talk("Q", "x", "y", chosen_ends=True, rejected_ends=False),
        talk("Q", "x", "z", chosen_ends=None, rejected_ends=True),
    ]
    rows.append({key: value for key, value in rows[0].items() if key != "prompt"})
    for side in ("chosen", "rejected"):  # the prompt within
        rows[3][side] = [*rows[0]["prompt"], *rows[0][side]]
    prepare = lambda kept, **given: chain_of_preference.prepare(  # noqa: E731
        tiny_tokenizer(), make_rows(kept), make_settings(**given)
    ).items
    for kept, expected in ((rows[:3], [(False, False), (True, False), (True, True)]), (rows[3:], [(False, False)])):
        pairs, whole = prepare(kept), prepare(kept, open_steps=False)
        assert [(pair.chosen[-1] == END, pair.rejected[-1] == END) for pair in pairs] == expected
        assert all(pair.chosen[-1] == END == pair.rejected[-1] for pair in whole)
        assert all(
            one.chosen == two.chosen[: len(one.chosen)] and len(two.chosen) - len(one.chosen) == (not end)
            for one, two, (end, _) in zip(pairs, whole, expected, strict=True)
        )


@pytest.mark.parametrize("value", ["no", "False", 0, 1.0])
def test_what_ends_is_said_by_true_or_false(value):
    rows = [STEPS[0], STEPS[1] | {"rejected_ends": value}]
    with pytest.raises(DataError, match="row 1 .*'rejected_ends' is .*it takes True"):
        chain_of_preference.prepare(tiny_tokenizer(), make_rows(rows), make_settings())
    chain_of_preference.prepare(tiny_tokenizer(), make_rows(rows), make_settings(open_steps=False))


def make_settings(**given):
    methods.get("chain_of_preference")
    return make("chain_of_preference", given)


def test_only_the_step_is_scored():
    data = chain_of_preference.prepare(tiny_tokenizer(), make_rows(STEPS), make_settings())
    batch = dpo.make_batch(data.items)
    assert batch.scored() == [2, 4, 3, 5, 3, 3]
    assert batch.starts == [2, 2, 4, 4, 4, 4], "the prefix gets no gradient"


def test_chain_of_preference_without_open_steps_is_dpo(policy, tmp_path):
    ours = start("chain_of_preference", policy, STEPS, tmp_path / "ours", beta=0.1, open_steps=False)
    base = start("dpo", policy, STEPS, tmp_path / "base")
    assert apart(ours.gradients(STEPS), base.gradients(STEPS)) == 0
    opened = start("chain_of_preference", policy, STEPS, tmp_path / "open", beta=0.1)
    assert apart(opened.gradients(STEPS), base.gradients(STEPS)) > 1e-3
    list(ours), list(base)
    assert_same_weights(weights(ours), weights(base))


def test_right_steps_become_likelier(policy, tmp_path):
    rows = sibling_steps([hand_made()])
    run = start("chain_of_preference", policy, rows, tmp_path / "run", steps=8, batch_size=3, seed=1)
    list(run)
    assert run.metrics["rewards/accuracies"].iloc[-1] == 1.0 and run.metrics["loss"].iloc[-1] < 0.6
    with pytest.raises(DataError, match="chosen"):
        start("chain_of_preference", policy, [{"prompt": "p", "completion": "c"}], tmp_path / "bad")


def test_defaults_are_the_authors():
    assert (make_settings().beta, make_settings().lr) == (0.2, 5e-6)
    assert thinkpo.METHOD.settings is type(make("thinkpo", {}))
