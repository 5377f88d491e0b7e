"""The floating-point operations that must be done, whoever does them.

Counted are the products of matrices: linear layers, attention and the output matrix. What can be left out is left out:
a prompt goes through the model once for all its completions, only tokens that are scored meet the output matrix, an
adapter is folded into the weights for sampling, and frozen weights get no gradient. Element-wise work, memory traffic
and Python are not counted, so nothing can reach the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Group = tuple[int, Sequence[int]]
"""tokens of a prompt, and of each of its completions"""


@dataclass(frozen=True)
class Floor:
    """Operations of a model with LoRA on all linear layers."""

    linear: int
    """entries of the weight matrices of all layers"""
    lora: int
    """entries of the adapter's matrices"""
    head: int
    """entries of the output matrix"""
    attention: int
    """layers x heads x head size"""

    @classmethod
    def of(cls, config: Any, r: int) -> Floor:
        """From the config of a model of Llama's build."""
        hidden, inner = config.hidden_size, config.intermediate_size
        size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        query, key = size * config.num_attention_heads, size * config.num_key_value_heads
        shapes = [(hidden, query), (hidden, key), (hidden, key), (query, hidden)]
        shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
        layers = config.num_hidden_layers
        return cls(
            linear=layers * sum(a * b for a, b in shapes),
            lora=layers * r * sum(a + b for a, b in shapes),
            head=hidden * config.vocab_size,
            attention=layers * query,
        )

    def sampling(self, groups: Sequence[Group]) -> float:
        """One pass over each prompt, and one over each token drawn but the last."""
        tokens = sum(prompt + sum(length - 1 for length in lengths) for prompt, lengths in groups)
        drawn = sum(sum(lengths) for _, lengths in groups)
        return 2 * self.linear * tokens + 4 * self.attention * seen(groups) + 2 * self.head * drawn

    def forward(self, groups: Sequence[Group], lora: bool = True) -> float:
        """Scores of all completions, a prompt's trunk once."""
        tokens, scored = passed(groups)
        weights = self.linear + (self.lora if lora else 0)
        return 2 * weights * tokens + 4 * self.attention * seen(groups) + 2 * self.head * scored

    def update(self, groups: Sequence[Group]) -> float:
        """`forward`, and the way back: to the inputs of every product, and to the adapter's matrices. The first layer's
        way back to its inputs is counted too, which nobody needs: a small part."""
        tokens, scored = passed(groups)
        back = 2 * (self.linear + 2 * self.lora) * tokens + 8 * self.attention * seen(groups) + 2 * self.head * scored
        return self.forward(groups) + back


def passed(groups: Sequence[Group]) -> tuple[int, int]:
    """Tokens through the trunk, and tokens scored."""
    tokens = sum(prompt + sum(length - 1 for length in lengths) for prompt, lengths in groups)
    return tokens, sum(sum(lengths) for _, lengths in groups)


def seen(groups: Sequence[Group]) -> int:
    """Pairs of a token and a token it looks at, itself among them."""
    pairs = 0
    for prompt, lengths in groups:
        pairs += prompt * (prompt + 1) // 2
        pairs += sum((length - 1) * prompt + (length - 1) * length // 2 for length in lengths)
    return pairs
