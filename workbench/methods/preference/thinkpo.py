"""ThinkPO: one DPO pass after SFT that prefers the long chain of thought to a short answer to the same question.

Both answers of a pair are right, so what differs is style and depth: the policy learns to think for longer. The loss is
that of DPO, -log sigmoid(beta * D) with D the difference of the answers' log-ratios to the start.

Rows are pairs (prompt, chosen, rejected), or rows from which they are built: prompt, completion (the long answer, which
SFT trained on), short and short_correct. `workbench.transforms.pairs.long_over_short` builds them: it keeps rows whose
short answer is not blank and is right. Short answers come from a small instruct model, or from the base model itself
(`policy.sample` with max_new_tokens=1024), and a verifier says which are right.

Defaults: beta 0.01 and lr 3e-7, as the authors' README calls their script (the script itself has 0.05 and 5e-7). There
the pass is one epoch with lr_scheduler_type="cosine", warmup_steps=0.1 and max_length=8192; here these are those of DPO
unless given. beta=0.1 makes it plain DPO. Watch completions/mean_length of a held-out task beside its accuracy: a
margin that only follows the length teaches length.

Paper: Yang et al. 2025, Thinking Preference Optimization, arXiv 2502.13173. Source read: uservan/ThinkPO. What differs:
nothing that we know of. Left out: making the short answers, which is `policy.sample` and a verifier.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.data import Rows
from workbench.data import make as make_rows
from workbench.errors import DataError
from workbench.methods import dpo
from workbench.settings.base import knob
from workbench.settings.preference import DPOSettings
from workbench.transforms.pairs import long_over_short


@dataclass(frozen=True, kw_only=True)
class ThinkPOSettings(DPOSettings):
    """DPO on long over short answers."""

    lr: float = knob(3e-7, at_least=0.0)
    beta: float = knob(0.01, at_least=0.0)


def pairs(rows: Rows, settings: ThinkPOSettings, tokenizer) -> Rows:
    """The rows themselves where they are pairs, else the pairs of long over short answers."""
    rows = rows if isinstance(rows, Rows) else make_rows(rows)
    if rows.form == "preference":
        return rows
    made = long_over_short(rows.to_list())
    if not made:
        raise DataError(
            f"None of the {len(rows)} rows has a short answer that is right (columns short and short_correct), so there"
            " is no pair to learn from."
        )
    kept = make_rows(made, f"{rows.source}, long over short")
    said = f"{len(rows) - len(made)} of {len(rows)} rows have no short answer that is right: left out"
    notes = (*rows.notes, said) if len(made) < len(rows) else rows.notes
    return Rows(kept, kept.columns, kept.form, kept.source, None, notes)


def notice(data: dpo.PairData, settings: ThinkPOSettings) -> str | None:
    """What to say where the chosen answers are not the longer ones."""
    chosen, rejected = (sum(len(getattr(pair, side)) for pair in data.items) for side in ("chosen", "rejected"))
    if chosen > rejected:
        return None
    return (
        f"chosen answers have {chosen / max(rejected, 1):.2f} times the tokens of rejected ones: ThinkPO wants the long"
        " ones chosen."
    )


METHOD = dpo.variant("thinkpo", ThinkPOSettings, dpo.Variant(rows=pairs), notice=notice)
