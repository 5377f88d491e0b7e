"""What every test shares: no network, few threads, the data sets, and which tests this machine can run."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

# A shell's background job has Ctrl-C ignored, and so has every process that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before any import of torch or Hugging Face libraries, and inherited by every process a test starts.
_hub = tempfile.mkdtemp(prefix="workbench-tests-hub-")
atexit.register(shutil.rmtree, _hub, ignore_errors=True)
os.environ.update(
    HF_HOME=_hub,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
)
# Tiny models gain little from a second thread, and spinning threads collapse when a browser wants the core too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: playwright leaves a running event loop in the main thread."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine has not got."""
    if item.get_closest_marker("browser"):
        from workbench.doctor import chromium

        if chromium() is None:
            pytest.skip("there is no Chromium here (make test installs it where apt-get can)")
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device here")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of data sets for tests: $WORKBENCH_DATA, else shared/data in the checkout or beside it."""
    places = [Path(os.environ["WORKBENCH_DATA"])] if os.environ.get("WORKBENCH_DATA") else []
    places += [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    for place in places:
        if place.is_dir():
            return place
    tried = " or ".join(map(str, places))
    pytest.skip(f"there are no data sets in {tried} (WORKBENCH_DATA names another folder)")


@pytest.fixture(scope="session")
def gsm8k_folder(data_folder: Path) -> Path:
    """GSM8K as published: train.jsonl, test.jsonl, example_model_solutions.jsonl."""
    if not (data_folder / "gsm8k" / "train.jsonl").is_file():
        pytest.skip(f"there is no gsm8k/train.jsonl in {data_folder}")
    return data_folder / "gsm8k"
