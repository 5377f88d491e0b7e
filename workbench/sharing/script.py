"""A run as a plain Python script for another machine, by workbench's public names alone.

The script does the line of steps that stands: changes made during the run are made again after the same steps, what a
rewind gave up is left out, and a fork begins where its parent began. Every value from the record is written by `repr`,
so that no text of a user or a model can leave its quotes. What the record cannot give (the code of a function of
another process, rows that were not handed on) is a marked place that stops with words.
"""

from __future__ import annotations

import ast
import json
import keyword
import pprint
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench import settings as settings_of
from workbench.errors import StoreError
from workbench.sharing.card import HUB_DATA, differing
from workbench.sharing.source import NoSource, definition
from workbench.store import Store
from workbench.tracking.record import data_of, rewards_at

ALWAYS = ("steps", "lr", "seed")
"""settings that the script names even where they are the defaults"""


@dataclass
class Line:
    """What a run did, from its very beginning to its last step."""

    meta: dict[str, Any]
    """of the run, or for a fork of its oldest ancestor"""
    store: Store
    """the store that has the rows"""
    last: int
    changes: dict[int, dict[str, Any]] = field(default_factory=dict)
    """after which step -> what was set: `settings`, and `rewards` as stored entries"""
    lost: str = ""
    """the ancestor that is not there any more"""


def line_of(store: Store, last: int | None = None) -> Line:
    """The run's whole history along the line that stands, its parents' steps included."""
    last = store.last_step() if last is None else last
    meta, parent = store.meta, store.get("parent")
    made = Line(meta, store, last)
    if parent:
        try:
            before = Store(parent["folder"])
        except StoreError:
            made.lost = parent["name"]
        else:
            made = line_of(before, parent["step"])
            made.last = last
            old, new = before.settings(parent["step"] + 1, parent["branch"]), meta["settings"]
            _add(made, parent["step"], {"settings": {k: v for k, v in new.items() if old.get(k) != v}})
            rewards = rewards_at(store, parent["step"])
            if rewards != rewards_at(before, parent["step"] + 1, parent["branch"]):
                _add(made, parent["step"], {"rewards": rewards})
    for event in store.events(None).itertuples():
        if event.kind == "set" and event.step <= last:
            new = {name: value for name, (_, value) in event.payload.get("settings", {}).items()}
            _add(
                made,
                event.step - 1,
                {"settings": new, **({"rewards": event.payload["rewards"][1]} if "rewards" in event.payload else {})},
            )
    return made


def _add(line: Line, step: int, change: dict[str, Any]) -> None:
    there = line.changes.setdefault(step, {"settings": {}})
    there["settings"] |= change.get("settings", {})
    if "rewards" in change:
        there["rewards"] = change["rewards"]
    if not there["settings"] and "rewards" not in there:
        del line.changes[step]


def write(run: Any, path: Path | None = None) -> str:
    """The script of a `Run`; with `path` it is written there, with rows that were given in memory beside it.

    Raises StoreError where it cannot be written."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise StoreError(f"The script cannot be written to {path}: give the name of a file in a folder that is there.")
    script = _Script(run.store, line_of(run.store), partial(functions_at, run), path)
    text = script.text()
    ast.parse(text)  # the script is Python, whatever was in the record
    if path is not None:
        for name, items in script.rows_files.items():
            with path.with_name(name).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in items)
        path.write_text(text, encoding="utf-8")
    return text


def functions_at(run: Any, step: int) -> dict[str, Callable]:
    """The reward functions that step `step` was made with (0: those the run began with), by name, as far as this
    process has them."""
    if run.engine is None:
        return {}
    live = run.engine.live_at(step)
    task = getattr(live.data, "task", None)
    return {} if task is None or live.missing else task.functions


class _Script:
    """Puts the text together, part by part."""

    def __init__(self, own: Store, line: Line, functions: Callable[[int], Mapping[str, Callable]], path: Path | None):
        self.own = own
        self.line, self.meta, self.store = line, line.meta, line.store
        # the functions of a fork's parent are not in this process's hands
        self.functions = (lambda step: functions(step) if step else {}) if own.get("parent") else functions
        self.stem = path.stem if path is not None else "train"
        self.folder = path.parent if path is not None else None
        self.name = own.get("name") or own.folder.name
        self.imports: list[str] = []
        self.blocks: list[str] = []
        """definitions, in their order"""
        self.defined: dict[str, str] = {}
        """what each name of ours stands for after the last block"""
        self.dicts: list[str] = []
        """the dicts of functions that were made; one that holds an older function of a name is not to be used again"""
        self.rows_files: dict[str, list[dict]] = {}

    def text(self) -> str:
        meta, line = self.meta, self.line
        body = [*self._policy(), *self._data(), *self._run()]
        settings = differing(meta["method"], meta["settings"]) | {n: meta["settings"][n] for n in ALWAYS}
        # where a limit of time ended the run, LAST does
        settings.pop("time_limit", None)
        constants = [
            "SETTINGS = " + _repr(settings),
            f"LAST = {line.last}  # the run's last step",
            "RECORDED = "
            + _repr({n: repr(v) for n, v in self.own.step_metrics(line.last).items()})
            + "  # its metrics there",
        ]
        title = f"The run {self.name!r} again: {meta['method']} on {meta['policy']['base']!r}."
        versions = json.dumps(meta["versions"])
        doc = f"{title}\n\nWritten by workbench {version('workbench')} from the run's record; made with {versions}.\n"
        imports = sorted({"import argparse", "import workbench as wb", *self.imports})
        parts = [
            _docstring(doc),
            "\n".join(imports),
            "\n".join(constants),
            *(block.rstrip("\n") for block in self.blocks),
            _CHECK,
            "def main():\n" + "\n".join(f"    {text}".rstrip() for text in body),
            'if __name__ == "__main__":\n    main()',
        ]
        head = "\n\n".join(parts[:3])
        return head + "\n\n\n" + "\n\n\n".join(parts[3:]) + "\n"

    # -- the policy ------------------------------------------------------------------------------------------

    def _policy(self) -> list[str]:
        policy = self.meta["policy"]
        made = [
            "parser = argparse.ArgumentParser(description=__doc__)",
            f"parser.add_argument('--out', default={'runs/' + self.name!r}, help='folder of the new run')",
            f"parser.add_argument('--device', default={policy['device']!r}, help='cpu, cuda, mps or auto')",
            f"parser.add_argument('--model', default={policy['model']!r}, help='Hub id or folder of the model')",
            "args = parser.parse_args()",
            "",
            "policy = wb.load(",
            "    args.model,",
            f"    revision={policy['commit'] or policy['revision']!r},",
            f"    quantize={policy['quantize']!r},",
            f"    dtype={policy['dtype']!r},",
            "    device=args.device,",
            f"    seed={policy['seed']!r},",
            ")",
        ]
        if policy["adapter"] is not None:
            made += ["if policy.adapter is None:", *_indent(self._attach(policy["adapter"]))]
        began = self.meta.get("started_from")
        if self.line.lost:
            made += _stop(
                f"This run is a fork of {self.line.lost!r}, whose folder is not there: its first steps are not known."
            )
        elif began not in (None, "start"):
            made += _stop(
                f"This run began with the weights of the run {began!r}: save that run's adapter, give it with --model, "
                "and delete this line."
            )
        return made

    def _attach(self, record: dict[str, Any]) -> list[str]:
        self.imports.append("import peft")
        return [f"policy.attach(peft.PeftConfig.from_peft_type(**{_repr(record)}))"]

    # -- the data --------------------------------------------------------------------------------------------

    def _data(self) -> list[str]:
        made = ["", *self._source("data", "rows", "train")]
        if self.meta["eval"] is not None:
            made += self._source("eval", "held_out", "eval")
        return made

    def _source(self, which: str, name: str, stored: str) -> list[str]:
        spec, data = self.meta[which], data_of(self.store, which)
        if spec["kind"] == "rows":
            return self._rows(name, stored, data)
        task = spec["task"]
        if task["kind"] == "rows":
            made = self._rows(name, stored, data)
            rewards = self._rewards(task["rewards"], 0)
            weights = [entry["weight"] for entry in task["rewards"]]
            return [
                *made,
                f"{name} = wb.Task({name}, {rewards}, weights={weights!r}, "
                f"name={task['name']!r}, verdict={task['verdict']!r})",
            ]
        kind = {"name": task["kind"], **task["args"]}
        made = [f"{name} = wb.task(**{_repr(kind)})", _check_line(f"{name}.rows", data["digest"])]
        weights = [entry["weight"] for entry in task["rewards"]]
        if all(entry["reference"] is not None for entry in task["rewards"]) or self.functions(0):
            rewards = self._rewards(task["rewards"], 0)
            made.append(f"{name} = {name}.with_rewards({rewards}, weights={weights!r}, verdict={task['verdict']!r})")
        return made

    def _rows(self, name: str, stored: str, data: dict[str, Any]) -> list[str]:
        source = str(data["source"])
        hub = HUB_DATA.fullmatch(source)
        if hub and not Path(hub[1]).exists():
            read = f"{name} = wb.rows({hub[1]!r}, split={hub[2]!r}, limit={data['rows']})"
        elif Path(source).is_file() and self._reads_the_same(source, data["digest"]):
            read = f"{name} = wb.rows({str(Path(source).absolute())!r})"
        else:
            file = f"{self.stem}.{'rows' if stored == 'train' else 'held_out'}.jsonl"
            self.imports.append("from pathlib import Path")
            if self.folder is not None:
                self.rows_files[file] = self.store.rows(stored)
            # the rows, as JSON lines beside the script: they were given in memory
            read = f"{name} = wb.rows(Path(__file__).with_name({file!r}))"
        return [read, _check_line(name, data["digest"])]

    def _reads_the_same(self, path: str, digest: str) -> bool:
        from workbench.data import rows
        from workbench.errors import DataError

        try:
            return rows(path).digest() == digest
        except DataError:
            return False

    # -- rewards ---------------------------------------------------------------------------------------------

    def _rewards(self, entries: list[dict[str, Any]], step: int) -> str:
        """The name of a dict of the functions of a step; what it needs goes to the imports and the definitions."""
        made = "{" + ", ".join(f"{entry['name']!r}: {self._function(entry, step)}" for entry in entries) + "}"
        if made not in self.dicts:
            self.dicts.append(made)
            self.blocks.append(f"REWARDS_{len(self.dicts)} = {made}")
        return f"REWARDS_{self.dicts.index(made) + 1}"

    def _function(self, entry: dict[str, Any], step: int) -> str:
        if entry["reference"] is not None:
            return self._imported(entry["reference"])
        fn = self.functions(step).get(entry["name"])
        why = "the process that wrote this script did not have it"
        if fn is not None:
            try:
                return self._define(fn)
            except NoSource as error:
                why = str(error)
        place = f"reward_{sum(block.startswith('# PUT') for block in self.blocks) + 1}"
        said = f"Put the reward function {entry['name']!r} here: its code is not in the record ({why})."
        self.blocks.append(
            f"# PUT YOUR FUNCTION HERE\ndef {place}(prompts, completions, **columns):\n    raise SystemExit({said!r})\n"
        )
        return place

    def _define(self, fn: Callable) -> str:
        """Take over a function's source. One that was edited under its old name is defined again, further down: the
        dict that holds the first has been made by then. Raises NoSource where that would change what the first calls.
        """
        imports, parts = definition(fn)
        own = fn.__name__
        for name, text in parts.items():
            if name in TAKEN or (name != own and self.defined.get(name, text) != text):
                raise NoSource(f"the name {name} stands for two things")
        self.imports += imports
        for name, text in parts.items():
            if self.defined.get(name) != text:
                if name in self.defined:
                    self.dicts = [""] * len(self.dicts)
                self.defined[name] = text
                self.blocks.append(text)
        return own

    def _imported(self, reference: dict[str, Any]) -> str:
        if "partial" in reference:
            self.imports.append("import functools")
            return f"functools.partial({self._imported(reference['partial'])}, **{reference['arguments']!r})"
        module, _, qualname = reference["path"].partition(":")
        names = [*module.split("."), *qualname.split(".")]
        if not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
            return f"None  # {reference['path']!r} cannot be imported"
        self.imports.append(f"import {module}")
        called = f"(**{reference['arguments']!r})" if "arguments" in reference else ""
        return f"{module}.{qualname}{called}"

    # -- the run ---------------------------------------------------------------------------------------------

    def _run(self) -> list[str]:
        method = self.meta["method"]
        held_out = ", eval_dataset=held_out" if self.meta["eval"] is not None else ""
        made = ["", f"run = {settings_of.called(method)}(policy, rows, out=args.out{held_out}, **SETTINGS)"]
        if 0 in self.line.changes:
            made.append(self._set(0, self.line.changes[0]))
        if self.line.last:
            made += ["for step in run:", "    print(step)"]
            for after, change in sorted(self.line.changes.items()):
                if 0 < after < self.line.last:
                    made += [f"    if step.index == {after}:", f"        {self._set(after, change)}"]
            made += ["    if step.index == LAST:", "        break"]
        return [*made, "compare(run)"]

    def _set(self, after: int, change: dict[str, Any]) -> str:
        parts = [f"**{_repr(change['settings'])}"] if change["settings"] else []
        if "rewards" in change:
            parts.append(f"rewards={self._rewards(change['rewards'], after + 1)}")
            parts.append(f"weights={[entry['weight'] for entry in change['rewards']]!r}")
        return f"run.set({', '.join(parts)})"


TAKEN = {"main", "compare", "check", "wb", "argparse", "peft", "Path", "SETTINGS", "LAST", "RECORDED", "functools"}
"""names of the script's own"""

_CHECK = '''def check(rows, digest):
    """Stop unless these are the rows of the run."""
    if rows.digest() != digest:
        raise SystemExit(f"These are not the rows of the run: {rows!r} has the digest {rows.digest()}, not {digest}.")


def compare(run):
    """Say how far the new run's last metrics are from the recorded ones."""
    made = run.store.step_metrics(run.step)
    differ = {name: (said, made.get(name)) for name, said in RECORDED.items() if repr(made.get(name)) != said}
    for name, (said, got) in differ.items():
        print(f"{name}: {got!r}, and {said} in the record")
    print(f"{len(RECORDED) - len(differ)} of {len(RECORDED)} metrics are exactly those of the record.")'''


def _check_line(name: str, digest: str) -> str:
    return f"check({name}, {digest!r})"


def _stop(why: str) -> list[str]:
    return [f"raise SystemExit({why!r})"]


def _indent(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _repr(value: Any) -> str:
    """A value of the record as a Python expression. JSON values only; a number that is none is written as text."""
    return pprint.pformat(json.loads(json.dumps(value), parse_constant=str), width=100, sort_dicts=False)


def _docstring(text: str) -> str:
    """The text as a docstring that nothing in it can end."""
    safe = text.replace("\\", "\\\\").replace('"', "'")
    return '"""' + "".join(c if c.isprintable() or c == "\n" else "?" for c in safe) + '"""'
