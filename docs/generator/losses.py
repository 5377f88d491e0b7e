"""Tables for docs/losses.md: losses, surrogates, reductions, estimators and presets, from the tables of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generator.markdown import code, line, table
from docs.generator.settings_tables import literal
from workbench import advantages
from workbench.objectives import kl, policy_gradient, preference, reductions, sampler, supervised, surrogates, unpaired
from workbench.settings import presets

HEAD = ["name", "formula", "paper, notes, and the settings it reads"]


def _table(rows: Mapping[str, Any], head: list[str] = HEAD) -> str:
    return table(head, [[code(name), code(row.formula), _said(row)] for name, row in rows.items()])


def _said(row: Any) -> str:
    """Paper, note and settings of a row, as far as it has them."""
    note, reads = getattr(row, "note", ""), getattr(row, "reads", ())
    said = f"{line(row.paper).rstrip('.')}."
    if note:
        said += f" {line(_capital(note)).rstrip('.')}."
    if reads:
        said += f" Reads {', '.join(map(code, reads))}."
    return said


def _capital(note: str) -> str:
    """A note as a sentence, unless it begins with a name or a letter of a formula."""
    word = note.split()[0]
    return note[0].upper() + note[1:] if word.isascii() and word.isalpha() else note


def supervised_losses() -> str:
    return _table(supervised.LOSSES, ["loss_type", *HEAD[1:]])


def supervised_reductions() -> str:
    rows = [[code(name), code(row.formula)] for name, row in supervised.REDUCTIONS.items()]
    return table(["loss_reduction", "formula"], rows)


def sampler_corrections() -> str:
    rows = [[code(name), code(formula)] for name, formula in sampler.MODES.items()]
    return table(["sampler_correction", "weight of the policy term"], rows)


def pairs() -> str:
    """Preference losses: first those with a reference, then those without."""
    kinds = {True: {}, False: {}}
    for name, row in preference.LOSSES.items():
        kinds[row.reference][name] = row
    head = ["loss_type", *HEAD[1:]]
    return (
        f"With a reference:\n\n{_table(kinds[True], head)}\n\nWithout one, so that a step costs one pass less:\n\n"
        f"{_table(kinds[False], head)}"
    )


def single_answers() -> str:
    return _table(unpaired.UNPAIRED, ["loss_type", *HEAD[1:]])


def loss_types() -> str:
    rows = [[code(name), code(row.surrogate), code(row.reduction)] for name, row in policy_gradient.LOSS_TYPES.items()]
    return table(["loss_type", "surrogate", "reduction"], rows)


def all_surrogates() -> str:
    return _table(surrogates.SURROGATES)


def all_reductions() -> str:
    return _table(reductions.REDUCTIONS)


def kl_estimates() -> str:
    return _table(kl.KL, ["kl_estimator", *HEAD[1:]])


def estimators() -> str:
    return _table(advantages.ESTIMATORS, ["advantage_estimator", *HEAD[1:]])


def aggregations() -> str:
    return _table(advantages.AGGREGATIONS, ["multi_objective_aggregation", *HEAD[1:]])


def all_presets() -> str:
    rows = [
        [code(name), ", ".join(code(f"{key}={_value(value)}") for key, value in row.sets.items()), _said(row)]
        for name, row in presets.PRESETS.items()
    ]
    return table(["preset", "what it sets", "paper and notes"], rows)


def _value(value: Any) -> str:
    if isinstance(value, presets.Share):
        return f"{value.share:g} × {value.of}"
    return literal(value)
