"""The memory that a run will take, before it begins: what lives at the fullest moment of each part of a step.

    wb.forecast(policy, "grpo", max_new_tokens=512)

Weights, the optimiser's slots and the copies that a run keeps are counted (`workbench.footprint`); what an update
allocates is measured on a few short texts and foretold from there (`workbench.probe`). Counted are torch's tensors:
Python, torch itself and the libraries take a few hundred MB more. Left out: evaluation on held-out data, and reward
functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench import (
    footprint,
    inputs,
    ledger,
    methods,
    micro_batches,
    optimiser,
    planned,
    probe,
    recompute,
    trunk,
    update,
    worker,
)
from workbench import settings as settings_of
from workbench.errors import SettingError, did_you_mean
from workbench.methods.context import Context
from workbench.planned import Work
from workbench.policy import Policy
from workbench.views.forecast import Change, ForecastPicture, Phase, size

if TYPE_CHECKING:
    import pandas as pd

    from workbench.engine import Engine

MARGIN = 0.9
"""of the free memory that a run may take: allocators leave gaps, and other programs want some, too"""
WORTH = 0.01
"""of the peak that a change must save to be named"""
LOOKED_AT = 20
"""steps of a run whose times count"""
FOUR_BITS = 0.53
"""bytes a weight takes in NF4, with its share of the scales"""


def forecast(
    policy: Policy, method: str, data: Any = None, *, prompt_tokens: int | None = None, **settings: Any
) -> Forecast:
    """The peak memory of `wb.<method>(policy, data, **settings)`, part by part, before anything is trained.

    `method`: "sft", "dpo", "cpo", "orpo", "kto", "grpo" or "rloo". `data`: the rows or the task; what counts is the
    longest update that the run will draw from them. Without it all texts are as long as `max_length` allows, prompts
    have `prompt_tokens` (128) and completions `max_new_tokens`. Settings are those of the method.

    Nothing is changed and no memory kept. Raises SettingError and DataError as the method does.
    """
    if not isinstance(policy, Policy):
        raise SettingError(f"wb.forecast is of a policy: wb.forecast(wb.load(...), ...). Got {type(policy).__name__}.")
    known = [*methods.METHODS, "rloo"]
    if method not in known:
        near = did_you_mean(method, known) if isinstance(method, str) else ""
        raise SettingError(f"wb.forecast knows no method {method!r}.{near} Methods: {', '.join(known)}.")
    prompt_tokens = settings_of.typed("prompt_tokens", prompt_tokens, "int | None")
    if prompt_tokens is not None and prompt_tokens < 1:
        raise SettingError(f"prompt_tokens={prompt_tokens} must be at least 1.")
    if method == "rloo":
        method, settings = "grpo", {"preset": "rloo"} | settings
    made, chosen = settings_of.make(method, settings), methods.get(method)
    source = None if data is None else inputs.source_of(chosen, data)
    return worker.call(_forecast, policy, chosen, made, source, prompt_tokens)


def _forecast(policy: Policy, method: methods.Method, settings: Any, source: Any, prompt_tokens: int | None):
    inputs.check(policy, settings)
    if not policy.trainable():
        raise SettingError("Nothing in the policy can be trained. Attach an adapter: policy.attach(wb.LoRA()).")
    return Forecast(Plan(policy, method, settings, source, prompt_tokens), now=sum(policy.memory().values()))


@dataclass(frozen=True)
class Plan:
    """What a forecast is of."""

    policy: Policy
    method: methods.Method
    settings: Any
    source: Any = None
    """rows or a task, as given"""
    prompt_tokens: int | None = None
    prepared: Any = None
    """the same as the method reads it, where it is known already"""
    tried: dict[Any, Any] = field(default_factory=dict)
    """what tries on the model said, for forecasts of other settings"""

    def work(self) -> Work:
        """The largest update of the run."""
        data = self.prepared if self.source is None else self._read()
        return planned.work(self.policy, self.method, self.settings, data, self.prompt_tokens)

    def _read(self) -> Any:
        """The source as the method reads it, which hangs on how rows are cut."""
        kind = "data", getattr(self.settings, "max_length", None)
        if kind not in self.tried:
            self.tried[kind] = self.method.prepare(self.policy.tokenizer, self.source, self.settings)
        inputs.check_data(self.policy, self.settings, self.tried[kind])
        return self.tried[kind]


def of_run(run: Engine) -> Forecast:
    """The forecast of a run's steps to come, with what was measured of those it made. See `Run.forecast`."""
    live, policy = run.live, run.policy
    held = run.state.nbytes() + sum(size for _, size in run.memory.values())
    held += sum(policy.memory().values()) + _bytes(run.reference or {})
    return Forecast(Plan(policy, run.method, live.settings, prepared=live.data), held, measured(run))


def measured(run: Engine) -> dict[str, float]:
    """Of the last LOOKED_AT steps of a run the medians, and what follows: see `Forecast.measured`. Empty before the
    first step."""
    seconds = run.store.steps().set_index("step")["seconds"].loc[1:].iloc[-LOOKED_AT:]
    if seconds.empty:
        return {}
    made = {"seconds_per_step": float(seconds.median())}
    made["seconds_left"] = made["seconds_per_step"] * max(0, run.settings.steps - run.state.step)
    seen = run.store.metrics()
    tokens = seen["num_tokens"].diff().fillna(seen["num_tokens"]).loc[seconds.index].median()
    made |= {"tokens_per_step": float(tokens), "tokens_per_second": float(tokens) / made["seconds_per_step"]}
    if run.policy.device.type == "cuda":
        made["peak"] = float(torch.cuda.max_memory_allocated(run.policy.device))
    return made


class Forecast:
    """The peak memory of a run, and where it comes from. Shows itself as a table and a chart; `print` gives text."""

    def __init__(self, plan: Plan, now: int, measured: Mapping[str, float] | None = None):
        self._plan = plan
        self.settings = plan.settings
        """the settings it is of"""
        self.measured = dict(measured or {})
        """of a run that has made a step: `seconds_per_step`, `tokens_per_step`, `tokens_per_second`, `seconds_left`,
        and on CUDA `peak`, in bytes"""
        work = plan.work()
        micro = cut(plan, work.batch)
        self._phases = phases(plan, work, micro)
        self.micro_batches = [len(rows) for rows in micro]
        """rows of each micro-batch of the largest update"""
        self.tokens = _tokens(plan, work, micro)
        """a step has at most: `sampled` (completions), `trained` (all texts of all updates), `through` (those that go
        through the model in an update: with padding, shared prompts once)"""
        self.free = micro_batches.free_bytes(plan.policy.device)
        """bytes to be had now on the policy's device; None where that cannot be told"""
        self._now = now

    @property
    def peak(self) -> int:
        """Bytes of all tensors at the fullest moment, the model's weights among them."""
        return max(phase.total for phase in self._phases)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part at the fullest moment."""
        return dict(max(self._phases, key=lambda phase: phase.total).parts)

    @property
    def needed(self) -> int:
        """Bytes beyond what is held already."""
        return max(0, self.peak - self._now)

    @property
    def fits(self) -> bool | None:
        """Whether `needed` is at most nine tenths of `free`; None where that is not known."""
        return None if self.free is None else self.needed <= MARGIN * self.free

    @property
    def phases(self) -> pd.DataFrame:
        """Bytes by part of a step (rows) and by what they are for (columns), and the `total`."""
        import pandas as pd

        table = pd.DataFrame([phase.parts for phase in self._phases], index=[phase.name for phase in self._phases])
        table = table.fillna(0).astype("int64")
        return table.assign(total=table.sum(axis=1)).rename_axis("phase")

    def to_pandas(self) -> pd.DataFrame:
        """`phases`."""
        return self.phases

    @cached_property
    def advice(self) -> list[Change]:
        """What would take less memory, the most effective first: each is a forecast of its own."""
        return worker.call(_advice, self._plan, self.peak, self._now, self.free)

    # -- display ---------------------------------------------------------------------------------------------

    def picture(self) -> ForecastPicture:
        """What `show` displays: `.static_html()`, `.static_text()`."""
        policy = self._plan.policy
        return ForecastPicture(
            title=f"wb.{self._plan.method.name} of {policy.origin.model} on {policy.device}",
            phases=self._phases,
            fits=self.fits,
            free=self.free,
            held=self._now,
            margin=MARGIN,
            advice=self.advice,
            facts=self._facts(),
        )

    def _facts(self) -> list[tuple[str, float, str]]:
        """What there is to say beside the bytes: name, number, unit."""
        facts = [(f"tokens a step, {name}", float(count), "") for name, count in self.tokens.items() if count]
        facts.append(("micro-batches of the largest update", float(len(self.micro_batches)), ""))
        units = {"seconds_per_step": "s", "seconds_left": "s", "peak": "bytes"}
        return facts + [(f"measured: {n.replace('_', ' ')}", v, units.get(n, "")) for n, v in self.measured.items()]

    def show(self) -> Forecast:
        """Display it here; in a terminal print its text. Returns the forecast."""
        self.picture().show()
        return self

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.picture().bundle()

    def __str__(self) -> str:
        return self.picture().static_text()

    def __repr__(self) -> str:
        verdict = {True: "fits", False: "does not fit", None: "room unknown"}[self.fits]
        return f"<Forecast: peak {size(self.peak)}, {verdict}; print it, or show() it, for the parts>"


# -- phases ----------------------------------------------------------------------------------------------------


def phases(plan: Plan, work: Work, micro: list[list[int]]) -> list[Phase]:
    """What lives at the fullest moment of each part of the run's last step, when most is kept."""
    policy, settings = plan.policy, plan.settings
    params = policy.params()
    trained, slots = _bytes(params), footprint.slots_of(params, settings.optim)
    moved = trained if work.reference and getattr(settings, "sync_ref_model", False) else 0
    state = trained + slots + moved
    base: dict[str, float] = {"weights": sum(policy.memory().values()) - trained * policy.has_adapter}
    base |= {"adapter": trained * policy.has_adapter, "trained copy": trained}
    base |= {"reference": (trained + moved) * work.reference}
    # there are slots from the first update on
    begun = {"optimiser": slots * (settings.steps > 1 or work.updates > 1)}
    past = {"past states": footprint.past_states(trained, state, settings.steps)}
    kept = base | begun | past
    made = []
    if work.prompts:
        drawing = _sampling(plan, work)
        made.append(Phase("sampling", _whole(kept | drawing)))
        stays = {"folded weights": footprint.folds_kept(drawing["folded weights"])}
        base, kept = base | stays, kept | stays
    if work.scored is not None:
        made.append(Phase("scoring", _whole(kept | _scoring(plan, work.scored))))
    peak = _peak(plan, worst(plan, work.batch, micro), work.objective, again=len(micro) > 1)
    learning = {"gradients": peak.gradients, "activations": peak.activations, "head": peak.head}
    made.append(Phase("update", _whole(kept | learning)))
    stepping = {"optimiser": slots, "gradients": trained, "workspace": footprint.workspace(params, settings)}
    made.append(Phase("optimiser", _whole(kept | stepping)))
    saving = footprint.saved(trained, state, settings.steps, policy.device.type == "cpu")
    made.append(Phase("saving", _whole(base | {"optimiser": slots} | saving)))
    return made


def _whole(parts: dict[str, float]) -> dict[str, int]:
    return {name: round(count) for name, count in parts.items() if round(count)}


def _sampling(plan: Plan, work: Work) -> dict[str, float]:
    rows = footprint.places(work.prompts, plan.settings)
    kind = "sampling", rows
    if kind not in plan.tried:
        plan.tried[kind] = footprint.drawn(plan.policy, work.prompts, plan.settings)
    fold, drawing = plan.tried[kind]
    cache = footprint.cache(plan.policy, rows, work.prompts, plan.settings.max_new_tokens)
    parts: dict[str, float] = {"folded weights": fold, "KV cache": cache, "drawing": drawing}
    if not cache:  # the whole text goes through the model for every token
        longest = max(work.prompts) + plan.settings.max_new_tokens
        text = update.Batch([[plan.policy.filler] * longest] * rows, [longest - 1] * rows)
        parts["activations"] = _peak(plan, text, None).bytes
    return parts


def _scoring(plan: Plan, batch: Any) -> dict[str, float]:
    peak = _peak(plan, worst(plan, batch, cut(plan, batch, grad=False), grad=False), None)
    return {"activations": peak.activations + peak.gradients, "head": peak.head}


def _peak(plan: Plan, part: Any, objective: Any, again: bool = False) -> ledger.Peak:
    """The fullest moment of a pass over a micro-batch, with gradients where there is an objective. What a try said of
    one stands for others that differ in size alone."""
    policy, settings, grad = plan.policy, plan.settings, objective is not None
    shared = probe.shared_prompts(policy, part, settings, grad)
    kind = grad, grad and again, grad and settings.gradient_checkpointing, shared is None
    if kind not in plan.tried:
        tried = probe.learning(policy, part, objective, settings, again=again) if grad else None
        plan.tried[kind] = tried or probe.scoring(policy, part, settings)
    return plan.tried[kind].peak(policy, part, settings.padding_free, shared)


def _bytes(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def cut(plan: Plan, batch: Any, grad: bool = True) -> list[list[int]]:
    """The micro-batches of `batch`, as the run would make them."""
    return Context(plan.policy, plan.settings, None).plan(batch, "forecast", grad)


def worst(plan: Plan, batch: Any, micro: list[list[int]], grad: bool = True) -> Any:
    """The micro-batch with the most tokens."""
    return max((batch.take(rows) for rows in micro), key=lambda part: _places(plan, part, grad))


def _places(plan: Plan, part: Any, grad: bool = True) -> int:
    shared = probe.shared_prompts(plan.policy, part, plan.settings, grad)
    return probe.places(part, plan.settings.padding_free, shared)


def _tokens(plan: Plan, work: Work, micro: list[list[int]]) -> dict[str, int]:
    rows = len(work.prompts) * getattr(plan.settings, "group_size", 0)
    return {
        "sampled": rows * plan.settings.max_new_tokens,
        "trained": work.updates * sum(map(len, work.batch.sequences)),
        "through": work.updates * sum(_places(plan, work.batch.take(rows)) for rows in micro),
    }


# -- advice ----------------------------------------------------------------------------------------------------


def _advice(plan: Plan, peak: int, now: int, free: int | None) -> list[Change]:
    """Changes that save memory, the most effective first."""
    made: list[tuple[dict[str, Any], float]] = []
    for change in _changes(plan):
        changed = replace(plan, settings=settings_of.make(plan.method.name, change, base=plan.settings))
        work = changed.work()
        then = max(phase.total for phase in phases(changed, work, cut(changed, work.batch)))
        parts = [saved for part, saved in made if part.items() < change.items()]
        if then < (1 - WORTH) * min([peak, *parts]):
            made.append((change, then))
    said = [(", ".join(f"{name}={value!r}" for name, value in change.items()), then) for change, then in made]
    nf4 = peak - _nf4_saves(plan.policy)
    if not plan.policy.origin.quantize and plan.policy.has_adapter and nf4 < (1 - WORTH) * peak:
        said.append(('wb.load(..., quantize="nf4")', nf4))
    found = [
        Change(words, int(then), None if free is None else max(0, then - now) <= MARGIN * free) for words, then in said
    ]
    return sorted(found, key=lambda change: change.peak)


def _changes(plan: Plan) -> list[dict[str, Any]]:
    """Settings that may save memory. The first change no result."""
    settings = plan.settings
    less: dict[str, Any] = {} if settings.micro_batch_size == 1 else {"micro_batch_size": 1}
    again: dict[str, Any] = {}
    if not settings.gradient_checkpointing and recompute.layers(plan.policy.model):
        again = {"gradient_checkpointing": True}
    changes = [less, again, less | again if less and again else {}]
    if optimiser.OPTIMISERS[settings.optim].slots == "adamw":
        changes.append({"optim": "adamw_8bit"})
    if plan.method.takes == "task":
        changes.append({"max_new_tokens": settings.max_new_tokens // 2})
        if settings.group_size % 2 == 0 and settings.group_size > 2:
            changes.append({"group_size": settings.group_size // 2})
    elif plan.prepared is None and (settings.max_length or 0) >= 4:
        changes.append({"max_length": settings.max_length // 2})
    return [change for change in changes if change and 0 not in change.values()]


def _nf4_saves(policy: Policy) -> int:
    """Bytes that the weights of frozen linear layers, but for the head's, have more than in NF4."""
    head = trunk.base_of(policy.model).get_output_embeddings()
    frozen = [m.weight for m in policy.model.modules() if type(m) is nn.Linear and m is not head]
    return int(sum(p.numel() * (p.element_size() - FOUR_BITS) for p in frozen if not p.requires_grad))
