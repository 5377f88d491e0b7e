"""Quantised weights: what a layer computes, what can be loaded and what is refused, memory, and this machine."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from tests.models import noisy_adapter, tiny_model_folder, tiny_tokenizer
from tests.test_qlora import WIDE, distance, gradients, logits, plain, weights_of
from workbench import doctor, quantisation
from workbench.adapters import LoRA
from workbench.errors import DataError, SettingError
from workbench.policy import from_description, load
from workbench.text import SIZES, scaled

bnb = pytest.importorskip("bitsandbytes")

# Dettmers et al. 2023, appendix E
LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


# ---------------------------------------------------------------- layers


def rounded(weight):
    """NF4 by hand, without double quantisation: the nearest of 16 levels times the largest of each 64 weights."""
    flat = weight.double().numpy().reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
    scale = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs(blocks[..., None] / scale[..., None] - LEVELS).argmin(-1)
    return torch.from_numpy((LEVELS[nearest] * scale).reshape(-1)[: len(flat)].reshape(weight.shape))


@pytest.mark.parametrize("columns", [64, 160, 96, 144, 48, 36])
@pytest.mark.parametrize("double", [False, True])
def test_an_nf4_layer_computes_with_its_levels_wherever_rows_end(columns, double):
    make = torch.Generator().manual_seed(columns)
    weight, x = torch.randn(66, columns, generator=make), torch.randn(3, columns, generator=make)
    layer = bnb.nn.Linear4bit(columns, 66, bias=True, quant_type="nf4", compress_statistics=double)
    layer.load_state_dict({"weight": weight, "bias": torch.arange(66.0)})
    model = torch.nn.Sequential(layer).to("cpu").eval()
    quantisation.mend(model, torch.float32)
    right = rounded(weight)
    if double:  # scales in 8 bits: off by a hundredth of their spread
        assert (quantisation.decoded(model[0]) - right).norm() < 0.02 * right.norm()
        right = quantisation.decoded(model[0]).double()
    x.requires_grad_()
    for mode in (False, True, False):
        out = model.train(mode)(x)
        x.grad = None
        out.sum().backward()
        assert torch.allclose(out.double(), x.double() @ right.T + torch.arange(66.0), atol=1e-4)
        assert torch.allclose(x.grad.double(), right.sum(0).expand_as(x), atol=1e-4)
    from peft.utils.integrations import dequantize_module_weight  # what DoRA and merges by peft see

    assert torch.allclose(dequantize_module_weight(model[0]).double(), right, atol=1e-6)


def test_an_int8_layer_computes_with_its_rows_whatever_the_mode():
    weight = torch.tensor([[1.27, -0.632, 0.004], [-254.0, 2.0, 1.1]])
    layer = bnb.nn.Linear8bitLt(3, 2, bias=True, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight, "bias": torch.tensor([0.5, 0.0])})
    model = torch.nn.Sequential(layer).to("cpu").eval()
    quantisation.mend(model, torch.float32)
    right = torch.tensor([[1.27, -0.63, 0.0], [-254.0, 2.0, 2.0]])  # steps of 0.01 and of 2
    x = torch.tensor([[1.0, 0.333, 100.0], [7.0, -20.0, 0.1]], requires_grad=True)
    for mode in (False, True, False):
        x.grad = None
        out = model.train(mode)(x)
        out.sum().backward()
        assert torch.allclose(out, x @ right.T + torch.tensor([0.5, 0.0]), rtol=1e-3)
        assert torch.allclose(x.grad, right.sum(0).expand_as(x), rtol=1e-3)
    assert torch.equal(model(x[:1]), model(x)[:1])
    assert torch.allclose(quantisation.decoded(model[0]), right, rtol=1e-3)


# ---------------------------------------------------------------- loading


def test_names_and_configs(tmp_path):
    from transformers import BitsAndBytesConfig

    folder = tiny_model_folder(tmp_path / "m", **WIDE["llama"])
    for wrong, words in [
        ("nf5", "Did you mean 'nf4'"),
        ("INT-8", "Did you mean 'int8'"),
        (4, '"nf4" or "int8"'),
        (BitsAndBytesConfig(), "quantises nothing"),
        (BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True), "16 bits"),
    ]:
        with pytest.raises(SettingError, match=words):
            load(folder, quantize=wrong)
    with pytest.raises(SettingError, match="not float64"):
        load(folder, quantize="nf4", dtype="float64", device="cpu")
    with pytest.raises(SettingError, match="'int8' does not work on mps"):
        quantisation.plan("int8", {}, "m", torch.float32, torch.device("mps"))

    given = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage=torch.float32,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head", "q_proj"],
    )  # fmt: skip
    policy = load(folder, quantize=given, device="cpu").attach(LoRA(r=4))
    assert len(quantisation.layers(policy.model)) == 12  # of 14
    assert {m.compute_dtype for m in quantisation.layers(policy.model).values()} == {torch.float32}
    assert "fp4, computing in float32" in repr(policy) and len(policy.trainable()) == 28
    record = json.loads(json.dumps(policy.describe()))
    again = from_description(record)
    assert again.describe() == record and weights_of(again) == weights_of(policy)
    assert noisy_adapter(policy).export(tmp_path / "x").kl_max < 1e-6
    assert weights_of(load(folder, quantize="nf4", device="cpu")) != weights_of(policy)


def saved_by_bitsandbytes(folder, how, dtype=torch.float32):
    """A folder as plain transformers writes it for a model it quantised, in that dtype."""
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=how, bnb_4bit_use_double_quant=True)
    eight = BitsAndBytesConfig(load_in_8bit=True)
    source = tiny_model_folder(folder.parent / "source", **WIDE["llama"])
    model = plain(source, quantization_config=eight if how == "int8" else four, device_map={"": "cpu"})
    model.config.quantization_config.bnb_4bit_compute_dtype = dtype
    if dtype != torch.float32:
        for module in quantisation.layers(model).values():
            module.weight.quant_state.dtype = dtype
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return source


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_model_saved_in_few_bits_is_held_as_it_was_saved(tmp_path, how):
    source = saved_by_bitsandbytes(tmp_path / "q", how, torch.bfloat16 if how == "nf4" else torch.float32)
    policy = load(tmp_path / "q", device="cpu")
    assert policy.origin.quantize == how and f"weights     {how}, computing in float32" in repr(policy)
    ours = load(source, quantize=how, device="cpu")
    assert weights_of(policy) == weights_of(ours) and torch.equal(logits(policy.model), logits(ours.model))
    with pytest.raises(SettingError, match="quantised weights cannot be trained"):
        policy.trainable()
    other = {"nf4": "int8", "int8": "nf4"}[how]
    with pytest.raises(SettingError, match=f"saved in {how} already"):
        load(tmp_path / "q", quantize=other, device="cpu")
    again = from_description(noisy_adapter(policy.attach(LoRA(r=4))).describe())
    assert weights_of(again) == weights_of(policy)
    noisy_adapter(ours.attach(LoRA(r=4)))
    assert distance(gradients(policy), gradients(ours)) == 0
    assert policy.export(tmp_path / "x").kl_max < 1e-6


def test_a_model_saved_in_fp4_is_found_again(tmp_path):
    saved_by_bitsandbytes(tmp_path / "q", "fp4")
    policy = load(tmp_path / "q", device="cpu")
    assert "fp4, computing in float32" in repr(policy)
    again = from_description(json.loads(json.dumps(policy.describe())))
    assert weights_of(again) == weights_of(policy) and again.describe() == policy.describe()
    with pytest.raises(SettingError, match="saved in fp4 already"):
        load(tmp_path / "q", quantize="nf4", device="cpu")


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq"])
def test_other_formats_are_refused_in_words(tmp_path, method):
    folder = tiny_model_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(DataError, match=f"by {method}, and cannot be trained on here; load the model it was made from"):
        load(folder, device="cpu")
    with pytest.raises(DataError, match=f"by {method}, and cannot be quantised again"):
        load(folder, quantize="nf4", device="cpu")


def test_fp8_files_are_decoded(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_model_folder(tmp_path / "m", **WIDE["llama"])
    weights, wanted = load_file(folder / "model.safetensors"), {}
    for name in [n for n in weights if n.endswith("_proj.weight")]:
        scale = torch.tensor([[0.01]])
        weights[name] = (weights[name] / 0.01).clamp(-448, 448).to(torch.float8_e4m3fn)
        weights[name.replace("weight", "weight_scale_inv")] = scale
        wanted[name] = weights[name].float() * 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fp8}))
    policy = load(folder, device="cpu")
    assert policy.origin.quantize is None and policy.attach(LoRA(r=2)).trainable()
    held = {n[17:].replace(".base_layer", ""): p for n, p in policy.model.named_parameters()}  # base_model.model.
    assert all(held[name].dtype == torch.float32 for name in wanted)
    assert all(torch.allclose(held[name], weight, atol=1e-2, rtol=1e-2) for name, weight in wanted.items())
    with pytest.raises(DataError, match=r"quantised again; leave quantize out \(fp8 files are decoded\)"):
        load(folder, quantize="nf4", device="cpu")


def test_models_that_cannot_be_quantised(tmp_path, monkeypatch):
    from transformers import BitsAndBytesConfig

    folder = tiny_model_folder(tmp_path / "m", "mamba", **WIDE["mamba"])
    everything = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"])
    with pytest.raises(SettingError, match="'nf4' does not work with MambaForCausalLM, which reads.*llm_int8_skip_mod"):
        load(folder, quantize=everything, device="cpu")
    nothing = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["backbone", "lm_head"])
    with pytest.raises(SettingError, match="'int8': MambaForCausalLM has no linear layers that could be"):
        load(folder, quantize=nothing, device="cpu")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SettingError, match="needs bitsandbytes.*pip install bitsandbytes"):
        load(folder, quantize="nf4", device="cpu")


def test_experts_that_stay_in_float_are_warned_about(tmp_path):
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=260, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        bos_token_id=257, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.warns(UserWarning, match=r"Only linear layers are quantised: 9\d% of the memory is still float"):
        policy = load(tmp_path / "m", quantize="nf4", device="cpu")
    assert noisy_adapter(policy.attach(LoRA(r=2, targets=["q_proj"]))).export(tmp_path / "x").top1 == 1.0


# ---------------------------------------------------------------- memory, and this machine


def test_memory_is_counted(tmp_path):
    folder = tiny_model_folder(tmp_path / "m", "qwen3", **WIDE["qwen3"])
    linear = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 64)  # q; k, v; o; gate, up, down; two layers
    rest = 4 * (260 * 64 + 2 * (2 * 64 + 2 * 16) + 64)  # tied embeddings; norms of layers and heads; the last norm
    assert load(folder, device="cpu").memory() == {"float32": 4 * linear + rest}
    eight = load(folder, quantize="int8", device="cpu").memory()
    assert eight == {"int8": linear + 4 * 2 * (64 + 32 + 32 + 64 + 64 + 64 + 64), "float32": rest}
    policy = load(folder, quantize="nf4", device="cpu")
    blocks, groups = linear // 64, 14  # one group of up to 256 blocks in each of 14 layers
    assert policy.memory() == {"nf4": linear // 2 + blocks + 4 * groups, "float32": rest}
    assert "68.1 KB in float32 + 25.4 KB in nf4, held by: start" in repr(policy)
    said = [scaled(n, SIZES) for n in (0, 999, 999.6, 1500, 25e6, 999_600, 5e15)]
    assert said == ["0 B", "999 B", "1 KB", "1.5 KB", "25 MB", "1 MB", "5e+03 TB"]
    policy.sample(["a"], n=1, max_new_tokens=2)
    assert policy.memory() == {"nf4": linear // 2 + blocks + 4 * groups, "float32": rest}


def test_doctor_tries_both(tmp_path, monkeypatch):
    def lines():
        return [(check.level, check.found) for check in doctor.quantisation(doctor.Where(tmp_path))]

    ((level, found),) = lines()
    assert level == "ok" and "nf4 and int8 work on" in found
    monkeypatch.setitem(doctor.ROUNDING, "nf4", 0.01)
    ((level, found),) = lines()
    assert level == "warn" and "nf4 values are off by 9%" in found
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    ((level, found),) = lines()
    assert level == "warn" and "does not work here" in found
