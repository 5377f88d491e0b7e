"""How far training moved weights, and how likely rows were before it."""

import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from tests.runs import make_run
from workbench import adapters
from workbench.analyses import weights
from workbench.errors import DataError, SettingError
from workbench.merging.vectors import Factors


def test_the_norm_of_a_product_without_the_product():
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(40, 4, generator=generator), torch.randn(4, 30, generator=generator)
    assert weights.norm_of(Factors(0.5 * b, a)) == pytest.approx(float((0.5 * b @ a).norm()), rel=1e-5)
    assert weights.norm_of(Factors(torch.zeros(3, 2), torch.ones(2, 5))) == 0


def test_a_lora_moves_what_its_merge_moves(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    made = weights.weight_map(policy)
    merged, base = policy.model, tiny_policy(tmp_path / "m").model
    for _, row in made.frame.iterrows():
        layer = merged.get_submodule("base_model.model." + row["weight"].removesuffix(".weight"))
        start = base.get_parameter(row["weight"])
        change = float(layer.get_delta_weight("default").norm() / start.norm())
        assert row["change"] == pytest.approx(change, rel=1e-5) and row["module"] in row["weight"]
    assert set(made.frame["layer"]) == {0, 1} and made.frame["module"].nunique() == 7
    assert made.summary["start"] > 0 and made.figure.data[0].z.shape == (7, 2)


def test_an_adapter_at_its_start_moves_nothing(tmp_path):
    policy = tiny_policy(tmp_path / "m").attach(wb.LoRA(r=4))
    assert (weights.weight_map(policy).frame["change"] == 0).all()


def test_runs_stand_side_by_side(tmp_path):
    run = make_run("sft", tmp_path, steps=2)
    start = {name: p.clone() for name, p in run.engine.state.params.items()}
    list(run)
    made = weights.weight_map(run.policy, {"tuned": run, "start": start})
    assert made.summary["tuned"] != made.summary["start"] and len(made.figure.data) == 2
    listed = weights.weight_map(run.policy, [run])
    assert listed.frame["change"].tolist() == made.frame[made.frame["member"] == "tuned"]["change"].tolist()
    with pytest.raises(SettingError, match="by name"):
        weights.weight_map(run.policy, start)


def test_without_an_adapter_it_is_the_change_since_the_start(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    moved = {name: 1.5 * p for name, p in policy.params().items()}
    frame = weights.weight_map(policy, {"more": moved}).frame
    assert np.allclose(frame["change"], 0.5, atol=1e-6) and frame["layer"].isna().any()


def test_data_sets_by_the_loss_of_the_base(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True)
    rows = {name: [{"prompt": f"{name} {i}", "completion": f" {i} word"} for i in range(3)] for name in ("a", "b")}
    made = weights.base_likelihood(policy, rows)
    with adapters.without(policy.model):
        scores = policy.score([r["prompt"] for r in rows["b"]], [r["completion"] for r in rows["b"]]).logprob
    expected = -np.mean([float(values.mean()) for values in scores])
    row = made.frame[made.frame["data"] == "b"].iloc[0]
    assert row["nll"] == pytest.approx(expected, rel=1e-6) and row["perplexity"] == pytest.approx(math.exp(expected))
    assert made.frame["nll"].is_monotonic_increasing and made.figure.data
    with pytest.raises(SettingError, match="by name"):
        weights.base_likelihood(policy, rows["a"])
    with pytest.raises(DataError, match="prompt"):
        weights.base_likelihood(policy, {"a": [{"text": "x"}]})
