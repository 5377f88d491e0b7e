"""Saving and exporting: what others can read, that it says the same, and nothing is overwritten."""

import json

import pytest
import torch

from tests.models import noisy_adapter, tiny_model_folder, tiny_policy
from workbench import export
from workbench.adapters import LoRA
from workbench.errors import DataError, SettingError
from workbench.policy import load

IDS = [72, 101, 108, 108, 111, 5, 6, 7]


@torch.no_grad()
def logits(model):
    return model(torch.tensor([IDS])).logits


def plain(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def test_a_saved_adapter_is_read_by_peft_alone(tmp_path):
    from peft import PeftModel

    policy = tiny_policy(tmp_path / "m", lora=True)
    assert policy.save(tmp_path / "adapter") == tmp_path / "adapter"
    theirs = PeftModel.from_pretrained(plain(tmp_path / "m"), tmp_path / "adapter").eval()
    assert torch.equal(logits(theirs), logits(policy.model))
    assert not torch.allclose(logits(theirs), logits(plain(tmp_path / "m")), atol=1e-3)


def test_a_saved_adapter_loads_and_trains_on(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    policy.save(tmp_path / "adapter")
    again = load(tmp_path / "adapter")
    assert torch.equal(logits(again.model), logits(policy.model))
    assert list(again.trainable()) == list(policy.trainable())
    assert again.describe()["base"] == str((tmp_path / "m").resolve()) and again.adapter.r == 4
    assert len(again.tokenizer) == 260
    with pytest.raises(SettingError, match="has an adapter already"):
        again.attach(LoRA())
    (tmp_path / "m").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="needs its base model .*There is no folder"):
        load(tmp_path / "adapter")


def test_save_writes_the_weights_held_now(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    at_start = logits(policy.model)
    policy.hold({n: t * 2 for n, t in policy.params().items()}, "run")
    policy.save(tmp_path / "adapter")
    saved = logits(load(tmp_path / "adapter").model)
    assert torch.equal(saved, logits(policy.model)) and not torch.equal(saved, at_start)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_whole_model_is_saved_in_plain_format(tmp_path, kind):
    policy = noisy_adapter(tiny_policy(tmp_path / "m", kind))
    policy.save(tmp_path / "new")
    assert torch.equal(logits(plain(tmp_path / "new")), logits(policy.model))
    assert torch.equal(logits(load(tmp_path / "new").model), logits(policy.model))


def test_prompt_tuning_is_saved(tmp_path):
    from peft import PromptTuningConfig

    policy = tiny_policy(tmp_path / "m").attach(
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    noisy_adapter(policy, scale=1.0).save(tmp_path / "a")
    assert torch.equal(logits(load(tmp_path / "a").model), logits(policy.model))
    with pytest.raises(SettingError, match="virtual tokens.*policy.save"):
        policy.export(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_adapters_that_change_the_base_are_saved_for_the_untouched_base(tmp_path, how):
    from peft import LoraConfig, PeftModel

    policy = tiny_policy(tmp_path / "m").attach(
        LoraConfig(r=4, init_lora_weights=how, target_modules="all-linear")
    )
    noise = torch.Generator().manual_seed(0)
    policy.hold(
        {n: t + 0.05 * torch.randn(t.shape, generator=noise) for n, t in policy.params().items()}, "run"
    )
    before, config, names = logits(policy.model), policy.describe(), list(policy.trainable())
    policy.save(tmp_path / "a")
    theirs = PeftModel.from_pretrained(plain(tmp_path / "m"), tmp_path / "a").eval()
    assert (logits(theirs) - before).abs().max() < 1e-3 * before.abs().max()
    assert torch.equal(logits(policy.model), before)
    assert policy.describe() == config and list(policy.trainable()) == names and policy.holder == "run"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_export_is_plain_and_agrees_and_leaves_the_policy_alone(tmp_path, kind):
    policy = tiny_policy(tmp_path / "m", kind, lora=True)
    before, own = logits(policy.model), {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    report = policy.export(tmp_path / "merged")
    assert report.tokens > 100 and report.prompts == len(export.PROBES)
    assert 0 <= report.kl_mean <= report.kl_max < 1e-8 and report.top1 == 1.0
    assert "same first choice 100.0 %" in repr(report)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert (logits(plain(tmp_path / "merged")) - before).abs().max() < 1e-4
    assert torch.equal(logits(policy.model), before)
    assert all(torch.equal(p, own[n]) for n, p in policy.model.named_parameters())
    assert policy.has_adapter and load(tmp_path / "merged").adapter is None


def test_the_report_sees_a_difference(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    report = export.compare(policy, tmp_path / "m", ["Hello", "a"])  # the base is not the policy
    assert report.kl_mean > 1e-3 and report.top1 < 1.0


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore:Model with `tie_word")
def test_export_parts_embeddings_that_the_adapter_parted(tmp_path, target):
    from peft import LoraConfig

    policy = tiny_policy(tmp_path / "m", "qwen3").attach(LoraConfig(r=4, target_modules=[target]))
    noisy_adapter(policy, scale=0.3)
    assert policy.export(tmp_path / "merged").kl_max < 1e-8
    model = plain(tmp_path / "merged")
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert policy.model.config.tie_word_embeddings is True


def test_export_of_bfloat16_rounds_once(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True, dtype="bfloat16")
    report = policy.export(tmp_path / "merged")
    assert report.dtype == "bfloat16" and report.kl_mean < 0.02
    exact = tiny_policy(tmp_path / "n", lora=True, dtype="bfloat16").model.float().merge_and_unload()
    written = plain(tmp_path / "merged").state_dict()
    for name, tensor in exact.state_dict().items():
        assert torch.equal(written[name], tensor.bfloat16().float()), name


WIDE = {
    "llama": dict(hidden_size=160, intermediate_size=96, head_dim=16),  # rows end within a block of 64
    "qwen3": dict(hidden_size=64, head_dim=16),  # tied
    "gpt2": dict(n_embd=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),  # square weights stored (in, out)
}


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_export_of_a_quantised_model_is_the_dequantised_base(tmp_path, quantize, kind):
    pytest.importorskip("bitsandbytes")
    from workbench import quantisation

    tiny_model_folder(tmp_path / "m", kind, **WIDE[kind])
    policy = load(tmp_path / "m", quantize=quantize, device="cpu")
    with pytest.raises(SettingError, match="nothing new to save"):
        policy.save(tmp_path / "x")
    bare = policy.export(tmp_path / "bare")
    assert bare.top1 == 1.0 and bare.kl_max < 1e-6 and f"against the policy (its {quantize} base)," in repr(bare)
    noisy_adapter(policy.attach(LoRA(r=4)))
    policy.sample(["Hello"], n=1, max_new_tokens=3)
    before, own = logits(policy.model), {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    report = policy.export(tmp_path / "merged")
    assert report.kl_max < 1e-6 and report.top1 == 1.0
    assert f"against the policy (its {quantize} base and its adapter)" in repr(report)
    assert torch.equal(logits(policy.model), before)
    assert all(torch.equal(p, own[n]) for n, p in policy.model.named_parameters())
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    written = plain(tmp_path / "merged")
    assert (logits(written) - before).norm() < 1e-5 * before.norm()
    merged, (name, layer) = dict(written.named_modules()), next(iter(quantisation.layers(policy.model).items()))
    wrap = policy.model.get_submodule(name.removesuffix(".base_layer"))
    weight = quantisation.decoded(layer) + 8 * wrap.lora_B["default"].weight @ wrap.lora_A["default"].weight
    found = merged[name.removeprefix("base_model.model.").removesuffix(".base_layer")].weight
    assert torch.allclose(found.T if kind == "gpt2" else found, weight, atol=1e-5)  # alpha / r = 8


def test_a_save_replaces_a_save_and_nothing_else(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    folder = tmp_path / "deep" / "adapter"
    policy.save(folder)
    first = (folder / "adapter_model.safetensors").read_bytes()
    policy.hold({n: t * 2 for n, t in policy.params().items()}, "run")
    policy.save(folder)
    assert (folder / "adapter_model.safetensors").read_bytes() != first
    (folder / "notes.txt").write_text("mine")
    for write in (policy.save, policy.export):
        with pytest.raises(SettingError, match="notes.txt"):
            write(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingError, match="is a file"):
        policy.save(tmp_path / "file")
    with pytest.raises(SettingError, match="config.json"):  # the base's own folder was written by no save
        policy.export(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    policy.save(tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "empty", "file", "m"]


def test_a_failed_save_leaves_the_earlier_one_whole(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", lora=True)
    policy.save(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    monkeypatch.setattr(type(policy.tokenizer), "save_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.save(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m"]
