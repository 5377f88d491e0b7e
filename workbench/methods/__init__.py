"""Methods: one file a loop. A method is a generator over an explicit State that yields one Step at a time.

Three loops do nearly all of it, and each is open to variants: `sft` (rows; its `Variant` says what a published method
changes), `dpo` (pairs) and `grpo` (a task), the same way. Their variants stand in folders by family, one file a method:
its settings, what it changes, and its record; `bootstrap` is the loop of those that sample, filter and train in
rounds.

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

from workbench import settings as settings_of
from workbench.settings import Settings


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
    check: Callable[..., None] = lambda policy, settings: None
    """raises, before a run begins, where the method cannot work with this policy and these settings"""
    check_task: Callable[[Any, Settings], None] = lambda task, settings: None
    """raises for a task that the method cannot use with these settings: before a run, and where its rewards change"""
    settings: type[Settings] | None = None
    """its settings; None: those that `workbench.settings.METHODS` has under its name"""
    prepare_eval: Callable[..., Any] | None = None
    """`prepare` for held-out rows; None: the same"""
    steps: Callable[[Any, Settings], int] | None = None
    """how many steps prepared data and settings make, where `steps` is not given; None: the setting's default"""
    previews: str | None = None
    """'rows' where `preview` reads rows as given, whatever the method takes; None: what it takes, prepared"""


METHODS = {
    "sft": "sft:METHOD",
    "dpo": "dpo:METHOD",
    "cpo": "dpo:CPO",
    "orpo": "dpo:ORPO",
    "kto": "kto:METHOD",
    "grpo": "grpo:METHOD",
}
"""method -> the module of this package that has it, and its name there"""
FAMILIES = ("supervised", "transformed", "preference", "policy", "actors", "selftraining", "adapting")
"""folders of variants; each has a table METHODS of its own, name -> module, whose METHOD is the record"""


def names() -> dict[str, str]:
    """All methods: name -> the module that has it and, after a colon, its name there."""
    made = {name: f"workbench.methods.{where}" for name, where in METHODS.items()}
    for family in FAMILIES:
        table = import_module(f"workbench.methods.{family}").METHODS
        made |= {name: f"workbench.methods.{family}.{module}:METHOD" for name, module in table.items()}
    return made


def get(name: str) -> Method:
    """The method `name`, one of `names()`; its settings are known by its name from now on."""
    module, _, attribute = names()[name].partition(":")
    method = getattr(import_module(module), attribute)
    if method.settings is not None:
        settings_of.register(name, method.settings)
    return method
