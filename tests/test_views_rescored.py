"""Rescored rollouts: ranks, flips and groups by hand, and what the view of them sends and keeps."""

from __future__ import annotations

import base64
import html.parser
import itertools
import json
import math
import re
import time

import numpy as np
import pandas as pd
import pytest
from browser import writer

from workbench import ranks, rescoring
from workbench.errors import RunError
from workbench.sampling.rollouts import Rollouts
from workbench.store import Store
from workbench.text import clean
from workbench.views.rescored import RescoredView, in_words

NAN = float("nan")


def table(old, new, group=None, step=None, **more) -> pd.DataFrame:
    """Rollouts with these rewards, and their distance from the mean of their group as advantage."""
    n = len(old)
    frame = pd.DataFrame({
        "id": np.arange(n) + 1, "step": step or [1] * n, "group_id": group or [0] * n, "prompt": ["p"] * n,
        "completion": [f"c{i}" for i in range(n)], "reward": np.array(old, float), "new_reward": np.array(new, float),
    })  # fmt: skip
    for name, of in (("advantage", "reward"), ("new_advantage", "new_reward")):
        by = frame.groupby(["step", "group_id"])[of]
        frame[name] = (frame[of] - by.transform("mean")).fillna(0.0)
    return ranks.with_changes(frame.assign(**more))


def test_ranks_flips_and_pairs_by_hand():
    frame = table([3, 2, 1, 1], [1, 2, 3, 3])
    assert frame["rank"].tolist() == [1, 2, 3, 3] and frame["new_rank"].tolist() == [4, 3, 1, 1]
    # means 1.75 and 2.25: +1.25 +0.25 -0.75 -0.75 become -1.25 -0.25 +0.75 +0.75
    assert frame["flips"].tolist() == [True] * 4
    (group,) = ranks.groups_of(frame).to_dict("records")
    # six pairs, of which (2, 3) is a tie on both sides; the other five all turn round
    assert (group["reordered"], group["pairs"], group["tau"]) == (5, 5, -1.0)
    assert group["best_changed"] and (group["flips"], group["size"]) == (4, 4)
    # one tie becomes an order: agree 2, disagree 0, ordered before 2, after 3: 2 / sqrt(6)
    (group,) = ranks.groups_of(table([1, 0, 0], [3, 2, 1])).to_dict("records")
    assert (group["reordered"], group["pairs"]) == (0, 3) and not group["best_changed"]
    assert group["tau"] == pytest.approx(2 / math.sqrt(6))


def test_pairs_and_tau_are_those_of_counting_pair_by_pair():
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(20), np.arange(20) % 7 + 1))  # groups of many sizes, mixed up
    old, new = rng.integers(0, 4, len(group)), rng.integers(0, 4, len(group))
    made = ranks.groups_of(table(old, new, list(group)))
    for g in range(20):
        pairs = list(itertools.combinations(np.flatnonzero(group == g), 2))
        signs = [(np.sign(old[i] - old[j]), np.sign(new[i] - new[j])) for i, j in pairs]
        scale = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
        tau = sum(x * y for x, y in signs) / scale if scale else NAN
        assert made["tau"][g] == pytest.approx(tau, nan_ok=True)
        assert made["reordered"][g] == sum(x * y < 0 for x, y in signs)
        assert made["pairs"][g] == sum(x != 0 or y != 0 for x, y in signs)


def test_groups_die_and_come_alive():
    old, new = [1, 0, 1, 1, 0.1, 0.1, 5, 6], [1, 1, 1, 0, 0.1, 0.1, 5, 6]
    frame = table(old, new, [0, 0, 1, 1, 2, 2, 0, 0], [1] * 6 + [2] * 2)
    groups = ranks.groups_of(frame)
    assert groups["change"].tolist() == ["died", "came alive", "", ""]
    assert groups["alive"].tolist() == [True, False, False, True] and groups["step"].tolist() == [1, 1, 1, 2]
    assert groups["best_changed"].tolist() == [False] * 4, "who shares the first place has not lost it"
    summary = ranks.summary_of(frame, groups)
    assert (summary["groups"], summary["alive_before"], summary["alive_after"]) == (4, 2, 2)
    assert (summary["died"], summary["came_alive"], summary["flips"], summary["rank_correlation"]) == (1, 1, 0, 1.0)
    assert summary["reward_before"] == pytest.approx(14.2 / 8) and summary["reward_after"] == pytest.approx(14.2 / 8)


def test_noise_is_no_life_and_no_flip():
    frame = table([0.1] * 3, [0.1] * 3).assign(advantage=[1e-14, -1e-14, 0.0], new_advantage=[-1e-13, 1e-13, 1.0])
    frame = ranks.with_changes(frame)
    assert not frame["flips"].any() and ranks.groups_of(frame)["alive"].tolist() == [False]


def test_rollouts_without_a_reward():
    frame = table([1, NAN, 0], [NAN, 1, 0])
    assert frame["rank"].tolist()[::2] == [1, 2] and math.isnan(frame["rank"][1])
    summary = ranks.summary_of(frame, ranks.groups_of(frame))
    assert summary["unscored"] == 1 and summary["reward_before"] == 0.5
    assert "1 have no reward now" in in_words(summary)
    (group,) = ranks.groups_of(table([NAN, NAN], [NAN, NAN])).to_dict("records")
    assert not group["alive"] and math.isnan(group["tau"]) and math.isnan(group["reward"])
    assert len(ranks.groups_of(table([], []))) == 0
    # of those scored on both sides (0, 0), (2, 1), (2, 2), (0, 0): agree 4, ordered before 4, after 5
    (group,) = ranks.groups_of(table([0, 2, 2, NAN, NAN, 0], [0, 1, 2, 0, 1, 0])).to_dict("records")
    assert (group["reordered"], group["pairs"]) == (0, 5) and group["tau"] == pytest.approx(4 / math.sqrt(20))


# -- over a store


def stored(folder, steps: int = 4, hostile: bool = False) -> Store:
    """A run of `steps` steps with 3 groups of 4; group 0 is dead."""
    store = writer.begin(folder, status="finished", steps=steps)
    store.set_meta(data={"kind": "task"})
    store.add_rows("train", [{"prompt": f"row {i}", "answer": i} for i in range(3)])
    for step in range(1, steps + 1):
        texts = [f"{'ab' * (i % 4)} {step}" for i in range(12)]
        if hostile:
            texts[5] = clean(writer.HOSTILE)
        made = Rollouts.of(["p"] * 12, texts, rewards=[float(i % 4 == 0 and i > 3) for i in range(12)])
        made.prompt = made.prompt_text = [clean(writer.HOSTILE) if hostile else f"prompt {i // 4}" for i in range(12)]
        made.group = made.row = [i // 4 for i in range(12)]
        made.rewards = {writer.HOSTILE_NAME if hostile else "first": made.reward}
        by = made.reward.reshape(3, 4)
        made.advantage = ((by - by.mean(1, keepdims=True)) / (by.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()
        made.ids, made.prompt_ids = [[1, 2]] * 12, [[1]] * 12
        made.logprob = made.entropy = [np.zeros(2, "f4")] * 12
        store.commit_step(step, 0, seconds=1, metrics={}, state={}, plan={}, threads=1, rollouts=made)
    return store


def by_length(completions, **_):
    return [float(len(text)) for text in completions]


def by_answer(completions, answer, completion_ids, **_):
    assert completion_ids == [[1, 2]] * len(completions)
    return [float(a) for a in answer]


def test_rescored_is_a_data_frame_and_parts_of_it_are_plain(tmp_path):
    store = stored(tmp_path / "run")
    made = rescoring.rescore(store, [by_length], None)
    assert isinstance(made, pd.DataFrame) and list(made)[:12] == rescoring.COLUMNS
    assert list(made)[12:] == ["rewards/first", "new_rewards/by_length"] and len(made) == 48
    for part in (made.head(), made[["id"]], made[made["flips"]], made.copy(), made.reset_index(drop=True)):
        assert type(part) is pd.DataFrame
    assert (made["new_reward"] == made["completion"].str.len()).all()
    # the first of each living group was the best by far, and is the shortest now
    first = made[(made["rank"] == 1) & (made["group_id"] > 0)]
    assert len(first) == 8 and first["flips"].all() and (first["new_rank"] == 4).all()
    assert made.summary["alive_before"] == 8 and made.summary["came_alive"] == 4 and made.summary["died"] == 0
    assert made.groups["change"].tolist() == ["came alive", "", ""] * 4 and made.since is None
    assert rescoring.rescore(store, [by_answer], None).groups["new_alive"].sum() == 0


def test_each_rescoring_is_held_against_the_one_before(tmp_path):
    store = stored(tmp_path / "run")
    first = rescoring.rescore(store, [by_answer], None)
    second = rescoring.rescore(store, [by_length], None, first)
    since = second.since
    assert since.summary["alive_before"] == 0 and since.summary["came_alive"] == 12
    assert (since["reward"] == first["new_reward"]).all() and (since["new_reward"] == second["new_reward"]).all()
    assert {"rewards/by_answer", "new_rewards/by_length"} <= set(since) and since.since is None
    view = RescoredView(second, store.folder)
    assert list(view.sides) == ["run", "before"] and view.page(against="before")["summary"]["came_alive"] == 12
    assert "Since the rescoring before" in view.static_text()
    view.close()


def test_a_run_remembers_its_rescoring(tmp_path):
    import workbench as wb

    stored(tmp_path / "run")
    run = wb.open(tmp_path / "run")
    assert run.rescore([by_answer]).since is None
    assert run.rescore({"other": by_length}).since.summary["came_alive"] == 12


def test_runs_without_rollouts(tmp_path):
    for name, store in writer.states(tmp_path).items():
        with pytest.raises(RunError, match="has no rollouts to score again"):
            rescoring.rescore(store, [by_length], None)
        assert name
    empty = writer.begin(tmp_path / "none")
    empty.set_meta(data={"kind": "task"})
    empty.add_rows("train", [{"prompt": "a"}])
    made = rescoring.rescore(empty, [by_length], None)
    assert list(made) == rescoring.COLUMNS and made.summary["groups"] == 0
    view = made._widget()
    assert "There are no rollouts to score." in view.static_text() and view.page()["groups"] == []
    assert "There are no rollouts" in view.static_html() and len(view.on_points(None).columns["old"]) == 0
    view.close()


def test_the_view_pages_sorts_and_opens(tmp_path):
    made = rescoring.rescore(stored(tmp_path / "run", 12), [by_length], None)
    view = made._widget()
    assert view.show() is made._widget()
    page = view.page(what="all")
    json.dumps(page, allow_nan=False)
    assert (page["matched"], len(page["groups"]), page["steps"]) == (36, 25, list(range(1, 13)))
    assert [bool(g["change"]) for g in page["groups"]] == [True] * 12 + [False] * 13, "who dies or comes alive is first"
    flips = [g["flips"] for g in view.page(what="all", sort="flips")["groups"]]
    assert flips == sorted(flips, reverse=True) and flips[0] > flips[-1]
    assert len(view.page(what="all", start=25)["groups"]) == 11 and view.page(what="all", start=999)["start"] == 25
    alive = view.page(what="alive", step=3)
    assert alive["matched"] == 1 and alive["summary"]["rollouts"] == 12 and alive["groups"][0]["change"] == "came alive"
    assert view.page(what="died")["matched"] == 0
    best = view.page(what="best", sort="step")["groups"]
    assert [g["step"] for g in best] == sorted(g["step"] for g in best) and len(best) == 24
    group = view.on_group(None, index=best[0]["index"])
    json.dumps(group, allow_nan=False)
    assert [m["rank"] for m in group["members"]] == [1, 2, 2, 2] and group["members"][0]["new_rank"] == 4
    assert group["members"][0]["parts"] == [["first", 1.0, None], ["by_length", None, 2.0]]
    assert best[0]["bars"] == [1, 0, 0, 0] and best[0]["new_bars"] == [2.0, 8.0, 6.0, 4.0]
    at = group["members"][0]["index"]
    assert view.on_group(None, index=0, rollout=at)["group"]["index"] == best[0]["index"]
    one = view.on_rollout(None, index=at)
    assert one["completion"] == made["completion"][at] and one["id"] == made["id"][at]
    points = view.on_points(None).columns
    np.testing.assert_allclose(points["new"], made["new_advantage"], rtol=1e-6)
    assert points["flips"].sum() == made["flips"].sum()
    view.close()


class Tags(html.parser.HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "href"]
        assert all(value.startswith("data:image/svg+xml;base64,") for name, value in attrs if name == "src")


def test_hostile_texts_and_names_are_text(tmp_path):
    made = rescoring.rescore(stored(tmp_path / "run", hostile=True), {writer.HOSTILE_NAME: by_length}, None)
    view = made._widget()
    group = view.on_group(None, index=1)
    sent = [group, view.page(what="all"), view.on_rollout(None, index=5)]
    said = json.dumps(sent, allow_nan=False, ensure_ascii=False)
    assert "<script>" in said and not any(char in said for char in "\x00\x1b\u200b\u202e\ud800")
    page = view.static_html()
    assert set(Tags(page).tags) <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "bdi", "img"}
    (drawn,) = [base64.b64decode(found).decode() for found in re.findall(r'svg\+xml;base64,([^"]+)"', page)]
    assert drawn.count("<circle") == len(made) and drawn.count('fill="#D55E00"/>') == made["flips"].sum()
    assert "&lt;script&gt;" in page and "\x1b" not in view.static_text()
    view.close()


def test_the_picture_of_a_rescoring_that_changes_nothing_says_so(tmp_path):
    def as_before(completions, completion_ids=None, **columns):
        return [0.0] * len(completions)

    store = stored(tmp_path / "run")
    store.query("UPDATE rollouts SET reward = 0, advantage = 0")
    page = rescoring.rescore(store, [as_before], None)._widget().static_html()
    assert "None of the 12 groups changes." in page and "more groups" not in page


def test_many_rollouts_are_rescored_and_paged_quickly(tmp_path):
    store = writer.many_rollouts(tmp_path / "many", 20_000)
    store.set_meta(data={"kind": "task"})
    store.add_rows("train", [{"prompt": f"row {i}"} for i in range(500)])
    began = time.process_time()
    made = rescoring.rescore(store, [by_length], None)
    view = made._widget()
    built = time.process_time() - began
    began = time.process_time()
    for step in (None, 3, 17):
        view.page(step=step)
    view.on_group(None, index=100)
    answered = time.process_time() - began
    assert len(made) == 20_000 and built < 6 and answered < 0.5, (built, answered)
    view.close()
