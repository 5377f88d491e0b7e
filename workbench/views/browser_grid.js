// A table of any length: only the rows on the screen are elements, and rows come a thousand at a time. Rows have one
// height. At most two requests are under way, and what is wanted is decided anew as each answer comes, so a fling past a
// hundred pages asks for the last of them only.

const WB_ROW = 40; // pixels, as in the style sheet
const WB_PAGE = 1000;
const WB_PAGES_KEPT = 40;
const WB_TALLEST = 12e6; // pixels; browsers cannot scroll much further, so a longer table scrolls in larger steps

class WbGrid {
  // owner: {fetch(start, count) -> Promise of a page or null, sort(column), open(index, id), pick(...), picked: Set}
  constructor(owner) {
    this.owner = owner;
    this.pages = new Map();
    this.asking = new Set();
    this.columns = [];
    this.widths = new Map();
    this.matched = 0;
    this.active = -1;
    this.stamp = 0;
    this.lines = [];
    this.down = true;
    this.root = wbElement("div", "wb-grid");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "grid");
    this.root.setAttribute("aria-label", "rollouts");
    this.head = wbElement("div", "wb-head");
    this.head.setAttribute("role", "row");
    this.canvas = wbElement("div", "wb-canvas");
    this.canvas.setAttribute("role", "rowgroup");
    this.none = wbElement("div", "wb-none");
    this.none.hidden = true;
    this.root.append(this.head, this.canvas, this.none);
    this.name = `wb-row-${Math.random().toString(36).slice(2)}`;
    this.root.addEventListener("scroll", () => this.soon(), { passive: true });
    this.canvas.addEventListener("click", (event) => this.clicked(event));
    this.canvas.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault()); // selects no text
    this.sized = new ResizeObserver(() => this.soon());
    this.sized.observe(this.root);
  }

  // Other rows, or the same ones read anew: `page` is the first of them that is here (may be partial).
  reset(page, { keep = false } = {}) {
    this.stamp++;
    this.pages.clear();
    this.asking.clear();
    this.take(page);
    if (!keep) {
      this.root.scrollTop = 0;
      this.active = -1;
    }
    this.measure();
    this.draw();
  }

  take(page) {
    this.matched = page.matched;
    if (JSON.stringify(page.headings) !== this.shownHeadings) {
      this.shownHeadings = JSON.stringify(page.headings);
      this.columns = page.headings;
      this.makeHead();
      this.lines.splice(0).forEach((line) => line.element.remove());
    }
    const at = Math.floor(page.start / WB_PAGE);
    this.pages.delete(at);
    this.pages.set(at, page);
    if (this.pages.size > WB_PAGES_KEPT) this.pages.delete(this.pages.keys().next().value);
  }

  // -- headings ------------------------------------------------------------------------------------------------

  makeHead() {
    const all = wbElement("input");
    all.type = "checkbox";
    all.title = "pick all rows shown, or none";
    all.setAttribute("aria-label", all.title);
    all.addEventListener("change", () => this.owner.pickAll(all.checked));
    this.all = all;
    const box = wbElement("div", "wb-cell wb-check");
    box.setAttribute("role", "columnheader");
    box.append(all);
    this.head.replaceChildren(box, ...this.columns.map((column, i) => this.makeHeading(column, i)));
    this.showSort();
    this.layOut();
  }

  makeHeading(column, i) {
    const cell = wbElement("div", `wb-cell${column.number ? " wb-number" : ""}`);
    cell.setAttribute("role", "columnheader");
    const button = wbElement("button", "wb-sort");
    button.type = "button";
    button.title = `${column.label}: click to sort`;
    button.append(wbElement("bdi", "", column.label), wbElement("span", "wb-arrow", ""));
    button.addEventListener("click", () => this.owner.sort(column));
    const edge = wbElement("span", "wb-edge");
    edge.title = "drag to resize; double click for the width it had";
    edge.addEventListener("pointerdown", (event) => this.resize(event, cell, column));
    edge.addEventListener("dblclick", () => {
      this.widths.delete(column.name);
      this.layOut();
    });
    cell.append(button, edge);
    return cell;
  }

  showSort() {
    const { sort, descending } = this.owner.wish;
    this.columns.forEach((column, i) => {
      const cell = this.head.children[i + 1];
      const sorted = sort === column.name;
      cell.querySelector(".wb-arrow").textContent = !sorted ? "" : descending ? "▼" : "▲";
      if (sorted) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  resize(event, cell, column) {
    event.preventDefault();
    const from = event.clientX;
    const width = cell.getBoundingClientRect().width;
    const move = (moved) => {
      this.widths.set(column.name, Math.max(36, Math.round(width + moved.clientX - from)));
      this.layOut();
    };
    const end = () => {
      document.removeEventListener("pointermove", move);
      document.removeEventListener("pointerup", end);
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", end);
  }

  layOut() {
    let least = 30;
    const tracks = this.columns.map((column) => {
      const set = this.widths.get(column.name);
      const narrow = column.number ? Math.min(110, Math.max(52, 26 + 7 * column.label.length)) : 74;
      const width = set ?? (column.long ? (column.name === "completion" ? 190 : 110) : narrow);
      least += width;
      if (set !== undefined || !column.long) return `${width}px`;
      return `minmax(${width}px, ${column.name === "completion" ? 2 : 1}fr)`;
    });
    if (!this.columns.some((column) => column.long && !this.widths.has(column.name))) tracks.push("1fr");
    this.root.style.setProperty("--wb-tracks", `30px ${tracks.join(" ")}`);
    this.head.style.minWidth = this.canvas.style.minWidth = `${least}px`;
  }

  // -- rows ----------------------------------------------------------------------------------------------------

  measure() {
    const tall = this.matched * WB_ROW;
    this.height = Math.min(tall, WB_TALLEST);
    this.canvas.style.height = `${this.height}px`;
    this.root.setAttribute("aria-rowcount", String(this.matched + 1));
    this.none.hidden = this.matched > 0;
  }

  // No taller than all rows there are, however few a filter leaves: what stands below does not jump.
  fit(total) {
    this.root.style.maxHeight = `${Math.max(240, total * WB_ROW + 52)}px`; // with its heading and a bar to scroll sideways
  }

  // Where the rows begin for the present scrolling: the first row on the screen, and its distance from the canvas' top.
  place() {
    const room = Math.max(0, this.root.clientHeight - this.head.offsetHeight);
    const top = this.root.scrollTop;
    const tall = this.matched * WB_ROW;
    const scale = this.height > room && tall > this.height ? (tall - room) / (this.height - room) : 1;
    return { top, room, from: top * scale, rows: Math.ceil(room / WB_ROW) + 1 };
  }

  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    if (!this.root.isConnected) return;
    const { top, from, rows } = this.place();
    const first = Math.max(0, Math.floor(from / WB_ROW) - 3);
    const last = Math.min(this.matched, first + rows + 7);
    if (first !== this.was) this.down = first > (this.was ?? 0);
    this.was = first;
    this.range = [first, last];
    while (this.lines.length < last - first) this.lines.push(this.makeLine());
    const used = new Set();
    for (let i = first; i < last; i++) {
      const line = this.lines[i % this.lines.length];
      used.add(line);
      this.fill(line, i);
      line.element.style.transform = `translateY(${Math.round(i * WB_ROW - from + top)}px)`;
    }
    for (const line of this.lines) line.element.hidden = !used.has(line);
    this.want();
  }

  makeLine() {
    const element = wbElement("div", "wb-row");
    element.setAttribute("role", "row");
    const box = wbElement("input");
    box.type = "checkbox";
    box.tabIndex = -1;
    box.setAttribute("aria-label", "pick");
    const check = wbElement("div", "wb-cell wb-check");
    check.setAttribute("role", "gridcell");
    check.append(box);
    element.append(check);
    const cells = this.columns.map((column) => {
      const cell = wbElement("div", `wb-cell${column.number ? " wb-number" : column.long ? " wb-long" : ""}`);
      cell.setAttribute("role", "gridcell");
      cell.append(wbElement("bdi"));
      element.append(cell);
      return cell.firstChild;
    });
    this.canvas.append(element);
    return { element, box, cells, at: -1, stamp: -1 };
  }

  page(i) {
    const page = this.pages.get(Math.floor(i / WB_PAGE));
    return page && i - page.start < page.n ? page : undefined;
  }

  // The id of the rollout in row i, where that row is here.
  id(i) {
    const page = this.page(i);
    return page && page.rows.id[i - page.start];
  }

  fill(line, i) {
    const page = this.page(i);
    if (line.at !== i || line.page !== page || line.stamp !== this.stamp) {
      line.at = i;
      line.page = page;
      line.stamp = this.stamp;
      const { element, cells } = line;
      element.id = `${this.name}-${i}`;
      element.setAttribute("aria-rowindex", String(i + 2));
      const at = page ? i - page.start : -1;
      const stripe = page ? ` wb-stripe-${page.rows.stripe[at]}` : " wb-blank";
      element.className = `wb-row${stripe}${page && page.rows.gone[at] ? " wb-gone" : ""}`;
      element.title = page && page.rows.gone[at] ? "of a step given up by a rewind" : "";
      this.columns.forEach((column, k) => {
        const value = page && page.rows[`c${k}`][at];
        cells[k].textContent = !page ? "" : column.number ? wbKnown(value) : value;
      });
      line.id = page && page.rows.id[at];
    }
    const picked = line.id !== undefined && this.owner.picked.has(line.id);
    line.box.checked = picked;
    line.element.classList.toggle("wb-active", i === this.active);
    line.element.classList.toggle("wb-picked", picked);
    line.element.setAttribute("aria-selected", String(picked));
  }

  // Ask for the pages on the screen, then for the next in the direction of scrolling.
  want() {
    const [first, last] = this.range ?? [0, 0];
    if (!this.matched || this.closed) return;
    const pages = [Math.floor(first / WB_PAGE), Math.floor(Math.max(first, last - 1) / WB_PAGE)];
    if (!this.down) pages.reverse();
    pages.push(this.down ? pages[1] + 1 : pages[1] - 1);
    for (const at of new Set(pages)) {
      if (this.asking.size >= 2) return;
      const known = this.pages.get(at);
      if (at < 0 || at * WB_PAGE >= this.matched || this.asking.has(at) || (known && !known.partial)) continue;
      this.request(at);
    }
  }

  request(at) {
    const { stamp } = this;
    this.asking.add(at);
    this.owner.fetch(at * WB_PAGE, WB_PAGE).then((page) => {
      if (stamp !== this.stamp || this.closed) return;
      this.asking.delete(at);
      if (!page) return;
      const other = page.matched !== this.matched;
      this.take(page);
      if (other) this.measure();
      this.draw();
    });
  }

  // -- the active row ------------------------------------------------------------------------------------------

  go(i, { show = true } = {}) {
    if (!this.matched) return;
    this.active = Math.max(0, Math.min(this.matched - 1, i));
    this.root.setAttribute("aria-activedescendant", `${this.name}-${this.active}`);
    if (show) this.show(this.active);
    this.draw();
  }

  // To the row of a rollout, where it is among those that are here.
  goTo(id) {
    for (const { rows, start, n } of this.pages.values()) {
      const at = rows.id.indexOf(id);
      if (at >= 0 && at < n) return this.go(start + at);
    }
  }

  // Scroll so that row i is on the screen.
  show(i) {
    const { room, from } = this.place();
    const tall = this.matched * WB_ROW;
    const scale = this.height > room && tall > this.height ? (tall - room) / (this.height - room) : 1;
    if (i * WB_ROW < from) this.root.scrollTop = (i * WB_ROW) / scale;
    else if ((i + 1) * WB_ROW > from + room) this.root.scrollTop = ((i + 1) * WB_ROW - room) / scale;
  }

  atEnd() {
    return this.root.scrollTop > 0 && this.root.scrollTop + this.root.clientHeight >= this.root.scrollHeight - WB_ROW;
  }

  toEnd() {
    this.root.scrollTop = this.root.scrollHeight;
  }

  clicked(event) {
    const element = event.target.closest(".wb-row");
    const line = this.lines.find((one) => one.element === element);
    if (!line || line.id === undefined) return;
    const onBox = event.target.closest(".wb-check");
    if (onBox || event.shiftKey || event.ctrlKey || event.metaKey) {
      const on = !this.owner.picked.has(line.id);
      if (event.shiftKey && this.anchor !== undefined) this.owner.pickRows(this.anchor, line.at);
      else this.owner.pick([line.id], on);
      this.anchor = line.at;
      this.go(line.at, { show: false });
      return;
    }
    if (String(getSelection()) && !getSelection().isCollapsed) return; // selecting text is not a click
    this.anchor = line.at;
    this.go(line.at, { show: false });
    this.owner.open(line.at, line.id);
  }

  close() {
    this.closed = true;
    this.sized.disconnect();
  }
}

