"""GSM8K: 7,473 + 1,319 grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168).

A row: `prompt`, `answer` (the number after `####`, as text) and `worked` (the whole worked answer).
"""

from __future__ import annotations

from pathlib import Path

from workbench.data import Rows, make, rows
from workbench.errors import DataError, SettingError
from workbench.rewards.text import last_number, number
from workbench.tasks.task import Task, make_prompts
from workbench.text import shorten

HUB_ID, HUB_CONFIG = "openai/gsm8k", "main"


def gsm8k(
    path: str | Path | None = None,
    split: str = "train",
    size: int | None = None,
    template: str = "{question}",
    chat: bool = False,
    system: str | None = None,
) -> Task:
    """The task: reward 1.0 where the number that a completion ends on equals the answer's (`rewards.number`).

    That is the first number after the completion's last `####`, or, without that mark, the number in its last
    `\\boxed{}`, or, without that too, its last number of all ("The answer is 18."), compared as decimals: `$`,
    thousands commas, a trailing full stop, a unit do not matter. So a model that has not learnt the mark is scored
    too, by the number it ends on; one that goes on talking after its answer loses. An evaluation gives accuracy,
    pass@k, and maj@k over these numbers.

    `path`: a folder with train.jsonl and test.jsonl, or one such file (columns `question` and `answer`);
    None: the Hub's openai/gsm8k. `size`: the first so many rows. `template`: the prompt, with {question} in
    it. `chat`: prompts as a conversation, which gets the model's chat template, with `system` before it if
    given. Raises DataError naming file and line for rows without a question or a final `#### number`.
    """
    prompt = make_prompts(template, chat, system)
    found = _read(path, split, size)

    made = []
    for i, row in enumerate(found):
        answer = reference_answer(str(row.get("answer")))
        if answer is None:
            end = shorten(str(row.get("answer"))[-60:])
            raise DataError(f"{found.where(i)}: the answer does not end in '#### <number>': {end}.")
        made.append({"prompt": prompt(row["prompt"]), "answer": answer, "worked": row["answer"]})
    args = {
        "path": None if path is None else str(path),
        "split": split,
        "size": size,
        "template": template,
        "chat": chat,
        "system": system,
    }
    return Task(make(made, found.source), [number], name="gsm8k", kind="gsm8k", args=args)


def reference_answer(solution: str) -> str | None:
    """What follows the last `####` of a worked answer, without commas; None without the mark or a number after it."""
    _, mark, after = solution.rpartition("####")
    return after.strip().replace(",", "") if mark and last_number(after) is not None else None


def _read(path: str | Path | None, split: str, size: int | None) -> Rows:
    """The file's or the Hub's rows, `question` as prompt. DataError where they cannot be read."""
    file: str | Path = HUB_ID
    if path is not None:
        file = Path(path).expanduser()
        file = file / f"{split}.jsonl" if file.is_dir() else file
        if not file.is_file():
            raise DataError(
                f"gsm8k: there is no file {file}. "
                "Give path= a folder with train.jsonl and test.jsonl, or one such file."
            )
    try:
        found = rows(file, split=split, limit=size, name=HUB_CONFIG, rename={"question": "prompt"})
    except DataError as error:
        if path is not None:
            raise
        raise DataError(
            f"{error} Without a network, give path= a folder with GSM8K's train.jsonl and test.jsonl."
        ) from error
    found.require("answer", what="gsm8k")
    if size is not None and size > len(found):
        raise SettingError(f"size={size}: {found.source} has {len(found)} rows.")
    return found
