"""The dashboard's curves in a page: zoom, smoothing, log scale, other runs, events; long runs and fast ones."""

from __future__ import annotations

import time

import pytest
import writer

from workbench.store import Store
from workbench.views import Dashboard

pytestmark = pytest.mark.browser

DRAWN = "n => Number(document.querySelector('.wb-dashboard')?.dataset.drawn ?? -1) >= n"
TITLES = "() => [...document.querySelectorAll('.wb-group:not([hidden]) .wb-chart-title')].map(t => t.textContent)"
PLOT = """title => [...document.querySelectorAll('.wb-chart')]
    .find(chart => chart.querySelector('.wb-chart-title').textContent === title).querySelector('.wb-plot')"""
RANGES = """() => [...new Set([...document.querySelectorAll('.wb-plot')].filter(p => p.layout)
    .map(p => p.layout.xaxis.range.map(x => Math.round(x)).join(' ')))]"""
SLIDE = """weight => {
    const slider = document.querySelector('.wb-slider');
    slider.value = weight;
    slider.dispatchEvent(new Event('input'));
}"""
ANOTHER = """place => {
    const made = document.createElement('div');
    made.className = `wb-place ${place}`;
    document.body.prepend(made);
}"""
HOSTILE_EVENT = "<img src=x onerror='window.hacked=5'> %{y} \u202e"


def rich(folder, upto: int = 40, scale: float = 1.0):
    """A run with all that the charts of GRPO know, a branch given up, and an event of each kind."""
    store = writer.begin(folder, steps=60)

    def commit(step: int, branch: int = 0, more: float = 1.0) -> None:
        made = writer.metrics_of("grpo", step, 60)
        made |= {"entropy/p10": 0.2, "entropy/p90": 3.0, "num_tokens": 5000.0 * step, "reward_length_corr": 0.3}
        made |= {"kl": 0.0 if step < 5 else 0.01 * step, "sampling/sampling_logp_difference/mean": 1e-3}
        metrics = {name: scale * more * value for name, value in made.items()}
        store.commit_step(step, branch, seconds=0.5, metrics=metrics, state={}, plan={}, threads=1)

    for step in range(1, upto + 1):
        commit(step)
    store.add_event(6, 0, "set", settings={"lr": [1e-5, 2e-5]})
    store.add_event(14, 0, "set", rewards=[["correct"], ["correct", "format"]])
    store.add_event(21, 0, "tracking", message=HOSTILE_EVENT)
    branch = store.add_branch(0, 30)
    store.add_event(30, branch, "rewind", from_step=upto, from_branch=0)
    for step in range(31, upto - 3):
        commit(step, branch, 1.2)
    store.add_event(upto - 4, branch, "error", message="RewardError: the function said None")
    return store


def chart(page, title: str):
    return page.locator(".wb-chart").filter(has=page.locator(".wb-chart-title", has_text=title)).first


def test_curves_are_zoomed_smoothed_and_explained(page, host, tmp_path, shot):
    store = rich(tmp_path / "run")
    host.open(page, Dashboard(Store(store.folder), refresh=0.05))
    page.wait_for_function(DRAWN, arg=36)
    assert page.evaluate(TITLES)[:4] == ["Reward", "Held-out tasks solved", "Groups that teach nothing", "Entropy"]
    assert page.locator(".wb-group-title").all_inner_texts() == ["Reward", "Policy", "Completions", "Update", "Speed"]
    assert chart(page, "Tokens per second").locator(".wb-value").inner_text() == "12000"
    opacities = page.evaluate(f"() => ({PLOT})('Reward').data.map(t => t.opacity ?? 1)")
    assert opacities.count(0.4) == 4, "each curve's branch that was given up is faint"
    band = page.evaluate(f"() => ({PLOT})('Entropy').data.slice(0, 2).map(t => [t.y[0], t.fill ?? ''])")
    assert band == [[0.2, ""], [3, "tonexty"]]

    # a drag over one chart zooms all; the lane of events goes with them
    assert page.evaluate(RANGES) == ["-1 41"]
    box = chart(page, "Reward").locator(".wb-plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 11, box["y"] + 70, steps=4)
    page.mouse.up()
    page.wait_for_function(f"() => ({RANGES})().length === 1 && ({RANGES})()[0] !== '-1 41'")
    low, high = map(int, page.evaluate(RANGES)[0].split())
    assert 12 < low < 24 and high == 40
    assert page.locator(".wb-mark").count() == 3, "of the events those from there on"
    page.locator(".wb-key").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"low => Number(({RANGES})()[0].split(' ')[0]) < low", arg=low)
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => ({RANGES})().join() === '-1 41'")
    chart(page, "Entropy").locator(".wb-plot").scroll_into_view_if_needed()
    page.locator(".wb-key").first.focus()
    page.keyboard.press("+")
    page.wait_for_function(f"() => ({RANGES})().join() === '10 30'")
    chart(page, "Entropy").locator(".nsewdrag").dblclick()
    page.wait_for_function(f"() => ({RANGES})().join() === '-1 41'")

    is_smoothed(page)

    # a log scale leaves out what is not above 0, and says so
    kl = chart(page, "KL to the reference")
    kl.get_by_role("button", name="log").click()
    page.wait_for_function(f"() => ({PLOT})('KL to the reference').layout.yaxis.type === 'log'")
    assert kl.locator(".wb-chart-left").inner_text() == "4 of 36 values ≤ 0: not on this scale"
    title, left = (kl.locator(f".wb-chart-{part}").bounding_box() for part in ("title", "left"))
    assert left["y"] >= title["y"] + title["height"] and left["height"] < 20, "on a line of its own"
    kl.get_by_role("button", name="?").click()
    assert "KL(policy || reference)" in kl.locator(".wb-help").inner_text()
    shot("curves-tools")
    page.keyboard.press("Escape")
    assert kl.locator(".wb-help").is_hidden()


def is_smoothed(page) -> None:
    """0.5 makes of 1, 3 the average (0.5 * 1 + 3) / 1.5; the raw curve stays, faint."""
    page.evaluate(SLIDE, 0.5)
    assert page.locator(".wb-amount").inner_text() == "0.50"
    page.wait_for_function(f"() => ({PLOT})('Gradient norm').data?.some(t => t.customdata)")
    raw, smooth = page.evaluate(
        f"() => {{ const d = ({PLOT})('Gradient norm').data; const s = d.find(t => t.customdata);"
        " return [[...s.customdata], [...s.y]] }"
    )
    weighed = all_weights = 0.0
    for value, shown in zip(raw, smooth, strict=True):
        weighed, all_weights = 0.5 * weighed + 0.5 * value, 0.5 * all_weights + 0.5
        assert shown == pytest.approx(weighed / all_weights)
    chart(page, "Gradient norm").locator(".wb-plot").hover()
    page.wait_for_selector(".wb-plot .hoverlayer text")
    assert "smoothed" in chart(page, "Gradient norm").locator(".hoverlayer").text_content()


def test_other_runs_are_laid_over_and_events_open(page, host, tmp_path, shot):
    name = "<b>%{y} & \u202e"  # short enough for the box at the pointer
    store = rich(tmp_path / "runs" / "mine")
    laid = rich(tmp_path / "runs" / name, upto=50, scale=2.0)
    # what is laid over is read again every 10 s
    page.add_init_script(
        "{ const real = setInterval;"
        " setInterval = (f, ms) => (ms === 10000 ? real(() => window.hurry && f(), 200) : real(f, ms)) }"
    )
    view = Dashboard(Store(store.folder), refresh=0.05)
    host.open(page, view)
    page.wait_for_function(DRAWN, arg=36)
    page.get_by_role("button", name="Overlay runs").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".wb-pick input:focus")
    page.keyboard.press("Space")
    page.wait_for_function(f"() => ({PLOT})('Reward').data.some(t => t.line.dash === 'dash')")
    page.keyboard.press("Escape")
    assert page.locator(".wb-pop").is_hidden()
    assert page.locator(".wb-run bdi").all_inner_texts() == ["this run", "<b>%{y} & ⟨U+202E⟩"]
    mine, other = page.evaluate(
        f"() => ({PLOT})('Completion length').data.filter(t => (t.opacity ?? 1) > 0.8)"
        ".map(t => [t.line.dash, t.x.length])"
    )[::-1]
    assert (mine, other) == (["solid", 36], ["dash", 46])
    assert page.evaluate(RANGES) == ["-1 51"], "the axis has room for the longer run"
    writer.commit(laid, 47, branch=1)
    page.evaluate("() => { window.hurry = true }")
    page.wait_for_function(
        f"() => ({PLOT})('Completion length').data.some(t => t.line.dash === 'dash' && t.x.length === 47)"
    )
    page.evaluate("() => { window.hurry = false }")
    chart(page, "Completion length").locator(".wb-plot").hover()
    page.wait_for_selector(".wb-plot .hoverlayer text")
    assert "<b>%{y} & ⟨U+202E⟩" in chart(page, "Completion length").locator(".hoverlayer").text_content()
    assert page.locator(".wb-dashboard img, .wb-dashboard a").count() == 0
    shot("curves-overlay")

    marks = page.locator(".wb-mark")
    assert marks.all_inner_texts() == ["◆", "★", "▲", "◀", "✕"]
    marks.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    said = page.locator(".wb-lane-box").inner_text()
    assert "step 21" in said and HOSTILE_EVENT.replace("\u202e", "⟨U+202E⟩") in said
    page.keyboard.press("Escape")
    assert page.locator(".wb-lane-box").is_hidden()
    page.get_by_role("button", name="5 events").click()
    assert page.locator(".wb-event").count() == 5 and "lr 1e-5 → 2e-5" in page.locator(".wb-event").first.inner_text()

    # the choice lives as long as the page: a second view of the run has it from the start
    page.evaluate(SLIDE, 0.9)
    page.evaluate(ANOTHER, f"wb-place-{view.place}")
    page.wait_for_function("() => document.querySelectorAll('.wb-run bdi').length === 4")
    assert page.locator(".wb-amount").all_inner_texts() == ["0.90", "0.90"]


def test_a_long_run_is_drawn_at_once_and_a_zoom_shows_each_step(page, host, tmp_path):
    store = writer.long_run(tmp_path / "run", steps=20_000)
    view = Dashboard(Store(store.folder))
    view.static_html()  # as a cell does before anything is seen
    host.open(page, view)
    page.wait_for_function(DRAWN, arg=20_000)
    longest = page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.wb-plot')].flatMap(p => p.data ?? []).map(t => t.x.length))"
    )
    assert 1000 < longest <= 2000
    reward = f"({PLOT})('Reward')"
    page.evaluate(f"() => {reward}.emit('plotly_relayout', {{ 'xaxis.range[0]': 15000, 'xaxis.range[1]': 15400 }})")
    page.wait_for_function(f"() => ({PLOT})('Entropy').data.at(-1).x.length === 801")

    # the library is there by now: another view of the run is painted within a second
    took = []
    for n in (2, 3, 4):
        began = time.monotonic()
        page.evaluate(ANOTHER, f"wb-place-{view.place}")
        page.wait_for_function(
            "n => document.querySelectorAll('.wb-dashboard[data-drawn=\"20000\"]').length === n", arg=n
        )
        took.append(time.monotonic() - began)
    assert min(took) < 1, took


def test_fifty_steps_a_second_leave_no_backlog(page, host, tmp_path):
    store = writer.begin(tmp_path / "run", steps=400)
    host.open(page, Dashboard(Store(store.folder)))
    page.wait_for_function(DRAWN, arg=0)
    writer.train(store, 100, seconds=0.02).join()
    ended = time.monotonic()
    page.wait_for_function(DRAWN, arg=100)
    assert time.monotonic() - ended < 8, "the page is where the run is soon after it ended"
