"""Task: rows with a prompt, and the functions that score what a model makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench import rewards as reward_functions
from workbench.data import rows as as_rows
from workbench.errors import RunError, SettingError, did_you_mean
from workbench.rewards.reference import refer, resolve
from workbench.rewards.signature import check_columns, check_functions, names, weight_list


class Task:
    """Rows plus reward functions.

    `rows`: Rows, or anything `wb.rows` reads, with a `prompt` column. `rewards`: functions with TRL's
    signature, fn(prompts, completions, **columns) -> list[float | None], or a dict of them by name.
    `weights`: one factor per function in the sum, or factors by name; 1 where none is given. `verdict`: the
    name of the function that says right or wrong, the first by default; a sample counts as right where that
    function gives 1.0 or more, whatever its weight. If it has a function `extract(text)` that tells what a
    completion answers, evaluations let the samples of a prompt vote.

    `kind` and `args` say how a ready-made task was made ("rows" for one of your own). Raises SettingError for
    functions or weights that do not go together, DataError for rows without a prompt column or without a
    column that a function cannot do without. Nothing of a task changes after it is made; `with_rewards` makes
    another.
    """

    def __init__(
        self,
        rows: Any,
        rewards: Sequence[Callable] | Mapping[str, Callable],
        weights: Sequence[float] | Mapping[str, float] | None = None,
        name: str | None = None,
        *,
        verdict: str | None = None,
        kind: str = "rows",
        args: Mapping[str, Any] | None = None,
    ):
        functions = list(rewards.values()) if isinstance(rewards, Mapping) else rewards
        check_functions(functions)
        self.reward_names: list[str] = list(rewards) if isinstance(rewards, Mapping) else names(functions)
        weights = weight_list(weights, self.reward_names)
        check_functions(functions, weights)
        self.rows = as_rows(rows)
        self.rewards: list[Callable] = list(functions)
        self.weights: list[float] = [1.0] * len(functions) if weights is None else [float(w) for w in weights]
        self.name = name or (kind if kind != "rows" else "task")
        self.kind = kind
        self.args = dict(args or {})
        self.verdict = self.reward_names[0] if verdict is None else verdict
        if self.verdict not in self.reward_names:
            raise SettingError(
                f"verdict={verdict!r} names no reward "
                f"function.{did_you_mean(str(verdict), self.reward_names)} "
                f"There are: {', '.join(self.reward_names)}."
            )
        self.rows.require("prompt", what="A task")
        check_columns(self.rewards, self.reward_names, self.rows.columns)

    @property
    def functions(self) -> dict[str, Callable]:
        """The reward functions by name."""
        return dict(zip(self.reward_names, self.rewards, strict=True))

    @property
    def weight_of(self) -> dict[str, float]:
        """The weights of the reward functions by name."""
        return dict(zip(self.reward_names, self.weights, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}: {len(self.rows)} rows, rewards {', '.join(self.reward_names)}>"

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Sequence],
        trainer_state: Any = None,
    ) -> reward_functions.RewardTable:
        """`rewards.score` with this task's functions, names and weights."""
        return reward_functions.score(
            self.rewards,
            self.weights,
            prompts,
            completions,
            completion_ids,
            columns,
            reward_names=self.reward_names,
            trainer_state=trainer_state,
        )

    def with_rewards(
        self,
        rewards: Sequence[Callable] | Mapping[str, Callable],
        weights: Sequence[float] | Mapping[str, float] | None = None,
        verdict: str | None = None,
    ) -> Task:
        """The same rows under other functions. The verdict stays where its name does, else is the first."""
        made = Task(self.rows, rewards, weights, self.name, verdict=verdict, kind=self.kind, args=self.args)
        if verdict is None and self.verdict in made.reward_names:
            made.verdict = self.verdict
        return made

    def spec(self) -> dict[str, Any]:
        """What `rebuild` needs besides the rows, for JSON: kind, args, name, verdict, and per function its
        name, weight and where to import it from (`reference`, None where it cannot be imported: see
        `rewards.reference`)."""
        return {
            "kind": self.kind,
            "args": self.args,
            "name": self.name,
            "verdict": self.verdict,
            "rewards": [
                {"name": name, "weight": self.weight_of[name], "reference": refer(fn)}
                for name, fn in self.functions.items()
            ],
        }


def rebuild(
    spec: Mapping[str, Any], rows: Any, rewards: Sequence[Callable] | Mapping[str, Callable] | None = None
) -> Task:
    """The task that gave `spec`, over `rows`, in a process that may be a new one.

    `rewards`: functions to use instead of importing them, told apart by their names; needed for those that
    cannot be imported. Raises RunError naming the functions that are missing and how to pass them, or the
    ones given that the task does not know.
    """
    known = [entry["name"] for entry in spec["rewards"]]
    given = _given(rewards, known)
    functions: dict[str, Callable] = {}
    missing: list[str] = []
    for entry in spec["rewards"]:
        name = entry["name"]
        if name in given:
            functions[name] = given[name]
        elif entry["reference"] is None:
            missing.append(f"{name!r} (defined in a notebook, a script or another function)")
        else:
            try:
                functions[name] = resolve(entry["reference"])
            except Exception as error:  # importing runs a module of the user's
                where = entry["reference"].get("path", "its module")
                missing.append(f"{name!r} (importing {where}: {type(error).__name__}: {error})")
    if missing:
        names_only = ", ".join(entry["name"] for entry in spec["rewards"] if entry["name"] not in functions)
        raise RunError(
            f"Cannot rebuild these reward functions: {'; '.join(missing)}. "
            f"Define or import them and pass them: rewards=[{names_only}]; "
            f"or by name: rewards={{{names_only.split(', ')[0]!r}: fn}}."
        )
    weights = [entry["weight"] for entry in spec["rewards"]]
    return Task(
        rows, functions, weights, spec["name"], verdict=spec["verdict"], kind=spec["kind"], args=spec["args"]
    )


def make_prompts(template: str, chat: bool, system: str | None) -> Callable[[str], str | list[dict]]:
    """question -> prompt: text, or messages where `chat`. SettingError where they do not go together."""
    if not isinstance(template, str) or "{question}" not in template:
        raise SettingError(f"template must be text with {{question}} in it, not {template!r}.")
    if system is not None and not chat:
        raise SettingError(
            "system needs chat=True: a plain prompt has no system message. Or write it into template."
        )
    before = [{"role": "system", "content": system}] if system is not None else []

    def prompt(question: str) -> str | list[dict]:
        text = template.replace("{question}", question)
        return [*before, {"role": "user", "content": text}] if chat else text

    return prompt


def _given(rewards: Any, known: list[str]) -> dict[str, Callable]:
    if rewards is None:
        return {}
    if not isinstance(rewards, Mapping):
        check_functions(rewards)
        rewards = dict(zip(names(rewards), rewards, strict=True))
    for name in rewards:
        if name not in known:
            raise RunError(
                f"The task has no reward function {name!r}.{did_you_mean(name, known)} "
                f"It has: {', '.join(known)}. Under another name: rewards={{{known[0]!r}: {name}}}."
            )
    return dict(rewards)
