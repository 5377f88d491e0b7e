"""Settings: names, types, ranges, what is said when they are wrong, and the learning-rate schedules."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import re

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from workbench.errors import SettingError
from workbench.schedule import learning_rate, warmup
from workbench.settings import METHODS, TRL_NAMES, evaluation_due, make
from workbench.settings.schedules import SCHEDULES
from workbench.settings.trl import ANSWERS, ARGUMENTS


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_name_is_answered_with_the_nearest(method):
    said = rf"wb.{method} has no setting 'stepps'. Did you mean 'steps'\?.*lr,"
    with pytest.raises(SettingError, match=said):
        make(method, {"stepps": 3})


def test_a_name_of_another_method():
    with pytest.raises(SettingError, match="wb.sft has no setting 'group_size'. wb.grpo has it. Settings: adam_"):
        make("sft", {"group_size": 4})
    with pytest.raises(SettingError, match="wb.grpo has no setting 'packing'. wb.sft has it."):
        make("grpo", {"packing": True})
    with pytest.raises(SettingError, match="wb.sft has no setting 'beta'. wb.dpo and .*wb.grpo have it."):
        make("sft", {"beta": 0.1})


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
        ("generation_kwargs", "stop_strings"),
    ],
)
def test_a_name_of_trl_is_answered_with_ours(theirs, ours):
    said = rf"no setting '{theirs}'. TRL's {theirs} is given here by: .*{ours}"
    with pytest.raises(SettingError, match=said):
        make("grpo", {theirs: 1})


def test_a_misspelt_name_of_trl():
    with pytest.raises(SettingError, match="mean TRL's num_generations. TRL's num_generations is given here by: group"):
        make("grpo", {"num_generation": 4})


@pytest.mark.parametrize(
    "theirs, why",
    [
        ("use_vllm", "there is no server"),
        ("torch_compile", "without compilation"),
        ("deepspeed", "one process and one device"),
        ("use_liger_kernel", "no kernels of other projects"),
        ("logging_steps", "every number of every step is stored"),
    ],
)
def test_a_name_of_trl_that_has_no_counterpart_says_why(theirs, why):
    with pytest.raises(SettingError, match=rf"no setting '{theirs}'. TRL's {theirs} has no counterpart here: .*{why}"):
        make("grpo", {theirs: 1})


def of_trl(kind: str, what: str):
    """TRL's `SFTConfig` or `SFTTrainer`, wherever it keeps it."""
    import trl

    home = trl if hasattr(trl, f"{kind}Config") else importlib.import_module(f"trl.experimental.{kind.lower()}")
    return getattr(home, kind + what)


def names_of_trl() -> set[str]:
    """Every field of its configs and every argument of its trainers."""
    found: set[str] = set()
    for kind in ("SFT", "DPO", "GRPO", "RLOO", "KTO", "CPO", "ORPO"):
        found |= {field.name for field in dataclasses.fields(of_trl(kind, "Config"))}
        found |= set(inspect.signature(of_trl(kind, "Trainer").__init__).parameters)
    return found - {"self"}


def test_every_name_of_trl_is_answered():
    theirs = names_of_trl()
    assert len(theirs) > 200 and {"bf16", "num_generations", "simpo_gamma", "callbacks"} <= theirs
    ours = {field.name for kind in METHODS.values() for field in dataclasses.fields(kind)} | ARGUMENTS.keys()
    assert not theirs - ours - ANSWERS.keys(), "not answered"
    assert not ANSWERS.keys() & ours, "answered although it is ours"
    assert not ANSWERS.keys() - theirs - {"completion_length", "warmup_ratio"}, "no name of TRL"
    for name, answer in ANSWERS.items():
        with pytest.raises(SettingError, match=f"TRL's {name} "):
            make("sft", {name: 1})
        assert answer.why and "\n" not in answer.why, name
    assert TRL_NAMES == {name: answer.here for name, answer in ANSWERS.items() if answer.here}


def test_what_is_answered_with_a_setting_is_a_setting():
    ours = {field.name for kind in METHODS.values() for field in dataclasses.fields(kind)} | ARGUMENTS.keys()
    single = {here for here in TRL_NAMES.values() if re.fullmatch(r"\w+", here)} - {"nothing"}
    assert len(single) > 10 and single <= ours


OTHER_DEFAULTS = {
    "lr_scheduler_type",  # constant; theirs falls to zero
    "seed",  # 0
    "optim",  # plain AdamW; theirs is its fused form, which rounds otherwise
    "gradient_checkpointing",  # off: the models are small, and it makes an update a third slower for the same numbers
    "bf16",  # off: float32 is exact, and a GPU loads models in bfloat16 anyway; theirs is on where it can be
    "shuffle_dataset",  # a new order each epoch; theirs in SFT and DPO is `train_sampling_strategy`
    "loss_type",  # in DPO theirs is a list
    "num_generations_eval",  # 8; their None is the group size, 8
    "steps_per_generation",  # 1; their None is the number of micro-batches of an update
}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_trl(method):
    theirs = {field.name: field.default for field in dataclasses.fields(of_trl(method.upper(), "Config"))}
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


SHAPED = {"lr_scheduler_type": "cosine_with_min_lr"}
WSD = {"lr_scheduler_type": "warmup_stable_decay"}


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
        ("sft", {"lr_scheduler_type": "greedy"}, "Options: constant, constant_with_warmup, linear, cosine"),
        ("sft", {"lr_scheduler_type": "cosin"}, "Did you mean 'cosine'"),
        ("sft", {"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
        ("sft", {"warmup_steps": 2.5}, "warmup_steps=2.5: give whole steps, or a share"),
        ("sft", {"lr_scheduler_kwargs": {"min_lr": 1}}, "'constant' takes no 'min_lr'. It takes: nothing"),
        ("sft", SHAPED | {"lr_scheduler_kwargs": {"min_lr_rat": 1}}, "no 'min_lr_rat'. Did you mean 'min_lr_rate'"),
        ("sft", SHAPED, "needs either min_lr or min_lr_rate"),
        ("sft", SHAPED | {"lr_scheduler_kwargs": {"min_lr": 0, "min_lr_rate": 0}}, "either min_lr or min_lr_rate"),
        ("sft", SHAPED | {"lr_scheduler_kwargs": {"min_lr": "0"}}, "min_lr='0' must be a number of at least 0"),
        ("sft", {"lr_scheduler_type": "warmup_stable_decay"}, "needs num_decay_steps"),
        ("sft", {"lr_scheduler_type": "polynomial", "lr": 1e-8}, "falls from lr to lr_end; 1e-07 is not below 1e-08"),
        ("sft", {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, "above 0"),
        ("sft", WSD | {"lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "step"}}, "decay_type='step'; opt"),
        ("sft", {"optim": "adam"}, "optim='adam' is not known.*Options: adamw_torch, "),
        ("sft", {"optim": "paged_adamw_8bit"}, "not paged out to the CPU here; optim='adamw_8bit' gives"),
        ("sft", {"loss_type": "dapo"}, "wb.sft: loss_type='dapo' is not known.*Options: nll, dft"),
        ("sft", {"label_smoothing_factor": 1.0}, "label_smoothing_factor=1.0 must be below 1"),
        ("sft", {"label_smoothing_factor": 0.1, "loss_type": "dft"}, "'dft' would ignore it"),
        ("sft", {"packing": True, "max_length": None}, "packing needs a max_length"),
        ("sft", {"eval_packing": True, "max_length": None}, "packing needs a max_length"),
        ("sft", {"packing_strategy": "ffd"}, "Options: bfd, bfd_split, wrapped"),
        ("sft", {"loss_reduction": "mean"}, "Options: token, weight, row"),
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


GIVEN = {
    "cosine": [{"num_cycles": 1.5}],
    "cosine_with_restarts": [{"num_cycles": 3}],
    "polynomial": [{}, {"lr_end": 1e-4, "power": 2.0}],
    "inverse_sqrt": [{}, {"timescale": 40}],
    "cosine_with_min_lr": [{"min_lr": 1e-4}, {"min_lr_rate": 0.25, "num_cycles": 1}],
    "cosine_warmup_with_min_lr": [{"min_lr_rate": 0.1}, {"min_lr": 1e-4, "warmup_lr_rate": 0.3}],
    "warmup_stable_decay": [
        {"num_decay_steps": 4},
        {"num_decay_steps": 3, "num_stable_steps": 2, "warmup_type": "cosine", "decay_type": "1-sqrt"},
        {"num_decay_steps": 4, "min_lr_ratio": 0.2, "decay_type": "linear"},
    ],
}


@pytest.mark.parametrize("warmup_steps", [0, 3])
@pytest.mark.parametrize("name, given", [(n, g) for n in SCHEDULES for g in GIVEN.get(n, [{}])], ids=str)
def test_learning_rates_are_those_of_transformers(name, given, warmup_steps):
    from transformers import get_scheduler

    steps, peak = 11, 3e-3
    shape = {"lr_scheduler_type": name, "warmup_steps": warmup_steps, "lr_scheduler_kwargs": given}
    settings = make("sft", {"steps": steps, "lr": peak} | shape)
    settings = make("sft", json.loads(json.dumps(dataclasses.asdict(settings))))  # as it comes back from the store
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(kind, optimizer, warmup_steps, steps, given)
    seen = []
    for step in range(1, steps + 1):
        seen.append(learning_rate(settings, step))
        assert seen[-1] == scheduler.get_last_lr()[0], step
        optimizer.step()
        scheduler.step()
    assert (len(set(seen)) > 1) == (warmup_steps > 0 or not name.startswith("constant"))


def test_every_schedule_of_transformers_that_follows_from_the_step_is_here():
    """And takes the same arguments."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    of_run = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    theirs = {
        kind.value: set(inspect.signature(function).parameters) - of_run
        for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()
        if kind.value not in ("reduce_lr_on_plateau", "greedy")  # these follow from the loss
    }
    assert {name: set(takes) for name, takes in SCHEDULES.items()} == theirs


def test_a_warm_up_by_hand():
    settings = make("sft", {"steps": 10, "lr": 1.0, "warmup_steps": 0.25, "lr_scheduler_type": "linear"})
    assert warmup(settings) == 3  # a quarter of ten, rounded up
    rates = [learning_rate(settings, step) for step in range(1, 11)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert warmup(make("sft", {"warmup_steps": 1.0})) == 1
    assert learning_rate(make("sft", {"lr": 0.0} | SHAPED | {"lr_scheduler_kwargs": {"min_lr": 1e-5}}), 1) == 0.0


def test_evaluation_is_due_at_the_start_the_end_and_in_between():
    def due(**given):
        settings = make("sft", given)
        return [step for step in range(settings.steps + 1) if evaluation_due(settings, step)]

    assert due(steps=7, eval_steps=3) == [0, 3, 6, 7]
    assert due(steps=40) == list(range(0, 41, 4))
    assert due(steps=3) == [0, 1, 2, 3]
