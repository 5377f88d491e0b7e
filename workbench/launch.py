"""How runs come to be: `wb.sft`, `wb.dpo`, `wb.grpo` and their kin; and how their settings and rewards change.

Settings and data are checked here, before a folder is made or a weight is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from workbench import folders, inputs, methods, tracking, worker
from workbench import settings as settings_of
from workbench.data import Rows
from workbench.engine import Engine, Live
from workbench.errors import SettingError
from workbench.methods.grpo import Prompts
from workbench.policy import Policy
from workbench.run import Run
from workbench.state import State, clone
from workbench.tasks import Task


def sft(
    policy: Policy,
    rows: Any,
    *,
    out: str | os.PathLike = "runs/sft",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """Supervised fine-tuning of `policy` on `rows` (anything `wb.rows` reads).

    `eval_dataset`: held-out rows (loss) or a Task (accuracy, pass@k). `track`: "wandb", "tensorboard", "trackio", a
    `wb.Tracker`, or several in a list; the run's numbers are copied there. Settings: see `SFTSettings`; they carry
    TRL's names. Nothing trains yet: iterate over the Run, or call its `run()` or `start()`. Raises SettingError or
    DataError before any work.
    """
    return launch("sft", policy, rows, out, eval_dataset, settings, track)


def dpo(
    policy: Policy,
    rows: Any,
    *,
    out: str | os.PathLike = "runs/dpo",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """Direct preference optimisation of `policy` on rows with `chosen` and `rejected`.

    `loss_type` is one of `workbench.objectives.preference.LOSSES` or a list of them, those without a reference (SimPO,
    CPO, ORPO) included. The reference is the policy as it is now. `eval_dataset`: held-out pairs (loss and accuracy of
    the implicit reward) or a Task. `track`: as for `sft`. Settings: see `DPOSettings`. Raises SettingError or DataError
    before any work.
    """
    return launch("dpo", policy, rows, out, eval_dataset, settings, track)


def cpo(
    policy: Policy,
    rows: Any,
    *,
    out: str | os.PathLike = "runs/cpo",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """Contrastive preference optimisation, or SimPO, of `policy` on rows with `chosen` and `rejected`: no reference.

    Losses and defaults are those of TRL's CPOTrainer, which adds `cpo_alpha` (1.0) times the likelihood of the chosen
    answers to every loss; the SimPO paper has `cpo_alpha=0`. `eval_dataset`, `track`: as for `dpo`. Settings: see
    `CPOSettings`. Raises SettingError or DataError before any work.
    """
    return launch("cpo", policy, rows, out, eval_dataset, settings, track)


def orpo(
    policy: Policy,
    rows: Any,
    *,
    out: str | os.PathLike = "runs/orpo",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """Odds-ratio preference optimisation of `policy` on rows with `chosen` and `rejected`: no reference.

    `eval_dataset`, `track`: as for `dpo`. Settings: see `ORPOSettings`. Raises SettingError or DataError before any
    work.
    """
    return launch("orpo", policy, rows, out, eval_dataset, settings, track)


def kto(
    policy: Policy,
    rows: Any,
    *,
    out: str | os.PathLike = "runs/kto",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """Kahneman-Tversky optimisation of `policy` on rows with `prompt`, `completion` and `label` (true: desirable).

    Rows with `chosen` and `rejected` become two labelled rows each. The reference is the policy as it is now.
    `eval_dataset`, `track`: as for `dpo`. Settings: see `KTOSettings`. Raises SettingError or DataError before any
    work.
    """
    return launch("kto", policy, rows, out, eval_dataset, settings, track)


def grpo(
    policy: Policy,
    task: Task,
    *,
    out: str | os.PathLike = "runs/grpo",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """Group-relative policy optimisation of `policy` on a Task, and its relatives.

    `preset="dapo"` (or another of `settings.presets.PRESETS`) names a published algorithm; what is given beside it
    wins. `eval_dataset`: a held-out Task, or rows that are scored by the task's own rewards. `track`: as for `sft`.
    Settings: see `GRPOSettings`. Raises SettingError or DataError before any work.
    """
    return launch("grpo", policy, task, out, eval_dataset, settings, track)


def rloo(
    policy: Policy,
    task: Task,
    *,
    out: str | os.PathLike = "runs/rloo",
    eval_dataset: Any = None,
    track: Any = None,
    **settings: Any,
) -> Run:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740): `wb.grpo(preset="rloo")`.

    Defaults are those of TRL's RLOOConfig: group_size=2, beta=0.05 with the KL in the reward, one ratio for a whole
    completion, advantages not normalised. Everything else is as for `grpo`.
    """
    return launch("grpo", policy, task, out, eval_dataset, {"preset": "rloo"} | settings, track)


def launch(
    name: str,
    policy: Policy,
    data: Any,
    out: str | os.PathLike,
    eval_dataset: Any,
    given: dict[str, Any],
    track: Any = None,
) -> Run:
    """The run of method `name` with the `given` settings: everything that can be checked is checked here."""
    if not isinstance(policy, Policy):
        called = settings_of.called(name)
        raise SettingError(f"{called} trains a policy: {called}(wb.load(...), ...). Got {type(policy).__name__}.")
    method = methods.get(name)
    settings = settings_of.make(name, given)
    called = settings_of.called(name)
    for said in settings.unread(given):
        worker.warn(f"{called}: {said}")
    if settings.eval_steps is not None and eval_dataset is None:
        raise SettingError(
            f"{called}: eval_steps={settings.eval_steps} needs eval_dataset=..., the held-out rows or task."
        )
    followers = tracking.trackers(track)
    source = inputs.source_of(method, data)
    held_out = inputs.held_out_of(eval_dataset, source)
    sized = method.steps is not None and "steps" not in given
    return worker.call(_launch, method, policy, source, held_out, settings, out, followers, sized)


def _launch(
    method: methods.Method,
    policy: Policy,
    source: Rows | Task,
    held_out: Rows | Task | None,
    settings,
    out,
    followers: list[tracking.Tracker],
    sized: bool,
) -> Run:
    if not policy.trainable():
        raise SettingError("Nothing in the policy can be trained. Attach an adapter: policy.attach(wb.LoRA()).")
    live = Live(settings, *inputs.prepared(method, policy, source, held_out, settings), source=source)
    if sized:
        settings = replace(settings, steps=method.steps(live.data, settings))
        live = replace(live, settings=settings)
    if said := method.notice(live.data, settings):
        worker.warn(f"{settings_of.called(method.name)}: {said}")
    if others := folders.running():
        print(f"Still going on in the background, and sharing the machine with this run: {', '.join(others)}.")
    folder = folders.claim(out)
    meta = {
        "name": folder.name,
        "method": method.name,
        "settings": asdict(settings),
        "policy": policy.describe(),
        "started_from": policy.holder,
        "data": inputs.spec_of(source),
        "eval": None if held_out is None else inputs.spec_of(held_out),
        "tracking": tracking.record(followers),
    }
    rows = {"train": inputs.rows_of(source).to_list()}
    if held_out is not None:
        rows["eval"] = inputs.rows_of(held_out).to_list()
    engine = Engine(method, policy, live, folder, State(clone(policy.params())))
    for tracker in followers:
        engine.tracking.add(tracker)
    engine.hold()
    return Run(folder, engine, begin=(meta | inputs.circumstances(), rows))


# -- changes ---------------------------------------------------------------------------------------------------


def check_change(
    engine: Engine, live: Live, settings: dict[str, Any], rewards: Any, weights: Any, say: Callable = worker.warn
) -> tuple[Live, dict[str, Any]]:
    """The Live that `run.set` or `run.fork` asks for, and the event that records it. Raises before anything changes."""
    payload: dict[str, Any] = {}
    method = engine.method.name
    if settings:
        made = settings_of.make(method, settings, base=live.settings)
        for said in made.unread(settings):
            say(f"{settings_of.called(method)}: {said}")
        before, after = asdict(live.settings), asdict(made)
        payload["settings"] = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
        if changed := sorted(settings_of.fixed(method) & payload["settings"].keys()):
            raise SettingError(
                f"{', '.join(changed)} cannot change within a run: rows and draws follow from it. Start a new run."
            )
        live = inputs.anew(engine.method, engine.policy, replace(live, settings=made), live.settings)
    if rewards is not None or weights is not None:
        if not isinstance(live.data, Prompts):
            raise SettingError(f"{settings_of.called(method)} has no rewards to set.")
        task = live.data.task
        old = task.spec()["rewards"]
        task = task.with_rewards(rewards if rewards is not None else task.functions, weights)
        live = replace(live, data=replace(live.data, task=task), missing=())
        payload["rewards"] = [old, task.spec()["rewards"]]
    if isinstance(live.data, Prompts):
        engine.method.check_task(live.data.task, live.settings)
    if not payload:
        raise SettingError("Nothing to set: give settings, rewards or weights.")
    return live, payload


def apply_change(engine: Engine, settings: dict[str, Any], rewards: Any, weights: Any) -> None:
    """See `Run.set`."""
    engine.change(*check_change(engine, engine.live, settings, rewards, weights))
