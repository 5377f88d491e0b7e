"""Methods: one file a loop. A method is a generator over an explicit State that yields one Step at a time.

Each file gives four functions, gathered in a `Method` record:

prepare(tokenizer, data, settings)  rows or a task -> what the loop reads; all checks happen here, before work
loop(state, ctx)                    the generator; it keeps nothing across a yield
evaluate(ctx)                       metrics on held-out data, named eval/...
preview(ctx, data)                  the Outcome of the next update on given data; gradients stay in `.grad`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Method:
    """A loop and what goes with it."""

    name: str
    takes: str
    """'rows' or 'task'"""
    prepare: Callable[..., Any]
    loop: Callable[..., Any]
    evaluate: Callable[..., dict[str, float]]
    preview: Callable[..., Any]
    notice: Callable[..., str | None] = lambda data, settings: None
    """what to say of prepared data and settings before a run begins; None: nothing"""


METHODS = {
    "sft": "sft:METHOD",
    "dpo": "dpo:METHOD",
    "cpo": "dpo:CPO",
    "orpo": "dpo:ORPO",
    "kto": "kto:METHOD",
    "grpo": "grpo:METHOD",
}
"""method -> the module of this package that has it, and its name there"""


def get(name: str) -> Method:
    """The method `name`, one of METHODS."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(f"workbench.methods.{module}"), attribute)
