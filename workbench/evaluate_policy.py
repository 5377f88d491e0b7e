"""`wb.evaluate`: how good a policy is at a task, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workbench import methods, worker
from workbench.errors import SettingError
from workbench.methods.context import Context
from workbench.methods.evaluate import sample_all, task_metrics
from workbench.policy import Policy
from workbench.sampling.decoder import check_stop_strings, check_whole
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `evaluation["pass@4"]` is one of its metrics."""

    metrics: dict[str, float]
    """accuracy, reward, pass@1 ... pass@n, maj@1 ... maj@n where the task's verdict can tell what a completion
    answers, entropy, completions/mean_length, completions/clipped_ratio, and what the rewards logged"""
    rollouts: Rollouts = field(repr=False)
    """the completions, scored; a group is a row of the task"""

    @property
    def accuracy(self) -> float:
        """The share of completions that are right."""
        return self.metrics["accuracy"]

    def curve(self, name: str) -> dict[int, float]:
        """`curve("pass")` or `curve("maj")`: the metric by k, 1 to n; empty where the task has none."""
        start = f"{name}@"
        return {int(key[len(start) :]): value for key, value in self.metrics.items() if key.startswith(start)}

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def __repr__(self) -> str:
        n = max(self.rollouts.sample) + 1
        shown = [f"accuracy {self.accuracy:.4g}"]
        shown += [f"{name} {self.metrics[name]:.4g}" for name in (f"pass@{n}", f"maj@{n}") if name in self.metrics]
        return f"<Evaluation of {len(self.rollouts) // n} prompts, {n} completions each: {', '.join(shown)}>"


def evaluate(
    policy: Policy,
    task: Task,
    n: int = 8,
    *,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_strings: Sequence[str] | None = None,
) -> Evaluation:
    """Sample `n` completions of each row of the task from the policy as it is now, and score them.

    The numbers are those of a run's held-out evaluation with the same settings and seed (there `eval/accuracy`,
    `eval/pass@n`, ...). `temperature` 0 is greedy; then one completion tells all (n=1). For k up to n, pass@k is the
    chance that one of k completions is right and maj@k that their most frequent answer is, both unbiased (see
    `workbench.evaluation`). `min_p`, `repetition_penalty` and `stop_strings` are those of `Policy.sample`. Nothing is
    trained or stored.

    Raises SettingError for settings out of range, DataError for prompts the model cannot take, RewardError where a
    reward function fails.
    """
    if not isinstance(policy, Policy):
        raise SettingError(f"wb.evaluate takes a policy: wb.evaluate(wb.load(...), task). Got {type(policy).__name__}.")
    if not isinstance(task, Task):
        raise SettingError(f"wb.evaluate takes a Task: wb.Task(rows, rewards=[...]). Got {type(task).__name__}.")
    check_whole("wb.evaluate: n", n, 1)
    check_whole("wb.evaluate: seed", seed, 0)
    if stop_strings is not None:
        check_stop_strings(stop_strings)
    settings = GRPOSettings(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed,
        min_p=min_p, repetition_penalty=repetition_penalty, stop_strings=tuple(stop_strings or ()) or None,
        num_generations_eval=n,
    )  # fmt: skip
    return worker.call(_evaluate, policy, task, settings)


def _evaluate(policy: Policy, task: Task, settings: GRPOSettings) -> Evaluation:
    prepared = methods.get("grpo").prepare(policy.tokenizer, task, settings)
    context = Context(policy, settings, prepared, check=worker.check)
    n = settings.num_generations_eval
    rollouts, logged = sample_all(context, prepared, n)
    found = task_metrics(task, rollouts, range(1, n + 1)) | logged
    return Evaluation({name.removeprefix("eval/"): value for name, value in found.items()}, rollouts)
