"""The decoder: which tokens are drawn, that a batch's layout does not matter, and what is recorded."""

import numpy as np
import pytest
import torch

from tests.models import BOS, END, EOS, prompt_of, tiny_policy
from workbench import keys
from workbench.errors import DataError, Interrupted, SettingError
from workbench.sampling import decoder

TEXTS = ["Hello", "What is 12 + 30?", "a", "a somewhat longer prompt than the others, which pads them"]


def drawn(policy, texts=TEXTS, n=2, first=0, **settings):
    """Rollouts whose keys hang on the text and the sample, not on places."""
    row_keys = [keys.key("test", text, first + sample) for text in texts for sample in range(n)]
    settings = {"max_new_tokens": 24, **settings}
    return policy.sample_prompts([prompt_of(policy, t) for t in texts], n, keys=row_keys, **settings)


def by_text(rollouts):
    return {(rollouts.prompt[i], rollouts.sample[i]): rollouts.ids[i] for i in range(len(rollouts))}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2", "mamba"])
def test_the_layout_of_a_batch_changes_no_token(tmp_path, kind):
    policy = tiny_policy(tmp_path / "m", kind)
    all_at_once = by_text(drawn(policy))
    assert by_text(drawn(policy, TEXTS[::-1])) == all_at_once
    alone = {}
    for text in TEXTS:
        for sample in range(2):
            alone[text, sample] = drawn(policy, [text], n=1, first=sample).ids[0]
    assert alone == all_at_once
    more = by_text(drawn(policy, TEXTS[:2], n=3))
    assert all(more[text, sample] == all_at_once[text, sample] for text in TEXTS[:2] for sample in range(2))


def test_rows_that_finish_leave_without_a_trace(tmp_path):
    # a third of all ids end a completion, so that batches shrink again and again
    policy = tiny_policy(tmp_path / "m")
    full = drawn(policy, n=8)
    stops = set(range(0, 260, 3))
    policy.stop_ids = tuple(stops)
    cut = drawn(policy, n=8)
    assert len({len(ids) for ids in cut.ids}) > 3
    for long, short, reason in zip(full.ids, cut.ids, cut.finish_reason, strict=True):
        at = next((t for t, token in enumerate(long) if token in stops), None)
        assert short == (long if at is None else long[: at + 1])
        assert reason == ("length" if at is None else "stop")


def test_turns_change_no_token(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m")
    whole = drawn(policy, n=5)
    monkeypatch.setattr(decoder, "ROWS", 3)
    turns = drawn(policy, n=5)
    assert turns.ids == whole.ids and turns.sample == whole.sample and turns.prompt == whole.prompt


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_temperature_zero_is_what_transformers_generates(tmp_path, kind):
    policy = tiny_policy(tmp_path / "m", kind)
    for text, ids in zip(TEXTS, drawn(policy, n=1, temperature=0, max_new_tokens=12).ids, strict=True):
        prompt = torch.tensor([prompt_of(policy, text).ids])
        theirs = policy.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
        )[0, prompt.shape[1] :]
        assert ids == theirs.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0])
def test_recorded_scores_are_those_of_scoring(tmp_path, temperature):
    policy = tiny_policy(tmp_path / "m", lora=True, initializer_range=0.2)
    rollouts = drawn(policy, temperature=temperature, top_p=0.9, top_k=40)
    scores = policy.score(rollouts.prompt_ids, rollouts.ids, temperature=temperature)
    for i in range(len(rollouts)):
        assert rollouts.logprob[i].dtype == np.float32 and len(rollouts.logprob[i]) == len(rollouts.ids[i])
        assert np.abs(rollouts.logprob[i] - scores.logprob[i]).max() < 1e-5
        assert np.abs(rollouts.entropy[i] - scores.entropy[i]).max() < 1e-5


def test_sample_is_keyed_by_seed_and_place(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    first = policy.sample(TEXTS, n=3, max_new_tokens=10, seed=5)
    assert first.group == first.row == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] and first.sample == [0, 1, 2] * 4
    assert policy.sample(TEXTS, n=3, max_new_tokens=10, seed=5).ids == first.ids
    assert policy.sample(TEXTS, n=3, max_new_tokens=10, seed=6).ids != first.ids
    assert policy.sample(TEXTS[:2], n=3, max_new_tokens=10, seed=5).ids == first.ids[:6]
    assert [ids[:4] for ids in first.ids] == policy.sample(TEXTS, n=3, max_new_tokens=4, seed=5).ids
    assert len({tuple(ids) for ids in first.ids}) == 12


def test_sampling_leaves_everything_as_it_was(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    policy.model.train()
    policy.model.base_model.model.lm_head.eval()
    modes = [m.training for m in policy.model.modules()]
    config, state = policy.model.config.to_dict(), torch.get_rng_state()
    policy.sample(TEXTS, n=2, max_new_tokens=4)
    assert [m.training for m in policy.model.modules()] == modes
    assert policy.model.config.to_dict() == config and torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_prompts_of_both_kinds(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    chat = [{"role": "user", "content": "Hi"}]
    rollouts = policy.sample([chat, "Hi"], n=1, max_new_tokens=3)
    assert rollouts.prompt == [chat, "Hi"]
    assert rollouts.prompt_text == ["[user]Hi<end>[assistant]", "Hi"]
    assert END in rollouts.prompt_ids[0] and rollouts.prompt_ids[1] == policy.tokenizer("Hi")["input_ids"]
    assert policy.sample(chat, n=1, max_new_tokens=3).ids == rollouts.ids[:1]
    assert policy.sample("Hi", n=2, max_new_tokens=3).prompt == ["Hi", "Hi"]


def test_all_end_tokens_stop_and_stay_out_of_the_text(tmp_path):
    policy = tiny_policy(tmp_path / "m", generation={"eos_token_id": [END, 65]})
    assert set(policy.stop_ids) == {EOS, END, 65}
    rollouts = drawn(policy, n=40, max_new_tokens=40, temperature=3.0)
    ends = {ids[-1] for ids, why in zip(rollouts.ids, rollouts.finish_reason, strict=True) if why == "stop"}
    assert ends == {EOS, END, 65}
    for ids, text, why in zip(rollouts.ids, rollouts.text, rollouts.finish_reason, strict=True):
        assert not set(ids[:-1]) & set(policy.stop_ids)
        assert text == policy.tokenizer.decode(ids[:-1] if why == "stop" else ids, skip_special_tokens=True)
        assert (why == "length") == (ids[-1] not in policy.stop_ids) and (why == "stop" or len(ids) == 40)


def test_check_is_called_every_token_and_may_raise(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 5:
            raise Interrupted("enough")

    policy.model.train()
    with pytest.raises(Interrupted):
        drawn(policy, check=check)
    assert len(calls) == 5 and policy.model.training


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 1.5}, "n=1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_k": -1}, "top_k=-1"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"min_p": None}, "min_p=None"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"stop_strings": "end"}, r"stop_strings=\['end'\]"),
        ({"stop_strings": [""]}, "none of them empty"),
        ({"stop_strings": [3]}, "list of texts"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, words):
    with pytest.raises(SettingError, match=words):
        tiny_policy(tmp_path / "m").sample(["a"], **settings)


def test_prompts_that_do_not_fit(tmp_path):
    policy = tiny_policy(tmp_path / "m")  # it sees 256 tokens
    with pytest.raises(DataError, match="Prompt 1 is too long.*max_new_tokens=6 at most"):
        policy.sample(["a", "b" * 250], max_new_tokens=7)
    policy.sample(["b" * 250], n=1, max_new_tokens=6)
    with pytest.raises(DataError, match="Prompt 0 is too long.*a shorter prompt"):
        policy.sample(["b" * 300], max_new_tokens=7)
    with pytest.raises(DataError, match="Prompt 1.* empty"):
        policy.sample(["a", ""])
    assert BOS not in policy.tokenizer("a")["input_ids"]


def test_keys_must_be_as_many_as_rows(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match="3 keys for 2 prompts of 2"):
        policy.sample_prompts([prompt_of(policy, t) for t in TEXTS[:2]], 2, keys=[1, 2, 3])


def test_no_prompts_no_rollouts(tmp_path):
    assert len(tiny_policy(tmp_path / "m").sample([])) == 0
