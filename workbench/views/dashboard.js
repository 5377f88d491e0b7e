
// The dashboard's view: it says hello, is sent the history, and then what each step adds.

class WbDashboard extends WbView {
  constructor(model, el) {
    super(model, el, "wb-dashboard wb-board");
    this.version = model.get("library");
    this.curves = new WbCurves();
    this.board = new WbBoard(this.curves, { lazy: true });
    this.board.changed = () => this.later(true);
    this.board.zoomed = (range) => this.zoomed(range);
    this.known = false; // whether the history has come
    this.wait = 30;
    this.controls = new WbControls(this);
    this.lane = new WbLane();
    this.tools = wbElement("div", "");
    this.root.append(this.makeHead(), this.controls.root, this.tools, this.lane.root, this.board.root);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.readSoon = wbDebounced(150, (range) => this.readAgain(range));
    this.follow(() => this.later());
    this.greet();
    this.askForPlotly();
  }

  makeHead() {
    const head = wbElement("header", "wb-head");
    this.name = wbElement("bdi", "wb-name", "");
    this.method = wbElement("span", "wb-method", "");
    this.status = wbElement("span", "wb-status", "connecting …");
    this.progress = wbElement("span", "wb-progress", "");
    this.left = wbElement("span", "wb-left", "");
    this.bar = wbElement("div", "wb-bar");
    this.done = wbElement("div", "wb-done");
    this.note = wbElement("p", "wb-note", "");
    this.status.setAttribute("role", "status");
    this.bar.append(this.done);
    const line = wbElement("div", "wb-head-line");
    line.append(this.name, this.method, this.progress, this.status, this.left);
    head.append(line, this.bar, this.note);
    return head;
  }

  // Without the history nothing can be drawn, so it is asked for again where no answer comes.
  greet(again = 3) {
    if (this.closed || this.known) return;
    this.model.send({ kind: "hello", view: this.view });
    if (again) this.greeting = setTimeout(() => this.greet(again - 1), 5000);
  }

  told(content) {
    if (content.kind === "plotly") this.loadPlotly(content.version, content.buffers[0]);
    if (content.kind === "acted") this.controls.acted(content);
    if (content.kind === "trouble") this.note.textContent = content.text;
    if (content.kind !== "curves") return;
    this.setHead(content.head);
    if (!content.reset && !this.known) return;
    if (!this.known) this.makeTools(content.head.name);
    this.known = true;
    clearTimeout(this.greeting);
    if (content.reset) this.curves.clear();
    this.curves.line = content.line;
    this.curves.add(content.pieces, content.columns.numbers);
    if (content.charts) this.board.set(content.charts);
    for (const event of content.events) this.curves.events.push(event);
    this.root.dataset.step = content.head.step;
    this.controls.update(content);
    this.later();
  }

  setHead(head) {
    this.name.textContent = head.name;
    this.method.textContent = head.method.toUpperCase();
    this.status.textContent = head.status;
    this.root.dataset.status = head.status;
    this.left.textContent = head.left;
    this.note.textContent = head.note;
    this.progress.textContent = head.step < 0 ? "no step yet" : `step ${head.step}` + (head.steps ? ` of ${head.steps}` : "");
    const share = head.steps ? Math.min(1, Math.max(0, head.step / head.steps)) : 0;
    this.bar.hidden = !head.steps;
    this.done.style.width = `${100 * share}%`;
  }

  // What was chosen for this run in the page's life, by whichever of its views.
  makeTools(name) {
    if (!WB_SHARED.kept.has(name)) WB_SHARED.kept.set(name, { smooth: 0, runs: [] });
    this.toolbar = new WbToolbar(this, this.board, WB_SHARED.kept.get(name));
    this.tools.replaceWith(this.toolbar.root);
  }

  // Zoomed into a curve that came thinned, its steps are asked for again.
  zoomed(range) {
    this.toolbar?.zoomed(range);
    this.readSoon.stop();
    const thinned = [...this.curves.series.values()].some((branches) => [...branches.values()].some(({ x }) =>
      x.length > 400 && x[x.length - 1] - x[0] > 1.5 * x.length));
    if (range && thinned) this.readSoon(range);
  }

  // With as much again beside it, which a moving average needs to begin with.
  async readAgain(range) {
    const beside = (range[1] - range[0]) / 2;
    try {
      const asked = { first: Math.floor(range[0] - beside), last: Math.ceil(range[1] + beside) };
      const { line, pieces, columns } = await this.ask("between", asked);
      if (this.board.range !== range || this.closed) return;
      this.board.detail = new WbCurves();
      this.board.detail.line = line;
      this.board.detail.add(pieces, columns.numbers);
      this.later(true);
    } catch (error) {
      this.note.textContent = error.message;
    }
  }

  // Zoom by keyboard, from wherever the focus is in the charts.
  key(event) {
    if (!this.board.root.contains(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { "+": [0, 0.5], "-": [0, 2], ArrowLeft: [-1, 1], ArrowRight: [1, 1] };
    if (moves[event.key]) this.board.move(...moves[event.key]);
    else if (event.key === "Escape") this.board.zoom(null);
    else return;
    event.stopPropagation();
    event.preventDefault();
  }

  // One view of the page asks; if its answer is lost (the view was closed), another asks again.
  askForPlotly() {
    if (WB_SHARED.plotly[this.version]) return this.usePlotly();
    const now = Date.now();
    if (now - (WB_SHARED.asked[this.version] || 0) > 8000) {
      WB_SHARED.asked[this.version] = now;
      this.model.send({ kind: "plotly", view: this.view });
    }
    this.asking = setTimeout(() => this.askForPlotly(), 300);
  }

  loadPlotly(version, buffer) {
    if (!WB_SHARED.plotly[version]) WB_SHARED.plotly[version] = wbUnpack(buffer);
    this.usePlotly();
  }

  async usePlotly() {
    clearTimeout(this.asking);
    try {
      this.plotly = await WB_SHARED.plotly[this.version];
      this.later();
    } catch (error) {
      delete WB_SHARED.plotly[this.version];
      this.note.textContent = `The charts could not be loaded: ${error}`;
    }
  }

  // Draw soon, and not again before four times what drawing took: a slow page falls behind in no case.
  // What a person did is drawn at once.
  later(soon = false) {
    if (this.closed || (this.timer && (this.hurried || !soon))) return;
    clearTimeout(this.timer);
    this.hurried = soon;
    this.timer = setTimeout(() => requestAnimationFrame(() => {
      this.timer = null;
      if (this.closed) return;
      const took = this.board.draw(this.plotly, wbTheme(this.root));
      this.controls.handles.draw();
      this.lane.draw(this.curves.events, this.board.range || this.curves.span());
      this.wait = Math.min(2000, Math.max(30, 4 * took));
      if (took) this.root.dataset.drawn = this.root.dataset.step;
    }), soon ? 20 : this.wait);
  }

  close() {
    super.close();
    clearTimeout(this.timer);
    clearTimeout(this.asking);
    clearTimeout(this.greeting);
    this.readSoon.stop();
    this.controls.close();
    this.board.free(this.plotly);
  }
}
