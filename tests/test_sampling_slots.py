"""Slots: a cache that rows come to and go from. Whatever the layout, the tokens are those of the plain path."""

import warnings

import numpy as np
import pytest
import torch

from tests.models import prompt_of, tiny_policy
from workbench import keys, worker
from workbench.sampling import decoder, fitting, graphs, slots, sources
from workbench.sampling.sources import Plain, Slotted

LONG = "a somewhat longer prompt than the others, so that rows differ"
TEXTS = ["Hello", "What is 12 + 30?", "a", LONG, "Hello", "z"]
CACHED = ["llama", "qwen3", "gemma2", "gpt2"]


def drawn(policy, texts=TEXTS, n=3, **settings):
    row_keys = [keys.key("slots", i, sample) for i in range(len(texts)) for sample in range(n)]
    return policy.sample_prompts(
        [prompt_of(policy, t) for t in texts], n, keys=row_keys, **{"max_new_tokens": 24, **settings}
    )


def leaving(policy):
    """The same policy, whose completions end early: one token in twelve is an end token."""
    policy.stop_ids = tuple(range(0, 260, 12))
    return policy


def without_a_cache(policy, monkeypatch, **settings):
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "why_plain", lambda *_: "a test wants it")
        return drawn(policy, **settings)


def assert_same(a, b):
    assert a.ids == b.ids and a.finish_reason == b.finish_reason
    for mine, other in ((a.logprob, b.logprob), (a.entropy, b.entropy)):
        assert np.abs(np.concatenate(mine) - np.concatenate(other)).max() < 3e-5


@pytest.mark.parametrize("kind", CACHED)
@pytest.mark.parametrize("whole", [False, True])
def test_slots_equal_plain_forwards_while_rows_come_and_go(tmp_path, monkeypatch, kind, whole):
    monkeypatch.setattr(sources, "capturer", lambda device: graphs.Called if whole else None)
    monkeypatch.setattr(slots, "BUCKET", 4)
    policy = tiny_policy(tmp_path / "m", kind)
    assert decoder.why_plain(policy.model, 0) is None
    prompts = [prompt_of(policy, t).ids for t in TEXTS[:4]]
    pair = Slotted(policy.model, 0, 8, 10), Plain(policy.model, 0)
    kept = []
    with torch.no_grad():
        for source in pair:
            one, two, three, four = source.prefill(prompts)
            seen = [source.place([(two, 1), (one, 2)])]
            seen += [source.step(np.array([5, 6, 7]) + t) for t in range(11)]  # buffers grow, windows of 8 slide
            source.drop(np.array([0]), np.array([2]), 2)
            seen += [source.step(np.array([9, 3])), source.place([(three, 2)]), source.step(np.arange(4))]
            seen += [source.place([(four, 1)])]  # longer than what is left of it: everything moves to the right
            seen += [source.step(np.arange(5) + t) for t in range(30)]
            source.drop(np.array([], dtype=int), np.array([], dtype=int), 3)
            source.drop(np.array([0, 1]), np.array([1, 2]), 2)
            seen += [source.step(np.array([t, 8])) for t in range(20)]  # and to the left
            source.drop(np.array([], dtype=int), np.array([], dtype=int), 0)
            seen += [source.place([(two, 2)]), source.step(np.array([1, 2]))]
            kept.append(torch.cat(seen))
    assert (kept[0] - kept[1]).abs().max() < 3e-5 and kept[0].shape == kept[1].shape


@pytest.mark.parametrize("kind", [*CACHED, "mamba"])
def test_refilled_and_compacted_batches_draw_the_same(tmp_path, monkeypatch, kind):
    policy = leaving(tiny_policy(tmp_path / "m", kind, lora=kind != "mamba"))
    plain = without_a_cache(policy, monkeypatch)
    assert 8 < len({len(ids) for ids in plain.ids}) and plain.finish_reason.count("stop") > 8
    layouts = [{}, {"ROWS": 1}, {"ROWS": 4}, {"ROWS": 7, "PREFILL": 1}, {"CACHE": 60000}, {"ROWS": 5, "COLUMNS": 1}]
    for layout in layouts[: 3 if kind == "mamba" else None]:
        with monkeypatch.context() as patched:
            for name, value in layout.items():
                patched.setattr(decoder, name, value)
            patched.setattr(slots, "BUCKET", 8)
            assert_same(drawn(policy), plain)


def test_captured_steps_draw_the_same(tmp_path, monkeypatch):
    policy = leaving(tiny_policy(tmp_path / "m", "gemma2", lora=True))
    eager = drawn(policy)
    captured = []

    class Counted(graphs.Called):
        def __init__(self, call):
            captured.append(call)
            super().__init__(call)

    monkeypatch.setattr(sources, "capturer", lambda device: Counted)
    assert_same(drawn(policy), eager)
    assert 4 <= len(captured) <= 8, "a step is captured once for each size of batch"
    monkeypatch.setattr(slots, "BUCKET", 8)
    monkeypatch.setattr(decoder, "COLUMNS", 1)
    monkeypatch.setattr(decoder, "ROWS", 5)
    assert_same(drawn(policy), eager)


def test_a_captured_step_reads_the_same_tensors_each_time():
    places = {"x": torch.arange(4.0), "mask": torch.ones(4, 3)}
    steps = graphs.Steps(graphs.Called)
    assert steps.run(lambda x, mask: x + mask.sum(-1), places, 3).tolist() == [3, 4, 5]
    first = steps.inputs["x"].data_ptr()
    again = {"x": torch.arange(4.0) * 10, "mask": torch.ones(4, 3)}
    assert steps.run(lambda x, mask: x * 0, again, 4).tolist() == [3, 13, 23, 33], "the step captured before runs"
    assert steps.inputs["x"].data_ptr() == first and list(steps.steps) == [4]
    wider = {"x": torch.zeros(4), "mask": torch.ones(4, 5)}
    assert steps.run(lambda x, mask: mask.sum(-1), wider, 1).tolist() == [5] and list(steps.steps) == [1]


def test_what_cannot_be_captured_runs_uncaptured_and_says_so_once(tmp_path, monkeypatch):
    class Fails(graphs.Called):
        def __init__(self, call):
            raise RuntimeError("operation not permitted when stream is capturing")

    policy = leaving(tiny_policy(tmp_path / "m"))
    eager = drawn(policy)
    monkeypatch.setattr(sources, "capturer", lambda device: Fails)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = worker.call(drawn, policy)
    assert_same(again, eager)
    assert [str(w.message) for w in said if "captured" in str(w.message)] == [
        "The decode step of this model cannot be captured as a CUDA graph (operation not permitted when stream is "
        "capturing), so sampling launches its kernels one by one: slower, with the same results."
    ]


def test_each_distinct_prompt_goes_through_the_model_once(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m")
    widths = []
    prefill = Slotted.prefill

    def counted(self, prompts):
        widths.append([len(prompt) for prompt in prompts])
        return prefill(self, prompts)

    monkeypatch.setattr(Slotted, "prefill", counted)
    drawn(policy, n=5)
    lengths = sorted({text: len(text) for text in TEXTS}.values(), reverse=True)
    assert widths[-1] == lengths == [61, 16, 5, 1, 1], "longest first, one for the two that are the same"
    monkeypatch.setattr(decoder, "PREFILL", 33)
    widths.clear()
    drawn(policy, n=5)
    assert widths == [[61], [16, 5], [1, 1]]


def test_the_cache_is_bounded_in_bytes(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m")
    assert fitting.bytes_per_token(policy.model) == 2 * 2 * 2 * 8 * 4  # keys and values, 2 layers, 2 heads, 8 wide
    made = []

    class Counted(Slotted):
        def __init__(self, model, filler, places, columns):
            made.append(places)
            super().__init__(model, filler, places, columns)

    monkeypatch.setattr(decoder, "Slotted", Counted)
    drawn(policy, n=5)
    longest = max(map(len, TEXTS)) + 24
    monkeypatch.setattr(decoder, "CACHE", 256 * longest * 4 // 3 * 7 + 10)
    drawn(policy, n=5)
    assert made == [30, 7]


def test_why_a_model_is_sampled_without_a_cache(tmp_path):
    import peft

    mamba = tiny_policy(tmp_path / "mamba", "mamba")
    mamba.sample("a", n=1, max_new_tokens=2)
    mamba.sample("a", n=1, max_new_tokens=2)
    why = "what it remembers of a text is more than keys and values"
    note = f"it is sampled without a cache, which is slower: {why}"
    assert [note for note in mamba.notes if "without a cache" in note] == [note] and note in repr(mamba)
    prompted = tiny_policy(tmp_path / "prompted")
    prompted.attach(peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert "virtual tokens" in decoder.why_plain(prompted.model, 0)
    assert len(prompted.sample(["Hello", "a"], n=2, max_new_tokens=5).ids) == 4
    plain = tiny_policy(tmp_path / "plain")
    plain.sample("a", n=1, max_new_tokens=2)
    assert not any("without a cache" in note for note in plain.notes)


def test_a_model_that_gives_other_logits_with_slots_takes_the_plain_path(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m")
    forgets = slots.Slots.positions
    monkeypatch.setattr(slots.Slots, "positions", lambda self: forgets(self) + 1)
    assert decoder.why_plain(policy.model, 0) == "with a cache of slots its logits are others"
    other = tiny_policy(tmp_path / "n")
    monkeypatch.setattr(slots.SlotLayer, "update", lambda *_: [][0])
    assert "IndexError" in decoder.why_plain(other.model, 0)
    assert_same(drawn(other, n=1), without_a_cache(other, monkeypatch, n=1))


def test_sliding_windows_alone_and_eager_attention(tmp_path, monkeypatch):
    for number, changes in enumerate(
        [
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": 5},
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 2},
        ]
    ):
        policy = leaving(tiny_policy(tmp_path / f"m{number}", "qwen3", use_sliding_window=True, **changes))
        plain = without_a_cache(policy, monkeypatch, n=2)
        for attention in ("sdpa", "eager"):
            policy.model.set_attn_implementation(attention)
            fitting._reasons.known.clear()
            assert decoder.why_plain(policy.model, 0) is None
            assert_same(drawn(policy, n=2), plain)


def test_an_nf4_base_is_sampled_with_slots(tmp_path, monkeypatch):
    from workbench.policy import load

    policy = tiny_policy(tmp_path / "m", hidden_size=64, intermediate_size=128)
    policy = load(tmp_path / "m", quantize="nf4", device="cpu")
    assert decoder.why_plain(policy.model, 0) is None
    policy = leaving(policy)
    assert drawn(policy, n=2).ids == without_a_cache(policy, monkeypatch, n=2).ids


def test_a_longer_prompt_than_what_is_left_of_the_batch_finds_room():
    held = slots.Slots([None], 4, 6, torch.device("cpu"), whole=False)
    held.batch, held.column = 1, 6
    held.start[0] = 4
    held._mark()
    held.layers[0].lazy_initialization(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    held.layers[0].keys[0, 0, 4:6, 0] = torch.tensor([1.0, 2.0])
    held._reach(9)
    assert (held.column, held.start[0], held.low) == (9, 7, 7) and held.capacity >= 9
    assert held.layers[0].keys[0, 0, 7:9, 0].tolist() == [1, 2]
    assert held.own[0].nonzero()[:, 0].tolist() == [7, 8]


def test_min_p_and_repetition_penalty_reach_the_draw(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m")
    greedy = drawn(policy, n=1, temperature=0)
    assert drawn(policy, n=1, min_p=1.0).ids == greedy.ids
    penalised = drawn(policy, n=1, temperature=0, repetition_penalty=1e9)
    for text, ids in zip(TEXTS, penalised.ids, strict=True):
        read = prompt_of(policy, text).ids
        assert not set(ids) & set(read) and len(set(ids)) == len(ids)
    monkeypatch.setattr(decoder, "ROWS", 2)
    settings = {"n": 2, "repetition_penalty": 1.4}
    assert drawn(leaving(policy), **settings).ids == without_a_cache(policy, monkeypatch, **settings).ids


def test_a_repetition_penalty_is_that_of_generate(tmp_path):
    policy = tiny_policy(tmp_path / "m", "qwen3")
    made = drawn(policy, n=1, temperature=0, max_new_tokens=15, repetition_penalty=1.3)
    for text, ids in zip(TEXTS, made.ids, strict=True):
        prompt = torch.tensor([prompt_of(policy, text).ids])
        theirs = policy.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=15, do_sample=False, repetition_penalty=1.3
        )
        assert ids == theirs[0, prompt.shape[1] :].tolist()
    scores = policy.score(made.prompt_ids, made.ids)
    assert np.abs(np.concatenate(made.logprob) - np.concatenate(scores.logprob)).max() < 1e-5


def test_stop_strings_end_a_completion(tmp_path):
    policy = tiny_policy(tmp_path / "m", generation={"eos_token_id": 258})
    whole = drawn(policy, n=8, max_new_tokens=60)
    texts = [policy.tokenizer.decode(ids, skip_special_tokens=True) for ids in whole.ids]
    strings = [text[9:11] for text in texts if text[9:11].isascii() and len(text) > 10] + ["k"]
    cut = drawn(policy, n=8, max_new_tokens=60, stop_strings=strings)
    stopped = 0
    for ids, short, why, text in zip(whole.ids, cut.ids, cut.finish_reason, cut.text, strict=True):
        ends = [t for t in range(1, len(ids) + 1) if any(s in policy.text_of(ids[:t]) for s in strings)]
        assert short == ids[: ends[0]] if ends else short == ids
        assert (why == "stop") == (bool(ends) or ids[-1] in policy.stop_ids)
        assert text == policy.text_of(short)
        stopped += bool(ends)
    assert stopped > 10


def test_a_stop_string_of_many_tokens_and_of_letters_of_many_bytes(tmp_path):
    from workbench.sampling.stops import StopStrings

    policy = tiny_policy(tmp_path / "m")
    text = "x" * 90 + "wörld → ünd done"
    ids = policy.tokenizer(text)["input_ids"]
    for string in ("wörld → ünd", "x" * 90 + "w", "é"):
        stops = StopStrings([string], policy.text_of)
        at = [t for t, token in enumerate(ids, 1) if stops.completed(0, token)]
        expected = [t for t in range(1, len(ids) + 1) if string in policy.text_of(ids[:t])]
        assert at[:1] == expected[:1]
