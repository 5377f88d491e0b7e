"""Where rows come from: lists, data sets, data frames, files, the Hub. Read into plain dicts, with the line
of each.

Nothing is guessed: a broken line is an error that names the file and the line. `workbench.data` says what the
rows mean. Only the standard library is imported until a source needs pandas, pyarrow or datasets.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.errors import DataError, did_you_mean
from workbench.text import shorten

FILES = (".jsonl", ".json", ".csv", ".parquet")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MESSAGES_IN_CSV = "messages"
"""the one column whose text in a CSV file is read as JSON, because it has no meaning as plain text"""


@dataclass(frozen=True)
class Raw:
    """Rows as they were found: plain dicts, what they came from, the file's line of each (from 1)."""

    rows: list[dict[str, Any]]
    source: str
    lines: list[int] | None = None

    def where(self, index: int) -> str:
        """`row 3 (counting from 0; train.jsonl, line 4)`."""
        return place(index, self.source, self.lines)


def place(index: int, source: str, lines: list[int] | tuple[int, ...] | None) -> str:
    """How messages name a row."""
    line = f"; {source}, line {lines[index]}" if lines else ""
    return f"row {index} (counting from 0{line})"


def read(source: Any, split: str, limit: int | None, name: str | None) -> Raw:
    """The rows of any source that `wb.rows` takes. DataError when it cannot be read."""
    datasets, pandas = sys.modules.get("datasets"), sys.modules.get("pandas")
    if isinstance(source, (str, Path)):
        return _from_path_or_hub(source, split, limit, name)
    if datasets is not None:
        if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            source = _pick_split(source, split)
        if isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
            return _from_dataset(source, limit, "the data set")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        frame = source if limit is None else source.head(limit)
        return Raw([_plain(row) for row in frame.to_dict("records")], "the data frame")
    if isinstance(source, dict):
        raise DataError(
            "wb.rows got one dict. For one row give a list with it, [row]; for columns of values give "
            "pandas.DataFrame(columns) or datasets.Dataset.from_dict(columns)."
        )
    if isinstance(source, Iterable):
        return _from_items(islice(iter(source), limit))
    raise DataError(
        f"wb.rows cannot read {type(source).__name__}: give a list of dicts, a datasets.Dataset, a "
        f"pandas.DataFrame, a path ({', '.join(FILES)}) or a Hub data set id."
    )


def _from_items(items: Iterable[Any]) -> Raw:
    rows = []
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(
                f"row {index} (counting from 0) is {_kind(item)}, not a dict: {shorten(str(item))}."
            )
        rows.append(_plain(item))
    return Raw(rows, "the list")


def _plain(value: Any) -> Any:
    """numpy arrays and scalars, which data frames hold, as lists and numbers; tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _kind(value: Any) -> str:
    return {str: "text", dict: "a dict", list: "a list", type(None): "null"}.get(
        type(value), type(value).__name__
    )


# Data sets and the Hub


def _pick_split(splits: Any, split: str) -> Any:
    if split not in splits:
        raise DataError(
            f"No split {split!r}; there are {', '.join(map(repr, splits))}.{did_you_mean(split, splits)}"
        )
    return splits[split]


def _from_dataset(dataset: Any, limit: int | None, source: str) -> Raw:
    if hasattr(dataset, "with_format") and getattr(dataset, "format", {}).get("type") is not None:
        dataset = dataset.with_format(None)  # Python values, whatever format the user chose for looking
    return Raw([_plain(row) for row in islice(iter(dataset), limit)], source)


def _from_path_or_hub(source: str | Path, split: str, limit: int | None, name: str | None) -> Raw:
    path = Path(source).expanduser()
    suffix = _suffix(path)
    if path.is_dir():
        return _from_saved(path, split, limit)
    if path.is_file():
        if suffix not in FILES:
            raise DataError(
                f"{path} ends in {suffix or 'nothing'}; wb.rows reads {', '.join(FILES)} (.gz too)."
            )
        return _READERS[suffix](path, limit)
    if isinstance(source, Path) or suffix in FILES or not HUB_ID.fullmatch(source):
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        reason = did_you_mean(path.name, siblings) if siblings else f" There is no folder {path.parent}."
        raise DataError(f"There is no file {path}.{reason}")
    return _from_hub(source, split, limit, name)


def _from_saved(path: Path, split: str, limit: int | None) -> Raw:
    """A folder written by `Dataset.save_to_disk`."""
    if not any((path / mark).exists() for mark in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{path} is a folder, and not one of Dataset.save_to_disk. Give a file: {', '.join(FILES)}."
        )
    import datasets

    dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        dataset = _pick_split(dataset, split)
    return _from_dataset(dataset, limit, str(path))


def _from_hub(source: str, split: str, limit: int | None, name: str | None) -> Raw:
    import datasets

    try:
        dataset = datasets.load_dataset(source, name, split=split)
    except Exception as error:  # datasets raises many kinds; the reader needs the id and the reason
        raise DataError(
            f"The Hub data set {source!r} (name {name!r}, split {split!r}) could not be loaded: "
            f"{type(error).__name__}: {error}. A local file needs a path that exists."
        ) from error
    return _from_dataset(dataset, limit, f"{source} ({split})")


# Files


def _suffix(path: Path) -> str:
    suffixes = [item.lower() for item in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _text_of(path: Path) -> str:
    """The file's text. DataError naming the line that is not UTF-8."""
    try:
        data = gzip.open(path).read() if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from error


def _read_jsonl(path: Path, limit: int | None) -> Raw:
    rows, lines = [], []
    for number, line in enumerate(
        _text_of(path).split("\n"), start=1
    ):  # not splitlines: U+2028 is legal in JSON
        if not line.strip():
            continue
        if limit is not None and len(rows) >= limit:
            break
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: broken JSON at column {error.colno} ({error.msg}): {shorten(line)}."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: {_kind(row)} instead of an object {{...}}: {shorten(line)}."
            )
        rows.append(row)
        lines.append(number)
    return Raw(rows, str(path), lines)


def _read_json(path: Path, limit: int | None) -> Raw:
    text = _text_of(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_jsonl(path, limit)  # JSON lines under the name .json, as many data sets have it
        raise DataError(
            f"{path}, line {error.lineno}: broken JSON at column {error.colno} ({error.msg})."
        ) from error
    if isinstance(value, dict):
        raise DataError(
            f"{path} holds one object; wb.rows needs a list of objects, [{{...}}, ...], or JSON lines."
        )
    for index, row in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: entry {index} (counting from 0) is {_kind(row)} instead of an object {{...}}."
            )
    return Raw(value[:limit], str(path))


def _read_csv(path: Path, limit: int | None) -> Raw:
    """CSV with a header. All values are text, nothing is guessed into numbers; `messages` is read as JSON."""
    rows, lines = [], []
    records = _csv_records(path, limit)
    if not records:
        raise DataError(f"{path} is empty: the first line must name the columns.")
    header = records[0][1]
    doubled = {name for name in header if header.count(name) > 1}
    if doubled:
        raise DataError(f"{path}, line 1: column {sorted(doubled)[0]!r} is there twice.")
    for line, values in records[1:]:
        if len(values) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(values)} values for {len(header)} columns ({', '.join(header)}). "
                'A value with a comma or a line break must stand in "quotes".'
            )
        row: dict[str, Any] = dict(zip(header, values, strict=True))
        if MESSAGES_IN_CSV in row:
            row[MESSAGES_IN_CSV] = _messages_of(row[MESSAGES_IN_CSV], path, line)
        rows.append(row)
        lines.append(line)
    return Raw(rows, str(path), lines)


def _messages_of(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {line}: column 'messages' is not JSON ({error.msg}): {shorten(text)}"
        ) from error


def _csv_records(path: Path, limit: int | None) -> list[tuple[int, list[str]]]:
    """The header and `limit` records, each as (line on which it begins, values); blank lines skipped."""
    text = _text_of(path)
    records: list[tuple[int, list[str]]] = []
    before = csv.field_size_limit(
        max(csv.field_size_limit(), len(text) + 1)
    )  # a process-wide setting: put back
    begin = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for values in reader:
            if values:
                records.append((begin, values))
            begin = reader.line_num + 1
            if limit is not None and len(records) > limit:
                break
    except csv.Error as error:
        raise DataError(f"{path}, line {begin}: broken CSV ({error}).") from error
    finally:
        csv.field_size_limit(before)
    return records


def _read_parquet(path: Path, limit: int | None) -> Raw:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return Raw(table.slice(0, limit).to_pylist(), str(path))


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
