"""The script of a run makes the run again."""


from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import letters, make_run, rows_for

ROOT = Path(__file__).resolve().parents[1]

BONUS = 2.0


def shifted(values):
    return [value + BONUS for value in values]


def by_length(completions, **kwargs):
    return shifted([float(len(text) % 5) for text in completions])


DRIVER = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--out", script.replace(".py", "_again")]
    runpy.run_path(script, run_name="__main__")
"""


def again(folder: Path, names: list[str]) -> str:
    """Run scripts, one after the other, in one process of their own; returns what they printed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *(str(folder / f"{name}.py") for name in names)], capture_output=True, text=True,
        timeout=170, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def fresh(folder: Path):
    """A policy that can be loaded again as it began: its adapter is as `attach` made it."""
    return tiny_policy(folder / "model").attach(wb.LoRA(r=4, alpha=8))


def assert_again(run, folder: Path) -> None:
    """The script's run has the run's metrics, bit by bit, at every step it has, and its last weights."""
    made = wb.open(folder)
    assert made.step == run.step
    for step in run.metrics.index:
        old, new = run.store.step_metrics(step), made.store.step_metrics(step)
        assert {k: repr(v) for k, v in old.items()} == {k: repr(v) for k, v in new.items()}, step
    ours, theirs = (r.engine.state.params for r in (run, wb.resume(folder, rewards=None, policy=run.engine.policy)))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()


def changed_run(method: str, tmp_path: Path):
    """Three steps, back to the first, two changes, and on."""
    run = make_run(method, tmp_path, policy=fresh(tmp_path), out=method, eval_dataset=rows_for(method, 4), steps=4)
    run.run(3)
    run.rewind(1)
    run.set(lr=3e-3)
    run.run(1)
    run.set(max_grad_norm=0.5, steps=5)
    return run.run()


def forked_run(tmp_path: Path):
    """A fork, with other rewards than its parent had, which themselves were changed."""
    run = make_run("grpo", tmp_path, policy=fresh(tmp_path), steps=4)
    run.set(rewards=[by_length])
    run.run(2)
    fork = run.fork(1, out=tmp_path / "fork", rewards=[by_length, letters], weights=[1.0, 0.5])
    fork.run(1)
    fork.set(group_size=2)
    return fork.run(1)


def notebook_run(tmp_path: Path):
    """A reward function of a notebook, edited under its own name."""
    first, second = notebook_functions("a+"), notebook_functions("b+")
    second["BONUS"] = first["BONUS"]
    task = wb.Task(rows_for("grpo"), rewards=[first["score"]])
    settings = dict(prompts_per_step=3, group_size=4, max_new_tokens=6, steps=3, lr=1e-2)
    run = wb.grpo(fresh(tmp_path), task, out=tmp_path / "notebook", **settings)
    run.run(1)
    run.set(rewards=[second["score"]])
    return run.run()


def test_scripts_make_their_runs_again_bit_by_bit(tmp_path):
    runs = {"sft": changed_run("sft", tmp_path), "dpo": changed_run("dpo", tmp_path)}
    runs |= {"fork": forked_run(tmp_path), "notebook": notebook_run(tmp_path)}
    texts = {name: run.script(tmp_path / f"{name}.py") for name, run in runs.items()}
    assert texts["sft"] == (tmp_path / "sft.py").read_text() and (tmp_path / "sft.rows.jsonl").exists()
    assert texts["sft"].count("run.set(") == texts["dpo"].count("run.set(") == 2
    assert "import tests.runs" in texts["fork"] and texts["fork"].count("run.set(") == 3
    assert "BONUS = 2.0" in texts["notebook"] and texts["notebook"].count("def score(") == 2
    assert not any("PUT YOUR FUNCTION" in text for text in texts.values())
    said = again(tmp_path, list(runs))
    assert len(re.findall(r"(\d+) of \1 metrics are exactly those of the record", said)) == 4
    for name, run in runs.items():
        if name != "notebook":
            assert_again(run, tmp_path / f"{name}_again")


def notebook_functions(pattern: str) -> dict:
    """Functions as a notebook has them: in a module that cannot be imported, with source."""
    import linecache

    source = (
        "import re\nBONUS = 2.0\n"
        "def shifted(values):\n    return [value + BONUS for value in values]\n"
        "def score(completions, **kwargs):\n"
        f"    found = [len(re.findall({pattern!r}, text)) for text in completions]\n"
        "    return shifted([float(len(text) % 5 + n) for text, n in zip(completions, found)])\n"
    )
    space, cell = {"__name__": "__main__"}, f"<cell {pattern}>"
    linecache.cache[cell] = (len(source), None, source.splitlines(True), cell)
    exec(compile(source, cell, "exec"), space)
    return space


def test_a_definition_takes_what_it_uses_and_refuses_what_it_cannot():
    from workbench.sharing.source import NoSource, definition

    imports, parts = definition(notebook_functions("a+")["score"])
    assert (
        imports == ["import re"] and list(parts) == ["BONUS", "shifted", "score"] and parts["BONUS"] == "BONUS = 2.0\n"
    )
    space = notebook_functions("a+")
    for value, said in ((object(), "BONUS, whose value"), (None, "")):
        space["BONUS"] = value
        if said:
            with pytest.raises(NoSource, match=said):
                definition(space["score"])
        else:
            assert definition(space["score"])[1]["BONUS"] == "BONUS = None\n"
    for fn in (lambda completions: [], print, wb.LoRA(), "".join):
        with pytest.raises(NoSource, match="not a plain function"):
            definition(fn)
    made: dict = {}
    exec("def nowhere(completions):\n    return []\n", made)
    with pytest.raises(NoSource, match="no source text"):
        definition(made["nowhere"])


def test_script_marks_what_it_cannot_know(tmp_path):
    secret = object()

    def closure(completions, **kwargs):
        return [0.0 if secret else 1.0 for _ in completions]

    task = wb.Task(rows_for("grpo"), rewards=[closure])
    run = wb.grpo(
        fresh(tmp_path), task, out=tmp_path / "run", steps=1, prompts_per_step=2, group_size=2, max_new_tokens=3
    )
    run.run()
    for text in (run.script(), wb.open(run.folder).script()):
        assert text.count("# PUT YOUR FUNCTION HERE") == 1
        space: dict = {}
        exec(compile(text.split("def main")[0], "script", "exec"), space)
        with pytest.raises(SystemExit, match="Put the reward function 'closure' here"):
            space["reward_1"]([], [])
    assert "of the function around it" in run.script()


def test_script_reads_ready_made_tasks_and_files_where_they_are(tmp_path):
    policy = wb.load("tiny").attach(wb.LoRA(r=4))
    task = wb.task("sums", size=16)
    run = wb.grpo(policy, task, out=tmp_path / "run", steps=1, prompts_per_step=2, group_size=2, max_new_tokens=3)
    run.run()
    text = run.script(tmp_path / "train.py")
    assert "'name': 'sums'" in text and not list(tmp_path.glob("*.jsonl"))
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_for("sft")))
    policy.reset()
    other = wb.sft(policy, file, out=tmp_path / "other", steps=1, batch_size=2)
    other.run()
    text = other.script(tmp_path / "other.py")
    assert repr(str(file)) in text and not (tmp_path / "other.rows.jsonl").exists()
    file.write_text('{"prompt": "a", "completion": "b"}\n')  # changed since: the rows go with the script
    other.script(tmp_path / "other.py")
    assert wb.rows(tmp_path / "other.rows.jsonl").digest() == other.store.meta["data"]["digest"]
    (tmp_path / "other.rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    old = sys.argv
    try:
        sys.argv = ["other.py", "--out", str(tmp_path / "never")]
        with pytest.raises(SystemExit, match="These are not the rows of the run"):
            runpy.run_path(str(tmp_path / "other.py"), run_name="__main__")
    finally:
        sys.argv = old


def test_nothing_in_the_record_leaves_its_quotes(tmp_path):
    nasty = "\"\"\"'''\\\n\nimport os; os.abort()\n#\u2028\x00{x}"
    run = make_run("sft", tmp_path, steps=1)
    run.run()
    policy = run.store.meta["policy"] | {"model": nasty, "base": nasty, "revision": nasty, "device": nasty}
    run.engine.store.set_meta(name=nasty, started_from=nasty, policy=policy, versions={"torch": nasty})
    run.engine.store.set_meta(data={"kind": "rows", "source": nasty, "digest": nasty})
    import ast

    tree = ast.parse(run.script())
    assert "os" not in {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "abort"]
    assert "began with the weights of the run" in run.script()
