"""Tree search over the steps of an answer: sample k next steps, judge them, go on from the best.

Tree of thoughts (Yao et al. 2023, arXiv 2305.10601), breadth first, as Chain of Preference Optimization (Zhang et al.
2024, arXiv 2406.09136) uses it. A step is a piece of text up to and with the delimiter. The judge scores question and
steps so far; without one the policy itself is asked whether they are right, and its probabilities of Yes and No are
read (the papers let it write verdicts, several times, and count them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench import keys, tokenise, worker
from workbench.encoding import doubled_start
from workbench.errors import SettingError
from workbench.judges.base import Judge
from workbench.judges.local import model
from workbench.judges.prompts import GRADE_STEPS, JudgePrompt
from workbench.tasks import Task
from workbench.transforms.pairs import Node, Tree


@dataclass(frozen=True)
class _Search:
    policy: Any
    judge: Judge
    candidates: int
    keep: int
    delimiter: str
    sampling: dict[str, Any]
    seed: int


@worker.on_worker
def trees(
    policy: Any,
    task: Task,
    judge: Judge | None = None,
    *,
    candidates: int = 10,
    keep: int = 3,
    steps: int = 3,
    delimiter: str = "\n",
    step_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    limit: int | None = None,
    seed: int = 0,
) -> list[Tree]:
    """A tree for each row of the task (for the first `limit`), by the policy as it is now; nothing is trained.

    At each of `steps` depths the policy writes `candidates` next steps of at most `step_tokens` tokens after each step
    that was kept; equal ones count once. The `keep` best of a tree by the judge (None: the policy itself) are gone on
    from, those without a verdict are not. Answers that end, and those of the last depth, are checked by the task's
    verdict. `sibling_steps` of `workbench.transforms.pairs` makes pairs of the trees. The draws follow from `seed`, the
    row and the step. Raises SettingError for settings out of range, DataError for a prompt that does not fit.
    """
    for name, value in {"candidates": candidates, "keep": keep, "steps": steps, "step_tokens": step_tokens}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingError(f"trees: {name}={value!r} must be a whole number of at least 1.")
    if not isinstance(delimiter, str) or not delimiter:
        raise SettingError("trees: delimiter must be a text that ends a step, such as '\\n'.")
    sampling = {"max_new_tokens": step_tokens, "temperature": temperature, "top_p": top_p}
    asked = judge or model(policy, prompt=JudgePrompt(grade=GRADE_STEPS), name="the policy as its own judge")
    search = _Search(policy, asked, candidates, keep, delimiter, sampling, seed)
    rows = list(range(len(task.rows) if limit is None else min(limit, len(task.rows))))
    tokens = [tokenise.prompt(task.rows[row]["prompt"], policy.tokenizer) for row in rows]
    texts = [_text(t, policy.tokenizer) for t in tokens]
    made = [Tree(task.rows[row]["prompt"], text, row) for row, text in zip(rows, texts, strict=True)]
    ids: list[dict[int, list[int]]] = [{-1: list(t.ids)} for t in tokens]  # of each node, prompt and steps
    frontier = [(number, -1) for number in range(len(made))]
    for depth in range(steps):
        if not frontier:
            break
        new = _grow(search, made, ids, frontier, depth)
        frontier = _kept(search, task, made, new) if depth + 1 < steps else []
    _verify(task, made, steps)
    return made


def _text(tokens: tokenise.PromptTokens, tokenizer: Any) -> str:
    """The prompt as text that the tokenizer reads as these ids: without a start token that it adds by itself."""
    start = tokenizer.bos_token
    if start and tokens.text.startswith(start) and doubled_start(tokenizer(tokens.text)["input_ids"], tokenizer):
        return tokens.text[len(start) :]
    return tokens.text


def _grow(
    search: _Search, made: list[Tree], ids: list[dict[int, list[int]]], frontier: Sequence[tuple[int, int]], depth: int
) -> list[tuple[int, int]]:
    """Adds the next steps after each node of the frontier; returns (tree, node) of each."""
    prompts = [tokenise.PromptTokens(made[t].text + made[t].answer(node), ids[t][node]) for t, node in frontier]
    draws = [
        keys.key(search.seed, "tree", made[t].row, depth, node, number)
        for t, node in frontier
        for number in range(search.candidates)
    ]
    drawn = search.policy.sample_prompts(
        prompts,
        search.candidates,
        keys=draws,
        stop_strings=(search.delimiter,),
        check=worker.check,
        **search.sampling,
    )
    new, known = [], set()
    for i, group in enumerate(drawn.group):
        t, parent = frontier[group]
        ends = bool(drawn.ids[i]) and drawn.ids[i][-1] in search.policy.stop_ids
        text = drawn.text[i]
        if (t, parent, text, ends) in known or not (ends or text.strip()):
            continue
        known.add((t, parent, text, ends))
        tree = made[t]
        tree.nodes.append(Node(parent, depth, text, ends=ends, cut=drawn.finish_reason[i] == "length"))
        place = len(tree.nodes) - 1
        ids[t][place] = ids[t][parent] + list(drawn.ids[i])
        new.append((t, place))
    return new


def _kept(search: _Search, task: Task, made: list[Tree], new: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Judges the new steps that can be gone on from; returns those that are."""
    open_ = [(t, place) for t, place in new if not (made[t].nodes[place].ends or made[t].nodes[place].cut)]
    rows = [task.rows[made[t].row] for t, _ in open_]
    columns = {name: [row.get(name) for row in rows] for name in task.rows.columns if name != "prompt"}
    answers = [made[t].answer(place) for t, place in open_]
    values = search.judge.score([row["prompt"] for row in rows], answers, **columns) if open_ else []
    judged: dict[int, list[tuple[float, int]]] = {}
    for (t, place), value in zip(open_, values, strict=True):
        made[t].nodes[place] = replace(made[t].nodes[place], value=value)
        if value is not None:
            judged.setdefault(t, []).append((value, place))
    best = [
        (t, place)
        for t, found in judged.items()
        for _, place in sorted(found, key=lambda one: (-one[0], one[1]))[: search.keep]
    ]
    for t, place in best:
        made[t].nodes[place] = replace(made[t].nodes[place], kept=True)
    return best


def _verify(task: Task, made: list[Tree], steps: int) -> None:
    """What the task's verdict says of every answer that ends, and of those that the search could not go on from."""
    leaves = []
    for tree in made:
        parents = {node.parent for node in tree.nodes}
        for place, node in enumerate(tree.nodes):
            last = place not in parents and (node.kept or node.depth == steps - 1)
            if not node.cut and (node.ends or last):
                leaves.append((tree, place))
    if not leaves:
        worker.warn("trees: no answer came to an end; give more steps or step_tokens, or another delimiter.")
        return
    rows = [task.rows[tree.row] for tree, _ in leaves]
    columns = {name: [row.get(name) for row in rows] for name in task.rows.columns if name != "prompt"}
    answers = [tree.answer(place) for tree, place in leaves]
    table = task.score([row["prompt"] for row in rows], answers, None, columns)
    for (tree, place), value in zip(leaves, table.parts[task.verdict], strict=True):
        right = None if math.isnan(value) else float(value)
        tree.nodes[place] = replace(tree.nodes[place], right=right)
