// A table of completions. Rows come page by page as text from Python; every text is set by textContent.

class WbTable extends WbView {
  constructor(model, el) {
    super(model, el, "wb-rollouts");
    this.wish = { sort: null, descending: false, find: "", start: 0 };
    this.root.append(this.makeTools(), this.makeBody());
    const first = model.get("first");
    if (first && first.columns) this.showPage(first);
    this.want();
  }

  makeTools() {
    const tools = wbElement("div", "wb-tools");
    this.find = wbElement("input", "wb-find");
    this.find.type = "search";
    this.find.placeholder = "find in prompts and completions";
    this.find.setAttribute("aria-label", this.find.placeholder);
    this.find.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.want({ find: this.find.value, start: 0 }), 200);
    });
    this.count = wbElement("span", "wb-count", "loading …");
    this.count.setAttribute("role", "status");
    this.before = this.makeButton("‹ previous", () => this.want({ start: this.wish.start - this.size }));
    this.after = this.makeButton("next ›", () => this.want({ start: this.wish.start + this.size }));
    this.fresh = this.makeButton("refresh", () => this.want({}, true));
    this.fresh.title = "read the store again: a run that goes on adds rollouts";
    this.fresh.hidden = true;
    tools.append(this.find, this.count, this.before, this.after, this.fresh);
    return tools;
  }

  makeButton(text, act) {
    const button = wbElement("button", "wb-button", text);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }

  makeBody() {
    const body = wbElement("div", "wb-body");
    this.frame = wbElement("div", "wb-frame");
    this.table = wbElement("table", "wb-table");
    this.headings = wbElement("tr");
    this.rows = wbElement("tbody");
    const head = wbElement("thead");
    head.append(this.headings);
    this.table.append(head, this.rows);
    this.frame.append(this.table);
    this.detail = wbElement("div", "wb-detail");
    this.detail.hidden = true;
    this.rows.addEventListener("click", (event) => this.open(event.target.closest("tr")));
    this.rows.addEventListener("keydown", (event) => this.key(event));
    body.append(this.frame, this.detail);
    return body;
  }

  want(change = {}, refresh = false) {
    Object.assign(this.wish, change);
    const wanted = (this.wanted = (this.wanted || 0) + 1);
    this.ask("page", { refresh, ...this.wish }).then((page) => wanted === this.wanted && this.showPage(page));
  }

  showPage(page) {
    this.size = page.page;
    this.wish.start = page.start;
    this.headings.replaceChildren(...page.columns.map((column) => this.makeHeading(column)));
    this.rows.replaceChildren(...page.rows.map((row) => this.makeRow(row, page.columns)));
    const last = page.start + page.rows.length;
    const of = page.matched.toLocaleString("en") + (page.matched < page.total ? ` found in ${page.total.toLocaleString("en")}` : "");
    this.count.textContent = page.total === 0 ? "no rollouts" : page.matched === 0 ? `none of ${page.total.toLocaleString("en")}` : `${page.start + 1}–${last} of ${of}`;
    this.before.disabled = page.start === 0;
    this.after.disabled = last >= page.matched;
    this.before.hidden = this.after.hidden = page.matched <= page.page;
    this.fresh.hidden = !page.live;
    this.frame.scrollTop = 0;
    this.root.dataset.ask = page.ask || 0;
  }

  makeHeading(column) {
    const heading = wbElement("th", column.number ? "wb-number" : "");
    const button = wbElement("button", "wb-sort");
    button.type = "button";
    button.title = `sort by ${column.label}`;
    const sorted = this.wish.sort === column.at;
    const arrow = !sorted ? "" : this.wish.descending ? "▼" : "▲";
    button.append(wbElement("bdi", "", column.label), wbElement("span", "wb-arrow", arrow));
    if (sorted) heading.setAttribute("aria-sort", this.wish.descending ? "descending" : "ascending");
    button.addEventListener("click", () => this.sortBy(column, sorted));
    heading.append(button);
    return heading;
  }

  // First click: numbers from the highest, text from A. Second: the other way. Third: as stored.
  sortBy(column, sorted) {
    const first = column.number;
    if (!sorted) this.want({ sort: column.at, descending: first, start: 0 });
    else if (this.wish.descending === first) this.want({ descending: !first, start: 0 });
    else this.want({ sort: null, descending: false, start: 0 });
  }

  makeRow(row, columns) {
    const line = wbElement("tr", `wb-stripe-${row.stripe}`);
    line.tabIndex = 0;
    line.dataset.index = row.index;
    row.cells.forEach((text, i) => {
      const made = wbElement("td", columns[i].number ? "wb-number" : columns[i].text ? "wb-long" : "");
      made.append(wbElement("bdi", "", text));
      line.append(made);
    });
    return line;
  }

  key(event) {
    const line = event.target.closest("tr");
    if (!line) return;
    const next = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling }[event.key];
    if (next) {
      next.focus();
      if (!this.detail.hidden) this.open(next);
    } else if (event.key === "Enter" || event.key === " ") {
      this.open(line);
    } else if (event.key === "Escape") {
      this.shut();
    } else if (event.key !== "ArrowDown" && event.key !== "ArrowUp") {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  open(line) {
    if (!line || String(getSelection())) return; // selecting text is not a click
    for (const other of this.rows.querySelectorAll("[aria-selected]")) other.removeAttribute("aria-selected");
    line.setAttribute("aria-selected", "true");
    const opened = (this.opened = (this.opened || 0) + 1);
    this.ask("row", { index: Number(line.dataset.index) }).then((row) => opened === this.opened && this.showRow(row.fields));
  }

  shut() {
    this.detail.hidden = true;
    const line = this.rows.querySelector("[aria-selected]");
    if (line) line.focus();
  }

  showRow(fields) {
    const facts = wbElement("dl", "wb-facts");
    const parts = [];
    for (const { name, text, long } of fields) {
      if (long) {
        parts.push(wbElement("h5", "", name), wbElement("div", "wb-text wb-whole", text));
      } else {
        const pair = wbElement("div", "");
        pair.append(wbElement("dt", "", name), wbElement("dd", "wb-text", text));
        facts.append(pair);
      }
    }
    const close = this.makeButton("close", () => this.shut());
    close.classList.add("wb-close");
    this.detail.replaceChildren(close, ...parts, facts);
    this.detail.hidden = false;
    this.detail.scrollTop = 0;
  }

  close() {
    super.close();
    clearTimeout(this.typing);
  }
}
