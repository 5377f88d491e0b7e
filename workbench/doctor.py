"""`workbench doctor`: what works on this machine, and what to do about the rest.

A check is a small generator from a `Where` to the lines it found. One that raises becomes a failing line, so
the others are still told. Nothing is downloaded, installed or changed, and the network is left alone unless
asked for.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench import memory as memory_of
from workbench.errors import StoreError

OK, WARN, FAIL = "ok", "warn", "FAIL"
GB = 2**30
NEEDED_PYTHON = (3, 11)
ROUNDING = {"nf4": 0.13, "int8": 0.02}
"""relative error that rounding may cause in a layer of normally distributed weights"""
ELSEWHERE = "Keep runs elsewhere: out=... names the folder."


@dataclass(frozen=True)
class Where:
    runs: Path
    """the folder runs will be kept in; it need not exist yet"""
    online: bool = False
    """also try the Hugging Face Hub"""


@dataclass(frozen=True)
class Check:
    name: str
    level: str
    """OK; WARN: something will be slower or missing; FAIL: something that is needed does not work"""
    found: str
    todo: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, OK, found)


def warn(name: str, found: str, todo: str = "") -> Check:
    return Check(name, WARN, found, todo)


def fail(name: str, found: str, todo: str) -> Check:
    return Check(name, FAIL, found, todo)


def main(runs: Path = Path("runs"), online: bool = False) -> int:
    """Print a line for each thing looked at. Answers 1 when something needed does not work, else 0."""
    where, done = Where(Path(runs), online), []
    for check in examine(where):
        done.append(check)
        print(line(check), flush=True)
    print(verdict(done))
    return int(any(check.level == FAIL for check in done))


def examine(
    where: Where, checks: Iterable[Callable[[Where], Iterable[Check]]] | None = None
) -> Iterator[Check]:
    """Every line of every check, one at a time, as it is found."""
    for check in CHECKS if checks is None else checks:
        try:
            yield from check(where)
        except Exception as error:  # a broken machine is what this is for: report it and look on
            yield fail(
                check.__name__.replace("_", " "),
                _first_line(error),
                "Install workbench again in this environment.",
            )


def line(check: Check) -> str:
    """One check as text: level, name, what was found, and below it what to do."""
    text = f"{check.level:<5} {check.name:<13} {check.found}"
    return f"{text}\n{'':20}-> {check.todo}" if check.todo else text


def verdict(checks: list[Check]) -> str:
    """The last line: how it stands over all."""
    failed, warned = (sum(check.level == level for check in checks) for level in (FAIL, WARN))
    if failed:
        return f"\n{failed} of {len(checks)} checks failed: what to do stands behind the arrows."
    noted = f" ({warned} to note)" if warned else ""
    return f"\nEverything needed works{noted}. Next: workbench demo, or workbench lab."


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][:300]


# ---- Python and packages


def python(where: Where) -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if sys.version_info < NEEDED_PYTHON:
        yield fail("Python", found, "workbench needs Python 3.11 or newer.")
    else:
        yield ok("Python", found)


def packages(where: Where) -> Iterator[Check]:
    """Installed versions against the ranges workbench declares."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("workbench") or []]
    except metadata.PackageNotFoundError:
        yield warn("packages", "workbench is not installed, so no ranges are known", "pip install -e .")
        return
    wanted = [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    yield from range_checks({need.name: (str(need.specifier), _version(need.name)) for need in wanted})


def range_checks(found: dict[str, tuple[str, str | None]]) -> Iterator[Check]:
    """One line for all packages in their ranges, one for each other. `found`: name -> (range, version)."""
    from packaging.specifiers import SpecifierSet

    def good(name: str) -> bool:
        wanted, version = found[name]
        return version is not None and SpecifierSet(wanted).contains(version, prereleases=True)

    yield ok("packages", f"{sum(map(good, found))} of {len(found)} within their tested ranges")
    for name in [name for name in found if not good(name)]:
        wanted, version = found[name]
        todo = f'pip install "{name}{wanted}"'
        if version is None:
            yield fail(name, "not installed", todo)
        else:
            yield warn(name, f"{version}, outside the tested range {wanted}", todo)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ---- the machine


def processor(where: Where) -> Iterator[Check]:
    """Cores, threads, and a container's share of them that torch does not know of."""
    import torch

    cores, threads, share = _cores(), torch.get_num_threads(), _container_cores()
    found = f"{cores} core{'s' * (cores != 1)}, torch uses {threads} thread{'s' * (threads != 1)}"
    if share and threads > (best := max(1, round(share))):
        found += f", but this container may use only {share:g} cores at a time"
        yield warn("processor", found, f"Set OMP_NUM_THREADS={best} before Python starts.")
    else:
        yield ok("processor", found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _container_cores() -> float | None:
    """The CPU quota of this control group in cores; None where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory(where: Where) -> Iterator[Check]:
    free = memory_of.available()
    if free is None:
        yield ok("memory", "how much is free cannot be told on this system")
    elif free < 2 * GB:
        yield warn(
            "memory",
            f"{free / GB:.1f} GB free",
            "Close something large: even the shipped model needs about 1 GB.",
        )
    else:
        yield ok("memory", f"{free / GB:.1f} GB free")


def disk(where: Where) -> Iterator[Check]:
    free = shutil.disk_usage(_nearest(where.runs)).free
    found = f"{free / GB:.1f} GB free for {where.runs}"
    if free < 0.2 * GB:
        yield fail("disk", found, f"Delete old runs. {ELSEWHERE}")
    elif free < 2 * GB:
        yield warn("disk", found, f"Delete old runs. {ELSEWHERE}")
    else:
        yield ok("disk", found)


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def runs_folder(where: Where) -> Iterator[Check]:
    """A store is written and read back beside where runs will be, and removed again."""
    from workbench.store import Store

    above, note = _nearest(where.runs), "written by doctor"
    try:
        with tempfile.TemporaryDirectory(prefix=".workbench-doctor-", dir=above) as folder:
            writer = Store.create(folder, {"status": note})
            writer.publish()
            reader = Store(folder)
            read, mode = reader.meta.get("status"), reader.query("PRAGMA journal_mode")[0][0]
            reader.close()
            writer.close()
    except (OSError, sqlite3.Error, StoreError) as error:
        yield fail("runs folder", f"{above} cannot be written ({_first_line(error)})", ELSEWHERE)
        return
    if read != note:
        yield fail("runs folder", f"what is written to {above} does not read back", ELSEWHERE)
    elif mode != "wal":
        found = f"{above} works, without write-ahead logging (a network drive?): views wait during a write"
        yield warn("runs folder", found, "Keep runs on a local disk: out=... names the folder.")
    else:
        yield ok("runs folder", f"{above} takes runs, with write-ahead logging")


# ---- torch


def devices(where: Where) -> Iterator[Check]:
    import torch

    yield ok(
        "torch",
        f"{torch.__version__}, for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}",
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            room = f"{free / GB:.0f} of {total / GB:.0f} GB free"
            yield ok("device", f"cuda:{i} {torch.cuda.get_device_name(i)}, {room}")
    elif torch.backends.mps.is_available():
        yield ok("device", "mps (Apple silicon)")
    elif shutil.which("nvidia-smi"):
        todo = "Install a CUDA build of torch that fits the driver; nvidia-smi names its version."
        yield warn("device", "cpu, though an NVIDIA driver is installed", todo)
    else:
        yield ok("device", "cpu: enough for the shipped model")


def bfloat16(where: Where) -> Iterator[Check]:
    """Whether bfloat16 works, and what it costs: some processors only imitate it."""
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            yield ok("bfloat16", "native on the GPU")
        else:
            yield warn("bfloat16", "not native on this GPU", 'Load models with dtype="float32" or "float16".')
        return
    ratio = _seconds_of_matmul(torch.bfloat16) / _seconds_of_matmul(torch.float32)
    yield ok("bfloat16", f"on the CPU; a matrix product takes {ratio:.1f} times as long as in float32")


def _seconds_of_matmul(dtype: Any) -> float:
    """The best of five products of two 256 x 256 matrices of this torch dtype."""
    import torch

    a, best = torch.ones(256, 256, dtype=dtype), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return best


def quantisation(where: Where) -> Iterator[Check]:
    """bitsandbytes imports, and layers in 4 and 8 bits compute, and pass gradients on, as they should."""
    todo = 'Needed for quantize="nf4" and quantize="int8" only.'
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels at import
    try:
        import bitsandbytes
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        wrong = [text for name, most in ROUNDING.items() if (text := _wrong_with(name, most, device))]
    except Exception as problem:  # an optional part: whatever is wrong with it, the rest works
        yield warn("bitsandbytes", f"does not work here ({_first_line(problem)})", todo)
        return
    if wrong:
        yield warn("bitsandbytes", f"{bitsandbytes.__version__} on {device}: {'; '.join(wrong)}", todo)
    else:
        yield ok("bitsandbytes", f"{bitsandbytes.__version__}, {' and '.join(ROUNDING)} work on {device}")


def _wrong_with(name: str, most: float, device: str) -> str | None:
    """What is wrong with a quantised layer, if anything, as models are loaded with it.

    Its rows are of no round length and it is used for inference before it passes a gradient on: both have gone wrong.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    from workbench.quantisation import mend

    make = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 160, generator=make), torch.randn(8, 160, generator=make).to(device)
    layer = (
        Linear4bit(160, 64, bias=False, quant_type="nf4")
        if name == "nf4"
        else Linear8bitLt(160, 64, bias=False, has_fp16_weights=False)
    )
    layer.load_state_dict({"weight": weight})
    model = torch.nn.Sequential(layer).to(device)
    mend(model, torch.float32)
    model.eval()
    with torch.no_grad():
        model(x)
    x.requires_grad_(True)
    out = model.train()(x)
    out.sum().backward()
    right = weight.to(device)
    values, grad = x.detach() @ right.T, right.sum(0).expand_as(x)
    for what, found, exact in (("values", out.detach(), values), ("gradients", x.grad, grad)):
        error = float((found - exact).norm() / exact.norm())
        if not error <= most:
            return f"{name} {what} are off by {error:.0%}, where rounding explains {most:.0%} at most"
    return None


# ---- Jupyter


def jupyter(where: Where) -> Iterator[Check]:
    """JupyterLab, and whether its Python kernel is this Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    found = f"JupyterLab {_version('jupyterlab')}, ipykernel {_version('ipykernel')}"
    todo = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        program = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except NoSuchKernel:
        yield fail("Jupyter", f"{found}, but no Python kernel", todo)
        return
    # A bare "python" means the one that runs JupyterLab. A venv's python is a link: links are not followed.
    if program.is_absolute() and program.parent != Path(sys.executable).parent:
        yield warn("Jupyter", f"{found}, but notebooks start another Python: {program}", todo)
    else:
        yield ok("Jupyter", found)


def widgets(where: Where) -> Iterator[Check]:
    """The kernel's half of the widgets, and the half that JupyterLab loads into the browser."""
    import anywidget
    import ipywidgets
    from jupyter_core.paths import jupyter_path

    found = f"anywidget {anywidget.__version__}, ipywidgets {ipywidgets.__version__}"
    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    wanted = ("@jupyter-widgets/jupyterlab-manager", "anywidget")
    missing = [name for name in wanted if not any((folder / name).is_dir() for folder in folders)]
    if missing:
        found += f", but JupyterLab lacks {' and '.join(missing)}: views show still pictures only"
        yield warn("widgets", found, "Install jupyterlab, ipywidgets and anywidget into one environment.")
    else:
        yield ok("widgets", found)


def browser(where: Where) -> Iterator[Check]:
    program = chromium()
    yield ok("Chromium", f"{program or 'none; make test installs it'} (only the browser tests use it)")


def chromium() -> str | None:
    """The Chromium that the browser tests drive; None when there is none."""
    return "/usr/bin/chromium" if os.access("/usr/bin/chromium", os.X_OK) else shutil.which("chromium")


# ---- the whole way


def shipped_model(where: Where) -> Iterator[Check]:
    """Load the model that comes with workbench and let it write."""
    import workbench as wb

    start = time.perf_counter()
    rollouts = wb.load("tiny").sample(["Q: What is 2 + 3?\nA:"], n=4, max_new_tokens=24, seed=0)
    seconds = time.perf_counter() - start
    if any(text.strip() for text in rollouts.text):
        yield ok("tiny model", f"loads and writes, in {seconds:.1f} s")
    else:
        yield fail(
            "tiny model", "loads, but writes nothing", "Its files may be damaged: install workbench again."
        )


def hub(where: Where) -> Iterator[Check]:
    """The Hugging Face Hub, when asked for."""
    if not where.online:
        yield ok("Hub", "not tried (--online does); nothing shipped needs it")
        return
    try:
        from huggingface_hub import HfApi

        HfApi().model_info("openai-community/gpt2", timeout=5)
    except Exception as error:  # every way of not reaching it has the same consequence
        todo = "Hub ids will not load; local folders and files will. Check HF_HUB_OFFLINE and HTTPS_PROXY."
        yield warn("Hub", f"cannot be reached ({_first_line(error)})", todo)
    else:
        yield ok("Hub", "answers")


CHECKS = (
    python,
    packages,
    processor,
    memory,
    disk,
    runs_folder,
    devices,
    bfloat16,
    quantisation,
    jupyter,
    widgets,
    browser,
    shipped_model,
    hub,
)
