"""The views without a browser: what they send, what stays when nothing can run, and that no text becomes code."""

from __future__ import annotations

import base64
import html.parser
import importlib
import json
import math
import pkgutil
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from browser import writer

from workbench import views
from workbench.store import Store
from workbench.views import curves, picture, report
from workbench.views.base import View, assets
from workbench.views.dashboard import Dashboard
from workbench.views.text import duration, escape, number, one_line, sparkline, visible

HOSTILE = writer.HOSTILE


class Tags(html.parser.HTMLParser):
    """The tags and attributes of a page, as a browser sees them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def assert_inert(page: str, images: bool = True) -> None:
    """No script, no handler, nothing loaded but pictures that stand in the page itself."""
    seen = Tags(page)
    assert "script" not in seen.tags and "iframe" not in seen.tags
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    sources = [value for name, value in seen.attributes if name in ("src", "href")]
    assert all(value.startswith("data:image/svg+xml;base64,") for value in sources) and (images or not sources)


def listen(view) -> list[tuple[dict, dict]]:
    """What `view` sends from now on: (content, {(name, branch): (steps, values)})."""
    heard = []

    def send(content, buffers=None):
        json.dumps(content, allow_nan=False)
        pieces, at = {}, 0
        numbers = np.frombuffer(buffers[0], "<f8") if buffers and content["kind"] == "curves" else np.empty(0)
        for piece in content.get("pieces", ()):
            n = piece["n"]
            pieces[piece["name"], piece["branch"]] = (
                numbers[at : at + n].tolist(),
                numbers[at + n : at + 2 * n].tolist(),
            )
            at += 2 * n
        assert at == len(numbers)
        heard.append((content, pieces))

    view.send = send
    return heard


def svgs(page: str) -> list[str]:
    return [base64.b64decode(found).decode() for found in re.findall(r"svg\+xml;base64,([^\"]+)", page)]


def test_nothing_hides_in_visible_text():
    assert visible("a\x1b[31m\x00\r\x7f\x85") == "a⟨ESC⟩[31m⟨NUL⟩⟨CR⟩⟨U+007F⟩⟨U+0085⟩"
    assert visible("\u202eevil\u2066\u200b\ufeff\u2028\u00ad") == "⟨U+202E⟩evil⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩⟨U+00AD⟩"
    assert visible("\ud800 \U000e0041") == "\ufffd ⟨U+E0041⟩"
    plain = "tabs\tand\nlines, é, 日本, עברית, ❤️, x² – “quotes” <b> & \"'"
    assert visible(plain) == plain
    assert escape("<b a=\"'&\u200e") == "&lt;b a=&quot;&#x27;&amp;⟨U+200E⟩"
    assert one_line("ab\ncdef", 4) == "ab↵c…" and one_line("ab\n", 4) == "ab↵"


def test_numbers_times_and_bars():
    assert [number(v) for v in (0.123456, -3.0, 1e-5, math.nan, -math.inf, None, 12345678.0)] == [
        "0.1235", "−3", "1e-5", "NaN", "−∞", "–", "1.235e7",
    ]  # fmt: skip
    assert [duration(s) for s in (0.5, 59.4, 59.9, 125, 3599.8, 7800)] == [
        "0.5 s", "59 s", "1 min 00 s", "2 min 05 s", "1 h 00 min", "2 h 10 min",
    ]  # fmt: skip
    assert sparkline([0, 0.5, 1, math.nan]) == "▁▅█·"
    assert sparkline([1, 1]) == "▅▅" and sparkline([]) == "" and sparkline([math.nan]) == "·"
    assert len(sparkline(list(range(1000)), 32)) == 32


def test_charts_fit_the_method_and_rl_never_shows_the_loss_first():
    names = ["eval/accuracy", "eval/pass@8", *writer.metrics_of("grpo", 1, 10)]
    charts = curves.arrange("grpo", names)
    assert [c.title for c in charts if c.main] == [
        "Reward", "Held-out tasks solved", "Groups that teach nothing", "Entropy", "Completion length",
        "Cut off at the limit", "Gradient norm", "Clipped by the ratio",
    ]  # fmt: skip
    assert charts[0].names == ("reward", "rewards/correct/mean", "rewards/format/mean")
    assert charts[0].band == ("reward_std",)
    assert "KL to the reference" in [c.title for c in curves.arrange("grpo", [*names, "kl"])]
    folded = [c for c in charts if not c.main]
    assert "loss" in [name for c in folded for name in c.names]
    assert ("rewards/correct/std", "rewards/format/std") in [c.names for c in folded]
    shown = [name for c in charts for name in c.names] + ["reward_std"]
    assert sorted(shown) == sorted(names), "every metric is in one chart"

    dpo = curves.arrange("dpo", list(writer.metrics_of("dpo", 5, 10)))
    assert dpo[0].names == ("rewards/margins", "rewards/chosen", "rewards/rejected")
    assert dpo[1].names == ("rewards/accuracies", "eval/rewards/accuracies")
    sft = curves.arrange("sft", list(writer.metrics_of("sft", 5, 10)))
    assert sft[0].names == ("loss", "eval/loss") and sft[0].main
    assert all(c.main for c in curves.arrange("a new method", ["loss", "x"]))


def test_curves_follow_the_branch_that_counts(tmp_path):
    store = writer.begin(tmp_path / "run", steps=10)
    read = curves.Curves(Store(tmp_path / "run"))
    assert {name for name, *_ in read.refresh()} == set(writer.metrics_of("grpo", 0, 10))
    writer.write(store, 8, steps=10)
    new = {(name, branch): steps.tolist() for name, branch, steps, _ in read.refresh()}
    assert new["reward", 0] == [1, 2, 3, 4, 5, 6, 7, 8] and new["eval/accuracy", 0] == [5]
    assert read.refresh() == []
    writer.rewind(store, 3, 5, steps=10)
    new = {(name, branch): steps.tolist() for name, branch, steps, _ in read.refresh()}
    assert new["reward", 1] == [4, 5] and ("reward", 0) not in new
    steps, values = read.main("reward")
    assert steps.tolist() == [1, 2, 3, 4, 5]
    once = [writer.metrics_of("grpo", k, 10)["reward"] for k in range(1, 9)]
    np.testing.assert_allclose(values, [*once[:3], 1.1 * once[3], 1.1 * once[4]])
    ((steps, values),) = read.given_up("reward")
    assert steps.tolist() == [3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(values, once[2:])
    assert [(e["step"], e["text"]) for e in read.events] == [(3, "went back here from step 8"), (4, "lr 1e-5 → 3e-5")]
    fresh = curves.Curves(Store(tmp_path / "run"))
    fresh.refresh()
    assert fresh.points == read.points


def test_thinning_keeps_every_extreme():
    steps = np.arange(100_000.0)
    values = np.sin(steps / 5000)
    values[[777, 55_555]] = [9, -9]
    values[50_000:50_400] = np.nan
    x, y = curves.thin(steps, values)
    assert len(x) <= curves.MOST_POINTS and (np.diff(x) > 0).all()
    assert y[x == 777] == 9 and y[x == 55_555] == -9 and (x[0], x[-1]) == (0, 99_999)
    assert np.isnan(y).any(), "a gap stays a gap"


def wait_until(true, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not come in time"
        time.sleep(0.01)


def test_a_view_that_says_hello_gets_the_history_and_then_each_new_step_once(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", steps=40), 3)
    view = Dashboard(Store(tmp_path / "run"), refresh=0.02)
    heard = listen(view)
    view._receive(view, {"kind": "hello", "view": "a"}, [])
    content, pieces = heard[-1] if heard[-1][0]["to"] == "a" else heard[-2]
    assert content["reset"] and pieces["reward", 0][0] == [1, 2, 3] and content["head"]["step"] == 3
    assert content["charts"][0]["title"] == "Reward"
    heard.clear()
    for step in (4, 5):
        writer.commit(store, step)
        view._receive(view, {"kind": "hello", "view": f"b{step}"}, [])  # reads first; view a must not miss the step
        view.static_html()
        wait_until(lambda step=step: any(c["to"] is None and c["head"]["step"] == step for c, _ in list(heard)))
    appended = [pieces.get(("reward", 0), ([],))[0] for content, pieces in heard if content["to"] is None]
    assert sum(appended, []) == [4, 5]
    store.add_event(6, 0, "set", settings={"lr": [1e-5, 2e-5]})
    wait_until(lambda: any(c["events"] for c, _ in list(heard) if c["to"] is None))
    assert [e["text"] for c, _ in heard if c["to"] is None for e in c["events"]] == ["lr 1e-5 → 2e-5"]
    view.close()
    wait_until(lambda: not view.watching)


@pytest.mark.parametrize("status", ["finished", "failed", "killed", "stopped"])
def test_the_thread_ends_with_the_run_once_its_last_step_is_sent(tmp_path, status):
    store = writer.write(writer.begin(tmp_path / "run", steps=40), 2)
    view = Dashboard(Store(tmp_path / "run"), refresh=0.02)
    heard = listen(view)
    view.watch()
    wait_until(lambda: heard)
    assert view.watching
    writer.commit(store, 3)
    gone = {"writer": {"pid": 2**22 + 1, "host": "elsewhere"}}
    store.set_meta(**(gone if status == "killed" else {"status": status}))
    wait_until(lambda: not view.watching)
    assert heard[-1][0]["head"]["status"] == status and heard[-1][0]["head"]["step"] == 3
    view.close()


def test_the_thread_ends_when_the_widget_is_closed_and_goes_on_through_a_pause(tmp_path):
    store = writer.begin(tmp_path / "run", steps=40, status="paused")
    view = Dashboard(Store(tmp_path / "run"), refresh=0.02)
    heard = listen(view)
    view.watch()
    wait_until(lambda: heard)
    writer.commit(store, 1)
    wait_until(lambda: heard[-1][0]["head"]["step"] == 1)
    assert view.watching
    view.close()
    wait_until(lambda: not view.watching)
    sent = len(heard)
    writer.commit(store, 2)
    time.sleep(0.1)
    assert len(heard) == sent


def test_a_pause_and_the_end_bring_the_picture_up_to_date(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run"), 2)
    view, shown = Dashboard(Store(store.folder), refresh=0.02), []

    class Handle:  # what display(..., display_id=True) returns
        def update(self, data, raw, metadata=None):
            shown.append(data)

    view._handle = Handle()
    view.watch()
    wait_until(lambda: view._sent_head is not None)
    for status in ("paused", "running", "finished"):
        store.set_meta(status=status)
        wait_until(lambda: shown)
        assert status in shown[0]["text/html"] and sorted(shown.pop()) == ["text/html", "text/plain"]
    wait_until(lambda: not view.watching)
    view.close()


def test_the_chart_library_is_sent_only_when_it_is_asked_for(tmp_path):
    import gzip

    view = Dashboard(Store(writer.begin(tmp_path / "run").folder))
    sent = []
    view.send = lambda content, buffers=None: sent.append((content, buffers))
    view._receive(view, {"kind": "plotly", "view": "a"}, [])
    ((content, (buffer,)),) = sent
    assert content == {"kind": "plotly", "to": "a", "version": view.library}
    assert b"plotly.js" in gzip.decompress(buffer)[:200] and len(buffer) < 2_500_000
    assert len(view.get_state()["_esm"]) < 80_000, "the widget itself stays small"
    view.close()


def test_the_picture_has_the_curves_and_no_script(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished", name=HOSTILE), 40, hostile=True)
    writer.rewind(store, 20, 40)
    view = Dashboard(Store(tmp_path / "run"))
    page = view.static_html()
    assert_inert(page)
    assert "<script>" not in page and "&lt;script&gt;window.hacked=1&lt;/script&gt;" in page
    assert "⟨ESC⟩[31mred" in page and "\x1b" not in page and "\u202e" not in page
    drawn = svgs(page)
    assert len(drawn) == 8 and all("<polyline" in svg and "hacked" not in svg for svg in drawn)
    assert 'opacity="0.3"' in drawn[0], "the steps given up are drawn faint"
    assert drawn[0].count("stroke-dasharray") >= 2, "events are marked"
    assert "lr 1e-5 → 3e-5" in page and "step 40 of 40" in page and "finished" in page
    text = view.static_text()
    assert "reward " in text and "█" in text and "\x1b" not in text and "step 40 of 40" in text
    bundle, _ = view._repr_mimebundle_()
    assert page in bundle["text/html"] and bundle["text/plain"] == text
    assert re.match('<div class="wb-place mathjax_ignore tex2jax_ignore wb-place-', bundle["text/html"])
    assert set(bundle) == {"text/html", "text/plain"}, "a saved notebook shows the picture, and no lost widget"
    view.close()


def test_a_saved_notebook_as_html_shows_the_picture(tmp_path):
    import nbconvert
    import nbformat

    view = Dashboard(Store(writer.write(writer.begin(tmp_path / "run", status="finished"), 10).folder))
    bundle, _ = view._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", bundle)])
    page, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "wb-static" in page and sum("<polyline" in svg for svg in svgs(page)) == 8
    view.close()


def test_every_view_over_every_state_says_something_sensible(tmp_path):
    said = {
        "nan": "NaN", "bare": "No metrics yet", "empty": "Waiting for the first step", "one": "step 1 of 40",
        "killed": "The process that wrote this run is gone. Its last whole step is 7",
        "dpo": "rewards/margins", "sft": "eval/loss",
    }  # fmt: skip
    for name, store in writer.states(tmp_path).items():
        view = Dashboard(Store(store.folder))
        heard = listen(view)
        view._receive(view, {"kind": "hello", "view": "a"}, [])
        assert heard[-1][0]["kind"] == "curves"
        page, text = view.static_html(), view.static_text()
        assert said[name] in html.unescape(page) and said[name] in text, name
        assert_inert(page)
        for svg in svgs(page):
            assert "nan" not in svg and "inf" not in svg and svg.count("<svg") == 1
        view.close()
        table = views.RolloutTable(Store(store.folder))
        if name in ("one", "killed"):
            assert len(table.frame) == table.first["matched"] == (8 if name == "one" else 56)
        else:
            assert table.static_text() == "No rollouts." in table.static_html()
            assert len(table.frame) == 0 and table.first["rows"]["id"] == []
        table.close()


def test_a_run_that_another_process_writes(tmp_path):
    folder = tmp_path / "run"
    writer.begin(folder, steps=40).close()
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(writer.__file__).parent)!r}); import writer, os, platform\n"
        f"from workbench.store import Store; s = Store({str(folder)!r}, write=True)\n"
        "s.set_meta(writer={'pid': os.getpid(), 'host': platform.node()})\n"
        "writer.write(s, 5); print('written', flush=True); sys.stdin.read()"
    )
    repo = Path(__file__).parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=repo, env={"PYTHONPATH": str(repo)}, **pipes)
    try:
        assert process.stdout.readline() == "written\n"
        view = Dashboard(Store(folder), refresh=0.02)
        heard = listen(view)
        view.watch()
        wait_until(lambda: heard)
        assert (heard[0][0]["head"]["status"], heard[0][0]["head"]["step"]) == ("running", 5)
        process.kill()
        process.wait()
        wait_until(lambda: not view.watching)
        assert heard[-1][0]["head"]["status"] == "killed"
    finally:
        process.kill()
        process.communicate()
    view.close()


def test_in_a_terminal_the_dashboard_is_text(tmp_path, capsys):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 40)
    view = views.show_dashboard(Store(store.folder))
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "run · grpo · step 40 of 40 · finished"
    assert re.search(r"eval/accuracy\s+▁.*█\s+0\.1 → 0\.7", printed)
    assert repr(view) == "<Dashboard: run, grpo, step 40 of 40, finished>" and not view.watching
    view.keep()  # nothing was displayed, so there is no picture to bring up to date
    view.close()


def test_views_need_no_torch(tmp_path):
    code = "import sys, workbench.views.dashboard, workbench.views.report; print('torch' in sys.modules)"
    repo = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_ticks_are_round_and_few():
    assert picture.ticks(0, 1) == [0, 0.5, 1]
    assert picture.ticks(0.02, 0.97) == [0.2, 0.4, 0.6, 0.8]
    assert picture.ticks(0, 40, 6) == [0, 10, 20, 30, 40]
    assert picture.ticks(3, 3) == [3]


def test_the_scripts_of_each_view_have_every_name_they_use_once():
    """Files are joined by hand (`assets`): one that is left out would only be missed when a page comes to use it."""
    for module in pkgutil.iter_modules(views.__path__):
        importlib.import_module(f"{views.__name__}.{module.name}")
    scripts = {
        view.__name__: str(view._esm) for view in View.__subclasses__() if view.__module__.startswith("workbench")
    }
    assert len(scripts) >= 9
    scripts["report"] = assets(*report.SCRIPTS)
    for name, source in scripts.items():
        source = re.sub(r"//.*", "", source)
        made = re.findall(r"^(?:async )?(?:function|class|const) (\w+)", source, re.MULTILINE)
        used = set(re.findall(r"(?<![.\w-])(?:wb[A-Z]\w*|Wb[A-Z]\w*|WB_[A-Z_]+)\b", source))
        assert used <= set(made), (name, used - set(made))
        assert len(made) == len(set(made)), (name, "a name is there twice")
