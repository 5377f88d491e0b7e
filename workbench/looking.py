"""Looking without training: the next update's gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.data import rows as read_rows
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.engine import Engine


@dataclass
class Gradients:
    """What the next update would do: `loss`, `metrics`, and per trained parameter the gradient (before clipping)."""

    loss: float
    metrics: dict[str, float]
    by_name: dict[str, Any]

    def norm(self) -> float:
        """The global norm over all parameters."""
        return sum(float((g.double() ** 2).sum()) for g in self.by_name.values()) ** 0.5

    def __repr__(self) -> str:
        return f"<Gradients: loss {self.loss:.6g}, norm {self.norm():.4g}, {len(self.by_name)} tensors>"


def preview(engine: Engine, data: Any) -> tuple[Any, dict[str, Any]]:
    """The Outcome and the gradients of the next update on rows or Rollouts."""
    if engine.method.previews == "rows":
        return engine.preview(read_rows(data))
    if engine.method.takes == "rows":
        prepared = engine.method.prepare(engine.policy.tokenizer, read_rows(data), engine.settings)
        return engine.preview(prepared)
    return engine.preview(complete(engine, data))


def complete(engine: Engine, rollouts: Any) -> Any:
    """Given Rollouts with ids filled in and rewards known. Raises DataError where lengths do not fit."""
    from workbench import tokenise
    from workbench.methods.rl_batch import add_overlong
    from workbench.sampling.rollouts import Rollouts

    if not isinstance(rollouts, Rollouts):
        raise DataError(
            f"Give Rollouts: policy.sample(...) or wb.Rollouts.of(prompts, completions). Got {type(rollouts).__name__}."
        )
    tokenizer, every = engine.policy.tokenizer, list(range(len(rollouts)))
    made = rollouts.take(every)
    if not made.prompt_ids or not all(made.prompt_ids):
        have = made.prompt_ids or [[] for _ in every]
        made.prompt_ids = [have[i] or tokenise.prompt(made.prompt[i], tokenizer).ids for i in every]
    if not made.ids or not all(made.ids):
        have = made.ids or [[] for _ in every]
        made.ids = [have[i] or tokenizer(made.text[i], add_special_tokens=False)["input_ids"] for i in every]
    for i, values in enumerate(made.old_logprob or []):
        if len(values) != len(made.ids[i]):
            raise DataError(f"old_logprobs of completion {i}: {len(values)} numbers for {len(made.ids[i])} tokens.")
    if made.reward is None:
        table = engine.live.data.task.score(made.prompt, made.text, made.ids, made.columns)
        made.rewards, made.reward = table.parts, table.total
        add_overlong(made, engine.settings)
    return made
