"""CoT-Valve: the adapter's strength, rows that train each at their own, rows of several lengths, the curve."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests.models import exact_norms, noisy_adapter, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, weights
from workbench import micro_batches, prefixes
from workbench.adapters import scaling
from workbench.adapters.chains import acu, mix_chain, valve_curve
from workbench.adapters.scaling import scaled
from workbench.errors import DataError, SettingError
from workbench.launch import launch
from workbench.methods.adapting import valve

ROWS = [
    {"prompt": f"Add {question}:", "completion": f"{' so' * length} {question}"}
    for question in range(4)
    for length in (0, 2, 3, 5)
]


def run_of(policy, out, rows=ROWS, **settings):
    common = dict(steps=3, batch_size=8, lr=1e-2, seed=3, snapshot_steps=100)
    return launch("valve", policy, rows, out, None, common | settings, None)


def logits(policy, text: str = "Say something") -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([list(text.encode())])).logits


# -- strength


def test_lengths_give_the_strengths_of_the_paper():
    assert valve.betas((741, 500, 350, 225)) == pytest.approx([0, 0.46705, 0.75775, 1], abs=1e-5)
    assert valve.betas((7, 7)) == [1, 1]


def test_strength_scales_the_delta_and_nothing_else(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    with_adapter = logits(policy)
    with policy.model.disable_adapter():
        base = logits(policy)
    with scaled(policy, 0) as same:
        assert same is policy
        torch.testing.assert_close(logits(policy), base, rtol=0, atol=1e-6)
    with scaled(policy, 1):
        assert torch.equal(logits(policy), with_adapter)
    layer = policy.model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    plain, full = layer.base_layer(x), layer(x)
    for strength in (0.5, 2.0, -1.0):
        with scaled(policy, strength):
            torch.testing.assert_close(layer(x) - plain, strength * (full - plain), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError), scaled(policy, 3):
        raise RuntimeError
    assert torch.equal(logits(policy), with_adapter)


def test_samples_and_scores_are_those_of_the_scaled_weights(tmp_path):
    """Against a policy whose B is scaled; sampling folds the adapter into copies of the weights."""
    policy, other = (tiny_policy(tmp_path / "m", lora=True) for _ in range(2))
    before = policy.sample(["Say"], n=3, max_new_tokens=12)
    for name, p in other.trainable().items():
        if "lora_B" in name:
            p.data *= 1.7
    with scaled(policy, 1.7):
        ours, score = policy.sample(["Say"], n=3, max_new_tokens=12), policy.score(["Say"], [" it"])
    theirs, truth = other.sample(["Say"], n=3, max_new_tokens=12), other.score(["Say"], [" it"])
    assert ours.text == theirs.text and ours.text != before.text
    assert score.logprob[0] == pytest.approx(truth.logprob[0], abs=1e-5)
    assert policy.sample(["Say"], n=3, max_new_tokens=12).text == before.text


def test_adapters_whose_strength_is_not_one_number_are_refused(tmp_path):
    import peft

    bare = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match=r"scaled\(\) scales a LoRA adapter, and it has none"), scaled(bare, 1):
        pass
    with pytest.raises(SettingError, match="valve scales a LoRA adapter"):
        run_of(bare, tmp_path / "run")
    bare.attach(peft.LoraConfig(target_modules=["q_proj"], use_dora=True))
    with pytest.raises(SettingError, match="with use_dora the adapter changes more than that"):
        run_of(bare, tmp_path / "run")
    plain = tiny_policy(tmp_path / "m", lora=True)
    with pytest.raises(SettingError, match="leave packing out"):
        run_of(plain, tmp_path / "run", packing=True)
    with pytest.raises(SettingError, match="give shuffle_dataset=False, too"):
        run_of(plain, tmp_path / "run", progressive=True)
    with pytest.raises(SettingError, match="strength=0.0 must be above 0"):
        run_of(plain, tmp_path / "run", strength=0.0)
    assert not (tmp_path / "run").exists()


# -- training


def by_hand(policy, run, rows) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of plain autograd, each row by itself with B scaled by its beta."""
    items = run.engine.method.prepare(policy.tokenizer, wb.rows(rows), run.engine.settings).items
    total = sum(sum(e.mask[1:]) for e in items)
    lengths = {}
    for e in items:
        lengths.setdefault(tuple(e.ids[: e.mask.index(1)]), []).append(sum(e.mask))
    policy.model.zero_grad()
    loss = 0.0
    for e in items:
        known = lengths[tuple(e.ids[: e.mask.index(1)])]
        beta = 1 - (sum(e.mask) - min(known)) / (max(known) - min(known))
        with scaled(policy, beta):
            ids, mask = torch.tensor([e.ids]), torch.tensor(e.mask[1:])
            logp = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            part = -(logp * mask).sum() / total
            part.backward()
        loss += float(part.detach())
    truth = {name: p.grad.clone() for name, p in policy.trainable().items()}
    policy.model.zero_grad()
    return loss, truth


def test_rows_train_each_at_its_own_strength_however_they_are_cut(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", dtype="float64")
    exact_norms(policy)
    noisy_adapter(policy.attach(wb.LoRA(r=2)))
    run = run_of(policy, tmp_path / "run", ROWS[:8])
    loss, truth = by_hand(policy, run, ROWS[:8])
    made = [run.gradients(ROWS[:8])]
    for change in (dict(micro_batch_size=1), dict(micro_batch_size=3), dict(gradient_checkpointing=True)):
        run.set(**change)
        made.append(run.gradients(ROWS[:8]))
    monkeypatch.setattr(prefixes, "takes_spans", lambda policy: False)
    made.append(run.gradients(ROWS[:8]))
    size = sum(float((g**2).sum()) for g in truth.values()) ** 0.5
    for one in made:
        assert one.loss == pytest.approx(loss, rel=1e-9)
        off = sum(float(((one.by_name[name] - g) ** 2).sum()) for name, g in truth.items()) ** 0.5
        assert off <= 1e-9 * size
    run.set(strength=1.0)
    assert abs(run.gradients(ROWS[:8]).loss - loss) > 1e-3
    assert all(layer.scaling["default"] == 16.0 for layer in scaling._layers(policy.model)), "put back"


def test_the_plan_keeps_strengths_apart_and_rows_of_a_question_together():
    batch = micro_batches.Batch(
        [[1] * n for n in (4, 9, 5, 7, 3, 8)], [1] * 6, {"strength": [0.5, 1.0, 0.5, 0.0, 1.0, 1.0]}
    )
    for size in (None, 1, 2):
        plan = micro_batches.plan(batch, size, 100)
        assert sorted(row for part in plan for row in part) == list(range(6))
        assert all(len({batch.columns["strength"][row] for row in part}) == 1 for part in plan)
        assert size is None or max(map(len, plan)) <= size
    assert micro_batches.plan(batch, 2, 100)[0] == [1, 5], "the largest first"
    shared = micro_batches.plan(batch, None, 100, rate=micro_batches.Rate(padded=False), shared=[0, 0, 0, 1, 1, 1])
    assert sorted(map(sorted, shared)) == [[0, 2], [1, 4, 5], [3]]


def test_it_goes_back_and_on_and_says_the_mean_strength(tmp_path):
    def policy():
        return tiny_policy(tmp_path / "m", lora=True)

    whole = run_of(policy(), tmp_path / "whole", batch_size=16)
    list(whole)
    lengths = [len(row["completion"]) for row in ROWS[:4]]
    assert whole.metrics["strength"].iloc[1:].tolist() == pytest.approx([sum(valve.betas(lengths)) / 4] * 3)
    run = run_of(policy(), tmp_path / "run", batch_size=16)
    run.run(2)
    run.engine.memory.clear()
    run.rewind(1)
    run.stop()
    again = wb.resume(tmp_path / "run", policy=policy())
    list(again)
    assert_same_weights(weights(again), weights(whole))
    assert_same_metrics(again.metrics, whole.metrics)


def test_stages_go_from_the_longest_chain_to_the_shortest(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    run = run_of(policy, tmp_path / "run", progressive=True, shuffle_dataset=False, batch_size=4, steps=4)
    items = run.engine.live.data.items
    tokens = [sum(item.mask) for item in items]
    stages = [tokens[i : i + 4] for i in range(0, 16, 4)]
    assert [set(stage) for stage in stages] == [{18}, {12}, {9}, {3}]
    list(run)
    assert run.metrics["strength"].iloc[1:].tolist() == pytest.approx([0, 0.4, 0.6, 1])


# -- around it


def digits(completions, **columns):
    return [float(any(c.isdigit() for c in text)) for text in completions]


def test_mix_chain_keeps_right_answers_of_different_lengths(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    task = wb.Task([{"prompt": f"Say {i}:", "answer": i} for i in range(4)], rewards=[digits])
    made = mix_chain(policy, task, strengths=(0.0, 0.1, 0.2), n=16, max_new_tokens=60, seed=1)
    assert {row["strength"] for row in made} == {0.0, 0.1, 0.2} and all(digits([row["completion"]])[0] for row in made)
    assert all(row["tokens"] <= 60 for row in made)
    questions = [row["answer"] for row in made]
    assert questions == sorted(questions) and len({(row["prompt"], row["completion"]) for row in made}) == len(made)
    for a, b in zip(made, made[1:], strict=False):
        assert a["answer"] != b["answer"] or a["tokens"] >= b["tokens"]
    launch("valve", policy, made, tmp_path / "run", None, {"steps": 1, "batch_size": 2}, None)
    never = task.with_rewards({"never": lambda completions, **columns: [0.0] * len(completions)})
    with pytest.raises(DataError, match="no completion at strengths .* was right"):
        mix_chain(policy, never, n=1, max_new_tokens=4)


def test_the_curve_is_accuracy_and_length_at_each_strength(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    task = wb.Task([{"prompt": f"Say {i}:", "answer": i} for i in range(4)], rewards=[digits])
    curve = valve_curve(policy, task, strengths=(0.0, 1.0), n=4, max_new_tokens=20, seed=2)
    for strength, line in zip((0.0, 1.0), curve.itertuples(), strict=True):
        with scaled(policy, strength):
            made = policy.sample([f"Say {i}:" for i in range(4)], n=4, max_new_tokens=20, seed=2)
        assert line.accuracy == sum(digits(made.text)) / 16 and line.strength == strength
        assert line.tokens == sum(map(len, made.ids)) / 16
        assert line.clipped == made.finish_reason.count("length") / 16
        size = sum(p.numel() for p in policy.model.parameters()) / 1e9
        assert line.acu == pytest.approx(100 * line.accuracy / (size * line.tokens))
    assert curve["accuracy"][0] != curve["accuracy"][1] or curve["tokens"][0] != curve["tokens"][1]
    assert acu(94.92, 32.0, 225) == pytest.approx(0.0131833, abs=1e-6)
    with pytest.raises(SettingError, match="must be above 0"):
        acu(1.0, 0, 3)
