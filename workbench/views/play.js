// A chat box. Answers stream in as text; with colours on, as tokens. Every text of a model is set by textContent.

const WB_SETTINGS = [
  ["temperature", "temperature", { min: 0, step: 0.1, title: "0: always the likeliest token" }],
  ["top_p", "top-p", { min: 0.01, max: 1, step: 0.05, title: "keep the fewest tokens that hold this much probability; 1: all" }],
  ["top_k", "top-k", { min: 0, step: 1, title: "keep so many of the likeliest tokens; 0: all" }],
  ["max_new_tokens", "max tokens", { min: 1, step: 16, title: "an answer is cut off after so many" }],
  ["seed", "seed", { min: 0, step: 1, title: "the same seed gives the same answer" }],
  ["n", "answers", { min: 1, max: 4, step: 1, title: "answers to each turn, 1 to 4" }],
];
const WB_COLOURS = [["", "no colours"], ["logprob", "colour by log-prob"], ["entropy", "colour by entropy"]];

class WbPlay extends WbView {
  constructor(model, el) {
    super(model, el, "wb-play");
    this.tokens = new Map(); // turn key -> answers, each {text, tokens, logprob, entropy}
    this.dirty = new Set(); // turns with tokens that are not drawn yet
    this.colour = "";
    this.editing = null;
    this.root.append(this.makeHead(), this.makeSettings(), this.makeTurns(), this.makeBox());
    // Lab's shortcuts are for cells, not for what is typed here
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.moved = wbKeepsPlace(this.root, [this.turns]);
    this.showState(model.get("first"));
    this.themed = wbThemed(() => wbTokenColours(this.root));
    this.hello();
  }

  hello() {
    this.greeting ??= this.ask("hello").then((state) => {
      this.greeting = undefined;
      this.tokens.clear();
      this.showState(state);
    });
  }

  // -- the parts

  makeHead() {
    const head = wbElement("div", "wb-play-head");
    this.name = wbElement("span", "wb-play-name wb-text");
    this.holder = wbElement("span", "wb-soft wb-text");
    this.mode = wbSelect("mode", [], (mode) => this.change({ mode }));
    this.mode.title = "chat: turns in the model's chat template; plain: the model goes on from your text as it stands";
    this.paint = wbSelect("colours", WB_COLOURS, (colour) => {
      this.colour = colour;
      this.showAll();
    });
    this.legend = wbElement("span", "wb-play-legend");
    head.append(this.name, this.holder, wbElement("span", "wb-play-space"), this.legend, this.paint, this.mode);
    return head;
  }

  makeSettings() {
    const part = wbElement("div", "wb-play-settings");
    this.fields = {};
    for (const [name, label, { min, max, step, title }] of WB_SETTINGS) {
      const field = (this.fields[name] = wbElement("input", "wb-play-number"));
      Object.assign(field, { type: "number", min, step, title });
      if (max !== undefined) field.max = max;
      field.addEventListener("change", () => this.set(name, field));
      const made = wbElement("label", "", label);
      made.title = title;
      made.append(field);
      part.append(made);
    }
    this.sides = wbElement("span", "wb-play-sides");
    this.system = wbElement("textarea", "wb-play-system");
    Object.assign(this.system, { rows: 1, placeholder: "system prompt (optional)" });
    this.system.setAttribute("aria-label", "system prompt");
    this.system.addEventListener("change", () => this.change({ system: this.system.value }));
    const all = wbElement("div");
    all.append(part, this.sides, this.system);
    return all;
  }

  set(name, field) {
    const value = field.value === "" ? null : Number(field.value);
    this.ask("change", { settings: { [name]: value } }).then(
      () => (field.removeAttribute("aria-invalid"), this.say("")),
      (error) => (field.setAttribute("aria-invalid", "true"), this.say(error.message, true)),
    );
  }

  makeTurns() {
    this.turns = wbElement("div", "wb-play-turns");
    this.turns.tabIndex = 0;
    this.turns.setAttribute("aria-label", "conversation");
    this.said = wbElement("div", "wb-play-said");
    this.said.setAttribute("role", "status");
    const all = wbElement("div");
    all.append(this.turns, this.said);
    return all;
  }

  makeBox() {
    const box = wbElement("div", "wb-play-box");
    this.input = wbElement("textarea", "wb-play-input");
    this.input.rows = 2;
    this.input.setAttribute("aria-label", "what to send");
    this.send = wbButton("Send", () => this.sendNow(), "Enter");
    this.send.classList.add("wb-play-send");
    this.halt = wbButton("Stop", () => this.stop(), "Escape");
    this.halt.hidden = true;
    this.cancel = wbButton("cancel edit", () => this.edit(null), "Escape");
    this.cancel.hidden = true;
    this.copied = wbButton("copy all", () => this.copy(), "copy the conversation as text");
    this.cleared = wbButton("clear", () => this.go("clear"), "begin a new conversation");
    const buttons = wbElement("div", "wb-play-buttons");
    buttons.append(this.send, this.halt, this.cancel, this.copied, this.cleared);
    box.append(this.input, buttons);
    return box;
  }

  // -- keys and wishes

  key(event) {
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Escape") {
      if (this.busy) this.stop();
      else if (this.editing !== null) this.edit(null);
    } else if (event.key === "Enter" && !event.shiftKey && event.target === this.input) {
      event.preventDefault();
      if (!this.busy) this.sendNow();
    }
  }

  // Ask, and say what went wrong. A kernel that runs a cell may hear it only when the cell is done.
  go(kind, values) {
    const slow = setTimeout(() => this.say(WB_BUSY), 2000);
    return this.ask(kind, values).then(
      () => (clearTimeout(slow), this.say(""), true),
      (error) => (clearTimeout(slow), this.say(error.message, true), false),
    );
  }

  change(values) {
    this.go("change", values);
  }

  sendNow() {
    const text = this.input.value;
    if (!text.trim()) return this.say("There is nothing to send yet: write something first.", true);
    const at = this.editing;
    this.go("send", { text, at }).then((sent) => {
      if (!sent) return;
      this.input.value = "";
      this.edit(null);
    });
  }

  stop() {
    this.go("stop");
  }

  // Write turn `index` anew; null: no turn.
  edit(index) {
    const was = this.editing;
    this.editing = index;
    this.cancel.hidden = index === null;
    this.send.textContent = index === null ? "Send" : "Send anew";
    if (index !== null) {
      this.input.value = this.state.turns[index].raw;
      this.input.focus();
    } else if (was !== null) {
      this.input.value = "";
    }
    this.turns.querySelectorAll(".wb-play-turn").forEach((turn, i) => turn.classList.toggle("wb-play-dropped", index !== null && i >= index));
  }

  async copy() {
    const lines = this.state.turns.flatMap((turn) => [
      `[${turn.mode === "chat" ? "you" : "prompt"}] ${turn.text}`,
      ...turn.answers.map((answer, i) => `[${this.title(turn, answer)}] ${this.tokensOf(turn)[i].text}`),
    ]);
    const done = await wbCopy(lines.join("\n\n"), this.root);
    this.say(done ? "copied" : "This page may not copy.", !done);
  }

  say(text, bad = false) {
    this.said.textContent = text;
    this.said.classList.toggle("wb-bad", bad);
  }

  // -- what comes from Python

  told(message) {
    if (message.kind === "state") this.showState(message);
    else if (message.kind === "turn") this.showTurn(message.turn);
    else if (message.kind === "tokens") this.addTokens(message);
  }

  showState(state) {
    if (!state || !state.turns) return;
    this.state = state;
    this.name.textContent = state.model;
    this.holder.textContent = `weights: ${state.holder}`;
    wbOptions(this.mode, state.modes.map((mode) => [mode, mode]));
    this.mode.value = state.mode;
    this.mode.disabled = state.modes.length === 1;
    for (const [name, field] of Object.entries(this.fields)) if (document.activeElement !== field) field.value = state.settings[name];
    this.showSides();
    const chat = state.mode === "chat";
    this.system.hidden = !chat;
    if (document.activeElement !== this.system) this.system.value = state.system;
    this.input.placeholder = chat ? "Write to the model. Enter sends, Shift+Enter is a new line."
      : "Text that the model goes on from. Enter sends, Shift+Enter is a new line.";
    const keys = new Set(state.turns.map((turn) => turn.key));
    for (const key of [...this.tokens.keys()]) if (!keys.has(key)) this.tokens.delete(key);
    this.turns.replaceChildren(...state.turns.map((turn, i) => this.makeTurn(turn, i)));
    if (!state.turns.length) this.turns.append(this.makeExamples());
    this.showBusy();
    this.showAll();
    this.toEnd();
  }

  showSides() {
    const made = this.state.sides.map(([side, words]) => {
      const { label, box } = wbTick("wb-text", words, () => {
        const chosen = this.state.chosen.filter((other) => other !== side).concat(box.checked ? [side] : []);
        const sides = this.state.sides.map(([key]) => key).filter((key) => chosen.includes(key));
        this.ask("change", { sides }).catch((error) => ((box.checked = true), this.say(error.message, true)));
      });
      box.checked = this.state.chosen.includes(side);
      return label;
    });
    this.sides.replaceChildren(wbElement("span", "wb-soft", "who answers:"), ...made);
  }

  makeExamples() {
    const part = wbElement("div", "wb-play-examples");
    part.append(wbElement("span", "wb-soft", this.state.examples.length ? "Try one of these, or write your own:" : "Nothing was said yet."));
    for (const text of this.state.examples) {
      part.append(wbButton(text.replace(/\n/g, " ↵ "), () => {
        this.input.value = text;
        this.input.focus();
      }));
    }
    return part;
  }

  showTurn(turn) {
    const index = this.state.turns.findIndex((other) => other.key === turn.key);
    if (index < 0) return;
    this.state.turns[index] = turn;
    const old = this.turns.children[index];
    const near = this.nearEnd();
    if (old) old.replaceWith(this.makeTurn(turn, index));
    this.showBusy();
    this.showAll();
    if (near) this.toEnd();
  }

  showBusy() {
    const last = this.state.turns.at(-1);
    this.busy = Boolean(last) && last.status !== "done";
    this.send.hidden = this.busy;
    this.halt.hidden = !this.busy;
    this.cleared.disabled = this.copied.disabled = !this.state.turns.length;
    this.root.dataset.status = last ? last.status : "empty";
  }

  title(turn, answer) {
    const several = turn.answers.filter((other) => other.label === answer.label).length > 1;
    const whose = answer.holder ? ` (${answer.holder})` : "";
    return answer.label + whose + (several ? `, answer ${answer.sample + 1}` : "");
  }

  makeTurn(turn, index) {
    const made = wbElement("div", "wb-play-turn");
    const asked = wbElement("div", "wb-play-asked");
    const tools = wbElement("span", "wb-play-tools");
    if (turn.status === "done") {
      tools.append(wbButton("edit", () => this.edit(index), "change this and send it again; what follows is dropped"));
      tools.append(wbButton("again", () => this.go("again", { turn: index }), "ask again with the next seed; what follows is dropped"));
    }
    asked.append(wbElement("div", "wb-play-who", turn.mode === "chat" ? "you" : "prompt"), tools, wbElement("div", "wb-text wb-play-text", turn.text));
    const answers = wbElement("div", "wb-play-answers");
    turn.answers.forEach((answer, i) => answers.append(this.makeAnswer(turn, answer, i, index)));
    made.append(asked, answers);
    if (turn.trouble) made.append(wbElement("div", "wb-bad wb-text", turn.trouble));
    return made;
  }

  makeAnswer(turn, answer, i, index) {
    const made = wbElement("div", "wb-play-answer");
    const head = wbElement("div", "wb-play-who wb-text", this.title(turn, answer));
    head.append(wbElement("span", "wb-soft", ` seed ${answer.seed}`));
    const last = index === this.state.turns.length - 1;
    if (turn.mode === "chat" && turn.answers.length > 1) {
      if (i === turn.picked) made.classList.add("wb-play-picked");
      if (i === turn.picked) head.append(wbElement("span", "wb-soft", " · goes on from here"));
      else if (last && turn.status === "done") head.append(wbButton("go on from here", () => this.go("pick", { turn: index, answer: i })));
    }
    const body = wbElement("div", "wb-play-text wb-text");
    made.append(head, body);
    if (answer.says) made.append(wbElement("div", "wb-soft wb-play-says", answer.says));
    return made;
  }

  tokensOf(turn) {
    if (!this.tokens.has(turn.key)) {
      this.tokens.set(turn.key, turn.answers.map(() => ({ text: "", tokens: [], logprob: [], entropy: [] })));
    }
    return this.tokens.get(turn.key);
  }

  addTokens({ turn: key, answers, columns }) {
    const turn = this.state.turns.find((other) => other.key === key);
    if (!turn) return;
    const known = this.tokensOf(turn);
    let at = 0;
    for (const { answer, from, n, keep, add } of answers) {
      const one = known[answer];
      if (from > one.tokens.length) return this.hello(); // this page came in the middle
      for (const name of ["tokens", "logprob", "entropy"]) one[name].length = from;
      for (let i = at; i < at + n; i++) {
        one.tokens.push({ id: columns.id[i], text: columns.piece[i], special: columns.special[i] });
        one.logprob.push(columns.logprob[i]);
        one.entropy.push(columns.entropy[i]);
      }
      at += n;
      one.text = one.text.slice(0, keep) + add;
    }
    this.dirty.add(key);
    this.timer ??= requestAnimationFrame(() => {
      this.timer = undefined;
      const near = this.nearEnd();
      for (const turn of this.state.turns) if (this.dirty.has(turn.key)) this.showAnswers(turn);
      this.dirty.clear();
      if (near) this.toEnd();
    });
  }

  // -- drawing

  showAll() {
    wbTokenColours(this.root);
    this.makeScale();
    for (const turn of this.state.turns) this.showAnswers(turn);
  }

  // One scale for the whole conversation, so that equal colours are equal numbers.
  makeScale() {
    this.scale = null;
    this.legend.replaceChildren();
    if (!this.colour) return;
    const parts = [...this.tokens.values()].flat().map((one) => one[this.colour]);
    this.scale = new WbTokenScale(this.colour === "logprob" ? "low" : "high", parts);
    if (this.scale.count) this.legend.append(wbLegend(this.scale, wbNumber, "nats"));
  }

  showAnswers(turn) {
    const place = this.turns.children[this.state.turns.indexOf(turn)];
    if (!place) return;
    if (this.colour && turn.status === "answering") this.makeScale();
    this.tokensOf(turn).forEach((one, i) => {
      const body = place.querySelectorAll(".wb-play-answer > .wb-play-text")[i];
      const waits = turn.status === "waiting" ? "waiting for the step in flight …" : "…";
      if (!one.tokens.length && turn.status !== "done") body.replaceChildren(wbElement("span", "wb-soft wb-play-waits", waits));
      else if (this.colour) this.showStrip(body, one);
      else body.replaceChildren(one.text);
    });
  }

  showStrip(body, one) {
    let strip = body.firstChild && body.firstChild.wbStrip;
    if (!strip) {
      strip = new WbTokenStrip({ hovered: (at) => this.hovered(strip.one, at), label: "tokens of the answer" });
      strip.root.wbStrip = strip;
      body.replaceChildren(strip.root);
    }
    strip.one = one;
    strip.show(one.tokens);
    strip.paint(one[this.colour].map((value) => this.scale.colour(value)));
  }

  hovered(one, at) {
    if (at < 0 || at >= one.tokens.length) return this.say("");
    const [logprob, entropy] = [one.logprob[at], one.entropy[at]];
    const share = logprob > -9 ? ` (${wbNumber(Number((100 * Math.exp(logprob)).toPrecision(3)))} %)` : "";
    const text = JSON.stringify(one.tokens[at].text);
    this.say(`token ${at} ${text} · log-prob ${wbNumber(logprob)}${share} · entropy ${wbNumber(entropy)} nats`);
  }

  nearEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.turns;
    return scrollHeight - scrollTop - clientHeight < 40;
  }

  toEnd() {
    this.turns.scrollTop = this.turns.scrollHeight;
  }

  close() {
    super.close();
    if (this.timer) cancelAnimationFrame(this.timer);
  }
}
