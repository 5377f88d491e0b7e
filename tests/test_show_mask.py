"""`wb.show_mask`: what a run does with every token of its rows, in a page and in a terminal."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.models import tiny_policy
from workbench.errors import DataError, SettingError
from workbench.methods.context import Context
from workbench.views.mask import KINDS, WHY, MaskView

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
MORE = [*TALK, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so it is"}]
DEEP = {"prompt": "a prompt that is much too long for it", "completion": "b"}
LONG = {"prompt": "Say it: ", "completion": "yes or no or perhaps"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("model"), lora=True)


def texts(view: MaskView, kind: str) -> list[str]:
    """Of each strip, the text of the tokens of a kind."""
    strips = [strip for unit in view.units for strip in unit.strips]
    return [
        "".join(text for text, why in zip(view._tokens(s.ids), s.why, strict=True) if KINDS[WHY[why][0]] == kind)
        for s in strips
    ]


def test_the_completion_and_its_stop_token_train(policy):
    shown = wb.show_mask(policy, [{"prompt": "Say: ", "completion": "yes"}, {"prompt": "No: ", "completion": "no"}])
    first, second, report = repr(shown).split("\n\n")
    assert first == "Row 0\nSay: «yes<eos>»" and second == "Row 1\nNo: «no<eos>»"
    assert report.startswith("2 of 2 rows kept\n16 tokens: 7 trained")
    assert shown.totals == {"trained": 7, "context": 9, "dropped": 0}


def test_settings_are_those_of_the_run(policy):
    assert "[«user]hi<end>[assistant]ho<end>»" in repr(wb.show_mask(policy, [{"messages": TALK}]))
    shown = wb.show_mask(policy, [{"messages": TALK}], assistant_only_loss=True)
    assert "[user]hi<end>[assistant]«ho<end>»" in repr(shown)
    with pytest.raises(SettingError, match="assistant_only_loss"):
        wb.show_mask(policy, [{"messages": TALK}], asistant_only_loss=True)
    with pytest.raises(DataError):
        wb.show_mask(policy, [{"number": 3}])
    with pytest.raises(SettingError, match="Did you mean 'sft'"):
        wb.show_mask(policy, [{"messages": TALK}], method="sftt")


# -- the numbers are those of training

SEGMENTS = [{"text": "ask ", "train": False}, {"text": "good", "weight": 0.5}, {"text": " no", "weight": 0.0}]
PAIR = {"prompt": "a b c", "chosen": "b or b", "rejected": "c, then again c"}
CHAT_PAIR = {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [{"role": "assistant", "content": "so it is"}]}
FORMS = {
    "text": ("sft", [{"text": "one"}, {"text": "two two"}], {}),
    "prompt_completion": ("sft", [LONG, {"prompt": "a", "completion": "b"}], {}),
    "all_of_it": ("sft", [LONG, {"prompt": "a", "completion": "b"}], {"completion_only_loss": False}),
    "chat_prompt": ("sft", [{"prompt": TALK[:1], "completion": TALK[1:]}], {}),
    "messages": ("sft", [{"messages": MORE}], {}),
    "assistant": ("sft", [{"messages": MORE}, {"messages": TALK}], {"assistant_only_loss": True}),
    "segments": ("sft", [{"segments": SEGMENTS}], {}),
    "weights": ("sft", [LONG | {"weight": 0.5}, {"prompt": "a", "completion": "b", "weight": 2.0}], {}),
    "cut": ("sft", [LONG, {"prompt": "a", "completion": "b"}], {"max_length": 12}),
    "cut_start": ("sft", [LONG, LONG], {"max_length": 12, "truncation_mode": "keep_end"}),
    "dropped": ("sft", [LONG, {"prompt": "far too long a prompt", "completion": "b"}], {"max_length": 10}),
    "empty": ("sft", [LONG, LONG | {"weight": 0.0}], {}),
    "padding_free": ("sft", [LONG, {"prompt": "a", "completion": "b"}], {"padding_free": True}),
    "bfd": ("sft", [LONG, LONG, {"prompt": "a", "completion": "b"}], {"packing": True, "max_length": 20}),
    "bfd_split": ("sft", [LONG, LONG], {"packing": True, "packing_strategy": "bfd_split", "max_length": 10}),
    "bfd_end": (
        "sft",
        [LONG, DEEP, {"prompt": "a", "completion": "b"}],
        {"packing": True, "max_length": 20, "truncation_mode": "keep_end"},
    ),
    "split_dropped": ("sft", [DEEP, LONG], {"packing": True, "packing_strategy": "bfd_split", "max_length": 10}),
    "wrapped_dropped": ("sft", [LONG, DEEP], {"packing": True, "packing_strategy": "wrapped", "max_length": 10}),
    "wrapped": ("sft", [LONG, LONG, LONG], {"packing": True, "packing_strategy": "wrapped", "max_length": 11}),
    "wrapped_text": ("sft", [{"text": "ab"}] * 3, {"packing": True, "packing_strategy": "wrapped", "max_length": 7}),
    "dpo": ("dpo", [PAIR, PAIR], {}),
    "dpo_cut": ("dpo", [PAIR, {"prompt": "much too long", "chosen": "a", "rejected": "b"}], {"max_length": 9}),
    "dpo_end": ("dpo", [PAIR, PAIR], {"max_length": 9, "truncation_mode": "keep_end"}),
    "dpo_chat": ("dpo", [CHAT_PAIR], {}),
    "dpo_shared": ("dpo", [{"chosen": "Say: yes", "rejected": "Say: no"}], {}),
    "kto": ("kto", [LONG | {"label": True}, {"prompt": "a", "completion": "b", "label": False}], {}),
    "kto_cut": ("kto", [LONG | {"label": True}, {"prompt": "a", "completion": "b", "label": 0}], {"max_length": 12}),
    "kto_dropped": (
        "kto",
        [LONG | {"label": 1}, {"prompt": "a", "completion": "b", "label": 0}, DEEP | {"label": 1}],
        {"max_length": 12},
    ),
    "kto_pairs": ("kto", [PAIR, PAIR], {}),
}


def weights_of_update(batch) -> list[float]:
    """The weight of each token that an update takes a loss on."""
    if "weight" in batch.columns:
        return [w for row in batch.columns["weight"] for w in row if w]
    return [1.0] * sum(batch.scored())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_counts_are_those_of_a_real_update(form, policy, tmp_path, monkeypatch):
    method, rows, settings = FORMS[form]
    seen, learn = [], Context.learn

    def spy(self, state, batch, *rest, **named):
        seen.append(batch)
        return learn(self, state, batch, *rest, **named)

    monkeypatch.setattr(Context, "learn", spy)
    shown = wb.show_mask(policy, rows, method=method, **settings)
    used = [unit for unit in shown.units if any(strip.trained for strip in unit.strips)]
    labels = 2 * len(rows) if form == "kto_pairs" else len(used)
    run = getattr(wb, method)(policy, rows, steps=1, batch_size=labels, seed=0, out=tmp_path / "run", **settings)
    next(iter(run))
    (batch,) = seen
    assert shown.totals["trained"] == len(weights_of_update(batch)) > 0
    assert shown.totals["trained"] + shown.totals["context"] == sum(map(len, batch.sequences))
    assert shown.totals["trained"] + shown.totals["context"] == run.metrics["num_tokens"].iloc[-1]
    mine = [float(w) for unit in shown.units for strip in unit.strips for w in strip.weight if w]
    assert sorted(mine) == sorted(weights_of_update(batch))
    policy.reset()


# -- what is dropped, and why


def test_what_is_cut_is_shown_with_the_reason(policy):
    shown = wb.show_mask(policy, [{"prompt": "Say: ", "completion": "yes or no"}], max_length=9)
    assert "Say: «yes »⟦or no<eos>⟧" in repr(shown) and "removed the stop token" in repr(shown)
    assert shown.totals == {"trained": 4, "context": 5, "dropped": 6}
    (strip,) = shown.units[0].strips
    assert WHY[strip.why[-1]][1] == "dropped: it stands beyond max_length"
    shown = wb.show_mask(policy, [LONG], max_length=12, truncation_mode="keep_end")
    assert texts(shown, "dropped") == ["Say it: yes or no"]
    assert WHY[shown.units[0].strips[0].why[0]][1] == "dropped: it stands before the last max_length tokens"


def test_rows_that_are_dropped_whole_stand_with_their_number_and_reason(policy):
    rows = [LONG, {"prompt": "a prompt that is too long", "completion": "b"}, LONG | {"weight": 0.0}]
    shown = wb.show_mask(policy, rows, max_length=12)
    assert shown.rows == (3, 3) and shown.kept == 1
    assert [texts(shown, "dropped")[i] for i in (1, 2)] == [
        "a prompt that is too longb<eos>",
        "Say it: yes or no or perhaps<eos>",
    ]
    assert [name for name, _ in shown.units[1].problems] == ["masked"]
    assert [name for name, _ in shown.units[2].problems] == ["empty"]
    by_name = {trouble.name: trouble for trouble in shown.troubles}
    assert by_name["masked"].rows == (1,) and by_name["masked"].count == 1
    assert "1 of 3 rows kept, 2 dropped" in repr(shown)


def test_what_a_template_writes_after_the_stop_token(policy, monkeypatch):
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>\n{% endfor %}"
    generate = "{% if add_generation_prompt %}[assistant]{% endif %}"
    monkeypatch.setattr(policy.tokenizer, "chat_template", template + generate)
    shown = wb.show_mask(policy, [CHAT_PAIR])
    assert texts(shown, "dropped") == ["\n", "\n"]  # a pair's answers end with the stop token
    shown = wb.show_mask(policy, [{"messages": TALK}], assistant_only_loss=True)
    assert texts(shown, "trained") == ["ho<end>"] and texts(shown, "dropped") == [""]


def test_pairs_and_labels(policy):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert repr(wb.show_mask(policy, [pair])).startswith("Row 0, chosen\na«b<eos>»\n\nRow 0, rejected\na«c<eos>»")
    labelled = {"prompt": "a", "completion": "b", "label": False}
    assert repr(wb.show_mask(policy, [labelled])).startswith("Row 0, undesirable\na«b<eos>»")
    assert "raises the likelihood of the prompt" in repr(wb.show_mask(policy, [pair], method="orpo"))


def test_documents_of_a_pack_each_have_a_strip(policy):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    shown = wb.show_mask(policy, rows, packing=True, max_length=32)
    (pack,) = shown.units
    assert [strip.title for strip in pack.strips] == ["Row 0", "Row 1"] and pack.rows == (0, 1)
    wrapped = wb.show_mask(policy, [LONG, LONG], packing=True, packing_strategy="wrapped", max_length=20)
    assert wrapped.units[1].rows == (0, 1) and "see each other" in wrapped.units[1].note


def test_a_task_is_shown_as_its_prompts(policy):
    task = wb.Task(
        [{"prompt": TALK[:1], "answer": 1}, {"prompt": TALK[:1] * 20, "answer": 1}], [lambda completions: [0.0]]
    )
    shown = wb.show_mask(policy, task, max_new_tokens=200)
    assert "[user]hi<end>[assistant]\n" in repr(shown) and "sampled" in repr(shown)
    assert shown.totals["trained"] == 0 and shown.kept == 1
    assert [trouble.rows for trouble in shown.troubles] == [(1,)] and "max_new_tokens=" in shown.troubles[0].detail


# -- pages


def test_pages_cover_every_unit_once_and_filters_find_theirs(policy):
    rows = [LONG if i % 5 == 0 else {"prompt": "a", "completion": str(i)} for i in range(40)]
    shown = wb.show_mask(policy, rows, max_length=12)
    titles, start, pages = [], 0, 0
    while start is not None:
        page = shown.page(start)
        titles += [unit["title"] for unit in page["units"]]
        start, pages = page["after"], pages + 1
    assert titles == [f"Row {i}" for i in range(40)] and pages == 4
    assert shown.page(page["start"])["before"] == 24 and page["last"] == page["start"]
    odd = shown.page(0, "problems")
    assert [unit["title"] for unit in odd["units"]] == [f"Row {i}" for i in range(0, 40, 5)]
    assert shown.page(0, "cut")["matched"] == 8 and shown.page(0, "empty")["matched"] == 0
    assert shown.page(10**9)["start"] == page["start"] and shown.page(-5)["start"] == 0


def test_totals_are_over_all_rows_up_to_the_limit(policy):
    rows = [{"prompt": "a", "completion": "b"}] * 10
    assert wb.show_mask(policy, rows, n=1).totals["trained"] == 20
    shown = wb.show_mask(policy, rows, limit=4)
    assert shown.totals["trained"] == 8 and "the first 4 of 10 rows" in repr(shown)


def test_a_long_text_is_shown_by_its_ends(policy):
    shown = wb.show_mask(policy, [{"text": "ab" * 5000}], max_length=None)
    (strip,) = shown.page()["units"][0]["strips"]
    head, gap, tail = strip["parts"]
    assert head["at"] == 0 and gap == {"gap": 10_001 - 4000} and tail["text"][-1] == "<eos>"
    assert tail["at"] + len(tail["ids"]) == 10_001
    assert len(shown.static_html()) < 100_000


def test_weights_show_and_text_cannot_act(policy):
    segments = [{"text": "<b>&", "train": False}, {"text": "x", "weight": 0.5}, {"text": "<script>", "weight": 2.0}]
    shown = wb.show_mask(policy, [{"segments": segments}])
    page = shown.static_html()
    assert "<b>&" not in page and "<script>" not in page and "&lt;" in page
    assert (
        page.count('title="token 4: weight 0.5"') == 1
        and page.count(": weight 2") == 8
        and page.count(": context") == 4
    )
    assert page.index("0.22)") < page.index("0.45)")  # a lighter colour for the lesser weight
    assert "weights of trained tokens from 0.5 to 2" in repr(shown) and shown.head["weights"] == [0.5, 2.0]


def test_nothing_hides_in_a_row(policy):
    hidden = "a\u202eb\u200bc\x1b[31m"
    shown = wb.show_mask(policy, [{"prompt": hidden, "completion": hidden}])
    for made in (shown.static_html(), repr(shown)):
        assert "\x1b" not in made and "\u202e" not in made and "\u200b" not in made
    parts = shown.page()["units"][0]["strips"][0]["parts"]
    assert all(ch.isprintable() or ch == "\n" for part in parts for text in part["text"] for ch in text)


def test_dropped_is_never_counted_as_read(policy):
    """All of a row's tokens are there once, whatever became of them."""
    ids = policy.tokenizer("Say it: yes or no or perhaps<eos>")["input_ids"]
    for settings in ({}, {"max_length": 12}, {"max_length": 12, "truncation_mode": "keep_end"}):
        strip = wb.show_mask(policy, [LONG], **settings).units[0].strips[0]
        assert strip.ids.tolist() == ids and int(strip.counts.sum()) == len(ids)
        assert np.all((strip.weight > 0) == (strip.why == strip.TRAINED))
