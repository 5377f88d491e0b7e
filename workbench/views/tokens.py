"""The token microscope: the tokens of completions, painted by what is known about each.

`Tokens` answers the page of any view that has `self.source` (a run's Store, or a DataFrame of completions) and, where
a model can be asked, `self.model` (see `workbench.asking`; None: the record alone). Its other half is `WbTokens` in
`tokens.js`. `TokenView` is the microscope by itself.

From the page: {kind: "tokens", ids}: what is recorded about completions (of a store: their ids; of a DataFrame: their
positions). Only a model can answer the others, each about one completion `id`: {kind: "alternatives", at}: log-probs,
entropies and the likeliest tokens under the weights `at` (a step, "reference" or "base"); {kind: "compare", a, b}: the
change of log-prob from weights `a` to weights `b`; {kind: "divergence", at}: KL(policy at `at` || reference);
{kind: "contribution"}: each token's share of the loss of the step that trained on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from workbench.errors import DataError
from workbench.store import Store
from workbench.store import tokens as stored
from workbench.store.tokens import Pieces
from workbench.store.tokens import Tokens as Record
from workbench.views import token_picture
from workbench.views.base import Ask, Reply, View, assets
from workbench.views.text import number, visible

if TYPE_CHECKING:
    import pandas as pd

SCRIPTS = ("strip.js", "token_chart.js", "token_card.js", "tokens.js")
"""the page's side of `Tokens`, after frame.js; its style is tokens.css"""

MOST_TOKENS = 200_000
"""of a group that comes along with one of its completions"""

NO_RUN = "Numbers that need the model (other weights, KL, shares of the loss) are there for the completions of a run."


class Tokens:
    """Handlers for the token microscope; a mixin of a View."""

    source: Store | pd.DataFrame
    model: Any = None
    """what answers questions that need the model (`workbench.asking.Asking`), or None"""
    pieces: Pieces | None = None
    """texts of token ids, where `source` is no store, which knows its own"""
    looked_at: Record | None = None
    """the completion whose tokens the page showed last, for a picture of it"""

    def on_tokens(self, ask: Ask, ids: Sequence[int], index: int = 0) -> Reply:
        """What is recorded about the completions `ids`, of which the page looks at the one at `index`; of a single one
        that about its whole group."""
        ids = [int(i) for i in ids]
        index = max(0, min(int(index), len(ids) - 1))
        if len(ids) == 1:
            group = members(self.source, ids[0])
            ids, index = group, group.index(ids[0])
        found, index = within(records(self.source, ids), index)
        if found:
            self.looked_at = found[index]
        return self.tokens_reply(found, index)

    def tokens_reply(self, found: Sequence[Record], index: int) -> Reply:
        masks = kept(self.source, found)
        every = [np.concatenate([record.prompt_ids, record.ids]) for record in found]
        rollouts = [
            {
                "id": record.id, "step": record.step, "title": title(record), "prompt": len(record.prompt_ids),
                "n": len(record.ids), "advantage": None if math.isnan(record.advantage) else record.advantage,
                "kept": keep, "partly": partly,
            }
            for record, (keep, partly) in zip(found, masks, strict=True)
        ]  # fmt: skip
        columns = {
            "ids": _joined(every, "i4"),
            "logprob": _joined([_fitted(record.logprob, record.ids) for record in found], "f4"),
            "entropy": _joined([_fitted(record.entropy, record.ids) for record in found], "f4"),
        }
        texts = self.piece_columns(np.unique(columns["ids"]))
        return Reply({"rollouts": rollouts, "index": index, "model": self.about_model(found)}, columns | texts)

    def piece_columns(self, ids: np.ndarray) -> dict[str, Any]:
        """The texts of `ids`, each id once: columns `piece_id`, `piece`, `special`."""
        known = pieces(self, ids)
        texts = [known.get(i, (f"⟨{i}⟩", False)) for i in ids.tolist()]
        return {
            "piece_id": ids.astype("i4"),
            "piece": [visible(text) for text, _ in texts],
            "special": np.array([special for _, special in texts], dtype=np.uint8),
        }

    def about_model(self, found: Sequence[Record]) -> dict[str, Any]:
        """What the model can be asked about these completions, or in words why it cannot."""
        if self.model is None:
            return {"able": False, "why": no_model(self.source)}
        return self.model.about(found)

    def on_alternatives(self, ask: Ask, id: int, at: Any) -> None:
        self._question(ask, "alternatives", id, at=at)

    def on_compare(self, ask: Ask, id: int, a: Any, b: Any) -> None:
        self._question(ask, "compare", id, a=a, b=b)

    def on_divergence(self, ask: Ask, id: int, at: Any) -> None:
        self._question(ask, "divergence", id, at=at)

    def on_contribution(self, ask: Ask, id: int) -> None:
        self._question(ask, "contribution", id)

    def _question(self, ask: Ask, name: str, rollout: int, **how: Any) -> None:
        """Hand a question to the model; its answer goes to the page when it is there."""
        if self.model is None:
            raise DataError(no_model(self.source))
        (record,) = records(self.source, [int(rollout)])

        def then(answer: Mapping[str, Any]) -> None:
            columns = {name: values for name, values in answer.items() if isinstance(values, np.ndarray)}
            if "top_id" in columns:
                known = answer["pieces"]
                ids = np.array(sorted(known), dtype="i4")
                columns |= {
                    "piece_id": ids,
                    "piece": [visible(known[i][0]) for i in ids.tolist()],
                    "special": np.array([known[i][1] for i in ids.tolist()], dtype=np.uint8),
                }
            ask.answer(Reply({"said": answer.get("said", "")}, columns))

        self.model.ask(name, record, then, ask.trouble, **how)


class TokenView(View, Tokens):
    """The token microscope by itself: completions `ids` of a run's Store, or of a DataFrame (by position).

    With a single one the others of its group come along. `model`: an `Asking`, for what the record does not hold.
    """

    _esm = assets("frame.js", *SCRIPTS, main="WbTokenView")
    _css = assets("common.css", "tokens.css")

    ids = traitlets.List().tag(sync=True)

    def __init__(
        self, source: Store | pd.DataFrame, ids: Sequence[int], model: Any = None, pieces: Pieces | None = None
    ):
        ids = [int(i) for i in ids]
        self.source, self.model, self.pieces = source, model, pieces
        self.looked_at = records(source, ids[:1])[0] if ids else None
        super().__init__(ids=ids)

    def __repr__(self) -> str:
        return f"<TokenView: {', '.join(f'completion {i}' for i in self.ids[:4])}{', …' * (len(self.ids) > 4)}>"

    def on_tokens(self, ask: Ask, ids: Sequence[int], index: int = 0) -> None:
        ask.answer(super().on_tokens(ask, ids, index))
        self.keep()  # after the answer: the page waits for that

    def static_html(self) -> str:
        record = self.looked_at
        return "<p>No completion.</p>" if record is None else token_picture.html(title(record), *self._pictured(record))

    def static_text(self) -> str:
        record = self.looked_at
        return "No completion." if record is None else token_picture.text(title(record), *self._pictured(record))

    def _pictured(self, record: Record) -> tuple[list[tuple[str, bool]], np.ndarray, np.ndarray]:
        known = pieces(self, np.unique(record.ids))
        texts = [known.get(i, (f"⟨{i}⟩", False)) for i in record.ids.tolist()]
        return texts, _fitted(record.logprob, record.ids), _fitted(record.entropy, record.ids)


def records(source: Store | pd.DataFrame, ids: Sequence[int]) -> list[Record]:
    """The completions `ids`. Raises StoreError or DataError for one that is not there or has no token ids."""
    return stored.records(source, ids) if isinstance(source, Store) else [_of_frame(source, i) for i in ids]


def members(source: Store | pd.DataFrame, one: int) -> list[int]:
    """Completion `one` and the others of its group, in order."""
    if isinstance(source, Store):
        return stored.members(source, one) or [one]
    by = [name for name in ("branch", "step", "group_id") if name in source]
    if "group_id" not in by or not 0 <= one < len(source):
        return [one]
    same = np.logical_and.reduce([(source[name] == source[name].iloc[one]).to_numpy() for name in by])
    return np.flatnonzero(same).tolist()


def within(found: list[Record], index: int, most: int = MOST_TOKENS) -> tuple[list[Record], int]:
    """Those around the one at `index` that have no more than `most` tokens together, and its place among them."""
    low, high = index, index + 1
    total = len(found[index].ids) if found else 0
    while low > 0 or high < len(found):
        near = low - 1 if high == len(found) or (low > 0 and index - low < high - 1 - index) else high
        total += len(found[near].ids)
        if total > most:
            break
        low, high = min(low, near), max(high, near + 1)
    return found[low:high], index - low


def _of_frame(frame: pd.DataFrame, i: int) -> Record:
    if not 0 <= i < len(frame):
        raise DataError(f"There is no completion {i}; there are {len(frame)}.")
    row = frame.iloc[i]

    def value(name: str, otherwise: Any) -> Any:
        found = row.get(name)
        return otherwise if found is None or (np.ndim(found) == 0 and found != found) else found

    ids = np.asarray(value("ids", []), dtype="i4")
    if not len(ids):
        raise DataError(f"Completion {i} has no token ids: it was given as text.")
    none = np.full(len(ids), np.nan, dtype="f4")
    return Record(
        i, int(value("step", -1)), int(value("branch", 0)), int(value("group_id", 0)), int(value("sample", 0)),
        float(value("reward", math.nan)), float(value("advantage", math.nan)), str(value("finish_reason", "")),
        np.asarray(value("prompt_ids", []), dtype="i4"), ids, np.asarray(value("logprob", none), dtype="f4"),
        np.asarray(value("entropy", none), dtype="f4"),
    )  # fmt: skip


def no_model(source: Store | pd.DataFrame) -> str:
    """In words why nothing can be asked of a model."""
    if not isinstance(source, Store):
        return NO_RUN
    return (
        "Numbers that need the model (other weights, KL, shares of the loss): this run was opened to look at;"
        f" wb.resume({str(source.folder)!r}) has its model."
    )


def pieces(view: Tokens, ids: np.ndarray) -> Pieces:
    return stored.pieces(view.source, ids.tolist()) if isinstance(view.source, Store) else view.pieces or {}


def kept(source: Store | pd.DataFrame, found: Sequence[Record]) -> list[tuple[bool, bool]]:
    """Of each completion whether its tokens count in the loss (where `mask_truncated_completions` is on, those that
    were cut off do not), and whether some of them do not (`top_entropy_quantile`), which only the model can tell."""
    if not isinstance(source, Store):
        return [(True, False)] * len(found)
    settings = {key: source.settings(*key) for key in {(record.step, record.branch) for record in found}}
    made = []
    for record in found:
        its = settings[record.step, record.branch]
        keep = not (its.get("mask_truncated_completions") and record.finish_reason == "length")
        made.append((keep, keep and its.get("top_entropy_quantile", 1.0) < 1))
    return made


def title(record: Record) -> str:
    """What tells a completion from others, in one line."""
    parts = [f"step {record.step}"] if record.step >= 0 else []
    parts.append(f"group {record.group}, sample {record.sample}")
    parts += [f"reward {number(record.reward)}"] if not math.isnan(record.reward) else []
    parts += [f"advantage {number(record.advantage)}"] if not math.isnan(record.advantage) else []
    parts.append(f"{len(record.ids)} tokens")
    return " · ".join(parts + ([visible(record.finish_reason)] if record.finish_reason else []))


def _joined(parts: Sequence[np.ndarray], kind: str) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=kind) for part in parts] or [np.empty(0, dtype=kind)])


def _fitted(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """One number for each id: NaN where there are none (a given completion was not sampled)."""
    return values if len(values) == len(ids) else np.full(len(ids), np.nan, dtype="f4")
