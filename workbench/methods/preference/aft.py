"""AFT: a ranking loss over several answers of a question, with a floor under the wrong ones.

Supervised fine-tuning gives wrong chains of thought high scores, too. With s the mean log-prob of an answer's tokens
(no reference is needed), the answers of a question add, to the cross-entropy on the right ones,

    log(1 + sum over right p and wrong n of T)        T, by `constraint`:
    none       exp(s_n - s_p)                         raises s_p, and lowers s_n without end: it ruins the model
    detached   exp(sg(s_n) - s_p)                     raises s_p only
    boundary   exp(s_n - s_p) + exp(2 B - s_n - s_p)  B = sg(least s_p of the question) - margin: the pull on s_n is
                                                      zero at B and turns round below it

and the mean over the update's questions, times `ranking_weight`, is added to SFT's loss. Rows: prompt; `answers`, a
list of sampled answers; `correct`, for each whether it is right; and, where there is one, `completion`, the reference,
which is right. Numbers from 0 to 1 in `correct` rank the answers instead (1 is right): then the sum goes over all pairs
of a better and a worse one, and B is that of the worse answer. `workbench.transforms.pairs.answer_groups` makes such
rows of scored rollouts. A row with a completion alone is one of SFT. Questions without a right answer are left out.

All answers of a question are in one update: `batch_size` counts questions. Metrics: ranking_loss, scores/right,
scores/wrong and assessment_accuracy, the share of pairs in which the better answer scores higher.

Defaults: detached, weight 1, margin 0.15 (the paper tunes it; around that). The paper samples 6 answers at temperature
1. ranking_weight=0 is SFT on the right answers.

Paper: Wang et al. 2023, Making Large Language Models Better Reasoners with Alignment, arXiv 2309.02144; no code was to
be had. The loss was checked against a written summary of the paper, where the floor is written as T = 2 s_p* - 2 margin
- s_p. What it does not say, and is our reading: no gradient flows through B, the loss is a mean over questions, and in
a ranking the floor of an answer is taken from those better than it. The cross-entropy is a mean over tokens as in
`wb.sft`, over all right answers. Left out: sampling the answers, which is `policy.sample` and a verifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from workbench import tokenise
from workbench.data import make as make_rows
from workbench.errors import DataError
from workbench.methods import sft
from workbench.methods.context import Context, Step
from workbench.methods.evaluate import as_eval
from workbench.objectives import Objective
from workbench.objectives.ranking import CONSTRAINTS, aligned
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.state import State
from workbench.transforms.pairs import flat_answers, is_right


@dataclass(frozen=True, kw_only=True)
class AFTSettings(SFTSettings):
    """SFT on right answers, and a ranking of right and wrong ones."""

    ranking_weight: float = knob(1.0, at_least=0.0)
    """weight of the ranking loss beside the likelihood of the right answers; 0: SFT, and of wrong answers nothing is
    known then but what an evaluation says"""
    constraint: str = knob("detached", choices=tuple(CONSTRAINTS))
    """what holds wrong answers: 'detached' (they get no gradient), 'boundary' (they are pushed down to a floor), or
    'none'"""
    margin: float = knob(0.15, at_least=0.0)
    """the floor of 'boundary' lies so far below the lowest right answer, in nats a token"""

    def problem(self) -> str | None:
        if self.packing or self.eval_packing:
            return "packing does not go with aft, whose updates take all answers of a question together."
        return super().problem()


@dataclass(frozen=True)
class Answer(tokenise.Example):
    """One answer of a question; `place` is 0 for the first of its question."""

    quality: float = 1.0
    place: int = 0


def prepare(tokenizer, rows, settings: AFTSettings) -> tokenise.Examples:
    """The questions, each a tuple of its answers. Raises DataError where a row cannot be used."""
    flat = flat_answers(rows)
    if not any(is_right(row["quality"]) for row in flat):
        raise DataError("No row has a right answer: give completion, or an entry of 1 (or True) in correct.")
    made = sft.prepare(tokenizer, make_rows(flat), settings)
    questions: dict[int, list[Answer]] = {}
    for example in made.items:
        row = flat[example.row]
        questions.setdefault(row["question"], []).append(Answer(**vars(example), quality=row["quality"]))
    kept = [placed(answers) for answers in questions.values() if any(is_right(one.quality) for one in answers)]
    if not kept:
        raise DataError("No right answer is left after cutting to max_length; give a longer one.")
    return tokenise.Examples(kept, made.report)


def notice(data: tokenise.Examples, settings: AFTSettings) -> str | None:
    """What to say where there is little or nothing to rank."""
    ranked = sum(len({one.quality for one in answers}) > 1 for answers in data.items)
    if ranked or not settings.ranking_weight:
        return None
    return f"none of the {len(data.items)} questions has answers of which one is better, so this is wb.sft."


def columns(state, ctx: Context, examples: Sequence[Answer]) -> dict[str, list]:
    """SFT's weight, 0 in answers that are not right; which tokens are the answer's, its question and its quality."""
    scored = [(one, max(1, one.mask.index(1))) for one in examples]
    question, number = [], -1
    for one in examples:
        number += one.place == 0
        question.append(number)
    return {
        "weight": [
            [m * w * is_right(one.quality) for m, w in zip(one.mask[start:], one.weight[start:], strict=True)]
            for one, start in scored
        ],
        "answer": [one.mask[start:] for one, start in scored],
        "question": question,
        "quality": [one.quality for one in examples],
    }


def objective(settings: AFTSettings, index: int = 0) -> Objective:
    likelihood = sft.objective(settings)
    made = partial(
        aligned,
        supervised=likelihood.function,
        weight=settings.ranking_weight,
        constraint=settings.constraint,
        margin=settings.margin,
    )
    return Objective(made, likelihood.needs, coupled=True)


VARIANT = sft.Variant(columns=columns, objective=objective)


def loop(state: State, ctx: Context) -> Iterator[Step]:
    """SFT's loop; without the ranking, answers that are not right do not go through the model at all."""
    settings = ctx.settings
    while state.step < settings.steps:
        index = state.step + 1
        items = [ctx.data.items[row] for row, _ in ctx.draw(index, settings.batch_size, len(ctx.data.items))]
        if not settings.ranking_weight:
            items = [placed(one for one in answers if is_right(one.quality)) for answers in items]
        yield Step(index, sft.fit(state, ctx, items, index, VARIANT))


def placed(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """The answers of a question, each with its place."""
    return tuple(replace(one, place=place) for place, one in enumerate(answers))


def evaluate(ctx: Context) -> dict[str, float]:
    """The loss and the assessment accuracy on held-out questions."""
    batch = sft.batch_of(ctx.state, ctx, ctx.eval_data.items, VARIANT)
    return as_eval(ctx.look(batch, objective(ctx.settings), sft.totals(batch), "preview", grad=False))


METHOD = sft.variant(
    "aft", AFTSettings, VARIANT, prepare=prepare, prepare_eval=prepare, loop=loop, evaluate=evaluate, notice=notice
)
