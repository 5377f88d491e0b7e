// The rollout browser: the table with its tools, and below it one rollout in full.

class WbRollouts extends WbView {
  constructor(model, el) {
    super(model, el, "wb-rollouts");
    const first = model.get("first");
    this.wish = { ...first.wish };
    this.picked = new Set();
    this.columns = null;
    this.line = "";
    this.tools = new WbTools(this);
    this.grid = new WbGrid(this);
    this.detail = new WbDetail(this);
    this.root.append(this.tools.root, this.grid.root, this.tools.foot, this.detail.root);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.keeps = wbKeepsPlace(this.root, [this.grid.root, this.detail.body]);
    this.showFirst(first);
    this.load();
    this.offer();
    this.polling = setInterval(() => this.poll(), 1500);
  }

  // The rows that came with the widget: they stand here before Python answers.
  showFirst(first) {
    const rows = { ...first.rows };
    first.headings.forEach((column, i) => {
      if (column.number) rows[`c${i}`] = rows[`c${i}`].map((value) => (value === null ? NaN : Number(value)));
    });
    const page = { matched: first.matched, total: first.total, start: 0, n: rows.id.length, rows, headings: first.headings, partial: true };
    this.tools.show(this.wish);
    this.counted(page);
    this.tools.countPicked(0);
    this.grid.reset(page);
  }

  counted(page) {
    this.empty = !page.total; // of a run before its first step: what comes is shown unasked
    this.tools.counted(page);
    this.grid.none.textContent = page.total ? "No rollout is like that." : "No rollouts.";
    this.grid.fit(page.total);
  }

  // -- rows ----------------------------------------------------------------------------------------------------

  async fetch(start, count) {
    try {
      return this.received(await this.ask("page", { wish: this.wish, start, count, columns: this.columns }));
    } catch (error) {
      this.tools.complain(error.message);
      return null;
    }
  }

  received(answer) {
    const { matched, total, start, columns: rows, line } = answer;
    this.line = line;
    return { matched, total, start, n: rows.id.length, rows, headings: answer.headings };
  }

  // The first page anew: after a change of the wish (from the top), or of the store (from where one is).
  async load({ refresh = false, keep = false, follow = false } = {}) {
    const asked = (this.loading = (this.loading || 0) + 1);
    const at = keep ? Math.floor((this.grid.range?.[0] ?? 0) / WB_PAGE) * WB_PAGE : 0;
    try {
      const answer = await this.ask("page", { wish: this.wish, start: at, count: WB_PAGE, columns: this.columns, refresh });
      if (asked !== this.loading || this.closed) return;
      const page = this.received(answer);
      this.tools.complain("");
      this.counted(page);
      this.grid.reset(page, { keep });
      this.grid.showSort();
      if (follow) this.grid.toEnd();
      this.root.dataset.loaded = String(asked);
    } catch (error) {
      if (asked === this.loading) this.tools.complain(error.message);
    }
  }

  change(values) {
    if (Object.entries(values).every(([name, value]) => JSON.stringify(this.wish[name]) === JSON.stringify(value))) return;
    Object.assign(this.wish, values);
    this.tools.show(this.wish);
    this.load();
  }

  // First click: numbers from the highest, text from A. Second: the other way. Third: as stored.
  sort(column) {
    const sorted = this.wish.sort === column.name;
    const first = column.number;
    if (!sorted) this.change({ sort: column.name, descending: first });
    else if (this.wish.descending === first) this.change({ descending: !first });
    else this.change({ sort: null, descending: false });
  }

  choose(columns) {
    this.columns = columns.length ? columns : null;
    this.load({ keep: true });
  }

  async offer() {
    const about = await this.ask("about");
    if (this.closed) return;
    this.live = about.live;
    this.tools.offer(about);
    this.tools.countPicked(about.picked);
  }

  // -- a run that goes on --------------------------------------------------------------------------------------

  // Asked only while somebody sees the table; seldom where the run stands still, as each question keeps the kernel busy.
  async poll() {
    const { top, bottom } = this.root.getBoundingClientRect();
    const seen = !document.hidden && this.root.isConnected && bottom > 0 && top < window.innerHeight;
    this.ticks = (this.ticks ?? 0) + 1;
    if (!this.live || this.polled || !seen || (this.running === false && this.ticks % 10)) return;
    this.polled = true; // one question at a time: while a cell runs, the answer may take long
    try {
      const { new: come, running } = await this.ask("news");
      this.running = running;
      const follows = come > 0 && (this.empty || (this.grid.atEnd() && !this.wish.sort));
      if (come < 0 || follows) this.refresh(follows);
      this.tools.fresh.hidden = come <= 0 || follows;
      this.tools.fresh.textContent = `${wbCount(come)} new`;
    } catch (error) {
      this.tools.complain(error.message);
    }
    this.polled = false;
  }

  refresh(follow = false) {
    this.tools.fresh.hidden = true;
    this.load({ refresh: true, keep: true, follow });
    this.offer();
  }

  // -- picking, saving, copying ----------------------------------------------------------------------------------

  pick(ids, on) {
    for (const id of ids) on ? this.picked.add(id) : this.picked.delete(id);
    this.grid.draw();
    this.ask("pick", { ids, on }); // the answer to all views has the count
  }

  pickRows(from, to) {
    this.ask("pick", { rows: [from, to], on: true, wish: this.wish });
  }

  pickAll(on) {
    this.ask("pick", on ? { rows: "all", on: true, wish: this.wish } : { clear: true });
  }

  async save(form) {
    try {
      const { said, line } = await this.ask("export", { form, wish: this.wish });
      this.tools.say(`${said} Train on it: ${line}`);
    } catch (error) {
      this.tools.say(error.message);
    }
  }

  async copy(text, what) {
    if (!text) return;
    const done = await wbCopy(text, this.root);
    this.tools.say(done ? `Copied ${what}.` : `The browser lets nothing be copied: ${wbShort(text, 300)}`);
  }

  // -- what Python says unasked ----------------------------------------------------------------------------------

  told(message) {
    if (message.kind === "picked") {
      this.line = message.line;
      if (message.clear) this.picked.clear();
      for (const id of message.columns.ids) message.on ? this.picked.add(id) : this.picked.delete(id);
      this.tools.countPicked(message.count);
      this.grid.all.checked = message.count > 0 && message.count >= this.grid.matched;
      this.grid.draw();
    }
    if (message.kind === "wished") this.change(message.wish);
    if (message.kind === "open") this.open(-1, message.id);
  }

  // -- one rollout -----------------------------------------------------------------------------------------------

  open(i, id) {
    if (i >= 0) this.grid.go(i, { show: false });
    const shut = this.detail.root.hidden;
    this.root.classList.add("wb-opened"); // the table gives room to what is below it
    this.detail.open(id);
    if (shut && this.grid.active >= 0) this.grid.show(this.grid.active);
  }

  shut() {
    this.detail.close();
    this.root.classList.remove("wb-opened");
    this.grid.root.focus({ preventScroll: true });
    this.grid.soon();
  }

  step(by) {
    this.grid.go(this.grid.active + by);
    const id = this.grid.id(this.grid.active);
    if (!this.detail.root.hidden && id !== undefined) this.detail.open(id);
  }

  key(event) {
    event.stopPropagation();
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("select")) return;
    if (target.closest(".wb-tokens") && event.key !== "Escape") return; // the keys there are its own
    const typing = target.matches("input:not([type=checkbox]), textarea");
    if (event.key === "Escape" && !this.detail.root.hidden && !typing) this.shut();
    else if (typing) return;
    else if (event.key === "/") this.tools.find.focus();
    else if (event.key === "[" || event.key === "]") this.tools.move(event.key === "[" ? -1 : 1);
    else if (event.key === "j" || event.key === "k") this.step(event.key === "j" ? 1 : -1);
    else if (target !== this.grid.root || !this.gridKey(event.key)) return;
    event.preventDefault();
  }

  gridKey(key) {
    const { grid } = this;
    const rows = Math.max(1, Math.floor(grid.place().room / WB_ROW) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: rows, PageUp: -rows, Home: -Infinity, End: Infinity }[key];
    const id = grid.id(grid.active);
    if (by === -Infinity) grid.go(0);
    else if (by === Infinity) grid.go(grid.matched - 1);
    else if (by) this.step(by);
    else if (key === "Enter" && id !== undefined) this.open(grid.active, id);
    else if (key === " " && id !== undefined) this.pick([id], !this.picked.has(id));
    else return false;
    return true;
  }

  moved() {
    this.keeps();
    this.grid.draw();
  }

  close() {
    super.close();
    clearInterval(this.polling);
    this.grid.close();
    this.detail.close();
  }
}
