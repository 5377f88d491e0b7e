"""Reward functions are called as TRL 1.16 calls them, and everything that is not a reward is told apart."""

import asyncio
import functools
import re
import threading
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from workbench import rewards
from workbench.errors import Interrupted, RewardError, SettingError

NAN = float("nan")


def score(*functions, completions=("a", "bb", "ccc"), prompts=None, ids=None, weights=None, **columns):
    """`rewards.score` of a few completions under as many equal prompts."""
    prompts = prompts or ["p"] * len(completions)
    return rewards.score(list(functions), weights, prompts, list(completions), ids, columns)


def answering(output):
    """A reward function that returns `output`."""

    def answer(completions, **kwargs):
        return output

    return answer


# TRL's own functions, unchanged


def chat(*texts):
    return [[{"role": "user", "content": "q"}]] * len(texts), texts


def test_trl_think_format_reward():
    from trl.rewards import think_format_reward

    prompts, texts = chat("<think>a</think>b", "<think>a b")
    table = score(think_format_reward, prompts=prompts, completions=texts)
    assert table.parts["think_format_reward"].tolist() == [1.0, 0.0]


def test_trl_accuracy_reward_and_its_extra_columns():
    from trl.rewards import accuracy_reward

    prompts, texts = chat(r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", r"\boxed{2}")
    table = score(
        accuracy_reward, prompts=prompts, completions=texts, solution=[r"\frac{1}{3}", r"\frac{1}{3}", ""]
    )
    np.testing.assert_array_equal(table.total, [1.0, 0.0, NAN])
    assert set(table.extra) == {"solution", "gold_parsed", "answer_parsed"}
    assert table.extra["answer_parsed"][2] == "[skipped]"


def test_trl_reasoning_accuracy_reward():
    from trl.rewards import reasoning_accuracy_reward

    prompts, texts = chat(r"<think>x</think> \boxed{2}", r"<think>\boxed{2}")
    table = score(reasoning_accuracy_reward, prompts=prompts, completions=texts, solution=["2", "2"])
    assert table.total.tolist() == [1.0, 0.0]


def test_trl_rewards_of_completion_ids():
    from trl.rewards import (
        get_cosine_scaled_reward,
        get_repetition_penalty_reward,
        get_soft_overlong_punishment,
    )

    prompts, texts = chat(r"\boxed{2}", r"\boxed{3}")
    table = score(
        get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20),
        get_repetition_penalty_reward(ngram_size=2),
        get_cosine_scaled_reward(max_len=180),
        prompts=prompts,
        completions=texts,
        ids=[[1] * 90, list(range(90))],
        solution=["2", "2"],
    )
    assert table.parts["soft_overlong_punishment_reward"].tolist() == [-0.5, -0.5]
    assert table.parts["repetition_penalty_reward"].tolist() == pytest.approx([-88 / 89, 0.0])
    assert table.parts["cosine_scaled_reward"].tolist() == pytest.approx([0.75, -0.75])


def test_functions_of_trl_documentation():
    def reward_func(completion_ids, **kwargs):
        """Reward function that assigns higher scores to longer completions (in terms of token count)."""
        return [float(len(ids)) for ids in completion_ids]

    def format_reward_func(completions, **kwargs):
        """Reward function that checks if the completion has a specific format."""
        pattern = r"^<think>.*?</think><answer>.*?</answer>$"
        completion_contents = [completion[0]["content"] for completion in completions]
        matches = [re.match(pattern, content) for content in completion_contents]
        return [1.0 if match else 0.0 for match in matches]

    def math_reward_func(prompts, completions, task, **kwargs):
        return [1.0 if kind == "math" else None for kind in task]

    def coding_reward_func(prompts, completions, task, **kwargs):
        return [2.0 if kind == "coding" else None for kind in task]

    async def async_reward_func(prompts, completions, **kwargs):
        await asyncio.sleep(0.01)
        return [len(set(completion[0]["content"])) for completion in completions]

    prompts, texts = chat("<think>a</think><answer>b</answer>", "aab", "")
    table = score(
        reward_func,
        format_reward_func,
        math_reward_func,
        coding_reward_func,
        async_reward_func,
        prompts=prompts,
        completions=texts,
        ids=[[5, 6], [7], [0]],
        task=["math", "coding", "other"],
    )
    assert table.parts["reward_func"].tolist() == [2.0, 1.0, 1.0]
    assert table.parts["format_reward_func"].tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_array_equal(table.parts["math_reward_func"], [1.0, NAN, NAN])
    np.testing.assert_array_equal(table.parts["coding_reward_func"], [NAN, 2.0, NAN])
    assert table.parts["async_reward_func"].tolist() == [len(set(texts[0])), 2.0, 0.0]
    assert list(table.parts) == [
        "reward_func", "format_reward_func", "math_reward_func", "coding_reward_func", "async_reward_func",
    ]  # fmt: skip


def test_what_a_call_gets_is_what_trl_gives():
    """GRPOTrainer._calculate_rewards itself, on the same functions: same keywords, same numbers, same "
    "logs."""
    import accelerate
    import torch
    from trl.trainer.grpo_trainer import GRPOTrainer

    seen = []

    def record(prompts, completions, completion_ids, **kwargs):
        plain = {k: v for k, v in kwargs.items() if k not in ("trainer_state", "log_extra", "log_metric")}
        seen.append((prompts, completions, completion_ids, plain, sorted(set(kwargs) - set(plain))))
        kwargs["log_extra"]("length", [len(c[0]["content"]) for c in completions])
        kwargs["log_metric"]("half", 0.5)
        kwargs["log_metric"]("half", 1.5)
        return [0.25, None, True, None]

    async def later(completions, answer, **kwargs):
        return [None, None, -1, int(answer[3])]

    accelerate.PartialState()  # TRL's logger asks it whether this is the main process
    functions = [record, later]
    rows = [
        {"prompt": [{"role": "user", "content": f"q{i}"}], "answer": str(i), "completion": "x"}
        for i in range(4)
    ]
    prompts, texts, ids = [row["prompt"] for row in rows], ["a", "bb", "", "d"], [[1], [2, 3], [4], [5]]
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        reward_funcs=functions,
        reward_processing_classes=[None, None],
        reward_func_names=["record", "later"],
        state=SimpleNamespace(global_step=3),
        args=SimpleNamespace(report_to=[]),
        environments=None,
        async_loop=loop,
        _log_completion_extra=lambda column, values: None,
        _log_metric=lambda name, value: None,
    )
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    theirs = GRPOTrainer._calculate_rewards(trainer, rows, prompts, messages, ids)
    weights = torch.tensor([2.0, 0.5])
    total = (theirs * weights).nansum(dim=1)
    total[torch.isnan(theirs).all(dim=1)] = torch.nan
    loop.call_soon_threadsafe(loop.stop)

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    ours = rewards.score(functions, [2.0, 0.5], prompts, texts, ids, columns)
    assert seen[0] == seen[1]
    assert seen[0][3] == {"answer": ["0", "1", "2", "3"]}
    np.testing.assert_array_equal(np.stack(list(ours.parts.values()), axis=1), theirs.numpy())
    np.testing.assert_array_equal(ours.total, total.numpy())
    np.testing.assert_array_equal(ours.total, [0.5, NAN, 1.5, 1.5])
    assert ours.extra == {"length": [1, 2, 0, 1]} and ours.logged_metrics == {"half": 1.0}


# The calling convention


def test_functions_get_what_they_name():
    def bare(completions):
        return [len(c) for c in completions]

    def state(trainer_state, answer):
        return [trainer_state.global_step + a for a in answer]

    table = rewards.score(
        [bare, state], None, ["p", "p"], ["a", "bb"], None, {"answer": [1, 2], "unused": [0, 0]},
        trainer_state=rewards.TrainerState(global_step=10, max_steps=20),
    )  # fmt: skip
    assert table.total.tolist() == [12.0, 14.0]


def test_plain_prompts_give_text_and_conversations_give_messages():
    seen = []

    def look(completions, **kwargs):
        seen.append(completions)
        return [0] * len(completions)

    score(look, completions=["a"])
    score(look, completions=["a"], prompts=[[{"role": "user", "content": "q"}]])
    assert seen == [["a"], [[{"role": "assistant", "content": "a"}]]]


def test_a_function_cannot_spoil_the_next_ones_lists():
    def greedy(completions, answer, **kwargs):
        completions.clear()
        answer.clear()
        return [0.0] * 3

    def count(completions, answer, **kwargs):
        return [len(completions), len(answer), 0]

    assert score(greedy, count, answer=[1, 2, 3]).parts["count"].tolist() == [3.0, 3.0, 0.0]


def test_kinds_of_numbers():
    import torch

    table = score(
        answering([True, np.float32(0.5), torch.tensor(2.0)]),
        answering(np.array([1, 2, 3])),
        answering(torch.tensor([0.5, 1.5, 2.5], requires_grad=True)),
        answering((None, Decimal("0.25"), Fraction(1, 4))),
        answering(iter([np.int64(1), np.bool_(False), np.array(3)])),
    )
    assert list(table.parts) == ["answer", "answer_2", "answer_3", "answer_4", "answer_5"]
    np.testing.assert_array_equal(table.parts["answer"], [1, 0.5, 2])
    np.testing.assert_array_equal(table.parts["answer_2"], [1, 2, 3])
    np.testing.assert_array_equal(table.parts["answer_3"], [0.5, 1.5, 2.5])
    np.testing.assert_array_equal(table.parts["answer_4"], [NAN, 0.25, 0.25])
    np.testing.assert_array_equal(table.parts["answer_5"], [1, 0, 3])
    assert table.total.dtype == np.float64


def test_names():
    def f(completions):
        return []

    def f_2(completions):
        return []

    f_2.__name__ = "f_2"
    named = rewards.names([f, f, f_2, functools.partial(f, x=1), lambda c: c, rewards.matches("x")])
    assert named == ["f", "f_2", "f_2_2", "f_3", "lambda", "matches"]


def test_no_completions():
    table = rewards.score([answering([])], None, [], [], [], {})
    assert len(table) == 0 and table.parts["answer"].shape == (0,)


def test_logs_of_two_functions():
    def one(completions, log_extra, log_metric):
        for completion in completions:  # piece by piece is as good as at once
            log_extra("text", [completion])
        log_metric("m", 1)
        return [0.0] * len(completions)

    def two(completions, log_extra, log_metric):
        log_extra("text", [c.upper() for c in completions])
        log_metric("m", 2)
        return [0.0] * len(completions)

    table = score(one, two, completions=["a", "b"])
    assert table.extra == {"text": ["a", "b"], "two/text": ["A", "B"]}
    assert table.logged_metrics == {"m": 1.5}


# Async functions


def side_by_side():
    """Two async functions that wait for each other: alone, neither would end."""
    events = {}

    async def meet(mine, other):
        events.setdefault(mine, asyncio.Event()).set()
        await asyncio.wait_for(events.setdefault(other, asyncio.Event()).wait(), 5)
        return [1.0, 2.0, 3.0]

    async def first(completions, **kwargs):
        return await meet("first", "second")

    class Second:
        async def __call__(self, completions, **kwargs):
            return await meet("second", "first")

    return first, Second()


def test_async_functions_run_side_by_side_on_this_thread():
    first, second = side_by_side()
    threads = []

    async def where(completions, **kwargs):
        threads.append(threading.current_thread())
        return [0, 0, 0]

    table = score(first, second, where)
    assert table.total.tolist() == [2.0, 4.0, 6.0]
    assert threads == [threading.current_thread()]


def test_async_functions_inside_a_running_loop_as_in_a_notebook():
    first, second = side_by_side()

    async def cell():
        return score(first, second)

    assert asyncio.run(cell()).total.tolist() == [2.0, 4.0, 6.0]


def test_async_functions_on_another_thread_keep_their_loop():
    loops, totals = [], []

    async def reward(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [1, 1, 1]

    def work():
        totals.extend([score(reward).total.tolist(), score(functools.partial(reward)).total.tolist()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert totals == [[1.0] * 3] * 2
    assert loops[0] is loops[1]  # a client that a reward keeps open stays usable


def test_a_plain_function_that_gives_a_coroutine():
    async def inner(n):
        return [1.0] * n

    assert score(lambda completions: inner(len(completions))).total.tolist() == [1.0] * 3


# What goes wrong


def test_an_exception_names_function_row_and_completion():
    calls = []

    def divide(completions, log_metric, **kwargs):
        calls.append(len(completions))
        log_metric("calls", 1)
        return [1 / (len(c) - 2) for c in completions]

    with pytest.raises(RewardError) as caught:
        score(divide, completions=["a", "bb", "x" * 1000])
    message = str(caught.value)
    assert "'divide' raised ZeroDivisionError" in message and "test_rewards.py" in message
    assert "row 1 of 3" in message and "'bb'" in message and "Nothing was updated" in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert calls == [3, 1, 1]  # the batch, then single rows until one fails


def test_an_exception_of_the_batch_only():
    def pick(completions, **kwargs):
        if len(completions) > 1:
            raise KeyError("many")
        return [1.0]

    with pytest.raises(RewardError, match=r"KeyError.*batch of 3 completions, though for none of them alone"):
        score(pick)


def test_an_exception_of_an_async_function():
    async def judge(completions, **kwargs):
        if "bb" in completions:
            raise ConnectionError("no route")
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=r"'judge' raised ConnectionError: no route.*row 1 of 3.*'bb'"):
        score(answering([1, 1, 1]), judge)


def test_a_long_completion_is_shortened_and_control_characters_are_escaped():
    with pytest.raises(RewardError) as caught:
        score(answering(["?"]), completions=["\x1b[31m" + "x" * 5000 + "END"])
    assert len(str(caught.value)) < 500 and "END" in str(caught.value) and "\x1b" not in str(caught.value)


def test_interrupted_passes_through():
    def stop(completions, **kwargs):
        raise Interrupted("stop")

    async def stop_later(completions, **kwargs):
        raise Interrupted("stop")

    for fn in (stop, stop_later):
        with pytest.raises(Interrupted):
            score(fn)


@pytest.mark.parametrize(
    "output, words",
    [
        ([1.0, 2.0], "returned 2 rewards for 3 completions.*exactly one per completion"),
        (None, "returned None.*`return` missing"),
        (1.0, r"returned 1.0 \(float\), not a list of 3 rewards"),
        ("abc", r"returned 'abc' \(str\), not a list of 3"),
        ({0.5, 1.0, 2.0}, r"\(set\), not a list of 3"),
        ({"a": 1}, r"\(dict\), not a list of 3"),
        (np.ones((3, 1)), r"shape \(3, 1\)"),
        (np.float64(1), "not a list of 3"),
        ([1.0, NAN, 0.0], r"nan \(float\) for row 1 of 3.*return None where.*'bb'"),
        ([1.0, 0.0, float("inf")], "inf .*row 2 of 3.*must be finite.*'ccc'"),
        (np.array([1.0, NAN, 0.0]), "nan .*row 1 of 3"),
        (["1", 0, 0], r"'1' \(str\) for row 0 of 3.*a number or None"),
        ([0, [1.0], 0], r"\[1.0\] \(list\) for row 1"),
        ([0, 1j, 0], "row 1.*a number or None"),
        ([0, 10**5000, 0], "row 1.*must be finite"),
    ],
)
def test_what_is_not_a_reward(output, words):
    with pytest.raises(RewardError, match=f"(?s)'answer'.*{words}.*Nothing was updated"):
        score(answering(output))


def test_completion_ids_that_are_not_there():
    def length(completion_ids):
        return [len(ids) for ids in completion_ids]

    with pytest.raises(RewardError, match="'length' needs completion_ids.*given as text"):
        score(length)
    with pytest.raises(RewardError, match="'length' needs completion_ids"):
        score(length, ids=[[], [], []])  # what Rollouts.of has for texts
    assert score(length, completions=["", "a"], ids=[[], [4, 5]]).total.tolist() == [0.0, 2.0]


def test_columns_that_are_not_there_or_too_short():
    def right(completions, anwser):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="'right' needs 'anwser'.*Did you mean 'answer'"):
        score(right, answer=[1, 2, 3])
    with pytest.raises(RewardError, match="Scoring 3 completions: 'answer' has 2 entries"):
        score(answering([0, 0, 0]), answer=[1, 2])
    with pytest.raises(RewardError, match="Rename the row column 'log_metric'"):
        score(answering([0, 0, 0]), log_metric=[1, 2, 3])


def test_logs_that_are_not_logs():
    def extra(completions, log_extra):
        log_extra("column", [1])
        return [0.0] * len(completions)

    def metric(completions, log_metric):
        log_metric("m", "high")
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"'extra' gave log_extra\('column', ...\) 1 values for 3"):
        score(extra)
    with pytest.raises(RewardError, match=r"'metric' raised TypeError: log_metric\('m', 'high'\)"):
        score(metric)


def test_functions_and_weights_that_do_not_go_together():
    import torch

    good = answering([0, 0, 0])
    for functions, weights, words in [
        ([], None, "at least one function"),
        ("accuracy", None, "at least one function, not 'accuracy'"),
        (good, None, r"rewards=\[answer\]"),
        (["good"], None, r"rewards\[0\] is 'good', not a function"),
        ([torch.nn.Linear(1, 1)], None, r"rewards\[0\] is a torch module \(Linear\)"),
        ([rewards.matches], None, r"rewards\[0\] is the class matches"),
        ([good], [1.0, 2.0], "1 functions, 2 weights"),
        ([good], 1.0, "1 functions, 1 weights"),
        ([good], [NAN], r"weights\[0\] is nan"),
        ([good], ["1"], r"weights\[0\] is '1'"),
    ]:
        with pytest.raises(SettingError, match=words):
            rewards.score(functions, weights, ["p"], ["c"], None, {})
