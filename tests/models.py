"""Tiny random models for the tests, written to folders and loaded the way a user's are. No network, no
training.

`tiny_tokenizer(**specials)`                 a byte-level tokenizer of 260 ids: 256 bytes, <pad>, <bos>,
<eos>, <end>
`tiny_model_folder(folder, kind="llama")`    writes a random model of 2 layers and its tokenizer; returns the
folder
`tiny_policy(folder, kind="llama", lora=False)`   the same, loaded with `workbench.policy.load` (float32 on
the CPU)
`noisy_adapter(policy)`                      gives an adapter's zero matrices random values, so that it does
something
`exact_norms(policy)`                  makes a float64 model's norms float64, too
`PromptTokens(text, ids)`, `prompt_of(policy, text)`   a tokenised prompt for `policy.sample_prompts`
`KINDS`                                      the kinds: llama, qwen3, gemma2 (soft-capped, sliding window),
gpt2, mamba
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

BYTES = 256
PAD, BOS, EOS, END = range(BYTES, BYTES + 4)
VOCABULARY = BYTES + 4
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class PromptTokens(NamedTuple):
    """A tokenised prompt, as `workbench.tokenise.prompt` makes it."""

    text: str
    ids: list[int]


def tiny_tokenizer(chat: bool = True, **specials: Any):
    """A byte-level tokenizer; ids of ASCII text are its bytes' ranks. `specials` override pad_token and so
    on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", "<bos>", "<eos>", "<end>"])
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", **specials}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, **{name: value for name, value in named.items() if value is not None}
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def _config(kind: str, **changes: Any):
    import transformers as t

    common = dict(
        vocab_size=VOCABULARY, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.35
    )
    attention = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    if kind == "llama":
        return t.LlamaConfig(**{**common, **attention, **changes})
    if kind == "qwen3":
        return t.Qwen3Config(**{**common, **attention, "head_dim": 8, "tie_word_embeddings": True, **changes})
    if kind == "gemma2":
        more = dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8, final_logit_softcapping=5.0)
        return t.Gemma2Config(**{**common, **attention, **more, **changes})
    if kind == "gpt2":
        return t.GPT2Config(
            **{**common, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **changes}
        )
    if kind == "mamba":
        return t.MambaConfig(
            **{**common, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, **changes}
        )
    raise ValueError(kind)


KINDS = ("llama", "qwen3", "gemma2", "gpt2", "mamba")


def tiny_model_folder(
    folder: str | Path,
    kind: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Writes a random model of this kind and a tokenizer to `folder`; `changes` go to its config."""
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(kind, **changes)).to(dtype)
    for name, value in (generation or {}).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def tiny_policy(
    folder: str | Path, kind: str = "llama", *, lora: bool = False, dtype: str = "float32", **changes: Any
):
    """A policy over a tiny random model; with `lora`, a rank-4 adapter whose B matrices are not zero."""
    from workbench.adapters import LoRA
    from workbench.policy import load

    policy = load(tiny_model_folder(folder, kind, **changes), dtype=dtype, device="cpu")
    return noisy_adapter(policy.attach(LoRA(r=4, alpha=8))) if lora else policy


def noisy_adapter(policy, scale: float = 0.1, seed: int = 1):
    """The same policy with random numbers added to all it trains, as if it had been trained."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_((scale * torch.randn(p.shape, generator=noise)).to(p))
    return policy


def prompt_of(policy, text: str) -> PromptTokens:
    """A plain prompt, tokenised."""
    return PromptTokens(text, policy.tokenizer(text)["input_ids"])


def exact_norms(policy) -> None:
    """RMS norms compute in float32 whatever the model's dtype is; here they do not, so that float64 means it."""
    for module in policy.model.modules():
        if "RMSNorm" in type(module).__name__ and hasattr(module, "variance_epsilon"):
            def forward(x, m=module):
                return m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)

            module.forward = forward
