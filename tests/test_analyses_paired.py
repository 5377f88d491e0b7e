"""Two models side by side: which ones they are, that each gives its own numbers, that nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

import workbench as wb
from tests.models import noisy_adapter, tiny_model_folder, tiny_policy, tiny_tokenizer
from tests.runs import make_run, weights
from workbench import worker
from workbench.analyses import paired
from workbench.errors import DataError, SettingError

IDS = [[5, 9, 30, 41, 7, 77], [8, 2, 2, 60, 61, 90]]


@pytest.fixture
def policy(tmp_path):
    return tiny_policy(tmp_path / "model", lora=True)


def snapshot(policy):
    return (
        policy.holder,
        {name: (p.data_ptr(), p.requires_grad) for name, p in policy.model.named_parameters()},
        [module.training for module in policy.model.modules()],
        {module: dict(module.__dict__) for module in policy.model.modules() if "forward" in module.__dict__},
    )


def test_the_base_is_the_model_without_its_adapter(policy, tmp_path):
    base, tuned = paired.pair(policy).logits(IDS)
    alone = wb.load(tmp_path / "model", dtype="float32", device="cpu")
    assert torch.equal(base, alone.logits(torch.tensor(IDS), 6).detach())
    assert torch.equal(tuned, policy.logits(torch.tensor(IDS), 6).detach())
    assert (base - tuned).abs().max() > 0.1


def test_two_policies_and_a_bare_adapter(policy, tmp_path):
    other = wb.load(tmp_path / "model", dtype="float32", device="cpu")
    both = paired.pair(policy, base=other)
    assert both.base.policy is other
    for one, two in zip(both.logits(IDS), paired.pair(policy).logits(IDS), strict=True):
        torch.testing.assert_close(one, two)
    plain = wb.load(tmp_path / "model", dtype="float32", device="cpu").attach(wb.LoRA(r=2))
    base, tuned = paired.pair(plain).logits(IDS)
    assert torch.equal(base, tuned)


def test_states_of_a_run(tmp_path):
    run = make_run("sft", tmp_path, steps=4)
    run.run()
    after = paired.pair(run).logits(IDS)[1]
    held = run.policy
    assert torch.equal(after, held.logits(torch.tensor(IDS), 6).detach())
    both = paired.pair((run, 4), base=2)
    then, now = both.logits(IDS)
    assert torch.equal(now, after) and not torch.equal(then, now)
    assert both.base.name == "run, step 2"
    run.rewind(2)
    assert torch.equal(then, run.policy.logits(torch.tensor(IDS), 6).detach())


def test_a_run_of_the_whole_model_has_its_beginning_as_base(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    first = policy.logits(torch.tensor(IDS), 6).detach()
    run = make_run("sft", tmp_path, policy, steps=2)
    run.run()
    base, tuned = paired.pair(run).logits(IDS)
    assert torch.equal(base, first) and (base - tuned).abs().max() > 1e-3
    assert torch.equal(paired.pair(run.policy).logits(IDS)[0], first)  # the policy holds the run's weights
    policy.reset()
    with pytest.raises(SettingError, match="no base"):
        paired.pair(policy)


def test_nothing_is_left_behind_also_after_an_error(policy, tmp_path):
    run = make_run("sft", tmp_path, policy, steps=2)
    run.run()
    policy.reset()
    policy.model.train()
    before = snapshot(policy)
    prompts, kept = ["Say 1:", "Say 2:"], weights(run)
    wb.method("token_shift")(run, prompts, max_new_tokens=4)
    wb.method("tuco")((run, 1), prompts, base=0, scales=(0.5,), max_new_tokens=4)
    assert snapshot(policy) == before
    broken = paired.blocks(policy)[1].mlp
    hook = broken.register_forward_pre_hook(lambda *given: (_ for _ in ()).throw(ValueError("broken on purpose")))
    for name in ("tuco", "token_shift"):
        with pytest.raises(ValueError, match="on purpose"):
            wb.method(name)(run, prompts, [" a b", " c"], base=0)
    hook.remove()
    assert snapshot(policy) == before
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(run).items())


def test_where_there_is_no_base_it_is_said_why(policy, tmp_path):
    plain = wb.load(tmp_path / "model", dtype="float32", device="cpu")
    with pytest.raises(SettingError, match="merged.*base is gone.*base=wb.load"):
        paired.pair(plain)
    policy.model.merge_adapter()
    with pytest.raises(SettingError, match="merged into the weights"):
        paired.pair(policy)
    policy.model.unmerge_adapter()
    odd = plain.attach(LoraConfig(r=2, init_lora_weights="pissa", target_modules="all-linear"))
    with pytest.raises(SettingError, match="pissa.*moved a part"):
        paired.pair(odd)
    small = wb.load(
        tiny_model_folder(tmp_path / "other", tokenizer=tiny_tokenizer(eos_token="<end>"), vocab_size=264),
        dtype="float32", device="cpu",
    )  # fmt: skip
    with pytest.raises(SettingError, match="different vocabularies"):
        paired.pair(policy, base=small)
    with pytest.raises(SettingError, match="policy, a run or"):
        paired.pair("tiny")


def test_a_run_to_look_at_is_refused(tmp_path):
    run = make_run("sft", tmp_path, steps=1)
    run.run()
    with pytest.raises(SettingError, match="wb.resume"):
        paired.pair(wb.open(run.folder))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_traced_states_and_edits(tmp_path, kind):
    policy = noisy_adapter(tiny_policy(tmp_path / kind, kind).attach(wb.LoRA(r=4)), 0.3)
    both, ids = paired.pair(policy), torch.tensor(IDS)

    def read():
        base, tuned = both.logits(ids)
        with both.tuned.held() as held, paired.traced(held) as seen:
            assert torch.equal(held.logits(ids, 6), tuned)
            last = seen[-1].clone()
        with both.base.held() as held, paired.traced(held, lambda i, h: h) as seen:
            assert torch.equal(held.logits(ids, 6), base) and len(seen) == 2
        # the last block's output of the tuned model, put into the base, gives the tuned model's logits
        with both.base.held() as held, paired.traced(held, lambda i, h: last if i == 1 else h):
            torch.testing.assert_close(held.logits(ids, 6), tuned, atol=1e-5, rtol=1e-5)

    worker.call(read)


def test_what_both_say_of_tokens_is_what_each_says_alone(policy):
    both = paired.pair(policy)
    sequences, starts = paired.sequences_of(policy, ["ab", [3, 4, 5]], ["cde", [9, 8]])
    assert [len(s) for s in sequences] == [5, 5] and starts == [2, 3]
    parts = worker.call(lambda: list(paired.compared(both, sequences, starts)))
    told = {
        (int(row), int(column)): float(logp[token])
        for part in parts
        for row, column, logp, token in zip(part.row, part.column, part.tuned, part.target, strict=True)
    }
    scores = policy.score([s[:start] for s, start in zip(sequences, starts, strict=True)], ["cde", [9, 8]])
    for row, values in enumerate(scores.logprob):
        assert [told[row, t] for t in range(len(values))] == pytest.approx(values.tolist(), abs=1e-5)
    with pytest.raises(DataError, match="2 prompts but 1"):
        paired.sequences_of(policy, ["a", "b"], ["c"])
    with pytest.raises(DataError, match="Completion 1 is neither"):
        paired.sequences_of(policy, ["a", "b"], ["c", 3.5])
