"""Self-training in rounds: sample, keep, fit, again.

    for each round:                                      steps of the run
        Sample   ask every row, score the answers        ceil(rows / rows_per_step)
        Fit      make rows of what was kept; train       fit_steps

A method is a list of such phases: by which templates the rows are asked, and a pure function from what was sampled to
rows (`answers.Seen` -> rows). Everything else is here, once.

Each step of the run is one step of one phase, committed like any other: a Sample step asks `rows_per_step` rows and
stores their scored completions; a Fit step is one update of `sft` or `dpo`. So a run is paused, rewound, forked and
resumed in the middle of a round, and what was sampled once is never sampled again: the record of rollouts is the cache.
A completion's draws are keyed by the seed, the step (hence the weights that are asked), the template and the row. Which
phase a step belongs to follows from its number and the settings alone; the rows of a Fit follow from the stored
rollouts. Nothing is kept but weights, the optimiser's moments and, while a Fit on pairs goes on, its reference.

An answer is right where the task's verdict (or the reward function that `judge` names) gives `accept` or more, and
where it ended by itself. One that was cut off at the limit of tokens is neither right nor wrong: no row is made of it,
for a row's text ends with the end token, which was never said.

A Fit starts from the weights that the run began with ("base") or from those that there are ("last"), with a fresh
optimiser; its learning rate goes over its own steps. Where nothing was kept a RunError says so before anything is
trained; the run then stands after the sampling and can be rewound and tried with other settings.

Within a run `n`, `start`, learning rates and what a Fit picks by may change, from the next step on. Fixed are the
settings from which the plan of phases or the prepared task follows (templates, columns, numbers of steps), and what
counts as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import keys, tokenise, worker
from workbench.data import Rows
from workbench.errors import DataError, RunError, SettingError
from workbench.methods import Method, dpo, reference, sft
from workbench.methods.answers import PLAIN, TAG, Seen, asked, check_judge, check_template, right, seen
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import evaluate_task, join, sample, score
from workbench.methods.grpo import Prompts
from workbench.methods.rounds import describe
from workbench.sampling.rollouts import Rollouts
from workbench.settings import DPOSettings, SFTSettings
from workbench.settings.base import knob
from workbench.state import State, clone
from workbench.tasks import Task

SAME = "greedy answers of one question are all the same: n=1, or greedy=False."


@dataclass(frozen=True, kw_only=True)
class RoundsSettings(SFTSettings):
    """What every method that trains in rounds takes; those of `wb.sft` are the settings of its updates."""

    rounds: int = knob(1, at_least=1, fixed=True)
    """rounds of sampling and training, where `steps` is not given; a run that has begun goes on with
    run.set(steps=...)"""
    rows_per_step: int = knob(32, at_least=1, fixed=True)
    """rows that a sampling step asks"""
    rows_per_round: int | None = knob(None, at_least=1, fixed=True)
    """rows that a round asks, drawn anew each round; None: all"""
    n: int = knob(4, at_least=1)
    """answers sampled for each row"""
    fit_steps: int = knob(50, at_least=1, fixed=True)
    """updates of a round"""
    start: str = knob("base", choices=("base", "last"))
    """the weights that they start from: those that the run began with ('base'), or those that there are ('last')"""
    judge: str | None = knob(None, fixed=True)
    """the reward function of the task that says whether an answer is right; None: the task's verdict"""
    accept: float = knob(1.0, fixed=True)
    """the least reward of a right answer"""


Phases = Callable[[Any, int], Sequence[Any]]
"""(settings, round) -> the phases of that round, in order: objects with `length` and `step`, like `Sample` and `Fit`"""


@dataclass(frozen=True)
class Place:
    """Where a step stands: number `number` (from 1) of the `length` steps of a phase."""

    index: int
    round: int
    which: int
    """of the round's phases, from 0"""
    number: int
    length: int
    phases: Phases


# -- sampling --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One way to ask rows for answers.

    tag       its name, in the rollouts' column `template`
    template  text with {prompt} and names of other columns
    n         answers a row
    greedy    the likeliest token each time
    unsolved  only rows to which this step has no right answer yet
    after     go on with each answer that the template of this tag gave: `template` is then what is put between, and
              what is scored is that answer, this text and what follows
    given     a column with answers (text, or a list of texts) in place of sampling
    """

    tag: str
    template: str = PLAIN
    n: int = 1
    greedy: bool = False
    unsolved: bool = False
    after: str | None = None
    given: str | None = None


@dataclass(frozen=True)
class Sample:
    """Asks the round's rows, some in each step, in one or several ways."""

    asks: tuple[Ask, ...]

    def length(self, settings: Any, rows: int) -> int:
        return ceil(min(rows, settings.rows_per_round or rows) / settings.rows_per_step) if self.asks else 0

    def step(self, state: State, ctx: Context, place: Place, known: dict) -> Step:
        if ctx.replay is not None:
            return Step(place.index, {}, ctx.replay.rollouts)
        rows = rows_of(ctx, place)
        made, logged = gather(state, ctx, place.index, rows, self.asks)
        metrics = logged | describe(made) | self.solved(ctx, made, len(rows))
        metrics["num_tokens"] = count_tokens(state, made.prompt_ids + made.ids)
        return Step(place.index, metrics | {"round": float(place.round)}, made)

    def solved(self, ctx: Context, made: Rollouts, rows: int) -> dict[str, float]:
        """The share of the step's rows that each template solved first, and of those that none did; they sum to 1."""
        first: dict[int, str] = {}
        verdicts = right(ctx.data.task, made, ctx.settings)
        for row, tag, good in zip(made.row, made.columns[TAG], verdicts, strict=True):
            if good:
                first.setdefault(row, tag)
        shares = {f"solved/{ask.tag}": sum(tag == ask.tag for tag in first.values()) / rows for ask in self.asks}
        return shares | {"unsolved": 1 - len(first) / rows}


def rows_of(ctx: Context, place: Place) -> list[int]:
    """The rows of a sampling step: in the task's order, or the round's own draw."""
    settings, count = ctx.settings, len(ctx.data.prompts)
    order = range(count)
    if settings.rows_per_round is not None:
        order = keys.permutation(keys.key(settings.seed, "round", place.round), count)[: settings.rows_per_round]
    first = (place.number - 1) * settings.rows_per_step
    return [int(row) for row in order[first : first + settings.rows_per_step]]


def gather(
    state: State, ctx: Context, index: int, rows: Sequence[int], asks: Sequence[Ask]
) -> tuple[Rollouts, dict[str, float]]:
    """The scored answers of `rows` in all the ways of asking, one after the other, and what reward functions logged."""
    parts: list[Rollouts] = []
    logged: dict[str, float] = {}
    for ask in asks:
        wanted = unsolved(ctx, rows, parts) if ask.unsolved else rows
        made, judged = _answers(ctx, index, wanted, ask, parts)
        if made is None:
            continue
        whole = replace(made, text=judged)
        logged |= score(ctx, ctx.data.task, whole, state.step).logged_metrics
        made.rewards, made.reward = whole.rewards, whole.reward
        offset = max((group for part in parts for group in part.group), default=-1) + 1
        made.group = [group + offset for group in made.group]
        parts.append(made)
    return join(parts), logged


def unsolved(ctx: Context, rows: Sequence[int], parts: Sequence[Rollouts]) -> list[int]:
    """Those of `rows` that have no right answer yet."""
    solved = set()
    for part in parts:
        verdicts = right(ctx.data.task, part, ctx.settings)
        solved |= {row for row, good in zip(part.row, verdicts, strict=True) if good}
    return [row for row in rows if row not in solved]


def _answers(
    ctx: Context, index: int, rows: Sequence[int], ask: Ask, parts: Sequence[Rollouts]
) -> tuple[Rollouts | None, list[str]]:
    """The answers of one way of asking, and the texts to judge; None where there is nobody to ask."""
    task, tokenizer = ctx.data.task, ctx.policy.tokenizer
    before: list[str] = []
    if ask.after is not None:
        drawn, tokens, before = _continued(ctx, ask, parts)
    else:
        drawn = [(row, 0) for row in rows]
        tokens = [tokenise.prompt(asked(ask.template, task.rows[row]), tokenizer) for row in rows]
    if not drawn:
        return None, []
    if ask.given is not None:
        made = _given(ctx, drawn, tokens, ask)
    else:
        inner = replace(ctx, settings=replace(ctx.settings, top_k=1)) if ask.greedy else ctx
        made = sample(inner, ctx.data, drawn, ask.n, (index, ask.tag), (tokens, {}))
        if before:  # one for each of the answers that it goes on with
            made.sample = [number for _, number in drawn]
    made.columns[TAG] = [ask.tag] * len(made)
    ctx.check()
    return made, [first + text for first, text in zip(before, made.text, strict=True)] if before else made.text


def _continued(
    ctx: Context, ask: Ask, parts: Sequence[Rollouts]
) -> tuple[list[tuple[int, int]], list[tokenise.PromptTokens], list[str]]:
    """(row, number), tokens and text of each earlier answer with the template after it."""
    between = ctx.policy.tokenizer(ask.template, add_special_tokens=False)["input_ids"]
    drawn, tokens, texts = [], [], []
    for part in parts:
        for i in (i for i, tag in enumerate(part.columns[TAG]) if tag == ask.after):
            ids = list(part.ids[i])
            ids = ids[:-1] if ids and ids[-1] in ctx.policy.stop_ids else ids
            text = part.text[i] + ask.template
            drawn.append((part.row[i], part.sample[i]))
            tokens.append(tokenise.PromptTokens(part.prompt_text[i] + text, part.prompt_ids[i] + ids + between))
            texts.append(text)
    return drawn, tokens, texts


def _given(ctx: Context, drawn: list[tuple[int, int]], tokens: list[tokenise.PromptTokens], ask: Ask) -> Rollouts:
    """The answers that rows bring along, as rollouts; of their log-probs nothing is known."""
    rows, tokenizer = ctx.data.task.rows, ctx.policy.tokenizer
    each = [
        (group, row, number, text)
        for group, (row, _) in enumerate(drawn)
        for number, text in enumerate(texts_of(rows[row].get(ask.given)))
    ]
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for *_, text in each]
    unknown = [np.full(len(one), np.nan, dtype=np.float32) for one in ids]
    return Rollouts(
        prompt=[rows[row]["prompt"] for _, row, _, _ in each],
        text=[text for *_, text in each],
        prompt_text=[tokens[group].text for group, *_ in each],
        prompt_ids=[tokens[group].ids for group, *_ in each],
        ids=ids,
        group=[group for group, *_ in each],
        row=[row for _, row, _, _ in each],
        sample=[number for _, _, number, _ in each],
        finish_reason=["given"] * len(each),
        logprob=unknown,
        entropy=unknown,
        columns={name: [rows[row].get(name) for _, row, _, _ in each] for name in rows.columns if name != "prompt"},
    )


def texts_of(value: Any) -> list[str]:
    """One text or several."""
    return [value] if isinstance(value, str) else [str(text) for text in value or ()]


# -- training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Trains on rows made of what was sampled, an update a step.

    rows      what was seen -> rows with prompt and completion (or chosen and rejected); pure
    steps     updates
    start     from the weights of the run's beginning ("base"), or from those that there are ("last"); None: as the
              settings say
    settings  of the updates; None: the method's own. `DPOSettings`: rows are pairs, and the reference is the policy as
              it is when this phase begins
    pooled    of all rounds so far, not of this one alone
    """

    rows: Callable[[Seen], list[dict[str, Any]]]
    steps: int
    start: str | None = None
    settings: Any = None
    pooled: bool = False

    def length(self, settings: Any, rows: int) -> int:
        return self.steps

    def step(self, state: State, ctx: Context, place: Place, known: dict) -> Step:
        key = place.round, place.which
        if key not in known:
            known.clear()
            known[key] = self.prepared(ctx, place)
        data, about = known[key]
        inner = within(ctx, place, self.settings, data)
        if place.number == 1:
            self.begin(state, ctx)
        drawn = [row for row, _ in inner.draw(place.number, inner.settings.batch_size, len(data.items))]
        if self.on_pairs:
            metrics = dpo.fit(state, inner, data, drawn, place.number)
        else:
            metrics = sft.fit(state, inner, [data.items[row] for row in drawn], place.number)
        said = about if place.number == 1 else {}
        return Step(place.index, metrics | said | {"round": float(place.round)})

    @property
    def on_pairs(self) -> bool:
        return isinstance(self.settings, DPOSettings)

    def prepared(self, ctx: Context, place: Place) -> tuple[Any, dict[str, float]]:
        """The rows as tokens, and what there is to say of them. Raises RunError where none was kept."""
        task, tokenizer = ctx.data.task, ctx.policy.tokenizer
        steps = sampled_before(ctx, place, self.pooled)
        rows = self.rows(seen(task, ctx.settings, [ctx.stored(step) for step in steps], tokenizer))
        if not rows:
            raise RunError(_nothing(place, len(steps)))
        made = (dpo if self.on_pairs else sft).prepare(tokenizer, rows, self.settings or ctx.settings)
        if place.number == 1 and not made.report.ok:
            worker.warn(f"Round {place.round}, rows to train on: " + "\n  ".join(made.report.lines()))
        about = {
            "kept/share": len({row["row"] for row in rows}) / len(task.rows),
            "kept/rows": float(len(rows)),
            "kept/mean_length": made.report.trained / (made.report.kept * (2 if self.on_pairs else 1)),
        }
        for source in dict.fromkeys(row["source"] for row in rows):
            about[f"kept/{source}"] = float(sum(row["source"] == source for row in rows))
        return made, about

    def begin(self, state: State, ctx: Context) -> None:
        """The weights and moments that the phase starts with, and for pairs its reference."""
        state.optim.clear()
        for name in [name for name in state.tensors if name.startswith(reference.PREFIX)]:
            del state.tensors[name]
        if (self.start or ctx.settings.start) == "base":
            with torch.no_grad():
                for name, before in ctx.reference().items():
                    state.params[name].copy_(before)
        if self.on_pairs:
            state.tensors |= as_reference(state)


def within(ctx: Context, place: Place, settings: Any = None, data: Any = None) -> Context:
    """The context of a phase's updates: their learning rate and the order of rows are the phase's own. In the first
    round the seed is the run's, so that a Fit on given rows is that of `wb.sft`."""
    seed = ctx.settings.seed if place.round == 1 else keys.key(ctx.settings.seed, "round", place.round)
    settings = replace(settings or ctx.settings, steps=place.length, seed=seed)
    return replace(ctx, settings=settings, data=ctx.data if data is None else data)


def _nothing(place: Place, sampled: int) -> str:
    return (
        f"Round {place.round} kept nothing to train on"
        + (f", of what {sampled} sampling steps gave" if sampled else "")
        + ": see run.rollouts(). Nothing was trained. What helps: more answers a row (n) or more tokens"
        " (max_new_tokens), where run.rewind(step) and run.set(...) ask again; or a new run with easier rows, or"
        " with worked examples in its template."
    )


# -- the loop --------------------------------------------------------------------------------------------------


def method(
    name: str, settings: type, phases: Phases, check: Callable[[Task, Any], None] = lambda task, settings: None
) -> Method:
    """The record of a method with these phases; `check` raises, before any work, for what it cannot use."""
    return Method(
        name,
        "task",
        partial(prepare, phases=phases, check=check),
        partial(loop, phases=phases),
        lambda ctx: evaluate_task(ctx, ctx.eval_data),
        partial(preview, phases=phases),
        settings=settings,
        steps=partial(steps, phases=phases),
        previews="rows",
    )


def prepare(tokenizer, task: Task, settings, phases: Phases, check: Callable[[Task, Any], None]) -> Prompts:
    """The task, with the longest prompt that each row is asked by. Raises before any work for what cannot be used."""
    check_judge(task, settings.judge)
    check(task, settings)
    if TAG in task.rows.columns:
        raise DataError(f"{task.rows.source} has a column {TAG!r}, the name of a mark on what is sampled: rename it.")
    asks = [ask for phase in phases(settings, 1) for ask in getattr(phase, "asks", ()) if ask.after is None]
    for ask in asks:
        check_template(f"The template {ask.tag!r}", ask.template)
    made = []
    for i, row in enumerate(task.rows):
        try:
            prompts = [row["prompt"], *(asked(ask.template, row) for ask in asks)]
            made.append(max((tokenise.prompt(one, tokenizer) for one in prompts), key=lambda one: len(one.ids)))
        except DataError as error:
            raise DataError(f"Row {i}: {error}") from error
    return Prompts(task, made)


def loop(state: State, ctx: Context, phases: Phases) -> Iterator[Step]:
    known: dict = {}  # rows that follow from the store, so as not to make them again at each step; nothing hangs on it
    while state.step < ctx.settings.steps:
        phase, place = at(phases, ctx.settings, len(ctx.data.prompts), state.step + 1)
        yield phase.step(state, ctx, place, known)


def blocks(phases: Phases, settings: Any, rows: int) -> Iterator[tuple[int, Any, Place]]:
    """(first step, phase, place of its first step), one phase after the other, without an end."""
    first = 1
    for number in range(1, 2**62):
        begun = first
        for which, phase in enumerate(phases(settings, number)):
            length = phase.length(settings, rows)
            if length:
                yield first, phase, Place(first, number, which, 1, length, phases)
            first += length
        if first == begun:
            raise SettingError("With these settings a round has no step at all.")


def at(phases: Phases, settings: Any, rows: int, index: int) -> tuple[Any, Place]:
    """The phase that step `index` belongs to, and where in it."""
    for first, phase, place in blocks(phases, settings, rows):
        if index < first + place.length:
            return phase, replace(place, index=index, number=index - first + 1)
    raise AssertionError("phases do not end")


def steps(data: Prompts, settings: Any, phases: Phases) -> int:
    """The steps of `rounds` rounds."""
    return sum(
        phase.length(settings, len(data.prompts))
        for number in range(1, settings.rounds + 1)
        for phase in phases(settings, number)
    )


def sampled_before(ctx: Context, place: Place, pooled: bool = False) -> list[int]:
    """The sampling steps before this one: of its round, or of all."""
    found = []
    for first, phase, begun in blocks(place.phases, ctx.settings, len(ctx.data.prompts)):
        if first >= place.index:
            return found
        if hasattr(phase, "asks") and (pooled or begun.round == place.round):
            found += range(first, min(first + begun.length, place.index))
    return found


def preview(ctx: Context, rows: Rows, phases: Phases) -> Any:
    """The loss and the gradients on given rows, as the first Fit takes them: with prompt and completion, or pairs."""
    fits = [phase for phase in phases(ctx.settings, 1) if isinstance(phase, Fit)]
    pairs = rows.form == "preference"
    fit = next((fit for fit in fits if fit.on_pairs == pairs), None)
    if fit is None:
        raise DataError(f"This method does not train on {rows.form.replace('_', ' and ')} rows; give others.")
    kind = dpo if pairs else sft
    inner = replace(ctx, settings=fit.settings or ctx.settings)
    if pairs and not reference.moved(ctx.state):  # such a Fit would begin now
        inner.state = replace(ctx.state, tensors=as_reference(ctx.state))
    return kind.preview(inner, kind.prepare(ctx.policy.tokenizer, rows, inner.settings))


def as_reference(state: State) -> dict[str, Tensor]:
    """The weights as they are, as what stands for the reference in `state.tensors`."""
    return {reference.PREFIX + name: now for name, now in clone(state.params).items()}
