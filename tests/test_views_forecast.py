"""The picture of a forecast: what it says, that its bars are its numbers, and that a name of a model is only text."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET

import pytest

from workbench.views.forecast import LEFT, PARTS, RIGHT, WIDTH, Change, ForecastPicture, Phase

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(1)>\u202e\x1b[31m\x00\ud800'
PHASES = [
    Phase("sampling", {"weights": 400_000_000, "KV cache": 100_000_000}),
    Phase("update", {"weights": 400_000_000, "activations": 500_000_000, "head": 100_000_000}),
]


def picture(free: int | None = 700_000_000, fits: bool | None = True, title: str = "wb.grpo of tiny on cpu", **more):
    held = more.pop("held", 400_000_000)
    return ForecastPicture(title=title, phases=PHASES, held=held, free=free, margin=0.9, fits=fits, **more)


def image(made: ForecastPicture) -> ET.Element:
    source = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', made.static_html())[1]
    return ET.fromstring(base64.b64decode(source))


def bars(made: ForecastPicture) -> list[tuple[str, float, float]]:
    found = [node.attrib for node in image(made) if node.tag.endswith("rect")]
    return [(bar["fill"], float(bar["x"]), float(bar["width"])) for bar in found]


def test_bars_are_as_long_as_their_parts():
    scale = (WIDTH - LEFT - RIGHT) / (0.4e9 + 0.9 * 0.7e9)
    drawn = bars(picture())
    assert [width for _, _, width in drawn] == pytest.approx([n * 1e8 * scale for n in (4, 1, 4, 5, 1)], abs=0.02)
    assert drawn[3][1] == pytest.approx(LEFT + 4e8 * scale, abs=0.02), "one after the other"
    assert [colour for colour, *_ in drawn] == [PARTS[n][0] for n in ("weights", "KV cache", "weights", "activations",
                                                                      "head")]  # fmt: skip


def test_the_limit_is_drawn_only_where_it_is_near():
    near = [node for node in image(picture()) if "stroke-dasharray" in node.attrib]
    assert [float(line.attrib["x1"]) for line in near] == [WIDTH - RIGHT]
    assert "Dashed line: 1.03 GB" in picture().static_html()
    far = picture(free=50_000_000_000)
    assert not [node for node in image(far) if "stroke-dasharray" in node.attrib]
    assert "Dashed" not in far.static_html() and "Dashed" not in picture(free=None, fits=None).static_html()


def test_it_says_the_peak_and_the_verdict():
    assert picture().headline() == "Peak 1 GB, in update: 600 MB more than is held now. It fits: 700 MB are free."
    tight = picture(free=500_000_000, fits=False, advice=[Change("micro_batch_size=1", 700_000_000, True)])
    assert "It does not fit: 500 MB are free." in tight.headline()
    for form in (tight.static_html(), tight.static_text()):
        assert "micro_batch_size=1" in form and "700 MB" in form and "−300 MB" in form and "fits" in form
    assert "What to change" in tight.static_html()
    assert "cannot be told" in picture(free=None, fits=None).headline()


def test_facts_have_their_units():
    facts = [("measured: seconds left", 3700.0, "s"), ("measured: peak", 2e9, "bytes"), ("tokens a step", 12345.0, "")]
    said = picture(facts=facts).static_text()
    assert "seconds left: 1 h 02 min" in said and "peak: 2 GB" in said and "tokens a step: 12,345" in said


def test_a_name_is_only_text():
    made = picture(title=HOSTILE, advice=[Change(HOSTILE, 1, None)], facts=[(HOSTILE, 1.0, "")])
    page = made.static_html()
    assert "<script" not in page and "<img src=x" not in page and page.count("<img") == 1
    assert "&lt;script&gt;" in page and "\x00" not in page and "\u202e" not in page
    text = made.static_text()
    assert "\x1b" not in text and "\u202e" not in text and "⟨U+202E⟩" in text
    page.encode("utf-8"), text.encode("utf-8")


def test_every_part_has_a_colour_of_its_own_and_a_meaning():
    assert len({look[:2] for look in PARTS.values()}) == len(PARTS)
    assert all(meaning for *_, meaning in PARTS.values())


def test_it_shows_itself_in_a_terminal(capsys):
    made = picture()
    assert made.show() is made and made.headline() in capsys.readouterr().out
    assert set(made._repr_mimebundle_()) == {"text/html", "text/plain"}
