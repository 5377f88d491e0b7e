"""Concept ablation: the projection, its hooks in every layout, directions that are found and given."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from tests.models import exact_norms, noisy_adapter, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, rows_for, weights
from workbench import prefixes
from workbench.adapters import directions, hooks
from workbench.adapters.directions import Directions, find_directions
from workbench.errors import DataError, SettingError
from workbench.launch import launch

# two rows of each prompt: a shared prompt goes through the model once
ROWS = [{**row, "prompt": f"Say {i // 2}:"} for i, row in enumerate(rows_for("sft", 8))]


def given(width: int = 32) -> dict[int, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {0: torch.randn(3, width, generator=draw), 1: torch.randn(width, generator=draw)}


def run_of(policy, out, basis, **settings):
    common = dict(steps=3, batch_size=4, lr=1e-2, seed=3, snapshot_steps=100, basis=basis)
    return launch("concept_ablation", policy, ROWS, out, None, common | settings, None)


def seen(policy, ids) -> list[torch.Tensor]:
    """The stream after each layer, as whatever comes after the hooks sees it."""
    made = []
    layers = list(hooks.decoder_layers(policy.model).values())
    handles = [
        layer.register_forward_hook(lambda m, i, o: made.append(o[0] if isinstance(o, tuple) else o))
        for layer in layers
    ]
    with torch.no_grad():
        policy.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return made


# -- the projection


def test_the_projection_leaves_nothing_along_its_directions_and_twice_is_once():
    bases = directions.orthonormal(given(), 32, 2)
    stream = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    for q in bases.values():
        once = hooks.project_out(q, stream)
        assert (once @ q.float()).abs().max() < 1e-5 and (stream @ q.float()).abs().max() > 0.5
        assert (hooks.project_out(q, once) - once).abs().max() < 1e-5
        torch.testing.assert_close(q.t() @ q, torch.eye(q.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
    hand = stream - stream @ torch.tensor([0.6, 0.8] + [0.0] * 30)[:, None] * torch.tensor([0.6, 0.8] + [0.0] * 30)
    unit = directions.orthonormal({1: torch.tensor([3.0, 4.0] + [0.0] * 30)}, 32, 2)[1]
    torch.testing.assert_close(hooks.project_out(unit, stream), hand, rtol=1e-5, atol=1e-6)
    half = hooks.project_out(unit, stream.bfloat16())
    assert half.dtype == torch.bfloat16 and (half.float() @ unit.float()).abs().max() < 0.02


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mamba"])
def test_hooks_reach_every_kind_of_model_and_are_gone_afterwards(kind, tmp_path):
    policy = tiny_policy(tmp_path / "m", kind)
    ids = list(b"Say something")
    before = seen(policy, ids)
    with hooks.ablating(policy.model, directions.orthonormal(given(), 32, 2)):
        during = seen(policy, ids)
    for q, plain, stream in zip(directions.orthonormal(given(), 32, 2).values(), before, during, strict=True):
        assert (stream @ q.float()).abs().max() < 1e-5 * stream.abs().max() < (plain @ q.float()).abs().max()
    for a, b in zip(before, seen(policy, ids), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError), hooks.ablating(policy.model, directions.orthonormal(given(), 32, 2)):
        raise RuntimeError
    assert not any(layer._forward_hooks for layer in hooks.decoder_layers(policy.model).values())


# -- training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mamba"])
def test_gradients_are_those_of_the_model_with_its_layers_projected(kind, tmp_path, monkeypatch):
    """Against plain autograd, row by row, in float64: in one line with shared prompts, padded, checkpointed."""
    policy = tiny_policy(tmp_path / "m", kind, dtype="float64")
    exact_norms(policy)
    noisy_adapter(policy.attach(wb.LoRA(r=2, targets=["in_proj"] if kind == "mamba" else "all-linear")))
    run = run_of(policy, tmp_path / "run", given(), disable_dropout=True)
    ours = run.gradients(ROWS[:4])
    bases = directions.orthonormal(given(), 32, 2)

    def hook(q):
        def project(module, inputs, output):
            h = output[0] if isinstance(output, tuple) else output
            h = h - h @ q @ q.T
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return project

    layers = list(hooks.decoder_layers(policy.model).values())
    handles = [layers[n].register_forward_hook(hook(q)) for n, q in bases.items()]
    policy.model.zero_grad()
    loss, items = 0.0, run.engine.method.prepare(policy.tokenizer, wb.rows(ROWS[:4]), run.engine.settings).items
    for example in items:
        ids, mask = torch.tensor([example.ids]), torch.tensor(example.mask[1:])
        logp = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        loss = loss - (logp * mask).sum() / sum(sum(e.mask[1:]) for e in items)
    loss.backward()
    truth = {name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None}
    policy.model.zero_grad()
    for handle in handles:
        handle.remove()
    assert ours.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    again = [ours, run.gradients(ROWS[:4])]
    if kind != "mamba":
        for change in (dict(micro_batch_size=1), dict(gradient_checkpointing=True)):
            run.set(**change)
            again.append(run.gradients(ROWS[:4]))
    monkeypatch.setattr(prefixes, "takes_spans", lambda policy: False)
    again.append(run.gradients(ROWS[:4]))
    close = 1e-9 if kind in ("llama", "gpt2") else 1e-6  # the others compute norms in float32 whatever is asked
    size = sum(float((g**2).sum()) for g in truth.values()) ** 0.5
    for one in again:
        off = sum(float(((one.by_name[name] - g) ** 2).sum()) for name, g in truth.items()) ** 0.5
        assert off <= close * size


def test_it_trains_without_and_is_read_with_its_directions(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    plain = launch("sft", policy, ROWS, tmp_path / "sft", None, dict(steps=3, batch_size=4, lr=1e-2, seed=3), None)
    run = run_of(policy.reset(), tmp_path / "run", given())
    list(run)
    list(plain)
    assert run.metrics["ablated_directions"].iloc[1:].tolist() == [4.0] * 3
    assert (run.metrics["loss"].iloc[1:] - plain.metrics["loss"].iloc[1:]).abs().min() > 1e-3
    assert set(run.engine.state.tensors) == {"ablation/0", "ablation/1"}
    empty = run_of(policy.reset(), tmp_path / "empty", {})
    list(empty)
    assert_same_weights(weights(empty), weights(plain))


def test_a_file_may_go_once_a_step_is_kept_and_must_not_change_before(tmp_path):
    def policy():
        return tiny_policy(tmp_path / "m", lora=True)

    file = tmp_path / "basis.safetensors"
    save_file({f"layer.{n}": torch.atleast_2d(rows) for n, rows in given().items()}, file)
    whole = run_of(policy(), tmp_path / "whole", given(), steps=4)
    list(whole)
    run = run_of(policy(), tmp_path / "run", file, steps=4, snapshot_steps=2)
    run.run(3)
    run.stop()
    save_file({"layer.0": torch.eye(32)[:1]}, file)
    with pytest.raises(SettingError, match="is gone, or is not the file with which the run began"):
        wb.resume(tmp_path / "run", policy=policy())
    file.unlink()
    again = wb.resume(tmp_path / "run", policy=policy())
    list(again)
    assert_same_weights(weights(again), weights(whole))
    assert_same_metrics(again.metrics, whole.metrics)
    again.engine.memory.clear()
    with pytest.raises(SettingError, match="is gone"):
        again.engine.restore(1)  # a replay of the first step needs the file


def test_bases_that_are_none_of_this_model_are_refused_before_a_folder_is_made(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    for basis, said in (
        (None, "basis is missing"),
        ({5: torch.ones(32)}, "There is no layer 5: the model has 2, numbered from 0 to 1"),
        ({0: torch.ones(31)}, r"are \(1, 31\); they must be rows of 32 numbers"),
        ({0: torch.ones(32, 3)}, r"Turn it round \(.T\)"),
        ({"top": torch.ones(32)}, "'top' does not end in the number of a layer"),
        ({0: torch.full((32,), torch.nan)}, "not all finite"),
        ({-1: torch.ones(32)}, "-1 does not end in the number of a layer.* counted from 0"),
        ({0.5: torch.ones(32)}, "0.5 does not end in the number of a layer"),
        ({1.0: torch.ones(32)}, "1.0 does not end in the number of a layer"),
        ({True: torch.ones(32)}, "True does not end in the number of a layer"),
        ({0: [[1.0] * 32, [1.0] * 31]}, "of layer 0 are no table of numbers, rows of equal length"),
        ({0: "x"}, "of layer 0 are no table of numbers"),
        ({0: None}, "of layer 0 are no table of numbers"),
        ({0: torch.ones(32, dtype=torch.complex64)}, "of layer 0 are complex"),
        ({0: torch.ones(32), "layer.0": torch.ones(32)}, "'layer.0' is a second name of layer 0"),
        (tmp_path / "none.safetensors", "there is no such file"),
        (__file__, "cannot be read as safetensors"),
    ):
        with pytest.raises(SettingError, match=said):
            run_of(policy, tmp_path / "run", basis)
    with pytest.raises(DataError, match="direction 1 of layer 0 is zero, or a sum of those before it"):
        run_of(policy, tmp_path / "run", {0: torch.ones(2, 32)})
    assert not (tmp_path / "run").exists()


def test_names_end_in_the_number_of_a_layer():
    for name, layer in (("layer.5", 5), ("5", 5), (5, 5), ("model.layers.12", 12), ("blocks/07", 7), ("h_3", 3)):
        assert directions.layer_of(name) == layer
    for name in ("layer.-1", "-1", "0.5", ".5", "layer 1.0", "+2", "layer", "", 2.0, None):
        with pytest.raises(SettingError, match="does not end in the number"):
            directions.layer_of(name)


# -- finding directions


def test_directions_are_the_principal_components_of_what_the_adapter_changed(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    rows = ROWS[:3]
    found = find_directions(policy, rows, layers=[1], count=5)
    changes = []
    for row in rows:
        prompt = policy.tokenizer(row["prompt"])["input_ids"]
        ids = policy.tokenizer(row["prompt"] + row["completion"])["input_ids"] + [policy.tokenizer.eos_token_id]
        tuned = seen(policy, ids)[1][0]
        with policy.model.disable_adapter():
            plain = seen(policy, ids)[1][0]
        changes.append((tuned - plain)[len(prompt) :].double())
    changes = torch.cat(changes)
    _, s, vh = torch.linalg.svd(changes - changes.mean(0), full_matrices=False)
    torch.testing.assert_close(found.variance[1].double(), s[:5] ** 2 / (len(changes) - 1), rtol=1e-4, atol=1e-6)
    cosine = (found.vectors[1].double() * vh[:5]).sum(1).abs()
    torch.testing.assert_close(cosine, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-4)
    assert all(v[v.abs().argmax()] > 0 for v in found.vectors[1])
    assert list(find_directions(policy, rows, count=2).vectors) == [0, 1]


def test_directions_are_chosen_shown_kept_in_a_file_and_trained_without(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    found = find_directions(policy, ROWS, count=4)
    kept = found.keep({1: [2, 0]})
    assert list(kept.vectors) == [1] and torch.equal(kept.vectors[1], found.vectors[1][[2, 0]])
    with pytest.raises(SettingError, match="layer 1 has 4 directions, and none with number 4"):
        found.keep({1: [4]})
    table = found.tokens(policy, ROWS[:3], layer=1, number=0, count=2)
    assert list(table) == ["along", "row", "token", "before"] and table["along"].is_monotonic_decreasing
    with policy.model.disable_adapter():
        ids = policy.tokenizer(ROWS[0]["prompt"] + ROWS[0]["completion"])["input_ids"]
        along = seen(policy, ids)[1][0] @ found.vectors[1][0]
    assert table["along"].iloc[0] >= float(along.max()) - 1e-4
    path = kept.save(tmp_path / "kept.safetensors")
    one, other = run_of(policy, tmp_path / "one", path), run_of(policy, tmp_path / "other", kept)
    assert isinstance(kept, Directions) and one.gradients(ROWS[:4]).loss == other.gradients(ROWS[:4]).loss


def test_nothing_is_found_where_nothing_was_tuned(tmp_path):
    bare = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match="attach and train an adapter, or base="):
        find_directions(bare, ROWS)
    other = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match="are the same on these rows; tune it first"):
        find_directions(bare, ROWS, base=other)
    noisy_adapter(bare)  # the whole model is what was tuned
    assert find_directions(bare, ROWS[:2], layers=[0], count=1, base=other).variance[0] > 0
    with pytest.raises(SettingError, match="There is no layer 2"):
        find_directions(bare, ROWS, layers=[2], base=other)
