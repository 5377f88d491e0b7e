"""Self-training on targets in tiers: the policy's own answer, its rewording of the written one, the written one.

What `ssr` and `s3ft` share: for each row the first tier whose text is accepted is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError
from workbench.methods.answers import PLAIN, Seen, check_gold, check_template, example, text_of
from workbench.methods.bootstrap import SAME, Ask, Fit, RoundsSettings, Sample
from workbench.settings.base import knob

TIERS = ("self", "paraphrase", "gold")


@dataclass(frozen=True, kw_only=True)
class TierSettings(RoundsSettings):
    """Fine-tuning on targets that are as near to the policy as they can be."""

    tiers: tuple[str, ...] = knob(("self", "gold"), choices=TIERS, fixed=True)
    """where a target may come from, in the order in which it is tried: 'self' (the policy's own answer), 'paraphrase'
    (its rewording of the written one), 'gold' (the written one). 'gold' alone is wb.sft"""
    n: int = knob(1, at_least=1)
    gold: str = knob("completion", fixed=True)
    """the column with the written answers"""
    greedy: bool = True
    """take the likeliest token each time; False: sample"""
    template: str = knob(PLAIN, fixed=True)
    """how questions are asked"""
    rephrase: str = knob("{prompt}\n{gold}\nThe same answer in other words:", fixed=True)
    """how the policy is asked to say the written answer, {gold}, in its own words"""

    def problem(self) -> str | None:
        return (SAME if self.greedy and self.n > 1 else None) or super().problem()


def check(task, settings: TierSettings) -> None:
    check_gold(task, settings.gold)
    if list(settings.tiers) != [tier for tier in TIERS if tier in settings.tiers]:
        raise SettingError(f"tiers={settings.tiers!r} must stand in this order, each once: {', '.join(TIERS)}.")
    if "paraphrase" in settings.tiers:
        check_template("rephrase", settings.rephrase)
        if "{gold}" not in settings.rephrase and f"{{{settings.gold}}}" not in settings.rephrase:
            raise SettingError(f"rephrase={settings.rephrase!r} has no {{gold}} in it, the answer to say again.")


def phases(settings: TierSettings, round: int) -> list[Any]:
    ways = {
        "self": Ask("self", settings.template, settings.n, settings.greedy),
        "paraphrase": Ask(
            "paraphrase", settings.rephrase.replace("{gold}", f"{{{settings.gold}}}"), settings.n, settings.greedy, True
        ),
    }
    asks = tuple(ways[tier] for tier in settings.tiers if tier in ways)
    return [Sample(asks), Fit(targets, settings.fit_steps)]


def targets(seen: Seen) -> list[dict]:
    """One row each: the first accepted answer of the earliest tier, else the written one."""
    made = []
    for number, row, answers in seen:
        gold = row[seen.settings.gold]
        again = text_of(gold).strip()  # a paraphrase that is the written answer again is that
        usable = [a for a in answers if a.right and (a.tag != "paraphrase" or a.text.strip() != again)]
        if usable:
            made.append(example(number, row, usable[0].text, usable[0].tag))
        elif "gold" in seen.settings.tiers:
            made.append(example(number, row, gold, "gold"))
    return made
