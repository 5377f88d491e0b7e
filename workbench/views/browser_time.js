// The same task over the steps: how its reward moved, and what changed between two of its completions.

class WbTime {
  constructor(detail) {
    this.detail = detail;
  }

  show({ samples, by, more }, id) {
    const steps = [...new Set(samples.map((sample) => sample.step))];
    this.samples = samples;
    const known = new Set(samples.map((sample) => sample.id));
    // Another task begins with its first and its last step; the same one keeps what was chosen.
    if (!known.has(this.a) || !known.has(this.b)) {
      this.a = this.best(steps[0]);
      this.b = steps.length > 1 ? this.best(steps[steps.length - 1]) : id;
    }
    const where = wbElement("div", "wb-group-line", `${samples.length + more} completions of ${by}, at ${steps.length} ${steps.length === 1 ? "step" : "steps"}`);
    if (more) where.append(wbElement("span", "wb-soft", ` (${samples.length}, evenly spread, are shown)`));
    this.chart = wbElement("div", "wb-time-chart");
    this.list = this.makeList(steps);
    this.compare = wbElement("div", "wb-time-compare");
    this.width = 0;
    this.sized?.disconnect();
    this.sized = new ResizeObserver(([entry]) => {
      const width = Math.round(entry.contentRect.width);
      if (width && width !== this.width) this.draw((this.width = width), steps);
    });
    this.sized.observe(this.chart);
    this.put();
    return [where, this.chart, this.list, this.compare];
  }

  at(step) {
    return this.samples.filter((sample) => sample.step === step);
  }

  best(step) {
    return this.at(step).reduce((best, one) => ((one.reward ?? -Infinity) > (best.reward ?? -Infinity) ? one : best)).id;
  }

  stats(step) {
    const rewards = this.at(step).map((sample) => sample.reward).filter((reward) => reward !== null);
    if (!rewards.length) return null;
    const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
    return { step, mean, least: Math.min(...rewards), most: Math.max(...rewards), n: rewards.length };
  }

  // The mean reward by step as a line, from the least to the most as a bar behind it.
  draw(width, steps) {
    const points = steps.map((step) => this.stats(step)).filter(Boolean);
    if (!points.length) return this.chart.replaceChildren(wbElement("p", "wb-soft", "None of these has a reward."));
    const [high, left, bottom] = [110, 44, 18];
    const low = Math.min(...points.map((point) => point.least));
    const top = Math.max(...points.map((point) => point.most));
    const x = (step) => left + ((step - steps[0]) / (steps[steps.length - 1] - steps[0] || 1)) * (width - left - 10);
    const y = (value) => 8 + (1 - (top > low ? (value - low) / (top - low) : 0.5)) * (high - bottom - 8);
    const make = (tag, values, text) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(values)) made.setAttribute(name, value);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const drawn = make("svg", { width, height: high, role: "img", class: "wb-time-svg" });
    drawn.append(make("title", {}, "reward of this task by step: mean, from the least to the most"));
    for (const point of points) {
      drawn.append(make("line", { x1: x(point.step), x2: x(point.step), y1: y(point.least), y2: y(point.most), class: "wb-time-span" }));
    }
    drawn.append(make("polyline", { points: points.map((point) => `${x(point.step)},${y(point.mean)}`).join(" "), class: "wb-time-line" }));
    for (const point of points) {
      const dot = make("circle", { cx: x(point.step), cy: y(point.mean), r: 4, class: "wb-time-dot" });
      dot.append(make("title", {}, `step ${point.step}: mean ${wbNumber(point.mean)}, ${wbNumber(point.least)} to ${wbNumber(point.most)}; click to compare to it`));
      dot.addEventListener("click", () => this.take("b", this.best(point.step)));
      drawn.append(dot);
    }
    const label = (value, at) => make("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, wbNumber(value));
    drawn.append(...(top > low ? [label(top, y(top)), label(low, y(low))] : [label(top, y(top))]));
    drawn.append(make("text", { x: left, y: high - 3 }, `step ${steps[0]}`));
    if (steps.length > 1) drawn.append(make("text", { x: width - 10, y: high - 3, "text-anchor": "end" }, String(steps[steps.length - 1])));
    this.chart.replaceChildren(drawn);
  }

  makeList(steps) {
    const line = wbElement("div", "wb-time-choice");
    for (const side of ["a", "b"]) {
      const select = wbElement("select", "wb-choice");
      select.setAttribute("aria-label", side === "a" ? "from" : "to");
      for (const step of steps) {
        const stats = this.stats(step);
        const range = stats && stats.least < stats.most ? `, ${wbNumber(stats.least)} to ${wbNumber(stats.most)}` : "";
        const group = wbElement("optgroup");
        group.label = `step ${step}${stats ? `: mean ${wbNumber(stats.mean)}${range}` : ""}`;
        this.at(step).forEach((sample, i) => {
          const made = wbElement("option", "", `step ${step}, sample ${sample.sample ?? i}: ${wbNumber(sample.reward)}${sample.gone ? " (given up)" : ""}`);
          made.value = sample.id;
          group.append(made);
        });
        select.append(group);
      }
      select.addEventListener("change", () => this.take(side, Number(select.value)));
      this[`${side}Select`] = select;
      line.append(wbElement("span", "", side === "a" ? "from" : "to"), select);
    }
    const legend = wbElement("span", "wb-key");
    legend.append(wbElement("del", "wb-delete", "went"), " ", wbElement("ins", "wb-insert", "came"));
    line.append(legend);
    return line;
  }

  take(side, id) {
    this[side] = id;
    this.put();
  }

  async put() {
    const { a, b, compare } = this;
    this.aSelect.value = a;
    this.bSelect.value = b;
    try {
      const { segments, prompt } = await this.detail.owner.ask("difference", { a, b });
      if (a !== this.a || b !== this.b) return;
      const [from, to] = [a, b].map((id) => this.samples.find((sample) => sample.id === id));
      const moved = wbElement("div", "wb-time-moved", `reward ${wbNumber(from.reward)} → ${wbNumber(to.reward)}`);
      const parts = [moved];
      const text = (title, segments) => {
        const made = wbElement("div", "wb-text wb-whole");
        made.append(...wbSegments(segments));
        parts.push(wbElement("h5", "", title), made);
      };
      if (prompt) text("prompt", prompt);
      const alike = segments.every(([kind]) => kind === "same");
      text(alike ? "completion: the same in both" : "completion", segments);
      compare.replaceChildren(...parts);
      compare.dataset.shown = `${a} ${b}`;
    } catch (error) {
      compare.replaceChildren(wbElement("p", "wb-bad", error.message));
    }
  }
}

