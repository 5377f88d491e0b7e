// A number of each token against its position: a canvas, with a cursor that follows the tokens.

const WB_CHART = { height: 112, left: 50, right: 6, top: 6, bottom: 16 };

class WbTokenChart {
  // `hovered(i)`: the pointer is over position i (-1: left); `brushed(i)`: position i is wanted in sight
  constructor({ hovered, brushed }) {
    this.root = wbElement("div", "wb-token-chart");
    this.canvas = wbElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.line = wbElement("div", "wb-token-cursor");
    this.line.hidden = true;
    this.root.append(this.canvas, this.line);
    this.root.title = "drag to scroll the tokens";
    this.count = 0;
    let down = false;
    const place = (event) => {
      const x = event.clientX - this.canvas.getBoundingClientRect().left - WB_CHART.left;
      return Math.max(0, Math.min(this.count - 1, Math.round((x / this.width()) * (this.count - 1))));
    };
    this.root.addEventListener("pointerdown", (event) => {
      down = true;
      this.root.setPointerCapture(event.pointerId);
      if (this.count) brushed(place(event));
    });
    this.root.addEventListener("pointermove", (event) => {
      if (!this.count) return;
      hovered(place(event));
      if (down) brushed(place(event));
    });
    this.root.addEventListener("pointerup", () => (down = false));
    this.root.addEventListener("pointerleave", () => hovered(-1));
    this.sized = new ResizeObserver(() => this.shown && this.draw(...this.shown));
    this.sized.observe(this.root);
  }

  width() {
    return Math.max(10, this.root.clientWidth - WB_CHART.left - WB_CHART.right);
  }

  // `lines`: {values, now} each; the one that is `now` is drawn last and in colour. `show`: a number as text.
  draw(lines, label, show) {
    this.shown = [lines, label, show];
    this.count = Math.max(0, ...lines.map(({ values }) => values.length));
    const { height, left, top, bottom } = WB_CHART;
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.max(60, this.root.clientWidth);
    this.canvas.width = wide * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.height = `${height}px`;
    this.canvas.setAttribute("aria-label", `${label} against position, ${this.count} tokens`);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const theme = wbTheme(this.root);
    const known = lines.flatMap(({ values }) => Array.from(values).filter(Number.isFinite));
    pen.font = `10.5px ${theme.font}`;
    pen.fillStyle = theme.axis;
    if (!known.length) {
      pen.fillText("no numbers", left, height / 2);
      return;
    }
    let [low, high] = known.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [0, 0]);
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
    const x = (i) => left + (this.count > 1 ? (i / (this.count - 1)) * this.width() : 0);
    this.axes(pen, theme, low, high, y, show);
    for (const { values, now } of [...lines].sort((a, b) => Number(Boolean(a.now)) - Number(Boolean(b.now)))) {
      pen.strokeStyle = now ? theme.colours[0] : theme.mark;
      pen.globalAlpha = now ? 1 : 0.5;
      pen.lineWidth = now ? 1.3 : 0.8;
      this.stroke(pen, values, x, y);
    }
    pen.globalAlpha = 1;
  }

  axes(pen, theme, low, high, y, show) {
    const { height, left } = WB_CHART;
    pen.textAlign = "right";
    pen.strokeStyle = theme.grid;
    pen.lineWidth = 1;
    const between = low < 0 && high > 0 && y(0) > y(high) + 12 && y(0) < y(low) - 12; // there is room for its number
    for (const value of between ? [low, 0, high] : [low, high]) {
      pen.beginPath();
      pen.moveTo(left, y(value));
      pen.lineTo(left + this.width(), y(value));
      pen.stroke();
      pen.fillText(show(value), left - 5, Math.max(10, Math.min(height - WB_CHART.bottom, y(value) + 3.5)));
    }
    pen.textAlign = "left";
    pen.fillText("0", left, height - 3);
    pen.textAlign = "right";
    pen.fillText(`position ${this.count - 1}`, left + this.width(), height - 3);
  }

  // Where several tokens share a pixel, the least and the largest of them are drawn.
  stroke(pen, values, x, y) {
    const per = Math.max(1, Math.floor(values.length / (2 * this.width())));
    pen.beginPath();
    let drawing = false;
    const point = (i) => {
      if (!Number.isFinite(values[i])) return void (drawing = false);
      if (drawing) pen.lineTo(x(i), y(values[i]));
      else pen.moveTo(x(i), y(values[i]));
      if (!drawing) pen.lineTo(x(i) + 0.5, y(values[i])); // a number between missing ones is a dot
      drawing = true;
    };
    for (let from = 0; from < values.length; from += per) {
      let [least, most] = [from, from];
      for (let i = from; i < Math.min(from + per, values.length); i++) {
        if (values[i] < values[least]) least = i;
        if (values[i] > values[most]) most = i;
      }
      point(Math.min(least, most));
      if (least !== most) point(Math.max(least, most));
    }
    pen.stroke();
  }

  mark(i) {
    this.line.hidden = !(i >= 0 && i < this.count);
    this.line.style.left = `${WB_CHART.left + (this.count > 1 ? (i / (this.count - 1)) * this.width() : 0)}px`;
  }

  close() {
    this.sized.disconnect();
  }
}
