"""What is promised of the package: versions that agree with each other, a whole wheel, a light import."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch-gpu": "torch"}


def ranges(lines: list[str]) -> dict[str, SpecifierSet]:
    needs = [Requirement(line) for line in lines]
    return {canonicalize_name(CONDA_NAMES.get(need.name, need.name)): need.specifier for need in needs}


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(found), (
        f"not name==version: {[line for line, hit in zip(lines, found, strict=True) if not hit]}"
    )
    return {canonicalize_name(hit[1]): Version(hit[2]) for hit in found}


# ---- versions


def test_constraints_are_within_the_ranges_of_the_project():
    pinned = pins()
    wanted = ranges(PROJECT["dependencies"]) | ranges(PROJECT["optional-dependencies"]["dev"])
    wrong = {
        name: f"{pinned.get(name)} is not {wants}"
        for name, wants in wanted.items()
        if name not in pinned or pinned[name] not in wants
    }
    assert wrong == {}


def test_constraints_pin_all_that_is_installed_with_workbench():
    """Whatever the dependencies bring along is pinned too, so that two set-ups are alike."""
    from importlib import metadata

    pinned, seen, queue = pins(), set(), ["workbench[dev]"]
    try:
        metadata.version("workbench")
    except metadata.PackageNotFoundError:
        pytest.skip("workbench is not installed here, only on the path")
    while queue:
        need = Requirement(queue.pop())
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(need.name) or []:
            child = Requirement(line)
            asked = child.marker is None or any(
                child.marker.evaluate({"extra": e}) for e in {"", *need.extras}
            )
            if asked and not child.name.startswith(
                ("nvidia-", "cuda-", "triton")
            ):  # a CUDA build of torch adds these
                queue.append(f"{child.name}{'[' + ','.join(child.extras) + ']' if child.extras else ''}")
    assert {name for name, _ in seen} - set(pinned) == {"workbench"}


def test_torch_is_pinned_for_every_build():
    assert str(pins()["torch"]) == "2.13.0"  # no local tag: CPU and CUDA builds both satisfy it
    assert '"torch==2.13.0"' in (ROOT / "Makefile").read_text()


def test_every_range_has_both_ends():
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    open_ended = [line for line in lines if not re.search(r">=.*,<|==\d+\.\d+\.\*", line)]
    assert open_ended == []


def test_environment_yml_has_the_ranges_of_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert pip[-1] == "-e ."
    found = ranges([line for line in conda if line != "pip"] + pip[:-1])
    python = found.pop("python")
    assert python == SpecifierSet(PROJECT["requires-python"])
    assert found == ranges(PROJECT["dependencies"])
    assert not any(line.startswith("torch") for line in pip)  # the CUDA build comes from conda


def test_nothing_names_a_package_index():
    """Which index is used is the machine's affair; a host name here would override it."""
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|index-url|find-links|@ file:", text), name


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names in a wheel built from a copy of the package."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "workbench", copy / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    built = subprocess.run([sys.executable, "-c", code, out], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    (file,) = out.glob("workbench-*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_holds_the_whole_package(wheel):
    shipped = {
        path
        for path in (ROOT / "workbench").rglob("*")
        if path.suffix in {".py", ".js", ".css", ".safetensors", ".json"}
    }
    shipped |= {path for path in (ROOT / "workbench/models/tiny").iterdir() if path.is_file()}
    missing = {
        path.relative_to(ROOT).as_posix() for path in shipped if "__pycache__" not in path.parts
    } - wheel
    assert missing == set()


def test_the_wheel_holds_nothing_else(wheel):
    outside = {name for name in wheel if not re.match(r"workbench/|workbench-[\w.]+\.dist-info/", name)}
    assert outside == set()
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in wheel)


def test_the_command_is_declared_and_exists():
    from workbench import cli

    assert PROJECT["scripts"] == {"workbench": "workbench.cli:main"}
    assert callable(cli.main)


# ---- the lessons and the import


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_lessons_are_kept_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    kept = [i for i, cell in enumerate(cells) if cell["outputs"] or cell["execution_count"] is not None]
    assert cells and kept == [], f"code cells with outputs: {kept}; run: nbstripout {path.name}"


def test_import_is_light_and_silent():
    """Under half a second, nothing printed, no torch: the best of three, since other work may slow one."""
    code = """if True:
        import sys, time
        start = time.perf_counter()
        import workbench
        seconds = time.perf_counter() - start
        sys.stdout.flush()
        print("|", seconds, *sorted({"torch", "transformers", "pandas", "datasets"} & set(sys.modules)))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        printed, _, measured = done.stdout.partition("|")
        assert printed == ""
        taken, *heavy = measured.split()
        assert heavy == []
        seconds.append(float(taken))
    assert min(seconds) < 0.5
