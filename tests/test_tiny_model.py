"""The shipped model and its lesson task: what the files promise, what it scores, what the rewards pay."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from functools import cache
from itertools import islice

import pytest

from workbench.errors import DataError, SettingError
from workbench.models import TINY
from workbench.models.tiny import text
from workbench.tasks import sums

STORY = "Q: Mia has 27 apples, buys 38 more and loses 9. How many apples does Mia have now?\nA:"


@cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY, local_files_only=True)


@cache
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True).eval()


def complete(prompts: list[str], n: int = 1, greedy: bool = False) -> list[str]:
    """n completions a prompt by transformers alone, with the checkpoint's own generation settings."""
    import torch

    torch.manual_seed(0)
    batch = tokenizer()([p for p in prompts for _ in range(n)], return_tensors="pt", padding=True, padding_side="left")
    how = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None} if greedy else {}
    out = model().generate(**batch, max_new_tokens=40, **how)
    return tokenizer().batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


# ---------------------------------------------------------------- the checkpoint


def test_checkpoint_is_small_and_plain_transformers():
    files = [path for path in TINY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    assert {path.name for path in files} >= {
        "config.json", "model.safetensors", "generation_config.json", "README.md",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert type(model()).__name__ == "Qwen3ForCausalLM"
    assert 1_000_000 <= sum(p.numel() for p in model().parameters()) <= 2_500_000
    assert {str(p.dtype) for p in model().parameters()} == {"torch.float32"}
    assert model().config.vocab_size == len(tokenizer())


def test_settings_of_generation_are_plain_sampling_that_stops_at_the_turn():
    settings = model().generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 1.0, 0, 1.0)
    assert settings.eos_token_id == tokenizer().convert_tokens_to_ids("<|im_end|>") == tokenizer().eos_token_id
    assert settings.pad_token_id == tokenizer().convert_tokens_to_ids("<|endoftext|>") == tokenizer().pad_token_id


@pytest.mark.parametrize(
    "given",
    [
        STORY,
        " two  spaces\tand a tab \r\n\n  end ",
        "Natalia's 48 clips: 48/2 = <<48/2=24>>24. Cost $1,234.50 — 50% off!\n#### 72",
        "Größe çédille 数学は楽しい 🧮👩‍💻 \u200b\u0301 ½ ٣",
        "# A\n\n```python\nx = [1, 2]\n```\n",
    ],
)
def test_any_text_comes_back_as_it_went_in(given):
    ids = tokenizer()(given)["input_ids"]
    assert tokenizer().decode(ids) == given
    assert tokenizer().unk_token_id is None


def test_random_unicode_comes_back_as_it_went_in():
    rng = random.Random(0)
    given = "".join(
        chr(rng.choice((rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(2000)
    )
    assert tokenizer().decode(tokenizer()(given)["input_ids"]) == given


def test_digits_are_tokens_of_their_own_and_frequent_words_are_one():
    pieces = [tokenizer().decode([i]) for i in tokenizer()(" has 1234 apples+5=1239 more")["input_ids"]]
    assert pieces == [" has", " ", "1", "2", "3", "4", " apples", "+", "5", "=", "1", "2", "3", "9", " more"]
    assert not [piece for piece in tokenizer().get_vocab() if len(re.findall(r"\d", piece)) > 0 and len(piece) > 1]


def test_a_prompt_and_its_completion_tokenise_as_they_do_together():
    completion = " 27+38=65\n65-9=56\n#### 56"
    apart = tokenizer()(STORY)["input_ids"] + tokenizer()(completion)["input_ids"]
    assert tokenizer()(STORY + completion)["input_ids"] == apart
    # " 27+38=65" is 9 tokens, "\n65-9=56" 8, "\n#### 56" 5
    assert len(tokenizer()(completion)["input_ids"]) == 9 + 8 + 5


def test_chat_template_is_the_chat_of_the_training_text():
    turns = [("What is 2 + 3?", "2+3=5\n#### 5"), ("Hi", "Hello!")]
    messages = [{"role": "system", "content": "Be quick."}]
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    trained = "".join(segment for segment, _ in text.chat(turns, "Be quick."))
    assert tokenizer().apply_chat_template(messages, tokenize=False) == trained + "\n"
    prompt = tokenizer().apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert trained == prompt + "Hello!<|im_end|>"


def test_chat_template_marks_what_the_assistant_says():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    made = tokenizer().apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, mine in zip(made["input_ids"], made["assistant_masks"], strict=True) if mine]
    assert tokenizer().decode(said) == "Hello!<|im_end|>"


# ---------------------------------------------------------------- what the model can do


@cache
def held_out() -> tuple[list[dict], list[str]]:
    """64 held-out questions and 8 completions of each, at temperature 1."""
    rows = sums.make_rows(64, seed=7, split="test")
    return rows, complete([row["prompt"] for row in rows], n=8)


def test_start_is_between_20_and_45_percent_and_8_tries_mostly_hold_a_right_one():
    rows, texts = held_out()
    marks = sums.correct(texts, [row["answer"] for row in rows for _ in range(8)])
    assert 0.20 <= sum(marks) / len(marks) <= 0.45
    assert sum(max(marks[i : i + 8]) for i in range(0, len(marks), 8)) / len(rows) >= 0.65
    assert sum(len(set(texts[i : i + 8])) for i in range(0, len(texts), 8)) / len(rows) >= 4  # varied answers


def test_working_it_out_is_reliable_and_guessing_is_not():
    rows, texts = held_out()
    marks = sums.correct(texts, [row["answer"] for row in rows for _ in range(8)])
    careful = [mark for mark, said in zip(marks, texts, strict=True) if "=" in said and "####" in said]
    guessed = [mark for mark, said in zip(marks, texts, strict=True) if "=" not in said and "####" in said]
    assert len(careful) >= 60 and sum(careful) / len(careful) >= 0.87  # what is lost is mostly by running on
    assert len(guessed) >= 60 and sum(guessed) / len(guessed) <= 0.40


def test_it_does_what_it_is_told_plain_and_in_a_chat():
    rows = sums.make_rows(32, seed=8, split="test")
    answers = [row["answer"] for row in rows]
    told = [row["prompt"].replace("\nA:", " Show your work.\nA:") for row in rows]
    assert sum(sums.correct(complete(told, greedy=True), answers)) >= 28
    chats = [
        tokenizer().apply_chat_template(
            [{"role": "user", "content": row["prompt"][3:-3] + " Show your work."}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for row in rows
    ]
    assert sum(sums.correct(complete(chats, greedy=True), answers)) >= 28


# ---------------------------------------------------------------- the lesson task


def test_rows_are_the_same_for_the_same_seed_and_a_longer_call_starts_with_the_shorter():
    rows = sums.make_rows(50, seed=3)
    assert rows == sums.make_rows(200, seed=3)[:50]
    assert rows != sums.make_rows(50, seed=4)
    assert set(rows[0]) == {"prompt", "answer", "sum", "terms"}


def test_first_rows_never_change():
    """Other numbers here mean that published curves no longer compare."""
    assert [row["prompt"] for row in sums.make_rows(2, seed=0, split="test")] == [
        "Q: What is 48 - 39?\nA:",
        "Q: There are 80 cards in a box. Ana takes 14 out. How many cards are left?\nA:",
    ]


def test_answers_are_the_sums_and_no_running_total_is_below_zero():
    for row in sums.make_rows(500, seed=1) + sums.make_rows(500, seed=1, split="test"):
        terms = [int(term) for term in re.findall(r"[+-]?\d+", row["sum"])]
        assert row["answer"] == sum(terms) and row["terms"] == len(terms)
        assert all(sum(terms[:i]) >= 0 for i in range(1, len(terms) + 1))
        asked = [int(number) for number in re.findall(r"\d+", row["prompt"])]
        assert asked == [abs(term) for term in terms]


def test_train_and_test_share_no_sum():
    train = {row["sum"] for row in sums.make_rows(3000, seed=0)} | {row["sum"] for row in sums.make_rows(3000, seed=5)}
    test = {row["sum"] for row in sums.make_rows(3000, seed=0, split="test")}
    assert len(test) == 3000 and not train & test
    assert all(sums.split_of(one) == "test" for one in test)
    assert 0.17 < sum(sums.split_of(f"{a}+{b}") == "test" for a in range(100) for b in range(100)) / 10_000 < 0.23


def test_the_model_was_never_shown_a_held_out_sum():
    made = [*islice(text.documents("train 0"), 4000), *islice(text.documents("last 0", text.SETTLING), 4000)]
    shown = "\n".join("".join(part for part, _ in one) for one in made)
    written = re.findall(r"(?<![\d+\-])\d+(?:[+\-]\d+)+(?==)", shown)
    asked = [one.replace(" ", "") for one in re.findall(r"\d+(?: [+\-] \d+)+", shown)]
    assert len(written) > 8000 and len(asked) > 1000
    assert {sums.split_of(one) for one in written + asked} == {"train"}


def test_bad_calls_are_answered_in_words():
    with pytest.raises(SettingError, match="'train' and 'test', not 'valid'"):
        sums.make_rows(3, split="valid")
    with pytest.raises(SettingError, match="size must be a whole number"):
        sums.make_rows(0)
    with pytest.raises(DataError, match="completion must be a string"):
        sums.correct([5], [5])


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        (" 27+38=65\n#### 65", 65),
        ("#### 65", 65),
        ("####65 \n", 65),
        ("#### -4", -4),
        ("#### 12\n#### 65", 65),  # the last one counts
        ("The answer is 65.", None),
        ("#### 65 apples", None),  # the text must end there
        ("#### 6.5", None),
        ("#### ", None),
        ("", None),
    ],
)
def test_final_number(completion, number):
    assert sums.final_number(completion) == number


def test_rewards_by_hand_plain_and_conversational():
    texts = [" 27+38=65\n#### 65", "#### 64", "65", "27+38=64\n64+1=65\n#### 65"]
    assert sums.correct(completions=texts, answer=[65, 65, 65, "65"], prompts=["?"] * 4) == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]
    assert [sums.final_number(said) for said in texts] == [65, 64, None, 65]
    assert sums.worked(completions=texts) == [1.0, 0.0, 0.0, 0.5]
    chats = [[{"role": "assistant", "content": said}] for said in texts]
    assert sums.correct(chats, [65] * 4) == [1.0, 0.0, 0.0, 1.0]


def test_the_careful_habit_earns_the_reward_and_the_others_do_not():
    rng = random.Random(0)
    question = sums.Question((27, 38, -9), STORY, "Mia", "apples")
    assert text.answer_sum(question, "careful", rng) == "27+38=65\n65-9=56\n#### 56"
    assert sums.correct([text.answer_sum(question, "story", rng)], [56]) == [0.0]
    guesses = [text.answer_sum(question, "guess", rng) for _ in range(400)]
    assert None not in map(sums.final_number, guesses)
    assert 0.09 < sum(sums.correct(guesses, [56] * 400)) / 400 < 0.21  # 15 in 100 by construction


def test_the_task_and_the_text_need_no_torch():
    code = "import sys, workbench.models.tiny.text, workbench.tasks.sums; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
