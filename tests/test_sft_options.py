"""Options of supervised fine-tuning: losses, weights, reductions, dropout, recomputing; by hand and against TRL."""

from __future__ import annotations

import contextlib
import math
import warnings
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.models import KINDS, noisy_adapter, tiny_policy, tiny_tokenizer
from tests.runs import assert_same_metrics, assert_same_weights, make_run, weights
from tests.test_parity import ROWS, distance, home, policy, their_gradients, trainer  # noqa: F401
from workbench import recompute, tokenise, update
from workbench.data import make as make_rows
from workbench.errors import DataError, SettingError
from workbench.methods import sft
from workbench.objectives import finish
from workbench.objectives.supervised import LOSSES, REDUCTIONS, weighted
from workbench.scoring import TokenScores
from workbench.settings import make

# -- losses and reductions by hand


def scores() -> TokenScores:
    """Two rows of tokens with probabilities 1/2, 1/4, 1/8 and 1/2, 1; a vocabulary of two."""
    logprob = torch.log(torch.tensor([[1 / 2, 1 / 4, 1 / 8], [1 / 2, 1.0, 1.0]], dtype=torch.float64))
    other = torch.log(torch.tensor([[1 / 2, 3 / 4, 7 / 8], [1 / 2, 1e-3, 1.0]], dtype=torch.float64))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return TokenScores(
        logprob.requires_grad_(), torch.ones_like(mask).double(), mask, mask, mean_logprob=(logprob + other) / 2
    )


WEIGHT = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
TOTALS = {"tokens": 4.0, "weight": 4.5, "rows": 2.0}
LN2 = math.log(2)


def loss_of(**how) -> tuple[float, dict[str, float], torch.Tensor]:
    made = scores()
    loss, metrics = weighted(made, {"weight": WEIGHT}, TOTALS, **how)
    (grad,) = torch.autograd.grad(loss, made.logprob)
    return float(loss.detach()), finish({n: (float(a), float(b)) for n, (a, b) in metrics.items()}), grad


def test_reductions_by_hand():
    # w * nll: 2 * ln2, context, 3 ln2; 0.5 ln2, 0
    assert loss_of()[0] == pytest.approx(5.5 * LN2 / 4)
    assert loss_of(reduction="weight")[0] == pytest.approx(5.5 * LN2 / 4.5)
    assert loss_of(reduction="row")[0] == pytest.approx((5 * LN2 / 2 + 0.5 * LN2 / 2) / 2)
    assert set(REDUCTIONS) == {"token", "weight", "row"}
    metrics = loss_of()[1]
    assert metrics["nll"] == pytest.approx(5 * LN2 / 4) and metrics["mean_token_accuracy"] == 1.0


def test_dft_by_hand():
    loss, metrics, grad = loss_of(loss_type="dft")
    assert loss == pytest.approx((2 * LN2 / 2 + 3 * LN2 / 8 + 0.5 * LN2 / 2) / 4)
    # the gradient of log p is -w p / 4: none flows through the factor p
    torch.testing.assert_close(
        grad, -torch.tensor([[2 / 2, 0, 1 / 8], [0.5 / 2, 1.0, 0]], dtype=torch.float64) / 4
    )
    assert metrics["nll"] == pytest.approx(5 * LN2 / 4)


def test_label_smoothing_by_hand():
    made = scores()
    smooth = -(WEIGHT * made.mean_logprob).sum().item()
    assert loss_of(smoothing=0.1)[0] == pytest.approx((0.9 * 5.5 * LN2 + 0.1 * smooth) / 4)
    assert loss_of(smoothing=0.0)[0] == loss_of()[0]


def test_every_loss_has_a_formula_and_a_source():
    assert set(LOSSES) == {"nll", "dft"}
    assert all(row.formula and row.paper for row in LOSSES.values())


# -- losses against TRL


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}, {"packing": True, "max_length": 40}],
    ids=["dft", "smoothing", "packing"],
)
def test_losses_and_gradients_are_those_of_trl(home, policy, tmp_path, settings):  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer("SFT", home, ROWS, per_device_train_batch_size=8, **settings)
        inputs = next(iter(made.get_train_dataloader()))
    theirs = their_gradients(made, inputs, num_items_in_batch=made._get_num_items_in_batch([inputs], "cpu"))
    run = wb.sft(policy, ROWS, out=tmp_path / "run", **settings)
    ours = run.gradients(ROWS)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert distance(ours.by_name, theirs.by_name) <= 1e-5
    for name in ("entropy", "mean_token_accuracy"):
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-5)
    plain = wb.sft(policy.reset(), ROWS, out=tmp_path / "plain").gradients(ROWS)
    assert ours.metrics["nll"] == pytest.approx(plain.loss, rel=1e-5)
    if "packing" not in settings:
        assert distance(ours.by_name, plain.by_name) > 0.01


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.2}], ids=["dft", "smoothing"])
def test_micro_batches_add_up_to_the_whole(tmp_path, loss, reduction):
    rows = [
        {"prompt": f"Say {i}:", "completion": " ab" * (1 + 5 * i % 7), "weight": 0.25 + i % 3} for i in range(7)
    ]
    policy = tiny_policy(tmp_path / "model", lora=True)  # noqa: F811
    run = wb.sft(policy, rows, out=tmp_path / "run", loss_reduction=reduction, micro_batch_size=100, **loss)
    whole = run.gradients(rows)
    for size in (1, 3):
        parts = run.set(micro_batch_size=size).gradients(rows)
        assert distance(parts.by_name, whole.by_name) <= 5e-6
        assert parts.loss == pytest.approx(whole.loss, rel=5e-6)
        assert parts.metrics["nll"] == pytest.approx(whole.metrics["nll"], rel=5e-6)


# -- weights


CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two", "weight": 0},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four", "weight": 2.5},
    {"role": "user", "content": "five"},
    {"role": "assistant", "content": "six", "weight": None},
]


def trained(example: tokenise.Example, tokenizer) -> list[tuple[str, float]]:
    """The trained text of each weight, in order."""
    found: list[tuple[str, float]] = []
    for token, mask, weight in zip(example.ids, example.mask, example.weight, strict=True):
        if mask:
            text = tokenizer.decode([token])
            if found and found[-1][1] == weight:
                found[-1] = (found[-1][0] + text, weight)
            else:
                found.append((text, weight))
    return found


def test_a_weight_per_row():
    rows = [{"prompt": "a", "completion": "b", "weight": w} for w in (1, 0.5, 0)] + [{"prompt": "a", "completion": "c"}]
    made = tokenise.fit_rows(rows, tiny_tokenizer())
    assert [trained(item, tiny_tokenizer()) for item in made.items] == [
        [("b<eos>", 1.0)], [("b<eos>", 0.5)], [("c<eos>", 1.0)]
    ]  # fmt: skip
    assert made.report.count("empty") == 1 and made.report.weights == (0.5, 1.0)
    assert "weights of trained tokens from 0.5 to 1" in made.report.lines()
    assert tokenise.fit_rows(rows[:1], tiny_tokenizer()).report.ok


def test_a_weight_per_message():
    made = tokenise.fit_rows([{"messages": CHAT, "weight": 2}], tiny_tokenizer(), assistant_only_loss=True)
    assert trained(made.items[0], tiny_tokenizer()) == [("four<end>", 5.0), ("six<end>", 2.0)]
    split = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    made = tokenise.fit_rows([split], tiny_tokenizer(), assistant_only_loss=True)
    assert trained(made.items[0], tiny_tokenizer()) == [("four<end>", 2.5), ("six<end>", 1.0)]


def test_a_weight_per_segment():
    segments = [
        {"text": "Q: x ", "train": False},
        {"text": "A:", "weight": 0.5},
        {"text": " why", "weight": 0},
        {"text": " so<eos>", "train": True, "weight": 3, "role": "assistant"},
    ]
    rows = make_rows([{"segments": segments, "weight": 2.0}])
    assert rows.form == "segments" and not rows.conversational
    made = tokenise.fit_rows(rows, tiny_tokenizer())
    assert trained(made.items[0], tiny_tokenizer()) == [("A:", 1.0), (" so<eos>", 6.0)]
    assert "Q: x A: why so" in tiny_tokenizer().decode(made.items[0].ids)


@pytest.mark.parametrize(
    "row, said",
    [
        ({"prompt": "a", "completion": "b", "weight": -1}, "row 1 .*column 'weight' is -1; it must be a finite number"),
        ({"prompt": "a", "completion": "b", "weight": math.nan}, "row 1 .*column 'weight' is nan"),
        ({"prompt": "a", "completion": "b", "weight": math.inf}, "row 1 .*column 'weight' is inf"),
        ({"prompt": "a", "completion": "b", "weight": "70 kg"}, "'70 kg', not a number.*give it another name"),
        ({"prompt": "a", "completion": "b", "weight": True}, "True, not a number"),
    ],
)
def test_wrong_weights_of_rows_name_the_row(row, said):
    with pytest.raises(DataError, match=said):
        tokenise.fit_rows([{"prompt": "a", "completion": "b"}, row], tiny_tokenizer())


@pytest.mark.parametrize(
    "message, assistant_only, said",
    [
        ({"role": "assistant", "content": "b", "weight": -0.5}, True, "row 1 .*'weight' of message 1 is -0.5"),
        ({"role": "assistant", "content": "b", "weight": 0.5}, False, "row 1.*needs assistant_only_loss=True"),
        ({"role": "user", "content": "b", "weight": 0.5}, True, "message 1 .user. has a weight; only the assistant"),
    ],
)
def test_wrong_weights_of_messages_name_the_message(message, assistant_only, said):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": chat}, {"messages": [chat[0], message, chat[1]]}]
    with pytest.raises(DataError, match=said):
        tokenise.fit_rows(rows, tiny_tokenizer(), assistant_only_loss=assistant_only)


@pytest.mark.parametrize(
    "segments, said",
    [
        ([], "not a list of segments"),
        ("text", "not a list of segments"),
        ([{"txt": "a"}], "row 0 .*segment 0 has no 'text'"),
        ([{"text": "a", "wieght": 1}], "'wieght' is none of text, train, weight, role. Did you mean 'weight'"),
        ([{"text": "a", "train": 1.5}], "'train' is 1.5; give True or False"),
        ([{"text": "a"}, {"text": "b", "weight": math.nan}], "row 0 .*'weight' of segment 1 is nan"),
    ],
)
def test_wrong_segments(segments, said):
    with pytest.raises(DataError, match=said):
        tokenise.fit_rows([{"segments": segments}], tiny_tokenizer())


def test_weights_reach_the_loss(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)  # noqa: F811
    run = wb.sft(policy, ROWS, out=tmp_path / "run")
    heavy = [row | {"weight": 3.0 if i == 2 else 1.0} for i, row in enumerate(ROWS)]
    count = [len(policy.tokenizer(row["completion"])["input_ids"]) + 1 for row in ROWS]
    each = [run.gradients([row]).loss for row in ROWS]
    by_hand = sum(w * n * loss for w, n, loss in zip([1, 1, 3, 1, 1, 1], count, each, strict=True))
    assert run.gradients(heavy).loss == pytest.approx(by_hand / sum(count), rel=1e-5)
    run.set(loss_reduction="weight")
    assert run.gradients(heavy).loss == pytest.approx(by_hand / (sum(count) + 2 * count[2]), rel=1e-5)
    run.set(loss_reduction="row")
    rows = sum(w * loss for w, loss in zip([1, 1, 3, 1, 1, 1], each, strict=True)) / 6
    assert run.gradients(heavy).loss == pytest.approx(rows, rel=1e-5)


# -- recomputing


def calls_of_first_layer(model) -> list[int]:
    """Counts what runs inside the first layer: each forward and each recomputation."""
    seen: list[int] = []
    inner = next(iter(recompute.layers(model)[0].children()))
    inner.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout_off", [False, True])
def test_recomputing_gives_the_same_numbers_and_runs_layers_twice(tmp_path, kind, dropout_off):
    policy = tiny_policy(tmp_path / "model", kind)  # noqa: F811
    if kind != "mamba":
        noisy_adapter(policy.attach(wb.LoRA(r=4, alpha=8, dropout=0.2)))
    made = {}
    for how in (False, True):
        run = wb.sft(
            policy.reset(), ROWS, out=tmp_path / "run", gradient_checkpointing=how, disable_dropout=dropout_off
        )
        made[how] = run.gradients(ROWS)  # the first time the model is tried out, too
        seen = calls_of_first_layer(policy.model)
        run.gradients(ROWS)
        assert len(seen) == (2 if how else 1)
    assert made[True].loss == made[False].loss
    assert all(torch.equal(g, made[False].by_name[n]) for n, g in made[True].by_name.items())
    assert not any("forward" in layer.__dict__ or layer.training for layer in recompute.layers(policy.model))
    silent = policy.sample(["Say"], n=2, max_new_tokens=3)
    run = wb.sft(policy.reset(), ROWS, out=tmp_path / "run", gradient_checkpointing=True)
    assert policy.sample(["Say"], n=2, max_new_tokens=3).text == silent.text


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_recomputed_runs_of_other_methods_are_bit_equal(tmp_path, method):
    runs = []
    for how in (False, True):
        run = make_run(
            method, tmp_path, tiny_policy(tmp_path / "model", lora=True), gradient_checkpointing=how, steps=2
        )
        run.run()
        runs.append(run)
    assert_same_metrics(runs[0].metrics, runs[1].metrics)
    assert_same_weights(weights(runs[0]), weights(runs[1]))


def test_recomputing_keeps_fewer_activations(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True, num_hidden_layers=4)  # noqa: F811
    kept = []
    for how in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            with recompute.recomputing(policy.model) if how else contextlib.nullcontext():
                policy.token_scores([[1, 2, 3] * 20] * 4, [59] * 4)
        kept.append(sum(sizes))
    assert kept[1] < 0.2 * kept[0]


def test_recomputing_puts_back_what_it_finds():
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def forward(self, x):
            return x

    first, second = Layer(), Layer()
    mine = second.forward = lambda x: x + 1  # as a device map's hooks do it
    with pytest.raises(KeyError):
        with recompute.recomputing(torch.nn.Sequential(first, second)):
            assert "forward" in first.__dict__ and second.forward is not mine
            raise KeyError
    assert "forward" not in first.__dict__ and second.forward is mine


def test_models_without_layers_to_recompute_are_refused():
    bare = SimpleNamespace(
        model=torch.nn.Linear(1, 1), params=dict, origin=SimpleNamespace(model="bare")
    )
    with pytest.raises(SettingError, match="gradient_checkpointing=True: bare has no layers"):
        update.check(bare, make("sft", {"gradient_checkpointing": True}))


# -- dropout


def test_dropout_can_be_turned_off(tmp_path):
    """Of the adapter and of attention."""
    for what, changes, dropout in (("adapter", {}, 0.3), ("attention", {"attention_dropout": 0.3}, 0.0)):
        policy = tiny_policy(tmp_path / what, **changes)  # noqa: F811
        noisy_adapter(policy.attach(wb.LoRA(r=4, alpha=8, dropout=dropout)))
        losses = {}
        for off in (False, True):
            common = dict(steps=2, lr=0.0, batch_size=6, shuffle_dataset=False, out=tmp_path / "run")
            run = wb.sft(policy.reset(), ROWS, disable_dropout=off, **common)
            run.run()
            losses[off] = run.metrics.loc[1:, "loss"].tolist()
        assert losses[False][0] != losses[False][1], what
        assert losses[True][0] == losses[True][1] != losses[False][0], what


def test_sft_learns_from_an_evaluated_task(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)  # noqa: F811
    task = wb.Task([{"prompt": "Say 1:"}], rewards=[lambda completions, **k: [1.0] * len(completions)])
    run = wb.sft(
        policy, ROWS, eval_dataset=task, steps=1, packing=True, eval_packing=False, max_new_tokens=2,
        num_generations_eval=2, loss_type="dft", out=tmp_path / "run",
    )  # fmt: skip
    run.run()
    assert run.metrics["eval/accuracy"].tolist() == [1.0, 1.0]
    assert isinstance(sft.prepare(policy.tokenizer, ROWS, run.engine.settings).items[0], tuple)
