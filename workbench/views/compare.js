// Two runs side by side: what differs, curves laid over each other, and both answers to the same prompt.

const WB_PAIR_WHAT = [["all", "all prompts"], ["b", "where b is better"], ["a", "where a is better"], ["tie", "ties"]];
const WB_PAIR_SORT = [["b", "largest gain of b first"], ["a", "largest loss of b first"], ["high", "highest reward of b first"],
  ["low", "lowest reward of b first"], ["stored", "as stored"]];

function wbTable(headings, rows, kind) {
  const table = wbElement("table", `wb-plain ${kind}`);
  const head = wbElement("tr");
  head.append(...headings.map((text) => wbElement("th", "", text)));
  const body = wbElement("tbody");
  for (const row of rows) {
    const line = wbElement("tr");
    for (const cell of row) {
      const made = wbElement("td", cell.kind || "");
      made.append(wbElement("bdi", "", cell.text === undefined ? cell : cell.text));
      line.append(made);
    }
    body.append(line);
  }
  const top = wbElement("thead");
  top.append(head);
  table.append(top, body);
  const frame = wbElement("div", "wb-scroll");
  frame.append(table);
  return frame;
}

function wbFold(title, inner, open) {
  const made = wbElement("details", "wb-fold");
  made.open = open;
  made.append(wbElement("summary", "", title), inner);
  return made;
}

class WbCompare extends WbView {
  constructor(model, el) {
    super(model, el, "wb-compare wb-board");
    this.version = model.get("library");
    this.first = model.get("first");
    this.wish = { what: "all", sort: "b", find: "", start: 0 };
    this.curves = new WbCurves();
    this.board = new WbBoard(this.curves, { lazy: true });
    this.board.changed = () => this.later();
    this.root.append(this.makeHead(), this.makeTables());
    if (this.first.charts.length) {
      this.root.append(wbElement("h4", "wb-title", "Curves"), this.board.root);
      this.board.set(this.first.charts);
      this.load();
    }
    if (this.first.prompts.total) this.root.append(this.makePrompts());
    this.follow(() => this.later());
  }

  makeHead() {
    const head = wbElement("header", "wb-sides");
    this.first.sides.forEach((side, i) => {
      const line = wbElement("div", "");
      const mark = wbElement("span", `wb-side wb-side-${"ab"[i]}`, "ab"[i]);
      line.append(mark, wbElement("bdi", "wb-name", side.name), wbElement("span", "wb-soft", ` ${side.said}`));
      head.append(line);
    });
    for (const note of this.first.notes) head.append(wbElement("p", "wb-note", note));
    return head;
  }

  makeTables() {
    const { settings, metrics, events, sides } = this.first;
    const made = wbElement("div", "wb-tables");
    const cell = (text, on, which) => ({ text, kind: `wb-number${on ? ` wb-better-${which}` : ""}` });
    if (metrics.length) {
      const rows = metrics.map(([name, a, b, difference, bestA, bestB, better]) => [
        name, cell(a), cell(b), cell(difference), cell(bestA, better === "a", "a"), cell(bestB, better === "b", "b")]);
      const headings = ["metric", "last of a", "last of b", "b − a", "best of a", "best of b"];
      const part = wbElement("section", "");
      part.append(wbElement("h4", "wb-title", "Numbers"), wbTable(headings, rows.slice(0, 12), "wb-metrics"));
      if (rows.length > 12) part.append(wbFold(`${rows.length - 12} more`, wbTable(headings, rows.slice(12), "wb-metrics"), false));
      const said = "±: the standard error over the held-out prompts, at most; where both runs answer the same prompts, that of the"
        + " difference is rather less.";
      if (metrics.some((row) => row[1].includes("±"))) part.append(wbElement("p", "wb-soft wb-small", said));
      made.append(part);
    }
    const part = wbElement("section", "");
    part.append(wbElement("h4", "wb-title", "Settings that differ"));
    if (settings.length) part.append(wbTable(["of", "name", "a", "b", "default"], settings, "wb-settings"));
    else part.append(wbElement("p", "wb-soft", "None."));
    if (events.length) {
      const rows = events.map(([run, step, kind, text]) => [{ text: run, kind: `wb-event-${run}` }, `step ${step}`, text]);
      const title = `${events.length} event${events.length > 1 ? "s" : ""}`;
      part.append(wbFold(title, wbTable(["run", "when", "what"], rows, "wb-happened"), events.length <= 6));
    }
    made.append(part);
    return made;
  }

  load() {
    WB_SHARED.plotly[this.version] ??= this.ask("plotly").then((answer) => wbUnpack(answer.buffers[0]));
    this.ask("curves").then(({ names, columns }) => {
      names.forEach((name, i) => {
        const whole = Array.from(columns[i]);
        const half = whole.length / 2;
        Object.assign(this.curves.of(name, 0), { x: whole.slice(0, half), y: whole.slice(half) });
      });
      this.curves.whole.clear();
      this.later();
    });
    WB_SHARED.plotly[this.version].then((plotly) => {
      this.plotly = plotly;
      this.later();
    }, (error) => {
      delete WB_SHARED.plotly[this.version];
      this.board.hint.textContent = `The charts could not be loaded: ${error.message}`;
    });
  }

  later() {
    if (this.drawing || this.closed) return;
    this.drawing = setTimeout(() => requestAnimationFrame(() => {
      this.drawing = null;
      if (this.closed || !this.first.charts.length) return;
      if (this.board.draw(this.plotly, wbTheme(this.root))) this.root.dataset.drawn = "yes";
    }), 40);
  }

  makePrompts() {
    const made = wbElement("section", "wb-prompts");
    made.append(wbElement("h4", "wb-title", "Prompts"));
    const w = this.first.wins;
    const bar = wbElement("div", "wb-wins");
    for (const [name, n, text] of [["a", w.a, "a better"], ["tie", w.ties, "ties"], ["b", w.b, "b better"]]) {
      const piece = wbElement("div", `wb-wins-${name}`, n ? `${n} ${text}` : "");
      piece.style.flexGrow = n;
      piece.hidden = !n;
      bar.append(piece);
    }
    const chance = w.p_value < 1e-4 ? "p < 0.0001" : `p = ${wbNumber(Number(w.p_value.toPrecision(2)))}`;
    const range = w.low === null ? "" : `, 95 % interval ${wbNumber(w.low)} to ${wbNumber(w.high)}`;
    const said = wbElement("div", "wb-soft", `Sign test ${chance}; mean difference ${wbNumber(w.difference)}${range}.`);
    const tools = wbElement("div", "wb-tools");
    this.find = wbSearch("wb-find", "find in prompts");
    this.typed = wbDebounced(200, () => this.want({ find: this.find.value, start: 0 }));
    this.find.addEventListener("input", this.typed);
    this.pager = new WbPager("prompt", (start) => this.want({ start }));
    tools.append(wbSelect("which prompts", WB_PAIR_WHAT, (what) => this.want({ what, start: 0 })),
      wbSelect("order", WB_PAIR_SORT, (sort) => this.want({ sort, start: 0 })), this.find, ...this.pager.parts);
    this.list = wbElement("div", "wb-pairs");
    this.list.addEventListener("keydown", (event) => wbListKey(event, ".wb-pair-row"));
    this.detail = wbElement("div", "wb-pair");
    this.detail.hidden = true;
    this.detail.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") this.shut();
    });
    made.append(bar, said, tools, this.list, this.detail);
    this.showPage(this.first.prompts);
    return made;
  }

  want(change) {
    Object.assign(this.wish, change);
    const wanted = (this.wanted = (this.wanted || 0) + 1);
    this.ask("prompts", this.wish).then((page) => wanted === this.wanted && this.showPage(page), (error) => this.pager.say(error));
  }

  showPage(page) {
    this.wish.start = page.start;
    this.list.replaceChildren(...page.rows.map((row) => this.makeRow(row, page.most)));
    this.pager.show(page, page.rows.length);
    this.root.dataset.ask = page.ask || 0;
  }

  makeRow(row, most) {
    const made = wbElement("button", "wb-pair-row");
    made.type = "button";
    made.dataset.index = row.index;
    const bar = wbElement("span", "wb-diverge");
    const fill = wbElement("i", row.difference < 0 ? "wb-left" : "wb-right");
    fill.style.width = `${most ? (50 * Math.abs(row.difference)) / most : 0}%`;
    bar.append(fill);
    made.title = `mean reward at step ${row.step_a} of a (${row.n_a} completions) and step ${row.step_b} of b (${row.n_b})`;
    const means = wbElement("span", "wb-pair-means", `${wbNumber(row.a)} → ${wbNumber(row.b)}`);
    made.append(wbElement("bdi", "wb-pair-prompt", row.prompt), means, bar);
    made.addEventListener("click", () => this.open(row.index, 0, 0));
    return made;
  }

  open(index, i, j) {
    const opened = (this.opened = (this.opened || 0) + 1);
    for (const row of this.list.children) row.setAttribute("aria-expanded", String(Number(row.dataset.index) === index));
    this.ask("pair", { index, i, j })
      .then((answer) => opened === this.opened && this.showPair(index, answer), (error) => this.pager.say(error));
  }

  showPair(index, { prompt, parts, sides }) {
    const focus = document.activeElement?.dataset?.turn;
    const close = wbButton("close", () => this.shut());
    close.classList.add("wb-close");
    const both = wbElement("div", "wb-both");
    sides.forEach((side, k) => {
      const which = "ab"[k];
      const other = sides[1 - k].at;
      const turn = (to) => this.open(index, ...(k ? [other, to] : [to, other]));
      const before = wbButton("‹", () => turn(side.at - 1), "the completion before");
      const after = wbButton("›", () => turn(side.at + 1), "the next completion");
      before.disabled = side.at === 0;
      after.disabled = side.at >= side.of - 1;
      before.dataset.turn = `${which}-`;
      after.dataset.turn = `${which}+`;
      const head = wbElement("div", "wb-pair-head");
      const where = wbElement("span", "", `${side.at + 1} of ${side.of}`);
      const said = wbElement("span", "wb-soft", `step ${side.step}, ${side.said}`);
      head.append(wbElement("span", `wb-side wb-side-${which}`, which), before, where, after, said);
      const text = wbElement("div", "wb-text wb-whole");
      for (const [kind, piece] of parts) {
        if (kind === (k ? "delete" : "insert")) continue;
        text.append(kind === "same" ? document.createTextNode(piece) : wbElement("mark", `wb-only-${which}`, piece));
      }
      if (!text.textContent) text.append(wbElement("span", "wb-soft", "(empty)"));
      const column = wbElement("div", "wb-column");
      column.append(head, text);
      both.append(column);
    });
    const note = wbElement("p", "wb-soft wb-small",
      "Marked: words that only this answer has. Each run's completions of the prompt, the highest reward first.");
    this.detail.replaceChildren(close, wbElement("h5", "", "Prompt"), wbElement("div", "wb-text wb-whole", prompt), both, note);
    const wasShut = this.detail.hidden;
    this.detail.hidden = false;
    if (focus) { // a button at its end cannot hold the focus: the other one of that side does
      const side = this.detail.querySelectorAll(`[data-turn^="${focus[0]}"]:not(:disabled)`);
      ([...side].find((button) => button.dataset.turn === focus) || side[0] || close).focus();
    }
    if (wasShut) this.detail.scrollIntoView({ block: "nearest" });
  }

  shut() {
    this.detail.hidden = true;
    this.opened = (this.opened || 0) + 1;
    wbUnmark(this.list);
  }

  close() {
    super.close();
    clearTimeout(this.drawing);
    this.typed?.stop();
    this.board.free(this.plotly);
  }
}
