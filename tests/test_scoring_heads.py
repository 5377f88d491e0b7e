"""Scores from hidden states, a tile of logits at a time: the numbers and gradients are those of whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import KINDS, exact_norms, noisy_adapter, tiny_model_folder, tiny_policy
from workbench import heads, layouts, scoring, trunk
from workbench.adapters import LoRA
from workbench.policy import load

NEEDS = frozenset({"entropy", "mean_logprob", "log_sum_sq"})
SEQUENCES = [[(7 * i + 5 * b + 3) % 250 for i in range(n)] for b, n in enumerate((11, 5, 17, 2))]
STARTS = [3, 1, 9, 2]


def reference(model, temperature: float = 1.0) -> dict[str, torch.Tensor]:
    """The statistics of all scored tokens (N,) from whole logits, each row alone."""
    made = {name: [] for name in ("logprob", "entropy", "mean_logprob", "log_sum_sq", "top1")}
    for sequence, start in zip(SEQUENCES, STARTS, strict=True):
        z = model(torch.tensor([sequence]), use_cache=False).logits[0, start - 1 : -1]  # (T, V)
        z = z if z.dtype == torch.float64 else z.float()
        logp = torch.log_softmax(z / temperature, -1)
        target = torch.tensor(sequence[start:], dtype=torch.long)
        made["logprob"].append(logp.gather(-1, target[:, None])[:, 0])
        made["entropy"].append(-(logp.exp() * logp).sum(-1))
        made["mean_logprob"].append(logp.mean(-1))
        made["log_sum_sq"].append(torch.logsumexp(2 * logp, -1))
        made["top1"].append(logp.argmax(-1) == target)
    return {name: torch.cat(values) for name, values in made.items()}


def loss_of(made: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each statistic that can be differentiated, each token with a weight of its own."""
    n = len(made["logprob"])
    weights = torch.linspace(-1, 2, n, dtype=made["logprob"].dtype)
    both = made["entropy"] * weights.flip(0) + 0.3 * made["mean_logprob"] * weights.cos()
    return (made["logprob"] * weights + 0.7 * both).sum()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().double().norm() / b.detach().double().norm())


def gradients(policy, loss: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])


def scored(policy, temperature: float = 1.0, **how) -> dict[str, torch.Tensor]:
    scores = policy.token_scores(SEQUENCES, STARTS, temperature=temperature, needs=NEEDS, **how)
    return {name: value[scores.mask] for name, value in vars(scores).items() if name != "mask" and value is not None}


def agree(policy, monkeypatch, tolerance: float, temperature: float = 1.0) -> None:
    monkeypatch.setattr(heads, "TOKENS", {"cpu": 5})  # 4 blocks of tokens
    monkeypatch.setattr(heads, "TILE", {"cpu": 5 * 256})  # 2 tiles of the vocabulary, of 256 and 4 entries
    monkeypatch.setattr(heads, "CHUNK", 6 * 260)
    ours, theirs = scored(policy, temperature), reference(policy.model, temperature)
    for name, value in theirs.items():
        if name == "top1":
            assert torch.equal(ours[name], value)
        else:
            assert distance(ours[name], value) <= max(tolerance, 1e-12), name
    mine = gradients(policy, loss_of(ours))
    exact = gradients(policy, loss_of(reference(policy.model, temperature)))
    assert exact.norm() > 1e-2 and distance(mine, exact) <= tolerance
    entropy_alone = gradients(policy, scored(policy)["entropy"].sum())
    assert distance(entropy_alone, gradients(policy, reference(policy.model)["entropy"].sum())) <= 2 * tolerance
    with torch.no_grad():
        quiet = scored(policy, temperature)
    assert all(torch.equal(quiet[n], ours[n].detach()) and not quiet[n].requires_grad for n in theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mamba"])
def test_a_frozen_head(tmp_path, monkeypatch, kind, dtype):
    policy = tiny_policy(tmp_path / "m", kind, lora=True, dtype=dtype)
    if dtype == "float64":
        exact_norms(policy)
    assert (heads.plain_weight(trunk.of(policy.model)) is not None) == (kind != "gemma2")
    # gemma's norms and eager softmax are in float32, at other lengths with other rounding
    agree(policy, monkeypatch, 1e-10 if dtype == "float64" and kind != "gemma2" else 5e-6, temperature=0.7)


HEADS = {
    "tied, all trains": ("qwen3", {}, None),
    "untied, all trains": ("llama", {}, None),
    "soft-capped, all trains": ("gemma2", {}, None),
    "mamba, all trains": ("mamba", {}, None),
    "adapter on the head": ("llama", {}, LoRA(r=4, alpha=8, targets=["q_proj", "down_proj", "lm_head"])),
    "adapter on the head alone": ("gpt2", {"tie_word_embeddings": False}, LoRA(r=4, alpha=8, targets=["lm_head"])),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_trains(tmp_path, monkeypatch, head, dtype):
    kind, changes, adapter = HEADS[head]
    policy = tiny_policy(tmp_path / "m", kind, dtype=dtype, **changes)
    if adapter is not None:
        noisy_adapter(policy.attach(adapter))
    if dtype == "float64":
        exact_norms(policy)
    rounded = kind in ("gemma2", "mamba")
    agree(policy, monkeypatch, 1e-10 if dtype == "float64" and not rounded else 5e-6)


def test_plain_head_that_trains_is_the_head_s_own_gradient(tmp_path):
    policy = tiny_policy(tmp_path / "m", "llama")
    policy.model.requires_grad_(False)
    policy.model.lm_head.weight.requires_grad_(True)
    mine = gradients(policy, loss_of(scored(policy)))
    assert distance(mine, gradients(policy, loss_of(reference(policy.model)))) <= 5e-6


@pytest.mark.parametrize("family", ["CohereConfig", "GraniteConfig"])
def test_scaled_logits(tmp_path, monkeypatch, family):
    import transformers as t

    changes = {"logit_scale": 0.25} if family == "CohereConfig" else {"logits_scaling": 3.0}
    config = getattr(t, family)(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=257, eos_token_id=258, pad_token_id=256, initializer_range=0.3, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tiny_model_folder(tmp_path / "m")
    t.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    policy = noisy_adapter(load(folder, dtype="float32", device="cpu").attach(LoRA(r=4, alpha=8)))
    assert trunk.of(policy.model) is not None and heads.plain_weight(trunk.of(policy.model)) is None
    agree(policy, monkeypatch, 5e-6)


def test_a_head_with_little_soft_capping_is_no_plain_one(tmp_path):
    # tiny logits, which a cap of 30 changes by less than rounding
    policy = tiny_policy(tmp_path / "m", "gemma2", final_logit_softcapping=30.0, initializer_range=0.001)
    assert heads.plain_weight(trunk.of(policy.model)) is None
    policy = tiny_policy(tmp_path / "n", "gemma2", final_logit_softcapping=None)
    assert heads.plain_weight(trunk.of(policy.model)) is not None


def test_a_head_with_a_bias_is_no_plain_one(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", "llama")
    head = policy.model.lm_head
    head.bias = torch.nn.Parameter(torch.linspace(-3, 3, 260))
    assert heads.plain_weight(trunk.of(policy.model)) is None
    agree(policy, monkeypatch, 5e-6)


def test_models_that_cannot_be_cut_take_their_own_logits(tmp_path):
    from peft import PromptTuningConfig

    policy = tiny_policy(tmp_path / "m").attach(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert trunk.of(policy.model) is None
    ours = scored(policy)
    theirs = []
    for sequence, start in zip(SEQUENCES, STARTS, strict=True):
        logp = torch.log_softmax(policy.model(torch.tensor([sequence]), use_cache=False).logits[0], -1)
        theirs += [logp[2 + t - 1, sequence[t]] for t in range(start, len(sequence))]
    assert distance(ours["logprob"], torch.stack(theirs)) <= 5e-6
    assert gradients(policy, loss_of(ours)).norm() > 0


def test_bfloat16_and_autocast_are_close_to_their_own_logits(tmp_path):
    policy = tiny_policy(tmp_path / "m", lora=True, dtype="bfloat16")
    ours, theirs = scored(policy), reference(policy.model)
    assert ours["logprob"].dtype == torch.float32
    assert distance(ours["logprob"], theirs["logprob"]) <= 0.02
    mine = gradients(policy, loss_of(ours)).float()
    assert distance(mine, gradients(policy, loss_of(theirs)).float()) <= 0.1
    policy = tiny_policy(tmp_path / "n", lora=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = scored(policy), reference(policy.model)
        assert distance(ours["logprob"], theirs["logprob"]) <= 0.02
        mine = gradients(policy, loss_of(ours))
        assert distance(mine, gradients(policy, loss_of(theirs))) <= 0.05
    assert not torch.equal(scored(policy)["logprob"], ours["logprob"])


def test_bfloat16_head_alone_is_exact_but_for_the_logits():
    # the same rounded logits, so what is left is the float32 arithmetic
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 16, generator=draw).bfloat16(), torch.randn(700, 16, generator=draw).bfloat16()
    target = torch.arange(9) * 70
    head = heads._Plain(hidden, weight, target, 1.0, NEEDS, ["logprob"])
    head.size = (4, 256)
    made, slopes = head.made()
    z = (hidden @ weight.t()).float()
    plain = heads.statistics(z, target, needs=NEEDS)
    for name in ("logprob", "entropy", "log_sum_sq"):
        assert distance(made[name], plain[name]) <= 1e-6
    assert torch.equal(made["top1"], plain["top1"])
    expected = weight[target].double() - torch.softmax(z.double(), -1) @ weight.double()
    assert distance(slopes["logprob"], expected) <= 1e-6


def test_the_first_of_equal_tops_is_the_top():
    # entries 1, 300 and 500 of 600 are equal, in three tiles or one
    weight = torch.zeros(600, 4)
    weight[[1, 300, 500]] = 1.0
    hidden, target = torch.ones(4, 4), torch.tensor([1, 300, 500, 2])
    for columns in (256, 600):
        head = heads._Plain(hidden, weight, target, 1.0, frozenset(), [])
        head.size = (4, columns)
        assert head.made()[0]["top1"].tolist() == [True, False, False, False]


def test_logits_of_a_batch_are_never_held(tmp_path, monkeypatch):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **kwargs or {})
            for tensor in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return made

    monkeypatch.setattr(heads, "TOKENS", {"cpu": 32})
    monkeypatch.setattr(heads, "TILE", {"cpu": 32 * 256})
    monkeypatch.setattr(heads, "CHUNK", 4 * 3000)
    for kind in ("llama", "gemma2"):
        policy = tiny_policy(tmp_path / kind, kind, lora=True, vocab_size=3000)
        rows = [[(i * b) % 3000 for i in range(1, 40)] for b in range(1, 9)]
        heads.plain_weight(trunk.of(policy.model))
        with Largest() as largest:
            scores = policy.token_scores(rows, [1] * 8, needs=NEEDS)
            (scores.logprob.sum() + scores.entropy.sum()).backward()
        weights = 3000 * 32
        assert largest.numel <= weights < 8 * 38 * 3000 / 4
        assert 8 * 38 * 32 <= largest.numel  # it saw the hidden states, at least


def test_an_nf4_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tiny_model_folder(tmp_path / "m", hidden_size=64, intermediate_size=128)
    policy = noisy_adapter(load(folder, quantize="nf4", dtype="float32", device="cpu").attach(LoRA(r=4, alpha=8)))
    ours = scored(policy)
    theirs = reference(policy.model)
    assert distance(ours["logprob"], theirs["logprob"]) <= 1e-5
    mine = gradients(policy, loss_of(ours))
    assert distance(mine, gradients(policy, loss_of(reference(policy.model)))) <= 5e-6


def test_parity_with_trl(tmp_path):
    from trl.trainer.utils import add_fused_lm_head

    policy = tiny_policy(tmp_path / "m", "gemma2")
    ours = scored(policy, 0.7)
    mine = gradients(policy, ours["logprob"].sum())
    model = policy.model
    labels, mask = torch.full((4, 17), -100), torch.zeros(4, 17, dtype=torch.bool)
    batch = layouts.layout(SEQUENCES, STARTS, policy.filler, "cpu")
    labels[batch.line, batch.position + 1] = batch.target
    mask[batch.line, batch.position + 1] = True
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy", "log_sum_sq_probs", "is_top1"))
    theirs = model(batch.ids, labels=labels, fused_lm_head=True)
    mask = mask[:, 1:]
    for name, other in (("logprob", "log_probs"), ("entropy", "entropy"), ("log_sum_sq", "log_sum_sq_probs")):
        assert distance(ours[name], getattr(theirs, other)[mask]) <= 1e-5
    assert torch.equal(ours["top1"], theirs.is_top1[mask].bool())
    assert distance(mine, gradients(policy, theirs.log_probs[mask].sum())) <= 1e-5


def test_alternatives(tmp_path, monkeypatch):
    policy = tiny_policy(tmp_path / "m", "gemma2")
    monkeypatch.setattr(heads, "CHUNK", 3 * 260)
    batch = layouts.layout(SEQUENCES[2:3], STARTS[2:3], policy.filler, "cpu")
    made = scoring.alternatives(scoring.predictions(policy.model, batch), 260, 5, temperature=0.7)
    z = policy.model(torch.tensor(SEQUENCES[2:3])).logits[0, 8:-1].detach()
    logp = torch.log_softmax(z / 0.7, -1)
    target = torch.tensor(SEQUENCES[2][9:])
    own = logp.gather(-1, target[:, None])
    assert (made.logprob - own[:, 0]).abs().max() <= 1e-5 and made.rank.tolist() == (logp > own).sum(-1).tolist()
    assert made.top_ids.tolist() == logp.topk(5).indices.tolist()
    assert (made.top_logprob - logp.topk(5).values).abs().max() <= 1e-5
    assert (made.entropy + (logp.exp() * logp).sum(-1)).abs().max() <= 1e-5


def test_gather_puts_micro_batches_back_in_order(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    parts = [[2, 0], [3], [1]]
    whole = policy.token_scores(SEQUENCES, STARTS)

    def some(number: int):
        rows = parts[number]
        return policy.token_scores([SEQUENCES[i] for i in rows], [STARTS[i] for i in rows])

    with torch.no_grad():
        made = scoring.gather(some, parts, 4, 8)
    assert torch.equal(made.mask, whole.mask) and made.mean_logprob is None
    assert (made.logprob - whole.logprob).abs().max() <= 1e-5
