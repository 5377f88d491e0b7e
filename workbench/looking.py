"""Looking without training: what the loss is taken on, the next update's gradients, and other rewards over stored
rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench import methods
from workbench import settings as settings_of
from workbench.data import rows as read_rows
from workbench.errors import DataError, RunError
from workbench.store import Store
from workbench.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

    from workbench.engine import Engine
    from workbench.policy import Policy
    from workbench.views.mask import MaskView, Strip


def show_mask(policy: Policy, rows: Any, n: int = 3, **settings: Any) -> MaskView:
    """The first `n` rows (anything `wb.rows` reads) as the tokens a run would see, those it would train on coloured.

    Rows with `chosen` and `rejected` are shown as `wb.dpo` reads them, rows with a `label` as `wb.kto` does, all others
    as `wb.sft` does; `settings` are those of that run (`max_length`, `assistant_only_loss`, `packing`, ...). Below
    stands what tokenising found in these rows. Raises SettingError and DataError as the run would.
    """
    from workbench.views.mask import MaskView

    rows = read_rows(rows)
    name = "dpo" if rows.form == "preference" else "kto" if "label" in rows.columns else "sft"
    prepared = methods.get(name).prepare(policy.tokenizer, rows[:n], settings_of.make(name, settings))
    strips = [strip for item in prepared.items[:n] for strip in _strips(policy.tokenizer, item)]
    return MaskView(strips, str(prepared.report))


def _strips(tokenizer: Any, item: Any) -> list[Strip]:
    """One for each text of a prepared row: of a pair two, of a pack one for each document."""
    from workbench import tokenise
    from workbench.labelled import Labelled
    from workbench.views.mask import Strip

    if isinstance(item, tuple):
        return [strip for document in item for strip in _strips(tokenizer, document)]
    if isinstance(item, tokenise.Example):
        texts = [(f"Row {item.row}", item.ids, [m * w for m, w in zip(item.mask, item.weight, strict=True)])]
    elif isinstance(item, Labelled):
        weights = [0.0] * len(item.prompt) + [1.0] * len(item.completion)
        kind = "desirable" if item.desirable else "undesirable"
        texts = [(f"Row {item.row}, {kind}", item.prompt + item.completion, weights)]
    else:
        texts = [
            (f"Row {item.row}, {side}", ids, [0.0] * start + [1.0] * (len(ids) - start))
            for side, (ids, start) in zip(("chosen", "rejected"), item.sequences(), strict=True)
        ]
    return [Strip(title, [tokenizer.decode([i]) for i in ids], weights) for title, ids, weights in texts]


def preview(engine: Engine, data: Any) -> tuple[Any, dict[str, Any]]:
    """The Outcome and the gradients of the next update on rows or Rollouts."""
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


def rescore(store: Store, functions: Any, weights: Any) -> pd.DataFrame:
    """See `Run.rescore`. The advantages are those of the run's own estimator and settings at each step, the punishment
    of overlong completions included; of a KL in the reward nothing is known without the model, so it is left out."""
    import numpy as np
    import pandas as pd

    from workbench.methods.rl_batch import add_overlong, advantages_of
    from workbench.sampling.rollouts import Rollouts
    from workbench.settings import known, make

    method = store.get("method")

    rows = store.rows("train")
    if store.get("data")["kind"] != "task":
        raise RunError(f"{store.folder.name} is a {store.get('method')} run: it has no rollouts to score again.")
    task = Task(rows, functions, weights)
    frames = []
    for step in store.steps()["step"]:
        stored = store.rollouts(step)
        if not len(stored):
            continue
        ids = [store.tokens(i)["ids"].tolist() for i in stored["id"]]
        each = [rows[i] for i in stored["row"]]
        columns = {name: [row.get(name) for row in each] for name in task.rows.columns if name != "prompt"}
        table = task.score([row["prompt"] for row in each], list(stored["completion"]), ids, columns)
        settings = make(method, known(method, store.settings(step)))
        scored = Rollouts([""] * len(ids), [""] * len(ids), ids=ids, group=list(stored["group_id"]))
        scored.rewards, scored.reward = table.parts, table.total
        add_overlong(scored, settings)
        advantage = advantages_of(scored, settings, task.weight_of)
        kept = stored[["id", "step", "group_id", "prompt", "completion", "reward", "advantage"]]
        frame = kept.assign(new_reward=scored.reward, new_advantage=advantage)
        frame["flips"] = np.sign(frame["advantage"]) * np.sign(frame["new_advantage"]) < 0
        for name, values in scored.rewards.items():
            frame[f"new_rewards/{name}"] = values
        frames.append(frame)
    order = [
        "id",
        "step",
        "group_id",
        "prompt",
        "completion",
        "reward",
        "new_reward",
        "advantage",
        "new_advantage",
        "flips",
    ]
    if not frames:
        return pd.DataFrame(columns=order)
    made = pd.concat(frames, ignore_index=True)
    return made[order + [name for name in made if name not in order]]
