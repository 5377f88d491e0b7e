"""Study prompts before text (contextual fine-tuning), and the controls that tell what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench import keys
from workbench.errors import DataError, SettingError
from workbench.transforms import parts

STUDY = {
    "application": "While you read, think of how this knowledge is put to use in practice.",
    "exploration": "Read in depth: ask of every statement why it holds and what follows from it.",
    "reflection": "Read slowly and reflect on how this changes what you knew before.",
    "creativity": "Picture what you read: find an image or an analogy for each idea.",
    "synthesis": "As you read, gather the main points into a summary that holds together.",
    "key concepts": "Find the few concepts that everything else in this text rests on.",
    "context": "Ask where this text belongs: what it answers, and what it builds upon.",
    "critical analysis": "Read as a critic: weigh the evidence for each claim and look for its limits.",
    "questions": "Turn what you read into questions, and answer them from the text.",
    "comparison": "Compare what you read with what is like it: what is the same, what differs?",
}
"""a study prompt for each of the ten ways of learning that the paper names"""
CONTRARY = (
    "While you read, do not think of any use that this could be put to.",
    "Skim: take no statement seriously and do not ask what follows from it.",
    "Read fast and keep what you knew before, whatever the text may say.",
    "Picture nothing: treat the words as a row of signs without a meaning.",
    "As you read, forget each point before you come to the next one.",
    "Look only at the small words; the concepts in this text do not matter.",
    "Ignore where this text belongs, and whatever it may be an answer to.",
    "Believe and doubt nothing: pay no attention to claims or to evidence.",
    "Ask no questions of what you read, and look for no answers in it.",
    "Do not compare what you read with anything that you have seen before.",
)
PREFIXES = ("study", "contrary", "meaningless", "none")


def contextual(
    rows: Any,
    prefix: str = "study",
    prompts: Sequence[str] | None = None,
    separator: str = "\n\n",
    end: str = "",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows with `text`, each after a short prompt that says how to study it; the text trains, the prompt does not.

    `prefix`: "study" draws one of ten study prompts for each row (`prompts` are others to draw from), "contrary" one
    that asks for the opposite, "meaningless" a study prompt with its words in random order, of equal length; "none"
    returns the rows as they were. A row's own column `context` comes before all of these: a prompt that was written for
    just this text; where it is empty the row has none. After the text comes `end`, the tokenizer's end token. Raises
    DataError for rows without a text, SettingError for another prefix.
    """
    if prefix not in PREFIXES:
        raise SettingError(f"prefix={prefix!r}: give one of {', '.join(map(repr, PREFIXES))}.")
    if not (prompts is None or _texts(prompts)):
        raise SettingError(f"prompts={prompts!r}: give a list of texts, or None for the ten study prompts.")
    found = parts.read(rows)
    if prefix == "none":
        return found
    made = []
    for index, row in enumerate(found):
        text = parts.plain(row, "text", index, "a text after a study prompt")
        context = row.get("context")
        if context is None:
            context = drawn(index, prefix, prompts, seed)
        elif not isinstance(context, str):
            raise DataError(
                f"row {index} (counting from 0): the column 'context' holds {parts.shown(context)}, not text."
            )
        before = {"text": context + separator if context else "", "train": False}
        made.append(parts.segmented(row, [before, {"text": text if text.endswith(end) else text + end, "train": True}]))
    return made


def _texts(prompts: Any) -> bool:
    return bool(prompts) and not isinstance(prompts, str) and all(isinstance(prompt, str) for prompt in prompts)


def drawn(index: int, prefix: str, prompts: Sequence[str] | None = None, seed: int = 0) -> str:
    """The prompt of row `index`."""
    pool = CONTRARY if prefix == "contrary" and prompts is None else tuple(prompts or STUDY.values())
    chance = keys.uniforms(keys.key(seed, "contextual", index), 1)[0]
    prompt = pool[int(chance * len(pool))]
    if prefix != "meaningless":
        return prompt
    words = prompt.split()
    return " ".join(words[i] for i in keys.permutation(keys.key(seed, "meaningless", index), len(words)))
