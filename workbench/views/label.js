// Choosing between two answers, or marking one. Every text of a model is set by textContent.

const WB_CHOICES = {
  pair: [["left", "left better", "← 1", ["ArrowLeft", "1"]], ["right", "right better", "→ 2", ["ArrowRight", "2"]],
    ["tie", "tie", "0 t", ["0", "t"]], ["skip", "skip", "s", ["s"]]],
  mark: [["good", "good", "g ↑", ["g", "ArrowUp"]], ["bad", "bad", "b ↓", ["b", "ArrowDown"]], ["skip", "skip", "s", ["s"]]],
};

class WbLabel extends WbView {
  constructor(model, el) {
    super(model, el, "wb-label");
    this.details = false;
    this.words = false;
    this.root.tabIndex = 0;
    this.root.setAttribute("aria-label", "choose between answers by keyboard");
    this.head = wbElement("div", "wb-label-head");
    this.bar = wbElement("div", "wb-label-done");
    const bar = wbElement("div", "wb-label-bar");
    bar.append(this.bar);
    this.place = wbElement("div");
    this.buttons = wbElement("div", "wb-label-buttons");
    this.said = wbElement("div", "wb-label-said");
    this.said.setAttribute("role", "status");
    this.facts = wbElement("div", "wb-soft wb-label-facts");
    this.hint = wbElement("div", "wb-soft wb-label-hint");
    const below = wbElement("div", "wb-label-below");
    below.append(this.said, this.hint);
    // the buttons stand above the texts, so that they stay where they are
    this.root.append(this.head, bar, this.buttons, this.place, below, this.facts);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.moved = wbKeepsPlace(this.root);
    this.showState(model.get("first"));
    this.ask("hello").then((state) => this.showState(state));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    event.stopPropagation(); // Lab has a shortcut for nearly every letter
    if (event.repeat) return event.key.startsWith("Arrow") && event.preventDefault();
    const onButton = event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter");
    if (onButton || event.key === "Tab") return;
    const choice = (WB_CHOICES[this.state.mode] || []).find(([, , , keys]) => keys.includes(event.key));
    if (choice) this.choose(choice[0]);
    else if (event.key === "u") this.undo();
    else if (event.key === " ") this.toggle("details");
    else if (event.key === "d") this.toggle("words");
    else if (event.key === "Escape") this.root.blur();
    else return;
    event.preventDefault();
  }

  choose(choice) {
    const { question } = this.state;
    if (!question || this.waiting) return;
    const seconds = (performance.now() - this.since) / 1000;
    this.send("choose", { item: question.item, round: question.round, choice, seconds });
  }

  undo() {
    if (!this.waiting) this.send("undo");
  }

  // One choice at a time: until Python has committed it, keys are not heard.
  send(kind, values) {
    this.waiting = true;
    this.said.classList.remove("wb-bad");
    const slow = setTimeout(() => (this.said.textContent = WB_BUSY), 2000);
    this.ask(kind, values)
      .then(({ note }) => (this.said.textContent = note))
      .catch((error) => {
        this.said.textContent = error.message;
        this.said.classList.add("wb-bad");
      })
      .finally(() => {
        clearTimeout(slow);
        this.waiting = false;
        this.root.focus({ preventScroll: true });
      });
  }

  toggle(what) {
    this[what] = !this[what];
    this.draw();
  }

  told(message) {
    if (message.kind !== "state") return;
    this.waiting = false; // what is shown now can be chosen on
    this.showState(message);
  }

  showState(state) {
    if (!state || !state.mode) return;
    const old = this.state?.question;
    this.state = state;
    const now = state.question;
    if (now && (!old || old.item !== now.item || old.round !== now.round)) this.since = performance.now();
    this.draw();
  }

  draw() {
    const { mode, done, total, counts, question, facts, notes, out, rater } = this.state;
    const left = wbElement("b", "", `${done} of ${total}`);
    const said = counts.map(([name, n]) => `${n} ${name}`).join(" · ");
    this.head.replaceChildren(left, wbElement("span", "wb-soft wb-text", [said, rater].filter(Boolean).join(" · ")));
    this.bar.style.width = `${(100 * done) / Math.max(1, total)}%`;
    this.place.replaceChildren(...(question ? this.makeQuestion(question) : [this.makeEnd(done, out)]));
    const choices = question ? WB_CHOICES[mode].map(([choice, text, keys]) => this.makeKey(text, keys, () => this.choose(choice))) : [];
    const undo = this.makeKey("undo", "u", () => this.undo());
    const look = question ? [this.makeToggle("details", "rewards", "space")] : [];
    if (question && mode === "pair") look.push(this.makeToggle("words", "diff", "d"));
    this.buttons.replaceChildren(...choices, wbElement("span", "wb-label-space"), undo, ...look);
    const shown = this.details || !question;
    this.facts.replaceChildren(...(shown ? facts : []).map((text) => wbElement("div", "wb-text", text)),
      ...notes.map((text) => wbElement("div", "wb-text", text)));
    this.hint.textContent = "Click here, then use the keys.";
    this.root.dataset.done = done;
    this.root.dataset.item = question ? `${question.item}/${question.round}` : "";
  }

  makeKey(text, keys, act) {
    const button = wbButton(text, act);
    button.append(wbElement("kbd", "wb-label-key", keys));
    return button;
  }

  makeToggle(what, text, keys) {
    const button = this.makeKey(text, keys, () => this.toggle(what));
    button.setAttribute("aria-pressed", String(this[what]));
    return button;
  }

  makeQuestion({ prompt, answers, diff }) {
    const asked = wbElement("div", "wb-label-prompt");
    asked.append(...this.makeParts(prompt));
    const sides = wbElement("div", "wb-label-sides");
    answers.forEach((answer, i) => {
      const side = wbElement("div", "wb-label-side");
      if (this.words && diff) side.append(this.makeDiff(diff[i]));
      else side.append(...this.makeParts(answer.parts, true));
      if (answer.cut) side.append(wbElement("div", "wb-soft wb-label-cut", answer.cut));
      if (this.details) side.append(this.makeFacts(answer.facts));
      sides.append(side);
    });
    return [asked, sides];
  }

  // Turns with their roles; the one turn of an answer needs no name.
  makeParts(parts, answer = false) {
    return parts.map(([role, text]) => {
      const part = wbElement("div", "wb-label-part");
      if (role && !(answer && parts.length === 1)) part.append(wbElement("div", "wb-label-role wb-text", role));
      part.append(wbElement("div", "wb-text", text));
      return part;
    });
  }

  makeDiff(parts) {
    const made = wbElement("div", "wb-text");
    for (const [kind, text] of parts) made.append(wbElement("span", kind === "same" ? "" : "wb-label-differs", text));
    return made;
  }

  makeFacts(facts) {
    return wbFacts(facts.length ? facts : [["nothing else is known", ""]], "wb-label-known");
  }

  makeEnd(done, out) {
    const end = wbElement("div", "wb-label-end");
    const use = this.state.mode === "pair" ? "wb.dpo(policy, view.rows)" : "wb.kto(policy, view.rows), or wb.sft(policy, view.good)";
    end.append(wbElement("b", "", `All ${done} are answered.`), wbElement("div", "wb-soft wb-text", `They are kept in ${out}. To train on them: ${use}.`));
    return end;
  }
}
