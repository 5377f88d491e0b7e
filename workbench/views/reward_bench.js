// Reward functions on known answers: what was found, every score, the means by kind, and how far functions agree.

class WbRewardBench extends WbView {
  constructor(model, el) {
    super(model, el, "wb-bench");
    this.data = model.get("shown");
    this.sort = { by: null, down: false };
    this.only = { kind: "", rows: null };
    this.root.append(wbElement("div", "wb-bench-head", this.data.head), this.makeFindings());
    if (this.data.changes) this.root.append(this.makeChanges());
    this.root.append(...this.makeTable(), ...this.makeSummary(), ...this.makeAgreement());
    this.fill();
  }

  makeFindings() {
    const list = wbElement("ul", "wb-bench-findings");
    list.setAttribute("aria-label", "findings, the worst first");
    const signs = { error: "✕", warning: "!", note: "i" };
    for (const finding of this.data.findings) {
      const item = wbElement("li", `wb-bench-${finding.severity}`);
      const sign = wbElement("span", "wb-bench-sign", signs[finding.severity]);
      sign.title = finding.severity;
      sign.setAttribute("aria-label", finding.severity);
      const words = wbElement("div", "wb-text");
      words.append(wbElement("b", "", finding.function), ` ${finding.text} `, wbElement("span", "wb-soft", finding.advice));
      item.append(sign, words);
      if (finding.rows.length) {
        const label = finding.rows.length === 1 ? "show the answer" : `show the ${finding.rows.length} answers`;
        const button = wbButton(label, () => this.choose({ kind: "", rows: this.only.rows === finding.rows ? null : finding.rows }));
        button.wbRows = finding.rows;
        item.append(button);
      }
      list.append(item);
    }
    if (!this.data.findings.length) list.append(wbElement("li", "wb-bench-fine", "Nothing found: right answers earn more than all others here."));
    for (const gone of this.data.gone) {
      const item = wbElement("li", "wb-bench-gone");
      item.append(wbElement("span", "wb-bench-sign", "✓"), wbElement("div", "wb-text wb-soft", `no more: ${gone}`));
      list.append(item);
    }
    this.list = list;
    return list;
  }

  makeChanges() {
    const { names, kinds, cells } = this.data.changes;
    const cell = ([before, now]) => {
      const moved = before !== null && now !== null && Math.abs(before - now) > 1e-9;
      const way = moved ? (now > before ? " ▲" : " ▼") : "";
      const text = moved || before !== now ? `${wbNumber(before)} → ${wbNumber(now)}${way}` : wbNumber(now);
      return wbElement("td", moved ? "wb-bench-moved" : "wb-soft", text);
    };
    const box = this.makeGrid(["mean, before → now", ...names], kinds.map((kind, i) => [kind, cells[i].map(cell)]));
    box.classList.add("wb-bench-changes");
    return box;
  }

  // A table with a heading to each line; `lines`: [heading, cells].
  makeGrid(headings, lines) {
    const table = wbElement("table", "wb-bench-grid");
    const head = wbElement("tr");
    head.append(...headings.map((text) => wbElement("th", "", text)));
    table.append(head);
    for (const [heading, cells] of lines) {
      const line = wbElement("tr");
      line.append(wbElement("th", "", heading), ...cells);
      table.append(line);
    }
    const box = wbElement("div", "wb-bench-wide");
    box.append(table);
    return box;
  }

  makeTable() {
    const tools = wbElement("div", "wb-bench-tools");
    const counts = new Map();
    for (const row of this.data.rows) counts.set(row.kind, (counts.get(row.kind) || 0) + 1);
    const options = [["", `all kinds (${this.data.rows.length})`], ...[...counts].map(([kind, n]) => [kind, `${kind} (${n})`])];
    this.kind = wbSelect("kind of answer", options, (kind) => this.choose({ kind, rows: null }));
    this.count = wbElement("span", "wb-bench-count");
    this.count.setAttribute("role", "status");
    this.all = wbButton("show all", () => this.choose({ kind: "", rows: null }));
    tools.append(this.kind, this.count, this.all);
    const body = wbElement("div", "wb-bench-body");
    this.frame = wbElement("div", "wb-bench-frame");
    const table = wbElement("table", "wb-bench-table");
    this.headings = wbElement("tr");
    const head = wbElement("thead");
    head.append(this.headings);
    this.lines = wbElement("tbody");
    this.lines.addEventListener("click", (event) => this.open(event.target.closest("tr[data-index]")));
    this.lines.addEventListener("keydown", (event) => this.key(event));
    table.append(head, this.lines);
    this.frame.append(table);
    this.detail = wbElement("div", "wb-bench-detail");
    this.detail.hidden = true;
    body.append(this.frame, this.detail);
    return [tools, body];
  }

  columns() {
    const text = (label, of) => ({ label, of, number: false });
    const scores = this.data.scores.map(({ label, range }, i) => ({ label, range, number: true, of: (row) => row.scores[i] }));
    return [
      text("answer", (row) => row.answer), { label: "row", number: true, of: (row) => row.row },
      text("completion", (row) => row.completion), ...scores,
    ];
  }

  choose(only) {
    this.only = only;
    this.fill();
  }

  fill() {
    const { kind, rows } = this.only;
    const columns = this.columns();
    let chosen = this.data.rows.map((row, index) => ({ row, index }));
    if (rows) chosen = rows.map((index) => chosen[index]);
    else if (kind) chosen = chosen.filter(({ row }) => row.kind === kind);
    if (this.sort.by !== null) chosen = this.sorted(chosen, columns[this.sort.by]);
    this.headings.replaceChildren(...columns.map((column, i) => this.makeHeading(column, i)));
    const lines = [];
    let group = null;
    for (const { row, index } of chosen) {
      if (this.sort.by === null && row.kind !== group) {
        group = row.kind;
        const line = wbElement("tr", "wb-bench-kind");
        const cell = wbElement("th", "", group);
        cell.colSpan = columns.length;
        line.append(cell);
        lines.push(line);
      }
      lines.push(this.makeLine(row, index, columns));
    }
    this.lines.replaceChildren(...lines);
    this.frame.scrollTop = 0;
    this.kind.value = kind;
    this.all.hidden = !rows && !kind;
    this.count.textContent = rows ? `${chosen.length} answers of one finding` : kind ? `${chosen.length} of ${this.data.rows.length} answers` : "";
    for (const button of this.list.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.wbRows === rows));
    this.root.dataset.lines = chosen.length;
  }

  // Answers without a score come last, whichever way.
  sorted(chosen, column) {
    const way = this.sort.down ? -1 : 1;
    return [...chosen].sort((a, b) => {
      const [x, y] = [column.of(a.row), column.of(b.row)];
      if (x === null || y === null) return (x === null) - (y === null);
      return way * (column.number ? x - y : x.localeCompare(y));
    });
  }

  makeHeading(column, i) {
    const heading = wbElement("th", column.number ? "wb-bench-number" : "");
    const sorted = this.sort.by === i;
    const button = wbButton("", () => {
      const first = column.number;
      if (!sorted) this.sort = { by: i, down: first };
      else if (this.sort.down === first) this.sort = { by: i, down: !first };
      else this.sort = { by: null, down: false };
      this.fill();
    }, `sort by ${column.label}`);
    button.className = "wb-bench-sort";
    button.append(wbElement("bdi", "", column.label), wbElement("span", "wb-bench-arrow", !sorted ? "" : this.sort.down ? "▼" : "▲"));
    if (sorted) heading.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
    heading.append(button);
    return heading;
  }

  makeLine(row, index, columns) {
    const line = wbElement("tr");
    line.tabIndex = 0;
    line.dataset.index = index;
    for (const column of columns) {
      const value = column.of(row);
      const cell = wbElement("td", column.label === "completion" ? "wb-bench-long" : column.number ? "wb-bench-number" : "");
      if (column.range) this.paint(cell, value, column.range, row.trouble);
      else cell.append(wbElement("bdi", "", String(value)));
      line.append(cell);
    }
    return line;
  }

  paint(cell, value, [low, high], trouble) {
    cell.textContent = value === null ? (trouble ? "✕" : "–") : wbNumber(value);
    if (value === null) {
      if (trouble) cell.classList.add("wb-bad");
      cell.title = trouble || "None: the function says that it does not apply";
      return;
    }
    cell.classList.add("wb-bench-score");
    cell.style.setProperty("--wb-share", String(high > low ? (value - low) / (high - low) : 0));
  }

  key(event) {
    const line = event.target.closest("tr[data-index]");
    if (!line) return;
    const step = (way) => {
      let next = line[way];
      while (next && !next.dataset.index) next = next[way];
      return next;
    };
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const next = step(event.key === "ArrowDown" ? "nextElementSibling" : "previousElementSibling");
      if (next) next.focus();
      if (next && !this.detail.hidden) this.open(next);
    } else if (event.key === "Enter" || event.key === " ") {
      this.open(line);
    } else if (event.key === "Escape") {
      this.shut();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  open(line) {
    if (!line || String(getSelection())) return; // selecting text is not a click
    for (const other of this.lines.querySelectorAll("[aria-selected]")) other.removeAttribute("aria-selected");
    line.setAttribute("aria-selected", "true");
    const opened = (this.opened = (this.opened || 0) + 1);
    this.ask("row", { index: Number(line.dataset.index) }).then(({ fields }) => opened === this.opened && this.showRow(fields));
  }

  shut() {
    this.detail.hidden = true;
    const line = this.lines.querySelector("[aria-selected]");
    if (line) line.focus();
  }

  showRow(fields) {
    const facts = wbFacts(fields.filter(({ long }) => !long).map(({ name, text }) => [name, text]), "wb-bench-facts");
    const parts = fields.filter(({ long }) => long).flatMap(({ name, text }) => [
      wbElement("h5", "", name), wbElement("div", "wb-text wb-whole", text)]);
    const close = wbButton("close", () => this.shut());
    close.classList.add("wb-close");
    this.detail.replaceChildren(close, facts, ...parts);
    this.detail.hidden = false;
    this.detail.scrollTop = 0;
  }

  // Means by kind as bars: each function's own range from its least mean to its greatest.
  makeSummary() {
    const lines = this.data.summary.map(({ name, means, facts }) => {
      const known = [0, ...means.filter((value) => value !== null)];
      const [low, high] = [Math.min(...known), Math.max(...known)];
      const bars = means.map((value) => this.makeBar(value, low, high));
      return [name, [...bars, ...facts.map((value) => wbElement("td", "wb-soft", wbNumber(value)))]];
    });
    const grid = this.makeGrid(["mean by kind", ...this.data.kinds, ...this.data.facts], lines);
    return [wbElement("h5", "wb-bench-title", "What each function gives"), grid];
  }

  makeBar(value, low, high) {
    const cell = wbElement("td");
    cell.append(wbElement("span", "", wbNumber(value)));
    const bar = wbElement("div", `wb-bench-bar${value < 0 ? " wb-bench-below" : ""}`);
    bar.style.setProperty("--wb-share", String(value !== null && high > low ? Math.abs(value) / Math.max(-low, high) : 0));
    cell.append(bar);
    return cell;
  }

  makeAgreement() {
    const { names, cells } = this.data.agreement;
    if (names.length < 2) return [];
    const cell = (value) => {
      const tone = value === null ? "wb-soft" : value < 0 ? "wb-bench-apart" : "wb-bench-score";
      const made = wbElement("td", tone, wbNumber(value));
      made.style.setProperty("--wb-share", String(Math.abs(value || 0)));
      return made;
    };
    const grid = this.makeGrid(["correlation", ...names], names.map((name, i) => [name, cells[i].map(cell)]));
    return [wbElement("h5", "wb-bench-title", "How far they agree"), grid];
  }
}
