"""The sampling grid: n chains of thought for each question, H cuts in each chain, m answers after each cut.

    correct[question, chain, cut, answer]       1.0 where it is right; the last cut is the whole chain, and its first
                                                answer the chain's own

pass@k, majority and weighted votes, best-of-k, vote entropy, early answering and their price in tokens are all read off
this one array. pass@k and maj@k are those of `workbench.evaluation`: unbiased, a mean over all sets of k samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from workbench import evaluation, keys, worker
from workbench.analyses.paired import Side
from workbench.errors import DataError, SettingError
from workbench.evaluation import maj_at_k, pass_at_k
from workbench.rewards.signature import unwrapped
from workbench.sampling.decoder import check_whole
from workbench.tasks import Task
from workbench.tokenise import PromptTokens


@dataclass
class Grid:
    """Q questions, n chains, H cuts, m answers."""

    correct: np.ndarray
    """(Q, n, H, m) float64"""
    answers: np.ndarray
    """(Q, n, H, m) objects: what each says, equal where they agree; None where nothing"""
    chain_tokens: np.ndarray
    """(Q, n) of a whole chain with its own answer"""
    answer_tokens: np.ndarray
    """(Q, n, H, m) drawn after the cut; 0 for the chain's own answer"""
    prefix_tokens: np.ndarray
    """(Q, n, H) of the thought up to the cut"""
    scores: np.ndarray
    """(Q, n, H, m): how good each is held to be"""
    prompts: list[Any] = field(default_factory=list)
    texts: np.ndarray | None = None
    """(Q, n, H, m) objects: the completions"""

    @classmethod
    def of(cls, correct: Any, answers: Any = None, scores: Any = None) -> Grid:
        """A grid from given verdicts (Q, n, H, m), to look at or to test; every chain and answer costs one token."""
        correct = np.asarray(correct, dtype=np.float64)
        if correct.ndim != 4 or not correct.size:
            raise DataError(f"A grid has four axes (questions, chains, cuts, answers), not the shape {correct.shape}.")
        said = np.where(correct > 0, "right", None) if answers is None else np.asarray(answers, dtype=object)
        costs = np.ones(correct.shape, dtype=np.int64)
        costs[:, :, -1, 0] = 0
        flat = np.zeros(correct.shape) if scores is None else np.asarray(scores, dtype=np.float64)
        chains = np.ones(correct.shape[:2], dtype=np.int64)
        prefixes = np.zeros(correct.shape[:3], dtype=np.int64)
        return cls(correct, said, chains, costs, prefixes, flat)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Q, n, H, m."""
        return self.correct.shape

    def tokens(self, chains: int = 1, cuts: Sequence[int] = (-1,), answers: int = 1) -> float:
        """What so many chains of a question cost, with `answers` answers at each of `cuts`: the mean over questions and
        chains. The chain's own answer is a part of the chain."""
        extra = self.answer_tokens[:, :, list(cuts), :answers].sum((2, 3))  # (Q, n)
        return float(chains * (self.chain_tokens + extra).mean())


# -- reading it -----------------------------------------------------------------------------------------------


def cuts_of(depth: int, k: int) -> list[int]:
    """`k` of `depth` cuts, evenly spaced, always with the last."""
    return np.linspace(depth - 1, depth // k - 1, k, dtype=int)[::-1].tolist()


def pass_at(grid: Grid, k: int, axis: str, cuts: int = 1, answers: int = 1) -> float:
    """pass@k along "n" (chains), "H" (cuts of a chain) or "m" (answers to a whole chain), the others averaged. Along n,
    a chain may have several answers, at `cuts` cuts `answers` each: it counts where one of them is right."""
    questions, n, depth, m = grid.shape
    _check_k(k, {"n": n, "H": depth, "m": m}, axis)
    if axis == "n":
        some = grid.correct[:, :, cuts_of(depth, cuts), :answers].max((2, 3)) > 0  # (Q, n)
        return float(np.mean([pass_at_k(n, int(c), k) for c in some.sum(1)]))
    if axis == "H":
        return float((grid.correct[:, :, cuts_of(depth, k), 0].max(2) > 0).mean())
    right = (grid.correct[:, :, -1] > 0).sum(2)  # (Q, n)
    return float(np.mean([pass_at_k(m, int(c), k) for c in right.ravel()]))


def votes(grid: Grid, k: int, axis: str) -> dict[str, float]:
    """Along an axis, of k samples: `majority` (share of questions that the most frequent answer solves), `best` (that
    the answer with the highest score solves), `weighted` (that the answer with the largest sum of scores does) and
    `entropy` of the votes in bits. majority and best are means over all sets of k; the other two are of the first k."""
    questions, n, depth, m = grid.shape
    _check_k(k, {"n": n, "H": depth, "m": m}, axis)
    sets: list[tuple[Any, Any, Any]] = []
    for q in range(questions):
        index: list[Any] = [(q, slice(None), -1, 0)] if axis == "n" else []
        index += [(q, c, cuts_of(depth, k), 0) for c in range(n)] if axis == "H" else []
        index += [(q, c, -1, slice(None)) for c in range(n)] if axis == "m" else []
        sets += [(grid.answers[i].tolist(), grid.correct[i], grid.scores[i]) for i in index]
    made = {
        "majority": [maj_at_k(answers, correct, k) for answers, correct, _ in sets],
        "best": [best_of(scores, correct, k) for _, correct, scores in sets],
        "weighted": [weighted(answers[:k], correct[:k], scores[:k]) for answers, correct, scores in sets],
        "entropy": [vote_entropy(answers[:k]) for answers, _, _ in sets],
    }
    return {name: float(np.mean(values)) for name, values in made.items()}


def best_of(scores: Sequence[float], correct: Sequence[float], k: int) -> float:
    """The chance that the sample with the highest score among k, drawn from these N, is right: the mean over all sets
    of k. Samples with one score share their turn evenly."""
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    n, value = len(scores), 0.0
    below = 0
    for level in np.unique(scores):
        tied = scores == level
        upto = below + int(tied.sum())
        # the best of k is of this level where all k are at most this good and not all are worse
        chance = (math.comb(upto, k) - math.comb(below, k)) / math.comb(n, k)
        value, below = value + chance * float(correct[tied].mean()), upto
    return value


def weighted(answers: Sequence[Hashable | None], correct: Sequence[float], scores: Sequence[float]) -> float:
    """Whether the answer with the largest sum of scores is right; of answers that tie, the first one seen."""
    sums: dict[Hashable, float] = {}
    rights: dict[Hashable, list[float]] = {}
    for answer, right, score in zip(answers, correct, scores, strict=True):
        if answer is not None:
            sums[answer] = sums.get(answer, 0.0) + float(score)
            rights.setdefault(answer, []).append(float(right))
    return float(np.mean(rights[max(sums, key=sums.__getitem__)])) if sums else 0.0


def vote_entropy(answers: Sequence[Hashable | None]) -> float:
    """-sum f log2 f over the shares f of the answers, in bits; samples without an answer do not vote."""
    counts: dict[Hashable, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    shares = np.array(list(counts.values())) / max(1, sum(counts.values()))
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def early_stop(grid: Grid, agree: int = 2) -> dict[str, float]:
    """Each chain is cut where `agree` cuts in a row gave one answer, else read to its end: `accuracy`, `tokens` (the
    thought up to there and the answers asked for) and, of the whole chains, `full_accuracy` and `full_tokens`."""
    questions, n, depth, _ = grid.shape
    right, tokens = [], []
    for q in range(questions):
        for c in range(n):
            said, stop = grid.answers[q, c, :, 0].tolist(), depth - 1
            for h in range(agree - 1, depth - 1):
                if said[h] is not None and len(set(said[h - agree + 1 : h + 1])) == 1:
                    stop = h
                    break
            whole = stop == depth - 1
            thought = grid.chain_tokens[q, c] if whole else grid.prefix_tokens[q, c, stop]
            tokens.append(thought + grid.answer_tokens[q, c, : stop + 1, 0].sum())
            right.append(grid.correct[q, c, stop, 0])
    full = float(grid.correct[:, :, -1, 0].mean())
    return {
        "accuracy": float(np.mean(right)), "tokens": float(np.mean(tokens)),
        "full_accuracy": full, "full_tokens": float(grid.chain_tokens.mean()),
    }  # fmt: skip


def _check_k(k: int, sizes: dict[str, int], axis: str) -> None:
    if axis not in sizes:
        raise SettingError(f"axis={axis!r}: give 'n' (chains), 'H' (cuts) or 'm' (answers).")
    if not 1 <= k <= sizes[axis]:
        raise SettingError(f"k={k}: this grid has {sizes[axis]} samples along {axis!r}.")


# -- making it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thinking:
    """How a chain of thought is told from its answer: it ends before `mark`; `force`, written after a thought that was
    cut, asks for the answer. None: the mark and an empty line."""

    mark: str = "</think>"
    force: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mark, str) or not self.mark:
            raise SettingError(f"mark={self.mark!r}: give the text that ends the thought, '</think>' or '####'.")

    @property
    def forced(self) -> str:
        return f"{self.mark}\n\n" if self.force is None else self.force

    def split(self, text: str) -> tuple[str, bool]:
        """The thought of a completion, and whether it has ended."""
        thought, found, _ = text.partition(self.mark)
        return thought, bool(found)


def answered(
    policy: Any,
    prompts: Sequence[PromptTokens],
    thoughts: Sequence[str],
    ends: Sequence[str],
    n: int,
    seeds: list[int],
    **drawing: Any,
) -> Any:
    """Rollouts: `n` answers after each prompt, thought and end (the text that asks for the answer)."""
    given = []
    for prompt, thought, end in zip(prompts, thoughts, ends, strict=True):
        more = policy.tokenizer(thought + end, add_special_tokens=False)["input_ids"]
        given.append(PromptTokens(prompt.text + thought + end, [*prompt.ids, *more]))
    return policy.sample_prompts(given, n, keys=seeds, check=worker.check, **drawing)


def cut(policy: Any, thought: str, share: float) -> tuple[str, int]:
    """The first `share` of a thought's tokens, rounded down, as text; and how many these are."""
    ids = policy.tokenizer(thought, add_special_tokens=False)["input_ids"]
    kept = ids[: math.floor(share * len(ids) + 1e-9)]
    return policy.tokenizer.decode(kept), len(kept)


@dataclass(frozen=True)
class Plan:
    """How a grid is drawn."""

    n: int = 16
    cuts: int = 16
    answers: int = 4
    max_new_tokens: int = 512
    max_answer_tokens: int = 64
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    thinking: Thinking = field(default_factory=Thinking)

    def check(self) -> None:
        """Raises SettingError."""
        for name in ("n", "cuts", "answers", "max_new_tokens", "max_answer_tokens"):
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0)

    def drawing(self, most: int) -> dict[str, Any]:
        return {"max_new_tokens": most, "temperature": self.temperature, "top_p": self.top_p}


def sample(one: Side, task: Task, plan: Plan, score: Callable | None = None, extract: Callable | None = None) -> Grid:
    """The grid of the task's rows; on the worker. `score`: a function with the signature of a reward that says how good
    a completion is; None: exp of the mean log-prob of the tokens drawn. `extract`: text -> what it answers, or None;
    None: that of the task's verdict."""
    with one.held() as policy:
        prompts = [policy.tokens_of(row["prompt"], i) for i, row in enumerate(task.rows)]
        seeds = [keys.key(plan.seed, "chain", q, c) for q in range(len(prompts)) for c in range(plan.n)]
        drawing = plan.drawing(plan.max_new_tokens)
        chains = policy.sample_prompts(prompts, plan.n, keys=seeds, check=worker.check, **drawing)
        cells = _Cells(len(prompts), plan)
        cells.chains(chains)
        _fill(policy, prompts, chains, cells, plan)
    return cells.judged(task, score, extract)


def _fill(policy: Any, prompts: list[Any], chains: Any, cells: _Cells, plan: Plan) -> None:
    """Answers after every cut, and more answers to whole chains."""
    asked: dict[bool, list[tuple[int, int, int, str, str, str]]] = {False: [], True: []}
    thinking = plan.thinking
    for i, text in enumerate(chains.text):
        q, c = divmod(i, plan.n)
        thought, ended = thinking.split(text)
        for h in range(plan.cuts - 1):
            part, cells.prefix_tokens[q, c, h] = cut(policy, thought, (h + 1) / plan.cuts)
            asked[False].append((q, c, h, part, thinking.forced, part + thinking.forced))
        cells.prefix_tokens[q, c, -1] = cut(policy, thought, 1.0)[1]
        end = thinking.mark if ended else thinking.forced
        asked[True].append((q, c, plan.cuts - 1, thought, end, thought + end))
    for whole, places in asked.items():
        more, first = (plan.answers - 1, 1) if whole else (plan.answers, 0)
        if not places or not more:
            continue
        numbers = range(first, plan.answers)
        seeds = [keys.key(plan.seed, "answer", q, c, h, a) for q, c, h, *_ in places for a in numbers]
        thoughts, ends, drawing = [p[3] for p in places], [p[4] for p in places], plan.drawing(plan.max_answer_tokens)
        made = answered(policy, [prompts[p[0]] for p in places], thoughts, ends, more, seeds, **drawing)
        for j, text in enumerate(made.text):
            q, c, h, _, _, before = places[j // more]
            cells.put((q, c, h, first + j % more), before + text, made, j)


class _Cells:
    """A grid being filled."""

    def __init__(self, questions: int, plan: Plan):
        shape = (questions, plan.n, plan.cuts, plan.answers)
        self.texts = np.full(shape, "", dtype=object)
        self.logprob = np.zeros(shape)
        self.answer_tokens = np.zeros(shape, dtype=np.int64)
        self.chain_tokens = np.zeros(shape[:2], dtype=np.int64)
        self.prefix_tokens = np.zeros(shape[:3], dtype=np.int64)

    def chains(self, rollouts: Any) -> None:
        for i, text in enumerate(rollouts.text):
            q, c = divmod(i, self.texts.shape[1])
            self.put((q, c, self.texts.shape[2] - 1, 0), text, rollouts, i)
            self.chain_tokens[q, c], self.answer_tokens[q, c, -1, 0] = len(rollouts.ids[i]), 0

    def put(self, at: tuple[int, ...], text: str, rollouts: Any, i: int) -> None:
        self.texts[at], self.answer_tokens[at] = text, len(rollouts.ids[i])
        self.logprob[at] = float(np.mean(rollouts.logprob[i])) if len(rollouts.logprob[i]) else -np.inf

    def judged(self, task: Task, score: Callable | None, extract: Callable | None) -> Grid:
        texts, rows = self.texts.ravel().tolist(), [task.rows[q] for q in range(len(self.texts))]
        each = [row for row in rows for _ in range(self.texts[0].size)]
        prompts, judge = [row["prompt"] for row in each], task.functions[task.verdict]
        columns = {name: [row.get(name) for row in each] for name in task.rows.columns if name != "prompt"}
        ask = partial(_scored, prompts=prompts, texts=texts, columns=columns)
        correct = np.nan_to_num(evaluation.right(ask(judge)))
        extract = extract or getattr(unwrapped(judge), "extract", None)
        said = np.empty(len(texts), dtype=object)
        for i, text in enumerate(texts):
            said[i] = None if extract is None else extract(text)
        scores = np.exp(self.logprob).ravel() if score is None else np.nan_to_num(ask(score), nan=-np.inf)
        shape = self.texts.shape
        return Grid(
            correct.reshape(shape), said.reshape(shape), self.chain_tokens, self.answer_tokens, self.prefix_tokens,
            scores.reshape(shape), [row["prompt"] for row in rows], self.texts,
        )  # fmt: skip


def _scored(function: Callable, prompts: list[Any], texts: list[str], columns: dict[str, list]) -> np.ndarray:
    """What a reward function says of each completion, NaN where nothing."""
    from workbench import rewards

    table = rewards.score([function], [1.0], prompts, texts, None, columns, reward_names=["score"])
    return table.parts["score"]
