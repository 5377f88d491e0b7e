"""Merging: task vectors, soups, scaled and pruned updates, fused decoding; with hand-worked numbers."""

import numpy as np
import peft
import pytest
import torch

import workbench as wb
from tests.models import noisy_adapter, tiny_policy
from tests.runs import make_run
from workbench.errors import SettingError
from workbench.merging import breadcrumbs, fusion, lines, soups, stock, vectors

IDS = torch.tensor([[5, 9, 200, 31, 7], [3, 3, 80, 1, 0]])


def logits(policy):
    with torch.no_grad():
        return policy.model(input_ids=IDS, use_cache=False).logits


def moved(params, seed, scale=0.1):
    """Other params of the same adapter."""
    generator = torch.Generator().manual_seed(seed)
    return {name: p + scale * torch.randn(p.shape, generator=generator) for name, p in params.items()}


def holding(policy, params):
    with policy.holding(params):
        return logits(policy)


def deltas(policy, params):
    return {name: vectors.tensor_of(part) for name, part in vectors.vectors(policy, [params])[0].items()}


@pytest.fixture
def lora(tmp_path):
    return tiny_policy(tmp_path / "m", lora=True)


@pytest.fixture
def full(tmp_path):
    return tiny_policy(tmp_path / "m")


def assert_base_plus(made, policy, expected):
    """The logits of `made` are those of the base with `expected` added to its weights."""
    plain = vectors.dense(policy, expected)
    assert (logits(made) - logits(plain)).abs().max() < 1e-5 * logits(plain).abs().max()


def test_the_vector_of_a_lora_is_what_peft_merges(lora):
    layer = next(m for m in lora.model.modules() if type(m) is peft.tuners.lora.Linear)
    (tau,) = vectors.vectors(lora, [lora.params()])
    name = next(iter(tau))
    assert torch.allclose(tau[name].dense(), layer.get_delta_weight("default"), atol=1e-7)
    assert_base_plus(lora, lora, deltas(lora, lora.params()))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_soup_is_the_mean_of_what_was_added(kind, request):
    policy = request.getfixturevalue(kind)
    members = [moved(policy.params(), seed) for seed in range(3)]
    soup = soups.uniform(policy, members)
    each = [deltas(policy, member) for member in members]
    assert_base_plus(soup, policy, {name: sum(d[name] for d in each) / 3 for name in each[0]})
    assert (logits(soup) - holding(policy, members[0])).abs().max() > 1e-2


def test_a_soup_of_loras_is_peft_s_cat(tmp_path, lora):
    members = [moved(lora.params(), seed) for seed in range(2)]
    soup = soups.uniform(lora, members)
    model = wb.load(tmp_path / "m").attach(peft.LoraConfig(**lora.adapter.to_dict())).model
    for number, member in enumerate(members):
        model.add_adapter(f"m{number}", lora.adapter)
        state = {n.replace(".default.", f".m{number}."): p for n, p in member.items()}
        model.load_state_dict(state, strict=False)
    model.add_weighted_adapter(["m0", "m1"], [0.5, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    model.eval()
    with torch.no_grad():
        theirs = model(input_ids=IDS, use_cache=False).logits
    assert (logits(soup) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_averages_of_the_factors_are_something_else(lora):
    members = [moved(lora.params(), seed) for seed in range(2)]
    wrong = {name: (members[0][name] + members[1][name]) / 2 for name in members[0]}
    soup, averaged = logits(soups.uniform(lora, members)), holding(lora, wrong)
    assert (soup - averaged).norm() > 0.05 * (soup - logits(vectors.dense(lora, {}))).norm()


def test_the_greedy_soup_finds_the_middle_and_leaves_what_is_far(full):
    target = {name: p + 0.05 for name, p in full.params().items()}
    error = moved({name: torch.zeros_like(p) for name, p in target.items()}, 1)
    members = [
        {name: target[name] + error[name] for name in target},
        {name: p + 3.0 for name, p in target.items()},
        {name: target[name] - error[name] for name in target},
    ]

    def score(policy):
        return -sum(float((p - target[name]).double().pow(2).sum()) for name, p in policy.params().items())

    soup = soups.greedy(full, members, score)
    assert soup.kept in ([0, 2], [2, 0]) and soup.score > max(soup.scores) and -1e-6 < soup.score <= 0
    assert all(torch.allclose(p, target[name], atol=1e-6) for name, p in soup.policy.params().items())
    assert soups.greedy(full, members, lambda policy: 1.0).kept == [0]  # strictly better, or it stays out


def test_runs_are_members_and_a_stopped_one_is_told(tmp_path):
    run = make_run("sft", tmp_path, steps=2)
    list(run)
    start = {name: p.clone() for name, p in run.engine.reference_params().items()}
    soup = soups.uniform(run.policy, [run, start])
    assert soup.adapter.r == 2 * run.policy.adapter.r
    run.stop()
    with pytest.raises(SettingError, match=r"members\[0\].*wb.resume"):
        soups.uniform(soup, [wb.open(tmp_path / "run"), start])


def test_lines_scales_by_depth(tmp_path):
    policy = noisy_adapter(tiny_policy(tmp_path / "m", num_hidden_layers=4).attach(wb.LoRA(r=4)))
    before = deltas(policy, policy.params())
    scaled = lines.lines(policy, [policy.params()], a=0.1)
    after = deltas(scaled, scaled.params())
    for name, tau in before.items():
        ratio = float(after[name].norm() / tau.norm())
        assert ratio == pytest.approx((0.1, 0.4, 0.7, 1.0)[vectors.layer_of(name)], abs=1e-5), name
    same = lines.lines(policy, [policy.params()], a=1.0)
    assert torch.allclose(logits(same), logits(policy), atol=1e-5)
    scaled.save(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(vectors.dense(policy, {}).model, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(again(input_ids=IDS, use_cache=False).logits, logits(scaled), atol=1e-5)


def test_lines_of_several_scales_their_sum(lora):
    members = [moved(lora.params(), seed) for seed in range(2)]
    each = [deltas(lora, member) for member in members]
    made = lines.lines(lora, members, b=0.4)
    expected = {
        name: (0.5 + 0.4 * vectors.layer_of(name)) * (each[0][name] + each[1][name]) for name in each[0]
    }  # two layers: 0.5 and 0.9
    assert_base_plus(made, lora, expected)
    with pytest.raises(SettingError, match="give b"):
        lines.lines(lora, members)


def test_model_stock_pulls_towards_the_base_by_the_angle(full):
    start = full.params()
    up, across = ({name: torch.zeros_like(p) for name, p in start.items()} for _ in range(2))
    for name in start:
        up[name].view(-1)[0], across[name].view(-1)[1] = 1.0, 1.0

    def plus(*parts):
        return {name: start[name] + sum(part[name] for part in parts) for name in start}

    same = stock.model_stock(full, [plus(up), plus(up)])
    assert set(same.t.values()) == {1.0} and torch.allclose(logits(same.policy), holding(full, plus(up)), atol=1e-5)
    apart = stock.model_stock(full, [plus(up), plus(across)])
    assert max(apart.t.values()) < 1e-9 and torch.allclose(logits(apart.policy), logits(full), atol=1e-6)
    assert stock.ratio(0.463, 2) == pytest.approx(0.633, abs=5e-4)
    half = stock.model_stock(full, [plus(up), plus(up, across)])  # cos 45 degrees: t = 2c / (1 + c)
    assert half.t[next(iter(start))] == pytest.approx(2 * 0.5**0.5 / (1 + 0.5**0.5), abs=1e-5)
    assert stock.ratio(-0.3, 2) == 0.0 and stock.ratio(0.5, 3) == pytest.approx(0.75)


def test_breadcrumbs_drop_outliers_and_dust():
    tau = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()[None] + 1
    kept = breadcrumbs.pruned(tau, keep=0.9, gamma=0.01)
    assert int((kept != 0).sum()) == 900 and kept.max() == 990 and kept[kept != 0].min() == 91
    rows = torch.tensor([[1.0, -4.0, 3.0, 2.0], [40.0, 10.0, -20.0, 30.0]])
    assert breadcrumbs.pruned(rows, 0.5, 0.25).tolist() == [[0, 0, 3, 2], [0, 0, -20, 30]]


def test_breadcrumbs_go_into_the_weights(lora):
    members = [moved(lora.params(), seed) for seed in range(2)]
    each = [deltas(lora, member) for member in members]
    made = breadcrumbs.breadcrumbs(lora, members, alpha=0.3, keep=0.5, gamma=0.1)
    assert not made.has_adapter
    assert_base_plus(made, lora, {n: 0.3 * sum(breadcrumbs.pruned(d[n], 0.5, 0.1) for d in each) for n in each[0]})
    for wrong in ({"keep": 1.0}, {"keep": 0.0}, {"gamma": 1.0}):
        with pytest.raises(SettingError, match="keep"):
            breadcrumbs.breadcrumbs(lora, members, **wrong)


def test_members_that_do_not_fit_are_told(tmp_path, lora, full):
    with pytest.raises(SettingError, match="at least 2"):
        soups.uniform(lora, [lora.params()])
    with pytest.raises(SettingError, match=r"members\[1\] is not of this policy"):
        soups.uniform(lora, [lora.params(), full.params()])
    with pytest.raises(SettingError, match=r"members\[1\] is str"):
        soups.uniform(lora, [lora.params(), "runs/a"])
    dora = tiny_policy(tmp_path / "d").attach(peft.LoraConfig(r=4, use_dora=True, target_modules="all-linear"))
    with pytest.raises(SettingError, match="plain LoRA"):
        soups.uniform(dora, [dora.params(), dora.params()])
    with pytest.raises(SettingError, match="NaN"):
        soups.greedy(lora, [lora.params(), lora.params()], lambda policy: float("nan"))


# -- fused decoding


def random_logits(seed, rows=4, vocab=50):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_large_model_that_is_the_small_base_becomes_the_expert():
    base, expert = random_logits(0), random_logits(1)
    made, strength, _ = fusion.fused(base, base, [expert])
    assert (strength - 1).abs().max() < 1e-9 and torch.allclose(made.softmax(-1), expert.softmax(-1))


def test_an_expert_that_learnt_nothing_moves_nothing():
    large, base = random_logits(0), random_logits(1)
    made, strength, _ = fusion.fused(large, base, [base])
    assert strength.tolist() == [0.0] * 4 and torch.equal(made, large)
    assert torch.equal(fusion.fused(large, base, [random_logits(2)], strength=0.0)[0], large)


def test_the_strength_is_the_best_of_the_grid():
    large, base, expert = (random_logits(seed, rows=1) for seed in range(3))
    _, strength, _ = fusion.fused(large, base, [expert])

    def kl(a, b):
        a, b = a.log_softmax(-1), b.log_softmax(-1)
        return float((a.exp() * (a - b)).sum())

    def cost(a):
        moved = large + a * (expert - base)
        forward = kl(moved, large) - kl(expert, base)
        return forward**2 + (kl(large, moved) - kl(base, expert)) ** 2

    costs = [cost(a) for a in fusion.GRID.tolist()]
    assert float(strength) == fusion.GRID.tolist()[int(np.argmin(costs))] and 0 < float(strength) < 2


def test_of_several_experts_the_best_acts():
    large, base = random_logits(0), random_logits(1)
    far = base + 30 * random_logits(2)
    _, _, expert = fusion.fused(base, base, [far, random_logits(3)])
    alone = [fusion._costs(base.log_softmax(-1), base.log_softmax(-1), z.log_softmax(-1), base, z - base).amin(0)
             for z in (far, random_logits(3))]  # fmt: skip
    assert torch.equal(expert, (alone[1] < alone[0] - 1e-12).long())
    both, _, who = fusion.fused(large, base, [far, random_logits(3)], strength=1.0)
    assert torch.allclose(both, large + far - base + random_logits(3) - base) and set(who.tolist()) == {-1}


def test_fused_completions(tmp_path):
    large, small = tiny_policy(tmp_path / "large", hidden_size=64), tiny_policy(tmp_path / "small", lora=True)
    texts = ["Hello", "What is 12 + 30?", "Hello"]
    plain = large.sample(texts, n=2, max_new_tokens=12, seed=3)
    still = fusion.fuse(large, small, None, texts, n=2, max_new_tokens=12, strength=0.0, seed=3)
    assert still.ids == plain.ids and still.text == plain.text
    own = small.sample(texts, n=2, max_new_tokens=12, seed=3)
    bare = vectors.dense(small, {})  # the large model is the small base
    steered = fusion.fuse(bare, small, None, texts, n=2, max_new_tokens=12, seed=3)
    assert steered.ids == own.ids
    assert all(a == pytest.approx(1.0) for row in steered.strength for a in row)
    free = fusion.fuse(large, small, None, texts, n=2, max_new_tokens=12, seed=3)
    assert [len(row) for row in free.strength] == [len(ids) for ids in free.ids] == [len(e) for e in free.expert]
    assert free.ids != plain.ids
    assert small.model.active_adapters == ["default"] and not any(m.training for m in small.model.modules())


def test_what_cannot_be_fused_is_told(tmp_path):
    large, small = tiny_policy(tmp_path / "a"), tiny_policy(tmp_path / "b")
    with pytest.raises(SettingError, match="give experts"):
        fusion.fuse(large, small, None, "a")
    with pytest.raises(SettingError, match="experts is empty"):
        fusion.fuse(large, small, [], "a")
    other = tiny_policy(tmp_path / "c", vocab_size=512)
    with pytest.raises(SettingError, match="vocabulary"):
        fusion.fuse(large, small, [other], "a")
