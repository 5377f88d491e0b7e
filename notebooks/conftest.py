"""What the lessons need when they run as tests: GSM8K, one thread, and time. Without the data they are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
"""for a whole lesson, on a machine that does something else too; nbmake's own limit is for one cell"""
NEEDS_GSM8K = ("dpo.ipynb", "sft.ipynb")

# Inherited by the kernels. Models as small as the lessons' gain nothing from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _gsm8k() -> Path | None:
    """$WORKBENCH_GSM8K, else gsm8k in $WORKBENCH_DATA, else in shared/data in the checkout or beside it."""
    if given := os.environ.get("WORKBENCH_GSM8K"):
        places = [Path(given)]
    elif data := os.environ.get("WORKBENCH_DATA"):
        places = [Path(data) / "gsm8k"]
    else:
        places = [folder / "shared" / "data" / "gsm8k" for folder in (ROOT, ROOT.parent)]
    return next((place for place in places if (place / "train.jsonl").is_file()), None)


if (_found := _gsm8k()) is not None:
    os.environ["WORKBENCH_GSM8K"] = str(_found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.timeout(SECONDS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path.name in NEEDS_GSM8K and _found is None:
        pytest.skip("GSM8K is not on this machine, and tests use no network (WORKBENCH_GSM8K names its folder)")
