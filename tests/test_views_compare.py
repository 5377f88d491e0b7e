"""Two runs side by side: what differs, wins by hand, and what the view of them sends and keeps."""

from __future__ import annotations

import json
import math
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from browser import writer
from test_views_rescored import Tags

import workbench as wb
from workbench.comparing import Comparison, compare, direction, interval, sign_test
from workbench.errors import SettingError, StoreError
from workbench.sampling.rollouts import Rollouts
from workbench.store import Store
from workbench.text import clean
from workbench.views.compare import CompareView


def run(folder, steps: list[dict[str, list[float]]], rewards=("right",), **settings) -> Store:
    """A run whose step k sampled {prompt: rewards of its completions}."""
    store = writer.begin(folder, status="finished", steps=len(steps))
    task = {"kind": "task", "name": "own", "args": {}, "rewards": [{"name": n, "weight": 1.0} for n in rewards]}
    store.set_meta(
        data={"kind": "task", "task": task | {"verdict": rewards[0]}},
        settings={"steps": len(steps), "lr": 1e-5, "beta": 0.0} | settings,
        policy={"model": "tiny", "adapter": {"r": 8, "alpha": 16}},
    )
    for step, drawn in enumerate(steps, 1):
        prompts = [prompt for prompt, values in drawn.items() for _ in values]
        values = [value for some in drawn.values() for value in some]
        made = Rollouts.of(prompts, [f"{store.folder.name} says {v} at {step}" for v in values], rewards=values)
        made.rewards = {name: made.reward + i for i, name in enumerate(rewards)}
        made.advantage, made.ids, made.prompt_ids = made.reward, [[1]] * len(values), [[1]] * len(values)
        made.logprob = made.entropy = [np.zeros(1, "f4")] * len(values)
        metrics = {"reward": float(np.mean(values)), "loss": 0.1 * step, f"only/{store.folder.name}": 1.0}
        store.commit_step(step, 0, seconds=1, metrics=metrics, state={}, plan={}, threads=1, rollouts=made)
    return store


def pair(tmp_path, **more) -> Comparison:
    run(tmp_path / "one", [{"p": [0, 0], "q": [1, 0]}, {"q": [1, 1], "r": [0.5, 0.5]}, {"only one": [1]}])
    drawn = [{"p": [1, 0], "q": [1, 0]}, {"q": [0, 0, 0], "r": [0.25, 0.75]}, {"s": [1]}]
    run(tmp_path / "two", drawn, lr=3e-5, **more)
    return compare(tmp_path / "one", Store(tmp_path / "two"))


def test_the_sign_test_by_hand():
    # of ten coins: 0, 1 or 2 heads are 1 + 10 + 45 of 1024 ways, and as many with 8 or more
    assert sign_test(8, 2) == sign_test(2, 8) == 2 * 56 / 1024
    assert sign_test(5, 5) == sign_test(0, 0) == 1.0 and sign_test(0, 6) == 2 / 64
    assert sign_test(3000, 2000) == pytest.approx(9.6e-46, rel=0.02), "no overflow"


def test_the_interval_of_a_mean():
    assert interval(np.array([0.5] * 9)) == (0.5, 0.5)
    assert all(math.isnan(v) for v in interval(np.array([0.5])))
    values = np.random.default_rng(1).normal(0.2, 1.0, 400)
    low, high = interval(np.append(values, np.nan))
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    assert interval(values) == interval(values)


def test_prompts_by_hand(tmp_path):
    made = pair(tmp_path)
    prompts = made.prompts.set_index("prompt")
    assert sorted(prompts.index) == ["p", "q", "r"], "only those that both drew"
    assert prompts.loc["p", ["a", "b", "winner", "step_a", "step_b"]].tolist() == [0, 0.5, "b", 1, 1]
    assert prompts.loc["q", ["a", "b", "winner", "step_a", "n_b"]].tolist() == [1, 0, "a", 2, 3], "the last time drawn"
    assert prompts.loc["r", ["difference", "winner"]].tolist() == [0, "tie"]
    wins = made.wins
    assert (wins["a"], wins["b"], wins["ties"], wins["prompts"], wins["p_value"]) == (1, 1, 1, 3, 1.0)
    assert wins["difference"] == pytest.approx(-0.5 / 3) and wins["low"] == -1.0 and wins["high"] == 0.5
    a, b = made.completions(list(made.prompts["prompt"]).index("r"))
    assert [one["reward"] for one in a] == [0.5, 0.5] and [one["reward"] for one in b] == [0.75, 0.25]
    assert b[0]["completion"] == "two says 0.75 at 2" and b[0]["parts"] == {"right": 0.75}


def test_settings_that_differ_with_their_default(tmp_path):
    made = pair(tmp_path, loss_type="dr_grpo")
    made.b.store.close()
    with Store(tmp_path / "two", write=True).transaction() as db:
        policy = '{"model": "tiny", "adapter": {"r": 16, "alpha": 16}}'
        db.execute("UPDATE meta SET value = ? WHERE key = 'policy'", (policy,))
    made = compare(tmp_path / "one", tmp_path / "two")
    rows = {(row.of, row.name): (row.a, row.b, row.default) for row in made.settings.itertuples(index=False)}
    assert set(rows) == {("run", "lr"), ("run", "loss_type"), ("model", "adapter.r")}
    assert rows["run", "lr"] == (1e-5, 3e-5, 1e-6)
    assert rows["run", "loss_type"][0] is pd.NA and rows["run", "loss_type"][1:] == ("dr_grpo", "dapo")
    assert rows["model", "adapter.r"][:2] == (8, 16) and rows["model", "adapter.r"][2] is pd.NA
    view = CompareView(made)
    assert ["run", "loss_type", "–", "dr_grpo", "dapo"] in view.first["settings"]
    view.close()


def test_metrics_by_hand(tmp_path):
    a = writer.write(writer.begin(tmp_path / "a", status="finished"), 10)
    b = writer.begin(tmp_path / "b", status="finished")
    for step in range(1, 11):
        writer.commit(b, step, scale=0.5)
    for store, n in ((a, 100), (b, 25)):
        store.add_rows("eval", [{"prompt": str(i)} for i in range(n)])
    made = compare(a, b).metrics
    p, q = 0.1 + 0.6 / 4, 0.05 + 0.3 / 4
    row = made.loc["eval/accuracy"]
    assert (row["a"], row["b"], row["step_a"]) == (pytest.approx(p), pytest.approx(q), 10) and row["better"] == "a"
    assert row["se_a"] == pytest.approx(math.sqrt(p * (1 - p) / 100))
    assert row["se"] == pytest.approx(math.sqrt(p * (1 - p) / 100 + q * (1 - q) / 25))
    rewards = a.metrics()["reward"].dropna()
    assert made.loc["reward", "best_a"] == rewards.max() and made.loc["reward", "best_b"] == 0.5 * rewards.max()
    assert made.loc["entropy", "better"] == "" and math.isnan(made.loc["entropy", "best_a"])
    assert math.isnan(made.loc["reward", "se"])
    assert [direction("sft", n) for n in ("eval/loss", "loss", "mean_token_accuracy", "grad_norm")] == [-1, -1, 1, 0]
    assert [direction("grpo", n) for n in ("loss", "eval/pass@8", "rewards/x/mean", "rewards/x/std")] == [0, 1, 1, 0]


def test_the_same_run_and_twins_say_so(tmp_path):
    store = writer.write(writer.begin(tmp_path / "run", status="finished"), 4)
    made = compare(store, tmp_path / "run")
    assert made.same and made.identical and made.notes == ["These are the same run: nothing differs."]
    view = CompareView(made)
    assert not view.charts and "same run" in view.static_text() and "same run" in view.static_html()
    view.close()
    twin = writer.write(writer.begin(tmp_path / "twin", status="finished"), 4)
    made = compare(store, twin)
    assert made.identical and "identical" in made.notes[0] and made.wins["ties"] == made.wins["prompts"] > 0
    writer.commit(twin, 5)
    assert not compare(store, twin).identical


def test_a_run_against_its_own_past(tmp_path):
    store = run(tmp_path / "run", [{"p": [0]}, {"p": [1]}, {"p": [0.5]}])
    made = compare(store, store, steps=(1, 2))
    assert made.prompts[["a", "b", "step_a", "step_b"]].values.tolist() == [[0, 1, 1, 2]] and not made.same
    assert made.notes[0] == "One run, after step 1 (a) and after step 2 (b)."
    assert made.metrics.loc["reward", ["a", "b"]].tolist() == [0, 1]
    assert compare(store, store, steps=2).same
    for steps, said in ((9, "has the steps 0 to 3"), ((1, 2, 3), "one for each"), ("x", "steps")):
        with pytest.raises(SettingError, match=said):
            compare(store, store, steps=steps)


def test_of_a_fork_only_the_steps_since_count(tmp_path):
    parent = run(tmp_path / "parent", [{"p": [0], "q": [0]}, {"p": [1]}])
    child = run(tmp_path / "child", [{"x": [0]}, {"p": [0], "q": [1]}])
    child.set_meta(parent={"folder": str((tmp_path / "parent").resolve()), "name": "parent", "step": 1, "branch": 0})
    for made in (compare(parent, child), compare(child, parent)):
        assert made.prompts["prompt"].tolist() == ["p"], "q was drawn before the fork"
        assert "child was forked from parent after step 1: up to there they are one." in made.notes
        assert ("start", "parent name") in set(zip(made.settings["of"], made.settings["name"], strict=True))


def test_a_fork_of_a_fork_shares_its_steps_with_the_first_run(tmp_path):
    def forked(name, parent, step, steps, branch=0):
        made = run(tmp_path / name, steps)
        folder = str((tmp_path / parent).resolve())
        made.set_meta(parent={"folder": folder, "name": parent, "step": step, "branch": branch})
        return made

    first = run(tmp_path / "first", [{"p": [0], "q": [0]}, {"p": [1]}, {"p": [1]}])
    child = forked("child", "first", 1, [{"x": [0]}, {"p": [0]}, {"y": [0]}])
    grandchild = forked("grandchild", "child", 2, [{"q": [0]}, {"y": [0]}, {"p": [0]}])
    other = forked("other", "first", 2, [{"y": [0]}, {"q": [1]}, {"p": [0.5]}])
    for made in (compare(first, grandchild), compare(grandchild, first)):
        assert made.prompts["prompt"].tolist() == ["p"], "q was drawn before the first fork"
        assert "grandchild goes back to first: up to step 1 they are one." in made.notes
    made = compare(other, grandchild)
    assert made.notes[0] == "Both go back to first: up to step 1 they are one."
    assert made.prompts["prompt"].tolist() == ["p"] and made.prompts[["step_a", "step_b"]].values.tolist() == [[3, 3]]
    said = compare(child, grandchild).notes[0]
    assert said == "grandchild was forked from child after step 2: up to there they are one."
    child.close()
    shutil.rmtree(tmp_path / "child")
    assert compare(first, grandchild)._since == 0, "the way back is lost with the run between"
    assert not compare(first, run(tmp_path / "stranger", [{"p": [0]}])).notes[0].startswith(("Both", "stranger goes"))


def test_what_a_parent_gave_up_after_the_fork_is_not_shared(tmp_path):
    parent = writer.rewind(writer.write(writer.begin(tmp_path / "parent", status="finished"), 4), 2, 6)
    child = writer.write(writer.begin(tmp_path / "child", status="finished"), 5)
    child.set_meta(parent={"folder": str((tmp_path / "parent").resolve()), "name": "parent", "step": 4, "branch": 0})
    assert "child goes back to parent: up to step 2 they are one." in compare(parent, child).notes


def test_other_reward_functions_are_not_one_number(tmp_path):
    one = run(tmp_path / "one", [{"p": [0]}], ["right", "kind"])
    two = run(tmp_path / "two", [{"p": [1]}], ["short", "kind"])
    three = run(tmp_path / "three", [{"p": [1]}], ["short"])
    made = compare(one, two)
    assert made.by == "rewards/kind" and made.prompts[["a", "b"]].values.tolist() == [[1, 1 + 1]]
    assert any("by the reward kind" in note for note in made.notes)
    none = compare(one, three)
    assert none.by is None and len(none.prompts) == 0 and "no reward function in common" in none.notes[-1]
    assert none.wins["p_value"] == 1.0 and math.isnan(none.wins["low"])
    assert compare(one, three, by="reward").wins["b"] == 1
    with pytest.raises(SettingError, match="both runs have reward, rewards/kind. Did you mean 'rewards/kind'"):
        compare(one, two, by="rewards/kin")


def test_what_cannot_be_compared(tmp_path):
    store = writer.begin(tmp_path / "run")
    with pytest.raises(SettingError, match="run_b is a int"):
        compare(store, 3)
    with pytest.raises(StoreError, match="There is no run at .*rum. Did you mean 'run'"):
        compare(store, tmp_path / "rum")
    assert wb.compare is compare and isinstance(wb.compare(wb.open(tmp_path / "run"), store), Comparison)


def test_every_state_beside_every_other(tmp_path):
    stores = {**writer.states(tmp_path), "good": writer.write(writer.begin(tmp_path / "good", status="finished"), 7)}
    said = {
        ("dpo", "sft"): "Different methods", ("good", "sft"): "sft has no stored completions",
        ("good", "empty"): "no stored", ("good", "one"): "Wins: by the total reward", ("bare", "bare"): "same run",
        ("killed", "good"): "killed",
    }  # fmt: skip
    for (a, b), words in said.items():
        view = CompareView(compare(stores[a], stores[b]))
        text, page = view.static_text(), view.static_html()
        assert words in text and words in page, (a, b)
        assert "nan" not in text.lower().replace("nan ·", "").split(), (a, b)
        json.dumps([view.first, view.page(), view.on_curves(None).content], allow_nan=False)
        view.close()
    for other in stores.values():
        view = CompareView(compare(stores["nan"], other))
        json.dumps(view.first, allow_nan=False)
        view.close()


def test_the_view_pages_finds_and_shows_both_texts(tmp_path):
    made = pair(tmp_path)
    view = made._widget()
    assert view.page()["rows"][0]["prompt"] == "p" and view.page(sort="a")["rows"][0]["prompt"] == "q"
    assert [row["prompt"] for row in view.page(what="tie")["rows"]] == ["r"] and view.page(find="Q")["matched"] == 1
    assert view.page(find="(")["matched"] == 0, "no pattern"
    index = view.page(what="tie")["rows"][0]["index"]
    both = view.on_pair(None, index=index, i=0, j=1)
    assert [side["at"] for side in both["sides"]] == [0, 1] and both["sides"][1]["of"] == 2
    assert "".join(text for kind, text in both["parts"] if kind != "insert") == "one says 0.5 at 2"
    assert "".join(text for kind, text in both["parts"] if kind != "delete") == "two says 0.25 at 2"
    assert view.on_pair(None, index=index, i=99, j=-4)["sides"][0]["at"] == 1
    curves = view.on_curves(None)
    at = curves.content["names"].index("reward (b)")
    np.testing.assert_allclose(curves.columns[str(at)], [1, 2, 3, 0.5, 0.2, 1])
    assert view.first["charts"][0]["names"] == ["reward (a)", "reward (b)"]
    assert {"loss (a)", "loss (b)"} in [set(c["names"]) for c in view.first["charts"]]
    assert not any("only/" in name for c in view.first["charts"] for name in c["names"]), "common metrics only"
    assert "of 3 in both, a is better on 1, b on 1, 1 ties" in view.static_text()
    view.close()


def test_hostile_names_and_texts_are_text(tmp_path):
    bad = clean(writer.HOSTILE)
    for name in "ab":
        store = run(tmp_path / name, [{bad: [1.0, 0.0]}], [bad], **{"lr" + bad: name})
        store.set_meta(name=bad)
        store.add_event(1, 0, "set", settings={bad: [bad, bad]})
        store.commit_step(2, 0, seconds=1, metrics={bad: 1.0}, state={}, plan={}, threads=1)
    view = CompareView(compare(tmp_path / "a", tmp_path / "b"))
    said = json.dumps([view.first, view.on_pair(None, 0)], allow_nan=False, ensure_ascii=False)
    # curves are keyed by the name as it is; what a page shows of it is title and labels
    shown = json.dumps([{k: v for k, v in c.items() if k != "names"} for c in view.first["charts"]], ensure_ascii=False)
    assert "<script>" in said and not any(char in shown for char in "\x1b\u200b\u202e")
    assert not any(char in json.dumps(view.on_pair(None, 0), ensure_ascii=False) for char in "\x00\x1b\u200b\u202e")
    page = view.static_html()
    assert "script" not in Tags(page).tags and "&lt;script&gt;" in page and "\x1b" not in view.static_text()
    view.close()


def test_many_rollouts_are_compared_quickly(tmp_path):
    stores = [writer.many_rollouts(tmp_path / name, 20_000) for name in "ab"]
    began = time.process_time()
    view = CompareView(compare(*stores))
    view.on_pair(None, 5)
    assert time.process_time() - began < 4 and view.page()["total"] > 400
    view.close()
