"""Tasks: rows plus reward functions, and the ones that come with workbench."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench.errors import SettingError, did_you_mean
from workbench.tasks.task import Task, rebuild

__all__ = ["Task", "rebuild", "task"]

MADE = {"traced_integers": "workbench.tasks.traced_integers", "serial": "workbench.tasks.serial"}
"""tasks whose rows are made by rule, by the name of the function in the module that makes them"""


def task(
    name: str,
    path: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    split: str = "train",
    **options: Any,
) -> Task:
    """A ready-made task.

    "sums": small sums for the shipped model, made on the spot (`tasks.sums`).
    "gsm8k": grade-school word problems, from `path` or the Hub (`tasks.gsm8k`).
    "classify": the class of texts, given or from `path`, with thinking or without (`tasks.classify`).
    "traced_integers": traces of functions on integer lists, with noise (`tasks.traced_integers`).
    "serial": problems that need one step after another (`tasks.serial`).
    Any other name: the reasoning-gym data set of that name, scored by its own verifier (`tasks.gym`).

    `size`: rows (None: all of a file, 500 where rows are made). `seed`: which rows are made. `split`: "train"
    or "test". Further options are those of the module named. SettingError for an unknown name, option or
    split.
    """
    if not isinstance(name, str):
        raise SettingError(
            f"task takes a name such as 'gsm8k', not {type(name).__name__}. "
            "For rows of your own: Task(rows, rewards)."
        )
    if split not in ("train", "test"):
        raise SettingError(
            f"split is 'train' or 'test', not {split!r}.{did_you_mean(str(split), ['train', 'test'])}"
        )
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise SettingError(f"size must be a whole number of rows from 1, not {size!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SettingError(f"seed must be a whole number from 0, not {seed!r}.")
    if name == "gsm8k":
        from workbench.tasks.gsm8k import gsm8k

        return gsm8k(path=path, split=split, size=size, **_known(gsm8k, options, "gsm8k"))
    if name == "classify":
        from workbench.tasks.classify import classify

        if split != "train":
            raise SettingError("task('classify') has no splits: give the texts to test on as a task of their own.")
        return classify(path=path, size=size, seed=seed, **_known(classify, options, "classify"))
    if path is not None:
        raise SettingError(f"task({name!r}) makes its rows and takes no path; 'gsm8k' and 'classify' do.")
    if name == "sums":
        return _sums(500 if size is None else size, seed, split, options)
    if name in MADE:
        made = getattr(import_module(MADE[name]), name)
        return made(size=500 if size is None else size, seed=seed, split=split, **_known(made, options, name))
    from workbench.tasks.gym import gym

    return gym(name, size=500 if size is None else size, seed=seed, split=split, **options)


def _sums(size: int, seed: int, split: str, options: dict[str, Any]) -> Task:
    from workbench.data import make
    from workbench.tasks.sums import correct, make_rows

    if options:
        raise SettingError(
            f"task('sums') has no option {next(iter(options))!r}; it takes size, seed and split."
        )
    args = {"size": size, "seed": seed, "split": split}
    return Task(make(make_rows(**args), f"sums ({split})"), [correct], name="sums", kind="sums", args=args)


def _known(function: Any, options: dict[str, Any], name: str) -> dict[str, Any]:
    """The options, all of them parameters of the function; SettingError naming the nearest otherwise."""
    known = [key for key in inspect.signature(function).parameters if key not in ("path", "split", "size", "seed")]
    for option in options:
        if option not in known:
            near = did_you_mean(option, known)
            raise SettingError(f"{name} has no option {option!r}.{near} It takes: {', '.join(known)}.")
    return options
