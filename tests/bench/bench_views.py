"""What the run's dashboard costs: to paint a long run, to keep up with a fast one, and to the training beside it.

- paint: a run of 50,000 steps of 12 metrics in a page; the first view loads the chart library, a second one has it.
- lag: from the commit of a step to the charts that show it, at 50 and at 200 steps a second. `last` is that of the last
  step: with a backlog it would grow with the length of the run.
- overhead: the median step of a tiny GRPO run with an open dashboard over that without one, blocks of steps in turn, so
  that both sides share the machine's noise: in seconds, and in processor time of the process, which other work on the
  machine moves less; and the processor time of the dashboard's thread as a share of the run's seconds.

The last line is one JSON object; times in seconds. Without Chromium the first two are left out.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))

import writer  # noqa: E402
from host import Host  # noqa: E402

import workbench as wb  # noqa: E402
from workbench.doctor import chromium  # noqa: E402
from workbench.store import Store  # noqa: E402
from workbench.views import Dashboard  # noqa: E402

DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"
ANOTHER = """place => {
    const made = document.createElement('div');
    made.className = `wb-place wb-place-${place}`;
    document.body.prepend(made);
}"""
BOTH = """() => {
    const boards = [...document.querySelectorAll('.wb-dashboard')];
    return boards.length === 2 && boards.every(board => board.dataset.drawn === '50000');
}"""
NOTE = """() => {
    window.drawn = [];
    const board = document.querySelector('.wb-dashboard');
    new MutationObserver(() => window.drawn.push([Number(board.dataset.drawn), Date.now() / 1000]))
        .observe(board, { attributes: true, attributeFilter: ['data-drawn'] });
}"""


@contextlib.contextmanager
def shown(browser, view):
    """A fresh page that has the view, and closes with it."""
    page, host = browser.new_page(viewport={"width": 1400, "height": 1000}), Host()
    try:
        host.open(page, view)
        yield page
    finally:
        page.close()
        host.close()


def until(page, step: int) -> None:
    page.wait_for_function(DRAWN, arg=step)


def paint(browser, folder: Path, times: int = 5) -> dict[str, float]:
    store = writer.long_run(folder / "long")
    first, again, read = [], [], []
    for _ in range(times):
        began = time.perf_counter()
        view = Dashboard(Store(store.folder))
        view.static_html()
        read.append(time.perf_counter() - began)
        began = time.perf_counter()
        with shown(browser, view) as page:
            until(page, 50_000)
            first.append(time.perf_counter() - began)
            began = time.perf_counter()
            page.evaluate(ANOTHER, view.place)
            page.wait_for_function(BOTH)
            again.append(time.perf_counter() - began)
    return {"read": statistics.median(read), "first": statistics.median(first), "again": statistics.median(again)}


def lag(browser, folder: Path, rate: int, seconds: float = 6.0) -> dict[str, float]:
    steps = int(rate * seconds)
    store = writer.begin(folder / f"fast-{rate}", steps=steps)
    committed = {}
    with shown(browser, Dashboard(Store(store.folder))) as page:
        until(page, 0)
        page.evaluate(NOTE)
        began = time.time()
        for step in range(1, steps + 1):
            time.sleep(max(0.0, began + step / rate - time.time()))
            metrics = writer.metrics_of("grpo", step, steps)
            store.commit_step(step, 0, seconds=1 / rate, metrics=metrics, state={}, plan={}, threads=1)
            committed[step] = time.time()
        until(page, steps)
        drawn = page.evaluate("() => window.drawn")
    lags = [next(at for shown, at in drawn if shown >= step) - at_commit for step, at_commit in committed.items()]
    held = steps / (committed[steps] - began)
    return {"rate": held, "lag": statistics.median(lags), "last": lags[-1], "worst": max(lags)}


class Timed(Dashboard):
    """Sends into nothing, and notes what its thread took."""

    took = 0.0

    def _follow(self) -> None:
        began = time.thread_time()
        try:
            super()._follow()
        finally:
            Timed.took += time.thread_time() - began

    def send(self, content, buffers=None) -> None:
        json.dumps(content)


def overhead(folder: Path, blocks: int = 6, block: int = 4) -> dict[str, float]:
    policy = wb.load("tiny").attach(wb.LoRA(r=16))
    task = wb.task("sums", size=64)
    run = wb.grpo(policy, task, steps=2 * blocks * block + 2, max_new_tokens=24, lr=5e-4, out=folder / "run")
    steps = iter(run)
    for _ in range(2):
        next(steps)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    spent = 0.0
    for number in range(2 * blocks):
        open_now = number % 2 == 0
        view = None
        if open_now:
            view = Timed(Store(run.folder))
            view.static_html()
            view.watch()
        began = time.perf_counter()
        for _ in range(block):
            started, used = time.perf_counter(), time.process_time()
            next(steps)
            seconds[open_now].append(time.perf_counter() - started)
            cpu[open_now].append(time.process_time() - used)
        if view is not None:
            spent += time.perf_counter() - began
            view.close()
            while view.watching:
                time.sleep(0.01)
    run.stop()
    ratio, cpu_ratio = (statistics.median(side[True]) / statistics.median(side[False]) for side in (seconds, cpu))
    step = statistics.median(seconds[False])
    return {"step": step, "ratio": ratio, "cpu_ratio": cpu_ratio, "thread_share": Timed.took / spent}


def main() -> None:
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["overhead"] = overhead(folder)
        if chromium():
            from playwright.sync_api import sync_playwright

            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
                browser.new_page().close()
                result["paint"] = paint(browser, folder)
                result["lag_50"] = lag(browser, folder, 50)
                result["lag_200"] = lag(browser, folder, 200)
                browser.close()
    rounded = {part: {key: round(value, 4) for key, value in values.items()} for part, values in result.items()}
    print(json.dumps({"bench": "views", **rounded}))


if __name__ == "__main__":
    main()
