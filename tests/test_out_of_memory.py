"""Out of memory: the same update in smaller micro-batches, and errors that keep nothing alive."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_model_folder, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, letters, make_run, rows_for, weights
from workbench import flat, out_of_memory, update, worker
from workbench.errors import RunError

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: tried")


class Allocator:
    """Stands in for memory that holds no more than `room` tokens of a micro-batch, padding included."""

    def __init__(self, policy, room: int, error: Exception = CUDA, only_grad: bool = False):
        self.policy, self.room, self.error, self.only_grad = policy, room, error, only_grad
        self.fitted: list[list[list[int]]] = []
        self.failed = 0
        self.scores = policy.token_scores

    def token_scores(self, sequences, starts, **how):
        size = len(sequences) * max(map(len, sequences))
        if how.get("groups") is not None:
            size = flat.layout(sequences, starts, how["groups"], "cpu").ids.numel()
        scores = self.scores(sequences, starts, **how)
        if size > self.room and (torch.is_grad_enabled() or not self.only_grad):
            self.failed += 1
            raise type(self.error)(*self.error.args)
        self.fitted.append([list(sequence) for sequence in sequences])
        return scores


@pytest.fixture
def limited(monkeypatch):
    def limit(policy, room: int, **how) -> Allocator:
        allocator = Allocator(policy, room, **how)
        monkeypatch.setattr(policy, "token_scores", allocator.token_scores)
        return allocator

    return limit


def test_what_is_recognised():
    for error in (CUDA, CPU, MemoryError(), np._core._exceptions._ArrayMemoryError((9,), np.dtype("f4"))):
        assert out_of_memory.recognised(error)
    windows = RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8")
    assert out_of_memory.recognised(windows)
    for error in (RuntimeError("shapes (3, 4) and (5, 6)"), ValueError(str(CPU)), KeyboardInterrupt()):
        assert not out_of_memory.recognised(error)


def given(method: str, policy):
    if method != "grpo":
        return rows_for(method)
    draw = np.random.default_rng(0)
    prompts = [policy.tokenizer(f"Prompt {i}")["input_ids"] for i in range(3) for _ in range(4)]
    ids = [[int(t) for t in draw.integers(0, 256, int(draw.integers(2, 20)))] for _ in prompts]
    old = [row + draw.uniform(-0.6, 0.6, len(row)) for row in policy.score(prompts, ids).logprob]
    return wb.Rollouts.of(prompts, ids, [float(x) for x in draw.integers(0, 3, 12)], old)


CASES = [
    ("sft", {}, CUDA),
    ("sft", {"gradient_checkpointing": True}, CPU),
    ("sft", {"padding_free": True}, CUDA),
    ("dpo", {}, CPU),
    ("dpo", {"loss_type": "aot", "beta": 0.5}, CUDA),  # coupled: every row is scored before the first gradient
    ("grpo", {"num_iterations": 1}, CUDA),
    ("grpo", {"top_entropy_quantile": 0.5}, CPU),
]


@pytest.mark.parametrize("method, settings, error", CASES)
def test_the_same_update_in_smaller_parts(tmp_path, limited, method, settings, error):
    policy = tiny_policy(tmp_path / "model", lora=True, dtype="float64")
    run = make_run(method, tmp_path, policy, **settings)
    run._ready()
    draw = torch.Generator().manual_seed(5)
    state = run.engine.state
    state.params = {n: p + 0.02 * torch.randn(p.shape, generator=draw).to(p) for n, p in state.params.items()}
    data = given(method, policy)
    whole = run.gradients(data)
    allocator = limited(policy, 100, error=error)
    with pytest.warns(UserWarning, match="Memory ran out in a micro-batch of .* the same result"):
        parts = run.gradients(data)
    assert allocator.failed and whole.norm() > 1e-3
    difference = sum(float(((parts.by_name[n] - g) ** 2).sum()) for n, g in whole.by_name.items()) ** 0.5
    assert difference <= 1e-10 * whole.norm()
    assert parts.loss == pytest.approx(whole.loss, rel=1e-10, abs=1e-12)
    for name, value in whole.metrics.items():
        assert parts.metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name
    if method == "dpo":
        prompts = [policy.tokenizer(row["prompt"])["input_ids"] for row in rows_for("dpo")]
        for part in allocator.fitted:  # of each prompt in a micro-batch both answers are there, side by side
            assert len(part) % 2 == 0
            for chosen, rejected in zip(part[0::2], part[1::2], strict=True):
                assert any(chosen[: len(p)] == rejected[: len(p)] == p for p in prompts)


@pytest.mark.parametrize("method, room", [("sft", 40), ("dpo", 60), ("grpo", 90)])
def test_a_run_goes_on_and_is_replayed_exactly(tmp_path, limited, method, room):
    policy = tiny_policy(tmp_path / "model", lora=True)
    run = make_run(method, tmp_path, policy, max_new_tokens=12)
    run.run(1)
    before = run.engine.store.step_row(1, 0)["plan"]
    allocator = limited(policy, room)
    with pytest.warns(UserWarning, match="Memory ran out") as said:
        run.run(2)
    assert len(said) <= 2  # with gradients, and without
    failed = allocator.failed
    plans = run.engine.store.step_row(2, 0)["plan"]
    assert all(len(plans[name]) > len(before[name]) for name in plans) and plans.keys() == before.keys()
    events = run.engine.store.query("SELECT step FROM events WHERE kind = 'warning'")
    assert [step for (step,) in map(tuple, events)] == [2]
    run.run()
    assert allocator.failed == failed  # what fitted is remembered
    first, end = run.metrics, weights(run)
    run.engine.memory.clear()
    run.rewind(4)  # from the snapshot of step 3
    run.run()
    assert_same_metrics(run.metrics, first)
    assert_same_weights(weights(run), end)
    assert allocator.failed == failed


def test_gradients_of_a_failed_attempt_are_gone(tmp_path, limited, monkeypatch):
    policy = tiny_policy(tmp_path / "model", lora=True)
    run = make_run("sft", tmp_path, policy, micro_batch_size=1)
    expected = run.gradients(rows_for("sft"))
    allocator = limited(policy, 10**6)
    scores, calls, alive = policy.token_scores, [], []

    def second_time_fails(*args, **how):
        if len(calls) == 2:
            alive.extend(ref for ref in refs if ref() is not None)
        made = scores(*args, **how)
        refs.append(weakref.ref(made.logprob))
        calls.append(len(args[0]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no")
        return made

    refs: list = []
    run.set(micro_batch_size=6)
    monkeypatch.setattr(policy, "token_scores", second_time_fails)
    with pytest.warns(UserWarning, match="Memory ran out"):
        made = run.gradients(rows_for("sft"))
    assert calls[:2] == [6, 6] and sum(calls[2:]) == 12 and max(calls[2:]) < 6
    assert alive == [] and len(refs) > 2  # when the second attempt begins nothing of the first one is left
    assert made.loss == pytest.approx(expected.loss, rel=1e-5)
    for name, g in expected.by_name.items():
        assert (made.by_name[name] - g).norm() <= 5e-6 * expected.norm()
    assert allocator.failed == 0


@pytest.mark.parametrize("method, what", [("sft", "row"), ("dpo", "pair")])
def test_one_that_does_not_fit_alone_is_an_error_for_people(tmp_path, limited, method, what):
    policy = tiny_policy(tmp_path / "model", lora=True)
    run = make_run(method, tmp_path, policy)
    run.run(1)
    end = weights(run)
    limited(policy, 12)
    with pytest.raises(RunError, match=f"on a single {what} of .* tokens, after micro-batches of") as said:
        run.run(1)
    text = str(said.value)
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in text and "See the" not in text
    assert "a smaller max_length; " in text and "nf4" in text
    # the reference's pass, which is the first of DPO, keeps nothing for a backward pass
    assert ("gradient_checkpointing=True; a smaller max_length; a smaller rank r" in text) == (method == "sft")
    assert run.engine.state.step == 1
    assert_same_weights(weights(run), end)


def test_passes_without_gradients_are_cut_too(tmp_path, limited):
    policy = tiny_policy(tmp_path / "model", lora=True)
    rows = [{"prompt": f"Say {i}:", "chosen": " yes" * (i + 1), "rejected": " no"} for i in range(8)]
    settings = dict(steps=2, batch_size=8, lr=1e-2, precompute_ref_log_probs=True)
    expected = wb.dpo(policy, rows, out=tmp_path / "expected", **settings)
    expected.run()
    allocator = limited(policy.reset(), 120)
    run = wb.dpo(policy, rows, out=tmp_path / "run", **settings)
    with pytest.warns(UserWarning, match="Memory ran out"):
        run.run()
    assert allocator.failed > 1
    columns = ["loss", "rewards/chosen", "rewards/margins", "logps/rejected"]
    np.testing.assert_allclose(run.metrics[columns][1:], expected.metrics[columns][1:], rtol=1e-4, atol=1e-5)


def test_the_optimiser_has_no_room(tmp_path, monkeypatch):
    run = make_run("sft", tmp_path)
    run.run(2)
    end, slots = weights(run), run.engine.state.clone().optim["adamw"]
    step = torch.optim.AdamW.step

    def half(self, *args):
        step(self, *args)  # weights and moments have moved when it happens
        raise torch.OutOfMemoryError("no room for moments")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", half)
        with pytest.raises(RunError, match="optimiser's step, adamw_torch .no room for moments.*adamw_8bit"):
            run.run(1)
    assert_same_weights(weights(run), end)
    for name, before in slots.items():
        assert_same_weights(run.engine.state.optim["adamw"][name], before)
    run.run()
    whole = make_run("sft", tmp_path, out="whole")
    whole.run()
    assert_same_weights(weights(run), weights(whole))


# -- after any error


class Broken(Exception):
    """Of the code under test."""


def tensors() -> int:
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("where", ["objective", "reward", "forward", "backward"])
def test_an_error_that_is_kept_keeps_no_tensors(tmp_path, monkeypatch, where):
    policy, refs, broken = tiny_policy(tmp_path / "model", lora=True), [], []

    def reward(completions, **columns):
        held = torch.zeros(3)
        refs.append(weakref.ref(held))
        if broken and where == "reward":
            raise Broken
        return letters(completions)

    task = wb.Task(rows_for("grpo"), rewards=[reward])
    settings = dict(steps=9, prompts_per_step=3, group_size=4, max_new_tokens=6, lr=1e-2, micro_batch_size=6)
    run = wb.grpo(policy, task, out=tmp_path / "run", **settings)
    run.run(2)
    run.run(1)
    before = tensors()
    scores, columns_of = policy.token_scores, update.columns_of

    def forward(*args, **how):
        made = scores(*args, **how)
        refs.append(weakref.ref(made.logprob))
        if where == "backward" and len(refs) > first + 1:  # of the micro-batch before there are gradients
            made.logprob.register_hook(fail)
        if where == "forward" and len(refs) > first + 1:
            raise Broken
        return made

    def fail(gradient):
        raise Broken

    def objective(batch, like):
        if where == "objective" and len(refs) > first + 1:
            raise Broken
        return columns_of(batch, like)

    broken.append(True)
    first = len(refs) + 1  # the reward's comes before
    with monkeypatch.context() as patch:
        patch.setattr(policy, "token_scores", forward)
        patch.setattr(update, "columns_of", objective)
        try:
            run.run(1)
        except Exception as error:
            kept = error
    assert refs and (isinstance(kept, Broken) or isinstance(kept.__cause__, Broken))
    assert all(p.grad is None for p in policy.model.parameters())
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []
    assert tensors() <= before
    named = [frame.f_code.co_name for frame, _ in _walk(kept)]
    assert {"objective": "objective", "reward": "run", "forward": "forward", "backward": "run"}[where] in named
    broken.clear()
    run.run(1)
    assert run.engine.state.step == 4


def _walk(error):
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def test_letting_go_reaches_causes_and_spares_what_runs():
    refs = []

    def inner():
        held = torch.zeros(2)
        refs.append(weakref.ref(held))
        raise KeyError("inner")

    def outer():
        held = torch.zeros(2)
        refs.append(weakref.ref(held))
        try:
            inner()
        except KeyError as error:
            raise ValueError("outer") from error

    mine = torch.zeros(2)
    try:
        outer()
    except ValueError as error:
        kept = error
        assert any(ref() is not None for ref in refs)
        worker.let_go(error)
    gc.collect()
    assert [ref() for ref in refs] == [None, None] and mine is not None
    assert [trace.tb_lineno for trace in (kept.__traceback__, kept.__cause__.__traceback__)]


REAL = """
import resource, sys, warnings
from pathlib import Path
import torch
import workbench as wb
policy = wb.load(sys.argv[1], dtype="float32", device="cpu").attach(wb.LoRA(r=2))
rows = [{"prompt": "Say:", "completion": " ab" * 70}] * 64
settings = dict(steps=1, batch_size=64, micro_batch_size=64, lr=1e-2)
(free,) = wb.sft(policy, rows, out=sys.argv[2] + "/free", **settings)
run = wb.sft(policy.reset(), rows, out=sys.argv[2] + "/run", **settings)
run._ready()
status = Path("/proc/self/status").read_text().splitlines()
now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[3]) * 2**20, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    (step,) = run
assert any("Memory ran out" in str(one.message) for one in said), said
print(len(run.engine.store.step_row(1, 0)["plan"]["update 0"]))
for name in ("loss", "grad_norm"):
    print(free.metrics[name], step.metrics[name])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory this way")
def test_memory_that_really_runs_out(tmp_path):
    """On a CPU, in a process of its own that may take little more memory than it has."""
    folder = tiny_model_folder(tmp_path / "model", hidden_size=64, intermediate_size=512)
    given = [sys.executable, "-c", REAL, str(folder), str(tmp_path), "100"]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    count, *pairs = done.stdout.split()
    assert int(count) > 1
    assert float(pairs[1]) == pytest.approx(float(pairs[0]), rel=1e-5)
    assert float(pairs[3]) == pytest.approx(float(pairs[2]), rel=1e-5)
