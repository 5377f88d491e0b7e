"""Where a tuned model says something else than its base: rank and divergence of each token that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench import worker
from workbench.analyses import picture
from workbench.analyses.paired import Pair, compared, greedy, means, pair, sequences_of
from workbench.analyses.picture import Result
from workbench.data import rows as read_rows
from workbench.errors import DataError

KINDS = ("unshifted", "marginal", "shifted")
MARGINAL = 3
"""the last rank that is marginal"""
BINS = 10
"""parts of a response, by relative position"""


def token_shift(
    tuned: Any,
    prompts: Sequence[Any],
    completions: Sequence[Any] | None = None,
    *,
    base: Any = None,
    rows: Any = None,
    nearest: int = 3,
    max_new_tokens: int = 64,
) -> Result:
    """Token shift: which tokens of its own answers a tuned model would not have written before tuning.

    The tuned model answers greedily. For each token y_t of the answer, with the same text before it,

        r_t  = the rank of y_t under the base: 1 + the number of tokens that the base finds likelier
        KL_t = sum_v p_tuned(v) log(p_tuned(v) / p_base(v)), nats

    and the token is unshifted (r = 1), marginal (r = 2 or 3) or shifted (r > 3). LoRA is found to shift first tokens
    and style; training all weights shifts content, too, and borrows wrong tokens from its training rows.

    `tuned`, `base`: see `workbench.analyses.paired`; a policy with its adapter on is compared with the adapter off, and
    `base=(run, step)` or another policy will do. `completions`: other texts or ids than the greedy ones. `rows`: what
    it was trained on (prompt and completion, or chosen); then the table `borrowed` lists, for each shifted token that
    stands in some training completion, the `nearest` such rows by the cosine of the prompts' mean last hidden states
    under the base. Which spans are wrong the paper's authors marked by hand; here all shifted tokens are listed.

    The frame has a row a token: row, position, token, id, rank, kind, kl, logprob and base_logprob. Tables: `positions`
    (the share of each kind, by tenths of the answer), `tokens` (those most often shifted) and `borrowed`.

    Raises SettingError where there is no base, DataError for completions that do not go with the prompts and for rows
    without prompt and completion.
    """
    both = pair(tuned, base)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise DataError("token_shift: no prompts given.")
    known = None if rows is None else _trained_on(rows)
    frame, texts = worker.call(_measured, both, prompts, completions, max_new_tokens)
    tables = {"positions": _positions(frame), "tokens": _most_shifted(frame)}
    if known is not None:
        tables["borrowed"] = worker.call(_borrowed, both, prompts, frame, known, nearest)
    shares = frame["kind"].value_counts(normalize=True)
    summary = {kind: float(shares.get(kind, 0.0)) for kind in KINDS} | {"KL per token": float(frame["kl"].mean())}
    title = f"Token shift: {both.tuned.name} over {both.base.name}, {len(texts)} answers"
    return Result(title, frame, _draw, summary, tables)


def kind_of(rank: int) -> str:
    """The class of a token that has this rank under the base."""
    return KINDS[0] if rank == 1 else KINDS[1] if rank <= MARGINAL else KINDS[2]


def _measured(both: Pair, prompts: list[Any], completions: Sequence[Any] | None, most: int) -> tuple[Any, list[str]]:
    """A row a token, on the worker, and the answers."""
    import pandas as pd

    policy = both.tuned.policy
    if completions is None:
        completions = greedy(both.tuned, prompts, most).ids
    sequences, starts = sequences_of(policy, prompts, completions)
    found: list[list[np.ndarray]] = []
    for part in compared(both, sequences, starts):
        own = part.target[:, None]
        before, after = (logp.gather(1, own)[:, 0] for logp in (part.base, part.tuned))
        rank = 1 + (part.base > before[:, None]).sum(1)
        kl = (part.tuned.exp() * (part.tuned - part.base)).sum(1).clamp(min=0)  # rounding may go below
        columns = (part.row, part.column, part.target, rank, kl, after, before)
        found.append([column.cpu().numpy() for column in columns])
    if not found:
        raise DataError("token_shift: there is no token to look at, all completions are empty.")
    names = ("row", "position", "id", "rank", "kl", "logprob", "base_logprob")
    whole = (np.concatenate(parts) for parts in zip(*found, strict=True))
    frame = pd.DataFrame(dict(zip(names, whole, strict=True)))
    frame = frame.sort_values(["row", "position"], ignore_index=True)
    pieces = policy.pieces.of([frame["id"].tolist()])
    frame.insert(2, "token", [pieces[token][0] for token in frame["id"]])
    frame.insert(5, "kind", [kind_of(rank) for rank in frame["rank"]])
    return frame, [policy.text_of(s[start:]) for s, start in zip(sequences, starts, strict=True)]


def _positions(frame: Any) -> Any:
    """The share of each kind in each tenth of the answers."""
    lengths = frame.groupby("row")["position"].transform("max") + 1
    tenth = (frame["position"] * BINS // lengths).rename("tenth")
    counts = frame.groupby([tenth, "kind"]).size().unstack(fill_value=0).reindex(columns=KINDS, fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0).reset_index()


def _most_shifted(frame: Any) -> Any:
    """Tokens by how often they are shifted, those that always are first among equals."""
    made = frame.assign(shifted=frame["kind"] == KINDS[2]).groupby("token", sort=False)
    table = made.agg(shifted=("shifted", "sum"), of=("shifted", "size"), kl=("kl", "mean")).reset_index()
    table = table[table["shifted"] > 0].assign(share=lambda t: t["shifted"] / t["of"])
    return table.sort_values(["shifted", "share"], ascending=False, ignore_index=True)


def _trained_on(rows: Any) -> list[tuple[Any, Any]]:
    """Prompt and completion of each training row."""
    given = read_rows(rows)
    answer = "chosen" if "chosen" in given.columns else "completion"
    given.require("prompt", answer, what="Looking for borrowed tokens")
    return [(row["prompt"], row[answer]) for row in given]


def _borrowed(both: Pair, prompts: list[Any], frame: Any, known: list[tuple[Any, Any]], nearest: int) -> Any:
    """For each shifted token the nearest training rows whose completion has it; on the worker."""
    import pandas as pd

    policy = both.base.policy
    texts = [text if isinstance(text, str) else str(text[-1]["content"]) for _, text in known]
    having = [set(ids) for ids in policy.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    here, there = (torch.nn.functional.normalize(means(both.base, p), dim=1) for p in (prompts, [p for p, _ in known]))
    near = here @ there.T  # (prompts, rows)
    made = []
    for token in frame[frame["kind"] == KINDS[2]].itertuples():
        fits = [i for i, ids in enumerate(having) if token.id in ids]
        for i in sorted(fits, key=lambda i: -float(near[token.row, i]))[:nearest]:
            made.append([token.row, token.position, token.token, i, float(near[token.row, i]), texts[i]])
    return pd.DataFrame(made, columns=["row", "position", "token", "from_row", "cosine", "completion"])


def _draw(result: Result) -> Any:
    from plotly.graph_objects import Bar, Scatter

    titles = ["answers, by what the base thinks of each token", "by place in the answer", "tokens most often shifted"]
    figure = picture.sheet(result.title, titles, wide=True)
    tints = [picture.pale(2, 0.18), picture.pale(4, 0.55), picture.pale(1, 0.75)]
    steps = [[edge, tints[i]] for i in range(3) for edge in (i / 3, (i + 1) / 3)]
    painted = result.frame.assign(paint=[KINDS.index(kind) for kind in result.frame["kind"]])
    picture.ribbon(figure, painted, "paint", steps, 2, "kind (0 unshifted, 1 marginal, 2 shifted)")
    places = result["positions"]
    for i, kind in enumerate(KINDS):
        look = {"fillcolor": tints[i], "line": {"width": 0.5, "color": tints[i]}, "mode": "lines"}
        area = Scatter(x=(places["tenth"] + 0.5) / BINS, y=places[kind], name=kind, stackgroup="kinds", **look)
        picture.add(figure, area, panel=1)
    picture.axes(figure, "relative position", "share of tokens", panel=1, yaxis={"range": [0, 1]})
    top = result["tokens"].head(12).iloc[::-1]
    names = [picture.told(f"«{token}»", 14) for token in top["token"]]
    picture.axes(figure, "times shifted", "" if len(top) else "none is", panel=2)
    if len(top):
        bar = Bar(x=top["shifted"], y=names, orientation="h", marker={"color": tints[2]}, showlegend=False)
        picture.add(figure, bar, panel=2)
        figure.update_yaxes(type="category", **picture.place(figure, 2))
    return figure
