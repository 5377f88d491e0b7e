"""Parity with TRL 1.16 for every preference loss: value, LoRA gradients and metrics on one batch, and whole runs.

Both sides read the same model and adapter (B not zero) from disk; the policy is then moved away from its reference.
Each of TRL's trainers is built once, and its attributes are changed from case to case.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.test_parity import (
    DPO_METRICS,
    assert_same,
    assert_same_run,
    distance,
    elsewhere,
    grads_of,
    move,
    started,
    their_gradients,
    their_model,
    told,
    trainer,
)
from workbench.settings.preference import PAIR_LOSSES

PAIRS = [
    {"prompt": "Two and two?", "chosen": " four", "rejected": " five!"},
    {"prompt": "Sky:", "chosen": " blue", "rejected": " red"},
    {"prompt": "Count to three, slowly.", "chosen": " 1, 2", "rejected": " 3"},
    {"prompt": "Say yes", "chosen": "!", "rejected": " no!"},
    {"prompt": "A", "chosen": "BCDEF", "rejected": "bcd"},
    {"prompt": "Bread and", "chosen": " jam", "rejected": " rain"},
]
"""short answers: some losses raise the last digits of a sum of log-probs to an exponent"""
LABELS = (True, False, False, True, True, False)
ANSWERS = [
    {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
    for row, label in zip(PAIRS, LABELS, strict=True)
]
DEFAULTS = dict(
    loss_type="sigmoid", loss_weights=None, beta=0.1, label_smoothing=0.0, f_divergence_type="reverse_kl",
    f_alpha_divergence_coef=0.5, ld_alpha=None, use_weighting=False, discopop_tau=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model (`model`) and an adapter with B not zero (`adapter`)."""
    folder = tmp_path_factory.mktemp("parity")
    tiny_policy(folder / "model", lora=True).save(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def policy(home):
    return wb.load(home / "adapter", dtype="float32", device="cpu")


def agree(ours, theirs, names: list[str], **room: float) -> None:
    """Loss and gradients agree, and the named metrics, to what a sum of thirty nats keeps of its digits."""
    assert_same(ours, theirs, [], **room)
    for name in names:
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=2e-5, abs=1e-5), name


def our_run(call, policy, rows, out, **settings):
    """A run whose reference is the adapter and whose policy has moved away from it."""
    run = call(policy.reset(), rows, out=out, **settings)
    run._ready()
    run.engine.state.params = elsewhere(policy)
    return run


# -- DPO


@pytest.fixture(scope="module")
def theirs(home, policy):
    # built with weighting, because the model is made to give what that needs when the trainer is built
    sizes = dict(per_device_train_batch_size=len(PAIRS), max_steps=1)
    made = trainer("DPO", home, PAIRS, use_weighting=True, **sizes)
    move(made.model, elsewhere(policy.reset()))
    batch = next(iter(made.get_train_dataloader()))

    def ask(settings):
        values = DEFAULTS | settings
        names = values["loss_type"]
        made.loss_types = [names] if isinstance(names, str) else list(names)
        made.loss_weights = values["loss_weights"] or [1.0] * len(made.loss_types)
        made.args.discopop_tau = values["discopop_tau"]
        for name in ("beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha"):
            setattr(made, name, values[name])
        made.use_weighting = values["use_weighting"]
        return their_gradients(made, dict(batch))

    return ask


@pytest.fixture(scope="module")
def ours(home, policy):
    run = our_run(wb.dpo, policy, PAIRS, home / "dpo")

    def ask(settings):
        run.set(**DEFAULTS | settings)
        return run.gradients(PAIRS)

    return ask


SMOOTH = {"label_smoothing": 0.1}
LOSSES = [
    {"loss_type": "sigmoid", "beta": 0.5},
    {"loss_type": "hinge", "beta": 0.3},
    {"loss_type": "ipo", "beta": 0.7},
    {"loss_type": "exo_pair", "label_smoothing": 1e-3},
    {"loss_type": "exo_pair", "beta": 0.5} | SMOOTH,
    {"loss_type": "nca_pair"},
    {"loss_type": "robust"} | SMOOTH,
    {"loss_type": "robust", "label_smoothing": 0.4},
    {"loss_type": "bco_pair", "beta": 0.4},
    {"loss_type": "sppo_hard", "beta": 0.5},
    {"loss_type": "aot", "beta": 0.5},
    {"loss_type": "aot", "beta": 0.5} | SMOOTH,
    {"loss_type": "aot_unpaired", "beta": 0.5} | SMOOTH,
    {"loss_type": "apo_zero"},
    {"loss_type": "apo_down"},
    {"loss_type": "discopop", "beta": 0.02},  # at 0.1 the last digits of log-probs count 30 times as much
    {"loss_type": "discopop", "discopop_tau": 0.5, "beta": 0.3},
    {"loss_type": "sigmoid_norm", "beta": 2.0},
]
LENGTHS = [
    {"loss_type": name, "ld_alpha": alpha} | SMOOTH
    for name, alpha in [
        ("sigmoid", 0.0), ("sigmoid", 0.4), ("sigmoid", 1.0), ("ipo", 0.4), ("exo_pair", 0.4), ("aot", 0.4),
        ("aot_unpaired", 0.0), ("bco_pair", 0.4), ("sigmoid_norm", 0.4),
    ]
]  # fmt: skip
DIVERGENT = [
    {"loss_type": name, "f_divergence_type": kind, "f_alpha_divergence_coef": coef} | SMOOTH
    for name in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust")
    for kind, coef in [
        ("forward_kl", 0.5), ("js_divergence", 0.5), ("alpha_divergence", 0.3), ("alpha_divergence", 1.0),
        ("alpha_divergence", 2.0),
    ]
    if name in ("sigmoid", "ipo") or coef == 0.5
] + [{"loss_type": "discopop", "f_divergence_type": "js_divergence", "beta": 0.02}]  # fmt: skip
WEIGHTED = [
    {"loss_type": name, "use_weighting": True} | SMOOTH
    for name in (
        "sigmoid", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
        "sigmoid_norm",
    )
]  # fmt: skip
"""theirs breaks on hinge and sft: it multiplies in place what the backward pass still needs"""
MIXTURES = [
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},  # RPO
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},  # MPO
    {"loss_type": ["sigmoid", "aot", "ipo"]} | SMOOTH,
    {"loss_type": ["sigmoid", "sft"], "f_divergence_type": "js_divergence", "ld_alpha": 0.5},
    {"loss_type": ["sigmoid", "bco_pair"], "use_weighting": True, "ld_alpha": 0.3, "loss_weights": [0.5, 2.0]},
]


@pytest.mark.parametrize("settings", LOSSES + LENGTHS + DIVERGENT + WEIGHTED + MIXTURES, ids=told)
def test_dpo(ours, theirs, settings):
    mine, other = ours(settings), theirs(settings)
    # exponentials of sums of thirty nats: whichever way it is computed, float32 is 4e-6 to 1.4e-5 from float64 there
    steep = settings.get("f_alpha_divergence_coef", 0.0) > 1
    agree(mine, other, DPO_METRICS, gradient=2e-5 if steep else 1e-5)
    assert mine.norm() > 1e-5 and mine.metrics["rewards/margins"] != 0


def test_sft_has_no_reference_and_the_loss_of_trl(ours, theirs):
    settings = {"loss_type": "sft"}
    mine = ours(settings)
    agree(mine, theirs(settings), ["logps/chosen", "logps/rejected", "entropy", "mean_token_accuracy"])
    assert mine.metrics["rewards/chosen"] == pytest.approx(0.1 * mine.metrics["logps/chosen"])
    assert mine.metrics["nll_loss"] == pytest.approx(mine.loss)


def test_keeping_the_end_of_long_texts(policy, home):
    settings = {"max_length": 14, "truncation_mode": "keep_end"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer("DPO", home, PAIRS, per_device_train_batch_size=len(PAIRS), max_steps=1, **settings)
        mine = our_run(wb.dpo, policy, PAIRS, home / "end", **settings).gradients(PAIRS)
    move(made.model, elsewhere(policy.reset()))
    agree(mine, their_gradients(made, next(iter(made.get_train_dataloader()))), DPO_METRICS)


def test_every_loss_of_trl_is_here():
    import inspect

    from trl import DPOConfig

    told = inspect.getdoc(DPOConfig).split("loss_type (")[1].split("If multiple")[0]
    theirs = {part.strip("'`") for part in told.replace(".", " ").replace(",", " ").split() if part.startswith("`'")}
    assert len(theirs) == 15 and theirs <= set(PAIR_LOSSES)


# -- without a reference


def experimental(kind: str, home, policy):
    """TRL's CPO or ORPO trainer, and its batch, without the start token that they alone would put first."""
    import trl.experimental.cpo
    import trl.experimental.orpo
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    tokenizer.bos_token = None
    module = getattr(trl.experimental, kind.lower())
    config = getattr(module, f"{kind}Config")(
        output_dir=str(home / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True, max_steps=1, per_device_train_batch_size=len(PAIRS),
        train_sampling_strategy="sequential",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(module, f"{kind}Trainer")(
            model=their_model(home), args=config, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer
        )
    move(made.model, elsewhere(policy.reset()))
    batch = next(iter(made.get_train_dataloader()))

    def ask(settings):
        for name, value in settings.items():
            setattr(made, name, value)
        made.model.train()
        made.model.zero_grad()
        loss, metrics = made.get_batch_loss_metrics(made.model, batch, "train")
        loss.backward()
        return SimpleNamespace(loss=float(loss.detach()), by_name=grads_of(made.model), metrics=metrics)

    return ask


FREE_METRICS = [
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
]  # fmt: skip
CPO_DEFAULTS = dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.0, cpo_alpha=1.0, simpo_gamma=0.5, alpha=0.0)
CPO = [
    {},
    {"cpo_alpha": 0.0},
    {"label_smoothing": 0.2, "cpo_alpha": 0.4, "beta": 0.3},
    {"loss_type": "hinge", "cpo_alpha": 0.0, "beta": 0.02},
    {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "simpo"},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.0, "label_smoothing": 0.1},
    {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0, "alpha": 0.25},
    {"loss_type": "ipo", "alpha": -0.3, "cpo_alpha": 0.0},
]
"""with alpha and summed log-probs theirs is not a number: exp(-104) is 0 in float32"""


@pytest.fixture(scope="module")
def their_cpo(home, policy):
    return experimental("CPO", home, policy)


@pytest.fixture(scope="module")
def our_cpo(home, policy):
    return our_run(wb.cpo, policy, PAIRS, home / "cpo")


@pytest.mark.parametrize("settings", CPO, ids=told)
def test_cpo_and_simpo(their_cpo, our_cpo, settings):
    settings = CPO_DEFAULTS | settings
    our_cpo.set(**settings)
    mine = our_cpo.gradients(PAIRS)
    agree(mine, their_cpo(settings), FREE_METRICS + ["nll_loss"] * bool(settings["cpo_alpha"]))
    if settings["loss_type"] == "simpo" and not settings["cpo_alpha"]:
        names = ("beta", "simpo_gamma", "label_smoothing", "alpha")
        run = our_run(wb.dpo, our_cpo.engine.policy, PAIRS, our_cpo.folder / "simpo")
        run.set(loss_type="simpo", **{name: settings[name] for name in names})
        assert run.gradients(PAIRS).loss == mine.loss


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_orpo(home, policy, beta):
    mine = our_run(wb.orpo, policy, PAIRS, home / "orpo", beta=beta).gradients(PAIRS)
    other = experimental("ORPO", home, policy)({"beta": beta})
    agree(mine, other, [*FREE_METRICS, "nll_loss", "log_odds_ratio", "log_odds_chosen"])
    again = our_run(wb.dpo, policy, PAIRS, home / "orpo", loss_type="orpo", beta=beta).gradients(PAIRS)
    assert again.loss == mine.loss


# -- KTO

KTO_METRICS = [
    "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "entropy",
]  # fmt: skip
KTO_DEFAULTS = dict(loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
KTO = [
    {},
    {"beta": 0.5, "desirable_weight": 1.33, "undesirable_weight": 0.7},
    {"loss_type": "apo_zero_unpaired", "desirable_weight": 0.5},
]


def kto_case(home, policy, their_trainer, params, settings):
    """KTO on both sides with the policy at `params`."""
    move(their_trainer.model, params)
    for name, value in settings.items():
        setattr(their_trainer, name, value)
    their_trainer.calculate_KL = settings["loss_type"] == "kto"
    other = their_gradients(their_trainer, next(iter(their_trainer.get_train_dataloader())))
    run = our_run(wb.kto, policy, ANSWERS, home / "kto", **settings)
    run.engine.state.params = params
    return run.gradients(ANSWERS), other


@pytest.fixture(scope="module")
def their_kto(home):
    return trainer("KTO", home, ANSWERS, per_device_train_batch_size=len(ANSWERS), max_steps=1)


@pytest.mark.parametrize("settings", KTO, ids=told)
def test_kto(home, policy, their_kto, settings):
    settings = KTO_DEFAULTS | settings
    seen = []
    for sign in (1, -1):
        start = policy.reset().params()
        params = {name: p + sign * (elsewhere(policy)[name] - p) for name, p in start.items()}
        mine, other = kto_case(home, policy, their_kto, params, settings)
        agree(mine, other, KTO_METRICS)
        seen.append(mine.metrics["kl"])
    if settings["loss_type"] == "kto":
        assert max(seen) > 0.01, "the baseline must count for something in one of the two"


# -- whole runs

COMMON = dict(steps=4, lr=1e-3, shuffle_dataset=False)


def assert_same_course(run, made, start, names: list[str]) -> None:
    """The same weights at the end; the named metrics to what a sum of log-probs keeps of its digits."""
    assert_same_run(run, made, start, ["loss", "grad_norm", "num_tokens"])
    for step, entry in enumerate((e for e in made.state.log_history if "loss" in e), start=1):
        for name in names:
            assert run.metrics.loc[step, name] == pytest.approx(entry[name], rel=2e-5, abs=2e-5), (step, name)


def test_a_run_of_a_mixture(policy, home, tmp_path):
    start = started(policy.reset())
    settings = dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    made = trainer("DPO", home, PAIRS, per_device_train_batch_size=2, max_steps=4, **settings)
    made.train()
    run = wb.dpo(policy, PAIRS, batch_size=2, out=tmp_path / "run", **COMMON, **settings)
    run.run()
    assert_same_course(run, made, start, DPO_METRICS)


def test_a_run_of_kto(policy, home, tmp_path):
    start = started(policy.reset())
    made = trainer("KTO", home, ANSWERS, per_device_train_batch_size=3, max_steps=4)
    made.train()
    run = wb.kto(policy, ANSWERS, batch_size=3, out=tmp_path / "run", **COMMON)
    run.run()
    assert_same_course(run, made, start, KTO_METRICS)


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_a_run_with_a_reference_that_follows(home, tmp_path, kind):
    from transformers import AutoModelForCausalLM

    settings = dict(sync_ref_model=True, ref_model_mixup_alpha=0.6, ref_model_sync_steps=2)
    policy = wb.load(home / "model", dtype="float32", device="cpu")
    start = started(policy)
    data, size, call = (PAIRS, 2, wb.dpo) if kind == "DPO" else (ANSWERS, 3, wb.kto)
    model, ref = (AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32) for _ in range(2))
    made = trainer(
        kind, home, data, model=model, more={"ref_model": ref}, per_device_train_batch_size=size, max_steps=5,
        **settings,
    )  # fmt: skip
    made.train()
    run = call(policy, data, batch_size=size, out=tmp_path / "run", **COMMON | {"steps": 5}, **settings)
    run.run()
    assert_same_course(run, made, start, DPO_METRICS if kind == "DPO" else KTO_METRICS)
    ours = {n[len("reference/") :]: p - start[n[len("reference/") :]] for n, p in run.engine.state.tensors.items()}
    theirs = {n: p.data - start[n] for n, p in made.ref_model.named_parameters()}
    assert distance(ours, theirs) < 5e-5
