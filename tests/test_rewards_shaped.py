"""Rewards of form, length, repetition and script: hand-worked numbers, and TRL's own functions on the same texts."""

from __future__ import annotations

import functools
import json
import random

import numpy as np
import pytest
import regex

from workbench import rewards
from workbench.errors import RewardError, SettingError
from workbench.rewards.language import SCRIPTS, script_of
from workbench.rewards.reference import refer, resolve
from workbench.tasks import Task, rebuild

PIECES = ("<think>", "</think>", "<answer>", "</answer>", "a", " ", "\n", r"\boxed{2}", r"\boxed{3}", "$2$", "")


def messages(texts):
    """The completions as TRL's rewards take them."""
    return [[{"role": "assistant", "content": text}] for text in texts]


def random_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randrange(7))) for _ in range(count)]


def random_ids(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(4) for _ in range(draw.randrange(40))] for _ in range(count)]


# Form


def test_think_format_decides_as_trl_does():
    from trl.rewards import think_format_reward

    texts = ["<think>a\n</think>\nb", "<think>a", "\n<think>a</think>", "<think>a</think><think>", *random_texts(2000)]
    texts += [f"<think>{text}" for text in random_texts(500, seed=1)]
    found = rewards.think_format(texts)
    assert found == think_format_reward(messages(texts))
    assert found[:4] == [1.0, 0.0, 0.0, 0.0] and 50 < sum(found) < 2000


@pytest.mark.parametrize(
    "text, strict, loose",
    [
        ("<think>a</think><answer>b</answer>", 1, 1),
        (" <think>a\nb</think>\n\n<answer>b</answer>\n", 1, 1),
        ("<think></think><answer></answer>", 1, 1),
        ("so <think>a</think><answer>b</answer>", 0, 1),
        ("<think>a</think> so <answer>b</answer>", 0, 1),
        ("<think>a</think><answer>b</answer>!", 0, 1),
        ("<answer>b</answer><think>a</think>", 0, 0),
        ("<think>a<answer>b</answer></think>", 0, 0),
        ("<think>a</think><answer>b", 0, 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0, 0),
        ("<think>a</think></think><answer>b</answer>", 0, 0),
        ("</think>a<think><answer>b</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_tag_format(text, strict, loose):
    assert rewards.tag_format()([text]) == [strict]
    assert rewards.tag_format(strict=False)(messages([text])) == [loose]


def test_tag_format_of_other_tags_empty_blocks_and_tags_of_the_prompt():
    assert rewards.tag_format(["plan", "code", "test"])(["<plan>1</plan><code>2</code><test>3</test>"]) == [1.0]
    filled = rewards.tag_format(filled=True)
    assert filled(["<think> \n</think><answer>b</answer>", "<think>a</think><answer>b</answer>"]) == [0.0, 1.0]
    opened = rewards.tag_format(opened=True)
    assert opened(["a</think><answer>b</answer>", "<think>a</think><answer>b</answer>"]) == [1.0, 0.0]


def test_tag_count_is_the_share_of_tags_that_are_there_once():
    texts = ["<think>a</think><answer>b</answer>", "</answer><think>", "<think>a</think><answer>b", "<think><think>"]
    assert rewards.tag_count()(texts) == [1.0, 0.5, 0.75, 0.0]
    assert rewards.tag_count(("a",))(["<a><b>", "x"]) == [0.5, 0.0]


# Length


def test_soft_overlong_by_hand_and_as_trl():
    from trl.rewards import get_soft_overlong_punishment

    lengths = (0, 80, 81, 85, 90, 99, 100, 101, 500)
    ids = [[1] * n for n in lengths]
    found = rewards.soft_overlong(100, 20)(completion_ids=ids)
    assert found == [0.0, 0.0, -0.05, -0.25, -0.5, -0.95, -1.0, -1.0, -1.0]
    for most, cache in [(100, 20), (100, 0), (100, 100), (7, 3)]:
        theirs = get_soft_overlong_punishment(max_completion_len=most, soft_punish_cache=cache)
        assert rewards.soft_overlong(most, cache)(completion_ids=ids) == theirs(completion_ids=ids)
    assert rewards.length(limit=80, width=20)(completion_ids=ids) == pytest.approx(found)


def test_length_by_hand():
    ids = [[1] * n for n in (0, 5, 10, 12, 20, 40)]
    assert rewards.length(target=10)(completion_ids=ids) == [-1.0, -0.5, 0.0, -0.2, -1.0, -1.0]
    assert rewards.length(target=10, width=40)(completion_ids=ids) == [-0.25, -0.125, 0.0, -0.05, -0.25, -0.75]
    assert rewards.length(limit=10)(completion_ids=ids) == [0.0, 0.0, 0.0, -0.2, -1.0, -1.0]


def test_cosine_length_by_hand():
    """The published values: 2 to 1 where right, -10 to 0 where wrong, -10 past the limit."""
    values = dict(min_value_wrong=-10, max_value_wrong=0, min_value_correct=1, max_value_correct=2, exceed=-10)
    published = rewards.cosine_length(100, **values, correct="number")
    ids = [[1] * n for n in (0, 50, 100, 101)]
    assert published(["2"] * 4, ["2"] * 4, ids) == pytest.approx([2.0, 1.5, 1.0, -10.0])
    assert published(["3"] * 4, ["2"] * 4, ids) == pytest.approx([-10.0, -5.0, 0.0, -10.0])
    quarter = rewards.cosine_length(4, correct="exact_match")
    assert quarter(["a", "b"], ["a", "a"], [[1], [1]]) == pytest.approx([0.75 + 2**0.5 / 8, -0.75 - 2**0.5 / 8])
    assert rewards.cosine_length(100, correct="number")(["2"], ["none"], [[1]]) == [None]


def test_cosine_length_as_trl():
    from trl.rewards import get_cosine_scaled_reward

    texts = [r"\boxed{2}", r"\boxed{3}", "2"] * 4
    gold = ["2"] * 11 + [""]
    ids = [[1] * n for n in (0, 1, 2, 10, 33, 50, 66, 80, 99, 100, 101, 170)]
    for settings in [{}, dict(min_value_wrong=-2.0, max_value_wrong=0.0, min_value_correct=0.1, max_value_correct=3.0)]:
        theirs = get_cosine_scaled_reward(max_len=100, **settings)(messages(texts), gold, ids)
        ours = rewards.cosine_length(100, **settings)(texts, gold, ids)
        assert ours[-1] is None and theirs[-1] is None
        np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=1e-12)


def test_lengths_need_tokens():
    with pytest.raises(RewardError, match="'soft_overlong' needs completion_ids.*given as text"):
        rewards.score([rewards.soft_overlong(10, 2)], None, ["p"], ["c"], None, {})


# Repetition


def test_repetition_by_hand_and_as_trl():
    from trl.rewards import get_repetition_penalty_reward

    ids = [[1, 2, 3, 4], [5] * 5, [1], [], [1, 2, 1, 2]]
    # 5 5 5 5 5 has 4 pairs, 1 of them different: 1 - 1/4; 1 2 1 2 has 3, 2 different
    assert rewards.repetition(2)([""] * 5, ids) == pytest.approx([0.0, -0.75, 0.0, 0.0, -1 / 3])
    ids += random_ids(500)
    for ngram, penalty in [(3, -1.0), (1, -0.5), (2, 0.0), (5, -2.0)]:
        theirs = get_repetition_penalty_reward(ngram_size=ngram, max_penalty=penalty)(completion_ids=ids)
        np.testing.assert_allclose(rewards.repetition(ngram, penalty)([""] * len(ids), ids), theirs, rtol=1e-12)
    theirs = get_repetition_penalty_reward()(completion_ids=ids)
    np.testing.assert_allclose(rewards.repetition()([""] * len(ids), ids), theirs, rtol=1e-12)


def test_repetition_of_words_and_of_characters():
    assert rewards.repetition(2, unit="words")(["a b  a\nb", "a b c"]) == pytest.approx([-1 / 3, 0.0])
    assert rewards.repetition(2, unit="characters")(messages(["\u6211\u4eec\u6211\u4eec", "abc"])) == pytest.approx(
        [-1 / 3, 0.0]
    )
    with pytest.raises(RewardError, match="counts tokens.*unit='words'"):
        rewards.repetition()(["a a a a"])


# Scripts


def test_language_share_by_hand():
    texts = ["ab 12 \u0434\u0435", "\u0434", "caf\u00e9!", "12 + 3", "", "\u6211a\u3042"]
    assert rewards.language_share()(texts) == pytest.approx([0.5, 0.0, 1.0, None, None, 1 / 3])
    assert rewards.language_share("cyrillic")(texts) == pytest.approx([0.5, 1.0, 0.0, None, None, 0.0])
    japanese = rewards.language_share(["han", "hiragana", "katakana"])
    assert japanese(texts)[-1] == pytest.approx(2 / 3)


def test_scripts_are_those_of_unicode():
    """The `regex` package knows the script of every character; here it is read off the character's name."""
    patterns = {name: regex.compile(rf"\p{{Script={name}}}") for name in SCRIPTS}
    letters = [character for character in map(chr, range(0x30000)) if character.isalpha()]
    found = {letter: script_of(letter) for letter in letters}
    wrong = [letter for letter, script in found.items() if script and not patterns[script].match(letter)]
    assert len(letters) > 100_000 and len(wrong) < 10, wrong
    rest = "".join(letter for letter, script in found.items() if script is None)
    missed = {name: len(pattern.findall(rest)) for name, pattern in patterns.items()}
    # small raised letters, and old forms of kana
    assert missed.pop("latin") < 200 and missed.pop("hiragana") < 300
    assert max(missed.values()) < 10, missed


# All of them


MADE = {
    "matches": rewards.matches("a+"),
    "tag_format": rewards.tag_format(("a", "b"), strict=False, filled=True, opened=True),
    "tag_count": rewards.tag_count(("a", "b")),
    "length": rewards.length(target=np.int64(7)),
    "soft_overlong": rewards.soft_overlong(10, 3),
    "cosine_length": rewards.cosine_length(10, exceed=-3, correct="number"),
    "repetition": rewards.repetition(2, -0.5, "words"),
    "language_share": rewards.language_share(("han", "latin")),
    "judge": rewards.judge("http://localhost:1/v1", "m", scale=(1, 5), options={"top_p": 0.5}),
}


@pytest.mark.parametrize("name", MADE)
def test_each_is_named_and_rebuilt(name):
    made = MADE[name]
    assert made.__name__ == name and rewards.names([made]) == [name]
    again = resolve(json.loads(json.dumps(refer(made))))
    assert again == made and again is not made


def test_plain_functions_are_rebuilt():
    for fn in (rewards.think_format, rewards.reasoning_math_answer, rewards.number, rewards.exact_match):
        assert resolve(refer(fn)) is fn
    partial = functools.partial(rewards.reasoning_math_answer, reasoning_delimiters=["</r>"])
    assert resolve(json.loads(json.dumps(refer(partial)))).keywords == {"reasoning_delimiters": ["</r>"]}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: rewards.tag_format("think"), "tags must be a list of names"),
        (lambda: rewards.tag_format(["<think>"]), "'<think>' must be a name without brackets"),
        (lambda: rewards.tag_count([]), "one name or more"),
        (lambda: rewards.tag_count(["a", "a"]), "each once"),
        (lambda: rewards.length(), "a target or a limit, one of the two"),
        (lambda: rewards.length(target=3, limit=3), "one of the two"),
        (lambda: rewards.length(limit=0), "limit=0 must be a whole number from 1"),
        (lambda: rewards.length(limit=3, width=0), "width=0 must be above 0"),
        (lambda: rewards.soft_overlong(10, 11), "cache=11 must be at most max_length=10"),
        (lambda: rewards.soft_overlong(1.5, 1), "max_length=1.5 must be a whole number"),
        (lambda: rewards.soft_overlong(True, 1), "max_length=True must be a whole number"),
        (lambda: rewards.cosine_length(10, exceed="x"), "exceed='x' must be a finite number"),
        (lambda: rewards.cosine_length(10, max_value_wrong=None), "max_value_wrong=None must be a finite number"),
        (lambda: rewards.cosine_length(10, correct="numbre"), "Did you mean 'number'"),
        (lambda: rewards.repetition(0), "ngram=0 must be a whole number from 1"),
        (lambda: rewards.repetition(max_penalty=0.5), "must not be above 0"),
        (lambda: rewards.repetition(unit="word"), "Did you mean 'words'"),
        (lambda: rewards.language_share("cyrilic"), "Did you mean 'cyrillic'"),
        (lambda: rewards.language_share([]), "a name or a list of names"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(SettingError, match=words):
        make()


# Weighted sums


def test_weights_by_name_and_parts_that_do_not_apply():
    rows = [{"prompt": "p", "answer": answer} for answer in ("2", "none", "2")]
    functions = [rewards.number, rewards.tag_count(["a"]), rewards.soft_overlong(4, 2)]
    task = Task(rows, functions, weights={"soft_overlong": 0.5, "number": 2})
    assert task.weights == [2.0, 1.0, 0.5]
    ids = [[1], [1, 2, 3], [1, 2, 3, 4, 5]]
    table = task.score(["p"] * 3, ["2", "<a>", "<a></a> 3"], ids, {"answer": ["2", "none", "2"]})
    np.testing.assert_array_equal(table.parts["number"], [1.0, np.nan, 0.0])
    # 2 + 0 + 0; no number, so 1/2 + 0.5 x -1/2; 0 + 1 + 0.5 x -1
    assert table.total.tolist() == [2.0, 0.25, 0.5]
    assert rebuild(json.loads(json.dumps(task.spec())), rows).weights == [2.0, 1.0, 0.5]
    assert task.with_rewards(functions, {"tag_count": 3}).weights == [1.0, 3.0, 1.0]
    assert Task(rows, functions).weights == Task(rows, functions, weights={}).weights == [1.0, 1.0, 1.0]
    with pytest.raises(SettingError, match="weights has 'nubmer'.*Did you mean 'number'"):
        Task(rows, functions, weights={"nubmer": 1})
    with pytest.raises(SettingError, match=r"weights\[0\] is nan"):
        Task(rows, functions, weights={"number": float("nan")})


def test_each_part_is_a_curve_of_its_own(tmp_path):
    import workbench as wb
    from tests.models import tiny_policy

    task = wb.Task(
        [{"prompt": f"{i}:", "answer": None if i == 1 else "7"} for i in range(2)],
        [wb.rewards.exact_match, wb.rewards.length(target=3), wb.rewards.repetition(1)],
        weights={"length": 0.5},
    )
    run = wb.grpo(
        tiny_policy(tmp_path / "model", lora=True), task, steps=1, prompts_per_step=2, group_size=4, max_new_tokens=6,
        out=tmp_path / "run",
    )  # fmt: skip
    (step,) = run
    metrics, parts = step.metrics, step.rollouts.rewards
    assert list(parts) == ["exact_match", "length", "repetition"]
    assert np.isnan(parts["exact_match"]).sum() == 4
    for name, values in parts.items():
        assert metrics[f"rewards/{name}/mean"] == pytest.approx(np.nanmean(values))
    total = np.nan_to_num(parts["exact_match"]) + 0.5 * parts["length"] + parts["repetition"]
    assert metrics["reward"] == pytest.approx(total.mean())
    assert wb.open(tmp_path / "run").metrics["rewards/length/mean"].iloc[-1] == metrics["rewards/length/mean"]
