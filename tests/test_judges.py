"""Judges: rules, models and endpoints that say what is right or better; tournaments; tree search."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import EOS, noisy_adapter, tiny_policy, tiny_tokenizer
from workbench import adapters, judges, tokenise
from workbench.errors import DataError, RewardError, SettingError
from workbench.judges.prompts import filled
from workbench.rewards import judging
from workbench.rewards.chat import Reply
from workbench.sampling.rollouts import Rollouts
from workbench.transforms.pairs import sibling_steps


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True, max_position_embeddings=1024)


def length(completions, **columns):
    """Longer is better, up to 10 letters; the text "?" has no verdict."""
    return [None if text == "?" else min(len(text), 10) / 10 for text in completions]


# -- rules


def test_a_rule_scores_and_compares():
    judge = judges.rule(length)
    assert judge.name == "length"
    assert judge.score(["q"] * 2, ["abc", "abcdefghijkl"]) == [0.3, 1.0]
    assert judge.prefer(["q"] * 3, ["ab", "a", "cd"], ["a", "ab", "ab"]) == [1.0, 0.0, 0.5]
    scaled = judges.rule(lambda completions, **c: [-1.0, 0.0, 3.0], scale=(-1, 3))
    assert scaled.score(["q"] * 3, ["x"] * 3) == [0.0, 0.25, 1.0]


def test_columns_reach_the_rule():
    judge = judges.rule(wb.rewards.exact_match)
    assert judge.score(["q", "q"], ["4", "5"], answer=["4", "4"]) == [1.0, 0.0]
    assert judge.prefer(["q", "q"], ["4", "5"], ["5", "4"], answer=["4", "4"]) == [1.0, 0.0]


def test_missing_verdicts_are_counted_and_told_not_guessed():
    judge = judges.rule(length)
    with pytest.warns(UserWarning, match="no verdict for 1 of 2"):
        assert judge.score(["q"] * 2, ["?", "ab"]) == [None, 0.2]
    with pytest.warns(UserWarning, match="no verdict for 2 of 3"):
        assert judge.prefer(["q"] * 3, ["?", "a", "b"], ["a", "?", "a"]) == [None, None, 0.5]


def test_bad_input_is_told():
    judge = judges.rule(length)
    with pytest.raises(DataError, match="2 prompts but 1 answers"):
        judge.score(["q", "q"], ["a"])
    with pytest.raises(DataError, match="give lists"):
        judge.score("q", "a")
    with pytest.raises(RewardError, match=r"gave 2.0 for answer 0.*rule\(fn, scale"):
        judges.rule(lambda completions, **c: [2.0]).score(["q"], ["a"])
    with pytest.raises(SettingError, match="must rise"):
        judges.rule(length, scale=(1, 1))
    with pytest.raises(SettingError, match="compares two answers"):
        judges.comparison(length).score(["q"], ["a"])


def test_a_comparison_is_asked_in_both_orders():
    def first_place(completions, other, **columns):
        """Likes what stands in front by 0.2, and a longer answer by 0.1 a letter."""
        theirs = [text.split("\n")[1] for text in other]
        return [0.7 + 0.1 * (len(one) - len(two)) for one, two in zip(completions, theirs, strict=True)]

    judge = judges.comparison(first_place)
    assert judge.prefer(["q"], ["abc"], ["ab"]) == pytest.approx([0.6])  # (0.8 + 1 - 0.6) / 2
    assert judge.prefer(["q"], ["ab"], ["abc"]) == pytest.approx([0.4])
    with pytest.warns(UserWarning, match="no verdict for 1 of 1"):
        assert judges.comparison(lambda completions, other, **c: [0.4, None]).prefer(["q"], ["a"], ["b"]) == [None]


# -- endpoints


@pytest.fixture
def server(monkeypatch):
    """What was asked; the answers are `said` in turn."""
    seen, said = [], []

    def ask(endpoint, bodies, **how):
        seen.extend(json.loads(body)["messages"][0]["content"] for body in bodies)
        return [said.pop(0) for _ in bodies]

    monkeypatch.setattr(judging, "ask", ask)
    return seen, said


def test_an_endpoint_grades(server):
    seen, said = server
    said += [Reply("ok", "Score: 7"), Reply("timeouts", "slow"), Reply("ok", "I refuse.")]
    judge = judges.endpoint("http://localhost:1/v1", "grader")
    with pytest.warns(UserWarning) as told:
        assert judge.score(["q"] * 3, ["a", "b", "c"]) == [0.7, None, None]
    assert not any("left out" in str(one.message) for one in told), "the endpoint tells it by itself"
    assert len(seen) == 3


def test_an_endpoint_compares_in_both_orders(server):
    seen, said = server
    said += [Reply("ok", "Score: 8"), Reply("ok", "Score: 4")]
    judge = judges.endpoint("http://localhost:1/v1", "grader", compare=True)
    assert judge.prefer(["q?"], ["one"], ["two"]) == pytest.approx([0.7])
    assert "one" in seen[0] and "two" in seen[0] and seen[0].index("one\n") < seen[0].index("two\n")
    assert seen[1].index("two\n") < seen[1].index("one\n")
    with pytest.raises(SettingError, match="needs {other}"):
        judges.endpoint("http://localhost:1/v1", "grader", compare=True, prompt="{completion}")


# -- local models, by hand


def made_up(tables: list, **how) -> judges.ModelJudge:
    """A judge whose probabilities are given: question by question [P(first option), P(second option)]."""
    numbers = [math.log(p) for table in tables for p in table]

    def read(sequences, starts):
        assert len(sequences) == len(numbers) and starts[0] < len(sequences[0])
        return [[number, 0.0] for number in numbers]

    return judges.ModelJudge(tiny_tokenizer(), read, **how)


def test_verdicts_by_hand():
    judge = made_up([[0.6, 0.2], [0.1, 0.3]])
    found = judge.compare(["q"], ["x"], ["y"])[0]
    # a = (0.6 + 0.3) / 2, b = (0.2 + 0.1) / 2
    assert found.value == pytest.approx(0.45 / 0.6)
    assert (found.in_front, found.behind, found.mass) == pytest.approx((0.75, 0.75, 0.4))
    assert made_up([[0.1, 0.3], [0.6, 0.2]]).prefer(["q"], ["y"], ["x"]) == pytest.approx([0.25])
    # a judge that always says A has no opinion
    assert made_up([[0.9, 0.05], [0.9, 0.05]]).prefer(["q"], ["x"], ["y"]) == pytest.approx([0.5])
    assert made_up([[0.3, 0.1]]).score(["q"], ["x"]) == pytest.approx([0.75])


def test_a_judge_that_says_something_else_has_no_verdict():
    with pytest.warns(UserWarning, match="no verdict for 1 of 1"):
        assert made_up([[0.6, 0.2], [0.1, 0.3]], least_mass=0.5).prefer(["q"], ["x"], ["y"]) == [None]
    with pytest.warns(UserWarning, match="no verdict for 1 of 1"):
        assert made_up([[0.003, 0.001]]).score(["q"], ["x"]) == [None]
    with pytest.raises(SettingError, match="least_mass"):
        made_up([], least_mass=1.0)


def test_principles_vote_and_a_split_vote_is_decided_by_the_mean():
    prompt = judges.JudgePrompt(principles=("more honest", "more helpful"))
    one, other = [[0.9, 0.1], [0.1, 0.9]], [[0.2, 0.8], [0.8, 0.2]]
    assert made_up(one + one, prompt=prompt).prefer(["q"], ["x"], ["y"]) == [1.0]
    assert made_up(other + other, prompt=prompt).prefer(["q"], ["x"], ["y"]) == [0.0]
    assert made_up(one + other, prompt=prompt).prefer(["q"], ["x"], ["y"]) == pytest.approx([0.55])
    three = judges.JudgePrompt(principles=("more honest", "more helpful", "kinder"))
    assert made_up(one + other + other, prompt=three).prefer(["q"], ["x"], ["y"]) == pytest.approx([1 / 3])


def test_questions_are_filled_in_one_pass():
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "2"}) == "{b} 2 {c}"
    text = judges.JudgePrompt().comparing("q", "{second}", "b", "better")
    assert "Answer A:\n{second}\n" in text and "Answer B:\nb\n" in text


def test_prompts_that_do_not_hold_together():
    with pytest.raises(SettingError, match="no {second}"):
        judges.JudgePrompt(compare="{prompt} {first}")
    with pytest.raises(SettingError, match="two different texts"):
        judges.JudgePrompt(options=("A", " A"))
    with pytest.raises(SettingError, match="no {principle}"):
        judges.JudgePrompt(compare="{prompt} {first} {second}", principles=("a", "b"))
    with pytest.raises(SettingError, match="grade has no {completion}"):
        judges.JudgePrompt(grade="{prompt}")
    with pytest.raises(SettingError, match="one begins as the other"):
        judges.ModelJudge(tiny_tokenizer(), None, judges.JudgePrompt(options=(" A", " AB"))).prefer(["q"], ["x"], ["y"])


# -- local models


def test_a_policy_judges_by_its_own_probabilities(policy):
    prompt = judges.JudgePrompt(options=("A", "B"), yes_no=("y", "n"))
    judge = judges.model(policy, prompt=prompt, least_mass=0.0)
    asked = f"{prompt.grading('2+2?', ' 4')}\n{prompt.lead}"
    ids = torch.tensor([tokenise.prompt(asked, policy.tokenizer).ids])
    with torch.no_grad():
        p = policy.logits(ids, 1)[0, 0].double().softmax(-1)
    yes, no = (float(p[policy.tokenizer(text)["input_ids"][-1]]) for text in ("y", "n"))
    assert judge.score(["2+2?"], [" 4"]) == pytest.approx([yes / (yes + no)], rel=1e-5)
    there = judge.prefer(["2+2?", "3+3?"], [" 4", " 5"], [" 5", " 6"])
    back = judge.prefer(["2+2?", "3+3?"], [" 5", " 6"], [" 4", " 5"])
    assert [a + b for a, b in zip(there, back, strict=True)] == pytest.approx([1, 1], abs=1e-6)
    assert there[0] != pytest.approx(0.5, abs=1e-6)


def test_whose_weights_judge(tmp_path):
    policy = tiny_policy(tmp_path, lora=True)
    policy._start = {name: p.clone() for name, p in policy.params().items()}
    now, start, off = (judges.model(policy, which, least_mass=0.0) for which in ("now", "start", "off"))
    before = now.score(["q"], ["a"])
    assert start.score(["q"], ["a"]) == before != off.score(["q"], ["a"])
    policy.hold({name: p.clone() for name, p in policy.params().items()}, "a run")
    noisy_adapter(policy, scale=0.5, seed=3)
    assert start.score(["q"], ["a"]) == before != now.score(["q"], ["a"])
    assert policy.holder == "a run"
    with adapters.without(policy.model):
        base = now.score(["q"], ["a"])
    assert off.score(["q"], ["a"]) == base
    bare = tiny_policy(tmp_path / "bare")
    with pytest.raises(SettingError, match="has none"):
        judges.model(bare, "off")
    with pytest.raises(SettingError, match="one of 'now'"):
        judges.model(bare, "later")


def test_a_question_that_does_not_fit_has_no_verdict(policy):
    judge = judges.model(policy, least_mass=0.0)
    with pytest.warns(UserWarning, match="no verdict for 1 of 2"):
        found = judge.score(["q", "q"], ["x" * 2000, "x"])
    assert found[0] is None and 0 < found[1] < 1


def test_a_conversation_goes_through_the_chat_template(policy):
    seen = []

    def read(sequences, starts):
        seen.extend(policy.tokenizer.decode(ids) for ids in sequences)
        return [[-1.0] for _ in sequences]

    prompt = judges.JudgePrompt(chat=True, system="Be fair.")
    judges.ModelJudge(policy.tokenizer, read, prompt).score([[{"role": "user", "content": "2+2?"}]], [" 4"])
    assert seen[0].startswith("[system]Be fair.<end>[user]Question:\nuser: 2+2?")
    assert seen[0].endswith("<end>[assistant]The verdict is: Yes")


def test_a_judge_is_a_reward_function(policy, tmp_path):
    judge = judges.model(policy, "start", least_mass=0.0, name="liked")
    rows = [{"prompt": f"Say {i}:", "answer": i} for i in range(4)]
    run = wb.grpo(
        policy.reset(), wb.Task(rows, rewards=[judge]), steps=1, prompts_per_step=2, group_size=2, max_new_tokens=4,
        out=tmp_path / "run",
    )  # fmt: skip
    step = next(iter(run))
    assert 0 < step.metrics["rewards/liked/mean"] < 1 and step.metrics["judge/liked/none_share"] == 0
    policy.reset()
    assert judge.score(step.rollouts.prompt, step.rollouts.text) == step.rollouts.rewards["liked"].tolist()


def test_rows_that_teach_to_judge():
    pairs = [{"prompt": "2+2=", "chosen": " 4", "rejected": " 5"}]
    rows = judges.judge_rows(pairs)
    assert rows[0] == {"prompt": "2+2=", "completion": " 4"}
    assert [row["completion"] for row in rows[1:]] == [" A", " B"]
    assert rows[1]["prompt"].index(" 4") < rows[1]["prompt"].index(" 5")
    assert rows[2]["prompt"].index(" 5") < rows[2]["prompt"].index(" 4")
    # what is trained is what is read
    judge = judges.ModelJudge(tiny_tokenizer(), None)
    example = tokenise.fit_rows(rows[1:2], judge.tokenizer).items[0]
    question = judge._ids(judge.prompt.comparing("2+2=", " 4", " 5", "better"))
    assert example.ids == question + judge.option_ids((" A", " B"))[0] + [EOS]
    assert [i for i, m in enumerate(example.mask) if m][0] == len(question)
    with pytest.raises(SettingError, match="does not tell the options ' A' and ' AB' apart"):
        judge.option_ids((" A", " AB"))
    assert len(judges.judge_rows(pairs, judges.JudgePrompt(principles=("truer", "kinder")), answers=False)) == 4


def test_rows_that_teach_to_judge_in_conversations():
    say = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    pairs = [{"prompt": say("user", "2+2="), "chosen": say("assistant", "4"), "rejected": say("assistant", "5")}]
    rows = judges.judge_rows(pairs, judges.JudgePrompt(chat=True))
    assert rows[2]["completion"] == say("assistant", "The verdict is: B")
    assert len(tokenise.fit_rows(rows, tiny_tokenizer()).items) == 3
    with pytest.raises(DataError, match="set chat=True"):
        judges.judge_rows(pairs)
    with pytest.raises(DataError, match="Pair 0 needs chosen"):
        judges.judge_rows([{"prompt": "x"}])


# -- tournaments


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_a_knockout_plays_n_minus_one_games(n):
    answers = [["a" * (i + 1) for i in range(n)], ["b" * (n - i) for i in range(n)]]
    found = judges.tournament(judges.rule(length), ["q", "r"], answers, seed=n)
    assert found.winners == [n - 1, 0]
    assert len(found.games) == 2 * (n - 1) and found.unjudged == 0


def test_games_without_a_verdict_knock_nobody_out():
    judge = judges.rule(length)
    with pytest.warns(UserWarning, match="no verdict"):
        found = judges.tournament(judge, ["q", "r"], [["?", "?", "?"], ["a", "abc", "ab"]])
        mixed = judges.tournament(judge, ["q"], [["?", "ab", "abc", "abcd"]])
    assert found.winners == [None, 1] and found.unjudged >= 1
    # "?" is never beaten, so there is no winner; nobody was guessed
    assert mixed.winners == [None] and {g.second for g in mixed.games if g.value == 1.0} <= {1, 2}
    with pytest.raises(DataError, match="at least one answer"):
        judges.tournament(judge, ["q"], [[]])


def test_the_draw_follows_from_the_seed():
    seen = []

    def noted(prompts, completions, **columns):
        seen.append(tuple(completions))
        return [0.5] * len(completions)

    for seed in (1, 1, 2):
        judges.tournament(judges.rule(noted), ["q"], [list("abcdefgh")], seed=seed)
    assert seen[:3] == seen[3:6] != seen[6:]


def test_the_best_of_rollouts():
    rollouts = Rollouts.of(["p", "p", "p", "q", "q"], ["a", "abc", "ab", "x", "?"])
    with pytest.warns(UserWarning):
        assert judges.best_of(judges.rule(length), rollouts) == [1, None]


# -- trees


class Script:
    """A policy that writes what stands in a table: text so far -> the next steps; "." at the end ends the answer."""

    tokenizer, stop_ids = tiny_tokenizer(), (EOS,)

    def __init__(self, table: dict[str, list[str]]):
        self.table, self.keys = table, []

    def sample_prompts(self, prompts, n, *, keys, stop_strings, check, **sampling):
        self.keys += keys
        texts, ids = [], []
        for prompt in prompts:
            assert self.tokenizer(prompt.text)["input_ids"] == prompt.ids
            for step in (self.table.get(prompt.text) or [""])[:n]:
                texts.append(step)
                ids.append(self.tokenizer(step)["input_ids"] + [EOS] * step.endswith("."))
        return Rollouts(
            prompt=[""] * len(texts), text=texts, ids=ids,
            group=[g for g, prompt in enumerate(prompts) for _ in (self.table.get(prompt.text) or [""])[:n]],
            finish_reason=["length" if step.endswith("~") else "stop" for step in texts],
        )  # fmt: skip


def judged(prompts, completions, **columns):
    values = {"a\n": 0.9, "b\n": 0.8, "c\n": 0.1, "d\n": None}
    return [values.get(text, 0.5) for text in completions]


def ends_in_one(completions, **columns):
    return [float(text.endswith("1.")) for text in completions]


def grown(**how):
    table = {
        "Q:": ["a\n", "b\n", "c\n", "a\n", "d\n", "cut~"],
        "Q:a\n": ["1.", "2.", "more\n"],
        "Q:b\n": ["2.", "b1.", "1."],
        "Q:c\n": ["1."],
    }
    task = wb.Task([{"prompt": "Q:"}], rewards=[ends_in_one])
    given = dict(candidates=6, keep=2, steps=2) | how
    return judges.trees(Script(table), task, judges.rule(judged), **given)[0]


def test_a_search_by_hand():
    with pytest.warns(UserWarning, match="no verdict for 1 of 4"):
        tree = grown()
    steps = [(node.parent, node.text, node.kept, node.right) for node in tree.nodes]
    assert steps == [
        (-1, "a\n", True, None), (-1, "b\n", True, None), (-1, "c\n", False, None), (-1, "d\n", False, None),
        (-1, "cut~", False, None), (0, "1.", False, 1.0), (0, "2.", False, 0.0), (0, "more\n", False, 0.0),
        (1, "2.", False, 0.0), (1, "b1.", False, 1.0), (1, "1.", False, 1.0),
    ]  # fmt: skip
    assert tree.nodes[4].cut and tree.answer(9) == "b\nb1." and tree.path(9) == [1, 9]
    assert tree.on_right_paths() == {0, 1, 5, 9, 10}
    drawn = str(tree).splitlines()
    assert drawn[0] == "Q:" and "+ 0.90  a" in drawn and "    -    ?  2." in drawn


def test_the_pairs_of_that_search_are_exact():
    with pytest.warns(UserWarning):
        pairs = sibling_steps([grown()])
    found = [(p["prompt"], p["chosen"], p["rejected"], p["chosen_ends"], p["rejected_ends"]) for p in pairs]
    assert found == [
        ("Q:", "a\n", "c\n", False, False), ("Q:", "a\n", "d\n", False, False),
        ("Q:", "b\n", "c\n", False, False), ("Q:", "b\n", "d\n", False, False),
        ("Q:a\n", "1.", "2.", True, True), ("Q:a\n", "1.", "more\n", True, False),
        ("Q:b\n", "b1.", "2.", True, True), ("Q:b\n", "1.", "2.", True, True),
    ]  # fmt: skip


def test_searches_are_drawn_by_keys_and_checked():
    policy = Script({"Q:": ["a\n"], "Q:a\n": ["1."]})
    task = wb.Task([{"prompt": "Q:"}], rewards=[ends_in_one])
    for seed in (0, 0, 1):
        judges.trees(policy, task, judges.rule(judged), candidates=2, steps=2, seed=seed)
    assert policy.keys[:4] == policy.keys[4:8] and len(set(policy.keys)) == 8
    with pytest.raises(SettingError, match="keep=0"):
        judges.trees(policy, task, keep=0)
    with pytest.raises(SettingError, match="delimiter"):
        judges.trees(policy, task, delimiter="")


def test_a_policy_judges_its_own_steps(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True, max_position_embeddings=1024)
    task = wb.Task([{"prompt": "Say 1:"}, {"prompt": "Say 2:"}], rewards=[ends_in_one])
    with pytest.warns(UserWarning):
        made = judges.trees(policy, task, candidates=3, keep=1, steps=2, step_tokens=4, delimiter="e")
    assert len(made) == 2 and all(tree.nodes for tree in made)
    assert np.isfinite([node.value for tree in made for node in tree.nodes if node.value is not None]).all()
    assert policy.holder == "start"
