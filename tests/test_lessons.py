"""The lessons as tests: those that need GSM8K find it, and where it is not they are skipped and say so."""

from __future__ import annotations

import json
import os
import re
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


def cells(path, kind: str) -> list[str]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_lesson_on_repairs_measures_each_of_them(root):
    """Each part ends in the held-out accuracy with and without the repair; a lesson that no longer holds must fail."""
    code = "\n".join(cells(root / "notebooks" / "repair.ipynb", "code"))
    checked = [line for line in code.splitlines() if line.startswith("assert ")]
    for broken, repaired in (("onward", "run"), ("as it was", "other prompts"), ("capped", "longer")):
        assert any(broken in line and repaired in line for line in checked), (broken, repaired)


def test_the_lesson_on_memory_checks_what_it_says(root):
    """The forecast against the measured peak, the split that changes nothing, samples without neighbours, a rewind."""
    code = "\n".join(cells(root / "notebooks" / "fits_and_fast.ipynb", "code"))
    checked = " ".join(line for line in code.splitlines() if line.startswith("assert "))
    for claim in ("off", "spread", "alone.ids == drawn.ids", "there[numbers].equals"):
        assert claim in checked, claim


def test_the_page_of_views_shows_each_and_names_what_there_is(root):
    import workbench as wb

    page = (root / "docs" / "views.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\(images/(\w+)\.png\)", page)
    assert {path.stem for path in (root / "docs" / "images").glob("*.png")} == set(pictures)
    assert sum((root / "docs" / "images" / f"{name}.png").stat().st_size for name in pictures) < 1.5e6
    taken = (root / "tests" / "browser" / "test_browser_shots.py").read_text(encoding="utf-8")
    assert set(re.findall(r'shot\("(\w+)"', taken)) == set(pictures)
    for owner, names in (("run", wb.Run), ("policy", wb.Policy), ("wb", wb)):
        called = set(re.findall(rf"`{owner}\.(\w+)\(", page))
        assert called and all(hasattr(names, name) for name in called), (owner, called)
    assert {"show", "browse", "tokens", "rescore", "report"} <= set(re.findall(r"`run\.(\w+)\(", page))
