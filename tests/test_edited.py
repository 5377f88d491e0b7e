"""A reward edited in a notebook and not used yet: noticed after the cell, said once, with the call that uses it."""

from __future__ import annotations

import time

import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import make_run, rows_for
from workbench import edited
from workbench.control import Control

DEFINE = """
import functools

def ends(text):
    return text.endswith("x")

def correct(completions, **kwargs):
    return [float(ends(text)) for text in completions]

def brief(completions, **kwargs):
    return [-float(len(text)) for text in completions]
"""
EDITED = "def correct(completions, **kwargs):\n    return [2.0 * ends(text) for text in completions]\n"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model", lora=True)


@pytest.fixture
def shell(monkeypatch):
    """IPython in this process, with a namespace of its own."""
    from IPython.core.interactiveshell import InteractiveShell

    made = InteractiveShell.instance()
    made.user_ns["wb"] = wb
    yield made
    edited._watched.clear()
    made.user_ns.clear()
    InteractiveShell.clear_instance()
    import builtins

    if hasattr(builtins, "get_ipython"):
        del builtins.get_ipython


@pytest.fixture
def cell(shell, capsys):
    def run(source: str) -> str:
        capsys.readouterr()
        assert shell.run_cell(source).success
        return capsys.readouterr().out

    return run


def begin(shell, cell, policy, tmp_path, rewards="[correct, brief]", define=DEFINE, **settings):
    cell(define)
    shell.user_ns |= {"policy": policy, "rows": rows_for("grpo"), "out": tmp_path / "run", "settings": settings}
    assert cell(f"task = wb.Task(rows, rewards={rewards})") == ""
    said = cell(
        "demo = wb.grpo(policy, task, out=out, **(dict(steps=4, prompts_per_step=2, group_size=2, max_new_tokens=3) |"
        " settings))"
    )
    assert said == ""
    return shell.user_ns["demo"]


def test_an_edit_is_said_once_with_the_call_and_the_call_ends_it(shell, cell, policy, tmp_path):
    run = begin(shell, cell, policy, tmp_path)
    assert cell("x = 1") == "" and cell(DEFINE) == "", "a cell that is run again unchanged says nothing"
    assert cell("# moved\n\n" + DEFINE.replace("import functools", "\n\n\n")) == "", "nor one whose lines moved"
    said = cell(EDITED)
    assert said == (
        "`correct` was edited, but run run still rewards with the earlier one. To use it from the next step:"
        " demo.set(rewards=[correct, brief])\n"
    )
    assert cell("x = 2") == "" and cell(EDITED) == "", "said once"
    assert "2.5" not in said and "`correct` was edited" in cell(EDITED.replace("2.0", "2.5"))
    control = Control(run)
    (notice,) = control.notices()
    assert notice == {"name": "correct", "variable": "correct", "call": "demo.set(rewards=[correct, brief])"}
    assert cell("done = demo.set(rewards=[correct, brief])") == "" and control.notices() == []
    assert cell("x = 3") == ""
    task = run.engine.live.data.task
    assert task.functions["correct"] is shell.user_ns["correct"]
    assert "`correct` was edited" in cell(DEFINE), "back to the first one is an edit, too"
    assert cell(EDITED.replace("2.0", "2.5")) == "" and "`correct` was edited" in cell(DEFINE), "taken back, and again"


def test_weights_names_and_several_edits(shell, cell, policy, tmp_path):
    begin(shell, cell, policy, tmp_path, "{'right': correct, 'short': brief}, weights=[1.0, 0.5]")
    both = EDITED + "def brief(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    assert cell(both) == (
        "`correct` and `brief` were edited, but run run still rewards with the earlier ones. To use them from the next"
        " step: demo.set(rewards={'right': correct, 'short': brief}, weights=[1.0, 0.5])\n"
    )
    assert cell("done = demo.set(rewards={'right': correct, 'short': brief}, weights=[1.0, 0.5])") == ""
    assert edited.edits(shell.user_ns["demo"]) == []


def test_a_press_uses_the_edited_ones_with_their_weights(shell, cell, policy, tmp_path):
    run = begin(shell, cell, policy, tmp_path, "[correct, brief], weights=[1.0, 0.5]")
    cell(EDITED)
    import threading

    heard, event = [], threading.Event()
    Control(run).act("use", {}, lambda words, failed: (heard.append((words, failed)), event.set()))
    assert event.wait(20) and heard == [("rewarding with correct, brief from step 1 on", "")]
    task = run.engine.live.data.task
    assert task.weights == [1.0, 0.5] and task.functions["correct"] is shell.user_ns["correct"]
    assert edited.edits(run) == [] and cell("x = 1") == ""
    assert run.store.events()["kind"].tolist() == ["set"]


def test_lambdas_partials_and_objects_in_variables(shell, cell, policy, tmp_path):
    define = DEFINE + (
        "class Long:\n    def __init__(self, k):\n        self.k = k\n"
        "    def __call__(self, completions, **kwargs):\n        return [float(len(c) > self.k) for c in completions]\n"
        "def near(completions, by=1.0, **kwargs):\n    return [by for _ in completions]\n"
        "twice = lambda completions, **kwargs: [2.0 for _ in completions]\n"
        "half = functools.partial(near, by=0.5)\nlong = Long(3)\n"
    )
    begin(shell, cell, policy, tmp_path, "[twice, half, long]", define)
    assert cell(define) == "", "made anew, and all the same"
    calls = "demo.set(rewards=[twice, half, long])"
    for edit in (
        "twice = lambda completions, **kwargs: [3.0 for _ in completions]",
        "half = functools.partial(near, by=0.25)",
        "long = Long(4)",
    ):
        said = cell(edit)
        assert f"`{edit.split()[0]}`" in said and calls in said
    assert cell("twice = 3") == "", "no function any more: nothing to use"


def test_a_helper_is_used_at_once_and_that_is_said(shell, cell, policy, tmp_path):
    begin(shell, cell, policy, tmp_path)
    said = cell("def ends(text):\n    return text.endswith('y')\n")
    assert "`ends`, which the reward `correct` of run run calls, was edited" in said
    assert said.count("\n") == 1 and "demo.set(rewards=[correct, brief])" in said
    assert cell("x = 1") == ""


def test_what_changes_nothing_is_no_edit(shell, cell, policy, tmp_path):
    define = (
        "def lower(text):\n    return text\n"
        "def correct(completions, missing=float('nan'), **kwargs):\n    'Said.'\n"
        "    return [float(len(text.lower())) for text in completions]\n"
        "def brief(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    begin(shell, cell, policy, tmp_path, define=define)
    assert cell(define) == "", "NaN is not itself"
    assert cell(define.replace("Said.", "Said otherwise.")) == "", "its docstring"
    assert cell("def lower(text):\n    return text + '!'\n") == "", "an attribute is no function of the notebook"


def test_a_function_that_is_changed_in_its_place_is_used_at_once_and_that_is_said(shell, cell, policy, tmp_path):
    begin(shell, cell, policy, tmp_path)
    said = cell("correct.__code__ = (lambda completions, **kwargs: [2.0] * len(completions)).__code__")  # as autoreload
    assert said.startswith("The reward `correct` of run run was edited: the run scores with the new one from its next")
    assert said.count("\n") == 1 and "demo.set(rewards=[correct, brief])" in said and cell("x = 1") == ""


def test_what_cannot_be_named_is_said_in_words(shell, cell, policy, tmp_path):
    begin(shell, cell, policy, tmp_path, "[correct, (lambda completions, **kwargs: [0.0 for _ in completions])]")
    said = cell(EDITED)
    assert "demo.set(rewards=[correct, ...]) (for each ... the function that you gave for lambda)" in said


def test_a_run_that_ended_or_was_let_go_says_nothing(shell, cell, policy, tmp_path):
    run = begin(shell, cell, policy, tmp_path, steps=1)
    cell("done = demo.run()")
    assert run.status == "finished" and cell(EDITED) == ""
    cell(DEFINE)
    other = begin(shell, cell, policy, tmp_path / "other")
    other._ready()
    cell("demo.stop() and None")
    assert cell(EDITED) == ""
    shell.user_ns.pop("demo")


def test_rewards_of_other_modules_and_methods_without_rewards(shell, cell, policy, tmp_path):
    run = begin(shell, cell, policy, tmp_path, "[len_of, brief]", DEFINE + "from tests.runs import letters as len_of\n")
    assert cell("def letters(completions, **kwargs):\n    return 1\n") == "", "only its name is the same"
    assert edited.edits(run) == []
    plain = make_run("sft", tmp_path / "sft", policy)
    plain._ready()
    assert edited.edits(plain) == [] and cell("x = 1") == ""


def test_a_run_is_not_kept_alive_and_cells_are_not_slowed(shell, cell, policy, tmp_path):
    import gc
    import weakref

    run = begin(shell, cell, policy, tmp_path)
    cell(EDITED)
    shell.user_ns |= {f"name{i}": i for i in range(5000)}
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        edited._after_cell()
        best = min(best, time.perf_counter() - began)
    assert best < 0.005
    assert shell.events.callbacks["post_run_cell"].count(edited._after_cell) == 1
    gone = weakref.ref(run)
    del run
    del shell.user_ns["demo"]
    gc.collect()
    assert gone() is None or len(gc.get_referrers(gone())) <= 1


def test_outside_ipython_nothing_is_watched(policy, tmp_path):
    run = make_run("grpo", tmp_path, policy)
    assert edited.edits(run) == [] and edited.variable_of(run) == "run"


def test_what_makes_two_functions_the_same():
    def made(by, default=1):
        def inner(x, y=default):
            return x * by + y + sum(z for z in [x])

        return inner

    same, print_of = made(2), edited.fingerprint
    assert print_of(same) == print_of(made(2))
    assert print_of(same) != print_of(made(3)), "what it closes over"
    assert print_of(same) != print_of(made(2, 5)), "its defaults"
    assert print_of(lambda x: x + 1) != print_of(lambda x: x + 2)
    assert print_of(lambda x: [y for y in x]) != print_of(lambda x: [y + 1 for y in x]), "code inside the code"
    assert print_of(lambda x: abs(x)) != print_of(lambda x: len(x))

    def again():
        return again

    assert print_of(again), "a function that holds itself"
