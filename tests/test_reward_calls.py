"""Reward functions on the bench are called as in training, with copies of everything."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import threading
import time

import numpy as np
import pytest
import torch

import workbench as wb
from tests.test_check_rewards import ROWS, check, right
from workbench.reward_bench import calls


def test_scores_are_those_of_training():
    def part(completions, answer, prompts, trainer_state, log_metric, log_extra, **kwargs):
        log_metric("seen", 1.0)
        log_extra("text", completions)
        return [None if "<" in text else 0.1 * len(text) for text in completions]

    task = wb.Task(ROWS, [right, part], weights=[2.0, 0.5])
    table = wb.check_rewards(task, n=3).table
    for i in range(3):
        own = table[table["row"] == i]
        texts, n = list(own["completion"]), len(own)
        made = task.score([ROWS[i]["prompt"]] * n, texts, None, {"answer": [ROWS[i]["answer"]] * n})
        assert np.array_equal(own["reward"], made.total, equal_nan=True)
        for name, values in made.parts.items():
            assert np.array_equal(own[f"rewards/{name}"], values, equal_nan=True)


def test_chats_partials_objects_and_async_functions():
    seen = []

    class Judge:
        def __init__(self):
            self.__name__ = "judge"

        async def __call__(self, completions, prompts, **kwargs):
            await asyncio.sleep(0)
            seen.append((prompts[0], completions[0]))
            return [float(c[0]["content"] == "65") for c in completions]

    def later(completions, answer, worth):
        async def made():
            return [worth * (c[0]["content"] == str(a)) for c, a in zip(completions, answer, strict=True)]

        return made()

    chat = [{"role": "user", "content": "27 + 38?"}]
    found = check(Judge(), functools.partial(later, worth=0.5), rows=[{"prompt": chat, "answer": 65}])
    assert seen[0] == (chat, [{"role": "assistant", "content": "65"}])
    assert found.summary.loc[["judge", "later"], "good"].tolist() == [1.0, 0.5]
    assert found.summary["exceptions"].sum() == 0


def test_what_a_function_changes_is_its_own_copy():
    rows = [{"prompt": [{"role": "user", "content": "27 + 38?"}], "answer": ["65"]}]

    def spoils(prompts, completions, answer, **kwargs):
        for prompt, completion, own in zip(prompts, completions, answer, strict=True):
            prompt.clear(), completion.clear(), own.clear()
        prompts.clear(), completions.clear()
        return [0.0] * len(answer)

    def reads(prompts, completions, answer, **kwargs):
        return [
            float(p[0]["content"] == "27 + 38?" and c[0]["content"] == a[0])
            for p, c, a in zip(prompts, completions, answer, strict=True)
        ]

    def takes(completions, answer, **kwargs):
        return [float(c[0]["content"] == a.pop()) for c, a in zip(completions, answer, strict=True)]

    assert check(takes, rows=rows).findings == []
    task = wb.Task(rows, [spoils, reads])
    found = wb.check_rewards(task)
    assert found.summary.loc["reads", "good"] == 1 and found.summary.loc["spoils", "exceptions"] == 0
    assert task.rows[0] == rows[0] and found.again().summary.loc["reads", "good"] == 1


def test_watching_a_function_keeps_its_signature():
    watch = calls.Watch(functools.partial(right, answer=1), 2, 10.0)
    assert inspect.signature(watch.wrapped()) == inspect.signature(functools.partial(right, answer=1))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_process_is_an_error_of_the_function(error):
    def leaves(completions, **kwargs):
        raise error

    async def leaves_later(completions, **kwargs):
        raise error

    found = check(leaves, leaves_later, right)
    assert found.summary.loc[["leaves", "leaves_later"], "exceptions"].tolist() == [len(found.table)] * 2
    assert found.summary.loc["right", "good"] == 1


def test_an_async_function_that_hangs_is_stopped_by_its_loop():
    ended = []

    async def waits(completions, **kwargs):
        try:
            await asyncio.sleep(20)
        finally:
            ended.append(len(completions))

    async def gives_up(completions, **kwargs):
        raise TimeoutError("the judge is away")

    found = check(waits, gives_up, right, timeout=0.1)
    assert len(ended) == calls.LATE_CALLS and found.summary.loc["waits", "late"] == calls.LATE_CALLS - 1
    assert not [f for f in found.findings if "could not be stopped" in f.text]
    assert found.summary.loc["gives_up", "late"] == 0 and found.summary.loc["gives_up", "exceptions"] > 0


def test_a_thread_that_was_given_up_ends_with_its_call():
    def refuses(completions, **kwargs):
        for _ in range(2):
            try:
                until = time.monotonic() + 0.3
                while time.monotonic() < until:
                    pass
            except BaseException:
                pass
        return [0.0] * len(completions)

    before = {thread for thread in threading.enumerate()}
    check(refuses, timeout=0.05)
    left = [thread for thread in threading.enumerate() if thread not in before and thread.name == "workbench-rewards"]
    for thread in left:
        thread.join(timeout=5)
    assert not [thread for thread in left if thread.is_alive() and thread is not calls._hand.thread]


def test_the_global_random_generators_stand_as_they_stood():
    def draws(completions, **kwargs):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        return [0.0] * len(completions)

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    found = check(draws, right)
    assert states() == before
    found.again()
    assert states() == before
