// Charts shared by the dashboard and the report.

const WB_DASHES = ["solid", "dash", "dot"];

// Every curve of a run: name -> branch -> {x, y}; `line` is the path that counts, newest branch first.
class WbCurves {
  constructor() {
    this.series = new Map();
    this.line = [[0, Infinity]];
    this.events = [];
  }

  add(pieces, numbers) {
    let at = 0;
    for (const { name, branch, n } of pieces) {
      if (!this.series.has(name)) this.series.set(name, new Map());
      const branches = this.series.get(name);
      if (!branches.has(branch)) branches.set(branch, { x: [], y: [] });
      const held = branches.get(branch);
      for (let i = 0; i < n; i++) {
        held.x.push(numbers[at + i]);
        held.y.push(numbers[at + n + i]);
      }
      at += 2 * n;
    }
  }

  main(name) {
    const whole = { x: [], y: [] };
    const branches = this.series.get(name);
    for (const [branch, limit] of [...this.line].reverse()) {
      const held = branches && branches.get(branch);
      if (!held) continue;
      for (let i = 0; i < held.x.length; i++) {
        if (held.x[i] > limit) continue;
        whole.x.push(held.x[i]);
        whole.y.push(held.y[i]);
      }
    }
    return whole;
  }

  givenUp(name) {
    const limits = new Map(this.line);
    const left = [];
    for (const [branch, { x, y }] of this.series.get(name) || []) {
      const limit = limits.has(branch) ? limits.get(branch) : -1;
      if (!x.some((step) => step > limit)) continue;
      const kept = x.map((_, i) => i).filter((i) => x[i] >= limit);
      left.push({ x: kept.map((i) => x[i]), y: kept.map((i) => y[i]) });
    }
    return left;
  }

  // First and last step of all curves: the charts of a run share their x axis.
  span() {
    let [low, high] = [Infinity, -Infinity];
    for (const branches of this.series.values()) {
      for (const { x } of branches.values()) {
        if (!x.length) continue;
        low = Math.min(low, x[0]);
        high = Math.max(high, x[x.length - 1]);
      }
    }
    return low < high ? [low, high] : Number.isFinite(low) ? [low - 0.5, low + 0.5] : [0, 1];
  }
}

// One chart: title, a legend whose names switch their curves on and off, and the plot.
class WbChart {
  constructor(spec) {
    this.root = wbElement("section", "wb-chart");
    this.title = wbElement("h4", "wb-chart-title");
    this.legend = wbElement("div", "wb-legend");
    this.plot = wbElement("div", "wb-plot", "");
    this.message = wbElement("div", "wb-chart-message", "");
    const frame = wbElement("div", "wb-plot-frame");
    frame.append(this.plot, this.message);
    this.root.append(this.title, this.legend, frame);
    this.hidden = new Set();
    this.changed = () => {};
    this.set(spec);
  }

  set(spec) {
    const same = this.spec && JSON.stringify(this.spec) === JSON.stringify(spec);
    this.spec = spec;
    if (same) return;
    this.title.textContent = spec.title;
    this.keys = spec.names.map((name, i) => this.entry(name, spec.labels[i], i));
  }

  entry(name, label, i) {
    if (i === 0) this.legend.replaceChildren();
    const button = wbElement("button", "wb-key");
    button.type = "button";
    button.title = label;
    const swatch = wbElement("span", "wb-swatch");
    swatch.style.borderTopStyle = ["solid", "dashed", "dotted"][Math.floor(i / WB_LIGHT.length) % 3];
    const value = wbElement("b", "wb-value", "–");
    const text = wbElement("bdi", "wb-key-name", label);
    button.append(swatch, text, value);
    button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
    button.addEventListener("click", () => {
      if (!this.hidden.delete(name)) this.hidden.add(name);
      button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
      this.changed();
    });
    this.legend.append(button);
    return { value, swatch };
  }

  // Returns the milliseconds it took; 0 when there was nowhere to draw.
  draw(plotly, curves, theme) {
    const began = performance.now();
    const found = this.spec.names.map((name) => curves.main(name));
    found.forEach(({ y }, i) => {
      const value = y.length ? y[y.length - 1] : undefined;
      this.keys[i].swatch.style.borderTopColor = theme.colours[i % theme.colours.length];
      this.keys[i].value.textContent = wbNumber(value);
      this.keys[i].value.classList.toggle("wb-bad", value !== undefined && !Number.isFinite(value));
    });
    const some = found.some(({ y }) => y.length);
    const known = found.some(({ y }) => y.some(Number.isFinite));
    this.message.textContent = !plotly ? "loading the charts …" : known ? "" : some ? "every value is NaN" : "no value yet";
    const width = this.plot.clientWidth;
    if (!plotly || !width) return 0;
    const config = { displayModeBar: false, displaylogo: false, typesetMath: false, doubleClick: "reset" };
    plotly.react(this.plot, this.traces(found, curves, theme), this.layout(width, known, curves, theme), config);
    return performance.now() - began;
  }

  traces(found, curves, theme) {
    const made = [];
    if (this.spec.band && found.length && !this.hidden.has(this.spec.names[0])) made.push(...this.band(found[0], curves, theme));
    for (let i = found.length - 1; i >= 0; i--) {
      const name = this.spec.names[i];
      if (this.hidden.has(name)) continue;
      const line = { color: theme.colours[i % theme.colours.length], dash: WB_DASHES[Math.floor(i / theme.colours.length) % 3] };
      const marker = { size: 5, color: line.color };
      for (const { x, y } of curves.givenUp(name)) {
        const mode = x.length > 1 ? "lines" : "markers";
        made.push({ x, y, mode, line: { ...line, width: 1.2 }, marker, opacity: 0.4, hoverinfo: "skip" });
      }
      const { x, y } = found[i];
      made.push({
        x, y, mode: wbMode(x), line: { ...line, width: i === 0 ? 2.4 : 1.6 }, marker,
        hovertemplate: `%{y:.4~g}<extra>${wbPlain(wbShort(this.spec.labels[i], 26))}</extra>`,
      });
    }
    return made.map((trace) => ({ type: "scatter", showlegend: false, connectgaps: false, ...trace }));
  }

  // One standard deviation to each side of the first curve.
  band(middle, curves, theme) {
    const half = curves.main(this.spec.band);
    const spread = new Map(half.x.map((step, i) => [step, half.y[i]]));
    const at = middle.x.map((_, i) => i).filter((i) => Number.isFinite(middle.y[i] + spread.get(middle.x[i])));
    if (at.length < 2) return [];
    const edge = (sign) => ({
      x: at.map((i) => middle.x[i]),
      y: at.map((i) => middle.y[i] + sign * spread.get(middle.x[i])),
      mode: "lines", line: { width: 0, color: theme.colours[0] }, hoverinfo: "skip",
    });
    return [edge(-1), { ...edge(1), fill: "tonexty", fillcolor: theme.band }];
  }

  layout(width, known, curves, theme) {
    const axis = { gridcolor: theme.grid, linecolor: theme.axis, tickcolor: theme.axis, zeroline: false, ticklen: 3 };
    const y = { ...axis, title: { text: wbPlain(this.spec.unit), standoff: 6, font: { size: 11 } }, automargin: true, nticks: 6, exponentformat: "e" };
    y.showticklabels = known || this.spec.low !== null;
    if (this.spec.low !== null && this.spec.high !== null) {
      const pad = (this.spec.high - this.spec.low) * 0.03;
      y.range = [this.spec.low - pad, this.spec.high + pad];
    } else {
      y.autorange = true;
    }
    const x = { ...axis, showline: true, title: { text: "step", standoff: 4, font: { size: 11 } }, nticks: 8, hoverformat: "d", tickformat: "~d" };
    Object.assign(x, { spikethickness: 1, spikecolor: theme.mark, spikedash: "solid" });
    x.unifiedhovertitle = { text: "step %{x}" };
    const [first, last] = curves.span();
    if (last - first <= 8) Object.assign(x, { tickmode: "linear", tick0: 0, dtick: 1 });
    x.range = [first - (last - first) * 0.015, last + (last - first) * 0.015]; // room for the first and last marks
    return {
      width, height: 210, uirevision: "keep", paper_bgcolor: theme.clear, plot_bgcolor: theme.clear,
      margin: { l: 46, r: 10, t: 8, b: 34 }, font: { color: theme.ink, family: theme.font, size: 11 },
      showlegend: false, hovermode: "x unified", dragmode: "zoom",
      hoverlabel: { bgcolor: theme.paper, bordercolor: theme.axis, font: { color: theme.ink, size: 11 }, namelength: -1 },
      xaxis: x, yaxis: y,
      shapes: curves.events.map(({ step }) => ({
        type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, layer: "below",
        line: { color: theme.mark, width: 1, dash: "dot" },
      })),
    };
  }
}

// Points are marked one by one where they are few, or where steps lie between them.
function wbMode(x) {
  const reach = x.length ? x[x.length - 1] - x[0] : 0;
  return reach <= 20 || (x.length <= 60 && reach > 1.5 * (x.length - 1)) ? "lines+markers" : "lines";
}

// A grid of charts that grows with the metrics of the run; those beside the point are folded away.
class WbBoard {
  constructor(curves) {
    this.curves = curves;
    this.charts = new Map();
    this.root = wbElement("div", "wb-board");
    this.front = wbElement("div", "wb-grid");
    this.folded = wbElement("details", "wb-folded");
    this.summary = wbElement("summary", "", "");
    this.back = wbElement("div", "wb-grid");
    this.folded.append(this.summary, this.back);
    this.hint = wbElement("p", "wb-hint", "");
    this.root.append(this.front, this.folded, this.hint);
    this.changed = () => {};
    this.folded.addEventListener("toggle", () => this.changed());
  }

  set(specs) {
    const before = this.charts;
    this.charts = new Map();
    for (const spec of specs) {
      const key = `${spec.main} ${spec.title}`;
      const chart = before.get(key) || new WbChart(spec);
      before.delete(key);
      chart.set(spec);
      chart.changed = () => this.changed();
      this.charts.set(key, chart);
      (spec.main ? this.front : this.back).append(chart.root);
    }
    for (const chart of before.values()) chart.root.remove();
    const others = specs.filter((spec) => !spec.main).reduce((n, spec) => n + spec.names.length, 0);
    this.folded.hidden = others === 0;
    this.summary.textContent = others === 1 ? "1 other metric" : `${others} other metrics`;
  }

  draw(plotly, theme) {
    let took = 0;
    for (const chart of this.charts.values()) {
      if (chart.spec.main || this.folded.open) took += chart.draw(plotly, this.curves, theme);
    }
    const left = [...this.charts.values()].some((chart) => chart.spec.names.some((name) => this.curves.givenUp(name).length));
    const hints = this.charts.size ? ["Drag over a chart to zoom, double-click to go back. Click a name to hide its curve."] : [];
    if (left) hints.push("Faint: steps that a rewind left behind.");
    if (this.curves.events.length) hints.push("Dotted: events.");
    this.hint.textContent = hints.join(" ");
    return took;
  }

  free(plotly) {
    if (plotly) for (const chart of this.charts.values()) plotly.purge(chart.plot);
  }
}
