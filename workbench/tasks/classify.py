"""Classification of texts by rewards, with thinking and without: two tasks of the same rows, to compare.

A row: `prompt`, `answer` (the label), `text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench import keys
from workbench.data import make, rows
from workbench.errors import DataError, SettingError
from workbench.rewards.labels import tagged_form, tagged_label, whole_label
from workbench.tasks.task import Task

QUESTION = "{text}\nWhich class is this? One of: {classes}.\n"
THINK = "Please output the thinking process in <think> </think> and the final answer in <answer> </answer> tags."
DIRECT = "Please directly output the answer."


def classify(
    texts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    *,
    path: str | Path | None = None,
    thinking: bool = True,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    size: int | None = None,
    seed: int = 0,
    question: str = QUESTION,
    chat: bool = False,
) -> Task:
    """A task that asks for the class of each text, to be learnt from rewards with or without thinking.

    thinking   the completion is <think>...</think><answer>label</answer>; rewards: `tagged_label` (case aside, the
               verdict) and `tagged_form`, 1 each
    otherwise  the completion is the label; reward: `whole_label`, 1 where it is that to the letter

    No-Thinking is often as good and much faster, as there is nothing to write but the answer: train both with wb.grpo
    and hold accuracy, seconds a step and lengths side by side with wb.compare.

    `texts`, `labels`: one label a text; or `path`, a file with columns `text` and `label`. `classes`: what the prompt
    lists, all labels by default, sorted; rows of other classes are left out, so that a second task of other classes
    tells what carries over to them. `per_class`: so many examples of each class, drawn by `seed` (the paper: 4).
    `question`: the prompt before the instruction, with {text} and {classes}. `chat`: prompts as conversations.

    Li et al. 2025, "CLS-RL", arXiv 2503.16188: plain GRPO with 4 completions; its images are texts here, and its check
    by a symbolic verifier before comparing labels is left out. DataError for texts and labels that do not go together.
    """
    if "{text}" not in question:
        raise SettingError(f"question must be text with {{text}} in it, not {question!r}.")
    pairs = _pairs(texts, labels, path)
    known = sorted({label for _, label in pairs}) if classes is None else [str(one) for one in classes]
    kept = [pair for pair in pairs if pair[1] in known]
    if missing := [one for one in known if one not in {label for _, label in kept}]:
        raise DataError(f"classify: no text has the class {missing[0]!r}.")
    kept = _few(kept, known, per_class, seed)[:size]
    listed = ", ".join(known)
    made = []
    for text, label in kept:
        asked = question.replace("{classes}", listed).replace("{text}", text) + (THINK if thinking else DIRECT)
        prompt = [{"role": "user", "content": asked}] if chat else asked + "\n"
        made.append({"prompt": prompt, "answer": label, "text": text})
    args = {"thinking": thinking, "classes": known, "per_class": per_class, "seed": seed, "chat": chat}
    functions = [tagged_label, tagged_form] if thinking else [whole_label]
    name = "classify with thinking" if thinking else "classify without thinking"
    return Task(make(made, name), functions, name=name, kind="classify", args=args)


def _pairs(texts: Any, labels: Any, path: Any) -> list[tuple[str, str]]:
    if path is not None:
        if texts is not None or labels is not None:
            raise SettingError("classify takes texts and labels, or a path, not both.")
        found = rows(path)
        found.require("text", "label", what="classify")
        texts, labels = [row["text"] for row in found], [row["label"] for row in found]
    if texts is None or labels is None:
        raise SettingError("classify needs texts and labels: classify(texts=[...], labels=[...]), or a path.")
    if isinstance(texts, str) or isinstance(labels, str) or len(texts) != len(labels) or not len(texts):
        raise DataError(f"classify: {len(texts)} texts and {len(labels)} labels; give lists with one label a text.")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise DataError(f"classify: text {i} must be text, not {text!r:.60}.")
        if labels[i] is None or str(labels[i]) == "":
            raise DataError(f"classify: text {i} has no label.")
    return [(text, str(label)) for text, label in zip(texts, labels, strict=True)]


def _few(pairs: list[tuple[str, str]], classes: list[str], count: int | None, seed: int) -> list[tuple[str, str]]:
    """`count` examples of each class, in the order given; all where it is None."""
    if count is None:
        return pairs
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SettingError(f"classify: per_class={count!r} must be a whole number from 1.")
    kept: set[int] = set()
    for one in classes:
        at = [i for i, (_, label) in enumerate(pairs) if label == one]
        if len(at) < count:
            raise DataError(f"classify: {len(at)} texts have the class {one!r}, and per_class={count} asks for more.")
        kept |= {at[i] for i in keys.permutation(keys.key(seed, "classify", one), len(at))[:count]}
    return [pair for i, pair in enumerate(pairs) if i in kept]
