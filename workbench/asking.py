"""What only a model can answer about stored completions, asked from a page and answered by the worker between steps.

Views hold an `Asking` and know no more of it than `about` and `ask`. Nothing here blocks the thread that asks, and
nothing trains: weights of the past are those that `Engine.restore` gives, held for the length of an answer. Log-probs,
entropies and probabilities are those of softmax(logits / temperature) at the run's sampling temperature (0 counts as
1), before top_k and top_p, as `policy.score` and the recorded ones are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench import adapters, layouts, scoring, update, worker
from workbench.errors import RunError, WorkbenchError
from workbench.methods import entropy, rl_batch
from workbench.objectives.kl import k3
from workbench.objectives.policy_gradient import objective, token_shares
from workbench.state import State
from workbench.store.tokens import Tokens, of_step

if TYPE_CHECKING:
    from workbench.run import Run

TOP = 5
"""alternatives of a token"""
STATES = 4
"""past states that are kept for the next question, as far as STATE_BYTES allows"""
STATE_BYTES = 2**30
ANSWERS = 64
"""scanned completions that are kept"""

Answer = dict[str, Any]
Weights = int | str
"""those after a step of the line that stands, or "reference", or "base": the model without its adapter"""


class Asking:
    """Questions about the completions of `run`. Answers come on the worker's thread, by a call of `then`."""

    def __init__(self, run: Run):
        self.run = run
        self._states: OrderedDict[tuple[int, int], State] = OrderedDict()
        self._scans: OrderedDict[tuple, dict[str, Any]] = OrderedDict()
        self._shares: tuple[tuple[int, int], Answer] | None = None

    def about(self, completions: Sequence[Tokens]) -> dict[str, Any]:
        """What can be asked: `last`, the last step; `near`, the steps whose weights are at hand; `adapter`, whether
        there is a base below one; `line`, of each completion whether it stands on the line of steps that goes on."""
        engine, why = self.run.engine, self.run._released
        if why:
            return {"able": False, "why": f"Numbers that need the model: {why}"}
        line = dict(self.run.store.path_to())
        known = [*engine.memory, *engine.snapshots.all(), *self._states]
        near = {step for branch, step in known if step <= line.get(branch, -1)} | {engine.state.step}
        on = [record.step <= line.get(record.branch, -1) for record in completions]
        adapter = engine.policy.has_adapter
        return {"able": True, "last": engine.state.step, "near": sorted(near), "adapter": adapter, "line": on}

    def ask(
        self,
        question: str,
        about: Tokens,
        then: Callable[[Answer], None],
        trouble: Callable[[object], None],
        **how: Any,
    ) -> None:
        """Queue a question, one of `QUESTIONS`; one of `then` and `trouble` is called with what comes of it."""

        def work() -> None:
            try:
                if self.run._released:
                    raise RunError(self.run._released)
                answer = QUESTIONS[question](self, about, **how)
            except WorkbenchError as error:
                trouble(error)
            except Exception as error:  # whatever it is, the page that waits has to hear of it
                trouble(f"The model could not answer: {type(error).__name__}: {error}")
            else:
                then(answer)

        worker.submit(work)

    # -- questions -------------------------------------------------------------------------------------------

    def alternatives(self, about: Tokens, at: Weights) -> Answer:
        """Under the weights `at`, for each of the T tokens: `logprob`, `entropy` (nats, float32), `rank` (0: the
        likeliest); of the likeliest `top_id`, `top_logprob`, (T * TOP,) token by token; and their `pieces`."""
        scan = self._scan(about, at)
        return {**scan, "pieces": self.run.engine.policy.pieces.of([scan["top_id"].tolist()])}

    def compare(self, about: Tokens, a: Weights, b: Weights) -> Answer:
        """`change` (T,) nats: log-prob under the weights `b` less that under `a`."""
        before, after = self._scan(about, a), self._scan(about, b)
        return {
            "change": after["logprob"] - before["logprob"],
            "said": f"log-prob at {self._named(b)} less that at {self._named(a)}{self._tempered(about)}",
        }

    def divergence(self, about: Tokens, at: Weights) -> Answer:
        """`divergence` (T,) nats: KL(policy at `at` || reference) of the whole next-token distribution, exact; and
        `estimate` (T,): k3 from the token's own log-probs, as a loss with a KL term has it (`objectives.kl`)."""
        temperature = self._temperature(about)
        both = [(weights, self._ahead(about, weights)) for weights in (at, "reference")]
        exact, estimate = [], []
        for part in both[0][1].parts(self.run.engine.policy.vocab_size):
            p, q = (self._softened(about, weights, ahead, part, temperature) for weights, ahead in both)
            exact.append(scoring.divergence(p, q)[0].clamp(min=0))  # rounding may go below
            ids = both[0][1].target[part, None]
            estimate.append(k3(p.gather(-1, ids)[:, 0], q.gather(-1, ids)[:, 0]))
        return {
            "divergence": _numbers(torch.cat(exact)),
            "estimate": _numbers(torch.cat(estimate)),
            "said": f"KL({self._named(at)} || the reference) over the whole vocabulary{self._tempered(about)}",
        }

    def contribution(self, about: Tokens) -> Answer:
        """`contribution` (T,): each token's share of the loss of the step that trained on it, before its first update;
        `counts` (T,) 1 for tokens that are in that loss. The shares of a step's completions add up to the loss.

        Where a pass is split into updates, each of them is taken before the first, and the sum is their mean. Where
        the loss has one number for a row, its tokens have equal parts of it. Dropout is off.
        """
        key = (about.branch, about.step)
        if self._shares is None or self._shares[0] != key:
            self._shares = key, self._shares_of(about)
        shares = self._shares[1]
        values, counts = shares[about.id]
        return {
            "contribution": values,
            "counts": counts,
            "said": f"of the loss of step {about.step}, {shares['loss']:.4g} before its first update, to which the"
            f" shares of all {shares['tokens']} tokens of the step add up",
        }

    # -- inside ----------------------------------------------------------------------------------------------

    def _scan(self, about: Tokens, at: Weights) -> dict[str, Any]:
        """One pass over a completion; the last ANSWERS ones are kept."""
        key = (about.id, self._home(at), at, about.step if at == "reference" else None)
        if key in self._scans:
            self._scans.move_to_end(key)
            return self._scans[key]
        temperature = self._temperature(about)
        policy, ahead = self.run.engine.policy, self._ahead(about, at)
        with policy.at_rest(), self._holding(about, at):
            made = scoring.alternatives(ahead, policy.vocab_size, TOP, temperature)
        self._scans[key] = {
            "logprob": _numbers(made.logprob), "entropy": _numbers(made.entropy), "rank": _ids(made.rank),
            "top_id": _ids(made.top_ids.flatten()), "top_logprob": _numbers(made.top_logprob.flatten()),
            "said": f"{self._named(at)}{self._tempered(about)}",
        }  # fmt: skip
        if len(self._scans) > ANSWERS:
            self._scans.popitem(last=False)
        return self._scans[key]

    def _ahead(self, about: Tokens, at: Weights) -> scoring.Predictions:
        """What predicts each token of the completion, before the head."""
        policy = self.run.engine.policy
        ids = [*about.prompt_ids.tolist(), *about.ids.tolist()]
        batch = layouts.layout([ids], [len(about.prompt_ids)], policy.filler, policy.device)
        with policy.at_rest(), self._holding(about, at):
            return scoring.predictions(policy.model, batch)

    def _softened(self, about: Tokens, at: Weights, ahead: scoring.Predictions, part: slice, temperature: float):
        """Log-probs (n, V) of some of the tokens, by the head of the weights `at`."""
        with self.run.engine.policy.at_rest(), self._holding(about, at):
            return scoring.softened(ahead.logits(part), temperature)

    @contextmanager
    def _holding(self, about: Tokens, at: Weights) -> Iterator[None]:
        """The policy has the weights `at` for the length of the block."""
        engine = self.run.engine
        if at == "base":
            if not engine.policy.has_adapter:
                raise RunError("This run trains the model itself, so there is no base without an adapter.")
            with adapters.without(engine.policy.model):
                yield
            return
        if at == "reference":
            # where the reference moves, the one of the step that trained on the completion
            params = engine.reference_at(self._state(about.step - 1 if self._on_line(about) else engine.state.step))
        else:
            params = self._state(at).params
        with engine.policy.holding(params):
            yield

    def _state(self, step: int) -> State:
        """The state after `step` of the line that stands; the present one itself, which must not be kept."""
        engine = self.run.engine
        if step == engine.state.step:
            return engine.state
        key = engine.store.home(step, engine.branch), step
        if key not in self._states:
            state = engine.restore(step)
            self._states[key] = state
            total = sum(one.nbytes() for one in self._states.values())
            while len(self._states) > 1 and (len(self._states) > STATES or total > STATE_BYTES):
                total -= self._states.popitem(last=False)[1].nbytes()
        self._states.move_to_end(key)
        return self._states[key]

    def _shares_of(self, about: Tokens) -> Answer:
        """By completion of the step (its id) the shares and the counts; `loss` and `tokens` of the step."""
        engine, step = self.run.engine, about.step
        if engine.method.name != "grpo":
            raise RunError(f"The loss of {engine.method.name} has more parts than the policy gradient: no shares.")
        if not self._on_line(about):
            raise RunError(f"Step {step} of this completion was given up by a rewind, and cannot be made again.")
        state = self._state(step - 1)
        context = engine.context_at(state, step)
        settings, rollouts = context.settings, context.replay.rollouts
        made: Answer = {"loss": 0.0, "tokens": 0}
        ids = of_step(engine.store, step, about.branch)
        with engine.policy.holding(state.params):
            parts = rl_batch.split(settings, step, len(rollouts))
            whole, _ = rl_batch.make(state, context, rollouts, updates=len(parts) * settings.num_iterations)
            coefficient = entropy.coefficient(state, settings)
            for number, rows in enumerate(parts):
                batch = whole.take(rows)
                totals = rl_batch.totals_of(batch, whole, len(parts), settings)
                scores = _scored(engine.policy, batch, context.plan(batch, f"update {number}"), settings)
                columns = update.columns_of(batch, scores.logprob)
                loss = objective(settings, coefficient)(scores, columns, totals)[0]
                shares, counts = token_shares(scores, columns, totals, settings=settings, entropy_coef=coefficient)
                made["loss"] += float(loss) / len(parts)
                for i, row, share, count in zip(batch.scored(), rows, shares / len(parts), counts, strict=True):
                    made[ids[row]] = _numbers(share[:i]), _numbers(count[:i])
                    made["tokens"] += i
        return made

    def _on_line(self, about: Tokens) -> bool:
        engine = self.run.engine
        return about.step <= dict(engine.store.path_to(engine.branch)).get(about.branch, -1)

    def _home(self, at: Weights) -> int | None:
        engine = self.run.engine
        if isinstance(at, str):
            if at not in ("reference", "base"):
                raise RunError(f"There are no weights {at!r}: a step, 'reference' or 'base'.")
            return None
        return engine.store.home(int(at), engine.branch)

    def _temperature(self, about: Tokens) -> float:
        return float(self.run.engine.store.settings(about.step, about.branch).get("temperature") or 1.0)

    def _named(self, at: Weights) -> str:
        return {"reference": "the reference", "base": "the base model"}.get(at, f"step {at}")

    def _tempered(self, about: Tokens) -> str:
        temperature = self._temperature(about)
        return "" if temperature == 1 else f", at the sampling temperature {temperature:g}"


QUESTIONS: dict[str, Callable[..., Answer]] = {
    "alternatives": Asking.alternatives,
    "compare": Asking.compare,
    "divergence": Asking.divergence,
    "contribution": Asking.contribution,
}


def _scored(policy, batch: update.Batch, micro_batches: list[list[int]], settings) -> scoring.TokenScores:
    """The scores of all rows as one table each, without gradients or dropout."""

    def scored(number: int) -> scoring.TokenScores:
        part = batch.take(micro_batches[number])
        return policy.token_scores(part.sequences, part.starts, temperature=settings.temperature)

    with policy.at_rest():
        return scoring.gather(scored, micro_batches, len(batch), max(batch.scored()))


def _ids(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype("i4")


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
