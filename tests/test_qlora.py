"""QLoRA: gradients that nothing disturbs, training on a quantised base, the same base again, and adapters elsewhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import noisy_adapter, tiny_model_folder
from workbench import loading, quantisation
from workbench.adapters import LoRA
from workbench.errors import SettingError
from workbench.policy import load

pytest.importorskip("bitsandbytes")

IDS = [[72, 101, 108, 108, 111, 5, 6, 7], [9, 10, 11]]
STARTS = [5, 1]
WIDE = {
    "llama": dict(hidden_size=64, tie_word_embeddings=False),
    "qwen3": dict(hidden_size=64, head_dim=16),  # tied
    "gemma2": dict(hidden_size=64, head_dim=16),
    "gpt2": dict(n_embd=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),  # stores its weights (in, out)
    "mamba": dict(hidden_size=64),
}
SOME = {"llama": ["q_proj", "down_proj"], "mamba": ["x_proj", "in_proj"]}
CASES = [(kind, "nf4", "all-linear") for kind in WIDE if kind != "mamba"]
CASES += [(kind, "nf4", targets) for kind, targets in SOME.items()]
CASES += [("qwen3", "int8", "all-linear"), ("gpt2", "int8", "all-linear")]


def quantised(folder, kind="llama", quantize="nf4", targets="all-linear", **options):
    """A policy with a noisy rank-4 adapter on a quantised base."""
    tiny_model_folder(folder, kind, **WIDE[kind])
    policy = load(folder, quantize=quantize, device="cpu", **options).attach(LoRA(r=4, targets=targets))
    return noisy_adapter(policy)


def gradients(policy, mode=True):
    policy.model.zero_grad()
    policy.model.train(mode)
    policy.token_scores(IDS, STARTS).logprob.sum().backward()
    policy.model.eval()
    return {name: p.grad.clone() for name, p in policy.trainable().items()}


def distance(one, other):
    """Relative norm of the difference of two sets of tensors."""
    off = sum(float((a.double() - b.double()).norm() ** 2) for a, b in zip(one.values(), other.values(), strict=True))
    return (off / sum(float(a.double().norm() ** 2) for a in other.values())) ** 0.5


@torch.no_grad()
def logits(model):
    return model(torch.tensor(IDS[:1])).logits


def weights_of(policy):
    """A digest of everything quantised: the packed weights and their scales."""
    digest = hashlib.sha256()
    for module in quantisation.layers(policy.model).values():
        digest.update(module.weight.data.numpy().tobytes())
        digest.update(quantisation.decoded(module).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(("kind", "quantize", "targets"), CASES)
def test_nothing_disturbs_the_gradients(tmp_path, kind, quantize, targets):
    policy = quantised(tmp_path / "m", kind, quantize, targets)
    held = quantisation.layers(policy.model).values()
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in held)
    before, said = gradients(policy), logits(policy.model)
    assert all(torch.isfinite(g).all() for g in before.values()) and sum(float(g.norm()) for g in before.values()) > 0.1
    policy.sample(["Hello", "a"], n=2, max_new_tokens=4)
    assert distance(gradients(policy), before) == 0
    policy.score(["Hello"], ["you"])
    policy.save(tmp_path / "a")
    policy.export(tmp_path / "x")
    assert distance(gradients(policy), before) == 0
    assert distance(gradients(policy, mode=False), before) < 1e-6
    assert torch.equal(logits(policy.model), said)


@pytest.mark.parametrize(("kind", "quantize", "targets"), CASES)
def test_gradients_are_those_of_the_decoded_float_model(tmp_path, kind, quantize, targets):
    policy = quantised(tmp_path / "m", kind, quantize, targets)
    twin = load(tmp_path / "m", device="cpu")
    mine = quantisation.layers(policy.model)
    swapped = 0
    for name, module in twin.model.named_modules():
        held = mine.get(f"base_model.model.{name}", mine.get(f"base_model.model.{name}.base_layer"))
        if held is not None:
            weight = quantisation.decoded(held)
            original = module.weight.data if isinstance(module, torch.nn.Linear) else module.weight.data.T
            assert (weight - original).norm() < (0.11 if quantize == "nf4" else 0.02) * original.norm(), name
            module.weight.data = weight if isinstance(module, torch.nn.Linear) else weight.T.contiguous()
            swapped += 1
    assert swapped == len(mine) > 3
    twin.attach(LoRA(r=4, targets=targets))
    twin.hold(dict(zip(twin.params(), policy.params().values(), strict=True)), "the same adapter")
    assert distance(gradients(policy), gradients(twin)) < 1e-5
    assert distance({"": logits(policy.model)}, {"": logits(twin.model)}) < 1e-5


def test_gradient_checkpointing_needs_no_input_gradients(tmp_path):
    policy = quantised(tmp_path / "m")
    before = gradients(policy)
    policy.model.gradient_checkpointing_enable()
    assert distance(gradients(policy), before) < 1e-6


def test_what_stays_in_float(tmp_path):
    policy = quantised(tmp_path / "m", dtype="bfloat16")
    kinds = {name.split(".")[-2]: p.dtype for name, p in policy.model.named_parameters() if "lora" not in name}
    assert {kinds[n] for n in ("lm_head", "embed_tokens", "norm", "input_layernorm")} == {torch.bfloat16}
    held = quantisation.layers(policy.model).values()
    assert {m.compute_dtype for m in held} == {m.weight.quant_state.dtype for m in held} == {torch.bfloat16}
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}


# ---------------------------------------------------------------- training


def gsm8k(folder, rows=200, longest=350):
    with open(folder / "train.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    made = [{"prompt": f"Q: {r['question']}\nA:", "completion": f" {r['answer']}"} for r in records]
    return [row for row in made if len(row["prompt"] + row["completion"]) < longest][:rows]


def test_sft_on_gsm8k_lowers_the_held_out_loss_and_rewinds(gsm8k_folder, tmp_path):
    rows = gsm8k(gsm8k_folder, 56, longest=300)
    policy = wb.load("tiny", quantize="nf4", device="cpu").attach(wb.LoRA(r=16))
    before, base = gradients(policy), weights_of(policy)
    run = wb.sft(
        policy, rows[:40], steps=12, batch_size=8, lr=4e-3, eval_dataset=rows[40:], eval_steps=12, out=tmp_path / "r"
    )
    run.run(4)
    fourth = gradients(policy)
    run.run()
    loss = run.metrics["eval/loss"].dropna()
    assert loss[0] > 6 and loss[12] < 0.65 * loss[0]
    run.rewind(4)
    assert distance(gradients(policy), fourth) == 0
    policy.reset()
    assert distance(gradients(policy), before) == 0 and weights_of(policy) == base


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_what_grpo_samples_is_what_it_trains(quantize, tmp_path):
    policy = wb.load("tiny", quantize=quantize, device="cpu").attach(wb.LoRA(r=8))
    run = wb.grpo(
        policy, wb.task("sums", size=16), steps=2, prompts_per_step=4, group_size=4, max_new_tokens=24, lr=1e-3,
        beta=0.05, out=tmp_path / "r",
    )  # fmt: skip
    run.run()
    steps = run.metrics.loc[1:]
    gap = steps["sampling/sampling_logp_difference/mean"]
    print(f"{quantize}: sampler and trainer differ by {gap.max():.1e} nats a token")
    assert gap.max() < 1e-5
    assert np.isfinite(steps["loss"]).all() and steps["grad_norm"].max() > 0
    assert steps["kl"][1] < 1e-9 < 1e-6 < steps["kl"][2] < 0.1  # the reference is the start


def test_dpo_starts_at_the_reference(tmp_path):
    policy = wb.load("tiny", quantize="nf4", device="cpu").attach(wb.LoRA(r=8))
    rows = [{"prompt": f"Q: What is {i} + 2?\nA:", "chosen": f" {i + 2}", "rejected": f" {i}."} for i in range(8)]
    run = wb.dpo(policy, rows, steps=3, batch_size=8, lr=1e-3, out=tmp_path / "r")
    loss = [step.metrics["loss"] for step in run]
    assert abs(loss[0] - np.log(2)) < 1e-6 and loss[2] < loss[1] < loss[0]


AGAIN = """
import sys
import workbench as wb
from workbench.quantisation import layers
run = wb.resume(sys.argv[1])
print(sum(m.weight.data.long().sum().item() * i for i, m in enumerate(layers(run.engine.policy.model).values())))
print(run.engine.policy.origin.quantize)
run.run()
print(repr(run.metrics["loss"][3]), repr(run.metrics["grad_norm"][3]))
"""


def test_a_run_on_a_quantised_base_goes_on_in_a_new_process(tmp_path, root):
    policy = wb.load("tiny", quantize="nf4", device="cpu").attach(wb.LoRA(r=4))
    rows = [{"prompt": f"{i} + 2 =", "completion": f" {i + 2}"} for i in range(12)]
    settings = dict(steps=3, batch_size=4, lr=1e-3, snapshot_steps=1)
    whole = wb.sft(policy, rows, out=tmp_path / "whole", **settings)
    whole.run()
    half = wb.sft(policy.reset(), rows, out=tmp_path / "half", **settings)
    half.run(2)
    half.stop()
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(half.folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    digest, how, third = done.stdout.strip().splitlines()[-3:]
    held = quantisation.layers(policy.model).values()
    assert int(digest) == sum(m.weight.data.long().sum().item() * i for i, m in enumerate(held)) and how == "nf4"
    assert third == f"{whole.metrics['loss'][3]!r} {whole.metrics['grad_norm'][3]!r}"


# ---------------------------------------------------------------- adapters elsewhere


def plain(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_plain_peft_reads_the_adapter_on_either_base(tmp_path, kind):
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    policy = quantised(tmp_path / "m", kind)
    policy.save(tmp_path / "a")
    on_float = PeftModel.from_pretrained(plain(tmp_path / "m"), tmp_path / "a").eval()
    again = load(tmp_path / "a", device="cpu")  # the same through workbench
    assert torch.equal(logits(on_float), logits(again.model))
    assert any("trained on a base in nf4; here the base is not quantised" in note for note in again.notes)
    assert not torch.allclose(logits(on_float), logits(policy.model), atol=1e-2)

    as_ours = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = plain(tmp_path / "m", quantization_config=as_ours, device_map={"": "cpu"})
    theirs = PeftModel.from_pretrained(base, tmp_path / "a")
    theirs.train()  # in eval mode some CPUs would compute in bfloat16; there is no dropout
    assert distance({"": logits(theirs)}, {"": logits(policy.model)}) < 1e-5
    assert torch.equal(logits(load(tmp_path / "a", quantize="nf4", device="cpu").model), logits(policy.model))


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_adapters_on_the_head_and_of_other_kinds(tmp_path, quantize):
    from peft import IA3Config, LoraConfig

    folder = tiny_model_folder(tmp_path / "m", "llama", **WIDE["llama"])
    for config in (
        LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
        LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["lm_head", "norm"]),
        LoraConfig(r=4, target_modules=["v_proj"], trainable_token_indices=[1, 72]),
        LoraConfig(r=4, target_modules="all-linear", use_dora=True),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ):
        policy = load(folder, quantize=quantize, device="cpu")
        bare = logits(policy.model)
        policy.attach(config)
        assert torch.allclose(logits(policy.model), bare, atol=1e-4)
        before = logits(noisy_adapter(policy).model)
        assert not torch.allclose(before, bare, atol=1e-3)
        report = policy.export(tmp_path / "x")
        assert report.kl_max < 1e-6 and report.top1 == 1.0, config
        assert torch.equal(logits(policy.model), before)
    for how in ("olora", "pissa"):
        with pytest.raises(SettingError, match=f"init_lora_weights='{how}' changes the base's weights"):
            load(folder, quantize=quantize, device="cpu").attach(LoraConfig(init_lora_weights=how))


def test_an_attach_that_fails_leaves_the_model_as_it_was(tmp_path):
    policy = load(tiny_model_folder(tmp_path / "m", "mamba", **WIDE["mamba"]), quantize="nf4", device="cpu")
    names = [name for name, _ in policy.model.named_modules()]
    with pytest.raises(SettingError, match="Linear layers there: dt_proj, in_proj"):
        policy.attach(LoRA(r=2))  # peft refuses one of the layers after it has changed others
    assert [name for name, _ in policy.model.named_modules()] == names and not policy.has_adapter
    assert len(policy.attach(LoRA(r=2, targets=["x_proj"])).trainable()) == 4


@pytest.mark.cuda
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_on_cuda(tmp_path, quantize):
    folder = tiny_model_folder(tmp_path / "m", **WIDE["llama"])
    for dtype, near in (("float32", 1e-3), ("bfloat16", 0.05)):
        policy = noisy_adapter(load(folder, quantize=quantize, dtype=dtype, device="cuda").attach(LoRA(r=4)))
        before = gradients(policy)
        rollouts = policy.sample(["Hello", "a"], n=2, max_new_tokens=4)
        assert distance(gradients(policy), before) < 1e-6
        again = policy.score(rollouts.prompt_ids, rollouts.ids)
        assert max(abs(a - b).max() for a, b in zip(again.logprob, rollouts.logprob, strict=True)) < near
        report = policy.export(tmp_path / dtype)
        assert report.kl_mean < near and report.top1 > 0.9
        ours = [quantisation.decoded(m).float().cpu() for m in quantisation.layers(policy.model).values()]
        here = load(folder, quantize=quantize, dtype=dtype, device="cpu")
        theirs = [quantisation.decoded(m).float() for m in quantisation.layers(here.model).values()]
        assert all((a - b).norm() < 0.01 * b.norm() for a, b in zip(ours, theirs, strict=True))


def test_the_note_is_only_about_adapters_saved_here(tmp_path):
    folder = tiny_model_folder(tmp_path / "m", **WIDE["llama"])
    load(folder, quantize="int8", device="cpu").attach(LoRA(r=2)).save(tmp_path / "a")
    assert not any("trained on a base" in n for n in load(tmp_path / "a", quantize="int8", device="cpu").notes)
    other = load(tmp_path / "a", quantize="nf4", device="cpu")
    assert any("in int8; here the base is in nf4" in note for note in other.notes)
    (tmp_path / "a" / "workbench.json").unlink()
    assert not any("trained on a base" in n for n in load(tmp_path / "a", device="cpu").notes)
    assert loading.note_of_other_base(loading.Place("org/hub-id", folder=False), None) == []
