"""Loading, adapters, whose weights a model holds, and what goes wrong."""

import json
import warnings

import pytest
import torch

from tests.models import EOS, noisy_adapter, prompt_of, tiny_model_folder, tiny_policy, tiny_tokenizer
from workbench import keys, loading
from workbench.adapters import LoRA
from workbench.errors import DataError, RunError, SettingError
from workbench.policy import from_description, load

IDS = [[72, 101, 108, 108, 111, 5, 6, 7], [9, 10, 11]]
STARTS = [5, 1]


def scores(policy):
    with torch.no_grad():
        return policy.token_scores(IDS, STARTS).logprob


# ---------------------------------------------------------------- loading


def test_load_gives_an_eval_model_in_float32(tmp_path):
    policy = load(tiny_model_folder(tmp_path / "m", dtype=torch.bfloat16), device="cpu")
    assert not any(m.training for m in policy.model.modules())
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert policy.holder == "start" and str(policy.device) == "cpu"
    text = repr(policy)
    assert "LlamaForCausalLM" in text and "float32 on cpu" in text and "held by: start" in text


def test_dtypes_and_devices():
    cpu = torch.device("cpu")
    assert (
        loading.pick_dtype("auto", cpu) == torch.float32 and loading.pick_dtype("bf16", cpu) == torch.bfloat16
    )
    assert loading.pick_dtype(torch.float64, cpu) == torch.float64
    assert loading.pick_dtype("auto", torch.device("mps")) == torch.float32
    for wrong in ("float8", "int8", None):
        with pytest.raises(SettingError, match="dtype="):
            loading.pick_dtype(wrong, cpu)
    with pytest.raises(SettingError, match="mps"):
        loading.pick_dtype("float64", torch.device("mps"))
    assert loading.pick_device("cpu") == cpu
    with pytest.raises(SettingError, match="not known"):
        loading.pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match="not on this machine.*cpu"):
            loading.pick_device("cuda")


def test_wrong_folders_say_what_is_near(tmp_path):
    tiny_model_folder(tmp_path / "my-model")
    with pytest.raises(DataError, match="There is no folder .*Did you mean 'my-model'"):
        load(tmp_path / "my-modell")
    with pytest.raises(DataError, match="the folder .*nowhere does not exist either"):
        load(str(tmp_path / "nowhere" / "m"))
    with pytest.raises(DataError, match="holds no model.*It holds model folders, though: my-model"):
        load(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.db").touch()
    with pytest.raises(DataError, match="wb.resume"):
        load(tmp_path / "run")


def hub_answer(monkeypatch, error):
    from huggingface_hub import HfApi

    def model_info(self, name, **options):
        raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(loading, "_cached_ids", lambda: ["org/real-model"])


def test_hub_ids_that_lead_nowhere(monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def response(kind):
        return kind("x", response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co")))

    hub_answer(monkeypatch, response(RepositoryNotFoundError))
    with pytest.raises(
        DataError, match="no model 'org/real-modle' on the Hub.*Did you mean 'org/real-model'"
    ):
        load("org/real-modle")
    hub_answer(monkeypatch, response(GatedRepoError))
    with pytest.raises(DataError, match="gated.*hf auth login"):
        load("org/gated")
    hub_answer(monkeypatch, response(RevisionNotFoundError))
    with pytest.raises(DataError, match="not revision 'v9'"):
        load("org/real-model", revision="v9")
    hub_answer(monkeypatch, ConnectionError("no network"))
    with pytest.raises(DataError, match="cannot be reached.*In the cache: org/real-model"):
        load("org/else")
    with pytest.raises(DataError, match="Did you mean 'tiny'"):
        load("tinny")


def test_code_of_a_repository_is_refused(tmp_path):
    folder = tiny_model_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="their_own", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "c.py").write_text("raise SystemExit('their code ran')")
    with pytest.raises(DataError, match="Python code of its own, which workbench never runs"):
        load(folder)


def test_models_that_are_no_policy(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    small = dict(vocab_size=260, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(DataError, match="not a causal language model"):
        load(tmp_path / "t5")


def test_missing_weights_are_never_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_model_folder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lacks 1 weights .*lm_head.weight"):
        load(folder)


def test_a_tokenizer_larger_than_the_model(tmp_path):
    folder = tiny_model_folder(tmp_path / "m", vocab_size=257, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(DataError, match="260 tokens but the model only 257"):
        load(folder)


def test_no_tokenizer(tmp_path):
    folder = tiny_model_folder(tmp_path / "m")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(DataError, match="no tokenizer"):
        load(folder)


def test_end_and_pad_tokens(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bare = load(tiny_model_folder(tmp_path / "a", tokenizer=tiny_tokenizer(chat=False, pad_token=None)))
    assert bare.tokenizer.pad_token_id == EOS and bare.stop_ids == (EOS,)
    assert any("no pad token" in note for note in bare.notes)
    assert any("no chat template" in note for note in bare.notes)

    folder = tiny_model_folder(tmp_path / "b", tokenizer=tiny_tokenizer(eos_token=None))
    with pytest.warns(UserWarning, match="no end token; '<eos>' is used"):
        assert load(folder).tokenizer.eos_token_id == EOS

    folder = tiny_model_folder(tmp_path / "c", tokenizer=tiny_tokenizer(eos_token=None), eos_token_id=None)
    with pytest.raises(DataError, match="no end token and the model names none"):
        load(folder)

    both = load(tiny_model_folder(tmp_path / "d", generation={"eos_token_id": [259, EOS]}))
    assert both.stop_ids == (EOS, 259)
    assert any("stop at any of '<eos>', '<end>'" in note for note in both.notes)


def test_a_template_that_writes_bos_itself():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<bos>" + tokenizer.chat_template
    assert loading.template_notes(tokenizer) == []  # this tokenizer adds none

    class Adding:
        chat_template, bos_token, bos_token_id = tokenizer.chat_template, "<bos>", tokenizer.bos_token_id
        apply_chat_template = tokenizer.apply_chat_template

        def __call__(self, text):
            return {"input_ids": [self.bos_token_id, *tokenizer(text)["input_ids"]]}

    assert "adds no second one" in loading.template_notes(Adding())[0]


def test_shipped_model_if_it_is_there():
    if not (loading.SHIPPED / "config.json").is_file():
        with pytest.raises(DataError, match="shipped model is missing"):
            load("tiny")
        return
    policy = load("tiny", device="cpu")
    assert policy.describe()["model"] == "tiny" and policy.describe()["base"] == "tiny"
    assert len(policy.sample(["1 + 1 ="], n=2, max_new_tokens=4)) == 2


# ---------------------------------------------------------------- adapters


def test_attach_starts_as_the_base_and_trains_only_the_adapter(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    everything = sum(p.numel() for p in policy.trainable().values())
    before = scores(policy)
    assert policy.attach(LoRA(r=4)) is policy
    assert torch.equal(scores(policy), before)
    names = list(policy.trainable())
    assert names and all("lora_" in name for name in names)
    assert len(names) == 2 * 2 * 7  # two layers of seven linear maps, A and B each; not the output head
    assert sum(p.numel() for p in policy.trainable().values()) < everything
    assert not any(m.training for m in policy.model.modules())
    assert "LORA r=4" in repr(policy)


def test_attach_is_seeded_and_leaves_torch_alone(tmp_path):
    folder = tiny_model_folder(tmp_path / "m")
    state = torch.get_rng_state()
    first, again, other = (load(folder, seed=s).attach(LoRA(r=4)).params() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_any_peft_config_goes_and_stays_as_it_was(tmp_path):
    from peft import IA3Config, LoraConfig

    config = LoraConfig(r=2, target_modules=["q_proj"])
    policy = tiny_policy(tmp_path / "m").attach(config)
    assert config.task_type is None and policy.adapter.task_type == "CAUSAL_LM"
    assert len(policy.trainable()) == 4
    ia3 = tiny_policy(tmp_path / "n").attach(IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    assert len(ia3.trainable()) == 2


def test_what_cannot_be_attached(tmp_path):
    from peft import LoraConfig

    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match="q_prog.*Linear layers there.*Did you mean 'q_proj'"):
        policy.attach(LoRA(targets=["q_prog"]))
    with pytest.raises(SettingError, match="dict is no adapter"):
        policy.attach({"r": 4})
    with pytest.raises(SettingError, match="pass an instance"):
        policy.attach(LoRA)
    with pytest.raises(SettingError, match="a policy is a causal LM"):
        policy.attach(LoraConfig(task_type="SEQ_CLS"))
    for wrong in (dict(r=0), dict(alpha=0), dict(dropout=1.0), dict(targets=[])):
        with pytest.raises(SettingError, match=f"LoRA: {next(iter(wrong))}"):
            policy.attach(LoRA(**wrong))
    assert not policy.has_adapter
    policy.attach(LoRA(r=2))
    with pytest.raises(SettingError, match="has an adapter already.*export"):
        policy.attach(LoRA(r=2))


@pytest.mark.parametrize("method", ["prompt", "prefix", "p-tuning"])
def test_prompt_learning_scores_and_samples(tmp_path, method):
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    config = {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    }[method]
    policy = noisy_adapter(tiny_policy(tmp_path / "m").attach(config), scale=1.0)
    mine = scores(policy)
    for b, (ids, start) in enumerate(zip(IDS, STARTS, strict=True)):
        with torch.no_grad():  # peft's own way, one row, with a mask
            logits = policy.model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
        logp = torch.log_softmax(logits[0, -len(ids) :], -1)
        for t in range(start, len(ids)):
            assert abs(mine[b, t - start].item() - logp[t - 1, ids[t]].item()) < 1e-5
    prompts = [prompt_of(policy, t) for t in ("Hello", "a longer one")]
    rollouts = policy.sample_prompts(prompts, 2, max_new_tokens=5, keys=[1, 2, 3, 4])
    again = policy.score(rollouts.prompt_ids, rollouts.ids)
    assert max(abs(a - b).max() for a, b in zip(again.logprob, rollouts.logprob, strict=True)) < 1e-5
    with pytest.raises(DataError, match="max_new_tokens=2 at most"):
        policy.sample(["b" * 251], max_new_tokens=3)  # three of 256 places go to virtual tokens


# ---------------------------------------------------------------- whose weights


def moved(params, by=0.05):
    return {name: tensor + by for name, tensor in params.items()}


@pytest.mark.parametrize("lora", [False, True])
def test_hold_swaps_pointers_and_reset_goes_back(tmp_path, lora):
    policy = tiny_policy(tmp_path / "m", "qwen3")
    if lora:
        policy.attach(LoRA(r=4))
    at_start, pointers = scores(policy), {n: t.data_ptr() for n, t in policy.params().items()}
    mine = moved(policy.params())
    policy.hold(mine, "run-1")
    assert policy.holder == "run-1" and "held by: run-1" in repr(policy)
    assert all(policy.params()[n].data_ptr() == t.data_ptr() for n, t in mine.items())
    changed = scores(policy)
    assert not torch.equal(changed, at_start)
    with torch.no_grad():
        for p in policy.trainable().values():  # an update in place is one of the run's own tensors
            p.mul_(0.5)
    assert torch.equal(mine[next(iter(mine))], policy.params()[next(iter(mine))])
    assert policy.reset() is policy and policy.holder == "start"
    assert {n: t.data_ptr() for n, t in policy.params().items()} == pointers
    assert torch.equal(scores(policy), at_start)


def test_tied_weights_stay_tied(tmp_path):
    policy = tiny_policy(tmp_path / "m", "qwen3")
    assert not any("lm_head" in name for name in policy.trainable())
    policy.hold(moved(policy.params()), "run")
    model = policy.model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_holding_comes_back_after_an_error(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    before, pointers = scores(policy), {n: t.data_ptr() for n, t in policy.params().items()}
    other = moved(policy.params())
    with policy.holding(other, "reference"):
        assert policy.holder == "reference" and not torch.equal(scores(policy), before)
    with pytest.raises(KeyError), policy.holding(other):
        raise KeyError
    assert policy.holder == "start" and {n: t.data_ptr() for n, t in policy.params().items()} == pointers
    assert torch.equal(scores(policy), before)


def test_gradients_survive_holding(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    policy.token_scores(IDS, STARTS).logprob.sum().backward()
    kept = {n: p.grad.clone() for n, p in policy.trainable().items()}
    with policy.holding(moved(policy.params())):
        scores(policy)
    assert all(torch.equal(p.grad, kept[n]) for n, p in policy.trainable().items())


def test_weights_that_are_not_the_models(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    good = policy.params()
    name = next(iter(good))
    for bad, words in [
        ({n: t for n, t in good.items() if n != name}, "1 names differ"),
        ({**good, name: good[name][:1]}, "should be"),
        ({**good, name: good[name].double()}, "float64"),
    ]:
        with pytest.raises(RunError, match=words):
            policy.hold(bad, "run")
    assert policy.holder == "start"


def test_attach_while_a_run_holds_the_model(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    policy.hold(moved(policy.params()), "run-1")
    with pytest.raises(SettingError, match="holds the weights of 'run-1'; call policy.reset"):
        policy.attach(LoRA())


def test_description_loads_it_again(tmp_path):
    policy = load(tiny_model_folder(tmp_path / "m"), seed=3).attach(
        LoRA(r=4, dropout=0.1, targets=["q_proj", "v_proj"])
    )
    record = json.loads(json.dumps(policy.describe()))
    again = from_description(record)
    assert again.describe() == record and again.adapter.lora_dropout == 0.1
    mine, theirs = policy.params(), again.params()
    assert list(mine) == list(theirs) and all(torch.equal(mine[n], theirs[n]) for n in mine)
    bare = tiny_policy(tmp_path / "n")
    assert from_description(json.loads(json.dumps(bare.describe()))).adapter is None


# ---------------------------------------------------------------- sampling


def test_keys_of_sampling_are_those_documented(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    prompts = [prompt_of(policy, t) for t in ("a", "b")]
    row_keys = [keys.key(7, "sample", row, sample) for row in range(2) for sample in range(2)]
    expected = policy.sample_prompts(prompts, 2, max_new_tokens=6, keys=row_keys)
    assert policy.sample(["a", "b"], n=2, max_new_tokens=6, seed=7).ids == expected.ids
