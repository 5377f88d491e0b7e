"""Settings: names, types, ranges, what is said when they are wrong, and the learning-rate schedules."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from workbench.errors import SettingError
from workbench.schedule import learning_rate
from workbench.settings import METHODS, TRL_NAMES, evaluation_due, make


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_name_is_answered_with_the_nearest(method):
    said = rf"wb.{method} has no setting 'stepps'. Did you mean 'steps'\?.*lr,"
    with pytest.raises(SettingError, match=said):
        make(method, {"stepps": 3})


def test_a_name_of_another_method():
    with pytest.raises(SettingError, match="wb.sft has no setting 'group_size'"):
        make("sft", {"group_size": 4})


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("learning_rate", "lr"),
        ("max_steps", "steps"),
        ("num_generations", "group_size"),
        ("max_completion_length", "max_new_tokens"),
        ("per_device_train_batch_size", "batch_size"),
        ("gradient_accumulation_steps", "micro_batch_size"),
        ("output_dir", "out"),
        ("reward_funcs", "Task"),
        ("ref_model", "the policy as it was when the run began"),
    ],
)
def test_a_name_of_trl_is_answered_with_ours(theirs, ours):
    said = rf"no setting '{theirs}'. TRL's {theirs} is given here by: .*{ours}"
    with pytest.raises(SettingError, match=said):
        make("grpo", {theirs: 1})


def test_a_misspelt_name_of_trl():
    with pytest.raises(SettingError, match="mean TRL's num_generations. It is given here by: group_size"):
        make("grpo", {"num_generation": 4})


def test_names_of_trl_are_names_of_trl_and_none_of_ours():
    import inspect

    import trl

    theirs = {"completion_length"}  # of older versions
    for kind in ("SFT", "DPO", "GRPO"):
        theirs |= {field.name for field in dataclasses.fields(getattr(trl, f"{kind}Config"))}
        theirs |= set(inspect.signature(getattr(trl, f"{kind}Trainer").__init__).parameters)
    ours = {field.name for kind in METHODS.values() for field in dataclasses.fields(kind)}
    assert not TRL_NAMES.keys() & ours
    assert TRL_NAMES.keys() - {"warmup_ratio"} <= theirs


SHARED = {"sft": "SFTConfig", "dpo": "DPOConfig", "grpo": "GRPOConfig"}
OTHER_DEFAULTS = {
    "lr_scheduler_type",  # constant; theirs falls to zero
    "seed",  # 0
    "optim",  # plain AdamW; theirs is its fused form
    "shuffle_dataset",  # a new order each epoch; theirs in SFT and DPO is `train_sampling_strategy`
    "loss_type",  # in DPO theirs is a list
    "num_generations_eval",  # 8; their None is the group size, 8
    "steps_per_generation",  # 1; their None is the number of micro-batches of an update
}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_trl(method):
    import trl

    theirs = {field.name: field.default for field in dataclasses.fields(getattr(trl, SHARED[method]))}
    ours = {field.name: field.default for field in dataclasses.fields(METHODS[method])}
    both = {name: default for name, default in ours.items() if name in theirs}
    assert len(both) > 10
    for name, default in both.items():
        if name not in OTHER_DEFAULTS:
            assert default == theirs[name], name
    assert ours["lr"] == theirs["learning_rate"]
    if method == "grpo":
        assert ours["group_size"] == theirs["num_generations"]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"steps": "10"}, "steps='10': expected int, got str"),
        ({"steps": 2.5}, "steps=2.5: expected int"),
        ({"steps": None}, "steps=None: this setting needs a value"),
        ({"steps": True}, "steps=True: expected int, got bool"),
        ({"lr": "fast"}, "lr='fast': expected float, got str"),
        ({"lr": float("nan")}, "lr=nan is not a number"),
        ({"lr": np.array([1.0, 2.0])}, "lr=.*expected float, got ndarray"),
        ({"shuffle_dataset": 1}, "shuffle_dataset=1: expected bool, got int"),
        ({"loss_type": 3}, "loss_type=3: expected str, got int"),
        ({"micro_batch_size": [2]}, "expected int | None, got list"),
    ],
    ids=str,
)
def test_types(given, said):
    with pytest.raises(SettingError, match=said.replace("|", r"\|")):
        make("grpo", given)


def test_numbers_that_mean_the_same_pass():
    given = {"steps": 5.0, "lr": 1, "group_size": np.int64(4)}
    made = make("grpo", given | {"epsilon": np.float32(0.25), "beta": torch.tensor(0)})
    assert (made.steps, made.lr, made.group_size, made.epsilon, made.beta) == (5, 1.0, 4, 0.25, 0.0)
    assert type(made.steps) is int and type(made.lr) is float and type(made.group_size) is int
    assert make("sft", {"max_length": None}).max_length is None


@pytest.mark.parametrize(
    "method, given, said",
    [
        ("sft", {"steps": 0}, "wb.sft: steps=0 must be at least 1"),
        ("sft", {"lr": -1e-3}, "lr=-0.001 must be at least 0"),
        ("sft", {"lr": math.inf}, "lr=inf must be finite"),
        ("sft", {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ("sft", {"max_length": 1}, "max_length=1 must be at least 2"),
        ("sft", {"micro_batch_size": 0}, "micro_batch_size=0 must be at least 1"),
        ("sft", {"adam_beta2": 1.0}, "adam_beta2=1.0 must be below 1"),
        ("sft", {"adam_epsilon": 0.0}, "adam_epsilon=0.0 must be above 0"),
        ("sft", {"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0"),
        ("sft", {"max_grad_norm": -1}, "max_grad_norm=-1.0 must be at least 0"),
        ("sft", {"time_limit": 0}, "time_limit=0.0 must be above 0"),
        ("sft", {"truncation_mode": "keep_stat"}, "truncation_mode='keep_stat' is not.*mean 'keep_start'"),
        ("sft", {"lr_scheduler_type": "polynomial"}, "Options: constant, linear, cosine"),
        ("sft", {"loss_type": "dapo"}, "wb.sft: loss_type='dapo' is not known.*Options: nll"),
        ("dpo", {"beta": 0}, "beta=0 gives a constant loss"),
        ("dpo", {"loss_type": "sigmoyd"}, "Did you mean 'sigmoid'"),
        ("grpo", {"beta": -0.1}, "beta=-0.1 must be at least 0"),
        ("grpo", {"group_size": 1}, "group_size=1 must be at least 2"),
        ("grpo", {"temperature": 0}, "temperature=0.0 must be above 0"),
        ("grpo", {"top_p": 1.5}, "top_p=1.5 must be at most 1"),
        ("grpo", {"top_p": 0}, "top_p=0.0 must be above 0"),
        ("grpo", {"top_k": -1}, "top_k=-1 must be at least 0"),
        ("grpo", {"scale_rewards": "groups"}, "Did you mean 'group'"),
        ("grpo", {"loss_type": "sigmoid"}, "Options: dapo, grpo, bnpo, dr_grpo"),
        ("grpo", {"prompts_per_step": 3, "steps_per_generation": 5}, "=5 does not divide the 24 completions"),
        ("grpo", {"num_iterations": 0}, "num_iterations=0 must be at least 1"),
    ],
    ids=str,
)  # fmt: skip
def test_ranges_and_choices(method, given, said):
    with pytest.raises(SettingError, match=said):
        make(method, given)


def test_a_change_keeps_the_rest_and_is_checked():
    base = make("grpo", {"lr": 3e-4, "beta": 0.1})
    made = make("grpo", {"beta": 0.2}, base=base)
    assert (made.lr, made.beta, base.beta) == (3e-4, 0.2, 0.1)
    with pytest.raises(SettingError, match="group_size=1"):
        make("grpo", {"group_size": 1}, base=base)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make("sft", {}).lr = 1.0


def test_wrong_settings_leave_nothing_behind(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    rows = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(SettingError, match="no setting 'learning_rate'.*lr"):
        wb.sft(policy, rows, learning_rate=1e-3, out=tmp_path / "run")
    with pytest.raises(SettingError, match="eval_steps=5 needs eval_dataset"):
        wb.sft(policy, rows, eval_steps=5, out=tmp_path / "run")
    with pytest.raises(SettingError, match="wb.sft trains a policy.*Got str"):
        wb.sft("tiny", rows, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_learning_rates_are_those_of_transformers(name, warmup):
    from transformers import get_scheduler

    steps, peak = 11, 3e-3
    settings = make("sft", {"steps": steps, "lr": peak, "lr_scheduler_type": name, "warmup_steps": warmup})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(1, steps + 1):
        assert learning_rate(settings, step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        scheduler.step()
    assert learning_rate(settings, 1) == (0 if warmup else peak)


def test_evaluation_is_due_at_the_start_the_end_and_in_between():
    def due(**given):
        settings = make("sft", given)
        return [step for step in range(settings.steps + 1) if evaluation_due(settings, step)]

    assert due(steps=7, eval_steps=3) == [0, 3, 6, 7]
    assert due(steps=40) == list(range(0, 41, 4))
    assert due(steps=3) == [0, 1, 2, 3]
