"""One JupyterLab server and one Chromium for all browser tests.

The server has private folders, so that nobody's settings count. Lab is driven by its commands, and outputs are read
from the notebook's model. Whatever asks for something outside this machine is stopped and noted, and fails the test.
Where there is no Chromium, `tests/conftest.py` skips what is marked `browser`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest

from workbench.doctor import chromium as find_chromium

REPO = Path(__file__).parents[2]
SLOW = 60_000
"""milliseconds that a page gets: the machine may be busy"""

READY = """() => {
    const context = window.jupyterapp?.shell?.currentWidget?.sessionContext;
    return !!(context && context.isReady && context.session?.kernel?.status === 'idle');
}"""
DONE = """n => {
    let done = 0;
    for (const cell of window.jupyterapp.shell.currentWidget.content.model.cells)
        if (cell.type === 'code' && cell.executionState === 'idle' && cell.executionCount) done++;
    return done >= n;
}"""
FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync")  # fmt: skip


@dataclass
class Seen:
    """What went wrong in a page."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@dataclass
class Server:
    url: str
    token: str
    root: Path

    def end_kernels(self) -> None:
        headers = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/sessions", headers=headers)) as answer:
            sessions = json.load(answer)
        for session in sessions:
            ask = urllib.request.Request(f"{self.url}/api/sessions/{session['id']}", headers=headers, method="DELETE")
            urllib.request.urlopen(ask).close()


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """JupyterLab on a free port, with `writer.py` beside the notebooks."""
    home, root = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    (root / "writer.py").write_text((Path(__file__).parent / "writer.py").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    process = _start(home, root, port, token)
    try:
        _until_up(f"http://127.0.0.1:{port}/api?token={token}", process, home / "log")
        yield Server(f"http://127.0.0.1:{port}", token, root)
    finally:
        _stop(process)


def _start(home: Path, root: Path, port: int, token: str) -> subprocess.Popen:
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(REPO))
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        env[f"JUPYTER_{name}"] = str(home / name)
    env |= {"IPYTHONDIR": str(home / "ipython")}
    env |= {f"JUPYTERLAB_{name}_DIR": str(home / name) for name in ("SETTINGS", "WORKSPACES")}
    config = home / "CONFIG_DIR" / "labconfig"
    config.mkdir(parents=True)
    (config / "page_config.json").write_text(
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'
    )
    options = {
        "ServerApp.port_retries": 0, "IdentityProvider.token": token, "ServerApp.root_dir": root,
        "LabApp.expose_app_in_browser": True, "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with open(home / "log", "w") as log:
        return subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=log, start_new_session=True)


def _until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not come up:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    """The server shuts its kernels down when it is asked to end; what is left goes with its process group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=find_chromium(), headless=True,
            args=[f"--{flag}" for flag in FLAGS], viewport={"width": 1400, "height": 1000},
        )  # fmt: skip
        context.set_default_timeout(SLOW)
        yield context
        context.close()


LOOKS = """() => Promise.race([
    new Promise(done => requestAnimationFrame(() => done('painting'))),
    new Promise(done => setTimeout(() => done('not painting for 3 s'), 3000)),
]).then(painting => ({
    painting, visible: document.visibilityState, live: document.querySelectorAll('.wb-live').length,
    views: [...document.querySelectorAll('.wb-live > .wb')].map(view => [view.className, { ...view.dataset }]),
    kernel: window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status,
    text: document.body.innerText.slice(0, 1500),
}))"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With a failure comes what its page looked like: it cannot be opened any more where it failed."""
    report = yield
    page = item.funcargs.get("page") if hasattr(item, "funcargs") else None
    if report.failed and call.when == "call" and page is not None:
        try:
            looks = json.dumps(page.evaluate(LOOKS), indent=1, ensure_ascii=False)
        except Exception as error:  # whatever a broken page says; the test's own failure is what counts
            looks = f"the page does not answer: {error}"
        report.sections.append(("the page", looks))
    return report


@pytest.fixture
def page(chromium) -> Iterator[Any]:
    """A fresh page; afterwards nothing may have failed in it, and nothing left the machine."""
    made, seen = chromium.new_page(), Seen()
    inside = ("http://127.0.0.1", "data:", "blob:", "file:")
    made.route(
        lambda url: not url.startswith(inside), lambda route: (seen.outside.append(route.request.url), route.abort())
    )
    made.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    made.on("pageerror", lambda error: seen.errors.append(str(error)))
    made.bring_to_front()  # a page behind another paints nothing
    yield made
    hacked = made.evaluate("() => window.hacked")
    made.close()
    assert hacked is None, "text of a model ran as a script"
    assert seen.outside == []
    assert seen.errors == []


@pytest.fixture
def host(page) -> Iterator[Any]:
    """Views in a page without Jupyter: `host.open(page, view)`."""
    from host import Host

    made = Host()
    yield made
    made.close()


@pytest.fixture
def lab(page, server):
    server.end_kernels()  # of pages that are closed by now
    for left in server.root.iterdir():  # by a test before
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != "writer.py":
            left.unlink()
    return Notebook(page, server)


class Notebook:
    """A notebook open in Lab."""

    def __init__(self, page, server: Server):
        self.page, self.server, self.name = page, server, ""

    def open(self, name: str, *cells: str) -> Notebook:
        """Write a notebook of code cells and open it; returns once its kernel is idle."""
        self.name = name
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.server.root / name)
        return self.load()

    def load(self) -> Notebook:
        """(Re)load the page."""
        self.page.goto(f"{self.server.url}/lab/tree/{self.name}?token={self.server.token}&reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Notebook")
        self.page.wait_for_function(READY)
        return self

    def run_all(self, cells: int) -> Notebook:
        self.command("notebook:run-all-cells")
        self.page.wait_for_function(DONE, arg=cells)
        for i in range(cells):
            for output in self.outputs(i):
                assert output["output_type"] != "error", output
        return self

    def command(self, name: str, **arguments: Any) -> None:
        """Ask Lab for something, without waiting for its end."""
        self.page.evaluate(
            "([name, args]) => { window.jupyterapp.commands.execute(name, args); return null }", [name, arguments]
        )

    def outputs(self, cell: int) -> list[dict]:
        """The outputs of a cell, as the notebook's model has them."""
        return self.page.evaluate(
            "i => window.jupyterapp.shell.currentWidget.content.model.cells.get(i).outputs?.toJSON() ?? []", cell
        )

    def save(self) -> Path:
        """Save the notebook and wait until it is on the disk."""
        path = self.server.root / self.name
        before = path.stat().st_mtime_ns
        self.command("docmanager:save")
        for _ in range(100):
            # the file is there, empty, before it is whole
            if path.stat().st_mtime_ns != before and path.read_text("utf-8").rstrip().endswith("}"):
                return path
            self.page.wait_for_timeout(100)
        raise AssertionError("the notebook was not saved")

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)


@pytest.fixture
def shot(page):
    """Save a picture of the page when WORKBENCH_SHOTS names a folder for it."""
    folder = os.environ.get("WORKBENCH_SHOTS")

    def take(name: str, selector: str | None = None) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            target = page.locator(selector).first if selector else page
            target.screenshot(path=Path(folder) / f"{name}.png")

    return take
