"""The shell commands: what they accept, what they say when something goes wrong, what doctor sees."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

import pytest

from workbench import cli, doctor
from workbench.doctor import FAIL, OK, WARN, Check, Where
from workbench.errors import Interrupted, RewardError


@pytest.fixture
def demo(monkeypatch):
    """Stands in for workbench.demo; `calls` keeps what it was asked, `act` is what it does."""
    import workbench

    fake = types.ModuleType("workbench.demo")
    fake.calls, fake.act = [], lambda **asked: None

    def run_demo(**asked):
        fake.calls.append(asked)
        fake.act(**asked)

    fake.run_demo = run_demo
    monkeypatch.setitem(sys.modules, "workbench.demo", fake)
    monkeypatch.setattr(workbench, "demo", fake, raising=False)
    return fake


def raises(error):
    def act(**asked):
        raise error

    return act


# ---- arguments


def test_demo_has_defaults_and_takes_settings(demo):
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--out", "elsewhere", "--seed", "3", "--steps", "7"]) == 0
    assert demo.calls == [
        {"out": "runs/demo", "seed": 0, "steps": None},
        {"out": "elsewhere", "seed": 3, "steps": 7},
    ]


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "required"),
        (["train"], "invalid choice"),
        (["demo", "--steps", "0"], "0 is not 1 or more"),
        (["demo", "--steps", "many"], "invalid"),
        (["doctor", "--", "--port", "1"], "nothing goes after --"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_why(argv, said, demo, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert demo.calls == []


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("workbench ")


# ---- errors and Ctrl-C


def test_our_errors_are_one_message_without_a_traceback(demo, capsys):
    demo.act = raises(RewardError("reward 'short' answered None for row 3"))
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "workbench: reward 'short' answered None for row 3\n"


def test_other_errors_keep_their_traceback(demo):
    demo.act = raises(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("asked to stop")])
def test_an_interrupted_demo_says_where_it_is_and_how_to_go_on(error, demo, tmp_path, capsys):
    out = tmp_path / "runs" / "demo"
    old = tmp_path / "runs" / "demo-old"
    for folder in (old, out.with_name("demo-2")):
        folder.mkdir(parents=True)

    def act(**asked):
        (out.with_name("demo-2") / "run.db").touch()
        raise error

    (old / "run.db").touch()
    os.utime(old / "run.db", (0, time.time() - 100))
    demo.act = act
    assert cli.main(["demo", "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert f"The run is in {out}-2," in said
    assert f"wb.resume('{out}-2').run()" in said


def test_interrupted_before_a_step_was_whole(demo, tmp_path, capsys):
    demo.act = raises(KeyboardInterrupt())
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert "nothing to resume" in capsys.readouterr().err


# ---- lab


@pytest.fixture
def started(monkeypatch):
    """The command that would have become JupyterLab."""
    commands = []
    monkeypatch.setattr(cli.os, "execv", lambda program, command: commands.append(command))
    return commands


def test_lab_opens_the_lessons_of_the_folder_it_is_called_in(started, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "first.ipynb").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000)
    cli.main(["lab", "--", "--no-browser", "--port", "8889"])
    assert started == [
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--port", "8889", str(tmp_path / "notebooks")]
    ]


def test_lab_as_root_asks_jupyter_to_allow_it(started, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    cli.main(["lab", str(tmp_path)])
    assert started == [[sys.executable, "-m", "jupyterlab", "--allow-root", str(tmp_path)]]


def test_lab_without_lessons_says_how_to_get_them(started, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    assert cli.main(["lab"]) == 1
    assert cli.main(["lab", "nowhere"]) == 1
    said = capsys.readouterr().err
    assert "come with a checkout" in said and "no folder 'nowhere'" in said
    assert started == []


# ---- doctor


def test_a_check_that_breaks_is_a_failing_line_and_the_rest_goes_on():
    def torn_apart(where):
        yield Check("first", OK, "fine")
        raise RuntimeError("libfoo.so: cannot open\nmore")

    def after(where):
        yield Check("second", WARN, "slow", "sit down")

    found = list(doctor.examine(Where(Path("runs")), [torn_apart, after]))
    assert [(check.name, check.level) for check in found] == [
        ("first", OK),
        ("torn apart", FAIL),
        ("second", WARN),
    ]
    assert found[1].found == "RuntimeError: libfoo.so: cannot open"


def test_doctor_ends_with_1_only_when_something_needed_fails(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda where: [doctor.warn("disk", "little", "delete")],))
    assert cli.main(["doctor"]) == 0
    assert "Everything needed works (1 to note)" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (lambda where: [doctor.fail("disk", "full", "delete")],))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FAIL  disk          full\n" in said and "-> delete\n" in said and "1 of 1 checks failed" in said


def test_ranges_tell_missing_from_outside_from_good():
    found = list(
        doctor.range_checks(
            {"torch": (">=2.13,<3", "2.13.0+cpu"), "peft": (">=0.21,<1", "0.20.0"), "wandb": (">=0.31", None)}
        )
    )
    assert [(check.name, check.level) for check in found] == [
        ("packages", OK),
        ("peft", WARN),
        ("wandb", FAIL),
    ]
    assert found[0].found.startswith("1 of 3")
    assert found[2].todo == 'pip install "wandb>=0.31"'


def test_the_runs_folder_is_tried_and_left_as_it_was(tmp_path):
    (check,) = doctor.runs_folder(Where(tmp_path / "runs" / "deep"))
    assert (
        check.level in (OK, WARN) and str(tmp_path) in check.found
    )  # WARN on a drive without write-ahead logging
    assert list(tmp_path.iterdir()) == []


def test_a_runs_folder_that_cannot_be_written_fails(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    (check,) = doctor.runs_folder(Where(tmp_path))
    assert check.level == FAIL and "Permission denied" in check.found


@pytest.mark.parametrize("free, level", [(0.1, FAIL), (1.0, WARN), (50.0, OK)])
def test_disk_levels(free, level, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=free * doctor.GB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    (check,) = doctor.disk(Where(tmp_path))
    assert check.level == level and f"{free:.1f} GB" in check.found


def test_too_many_threads_for_a_container_are_noted(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(doctor, "_container_cores", lambda: 1.6)
    (check,) = doctor.processor(Where(Path("runs")))
    assert check.level == WARN and "OMP_NUM_THREADS=2" in check.todo
    monkeypatch.setattr(doctor, "_container_cores", lambda: None)
    (check,) = doctor.processor(Where(Path("runs")))
    assert check.level == OK and "8 threads" in check.found


def test_the_hub_is_left_alone_unless_asked(monkeypatch):
    import huggingface_hub

    def unreachable(*given, **named):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", unreachable)
    (quiet,) = doctor.hub(Where(Path("runs")))
    (asked,) = doctor.hub(Where(Path("runs"), online=True))
    assert quiet.level == OK and "not tried" in quiet.found
    assert asked.level == WARN and "no route" in asked.found


def test_doctor_passes_where_the_tests_pass(tmp_path, capsys):
    """This environment runs the tests, so doctor must find every needed part working."""
    start = time.perf_counter()
    code = cli.main(["doctor", "--runs", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "tiny model    loads and writes" in said
    assert time.perf_counter() - start < 60  # about 10 s alone; other work may share the machine
