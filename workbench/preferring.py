"""A person's choices between answers, as rows to train on: the human in the loop of ILLUME (Brack et al. 2022, arXiv
2208.08241), whose clicks on samples they like make the next round's training set, and of learning from comparisons
(Christiano et al. 2017, arXiv 1706.03741).

What is asked is formed here, from rollouts, runs or rows; `views.label` asks it, and `store.choices` keeps the answers.
No torch here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench import keys
from workbench.data import Rows, explicit_prompt
from workbench.data import make as make_rows
from workbench.errors import DataError, SettingError, did_you_mean
from workbench.sampling.rollouts import Rollouts
from workbench.sources import Raw, read
from workbench.store import Store
from workbench.store.choices import Item, Labels, content_hash
from workbench.text import clean_all
from workbench.views.label import LabelView, Question

MODES = ("pair", "mark")
KEPT = ("tools", "chat_template_kwargs")
"""columns of a row that its chat template needs"""
APART = 10
"""questions, at least, between the two times that a pair is asked"""
MOST_COMPARED = 200
"""answers of one prompt among which disagreement is looked for"""


@dataclass(frozen=True)
class Candidate:
    """An answer that may be asked about."""

    prompt: Any
    completion: Any
    facts: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)


def label(
    source: Any,
    mode: str = "pair",
    out: str | os.PathLike = "runs/labels",
    seed: int = 0,
    *,
    pairs: str = "random",
    repeats: float = 0.0,
    limit: int | None = None,
    rater: str = "",
    step: int | None = None,
    where: str | None = None,
) -> LabelView:
    """Pick the better of two answers, or mark each good or bad, with the keyboard; the choices are rows to train on.

    `source`: Rollouts; a Run or its folder (of its stored rollouts those of `step` and `where`, an SQL condition); a
    DataFrame of completions; or rows with `prompt` and `completion`, `prompt` and `completions` (a list), or `chosen`
    and `rejected`. `mode`: "pair" asks which of two different answers to one prompt is better, no answer twice; "mark"
    asks of each answer whether it is good. `pairs`: "random"; "close" (rewards as equal as can be); "disagree" (one
    reward function prefers the one, another the other). `repeats`: the share of pairs that is asked a second time with
    the sides changed, to see how sure the choices are. `limit`: how many to ask at most. `seed` draws order and sides.

    Each choice is committed to `labels.db` in the folder `out` at once. The same call later, in another process too,
    goes on where it stopped: what a rater (`rater`: a name, if there are several) has answered is not asked again,
    whatever source it comes from. Rewards are hidden until they are asked for.

    Returns the view: `.rows` are rows for `wb.dpo` (pairs) or `wb.kto` (marks), `.good` those for `wb.sft`;
    `wb.labels(out)` reads the same anywhere. Raises SettingError, and DataError when there is nothing to ask.
    """
    _check(mode, pairs, repeats, limit, rater)
    candidates = candidates_of(source, step, where)
    whole = [candidate for candidate in candidates if not _is_empty(candidate.completion)]
    empty = len(candidates) - len(whole)
    items = marked(whole) if mode == "mark" else paired(whole, pairs, seed)
    if not items:
        raise DataError(_nothing(mode, pairs, len(whole), empty))
    notes = [f"Left out: {empty} without text, as no training row can be made of them."] if empty else []
    return LabelView(Labels(out, write=True), queue(items, seed, repeats, limit), rater, seed, notes).show()


def labels(out: str | os.PathLike = "runs/labels") -> Labels:
    """The choices that `wb.label` keeps in the folder `out`: `wb.dpo(policy, wb.labels(out))`.

    `.pairs`, `.marks`, `.good` are rows to train on, `.to_pandas()` has every choice with its time and side,
    `.agreement()` how often the reward and the person agree. Raises StoreError when there are none.
    """
    return Labels(out)


# What can be asked about


def candidates_of(source: Any, step: int | None = None, where: str | None = None) -> list[Candidate]:
    """The answers in any source that `label` takes. Raises DataError for what it cannot read."""
    import pandas as pd

    if isinstance(source, (str, Path)) and (Path(source) / "run.db").exists():
        source = Store(source)
    store = source if isinstance(source, Store) else getattr(source, "store", None)
    if isinstance(store, Store):
        return _of_store(store, step, where)
    if step is not None or where is not None:
        raise SettingError("step and where choose among the rollouts of a run; this source is no run.")
    if isinstance(source, Rollouts):
        return _of_rollouts(source)
    if isinstance(source, pd.DataFrame) and {"prompt", "completion"} <= set(source.columns):
        return _of_frame(source)
    return _of_rows(source if isinstance(source, Rows) else _each(read(source, "train", None, None)))


def _of_rollouts(rollouts: Rollouts) -> list[Candidate]:
    made = []
    for i, record in enumerate(rollouts):
        if not rollouts.text[i] and rollouts.ids and len(rollouts.ids[i]) > 1:
            raise DataError(f"Completion {i} is given as token ids alone: give its text, too, so that it can be read.")
        kept = {name: rollouts.columns[name][i] for name in KEPT if rollouts.columns.get(name)}
        made.append(_candidate(rollouts.prompt[i], rollouts.text[i], record, kept))
    return made


def _of_store(store: Store, step: int | None, where: str | None) -> list[Candidate]:
    """With messages as prompts where the run's rows have them: stored rollouts have the text that the model read."""
    frame = store.rollouts(step, where)
    if frame.empty:
        those = "such rollouts" if step is not None or where else "rollouts: only runs that sample have some"
        raise DataError(f"{store.folder.name} has no {those}.")
    return _of_frame(frame, store.rows("train"))


def _of_frame(frame: Any, rows: Sequence[dict] = ()) -> list[Candidate]:
    made = []
    for record in frame.to_dict("records"):
        row = record.get("row")
        row = rows[row] if isinstance(row, int) and 0 <= row < len(rows) else {}
        prompt = row["prompt"] if isinstance(row.get("prompt"), list) else record["prompt"]
        made.append(_candidate(prompt, record["completion"], record, {n: row[n] for n in KEPT if row.get(n)}))
    return made


def _each(raw: Raw) -> Rows:
    """Rows, those with several `completions` as one row for each."""
    if not any(isinstance(row.get("completions"), list) for row in raw.rows):
        return make_rows(raw.rows, raw.source, raw.lines)
    made = []
    for row in raw.rows:
        several = row.pop("completions", None)
        made += [row | {"completion": c} for c in several] if isinstance(several, list) else [row]
    return make_rows(made, raw.source)


def _of_rows(rows: Rows) -> list[Candidate]:
    made = []
    for index, row in enumerate(rows):
        kept = {name: row[name] for name in KEPT if row.get(name)}
        if rows.form == "preference":
            row = explicit_prompt(row)
            for side, reward in (("chosen", 1.0), ("rejected", 0.0)):
                facts = {"reward": reward, "in the source": side}
                made.append(Candidate(row["prompt"], row[side], facts, kept))
        elif rows.form == "prompt_completion":
            made.append(_candidate(row["prompt"], row["completion"], row, kept))
        else:
            raise DataError(
                f"{rows.where(index)}: there is no answer to ask about. wb.label reads rows with prompt and completion,"
                " with prompt and completions (a list), or with chosen and rejected; or Rollouts, or a run."
            )
    return made


def _candidate(prompt: Any, completion: Any, record: dict[str, Any], kept: dict[str, Any]) -> Candidate:
    """Of a conversational prompt, text becomes the assistant's turn."""
    if isinstance(prompt, list) and isinstance(completion, str) and completion:
        completion = [{"role": "assistant", "content": completion}]
    named = [name for name in record if str(name).startswith("rewards/")]
    named = named if len(named) > 1 else []  # one alone is the reward
    facts = {n: record[n] for n in ("reward", *named, "step", "id", "finish_reason") if _known(record.get(n))}
    facts = {name: value.item() if hasattr(value, "item") else value for name, value in facts.items()}
    return Candidate(clean_all(prompt)[0], clean_all(completion)[0], facts, kept)


# What is asked


def marked(candidates: Sequence[Candidate]) -> list[Item]:
    """An item for each different answer to a prompt."""
    items = [Item(c.prompt, (c.completion,), (c.facts,), c.columns) for c in candidates]
    return list({item.key: item for item in reversed(items)}.values())[::-1]


def paired(candidates: Sequence[Candidate], how: str, seed: int) -> list[Item]:
    """Pairs of different answers to one prompt; an answer is in one pair at most."""
    groups: dict[str, dict[str, Candidate]] = {}
    for c in candidates:
        groups.setdefault(content_hash(c.prompt), {}).setdefault(_written(c.completion), c)
    items = []
    for key, group in groups.items():
        drawn = {text: keys.key(seed, "pair", key, text) for text in group}
        members = [group[text] for text in sorted(group, key=drawn.get)]
        items += [_pair(a, b) for a, b in HOW[how](members)]
    return items


def _pair(a: Candidate, b: Candidate) -> Item:
    a, b = sorted((a, b), key=lambda c: _written(c.completion))
    return Item(a.prompt, (a.completion, b.completion), (a.facts, b.facts), a.columns)


def _neighbours(members: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    return list(zip(members[::2], members[1::2], strict=False))


def _close(members: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Neighbours by reward, the closest first; answers without a reward are left out."""
    known = sorted((c for c in members if _known(c.facts.get("reward"))), key=lambda c: c.facts["reward"])
    gaps = sorted(range(len(known) - 1), key=lambda i: known[i + 1].facts["reward"] - known[i].facts["reward"])
    taken: set[int] = set()
    made = []
    for i in gaps:
        if not {i, i + 1} & taken:
            taken |= {i, i + 1}
            made.append((known[i], known[i + 1]))
    return made


def _disagree(members: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """Pairs of which one reward function prefers the one answer, and another function the other."""
    made, taken = [], set()
    for (i, a), (j, b) in itertools.combinations(enumerate(members[:MOST_COMPARED]), 2):
        gaps = [a.facts[n] - b.facts[n] for n in a.facts if n.startswith("rewards/") and n in b.facts]
        if gaps and min(gaps) < 0 < max(gaps) and not {i, j} & taken:
            taken |= {i, j}
            made.append((a, b))
    return made


HOW: dict[str, Callable[[list[Candidate]], list]] = {"random": _neighbours, "close": _close, "disagree": _disagree}


def queue(items: Sequence[Item], seed: int, repeats: float = 0.0, limit: int | None = None) -> list[Question]:
    """The items in the order they are asked. Order and sides hang on the seed and the content alone, so that a later
    call asks what is left in the same way."""
    order = sorted(items, key=lambda item: keys.key(seed, "order", item.key))[:limit]
    asked = []
    for at, item in enumerate(order):
        swapped = bool(keys.key(seed, "side", item.key) & 1)
        asked.append((at, Question(item, 0, swapped)))
        if item.mode == "pair" and keys.uniforms(keys.key(seed, "again", item.key), 1)[0] < repeats:
            asked.append((at + APART + 0.5, Question(item, 1, not swapped)))
    return [question for _, question in sorted(asked, key=lambda pair: pair[0])]


# Checks


def _check(mode: str, pairs: str, repeats: float, limit: int | None, rater: str) -> None:
    for name, value, allowed in (("mode", mode, MODES), ("pairs", pairs, tuple(HOW))):
        if value not in allowed:
            hint = did_you_mean(str(value), allowed)
            raise SettingError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}.{hint}")
    if not isinstance(repeats, (int, float)) or isinstance(repeats, bool) or not 0 <= repeats <= 1:
        raise SettingError(f"repeats={repeats!r} must be a share from 0 to 1.")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise SettingError(f"limit={limit!r} must be a whole number of at least 1, or None for all.")
    if not isinstance(rater, str):
        raise SettingError(f"rater={rater!r}: give a name, or leave it out.")


def _nothing(mode: str, pairs: str, n: int, empty: int) -> str:
    said = f"There is nothing to ask: {n} answers" + (f" ({empty} empty ones are left out)" if empty else "")
    if mode == "mark" or not n:
        return f"{said}."
    why = {
        "random": "no prompt has two different ones. Sample more than one a prompt (n=4), or use mode='mark'.",
        "close": "no prompt has two different ones with rewards. pairs='random' needs none.",
        "disagree": "on no pair do two reward functions disagree. It takes two of them; pairs='random' needs none.",
    }
    return f"{said}, and {why[pairs]}"


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _is_empty(completion: Any) -> bool:
    return not completion or (isinstance(completion, list) and not any(m.get("content") for m in completion))


def _written(completion: Any) -> str:
    return json.dumps(completion, sort_keys=True, ensure_ascii=True)
