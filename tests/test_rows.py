"""Reading rows: every source, every form, and what each error says."""

import gzip
import json
import subprocess
import sys

import datasets
import pandas
import pytest

from workbench.data import Rows, explicit_prompt, rows
from workbench.errors import DataError

PAIR = {"prompt": "The sky is", "completion": " blue."}
TWO = [PAIR, {"prompt": "Grass is", "completion": " green."}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def fails(source, *words, **settings):
    """Reading fails with a DataError that says all the words."""
    with pytest.raises(DataError) as error:
        rows(source, **settings)
    for word in words:
        assert word in str(error.value), str(error.value)


# Sources


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_all_sources_give_the_same_rows(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in TWO)
    frame = pandas.DataFrame(TWO)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    datasets.Dataset.from_list(TWO).save_to_disk(tmp_path / "saved")
    sources = [
        TWO,
        iter(TWO),
        frame,
        datasets.Dataset.from_list(TWO),
        datasets.Dataset.from_list(TWO).to_iterable_dataset(),
        datasets.Dataset.from_list(TWO).with_format("numpy"),
        datasets.DatasetDict({"train": datasets.Dataset.from_list(TWO)}),
        written(tmp_path, "a.jsonl", lines),
        str(written(tmp_path, "b.json", json.dumps(TWO))),
        written(tmp_path, "lines.json", lines),
        written(tmp_path, "a.jsonl.gz", gzip.compress(lines.encode())),
        tmp_path / "a.parquet",
        tmp_path / "a.csv",
        tmp_path / "saved",
        rows(TWO),
    ]
    for source in sources:
        read = rows(source)
        assert read.to_list() == TWO, source
        assert read.digest() == rows(TWO).digest()
        assert (read.form, read.conversational, read.columns) == (
            "prompt_completion",
            False,
            ("prompt", "completion"),
        )


def test_conversations_survive_data_sets_frames_and_parquet(tmp_path):
    talk = [{"messages": [user("Hi"), assistant("Hello")]}]
    pandas.DataFrame(talk).to_parquet(tmp_path / "talk.parquet")
    for source in (talk, datasets.Dataset.from_list(talk), pandas.DataFrame(talk), tmp_path / "talk.parquet"):
        read = rows(source)
        assert read.to_list() == talk and read.conversational and read.form == "messages"
    csv = 'messages\n"[{""role"": ""user"", ""content"": ""Hi""}]"\n'
    assert rows(written(tmp_path, "talk.csv", csv))[0] == {"messages": [user("Hi")]}


def test_a_hub_id_goes_to_datasets(monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list(TWO)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read = rows("someone/things", split="test", limit=1, name="main")
    assert asked == [("someone/things", "main", "test")] and len(read) == 1
    assert "someone/things (test)" in read.source

    def refuse(path, name, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    fails("someone/things", "someone/things", "ConnectionError", "no route")


def test_limit_split_and_rename(tmp_path):
    path = written(
        tmp_path, "q.jsonl", '{"question": "1+1?", "answer": "2"}\n{"question": "2+2?", "answer": "4"}\n'
    )
    read = rows(path, limit=1, rename={"question": "prompt", "answer": "completion"})
    assert read.to_list() == [{"prompt": "1+1?", "completion": "2"}]
    assert rows(written(tmp_path, "l.csv", "prompt,x\na,1\nb,2\n"), limit=1).to_list() == [
        {"prompt": "a", "x": "1"}
    ]
    two = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(TWO), "test": datasets.Dataset.from_list(TWO[:1])}
    )
    assert len(rows(two, split="test")) == 1
    fails(two, "'tset'", "'train', 'test'", "Did you mean 'test'", split="tset")
    fails(path, "no column 'qestion'", "Did you mean 'question'", rename={"qestion": "prompt"})
    fails(TWO, "two columns 'completion'", rename={"prompt": "completion"})
    fails(TWO, "limit=0", limit=0)


def test_broken_files_name_file_and_line(tmp_path):
    good = json.dumps(PAIR)
    fails(written(tmp_path, "a.jsonl", f"{good}\n\n{good[:-1]}\n"), "a.jsonl, line 3", "broken JSON")
    fails(written(tmp_path, "b.jsonl", f"{good}\n[1]\n"), "b.jsonl, line 2", "a list instead of an object")
    fails(
        written(tmp_path, "c.json", '[\n{"prompt": "a"},\n{"prompt" "b"}]'), "c.json, line 3", "broken JSON"
    )
    fails(written(tmp_path, "d.json", '{"prompt": ["a"]}'), "d.json", "one object")
    fails(
        written(tmp_path, "e.csv", "prompt,completion\na,b\na,b,c\n"),
        "e.csv, line 3",
        "3 values for 2 columns",
    )
    fails(
        written(tmp_path, "f.csv", 'prompt,completion\n"two\nlines",b\na\n'),
        "f.csv, line 4",
        "1 values for 2",
    )
    fails(written(tmp_path, "g.csv", 'prompt,completion\na,b\n"a,b\n'), "g.csv, line 3", "broken CSV")
    fails(written(tmp_path, "h.csv", "prompt,prompt\na,b\n"), "h.csv, line 1", "'prompt' is there twice")
    fails(written(tmp_path, "i.csv", ""), "i.csv is empty")
    fails(
        written(tmp_path, "j.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n'), "j.jsonl, line 2", "not UTF-8"
    )
    fails(written(tmp_path, "k.parquet", "no"), "k.parquet cannot be read as Parquet")
    fails(written(tmp_path, "l.csv", "messages\nhello\n"), "l.csv, line 2", "'messages' is not JSON")
    fails(written(tmp_path, "m.gz.txt", "x"), "ends in .txt", ".parquet")
    fails(written(tmp_path, "n.jsonl.gz", "x"), "n.jsonl.gz cannot be read")
    fails(tmp_path / "a.jsnl", "There is no file", "Did you mean 'a.jsonl'")
    fails(str(tmp_path / "no" / "a.jsonl"), "There is no folder")
    fails(tmp_path, "is a folder")
    fails(written(tmp_path, "o.jsonl", "\n"), "There are no rows in", "o.jsonl")


def test_text_in_files_is_kept_whole(tmp_path):
    odd = 'a\u2028b\u0085c\r\nd, "e" 日本'
    line = json.dumps({"text": odd}, ensure_ascii=False)
    assert rows(written(tmp_path, "a.jsonl", "\ufeff" + line + "\r\n"))[0]["text"] == odd
    long = "x" * 200_000
    csv = f'text,n\n"{odd.replace(chr(34), chr(34) * 2)}",007\n{long},1\n'
    assert rows(written(tmp_path, "a.csv", csv)).to_list() == [
        {"text": odd, "n": "007"},
        {"text": long, "n": "1"},
    ]


def test_other_things_are_refused():
    fails(3, "cannot read int")
    fails({"prompt": "a"}, "one dict", "[row]")
    fails([PAIR, "text"], "row 1", "text, not a dict")
    fails([], "There are no rows")


# Forms


@pytest.mark.parametrize(
    ("row", "form", "conversational"),
    [
        (PAIR, "prompt_completion", False),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, "prompt_completion", True),
        ({"messages": [user("a"), assistant("b")]}, "messages", True),
        ({"text": "a"}, "text", False),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", False),
        (
            {"chosen": [user("q"), assistant("b")], "rejected": [user("q"), assistant("c")]},
            "preference",
            True,
        ),
        (
            {"prompt": "q", "chosen": [user("q"), assistant("b")], "rejected": [user("q"), assistant("c")]},
            "preference",
            True,
        ),
        ({"prompt": "a", "answer": 3, "level": None}, "prompt_only", False),
        ({"prompt": [user("a")]}, "prompt_only", True),
        ({"prompt": "a", "messages": [user("a"), assistant("b")]}, "messages", True),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "messages",
            True,
        ),
    ],
)
def test_forms(row, form, conversational):
    read = rows([row])
    assert (read.form, read.conversational) == (form, conversational)


def test_sharegpt_becomes_messages():
    found = rows(
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 7}]
    )
    assert found[0] == {"id": 7, "messages": [user("a"), assistant("b")]}


def test_misspelt_columns_are_named_with_the_nearest():
    fails([{"prompt": "a", "complétion": "b"}], "row column 'complétion'?", "Did you mean 'completion'")
    fails([{"prompt": "a", "chosen": "b", "rejectd": "c"}], "row column 'rejectd'?", "'rejected'")
    fails([{"mesages": [user("a")]}], "row column 'mesages'?", "'messages'")
    fails([{"Text": "a"}], "row column 'Text'?", "'text'")
    fails([{"question": "a", "answer": "b"}], "question, answer", "make no form", "rename")
    fails([{"completion": "b"}], "'completion' alone is not enough")
    fails([{1: "a"}], "column 1", "not named by text")
    with pytest.raises(
        DataError, match=r"Preference training needs the row column 'chosen'.*columns: prompt, choosen_text"
    ):
        rows([{"prompt": "a", "choosen_text": "b"}]).require("chosen", what="Preference training")
    assert rows([PAIR]).require("prompt", "completion").form == "prompt_completion"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"prompt": "a"}, ["row 1", "column 'completion' is missing", "has prompt"]),
        ({"prompt": "a", "completio": "b"}, ["row 1", "'completion' is missing", "Did you mean 'completio'"]),
        ({"prompt": "a", "completion": None}, ["row 1", "column 'completion' is missing (None)"]),
        ({"prompt": "a", "completion": float("nan")}, ["row 1", "column 'completion' is missing"]),
        ({"prompt": "", "completion": "b"}, ["row 1", "column 'prompt' is empty"]),
        (
            {"prompt": "a", "completion": 42},
            ["row 1", "column 'completion' is int (", "42", "Write numbers as text"],
        ),
        (
            {"prompt": [user("a")], "completion": "b"},
            ["row 1", "mixed forms", "'prompt' holds messages", "plain"],
        ),
        (
            {"prompt": "a", "completion": [assistant("b")]},
            ["row 1", "mixed forms", "'completion' holds messages"],
        ),
    ],
)
def test_rows_that_do_not_fit_together(tmp_path, second, words):
    fails([PAIR, second], *words)
    path = written(tmp_path, "rows.jsonl", json.dumps(PAIR) + "\n\n" + json.dumps(second))
    fails(path, *words, "rows.jsonl, line 3")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["column 'messages' is an empty list"]),
        ("text", ["column 'messages' is str, not a list of messages"]),
        ([user("a"), "b"], ["message 1 is str, not a dict"]),
        ([{"content": "a", "rol": "user"}], ["message 0 has no 'role'", "Did you mean 'rol'"]),
        (
            [{"role": "user", "contents": "a"}],
            ["message 0 (user) has no 'content'", "Did you mean 'contents'"],
        ),
        (
            [user("a"), {"role": "assitant", "content": "b"}],
            ["message 1", "'assitant'", "Did you mean 'assistant'"],
        ),
        ([user("a"), assistant("")], ["message 1 (assistant) has an empty 'content'"]),
        ([user("a"), assistant(5)], ["message 1: 'content' is int"]),
        ([user([{"type": "image", "url": "x"}])], ["message 0", "only text is supported"]),
    ],
)
def test_broken_messages(messages, words):
    fails([{"messages": [user("a")]}, {"messages": messages}], "row 1 (counting from 0)", *words)


def test_forms_mixed_within_a_row():
    fails(
        [{"prompt": "a", "completion": [assistant("b")]}],
        "row 0",
        "mixed forms within the row",
        "'prompt' holds plain",
    )
    fails([{"chosen": "a", "rejected": [assistant("b")]}], "row 0", "mixed forms within the row")
    fails([{"prompt": [user("a")], "chosen": "b", "rejected": "c"}], "row 0", "mixed forms within the row")
    fails([{"text": ["a"]}], "row 0", "'text' is list, not text")


def test_tool_calls_may_stand_for_content():
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    assert rows([{"messages": [user("a"), call]}])[0]["messages"][1] == call


# Preferences without a prompt


def test_the_shared_beginning_is_what_trl_extracts():
    from trl.data_utils import maybe_extract_prompt

    conversation = [user("q"), assistant("a"), user("r")]
    cases = [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "The sky", "rejected": "The sky is green."},
        {"chosen": "same", "rejected": "same"},
        {"chosen": [*conversation, assistant("x")], "rejected": [*conversation, assistant("y")]},
        {"chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("x"), user("z")]},
        {"prompt": "q", "chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
        {"prompt": [user("q")], "chosen": [assistant("x")], "rejected": [assistant("y")]},
    ]
    for case in cases:
        expected = {key: value for key, value in maybe_extract_prompt(case).items()}
        assert explicit_prompt(case) == expected
    assert explicit_prompt({**cases[0], "score": 3}) == {
        "prompt": "The sky is",
        "chosen": " blue.",
        "rejected": " green.",
        "score": 3,
    }


def test_nothing_shared_is_refused():
    fails([{"chosen": "blue", "rejected": "green"}], "row 0", "share no first character", "'prompt' column")
    fails([{"chosen": [user("a")], "rejected": [user("b")]}], "row 0", "share no first message")


# The sequence


def test_rows_are_a_sequence_that_nobody_can_change():
    given = [{"messages": [user("a"), assistant("b")], "tag": [1]}]
    read = rows(given)
    before = read.digest()
    read[0]["messages"].append(user("c"))
    read.to_list()[0]["tag"].append(2)
    read.column("tag")[0].append(3)
    assert read[0] == given[0] and read.digest() == before
    assert read[-1] == read[0]
    with pytest.raises(IndexError):
        read[1]
    assert rows(TWO).digest() != rows(TWO[::-1]).digest()
    assert rows(TWO).column("completion") == [" blue.", " green."]
    assert rows(TWO).to_pandas()["prompt"].tolist() == ["The sky is", "Grass is"]
    assert repr(rows(TWO)) == "Rows(2 prompt_completion, plain, columns prompt, completion, from the list)"


def test_slices_keep_their_lines(tmp_path):
    path = written(tmp_path, "a.jsonl", "\n".join(json.dumps({"text": str(i)}) for i in range(5)))
    part = rows(path)[3:]
    assert isinstance(part, Rows) and part.to_list() == [{"text": "3"}, {"text": "4"}]
    assert part.where(1) == f"row 1 (counting from 0; {path}, line 5)"


def test_map_gives_one_row_several_or_none():
    def both_ways(row):
        if row["prompt"].startswith("Grass"):
            return None
        return [row, {"prompt": row["completion"], "completion": row["prompt"]}]

    made = rows(TWO).map(both_ways)
    assert made.to_list() == [PAIR, {"prompt": " blue.", "completion": "The sky is"}]
    with pytest.raises(DataError, match="row 0.*the transform gave int"):
        rows(TWO).map(lambda row: 3)
    with pytest.raises(DataError, match="row 1.*'completion' is empty"):
        rows(TWO).map(
            lambda row: {
                **row,
                "completion": row["completion"] if row is None or "sky" in row["prompt"] else "",
            }
        )


def test_as_form_checks_what_reading_did_not():
    read = rows([{"prompt": "a", "chosen": "b", "rejected": "c", "messages": []}])
    assert read.form == "preference" and read.as_form("prompt_only").form == "prompt_only"
    with pytest.raises(DataError, match="'messages' is an empty list"):
        read.as_form("messages")
    with pytest.raises(DataError, match="form 'text' needs the row column 'text'"):
        read.as_form("text")


def test_lone_surrogates_are_replaced_and_said(tmp_path):
    path = written(
        tmp_path,
        "a.jsonl",
        '{"prompt": "a\\ud83d", "completion": "\\ud83d\\ude00"}\n{"prompt": "b", "completion": "c"}',
    )
    read = rows(path)
    assert read[0] == {"prompt": "a\ufffd", "completion": "😀"}
    assert read.notes == ("1 row held lone surrogates (broken characters), replaced by U+FFFD",)
    assert "lone surrogates" in repr(read)
    assert rows([{"messages": [user("\udc00x")]}])[0]["messages"][0]["content"] == "\ufffdx"


def test_reading_rows_imports_nothing_heavy():
    code = (
        "import sys; from workbench.data import rows; import workbench.tokenise; rows([{'text': 'a'}]);"
        "heavy = ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow');"
        "print([name for name in heavy if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
