"""Train masks: exactly the completion and its stop token for five model families; what else is said."""

import json

import pytest
from chat_templates import AFTER, BEFORE, FAMILIES, STOPS, assistant, fit, system, tokenizer, trained, user

from workbench import tokenise
from workbench.data import rows
from workbench.errors import DataError, SettingError
from workbench.templates import Chat, Segment, split_completion, split_turns

# Five families


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("opening", [[], [system("Be kind.")]])
def test_a_completion_and_its_stop_token(family, opening):
    tok = tokenizer(family)
    row = {"prompt": [*opening, user("What colour is the sky?")], "completion": [assistant("It is blue.")]}
    made = fit(row, tok)
    assert trained(made, tok) == BEFORE[family] + "It is blue." + STOPS[family]
    assert made.report.ok, made.report.lines()
    text = tok.decode(made.items[0].ids)
    assert text.endswith("It is blue." + STOPS[family] + AFTER[family])
    assert text == tok.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_assistant_turn_and_its_stop_token(family):
    tok = tokenizer(family)
    talk = [
        user("What colour is the sky?"),
        assistant("It is blue."),
        user("More"),
        assistant("The rest follows."),
    ]
    made = fit({"messages": talk}, tok, assistant_only_loss=True)
    stop = STOPS[family]
    first = " It is blue." if family == "mistral" else "It is blue."
    assert trained(made, tok) == f"{first}{stop}{BEFORE[family]}The rest follows.{stop}"
    # Qwen3 writes no think block in earlier turns, but does when sampled: trained, and said.
    expected = ["turn_differs"] if family == "qwen3" else []
    assert [problem.name for problem in made.report.problems] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_of_a_row_is_what_sampling_sees(family):
    tok = tokenizer(family)
    prompt = [user("What colour is the sky?"), assistant("It is blue."), user("More")]
    made = fit({"prompt": prompt, "completion": [assistant("The rest follows.")]}, tok)
    example = made.items[0]
    start = example.mask.index(1)
    assert example.ids[:start] == tokenise.prompt(prompt, tok).ids
    assert trained(made, tok) == f"{BEFORE[family]}The rest follows.{STOPS[family]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_tokens_inside_a_content_do_not_end_it(family):
    tok = tokenizer(family)
    stop = STOPS[family]
    talk = [user("a"), assistant(f"one {stop} two"), user(f"b {stop}"), assistant(f"{stop}three")]
    made = fit({"messages": talk}, tok, assistant_only_loss=True)
    first = " one" if family == "mistral" else "one"
    assert trained(made, tok) == f"{first} {stop} two{stop}{BEFORE[family]}{stop}three{stop}"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_a_pair_end_with_the_stop_token(family):
    tok = tokenizer(family)
    row = {
        "chosen": [user("What colour is the sky?"), assistant("It is blue.")],
        "rejected": [user("What colour is the sky?"), assistant("Green")],
    }
    pair = tokenise.pairs(rows([row]), tok).items[0]
    assert pair.prompt == tokenise.prompt([user("What colour is the sky?")], tok).ids
    assert tok.decode(pair.chosen) == BEFORE[family] + "It is blue." + STOPS[family]
    assert tok.decode(pair.rejected) == BEFORE[family] + "Green" + STOPS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_messages_train_on_every_token_by_default(family):
    tok = tokenizer(family)
    made = fit({"messages": [user("a"), assistant("b")]}, tok)
    assert set(made.items[0].mask) == {1} and made.report.trained == made.report.tokens == len(
        made.items[0].ids
    )


def test_thinking():
    tok = tokenizer("qwen3")
    thought = "<think>\nblue light scatters\n</think>\n\nIt is blue."
    made = fit({"prompt": [user("Why?")], "completion": [assistant(thought)]}, tok)
    assert trained(made, tok) == thought + "<|im_end|>"
    apart = assistant("It is blue.", reasoning_content="blue light scatters")
    assert trained(fit({"prompt": [user("Why?")], "completion": [apart]}, tok), tok) == thought + "<|im_end|>"
    # The template strips the thinking of an earlier turn: training what is left would teach not to think.
    talk = [user("Why?"), assistant(thought), user("More"), assistant("<think>\nhm\n</think>\n\nThe rest.")]
    made = fit({"messages": talk}, tok, assistant_only_loss=True)
    assert trained(made, tok) == "<think>\nhm\n</think>\n\nThe rest.<|im_end|>"
    assert made.report.count("turn_left_out") == 1
    assert any("message 1: the template drops or changes" in line for line in made.report.lines())
    # Options reach the template: without thinking, the empty block belongs to the prompt.
    row = {"prompt": [user("Why?")], "completion": [assistant("Blue.")]}
    made = fit({**row, "chat_template_kwargs": {"enable_thinking": False}}, tok)
    assert trained(made, tok) == "Blue.<|im_end|>" and made.report.ok
    assert tokenise.prompt([user("a")], tok, chat_template_kwargs={"enable_thinking": False}).text.endswith(
        "</think>\n\n"
    )


def test_content_in_parts_is_one_text():
    tok = tokenizer("qwen3")
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "blue."}]
    made = fit({"prompt": [user([{"type": "text", "text": "Why?"}])], "completion": [assistant(parts)]}, tok)
    assert tok.decode(made.items[0].ids) == (
        "<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nIt is blue.<|im_end|>\n"
    )


def test_only_the_completions_turns_with_both_masks():
    tok = tokenizer("llama3")
    row = {
        "prompt": [user("a"), assistant("one"), user("b")],
        "completion": [assistant("two"), user("c"), assistant("three")],
    }
    assert trained(fit(row, tok, assistant_only_loss=True), tok) == "two<|eot_id|>three<|eot_id|>"
    every = fit(row, tok, assistant_only_loss=True, completion_only_loss=False)
    assert trained(every, tok) == "one<|eot_id|>two<|eot_id|>three<|eot_id|>"
    after = fit(row, tok)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = f"two<|eot_id|>{header.format('user')}c<|eot_id|>{header.format('assistant')}three<|eot_id|>"
    assert trained(after, tok) == turns


# Templates that cannot be split


def with_template(template, family="qwen2.5"):
    tok = tokenizer(family)
    tok.chat_template = template
    return tok


def test_a_generation_prompt_that_says_more_than_the_row():
    """DeepSeek-R1's prompts end in "<think>" and its rows do not: cut where they part, and say so."""
    tok = with_template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    made = fit({"prompt": [user("a")], "completion": [assistant("Blue.")]}, tok)
    assert trained(made, tok) == "Blue.<|im_end|>"
    assert made.report.count("prompt_differs") == 1 and "'<think>\\n'" in str(made.report)


def test_a_template_that_rewrites_the_prompt_is_refused():
    tok = with_template(
        "{{ '[' + messages[-1].role + ']' }}{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(DataError) as error:
        fit([{"prompt": [user("a")], "completion": [assistant("b")]}], tok)
    for word in (
        "row 0",
        "cannot be split before the completion",
        "'user]",
        "'assistan",
        "without a completion",
    ):
        assert word in str(error.value)


def test_a_turn_before_which_messages_are_rewritten_is_left_out():
    """Mistral's system message moves to the last question, so the first answer's context is another."""
    tok = tokenizer("mistral")
    talk = [system("Be kind."), user("a"), assistant("one"), user("b"), assistant("two")]
    made = fit({"messages": talk}, tok, assistant_only_loss=True)
    assert tok.decode(made.items[0].ids) == "<s>[INST] a[/INST] one</s>[INST] Be kind.\n\nb[/INST] two</s>"
    assert trained(made, tok) == " two</s>"
    assert made.report.count("turn_left_out") == 1 and "message 2" in str(made.report)


def test_what_a_template_refuses_is_an_error_with_its_words():
    row = {"prompt": [user("a"), user("b")], "completion": [assistant("c")]}
    with pytest.raises(DataError, match="row 1.*chat template refused.*roles must alternate"):
        fit([{"prompt": [user("a")], "completion": [assistant("c")]}, row], tokenizer("gemma3"))
    bare = tokenizer("gemma3")
    bare.chat_template = None
    with pytest.raises(DataError, match="row 0.*no chat template"):
        fit(row, bare)
    with pytest.raises(DataError, match="no chat template"):
        tokenise.prompt([user("a")], bare)
    with pytest.raises(DataError, match="row 0.*completion ends with the role 'user'"):
        fit({"prompt": [user("a")], "completion": [user("c")]}, tokenizer("qwen2.5"))
    with pytest.raises(DataError, match="row 0.*'tools' is not JSON"):
        fit({"prompt": [user("a")], "completion": [assistant("c")], "tools": "["}, tokenizer("qwen2.5"))


def test_an_assistant_turn_that_nothing_precedes():
    tok = tokenizer("qwen2.5")
    made = fit({"messages": [assistant("Hello."), user("a"), assistant("b")]}, tok, assistant_only_loss=True)
    assert trained(made, tok) == "Hello.<|im_end|>b<|im_end|>"
    assert made.report.count("no_prompt") == 1


def test_a_missing_stop_token_is_said():
    tok = with_template("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    made = fit({"prompt": [user("a")], "completion": [assistant("b")]}, tok)
    assert made.report.count("no_stop") == 1
    assert "no stop token" in made.report.lines()[1]


def test_text_that_a_template_drops_from_the_completion_is_said():
    tok = with_template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('#')[0] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    made = fit({"prompt": [user("a")], "completion": [assistant("b # c")]}, tok)
    assert made.report.count("rewritten") == 1


def test_tool_turns_belong_to_nobody():
    tok = with_template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
        "{% if m.tool_calls %}{{ '<tool_call>' + m.tool_calls[0].function.name + '</tool_call>' }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = assistant(None, tool_calls=[{"type": "function", "function": {"name": "look", "arguments": {}}}])
    talk = [user("a"), call, {"role": "tool", "content": "b"}, assistant("c")]
    made = fit({"messages": talk}, tok, assistant_only_loss=True)
    assert trained(made, tok) == "<tool_call>look</tool_call><|im_end|>c<|im_end|>"


def test_segments_make_up_the_whole_text():
    chat = Chat(tokenizer("phi3"))
    split = split_completion(chat, [user("a")], [assistant("b")])
    assert split.segments == (
        Segment("<|user|>\na<|end|>\n<|assistant|>\n", "prompt", False),
        Segment("b<|end|>", "assistant", True),
        Segment("\n<|endoftext|>", "after", False),
    )
    talk = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert split_turns(chat, talk).text == chat.render(talk)


# Plain rows


def test_plain_rows_by_hand():
    tok = tokenizer("llama3")
    start, end = tok.bos_token_id, tok.eos_token_id
    sky, blue = (
        tok.encode("The sky is", add_special_tokens=False),
        tok.encode(" blue.", add_special_tokens=False),
    )
    expected = [start, *sky, *blue, end]
    example = fit({"prompt": "The sky is", "completion": " blue."}, tok).items[0]
    assert example.ids == expected
    assert example.mask == [0] * (1 + len(sky)) + [1] * (len(blue) + 1)
    assert example.weight == [1.0] * len(expected) and example.row == 0
    given = fit({"prompt": "The sky is", "completion": " blue.<|end_of_text|>"}, tok).items[0]
    assert given == example  # the end token is not doubled
    text = fit({"text": "The sky is blue."}, tok).items[0]
    assert text.ids == expected and text.mask == [1] * len(expected)
    pair = tokenise.pairs(rows([{"prompt": "The sky is", "chosen": " blue.", "rejected": " is"}]), tok).items[
        0
    ]
    assert (pair.prompt, pair.chosen) == ([start, *sky], [*blue, end])
    assert pair.rejected == [*tok.encode(" is", add_special_tokens=False), end]


def test_a_token_across_prompt_and_completion_is_trained_and_said():
    tok = tokenizer("qwen2.5")
    assert len(tok.encode(" apples", add_special_tokens=False)) == 1
    made = fit({"prompt": "12 app", "completion": "les"}, tok)
    assert trained(made, tok) == " apples<|im_end|>"
    assert made.report.count("merged") == 1 and "' app'" in str(made.report)


def test_segments_with_weights():
    tok = tokenizer("llama3")
    segments = [
        {"text": "The sky", "role": "prompt", "train": False},
        {"text": " is blue", "role": "answer", "weight": 0.5},
        {"text": " and the", "role": "quote", "train": False},
        {"text": " sun<|end_of_text|>", "role": "answer", "weight": 2.0},
    ]
    made = fit({"segments": segments}, tok)
    sizes = [len(tok.encode(segment["text"], add_special_tokens=False)) for segment in segments]
    assert made.items[0].mask == [0] + [0] * sizes[0] + [1] * sizes[1] + [0] * sizes[2] + [1] * sizes[3]
    assert [w for w, bit in zip(made.items[0].weight, made.items[0].mask, strict=True) if bit] == (
        [0.5] * sizes[1] + [2.0] * sizes[3]
    )
    # A trained segment that ends inside a token trains that token.
    cut = [{"text": "The", "train": False}, {"text": " app"}, {"text": "les rest", "train": False}]
    assert trained(fit({"segments": cut}, tok), tok) == " apples"


# What is counted


def test_rows_with_nothing_left_to_train_are_dropped_and_counted():
    tok = tokenizer("llama3")
    long = {"prompt": "apples" * 30, "completion": "blue"}
    short = {"prompt": "a", "completion": "b"}
    made = fit([long, short, {"prompt": "a", "completion": "blue " * 30}], tok, max_length=12)
    assert [item.row for item in made.items] == [1, 2]
    assert {problem.name: (problem.count, problem.first) for problem in made.report.problems} == {
        "masked": (1, (0,)),
        "cut": (1, (2,)),
        "stop_cut": (1, (2,)),
    }
    assert (made.report.rows, made.report.kept) == (3, 2)
    assert made.report.tokens == sum(len(item.ids) for item in made.items)
    assert made.report.trained == sum(sum(item.mask) for item in made.items)
    assert made.report.lines()[0].startswith("2 of 3 rows")
    assert "do not teach the model to stop" in str(made.report)
    with pytest.raises(DataError, match=r"None of the 1 rows.*max_length=12.*nothing is left to train on"):
        fit(long, tok, max_length=12)
    end = fit(long, tok, max_length=12, truncation="keep_end")
    assert trained(end, tok) == "blue<|end_of_text|>" and end.report.count("stop_cut") == 0


def test_a_conversation_without_an_assistant_has_an_empty_mask():
    tok = tokenizer("qwen2.5")
    some = [{"messages": [user("a"), assistant("b")]}, {"messages": [user("a")]}]
    made = fit(some, tok, assistant_only_loss=True)
    assert [item.row for item in made.items] == [0] and made.report.count("empty") == 1
    with pytest.raises(DataError, match="None of the 1 rows.*no token is trained"):
        fit(some[1:], tok, assistant_only_loss=True)


def test_doubled_start_tokens():
    tok = tokenizer("mistral")
    written = tok.apply_chat_template([user("a"), assistant("b")], tokenize=False)
    made = fit({"text": written}, tok)  # a text that a template wrote already: the tokenizer starts it again
    assert made.items[0].ids[:2] == [tok.bos_token_id] * 2 and made.report.count("doubled_start") == 1
    assert "two start tokens" in str(made.report)
    assert tokenise.prompt(written, tok).ids == made.items[0].ids[1:]
    twice = tokenizer("mistral")
    twice.chat_template = "{{ bos_token }}" + twice.chat_template
    assert fit({"messages": [user("a"), assistant("b")]}, twice).report.count("doubled_start") == 1
    assert tokenise.prompt([user("a")], twice).ids.count(twice.bos_token_id) == 1


def test_pairs_that_teach_nothing_are_said():
    made = tokenise.pairs([{"prompt": "a", "chosen": "b", "rejected": "b"}], tokenizer("llama3"))
    assert made.report.count("same") == 1 and "teaches nothing" in str(made.report)
    tok = tokenizer("qwen2.5")  # no start token: "a" + "pples" may be one token with nothing before it
    assert len(tok.encode(" apples")) == len(tok.encode(" the")) == 1
    with pytest.raises(DataError, match="melts into the first token"):
        tokenise.pairs([{"prompt": " ", "chosen": "apples", "rejected": "the"}], tok)


def test_lines_show_the_first_rows_and_what_reading_changed(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"prompt": "a", "completion": "blue " * 30}
    path.write_text(
        "".join(json.dumps(row) + "\n" for _ in range(7)) + '{"prompt": "\\ud800", "completion": "b"}\n'
    )
    lines = tokenise.fit_rows(rows(path), tokenizer("llama3"), max_length=12).report.lines()
    assert lines[1] == "7 rows: longer than max_length: cut. Rows 0, 1, 2, 3, 4, ..."
    assert "lone surrogates" in lines[-1]


def test_settings_that_do_not_go_together():
    tok = tokenizer("llama3")
    talk = {"messages": [user("a"), assistant("b")]}
    for found, settings, words in (
        (talk, {"completion_only_loss": True}, "prompt and completion.*messages.*assistant_only_loss"),
        ({"text": "a"}, {"completion_only_loss": True}, "these have text"),
        ({"prompt": "a", "completion": "b"}, {"assistant_only_loss": True}, "plain text"),
        (talk, {"truncation": "keep_middle"}, "'keep_start' or 'keep_end'"),
        (talk, {"max_length": 0}, "max_length=0"),
    ):
        with pytest.raises(SettingError, match=words):
            fit(found, tok, **settings)
    with pytest.raises(SettingError, match="max_length='x'"):
        tokenise.pairs([{"prompt": "a", "chosen": "b", "rejected": "c"}], tok, max_length="x")


def test_rows_of_another_form_are_refused_with_what_is_needed():
    tok = tokenizer("llama3")
    with pytest.raises(DataError, match="Supervised training.*'completion'.*columns: prompt, answer"):
        fit({"prompt": "a", "answer": "b"}, tok)
    with pytest.raises(DataError, match="preference rows.*dpo.*rename"):
        fit({"prompt": "a", "chosen": "b", "rejected": "c"}, tok)
    with pytest.raises(DataError, match="Training on preferences needs the row column 'chosen'"):
        tokenise.pairs([{"prompt": "a", "completion": "b"}], tok)
    endless = tokenizer("llama3")
    endless.eos_token = None
    with pytest.raises(DataError, match="row 0.*no end token"):
        fit({"text": "a"}, endless)
    for wrong in ("", [], None, 3, ["a"]):
        with pytest.raises(DataError, match="text or a list of messages"):
            tokenise.prompt(wrong, tok)


def test_prompts_with_lone_surrogates():
    tok = tokenizer("llama3")
    assert tokenise.prompt("a\ud83d", tok).text == "a\ufffd"
    assert "b\ufffd<|eot_id|>" in tokenise.prompt([user("b\udc00")], tok).text


def test_preference_rows_with_messages_beside_them_can_be_fitted():
    """As in UltraFeedback: one data set for both."""
    talk = [user("a"), assistant("b")]
    row = {"prompt": "a", "chosen": talk, "rejected": [user("a"), assistant("c")], "messages": talk}
    tok = tokenizer("qwen2.5")
    assert rows([row]).form == "preference"
    assert tok.decode(tokenise.pairs([row], tok).items[0].rejected) == "c<|im_end|>"
    assert trained(fit(row, tok, assistant_only_loss=True), tok) == "b<|im_end|>"
