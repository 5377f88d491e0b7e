"""Parity with TRL 1.16 on a tiny random model: losses, LoRA gradients, metrics, and whole training runs.

Both sides read the same model and the same adapter (its B matrices are not zero) from disk, in float32, and
see the same tokens and rewards. TRL's trainers run their own code from rows or rewards on; only what they
would sample is given to them, through their `rollout_func`.
"""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import EOS, tiny_policy

LOSS = 1e-5
"""relative"""
GRADIENT = 1e-5
"""relative, by norm over all parameters"""

PAIRS = [
    {"prompt": "Two and two?", "chosen": " four", "rejected": " five, or so I hear"},
    {"prompt": "Sky:", "chosen": " blue on a clear day", "rejected": " green"},
    {"prompt": "Count to three, slowly.", "chosen": " 1, 2, 3", "rejected": " 3"},
    {"prompt": "Say yes", "chosen": "!", "rejected": " no!"},
    {"prompt": "A", "chosen": "BCDEFGHIJKLMNOP", "rejected": "bcdefghijklmn"},
    {"prompt": "Bread and", "chosen": " butter", "rejected": " bicycles"},
]
ROWS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]

PROMPTS = ["Two and two?", "Sky:", "Count to three, slowly."]
GROUP = 4
MAX_NEW = 9
REWARDS = [1.0, 0.0, 0.25, 0.0, 0.5, 0.5, 0.5, 0.5, None, 2.0, -1.0, 0.3]
"""the second group has equal rewards, the third a row without one"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model (`model`) and an adapter with B not zero (`adapter`)."""
    folder = tmp_path_factory.mktemp("parity")
    policy = tiny_policy(folder / "model", lora=True)
    assert all(p.abs().sum() > 0 for p in policy.trainable().values())
    policy.save(folder / "adapter")
    return folder


@pytest.fixture
def policy(home):
    return wb.load(home / "adapter", dtype="float32", device="cpu")


def their_model(home):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    return PeftModel.from_pretrained(base, home / "adapter", is_trainable=True)


def trainer(kind: str, home, data: list[dict], *, model=None, more: dict | None = None, **settings):
    """A TRL trainer on the CPU in float32 that logs every update and draws rows in the order given."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    common = dict(
        output_dir=str(home / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, seed=0,
        report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, max_grad_norm=1.0,
        lr_scheduler_type="constant", learning_rate=1e-3,
    )  # fmt: skip
    if kind != "GRPO":
        common["train_sampling_strategy"] = "sequential"
    config = getattr(trl, f"{kind}Config")(**common | settings)
    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(trl, f"{kind}Trainer")(
            model=model or their_model(home), args=config, train_dataset=Dataset.from_list(data),
            processing_class=tokenizer, **more or {},
        )  # fmt: skip


def their_gradients(made, inputs: dict, **how) -> SimpleNamespace:
    """Loss and gradients of TRL's own `compute_loss` on a batch."""
    made.model.train()
    made.model.zero_grad()
    made.current_gradient_accumulation_steps = 1
    loss = made.compute_loss(made.model, inputs, **how)
    loss.backward()
    return SimpleNamespace(
        loss=float(loss.detach()), by_name=grads_of(made.model), metrics=their_metrics(made)
    )


def their_metrics(made) -> dict[str, float]:
    return {name: values[-1] for name, values in made._metrics["train"].items()}


def grads_of(model) -> dict[str, torch.Tensor]:
    return {
        name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }


def distance(ours: dict, theirs: dict) -> float:
    """Relative distance by norm of two dicts of tensors."""
    assert ours.keys() == theirs.keys() and ours
    difference = sum(float(((ours[n] - theirs[n]).double() ** 2).sum()) for n in ours)
    size = sum(float((theirs[n].double() ** 2).sum()) for n in theirs)
    assert size > 0
    return math.sqrt(difference / size)


def assert_same(ours, theirs, names: list[str], gradient: float = GRADIENT) -> None:
    """Loss, gradients and the named metrics agree."""
    assert theirs.loss != 0
    # 2e-7: what float32 leaves where terms near 1 cancel
    assert ours.loss == pytest.approx(theirs.loss, rel=LOSS, abs=2e-7)
    assert distance(ours.by_name, theirs.by_name) < gradient
    for name in names:
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=2e-5, abs=1e-6), name


def elsewhere(policy) -> dict[str, torch.Tensor]:
    """The trained tensors, moved a little: a policy that is no longer its reference."""
    draw = torch.Generator().manual_seed(11)
    return {n: p + 0.02 * torch.randn(p.shape, generator=draw) for n, p in policy.params().items()}


def move(model, params: dict[str, torch.Tensor]) -> None:
    """Give TRL's policy these weights; its reference keeps its own."""
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data.copy_(params[name])


def told(settings: dict) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items()) or "defaults"


# -- one update


SFT_METRICS = ["entropy", "mean_token_accuracy"]
DPO_METRICS = [
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "entropy", "mean_token_accuracy",
]  # fmt: skip
SFT_CASES = {
    "prompt and completion": (ROWS, {}),
    "prompt trained too": (ROWS, {"completion_only_loss": False}),
    "text": ([{"text": row["prompt"] + row["completion"]} for row in ROWS], {}),
    "cut at 16 tokens": (ROWS, {"max_length": 16}),
}


@pytest.mark.parametrize("rows, settings", SFT_CASES.values(), ids=SFT_CASES)
def test_sft_gradients(policy, home, tmp_path, rows, settings):
    made = trainer("SFT", home, rows, per_device_train_batch_size=len(rows), max_steps=1, **settings)
    batch = next(iter(made.get_train_dataloader()))
    # the count of trained tokens is what transformers' training loop would hand over
    _, count = made.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    theirs = their_gradients(made, batch, num_items_in_batch=count)
    ours = wb.sft(policy, rows, out=tmp_path / "run", **settings).gradients(rows)
    assert_same(ours, theirs, SFT_METRICS)


@pytest.mark.parametrize("settings", [{}, {"beta": 0.5}, {"max_length": 24}], ids=told)
def test_dpo_gradients(policy, home, tmp_path, settings):
    moved = elsewhere(policy)
    made = trainer("DPO", home, PAIRS, per_device_train_batch_size=len(PAIRS), max_steps=1, **settings)
    move(made.model, moved)
    theirs = their_gradients(made, next(iter(made.get_train_dataloader())))
    run = wb.dpo(policy, PAIRS, out=tmp_path / "run", **settings)
    run._ready()  # the run begins here, and with it the reference
    run.engine.state.params = moved
    ours = run.gradients(PAIRS)
    assert_same(ours, theirs, DPO_METRICS)
    assert ours.metrics["rewards/margins"] != 0


def completions() -> list[list[int]]:
    """Twelve of 2 to 9 tokens; all but two, the last of the first and of the second group, end with <eos>."""
    draw = np.random.default_rng(7)
    made = [[int(t) for t in draw.integers(0, 256, int(n))] + [EOS] for n in draw.integers(1, MAX_NEW, 12)]
    for cut in (3, 7):
        made[cut] = [int(t) for t in draw.integers(0, 256, MAX_NEW)]
    return made


COMPLETIONS = completions()
TABLE = {tuple(ids): reward for ids, reward in zip(COMPLETIONS, REWARDS, strict=True)}


def given(completion_ids, **kwargs):
    """The reward of each of COMPLETIONS: a reward function for both sides."""
    return [TABLE[tuple(ids)] for ids in completion_ids]


def prompt_ids(policy) -> list[list[int]]:
    return [policy.tokenizer(prompt)["input_ids"] for prompt in PROMPTS for _ in range(GROUP)]


def stale(policy, temperature: float) -> list[np.ndarray]:
    """Log-probs of an older policy: the present one's, moved by up to 0.6 nats: ratios get clipped."""
    now = policy.score(prompt_ids(policy), COMPLETIONS, temperature=temperature).logprob
    draw = np.random.default_rng(3)
    return [(row + draw.uniform(-0.6, 0.6, len(row))).astype(np.float32) for row in now]


def rollout_func(prompts, made):
    ids = [made.processing_class(prompt)["input_ids"] for prompt in prompts]
    unused = [[0.0] * len(c) for c in COMPLETIONS]
    return {"prompt_ids": ids, "completion_ids": COMPLETIONS, "logprobs": unused}


def grpo_trainer(home, **settings):
    common = dict(
        per_device_train_batch_size=12, num_generations=GROUP, max_completion_length=MAX_NEW, max_steps=1,
        shuffle_dataset=False,
    )  # fmt: skip
    more = {"reward_funcs": [given], "rollout_func": rollout_func}
    return trainer("GRPO", home, [{"prompt": prompt} for prompt in PROMPTS], more=more, **common | settings)


def their_grpo(home, old: list[np.ndarray] | None, moved: dict | None = None, **settings):
    """TRL's loss and gradients on the given completions, with `old` log-probs and its policy `moved`."""
    made = grpo_trainer(home, **settings)
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    if moved:
        move(made.model, moved)
    batch = made._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(GROUP)])
    if old is not None:
        rows = [torch.as_tensor(row) for row in old]
        batch["old_per_token_logps"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return their_gradients(made, batch)


def our_grpo(policy, out, old, moved: dict | None = None, **settings):
    task = wb.Task([{"prompt": prompt} for prompt in PROMPTS], [given])
    settings |= dict(prompts_per_step=3, group_size=GROUP, max_new_tokens=MAX_NEW)
    run = wb.grpo(policy, task, out=out, **settings)
    run._ready()  # the run begins here, and with it the reference
    if moved:
        run.engine.state.params = moved
    return run.gradients(wb.Rollouts.of(prompt_ids(policy), COMPLETIONS, {"given": REWARDS}, old))


GRPO_METRICS = [
    "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
    "reward", "reward_std", "rewards/given/mean", "rewards/given/std",
    "completions/mean_length", "completions/min_length", "completions/max_length",
    "completions/clipped_ratio", "completions/mean_terminated_length",
    "completions/min_terminated_length", "completions/max_terminated_length",
]  # fmt: skip
KL = {"beta": 0.04}
VARIANTS = [
    {},
    KL,
    KL | {"use_bias_correction_kl": False, "loss_type": "grpo"},
    {"loss_type": "grpo", "scale_rewards": "batch"},
    {"loss_type": "bnpo", "scale_rewards": "none", "temperature": 0.7},
    {"loss_type": "dr_grpo", "epsilon_high": 0.28} | KL,
    {"mask_truncated_completions": True} | KL,
    {"mask_truncated_completions": True, "loss_type": "grpo"},
    {"mask_truncated_completions": True, "loss_type": "bnpo", "temperature": 1.3} | KL,
    {"entropy_coef": 0.1, "temperature": 0.7},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=told)
def test_grpo_gradients_with_stale_log_probs(policy, home, tmp_path, settings):
    old = stale(policy, settings.get("temperature", 1.0))
    moved = elsewhere(policy)
    theirs = their_grpo(home, old, moved, **settings)
    ours = our_grpo(policy, tmp_path / "run", old, moved, **settings)
    names = GRPO_METRICS + ["kl"] * ("beta" in settings)
    names += ["frac_reward_zero_std"] * (settings.get("scale_rewards") != "batch")
    assert_same(ours, theirs, names)
    assert 0.02 < ours.metrics["clip_ratio/region_mean"] < 0.9


@pytest.mark.parametrize("settings", [{}, KL, KL | {"use_bias_correction_kl": False}], ids=told)
def test_grpo_gradients_of_the_policy_that_sampled(policy, home, tmp_path, settings):
    moved = elsewhere(policy)
    theirs = their_grpo(home, None, moved, **settings)
    ours = our_grpo(policy, tmp_path / "run", None, moved, **settings)
    assert_same(ours, theirs, GRPO_METRICS + ["kl"] * bool(settings))
    assert ours.metrics["clip_ratio/region_mean"] == 0


# -- whole runs


def assert_same_run(run, made, start: dict, names: list[str], per_step: int = 1) -> None:
    """The same weights at the end and the same metrics on the way, `per_step` of TRL's updates to a step.

    The metrics of these updates are averaged; those that come with a sampling are there once.
    """
    theirs = {n: p.data for n, p in made.model.named_parameters() if p.requires_grad}
    ours = run.engine.state.params
    moved = {n: theirs[n] - start[n] for n in theirs}
    assert distance({n: ours[n] - start[n] for n in ours}, moved) < 5e-5  # Adam divides by tiny numbers
    assert distance(ours, theirs) < GRADIENT
    log = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(log) == per_step * run.step
    for step in range(1, run.step + 1):
        part = log[(step - 1) * per_step : step * per_step]
        for name in names:
            expected = np.mean([entry[name] for entry in part if name in entry])
            # after a step of Adam, which divides by tiny numbers, so that their last digits count
            room = 2e-5 if step == 1 else 5e-5
            assert run.metrics.loc[step, name] == pytest.approx(expected, rel=room, abs=2e-6), (step, name)


def started(policy) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in policy.params().items()}


def test_sft_run(policy, home, tmp_path):
    start = started(policy)
    made = trainer("SFT", home, ROWS, per_device_train_batch_size=2, max_steps=4, weight_decay=0.1)
    made.train()
    settings = dict(steps=4, batch_size=2, lr=1e-3, weight_decay=0.1, shuffle_dataset=False)
    run = wb.sft(policy, ROWS, out=tmp_path / "run", **settings)
    run.run()
    assert_same_run(run, made, start, [*SFT_METRICS, "loss", "grad_norm", "learning_rate", "num_tokens"])


def test_sft_run_of_all_weights(home, tmp_path):
    from transformers import AutoModelForCausalLM

    policy = wb.load(home / "model", dtype="float32", device="cpu")
    start = started(policy)
    model = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    theirs = dict(per_device_train_batch_size=2, max_steps=3, weight_decay=0.1)
    made = trainer("SFT", home, ROWS, model=model, **theirs)
    made.train()
    settings = dict(steps=3, batch_size=2, lr=1e-3, weight_decay=0.1, shuffle_dataset=False)
    run = wb.sft(policy, ROWS, out=tmp_path / "run", **settings)
    run.run()
    assert_same_run(run, made, start, [*SFT_METRICS, "loss", "grad_norm"])


def test_dpo_run(policy, home, tmp_path):
    start = started(policy)
    made = trainer("DPO", home, PAIRS, per_device_train_batch_size=2, max_steps=4)
    made.train()
    run = wb.dpo(policy, PAIRS, steps=4, batch_size=2, lr=1e-3, shuffle_dataset=False, out=tmp_path / "run")
    run.run()
    assert_same_run(run, made, start, ["loss", "grad_norm", "num_tokens", *DPO_METRICS])
    # at first the policy is its own reference
    assert run.metrics.loc[1, "loss"] == pytest.approx(math.log(2), abs=1e-6)


def fixed_rollouts(prompts, n, **how) -> wb.Rollouts:
    """What `policy.sample_prompts` gives in a run that is fed the completions above."""
    ends = ["stop" if ids[-1] == EOS else "length" for ids in COMPLETIONS]
    ids = [list(prompt.ids) for prompt in prompts for _ in range(n)]
    zeros = [np.zeros(len(ids), dtype=np.float32) for ids in COMPLETIONS]
    return wb.Rollouts(
        prompt=[""] * 12, text=["-"] * 12, prompt_text=["-"] * 12, prompt_ids=ids, ids=COMPLETIONS,
        finish_reason=ends, logprob=zeros, entropy=zeros,
    )  # fmt: skip


RUNS = [
    dict(num_iterations=1, steps_per_generation=1),
    dict(num_iterations=2, steps_per_generation=1, temperature=0.8, **KL),
    dict(num_iterations=1, steps_per_generation=2),
    dict(num_iterations=2, steps_per_generation=2, mask_truncated_completions=True, **KL),
    dict(num_iterations=2, steps_per_generation=2, loss_type="grpo", scale_rewards="none", **KL),
]


@pytest.mark.parametrize("settings", RUNS, ids=told)
def test_grpo_run(policy, home, tmp_path, monkeypatch, settings):
    from trl.trainer import grpo_trainer as module

    from workbench.methods.rl_batch import split

    parts = settings["steps_per_generation"]
    updates = settings["num_iterations"] * parts
    lr, steps, start = 1e-2, 2, started(policy)
    task = wb.Task([{"prompt": prompt} for prompt in PROMPTS], [given])
    monkeypatch.setattr(policy, "sample_prompts", fixed_rollouts)
    run = wb.grpo(
        policy, task, steps=steps, prompts_per_step=3, group_size=GROUP, max_new_tokens=MAX_NEW, lr=lr,
        shuffle_dataset=False, out=tmp_path / "run", **settings,
    )  # fmt: skip
    run.run()

    # TRL cuts its rows at random too; it is given our cut
    calls = iter(range(1, steps + 1))

    def ordered(batch):
        order = sum(split(run.engine.settings, next(calls), 12), [])
        return {k: v[order] if v is not None and v.dim() else v for k, v in batch.items()}

    monkeypatch.setattr(module, "shuffle_sequence_dict", ordered)
    sizes = dict(per_device_train_batch_size=12 // parts, max_steps=steps * updates, learning_rate=lr)
    made = grpo_trainer(home, **sizes, **settings)
    made.train()

    names = ["loss", "grad_norm", "frac_reward_zero_std", "num_tokens", *GRPO_METRICS]
    names += ["kl"] * ("beta" in settings)
    assert_same_run(run, made, start, names, per_step=updates)
    if updates > 1:
        assert run.metrics["clip_ratio/region_mean"].max() > 0.01
