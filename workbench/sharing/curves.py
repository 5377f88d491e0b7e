"""The curves of a run as one SVG file, for places that show pictures but run no script."""

from __future__ import annotations

from xml.sax.saxutils import escape

from workbench.store import Store
from workbench.views.curves import Chart, Curves, arrange, changed, last_values
from workbench.views.picture import GREY, HEIGHT, WIDTH, style_of, svg
from workbench.views.text import one_line

ACROSS = 3
GAP, HEAD, LINE = 16, 22, 15
MOST_NAMES = 4
"""names in a chart's legend"""


def of(store: Store) -> str | None:
    """The method's main charts side by side with titles and legends, as an SVG document; None without a metric."""
    curves = Curves(store)
    curves.refresh()
    charts = [chart for chart in arrange(store.get("method", ""), curves.names) if chart.main and chart.names]
    if not charts:
        return None
    tall = HEAD + LINE * max(min(len(chart.names), MOST_NAMES) for chart in charts) + HEIGHT + GAP
    across = min(ACROSS, len(charts))
    width, height = across * (WIDTH + GAP), -(-len(charts) // across) * tall
    drawn = [
        f'<g transform="translate({i % across * (WIDTH + GAP)} {i // across * tall})">{_chart(chart, curves, tall)}</g>'
        for i, chart in enumerate(charts)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{GREY}">{"".join(drawn)}</svg>\n'
    )


def _chart(chart: Chart, curves: Curves, tall: int) -> str:
    drawn = [f'<text x="0" y="14" font-weight="bold">{escape(one_line(chart.title, 60))} ({escape(chart.unit)})</text>']
    for i, name in enumerate(chart.names[:MOST_NAMES]):
        said = f"{one_line(name, 30)} {changed(*last_values(curves, name))}"
        drawn.append(f'<text x="0" y="{HEAD + LINE * (i + 1) - 4}" fill="{style_of(i)[0]}">{escape(said)}</text>')
    return "".join(drawn) + f'<g transform="translate(0 {tall - HEIGHT - GAP})">{svg(chart, curves)}</g>'
