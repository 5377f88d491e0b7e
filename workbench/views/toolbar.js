// The line of tools over the curves: smoothing, other runs to lay over, the way back from a zoom; and the lane of events.

// How much a moving average smooths: a slider, and its weight in words.
class WbSmoothing {
  constructor(changed) {
    this.root = wbElement("label", "wb-tool", "Smoothing ");
    this.slider = wbElement("input", "wb-slider");
    Object.assign(this.slider, { type: "range", min: "0", max: "0.99", step: "0.01" });
    this.slider.title = "Exponential moving average: how much each value weighs beside the one after it";
    this.slider.addEventListener("input", () => changed(Number(this.slider.value)));
    this.slider.addEventListener("keydown", (event) => event.stopPropagation());
    this.amount = wbElement("output", "wb-amount", "");
    this.root.append(this.slider, this.amount);
    this.show(0);
  }

  show(weight) {
    this.slider.value = String(weight);
    this.amount.textContent = weight ? weight.toFixed(2) : "off";
  }
}

class WbToolbar {
  constructor(view, board, kept) {
    this.view = view;
    this.board = board;
    this.kept = kept; // what was chosen, for as long as the page lives: {smooth, runs}
    this.root = wbElement("div", "wb-toolbar");
    this.root.setAttribute("role", "toolbar");
    this.root.setAttribute("aria-label", "Curves");
    this.back = wbButton("Reset zoom", () => board.zoom(null), "Show all steps again (Escape)");
    this.back.hidden = true;
    this.smoothing = new WbSmoothing((weight) => this.smooth(weight));
    this.root.append(this.smoothing.root, this.makeRuns(), this.back);
    this.smooth(kept.smooth);
    for (const run of kept.runs) this.load(run);
    this.reading = setInterval(() => this.again(), 10000);
  }

  // Runs that are laid over these curves may go on, too.
  async again() {
    if (this.view.closed) return clearInterval(this.reading);
    if (this.busy || document.hidden) return;
    this.busy = true; // one reading at a time: while a cell runs, the answer may take long
    for (const run of [...this.kept.runs]) await this.load(run);
    this.busy = false;
  }

  smooth(weight) {
    this.smoothing.show(weight);
    this.kept.smooth = weight;
    this.board.smooth = weight;
    this.board.changed();
  }

  makeRuns() {
    const tool = wbElement("div", "wb-tool wb-over");
    this.open = wbButton("Overlay runs", () => this.show(this.list.hidden), "Lay the curves of other runs in this folder over these");
    this.open.setAttribute("aria-expanded", "false");
    this.list = wbElement("div", "wb-pop");
    this.list.hidden = true;
    this.trouble = wbElement("span", "wb-bad", "");
    tool.append(this.open, this.list, this.trouble);
    tool.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") this.show(false);
    });
    return tool;
  }

  async show(open) {
    this.list.hidden = !open;
    this.open.setAttribute("aria-expanded", String(open));
    if (!open) return this.open.focus();
    this.list.replaceChildren(wbElement("span", "wb-soft", "looking …"));
    try {
      const { runs } = await this.view.ask("runs");
      const shown = [...new Set([...runs, ...this.kept.runs])];
      this.list.replaceChildren(...shown.map((run) => this.choice(run)));
      if (!shown.length) this.list.append(wbElement("span", "wb-soft", "There is no other run in this folder."));
      this.list.querySelector("input")?.focus();
    } catch (error) {
      this.list.replaceChildren(wbElement("span", "wb-bad", error.message));
    }
  }

  choice(run) {
    const { label, box } = wbTick("wb-pick", run, (on) => (on ? this.load(run) : this.drop(run)));
    box.checked = this.kept.runs.includes(run);
    return label;
  }

  async load(run) {
    if (!this.kept.runs.includes(run)) this.kept.runs.push(run);
    try {
      const { line, pieces, columns } = await this.view.ask("overlay", { run });
      if (!this.kept.runs.includes(run)) return; // dropped meanwhile
      const curves = new WbCurves();
      curves.line = line;
      curves.add(pieces, columns.numbers);
      this.put([...this.board.overlays.filter((other) => other.label !== run), { label: run, curves }]);
      this.trouble.textContent = "";
    } catch (error) {
      this.drop(run);
      this.trouble.textContent = error.message;
    }
  }

  drop(run) {
    this.kept.runs = this.kept.runs.filter((other) => other !== run);
    this.put(this.board.overlays.filter((other) => other.label !== run));
  }

  put(overlays) {
    // always in the order in which they were chosen, so that a run keeps its dashes
    this.board.overlays = overlays.sort((a, b) => this.kept.runs.indexOf(a.label) - this.kept.runs.indexOf(b.label));
    this.board.changed();
  }

  zoomed(range) {
    const steps = range && `steps ${Math.ceil(range[0])} to ${Math.floor(range[1])}`;
    this.back.hidden = !range;
    this.back.textContent = range ? `${steps}: show all` : "";
  }
}

// The events of the run on one axis, the charts' own: a mark each, or a number where several stand close together. A
// click or Enter opens the words; arrow keys go from mark to mark.
class WbLane {
  constructor() {
    this.root = wbElement("div", "wb-lane");
    this.axis = wbElement("div", "wb-lane-axis");
    this.axis.setAttribute("role", "group");
    this.axis.setAttribute("aria-label", "Events of the run, by step");
    this.all = wbButton("", () => this.open(this.opened === "all" ? null : "all"));
    this.box = wbElement("div", "wb-lane-box");
    this.box.hidden = true;
    const line = wbElement("div", "wb-lane-line");
    line.append(this.axis, this.all);
    this.root.append(line, this.box);
    this.root.hidden = true;
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const marks = [...this.axis.children];
    const at = marks.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: marks.length - 1 }[event.key];
    if (event.key === "Escape" && this.opened) this.open(null);
    else if (at >= 0 && to !== undefined) marks[Math.min(marks.length - 1, Math.max(0, to))].focus();
    else if (event.key !== "Enter" && event.key !== " ") return;
    event.stopPropagation();
  }

  // Marks are made anew only when something about them changed: whoever stands on one stays there.
  draw(events, range) {
    const width = this.axis.clientWidth;
    const key = JSON.stringify([events.length, range, Math.round(width / 20)]);
    this.root.hidden = !events.length;
    if (key === this.drawn || !events.length) return;
    this.drawn = key;
    this.events = events;
    this.all.textContent = events.length === 1 ? "1 event" : `${events.length} events`;
    const held = this.axis.contains(document.activeElement) && document.activeElement.dataset.step;
    this.axis.replaceChildren(...wbClusters(events, range, width / 26).map((some) => this.mark(some, range)));
    if (held) [...this.axis.children].find((mark) => mark.dataset.step === held)?.focus();
    if (this.opened === "all") this.open("all");
  }

  mark(some, [first, last]) {
    const { step, mark, text } = some[0];
    const [sign, word] = WB_MARKS[mark] || WB_MARKS.note;
    const one = some.length === 1;
    const button = wbElement("button", `wb-mark wb-mark-${one ? mark : "many"}`, one ? sign : String(some.length));
    button.type = "button";
    button.dataset.step = String(step);
    button.style.left = `${(100 * (step - first)) / (last - first || 1)}%`;
    button.title = one ? `step ${step}, ${word}: ${text}` : `${some.length} events from step ${step} to ${some[some.length - 1].step}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => this.open(this.opened === step ? null : step, some));
    return button;
  }

  open(what, some = this.events) {
    this.opened = what;
    this.box.hidden = what === null;
    this.all.setAttribute("aria-expanded", String(what === "all"));
    const most = 200;
    const shown = some.slice(-most).map((event) => {
      const [sign, word] = WB_MARKS[event.mark] || WB_MARKS.note;
      const line = wbElement("div", "wb-event");
      const when = event.created ? new Date(1000 * event.created).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "";
      const mark = wbElement("span", `wb-sign wb-mark-${event.mark}`, sign);
      mark.title = word;
      line.append(mark, wbElement("b", "", `step ${event.step}`), wbElement("span", "wb-soft", when), wbElement("span", "wb-text", event.text));
      return line;
    });
    if (some.length > most) shown.unshift(wbElement("div", "wb-soft", `${some.length - most} earlier ones are not shown`));
    this.box.replaceChildren(...shown);
  }
}
