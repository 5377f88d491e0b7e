"""The lessons as tests: those that need GSM8K find it, and where it is not they are skipped and say so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ANSWERS = ("WORKBENCH_GSM8K", "WORKBENCH_DATA")


@pytest.mark.parametrize("lesson", ["dpo", "sft"])
def test_a_lesson_without_its_data_is_skipped_with_the_reason(lesson, root, tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in ANSWERS}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--nbmake", f"notebooks/{lesson}.ipynb"]
    done = subprocess.run(
        command, cwd=root, env=env | {"WORKBENCH_DATA": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout and "GSM8K is not on this machine" in done.stdout


def test_the_folder_of_gsm8k_is_found(root, gsm8k_folder, monkeypatch):
    import runpy

    for name in ANSWERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKBENCH_DATA", str(gsm8k_folder.parent))
    runpy.run_path(str(root / "notebooks" / "conftest.py"))
    assert os.environ["WORKBENCH_GSM8K"] == str(gsm8k_folder)
    monkeypatch.delenv("WORKBENCH_GSM8K")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_folder_that_is_named_but_missing_skips(name, root, monkeypatch, tmp_path):
    import runpy

    for other in ANSWERS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    assert runpy.run_path(str(root / "notebooks" / "conftest.py"))["_found"] is None
