"""Chat templates of five model families, written out from their published structure, and a tokenizer for
each.

The templates keep what matters for masks: which special tokens stand where, what is trimmed, what earlier
turns lose. Tool calls are left out. Each family's tokenizer is a byte-level BPE trained on the spot on a few
lines, with the family's special tokens.
"""

from __future__ import annotations

import functools

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from workbench import tokenise
from workbench.data import rows

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

QWEN25 = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. '"
    "+ 'You are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN3 = (
    "{% set ns = namespace(last_query=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last_query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}"
    "{% set content = m.content %}{% set reasoning = '' %}"
    "{% if m.reasoning_content is string %}{% set reasoning = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}"
    "{% if loop.index0 > ns.last_query and (loop.last or reasoning) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}"
    "{{ content.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)

GEMMA3 = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set head = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ head if loop.first else '' }}{{ m.content | trim }}{{ '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

MISTRAL = (  # v3: the system message stands before the last user message
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set head = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}"
    "{{ '[INST] ' + (head if loop.index0 == ns.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)

PHI3 = (  # closes a conversation with the end-of-text token, but not a prompt
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

PHI4 = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

FAMILIES = {
    # name: (template, special tokens, start token, end token, stop token of a turn)
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
    ),
    "qwen2.5": (QWEN25, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|im_end|>"),
    "qwen3": (QWEN3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|im_end|>"),
    "gemma3": (
        GEMMA3,
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
        "<end_of_turn>",
    ),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", "</s>"),
    "phi3": (
        PHI3,
        ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        None,
        "<|endoftext|>",
        "<|end|>",
    ),
    "phi4": (
        PHI4,
        ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"],
        None,
        "<|endoftext|>",
        "<|im_end|>",
    ),
}

# How Llama 3 and Qwen cut text into pieces: line ends stay together, so a header's "\n\n" is one token,
# whatever text follows.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = [
    "The sky is blue and the sun is bright. What colour is the sky? It is blue.",
    "user assistant system model\n\nYou are a helpful assistant. Answer in one word.\n",
    "How many apples are there? There are 12 + 7 = 19 apples.\n#### 19\n",
    "Tell me more. Certainly; the rest follows below. Think step by step.\n\n",
]


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A new tokenizer of the family; it adds the start token, where there is one, to plain text."""
    template, special, start, end, _ = FAMILIES[family]
    made = Tokenizer.from_str(_trained(tuple(special), start))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=start,
        eos_token=end,
        pad_token=special[0],
        clean_up_tokenization_spaces=False,
    )
    if family == "qwen3":
        wrapped.add_tokens(["<think>", "</think>"])  # added, but not special, as published
    wrapped.chat_template = template
    return wrapped


@functools.cache
def _trained(special: tuple[str, ...], start: str | None) -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS * 4, trainer)
    if start is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, made.token_to_id(start))]
        )
    return made.to_str()


# What tests of masks share

STOPS = {family: parts[-1] for family, parts in FAMILIES.items()}
BEFORE = dict.fromkeys(FAMILIES, "") | {"qwen3": "<think>\n\n</think>\n\n", "mistral": " "}
"""what a template writes between the generation prompt and an answer that does not think"""
AFTER = dict.fromkeys(FAMILIES, "") | {
    "qwen2.5": "\n",
    "qwen3": "\n",
    "gemma3": "\n",
    "phi3": "\n<|endoftext|>",
}
"""what a template writes after the stop token: TRL trains it, we do not"""


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def trained(made, tok, item=0):
    """The decoded tokens that the mask lets through."""
    example = made.items[item]
    assert len(example.ids) == len(example.mask) == len(example.weight)
    return tok.decode([token for token, bit in zip(example.ids, example.mask, strict=True) if bit])


def fit(row, tok, **settings):
    return tokenise.fit_rows(rows(row if isinstance(row, list) else [row]), tok, **settings)
