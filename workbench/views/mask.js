// Rows as tokens: trained ones underlined on blue, dropped ones struck out. A page at a time; what a token is stands in
// one line below the tools, so that nothing moves while the pointer does.

class WbMask extends WbView {
  constructor(model, el) {
    super(model, el, "wb-mask");
    const head = (this.head = model.get("head"));
    this.page = null;
    this.wanted = 0;
    this.root.append(this.makeTotals(head), ...this.makeTroubles(head), this.makeTools(head), this.makeBody());
    this.show(head.page);
  }

  makeTotals(head) {
    const box = wbElement("div", "wb-mask-head");
    const [kept, ...notes] = head.lines;
    const all = head.kinds.reduce((sum, kind) => sum + head.totals[kind], 0);
    const line = wbElement("div", "wb-mask-totals");
    line.append(wbElement("b", "", kept));
    for (const kind of ["trained", "context", "dropped"]) {
      const share = all ? Math.round((100 * head.totals[kind]) / all) : 0;
      const part = wbElement("span", "wb-mask-total");
      part.append(
        wbElement("span", `wb-mask-key wb-mask-${kind}`, kind),
        ` ${wbCount(head.totals[kind])} tokens (${share} %)`,
      );
      line.append(part);
    }
    if (head.weights[0] !== 1 || head.weights[1] !== 1) {
      const [low, high] = head.weights.map(wbNumber);
      line.append(wbElement("span", "wb-mask-soft", `weights ${low} to ${high}: the darker, the more`));
    }
    box.append(line, ...notes.map((note) => wbElement("div", "wb-mask-soft wb-text", note)));
    return box;
  }

  makeTroubles(head) {
    if (!head.troubles.length) return [];
    const list = wbElement("ul", "wb-mask-troubles");
    list.setAttribute("aria-label", "problems found in the rows");
    for (const { name, line } of head.troubles) {
      const item = wbElement("li");
      const button = wbButton(line, () => this.choose(this.only === name ? "" : name), "show these rows alone");
      button.classList.add("wb-text");
      button.dataset.name = name;
      item.append(button);
      list.append(item);
    }
    this.troubles = list;
    return [list];
  }

  makeTools(head) {
    const tools = wbElement("div", "wb-mask-tools");
    if (head.odd) {
      const only = wbTick("wb-mask-only", ` only rows with problems (${wbCount(head.odd)})`, (on) => this.choose(on ? "problems" : ""));
      this.odd = only.box;
      tools.append(only.label);
    }
    this.count = wbElement("span", "wb-mask-count");
    this.count.setAttribute("role", "status");
    this.before = wbButton("‹ previous", () => this.turn("before"), "the rows before (←)");
    this.after = wbButton("next ›", () => this.turn("after"), "the rows that follow (→)");
    this.word = wbElement("div", "wb-mask-word wb-text", "Point at a token to see what it is.");
    this.word.setAttribute("aria-live", "polite");
    tools.append(this.count, this.before, this.after, this.word);
    return tools;
  }

  makeBody() {
    this.body = wbElement("div", "wb-mask-body wb-scrolls");
    this.body.tabIndex = 0;
    this.body.setAttribute("aria-label", "rows as tokens; left and right arrow turn the page, or go from token to token inside a row");
    this.body.addEventListener("keydown", (event) => this.key(event));
    return this.body;
  }

  choose(only) {
    this.want(0, only);
  }

  turn(way) {
    const to = this.page && this.page[way];
    if (to !== null && to !== undefined) this.want(to, this.only);
  }

  want(start, only) {
    const wanted = ++this.wanted;
    this.ask("page", { start, only }).then(
      (page) => wanted === this.wanted && this.show(page),
      (error) => (this.word.textContent = error.message),
    );
  }

  show(page) {
    this.page = page;
    this.only = page.only;
    this.marked = null;
    this.strips = new Map();
    this.body.replaceChildren(...page.units.map((unit) => this.makeUnit(unit)));
    this.body.scrollTop = 0;
    const last = page.start + page.units.length;
    const name = page.units.length && page.units[0].title.startsWith("Pack") ? "packs" : "rows";
    const range = `${page.start + 1}–${last} of ${wbCount(page.matched)}`;
    const of = page.matched < page.total ? ` (${wbCount(page.total)} in all)` : "";
    this.count.textContent = page.matched ? `${name} ${range}${of}` : `no such ${name}`;
    this.before.disabled = page.before === null;
    this.after.disabled = page.after === null;
    this.before.hidden = this.after.hidden = page.before === null && page.after === null;
    if (this.odd) this.odd.checked = page.only === "problems";
    for (const button of this.troubles ? this.troubles.querySelectorAll("button") : [])
      button.setAttribute("aria-pressed", String(button.dataset.name === page.only));
    this.root.dataset.start = page.start;
    this.root.dataset.only = page.only;
  }

  makeUnit(unit) {
    const box = wbElement("section", "wb-mask-unit");
    const title = wbElement("h5", "wb-text", unit.title);
    if (unit.note) title.append(wbElement("span", "wb-mask-soft", ` · ${unit.note}`));
    box.append(title, ...unit.problems.map((words) => wbElement("div", "wb-mask-problem wb-text", words)));
    for (const strip of unit.strips) box.append(...this.makeStrip(strip));
    return box;
  }

  makeStrip(strip) {
    const [context, trained, dropped] = strip.counts;
    const counts = [`${trained} trained`, `${context} context`, ...(dropped ? [`${dropped} dropped`] : [])].join(", ");
    const made = [wbElement("div", "wb-mask-soft wb-text", `${strip.title ? `${strip.title}: ` : ""}${counts}`)];
    for (const part of strip.parts) {
      if (part.gap) made.push(wbElement("div", "wb-mask-soft", `… ${wbCount(part.gap)} tokens not shown …`));
      else made.push(this.makeTokens(part, `${strip.title || "tokens"}: ${counts}; arrows go from token to token`));
    }
    return made;
  }

  makeTokens(part, label) {
    const strip = new WbTokenStrip({ hovered: (i) => this.say(part, i), chosen: (i) => this.mark(strip, i), label });
    strip.show(part.text.map((text, i) => ({ text, special: part.special[i], id: part.ids[i] })));
    strip.spans.forEach((span, i) => {
      const kind = this.head.why[part.why[i]][0];
      span.classList.add(`wb-mask-${kind}`);
      if (kind === "trained") span.style.setProperty("--wb-share", String(Number(part.weight[i]) / Math.max(1, this.head.weights[1])));
    });
    strip.part = part;
    strip.root.tabIndex = 0;
    this.strips.set(strip.root, strip);
    return strip.root;
  }

  say(part, i) {
    if (i < 0) return;
    const why = part.why[i];
    const [kind, words] = this.head.why[why];
    const mass = kind === "trained" ? ` · weight ${wbNumber(part.weight[i])}` : "";
    const quoted = JSON.stringify(part.text[i]).slice(0, 80);
    this.word.textContent = `token ${part.at + i} · id ${part.ids[i]}${part.special[i] ? " · special" : ""} · ${quoted}${mass} · ${words}`;
  }

  mark(strip, i) {
    if (this.marked && this.marked !== strip) this.marked.mark(-1);
    this.marked = strip;
    strip.mark(i);
    strip.reveal(i);
    this.say(strip.part, i);
  }

  key(event) {
    const strip = this.strips.get(event.target);
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (strip && way) {
      const at = strip === this.marked ? strip.marked + way : 0;
      this.mark(strip, Math.min(strip.spans.length - 1, Math.max(0, at)));
    } else if (strip && event.key === "Escape") {
      this.body.focus();
    } else if (way || event.key === "PageDown" || event.key === "PageUp") {
      this.turn(way === 1 || event.key === "PageDown" ? "after" : "before");
    } else if (event.key === "Home") {
      this.want(0, this.only);
    } else if (event.key === "End") {
      this.want(this.page.last, this.only);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }
}
