"""The run's curves without a browser: thinned by SQL, in groups that fit the method, light to follow."""

from __future__ import annotations

import json
import math
import re
import time

import numpy as np
import pytest
from browser import writer

from tests.test_views import assert_inert, listen, svgs, wait_until
from workbench.store import Store, metrics
from workbench.views import panels, picture
from workbench.views.curves import MOST_POINTS, Curves, describe, mark_of
from workbench.views.dashboard import Dashboard

HOSTILE_RUN = "<img src=x onerror='window.hacked=4'> \u202e & run"


def put(store: Store, step: int, branch: int = 0, seconds: float = 1.0, **values: float) -> None:
    store.commit_step(step, branch, seconds=seconds, metrics=values, state={}, plan={}, threads=1)


def asked(view, kind: str, **values) -> tuple[dict, list]:
    """The answer to a question of a page: its content and its buffers."""
    heard = []
    view.send = lambda content, buffers=None: heard.append((content, buffers))
    view._receive(view, {"kind": kind, "view": "a", "ask": 7, **values}, [])
    wait_until(lambda: any(content.get("ask") == 7 for content, _ in heard))
    return next(one for one in heard if one[0].get("ask") == 7)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """20,000 steps of three metrics: one with a spike each way, one mostly missing, one NaN at its end."""
    store = writer.begin(tmp_path_factory.mktemp("long") / "run", steps=20_000, status="finished")
    rng = np.random.default_rng(0)
    noise = rng.random(20_001)
    noise[[4_321, 12_345]] = [9.0, -9.0]
    rows = [(k, "noise", float(noise[k])) for k in range(1, 20_001)]
    rows += [(k, "sparse", float(k)) for k in range(777, 20_001, 777)]
    rows += [(k, "ends", 1.0 if k < 15_000 else math.nan) for k in range(1, 20_001)]
    rows += [(k, "num_tokens", 100.0 * k) for k in range(1, 20_001)]
    with store.transaction() as db:
        db.executemany("INSERT INTO steps VALUES (?, 0, 0.5, 0, '{}', '{}', 1)", [(k,) for k in range(1, 20_001)])
        db.executemany("INSERT INTO metrics VALUES (?, 0, ?, ?)", rows)
    return store, noise


def test_a_long_run_is_thinned_without_losing_a_spike(long):
    store, noise = long
    found = {name: (steps, values) for name, steps, values in metrics.pieces(store, 0, -1, 20_000, 400)}
    steps, values = found["noise"]
    assert 300 < len(steps) <= 400 and (steps[0], steps[-1]) == (1, 20_000)
    assert all(a < b for a, b in zip(steps, steps[1:], strict=False))
    assert values == [noise[int(step)] for step in steps], "points are the run's own, at their own steps"
    assert values[steps.index(4_321)] == 9 and values[steps.index(12_345)] == -9
    width = math.ceil(20_001 / 198)
    for low in range(-1, 20_000, width):
        part = noise[max(low + 1, 1) : low + 1 + width]
        kept = [v for s, v in zip(steps, values, strict=True) if low < s <= low + width]
        assert (min(kept), max(kept)) == (part.min(), part.max())
    assert found["sparse"][0] == list(range(777, 20_001, 777)), "what is sparse comes whole"
    steps, values = found["ends"]
    assert math.isnan(values[-1]) and steps[-1] == 20_000 and values[0] == 1
    assert all(math.isnan(v) == (s >= 15_000) for s, v in zip(steps, values, strict=True))


def test_a_short_stretch_comes_whole_and_in_order(long):
    store, noise = long
    found = metrics.pieces(store, 0, 99, 300, 400)
    assert [name for name, *_ in found] == ["ends", "noise", "num_tokens"]
    assert found[1][1] == list(range(100, 301)) and found[1][2] == noise[100:301].tolist()


def test_a_view_of_a_long_run_holds_few_points_and_reads_a_stretch_anew(long):
    store, noise = long
    curves = Curves(Store(store.folder))
    pieces = curves.refresh()
    assert max(len(steps) for _, _, steps, _ in pieces) <= MOST_POINTS
    steps, values = curves.main("noise")
    assert (values.min(), values.max()) == (-9, 9) and steps[-1] == 20_000
    whole = {name: (steps, values) for name, _, steps, values in curves.between(5_000, 5_400)}
    assert whole["noise"][0].tolist() == list(range(5_000, 5_401))
    np.testing.assert_array_equal(whole["noise"][1], noise[5_000:5_401])
    assert whole[metrics.RATE][1].tolist() == [200.0] * 401
    content, (line, *_) = asked(Dashboard(Store(store.folder)), "between", first=5_000, last=5_400)
    assert content["packed"] == [["numbers", "f8"]] and sum(2 * p["n"] for p in content["pieces"]) * 8 == len(line)


def test_what_is_held_is_thinned_again_as_a_run_grows(tmp_path):
    store = writer.begin(tmp_path / "run")
    curves = Curves(Store(store.folder))
    for first in range(1, 6000, 1000):
        with store.transaction() as db:
            steps = range(first, first + 1000)
            db.executemany("INSERT INTO steps VALUES (?, 0, 1, 0, '{}', '{}', 1)", [(k,) for k in steps])
            db.executemany(
                "INSERT INTO metrics VALUES (?, 0, 'x', ?)", [(k, 9.0 if k == 55 else math.sin(k)) for k in steps]
            )
        curves.refresh()
        assert len(curves.points["x"][0][0]) <= 2 * MOST_POINTS
    steps, values = curves.main("x")
    assert (steps[0], steps[-1]) == (1, 6000) and values[steps == 55] == 9


def test_tokens_per_second_by_hand(tmp_path):
    store = writer.begin(tmp_path / "run")
    put(store, 1, seconds=2, num_tokens=100)
    put(store, 2, seconds=4, num_tokens=300)
    curves = Curves(Store(store.folder))
    curves.refresh()
    assert curves.main(metrics.RATE)[1].tolist() == [50, 50]
    put(store, 3, seconds=1, num_tokens=1000)
    branch = store.add_branch(0, 2)
    put(store, 3, branch, seconds=10, num_tokens=700)  # 400 more than at step 2, where the branch parted
    put(store, 4, branch, seconds=0, num_tokens=800)  # no time: no rate
    put(store, 5, branch, seconds=2, num_tokens=900)
    curves.refresh()
    steps, values = curves.main(metrics.RATE)
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3, 5], [50, 50, 40, 50])
    assert curves.given_up(metrics.RATE)[0][1].tolist() == [50, 700]
    fresh = Curves(Store(store.folder))
    fresh.refresh()
    assert fresh.points == curves.points


def test_a_run_that_does_not_begin_at_step_1_has_no_rate_for_its_first(tmp_path):
    store = writer.begin(tmp_path / "run")
    put(store, 7, num_tokens=5000)
    put(store, 8, num_tokens=5100)
    curves = Curves(Store(store.folder))
    curves.refresh()
    assert [part.tolist() for part in curves.main(metrics.RATE)] == [[8], [100]]


def test_a_metric_of_the_users_own_is_not_drowned_by_one_of_ours(tmp_path):
    store = writer.begin(tmp_path / "run")
    put(store, 1, **{metrics.RATE: 3.0, "num_tokens": 100})
    curves = Curves(Store(store.folder))
    curves.refresh()
    assert curves.main(metrics.RATE)[1].tolist() == [3]


def counted(store: Store) -> list[str]:
    """The SQL that the store's connection runs from now on."""
    said: list[str] = []
    store._db.set_trace_callback(said.append)
    return said


def test_following_a_run_that_stands_still_asks_next_to_nothing(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run"), 20)
    reader = Store(store.folder)
    view = Dashboard(reader, refresh=0.01)
    heard = listen(view)
    view.watch()
    wait_until(lambda: heard)
    said = counted(reader)
    time.sleep(0.3)
    kinds = {re.sub(r"'.*?'", "?", sql) for sql in said}
    assert len(said) > 20 and kinds == {
        "PRAGMA data_version", "SELECT total_changes()", "SELECT value FROM meta WHERE key = ?",
    }  # fmt: skip
    said.clear()
    writer.commit(store, 21)
    wait_until(lambda: heard[-1][0]["head"]["step"] == 21)
    assert all("FROM metrics WHERE branch" not in sql or "step > 20" in sql for sql in said), "only what is new is read"
    view.close()
    wait_until(lambda: not view.watching)


def test_a_store_that_reads_its_own_writing_is_followed_too(tmp_path):
    store = writer.begin(tmp_path / "run")
    curves = Curves(store)
    curves.refresh()
    writer.commit(store, 1)
    assert "reward" in {name for name, *_ in curves.refresh()}
    said = counted(store)
    assert curves.refresh() == [] and len(said) == 2, "two short questions where nothing is new"


# -- which charts


def test_every_method_has_its_charts_in_groups():
    def shown(method: str, *names: str) -> dict[str, list[str]]:
        charts = [chart for chart in panels.arrange(method, names) if chart.main and chart.names]
        return {group: [chart.title for chart in some] for group, some in panels.grouped(charts).items()}

    names = [*writer.metrics_of("grpo", 5, 10), "kl", "entropy/p10", "entropy/p90", "reward_length_corr", metrics.RATE]
    names += ["sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"]
    assert shown("grpo", *names) == {
        "Reward": ["Reward", "Held-out tasks solved", "Groups that teach nothing"],
        "Policy": ["Entropy", "KL to the reference"],
        "Completions": ["Completion length", "Cut off at the limit", "Reward and length"],
        "Update": ["Gradient norm", "Clipped by the ratio", "Sampler against trainer"],
        "Speed": ["Tokens per second"],
    }
    (entropy,) = [chart for chart in panels.arrange("grpo", names) if chart.title == "Entropy"]
    assert entropy.band == ("entropy/p10", "entropy/p90") and entropy.names == ("entropy",)
    assert shown("rloo", *names) == shown("grpo", *names)
    dpo = [*writer.metrics_of("dpo", 5, 10), metrics.RATE]
    assert shown("dpo", *dpo) == shown("cpo", *dpo)
    assert shown("dpo", *dpo)["Preferences"] == ["Implicit rewards", "Pairs ranked right"]
    assert list(shown("dpo", *dpo)) == ["Preferences", "Loss and likelihood", "Update", "Speed"]
    sft = [*writer.metrics_of("sft", 5, 10), metrics.RATE]
    assert shown("sft", *sft)["Loss"] == ["Loss", "Tokens predicted right", "Entropy"]
    for method in ("orpo", "kto"):
        assert "Pairs ranked right" in str(panels.PANELS[method]) or method == "kto"
        assert shown(method, "loss", "rewards/margins", metrics.RATE).keys() >= {"Preferences", "Speed"}


def test_half_a_band_is_no_band_and_no_metric_is_lost():
    names = ["entropy", "entropy/p10", "reward_std"]
    charts = panels.arrange("grpo", names)
    assert sorted(name for chart in charts for name in (*chart.names, *chart.band)) == sorted(names)


def test_a_chart_explains_its_metrics_in_the_words_of_the_glossary():
    charts = panels.arrange("grpo", ["entropy", "entropy/p10", "entropy/p90", "my own <b>", metrics.RATE])
    about = {chart.title: chart.to_dict()["about"] for chart in charts}
    assert [one["name"] for one in about["Entropy"]] == ["entropy", "entropy/p10", "entropy/p90"]
    assert about["Entropy"][0]["what"] == panels.metric("entropy").what and about["Entropy"][0]["read"]
    assert about["Tokens per second"][0]["what"].startswith("What num_tokens grew by")
    assert about["my own <b>"] == []
    json.dumps([chart.to_dict() for chart in charts])


def test_events_are_marked_by_what_they_are():
    marks = [
        mark_of("set", {"settings": {"lr": [1, 2]}}), mark_of("set", {"rewards": [[], []]}),
        mark_of("set", {"weights": [[1], [2]], "settings": {}}), mark_of("rewind", {}), mark_of("error", {}),
        mark_of("tracking", {}), mark_of("resume", {}),
    ]  # fmt: skip
    assert marks == ["set", "reward", "reward", "rewind", "error", "warning", "note"]


# -- other runs laid over


def test_other_runs_are_found_by_name_and_sent_thinned(tmp_path, long):
    mine = writer.write(writer.begin(tmp_path / "mine"), 3)
    other = writer.write(writer.begin(tmp_path / HOSTILE_RUN, name="x"), 5)
    writer.rewind(other, 3, 4)
    (tmp_path / "no run").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.db").write_text("not a database")
    view = Dashboard(Store(mine.folder))
    runs = asked(view, "runs")[0]["runs"]
    assert len(runs) == 2 and "broken" in runs and "mine" not in runs
    (name,) = set(runs) - {"broken"}
    assert name.startswith("<img src=x") and "\u202e" not in name and "⟨U+202E⟩" in name
    content, (buffer,) = asked(view, "overlay", run=name)
    numbers, at, found = np.frombuffer(buffer, "<f8"), 0, {}
    for piece in content["pieces"]:
        found[piece["name"], piece["branch"]] = numbers[at : at + piece["n"]].tolist()
        at += 2 * piece["n"]
    assert content["line"][0][0] == 1 and found["reward", 0] == [1, 2, 3, 4, 5] and found["reward", 1] == [4]
    assert "not a readable run" in asked(view, "overlay", run="broken")[0]["trouble"]
    for outside in ("../long/run", str(long[0].folder), "no run", "mine", ""):
        assert "There is no run" in asked(view, "overlay", run=outside)[0]["trouble"]
    view.close()


# -- the static picture


def test_the_picture_has_the_groups_the_band_and_the_events(tmp_path):
    store = writer.begin(tmp_path / "run", status="finished")
    for k in range(1, 200):
        put(store, k, reward=k / 200, entropy=1.0, **{"entropy/p10": 0.5, "entropy/p90": 2.0, "num_tokens": 10.0 * k})
        store.add_event(k, 0, "set", settings={"lr": [k, k + 1]})
    view = Dashboard(Store(store.folder))
    page = view.static_html()
    assert_inert(page)
    groups = re.findall(r'margin: 10px 0 4px; color: #7a7a7a">([^<]+)<', page)
    assert groups == ["Reward", "Policy", "Speed"]
    by_title = dict(zip(re.findall(r"<div><b>([^<]+)</b> <span", page), svgs(page), strict=True))
    assert list(by_title) == ["Reward", "Held-out tasks solved", "Entropy", "Tokens per second"]
    polygon = re.search(r'<polygon points="([^"]+)"', by_title["Entropy"])[1].split()
    heights = {float(point.split(",")[1]) for point in polygon}
    assert len(heights) == 2 and "<polygon" not in by_title["Tokens per second"]
    assert by_title["Reward"].count('stroke-dasharray="2 3"') <= 50
    text = view.static_text().splitlines()
    assert text.index("Reward") < text.index("Policy") < text.index("Speed")
    assert text[text.index("Reward") + 1].startswith("  reward ")
    view.close()


def test_the_picture_of_a_long_run_is_small(long):
    store, _ = long
    view = Dashboard(Store(store.folder))
    assert len(view.static_html()) < 100_000
    view.close()


def test_every_state_has_its_curves_and_its_picture(tmp_path):
    for name, store in writer.states(tmp_path).items():
        view = Dashboard(Store(store.folder))
        heard = listen(view)
        view._receive(view, {"kind": "hello", "view": "a"}, [])
        content = heard[-1][0]
        assert content["kind"] == "curves", name
        assert all(chart["title"] and chart["group"] for chart in content["charts"]), name
        page = view.static_html()
        assert_inert(page)
        assert not re.search(r"\bnan\b|\binf\b", "".join(svgs(page))), name
        assert view.static_text().splitlines()[0].startswith(("bare", name)), name
        view.close()


def test_a_band_around_numbers_that_are_none_is_left_out(tmp_path):
    store = writer.begin(tmp_path / "run")
    for k in (1, 2, 3):
        put(store, k, reward=[1.0, math.nan, math.inf][k - 1], reward_std=0.5)
    curves = Curves(Store(store.folder))
    curves.refresh()
    (chart,) = [chart for chart in curves.charts() if chart.title == "Reward"]
    assert "<polygon" not in picture.svg(chart, curves), "one point has no area"


def test_numbers_of_an_axis_are_short():
    values = (0, 0.25, 9500, 120_000, -2.5e6, 3e9, 1e-5)
    assert [picture._brief(v) for v in values] == ["0", "0.25", "9500", "120k", "−2.5M", "3G", "1e-5"]


def test_a_change_of_rewards_is_said_by_their_names():
    right = {"name": "correct", "weight": 1.0, "reference": {"path": "tasks:correct"}}
    long = {"name": "tokens\u202e", "weight": 0.06, "reference": None}
    said = describe("set", {"rewards": [[right, long], [right]]})
    assert said == "rewards [correct, 0.06 × tokens⟨U+202E⟩] → [correct]"
    assert describe("set", {"rewards": [[right], [right]]}) == "rewards [correct], edited"
    assert describe("set", {"settings": {"lr": [1e-5, 2e-5]}}) == "lr 1e-5 → 2e-5"
