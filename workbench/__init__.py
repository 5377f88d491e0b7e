"""workbench: a Jupyter-first bench for post-training language models on one GPU or a laptop.

    import workbench as wb

    policy = wb.load("tiny").attach(wb.LoRA(r=16))
    run = wb.grpo(policy, wb.task("sums"), steps=40, lr=5e-4)
    for step in run:
        print(step.index, step.metrics["reward"])

Importing this is light: torch and everything else heavy come in when a name first needs them.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "load": "workbench.policy",
    "Policy": "workbench.policy",
    "LoRA": "workbench.adapters",
    "Rollouts": "workbench.sampling.rollouts",
    "rows": "workbench.data:rows",
    "Rows": "workbench.data",
    "Task": "workbench.tasks",
    "task": "workbench.tasks",
    "sft": "workbench.launch",
    "dpo": "workbench.launch",
    "cpo": "workbench.launch",
    "orpo": "workbench.launch",
    "kto": "workbench.launch",
    "grpo": "workbench.launch",
    "rloo": "workbench.launch",
    "show_mask": "workbench.masks",
    "check_rewards": "workbench.reward_bench",
    "open": "workbench.resuming:open_run",
    "resume": "workbench.resuming",
    "runs": "workbench.resuming",
    "compare": "workbench.comparing",
    "rewards": "workbench.rewards:",
    "evaluate": "workbench.evaluate_policy",
    "forecast": "workbench.forecasting",
    "judges": "workbench.judges:",
    "catalogue": "workbench.published",
    "method": "workbench.published",
    "label": "workbench.preferring",
    "labels": "workbench.preferring",
    "Run": "workbench.run",
    "metric": "workbench.glossary",
    "metrics": "workbench.glossary",
    "Tracker": "workbench.tracking",
    "Wandb": "workbench.tracking.wandb",
    "TensorBoard": "workbench.tracking.tensorboard",
    "Trackio": "workbench.tracking.trackio",
    "WorkbenchError": "workbench.errors",
    "SettingError": "workbench.errors",
    "DataError": "workbench.errors",
    "RewardError": "workbench.errors",
    "StoreError": "workbench.errors",
    "RunError": "workbench.errors",
}
"""public name -> the module that has it (`module:name`: as another name there; `module:`: the module itself)"""

__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        from workbench.errors import did_you_mean

        raise AttributeError(f"workbench has no {name!r}.{did_you_mean(name, _NAMES)}")
    module, colon, attribute = _NAMES[name].partition(":")
    value = import_module(module)
    if attribute or not colon:
        value = getattr(value, attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
