"""Any reasoning-gym data set as a task (Stojanovski et al. 2025, arXiv 2505.24760), scored by its own
verifier.

A row: `prompt`, `answer` (the data set's reference answer as text; None where any valid one counts) and
`entry`, the index of the entry in the data set. The verifier needs the whole entry, and entries do not
survive JSON (tuples, keys that are numbers), so the reward makes the entry again from the data set's
settings: they are deterministic.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.data import make
from workbench.errors import DataError, RewardError, SettingError, did_you_mean
from workbench.rewards.text import completion_text
from workbench.tasks.task import Task, make_prompts

TEST_SEED = 2**30
"""added to the seed of the test split: entry i of a data set is drawn from seed + i"""


UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""what verifiers raise over an answer they cannot read; anything else (no file, no memory) is an error"""


@dataclass(frozen=True)
class verified:
    """The reward of a reasoning-gym data set: `dataset.score_answer(answer, entry)`, as it comes, 0 to 1.

    The answer is what stands in the completion's last `<answer>...</answer>`
    (reasoning_gym.utils.extract_answer), or, without such tags, the whole completion, white space around it
    removed. Many verifiers give part of the reward where the right answer stands among other text. A few
    raise on an answer they cannot read ("abc" where numbers should stand): that is 0.0, and the share of such
    answers is the metric `rewards/<data set>/unreadable`. None for a row whose `entry` is None (of another
    task). `settings` is JSON, so that the reward can be rebuilt in a new process.
    """

    dataset: str
    settings: str

    def __call__(
        self,
        completions: list,
        entry: list[int | None],
        answer: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        from reasoning_gym.utils import extract_answer

        score_answer = _dataset(self.dataset, self.settings).score_answer
        rewards: list[float | None] = []
        unreadable = 0
        for i, (completion, index) in enumerate(zip(completions, entry, strict=True)):
            if index is None:
                rewards.append(None)
                continue
            wanted = self._entry(int(index), None if answer is None else answer[i])
            text = completion_text(completion)
            found = extract_answer(text)
            try:
                rewards.append(float(score_answer(text.strip() if found is None else found, wanted)))
            except UNREADABLE:
                rewards.append(0.0)
                unreadable += 1
        if log_metric is not None and rewards:
            log_metric(f"rewards/{self.dataset}/unreadable", unreadable / len(rewards))
        return rewards

    def _entry(self, index: int, answer: Any) -> dict[str, Any]:
        """The entry of a row; RewardError where it is not the one that the row was made from."""
        wanted = _entry(self.dataset, self.settings, index)
        if answer is not None and str(wanted["answer"]) != str(answer):
            raise RewardError(
                f"{self.dataset}: entry {index} has the answer {wanted['answer']!r}, the row {answer!r}. "
                "The rows come from another version of reasoning-gym, or were edited. Make the task anew."
            )
        return wanted


def gym(
    name: str,
    size: int = 500,
    seed: int = 0,
    split: str = "train",
    template: str = "{question}",
    chat: bool = False,
    system: str | None = None,
    **settings: Any,
) -> Task:
    """`size` entries of the reasoning-gym data set `name` (see `gym_names`), as a task named after it.

    The train split is `reasoning_gym.create_dataset(name, size=size, seed=seed, **settings)`; the test split
    the same at seed + 2**30. Entries of a data set with few different questions can come again, in the other
    split too. `template`, `chat`, `system`: as in gsm8k; `system` may name one of reasoning-gym's
    SYSTEM_PROMPTS ("default", "simple", ...), which ask for the answer tags. Raises SettingError for an
    unknown name or setting, and for what the data set refuses.
    """
    _check(name, settings)
    from reasoning_gym.utils import SYSTEM_PROMPTS

    made = make_prompts(template, chat, SYSTEM_PROMPTS.get(system, system) if system else system)
    text = _as_json(name, {**settings, "size": size, "seed": seed + (TEST_SEED if split == "test" else 0)})
    rows = []
    for i in range(size):
        entry = _entry(name, text, i)
        reference = None if entry["answer"] is None else str(entry["answer"])
        rows.append({"prompt": made(entry["question"]), "answer": reference, "entry": i})
    args = dict(name=name, size=size, seed=seed, split=split, template=template, chat=chat, system=system)
    source = f"reasoning-gym's {name} ({split})"
    # the function goes by the data set's name in metrics
    reward = {name: verified(name, text)}
    return Task(make(rows, source), reward, name=name, kind="gym", args={**settings, **args})


def gym_names() -> list[str]:
    """The names of reasoning-gym's data sets, sorted."""
    return sorted(_factory().DATASETS)


def _check(name: str, settings: dict[str, Any]) -> None:
    """SettingError unless there is such a data set and it has these settings."""
    factory = _factory()
    if name not in factory.DATASETS:
        raise SettingError(
            f"There is no task {name!r}.{did_you_mean(name, ['sums', 'gsm8k', *factory.DATASETS])} "
            f"Tasks: sums, gsm8k, and {len(factory.DATASETS)} reasoning-gym data sets "
            "(workbench.tasks.gym.gym_names())."
        )
    fields = [field.name for field in dataclasses.fields(factory.DATASETS[name][1])]
    options = [*(field for field in fields if field not in ("seed", "size")), "template", "chat", "system"]
    for setting in settings:
        if setting not in options:
            near = did_you_mean(setting, options)
            raise SettingError(f"{name} has no setting {setting!r}.{near} It takes: {', '.join(options)}.")


def _factory() -> Any:
    try:
        import reasoning_gym  # noqa: F401  registers the data sets
        from reasoning_gym import factory
    except ImportError as error:
        raise SettingError(
            f"Tasks but 'sums' and 'gsm8k' come from reasoning-gym: pip install reasoning-gym ({error})."
        ) from error
    return factory


def _as_json(name: str, settings: dict[str, Any]) -> str:
    try:
        text = json.dumps(settings, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"{name}: settings must be plain numbers, texts, lists and dicts ({error})."
        ) from error
    return text


@functools.lru_cache(maxsize=64)
def _dataset(name: str, settings: str) -> Any:
    try:
        return _factory().create_dataset(name, **json.loads(settings))
    except (AssertionError, AttributeError, ValueError, TypeError) as error:
        raise SettingError(f"{name} refuses these settings ({settings}): {error}") from error


@functools.lru_cache(maxsize=20_000)
def _entry(name: str, settings: str, index: int) -> dict[str, Any]:
    data = _dataset(name, settings)
    try:
        return data[index]
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{name}: entry {index} cannot be made with the settings {settings}: {error}"
        ) from error
