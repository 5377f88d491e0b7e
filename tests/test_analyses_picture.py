"""Results: what they show, and that text of a model cannot reach a page as anything but text."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from workbench.analyses import picture
from workbench.analyses.picture import Result
from workbench.errors import SettingError

EVIL = '<script>alert(1)</script> %{x} $a$ "q" \u202e\x07'


def result(**more):
    def draw(made):
        figure = picture.sheet(made.title, ["one", EVIL])
        picture.curve(figure, [0, 1], [1.0, 2.0], EVIL, 7, panel=1)
        picture.axes(figure, EVIL, "y", panel=1)
        return figure

    frame = pd.DataFrame({"row": range(20), EVIL: [EVIL] * 20, "x": [1 / 3] * 20})
    return Result(f"A title {EVIL}", frame, draw, {"mean": 1 / 3}, {"more": frame.head(2)}, **more)


def test_it_has_numbers_tables_and_a_figure():
    made = result(notes=["A note."])
    assert made["mean"] == pytest.approx(1 / 3) and len(made["more"]) == 2
    assert made.figure is made.figure and len(made.figure.data) == 1
    with pytest.raises(SettingError, match="Did you mean 'mean'"):
        made["maen"]
    said = repr(made)
    assert "mean 0.3333" in said and "A note." in said and "and 8 more rows" in said
    assert "\x07" not in said and "\u202e" not in said


def test_no_text_becomes_html():
    made = result()
    bundle = made._repr_mimebundle_()
    assert set(bundle) == {picture.PLOTLY, "text/html", "text/plain"}
    assert "<script" not in bundle["text/html"] and "&lt;script" in bundle["text/html"]
    drawn = json.dumps(bundle[picture.PLOTLY]["data"]) + json.dumps(bundle[picture.PLOTLY]["layout"])
    for hidden in ("<script", "%{x}", "$a$", "\\u202e", "\\u0007"):
        assert hidden not in drawn
    assert "&lt;script&gt;" in drawn


def test_told_is_one_line():
    assert picture.told("a\nb <b>") == "a↵b &lt;b&gt;"
    assert picture.told("x" * 50, 10) == "x" * 10 + "…"
    assert picture.tint(0, 0.5) == "rgba(0, 114, 178, 0.5)"


def test_saved_figures_need_nothing_else(tmp_path):
    page = result().save(tmp_path / "a.html").read_text("utf-8")
    assert "<script>alert" not in page and "Plotly.newPlot" in page and 'src="http' not in page


def test_a_terminal_gets_text(capsys):
    result().show()
    assert "mean 0.3333" in capsys.readouterr().out
