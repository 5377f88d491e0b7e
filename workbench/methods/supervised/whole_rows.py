"""What methods whose loss goes by rows ask of the settings and of the rows' columns."""

from __future__ import annotations

import math

from workbench.data import Rows
from workbench.errors import DataError
from workbench.settings import SFTSettings
from workbench.transforms.parts import shown


def problem(settings: SFTSettings, packs: bool = True, loss: bool = True) -> str | None:
    """What of the settings would cut rows or be ignored, in a sentence; None when all is well.

    `packs`: rows may be packed as long as they stay whole; `loss`: the settings of the loss are read.
    """
    if settings.packing and not packs:
        return "its rows cannot be packed; leave packing out."
    if settings.packing and settings.packing_strategy != "bfd":
        return f"it goes by rows, which packing_strategy={settings.packing_strategy!r} cuts; 'bfd' keeps them whole."
    for name in () if loss else ("loss_type", "label_smoothing_factor", "loss_reduction"):
        plain = type(settings).__dataclass_fields__[name].default
        if getattr(settings, name) != plain:
            return f"it has a loss of its own and would ignore {name}; leave it out."
    return None


def check_numbers(rows: Rows, column: str, what: str, least: float = -math.inf) -> Rows:
    """The rows. Raises DataError for the first whose `column` is no finite number of at least `least`."""
    rows.require(column, what=what)
    for index, value in enumerate(rows.column(column)):
        plain = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not plain or value < least:
            bound = "" if least == -math.inf else f" of at least {least:g}"
            raise DataError(f"{rows.where(index)}: column {column!r} is {shown(value)}, not a number{bound}.")
    return rows
