// Charts shared by the dashboard, the report and the comparison of runs: `WbBoard` is a page of charts in groups over a
// `WbCurves`; laid over it are the curves of other runs (`board.overlays`).

const WB_DASHES = ["solid", "dash", "dot"];
const WB_OVER = ["dash", "dot", "dashdot", "longdash"]; // a run each, in the colours of the metrics
const WB_MARKS = {
  set: ["◆", "settings changed"], reward: ["★", "rewards changed"], rewind: ["◀", "went back"],
  warning: ["▲", "warning"], error: ["✕", "error"], note: ["●", "note"],
};

// Every curve of a run: name -> branch -> {x, y}; `line` is the path that counts, newest branch first.
class WbCurves {
  constructor() {
    this.series = new Map();
    this.line = [[0, Infinity]];
    this.events = [];
    this.whole = new Map(); // what `main` gave, until something is added
  }

  clear() {
    this.series.clear();
    this.whole.clear();
    this.events = [];
  }

  add(pieces, numbers) {
    let at = 0;
    for (const { name, branch, n } of pieces) {
      const held = this.of(name, branch);
      for (let i = 0; i < n; i++) {
        held.x.push(numbers[at + i]);
        held.y.push(numbers[at + n + i]);
      }
      at += 2 * n;
    }
    this.whole.clear();
  }

  of(name, branch) {
    if (!this.series.has(name)) this.series.set(name, new Map());
    const branches = this.series.get(name);
    if (!branches.has(branch)) branches.set(branch, { x: [], y: [] });
    return branches.get(branch);
  }

  main(name) {
    const line = JSON.stringify(this.line);
    const kept = this.whole.get(name);
    if (kept && kept.line === line) return kept;
    const whole = { x: [], y: [], line };
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
    this.whole.set(name, whole);
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

// The exponential moving average, without the pull to its start: each point weighs `weight` times its successor. What
// is not a number stays so, and the average goes on after it.
function wbSmooth(y, weight) {
  let [sum, all] = [0, 0];
  return y.map((value) => {
    if (!Number.isFinite(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    all = weight * all + (1 - weight);
    return sum / all;
  });
}

// One chart: title with its explanation, a legend whose names switch their curves on and off, and the plot. What it
// looks like beside its spec: `smooth` (0: not), `range` of steps or null, `overlays` [{label, curves}], `detail` (the
// curves of the range alone, read anew), `zoom(range)` to call, and whether it can be `seen`.
const WB_LOOK = { seen: true, smooth: 0, range: null, overlays: [], detail: null, zoom() {} };

class WbChart {
  constructor(spec) {
    this.root = wbElement("section", "wb-chart");
    this.title = wbElement("h4", "wb-chart-title");
    this.legend = wbElement("div", "wb-legend");
    this.plot = wbElement("div", "wb-plot", "");
    this.message = wbElement("div", "wb-chart-message", "");
    this.left = wbElement("div", "wb-chart-left", "");
    this.help = wbElement("div", "wb-help");
    this.help.hidden = true;
    this.asked = wbButton("?", () => this.explain(this.help.hidden), "What these numbers are, and how to read them");
    this.logged = wbButton("log", () => this.setLog(!this.log), "Logarithmic scale");
    this.log = false;
    const top = wbElement("div", "wb-chart-top");
    top.append(this.title, this.logged, this.asked);
    const frame = wbElement("div", "wb-plot-frame");
    frame.append(this.plot, this.message);
    this.root.append(top, this.legend, this.left, frame, this.help);
    this.root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.help.hidden) return;
      event.stopPropagation();
      this.explain(false);
      this.asked.focus();
    });
    this.hidden = new Set();
    this.changed = () => {};
    this.setLog(false);
    this.set(spec);
  }

  set(spec) {
    const same = this.spec && JSON.stringify(this.spec) === JSON.stringify(spec);
    this.spec = spec;
    if (same) return;
    this.title.textContent = spec.title;
    this.legend.replaceChildren();
    this.keys = spec.names.map((name, i) => this.entry(name, spec.labels[i], i));
    const about = spec.about || [];
    this.asked.hidden = !about.length;
    this.title.title = about.map(({ name, what }) => `${name}: ${what}`).join("\n\n");
    this.help.replaceChildren(...about.map(({ name, what, read }) => {
      const part = wbElement("p", "");
      part.append(wbElement("b", "", name), ` (${this.spec.unit}): ${what} `, wbElement("span", "wb-soft", read));
      return part;
    }));
  }

  explain(open) {
    this.help.hidden = !open;
    this.asked.setAttribute("aria-expanded", String(open));
  }

  setLog(log) {
    this.log = log;
    this.logged.setAttribute("aria-pressed", String(log));
    this.changed();
  }

  entry(name, label, i) {
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
  draw(plotly, curves, theme, look = WB_LOOK) {
    const began = performance.now();
    const found = this.spec.names.map((name) => curves.main(name));
    found.forEach(({ y }, i) => {
      const value = y.length ? y[y.length - 1] : undefined;
      this.keys[i].swatch.style.borderTopColor = theme.colours[i % theme.colours.length];
      this.keys[i].value.textContent = wbNumber(value);
      this.keys[i].value.classList.toggle("wb-bad", value !== undefined && !Number.isFinite(value));
    });
    const width = look.seen && plotly ? this.plot.clientWidth : 0;
    const traces = width ? this.traces(look.detail || curves, theme, look) : [];
    const all = found.flatMap(({ y }) => y);
    const known = all.some((value) => Number.isFinite(value) && (!this.log || value > 0));
    const none = !all.length ? "no value yet" : all.some(Number.isFinite) ? "no value above 0" : "every value is NaN";
    this.message.textContent = !plotly ? "loading the charts …" : known ? "" : none;
    const under = this.log ? all.filter((value) => value <= 0).length : 0;
    this.left.textContent = known && under ? `${under} of ${all.length} values ≤ 0: not on this scale` : "";
    if (!width) return 0;
    const config = { displayModeBar: false, displaylogo: false, typesetMath: false, doubleClick: false, showTips: false };
    plotly.react(this.plot, traces, this.layout(width, known, curves, theme, look, traces), config);
    this.listen(look);
    return performance.now() - began;
  }

  listen(look) {
    this.zoom = look.zoom;
    if (this.heard) return;
    this.heard = true;
    this.plot.on("plotly_relayout", (change) => {
      const [low, high] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (low !== undefined && high !== undefined) this.zoom([Number(low), Number(high)]);
    });
    this.plot.on("plotly_doubleclick", () => this.zoom(null));
  }

  traces(curves, theme, look) {
    const made = [];
    if (!this.hidden.has(this.spec.names[0])) made.push(...this.band(curves, theme, look));
    for (let i = this.spec.names.length - 1; i >= 0; i--) {
      const name = this.spec.names[i];
      if (this.hidden.has(name)) continue;
      const line = { color: theme.colours[i % theme.colours.length], dash: WB_DASHES[Math.floor(i / theme.colours.length) % 3] };
      const marker = { size: 5, color: line.color };
      for (const { x, y } of curves.givenUp(name)) {
        const mode = x.length > 1 ? "lines" : "markers";
        made.push({ x, y, mode, line: { ...line, width: 1.2 }, marker, opacity: 0.4, hoverinfo: "skip" });
      }
      look.overlays.forEach((other, k) => made.push(...this.over(other, k, i, line, look)));
      made.push(...this.curve(curves.main(name), i, line, marker, look));
    }
    return made.map((trace) => ({ type: "scatter", showlegend: false, connectgaps: false, ...trace }));
  }

  // The curve; smoothed, with the numbers themselves faint behind it.
  curve({ x, y }, i, line, marker, look) {
    const width = i === 0 ? 2.4 : 1.6;
    const extra = `<extra>${wbPlain(wbShort(this.spec.labels[i], 26))}</extra>`;
    if (!look.smooth) return [{ x, y, mode: wbMode(x), line: { ...line, width }, marker, hovertemplate: `%{y:.5~g}${extra}` }];
    return [
      { x, y, mode: wbMode(x), line: { ...line, width: 1 }, marker: { ...marker, size: 3 }, opacity: 0.3, hoverinfo: "skip" },
      {
        x, y: wbSmooth(y, look.smooth), customdata: y, mode: "lines", line: { ...line, width },
        hovertemplate: `%{customdata:.5~g}, smoothed %{y:.5~g}${extra}`,
      },
    ];
  }

  over({ label, curves }, k, i, line, look) {
    const { x, y } = curves.main(this.spec.names[i]);
    if (!x.length) return [];
    const said = `${wbShort(this.spec.labels[i], 20)} · ${wbShort(label, 20)}`;
    // the box at the pointer has room for about eight lines: the first names of the other runs come first
    const told = i === 0 || i < (8 - this.spec.names.length) / look.overlays.length;
    return [{
      x, y: look.smooth ? wbSmooth(y, look.smooth) : y, mode: x.length > 1 ? "lines" : "markers",
      line: { color: line.color, width: 1.5, dash: WB_OVER[k % WB_OVER.length] }, marker: { size: 5, color: line.color, symbol: "x-thin-open" },
      opacity: 0.85, ...(told ? { hovertemplate: `%{y:.5~g}<extra>${wbPlain(said)}</extra>` } : { hoverinfo: "skip" }),
    }];
  }

  // A spread to each side of the first curve, or the area between two others.
  band(curves, theme, look) {
    const names = this.spec.band || [];
    if (!names.length || !this.spec.names.length) return [];
    const smooth = (y) => (look.smooth ? wbSmooth(y, look.smooth) : y);
    const by = (name) => {
      const { x, y } = curves.main(name);
      const values = smooth(y);
      return new Map(x.map((step, i) => [step, values[i]]));
    };
    let [low, high] = names.map(by);
    if (!high) {
      const middle = by(this.spec.names[0]);
      const half = low;
      low = new Map([...middle].map(([step, value]) => [step, value - half.get(step)]));
      high = new Map([...middle].map(([step, value]) => [step, value + half.get(step)]));
    }
    const steps = [...low.keys()].filter((step) => Number.isFinite(low.get(step) + high.get(step)));
    if (steps.length < 2) return [];
    const floor = this.log ? Math.min(...[...high.values()].filter((value) => value > 0)) / 10 : -Infinity;
    const edge = (values) => ({
      x: steps, y: steps.map((step) => Math.max(floor, values.get(step))),
      mode: "lines", line: { width: 0, color: theme.colours[0] }, hoverinfo: "skip",
    });
    return [edge(low), { ...edge(high), fill: "tonexty", fillcolor: theme.band }];
  }

  layout(width, known, curves, theme, look, traces) {
    const axis = { gridcolor: theme.grid, linecolor: theme.axis, tickcolor: theme.axis, zeroline: false, ticklen: 3 };
    const y = { ...axis, title: { text: wbPlain(this.spec.unit), standoff: 6, font: { size: 11 } }, automargin: true, nticks: 6, exponentformat: "e" };
    y.showticklabels = known || this.spec.low !== null;
    y.fixedrange = true; // a drag picks steps; the height follows what is seen
    y.range = this.height(traces, look);
    if (this.log) Object.assign(y, { type: "log", dtick: y.range[1] - y.range[0] > 1.2 ? 1 : undefined, tickformat: "~g" });
    const x = { ...axis, showline: true, title: { text: "step", standoff: 4, font: { size: 11 } }, nticks: 8, hoverformat: "d", tickformat: "~d" };
    Object.assign(x, { spikethickness: 1, spikecolor: theme.mark, spikedash: "solid" });
    x.unifiedhovertitle = { text: "step %{x}" };
    const [first, last] = look.range || wbSpan(curves, look.overlays);
    if (last - first <= 8) Object.assign(x, { tickmode: "linear", tick0: 0, dtick: 1 });
    const pad = look.range ? 0 : (last - first) * 0.015; // room for the first and last marks
    x.range = [first - pad, last + pad];
    return {
      width, height: 210, paper_bgcolor: theme.clear, plot_bgcolor: theme.clear,
      margin: { l: 58, r: 10, t: 8, b: 34 }, font: { color: theme.ink, family: theme.font, size: 11 },
      showlegend: false, hovermode: "x unified", hoversort: this.log ? "trace" : "value descending", dragmode: "zoom",
      hoverlabel: { bgcolor: theme.paper, bordercolor: theme.axis, font: { color: theme.ink, size: 11 }, namelength: -1 },
      xaxis: x, yaxis: y,
      shapes: wbClusters(curves.events, x.range, width / 4).map(([{ step }]) => ({
        type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, layer: "below",
        line: { color: theme.mark, width: 1, dash: "dot" },
      })),
    };
  }

  // The range of the y axis: the chart's own, where it has one and all of the run is shown, else what is seen.
  height(traces, look) {
    const [first, last] = look.range || [-Infinity, Infinity];
    let [low, high] = [Infinity, -Infinity];
    for (const { x, y } of traces) {
      for (let i = 0; i < x.length; i++) {
        if (x[i] < first || x[i] > last || !Number.isFinite(y[i]) || (this.log && y[i] <= 0)) continue;
        low = Math.min(low, y[i]);
        high = Math.max(high, y[i]);
      }
    }
    const own = this.spec.low !== null && this.spec.high !== null && !this.log;
    if (own && !look.range) [low, high] = [Math.min(low, this.spec.low), Math.max(high, this.spec.high)];
    if (low > high) [low, high] = own ? [this.spec.low, this.spec.high] : this.log ? [0.1, 1] : [0, 1];
    if (this.log) [low, high] = [Math.log10(low), Math.log10(high)];
    const pad = (high - low) * 0.05 || Math.abs(low) * 0.1 || 0.5;
    return [low - pad, high + pad];
  }
}

function wbSpan(curves, overlays) {
  const spans = [curves, ...overlays.map((other) => other.curves)].filter((one) => one.series.size).map((one) => one.span());
  return spans.length ? [Math.min(...spans.map(([low]) => low)), Math.max(...spans.map(([, high]) => high))] : [0, 1];
}

// Events within a range of steps, those that would touch each other together; `places`: how many have room.
function wbClusters(events, [first, last], places) {
  const made = [];
  const apart = (last - first) / Math.max(1, places);
  for (const event of events.filter(({ step }) => step >= first && step <= last).sort((a, b) => a.step - b.step)) {
    const before = made[made.length - 1];
    if (before && event.step - before[0].step < apart) before.push(event);
    else made.push([event]);
  }
  return made;
}

// Points are marked one by one where they are few, or where steps lie between them.
function wbMode(x) {
  const reach = x.length ? x[x.length - 1] - x[0] : 0;
  return reach <= 20 || (x.length <= 60 && reach > 1.5 * (x.length - 1)) ? "lines+markers" : "lines";
}

// Charts in groups, which grow with the metrics of the run; those beside the point are folded away. `lazy`: only charts
// in sight are drawn. One range of steps goes for all of them; `zoomed` is called when it has changed.
class WbBoard {
  constructor(curves, { lazy = false } = {}) {
    this.curves = curves;
    this.lazy = lazy;
    this.charts = new Map();
    this.groups = new Map();
    this.smooth = 0;
    this.range = null;
    this.detail = null;
    this.overlays = [];
    this.root = wbElement("div", "wb-board");
    this.runs = wbElement("div", "wb-runs");
    this.front = wbElement("div", "wb-groups");
    this.folded = wbElement("details", "wb-folded");
    this.summary = wbElement("summary", "", "");
    this.back = wbElement("div", "wb-grid");
    this.folded.append(this.summary, this.back);
    this.hint = wbElement("p", "wb-hint", "");
    this.root.append(this.runs, this.front, this.folded, this.hint);
    this.changed = () => {};
    this.zoomed = () => {};
    this.folded.addEventListener("toggle", () => this.changed());
    this.root.addEventListener("pointerdown", (event) => (this.held = Boolean(event.target.closest(".wb-plot"))));
    this.released = () => {
      if (this.held) setTimeout(() => this.changed(), 50);
      this.held = false;
    };
    window.addEventListener("pointerup", this.released);
    this.scrolled = new IntersectionObserver(() => this.changed(), { rootMargin: "200px" });
  }

  set(specs) {
    const before = this.charts;
    this.charts = new Map();
    for (const group of this.groups.values()) group.used = false;
    for (const spec of specs) {
      const key = `${spec.main} ${spec.title}`;
      const chart = before.get(key) || new WbChart(spec);
      if (!before.delete(key)) this.scrolled.observe(chart.root);
      chart.set(spec);
      chart.changed = () => this.changed();
      this.charts.set(key, chart);
      (spec.main ? this.group(spec.group || "").grid : this.back).append(chart.root);
    }
    for (const chart of before.values()) chart.root.remove();
    for (const group of this.groups.values()) group.root.hidden = !group.used;
    const others = specs.filter((spec) => !spec.main).reduce((n, spec) => n + spec.names.length, 0);
    this.folded.hidden = others === 0;
    this.summary.textContent = others === 1 ? "1 other metric" : `${others} other metrics`;
  }

  group(name) {
    if (!this.groups.has(name)) {
      const root = wbElement("section", "wb-group");
      const grid = wbElement("div", "wb-grid");
      if (name) root.append(wbElement("h3", "wb-group-title", name));
      root.append(grid);
      this.groups.set(name, { root, grid });
    }
    const group = this.groups.get(name);
    if (!group.used) this.front.append(group.root);
    group.used = true;
    return group;
  }

  // The steps that all charts show; null: all there are.
  zoom(range) {
    if (range) {
      const [first, last] = wbSpan(this.curves, this.overlays);
      const [low, high] = [Math.max(range[0], first), Math.min(range[1], last)];
      range = high - low < 1e-9 || (low <= first && high >= last) ? null : [low, high];
    }
    this.range = range;
    this.detail = null;
    this.zoomed(range);
    this.changed();
  }

  // By keyboard: a quarter of what is seen to one side, or half or twice as much of it.
  move(aside, scale) {
    const [first, last] = this.range || wbSpan(this.curves, this.overlays);
    const [middle, half] = [(first + last) / 2 + aside * (last - first) * 0.25, ((last - first) / 2) * scale];
    this.zoom([middle - half, middle + half]);
  }

  draw(plotly, theme) {
    let took = 0;
    if (this.held) return 0; // somebody drags over a chart
    const { smooth, range, overlays, detail } = this;
    const zoom = (steps) => this.zoom(steps);
    for (const chart of this.charts.values()) {
      if (!chart.spec.main && !this.folded.open) continue;
      const { top, bottom } = chart.root.getBoundingClientRect();
      const seen = !this.lazy || (bottom > -200 && top < window.innerHeight + 200);
      took += chart.draw(plotly, this.curves, theme, { seen, smooth, range, overlays, detail, zoom });
    }
    this.say();
    return took;
  }

  say() {
    this.runs.hidden = !this.overlays.length;
    const named = [["solid", "this run"], ...this.overlays.map(({ label }, k) => [WB_OVER[k % WB_OVER.length], label])];
    this.runs.replaceChildren(...named.map(([dash, label]) => {
      const run = wbElement("span", "wb-run");
      run.append(wbElement("span", `wb-dash wb-dash-${dash}`), wbElement("bdi", "", label));
      return run;
    }));
    const hints = this.charts.size ? ["Drag over a chart (or press + and −) to zoom all of them, double-click to go back. Click a name to hide its curve."] : [];
    const left = [...this.charts.values()].some((chart) => chart.spec.names.some((name) => this.curves.givenUp(name).length));
    if (left) hints.push("Faint: steps that a rewind left behind.");
    const marks = [...new Set(this.curves.events.map(({ mark }) => mark))].map((mark) => (WB_MARKS[mark] || WB_MARKS.note).join(" "));
    if (marks.length) hints.push(`Dotted: events. ${marks.join(", ")}.`);
    this.hint.textContent = hints.join(" ");
  }

  free(plotly) {
    window.removeEventListener("pointerup", this.released);
    this.scrolled.disconnect();
    if (plotly) for (const chart of this.charts.values()) plotly.purge(chart.plot);
  }
}
