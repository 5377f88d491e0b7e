// One rollout below the table: its texts and numbers, its tokens, its group, and the same task over the steps.

// Segments of a comparison as elements: what is alike, what went and what came differ by more than colour.
function wbSegments(parts, { dim = false } = {}) {
  const tags = { same: "span", delete: "del", insert: "ins" };
  return parts.map(([kind, text]) => wbElement(tags[kind] ?? "span", kind === "same" && dim ? "wb-same" : kind === "same" ? "" : `wb-${kind}`, text));
}

// What bars of several lists of parts are drawn to: the largest, and whether any is below 0.
function wbScale(parts) {
  const values = parts.map(([, value]) => value ?? 0);
  return { most: Math.max(0, ...values.map(Math.abs)), signed: values.some((value) => value < 0) };
}

// Rewards by part as bars with their numbers; where some are below 0, bars go to the left and right of a middle line.
function wbParts(parts, { most, signed }) {
  const list = wbElement("div", `wb-parts${signed ? " wb-signed" : ""}`);
  for (const [name, value] of parts) {
    const bar = wbElement("span", "wb-part-bar");
    const fill = wbElement("i", value < 0 ? "wb-below" : "");
    fill.style.width = `${most ? (((signed ? 50 : 100) * Math.abs(value ?? 0)) / most).toFixed(1) : 0}%`;
    bar.append(fill);
    list.append(wbElement("bdi", "wb-part-name", name), bar, wbElement("span", "wb-part-number", wbNumber(value)));
  }
  return list;
}

class WbDetail {
  constructor(owner) {
    this.owner = owner;
    this.tab = "text";
    this.root = wbElement("div", "wb-detail");
    this.root.hidden = true;
    this.title = wbElement("span", "wb-detail-title");
    this.tabs = {};
    const tabs = wbElement("div", "wb-tabs");
    tabs.setAttribute("role", "tablist");
    for (const name of ["text", "tokens", "group", "time"]) {
      const tab = wbButton(name, () => this.choose(name));
      tab.classList.add("wb-tab");
      tab.setAttribute("role", "tab");
      this.tabs[name] = tab;
      tabs.append(tab);
    }
    tabs.addEventListener("keydown", (event) => this.tabKey(event));
    this.before = wbButton("‹", () => owner.step(-1), "previous (k, ↑)");
    this.after = wbButton("›", () => owner.step(1), "next (j, ↓)");
    const text = wbButton("copy text", () => owner.copy(this.asText(), "the text"), "prompt, completion and rewards as text");
    const json = wbButton("copy JSON", () => owner.copy(this.now?.json, "the JSON"), "everything that is recorded, as JSON");
    const shut = wbButton("close", () => owner.shut(), "Escape");
    const buttons = wbElement("span", "wb-detail-buttons");
    buttons.append(this.before, this.after, text, json, shut);
    const head = wbElement("div", "wb-detail-head");
    head.append(tabs, this.title, buttons);
    this.body = wbElement("div", "wb-detail-body");
    this.body.setAttribute("role", "tabpanel");
    this.root.append(head, this.body);
    this.group = new WbGroup(this);
    this.time = new WbTime(this);
  }

  tabKey(event) {
    const names = Object.keys(this.tabs);
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const next = names[(names.indexOf(this.tab) + by + names.length) % names.length];
    this.choose(next);
    this.tabs[next].focus();
  }

  choose(tab) {
    this.tab = tab;
    if (this.id !== undefined) this.open(this.id);
  }

  async open(id) {
    this.id = id;
    const asked = (this.asked = (this.asked || 0) + 1);
    this.root.hidden = false;
    for (const [name, tab] of Object.entries(this.tabs)) tab.setAttribute("aria-selected", String(name === this.tab));
    try {
      const { tab } = this;
      const kinds = { text: [], tokens: [], group: ["group", this.group.wish()], time: ["time", { gone: this.owner.wish.gone }] };
      const [kind, values] = kinds[tab];
      const [detail, more] = await Promise.all([
        this.owner.ask("detail", { id }),
        kind ? this.owner.ask(kind, { id, ...values }).catch((error) => error) : null,
      ]);
      if (asked !== this.asked || this.root.hidden) return;
      this.now = detail;
      this.title.textContent = this.titleOf(detail);
      if (tab !== "tokens") this.shutTokens();
      if (more instanceof Error) this.put(tab, wbElement("p", "wb-bad", more.message));
      else if (tab === "text") this.put(tab, ...this.texts(detail));
      else if (tab === "group") this.put(tab, ...this.group.show(more, id));
      else if (tab === "time") this.put(tab, ...this.time.show(more, id));
      else this.showTokens(detail);
      this.root.dataset.shown = `${tab} ${id}`;
    } catch (error) {
      if (asked === this.asked) this.put(this.tab, wbElement("p", "wb-bad", error.message));
    }
  }

  // Another rollout keeps the place in the text; another tab begins at its top.
  put(tab, ...parts) {
    this.body.replaceChildren(...parts);
    if (this.body.dataset.tab !== tab) this.body.scrollTop = 0;
    this.body.dataset.tab = tab;
  }

  titleOf({ id, step, group, gone }) {
    const where = [step !== null && step !== undefined ? `step ${step}` : "", group !== null && group !== undefined ? `group ${group}` : "", `rollout ${id}`];
    return where.filter(Boolean).join(" · ") + (gone ? " · of a step given up" : "");
  }

  texts(detail) {
    const left = wbElement("div", "wb-reading");
    for (const [name, text] of [["prompt", detail.prompt], ["completion", detail.completion], ...detail.texts]) {
      if (text === null) continue;
      left.append(wbElement("h5", "", name), wbElement("div", "wb-text wb-whole", text || "(nothing)"));
    }
    const right = wbElement("div", "wb-numbers");
    if (detail.reward !== null || detail.parts.length) {
      const parts = [["reward", detail.reward], ...detail.parts];
      right.append(wbElement("h5", "", "reward, and its parts"), wbParts(parts, wbScale(parts)));
    }
    if (detail.facts.length) right.append(wbElement("h5", "", "more"), wbFacts(detail.facts, "wb-facts"));
    const both = wbElement("div", "wb-both");
    both.append(left, right);
    return [both];
  }

  showTokens(detail) {
    if (!this.tokens) {
      this.tokens = new WbTokens(this.owner, { changed: (id) => this.follow(id) });
      this.put("tokens", this.tokens.root);
    }
    this.tokens.show(detail.members, detail.member);
  }

  // The microscope went on to another of the group: the heading, what is copied, and the row in the table go with it.
  async follow(id) {
    this.id = id;
    const asked = (this.asked = (this.asked || 0) + 1);
    this.owner.grid.goTo(id);
    const detail = await this.owner.ask("detail", { id });
    if (asked !== this.asked) return;
    this.now = detail;
    this.title.textContent = this.titleOf(detail);
    this.root.dataset.shown = `tokens ${id}`;
  }

  shutTokens() {
    this.tokens?.close();
    this.tokens = undefined;
  }

  asText() {
    const { now } = this;
    if (!now) return "";
    const facts = [["reward", wbNumber(now.reward)], ...now.parts.map(([name, value]) => [name, wbNumber(value)]), ...now.facts];
    const texts = [["prompt", now.prompt], ["completion", now.completion], ...now.texts].filter(([, text]) => text !== null);
    return [...texts.map(([name, text]) => `--- ${name}\n${text}`), `---\n${facts.map((fact) => fact.join(": ")).join("\n")}`].join("\n");
  }

  close() {
    this.asked = (this.asked || 0) + 1;
    this.shutTokens();
    this.id = undefined;
    this.root.hidden = true;
  }
}

