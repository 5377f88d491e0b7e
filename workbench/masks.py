"""Rows as the tokens a run would read, and what it does with each: what `wb.show_mask` shows.

The ids, the mask and the weights are those that the method itself prepares, with the run's own settings. What is not
among them is found by tokenising a row once more, uncut: the tokens beyond `max_length`, the rows left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import encoding, labelled, methods, packing, tokenise, weights, worker
from workbench import settings as settings_of
from workbench.data import Rows, explicit_prompt
from workbench.data import rows as read_rows
from workbench.errors import DataError, SettingError, did_you_mean
from workbench.mask_report import PROBLEMS, MaskReport
from workbench.pieces import Pieces
from workbench.tasks import Task
from workbench.templates import Chat, Split
from workbench.views.mask import MaskView, Strip, Trouble, Unit

if TYPE_CHECKING:
    from workbench.policy import Policy

ALL_ROWS = 2000
"""rows that are tokenised unless `limit` says otherwise"""
LEFT_OUT = ("masked", "empty", "prompt_too_long", "no_context")
"""the problems of rows that are dropped whole"""
NO_ROOM = "no_room"
WORDS = PROBLEMS | {NO_ROOM: "the prompt and max_new_tokens exceed what the model can see: the run refuses it"}


def show_mask(
    policy: Policy, rows: Any, n: int = 3, *, method: str | None = None, limit: int | None = ALL_ROWS, **settings: Any
) -> MaskView:
    """Every token of the rows, marked by what a run would do with it: train on it, read it as context, or drop it.

    `rows`: anything `wb.rows` reads, or a Task. `method` says which run reads them: "sft", "dpo", "cpo", "orpo",
    "kto" or "grpo". By default rows with `chosen` and `rejected` are shown as `wb.dpo` reads them, rows with a `label`
    as `wb.kto` does, prompts and tasks as `wb.grpo` does (the prompt as the model reads it; completions are sampled),
    all others as `wb.sft` does. `settings` are those of that run (`max_length`, `assistant_only_loss`, `packing`, ...).

    In a notebook the view pages through all rows, or those with a problem, and tells of each token its id, its weight
    and why it is trained or not. Above stand totals and what tokenising found, over the first `limit` rows (None: all).
    The picture in a saved notebook and the text in a terminal hold the first `n` rows (with packing: packs). Trained
    counts are those of the updates: the first token of a sequence is never trained, as nothing comes before it.

    Raises SettingError and DataError as the run would.
    """
    task = isinstance(rows, Task)
    rows = rows.rows if task else read_rows(rows)
    name = _method(rows, task, method)
    made = settings_of.make(name, settings)
    shown = rows if limit is None or limit >= len(rows) else rows[:limit]
    units, report, notes = worker.call(_READERS[name], policy, shown, made)  # a run may be using the tokenizer
    if made.padding_free:
        notes += ("padding_free: rows are laid end to end, and none sees another; nothing else changes.",)
    troubles = tuple(
        Trouble(problem.name, WORDS[problem.name], problem.count, tuple(problem.rows), problem.detail)
        for problem in report.problems
    )
    pieces = Pieces(policy.tokenizer)
    return MaskView(
        units,
        troubles,
        (*report.notes, *notes),
        pieces=lambda ids: [pieces[i] for i in ids],
        rows=(len(shown), len(rows)),
        given=report.rows,
        kept=report.kept,
        what={"dpo": "pairs", "cpo": "pairs", "orpo": "pairs", "kto": "answers", "grpo": "prompts"}.get(name, "rows"),
        first=n,
    )


def _method(rows: Rows, task: bool, given: str | None) -> str:
    if given is not None:
        if given not in _READERS:
            near = did_you_mean(str(given), _READERS)
            raise SettingError(f"show_mask: there is no method {given!r}.{near} There are: {', '.join(_READERS)}.")
        return given
    if task or rows.form == "prompt_only":
        return "grpo"
    return "dpo" if rows.form == "preference" else "kto" if "label" in rows.columns else "sft"


Read = tuple[list[Unit], MaskReport, tuple[str, ...]]


# One sequence


def strip(title: str, ids: Sequence[int], start: int, weight: Sequence[float], first_of_all: bool = True) -> Strip:
    """A sequence as it is read, of which tokens from `start` on train where their `weight` is not 0. The first one of
    a sequence never does."""
    w = np.asarray(weight, dtype=np.float32).copy()
    w[:start] = 0.0
    lost_first = first_of_all and start == 0 and len(w) > 0 and w[0] > 0
    if len(w) and first_of_all:
        w[0] = 0.0
    why = np.where(w > 0, Strip.TRAINED, Strip.CONTEXT).astype(np.uint8)
    if lost_first:
        why[0] = Strip.FIRST
    return Strip(title, np.asarray(ids, dtype=np.int32), why, w)


def whole(made: Strip | None, title: str, ids: Sequence[int], left: int, limit: int | None) -> Strip:
    """The strip with what was cut off its two ends, found in the row's uncut `ids`; with None all of the row."""
    every = np.asarray(ids, dtype=np.int32)
    if made is None:
        return Strip(title, every, np.full(len(every), Strip.ROW, np.uint8), np.zeros(len(every), np.float32))
    right = left + len(made.ids)
    if not np.array_equal(every[left:right], made.ids):
        raise AssertionError("what a run reads of a row is not a part of the row")
    why = np.full(len(every), Strip.AFTER_STOP, np.uint8)
    if limit is not None:
        why[left + limit :] = Strip.CUT_END
    why[:left] = Strip.CUT_START
    weight = np.zeros(len(every), np.float32)
    why[left:right], weight[left:right] = made.why, made.weight
    return Strip(title, every, why, weight)


def _example(title: str, item: tokenise.Example) -> Strip:
    trained = [m * w for m, w in zip(item.mask, item.weight, strict=True)]
    return strip(title, item.ids, 0, trained)


# Supervised


def _supervised(policy: Policy, rows: Rows, settings: Any) -> Read:
    if settings.packing:
        return _packed(policy, rows, settings)
    prepared = methods.get("sft").prepare(policy.tokenizer, rows, settings)
    named, dropped = _named(prepared.report)
    kept = {item.row: item for item in prepared.items}
    uncut = {i for i, names in named.items() if "cut" in names} | dropped
    full = _uncut_rows(policy.tokenizer, rows, settings, sorted(uncut))
    units = []
    for i in range(len(rows)):
        title, made = f"Row {i}", _example(f"Row {i}", kept[i]) if i in kept else None
        if i in full:
            left = 0
            if made is not None and settings.truncation_mode == "keep_end":
                left = len(full[i]) - len(made.ids)
            made = whole(made, title, full[i], left, settings.max_length)
        units.append(Unit(title, (i,), (made,), _said(named, i)))
    return units, prepared.report, ()


def _uncut_rows(tokenizer: Any, rows: Rows, settings: Any, which: Sequence[int]) -> dict[int, list[int]]:
    form = tokenise.fit_form(rows)
    only = form == "prompt_completion" and settings.completion_only_loss is not False
    chat, found = Chat(tokenizer), rows.as_form(form)

    def split(row: dict) -> Split:
        made = encoding.split_row(chat, row, form, settings.assistant_only_loss, only)
        return weights.of_row(made, row)

    return _ids(tokenizer, {i: (split(found._rows[i]),) for i in which}, not found.conversational, single=True)


def _packed(policy: Policy, rows: Rows, settings: Any) -> Read:
    """A unit for each pack, of a strip for each document (of a 'wrapped' pack one, whose documents see each other)."""
    from workbench.methods.sft import pack

    cuts = settings.packing_strategy != "bfd"  # packing itself cuts
    alone = replace(settings, packing=False, eval_packing=None, max_length=None if cuts else settings.max_length)
    prepared = methods.get("sft").prepare(policy.tokenizer, rows, replace(alone, packing_strategy="bfd"))
    named, dropped = _named(prepared.report)
    examples = prepared.items
    units, left_out = [], []
    # the packs of training, and the pieces they were made of: those that `pack` leaves out train nothing
    packs = iter(pack(examples, settings.max_length, settings.packing_strategy))
    for pieces in packing.compose([len(e.ids) for e in examples], settings.max_length, settings.packing_strategy):
        wrapped = settings.packing_strategy == "wrapped"
        strips = [_piece(examples[p.document], p, alone_in_line=not wrapped) for p in pieces]
        if wrapped:
            _first_is_not_trained(strips)
        kept = [any(s.trained for s in strips)] * len(strips) if wrapped else [s.trained > 0 for s in strips]
        left_out += [(p, _without(s)) for p, s, keep in zip(pieces, strips, kept, strict=True) if not keep]
        strips = [s for s, keep in zip(strips, kept, strict=True) if keep]
        if strips:
            if sum(len(s.ids) for s in strips) != sum(len(document.ids) for document in next(packs)):
                raise AssertionError("the packs shown are not those of training")
            own = tuple(dict.fromkeys(examples[p.document].row for p, keep in zip(pieces, kept, strict=True) if keep))
            said = tuple(dict.fromkeys(problem for i in own for problem in _said(named, i)))
            note = "one stream: these rows see each other" if wrapped and len(strips) > 1 else ""
            units.append(Unit(f"Pack {len(units)}", own, tuple(strips), said, note))
    full = _uncut_rows(policy.tokenizer, rows, settings, sorted({i for i in named if "cut" in named[i]} | dropped))
    _add_cut(units, full, settings, examples)
    units += [
        Unit(f"Row {(row := examples[p.document].row)}, tokens {p.start} to {p.end - 1}", (row,), (made,),
             (("masked", "nothing in this piece of the row trains: dropped"),))
        for p, made in left_out
    ]  # fmt: skip
    for i in sorted(dropped):
        units.append(Unit(f"Row {i}", (i,), (whole(None, f"Row {i}", full[i], 0, None),), _said(named, i)))
    packs_made = sum(unit.title.startswith("Pack") for unit in units)
    note = f"packing: {packs_made} packs of up to {settings.max_length} tokens ({settings.packing_strategy})."
    return units, prepared.report, (note,)


def _piece(example: tokenise.Example, piece: packing.Piece, alone_in_line: bool) -> Strip:
    title = f"Row {example.row}"
    if (piece.start, piece.end) != (0, len(example.ids)):
        title += f", tokens {piece.start} to {piece.end - 1}"
    kept = slice(piece.start, piece.end)
    trained = [m * w for m, w in zip(example.mask[kept], example.weight[kept], strict=True)]
    return strip(title, example.ids[kept], 0, trained, first_of_all=alone_in_line)


def _first_is_not_trained(strips: list[Strip]) -> None:
    first = strips[0]
    if first.weight[0] > 0:
        first.why[0], first.weight[0] = Strip.FIRST, 0.0


def _without(made: Strip) -> Strip:
    return replace(made, why=np.full(len(made.ids), Strip.ROW, np.uint8), weight=np.zeros(len(made.ids), np.float32))


def _add_cut(units: list[Unit], full: dict[int, list[int]], settings: Any, examples: list[tokenise.Example]) -> None:
    """Put what max_length cut off a row back beside the row's document in its pack ('bfd' alone cuts rows so)."""
    lengths = {e.row: len(e.ids) for e in examples}
    for n, unit in enumerate(units):
        strips = list(unit.strips)
        for at, made in enumerate(strips):
            row = next((i for i in unit.rows if made.title == f"Row {i}"), None)
            if row in full and row in lengths:
                left = len(full[row]) - lengths[row] if settings.truncation_mode == "keep_end" else 0
                strips[at] = whole(made, made.title, full[row], left, settings.max_length)
        units[n] = replace(unit, strips=tuple(strips))


# Preferences and labels


def _pairs(name: str):
    def read(policy: Policy, rows: Rows, settings: Any) -> Read:
        from workbench.objectives.preference import LOSSES

        prepared = methods.get(name).prepare(policy.tokenizer, rows, settings)
        named, _ = _named(prepared.report)
        kept = {item.row: item.sequences() for item in prepared.items}
        left = {item.row: item.dropped for item in prepared.items}
        chat = Chat(policy.tokenizer)
        cut = [i for i in range(len(rows)) if rows.conversational or i not in kept or "cut" in named.get(i, ())]
        splits = {i: tuple(tokenise.split_pair(chat, explicit_prompt(rows._rows[i]))) for i in cut}
        full = _ids(policy.tokenizer, splits, not rows.conversational)
        units = []
        for i in range(len(rows)):
            strips = []
            for side, title in enumerate((f"Row {i}, chosen", f"Row {i}, rejected")):
                made = None
                if i in kept:
                    ids, start = kept[i][side]
                    made = strip(title, ids, start, [1.0] * len(ids))
                if i in full:
                    made = whole(made, title, full[i][side], left[i][side] if i in left else 0, settings.max_length)
                strips.append(made)
            units.append(Unit(f"Row {i}", (i,), tuple(strips), _said(named, i)))
        reading = [loss for loss in settings.parts() if LOSSES[loss].whole]
        notes = [
            f"The loss {name!r} also raises the likelihood of the prompt before the chosen answer." for name in reading
        ]
        return units, prepared.report, tuple(notes)

    return read


def _labels(policy: Policy, rows: Rows, settings: Any) -> Read:
    prepared = labelled.labelled(rows, policy.tokenizer, max_length=settings.max_length)
    named, _ = _named(prepared.report)
    kept = {(item.row, item.desirable): item for item in prepared.items}
    paired, chat = rows.form == "preference", Chat(policy.tokenizer)
    sides, splits = {}, {}
    for i, row in enumerate(rows._rows):
        row = explicit_prompt(row) if paired else row
        sides[i] = (("chosen", True), ("rejected", False)) if paired else (("completion", bool(row["label"])),)
        answers = [row | {"completion": row[side]} for side, _ in sides[i]]
        splits[i] = tuple(encoding.split_row(chat, one, "prompt_completion", False, True) for one in answers)
    units = []
    for i, full in _ids(policy.tokenizer, splits, not rows.conversational).items():
        strips = []
        for (_, good), ids in zip(sides[i], full, strict=True):
            title, item = f"Row {i}, {'desirable' if good else 'undesirable'}", kept.get((i, good))
            own = None
            if item is not None:
                every = [*item.prompt, *item.completion][: settings.max_length]
                own = strip(title, every, len(item.prompt), [1.0] * len(every))
            strips.append(whole(own, title, ids, 0, settings.max_length))
        units.append(Unit(f"Row {i}", (i,), tuple(strips), _said(named, i)))
    return units, prepared.report, ("Each prompt is also read with the answer of another row, for KTO's baseline.",)


# Prompts


def _prompts(policy: Policy, rows: Rows, settings: Any) -> Read:
    from workbench.mask_report import Problem

    rows.require("prompt", what="wb.grpo")
    units, refused = [], {}
    for i, row in enumerate(rows._rows):
        with encoding.naming(rows, i):
            made = tokenise.prompt(row["prompt"], policy.tokenizer)
        try:
            policy.check_lengths([made], settings.max_new_tokens)
        except DataError as error:
            refused[i] = str(error).removeprefix("Prompt 0 ")
        ids = np.asarray(made.ids, dtype=np.int32)
        why = np.full(len(ids), Strip.PROMPT, np.uint8)
        said = ((NO_ROOM, WORDS[NO_ROOM]),) if i in refused else ()
        units.append(Unit(f"Row {i}", (i,), (Strip(f"Row {i}", ids, why, np.zeros(len(ids), np.float32)),), said))
    tokens = sum(len(unit.strips[0].ids) for unit in units)
    first = tuple(refused)[:5]
    problems = (Problem(NO_ROOM, len(refused), first, refused[first[0]], refused),) if refused else ()
    report = MaskReport(len(rows), len(rows) - len(refused), tokens, 0, problems, rows.notes)
    note = "The prompts as the model reads them. What trains is sampled: the completions and their stop tokens."
    return units, report, (note,)


# Problems


def _named(report: MaskReport) -> tuple[dict[int, dict[str, str]], set[int]]:
    """The problems of each row, name -> what there is to say; and the rows that are left out whole."""
    named: dict[int, dict[str, str]] = {}
    for problem in report.problems:
        for row, detail in problem.rows.items():
            named.setdefault(row, {})[problem.name] = detail
    return named, {row for row, names in named.items() if any(name in names for name in LEFT_OUT)}


def _said(named: dict[int, dict[str, str]], row: int) -> tuple[tuple[str, str], ...]:
    return tuple((name, WORDS[name] + f" ({detail})" * bool(detail)) for name, detail in named.get(row, {}).items())


def _ids(tokenizer: Any, splits: dict[int, tuple[Split, ...]], special: bool, single: bool = False) -> dict[int, Any]:
    """The uncut ids of every split of each row; with `single`, of a row's one split."""
    coded = iter(encoding.encode([one for own in splits.values() for one in own], tokenizer, special))
    made = {row: [next(coded).ids for _ in own] for row, own in splits.items()}
    return {row: ids[0] for row, ids in made.items()} if single else made


_READERS = {
    "sft": _supervised,
    "dpo": _pairs("dpo"),
    "cpo": _pairs("cpo"),
    "orpo": _pairs("orpo"),
    "kto": _labels,
    "grpo": _prompts,
}
