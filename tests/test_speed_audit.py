"""The decoder against a slow reference of its own, and what happens at its edges: memory, odd tokens, odd weights."""

import gc
import json
import random
import sqlite3
import weakref

import numpy as np
import peft
import pytest
import torch

import workbench as wb
from tests.models import PAD, prompt_of, tiny_policy
from tests.runs import assert_same_weights, letters, make_run, rows_for, weights
from workbench import footprint, keys, out_of_memory
from workbench import settings as settings_of
from workbench.adapters import sums
from workbench.errors import RunError, SettingError
from workbench.sampling import decoder, fitting, slots, stops

TEXTS = ["ab", "a longer one, to differ", "x", "ab"]
N = 3


def kept(p: np.ndarray, settings: decoder.Sampling) -> np.ndarray:
    """Probabilities after top_k, top_p and min_p, by sorting."""
    if 0 < settings.top_k < len(p):
        p = np.where(p >= np.sort(p)[-settings.top_k], p, 0)
        p = p / p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p = np.where(np.isin(np.arange(len(p)), order[before < settings.top_p]), p, 0)
    return np.where(p >= settings.min_p * p.max(), p, 0) / p[p >= settings.min_p * p.max()].sum()


@torch.no_grad()
def slowly(policy, prompt: list[int], key: int, settings: decoder.Sampling):
    """One completion in float64: a whole forward of the model for every token."""
    ids, made, logprob, uniform = list(prompt), [], [], keys.uniforms(key, settings.max_new_tokens)
    for number in uniform:
        z = policy.model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
        heat = settings.temperature or 1.0
        plain = z / heat - z.max() / heat
        plain -= np.log(np.exp(plain).sum())
        seen = np.isin(np.arange(len(z)), ids)
        by = np.where(z < 0, settings.repetition_penalty, 1 / settings.repetition_penalty)
        z = np.where(seen, z * by, z) / heat
        p = np.exp(z - z.max())
        cdf = kept(p / p.sum(), settings).cumsum()
        token = int(z.argmax() if settings.temperature == 0 else np.searchsorted(cdf / cdf[-1], number, side="right"))
        ids, made, logprob = [*ids, token], [*made, token], [*logprob, plain[token]]
        if token in policy.stop_ids or any(text in policy.text_of(made) for text in settings.stop_strings):
            return made, logprob, "stop"
    return made, logprob, "length"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_the_decoder_draws_what_a_whole_forward_per_token_draws(tmp_path, monkeypatch, kind):
    policy = tiny_policy(tmp_path / "m", kind, lora=True, initializer_range=0.12)
    policy.stop_ids = (*policy.stop_ids, 66, 67)
    rng = random.Random(kind)
    prompts = [prompt_of(policy, text) for text in TEXTS]
    for round_ in range(8):
        monkeypatch.setattr(decoder, "ROWS", rng.choice([2, 5, 256]))
        monkeypatch.setattr(decoder, "PREFILL", rng.choice([8, 8192]))
        settings = decoder.Sampling(
            max_new_tokens=rng.choice([1, 9, 16]),
            temperature=rng.choice([0, 0.7, 1.0, 1.3]),
            top_k=rng.choice([0, 5, 50]),
            top_p=rng.choice([1.0, 0.9, 0.4]),
            min_p=rng.choice([0.0, 0.1]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            stop_strings=rng.choice([(), ("a", "é"), ("ab",)]),
        )
        draws = [keys.key(round_, i) for i in range(len(TEXTS) * N)]
        found = policy.sample_prompts(prompts, N, keys=draws, **vars(settings))
        for i, key in enumerate(draws):
            ids, logprob, finish = slowly(policy, prompts[i // N].ids, key, settings)
            assert (found.ids[i], found.finish_reason[i]) == (ids, finish), (settings, i)
            assert np.abs(found.logprob[i] - logprob).max() < 1e-5


def test_tokens_without_text_hide_no_stop_string(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    (a,), (b,) = (prompt_of(policy, letter).ids for letter in "ab")
    found = stops.StopStrings(["ab"], policy.text_of)
    assert [found.completed(0, token) for token in [a, *[PAD] * 40, b]] == [False] * 41 + [True]


def test_memory_that_runs_out_while_sampling_is_told_and_given_back(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", lora=True)
    before = policy.sample(["ab", "c"], n=2, max_new_tokens=9).ids
    alive, make = [], slots.Slots.__init__

    def made(self, *how):
        alive.append(weakref.ref(self))
        make(self, *how)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def seen(error, model):
        said = clean_up(error, model)
        assert alive[0]() is None  # gone before torch's reserve is given back
        return said

    clean_up = out_of_memory.clean_up
    with monkeypatch.context() as patched:
        patched.setattr(out_of_memory, "clean_up", seen)
        patched.setattr(slots.Slots, "__init__", made)
        patched.setattr(slots.Slots, "end", fail)
        with pytest.raises(RunError, match=r"4 completions of up to 9 tokens were sampled \(CUDA out .*max_new_tokens"):
            policy.sample(["ab", "c"], n=2, max_new_tokens=9)
        patched.setattr(slots.Slots, "end", lambda _: [][0])
        with pytest.raises(IndexError):  # any other error is no question of memory
            policy.sample(["ab"], n=2, max_new_tokens=9)
    gc.collect()
    assert len(alive) == 2 and alive[0]() is None
    assert not any("forward" in module.__dict__ for module in policy.model.modules())
    assert policy.sample(["ab", "c"], n=2, max_new_tokens=9).ids == before


def test_a_model_that_runs_out_of_memory_while_it_is_tried_is_tried_again(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m")

    def fail(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    with monkeypatch.context() as patched:
        patched.setattr(slots.Slots, "end", fail)
        with pytest.raises(RunError, match="Memory ran out"):
            policy.sample("a", n=1, max_new_tokens=2)
    assert decoder.why_plain(policy.model, policy.filler) is None


def test_weights_that_are_no_numbers_say_nothing_about_the_model(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    policy.hold({name: torch.full_like(p, torch.nan) for name, p in policy.params().items()}, "astray")
    with pytest.raises(RunError, match="not numbers"):
        policy.sample("a", n=1, max_new_tokens=2)
    assert policy.model not in fitting._reasons.known
    policy.reset().sample("a", n=1, max_new_tokens=2)
    assert fitting._reasons.known[policy.model] is None


@pytest.mark.parametrize("given", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused_before_a_run(given):
    with pytest.raises(SettingError, match=r"stop_strings\[\d\] is an empty text"):
        settings_of.make("grpo", {"stop_strings": given})


def test_a_stop_string_that_is_no_list_is_answered_with_one():
    with pytest.raises(SettingError, match=r"Give a list: stop_strings=\['end'\]"):
        settings_of.make("grpo", {"stop_strings": "end"})


def test_evaluate_samples_by_all_settings(tmp_path):
    policy = tiny_policy(tmp_path / "m", initializer_range=0.12)
    task = wb.Task(rows_for("grpo", 3), rewards=[letters])

    def texts(**settings):
        return wb.evaluate(policy, task, n=2, max_new_tokens=20, **settings).rollouts

    plain = texts()
    assert texts(min_p=1.0).ids == texts(temperature=0).ids != plain.ids
    stop = plain.text[0][4]
    cut = texts(stop_strings=[stop])
    assert cut.text[0] == plain.text[0][: plain.text[0].index(stop) + 1] and cut.finish_reason[0] == "stop"
    again = texts(temperature=0, repetition_penalty=1e6)
    assert all(len(set(ids)) == len(ids) for ids in again.ids) and again.ids != texts(temperature=0).ids
    for wrong in ({"min_p": 2.0}, {"repetition_penalty": 0.0}, {"stop_strings": [""]}, {"stop_strings": "a"}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            texts(**wrong)


def test_a_penalty_is_part_of_what_drawing_takes(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    made = [
        footprint.drawn(policy, [4] * 4, settings_of.make("grpo", {"group_size": 64, "repetition_penalty": penalty}))[1]
        for penalty in (1.0, 1.2)
    ]
    assert made[1] >= made[0] + 4 * 64 * policy.vocab_size  # at least which tokens each row has seen


def test_folded_weights_are_foretold_alike_before_and_after_sampling_and_as_kept(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    settings = settings_of.make("grpo", {"max_new_tokens": 16})
    before = footprint.drawn(policy, [4] * 8, settings)
    assert policy.model not in sums._buffers  # no memory is kept
    policy.sample("a", n=2, max_new_tokens=16)
    made = sums._buffers[policy.model]
    assert before[0] == sum(map(len, made.values())) > 0
    assert footprint.drawn(policy, [4] * 8, settings) == before
    unfolded = footprint.drawn(policy, [4] * 8, settings_of.make("grpo", {"max_new_tokens": 2}))
    assert unfolded == (0, before[1])  # what drawing takes is no matter of folding
    assert sums._buffers[policy.model] is made  # a short sampling folds nothing and leaves what is kept
    phases = wb.forecast(policy, "grpo", max_new_tokens=16).phases
    assert (phases["folded weights"] == before[0]).all()


def test_keys_before_the_text_cannot_be_recomputed(tmp_path):
    policy = tiny_policy(tmp_path / "m").attach(peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    how = {"steps": 2, "batch_size": 4}
    with pytest.raises(SettingError, match="gradient_checkpointing=True"):
        wb.sft(policy, rows_for("sft"), gradient_checkpointing=True, out=tmp_path / "run", **how)
    advice = wb.forecast(policy, "sft", rows_for("sft"), **how).advice
    assert advice and not any("gradient_checkpointing" in change.change for change in advice)


def test_no_change_is_advised_that_saves_no_more_than_a_part_of_it(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    peaks = {c.change: c.peak for c in wb.forecast(policy, "grpo", max_new_tokens=16).advice}
    assert "micro_batch_size=1" in peaks  # then sampling takes most, and recomputing saves nothing
    assert "micro_batch_size=1, gradient_checkpointing=True" not in peaks
    both = {c.change: c.peak for c in wb.forecast(policy, "sft", max_length=64, batch_size=4).advice}
    assert both["micro_batch_size=1, gradient_checkpointing=True"] < 0.99 * both["micro_batch_size=1"]


def test_a_run_whose_record_lacks_later_settings_goes_on_as_it_was(tmp_path):
    run = make_run("grpo", tmp_path, steps=4)
    run.run(3)
    run.stop()
    later = ("min_p", "repetition_penalty", "stop_strings", "bf16")
    with sqlite3.connect(tmp_path / "run" / "run.db") as db:
        (text,) = db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        stored = {name: value for name, value in json.loads(text).items() if name not in later}
        db.execute("UPDATE meta SET value = ? WHERE key = 'settings'", (json.dumps(stored),))
    db.close()
    again = wb.resume(tmp_path / "run", rewards=[letters])
    assert_same_weights(weights(again), weights(run))
    again.rewind(1)
    again.run(2)
    assert_same_weights(weights(again), weights(run))
    again.set(stop_strings=["e"], min_p=0.1)
    again.run(1)
    assert all("e" not in text[:-1] for text in again.rollouts(4)["completion"])
    assert (again.settings["stop_strings"], again.settings["min_p"]) == (["e"], 0.1)
