"""KTO: the losses by hand, labelled rows, the baseline, micro-batches, and time."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import WORDS, assert_same_metrics, assert_same_weights, weights
from workbench.errors import DataError, SettingError
from workbench.labelled import labelled
from workbench.methods import kto
from workbench.objectives import finish
from workbench.objectives.unpaired import UNPAIRED, unpaired
from workbench.run import Gradients
from workbench.scoring import TokenScores
from workbench.settings import make


def numbers(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# -- by hand


def test_losses_by_hand():
    h, s = numbers(1.2, -0.8), numbers(1, -1)
    assert UNPAIRED["kto"].function(h, s, 0.3, 0.1).tolist() == pytest.approx([0.47752, 0.47253], abs=5e-6)
    # without a baseline: 1 - sigmoid(0.12) and sigmoid(-0.08); z is not read
    expected = [1 - sigmoid(0.12), sigmoid(-0.08)]
    assert UNPAIRED["apo_zero_unpaired"].function(h, s, 99.0, 0.1).tolist() == pytest.approx(expected)


def given(labels):
    """Three answers with log-ratios 1.2 (two tokens), -0.8 and 0.5, and their columns."""
    logprob = numbers([-0.3, -0.5], [-2.8, -9], [-1.5, -9]).requires_grad_()
    mask = torch.tensor([[1, 1], [1, 0], [1, 0]]).bool()
    entropy = numbers([1, 2], [3, 50], [6, 50])
    scores = TokenScores(logprob, entropy, mask, mask)
    return scores, {"ref_logprob": numbers([-1, -1], [-2, -7], [-2, -7]), "desirable": numbers(*labels)}


SETTINGS = dict(loss_type="kto", beta=0.1, desirable_weight=1.5, undesirable_weight=0.5)


def test_the_objective_by_hand():
    scores, columns = given([1, 0, 1])
    loss, metrics = unpaired(scores, columns, {"rows": 3.0, "kl": 0.3}, **SETTINGS)
    each = [1 - sigmoid(0.1 * 0.9), 1 - sigmoid(0.1 * 1.1), 1 - sigmoid(0.1 * 0.2)]
    assert loss.item() == pytest.approx((1.5 * each[0] + 0.5 * each[1] + 1.5 * each[2]) / 3)
    assert finish(metrics) == pytest.approx({
        "rewards/chosen": 0.1 * (1.2 + 0.5) / 2, "rewards/rejected": -0.08,
        "logps/chosen": (-0.8 - 1.5) / 2, "logps/rejected": -2.8, "entropy": 12 / 4,
    })  # fmt: skip
    loss.backward()
    slope = -1.5 * 0.1 * sigmoid(0.09) * (1 - sigmoid(0.09)) / 3
    assert scores.logprob.grad[0].tolist() == pytest.approx([slope, slope])
    assert scores.logprob.grad[1, 0] > 0 and scores.logprob.grad[1, 1] == 0


def test_a_batch_of_one_label():
    scores, columns = given([1, 1, 1])
    _, metrics = unpaired(scores, columns, {"rows": 3.0, "kl": 0.0}, **SETTINGS)
    assert math.isnan(finish(metrics)["rewards/rejected"])


# -- rows


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model") / "model", lora=True)


def row(label, **more) -> dict:
    return {"prompt": "Say 1:", "completion": " one", "label": label} | more


@pytest.mark.parametrize("good, bad", [(True, False), (1, 0), (1.0, 0.0), (np.bool_(True), np.int64(0))])
def test_labels_that_pass(policy, good, bad):
    made = labelled([row(good), row(bad)], policy.tokenizer)
    assert [item.desirable for item in made.items] == [True, False]
    assert made.report.rows == made.report.kept == 2


@pytest.mark.parametrize(
    "label, said",
    [
        ("good", "'good'"),
        (None, "missing"),
        (float("nan"), "missing"),
        (2, "'2'"),
        ([True], "True"),
        ("True", "'True'"),
    ],
    ids=str,
)
def test_labels_that_do_not(policy, label, said):
    with pytest.raises(DataError, match=f"row 1 .*column 'label' is.*{said}.*True or False"):
        labelled([row(True), row(label)], policy.tokenizer)


def test_rows_without_labels(policy, tmp_path):
    with pytest.raises(DataError, match="row column 'label'.*Is it the row column 'labels'"):
        labelled([{"prompt": "a", "completion": "b", "labels": 1}], policy.tokenizer)
    with pytest.raises(DataError, match=r"row 1 .*column 'label' is missing"):
        labelled([row(True), {"prompt": "a", "completion": "b"}], policy.tokenizer)
    with pytest.raises(DataError, match="needs the row column 'completion'"):
        wb.kto(policy, [{"prompt": "a"}], out=tmp_path / "run")


def test_pairs_become_two_rows_each(policy):
    rows = [{"prompt": f"Say {i}:", "chosen": f" {WORDS[i]}", "rejected": f" not {WORDS[i]}"} for i in range(3)]
    made = labelled(rows, policy.tokenizer)
    assert [item.desirable for item in made.items] == [True] * 3 + [False] * 3
    assert [item.row for item in made.items] == [0, 1, 2, 0, 1, 2]
    decode = policy.tokenizer.decode
    assert decode(made.items[4].prompt) == "Say 1:" and decode(made.items[4].completion) == " not green<eos>"
    shared = [{"chosen": "Say 1: one", "rejected": "Say 1: two"}]  # the prompt is what both begin with
    assert [decode(item.prompt) for item in labelled(shared, policy.tokenizer).items] == ["Say 1:"] * 2


def test_conversations(policy):
    talk = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]}
    item = labelled([talk | {"label": False}], policy.tokenizer).items[0]
    assert policy.tokenizer.decode(item.completion) == "Ho<end>" and not item.desirable


def test_long_rows_are_cut_or_dropped(policy):
    rows = [row(True), row(False, prompt="Say it at length:"), row(False, completion=" one two three")]
    made = labelled(rows, policy.tokenizer, max_length=12)
    assert [item.row for item in made.items] == [0, 2]
    assert (made.report.count("prompt_too_long"), made.report.count("cut")) == (1, 1)


@pytest.mark.parametrize(
    "labels, settings, said",
    [
        ([1, 0], {}, None),
        ([1] * 4 + [0] * 3, {}, None),  # 4/3
        ([1] * 3 + [0], {}, r"3 desirable rows of weight 1 stand against 1 others of weight 1: a share of 3"),
        ([1] * 3 + [0], {}, r"desirable_weight between 0.333 and 0.444, or undesirable_weight between 2.25 and 3"),
        ([1] * 3 + [0], {"undesirable_weight": 2.5}, None),
        ([1, 0, 0], {}, "a share of 0.5"),
        ([1, 1], {}, "All rows have one label"),
    ],
)
def test_weights_out_of_balance_are_named_with_numbers(policy, labels, settings, said):
    import re

    settings = make("kto", settings)
    told = kto.notice(kto.prepare(policy.tokenizer, [row(label) for label in labels], settings), settings)
    assert told is None if said is None else re.search(said, told)


def test_the_warning_comes_with_the_launch_and_not_for_held_out_rows(policy, tmp_path):
    rows = [row(True), row(True), row(False)]
    with pytest.warns(UserWarning, match="wb.kto: 2 desirable rows.*a share of 2"):
        wb.kto(policy, rows, out=tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wb.kto(policy, rows[1:], eval_dataset=rows, out=tmp_path / "b")


@pytest.mark.parametrize(
    "given, said",
    [
        ({"batch_size": 1}, "batch_size of at least 2"),
        ({"beta": 0}, "beta=0.0 must be above 0"),
        ({"desirable_weight": -1}, "desirable_weight=-1.0 must be at least 0"),
        ({"desirable_weight": 0, "undesirable_weight": 0}, "both 0"),
        ({"loss_type": "ktoo"}, "Did you mean 'kto'"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "precompute_ref_log_probs=False"),
    ],
    ids=str,
)
def test_settings_that_do_not_go(given, said):
    with pytest.raises(SettingError, match=said):
        make("kto", given)
    assert make("kto", {"batch_size": 1, "loss_type": "apo_zero_unpaired"}).batch_size == 1


# -- the baseline


ROWS = [
    {"prompt": f"Say {i}:", "completion": f" {WORDS[i % 10]}" * (1 + i % 3), "label": i % 3 != 1} for i in range(9)
]  # fmt: skip


def moved(policy, sign: int) -> dict[str, torch.Tensor]:
    """The policy a little way off; one of the two signs makes given answers likelier, the other less likely."""
    draw = torch.Generator().manual_seed(5)
    return {n: p + sign * 0.01 * torch.randn(p.shape, generator=draw).to(p) for n, p in policy.params().items()}


def quiet(policy, rows, out, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return wb.kto(policy.reset(), rows, out=out, **settings)


def test_the_baseline_is_the_mean_log_ratio_of_prompts_with_the_answer_before(policy, tmp_path):
    run = quiet(policy, ROWS[:3], tmp_path / "run")
    run._ready()
    start = {n: p.clone() for n, p in policy.params().items()}
    tokens = [(policy.tokenizer(r["prompt"])["input_ids"], policy.tokenizer(r["completion"] + "<eos>")["input_ids"])
              for r in ROWS[:3]]  # fmt: skip
    prompts, answers = [p for p, _ in tokens], [tokens[i - 1][1] for i in range(3)]

    def summed(params):
        with policy.holding(params):
            return [float(row.sum()) for row in policy.score(prompts, answers).logprob]

    seen = []
    for sign in (1, -1):
        now = moved(policy.reset(), sign)
        expected = np.mean([a - b for a, b in zip(summed(now), summed(start), strict=True)])
        run.engine.state.params = now
        seen.append(run.gradients(ROWS[:3]).metrics["kl"])
        assert seen[-1] == pytest.approx(max(0.0, expected), rel=1e-5, abs=1e-5)
    assert min(seen) == 0 and max(seen) > 0.01
    with pytest.raises(DataError, match="two rows or more"):
        run.gradients(ROWS[:1])
    policy.reset()


@pytest.mark.parametrize("dtype, tolerance", [("float32", 5e-6), ("float64", 1e-10)])
def test_micro_batches_do_not_change_it(tmp_path, dtype, tolerance):
    policy = tiny_policy(tmp_path / "model", lora=True, dtype=dtype)
    run = quiet(policy, ROWS, tmp_path / "run", beta=0.5, desirable_weight=0.7)
    run._ready()
    run.set(micro_batch_size=100)
    for sign in (1, -1):
        run.engine.state.params = moved(policy.reset(), sign)
        found = run.gradients(ROWS)
        if found.metrics["kl"] > 0:
            break
    assert found.metrics["kl"] > 0.01 and found.norm() > 1e-3
    for size in (1, 4):
        run.set(micro_batch_size=size)
        parts = run.gradients(ROWS)
        apart = Gradients(0.0, {}, {n: parts.by_name[n] - g for n, g in found.by_name.items()})
        assert apart.norm() <= tolerance * found.norm(), size
        for name, value in found.metrics.items():
            assert parts.metrics[name] == pytest.approx(value, rel=2 * tolerance, abs=2 * tolerance), name


def test_a_step_of_one_label_has_no_metrics_of_the_other(policy, tmp_path):
    rows = [row(True), row(True, completion=" uno"), row(False), row(False, completion=" due")]
    run = quiet(policy, rows, tmp_path / "run", batch_size=2, shuffle_dataset=False, steps=2, eval_dataset=rows)
    run.run()
    assert "rewards/rejected" not in run.store.step_metrics(1) and "rewards/margins" not in run.store.step_metrics(1)
    assert "rewards/chosen" not in run.store.step_metrics(2) and "logps/rejected" in run.store.step_metrics(2)
    assert "eval/rewards/margins" in run.store.step_metrics(2) and "eval/kl" in run.store.step_metrics(2)


# -- time


def make_run(folder, **settings):
    policy = tiny_policy(folder / "model", lora=True)
    common = dict(steps=6, lr=1e-2, seed=3, snapshot_steps=3, batch_size=4, micro_batch_size=2)
    return quiet(policy, ROWS, folder / "run", **common | settings)


SYNC = dict(sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=2)


@pytest.fixture(scope="module", params=[{}, SYNC, {"precompute_ref_log_probs": True}], ids=["fixed", "sync", "kept"])
def whole(request, tmp_path_factory):
    """A run that nothing happened to, and its settings."""
    run = make_run(tmp_path_factory.mktemp("whole"), **request.param)
    list(run)
    return run, request.param


@pytest.mark.parametrize("what", ["replay", "resume"])
def test_time_is_bit_equal(whole, what, tmp_path):
    expected, settings = whole
    run = make_run(tmp_path, **settings)
    if what == "replay":
        list(run)
        run.engine.memory.clear()
        run.rewind(5)  # steps 4 and 5 come again, from the snapshot of step 3
    else:
        run.run(4)
        run.stop()
        run = wb.resume(run.folder)
    list(run)
    assert_same_metrics(run.metrics, expected.metrics)
    assert_same_weights(weights(run), weights(expected))
    assert expected.metrics["kl"].max() > 0


def test_kto_learns_which_answers_are_wanted(policy, tmp_path):
    rows = [row(True, prompt=f"{i}?", completion=" yes") for i in range(6)]
    rows += [row(False, prompt=f"{i}?", completion=" no!") for i in range(6)]
    run = wb.kto(policy.reset(), rows, steps=25, batch_size=6, lr=1e-2, beta=0.5, out=tmp_path / "run")
    run.run()
    assert run.metrics["rewards/margins"].iloc[-1] > 1 and run.metrics["loss"].iloc[-1] < 0.4
    policy.reset()
