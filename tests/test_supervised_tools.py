"""Tool calls: reading them, the reward by what is wrong, and the weights of their key tokens."""

from __future__ import annotations

import json

import pytest

import workbench as wb
from tests.models import tiny_policy, tiny_tokenizer
from workbench import rewards
from workbench import settings as settings_of
from workbench.data import make
from workbench.errors import DataError
from workbench.launch import launch
from workbench.methods import get, sft
from workbench.methods.supervised import key_token
from workbench.rewards.tool_calls import RUNGS, read_call, tools_of, wrong

GOLD = 'book(city="Oslo", days=3)'
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": dict.fromkeys(given, {})}},
    }
    for name, given in {"book": ("city", "days", "beds", "view"), "look": ("city",)}.items()
]


@pytest.mark.parametrize(
    "text, reward, what",
    [
        ("Sure, I will book that!", -2.0, "unparsable"),
        ('fly(city="Oslo", days=3)', -2.0, "invented_tool"),
        ('look(city="Oslo")', -1.5, "wrong_tool"),
        ('book(town="Oslo", beds=2, days=3)', -1.8, "invented_redundant_missing"),
        ('book(city="Oslo", days=3, beds=2, stars=4)', -1.3, "invented_and_another"),
        ('book(town="Oslo", days=3)', -1.3, "invented_and_another"),
        ('book(city="Oslo", beds=2)', -1.0, "redundant_missing"),
        ('book(city="Oslo", days=3, stars=4)', -0.8, "invented"),
        ('book(city="Oslo")', -0.5, "redundant_or_missing"),
        ('book(city="Oslo", days=3, view=true)', -0.5, "redundant_or_missing"),
        ('book(city="Rome", days=3)', -0.25, "values"),
        ("Let me see. book(days=3, city='Oslo')", 1.0, "right"),
    ],
)
def test_each_rung(text, reward, what):
    assert rewards.tool_call([text], answer=[GOLD], tools=[TOOLS]) == [reward]
    assert wrong(read_call(text), read_call(GOLD), tools_of(TOOLS)) == what and RUNGS[what] == reward


def test_every_rung_is_tried():
    tried = {mark.args[1][i][2] for mark in test_each_rung.pytestmark for i in range(len(mark.args[1]))}
    assert tried == set(RUNGS)


def test_the_ways_of_writing_a_call():
    gold = {"name": "book", "arguments": {"city": "Oslo", "days": 3}}
    written = [
        json.dumps(gold),
        f"<think>a {{b}}</think><tool_call>\n{json.dumps(gold, indent=1)}\n</tool_call>",
        '{"arguments": {"days": 3, "city": "Oslo"}, "name": "book"}',
        json.dumps({"type": "function", "function": {"name": "book", "arguments": json.dumps(gold["arguments"])}}),
        '{"name": "book", "parameters": {"city": "Oslo", "days": 3}}',
        [{"role": "assistant", "content": GOLD}],
    ]
    for answer in (gold, GOLD, json.dumps(gold)):
        assert rewards.tool_call(written, answer=[answer] * 6, tools=[json.dumps(TOOLS)] * 6) == [1.0] * 6
    call = read_call(written[1])
    assert written[1][call.at :].startswith("book") and [written[1][end] for end in call.ends] == ['"', "3"]


@pytest.mark.parametrize(
    "text",
    ["", "f(1)", "f (a=1)", "f(a=1", "f(a=1, 2)", "f(a=", '{"name": 3}', '{"name": ""}',
     '{"name": "f", "arguments": 3}',
     "[" * 5000, '{"a":' * 3000, '{"function":' * 500 + "1" + "}" * 500, "f(" * 3000, "f(a='", "f(a-b=1)", "\ud800{"],
)  # fmt: skip
def test_what_is_no_call_is_minus_two_and_breaks_nothing(text):
    assert read_call(text) is None
    assert rewards.tool_call([text], answer=[GOLD], tools=[TOOLS]) == [-2.0]


def test_without_tools_or_arguments_known_and_without_an_answer():
    assert rewards.tool_call(['fly(city="Oslo")'], answer=[GOLD]) == [-1.5]
    assert rewards.tool_call(['book(city="Oslo", days=3, stars=4)'], answer=[GOLD], tools=[["book"]]) == [-0.5]
    assert rewards.tool_call(["f()", "f()"], answer=[None, "no call"], tools=[["f"], ["f"]]) == [None, None]
    assert rewards.tool_call(["f()"], answer=["f()"], tools=[["f"]]) == [1.0]


def test_a_run_can_be_rewarded_by_it(tmp_path):
    task = wb.Task([{"prompt": f"Book {i}", "answer": GOLD, "tools": TOOLS} for i in range(3)], [rewards.tool_call])
    policy = tiny_policy(tmp_path / "model", lora=True)
    run = wb.grpo(policy, task, steps=1, prompts_per_step=2, group_size=2, max_new_tokens=3, out=tmp_path / "run")
    assert next(iter(run)).metrics["reward"] == -2


# -- key tokens


def made(rows, tokenizer=None, **settings):
    """The tokens, masks and weights that the rows become."""
    method = get("key_token")
    return (
        sft.prepare(
            tokenizer or tiny_tokenizer(),
            make(rows),
            settings_of.make("key_token", settings),
            sft.Variant(rows=key_token.weighted_rows),
        )
        if method
        else None
    )


def pieces(tokenizer, example):
    return [(tokenizer.decode([i]), w) for i, m, w in zip(example.ids, example.mask, example.weight, strict=True) if m]


def test_the_weights_of_a_call_by_hand():
    """Bytes are tokens: `g` begins the name, `t` parts it from `ge`, `_` from `get`, `w` from `get_time`."""
    tokenizer, tools = tiny_tokenizer(), ["get_weather", "ge", "get", "get_time", "post"]
    row = {"prompt": "Q", "completion": 'Now: get_weather(city="Oslo", days=14)', "tools": tools}
    (example,) = made([row]).items
    found = pieces(tokenizer, example)
    assert "".join(token for token, _ in found) == row["completion"] + "<eos>"
    keys = [i for i, (_, weight) in enumerate(found) if weight != 1]
    assert keys == [5, 5 + 2, 5 + 3, 5 + 4]  # 4 key tokens, 2 ends of arguments, 33 others: 33 / 4 each
    assert {found[i][1] for i in keys} == {8.25} and len(found) == 39
    assert {w for _, w in pieces(tokenizer, made([row], max_weight=3.0).items[0])} == {1.0, 3.0}


def test_a_key_that_others_barely_outnumber_and_one_that_they_do_not():
    tools = ["ab", "ac"]
    weights_of = {}
    for text in ("ab()", "ab(x=1)"):
        (example,) = made([{"prompt": "Q", "completion": text, "tools": tools}]).items
        weights_of[text] = [w for _, w in pieces(tiny_tokenizer(), example)]
    assert weights_of["ab()"] == [1.5, 1.5, 1, 1, 1]  # 3 others to 2 keys
    assert weights_of["ab(x=1)"] == [2.5, 2.5, 1, 1, 1, 1, 1, 1]  # the end of the argument is neither
    (example,) = made(
        [{"prompt": "Q", "completion": "ab", "tools": tools}, {"prompt": "Q", "completion": "ab(x=1)", "tools": tools}]
    ).items[:1]
    assert {w for _, w in pieces(tiny_tokenizer(), example)} == {1.0}, "no call, no key"
    many = ["abcdef", "ax", "abx", "abcx", "abcdx", "abcdex"]  # 6 keys to 3 others
    (example,) = made([{"prompt": "Q", "completion": "abcdef()", "tools": many}]).items
    assert {w for _, w in pieces(tiny_tokenizer(), example)} == {1.0}


def test_the_loss_is_divided_by_the_weights(tmp_path):
    """3 key tokens of weight 9, 2 ends, 30 others: 59."""
    policy = tiny_policy(tmp_path / "model")
    text = 'aab(k="' + "o" * 11 + '", m="' + "o" * 8 + '")'
    row = {"prompt": "Q: ", "completion": text, "tools": ["aab", "aac", "ab"]}
    run = launch("key_token", policy, [row], tmp_path / "run", None, {"steps": 1, "batch_size": 1}, None)
    (example,) = run.engine.live.data.items
    weights = [w for _, w in pieces(policy.tokenizer, example)]
    assert len(weights) == 35 and sum(weights) == 59 and weights[:3] == [9, 9, 9]
    said = policy.score([row["prompt"]], [text + "<eos>"]).logprob[0].astype(float)
    assert run.gradients([row]).loss == pytest.approx(
        -sum(w * v for w, v in zip(weights, said, strict=True)) / 59, rel=1e-5
    )


def test_json_calls_and_tokens_of_several_characters():
    policy = wb.load("tiny")
    tools = [{"type": "function", "function": {"name": name}} for name in ("add_numbers", "add_words", "sum")]
    rows = [
        {
            "prompt": "Add 3 and 4.\n",
            "tools": tools,
            "completion": '{"name": "add_numbers", "arguments": {"a": 3, "b": [4]}}',
        },
        {"prompt": "Add 3 and 4.\n", "tools": tools, "completion": "add_numbers(a=3, b=4)"},
    ]
    for row, example, plain in zip(
        rows,
        made(rows, policy.tokenizer).items,
        sft.prepare(policy.tokenizer, make(rows), settings_of.make("sft", {})).items,
        strict=True,
    ):
        assert example.ids == plain.ids and example.mask == plain.mask
        coded = policy.tokenizer(row["prompt"] + row["completion"], return_offsets_mapping=True)["offset_mapping"]
        name = len(row["prompt"]) + row["completion"].index("add_numbers")
        keys = [span for span, m, w in zip(coded, example.mask, example.weight, strict=False) if m and w > 1]
        assert keys[0][0] <= name < keys[0][1]
        assert len(keys) == 1 + (keys[0][1] < name + 5), "one where the names part, unless the first token says it"
        if len(keys) == 2:
            assert name < keys[1][0] <= name + 4 < keys[1][1]


CHAT = [
    {"role": "user", "content": "Book Oslo."},
    {"role": "assistant", "content": GOLD},
    {"role": "tool", "content": "ValueError: 'days' is not defined"},
    {"role": "assistant", "content": 'book(city="Oslo", days=4)'},
    {"role": "tool", "content": "done"},
    {"role": "assistant", "content": "It is booked."},
]


@pytest.mark.parametrize("template", ("plain", "with a start token"))
def test_dialogues_become_turns_and_failed_ones_are_left_out(template):
    tokenizer = tiny_tokenizer()
    if template != "plain":
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        from tokenizers.processors import TemplateProcessing

        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    found = made([{"messages": CHAT, "tools": TOOLS}], tokenizer)
    texts = ["".join(t for t, _ in pieces(tokenizer, e)) for e in found.items]
    assert texts == ['book(city="Oslo", days=4)<end>', "It is booked.<end>"]
    for example, turn in zip(found.items, (3, 5), strict=True):
        wanted = tokenizer.apply_chat_template(CHAT[: turn + 1], tokenize=False)
        assert example.ids == tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert {w for _, w in pieces(tokenizer, found.items[0])} == {1.0, 9.0}  # only `book` and `look`: one key token
    assert {w for _, w in pieces(tokenizer, found.items[1])} == {1.0}
    assert any("1 turns are left out" in line for line in found.report.lines())
    assert len(made([{"messages": CHAT, "tools": TOOLS}], tokenizer, error_marks=("nothing",)).items) == 3


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"prompt": "a", "completion": "f()"}], "'tools'"),
        ([{"prompt": "a", "completion": "no call", "tools": ["f"]}], "None of the 1 rows"),
        ([{"prompt": "a", "completion": "g()", "tools": ["f"]}], "None of the 1 rows"),
        ([{"text": "f()", "tools": ["f"]}], "not text rows"),
    ],
)
def test_rows_without_calls_or_tools_are_refused(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        made(rows)
