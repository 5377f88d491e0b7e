"""What every analysis returns: its numbers as a DataFrame, and the picture that they make.

    result.frame      one row a thing that was measured
    result.tables     further DataFrames by name; result["name"] gives one of them, or a headline number
    result.summary    the headline numbers
    result.figure     a plotly Figure, made when it is first asked for
    result.show()     the picture in a notebook, the numbers in a terminal

In a notebook a result at the end of a cell shows its picture; where nothing draws plotly's (a saved notebook on a web
page) there are the numbers. Text that a model wrote is untrusted: it reaches HTML through `views.text.escape`, and a
figure, in whose texts plotly reads a little HTML, through `told`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import SettingError, did_you_mean
from workbench.text import visible
from workbench.views.picture import GREY, PALETTE, table_html, table_text
from workbench.views.text import escape, number_or_dash, one_line, whole

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

ROWS = 12
"""of a table that is shown"""
HEIGHT = 300
RESPONSES, TOKENS = 6, 48
"""responses of a ribbon, and tokens of each"""
INK = "#333333"
FONT = "system-ui, sans-serif"
DASHES = ("solid", "dash", "dot")
LOG = {"type": "log", "tickvals": [digit * 10**power for power in range(-3, 10) for digit in (1, 2, 5)]}
"""an axis of powers"""
FAINT = "rgba(122, 122, 122, 0.25)"
PLOTLY = "application/vnd.plotly.v1+json"
CONFIG = {"displaylogo": False, "typesetMath": False}  # with "responsive" Lab squeezes figures when the theme changes
_CODES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "%": "&#37;", "{": "&#123;", "$": "&#36;"})


@dataclass(repr=False)
class Result:
    """See the module. `draw` makes the figure of a result."""

    title: str
    frame: pd.DataFrame
    draw: Callable[[Any], Figure]
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """what one has to know to read the numbers"""

    @cached_property
    def figure(self) -> Figure:
        """The picture, a plotly Figure of one's own: change it, save it (`figure.write_html`)."""
        return self.draw(self)

    def __getitem__(self, name: str) -> Any:
        """A table or a headline number. Raises SettingError for a name that there is not."""
        for place in (self.tables, self.summary):
            if name in place:
                return place[name]
        known = [*self.tables, *self.summary]
        raise SettingError(f"{self.title} has no {name!r}.{did_you_mean(str(name), known)} It has {', '.join(known)}.")

    def save(self, path: str | Path) -> Path:
        """Write the picture as one HTML file that needs nothing else (about 5 MB, most of it the chart library)."""
        path = Path(path)
        self.figure.write_html(path, include_plotlyjs=True, config=CONFIG)
        return path

    def show(self) -> None:
        """The picture in a notebook, the numbers in a terminal."""
        from workbench.views.base import in_kernel

        if not in_kernel():
            return print(repr(self))
        from IPython.display import display

        display(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        drawn = json.loads(self.figure.to_json())
        return {PLOTLY: {**drawn, "config": CONFIG}, "text/html": self._html(), "text/plain": repr(self)}

    def _html(self) -> str:
        facts = " · ".join(f"{escape(name)} <b>{escape(_cell(value))}</b>" for name, value in self.summary.items())
        said = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        left = len(self.frame) - ROWS
        more = f'<div style="color: {GREY}">and {left} more rows in .frame</div>' if left > 0 else ""
        table = table_html(*_cells(self.frame))
        head = f"<div><b>{escape(self.title)}</b></div><div>{facts}</div>"
        return f'<div class="wb-static">{head}{said}{table}{more}</div>'

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {one_line(_cell(value), 60)}" for name, value in self.summary.items())
        lines = [f"{self.title}: {facts}" if facts else self.title, *self.notes, table_text(*_cells(self.frame))]
        left = len(self.frame) - ROWS
        return visible("\n".join(lines + ([f"and {left} more rows in .frame"] if left > 0 else [])))


def _cells(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The first rows as text."""
    rows = [[_cell(value) for value in row] for row in frame.head(ROWS).itertuples(index=False)]
    return [str(name) for name in frame.columns], rows


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) or hasattr(value, "dtype"):
        return number_or_dash(float(value)) if getattr(value, "ndim", 0) == 0 else whole(list(value))
    return one_line(whole(value), 60)


# -- figures --------------------------------------------------------------------------------------------------


def told(text: object, limit: int = 40) -> str:
    """Text for a figure: on one line, in which nothing hides and plotly reads no HTML and no formula."""
    return one_line(text, limit).translate(_CODES)


def style(i: int) -> dict[str, Any]:
    """The line of the i-th curve of a chart."""
    return {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)], "width": 2}


def tint(i: int, opacity: float) -> str:
    """The i-th colour, not quite opaque."""
    red, green, blue = (int(PALETTE[i % len(PALETTE)][at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def pale(i: int, share: float) -> str:
    """The i-th colour mixed with white, a part `share` of it: dark text reads on it, whatever the page's theme."""
    mixed = (round(255 + share * (int(PALETTE[i % len(PALETTE)][at : at + 2], 16) - 255)) for at in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def sheet(
    title: str, panels: Sequence[str] = ("",), *, wide: bool = False, height: int = HEIGHT, **more: Any
) -> Figure:
    """An empty figure with a panel for each of `panels`, side by side, in the look of the bench; `wide`: the first one
    has a row of its own above the others. `more` goes to plotly's `make_subplots`."""
    from plotly.subplots import make_subplots

    cols = len(panels) - wide
    if wide:
        above = [{"colspan": cols}, *[None] * (cols - 1)]
        more = {"rows": 2, "specs": [above, [{}] * cols], "vertical_spacing": 0.16} | more
    titles = [told(panel, 80) for panel in panels]
    made = make_subplots(cols=cols, subplot_titles=titles, **({"horizontal_spacing": 0.09 if cols > 1 else 0.0} | more))
    made.update_layout(
        title={"text": told(title, 120), "font": {"size": 14}, "x": 0, "xanchor": "left", "xref": "paper"},
        height=height * (1 + wide), colorway=list(PALETTE), font={"family": FONT, "size": 12, "color": GREY},
        paper_bgcolor="rgba(0, 0, 0, 0)", plot_bgcolor="rgba(0, 0, 0, 0)", barmode="stack",
        margin={"l": 60, "r": 16, "t": 64, "b": 48}, legend={"font": {"size": 11}, "tracegroupgap": 0},
        hoverlabel={"namelength": -1}, modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": GREY},
        meta={"cols": cols, "wide": wide},
    )  # fmt: skip
    made.update_annotations(font={"size": 12})
    axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False, "ticklen": 3, "exponentformat": "e"}
    made.update_xaxes(**axis, showline=True, title_font={"size": 11}, title_standoff=6)
    made.update_yaxes(**axis, title_font={"size": 11}, title_standoff=4)
    return made


def place(figure: Figure, panel: int) -> dict[str, int]:
    """`row` and `col` of a panel, counted from 0."""
    cols, wide = figure.layout.meta["cols"], figure.layout.meta["wide"]
    if wide:
        return {"row": 1, "col": 1} if panel == 0 else {"row": 2, "col": panel}
    return {"row": panel // cols + 1, "col": panel % cols + 1}


def add(figure: Figure, *traces: Any, panel: int = 0) -> None:
    """Traces into a panel of the figure."""
    for trace in traces:
        figure.add_trace(trace, **place(figure, panel))


def curve(figure: Figure, x: Any, y: Any, name: str, i: int, *, panel: int = 0, **more: Any) -> None:
    """A line in a panel of the figure; its points are marked where they are few."""
    from plotly.graph_objects import Scatter

    mode = more.pop("mode", "lines+markers" if len(x) <= 40 else "lines")
    line = style(i) | more.pop("line", {})
    more = {"legendgroup": told(name)} | more
    add(figure, Scatter(x=list(x), y=list(y), name=told(name), mode=mode, line=line, **more), panel=panel)


def axes(figure: Figure, x: str, y: str, *, panel: int = 0, xaxis: Any = None, yaxis: Any = None) -> None:
    """What the axes of a panel are."""
    figure.update_xaxes(title_text=told(x, 80), **(xaxis or {}), **place(figure, panel))
    figure.update_yaxes(title_text=told(y, 80), **(yaxis or {}), **place(figure, panel))


def ribbon(
    figure: Figure, frame: pd.DataFrame, value: str, colours: Any, top: float, said: str, panel: int = 0
) -> None:
    """Responses as lines of tokens painted by a number: `frame` has row, position, token and the column `value`;
    `colours` is a plotly colour scale from 0 to `top`."""
    from plotly.graph_objects import Heatmap

    rows = list(dict.fromkeys(frame["row"]))[:RESPONSES]
    shown = frame[frame["row"].isin(rows) & (frame["position"] < TOKENS)]
    shown = shown.assign(token=[told(token, 6) for token in shown["token"]])
    grid, texts = (shown.pivot(index="row", columns="position", values=name) for name in (value, "token"))
    add(
        figure,
        Heatmap(
            z=grid.values, x=list(grid.columns), y=[f"#{row}" for row in grid.index], text=texts.fillna("").values,
            zmin=0, zmax=top, xgap=1, ygap=3, colorscale=colours, showscale=False, texttemplate="%{text}",
            textfont={"size": 11, "color": INK}, hovertemplate=f"%{{text}}  {said} %{{z:.3~g}}<extra></extra>",
        ),
        panel=panel,
    )  # fmt: skip
    bare = {"showgrid": False}
    axes(figure, "token of the response", "", panel=panel, xaxis=bare, yaxis={"autorange": "reversed", **bare})
