"""Ids and masks are TRL 1.16's own, but for what a template writes after the stop token."""

import logging
import os
from types import SimpleNamespace

import datasets
import pytest
from chat_templates import AFTER, BEFORE, FAMILIES, STOPS, assistant, fit, system, tokenizer, trained, user

from workbench import tokenise
from workbench.data import rows
from workbench.errors import DataError


@pytest.fixture(scope="module")
def trl():
    """TRL's own preparation of rows, called as its trainers call it."""
    from trl import DPOTrainer, SFTTrainer

    logging.getLogger("trl").setLevel(logging.ERROR)
    datasets.disable_progress_bars()

    def sft(
        found,
        tok,
        max_length=1024,
        truncation="keep_start",
        completion_only=None,
        assistant_only=False,
        template=None,
    ):
        if completion_only is None:
            completion_only = "prompt" in found[0] and "completion" in found[0]
        trainer = SimpleNamespace(
            _tokenizer=tok, completion_only_loss=completion_only, chat_template=template
        )
        args = SimpleNamespace(
            dataset_num_proc=None,
            dataset_text_field="text",
            assistant_only_loss=assistant_only,
            max_length=max_length,
            truncation_mode=truncation,
            shuffle_dataset=False,
        )
        made = SFTTrainer._prepare_dataset(
            trainer, datasets.Dataset.from_list(found), tok, args, False, None, "train"
        )
        return [(row["input_ids"], [int(label != -100) for label in row["labels"]]) for row in made]

    def dpo(found, tok, max_length=1024):
        args = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
        made = DPOTrainer._prepare_dataset(
            SimpleNamespace(_tokenizer=tok), datasets.Dataset.from_list(found), tok, args, "train"
        )
        return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in made]

    yield SimpleNamespace(sft=sft, dpo=dpo)
    datasets.enable_progress_bars()


PLAIN = [
    {"prompt": "The sky is", "completion": " blue."},
    {"prompt": "12 app", "completion": "les"},  # a token across the border
    {"prompt": "What is 12 + 7?\n", "completion": "\n19 apples\n"},
    {"prompt": "The sun is ", "completion": "bright"},
    {"prompt": "日本 is", "completion": " 😀<|end_of_text|>"},
    {"prompt": "Tell me more. " * 12, "completion": "Certainly; the rest follows below."},
]


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "mistral"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"completion_only": False},
        {"max_length": 9},
        {"max_length": 6, "truncation": "keep_end"},
        {"max_length": None},
    ],
)
def test_plain_rows_are_trls(trl, family, settings):
    tok = tokenizer(family)
    ours = {
        "completion_only_loss" if key == "completion_only" else key: value for key, value in settings.items()
    }
    made = fit(PLAIN, tok, **ours)
    assert [(item.ids, item.mask) for item in made.items] == trl.sft(PLAIN, tok, **settings)
    if "completion_only" not in settings:
        texts = [{"text": row["prompt"] + row["completion"]} for row in PLAIN]
        made = fit(texts, tok, **ours)
        assert [(item.ids, item.mask) for item in made.items] == trl.sft(texts, tok, **settings)


def test_a_tokenizer_that_ends_every_text_is_as_in_trl(trl):
    from tokenizers import processors

    tok = tokenizer("llama3")
    start, end = tok.bos_token, tok.eos_token
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tok.bos_token_id), (end, tok.eos_token_id)]
    )
    made = fit(PLAIN[:1], tok)
    assert [(item.ids, item.mask) for item in made.items] == trl.sft(PLAIN[:1], tok)
    assert made.report.count("doubled_stop") == 1 and made.report.count("merged") == 0


CHAT = [
    {"prompt": [user("What colour is the sky?")], "completion": [assistant("It is blue.")]},
    {"prompt": [user("  a\n")], "completion": [assistant("\n\nb  ")]},
    {"prompt": [system("Be kind."), user("a")], "completion": [assistant("日本 😀")]},
    {
        "prompt": [user("a"), assistant("b"), user("c")],
        "completion": [assistant("How many apples are there?")],
    },
]


@pytest.mark.parametrize("family", FAMILIES)
def test_conversational_rows_are_trls_but_for_the_text_after_the_stop_token(trl, family):
    tok = tokenizer(family)
    for found in (CHAT, [{"messages": [*row["prompt"], *row["completion"]]} for row in CHAT]):
        made, theirs = fit(found, tok), trl.sft(found, tok)
        assert [item.ids for item in made.items] == [ids for ids, _ in theirs]
        if "messages" in found[0]:
            assert [item.mask for item in made.items] == [mask for _, mask in theirs]
            continue
        after = len(tok.encode(AFTER[family], add_special_tokens=False))
        for item, (_, mask) in zip(made.items, theirs, strict=True):
            size = len(mask) - after
            assert (
                item.mask == mask[:size] + [0] * after
                and mask[size:] == [1] * after
                and item.mask[size - 1] == 1
            )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [1024, 26])
def test_pairs_are_trls_but_for_the_text_after_the_stop_token(trl, family, max_length):
    tok = tokenizer(family)
    chat = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": [assistant("No.")]} for row in CHAT
    ]
    implicit = [
        {"chosen": [*row["prompt"], *row["completion"]], "rejected": [*row["prompt"], assistant("No.")]}
        for row in CHAT
    ]
    after = len(tok.encode(AFTER[family], add_special_tokens=False))
    for found in (chat, implicit):
        theirs = trl.dpo(found, tok, max_length)
        if not theirs:
            with pytest.raises(DataError, match="the prompt alone fills max_length"):
                tokenise.pairs(found, tok, max_length=max_length)
            continue
        made = tokenise.pairs(found, tok, max_length=max_length)
        assert len(made.items) == len(theirs)
        for item, (prompt, chosen, rejected) in zip(made.items, theirs, strict=True):
            room = max_length - len(prompt)  # TRL cuts when it collates
            assert item.prompt == prompt
            assert item.chosen == chosen[: len(chosen) - after][:room]
            assert item.rejected == rejected[: len(rejected) - after][:room]


@pytest.mark.parametrize("family", ["llama3", "qwen2.5"])
@pytest.mark.parametrize("max_length", [1024, 8])
def test_plain_pairs_are_trls(trl, family, max_length):
    tok = tokenizer(family)
    explicit = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no"} for row in PLAIN]
    implicit = [
        {"chosen": row["prompt"] + row["completion"], "rejected": row["prompt"] + "!"} for row in PLAIN
    ]
    for found in (explicit, implicit):
        made, theirs = tokenise.pairs(found, tok, max_length=max_length), trl.dpo(found, tok, max_length)
        cut = [(p, c[: max_length - len(p)], r[: max_length - len(p)]) for p, c, r in theirs]
        assert [(item.prompt, item.chosen, item.rejected) for item in made.items] == cut
        assert made.report.count("prompt_too_long") == len(found) - len(theirs)


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "gemma3", "phi3"])
def test_assistant_turns_are_those_of_trls_training_templates(trl, name):
    """TRL has versions of published templates that mark the turns; the marks agree with our splits."""
    import trl as library
    from trl.chat_template_utils import get_training_chat_template

    family = {"qwen2_5": "qwen2.5"}.get(name, name)
    tok = tokenizer(family)
    folder = os.path.join(os.path.dirname(library.__file__), "chat_templates")
    with open(os.path.join(folder, f"{name}.jinja"), encoding="utf-8") as file:
        tok.chat_template = file.read()
    talk = [
        user("What colour is the sky?"),
        assistant("It is blue."),
        user("More"),
        assistant("The rest follows."),
    ]
    found = [{"messages": talk}]
    made = fit(found, tok, assistant_only_loss=True)
    ids, mask = trl.sft(found, tok, assistant_only=True, template=get_training_chat_template(tok))[0]
    assert made.items[0].ids == ids
    theirs = tok.decode([token for token, bit in zip(ids, mask, strict=True) if bit])
    after = {"phi3": "\n"}.get(family, AFTER[family])
    stop, end = STOPS[family], AFTER[family]
    before = "\n" if name == "qwen2_5" else ""  # TRL 1.16 trains the end of this header as well
    assert theirs == f"{before}It is blue.{stop}{after}{before}The rest follows.{stop}{end}"
    assert trained(made, tok) == f"It is blue.{stop}The rest follows.{stop}"


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_grpos(family):
    tok = tokenizer(family)
    for text in ("The sky is", " x\n", "日本 😀"):
        assert tokenise.prompt(text, tok) == tokenise.PromptTokens(text, tok(text=text)["input_ids"])
    talk = [user("a"), assistant("b"), user("c")]
    theirs = tok.apply_chat_template(
        conversation=[talk], tools=None, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"][0]
    made = tokenise.prompt(talk, tok)
    assert made.ids == theirs
    assert made.text == tok.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    if tok.bos_token:
        assert made.ids.count(tok.bos_token_id) == 1


# Real rows


def test_masks_of_gsm8k(gsm8k_folder, trl):
    names = {"question": "prompt", "answer": "completion"}
    plain = rows(gsm8k_folder / "train.jsonl", limit=64, rename=names)

    def talk(row):
        return {"prompt": [user(row["prompt"])], "completion": [assistant(row["completion"])]}

    chat = plain.map(talk)
    for family in FAMILIES:
        tok = tokenizer(family)
        made = tokenise.fit_rows(chat, tok)
        assert len(made.items) == 64 and not made.report.count("merged")
        for index, row in enumerate(plain):
            assert trained(made, tok, index) == BEFORE[family] + row["completion"] + STOPS[family]
    tok = tokenizer("llama3")
    made = tokenise.fit_rows(plain, tok)
    theirs = trl.sft(plain.to_list(), tok)
    assert [(item.ids, item.mask) for item in made.items] == theirs
    for index, row in enumerate(plain):
        assert row["completion"] + "<|end_of_text|>" in trained(made, tok, index)
