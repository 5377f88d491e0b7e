"""Self-training in rounds: phases follow from the step's number, what was sampled is never sampled again, a Fit is the
update of wb.sft or wb.dpo from the weights it should start with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import noisy_adapter
from tests.runs import assert_same_metrics, assert_same_weights, weights
from workbench import methods
from workbench import settings as settings_of
from workbench.errors import DataError, RunError, SettingError
from workbench.launch import launch
from workbench.methods import answers, bootstrap, reference
from workbench.methods.selftraining import star
from workbench.sampling.rollouts import Rollouts
from workbench.state import State
from workbench.tasks.sums import correct, make_rows

SIZE = 12
SHORT = dict(max_new_tokens=24, lr=1e-3, seed=3, snapshot_steps=3, batch_size=4, rows_per_step=6)


def never(completions, **columns):
    return [0.0] * len(completions)


def small(completions, **columns):
    return [float(len(text) < 25) for text in completions]


@pytest.fixture(scope="module")
def policy():
    return wb.load("tiny").attach(wb.LoRA(r=4))


def task_of(*rewards, size=SIZE, **more):
    rows = [row | {"completion": f" {row['sum']}={row['answer']}\n#### {row['answer']}"} for row in make_rows(size)]
    return wb.Task(rows, rewards=list(rewards or [correct]), **more)


def begun(name, policy, folder, task=None, **settings):
    return launch(name, policy.reset(), task or task_of(), folder, None, SHORT | settings, None)


def two_rounds(policy, folder, **settings):
    """Steps 1-2 sample, 3-5 fit; 6-7 sample, 8-10 fit."""
    return begun(
        "star", policy, folder, **dict(rounds=2, fit_steps=3, growth=1.0, warmup_steps=0, greedy=False) | settings
    )


@pytest.fixture
def sampled(policy, monkeypatch):
    """How many prompts each call of the sampler was given."""
    calls = []
    original = policy.sample_prompts

    def counting(prompts, *args, **how):
        calls.append(len(prompts))
        return original(prompts, *args, **how)

    monkeypatch.setattr(policy, "sample_prompts", counting)
    return calls


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    """A run that nothing happened to: its metrics, its weights after each step, the run."""
    run = two_rounds(policy, tmp_path_factory.mktemp("whole") / "run")
    after = [weights(run)]
    after += [weights(run) for _ in run]
    return run.metrics, after, run


# -- where a step stands ---------------------------------------------------------------------------------------


def test_the_phase_follows_from_the_number_of_the_step():
    settings = star.StarSettings(rows_per_step=6, fit_steps=40)
    found = [bootstrap.at(star.phases, settings, SIZE, index) for index in (1, 2, 3, 42, 43, 45, 92, 93, 151)]
    assert [(place.round, type(phase).__name__, place.number, place.length) for phase, place in found] == [
        (1, "Sample", 1, 2), (1, "Sample", 2, 2), (1, "Fit", 1, 40), (1, "Fit", 40, 40),
        (2, "Sample", 1, 2), (2, "Fit", 1, 48), (2, "Fit", 48, 48), (3, "Sample", 1, 2), (3, "Fit", 57, 57),
    ]  # fmt: skip
    data = type("Data", (), {"prompts": [None] * SIZE})
    assert bootstrap.steps(data, star.StarSettings(rounds=3, rows_per_step=6), star.phases) == 6 + 40 + 48 + 57
    with pytest.raises(SettingError, match="no step at all"):
        bootstrap.at(lambda settings, round: [bootstrap.Sample(())], settings, SIZE, 1)


def test_a_round_may_draw_some_of_the_rows_anew():
    settings = star.StarSettings(rows_per_step=3, rows_per_round=5)
    ctx = type("Ctx", (), {"settings": settings, "data": type("Data", (), {"prompts": [None] * SIZE})})
    drawn = [
        [bootstrap.rows_of(ctx, bootstrap.Place(0, round, 0, number, 2, star.phases)) for number in (1, 2)]
        for round in (1, 2)
    ]
    assert [list(map(len, one)) for one in drawn] == [[3, 2], [3, 2]] and drawn[0] != drawn[1]
    assert all(len(set(sum(one, []))) == 5 for one in drawn)


def test_templates_are_filled_in_once_and_around_the_last_message():
    row = {"prompt": "2+{answer}?", "answer": 3}
    assert answers.asked("{answer}: {prompt} \\frac{a}{b}", row) == "3: 2+{answer}? \\frac{a}{b}"
    talk = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "answer": 3}
    assert answers.asked("({answer}) {prompt}", talk) == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "(3) q"},
    ]  # fmt: skip
    assert answers.example(4, talk, "a", "own")["completion"] == [{"role": "assistant", "content": "a"}]


# -- time ------------------------------------------------------------------------------------------------------


def test_metrics_of_a_run(whole):
    metrics, after, run = whole
    rollouts = run.rollouts()
    assert list(metrics["round"].iloc[1:]) == [1.0] * 5 + [2.0] * 5
    sampling, fitting = [1, 2, 6, 7], [3, 4, 5, 8, 9, 10]
    shares = metrics.loc[sampling, ["solved/first", "solved/hint", "unsolved"]]
    assert np.allclose(shares.sum(1), 1) and metrics.loc[fitting, "unsolved"].isna().all()
    assert metrics.loc[fitting, "loss"].notna().all() and metrics.loc[sampling, "loss"].isna().all()
    assert metrics["kept/rows"].dropna().index.tolist() == [3, 8]
    right = rollouts[rollouts["reward"] == 1]
    assert metrics.loc[3, "kept/rows"] == (right["step"] <= 2).sum()
    assert metrics.loc[8, "kept/rows"] == right["step"].isin([6, 7]).sum()
    assert metrics.loc[3, "kept/share"] == right[right["step"] <= 2]["row"].nunique() / SIZE
    assert metrics["num_tokens"].iloc[1:].is_monotonic_increasing
    assert_same_weights(after[2], after[0])


def test_weights_of_a_later_round_start_from_the_base_bit_for_bit(whole, tmp_path):
    _, after, run = whole
    fork = run.fork(7, out=tmp_path / "fork", lr=0.0)
    assert not torch.equal(next(iter(weights(fork).values())), next(iter(after[0].values())))
    fork.run(1)
    assert_same_weights(weights(fork), after[0])


def test_last_goes_on_from_the_weights_there_are_with_a_fresh_optimiser(whole, tmp_path):
    state = State({"w": torch.ones(2)}, {"adamw": {}}, {reference.PREFIX + "w": torch.zeros(2), "mask": torch.ones(1)})
    bootstrap.Fit(star.keep, 2, start="last").begin(state, None)
    assert torch.equal(state.params["w"], torch.ones(2)) and not state.optim and list(state.tensors) == ["mask"]
    _, after, run = whole
    fork = run.fork(7, out=tmp_path / "fork", lr=0.0, start="last")
    fork.run(1)
    assert_same_weights(weights(fork), after[7])


def test_a_fit_that_fails_as_it_begins_is_undone(whole, tmp_path, monkeypatch):
    _, after, run = whole
    fork = run.fork(7, out=tmp_path / "fork")
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="by the test"):
        broken.setattr(bootstrap.sft, "fit", lambda *args: (_ for _ in ()).throw(RuntimeError("broken by the test")))
        fork.run(1)
    assert fork.step == 7
    assert_same_weights(weights(fork), after[7])
    fork.run(1)
    assert_same_weights(weights(fork), after[8])


def test_a_restarted_generator_gives_the_same(policy, whole, tmp_path):
    run = two_rounds(policy, tmp_path / "run", steps=8)
    for _ in run:
        run.engine._loop = None
    assert_same_metrics(run.metrics, whole[0].loc[:8])
    assert_same_weights(weights(run), whole[1][8])


def test_rewind_fork_and_resume_in_the_middle_of_a_round(policy, whole, tmp_path, sampled):
    run = two_rounds(policy, tmp_path / "run")
    run.run(9)
    run.engine.memory.clear()
    sampled.clear()
    for step in (9, 4, 8, 1):
        assert_same_weights(run.engine.restore(step).params, whole[1][step])
    assert not sampled, "a replay samples nothing"
    run.rewind(4)  # within the first fit
    list(run)
    assert_same_metrics(run.metrics, whole[0])
    assert len(sampled) == len([name for name in ("first", "hint")] * 2), "the second round alone"
    fork = run.fork(4, out=tmp_path / "fork")  # what it fits on stands in its parent's store
    fork.run(2)
    again = fork.fork(5, out=tmp_path / "again")
    list(again)
    assert_same_weights(weights(again), whole[1][-1])
    run.stop()
    again.stop()
    resumed = wb.resume(tmp_path / "fork", policy=policy, rewards=[correct])
    sampled.clear()
    list(resumed)
    assert_same_weights(weights(resumed), whole[1][-1])
    assert len(sampled) == 2, "one sampling step was left, with two ways to ask"


def test_a_fork_whose_parent_is_gone_says_so(policy, tmp_path):
    run = two_rounds(policy, tmp_path / "run")
    run.run(3)
    fork = run.fork(3, out=tmp_path / "fork")
    run.stop()
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunError, match="it was forked from.*is gone"):
        fork.run(1)


def test_killed_runs_sample_nothing_twice(whole, tmp_path):
    """Lives that die by SIGKILL while they sample and while they fit; the last one comes to the end. Their numbers are
    those of a run that was never killed, and only what was not committed was sampled again."""
    driver = Path(__file__).with_name("selftraining_driver.py")
    command = [sys.executable, str(driver), str(tmp_path), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["lives"] == ["killed", "killed", "finished"]
    assert said["sampled"] == [[1, 2], [2], [6, 7]], "the steps that each life sampled"
    killed, columns = wb.open(tmp_path / "killed"), ["step", "row", "sample", "completion", "template"]
    assert_same_metrics(killed.metrics, whole[0])
    assert killed.rollouts()[columns].equals(whole[2].rollouts()[columns])


# -- a Fit is the update of wb.sft or wb.dpo -------------------------------------------------------------------


def sft_of(policy, folder, task, steps, **settings):
    return wb.sft(
        policy.reset(), task.rows.to_list(), out=folder, steps=steps, lr=1e-3, seed=3, batch_size=4, **settings
    )


def test_on_written_answers_alone_it_is_sft(policy, tmp_path):
    schedule = dict(lr_scheduler_type="cosine", warmup_steps=2, weight_decay=0.01)
    plain = sft_of(policy, tmp_path / "sft", task_of(), 5, **schedule)
    list(plain)
    gold = begun("ssr", policy, tmp_path / "gold", tiers=["gold"], fit_steps=5, **schedule)
    assert gold.engine.settings.steps == 5
    list(gold)
    assert_same_weights(weights(gold), weights(plain))
    strict = begun("ssr", policy, tmp_path / "strict", task_of(correct, never), fit_steps=5, judge="never", **schedule)
    list(strict)  # two sampling steps, and then the same
    assert_same_weights(weights(strict), weights(plain))
    assert list(strict.metrics["loss"].dropna()) == list(plain.metrics["loss"].dropna())
    assert strict.metrics["kept/gold"].dropna().tolist() == [SIZE]


def test_another_reward_function_may_judge(policy, tmp_path):
    run = begun("ssr", policy, tmp_path / "run", task_of(correct, small), judge="small", accept=0.5, fit_steps=1)
    list(run)
    rollouts = run.rollouts()
    short = rollouts["rewards/small"] == 1
    assert 0 < short.sum() < SIZE and run.metrics["kept/self"].dropna().tolist() == [short.sum()]


def dpo_st(policy, folder, **settings):
    """1 SFT | 2-3 sample, 4-6 DPO, 7-8 sample, 9-10 SFT | 11-12 sample, 13-15 DPO, ..."""
    given = dict(rounds=2, n=4, n_fit=2, sft_steps=1, dpo_steps=3, fit_steps=2, dpo_lr=1e-3, temperature=1.0)
    return begun("dpo_st", policy, folder, **given | settings)


def test_a_fit_on_pairs_refers_to_its_start_and_sft_restarts_from_the_base(policy, tmp_path):
    run = dpo_st(policy, tmp_path / "run", steps=14)
    seen = {0: (weights(run), False, {})}
    for step in run:
        held = [name for name in run.engine.state.tensors if name.startswith(reference.PREFIX)]
        seen[step.index] = weights(run), bool(held), dict(step.metrics)
        if step.index in (5, 14):
            base = run.engine.reference_at(run.engine.state)
            assert_same_weights(dict(base), seen[3 if step.index == 5 else 12][0])
        if step.index == 8:
            run.set(lr=0.0)
    assert [index for index, (_, held, _) in seen.items() if held] == [4, 5, 6, 7, 8, 13, 14]
    assert_same_weights(seen[9][0], seen[0][0])
    for first in (4, 13):
        assert seen[first][2]["loss"] == pytest.approx(np.log(2), abs=1e-6)
        assert seen[first + 1][2]["loss"] != pytest.approx(np.log(2), abs=1e-4)
    run.engine.memory.clear()
    for index in (14, 5):  # replayed from snapshots in the middle of the fit
        assert_same_weights(run.engine.restore(index).params, seen[index][0])


# -- what can go wrong -----------------------------------------------------------------------------------------


def test_nothing_kept_is_an_error_before_anything_is_trained(policy, tmp_path):
    run = begun("concise", policy, tmp_path / "run", task_of(never), n=1, fit_steps=2)
    before = weights(run)
    with pytest.raises(RunError, match="Round 1 kept nothing.*2 sampling steps"):
        list(run)
    assert run.step == 2
    assert_same_weights(weights(run), before)
    run.rewind(0)
    run.set(rewards=[correct], n=2)
    run.run(3)
    assert run.metrics.loc[3, "kept/rows"] > 0


def test_rewards_that_change_within_a_round_are_told(policy, tmp_path):
    run = begun("concise", policy, tmp_path / "run", n=2, fit_steps=2)
    run.run(2)
    run.set(rewards=[small])
    with pytest.raises(RunError, match="no reward 'small'.*changed within the round"):
        run.run(1)


EVERY = {"rounds", "rows_per_step", "rows_per_round", "fit_steps", "judge", "accept", "seed"}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("star", {"growth", "template", "hint"}), ("rft", {"template", "gold", "sft_steps"}), ("concise", {"short"}),
        ("lmsi", {"formats", "cot", "direct", "cue", "target"}), ("ssr", {"tiers", "gold", "template", "rephrase"}),
        ("s3ft", {"tiers", "gold", "template", "rephrase"}), ("trice", {"hint", "batch_size"}),
        ("fine_tune_cot", {"template", "chains", "answer", "train_prompt", "target"}),
        ("dpo_st", {"template", "gold", "sft_steps", "dpo_steps"}),
    ],
)  # fmt: skip
def test_what_phases_and_the_prepared_task_follow_from_is_fixed(name, own):
    methods.get(name)  # makes its settings known
    assert EVERY | own == settings_of.fixed(name) - settings_of.fixed("sft") | {"seed"}


def test_other_settings_go_on_changing_within_a_run(policy, tmp_path):
    run = begun("concise", policy, tmp_path / "run", n=2, fit_steps=2)
    run.run(1)
    with pytest.raises(SettingError, match="short cannot change within a run"):
        run.set(short="no question in it")
    run.set(lr=2e-3, n=3, start="last", temperature=0.9, batch_size=2)
    list(run)
    frame = run.rollouts()
    assert frame.groupby("step").size().tolist() == [6 * 2, 6 * 3]
    assert run.metrics["learning_rate"].dropna().tolist() == [2e-3] * 2


def test_cut_answers_are_never_right():
    rollouts = Rollouts(["q"] * 3, ["a"] * 3, row=[0] * 3, finish_reason=["stop", "length", "given"])
    rollouts.rewards = {"correct": np.array([1.0, 1.0, np.nan])}
    assert answers.right(task_of(), rollouts, star.StarSettings()) == [True, False, False]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("star", dict(judge="corect"), "names no reward function.*Did you mean 'correct'"),
        ("star", dict(template="think"), "no {prompt}"),
        ("star", dict(hint="{prompt} think"), "shows nothing of the answer.*answer"),
        ("star", dict(n=2), "greedy=False"),
        ("rft", dict(gold="complete"), "names no column.*Did you mean 'completion'"),
        ("ssr", dict(gold="solution"), "names no column"),
        ("ssr", dict(gold="answer"), "Row 0: gold='answer' should be its written answer"),
        ("s3ft", dict(tiers=["gold", "self"]), "must stand in this order"),
        ("s3ft", dict(rephrase="{prompt}"), "no {gold}"),
        ("concise", dict(short="be short"), "no {prompt}"),
        ("lmsi", dict(bare="x"), "no setting 'bare'"),
        ("lmsi", dict(cot="{prompt}"), "'cot' and 'bare' ask by the same template"),
        ("lmsi", dict(target="no"), "no {answer}"),
        ("fine_tune_cot", dict(target="x"), "no {completion}"),
        ("fine_tune_cot", dict(chains="chain"), "names no column"),
        ("trice", dict(batch_size=13), "distinct rows"),
        ("trice", dict(packing=True), "packing"),
        ("trice", dict(n=2), "at most 1"),
        ("dpo_st", dict(gold=None), "sft_steps=0"),
        ("dpo_st", dict(gold="solution"), "names no column"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(policy, tmp_path, name, settings, said):
    with pytest.raises((SettingError, DataError), match=said):
        begun(name, policy, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_column_of_our_own_name_is_told(policy, tmp_path):
    rows = [row | {"template": 1} for row in make_rows(4)]
    with pytest.raises(DataError, match="column 'template'"):
        begun("star", policy, tmp_path / "run", wb.Task(rows, rewards=[correct]))


def test_verdicts_that_cannot_say_the_answer_do_not_vote(policy, tmp_path):
    with pytest.raises(DataError, match="small.extract = fn"):
        begun("lmsi", policy, tmp_path / "run", task_of(small))


# -- looking ---------------------------------------------------------------------------------------------------


def test_gradients_of_given_rows_are_those_of_sft_and_dpo(policy, tmp_path):
    policy = noisy_adapter(wb.load("tiny").attach(wb.LoRA(r=4)), 0.02)
    rows = [row for row in task_of().rows.to_list()[:4]]
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " 1\n#### 1"} for r in rows]
    ours = dpo_st(policy, tmp_path / "ours", beta=0.3)
    sft = sft_of(policy, tmp_path / "sft", task_of(), 1)
    dpo = wb.dpo(policy.reset(), pairs, out=tmp_path / "dpo", beta=0.3)
    for given, theirs in ((rows, sft), (pairs, dpo)):
        mine, plain = ours.gradients(given), theirs.gradients(given)
        assert mine.loss == pytest.approx(plain.loss, rel=1e-6) and mine.norm() == pytest.approx(plain.norm(), rel=1e-5)
    with pytest.raises(DataError, match="does not train on preference rows"):
        begun("star", policy, tmp_path / "star").gradients(pairs)


def test_held_out_accuracy_and_rescoring(policy, tmp_path):
    held_out = wb.task("sums", size=4, split="test")
    run = launch("concise", policy.reset(), task_of(), tmp_path / "run", held_out, SHORT | dict(n=1, fit_steps=1), None)
    list(run)
    assert 0 <= run.metrics["eval/accuracy"].dropna().iloc[-1] <= 1
    frame = run.rescore([small])
    assert len(frame) == SIZE and frame["new_reward"].notna().all() and frame["new_advantage"].isna().all()
