"""Methods that choose matrices, slices and entries: half fine-tuning, chain of LoRA, LIFT."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from tests.models import exact_norms, noisy_adapter, tiny_model_folder, tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, rows_for, weights
from workbench.errors import SettingError
from workbench.launch import launch
from workbench.methods.adapting import half, lift

ROWS = rows_for("sft", 16)


def run_of(method, policy, out, rows=ROWS, **settings):
    common = dict(steps=4, batch_size=4, lr=1e-2, seed=3, snapshot_steps=100)
    return launch(method, policy, rows, out, None, common | settings, None)


def moved(before: dict, after: dict) -> dict[str, torch.Tensor]:
    return {name: after[name] != before[name] for name in before}


def goes_back_and_on(method, policies, tmp_path, **settings):
    """Steps that are gone back to, by replay, and a run that is resumed equal one that never stopped."""
    whole = run_of(method, policies(), tmp_path / "whole", **settings)
    list(whole)
    run = run_of(method, policies(), tmp_path / "run", **settings)
    run.run(settings["steps"] - 1)
    run.engine.memory.clear()
    run.rewind(settings["steps"] - 2)
    run.stop()
    again = wb.resume(tmp_path / "run", policy=policies())
    list(again)
    assert_same_weights(weights(again), weights(whole))
    assert_same_metrics(again.metrics, whole.metrics)
    return whole


# -- half


def test_half_of_each_category_trains_and_the_rest_stays_to_the_bit(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    run = run_of("half", policy, tmp_path / "run", steps=2, round_steps=1, weight_decay=0.1)
    seen = [weights(run), *(weights(run) for _ in run)]
    rounds = [{name for name, m in moved(*pair).items() if m.any()} for pair in zip(seen, seen[1:], strict=False)]
    for trained in rounds:
        by_layer = [[name for name in trained if f"layers.{i}." in name] for i in (0, 1)]
        for names in by_layer:
            assert sum("self_attn" in name for name in names) == 2 and sum("norm" in name for name in names) == 1
        assert sorted(sum("mlp" in name for name in names) for names in by_layer) == [1, 2]
        assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= trained
    assert rounds[0] != rounds[1], "a new half each round"
    assert run.metrics["trained_share"].iloc[1:].between(0.6, 0.9).all(), "embeddings and head are most of a tiny model"


def test_shares_are_exact_over_layers_and_draws_follow_the_seed():
    def units(*counts):
        return {layer: {f"m{i}": [f"{layer}.m{i}"] for i in range(n)} for layer, n in enumerate(counts)}

    for fraction, counts, total in ((0.5, (3,) * 6, 9), (0.5, (4,) * 5, 10), (0.4, (3,) * 5, 6), (0.1, (3,) * 4, 1)):
        names = half.drawn("mlp", units(*counts), fraction, 7)
        assert len(names) == total
        by_layer = [sum(name.startswith(f"{layer}.") for name in names) for layer in range(len(counts))]
        assert max(by_layer) - min(by_layer) <= 1
    draws = {frozenset(half.drawn("mlp", units(3, 3, 3, 3), 0.5, seed)) for seed in range(12)}
    assert len(draws) > 6
    assert half.drawn("x", units(3, 3), 1.0, 0) == half.drawn("x", units(3, 3), 1.0, 1), "all"


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gemma2"])
def test_half_of_lora_targets_train_with_both_their_factors(kind, tmp_path):
    policy = noisy_adapter(tiny_policy(tmp_path / "m", kind).attach(wb.LoRA(r=2)))
    run = run_of("half", policy, tmp_path / "run", steps=1)
    before = weights(run)
    list(run)
    trained = {name for name, m in moved(before, weights(run)).items() if m.any()}
    targets = {name.split(".lora_")[0] for name in before}
    chosen = {name.split(".lora_")[0] for name in trained}
    assert len(trained) == 2 * len(chosen) and len(chosen) == len(targets) // 2


def test_moments_begin_anew_with_a_round_and_only_for_what_trains(tmp_path):
    run = run_of("half", tiny_policy(tmp_path / "m"), tmp_path / "run", steps=5, round_steps=2)
    counts = []
    for _ in run:
        slots = run.engine.state.optim["adamw"]
        counts.append({int(one["step"]) for one in slots.values()})
        assert len(slots) < len(run.engine.state.params)
    assert counts == [{1}, {2}, {1}, {2}, {1}]


def test_moments_begin_anew_where_a_setting_changes_the_half_within_a_round(tmp_path):
    run = run_of("half", tiny_policy(tmp_path / "m"), tmp_path / "run", ROWS[:8], steps=7)
    run.run(5)
    run.set(batch_size=2)  # step 6 is the second of round 1, whose half is another than round 2's
    context = run.engine._context_for(run.engine.live)
    assert half.round_of(context, 6) == (1, 1)
    run.run(1)
    slots = run.engine.state.optim["adamw"]
    assert set(slots) == set(half.chosen(context, 6)) and {int(one["step"]) for one in slots.values()} == {1}
    run.run(1)
    assert {int(one["step"]) for one in run.engine.state.optim["adamw"].values()} == {2}, "it goes on in the same half"


def test_a_round_is_an_epoch_and_half_goes_back_and_on(tmp_path):
    def policies():
        return tiny_policy(tmp_path / "m", lora=True)

    whole = goes_back_and_on("half", policies, tmp_path, steps=6)
    context = whole.engine._context_for(whole.engine.live)
    assert [half.round_of(context, step) for step in (1, 4, 5)] == [(0, 0), (0, 3), (1, 0)]


# -- chain of LoRA


def exact(folder, r: int):
    policy = tiny_policy(folder, dtype="float64")
    exact_norms(policy)
    return policy.attach(wb.LoRA(r=r, alpha=2 * r))


def deltas(policy, params) -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight."""
    return {
        name.split(".lora_A")[0]: 2.0 * params[name.replace("lora_A", "lora_B")] @ params[name]
        for name in params
        if "lora_A" in name
    }


def test_moments_begin_anew_where_a_change_of_steps_changes_the_link(tmp_path):
    run = run_of("chain_of_lora", tiny_policy(tmp_path / "m", lora=True), tmp_path / "run")
    run.run(3)
    run.set(steps=20)
    counts = []
    for _ in range(2):
        run.run(1)
        counts.append({int(one["step"]) for one in run.engine.state.optim["adamw"].values()})
    assert run.metrics["link"].iloc[1:].tolist() == [1, 1, 2, 1, 1] and counts == [{1}, {2}]


def test_a_chain_equals_training_folding_and_starting_again(tmp_path):
    """The paper's own procedure, with real folds into the base, against slices of one LoRA: in float64."""
    links, r = 3, 2
    course = dict(lr=5e-3, lr_scheduler_type="cosine", warmup_steps=0.4, weight_decay=0.05, shuffle_dataset=False)
    chain = exact(tmp_path / "m", links * r)
    start = {name: p.clone() for name, p in chain.params().items()}
    run = run_of("chain_of_lora", chain, tmp_path / "chain", steps=8, batch_size=2, links=links, **course)
    after = [weights(run) for _ in run]
    folding = exact(tmp_path / "m", r)
    total = {name: 0.0 for name in deltas(folding, folding.params())}
    for link, (first, end) in enumerate(((0, 3), (3, 6), (6, 8))):  # 8 steps over 3 links
        rows = slice(link * r, (link + 1) * r)
        fresh = {n: start[n][rows].clone() if "lora_A" in n else p * 0 for n, p in folding.params().items()}
        folding.hold(fresh, "start")
        part = ROWS[2 * first : 2 * end]
        steps = run_of("sft", folding, tmp_path / f"link{link}", part, steps=end - first, batch_size=2, **course)
        losses = [step.metrics["loss"] for step in steps]
        assert losses == pytest.approx(run.metrics["loss"].iloc[first + 1 : end + 1].tolist(), rel=1e-9)
        for name, delta in deltas(folding, weights(steps)).items():
            total[name] = total[name] + delta
            folding.model.get_submodule(name).base_layer.weight.data += delta
        now = deltas(chain, after[end - 1])
        for name in total:
            assert (now[name] - total[name]).norm() <= 1e-9 * total[name].norm(), (link, name)
            assert torch.linalg.matrix_rank(now[name], rtol=1e-6) == (link + 1) * r, "rank r a link"
    assert run.metrics["link"].iloc[1:].tolist() == [1, 1, 1, 2, 2, 2, 3, 3]
    assert run.metrics["trained_share"].iloc[1:].tolist() == [pytest.approx(1 / 3)] * 8


def test_a_chain_begins_its_learning_rate_anew_and_goes_back_and_on(tmp_path):
    def policies():
        return tiny_policy(tmp_path / "m").attach(wb.LoRA(r=4))

    whole = goes_back_and_on(
        "chain_of_lora", policies, tmp_path, steps=6, links=2, lr_scheduler_type="linear", warmup_steps=1
    )
    assert whole.metrics["learning_rate"].iloc[1:].tolist() == pytest.approx([0, 1e-2, 5e-3] * 2)


def test_chains_work_on_quantised_bases(tmp_path):
    policy = wb.load(tiny_model_folder(tmp_path / "m"), quantize="nf4", device="cpu").attach(wb.LoRA(r=4))
    run = run_of("chain_of_lora", policy, tmp_path / "run", steps=2)
    seen = [weights(run), *(weights(run) for _ in run)]
    for link in (0, 1):
        for name, m in moved(seen[link], seen[link + 1]).items():
            rows = m if "lora_A" in name else m.T
            other = slice(2, 4) if link == 0 else slice(0, 2)
            assert not rows[other].any() and ("lora_A" in name or rows.any()), name


def test_what_chains_cannot_use_is_refused_before_a_folder_is_made(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    with pytest.raises(SettingError, match=r"links=2 needs a plain LoRA: policy.attach\(wb.LoRA\(r=2"):
        run_of("chain_of_lora", policy, tmp_path / "run")
    policy.attach(wb.LoRA(r=4))
    with pytest.raises(SettingError, match="links=3 cannot share the rank 4 of .*lora_A"):
        run_of("chain_of_lora", policy, tmp_path / "run", links=3)
    with pytest.raises(SettingError, match="steps=1 is less than a step for each of links=2"):
        run_of("chain_of_lora", policy, tmp_path / "run", steps=1)
    with pytest.raises(SettingError, match="fraction=0.0 must be above 0"):
        run_of("half", policy, tmp_path / "run", fraction=0.0)
    with pytest.raises(SettingError, match="lift chooses among the model's own weights"):
        run_of("lift", policy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- LIFT


def test_principal_weights_are_the_largest_of_the_low_rank_approximation():
    weight = torch.diag(torch.tensor([5.0, 3.0, 2.0])) + torch.tensor([[0, 0, 0], [0, 0, 0], [0, 2.5, 0]])
    assert lift.principal(weight, 3, 2).tolist() == [0, 4], "full rank: largest weights"
    rank_one = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0, 0.5]))
    noise = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.2]])
    assert lift.principal(rank_one + noise, 2, 2).tolist() == [3, 5], "6 and 3.2"
    u, s, vh = torch.linalg.svd((rank_one + noise).double())
    low = (s[0] * torch.outer(u[:, 0], vh[0])).abs().flatten()
    assert lift.principal(rank_one + noise, 1, 3).tolist() == sorted(low.topk(3).indices.tolist())
    draw = torch.Generator().manual_seed(0)
    big = torch.randn(20, 30, generator=draw)
    assert torch.equal(lift.principal(big, 99, 50).long(), big.abs().flatten().topk(50).indices.sort().values)
    assert not torch.equal(lift.principal(big, 2, 50), lift.principal(big, 99, 50))


def test_exactly_the_principal_weights_change_even_with_decay(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    run = run_of("lift", policy, tmp_path / "run", rank=2, filter_rank=4, refresh_steps=100, weight_decay=0.1)
    before = weights(run)
    list(run)
    for name, m in moved(before, weights(run)).items():
        if "_proj" not in name:
            assert not m.any(), f"{name} moved"
            continue
        k = 2 * sum(m.shape)
        assert torch.equal(m.flatten().nonzero()[:, 0], lift.principal(before[name], 4, k).long()), name
        assert run.engine.state.optim["adamw"][name]["exp_avg"].shape == (k,)


def test_a_refresh_follows_the_weights_and_survivors_keep_their_moments(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    run = run_of("lift", policy, tmp_path / "run", rank=2, filter_rank=4, refresh_steps=2, lr=0.05, max_grad_norm=0)
    name = "model.layers.0.mlp.up_proj.weight"
    seen, masks, moments = [weights(run)[name]], [], []
    for _ in run:
        slots = run.engine.state.optim["adamw"][name]
        seen.append(weights(run)[name])
        masks.append(run.engine.state.tensors["lift/" + name].clone())
        spread = torch.zeros(seen[0].numel())
        spread[slots["places"].long()] = slots["exp_avg"]
        moments.append(spread)
        assert int(slots["step"]) == len(masks)
    k = len(masks[0])
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], lift.principal(seen[0], 4, k))
    assert torch.equal(masks[2], lift.principal(seen[2], 4, k)) and not torch.equal(masks[1], masks[2])
    changed = (seen[3] != seen[2]).flatten().nonzero()[:, 0]
    assert torch.equal(changed, masks[2].long())
    stayed = masks[2][torch.isin(masks[2], masks[1])].long()
    new = masks[2][~torch.isin(masks[2], masks[1])].long()
    gradient = (moments[2] - 0.9 * moments[1])[torch.cat([stayed, new])] / 0.1
    run.rewind(2)
    third = [ROWS[row] for row, _ in run.engine._context_for(run.engine.live).draw(3, 4, len(ROWS))]
    truth = run.gradients(third).by_name[name].flatten()[torch.cat([stayed, new])]
    torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-5)


def test_lift_goes_back_and_on_and_all_entries_are_sft(tmp_path):
    def policies():
        return tiny_policy(tmp_path / "m")

    whole = goes_back_and_on(
        "lift", policies, tmp_path, steps=6, rank=2, filter_rank=4, refresh_steps=4, lr=0.05, others=True
    )
    assert whole.metrics["mask_overlap"].dropna().index.tolist() == [5]
    assert 0.5 < whole.metrics["mask_overlap"][5] < 1
    runs = [
        run_of("lift", policies(), tmp_path / "all", rank=10_000, others=True),
        run_of("lift", policies(), tmp_path / "none", rank=None, others=True),
        run_of("sft", policies(), tmp_path / "sft"),
    ]
    for run in runs:
        list(run)
    for run in runs[:2]:
        assert_same_weights(weights(run), weights(runs[2]))
        assert run.metrics["trained_share"].iloc[1:].eq(1).all()


def test_settings_that_are_changed_later_are_checked_again(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    run = run_of("lift", policy, tmp_path / "run", rank=None, others=True)
    run.run(1)
    with pytest.raises(SettingError, match="this policy trains an adapter"):
        run.set(rank=2)
    run.run(1)
    assert run.step == 2 and run.engine.settings.rank is None
