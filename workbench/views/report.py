"""A run as one HTML file, to hand to somebody without Jupyter: it opens offline and asks nobody for anything.

The file forbids itself the network and every script but its own, by a content security policy that names those scripts
by hash. Model text is data in a script tag that is not executed, and reaches the page by textContent. The chart library
makes up about 5 MB of the file; 200 rollouts with the numbers of their tokens are a few hundred kB.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import SettingError, StoreError
from workbench.store import Store
from workbench.store import tokens as stored
from workbench.views.alarms import alarms, alarms_html
from workbench.views.curves import Curves, changed, headline, last_values, progress
from workbench.views.picture import figure
from workbench.views.text import duration, escape, number, one_line, visible, whole

HERE = Path(__file__).parent
HEADLINES = {
    "grpo": (("eval/accuracy", "Held-out accuracy"), ("reward", "Reward")),
    "dpo": (("eval/rewards/accuracies", "Held-out pairs ranked right"), ("rewards/accuracies", "Pairs ranked right")),
    "kto": (("eval/rewards/margins", "Held-out reward margin"), ("rewards/margins", "Reward margin")),
    "sft": (("eval/loss", "Held-out loss"), ("loss", "Loss")),
}
HEADLINES["cpo"] = HEADLINES["orpo"] = HEADLINES["dpo"]
SHOWN_META = ("policy", "data", "versions", "parent")
SCRIPTS = ("frame.js", "charts.js", "toolbar.js", "strip.js", "report.js")
STYLES = ("common.css", "dashboard.css", "report.css")
MOST_TOKENS = 300_000
"""of all rollouts together: those beyond are shown without the numbers of their tokens"""


def write_report(store: Store, path: str | os.PathLike, *, sample: int = 200) -> Path:
    """Write the run's header, curves, final metrics, events and a sample of its rollouts; returns the file's path.

    `sample`: at most so many rollouts, in whole groups that are evenly spread over this branch; 0 for none. Raises
    SettingError for another `sample`, StoreError when the file cannot be written; a file that is there is replaced only
    by a whole one.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise SettingError(f"sample={sample!r}: how many rollouts to show, a whole number from 0.")
    path = Path(path)
    if not path.name:
        raise StoreError(f"The report cannot be written to {str(path)!r}: give the name of a file, such as run.html.")
    curves = Curves(store)
    curves.refresh()
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(_page(store, curves, sample), encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise StoreError(f"The report cannot be written to {path}: {error.strerror or error}.") from error
    return path


def _page(store: Store, curves: Curves, sample: int) -> str:
    from plotly.offline import get_plotlyjs

    head = headline(store)
    charts = [chart for chart in curves.charts() if chart.names]
    own = '"use strict";\n' + "\n".join(map(_file, SCRIPTS))
    scripts = [in_script(get_plotlyjs()), in_script(own)] if charts else [in_script(own)]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    ids, total = _sample(store, sample)
    rollouts = _rollouts(store, ids)
    data = {"charts": [c.to_dict() for c in charts], "curves": _curves_data(curves), **rollouts}
    style = "".join(map(_file, STYLES))
    body = [
        _header(store, head),
        _tiles(store, curves, head),
        _section("Alarms", alarms_html(alarms(curves, store.get("method", ""), store.settings()))),
        _section("Curves", _curves_html(charts, curves)),
        _section("Metrics", _metrics_html(curves)),
        _section("Events", _events_html(curves)),
        _section("Rollouts", _rollouts_html(len(rollouts["rollouts"]), total)),
        _section("Settings", _settings_html(store)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(head['name'])} · {escape(head['method'])}</title>\n<style>{style}</style>\n</head>\n"
        f'<body><main class="wb wb-report wb-board">\n{"".join(body)}\n</main>\n'
        f'<script type="application/json" id="wb-data">{in_json(data)}</script>\n'
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def in_json(value: Any) -> str:
    """`value` as JSON that cannot end the script tag it stands in, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def in_script(source: str) -> str:
    """Our own JavaScript as it may stand in a script tag: no text in it ends the tag."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _section(title: str, inner: str) -> str:
    return f'<section class="wb-section"><h2>{escape(title)}</h2>{inner}</section>\n' if inner else ""


def _header(store: Store, head: dict[str, Any]) -> str:
    created = store.get("created")
    spent = store.query("SELECT COALESCE(SUM(seconds), 0), MAX(created) FROM steps")[0]
    facts = [
        ("method", head["method"].upper()),
        ("model", _model(store.get("policy"))),
        ("progress", progress(head)),
        ("status", head["status"]),
        ("begun", _moment(created)),
        ("last step", _moment(spent[1])),
        ("time in steps", duration(spent[0])),
    ]
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(said)}</dd></div>" for name, said in facts if said)
    note = f'<p class="wb-note">{escape(head["note"])}</p>' if head["note"] else ""
    return f'<header><h1><bdi>{escape(head["name"])}</bdi></h1><dl class="wb-facts">{pairs}</dl>{note}</header>\n'


def _moment(seconds: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if isinstance(seconds, (int, float)) else ""


def _model(policy: Any) -> str:
    """The model's name, from whatever the policy says of itself."""
    if not isinstance(policy, dict):
        return "" if policy is None else str(policy)
    for name in ("model", "path", "name", "id"):
        if isinstance(policy.get(name), str):
            return (
                Path(policy[name]).name if os.sep in policy[name] and Path(policy[name]).is_absolute() else policy[name]
            )
    return ""


def _tiles(store: Store, curves: Curves, head: dict[str, Any]) -> str:
    """The numbers to read first, before and after."""
    tiles = []
    for name, title in HEADLINES.get(store.get("method", ""), ()):
        first, last = last_values(curves, name)
        if first is not None:
            steps = curves.main(name)[0]
            when = f"step {steps[0]:.0f} → {steps[-1]:.0f}" if len(steps) > 1 else f"step {steps[0]:.0f}"
            tiles.append((title, changed(first, last), when))
    tiles += [("Steps", f"{max(head['step'], 0)}" + (f" of {head['steps']}" if head["steps"] else ""), head["status"])]
    inner = "".join(
        f'<div class="wb-tile"><div>{escape(title)}</div><b>{escape(value)}</b><small>{escape(when)}</small></div>'
        for title, value, when in tiles
    )
    return f'<div class="wb-tiles">{inner}</div>\n'


def _curves_html(charts: list, curves: Curves) -> str:
    if not charts:
        return "<p>The run has no metrics yet.</p>"
    still = "".join(figure(chart, curves) for chart in charts if chart.main)
    return f'<div id="wb-curve-tools"></div><div id="wb-charts"></div><noscript>{still}</noscript>'


def _curves_data(curves: Curves) -> dict[str, Any]:
    return {
        "line": [[branch, min(limit, 2**52)] for branch, limit in curves.line],
        "events": [{name: event[name] for name in ("step", "text", "mark", "created")} for event in curves.events],
        "pieces": [
            {"name": name, "branch": branch, "x": steps.tolist(), "y": [_plain(v) for v in values.tolist()]}
            for name, branch, steps, values in curves.everything()
        ],
    }


def _plain(value: float) -> float | str:
    """JSON has no word for a number that is none."""
    return value if math.isfinite(value) else str(value)


def _table(headings: tuple[str, ...], rows: list[list[Any]], kind: str = "") -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(title)}</th>" for title in headings)
    body = "".join("<tr>" + "".join(f"<td><bdi>{escape(cell)}</bdi></td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="wb-scroll">{table}</div>'


def _metrics_html(curves: Curves) -> str:
    rows = []
    for name in sorted(curves.names):
        steps, values = curves.main(name)
        if not len(values):
            continue
        known = values[np.isfinite(values)]
        ends = [number(known.min()), number(known.max())] if len(known) else ["–", "–"]
        rows.append([one_line(name, 100), number(values[0]), number(values[-1]), *ends, f"{steps[-1]:.0f}"])
    return _table(("metric", "first", "last", "lowest", "highest", "last at step"), rows, "wb-numbers")


def _events_html(curves: Curves) -> str:
    rows = [[event["step"], _moment(event["created"]), event["kind"], event["text"]] for event in curves.events]
    return _table(("step", "when", "kind", "what"), rows)


def _settings_html(store: Store) -> str:
    rows = []
    groups = {"run": store.settings()} | {key: store.get(key) for key in SHOWN_META}
    for title, values in groups.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append([title, name, one_line(said, 400)])
    table = _table(("of", "name", "value (of the next step)"), rows)
    return f"<details><summary>{len(rows)} settings</summary>{table}</details>" if rows else ""


def _sample(store: Store, most: int) -> tuple[list[int], int]:
    """The ids of at most `most` rollouts, in whole groups evenly spread over this branch, and how many there are. A
    group that is larger than that is cut."""
    line = store.path_to()
    on_path = " OR ".join(["(branch = ? AND step <= ?)"] * len(line))
    groups = store.query(
        f"SELECT branch, step, group_id, COUNT(*) FROM rollouts WHERE {on_path} GROUP BY branch, step, group_id"
        " ORDER BY step, group_id",
        [v for pair in line for v in pair],
    )
    total = sum(count for *_, count in groups)
    wanted = min(len(groups), round(most / max(1.0, total / max(1, len(groups)))) or (most > 0))
    while True:
        at = np.linspace(0, len(groups) - 1, wanted).round().astype(int) if wanted else []
        chosen = [groups[i] for i in at]
        if wanted <= 1 or sum(count for *_, count in chosen) <= most:
            break
        wanted -= 1
    ids = []
    for *group, _ in chosen:
        sql = "SELECT id FROM rollouts WHERE branch = ? AND step = ? AND group_id = ? ORDER BY sample, id"
        ids += [i for (i,) in store.query(sql, group)]
    return ids[:most], total


def _rollouts(store: Store, ids: list[int]) -> dict[str, Any]:
    """`rollouts` in the order of `ids`, and `pieces`: the texts that the numbers of their tokens stand for."""
    if not ids:
        return {"rollouts": [], "pieces": []}
    frame = store.rollouts(where=f"id IN ({', '.join(map(str, ids))})").set_index("id", drop=False).loc[ids]
    parts = [name for name in frame if str(name).startswith("rewards/")]
    made = [_rollout(row, parts) for row in frame.to_dict("records")]
    records = stored.records(store, ids)
    known = stored.pieces(store, sorted({int(i) for record in records for i in record.ids}))
    places = {i: at for at, i in enumerate(known)}
    left = MOST_TOKENS
    for rollout, record in zip(made, records, strict=True):
        token_ids = record.ids.tolist()
        left -= len(token_ids)
        if left >= 0 and len(record.logprob) == len(token_ids) and all(i in places for i in token_ids):
            rollout["tokens"] = [places[i] for i in token_ids]
            rollout["logprob"], rollout["entropy"] = _hundredths(record.logprob), _hundredths(record.entropy)
    return {"rollouts": made, "pieces": [[visible(text), int(special)] for text, special in known.values()]}


def _hundredths(values: np.ndarray) -> list[int | None]:
    """Nats in hundredths: half the size in the file of a number with its point; None where there is none."""
    return [round(100 * v) if math.isfinite(v) else None for v in values.tolist()]


def _rollout(row: dict[str, Any], parts: list[str]) -> dict[str, Any]:
    return {
        "step": int(row["step"]),
        "group": int(row["group_id"]),
        "prompt": whole(row["prompt"]),
        "completion": whole(row["completion"]),
        "reward": _plain(row["reward"]),
        "advantage": _plain(row["advantage"]),
        "finish": visible(row["finish_reason"]),
        "n": int(row["n_tokens"]),
        "parts": [[one_line(name.removeprefix("rewards/"), 60), whole(row[name])] for name in parts],
    }


def _rollouts_html(shown: int, total: int) -> str:
    if not shown:
        return f"<p>None of the {total:,} are in this file.</p>" if total else ""
    some = f"{shown} of {total:,}, whole groups evenly spread over the run" if shown < total else f"All {total:,}"
    return (
        f'<p>{escape(some)}.</p><div class="wb-tools" id="wb-tools"></div><div id="wb-rollouts"></div>'
        "<noscript><p>Browsing them needs the scripts of this file to run.</p></noscript>"
    )
