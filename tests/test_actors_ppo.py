"""PPO with a value head: hand-worked numbers, a plain computation in float64, the head as part of the State."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from tests.models import exact_norms, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, letters, rows_for, weights
from workbench import optimiser, update
from workbench.errors import SettingError
from workbench.heads import ValueHead
from workbench.launch import launch
from workbench.methods import rl_batch, value_head
from workbench.methods.actors.ppo import PPOSettings, estimate
from workbench.objectives import values

SMALL = dict(steps=3, prompts_per_step=3, group_size=2, max_new_tokens=5, lr=1e-2, seed=3, num_iterations=2)


def t64(rows):
    return torch.tensor(rows, dtype=torch.float64)


# -- the numbers


def test_advantages_from_values():
    reward, value = t64([[0, 0, 1, 7], [2, 9, 9, 9]]), t64([[0.2, 0.4, 0.6, 5], [0.5, 3, 3, 3]])
    mask = t64([[1, 1, 1, 0], [1, 0, 0, 0]])
    made = values.gae(reward, value, mask)
    assert torch.allclose(made, t64([[0.751, 0.58, 0.4, 0], [1.5, 0, 0, 0]]), atol=1e-12)
    # gamma 0.5, lambda 0.5: d = (0.5*0.4-0.2, 0.5*0.6-0.4, 1-0.6) = (0, -0.1, 0.4); A2 = -0.1+0.1 = 0, A1 = 0
    assert torch.allclose(values.gae(reward, value, mask, 0.5, 0.5)[0], t64([0, 0, 0.4, 0]), atol=1e-12)
    # lambda 1: what is still to come, less the value
    assert torch.allclose(values.gae(reward, value, mask, 1.0, 1.0)[0], t64([0.8, 0.6, 0.4, 0]), atol=1e-12)


def test_whitening_counts_masked_tokens_alone():
    made = values.whitened(t64([[1, 2, 3, 100]]), t64([[1, 1, 1, 0]]))
    assert torch.allclose(made, t64([[-1, 0, 1, 0]]), atol=1e-7)  # var with n - 1 is 1
    assert values.whitened(t64([[4, 4]]), t64([[1, 1]])).abs().max() == 0
    assert values.whitened(t64([[4, 9]]), t64([[1, 0]])).abs().max() == 0  # one token: no deviation


def test_the_value_loss_is_clipped_where_that_is_worse():
    value, old, returns = t64([[0.5, 0.5, 0.1]]), t64([[0.0, 0.0, 0.0]]), t64([[1.0, 0.0, 1.0]])
    loss, clipped = values.value_losses(value, old, returns, 0.2)
    # held at 0.2: (0.2-1)^2 = 0.64 > 0.25;  (0.2)^2 = 0.04 < 0.25;  0.1 is within
    assert torch.allclose(loss, t64([[0.32, 0.125, 0.405]])) and clipped.tolist() == [[1, 0, 0]]
    assert torch.allclose(values.value_losses(value, old, returns, None)[0], t64([[0.125, 0.125, 0.405]]))


def test_explained_variance():
    returns, mask = t64([[1, 2, 3, 50]]), t64([[1, 1, 1, 0]])
    assert values.explained_variance(returns, returns, mask) == 1
    assert values.explained_variance(returns, t64([[7, 7, 7, 0]]), mask) == pytest.approx(0)
    assert values.explained_variance(returns, t64([[3, 2, 1, 0]]), mask) == pytest.approx(-3)
    assert np.isnan(values.explained_variance(t64([[2, 2]]), t64([[1, 3]]), t64([[1, 1]])))


def given(rewards, columns, lengths=(3, 2, 2)):
    rollouts = wb.Rollouts.of(["a", "b", "c"], [list(range(n)) for n in lengths], rewards=rewards)
    batch = rl_batch.without_advantages(rollouts, PPOSettings())
    batch.sequences, batch.starts = [[9, *ids] for ids in rollouts.ids], [1, 1, 1]
    batch.columns |= columns
    return rollouts, batch


def test_rewards_of_tokens_and_what_the_batch_is_told():
    """KL 0.5 a token, the reward on the last one, and a row without any reward."""
    columns = {
        "old_logprob": [[-1.0, -1, -2], [-1, -1], [0, 0]],
        "ref_logprob": [[-1.0, -2, -2], [-1, -3], [0, 0]],
        "old_value": [[0.2, 0.4, 0.6], [1.0, 0.0], [0.3, 0.3]],
    }
    rollouts, batch = given([1.0, 2.0, None], columns)
    shown = estimate(batch, rollouts, PPOSettings(beta=0.5, normalize_advantages=False))
    # r = (0, -0.5, 1) and (0, 2 - 1): d = (0.2, -0.3, 0.4) and (-1, 1)
    first = [0.2 + 0.95 * (-0.3 + 0.95 * 0.4), -0.3 + 0.95 * 0.4, 0.4]
    assert batch.columns["advantage"][0] == pytest.approx(first) and batch.columns["advantage"][2] == [0, 0]
    assert batch.columns["advantage"][1] == pytest.approx([-1 + 0.95, 1])
    assert batch.columns["return"][0] == pytest.approx([first[0] + 0.2, first[1] + 0.4, 1.0])
    assert batch.columns["valued"] == [1, 1, 0]
    assert rollouts.advantage == pytest.approx([np.mean(first), 0.475, 0])
    returns = np.array([*batch.columns["return"][0], *batch.columns["return"][1]])
    error = returns - np.array([0.2, 0.4, 0.6, 1.0, 0.0])
    assert shown["explained_variance"] == pytest.approx(1 - error.var() / returns.var())
    assert shown["value"] == pytest.approx(2.8 / 7)


# -- loss and gradients


def plain_loss(model, head, batch, settings):
    """Everything from one forward of each row alone: log-probs, values before each token, the loss."""
    terms, worth, entropy = [], [], []
    for i, (ids, start) in enumerate(zip(batch.sequences, batch.starts, strict=True)):
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        before = slice(start - 1, len(ids) - 1)
        logp = torch.log_softmax(out.logits[0, before], -1)
        entropy.append(-(logp.exp() * logp).sum(-1).detach())
        logp = logp[torch.arange(len(ids) - start), torch.tensor(ids[start:])]
        value = out.hidden_states[-1][0, before] @ head.weight + head.bias
        column = {name: t64(batch.columns[name][i]) for name in ("old_logprob", "advantage", "old_value", "return")}
        ratio = (logp - column["old_logprob"]).exp()
        clipped = ratio.clamp(0.8, 1.2)
        terms.append(-torch.minimum(ratio * column["advantage"], clipped * column["advantage"]))
        held = torch.minimum(torch.maximum(value, column["old_value"] - 0.2), column["old_value"] + 0.2)
        ret = column["return"]
        worth.append(0.5 * torch.maximum((value - ret) ** 2, (held - ret) ** 2))
    known = torch.cat(entropy)
    least = torch.quantile(known, 1 - settings.top_entropy_quantile)
    assert settings.top_entropy_quantile == 1 or (known < least).sum() > 2
    terms = [part * (mine >= least) for part, mine in zip(terms, entropy, strict=True)]
    if settings.loss_type == "bnpo":
        return torch.cat(terms).mean() + settings.vf_coef * torch.cat(worth).mean()
    rows = [torch.stack([part.mean() for part in parts]).mean() for parts in (terms, worth)]
    return rows[0] + settings.vf_coef * rows[1]


@pytest.mark.parametrize(
    "changes",
    [{}, {"loss_type": "grpo", "vf_coef": 5.0}, {"top_entropy_quantile": 0.7}],
    ids=["tokens", "rows", "coupled"],
)
def test_loss_and_gradients_are_those_of_a_plain_computation(tmp_path, changes):
    policy = tiny_policy(tmp_path / "model", lora=True, dtype="float64")
    exact_norms(policy)
    settings = PPOSettings(**{"vf_coef": 0.7} | changes)
    draw = torch.Generator().manual_seed(2)
    head = ValueHead(*(nn.Parameter(0.1 * torch.randn(s, generator=draw, dtype=torch.float64)) for s in ((32,), ())))
    prompt = [5, 6, 7, 8, 9]
    lengths, starts = (3, 5, 2, 4), [5, 5, 5, 2]
    sequences = [
        prompt[:s] + [20 + 7 * i + j for j in range(n)] for i, (n, s) in enumerate(zip(lengths, starts, strict=True))
    ]
    batch = update.Batch(sequences, starts)
    with torch.no_grad():
        now = policy.token_scores(sequences, starts, value=head)
    for name, base in (
        ("old_logprob", now.logprob),
        ("old_value", now.value),
        ("return", now.value),
        ("advantage", 0 * now.value),
    ):
        noise = {"advantage": 1.0, "return": 1.0}.get(name, 0.3) * torch.randn(
            base.shape, generator=draw, dtype=torch.float64
        )
        batch.columns[name] = [row[:n].tolist() for row, n in zip(base + noise, lengths, strict=True)]
    batch.columns |= {"keep": [1.0] * 4, "valued": [1.0] * 4}
    totals = rl_batch.totals_of(batch, batch, 1, settings)
    seen = []
    for micro in ([[0, 1, 2, 3]], [[3], [0, 2], [1]]):
        outcome = update.gradients(policy, batch, values.objective(settings), totals, micro_batches=micro, value=head)
        grads = {name: p.grad.clone() for name, p in policy.trainable().items()} | {
            name: p.grad.clone() for name, p in value_head.named(head).items()
        }
        seen.append((outcome.loss, grads))
    policy.model.zero_grad()
    head.weight.grad = head.bias.grad = None
    loss = plain_loss(policy.model, head, batch, settings)
    loss.backward()
    wanted = {name: p.grad for name, p in policy.trainable().items()} | {
        n: p.grad for n, p in value_head.named(head).items()
    }
    for made, grads in seen:
        assert made == pytest.approx(float(loss.detach()), rel=1e-10)
        for name, grad in wanted.items():
            assert (grads[name] - grad).norm() <= 1e-9 * grad.norm(), name
    assert wanted["value/weight"].norm() > 1e-3


def test_a_detached_head_leaves_the_policy_alone(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    head = ValueHead(nn.Parameter(torch.ones(32)), nn.Parameter(torch.zeros(())), detached=True)
    scores = policy.token_scores([[1, 2, 3, 4]], [2], value=head)
    assert scores.value.shape == (1, 2)
    scores.value.sum().backward()
    assert head.weight.grad is not None and all(p.grad is None for p in policy.trainable().values())


# -- runs


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


@pytest.fixture
def make_run(policy, tmp_path):
    def made(method="ppo", out="run", rewards=(letters,), **settings):
        policy.reset()
        task = wb.Task(rows_for("grpo"), rewards=list(rewards))
        return launch(method, policy, task, tmp_path / out, None, SMALL | settings, None)

    return made


def head_of(run):
    return {name: run.engine.state.tensors[name].clone() for name in ("value/weight", "value/bias")}


def test_without_values_it_is_a_plain_policy_gradient(make_run):
    """gamma = lambda = 1, a head that says 0 and no whitening: A is the reward of the completion."""
    plain = dict(advantage_estimator="none", loss_type="bnpo", steps=1, beta=0.0, optim="sgd")
    ours = make_run(lam=1.0, vf_coef=0.0, normalize_advantages=False, kl_in_reward=False, **plain)
    base = make_run("grpo", "base", **plain)
    start = weights(ours)
    (one,), (other,) = list(ours), list(base)
    change = sum(float((weights(base)[n] - start[n]).norm() ** 2) for n in start) ** 0.5
    apart = sum(float((weights(base)[n] - weights(ours)[n]).norm() ** 2) for n in start) ** 0.5
    assert change > 0 and apart < 5e-6 * change
    assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-5)


def test_the_head_goes_back_and_forth_with_the_run(make_run, policy, tmp_path):
    run = make_run()
    heads, all_weights = [], []
    for _ in run:
        heads.append(head_of(run))
        all_weights.append(weights(run))
    assert not torch.equal(heads[0]["value/weight"], heads[1]["value/weight"])
    assert "value/weight" in next(iter(run.engine.state.optim.values()))
    moved = run.engine.state.optim["adamw"]["value/weight"]["step"]
    run.engine.memory.clear()  # so that the steps are replayed
    run.rewind(1)
    assert_same_weights(head_of(run), heads[0])
    run.run()
    assert_same_weights(head_of(run), heads[2])
    assert_same_weights(weights(run), all_weights[2])
    assert torch.equal(run.engine.state.optim["adamw"]["value/weight"]["step"], moved)
    fork = run.fork(2, out=tmp_path / "fork")
    next(iter(fork))
    assert_same_weights(head_of(fork), heads[2])
    run.stop()
    again = wb.resume(tmp_path / "run", policy=policy, rewards=[letters])
    assert_same_weights(head_of(again), heads[2])


def test_a_restarted_generator_gives_the_same(make_run):
    run, other = make_run(), make_run(out="other")
    run.run()
    for _ in other:
        other.engine._loop = None
    assert_same_weights(head_of(other), head_of(run))
    assert_same_metrics(run.metrics, other.metrics)


def test_what_is_saved_knows_nothing_of_the_head(make_run, policy, tmp_path):
    from safetensors import safe_open

    run = make_run(steps=1)
    run.run()
    run.save(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert not any("value" in name for name in file.keys())
    assert not any("value" in name for name in policy.trainable())


def test_in_the_warm_up_only_the_head_moves(make_run):
    run = make_run(value_warmup_steps=1, value_lr=0.5)
    before = weights(run)
    steps = iter(run)
    next(steps)
    assert_same_weights(weights(run), before)
    assert head_of(run)["value/weight"].abs().max() > 0.1  # at a learning rate of its own
    next(steps)
    assert any(not torch.equal(weights(run)[name], before[name]) for name in before)


def fine(completions, **kwargs):
    return [1.0] * len(completions)


def test_the_head_learns_what_to_expect(make_run):
    run = make_run(rewards=(fine,), steps=15, beta=0.0, kl_in_reward=False, value_lr=0.05, lr=0.0, vf_coef=1.0)
    run.run()
    assert run.metrics["value"].iloc[1] == 0 and run.metrics["value"].iloc[-1] == pytest.approx(1, abs=0.15)
    assert run.metrics["value_loss"].iloc[-1] < 0.1 * run.metrics["value_loss"].iloc[1]


def test_clipping_takes_policy_and_head_together(policy):
    policy.reset()
    head = value_head.of(None, policy)
    for p in (*policy.trainable().values(), head.weight, head.bias):
        p.grad = torch.full_like(p, 0.01)
    count = sum(p.numel() for p in (*policy.trainable().values(), head.weight, head.bias))
    state = value_head_state(policy)
    how = PPOSettings(optim="sgd", lr=1.0, max_grad_norm=0.5)
    made = update.apply(policy, state, how, 1, beside=value_head.named(head))
    assert made["grad_norm"] == pytest.approx(0.01 * count**0.5, rel=1e-5)
    assert state.tensors["value/bias"] == pytest.approx(-0.5 / count**0.5, rel=1e-4)
    assert optimiser.OPTIMISERS["sgd"].slots in state.optim
    policy.reset()


def value_head_state(policy):
    from workbench.state import State, clone

    state = State(clone(policy.params()))
    policy.hold(state.params, "test")
    return state


def test_settings_and_models_that_do_not_go(make_run, tmp_path):
    with pytest.raises(SettingError, match="advantage_estimator='group' is not known"):
        make_run(advantage_estimator="group")
    with pytest.raises(SettingError, match="vf_coef=-1"):
        make_run(vf_coef=-1)
    peft = pytest.importorskip("peft")
    whole = tiny_policy(tmp_path / "other")
    whole.attach(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    task = wb.Task(rows_for("grpo"), rewards=[letters])
    run = launch("ppo", whole, task, tmp_path / "cut", None, SMALL, None)
    with pytest.raises(SettingError, match="A value head reads the hidden states"):
        run.run()
    assert run.engine.state.step == 0
