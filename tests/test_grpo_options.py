"""Runs with the options of GRPO: sampling in rounds, rewards of length, entropy that adapts, presets, looking."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

import workbench as wb
from tests.models import exact_norms, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, letters, rows_for, weights
from workbench.errors import SettingError
from workbench.methods import rl_batch
from workbench.settings import METHODS, make
from workbench.settings.presets import PRESETS

SMALL = dict(steps=4, prompts_per_step=3, group_size=3, max_new_tokens=5, lr=1e-2, seed=3, snapshot_steps=3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """One policy for all runs of this file; each run has its own weights. Of its completions, which never end by
    themselves, every other one is cut to a length of its own."""
    made = tiny_policy(tmp_path_factory.mktemp("model"), lora=True)
    plain = made.sample_prompts

    def ragged(*args, **how):
        rollouts = plain(*args, **how)
        for i in range(0, len(rollouts), 2):
            count = 1 + i // 2 % 4
            for column in (rollouts.ids, rollouts.logprob, rollouts.entropy):
                column[i] = column[i][:count]
            rollouts.finish_reason[i] = "stop"
        return rollouts

    made.sample_prompts = ragged
    return made


@pytest.fixture
def make_run(policy, tmp_path):
    def made(rewards=(letters,), call=wb.grpo, tasks=None, **settings):
        policy.reset()
        task = tasks or wb.Task(rows_for("grpo"), rewards=list(rewards))
        return call(policy, task, **SMALL | {"out": tmp_path / "run"} | settings)

    return made


def first_third(completions, answer, **kwargs):
    """Differs within the groups of four prompts of twelve; all others are dead."""
    return [
        float(sum(map(ord, text)) % 7) if row % 3 == 0 else 1.0 for text, row in zip(completions, answer, strict=True)
    ]


def nothing(completions, **kwargs):
    return [1.0] * len(completions)


# -- dynamic sampling

DYNAMIC = dict(dynamic_sampling=True, prompts_per_step=2, shuffle_dataset=False)


def test_dynamic_sampling_draws_on_until_there_are_enough_groups(make_run):
    # of the prompts in order, 0, 3, 6 and 9 are alive: (0 1) (2 3), then (4 5) (6 7) (8 9), then (10 11) (0 1) (2 3)
    run = make_run([first_third], steps=3, max_sampling_rounds=3, **DYNAMIC)
    run.run()
    seen = run.rollouts()
    assert [sorted(set(seen[seen["step"] == k]["row"])) for k in (1, 2, 3)] == [[0, 3], [6, 9], [0, 3]]
    assert run.metrics.loc[1:, "sampling/rounds"].tolist() == [2, 3, 3]
    assert run.metrics.loc[1:, "sampling/yield"].tolist() == pytest.approx([2 / 4, 2 / 6, 2 / 6])
    assert run.metrics.loc[1:, "frac_reward_zero_std"].tolist() == pytest.approx([2 / 4, 4 / 6, 4 / 6])
    assert run.engine.state.json["prompts_drawn"] == 16
    assert sorted(set(seen["group_id"])) == [0, 1]


def test_the_reward_curve_is_over_everything_that_was_sampled(make_run, monkeypatch):
    totals = []

    def noted(completions, answer, **kwargs):
        totals.append(first_third(completions, answer))
        return totals[-1]

    run = make_run([noted], steps=1, **DYNAMIC)
    step = next(iter(run))
    everything = np.concatenate(totals)
    assert len(everything) == 12 and len(step.rollouts) == 6
    assert step.metrics["reward"] == pytest.approx(everything.mean())
    assert step.metrics["reward"] != pytest.approx(step.rollouts.reward.mean())
    assert step.metrics["num_tokens"] > sum(map(len, step.rollouts.prompt_ids + step.rollouts.ids))


def test_after_the_last_round_a_step_trains_on_what_there_is(make_run):
    run = make_run([first_third], steps=2, max_sampling_rounds=1, num_iterations=2, steps_per_generation=6, **DYNAMIC)
    run.run()
    assert run.metrics.loc[1:, "sampling/yield"].tolist() == [0.5, 0.5]
    assert [len(run.rollouts(step=k)) for k in (1, 2)] == [3, 3], "one group of three each"
    assert run.metrics.loc[1:, "grad_norm"].min() > 0


def test_a_constant_reward_is_told_and_the_step_is_not_empty(make_run):
    run = make_run([nothing], steps=1, max_sampling_rounds=2, **DYNAMIC)
    before = weights(run)
    with pytest.warns(UserWarning, match="Step 1: dynamic_sampling found no group .* among 4 groups in 2 rounds"):
        step = next(iter(run))
    assert step.metrics["sampling/yield"] == 0 and step.metrics["frac_reward_zero_std"] == 1
    assert len(step.rollouts) == 6 and step.metrics["grad_norm"] == 0
    assert_same_weights(weights(run), before)


def test_a_row_that_comes_up_again_in_a_later_round_is_sampled_anew(make_run):
    seen = []

    def noted(completions, completion_ids, **kwargs):
        seen.append(completion_ids)
        return [1.0] * len(completions)

    task = wb.Task(rows_for("grpo")[:1], rewards=[noted])
    run = make_run(tasks=task, steps=1, max_sampling_rounds=2, dynamic_sampling=True, prompts_per_step=1)
    with pytest.warns(UserWarning, match="no group whose rewards differ"):
        next(iter(run))
    assert len(seen) == 2 and seen[0] != seen[1]


def test_dead_groups_are_told_by_the_reward_without_its_punishment_of_length(make_run):
    run = make_run([nothing], steps=1, max_sampling_rounds=1, overlong_cache=4, **DYNAMIC)
    with pytest.warns(UserWarning, match="no group whose rewards differ"):
        step = next(iter(run))
    assert step.metrics["sampling/yield"] == 0 and step.metrics["frac_reward_zero_std"] < 1


HARD = dict(
    dynamic_sampling=True, prompts_per_step=2, max_sampling_rounds=3, use_adaptive_entropy=True, entropy_target=4.2,
    entropy_coef=0.1, entropy_coef_delta=0.05, num_iterations=2, steps_per_generation=2, beta=0.05, sync_ref_model=True,
    ref_model_mixup_alpha=1.0, ref_model_sync_steps=3, sampler_correction="token_truncate", overlong_cache=2,
    top_entropy_quantile=0.6, steps=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    """A run with everything that keeps a state, that nothing happened to."""
    policy.reset()
    task = wb.Task(rows_for("grpo"), rewards=[first_third])
    run = wb.grpo(policy, task, **SMALL | HARD | {"out": tmp_path_factory.mktemp("whole") / "run"})
    list(run)
    rounds = run.metrics["sampling/rounds"]
    assert rounds.max() > rounds.min() and run.metrics.loc[1:, "entropy_coef"].nunique() > 3
    return run.metrics, weights(run), run.engine.state.json


@pytest.mark.parametrize("where", ["memory", "snapshot"])
def test_rewind_is_bit_equal(make_run, whole, where):
    run = make_run([first_third], **HARD)
    list(run)
    if where == "snapshot":
        run.engine.memory.clear()  # so that step 4 is replayed from the snapshot of step 3
    run.rewind(4)
    assert run.engine.state.json["prompts_drawn"] < whole[2]["prompts_drawn"]
    list(run)
    assert_same_metrics(run.metrics, whole[0])
    assert_same_weights(weights(run), whole[1])
    assert run.engine.state.json == whole[2]


def test_resume_and_fork_are_bit_equal(make_run, policy, whole, tmp_path):
    run = make_run([first_third], **HARD)
    for step in run:
        if step.index == 2:
            break
        run.engine._loop = None  # the generator keeps nothing between steps
    run.stop()
    resumed = wb.resume(tmp_path / "run", rewards=[first_third], policy=policy)
    fork = resumed.fork(out=tmp_path / "fork")
    for made in (resumed, fork):
        list(made)
        assert_same_weights(weights(made), whole[1])
        assert made.engine.state.json == whole[2]
    assert_same_metrics(resumed.metrics, whole[0])


# -- the same result however an update is cut


OPTIONS = {
    "gspo": dict(preset="gspo", steps_per_generation=1, epsilon=0.1, epsilon_high=0.2),
    "rloo": dict(preset="rloo"),
    "gmpo": dict(preset="gmpo", top_entropy_quantile=0.4),
    "entropy": dict(top_entropy_quantile=0.3, entropy_coef=0.5, loss_type="luspo"),
    "sampler": dict(
        sampler_correction="sequence_truncate", loss_type="vespo", off_policy_mask_threshold=0.01, beta=0.1
    ),
    "cispo": dict(preset="cispo", sampler_correction="token_mask", mask_truncated_completions=True),
}


@pytest.mark.parametrize("dtype, limit", [("float64", 1e-10), ("float32", 5e-6)])
def test_micro_batches_do_not_change_a_gradient(dtype, limit, tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True, dtype=dtype)
    if dtype == "float64":
        exact_norms(policy)
    task = wb.Task(rows_for("grpo"), rewards=[letters])
    run = wb.grpo(policy, task, **SMALL | {"out": tmp_path / "run"})
    run._ready()
    rollouts = policy.sample([row["prompt"] for row in rows_for("grpo")[:3]], n=3, max_new_tokens=5, seed=1)
    draw = np.random.default_rng(0)
    rollouts.old_logprob = [row + draw.uniform(-0.4, 0.4, len(row)) for row in rollouts.logprob]
    for i in (0, 4, 5):
        rollouts.ids[i], rollouts.logprob[i] = rollouts.ids[i][: i + 1], rollouts.logprob[i][: i + 1]
        rollouts.old_logprob[i], rollouts.finish_reason[i] = rollouts.old_logprob[i][: i + 1], "stop"
    for name, settings in OPTIONS.items():
        found: list = []
        for size in (None, 4, 1):
            live = dataclasses.replace(
                run.engine.live, settings=make("grpo", {**SMALL, **settings, "group_size": 3, "micro_batch_size": size})
            )
            run.engine.changes[-1] = dataclasses.replace(run.engine.changes[-1], live=live)
            found.append(run.gradients(rollouts))
        for other in found[1:]:
            gap = sum(float(((other.by_name[n] - g).double() ** 2).sum()) for n, g in found[0].by_name.items())
            assert gap**0.5 < limit * found[0].norm(), name
            assert other.loss == pytest.approx(found[0].loss, rel=10 * limit, abs=limit / 10), name  # near 0 it cancels


# -- rewards of length


def test_the_punishment_of_overlong_completions_is_a_reward_of_its_own(make_run):
    run = make_run(steps=1, overlong_cache=4)
    step = next(iter(run))
    lengths = np.array([len(ids) for ids in step.rollouts.ids])
    # max_new_tokens=5, cache 4: 0 up to 1 token, then -1/4 for each more
    expected = np.where(lengths <= 1, 0.0, (1 - lengths) / 4)
    assert step.rollouts.rewards["overlong"] == pytest.approx(expected) and expected.min() == -1
    assert step.rollouts.reward == pytest.approx(step.rollouts.rewards["letters"] + expected)
    assert step.metrics["rewards/overlong/mean"] == pytest.approx(expected.mean())
    assert step.metrics["reward"] == pytest.approx(step.rollouts.reward.mean())
    again = run.rescore([letters])
    assert again["new_advantage"].to_numpy() == pytest.approx(again["advantage"].to_numpy())
    assert again["new_rewards/overlong"].to_numpy() == pytest.approx(expected)


def test_a_completion_without_reward_is_not_punished_either():
    made = wb.Rollouts.of(["a", "a"], [[1] * 5, [1] * 5], [None, 1.0])
    rl_batch.add_overlong(made, make("grpo", {"overlong_cache": 4, "max_new_tokens": 5}))
    assert np.isnan(made.reward[0]) and made.reward[1] == 0


def overlong(completions, **kwargs):
    return [0.0] * len(completions)


def test_a_task_that_has_a_reward_named_overlong(make_run):
    with pytest.raises(SettingError, match="overlong_cache adds a reward named 'overlong'.*rename"):
        make_run([overlong], overlong_cache=2)
    run = make_run([overlong], steps=2)
    with pytest.raises(SettingError, match="rename"):
        run.set(overlong_cache=2)
    run.set(rewards=[letters], overlong_cache=2)
    with pytest.raises(SettingError, match="rename"):
        run.set(rewards=[overlong])
    with pytest.warns(UserWarning, match="entropy_target changes nothing"):
        run.set(entropy_target=0.3)
    assert next(iter(run)).metrics["rewards/overlong/mean"] < 0


# -- KL in the reward, several rewards, rescoring


def test_kl_in_the_reward_moves_advantages_and_not_the_reward(make_run):
    run = make_run(call=wb.rloo, steps=2, beta=0.5, num_iterations=2)
    one, two = run
    assert one.metrics["kl"] == 0 and two.metrics["kl"] != 0
    rollouts = two.rollouts
    plain = rl_batch.advantages_of(rollouts, run.engine.settings, {})
    gap = plain - rollouts.advantage
    assert np.abs(gap).max() > 1e-3 and rollouts.reward == pytest.approx(rollouts.rewards["letters"])
    assert gap.reshape(3, 3).sum(1) == pytest.approx(0, abs=1e-9), "leave-one-out is centred"
    # known without the model: the advantages without the KL, which is what rescoring says
    again = run.rescore([letters])
    assert again[again["step"] == 2]["new_advantage"].to_numpy() == pytest.approx(plain)


def spread_out(completions, **kwargs):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    "settings",
    [{"multi_objective_aggregation": "normalize_then_sum"}, {"advantage_estimator": "reinforce"},
     {"scale_rewards": False, "normalize_advantages": True}],
    ids=str,
)  # fmt: skip
def test_rescore_uses_the_estimator_of_the_run(make_run, settings):
    task = wb.Task(rows_for("grpo"), [letters, spread_out], weights=[1.0, 0.2])
    run = make_run(tasks=task, steps=1, **settings)
    run.run()
    again = run.rescore([letters, spread_out], weights=[1.0, 0.2])
    assert again["new_advantage"].to_numpy() == pytest.approx(again["advantage"].to_numpy())
    assert again["advantage"].abs().max() > 0.1 and not again["flips"].any()


def test_a_change_of_estimator_within_a_run(make_run):
    run = make_run(steps=2)
    run.run(1)
    run.set(scale_rewards=False, preset="dr_grpo")
    assert (run.engine.settings.loss_type, run.engine.settings.scale_rewards) == ("dr_grpo", "none")
    run.run()
    stored = run.rollouts(step=2)
    centred = stored["reward"] - stored.groupby("group_id")["reward"].transform("mean")
    assert stored["advantage"].to_numpy() == pytest.approx(centred.to_numpy())
    again = run.rescore([letters])
    assert again["new_advantage"].to_numpy() == pytest.approx(again["advantage"].to_numpy())


def test_the_sampler_correction_is_measured_over_the_sampling(make_run):
    step = next(iter(make_run(steps=1, sampler_correction="token_mask", steps_per_generation=3)))
    assert step.metrics["sampling/sampling_logp_difference/max"] < 1e-4
    for name in ("min", "mean", "max"):
        assert step.metrics[f"sampling/importance_sampling_ratio/{name}"] == pytest.approx(1, abs=1e-4)
    assert step.metrics["sampling/importance_sampling_ratio/min"] > 0
    plain = next(iter(make_run(steps=1)))
    assert 0 <= plain.metrics["sampling/sampling_logp_difference/mean"] < 1e-4
    assert "sampling/importance_sampling_ratio/mean" not in plain.metrics


def test_a_moving_reference(make_run):
    settings = dict(steps=3, beta=0.1, num_iterations=2, steps_per_generation=3)
    moving = dict(sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=6)
    still = make_run(**settings).run().metrics["kl"]
    moved = make_run(**settings, **moving).run()
    # after every six updates, the whole of a step, the reference is the policy: each step begins at a KL of 0
    assert moved.metrics["kl"][1] == still[1] and moved.metrics["kl"][3] < still[3]
    assert any(name.startswith("reference/") for name in moved.engine.state.tensors)


# -- presets and settings


def test_presets_set_what_they_say():
    names = set(METHODS["grpo"].__dataclass_fields__)
    for name, row in PRESETS.items():
        made = make("grpo", {"preset": name})
        assert row.paper and row.sets.keys() <= names and made.preset == name
        for setting, value in row.sets.items():
            found = getattr(made, setting)
            assert found == (102 if setting == "overlong_cache" else value), (name, setting)


def test_what_is_given_wins_over_the_preset():
    made = make("grpo", {"preset": "dapo", "epsilon_high": 0.3, "max_new_tokens": 50, "dynamic_sampling": False})
    assert (made.epsilon_high, made.overlong_cache, made.dynamic_sampling) == (0.3, 10, False)
    assert make("grpo", {"preset": "dapo", "max_new_tokens": 3}).overlong_cache == 1
    assert make("grpo", {"preset": "dapo", "overlong_cache": None}).overlong_cache is None
    base = make("grpo", {"max_new_tokens": 40, "lr": 3e-4})
    made = make("grpo", {"preset": "dapo"}, base=base)
    assert (made.lr, made.overlong_cache) == (3e-4, 8)
    with pytest.raises(SettingError, match="preset='drgrpo' is not known. Did you mean 'dr_grpo'"):
        make("grpo", {"preset": "drgrpo"})


def test_a_preset_is_stored_by_name_and_by_value(make_run):
    run = make_run(preset="gspo", steps_per_generation=3)
    run._ready()
    assert run.settings["preset"] == "gspo" and run.settings["importance_sampling_level"] == "sequence"
    assert run.settings["steps_per_generation"] == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(make_run, preset):
    size = {"reinforce": dict(group_size=1, prompts_per_step=4), "gspo": dict(prompts_per_step=4)}.get(preset, {})
    run = make_run(preset=preset, steps=2, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.run()
    assert np.isfinite(run.metrics.loc[1:, ["loss", "grad_norm"]]).all().all()
    assert run.metrics.loc[2, "grad_norm"] > 0


def test_rloo_is_grpo_with_its_preset(make_run, tmp_path):
    run = make_run(call=wb.rloo, steps=2, out=tmp_path / "a")
    run.run()
    same = make_run(preset="rloo", steps=2, out=tmp_path / "b")
    same.run()
    assert_same_metrics(run.metrics, same.metrics)
    assert run.settings["kl_in_reward"] and run.settings["beta"] == 0.05


SAID = [
    ({"advantage_estimator": "rloo", "group_size": 1}, "group_size=1 must be at least 2: advantage_estimator='rloo'"),
    ({"group_size": 1}, "group_size=1 must be at least 2: advantage_estimator='group'"),
    ({"advantage_estimator": "none", "dynamic_sampling": True, "group_size": 1}, "group_size must be at least 2"),
    ({"delta": 1.2}, "delta=1.2 must be above 1.2"),
    ({"delta": 1.25, "epsilon_high": 0.28}, "delta=1.25 must be above 1.28"),
    ({"top_entropy_quantile": 0.0}, "top_entropy_quantile=0.0 must be above 0"),
    ({"top_entropy_quantile": 1.2}, "top_entropy_quantile=1.2 must be at most 1"),
    ({"entropy_coef": -0.1}, "entropy_coef=-0.1 must be at least 0"),
    ({"entropy_coef_min": 0.5, "entropy_coef_max": 0.1}, "entropy_coef_min=0.5 is above entropy_coef_max=0.1"),
    ({"overlong_cache": 512}, "overlong_cache=512 must be below max_new_tokens=512"),
    ({"reward_clip_range": [1.0, -1.0]}, "reward_clip_range=.* must be .least, most."),
    ({"reward_clip_range": [1.0]}, "reward_clip_range=.* must be .least, most."),
    ({"multi_objective_aggregation": "normalize_then_sum", "advantage_estimator": "rloo"}, "not 'rloo'"),
    (
        {"multi_objective_aggregation": "normalize_then_sum", "reward_clip_range": [0, 1]},
        "reward_clip_range acts on the",
    ),
    ({"sampler_correction": "token_truncate", "sampler_correction_max": None}, "needs a bound"),
    ({"sampler_correction_min": 3.0}, "sampler_correction_min=3 must be below sampler_correction_max=3"),
    ({"sampler_correction": "token_mask", "loss_type": "gmpo"}, "'sequence_truncate' or 'sequence_mask'"),
    ({"sampler_correction": "sequence"}, "Options: token_truncate"),
    ({"loss_type": "cipso"}, "Did you mean 'cispo'"),
    ({"vllm_importance_sampling_mode": "token_mask"}, "is given here by: sampler_correction"),
]


@pytest.mark.parametrize("given, said", SAID, ids=str)
def test_settings_that_cannot_be_used(given, said):
    with pytest.raises(SettingError, match=said):
        make("grpo", given)


def test_names_of_trl_for_scaling():
    assert make("grpo", {"scale_rewards": True}).scale_rewards == "group"
    assert make("grpo", {"scale_rewards": False}).scale_rewards == "none"
    assert make("grpo", {"advantage_estimator": "none", "group_size": 1}).group_size == 1


UNREAD = [
    ({"delta": 2.0, "loss_type": "cispo", "epsilon_high": 5.0}, "delta changes nothing: only loss_type='dapo' or"),
    ({"sapo_temperature_pos": 2.0}, "sapo_temperature_pos changes nothing: only loss_type='sapo'"),
    ({"loss_type": "cispo"}, "epsilon_high, which falls back to epsilon=0.2"),
    ({"loss_type": "gmpo"}, "the paper's is 0.4"),
    ({"loss_type": "cispo", "epsilon": 0.3}, "epsilon_high, which falls back to epsilon=0.3"),
    ({"loss_type": "luspo"}, "importance_sampling_level='sequence'"),
    ({"kl_estimator": "k2"}, "kl_estimator changes nothing without beta"),
    ({"kl_in_reward": True}, "kl_in_reward changes nothing without beta"),
    ({"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False}, "expected gradient of zero"),
    ({"beta": 0.1, "loss_type": "gmpo", "epsilon": 0.4, "use_bias_correction_kl": True}, "with loss_type='gmpo'"),
    ({"beta": 0.1, "kl_in_reward": True, "kl_estimator": "k2"}, "kl_estimator changes nothing with kl_in_reward"),
    ({"scale_rewards": "batch", "advantage_estimator": "rloo"}, "scale_rewards changes nothing"),
    ({"entropy_target": 1.0}, "entropy_target changes nothing without use_adaptive_entropy"),
    ({"max_sampling_rounds": 3}, "max_sampling_rounds changes nothing without dynamic_sampling"),
    ({"sampler_correction_max": 2.0}, "sampler_correction_max changes nothing without sampler_correction"),
    ({"ref_model_sync_steps": 4, "beta": 0.1}, "ref_model_sync_steps changes nothing without sync_ref_model"),
]


@pytest.mark.parametrize("given, said", UNREAD, ids=str)
def test_settings_that_change_nothing_are_told(given, said):
    found = make("grpo", given).unread(given)
    assert len(found) == 1 and said in found[0], found


def test_settings_that_do_something_are_not_told(make_run):
    for given in (
        {"beta": 0.1, "kl_estimator": "k1"},
        {"preset": "gmpo"},
        {"preset": "cispo"},
        {"loss_type": "gmpo", "epsilon": 0.4},
    ):
        assert make("grpo", given).unread(given) == []
    with pytest.warns(UserWarning, match="wb.grpo: delta changes nothing"):
        make_run(loss_type="sapo", delta=3.0)


def test_charts_of_the_new_metrics():
    from workbench.views.curves import arrange

    names = ["sampling/yield", "sampling/rounds", "entropy_coef", "policy_loss", "clip_ratio/high_max"]
    names += ["sampling/importance_sampling_ratio/mean", "cispo_clip_ratio", "sampling/sampling_logp_difference/max"]
    units = {name: chart.unit for chart in arrange("grpo", names) for name in chart.names}
    assert list(map(units.get, names)) == [
        "share", "rounds", "coefficient", "loss", "share", "weight", "share", "nats",
    ]  # fmt: skip


def test_entropy_metrics_stand_for_all_tokens_and_for_those_that_train(make_run):
    plain = next(iter(make_run(steps=1, top_entropy_quantile=0.3)))
    assert plain.metrics["entropy/trained_tokens"] > plain.metrics["entropy"] and "policy_loss" not in plain.metrics
    step = next(iter(make_run(steps=1, top_entropy_quantile=0.3, entropy_coef=0.5, num_iterations=2)))
    bonus = 0.5 * step.metrics["entropy/trained_tokens"]
    assert step.metrics["loss"] == pytest.approx(step.metrics["policy_loss"] - bonus, rel=1e-5)
    assert step.metrics["entropy_coef"] == 0.5
