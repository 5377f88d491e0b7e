"""The tokens of completions: what an id stands for, what a run keeps of it, what a view says to its page."""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.models import tiny_policy, tiny_tokenizer
from workbench.errors import DataError, StoreError
from workbench.methods.evaluate import join
from workbench.pieces import Pieces, show_bytes
from workbench.store import Store
from workbench.store import tokens as stored
from workbench.views import TokenView, token_picture
from workbench.views.base import Ask, Reply

sys.path.append(str(Path(__file__).parent / "browser"))
import writer  # noqa: E402


def trained_bpe(*texts: str):
    """A byte-level tokenizer whose merges come from these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def with_metaspace():
    """A vocabulary that writes a leading space as ▁ and falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hi", "h", "i", "▁h"]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges = [("▁", "h"), ("▁h", "i")]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def pieces_of(tokenizer, text: str) -> list[str]:
    made = Pieces(tokenizer)
    return [made[i][0] for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_pieces_of_a_byte_level_vocabulary():
    tokenizer = trained_bpe("the cat sat on the mat " * 20)
    assert "".join(pieces_of(tokenizer, "the cat\n sat")) == "the cat\n sat"
    assert " the" in pieces_of(tokenizer, "on the"), "a leading space belongs to its token"
    assert pieces_of(tokenizer, "é€") == ["⟨C3⟩", "⟨A9⟩", "⟨E2⟩", "⟨82⟩", "⟨AC⟩"]
    assert pieces_of(tiny_tokenizer(), "a é") == ["a", " ", "⟨C3⟩", "⟨A9⟩"]


def test_a_token_of_a_whole_character_and_a_part_shows_both():
    assert show_bytes(" é".encode() + b"\xe2\x82") == " é⟨E2 82⟩"
    assert show_bytes(b"\x80\xc3\xa9\xff") == "⟨80⟩é⟨FF⟩"
    assert show_bytes("\ufffd".encode()) == "\ufffd", "a character that the model wrote itself"
    tokenizer = trained_bpe("€€€€ €€ €€ €" * 30)  # learns tokens that are parts of characters and more than one
    assert not any("\ufffd" in piece for piece in pieces_of(tokenizer, "€ €€ a€"))


def test_pieces_of_a_vocabulary_with_a_mark_for_spaces_and_bytes():
    assert pieces_of(with_metaspace(), "hi hi\né") == [" hi", " hi", "\n", "⟨C3⟩", "⟨A9⟩"]


def test_special_tokens_and_ids_that_no_token_has():
    made = Pieces(tiny_tokenizer())
    assert made[258] == ("<eos>", True) and made[259] == ("<end>", True) and made[65][1] is False
    assert made[4000] == ("⟨id 4000⟩", False)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("tokens"))


def test_sampled_rollouts_know_their_pieces(policy):
    rollouts = policy.sample(["one é", "two"], n=2, max_new_tokens=8)
    ids = set().union(*rollouts.ids, *rollouts.prompt_ids)
    assert set(rollouts.pieces) == ids and rollouts.take([0]).pieces == rollouts.pieces
    assert rollouts.pieces[rollouts.prompt_ids[0][-1]] == ("⟨A9⟩", False)
    other = policy.sample(["Z"], n=1, max_new_tokens=2)
    for part in (rollouts, other):
        part.reward = np.zeros(len(part))
    assert set(join([rollouts, other]).pieces) == ids | set(other.pieces)


def committed(folder, rollouts) -> Store:
    store = writer.begin(folder)
    store.commit_step(1, 0, seconds=0.1, metrics={}, state={}, plan={}, threads=1, rollouts=rollouts)
    return store


def test_a_run_keeps_each_piece_once_and_its_tokens_come_in_the_order_asked(tmp_path):
    made = writer.rollouts_of(1)
    made.pieces = {i: (f" t{i}", i == 2) for i in range(60)}
    store = committed(tmp_path / "run", made)
    again = writer.rollouts_of(2)
    again.pieces = {5: ("changed", False), 70: ("new", False)}
    store.commit_step(2, 0, seconds=0.1, metrics={}, state={}, plan={}, threads=1, rollouts=again)
    reader = Store(store.folder)
    assert stored.pieces(reader, [2, 5, 70, 80]) == {2: (" t2", True), 5: (" t5", False), 70: ("new", False)}
    found = stored.records(reader, [7, 2])
    assert [record.id for record in found] == [7, 2] and [record.step for record in found] == [1, 1]
    np.testing.assert_array_equal(found[1].ids, made.ids[1])
    np.testing.assert_array_equal(found[1].logprob, made.logprob[1])
    np.testing.assert_array_equal(found[1].entropy, made.entropy[1])
    assert (found[1].advantage, found[1].group, found[1].sample) == (made.advantage[1], made.group[1], 1)
    assert stored.members(reader, 7) == [5, 6, 7, 8] and stored.of_step(reader, 2, 0) == list(range(9, 17))
    with pytest.raises(StoreError, match="no rollout 99"):
        stored.records(reader, [1, 99])


def test_many_completions_and_pieces_come_in_several_queries(tmp_path):
    store = writer.many_rollouts(tmp_path / "run", rollouts=2000)
    with store.transaction() as db:
        stored.add_pieces(db, {i: (str(i), False) for i in range(3000)})
    ids = list(range(2000, 0, -1))
    assert [record.id for record in stored.records(store, ids)] == ids
    assert len(stored.pieces(store, range(3000))) == 3000


def test_an_older_run_shows_ids_and_gets_its_pieces_with_the_next_step(tmp_path):
    store = writer.begin(tmp_path / "run")
    writer.commit(store, 1)
    with store.transaction() as db:
        db.execute("DROP TABLE pieces")
    reader = Store(store.folder)
    assert stored.pieces(reader, [1, 2]) == {}
    columns = told(TokenView(reader, [1]), "tokens", ids=[1])[1]
    assert columns["piece"][0] == f"⟨{columns['piece_id'][0]}⟩"
    made = writer.rollouts_of(2)
    made.pieces = {1: ("one", False)}
    store.commit_step(2, 0, seconds=0.1, metrics={}, state={}, plan={}, threads=1, rollouts=made)
    assert stored.pieces(reader, [1, 2]) == {1: ("one", False)}


def test_keeping_pieces_costs_little(tmp_path, policy):
    """Under 10 ms a step; here for 64 completions of 256 tokens, with 2,000 ids seen."""
    store = writer.begin(tmp_path / "run")
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, 2000, 256).tolist() for _ in range(64)]
    took = []
    for _ in range(5):
        started = time.perf_counter()
        found = policy.pieces.of(ids)
        with store.transaction() as db:
            stored.add_pieces(db, found)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.010 and len(stored.pieces(store, range(2000))) == 2000


def told(view, question: str, **values):
    """What a page would be told: (content, columns)."""
    heard = []
    view.tell = lambda kind, reply, **_: heard.append(reply if isinstance(reply, Reply) else Reply(reply))
    ask = Ask(view, question, "v", 1)
    ask.done(lambda: getattr(view, f"on_{question}")(ask, **values))
    return (heard[0].content, heard[0].columns) if heard else None


def test_one_completion_brings_its_group_along(tmp_path):
    made = writer.rollouts_of(1)
    made.pieces = {i: (f"t{i}", i == 2) for i in range(100)}
    made.advantage[5] = np.nan
    view = TokenView(Store(committed(tmp_path / "run", made).folder), [6])
    content, columns = told(view, "tokens", ids=[6])
    assert [one["id"] for one in content["rollouts"]] == [5, 6, 7, 8] and content["index"] == 1
    assert [one["n"] for one in content["rollouts"]] == [len(ids) for ids in made.ids[4:]]
    assert content["rollouts"][1]["advantage"] is None
    assert content["rollouts"][0]["advantage"] == pytest.approx(made.advantage[4])
    np.testing.assert_array_equal(columns["logprob"], np.concatenate(made.logprob[4:]))
    np.testing.assert_array_equal(columns["ids"], np.concatenate([[1, 2, 3, *ids] for ids in made.ids[4:]]))
    assert columns["piece"][list(columns["piece_id"]).index(3)] == "t3"
    assert columns["special"][list(columns["piece_id"]).index(2)] == 1
    assert told(view, "tokens", ids=[6, 1])[0]["rollouts"][1]["id"] == 1
    assert "no rollout 99" in told(view, "tokens", ids=[99])[0]["trouble"]
    assert "wb.resume" in content["model"]["why"] and content["model"]["able"] is False
    assert "wb.resume" in told(view, "alternatives", id=6, at=0)[0]["trouble"]


def test_a_large_group_comes_as_far_as_it_can(tmp_path):
    from workbench.views.tokens import records, within

    store = committed(tmp_path / "run", writer.rollouts_of(1))
    found = records(store, range(1, 9))
    sizes = [len(record.ids) for record in found]
    part, index = within(found, 3, most=sum(sizes[2:5]))
    assert part[index] is found[3] and len(part) < 8 and sum(len(record.ids) for record in part) <= sum(sizes[2:5])
    assert within(found, 7, most=1) == ([found[7]], 0)
    assert within(found, 2, most=10**6) == (found, 2)


def test_which_tokens_count_is_told_by_the_settings_of_the_step(tmp_path):
    store = committed(tmp_path / "run", writer.rollouts_of(1))  # the first of four is cut off
    store.add_event(
        2, 0, "set", settings={"mask_truncated_completions": [False, True], "top_entropy_quantile": [1.0, 0.2]}
    )
    store.commit_step(2, 0, seconds=0.1, metrics={}, state={}, plan={}, threads=1, rollouts=writer.rollouts_of(2))
    view = TokenView(store, [1])
    first, second = (told(view, "tokens", ids=[i])[0]["rollouts"] for i in (1, 9))
    assert [(one["kept"], one["partly"]) for one in first] == [(True, False)] * 4
    assert [(one["kept"], one["partly"]) for one in second] == [(False, False)] + [(True, True)] * 3


def test_completions_of_a_frame(policy):
    rollouts = policy.sample(["one é", "two"], n=2, max_new_tokens=8)
    view = TokenView(rollouts.to_pandas(), [2], pieces=rollouts.pieces)
    content, columns = told(view, "tokens", ids=[3])
    assert [one["id"] for one in content["rollouts"]] == [2, 3] and content["index"] == 1
    assert content["rollouts"][1]["prompt"] == 3 and "of a run" in content["model"]["why"]
    np.testing.assert_array_equal(columns["logprob"], np.concatenate(rollouts.logprob[2:]))
    assert set("two") <= set(columns["piece"])
    assert "no completion 9" in told(view, "tokens", ids=[9])[0]["trouble"]
    with pytest.raises(DataError, match="no token ids"):
        TokenView(pd.DataFrame({"prompt": ["a"], "completion": ["b"]}), [0])


class Answering:
    """Stands for a model: answers with what it was asked."""

    def about(self, found):
        return {"able": True, "last": 3, "near": [0, 3], "adapter": True, "line": [True] * len(found)}

    def ask(self, question, about, then, trouble, **how):
        if question == "divergence":
            return trouble("no reference")
        top = {
            "top_id": np.array([7, 2], "i4"),
            "top_logprob": np.zeros(2, "f4"),
            "pieces": {7: ("<b>\x1b\n", False), 2: ("e", True)},
        }
        then({"said": f"{question} of {about.id} with {how}", "logprob": about.logprob, **(top if "at" in how else {})})


def test_questions_go_to_the_model_and_its_answers_to_the_page(tmp_path):
    view = TokenView(committed(tmp_path / "run", writer.rollouts_of(1)), [1], model=Answering())
    content, columns = told(view, "alternatives", id=2, at=3)
    assert content == {"said": "alternatives of 2 with {'at': 3}"}
    assert columns["piece_id"].tolist() == [2, 7] and columns["piece"] == ["e", "<b>⟨ESC⟩\n"]
    assert columns["special"].tolist() == [1, 0] and len(columns["logprob"]) == len(view.source.tokens(2)["ids"])
    assert told(view, "compare", id=2, a=0, b=1)[0]["said"] == "compare of 2 with {'a': 0, 'b': 1}"
    assert told(view, "contribution", id=2)[0]["said"] == "contribution of 2 with {}"
    assert told(view, "divergence", id=2, at=1)[0] == {"trouble": "no reference"}


def test_pictures_are_escaped_whole_and_of_bounded_size(tmp_path):
    made = writer.rollouts_of(1)
    made.pieces = {i: (f"{writer.HOSTILE[:200]}{i}".replace("\ud800", ""), False) for i in range(100)} | {
        1: ("a\n", True)
    }
    made.ids[0][0] = 1
    view = TokenView(Store(committed(tmp_path / "run", made).folder), [1])
    page, text = view.static_html(), view.static_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page and "\x1b" not in page + text
    assert "a↵" in page and "log-prob" in text and "special" in text and len(text.splitlines()) < 50
    long = [("x", False)] * 5000
    page = token_picture.html("many", long, np.full(5000, -1, "f4"), np.full(5000, np.nan, "f4"))
    assert page.count("<span") == 2000 and "3000 more tokens" in page and "entropy –" in page


def test_a_picture_colours_what_was_unlikely():
    logprob = np.array([0.0, -1.0, -4.0, np.nan], "f4")
    page = token_picture.html("four", [("a", False)] * 4, logprob, logprob)
    shades = [part.split(")")[0] for part in page.split("background: ")[1:]]
    assert [shade.rsplit(", ", 1)[-1] for shade in shades[:3]] == ["0.00", "0.16", "0.60"] and shades[3].startswith(
        "transparent"
    )


def test_runs_without_completions_say_so(tmp_path):
    for name, store in writer.states(tmp_path).items():
        ids = [i for (i,) in store.query("SELECT id FROM rollouts ORDER BY id LIMIT 1")]
        if ids:
            assert TokenView(store, ids).static_text().startswith("step "), name
        else:
            with pytest.raises(StoreError, match="no rollout 1"):
                TokenView(store, [1])


def test_the_file_of_a_reader_stays_read_only(tmp_path):
    reader = Store(committed(tmp_path / "run", writer.rollouts_of(1)).folder)
    with pytest.raises((sqlite3.OperationalError, StoreError)), reader.transaction() as db:
        stored.add_pieces(db, {1: ("x", False)})


def test_a_view_that_was_refused_before_it_was_a_widget_closes_quietly():
    TokenView.__new__(TokenView).close()  # as Python does when it collects what `__init__` refused
