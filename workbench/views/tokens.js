// The token microscope: completions token by token, painted by a measure. Its Python half is `Tokens` in tokens.py.

// What tokens can be painted by. kind: see WbTokenScale. `needs`: the weights it is taken at, which only a model can
// answer. `show`: the number in words, where it is not the number itself.
const WB_MEASURES = {
  logprob: { label: "log-prob, as sampled", kind: "low", unit: "nats", of: (d) => d.logprob },
  entropy: { label: "entropy, as sampled", kind: "high", unit: "nats", of: (d) => d.entropy },
  advantage: { label: "advantage", kind: "both", unit: "", of: (d) => d.flat(d.advantage) },
  mask: {
    label: "counts in the loss", kind: "high", unit: "", show: (value) => (value ? "counts" : "left out"),
    of: (d) => (d.partly && d.able ? d.counting() : d.flat(d.partly ? NaN : d.kept ? 1 : 0)),
  },
  logprob_at: { label: "log-prob under other weights", kind: "low", unit: "nats", needs: ["at"], of: async (d, at) => (await d.look(at)).logprob },
  entropy_at: { label: "entropy under other weights", kind: "high", unit: "nats", needs: ["at"], of: async (d, at) => (await d.look(at)).entropy },
  change: { label: "change of log-prob", kind: "both", unit: "nats", needs: ["from", "at"], of: (d, at, from) => d.compare(from, at) },
  ratio: {
    label: "ratio to the sampler", kind: "both", unit: "", needs: ["at"], floor: 1e-3, show: (value) => wbNumber(Math.exp(value)),
    axis: (value) => wbBrief(Math.exp(value)),
    of: async (d, at) => (await d.look(at)).logprob.map((value, i) => value - d.logprob[i]),
  },
  kl: { label: "KL to the reference", kind: "high", unit: "nats", needs: ["at"], of: (d, at) => d.divergence(at) },
  loss: { label: "share of the loss", kind: "both", unit: "", needs: [], of: (d) => d.contribution() },
};

const WB_REST = 250; // ms that the pointer rests on a token before the model is asked about it

// One completion: what is recorded, and what the model has been asked so far.
class WbCompletion {
  constructor(view, info, tokens, logprob, entropy) {
    Object.assign(this, info, { view, tokens, logprob, entropy, answers: new Map() });
  }

  flat(value) {
    return new Float32Array(this.n).fill(value ?? NaN);
  }

  // An answer of the model, asked once; one that failed can be asked again.
  asked(kind, values) {
    const key = JSON.stringify([kind, values]);
    if (!this.answers.has(key)) {
      const answer = this.view.ask(kind, { id: this.id, ...values });
      answer.then((found) => (answer.found = found), () => this.answers.delete(key));
      this.answers.set(key, answer);
    }
    return this.answers.get(key);
  }

  // "sampled" and "trained" are weights as seen from this completion's own step.
  weights(at) {
    return at === "sampled" ? this.step - 1 : at === "trained" ? this.step : at;
  }

  async look(at) {
    const answer = await this.asked("alternatives", { at: this.weights(at) });
    this.said = answer.said;
    return answer.columns;
  }

  // The answer of `look` if it is here already.
  looked(at) {
    return this.answers.get(JSON.stringify(["alternatives", { at: this.weights(at) }]))?.found;
  }

  async compare(a, b) {
    const answer = await this.asked("compare", { a: this.weights(a), b: this.weights(b) });
    this.said = answer.said;
    return answer.columns.change;
  }

  async divergence(at) {
    const answer = await this.asked("divergence", { at: this.weights(at) });
    this.said = answer.said;
    this.estimate = answer.columns.estimate;
    return answer.columns.divergence;
  }

  async contribution() {
    const answer = await this.asked("contribution", {});
    this.said = answer.said;
    return answer.columns.contribution;
  }

  async counting() {
    const answer = await this.asked("contribution", {});
    this.said = answer.said;
    return answer.columns.counts;
  }
}

// Which weights: a select, and a number where it says "a step".
class WbWeights {
  constructor(label, first, changed) {
    this.root = wbElement("label", "", label);
    this.select = wbSelect(label, [], () => {
      this.number.hidden = this.select.value !== "step";
      changed();
    });
    this.number = wbElement("input");
    this.number.type = "number";
    this.number.min = 0;
    this.number.setAttribute("aria-label", `${label} step`);
    this.number.addEventListener("change", changed);
    this.number.hidden = true;
    this.first = first;
    this.root.append(this.select, this.number);
  }

  fill(model, { step, line }) {
    const chosen = this.select.value || this.first;
    const options = [
      ...(line ? [["sampled", `step ${step - 1}, which sampled it`], ["trained", `step ${step}, which trained on it`]] : []),
      ...(model.last > step || !line ? [["now", `step ${model.last}, the last`]] : []),
      ["step", "another step"], ["reference", "the reference"], ...(model.adapter ? [["base", "the base model"]] : []),
    ];
    wbOptions(this.select, options);
    this.select.value = options.some(([value]) => value === chosen) ? chosen : options[0][0];
    this.number.max = this.last = model.last;
    this.number.hidden = this.select.value !== "step";
    if (!this.number.value) this.number.value = model.last;
  }

  get value() {
    const value = this.select.value;
    return value === "now" ? this.last : value === "step" ? Math.round(Number(this.number.value)) : value;
  }
}

// `view`: a WbView whose Python side has the mixin `Tokens`. `options.changed(id)`: told when another completion is shown.
class WbTokens {
  constructor(view, options = {}) {
    this.view = view;
    this.options = options;
    this.root = wbElement("div", "wb-tokens");
    this.ids = [];
    this.index = 0;
    this.cursor = -1; // position in the completions; the prompt's are negative
    this.pinned = false;
    this.completions = new Map();
    this.measure = "logprob";
    this.together = false;
    this.build();
    this.themed = wbThemed(() => this.recolour());
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  build() {
    this.select = wbSelect("colour by", Object.entries(WB_MEASURES).map(([name, { label }]) => [name, label]), (name) => {
      this.measure = name;
      this.paint();
    });
    const colour = wbElement("label", "", "colour");
    colour.append(this.select);
    this.from = new WbWeights("from", "sampled", () => this.paint());
    this.at = new WbWeights("at", "sampled", () => this.paint());
    this.to = new WbWeights("to", "trained", () => this.paint());
    this.legend = wbElement("span", "wb-scale");
    this.before = wbButton("‹", () => this.move(-1), "previous of the group (p)");
    this.after = wbButton("›", () => this.move(1), "next of the group (n)");
    this.where = wbElement("span", "wb-soft");
    this.others = wbElement("span", "wb-token-others");
    this.others.append(this.before, this.where, this.after);
    this.all = wbTick("", "all of the group", (on) => {
      this.together = on;
      this.arrange();
    }).label;
    const raw = wbTick("", "ids", (on) => this.root.classList.toggle("wb-raw", on)).label;
    const tools = wbElement("div", "wb-token-tools");
    tools.append(colour, this.from.root, this.at.root, this.to.root, this.legend, raw, this.all, this.others);
    this.said = wbElement("p", "wb-token-said");
    this.said.setAttribute("role", "status");
    this.strips = wbElement("div", "wb-scrolls");
    this.strips.tabIndex = 0; // strips come and go; the focus stays here
    this.strips.setAttribute("aria-label", "tokens; arrow keys go from one to the next, n and p to others of the group");
    this.chart = new WbTokenChart({ hovered: (i) => i >= 0 && this.look(i), brushed: (i) => this.reveal(i) });
    const left = wbElement("div", "wb-token-left");
    left.append(this.strips, this.chart.root);
    this.card = new WbTokenCard(this);
    const body = wbElement("div", "wb-token-body");
    body.append(left, this.card.root);
    this.root.append(tools, this.said, body);
  }

  // Show completion `ids[index]`, the others of `ids` beside it; a single one brings its group along.
  async show(ids, index = 0) {
    const started = performance.now();
    const shown = (this.shown = (this.shown || 0) + 1);
    try {
      const answer = await this.view.ask("tokens", { ids, index });
      if (shown !== this.shown) return;
      this.free();
      this.ids = answer.rollouts.map(({ id }) => id);
      this.index = answer.index;
      this.model = answer.model;
      this.read(answer);
      this.arrange(started);
    } catch (error) {
      if (shown === this.shown) this.fail(error);
    }
  }

  read({ rollouts, columns }) {
    const known = new Map(Array.from(columns.piece_id, (id, i) => [id, i]));
    this.completions = new Map();
    let [at, done] = [0, 0];
    rollouts.forEach((info, k) => Object.assign(info, { able: this.model.able, line: Boolean(this.model.line?.[k]) }));
    for (const info of rollouts) {
      const ids = columns.ids.subarray(at, (at += info.prompt + info.n));
      const tokens = Array.from(ids, (id) => ({ id, text: columns.piece[known.get(id)], special: columns.special[known.get(id)] === 1 }));
      const part = (values) => values.subarray(done, done + info.n);
      this.completions.set(info.id, new WbCompletion(this.view, info, tokens, part(columns.logprob), part(columns.entropy)));
      done += info.n;
    }
  }

  get now() {
    return this.completions.get(this.ids[this.index]);
  }

  // Strips of the completions that are to be seen, then their colours.
  arrange(started) {
    const able = Boolean(this.model?.able);
    for (const option of this.select.options) option.disabled = Boolean(WB_MEASURES[option.value].needs) && !able;
    this.select.title = able ? "" : this.model?.why ?? "";
    if (able) for (const weights of [this.from, this.at, this.to, this.card.at]) weights.fill(this.model, this.now);
    const many = this.ids.length > 1;
    this.all.hidden = this.others.hidden = !many;
    this.where.textContent = `${this.index + 1} of ${this.ids.length}`;
    this.before.disabled = this.index === 0;
    this.after.disabled = this.index === this.ids.length - 1;
    const seen = this.together ? this.ids : this.ids.slice(this.index, this.index + 1);
    this.members = seen.map((id) => this.member(this.completions.get(id)));
    this.strips.replaceChildren(...this.members.map(({ root }) => root));
    this.strips.classList.toggle("wb-together", this.together);
    if (!this.pinned) this.cursor = -1;
    this.paint(started);
  }

  member(completion) {
    const root = wbElement("div", completion === this.now ? "wb-member wb-member-now" : "wb-member");
    const place = (i) => i - completion.prompt;
    const strip = new WbTokenStrip({
      label: completion.title,
      hovered: (i) => i >= 0 && this.look(place(i), completion),
      chosen: (i) => this.pin(place(i), completion),
    });
    strip.show(completion.tokens, completion.prompt);
    root.append(wbElement("div", "wb-member-title", completion.title), strip.root);
    return { completion, strip, root };
  }

  async paint(started = performance.now()) {
    const painted = (this.painted = (this.painted || 0) + 1);
    const measure = WB_MEASURES[this.measure];
    const needs = measure.needs ?? [];
    this.from.root.hidden = !needs.includes("from");
    this.to.root.hidden = this.from.root.hidden;
    this.at.root.hidden = !needs.includes("at") || !this.to.root.hidden;
    const at = needs.includes("from") ? this.to.value : this.at.value;
    const members = this.members;
    const found = members.map(({ completion }) => measure.of(completion, at, this.from.value));
    const asked = found.some((one) => one instanceof Promise);
    let [values, trouble] = [found, null];
    if (asked) {
      // what is recorded is painted at once; until an answer comes the colours before it stay, pale
      this.tell("asked the model, which answers between steps …");
      this.strips.classList.add("wb-waits");
      for (const { completion } of members) completion.values = undefined;
      try {
        values = await Promise.all(found);
      } catch (error) {
        values = members.map(({ completion }) => completion.flat(NaN));
        trouble = error;
      }
      if (painted !== this.painted) return;
    }
    this.strips.classList.remove("wb-waits");
    const scale = new WbTokenScale(measure.kind, values, measure.floor);
    wbTokenColours(this.root);
    members.forEach(({ strip, completion }, k) => {
      completion.values = values[k];
      strip.paint(Array.from(values[k], (value) => (Number.isFinite(value) ? scale.colour(value) : null)), completion.prompt);
    });
    const show = measure.show ?? wbNumber;
    const legend = wbLegend(scale, show, measure.unit);
    this.legend.replaceWith(legend);
    this.legend = legend;
    const lines = members.map(({ completion }) => ({ values: completion.values, now: completion === this.now }));
    this.chart.draw(lines, measure.label, measure.axis ?? wbBrief);
    if (trouble) this.fail(trouble);
    else this.tell(asked ? this.now.said : this.model?.able ? "" : this.model?.why);
    if (this.card.completion) this.card.show(this.now, this.cursor); // until a token is pointed at, the card says how
    requestAnimationFrame(() => requestAnimationFrame(() => {
      this.root.dataset.took = (performance.now() - started).toFixed(1);
      this.root.dataset.painted = painted;
    }));
  }

  tell(text, bad = false) {
    this.said.textContent = text || "";
    this.said.classList.toggle("wb-bad", bad);
  }

  fail(error) {
    this.tell(error.message, true);
    this.root.dataset.failed = error.message;
  }

  // The token under the pointer, at position `i` of the completions; nothing happens while one is pinned.
  look(i, completion = this.now) {
    if (!this.pinned) this.put(i, completion);
  }

  pin(i, completion) {
    this.pinned = !(this.pinned && i === this.cursor && completion === this.card.completion);
    this.put(i, completion);
    this.card.root.classList.toggle("wb-pinned", this.pinned);
  }

  free() {
    this.pinned = false;
    this.card.root.classList.remove("wb-pinned");
  }

  put(i, completion = this.now) {
    this.cursor = i;
    for (const { strip, completion: one } of this.members) strip.mark(i + one.prompt);
    this.chart.mark(i);
    this.card.show(completion, i);
  }

  reveal(i) {
    const member = this.members.find(({ completion }) => completion === this.now) ?? this.members[0];
    member.strip.reveal(i + member.completion.prompt);
  }

  // To another completion of the group; the cursor stays where it is.
  move(by) {
    const index = this.index + by;
    if (index < 0 || index >= this.ids.length) return;
    this.index = index;
    const cursor = this.cursor;
    if (cursor >= this.now.n) this.free();
    this.arrange();
    if (cursor >= 0 && cursor < this.now.n) this.put(cursor);
    if (this.together) this.members[index].root.scrollIntoView({ block: "nearest" });
    this.options.changed?.(this.ids[index]);
  }

  key(event) {
    if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey || !this.now) return;
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      this.put(Math.max(-this.now.prompt, Math.min(this.now.n - 1, event.key === "Home" ? 0 : this.cursor + steps[event.key])));
      this.reveal(this.cursor);
    } else if (event.key === "n" || event.key === "p") this.move(event.key === "n" ? 1 : -1);
    else if (event.key === "Enter" && this.cursor >= -this.now.prompt && !event.target.closest("button")) this.pin(this.cursor, this.now);
    else if (event.key === "Escape" && this.pinned) this.pin(this.cursor, this.card.completion);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  recolour() {
    wbTokenColours(this.root);
    if (this.chart.shown) this.chart.draw(...this.chart.shown);
  }

  close() {
    this.themed.disconnect();
    this.chart.close();
    clearTimeout(this.card.resting);
    this.root.remove();
  }
}

class WbTokenView extends WbView {
  constructor(model, el) {
    super(model, el, "wb-token-view");
    this.tokens = new WbTokens(this);
    this.moved = wbKeepsPlace(this.root, [this.tokens.strips]);
    this.root.append(this.tokens.root);
    this.tokens.show(model.get("ids"));
  }

  close() {
    this.tokens.close();
    super.close();
  }
}
