"""DPO-ST: self-training with a step of DPO before each step of fine-tuning.

    once:        SFT on the written solutions (sft_steps updates)
    each round:  n answers a question from the SFT model -> pairs -> DPO, its reference the SFT model
                 n_fit answers a question from the DPO model -> SFT, from where the run began

Pairs of a question: right answers and the written solution on one side, wrong ones on the other; each side loses what
is too like what it has already (Jaccard's similarity of token sets above `similarity`); of all right-wrong pairs the
`pairs` least similar are taken. A question without a wrong answer gives none. An answer that was cut off at the limit
of tokens, or that has no reward, is on neither side. SFT rows: the written solution and the
right answers that are not too like it or each other, no more a question than the 90th percentile over questions. Pairs
and rows are made of all rounds so far.

Wang et al. 2024, "Self-Training with Direct Preference Optimization Improves Chain-of-Thought Reasoning", arXiv
2407.18248. Defaults are those of the authors' code: 5 and 3 samples at temperature 0.7, threshold 0.7, 3 pairs, beta
0.1, 3 rounds, learning rates 3e-7 (DPO, 100 updates) and 2e-5 (SFT) for a model of 7B.

Differs: without `gold` there are no written solutions and the policy counts as the SFT model (sft_steps=0). Pairs that
are equally similar are taken in order, not at random. Their schedules (batches of 16, cosine to a tenth after a tenth
of warm-up, weight decay 0.01) are settings, and their calculator at decoding is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from workbench.methods.answers import PLAIN, Seen, asked, check_gold, example, said, text_of
from workbench.methods.bootstrap import Ask, Fit, RoundsSettings, Sample, method
from workbench.methods.distinct import alike
from workbench.settings import DPOSettings
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class DpoStSettings(RoundsSettings):
    """Self-training with DPO."""

    rounds: int = knob(3, at_least=1, fixed=True)
    n: int = knob(5, at_least=1)
    n_fit: int = knob(3, at_least=1)
    """answers sampled for each row from the model that DPO made"""
    temperature: float = knob(0.7, above=0.0)
    template: str = knob(PLAIN, fixed=True)
    """how questions are asked"""
    gold: str | None = knob("completion", fixed=True)
    """the column with written solutions; None: there are none"""
    sft_steps: int = knob(100, at_least=0, fixed=True)
    """updates on the written solutions before the first round; 0: the policy has learned the task already"""
    dpo_steps: int = knob(100, at_least=1, fixed=True)
    """updates on pairs in a round"""
    dpo_lr: float = knob(3e-7, at_least=0.0)
    """peak learning rate of the updates on pairs"""
    beta: float = knob(0.1, above=0.0)
    """strength of DPO's pull to its reference"""
    similarity: float = knob(0.7, at_least=0.0, at_most=1.0)
    """answers that are more alike than this count as one"""
    pairs: int = knob(3, at_least=1)
    """most pairs of a question"""

    def problem(self) -> str | None:
        if self.sft_steps and self.gold is None:
            return "sft_steps needs the column with written solutions: give gold, or sft_steps=0."
        return super().problem()


def check(task, settings: DpoStSettings) -> None:
    if settings.gold is not None:
        check_gold(task, settings.gold)


def phases(settings: DpoStSettings, round: int) -> list[Any]:
    written = [Fit(gold_rows, settings.sft_steps)] if round == 1 and settings.sft_steps else []
    return [
        *written,
        Sample((Ask("sft", settings.template, settings.n),)),
        Fit(pair_rows, settings.dpo_steps, "last", pair_settings(settings), pooled=True),
        Sample((Ask("dpo", settings.template, settings.n_fit),)),
        Fit(fit_rows, settings.fit_steps, pooled=True),
    ]


def pair_settings(settings: DpoStSettings) -> DPOSettings:
    """The settings of the updates on pairs: those that both have, but for what means another thing there."""
    both = {field.name for field in fields(DPOSettings)} & {field.name for field in fields(settings)}
    shared = {name: getattr(settings, name) for name in both - {"loss_type", "disable_dropout"}}
    return DPOSettings(**shared | {"lr": settings.dpo_lr})


def gold_rows(seen: Seen) -> list[dict]:
    return [example(number, row, row[seen.settings.gold], "gold") for number, row, _ in seen]


def pair_rows(seen: Seen) -> list[dict]:
    made = []
    for number, row, answers in seen:
        sampled = [answer for answer in answers if answer.tag == "sft"]
        good = unlike(seen, _gold(seen, row) + sorted({answer.text for answer in sampled if answer.right}))
        bad = unlike(seen, sorted({answer.text for answer in sampled if answer.wrong}))
        pairs = [(alike(a, b), chosen, rejected) for chosen, a in good for rejected, b in bad]
        pairs.sort(key=lambda pair: pair[0])
        prompt = asked(PLAIN, row)
        for _, chosen, rejected in pairs[: seen.settings.pairs]:
            sides = {"chosen": said(prompt, chosen), "rejected": said(prompt, rejected)}
            made.append({"prompt": prompt, **sides, "row": number, "source": "pairs"})
    return made


def fit_rows(seen: Seen) -> list[dict]:
    found: list[tuple[int, dict, list[str], int]] = []
    for number, row, answers in seen:
        gold = _gold(seen, row)
        own = sorted({answer.text for answer in answers if answer.tag == "dpo" and answer.right})
        found.append((number, row, [text for text, _ in unlike(seen, gold + own)], len(gold)))
    counts = [len(texts) for _, _, texts, _ in found if texts]
    most = int(np.percentile(counts, 90)) if counts else 0
    return [
        example(number, row, text, "gold" if i < golden else "own")
        for number, row, texts, golden in found
        for i, text in enumerate(texts[:most])
    ]


def _gold(seen: Seen, row: dict) -> list[str]:
    return [] if seen.settings.gold is None else [text_of(row[seen.settings.gold])]


def unlike(seen: Seen, texts: list[str]) -> list[tuple[str, set[str]]]:
    """The texts that are not too like one before them, each with its tokens."""
    kept: list[tuple[str, set[str]]] = []
    for text in texts:
        tokens = set(seen.tokenizer.tokenize(text))
        if all(alike(tokens, other) <= seen.settings.similarity for _, other in kept):
            kept.append((text, tokens))
    return kept


METHOD = method("dpo_st", DpoStSettings, phases, check)
