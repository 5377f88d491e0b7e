"""Parity with TRL 1.16 of every policy-gradient option it has: losses, LoRA gradients, metrics, advantages.

One trainer of each kind is built for the whole file; between cases its attributes are set. Both sides see the same
adapter (its B matrices are not zero), moved away from its reference, stale old log-probs, completions of 2 to 10
tokens, two of them cut off, a group of equal rewards, and rows that one or both reward functions answer with None.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.test_parity import (
    COMPLETIONS,
    GRADIENT,
    GROUP,
    MAX_NEW,
    PROMPTS,
    assert_same_run,
    distance,
    elsewhere,
    fixed_rollouts,
    given,
    grads_of,
    grpo_trainer,
    move,
    prompt_ids,
    stale,
    started,
    their_metrics,
    told,
    trainer,
)
from workbench.engine import Change
from workbench.methods import rl_batch
from workbench.methods.rounds import describe
from workbench.settings import make

WEIGHTS = [1.0, 0.5]
OTHER = [0.2, None, -0.4, 1.0, 0.7, 0.7, 0.7, 0.7, None, 0.1, None, 0.9]
"""a second reward; the ninth row has neither"""
OTHERS = {tuple(ids): reward for ids, reward in zip(COMPLETIONS, OTHER, strict=True)}
INPUTS = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]


def other(completion_ids, **kwargs):
    return [OTHERS[tuple(ids)] for ids in completion_ids]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    tiny_policy(folder / "model", lora=True).save(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def ours(home):
    """A run whose policy has left its reference, and what both sides are given."""
    policy = wb.load(home / "adapter", dtype="float32", device="cpu")
    task = wb.Task([{"prompt": prompt} for prompt in PROMPTS], [given, other], WEIGHTS)
    run = wb.grpo(policy, task, prompts_per_step=3, group_size=GROUP, max_new_tokens=MAX_NEW, out=home / "run")
    run._ready()
    old = stale(policy, 1.0)
    moved = elsewhere(policy)
    run.engine.state.params = moved
    draw = np.random.default_rng(5)
    sampled = [row + 0.3 * draw.standard_normal(len(row)).astype(np.float32) for row in old]
    sampled[1][0] = sampled[6][1] = np.nan  # log-probs the sampler did not give
    return SimpleNamespace(run=run, policy=policy, old=old, moved=moved, sampled=sampled)


def our_settings(run, **settings) -> None:
    """Give the run these settings, over the defaults, for what comes next."""
    base = dict(prompts_per_step=3, group_size=GROUP, max_new_tokens=MAX_NEW)
    live = dataclasses.replace(run.engine.live, settings=make("grpo", base | settings))
    run.engine.changes = [Change(0, 0, live)]


def our_rollouts(ours) -> wb.Rollouts:
    made = wb.Rollouts.of(prompt_ids(ours.policy), COMPLETIONS, old_logprobs=ours.old)
    made.logprob = list(ours.sampled)
    return made


def our_gradients(ours, **settings):
    our_settings(ours.run, **settings)
    return ours.run.gradients(our_rollouts(ours))


@pytest.fixture(scope="module")
def theirs(home, ours):
    """TRL's trainer; its reference is the adapter as it was, its policy is where ours is."""

    def rollout_func(prompts, made):
        ids = [made.processing_class(prompt)["input_ids"] for prompt in prompts]
        drawn = [[None if np.isnan(x) else float(x) for x in row] for row in ours.sampled]
        return {"prompt_ids": ids, "completion_ids": COMPLETIONS, "logprobs": drawn}

    made = trainer(
        "GRPO", home, [{"prompt": prompt} for prompt in PROMPTS],
        more={"reward_funcs": [given, other], "rollout_func": rollout_func},
        per_device_train_batch_size=12, num_generations=GROUP, max_completion_length=MAX_NEW, max_steps=1,
        shuffle_dataset=False, beta=0.04, reward_weights=WEIGHTS,
    )  # fmt: skip
    ready(made, ours)
    return made


def ready(made, ours) -> None:
    """The policy where ours is, and old log-probs that are ours instead of the policy's own."""
    move(made.model, ours.moved)
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    score = made._get_per_token_logps_and_entropies
    made.given_old = 0

    def scored(*args, **kwargs):
        if made.given_old:
            made.given_old -= 1
            return padded(ours.old), None, None
        return score(*args, **kwargs)

    made._get_per_token_logps_and_entropies = scored


def padded(rows) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True)


def set_theirs(made, **settings) -> None:
    """Our settings as the attributes of TRL's trainer."""
    s = make("grpo", settings)
    for name in (
        "loss_type", "beta", "importance_sampling_level", "top_entropy_quantile", "entropy_coef", "scale_rewards",
        "use_adaptive_entropy", "off_policy_mask_threshold", "mask_truncated_completions",
        "multi_objective_aggregation",
    ):  # fmt: skip
        setattr(made, name, getattr(s, name))
    made._entropy_bonus_enabled = s.entropy_coef != 0
    made.epsilon_low, made.epsilon_high = s.epsilon, s.epsilon if s.epsilon_high is None else s.epsilon_high
    for name in ("delta", "use_bias_correction_kl", "sapo_temperature_pos", "sapo_temperature_neg", "vespo_k_pos",
                 "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"):  # fmt: skip
        setattr(made.args, name, getattr(s, name))
    made.use_vllm = made.vllm_importance_sampling_correction = s.sampler_correction is not None
    made.vllm_importance_sampling_mode = s.sampler_correction
    made.vllm_importance_sampling_clip_max = s.sampler_correction_max
    made.vllm_importance_sampling_clip_min = s.sampler_correction_min
    made._last_loaded_step = made.state.global_step


def their_batch(made, ours, **settings) -> dict:
    set_theirs(made, **settings)
    made._metrics["train"].clear()
    made.given_old = int(made.use_vllm)
    batch = made._generate_and_score_completions(INPUTS)
    batch["old_per_token_logps"] = padded(ours.old)
    return batch


def their_loss(made, batch, compute=None) -> SimpleNamespace:
    made.model.zero_grad()
    loss = (compute or made.compute_loss)(made.model, batch)
    loss.backward()
    return SimpleNamespace(loss=float(loss.detach()), by_name=grads_of(made.model), metrics=their_metrics(made))


NOT_THEIRS = ("loss", "frac_reward_zero_std", "entropy/trained_tokens", "reward_length_corr", "sampling/")
"""metrics that are ours alone or told otherwise: see `rounds.describe`"""
ROUNDING = (*NOT_THEIRS, "clip_ratio/")
"""where TRL gives groups of equal rewards an advantage that is not 0 but what float32 left: its sign counts in these"""


def assert_same(ours, theirs, skip: tuple[str, ...] = NOT_THEIRS) -> None:
    """Loss, gradients and every metric of ours but those to `skip`."""
    # 3e-6: what float32 leaves of a sum over tokens whose terms cancel
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=3e-6)
    assert distance(ours.by_name, theirs.by_name) < GRADIENT
    both = [n for n in ours.metrics if not n.startswith(skip)]
    assert {"reward", "rewards/other/std", "entropy", "completions/clipped_ratio"} <= set(both)
    for name in both:
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=2e-5, abs=2e-6), name


KL = {"beta": 0.04}
SEQUENCE = {"importance_sampling_level": "sequence"}
CUT = {"mask_truncated_completions": True}
CASES = [
    {"epsilon_high": 0.28, "delta": 1.5} | KL,
    {"delta": 1.3, "loss_type": "grpo"} | CUT,
    {"loss_type": "grpo", "epsilon": 3e-2, "epsilon_high": 4e-2} | SEQUENCE,
    {"loss_type": "dapo"} | SEQUENCE | KL | CUT,
    {"loss_type": "luspo"} | SEQUENCE | KL,
    {"loss_type": "luspo"} | CUT,
    {"loss_type": "cispo", "epsilon_high": 1.2} | KL,
    {"loss_type": "cispo", "epsilon_high": 1.01} | SEQUENCE | CUT,
    {"loss_type": "sapo"} | KL,
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0} | SEQUENCE | CUT,
    {"loss_type": "vespo"} | KL,
    {"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_pos": 0.7} | CUT,
    {"loss_type": "vespo", "vespo_k_neg": 0.4, "vespo_lambda_neg": 1.1} | CUT,
    {"off_policy_mask_threshold": 0.02} | KL | CUT,
    {"off_policy_mask_threshold": 0.02, "loss_type": "cispo", "epsilon_high": 5.0} | SEQUENCE,
    {"top_entropy_quantile": 0.3} | KL | CUT,
    {"top_entropy_quantile": 0.55, "loss_type": "grpo"} | SEQUENCE,
    {"entropy_coef": 0.3} | KL | CUT,
    {"entropy_coef": 0.3, "loss_type": "grpo", "top_entropy_quantile": 0.4} | KL,
    {"use_bias_correction_kl": False, "loss_type": "bnpo"} | KL | SEQUENCE,
    {"multi_objective_aggregation": "normalize_then_sum"},
]  # fmt: skip
CORRECTIONS = [
    {"sampler_correction": "token_truncate", "sampler_correction_max": 1.3} | KL,
    {"sampler_correction": "token_truncate", "sampler_correction_min": 0.8, "sampler_correction_max": None} | CUT,
    {"sampler_correction": "token_mask", "sampler_correction_max": 1.4, "sampler_correction_min": 0.7} | CUT,
    {"sampler_correction": "sequence_truncate", "sampler_correction_max": 1.2, "loss_type": "grpo"} | SEQUENCE,
    {"sampler_correction": "sequence_mask", "sampler_correction_max": 2.0, "sampler_correction_min": 0.5} | KL | CUT,
    {"sampler_correction": "token_mask", "sampler_correction_max": 1.4, "loss_type": "vespo"} | CUT,
    {"sampler_correction": "token_truncate", "sampler_correction_max": 1.4, "loss_type": "vespo"} | KL,
    {"sampler_correction": "sequence_truncate", "sampler_correction_max": 1.2, "loss_type": "vespo"},
]


@pytest.mark.parametrize("settings", CASES + CORRECTIONS, ids=told)
def test_loss_gradients_and_metrics(ours, theirs, settings):
    expected = their_loss(theirs, their_batch(theirs, ours, **settings))
    found = our_gradients(ours, **settings)
    skip = ROUNDING if "multi_objective_aggregation" in settings else NOT_THEIRS
    assert_same(found, expected, skip=skip[:4] if "sampler_correction" in settings else skip)
    parts = our_gradients(ours, micro_batch_size=5, **settings)
    assert distance(parts.by_name, found.by_name) < 5e-6
    assert parts.loss == pytest.approx(found.loss, rel=5e-6, abs=2e-7)
    for name, value in found.metrics.items():
        assert parts.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


GMPO = [{}, KL | CUT, {"epsilon_high": 0.1, "top_entropy_quantile": 0.5}, KL | {"top_entropy_quantile": 0.4}]


@pytest.mark.parametrize("settings", GMPO, ids=told)
def test_gmpo(ours, theirs, settings):
    from trl.experimental.gmpo import GMPOTrainer

    settings = {"loss_type": "gmpo", "epsilon": 0.2} | settings
    batch = their_batch(theirs, ours, **settings)
    expected = their_loss(theirs, batch, lambda model, batch: GMPOTrainer._compute_loss(theirs, model, batch))
    found = our_gradients(ours, **settings)
    expected.loss += left_out(batch, found, settings)
    assert_same(found, expected)
    assert 0.01 < found.metrics["clip_ratio/region_mean"] < 0.9
    parts = our_gradients(ours, micro_batch_size=5, **settings)
    assert distance(parts.by_name, found.by_name) < 5e-6


def left_out(batch, found, settings: dict) -> float:
    """Of a row that is left out TRL's GMPO and RLOO count -A in the value (its ratio is 1), we nothing; neither has
    a gradient."""
    if not settings.get("mask_truncated_completions"):
        return 0.0
    gone = batch["completion_mask"].sum(-1) == 0
    assert gone.sum() == 2
    return float(batch["advantages"][gone].sum()) / len(gone)


AGGREGATIONS = [
    {"scale_rewards": True}, {"scale_rewards": "batch"}, {"scale_rewards": False}, {"scale_rewards": "none"},
    {"multi_objective_aggregation": "normalize_then_sum"},
]  # fmt: skip


@pytest.mark.parametrize("settings", AGGREGATIONS, ids=told)
def test_advantages(ours, theirs, settings):
    expected = their_batch(theirs, ours, **settings)["advantages"]
    made = our_rollouts(ours)
    table = ours.run.engine.live.data.task.score(made.prompt, made.text, made.ids, {})
    made.rewards, made.reward = table.parts, table.total
    found = rl_batch.advantages_of(made, make("grpo", settings), dict(zip(["given", "other"], WEIGHTS, strict=True)))
    assert np.isnan(made.reward).sum() == 1 and found[8] == 0
    assert found == pytest.approx(expected.double().numpy(), rel=1e-5, abs=1e-6)
    assert describe(made)["frac_reward_zero_std"] == pytest.approx(1 / 3)


# -- RLOO


@pytest.fixture(scope="module")
def rloo(home, ours):
    made = trainer(
        "RLOO", home, [{"prompt": prompt} for prompt in PROMPTS], more={"reward_funcs": [given, other]},
        per_device_train_batch_size=12, num_generations=GROUP, max_completion_length=MAX_NEW, max_steps=1,
        shuffle_dataset=False, reward_weights=WEIGHTS,
    )  # fmt: skip
    ready(made, ours)
    made._generate_single_turn = lambda prompt_ids, images, fields: COMPLETIONS
    return made


RLOO = [
    {},
    {"beta": 0.0},
    {"beta": 0.3, "normalize_advantages": True} | CUT,
    {"reward_clip_range": (-0.2, 0.6), "epsilon": 0.1, "epsilon_high": 0.6},
]


@pytest.mark.parametrize("settings", RLOO, ids=told)
def test_rloo(ours, rloo, settings):
    resolved = {"preset": "rloo", "group_size": GROUP} | settings
    s = make("grpo", resolved)
    rloo.beta, rloo.normalize_advantages, rloo.reward_clip_range = s.beta, s.normalize_advantages, s.reward_clip_range
    rloo.epsilon_low, rloo.epsilon_high = s.epsilon, s.epsilon if s.epsilon_high is None else s.epsilon_high
    rloo.mask_truncated_completions = s.mask_truncated_completions
    rloo._metrics["train"].clear()
    rloo.given_old = 1
    batch = rloo._generate_and_score_completions(INPUTS)
    expected = their_loss(rloo, batch)
    found = our_gradients(ours, **resolved)
    expected.loss += left_out(batch, found, settings)
    assert_same(found, expected, skip=NOT_THEIRS if s.beta else ROUNDING)
    assert ("kl" in found.metrics) == bool(s.beta)
    assert 0.05 < found.metrics["clip_ratio/region_mean"] < 0.9
    parts = our_gradients(ours, micro_batch_size=5, **resolved)
    assert distance(parts.by_name, found.by_name) < 5e-6
    assert parts.metrics["clip_ratio/high_max"] == found.metrics["clip_ratio/high_max"]


def test_rloo_defaults_are_those_of_trl():
    import trl

    theirs = {field.name: field.default for field in dataclasses.fields(trl.RLOOConfig)}
    ours = dataclasses.asdict(make("grpo", {"preset": "rloo"}))
    for name in ("beta", "num_iterations", "epsilon", "epsilon_high", "normalize_advantages", "reward_clip_range",
                 "mask_truncated_completions", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps",
                 "temperature", "top_p", "top_k"):  # fmt: skip
        assert ours[name] == theirs[name], name
    assert ours["group_size"] == theirs["num_generations"] and ours["lr"] == theirs["learning_rate"]


# -- whole runs


ADAPTIVE = {
    "use_adaptive_entropy": True, "entropy_coef": 0.2, "entropy_coef_delta": 0.15, "entropy_coef_max": 0.4,
}  # fmt: skip


@pytest.mark.parametrize("quantile, target", [(1.0, 3.95), (0.5, 4.20)])
def test_adaptive_entropy_run(home, tmp_path, monkeypatch, quantile, target):
    policy = wb.load(home / "adapter", dtype="float32", device="cpu")
    start, lr, steps = started(policy), 1e-2, 2
    settings = ADAPTIVE | {"num_iterations": 2, "top_entropy_quantile": quantile, "entropy_target": target}
    monkeypatch.setattr(policy, "sample_prompts", fixed_rollouts)
    task = wb.Task([{"prompt": prompt} for prompt in PROMPTS], [given])
    run = wb.grpo(
        policy, task, steps=steps, prompts_per_step=3, group_size=GROUP, max_new_tokens=MAX_NEW, lr=lr,
        shuffle_dataset=False, out=tmp_path / "run", **settings,
    )  # fmt: skip
    run.run()
    monkeypatch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda batch: batch)
    made = grpo_trainer(home, max_steps=2 * steps, learning_rate=lr, **settings)
    made.train()
    names = ["loss", "grad_norm", "entropy", "entropy_coef", "policy_loss", "clip_ratio/high_max"]
    assert_same_run(run, made, start, names, per_step=2)
    control = run.engine.state.json["entropy_control"]
    assert control["coef"] == pytest.approx(made.entropy_coef)
    assert control["last"] == pytest.approx(made._last_world_entropy, rel=1e-5)
    coefs = [entry["entropy_coef"] for entry in made.state.log_history if "entropy_coef" in entry]
    assert len(set(coefs)) == 4 and coefs[1] > coefs[0] and coefs[3] < coefs[2], "it rises, and then it falls"


def test_rloo_run(home, tmp_path, monkeypatch):
    policy = wb.load(home / "adapter", dtype="float32", device="cpu")
    start, lr, steps = started(policy), 1e-2, 2
    settings = {"num_iterations": 2, "beta": 0.3, "normalize_advantages": True}
    monkeypatch.setattr(policy, "sample_prompts", fixed_rollouts)
    task = wb.Task([{"prompt": prompt} for prompt in PROMPTS], [given])
    run = wb.rloo(
        policy, task, steps=steps, prompts_per_step=3, group_size=GROUP, max_new_tokens=MAX_NEW, lr=lr,
        shuffle_dataset=False, out=tmp_path / "run", **settings,
    )  # fmt: skip
    run.run()
    monkeypatch.setattr("trl.trainer.rloo_trainer.shuffle_sequence_dict", lambda batch: batch)
    made = trainer(
        "RLOO", home, [{"prompt": prompt} for prompt in PROMPTS], more={"reward_funcs": [given]},
        per_device_train_batch_size=12, num_generations=GROUP, max_completion_length=MAX_NEW, max_steps=2 * steps,
        shuffle_dataset=False, learning_rate=lr, **settings,
    )  # fmt: skip
    made._generate_single_turn = lambda prompt_ids, images, fields: COMPLETIONS
    made.train()
    names = ["loss", "grad_norm", "entropy", "kl", "reward", "reward_std", "clip_ratio/low_mean", "clip_ratio/high_max"]
    assert_same_run(run, made, start, names, per_step=2)
    assert run.metrics.loc[2, "kl"] != 0 and run.metrics["clip_ratio/region_mean"].max() > 0.1
