
// The dashboard's view: it says hello, is sent the history, and then what each step adds.

const WB_PAGE = (window.__workbench = window.__workbench || { plotly: {}, asked: {} });

function wbFloats(buffer) {
  if (!buffer) return new Float64Array(0);
  return new Float64Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength));
}

// plotly.js from its gzipped bytes, as a module of its own: nothing is left in the page's global names.
async function wbUnpack(buffer) {
  const packed = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(packed).text();
  const before = window.Plotly;
  const parts = ["const module = { exports: {} }; const exports = module.exports; const define = undefined;\n", source, "\nexport default module.exports;"];
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  try {
    return (await import(/* webpackIgnore: true */ url)).default;
  } finally {
    URL.revokeObjectURL(url);
    if (before === undefined) delete window.Plotly;
    else window.Plotly = before;
  }
}

class WbDashboard extends WbView {
  constructor(model, el) {
    super(model, el, "wb-dashboard");
    this.version = model.get("library");
    this.curves = new WbCurves();
    this.board = new WbBoard(this.curves);
    this.board.changed = () => this.later();
    this.known = false; // whether the history has come
    this.wait = 60;
    this.controls = new WbControls(this);
    this.root.append(this.makeHead(), this.controls.root, this.makeEvents(), this.board.root);
    this.observe();
    model.send({ kind: "hello", view: this.view });
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

  makeEvents() {
    this.events = wbElement("details", "wb-events");
    this.eventsTitle = wbElement("summary", "", "");
    this.eventsList = wbElement("ol", "");
    this.events.append(this.eventsTitle, this.eventsList);
    this.events.hidden = true;
    return this.events;
  }

  told(content) {
    const buffers = content.buffers;
    if (content.kind === "plotly") this.loadPlotly(content.version, buffers[0]);
    if (content.kind === "trouble") this.note.textContent = content.text;
    if (content.kind !== "curves") return;
    this.setHead(content.head);
    if (!content.reset && !this.known) return;
    this.known = true;
    if (content.reset) {
      this.curves.series.clear();
      this.curves.events = [];
      this.eventsList.replaceChildren();
    }
    this.curves.line = content.line;
    this.curves.add(content.pieces, wbFloats(buffers && buffers[0]));
    if (content.charts) this.board.set(content.charts);
    this.addEvents(content.events);
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

  addEvents(events) {
    for (const event of events) {
      this.curves.events.push(event);
      this.eventsList.append(wbElement("li", `wb-event-${event.kind === "error" ? "error" : "plain"}`, `step ${event.step}: ${event.text}`));
    }
    const all = this.curves.events;
    this.events.hidden = all.length === 0;
    if (!all.length) return;
    const last = all[all.length - 1];
    this.eventsTitle.textContent = `${all.length} event${all.length > 1 ? "s" : ""}; last at step ${last.step}: ${last.text}`;
  }

  // One view of the page asks; if its answer is lost (the view was closed), another asks again.
  askForPlotly() {
    if (WB_PAGE.plotly[this.version]) return this.usePlotly();
    const now = Date.now();
    if (now - (WB_PAGE.asked[this.version] || 0) > 8000) {
      WB_PAGE.asked[this.version] = now;
      this.model.send({ kind: "plotly", view: this.view });
    }
    this.asking = setTimeout(() => this.askForPlotly(), 300);
  }

  loadPlotly(version, buffer) {
    if (!WB_PAGE.plotly[version]) WB_PAGE.plotly[version] = wbUnpack(buffer);
    this.usePlotly();
  }

  async usePlotly() {
    clearTimeout(this.asking);
    try {
      this.plotly = await WB_PAGE.plotly[this.version];
      this.later();
    } catch (error) {
      delete WB_PAGE.plotly[this.version];
      this.note.textContent = `The charts could not be loaded: ${error}`;
    }
  }

  observe() {
    this.resized = new ResizeObserver(() => this.later());
    this.resized.observe(this.root);
    this.themed = new MutationObserver(() => {
      this.later();
      setTimeout(() => this.later(), 500); // a theme's style sheet may come after its name
    });
    this.themed.observe(document.body, { attributes: true });
  }

  // Draw soon, and not again before four times what drawing took: a slow page falls behind in no case.
  later() {
    if (this.timer || this.closed) return;
    this.timer = setTimeout(() => requestAnimationFrame(() => {
      this.timer = null;
      if (this.closed) return;
      const took = this.board.draw(this.plotly, wbTheme(this.root));
      this.wait = Math.min(2000, Math.max(60, 4 * took));
      if (took) this.root.dataset.drawn = this.root.dataset.step;
    }), this.wait);
  }

  close() {
    super.close();
    clearTimeout(this.timer);
    clearTimeout(this.asking);
    this.controls.close();
    this.resized.disconnect();
    this.themed.disconnect();
    this.board.free(this.plotly);
  }
}
