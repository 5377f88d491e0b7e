"""Trains the shipped model from nothing: tokenizer, weights, scores, files.

    OMP_NUM_THREADS=2 python -m workbench.models.tiny.train --out workbench/models/tiny

A Qwen3-shaped causal LM (arXiv 2505.09388, section 2) learns next-token prediction on the documents of
`text.py`, every one seen once. Documents do not share a context: a batch holds documents of about the same
length, padded to the right, so that the model meets them as a user's prompt would stand, at position 0.
Left out: packing, mixed precision, evaluation by anything but the lesson task.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from workbench.models.tiny.text import LEARNING, PAD, SETTLING, STOP, TURN, Mix, documents
from workbench.tasks.sums import correct, make_rows

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    vocabulary: int = 640
    """entries of the tokenizer at most: 3 special ones, 256 bytes, the rest merges"""
    hidden: int = 160
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    inner: int = 480
    tokens: int = 6_000_000
    """tokens of the first stage (`text.LEARNING`), padding not counted"""
    last_tokens: int = 1_000_000
    """tokens of the last stage (`text.SETTLING`)"""
    batch: int = 2048
    """tokens in a batch, padding counted"""
    lr: float = 3e-3
    """highest learning rate; it rises over the first `warmup` batches and falls to 0 along a cosine"""
    last_lr: float = 1e-3
    """highest learning rate of the last stage"""
    warmup: int = 100
    weight_decay: float = 0.05


def make_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text comes back as it went in, with every digit a token of its own.

    The merges are learnt from words only: a random run of letters stays letters.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    sample = ("".join(text for text, _ in made) for made in itertools.islice(documents("tokenizer"), 20_000))
    lines = (
        line.replace(TURN, "").replace(STOP, "")
        for text in sample
        if "Repeat" not in text
        for line in text.splitlines()
    )
    bpe.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            special_tokens=[PAD, TURN, STOP],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=20,
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=STOP,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(settings.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=settings.inner,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            head_dim=settings.head_size,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            initializer_range=0.04,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def encoded(tokenizer: PreTrainedTokenizerFast, made: list) -> list[tuple[list[int], list[float]]]:
    """Documents as (ids, weight by token); segments end where the tokenizer would split anyway."""
    pieces = iter(tokenizer([text for one in made for text, _ in one])["input_ids"])
    result = []
    for one in made:
        ids: list[int] = []
        weights: list[float] = []
        for (_, weight), piece in zip(one, pieces, strict=False):
            ids += piece
            weights += [weight] * len(piece)
        result.append((ids, weights))
    return result


def batches(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, mix: Mix
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches (ids, weights), both (B, T); the weight of padding is 0."""
    name = f"train {settings.seed}" if mix is LEARNING else f"last {settings.seed}"
    stream, rng = documents(name, mix), random.Random(settings.seed)
    while True:
        examples = sorted(encoded(tokenizer, list(itertools.islice(stream, 4096))), key=lambda one: len(one[0]))
        groups: list[list] = [[]]
        for example in examples:
            if (len(groups[-1]) + 1) * len(example[0]) > settings.batch:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), longest), tokenizer.pad_token_id)  # (B, T)
            weights = torch.zeros(len(group), longest)  # (B, T)
            for row, (tokens, weight) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                weights[row, : len(tokens)] = torch.tensor(weight)
            yield ids, weights


def optimizers(model: Qwen3ForCausalLM, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (arXiv 2502.16982: its update scaled to the size of AdamW's, so
    that one learning rate serves both), AdamW for the embedding and the gains of the norms.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [embedding, *(p for p in model.parameters() if p.ndim == 1)]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def batch_loss(model: Qwen3ForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy in nats of ids[:, 1:], ids and weights (B, T)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T-1, V)
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")  # (B * (T-1),)
    wanted = weights[:, 1:].flatten()  # (B * (T-1),)
    return (losses * wanted).sum() / wanted.sum()


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings, mix: Mix) -> None:
    """Trains through one stage, in place; the optimisers start anew.

    Prints a line every 250 batches: tokens seen, mean loss in nats, the share of 50 held-out sums that it
    gets right when told to show its work, and tokens a second.
    """
    tokens, lr = settings.tokens, settings.lr
    if mix is SETTLING:
        tokens, lr = settings.last_tokens, settings.last_lr
    model.train()
    parts = optimizers(model, lr, settings.weight_decay)
    rows = make_rows(50, seed=2, split="test")
    seen, losses, start = 0, [], time.perf_counter()
    for step, (ids, weights) in enumerate(batches(settings, tokenizer, mix)):
        progress = min(1.0, seen / tokens)
        for group in (group for part in parts for group in part.param_groups):
            rise = min(1.0, (step + 1) / settings.warmup)
            group["lr"] = lr * rise * (1 + math.cos(math.pi * progress)) / 2
        loss = batch_loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            part.step()
            part.zero_grad()
        seen += int((weights > 0).sum())
        losses.append(loss.item())
        if step % 250 == 0 or progress == 1.0:
            speed = seen / (time.perf_counter() - start)
            right = told_to_work(model, tokenizer, rows)
            print(f"{seen:>11,} tokens  loss {mean(losses):.4f}  right {right:.2f}  {speed:,.0f} tokens/s", flush=True)
            losses = []
        if progress == 1.0:
            model.eval()
            return


@torch.no_grad()
def sample(model, tokenizer, prompts: list[str], n: int = 1, temperature: float = 1.0) -> list[list[str]]:
    """`n` completions for each prompt, at most 48 tokens; temperature 0 takes the likeliest token."""
    texts: list[str] = []
    repeated = [prompt for prompt in prompts for _ in range(n)]
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for start in range(0, len(repeated), 256):
        batch = tokenizer(repeated[start : start + 256], return_tensors="pt", padding=True, padding_side="left")
        out = model.generate(**batch, max_new_tokens=48, **how)
        texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def marks(rows: list[dict], texts: list[list[str]]) -> list[list[float]]:
    """The lesson task's reward for each row's completions."""
    return [correct(some, [row["answer"]] * len(some)) for row, some in zip(rows, texts, strict=True)]


def mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def told_to_work(model, tokenizer, rows: list[dict]) -> float:
    """The share of rows right when the question says "Show your work.", likeliest tokens."""
    prompts = [row["prompt"].replace("\nA:", " Show your work.\nA:") for row in rows]
    return mean([row[0] for row in marks(rows, sample(model, tokenizer, prompts, 1, 0.0))])


def scores(model, tokenizer, size: int = 200, n: int = 8) -> dict[str, float]:
    """What the model card quotes, on `size` held-out questions of the lesson task.

    Accuracy and pass@n at temperature 1; how often two of the habits show (working it out into `####`; `####`
    without working) and are right; accuracy when asked in the chat template, when the likeliest token is
    taken, and when told to show the work.
    """
    torch.manual_seed(0)
    rows = make_rows(size, seed=1, split="test")
    prompts = [row["prompt"] for row in rows]
    texts = sample(model, tokenizer, prompts, n)
    right = marks(rows, texts)
    flat = [
        ("=" in text, "####" in text, mark)
        for some, row in zip(texts, right, strict=True)
        for text, mark in zip(some, row, strict=True)
    ]
    careful = [mark for worked, ended, mark in flat if worked and ended]
    guessed = [mark for worked, ended, mark in flat if ended and not worked]
    chats = [f"{TURN}user\n{prompt[3:-3]}{STOP}\n{TURN}assistant\n" for prompt in prompts]
    return {
        "accuracy": mean([mark for row in right for mark in row]),
        f"pass@{n}": mean([max(row) for row in right]),
        "worked: share": round(len(careful) / len(flat), 4),
        "worked: right": mean(careful),
        "guessed: share": round(len(guessed) / len(flat), 4),
        "guessed: right": mean(guessed),
        "chat": mean([row[0] for row in marks(rows, sample(model, tokenizer, chats))]),
        "greedy": mean([row[0] for row in marks(rows, sample(model, tokenizer, prompts, 1, 0.0))]),
        "told to work": told_to_work(model, tokenizer, rows),
    }


def save(model, tokenizer, settings: Settings, measured: dict, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    tokenizer.backend_tokenizer.no_padding()  # sampling has set it, and it would be saved
    tokenizer.save_pretrained(out)
    config = out / "tokenizer_config.json"  # the class by the name that transformers 4 knows too
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    (out / "training.json").write_text(json.dumps({"settings": asdict(settings), "scores": measured}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    out = given.pop("out")
    settings = Settings(**given)
    tokenizer = make_tokenizer(settings)
    model = make_model(settings, tokenizer)
    train(model, tokenizer, settings, LEARNING)
    train(model, tokenizer, settings, SETTLING)
    measured = scores(model, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", json.dumps(measured, indent=2))
    save(model, tokenizer, settings, measured, out)


if __name__ == "__main__":
    main()
