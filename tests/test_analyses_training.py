"""Learning dynamics and forgetting, on a small model that knows a Markov chain; first-order steps; fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import exact_norms, tiny_policy
from tests.runs import make_run, rows_for
from workbench import keys, tokenise, worker
from workbench.analyses import first_order, fits, paired, probes
from workbench.analyses.forgetting_laws import drift, forgetting_laws, loss
from workbench.analyses.learning_dynamics import learning_dynamics, one_step, turn
from workbench.errors import DataError, SettingError

LETTERS = "abcdefghijklmnop"


def chain(seed: int, *key, length: int = 32) -> str:
    """A text of the Markov chain number `seed`."""
    table = np.random.default_rng(seed).dirichlet(np.full(len(LETTERS), 0.15), size=len(LETTERS)).cumsum(1)
    draws = keys.uniforms(keys.key(seed, *key), length)
    states = [int(draws[0] * len(LETTERS))]
    for draw in draws[1:]:
        states.append(int(np.searchsorted(table[states[-1]], draw * 0.999999)))
    return "".join(LETTERS[state] for state in states)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a model of 2 layers and width 48 that was fitted to chain 0."""
    folder = tmp_path_factory.mktemp("chain")
    policy = tiny_policy(folder / "m", hidden_size=48, intermediate_size=96, initializer_range=0.05)
    rows = [{"text": chain(0, i)} for i in range(64)]
    run = wb.sft(policy, rows, steps=60, batch_size=16, lr=1e-2, out=folder / "run")
    assert [step.metrics["loss"] for step in run][-1] < 1.7
    run.policy.save(folder / "fitted")
    return folder / "fitted"


def load(folder):
    return wb.load(folder, dtype="float32", device="cpu")


# -- learning dynamics ----------------------------------------------------------------------------------------


def test_dpo_squeezes(fitted, tmp_path):
    """Random rejected answers: the margin rises all along, the chosen answers turn down, the argmax climbs."""
    pairs = []
    for i in range(24):
        text = chain(0, "pair", i, length=14)
        random = "".join(LETTERS[int(u * len(LETTERS))] for u in keys.uniforms(keys.key("rejected", i), 8))
        pairs.append({"prompt": text[:6], "chosen": text[6:], "rejected": random})
    how = {"steps": 40, "batch_size": 8, "lr": 0.2, "optim": "sgd", "max_grad_norm": 1e9}
    run = wb.dpo(load(fitted), pairs, out=tmp_path / "run", **how)
    made = learning_dynamics(run, every=4, most=24)
    curves = made["curves"].set_index("step")
    chosen = curves[curves["tag"] == "chosen"]["logprob"].tolist()
    argmax = curves[curves["tag"] == "chosen"]["argmax"].tolist()
    margin = made["margin"]["margin"].tolist()
    assert all(a < b for a, b in zip(margin, margin[1:], strict=False))
    assert max(chosen) > chosen[0] + 0.3 and chosen[-1] < chosen[0] and argmax[-1] > argmax[0] + 2
    assert 0 < made.summary["chosen turns down at step"] < 40 and run.status == "finished"
    assert set(curves["tag"]) == {"chosen", "rejected", "other", "random", "initial"}  # one word each
    assert len(made.figure.layout.shapes) == 2


def test_probes_are_measured_as_the_logits_say(fitted):
    policy = load(fitted)
    rows = [{"prompt": "abc", "response": "def", "tag": "x"}, {"prompt": "a", "response": "gh", "tag": "y"}]
    table = probes.probes(rows)
    one = paired.side(policy)
    sequences, starts = probes.read(one, table)
    found = worker.call(lambda: probes.measured(one, sequences, starts))
    for i, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        logp = policy.logits(torch.tensor([ids]), len(ids))[0].double().log_softmax(-1)[start - 1 : -1]
        p, own = logp.exp(), torch.tensor(ids[start:])[:, None]
        hot = torch.zeros_like(p).scatter(1, own, 1.0)
        top = p.max(1).values
        expected = {
            "logprob": logp.gather(1, own).sum(), "argmax": top.log().sum(), "outside": (1 - top).log().sum(),
            "gap": (1 - p.gather(1, own)).mean(), "distance": (p - hot).norm(dim=1).mean(),
            "entropy": -(p * logp).sum(1).mean(), "tokens": len(own),
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


def test_a_run_that_is_over_is_restored(tmp_path):
    run = make_run("sft", tmp_path, steps=6)
    stepped = learning_dynamics(run, every=2, most=4, max_new_tokens=4)
    metrics = run.metrics.copy()
    again = learning_dynamics(run, every=2, most=4, max_new_tokens=4)
    assert again.frame.equals(stepped.frame) and sorted(set(again.frame["step"])) == [0, 2, 4, 6]
    assert run.metrics.equals(metrics) and "margin" not in again.tables
    fork = run.fork(3, out=tmp_path / "fork")
    assert sorted(set(learning_dynamics(fork, every=2, most=2, max_new_tokens=4).frame["step"])) == [3, 4, 6]
    with pytest.raises(DataError, match="no answers to look at"):
        learning_dynamics(make_run("grpo", tmp_path, out="rl", steps=1))
    with pytest.raises(SettingError, match="Give a run"):
        learning_dynamics(run.policy)
    with pytest.raises(DataError, match="Probe 0 .* empty response"):
        learning_dynamics(run, [probes.Probe("a", "", "x", 0)])


def test_turns():
    steps = np.arange(4)
    assert turn(steps, np.array([0, 2, 1, 0])) == 1
    assert np.isnan(turn(steps, np.array([0, 1, 2, 3]))) and np.isnan(turn(steps, np.array([3, 2, 1, 0])))


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_one_step_is_first_order(method, tmp_path):
    policy = tiny_policy(tmp_path / "m", dtype="float64", lora=True)
    exact_norms(policy)
    run = make_run(method, tmp_path, policy, steps=3)
    rows = rows_for(method)
    before = {name: p.detach().clone() for name, p in policy.trainable().items()}
    made = one_step(run, rows[:3], probes.of_pairs(rows[:3]), lrs=(1e-3, 1e-4, 1e-5))
    table = made.frame.pivot(index=["tag", "row"], columns="lr", values="second")
    largest = table.abs().to_numpy().max()
    assert np.allclose(table[1e-5], table[1e-4], atol=1e-2 * largest) and largest > 0.01
    chosen = made.frame[(made.frame["tag"] == "chosen") & (made.frame["lr"] == 1e-4)]
    assert (chosen["predicted"] > 0).all() and chosen["actual"].tolist() == pytest.approx(
        chosen["predicted"].tolist(), rel=1e-2
    )
    for name, p in policy.trainable().items():
        assert torch.equal(p, before[name]) and p.grad is None
    with pytest.raises(SettingError, match="learning rates above 0"):
        one_step(run, rows[:3], probes.of_pairs(rows[:3]), lrs=(0.0,))


def test_a_k_g_of_a_linear_softmax():
    rng = np.random.default_rng(0)
    w, x, seen = rng.normal(size=(7, 5)), rng.normal(size=5), rng.normal(size=5)
    second = []
    for lr in (1e-2, 1e-3, 1e-4):
        actual, told = (f(w, x, seen, 3, lr) for f in (first_order.actual, first_order.predicted))
        second.append((actual - told) / lr**2)
    assert np.allclose(second[1], second[2], rtol=2e-2) and np.allclose(second[0], second[2], rtol=0.2)
    assert np.abs(second[2]).max() > 0.01


def test_a_push_on_an_unlikely_answer_lifts_the_likeliest_alone():
    z = np.array([6.0, 2.0, 1.0, 0.0, -4.0])
    change = first_order.pushed_down(z, 4, 1.0)
    assert change[0] > 0 and (change[1:] < 0).all() and change[4] == change.min()


# -- forgetting -----------------------------------------------------------------------------------------------


def test_what_is_learnt_is_paid_for(fitted, tmp_path):
    """Trained on another chain at three ranks: forgetting falls in line with the loss, and grows with the rank."""
    texts = [chain(0, "general", i) for i in range(12)]
    rows = [{"text": chain(1, i)} for i in range(48)]
    runs = {}
    for rank in (1, 4, 16):
        policy = load(fitted).attach(wb.LoRA(r=rank, alpha=2 * rank))
        how = {"steps": 20, "batch_size": 8, "lr": 8e-3}
        runs[f"rank {rank}"] = wb.sft(policy, rows[:32], out=tmp_path / str(rank), **how)
    made = forgetting_laws(runs, texts, rows[32:], every=5)
    first, last = (made.frame[made.frame["step"] == step].set_index("run") for step in (0, 20))
    assert (first["kl"] == 0).all() and (first["forgetting"] == first["entropy"]).all()
    laws = made["fits"].set_index("run")
    assert (laws.loc[list(runs), "pearson"] < -0.9).all() and (laws.loc[list(runs), "slope"] < 0).all()
    assert last["forgetting"].is_monotonic_increasing and last["params"].is_monotonic_increasing
    assert {"all", "by parameters"} <= set(laws.index) and len(made.figure.data) >= 9


def test_drift_and_loss_are_those_of_the_logits(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    both, ids = paired.pair(policy), [[5, 6, 7, 8], [9, 8, 7, 6]]
    found = worker.call(drift, both, ids)
    base, tuned = (x[:, :-1].double().log_softmax(-1) for x in both.logits(ids))
    soft, own = -(base.exp() * tuned).sum(-1).mean(), -(base.exp() * base).sum(-1).mean()
    hard = -tuned.gather(-1, base.argmax(-1, keepdim=True)).mean()
    expected = {"forgetting": soft, "entropy": own, "kl": soft - own, "hard": hard}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-5)
    given = [{"prompt": "ab", "completion": "cd"}, {"prompt": "x", "completion": "yz!"}]
    rows = tokenise.fit_rows(given, policy.tokenizer).items
    starts = [row.mask.index(1) for row in rows]
    parts = [row.ids[:start] for row, start in zip(rows, starts, strict=True)]
    said = policy.score(parts, [row.ids[start:] for row, start in zip(rows, starts, strict=True)])
    nll = -np.concatenate(said.logprob).mean()
    assert worker.call(loss, paired.side(policy), rows) == pytest.approx(float(nll), abs=1e-5)


def test_rewards_of_a_run_are_an_axis_too(tmp_path):
    run = make_run("grpo", tmp_path, steps=2)
    made = forgetting_laws(run, ["some general text", "and more of it"], every=1)
    assert made.frame["reward"].notna().sum() == 2 and made.frame["kl"].iloc[-1] > 0
    with pytest.raises(SettingError, match="Did you mean 'reward'"):
        forgetting_laws(run, ["text of it"], metric="rewrad")
    tuned = make_run("sft", tmp_path, out="sft", steps=1)
    with pytest.raises(SettingError, match="Give held-out rows"):
        forgetting_laws(tuned, ["text of it"])
    assert tuned.status == "new"
    with pytest.raises(DataError, match="list of strings"):
        forgetting_laws(run, "text")
    with pytest.raises(DataError, match="two tokens"):
        forgetting_laws(run, ["x"])
    with pytest.raises(SettingError, match="Give a run"):
        forgetting_laws([run.policy], ["text of it"])


def test_fits_find_what_was_planted():
    x = np.array([1, 2, 5, 10, 40, 100.0])
    assert fits.line(x, 3 - 0.5 * x) == pytest.approx({"slope": -0.5, "intercept": 3, "r2": 1, "pearson": -1})
    for c, a, alpha in ((2.0, 1.5, 0.5), (1.0, 3.0, 2.0), (0.5, -0.2, -0.7)):
        found = fits.power_law(x, c - a * x**-alpha)
        assert found == pytest.approx({"c": c, "A": a, "alpha": alpha, "r2": 1}, rel=1e-3)
    assert np.isnan(fits.power_law([0, 1, 2], [1, 2, 3])["alpha"]) and np.isnan(fits.line([1, 1], [2, 3])["slope"])
