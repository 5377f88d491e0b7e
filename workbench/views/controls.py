"""What a person does to a run from its dashboard. The view only passes it on to a control, which the run hands in."""

from __future__ import annotations

from typing import Any


class Controls:
    """Mixed into a view: `on_act` hands an action to `control`, which answers at once and again when it is done."""

    control: Any = None
    """None: a run to look at, say of another process"""
