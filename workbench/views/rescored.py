"""Rescored rollouts: which advantages flip, which groups die or come alive, who changes rank; down to the rollout.

The view reads one or two tables ("run": against the rewards of the run; "before": against the rescoring before), all
from Python, page by page. From the page:

    points   {against}                            old, new float32; step, index int32; flips uint8: every rollout
    groups   {against, step, what, sort, start}   a page of groups, and the numbers to read first
    group    {against, index}                     the rollouts of a group
    rollout  {against, index}                     one rollout, its texts whole
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd
import traitlets

from workbench.ranks import summary_of
from workbench.views.base import Ask, Reply, View, assets
from workbench.views.picture import GREY, PALETTE, table_html, table_text
from workbench.views.text import escape, number_or_dash, one_line, plain, visible, whole

PAGE = 25
MOST_BARS = 32
MOST_MEMBERS = 256
MOST_POINTS = 60_000
"""a scatter of more is drawn from an even choice of them"""
PROMPT = 200
"""characters of a text in a list"""
WHAT = {
    "all": lambda g: np.ones(len(g), dtype=bool),
    "changed": lambda g: ((g["change"] != "") | (g["flips"] > 0) | (g["reordered"] > 0)).to_numpy(),
    "died": lambda g: (g["change"] == "died").to_numpy(),
    "alive": lambda g: (g["change"] == "came alive").to_numpy(),
    "flips": lambda g: (g["flips"] > 0).to_numpy(),
    "best": lambda g: g["best_changed"].to_numpy(),
}
SORT = {
    "change": lambda g: -(2 * (g["change"] != "") + g["flips"] / g["size"]),
    "flips": lambda g: -(g["flips"] / g["size"]),
    "reordered": lambda g: -(g["reordered"] / g["pairs"].clip(lower=1)),
    "rise": lambda g: -(g["new_reward"] - g["reward"]),
    "fall": lambda g: g["new_reward"] - g["reward"],
    "step": lambda g: g["step"],
}


class Side:
    """A table of `ranks.with_changes` with its groups, for quick answers."""

    def __init__(self, frame: pd.DataFrame, groups: pd.DataFrame):
        self.frame, self.groups = pd.DataFrame(frame).reset_index(drop=True), groups
        self.parts = list(dict.fromkeys(
            name.removeprefix("new_").removeprefix("rewards/")
            for name in self.frame if name.startswith(("rewards/", "new_rewards/"))
        ))  # fmt: skip
        codes = self.frame.groupby(["step", "group_id"], sort=True).ngroup().to_numpy()
        self._order = np.argsort(codes, kind="stable")
        self._starts = np.searchsorted(codes[self._order], np.arange(len(groups) + 1))

    def members(self, group: int) -> pd.DataFrame:
        """The rollouts of a group, the best of the old rewards first."""
        found = self.frame.iloc[self._order[self._starts[group] : self._starts[group + 1]]]
        return found.sort_values(["rank", "new_rank"], kind="stable", na_position="last")

    def summary(self, step: int | None) -> dict[str, Any]:
        if step is None:
            return summary_of(self.frame, self.groups)
        return summary_of(self.frame[self.frame["step"] == step], self.groups[self.groups["step"] == step])


class RescoredView(View):
    """The view over a `Rescored`: `rescored` has `groups`, and `since` (another one, or None)."""

    _esm = assets("frame.js", "rescored.js", main="WbRescored")
    _css = assets("common.css", "rescored.css")
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, rescored: Any, folder: Any = None):
        self.name = "" if folder is None else visible(getattr(folder, "name", folder))
        self.sides = {"run": Side(rescored, rescored.groups)}
        since = rescored.since
        if since is not None and len(since):
            self.sides["before"] = Side(since, since.groups)
        super().__init__(first=self.page())

    def __repr__(self) -> str:
        return f"<RescoredView: {len(self.sides['run'].frame)} rollouts, {len(self.sides['run'].groups)} groups>"

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self, rows: int = 12) -> str:
        said = [f"<div><b>Rescored</b> {escape(self.name)}</div>"]
        for against, side in self.sides.items():
            title = {"run": "", "before": "Since the rescoring before: "}[against]
            said.append(f"<div>{escape(title + in_words(side.summary(None)))}</div>")
        cells = self._cells(rows)
        table = table_html(HEADINGS, cells)
        more = len(self.sides["run"].groups) - len(cells)
        words = f"and {more:,} more groups" if cells else f"None of the {more:,} groups changes."
        rest = f"<div>{words}</div>" if more else ""
        frame = self.sides["run"].frame
        return f'<div class="wb-static">{"".join(said)}{scatter(frame) if len(frame) else ""}{table}{rest}</div>'

    def static_text(self, rows: int = 8) -> str:
        lines = [f"Rescored {self.name}".strip()]
        for against, side in self.sides.items():
            title = {"run": "", "before": "Since the rescoring before: "}[against]
            lines.append(title + in_words(side.summary(None)))
        cells = self._cells(rows)
        table = table_text(HEADINGS, cells)
        return "\n".join([*lines, table] if table else lines)

    def _cells(self, rows: int) -> list[list[str]]:
        side = self.sides["run"]
        return [
            [
                str(g["step"]), g["change"] or ("alive" if g["alive"] else "dead"), f"{g['flips']} of {g['size']}",
                f"{g['reordered']} of {g['pairs']}", _moved(g["reward"], g["new_reward"]), g["prompt"],
            ]
            for g in (self._group(side, i) for i in self._ordered(side, None, "changed", "change")[:rows])
        ]  # fmt: skip

    # -- answering the page ----------------------------------------------------------------------------------

    def on_groups(self, ask: Ask, **wish: Any) -> dict[str, Any]:
        return self.page(**wish)

    def on_points(self, ask: Ask, against: str = "run") -> Reply:
        frame = self._side(against).frame
        at = np.arange(len(frame))
        if len(at) > MOST_POINTS:
            at = np.linspace(0, len(frame) - 1, MOST_POINTS).round().astype(int)
        part = frame.iloc[at]
        return Reply({"total": len(frame)}, {
            "old": part["advantage"].to_numpy("f4"), "new": part["new_advantage"].to_numpy("f4"),
            "step": part["step"].to_numpy("i4"), "index": at.astype("i4"), "flips": part["flips"].to_numpy(bool),
        })  # fmt: skip

    def on_group(self, ask: Ask, index: int, against: str = "run", rollout: int | None = None) -> dict[str, Any]:
        """The group at `index`, or that of the rollout at position `rollout`."""
        side = self._side(against)
        if rollout is not None:
            row = side.frame.iloc[int(rollout)]
            same = (side.groups["step"] == row["step"]) & (side.groups["group_id"] == row["group_id"])
            index = int(np.flatnonzero(same)[0])
        members = side.members(int(index))
        return {
            "group": self._group(side, int(index)),
            "prompt": whole(side.groups["prompt"].iloc[int(index)]),
            "members": [self._member(side, i, row) for i, row in members.head(MOST_MEMBERS).iterrows()],
            "more": max(0, len(members) - MOST_MEMBERS),
        }

    def on_rollout(self, ask: Ask, index: int, against: str = "run") -> dict[str, Any]:
        side = self._side(against)
        row = side.frame.iloc[int(index)]
        return self._member(side, int(index), row) | {
            "prompt": whole(row["prompt"]), "completion": whole(row["completion"]), "id": int(row["id"]),
        }  # fmt: skip

    def page(
        self, against: str = "run", step: int | None = None, what: str = "changed", sort: str = "change", start: int = 0
    ) -> dict[str, Any]:
        """PAGE groups from `start` on, of one step (None: of all)."""
        side = self._side(against)
        order = self._ordered(side, step, what, sort)
        start = max(0, min(int(start), (len(order) - 1) // PAGE * PAGE)) if len(order) else 0
        return {
            "name": self.name, "sides": list(self.sides), "steps": [int(s) for s in side.groups["step"].unique()],
            "summary": {name: plain(value) for name, value in side.summary(step).items()},
            "groups": [self._group(side, i) for i in order[start : start + PAGE]],
            "start": start, "matched": len(order), "page": PAGE,
        }  # fmt: skip

    def _side(self, against: str) -> Side:
        return self.sides.get(against, self.sides["run"])

    @staticmethod
    def _ordered(side: Side, step: int | None, what: str, sort: str) -> np.ndarray:
        """Positions of the groups that are wanted, as they are wanted."""
        groups = side.groups
        keep = WHAT.get(what, WHAT["all"])(groups)
        if step is not None:
            keep = keep & (groups["step"] == step).to_numpy()
        by = pd.Series(SORT.get(sort, SORT["step"])(groups).to_numpy(float))[keep]
        return by.sort_values(kind="stable", na_position="last").index.to_numpy()

    @staticmethod
    def _group(side: Side, index: int) -> dict[str, Any]:
        found = side.groups.iloc[int(index)].to_dict()
        members = side.members(int(index)).head(MOST_BARS)
        return {name: plain(value) for name, value in found.items() if name != "prompt"} | {
            "index": int(index), "prompt": one_line(whole(found["prompt"]), PROMPT),
            "bars": [plain(v) for v in members["reward"].tolist()],
            "new_bars": [plain(v) for v in members["new_reward"].tolist()],
        }  # fmt: skip

    @staticmethod
    def _member(side: Side, index: int, row: pd.Series) -> dict[str, Any]:
        numbers = ("reward", "new_reward", "advantage", "new_advantage", "rank", "new_rank", "step")
        parts = [
            [one_line(name, 60), *(plain(row.get(f"{side_}rewards/{name}")) for side_ in ("", "new_"))]
            for name in side.parts
        ]
        return {name: plain(row[name]) for name in numbers} | {
            "index": int(index), "flips": bool(row["flips"]), "parts": parts,
            "text": one_line(whole(row["completion"]), PROMPT),
        }  # fmt: skip


HEADINGS = ("step", "group", "flips", "pairs reordered", "mean reward", "prompt")


def scatter(frame: pd.DataFrame, most: int = 1500) -> str:
    """Old against new advantages as an <img>: shaded where the sign flips. At most `most` of them, evenly chosen."""
    part = frame.iloc[np.linspace(0, len(frame) - 1, min(most, len(frame))).round().astype(int)]
    size, half = 240, 120
    ends = [float(np.nanmax(np.abs(part[name]), initial=0.0)) * 1.06 or 1.0 for name in ("advantage", "new_advantage")]
    dots = [
        f'<circle cx="{half + half * x / ends[0]:.1f}" cy="{half - half * y / ends[1]:.1f}" r="2" opacity="0.6"'
        f' fill="{PALETTE[bool(flips)]}"/>'
        for x, y, flips in zip(part["advantage"], part["new_advantage"], part["flips"], strict=True)
        if np.isfinite(x) and np.isfinite(y)
    ]
    shade = "".join(
        f'<rect x="{x}" y="{y}" width="{half}" height="{half}" fill="{PALETTE[1]}" opacity="0.12"/>'
        for x, y in ((0, 0), (half, half))
    )
    box = f'<rect x="0.5" y="0.5" width="{size - 1}" height="{size - 1}" fill="none" stroke="{GREY}"/>'
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size}" height="{size}">'
        f'{shade}<path d="M{half} 0V{size}M0 {half}H{size}" stroke="{GREY}" opacity="0.5"/>{box}{"".join(dots)}</svg>'
    )
    source = base64.b64encode(drawn.encode()).decode()
    said = f"old advantage (across) against new advantage (up); {int(frame['flips'].sum()):,} flip"
    return (
        f'<div><img alt="{said}" width="{size}" src="data:image/svg+xml;base64,{source}">'
        '<div style="font-size: 11px">across: old advantage, up: new; shaded: the sign flips</div></div>'
    )


def in_words(summary: dict[str, Any]) -> str:
    """The summary as a sentence or two."""
    if not summary["rollouts"]:
        return "There are no rollouts to score."
    s = summary
    said = [
        f"{s['rollouts']:,} rollouts in {s['groups']:,} groups: {s['flips']:,} advantages flip sign",
        f"groups alive {s['alive_before']:,} → {s['alive_after']:,}"
        f" ({s['died']:,} died, {s['came_alive']:,} came alive)",
        f"mean reward {_moved(s['reward_before'], s['reward_after'])}",
        f"rank correlation within groups {number_or_dash(s['rank_correlation'])}",
    ]
    return "; ".join(said) + "." + (f" {s['unscored']:,} have no reward now." if s["unscored"] else "")


def _moved(before: float | None, after: float | None) -> str:
    return f"{number_or_dash(before)} → {number_or_dash(after)}"
