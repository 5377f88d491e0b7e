"""What a run tells and refuses: settings, data, folders, the store, evaluation, looking without training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import METHODS, assert_same_metrics, assert_same_weights, letters, make_run, rows_for, weights


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model", lora=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, policy):
    """A GRPO run of four steps with a held-out task, looked at by many tests and changed by none."""
    task = wb.Task(rows_for("grpo"), rewards=[letters])
    held_out = wb.Task(rows_for("grpo", 5), rewards=[letters])
    run = wb.grpo(
        policy, task, steps=4, prompts_per_step=3, group_size=4, max_new_tokens=6, lr=1e-2, eval_dataset=held_out,
        eval_steps=2, num_generations_eval=3, out=tmp_path_factory.mktemp("runs") / "first",
    )  # fmt: skip
    list(run)
    return run


# -- folders ---------------------------------------------------------------------------------------------------


def test_an_existing_out_is_never_overwritten(policy, tmp_path, capsys):
    first = wb.sft(policy, rows_for("sft"), steps=1, out=tmp_path / "r")
    list(first)
    content = (first.folder / "run.db").read_bytes()
    second = wb.sft(policy, rows_for("sft"), steps=1, out=tmp_path / "r")
    said = capsys.readouterr().out
    assert second.folder.name == "r-2" and "wb.resume" in said and str(tmp_path / "r") in said
    list(second)
    assert (first.folder / "run.db").read_bytes() == content


def test_nothing_is_made_when_settings_or_data_are_wrong(policy, tmp_path):
    for call in (
        lambda: wb.sft(policy, rows_for("sft"), steps=0, out=tmp_path / "r"),
        lambda: wb.sft(policy, [{"prompt": "a", "completoin": "b"}], steps=1, out=tmp_path / "r"),
        lambda: wb.grpo(policy, rows_for("grpo"), steps=1, out=tmp_path / "r"),
        lambda: wb.dpo(policy, rows_for("sft"), steps=1, out=tmp_path / "r"),
    ):
        with pytest.raises(wb.WorkbenchError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_run_db_appears_only_with_step_0_whole(policy, tmp_path, monkeypatch):
    run = make_run("grpo", tmp_path, policy)
    assert not (run.folder / "run.db").exists() and run.status == "new"
    with monkeypatch.context() as patch:
        patch.setattr("workbench.snapshots.Snapshots.save", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(iter(run))
    assert not (run.folder / "run.db").exists()
    with pytest.raises(wb.StoreError, match="before its step 0 was whole"):
        wb.open(run.folder)
    run.run(1)
    assert wb.open(run.folder).metrics.index.tolist() == [0, 1]


# -- messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(learning_rate=1e-3), "TRL's learning_rate is given here by: lr"),
        (dict(num_generations=4), "group_size"),
        (dict(stpes=3), "Did you mean 'steps'"),
        (dict(loss_type="dapoo"), "Did you mean 'dapo'"),
        (dict(steps=2.5), "steps=2.5: expected int"),
        (dict(lr="1e-3"), "lr='1e-3': expected float, got str"),
        (dict(group_size=1), "group_size=1 must be at least 2"),
        (dict(temperature=0), "temperature=0.0 must be above 0"),
        (dict(steps_per_generation=5), "does not divide the 64 completions"),
        (dict(eval_steps=3), "needs eval_dataset"),
    ],
)
def test_settings_that_cannot_be_used(settings, words, policy, tmp_path):
    task = wb.Task(rows_for("grpo"), rewards=[letters])
    with pytest.raises(wb.SettingError, match=words):
        wb.grpo(policy, task, out=tmp_path / "r", **settings)


def test_a_misspelt_column_names_the_column_and_the_nearest_one(policy, tmp_path):
    with pytest.raises(wb.DataError, match="completoin.*completion|completion.*completoin"):
        wb.sft(policy, [{"prompt": "a", "completoin": "b"}], out=tmp_path / "r")

    def needs_column(completions, anwser, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(wb.DataError, match="needs_column.*anwser.*answer"):
        wb.Task(rows_for("grpo"), rewards=[needs_column])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda texts: [1.0] * (len(texts) - 1), "wrong_reward.*11"),
        (lambda texts: [1.0] * 5 + [float("nan")] + [1.0] * (len(texts) - 6), "wrong_reward.*nan.*row 5"),
        (lambda texts: ["good"] * len(texts), "wrong_reward.*good.*row 0"),
        (lambda texts: 1 / 0, "wrong_reward.*ZeroDivisionError"),
    ],
    ids=["length", "nan", "type", "raises"],
)
def test_a_reward_that_is_wrong_stops_before_the_update(answer, words, policy, tmp_path):
    def wrong_reward(completions, **kwargs):
        return answer(completions)

    run = make_run("grpo", tmp_path, policy)
    run.run(1)
    before = weights(run)
    run.set(rewards=[wrong_reward])
    with pytest.raises(wb.RewardError, match="(?s)" + words):
        next(iter(run))
    assert run.step == 1 and run.status == "failed"
    assert_same_weights(weights(run), before)


def test_a_loss_that_is_not_finite_stops_before_the_update(policy, tmp_path):
    run = make_run("sft", tmp_path, policy)
    run.run(1)
    before = weights(run)
    name = next(iter(before))
    run.engine.state.params[name].fill_(float("nan"))
    with pytest.raises(wb.RunError, match="not finite"):
        next(iter(run))
    assert_same_weights(weights(run), before)


# -- the record ------------------------------------------------------------------------------------------------


def test_the_tables_hold_what_the_contract_says(trained):
    q = trained.store.query
    assert [s for (s,) in q("SELECT step FROM steps ORDER BY step")] == [0, 1, 2, 3, 4]
    assert q("SELECT COUNT(*) FROM rollouts")[0][0] == 4 * 12 == q("SELECT COUNT(*) FROM tokens")[0][0]
    record = q("SELECT id, prompt, completion, reward, advantage, finish_reason, n_tokens FROM rollouts LIMIT 1")[0]
    tokens = trained.store.tokens(record[0])
    assert len(tokens["ids"]) == len(tokens["logprob"]) == len(tokens["entropy"]) == record[6]
    assert tokens["logprob"].dtype == np.float32 and (tokens["logprob"] <= 0).all() and (tokens["entropy"] >= 0).all()
    assert (trained.metrics["eval/accuracy"].notna()).tolist() == [True, False, True, False, True]
    assert {"eval/pass@3", "reward", "rewards/letters/mean", "kl"} - {"kl"} <= set(trained.metrics.columns)


def test_rollouts_agree_with_the_metrics(trained):
    for step in trained.metrics.index[1:]:
        frame = trained.rollouts(step)
        assert frame["reward"].mean() == pytest.approx(trained.metrics.loc[step, "reward"], abs=1e-12)
        assert frame["n_tokens"].mean() == pytest.approx(trained.metrics.loc[step, "completions/mean_length"])
        centred = frame["reward"] - frame.groupby("group_id")["reward"].transform("mean")
        spread = frame.groupby("group_id")["reward"].transform("std")
        assert np.allclose(frame["advantage"], centred / (spread + 1e-4), atol=1e-12)
    assert (trained.rollouts(where="reward > 3 and n_tokens > 2")["reward"] > 3).all()
    with pytest.raises(wb.StoreError, match="Did you mean 'reward'"):
        trained.rollouts(where="rewad > 3")


def test_evaluation_differs_by_what_was_learned_only(trained, tmp_path):
    """The same held-out draws at every evaluation: with lr 0 nothing changes."""
    policy = tiny_policy(tmp_path / "model", lora=True)
    held_out = wb.Task(rows_for("grpo", 5), rewards=[letters])
    task = wb.Task(rows_for("grpo"), rewards=[letters])
    run = wb.grpo(
        policy,
        task,
        steps=2,
        lr=0.0,
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=4,
        eval_dataset=held_out,
        out=tmp_path / "r",
    )
    list(run)
    assert run.metrics["eval/reward"].nunique() == 1


def test_supervised_evaluation(policy, tmp_path):
    run = wb.sft(
        policy, rows_for("sft"), steps=4, lr=1e-2, eval_dataset=rows_for("sft", 4), eval_steps=2, out=tmp_path / "s"
    )
    list(run)
    losses = run.metrics["eval/loss"].dropna()
    assert losses.index.tolist() == [0, 2, 4] and losses[4] < losses[0]
    pairs = wb.dpo(
        policy, rows_for("dpo"), steps=2, lr=1e-2, eval_dataset=rows_for("dpo", 4), eval_steps=1, out=tmp_path / "d"
    )
    list(pairs)
    assert pairs.metrics.loc[0, "eval/loss"] == pytest.approx(np.log(2), abs=1e-6), "the reference is the start"
    assert pairs.metrics.loc[1, "loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert pairs.metrics.loc[2, "eval/loss"] < np.log(2)


def test_dpo_after_sft_starts_at_log_2(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    list(wb.sft(policy, rows_for("sft"), steps=3, lr=1e-2, out=tmp_path / "s"))
    run = wb.dpo(policy, rows_for("dpo"), steps=1, out=tmp_path / "d")
    list(run)
    assert run.metrics.loc[1, "loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert run.metrics.loc[1, "rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert run.store.get("started_from") == "s"


# -- changes ---------------------------------------------------------------------------------------------------


def test_set_takes_effect_at_the_next_step_and_rewind_drops_it(policy, tmp_path):
    run = make_run("grpo", tmp_path, policy)
    run.run(2)

    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]

    run.set(lr=1e-3, rewards=[length])
    run.run(1)
    assert run.metrics["learning_rate"].tolist()[1:] == [1e-2, 1e-2, 1e-3]
    assert run.metrics["rewards/length/mean"].notna().tolist() == [False, False, False, True]
    event = run.store.events().iloc[-1]
    assert event["kind"] == "set" and event["step"] == 3 and event["payload"]["settings"]["lr"] == [1e-2, 1e-3]
    assert [entry["name"] for entry in event["payload"]["rewards"][1]] == ["length"]
    run.rewind(2)
    assert run.settings["lr"] == 1e-2
    run.run(1)
    assert run.metrics.loc[3, "learning_rate"] == 1e-2 and "rewards/length/mean" not in run.metrics
    run.set(lr=5e-3)
    run.rewind(3)  # a pending change belongs to step 4 and is dropped too
    assert run.settings["lr"] == 1e-2


def test_changes_survive_a_resume_and_missing_rewards_are_named(tmp_path):
    def first_reward(completions, **kwargs):
        return letters(completions)

    policy = tiny_policy(tmp_path / "model", lora=True)
    task = wb.Task(rows_for("grpo"), rewards=[first_reward])
    run = wb.grpo(
        policy, task, steps=6, lr=1e-2, prompts_per_step=2, group_size=3, max_new_tokens=4, out=tmp_path / "run"
    )
    run.run(2)

    def local_reward(completions, **kwargs):
        return [float(len(text)) for text in completions]

    run.set(lr=1e-3, rewards=[local_reward])
    run.run(2)
    with pytest.raises(wb.RunError, match="local_reward"):
        wb.resume(run.folder)
    again = wb.resume(run.folder, rewards=[local_reward])
    assert again.settings["lr"] == 1e-3 and again.step == 4
    again.run(1)
    assert again.metrics.loc[5, "learning_rate"] == 1e-3
    again.rewind(1)  # rewarded by `first_reward`, which was not given to resume
    with pytest.raises(wb.RunError, match="first_reward"):
        next(iter(again))
    again.set(rewards=[letters])
    again.run(1)
    assert again.metrics.loc[2, "learning_rate"] == 1e-2


def test_time_limit(policy, tmp_path, capsys):
    run = make_run("sft", tmp_path, policy, steps=100_000, time_limit=0.3)
    run.run()
    spent = run.store.steps().query("step > 0")["seconds"].sum()
    assert 0.3 <= spent < 3 and run.status == "finished" and "time_limit" in capsys.readouterr().out


def test_run_for_some_steps_then_to_the_end(policy, tmp_path):
    run = make_run("sft", tmp_path, policy)
    assert run.run(2).step == 2 and run.status == "paused"
    assert run.run().step == 6 and run.status == "finished"
    assert list(run) == []
    run.set(steps=7)
    assert [step.index for step in run] == [7]


def test_break_pauses_and_iterating_goes_on(policy, tmp_path):
    run = make_run("sft", tmp_path, policy)
    for step in run:
        if step.index == 2:
            break
    assert run.step == 2 and run.status == "paused"
    assert [step.index for step in run] == [3, 4, 5, 6]


# -- looking ---------------------------------------------------------------------------------------------------


def test_gradients_change_nothing_and_are_those_of_the_next_update(policy, tmp_path):
    run = make_run("sft", tmp_path, policy, max_grad_norm=0.0)
    run.run(2)
    before, state = weights(run), json.dumps(run.engine.state.json)
    rows = [rows_for("sft")[row] for row, _ in run.engine._context_for(run.engine.live).draw(3, 4, 12)]
    looked = run.gradients(rows)
    assert_same_weights(weights(run), before)
    assert json.dumps(run.engine.state.json) == state and all(p.grad is None for p in policy.trainable().values())
    step = next(iter(run))
    assert looked.loss == step.metrics["loss"]
    assert looked.norm() == pytest.approx(step.metrics["grad_norm"], rel=1e-6)


def test_gradients_of_given_rollouts(policy, tmp_path):
    run = make_run("grpo", tmp_path, policy, beta=0.0)
    given = wb.Rollouts.of(["Say 1:", "Say 1:"], [" red", " blue"], rewards=[1.0, 0.0])
    looked = run.gradients(given)
    assert looked.metrics["reward"] == 0.5 and looked.norm() > 0
    flat = run.gradients(wb.Rollouts.of(["Say 1:", "Say 1:"], [" red", " blue"], rewards=[1.0, 1.0]))
    assert flat.norm() == 0 and flat.metrics["frac_reward_zero_std"] == 1.0
    with pytest.raises(wb.DataError, match="old_logprobs of completion 1"):
        run.gradients(wb.Rollouts.of(["a", "a"], [[1, 2], [3]], rewards=[1, 0], old_logprobs=[[-1, -1], [-1, -1]]))


def test_rescore_trains_and_generates_nothing(trained, monkeypatch):
    monkeypatch.setattr(trained.engine.policy, "sample_prompts", lambda *a, **k: pytest.fail("sampled"))
    before = weights(trained)

    def opposite(completions, **kwargs):
        return [-value for value in letters(completions)]

    frame = trained.rescore([opposite])
    assert len(frame) == 48 and (frame["new_reward"] == -frame["reward"]).all()
    assert np.allclose(frame["new_advantage"], -frame["advantage"])
    assert frame["flips"].equals(frame["advantage"] != 0)
    assert not trained.rescore([letters])["flips"].any()
    assert_same_weights(weights(trained), before)
    looked_at = wb.open(trained.folder).rescore({"other": letters})
    assert (looked_at["new_rewards/other"] == looked_at["reward"]).all()


def test_open_is_for_looking(trained):
    opened = wb.open(trained.folder)
    assert_same_metrics(opened.metrics, trained.metrics, first=0)
    assert opened.status == "finished" and opened.step == 4
    for call in (lambda: next(iter(opened)), opened.start, lambda: opened.rewind(1), lambda: opened.set(lr=1)):
        with pytest.raises(wb.RunError, match="wb.resume"):
            call()
    with pytest.raises(wb.StoreError, match="Did you mean 'first'"):
        wb.open(trained.folder.with_name("frist"))


def test_runs_lists_a_folder(trained):
    table = wb.runs(trained.folder.parent)
    assert isinstance(table, pd.DataFrame) and table.loc[0, "name"] == "first"
    assert table.loc[0, ["method", "step", "steps"]].tolist() == ["grpo", 4, 4]


def test_a_rewind_to_a_step_that_is_not_there(trained):
    with pytest.raises(wb.StoreError, match="no step 99.*last one is 4"):
        trained.rewind(99)
    assert trained.step == 4


@pytest.mark.parametrize("method", METHODS)
def test_two_seeds_differ_and_one_seed_repeats(method, tmp_path):
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        policy = tiny_policy(tmp_path / f"model{name}", lora=True)
        runs.append(make_run(method, tmp_path, policy, out=name, steps=2, seed=seed))
        list(runs[-1])
    assert_same_metrics(runs[0].metrics, runs[1].metrics)
    assert not runs[0].metrics["loss"].equals(runs[2].metrics["loss"])


def test_full_fine_tuning_leaves_the_loaded_weights_alone(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    start = {name: tensor.clone() for name, tensor in policy.params().items()}
    run = make_run("sft", tmp_path, policy, steps=2)
    list(run)
    assert any(not torch.equal(start[name], policy.params()[name]) for name in start)
    run.rewind(0)
    assert_same_weights(weights(run), start)
    policy.reset()
    assert_same_weights(policy.params(), start)


def test_import_is_light_and_names_are_helpful():
    code = (
        "import sys, workbench as wb; assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
        "try: wb.lod\nexcept AttributeError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Did you mean 'load'" in done.stdout


def test_the_function_rows_is_not_hidden_by_a_module(policy):
    assert callable(wb.rows) and len(wb.rows(rows_for("sft"))) == 12


def test_a_new_run_says_which_ones_are_still_going_on(policy, tmp_path, capsys):
    first = make_run("sft", tmp_path, policy, steps=10_000).start()
    second = make_run("sft", tmp_path, policy, out="second")
    first.stop()
    assert "sharing the machine with this run: run." in capsys.readouterr().out
    list(second)
    assert second.step == 6


def test_ctrl_c_before_step_0_is_whole(policy, tmp_path, monkeypatch, capsys):
    run = make_run("sft", tmp_path, policy)
    with monkeypatch.context() as patch:
        patch.setattr(run.engine, "begin", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert run.run() is run
    assert "before its step 0" in capsys.readouterr().out
    assert run.run(1).step == 1


def test_a_warning_from_the_worker_stands_at_the_users_line(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    rows = [{"prompt": "a", "chosen": " b", "rejected": " b"}] * 2  # pairs that teach nothing
    with pytest.warns(UserWarning, match="the pair teaches nothing") as caught:
        wb.dpo(policy, rows, out=tmp_path / "run")
    assert [Path(said.filename).name for said in caught] == [Path(__file__).name]


def test_a_fork_with_another_loss_is_evaluated_by_it_from_its_first_step(tmp_path):
    run = make_run("dpo", tmp_path, eval_dataset=rows_for("dpo", 4), steps=2, eval_steps=1).run()
    fork = run.fork(1, loss_type="ipo")
    assert fork.metrics.loc[1, "loss"] == run.metrics.loc[1, "loss"]  # what was trained is what was trained
    assert fork.metrics.loc[1, "eval/loss"] != run.metrics.loc[1, "eval/loss"]
    assert fork.metrics.loc[1, "eval/rewards/margins"] == run.metrics.loc[1, "eval/rewards/margins"]
    assert run.fork(1).metrics.loc[1].to_dict() == run.metrics.loc[1].to_dict()


def test_a_run_lends_the_policy_with_its_own_weights(tmp_path):
    run = make_run("sft", tmp_path, steps=2).run()
    fork = run.fork(lr=0.1, steps=3).run()
    assert run.policy.holder == run.name
    assert_same_weights(run.policy.params(), weights(run))
    mine = run.policy.score(["Say 1:"], [" green"]).logprob[0]
    assert fork.policy.holder == fork.name and not np.array_equal(
        fork.policy.score(["Say 1:"], [" green"]).logprob[0], mine
    )
    with pytest.raises(wb.RunError, match="opened to look at"):
        _ = wb.open(run.folder).policy
