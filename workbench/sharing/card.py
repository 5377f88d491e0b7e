"""The model card: a README.md with the Hub's metadata, written beside a saved policy.

A card says what is known and nothing else: that of a bare policy its base and its adapter, that of a run also the
method and its paper, the data, every setting, the curves, the results from step 0 on, and how to do it again. The
license is the author's to choose, so no card names one. All that comes from data, from a model or from a user's names
is escaped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench import markdown
from workbench import settings as settings_of
from workbench.sharing import curves, papers
from workbench.store import Store
from workbench.tracking.record import data_of
from workbench.views.text import number_or_dash

NAME, PICTURE, SCRIPT = "README.md", "curves.svg", "train.py"
ASIDE = "README.workbench.md"
"""where the card goes when the author wrote a README.md"""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|gpt2|distilgpt2")
HUB_DATA = re.compile(r"([\w.-]+/[\w.-]+) \(([\w.-]+)\)")
MOST_EVALUATIONS = 12
AGAIN = (
    "`train.py` in this folder is the run as a script, without its rows: `python train.py --out runs/again`. It says"
    " where its rows have to be, and how to check that they are the same.\n"
)


def write(new: Path, old: Path, policy: dict[str, Any], store: Store | None = None, script: str = "") -> dict[str, Any]:
    """Write the card of what was saved to `new`, which takes the place of `old`, and what it speaks of (the curves, the
    run's script); returns what to note of it.

    `policy`: `Policy.describe()`. A README.md in `old` that is not the card an earlier save wrote is the author's: it
    is kept, and the card goes beside it.
    """
    picture = curves.of(store) if store is not None else None
    if picture is not None:
        (new / PICTURE).write_text(picture, encoding="utf-8")
    if script:
        (new / SCRIPT).write_text(script, encoding="utf-8")
    text = make(policy, store, picture is not None)
    own = _of_the_author(old)
    if own is not None:
        (new / NAME).write_bytes(own)
        (new / ASIDE).write_text(text, encoding="utf-8")
        print(f"{old / NAME} was changed by hand, so it is kept as it is; the new card is in {old / ASIDE}.")
        return {"card": None}
    (new / NAME).write_text(text, encoding="utf-8")
    return {"card": _digest((new / NAME).read_bytes())}


def _of_the_author(folder: Path) -> bytes | None:
    """The README.md that the author wrote or changed, if there is one."""
    try:
        record = json.loads((folder / "workbench.json").read_text(encoding="utf-8"))
        content = (folder / NAME).read_bytes()
    except (OSError, ValueError):
        return None
    return content if "card" in record and record["card"] != _digest(content) else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make(policy: dict[str, Any], store: Store | None = None, picture: bool = False) -> str:
    """The card's text."""
    meta = store.meta if store is not None else {}
    settings = store.settings(store.last_step()) if store is not None else {}
    cited = papers.of(meta.get("method"), settings, policy)
    parts = [
        _metadata(policy, store),
        _intro(policy, meta),
        _section("How to load it", _loading(policy)),
        _section("Training", _training(store, meta, cited) if store is not None else ""),
        _section("Curves", f"![The curves of the training]({PICTURE})\n" if picture else ""),
        _section("Results", _results(store) if store is not None else ""),
        _section("Settings", _settings(meta["method"], settings) if store is not None else ""),
        _section("Adapter", _adapter(policy)),
        _section("Versions", _pairs(meta.get("versions") or versions())),
        _section("To do it again", AGAIN if store is not None else ""),
        _section(
            "Citations", "```bibtex\n" + "\n\n".join(papers.bibtex(name) for name in cited) + "\n```\n" if cited else ""
        ),
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


# -- metadata ------------------------------------------------------------------------------------------------


def _metadata(policy: dict[str, Any], store: Store | None) -> str:
    """The YAML between the dashes. Values are JSON strings, which YAML reads as they are."""
    fields: dict[str, Any] = {}
    if HUB_ID.fullmatch(policy["base"]):
        fields["base_model"] = policy["base"]
    adapter = policy["adapter"]
    fields["library_name"] = "transformers" if adapter is None else "peft"
    fields["pipeline_tag"] = "text-generation"
    kind = [] if adapter is None else [str(adapter["peft_type"]).lower()]
    method = [store.get("method")] if store is not None else []
    fields["tags"] = ["workbench", *kind, *method]
    if store is not None and (found := _datasets(store)):
        fields["datasets"] = found
    lines = [f"{name}: {_yaml(value)}" for name, value in fields.items()]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _yaml(value: str | list[str]) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return "".join(f"\n- {json.dumps(item)}" for item in value)


def _datasets(store: Store) -> list[str]:
    """Hub ids of the data, where they are known."""
    found = []
    for data in (data_of(store), data_of(store, "eval")):
        if data is None:
            continue
        if data["kind"] == "gsm8k" and data["args"].get("path") is None:
            found.append("openai/gsm8k")
        elif data["kind"] == "rows" and (match := HUB_DATA.fullmatch(str(data["source"]))):
            found.append(match[1])
    return list(dict.fromkeys(found))


# -- sections ------------------------------------------------------------------------------------------------


def _intro(policy: dict[str, Any], meta: dict[str, Any]) -> str:
    title = markdown.escape(meta.get("name") or f"{_short(policy['base'])} adapter")
    what = (
        "A language model"
        if policy["adapter"] is None
        else f"A {policy['adapter']['peft_type']} adapter for {_base(policy)}"
    )
    how = f", trained with {meta['method'].upper()}" if meta else ""
    nothing = "" if meta else "\nHow it was trained is not known to this card.\n"
    return f"# {title}\n\n{what}{how} by workbench {version('workbench')}.\n{nothing}"


def _short(model: str) -> str:
    return Path(model).name


def _base(policy: dict[str, Any]) -> str:
    name = policy["base"]
    if name == "tiny":
        return "the tiny model that ships with workbench"
    at = f" at commit {markdown.code(policy['commit'])}" if policy["commit"] and policy["model"] == name else ""
    shown = (
        f"[{markdown.escape(name)}](https://huggingface.co/{name})"
        if HUB_ID.fullmatch(name)
        else markdown.code(_short(name))
    )
    quantize = (
        f", quantised ({markdown.escape(json.dumps(policy['quantize']))}) while it was trained"
        if policy["quantize"]
        else ""
    )
    return f"{shown}{at}{quantize}"


def _loading(policy: dict[str, Any]) -> str:
    commit = policy["commit"] if policy["model"] == policy["base"] else None
    revision = f", revision={_literal(commit)}" if commit else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if policy["adapter"] is None:
        lines += ["", 'model = AutoModelForCausalLM.from_pretrained(".")  # this folder, or the id of this repository']
    else:
        lines = ["from peft import PeftModel", *lines, ""]
        if policy["base"] == "tiny":
            lines[0:0] = ["from pathlib import Path", ""]
            lines += ["import workbench", "", 'tiny = Path(workbench.__file__).parent / "models" / "tiny"']
        base = "tiny" if policy["base"] == "tiny" else _literal(policy["base"])
        lines += [
            f"base = AutoModelForCausalLM.from_pretrained({base}{revision}, dtype={policy['dtype']!r})",
            'model = PeftModel.from_pretrained(base, ".")  # this folder, or the id of this repository',
        ]
    lines += [
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'inputs = tokenizer("Hello", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True))",
    ]
    local = not HUB_ID.fullmatch(policy["base"]) and policy["base"] != "tiny" and policy["adapter"] is not None
    note = "\nThe base model is a folder of the machine it was trained on; put the place of yours.\n" if local else ""
    return "```python\n" + "\n".join(lines) + "\n```\n" + note


def _literal(text: str) -> str:
    """The text as a Python string in which no backtick can end the block of code."""
    return repr(text).replace("`", "\\x60")


def _training(store: Store, meta: dict[str, Any], cited: list[str]) -> str:
    rows = [["method", meta["method"]], ["steps", store.last_step()]]
    seconds = store.query("SELECT SUM(seconds) FROM steps")[0][0]
    rows.append(["time in steps", f"{seconds:.0f} s"])
    if meta.get("started_from") not in (None, "start"):
        rows.append(["began with the weights of", meta["started_from"]])
    if meta.get("parent"):
        rows.append(["forked from", f"{meta['parent']['name']}, after step {meta['parent']['step']}"])
    for which, title in (("data", "data"), ("eval", "held-out data")):
        data = data_of(store, which)
        if data is None:
            rows.append([title, "none"])
            continue
        rows += [[title, f"{data['source']}, {data['rows']} rows"], [f"{title}: SHA-256", data["digest"]]]
        if data.get("args"):
            rows.append([f"{title}: arguments", json.dumps(data["args"], ensure_ascii=False)])
        if data.get("rewards"):
            rows.append(
                [f"{title}: rewards", ", ".join(f"{name} × {weight:g}" for name, weight in data["rewards"].items())]
            )
    events = [e for e in store.events(None).itertuples() if e.kind in ("set", "rewind")]
    changes = markdown.table(["before step", "changed during the run"], _changes(events))
    links = "".join(f"- {papers.link(name)}\n" for name in cited)
    return (
        markdown.table(["", ""], rows)
        + (f"\n{changes}" if changes else "")
        + (f"\nPapers:\n\n{links}" if links else "")
    )


def _changes(events: list[Any]) -> list[list[Any]]:
    from workbench.views.curves import describe

    return [[event.step, describe(event.kind, event.payload)] for event in events if event.kind == "set"]


def _results(store: Store) -> str:
    wide = store.metrics()
    held_out = [name for name in wide.columns if str(name).startswith("eval/")]
    parts = []
    if held_out:
        some = wide[held_out].dropna(how="all")
        if len(some) > MOST_EVALUATIONS:
            kept = [round(i * (len(some) - 1) / (MOST_EVALUATIONS - 1)) for i in range(MOST_EVALUATIONS)]
            some = some.iloc[kept]
        rows = [[step, *map(number_or_dash, row)] for step, row in zip(some.index, some.to_numpy(), strict=True)]
        parts.append("On held-out data:\n\n" + markdown.table(["step", *held_out], rows))
    last = wide.ffill().iloc[-1]
    rows = [[name, number_or_dash(last[name])] for name in wide.columns if name not in held_out]
    if rows:
        parts.append("At the last step:\n\n" + markdown.table(["metric", "value"], rows))
    return "\n".join(parts)


def _settings(method: str, settings: dict[str, Any]) -> str:
    differ = differing(method, settings)
    own = _pairs(differ) if differ else "All settings are at their defaults.\n"
    return f"{own}\n<details><summary>All settings</summary>\n\n{_pairs(settings)}\n</details>\n"


def differing(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the stored settings that are not the method's defaults, or that it does not know any more."""
    defaults, kind = {}, settings_of.find(method)
    for field in dataclasses.fields(kind) if kind else ():
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        defaults[field.name] = json.loads(json.dumps(made, default=str))
    return {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}


def _pairs(values: dict[str, Any]) -> str:
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in values.items()
    ]
    return markdown.table(["name", "value"], rows)


def _adapter(policy: dict[str, Any]) -> str:
    if policy["adapter"] is None:
        return ""
    said = {name: value for name, value in policy["adapter"].items() if value not in (None, False, {}, [], "")}
    said.pop("base_model_name_or_path", None)
    return _pairs(said)


def versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}
