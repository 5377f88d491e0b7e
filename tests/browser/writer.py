"""Runs for the tests of the views, written straight into a store: no model, no training."""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
from pathlib import Path

import numpy as np

from workbench.sampling.rollouts import Rollouts
from workbench.store import Store
from workbench.text import clean

HOSTILE = (
    '<script>window.hacked=1</script><img src=x onerror="window.hacked=2">\'"` javascript:alert(1) '
    "\x1b[31mred\x1b[0m \u202edlrow\u202c ze\u200bro \x00 \ud800 </script></textarea><!-- &lt; %{y} $x$ {{7*7}}"
)
HOSTILE_NAME = "<img src=x onerror='window.hacked=3'>\"%{y}\u202e"


def metrics_of(method: str, step: int, steps: int, reward: str = "correct") -> dict[str, float]:
    """Numbers that look like a run that learns; held-out ones every fifth step, and at step 0 nothing else."""
    rng, p = np.random.default_rng(step), step / steps
    wobble = float(rng.normal()) * 0.03
    if method == "grpo":
        held_out = {"eval/accuracy": 0.1 + 0.6 * p, "eval/pass@8": 0.4 + 0.5 * p, "eval/reward": 0.2 + 0.6 * p}
        trained = {
            "reward": 0.2 + 0.7 * p + wobble, "reward_std": 0.3 - 0.1 * p, "frac_reward_zero_std": 0.1 + 0.3 * p,
            f"rewards/{reward}/mean": 0.1 + 0.7 * p + wobble, f"rewards/{reward}/std": 0.2,
            "rewards/format/mean": 0.1, "rewards/format/std": 0.01, "entropy": 1.5 - p + wobble,
            "completions/mean_length": 40 + 30 * p + 50 * wobble, "completions/clipped_ratio": 0.3 - 0.3 * p,
            "completions/max_length": 90.0, "loss": wobble * 1e-3, "grad_norm": 0.4 + wobble, "learning_rate": 1e-5,
            "clip_ratio/low_mean": 0.01, "clip_ratio/high_mean": 0.02,
        }  # fmt: skip
    elif method == "dpo":
        held_out = {"eval/loss": 0.69 - 0.3 * p, "eval/rewards/accuracies": 0.5 + 0.3 * p}
        trained = {
            "loss": 0.69 - 0.4 * p, "rewards/chosen": 0.2 * p, "rewards/rejected": -p, "rewards/margins": 1.2 * p,
            "rewards/accuracies": 0.5 + 0.4 * p, "logps/chosen": -40 + 2 * p, "logps/rejected": -45 - 9 * p,
            "entropy": 1.1 + wobble, "grad_norm": 1.0,
        }  # fmt: skip
    else:
        held_out = {"eval/loss": 2.1 - 0.9 * p, "eval/mean_token_accuracy": 0.5 + 0.25 * p}
        trained = {"loss": 2.0 - p + wobble, "mean_token_accuracy": 0.5 + 0.3 * p, "entropy": 1.5 - 0.5 * p}
        trained |= {"grad_norm": 1.0, "learning_rate": 2e-5}
    return (held_out if step % 5 == 0 else {}) | (trained if step else {})


def rollouts_of(step: int, hostile: bool = False, n: int = 8, group: int = 4) -> Rollouts:
    """`n` completions in groups; the first of a hostile step is an attack, as is the name of a reward."""
    rng = np.random.default_rng(step)
    prompts = [f"Q: {i // group} + {step} = ?\nA:" for i in range(n)]
    texts = [f" that makes {rng.integers(99)}.\n" * int(rng.integers(1, 4)) for _ in range(n)]
    name = HOSTILE_NAME if hostile else "correct"
    if hostile:
        texts[0], prompts[-1] = clean(HOSTILE), clean(HOSTILE)
    parts = {name: rng.random(n).round(2).tolist(), "format": [0.1 if i % 3 else None for i in range(n)]}
    made = Rollouts.of(prompts, texts, rewards=parts)
    made.ids = [rng.integers(0, 99, int(rng.integers(3, 20))).tolist() for _ in range(n)]
    made.prompt_ids = [[1, 2, 3]] * n
    made.logprob = [-rng.random(len(ids)).astype("f4") for ids in made.ids]
    made.entropy = [rng.random(len(ids)).astype("f4") for ids in made.ids]
    made.advantage = made.reward - made.reward.mean()
    made.finish_reason = ["stop" if i % 4 else "length" for i in range(n)]
    return made


def begin(
    folder, method: str = "grpo", steps: int = 40, status: str = "running", pid: int | None = None, name=None
) -> Store:
    """A new run that stands at step 0, evaluated."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    meta = {
        "name": name or folder.name, "method": method, "status": status, "branch": 0, "created": time.time(),
        "settings": {"steps": steps, "lr": 1e-5, "beta": 0.0, "group_size": 4, "max_new_tokens": 64},
        "policy": {"model": "tiny", "dtype": "float32"}, "versions": {"torch": "2.13"},
        "writer": {"pid": pid or os.getpid(), "host": platform.node()},
    }  # fmt: skip
    store = Store.create(folder, meta)
    commit(store, 0, method=method, steps=steps)
    store.publish()
    return store


def commit(
    store: Store, step: int, branch: int = 0, method: str = "grpo", steps: int = 40, hostile: bool = False, scale=1.0
):
    """One step with its metrics, and with its rollouts where the method samples."""
    metrics = metrics_of(method, step, steps, HOSTILE_NAME if hostile else "correct")
    store.commit_step(
        step, branch, seconds=0.5, metrics={name: scale * value for name, value in metrics.items()}, state={}, plan={},
        threads=1, rollouts=rollouts_of(step, hostile) if method == "grpo" and step else None,
    )  # fmt: skip


def write(store: Store, upto: int, method: str = "grpo", steps: int = 40, hostile: bool = False) -> Store:
    """Steps 1 to `upto` at once."""
    for step in range(1, upto + 1):
        commit(store, step, method=method, steps=steps, hostile=hostile)
    return store


def rewind(store: Store, step: int, upto: int, steps: int = 40) -> Store:
    """Back to `step`, and on from there to `upto` with another learning rate."""
    branch = store.add_branch(0, step)
    store.add_event(step, branch, "rewind", from_step=store.last_step(0), from_branch=0)
    store.add_event(step + 1, branch, "set", settings={"lr": [1e-5, 3e-5]})
    for k in range(step + 1, upto + 1):
        commit(store, k, branch, steps=steps, scale=1.1)
    return store


def train(store: Store, steps: int, seconds: float = 0.1, hostile: bool = False) -> threading.Thread:
    """Steps in a background thread of this process, one every so many seconds; then the run is finished."""

    def work():
        for step in range(1, steps + 1):
            time.sleep(seconds)
            commit(store, step, steps=steps, hostile=hostile)
        store.set_meta(status="finished")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def states(tmp_path) -> dict[str, Store]:
    """Runs that are not as one would like them."""
    nan = begin(tmp_path / "nan", status="running")
    for step in (1, 2, 3):
        entropy = {"entropy": [1.0, float("nan"), float("inf")][step - 1]}
        metrics = dict.fromkeys(metrics_of("grpo", 1, 10), float("nan")) | entropy
        nan.commit_step(step, 0, seconds=0.1, metrics=metrics, state={}, plan={}, threads=1)
    (tmp_path / "bare").mkdir()
    bare = Store.create(tmp_path / "bare", {"method": "sft"})
    bare.publish()
    return {
        "nan": nan,
        "bare": bare,
        "empty": begin(tmp_path / "empty"),
        "one": write(begin(tmp_path / "one"), 1),
        "killed": write(begin(tmp_path / "killed", pid=2**22 + 1), 7),
        "dpo": write(begin(tmp_path / "dpo", "dpo"), 6, "dpo"),
        "sft": write(begin(tmp_path / "sft", "sft"), 6, "sft"),
    }


def many_rollouts(folder, rollouts: int = 100_000, group: int = 8, per_step: int = 1000, tokens: int = 24) -> Store:
    """A finished run with so many rollouts, put in at once: what a table has to bear."""
    store = begin(folder, status="finished", steps=rollouts // per_step)
    rng = np.random.default_rng(0)
    reward, advantage = rng.random(rollouts).round(2), rng.normal(size=rollouts)
    lengths = rng.integers(3, 2 * tokens, rollouts)
    blobs = [np.arange(n, dtype="<i4").tobytes() for n in range(2 * tokens)]
    floats = [rng.random(n, dtype="f4").tobytes() for n in range(2 * tokens)]
    with store.transaction() as db:
        steps = range(1, rollouts // per_step + 1)
        db.executemany("INSERT INTO steps VALUES (?, 0, 0.5, ?, '{}', '{}', 1)", [(s, time.time()) for s in steps])
        db.executemany(
            "INSERT INTO metrics VALUES (?, 0, ?, ?)",
            [(s, name, value) for s in steps for name, value in metrics_of("grpo", s, steps[-1]).items()],
        )
        db.executemany(
            "INSERT INTO rollouts VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{}')",
            [
                (
                    i + 1, 1 + i // per_step, i % per_step // group, i % group, i // group % 500,
                    f"Q: how much is {i // group % 500} plus {i // group % 13}?\nA:",
                    f" Let me think about {i}. The answer is {i % 97}.\n" * (1 + i % 4),
                    reward[i], advantage[i], "length" if i % 5 == 0 else "stop", int(lengths[i]),
                    f'{{"correct": {reward[i]}, "format": {i % 2}}}',
                )
                for i in range(rollouts)
            ],
        )  # fmt: skip
        db.executemany(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?)",
            [(i + 1, blobs[3], blobs[n], floats[n], floats[n]) for i, n in enumerate(lengths)],
        )
    return store


def long_run(folder, steps: int = 50_000, metrics: int = 12) -> Store:
    """A finished run of so many steps: what curves have to bear."""
    store = begin(folder, status="finished", steps=steps)
    names = list(metrics_of("grpo", 1, steps))[:metrics]
    values = np.random.default_rng(0).random((steps, len(names))).cumsum(0)
    with store.transaction() as db:
        now = time.time()
        db.executemany(
            "INSERT INTO steps VALUES (?, 0, 0.5, ?, '{}', '{}', 1)", ((s, now) for s in range(1, steps + 1))
        )
        db.executemany(
            "INSERT INTO metrics VALUES (?, 0, ?, ?)",
            ((s + 1, name, float(values[s, i])) for s in range(steps) for i, name in enumerate(names)),
        )
    return store
