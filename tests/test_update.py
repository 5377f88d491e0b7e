"""Updates: AdamW against torch's own loop, micro-batches against the whole, dropout by key."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import exact_norms, noisy_adapter, tiny_policy
from tests.runs import letters, rows_for
from workbench import update
from workbench.errors import RunError, SettingError
from workbench.run import Gradients
from workbench.settings import make
from workbench.state import State
from workbench.update import Batch

# -- the optimiser


class Toy(torch.nn.Module):
    """A matrix and a bias to train."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        self.bias = torch.nn.Parameter(torch.tensor([1.0, -1.0]))


def toy():
    model = Toy()
    return SimpleNamespace(model=model, trainable=lambda: dict(model.named_parameters()))


def slopes(step: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    shapes = {"matrix": (2, 2), "bias": (2,)}
    return {name: scale * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_the_first_adamw_step_by_hand():
    policy = toy()
    policy.model.matrix.grad = torch.tensor([[0.5, -0.25], [0.0, 4.0]])
    policy.model.bias.grad = torch.tensor([1.0, -1.0])
    settings = make("sft", {"lr": 0.1, "weight_decay": 0.5, "max_grad_norm": 0})
    metrics = update.apply(policy, State({}), settings, 1)
    # decay by 1 - 0.1 * 0.5, then minus 0.1 times the sign of the gradient; the bias is not decayed
    assert policy.model.matrix.tolist() == [
        [pytest.approx(0.85), pytest.approx(-1.8)],
        [pytest.approx(0.475), pytest.approx(2.75)],
    ]
    assert policy.model.bias.tolist() == pytest.approx([0.9, -0.9])
    assert metrics == {"grad_norm": pytest.approx((0.25 + 0.0625 + 16 + 2) ** 0.5), "learning_rate": 0.1}
    assert policy.model.matrix.grad is None


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torchs_own_loop(weight_decay, max_grad_norm):
    from transformers import get_scheduler

    rates = dict(steps=6, lr=0.05, lr_scheduler_type="cosine", warmup_steps=1)
    given = dict(adam_beta1=0.8, adam_beta2=0.95, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
    settings = make("sft", rates | given)
    policy, state, plain = toy(), State({}), Toy()
    matrix = {"params": [plain.matrix], "weight_decay": weight_decay}
    bias = {"params": [plain.bias], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrix, bias], lr=0.05, betas=(0.8, 0.95), eps=1e-8)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=6)
    for step in range(1, 7):
        # of norms above and below the limit
        for model in (policy.model, plain):
            for name, slope in slopes(step, 0.1 if step % 2 else 3.0).items():
                getattr(model, name).grad = slope
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm or 1e30)
        metrics = update.apply(policy, state, settings, step)
        optimizer.step()
        scheduler.step()
        assert metrics["grad_norm"] == pytest.approx(float(norm))
        assert torch.equal(policy.model.matrix, plain.matrix)
        assert torch.equal(policy.model.bias, plain.bias)
        state = state.clone()  # all that goes on is in the state
    assert not torch.equal(plain.matrix, Toy().matrix)
    assert state.optim["adamw"]["matrix"]["step"] == 6


def test_a_gradient_that_is_not_finite_touches_nothing():
    policy, state = toy(), State({})
    policy.model.matrix.grad = torch.ones(2, 2)
    policy.model.bias.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(RunError, match="Step 4: the gradient is not finite .*bias"):
        update.apply(policy, state, make("sft", {}), 4)
    assert torch.equal(policy.model.matrix, Toy().matrix) and not state.optim.get("adamw")


def test_nothing_to_train():
    with pytest.raises(SettingError, match="Attach an adapter"):
        update.apply(toy(), State({}), make("sft", {}), 1)


# -- batches


def test_columns_become_padded_tensors():
    made = Batch([[1, 2, 3, 4], [1, 2]], [1, 1], {"row": [0.5, 2], "token": [[1, 2, 3], [4]]})
    columns = update.columns_of(made, torch.zeros(1, dtype=torch.float64))
    assert columns["row"].tolist() == [0.5, 2] and columns["row"].dtype == torch.float64
    assert columns["token"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert made.take([1]).columns == {"row": [2], "token": [[4]]} and made.take([1]).starts == [1]
    assert update.totals_of(made, more=3) == {"rows": 2.0, "pairs": 1.0, "tokens": 4.0, "more": 3.0}


# -- micro-batches


GIVEN = {
    "sft": [{"prompt": f"Say {i}:", "completion": " ab" * (1 + 3 * i % 7)} for i in range(7)],
    "dpo": [
        {"prompt": f"Say {i}:", "chosen": " ab" * (1 + i), "rejected": " cd" * (1 + 2 * i % 5)}
        for i in range(7)
    ],
}
REWARDS = [1.0, 0.0, 0.0, 0.5, 0.5, 0.5, None, 2.0, -1.0]
LOSSES = [("sft", {}), ("dpo", {})] + [
    ("grpo", {"loss_type": name, "beta": 0.05, "mask_truncated_completions": True})
    for name in ("dapo", "grpo", "bnpo", "dr_grpo")
]


def rollouts(policy) -> wb.Rollouts:
    """Nine ragged completions with log-probs of an older policy; three do not end in a stop token."""
    draw = np.random.default_rng(0)
    prompts = [policy.tokenizer(f"Prompt {i}" + "." * i)["input_ids"] for i in range(3) for _ in range(3)]
    ends = [[], *[[policy.stop_ids[0]]] * 2] * 3
    ids = [[int(t) for t in draw.integers(0, 256, int(draw.integers(1, 9)))] + end for end in ends]
    now = policy.score(prompts, ids).logprob
    old = [row + draw.uniform(-0.6, 0.6, len(row)) for row in now]
    return wb.Rollouts.of(prompts, ids, REWARDS, old)


def task() -> wb.Task:
    return wb.Task(rows_for("grpo"), rewards=[letters])


@pytest.fixture(scope="module", params=["float32", "float64"])
def policy(request, tmp_path_factory):
    """With an adapter whose B is not zero."""
    made = tiny_policy(tmp_path_factory.mktemp("model"), lora=True, dtype=request.param)
    if request.param == "float64":
        exact_norms(made)
    return made


@pytest.mark.parametrize("method, settings", LOSSES, ids=["sft", "dpo", "dapo", "grpo", "bnpo", "dr_grpo"])
def test_micro_batches_add_up_to_the_whole(policy, tmp_path, method, settings):
    data = rollouts(policy) if method == "grpo" else GIVEN[method]
    source = task() if method == "grpo" else GIVEN[method]
    settings = settings | {"micro_batch_size": 100, "max_new_tokens": 128, "out": tmp_path / "run"}
    run = getattr(wb, method)(policy.reset(), source, **settings)
    run._ready()  # the reference is that of the beginning; the policy moves away from it
    draw = torch.Generator().manual_seed(5)
    run.engine.state.params = {
        n: p + 0.02 * torch.randn(p.shape, generator=draw).to(p) for n, p in policy.params().items()
    }
    whole = run.gradients(data)
    assert whole.norm() > 1e-3
    tolerance = 5e-6 if next(iter(whole.by_name.values())).dtype == torch.float32 else 1e-10
    for size in (1, 2, 3):
        run.set(micro_batch_size=size)
        parts = run.gradients(data)
        apart = Gradients(0.0, {}, {n: parts.by_name[n] - g for n, g in whole.by_name.items()})
        assert apart.norm() <= tolerance * whole.norm(), size
        assert parts.loss == pytest.approx(whole.loss, rel=tolerance, abs=tolerance / 10)
        for name, value in whole.metrics.items():
            assert parts.metrics[name] == pytest.approx(value, rel=2 * tolerance, abs=2 * tolerance), name
    if method == "grpo":
        assert whole.metrics["clip_ratio/region_mean"] > 0.05 and whole.metrics["kl"] > 0
        assert whole.metrics["completions/clipped_ratio"] == pytest.approx(1 / 3)
    if method == "dpo":
        assert whole.metrics["rewards/margins"] != 0
    run.stop()
    policy.reset()


# -- dropout


def dropping(tmp_path, dropout: float):
    policy = tiny_policy(tmp_path / f"model{dropout}")
    return noisy_adapter(policy.attach(wb.LoRA(r=4, alpha=8, dropout=dropout)))


def start(method: str, policy, tmp_path, **settings):
    """A run that sees the same rows at every step and whose weights stand still."""
    if method == "grpo":
        settings = dict(prompts_per_step=2, group_size=4, max_new_tokens=5) | settings
        source = wb.Task(rows_for("grpo", 2), rewards=[letters])
    else:
        settings, source = dict(batch_size=6) | settings, rows_for(method, 6)
    common = dict(steps=4, lr=0.0, shuffle_dataset=False, out=tmp_path / "run")
    return getattr(wb, method)(policy, source, **common | settings)


def test_dropout_follows_the_step(tmp_path):
    run = start("sft", dropping(tmp_path, 0.3), tmp_path, micro_batch_size=2)
    before = torch.get_rng_state()
    run.run()
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's draws are touched
    first = run.metrics
    assert first.loc[1:, "loss"].nunique() == 4 and first.loc[1:, "grad_norm"].nunique() == 4
    run.rewind(1)
    torch.manual_seed(99)
    run.run()
    assert run.metrics.equals(first)


def test_dropout_follows_the_seed(tmp_path):
    policy = dropping(tmp_path, 0.3)
    losses = []
    for seed in (0, 0, 1):
        run = start("sft", policy.reset(), tmp_path, seed=seed)
        run.run(1)
        losses.append(run.metrics.loc[1, "loss"])
        run.stop()
    assert losses[0] == losses[1] != losses[2]


def test_without_dropout_equal_steps_are_equal(tmp_path):
    run = start("sft", dropping(tmp_path, 0.0), tmp_path)
    run.run(2)
    assert run.metrics.loc[1, "loss"] == run.metrics.loc[2, "loss"]


def test_dpo_runs_without_dropout(tmp_path):
    run = start("dpo", dropping(tmp_path, 0.3), tmp_path)
    run.run(2)
    assert run.metrics.loc[[1, 2], "loss"].tolist() == pytest.approx([np.log(2)] * 2, abs=1e-6)


def test_each_micro_batch_of_a_grpo_step_draws_its_own_dropout(tmp_path, monkeypatch):
    seeds, seeded = [], update.seeded
    monkeypatch.setattr(update, "seeded", lambda seed, device: seeds.append(seed) or seeded(seed, device))
    run = start("grpo", dropping(tmp_path, 0.3), tmp_path, num_iterations=2, micro_batch_size=4)
    run.run(2)
    assert len(set(seeds)) == len(seeds) == 2 * 2 * 2  # steps, passes, micro-batches
    first, again = run.metrics, seeds.copy()
    run.rewind(0)
    run.run(2)
    assert run.metrics.equals(first) and seeds[len(again) :] == again


def test_dropout_is_noticed_where_there_is_any():
    assert not update.has_dropout(torch.nn.Sequential(torch.nn.Dropout(0.0)))
    assert update.has_dropout(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.1)))
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(attention_dropout=0.1)
    assert update.has_dropout(model)
