// The line at the run's last step on every chart: its grip is dragged, or moved with the arrow keys, to the step to go
// back to. Nothing happens before the one press that confirms it.

class WbHandles {
  constructor(view, rewind) {
    this.view = view;
    this.rewind = rewind;
    this.lines = new Map(); // chart -> its line
    this.aim = null; // the step to go back to, while one is chosen
    this.held = null; // the chart whose grip is in hand
    this.state = { can: {}, first: 0, last: 0, why: "" };
  }

  update(state) {
    this.state = state;
    if (this.aim !== null && (this.aim > state.last || this.aim < state.first)) this.cancel();
    this.draw();
  }

  get may() {
    return !this.state.why && !this.state.can.rewind && this.state.last > this.state.first;
  }

  // After the charts were drawn: each line where its step is.
  draw() {
    const charts = new Set(this.view.board.charts.values());
    for (const [chart, line] of this.lines) {
      if (charts.has(chart)) continue;
      line.root.remove();
      this.lines.delete(chart);
    }
    let first = true;
    for (const chart of charts) {
      const layout = chart.plot._fullLayout;
      const shown = this.may && layout && layout.xaxis && chart.plot.offsetParent;
      if (!shown && !this.lines.has(chart)) continue;
      if (!this.lines.has(chart)) this.lines.set(chart, this.make(chart));
      const line = this.lines.get(chart);
      const step = this.aim ?? this.state.last;
      const at = shown ? layout.xaxis.d2p(step) : -1;
      line.root.hidden = !shown || at < -1 || at > layout.xaxis._length + 1;
      if (line.root.hidden) continue;
      line.root.style.left = `${layout.xaxis._offset + at}px`;
      line.root.style.top = `${layout._size.t}px`;
      line.root.style.height = `${layout._size.h}px`;
      line.root.classList.toggle("wb-aimed", this.aim !== null);
      line.grip.tabIndex = first ? 0 : -1; // one of them is enough for the tab key
      first = false;
      for (const [name, value] of [["valuemin", this.state.first], ["valuemax", this.state.last], ["valuenow", step]]) line.grip.setAttribute(`aria-${name}`, value);
      line.box.hidden = this.aim === null || chart !== this.held;
      line.box.classList.toggle("wb-box-left", at > layout.xaxis._length / 2);
      line.go.textContent = `Rewind to ${step}`;
      line.go.hidden = line.no.hidden = line.moving;
      line.word.textContent = line.moving ? `rewind to step ${step}` : "";
    }
  }

  make(chart) {
    const root = wbElement("div", "wb-line");
    const grip = wbElement("div", "wb-grip");
    Object.entries({ role: "slider", "aria-label": "rewind: the step to go back to", title: "Drag to rewind (arrow keys, then Enter)" }).forEach(([name, value]) => grip.setAttribute(name, value));
    const box = wbElement("div", "wb-box");
    const word = wbElement("span", "wb-box-word", "");
    const go = wbButton("", () => this.confirm(), "Enter; Escape cancels");
    go.classList.add("wb-confirm");
    const no = wbButton("×", () => this.cancel(), "Cancel (Escape)");
    box.append(word, go, no);
    box.hidden = true;
    root.append(grip, box);
    chart.plot.parentElement.append(root);
    const line = { root, grip, box, word, go, no, moving: false };
    grip.addEventListener("pointerdown", (event) => this.take(event, chart, line));
    root.addEventListener("keydown", (event) => this.key(event, chart));
    return line;
  }

  take(event, chart, line) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    line.grip.focus();
    line.grip.setPointerCapture(event.pointerId);
    this.held = chart;
    line.moving = true;
    const move = (moved) => {
      const axis = chart.plot._fullLayout.xaxis;
      const at = moved.clientX - chart.plot.getBoundingClientRect().left - axis._offset;
      this.to(axis.p2d(at));
    };
    const drop = () => {
      line.moving = false;
      line.grip.removeEventListener("pointermove", move);
      if (this.aim === this.state.last) this.cancel();
      this.draw();
      if (this.aim !== null) line.go.focus();
    };
    line.grip.addEventListener("pointermove", move);
    line.grip.addEventListener("lostpointercapture", drop, { once: true });
  }

  to(step) {
    this.aim = Math.min(this.state.last, Math.max(this.state.first, Math.round(step)));
    this.draw();
  }

  key(event, chart) {
    const page = Math.max(2, Math.round((this.state.last - this.state.first) / 10));
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined && event.key !== "Escape" && event.key !== "Enter") return;
    event.stopPropagation();
    if (event.key === "Enter" && event.target.closest("button")) return; // the button's own press
    event.preventDefault();
    if (event.key === "Escape") return this.cancel();
    if (event.key === "Enter") return this.aim !== null && this.confirm();
    this.held = chart;
    this.to((this.aim ?? this.state.last) + by);
  }

  confirm() {
    const step = this.aim;
    this.cancel();
    if (step !== null) this.rewind(step);
  }

  cancel() {
    const back = this.held && this.lines.get(this.held);
    this.aim = this.held = null;
    this.draw();
    if (back && back.root.contains(document.activeElement)) back.grip.focus();
  }

  close() {
    for (const line of this.lines.values()) line.root.remove();
  }
}

