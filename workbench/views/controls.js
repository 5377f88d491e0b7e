// The row of buttons over the curves, its panels, and the handle on the charts that is dragged to rewind. A press is
// acknowledged at once (the kernel has taken it up); when it is in effect, between two steps, that is said too.

const WB_SLOW = "The kernel has not answered yet: a cell is running. The press waits for its end; ■ interrupts the cell.";

class WbControls {
  constructor(view) {
    this.view = view;
    this.state = { can: {}, why: "", going: "", first: 0, last: 0, variable: "run" };
    this.asked = new Map(); // number of the question -> what to do when it is in effect
    this.waiting = 0;
    this.panel = null;
    this.alarms = new WbAlarms(() => this.act("use"));
    this.handles = new WbHandles(view, (step) => this.act("rewind", { step }));
    this.root = wbElement("section", "wb-controls");
    this.root.setAttribute("aria-label", "What to do with the run");
    this.root.append(this.makeRow(), this.makeWhy(), this.place, this.alarms.root);
    const back = wbKeepsPlace(view.root); // a panel is typed into while pictures are made anew
    view.moved = () => {
      back();
      if (this.panel && this.panel.moved) this.panel.moved();
    };
    this.heard = (event) => this.key(event);
    view.root.addEventListener("keydown", this.heard);
  }

  makeRow() {
    const row = wbElement("div", "wb-row");
    row.tabIndex = 0;
    row.setAttribute("role", "toolbar");
    row.setAttribute("aria-label", "Run. Space starts and pauses, s makes one step");
    const add = (name, text, act, title) => {
      // what cannot be pressed now keeps the focus, and says why when it is pressed
      const press = () => (this[name].getAttribute("aria-disabled") === "true" ? this.say("failed", this[name].title) : act());
      this[name] = wbButton(text, press, title);
      this[name].wbTitle = title;
      row.append(this[name]);
    };
    add("toggle", "▶ Start", () => this.toggled(), "");
    add("step", "One step", () => this.act("step"), "Make one step, and stand still again (s)");
    add("stop", "■ Stop", () => this.act("stop"), "Undo the step in flight, write a snapshot, and let go of the run. Start takes it up again");
    row.append(wbElement("span", "wb-gap"));
    add("rewind", "Rewind…", () => this.show("rewind"), "Go back to the state after an earlier step; or drag the line on a chart");
    add("fork", "Fork…", () => this.show("fork"), "A second run that goes on from a step, with other settings");
    add("set", "Settings…", () => this.show("set"), "The learning rate and all other settings, from the next step on");
    this.said = wbElement("span", "wb-said", "");
    this.said.setAttribute("role", "status");
    row.append(this.said);
    this.row = row;
    return row;
  }

  makeWhy() {
    this.place = wbElement("div", "wb-panel");
    this.place.hidden = true;
    this.why = wbElement("p", "wb-why", "");
    this.why.hidden = true;
    return this.why;
  }

  // With each message about the curves: the head, and what is new.
  update(content) {
    if (!content.control) return;
    this.state = { ...this.state, ...content.control };
    this.refresh();
    this.alarms.update(content.alarms || [], content.notices || [], !this.state.why);
    this.handles.update(this.state);
    if (this.panel && this.panel.update) this.panel.update(this.state);
  }

  refresh() {
    const { can, why, going, pausing } = this.state;
    const enable = (button, reason) => {
      button.setAttribute("aria-disabled", String(Boolean(why || reason)));
      button.title = why || reason || button.wbTitle;
    };
    const pause = Boolean(going);
    this.toggle.textContent = pausing ? "pausing …" : pause ? "❚❚ Pause" : "▶ Start";
    this.toggle.wbTitle = pause ? "Pause after the step in flight (space)" : "Go on in the background; the kernel stays free (space)";
    enable(this.toggle, can[pause ? "pause" : "start"]);
    enable(this.step, can.step);
    enable(this.stop, can.stop);
    for (const name of ["rewind", "fork"]) enable(this[name], can[name]);
    const finished = !going && can.start;
    this.why.textContent = why || finished || "";
    this.why.hidden = !this.why.textContent;
  }

  toggled() {
    this.act(this.state.going ? "pause" : "start");
  }

  // Ask for an action. Gives "" when it is acknowledged, or what is wrong with it in words, which are said, too;
  // `done` is called when it is in effect, with what went wrong until then or "".
  async act(action, values = {}, done = () => {}) {
    if (this.waiting) return "";
    this.waiting = 1;
    this.say("sent", "…");
    const slow = setTimeout(() => this.say("sent", WB_SLOW), 1500);
    const answer = this.view.ask("act", { action, values });
    const number = this.view.asked;
    this.asked.set(number, done);
    try {
      const { words } = await answer;
      if (this.asked.has(number)) this.say("asked", words);
      return "";
    } catch (error) {
      this.asked.delete(number);
      this.say("failed", error.message);
      return error.message;
    } finally {
      clearTimeout(slow);
      this.waiting = 0;
    }
  }

  // An action is in effect, of this view or of another on the same run.
  acted({ by, number, words, failed }) {
    const done = by === this.view.view && this.asked.get(number);
    if (done) this.asked.delete(number);
    this.say(failed ? "failed" : "done", failed || words);
    if (done) done(failed);
  }

  say(state, words) {
    this.said.dataset.state = state;
    this.said.textContent = `${{ done: "✓ ", failed: "✗ " }[state] || ""}${words}`;
    this.said.title = words;
  }

  key(event) {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.root.contains(target)) event.stopPropagation(); // Lab's shortcuts are letters, too
    if (event.key === "Escape" && this.panel && this.root.contains(target)) return this.show(null);
    if (target.closest("input, select, textarea")) return;
    const space = event.key === " " && !target.closest("button, summary, [role=slider]");
    const button = space ? this.toggle : event.key === "s" ? this.step : null;
    if (!button) return;
    event.stopPropagation();
    event.preventDefault();
    if (!event.repeat) button.click();
  }

  // What there is to set; while a cell keeps the kernel from answering, `list` says so.
  async settings(list) {
    const note = wbElement("p", "wb-soft wb-waiting", WB_SLOW);
    const slow = setTimeout(() => list.prepend(note), 1500);
    try {
      return (await this.view.ask("settings")).settings;
    } finally {
      clearTimeout(slow);
      note.remove();
    }
  }

  // -- panels ------------------------------------------------------------------------------------------------

  show(name) {
    const same = this.panel && this.panel.name === name;
    const opener = this.panel && this[this.panel.name];
    this.panel = null;
    this.place.replaceChildren();
    if (name && !same) {
      const kinds = { rewind: WbRewindPanel, fork: WbForkPanel, set: WbSettingsPanel };
      this.panel = new kinds[name](this);
      this.panel.name = name;
      this.place.append(this.panel.root);
      this.place.hidden = false; // what is hidden takes no focus
      this.panel.focus();
    } else if (opener) {
      opener.focus();
    }
    this.place.hidden = !this.panel;
    for (const each of ["rewind", "fork", "set"]) this[each].setAttribute("aria-expanded", String(this.panel?.name === each));
  }

  close() {
    this.view.root.removeEventListener("keydown", this.heard);
    this.handles.close();
  }
}

function wbLabelled(text, input) {
  const label = wbElement("label", "wb-field", text);
  label.append(input);
  return label;
}

function wbStepInput(value, { first, last }) {
  const input = wbElement("input", "wb-input wb-step-input");
  Object.assign(input, { type: "number", min: first, max: last, step: 1, value });
  return input;
}

class WbRewindPanel {
  constructor(controls) {
    this.controls = controls;
    this.root = wbElement("form", "wb-form");
    this.input = wbStepInput(Math.max(controls.state.first, controls.state.last - 1), controls.state);
    this.go = wbButton("Rewind", () => {}, "Later steps stay in the store, as an abandoned branch");
    this.go.type = "submit";
    this.error = wbElement("span", "wb-bad", "");
    this.root.append(wbLabelled("to the state after step", this.input), this.go, this.error);
    this.root.addEventListener("submit", async (event) => {
      event.preventDefault();
      this.error.textContent = await this.controls.act("rewind", { step: Number(this.input.value) });
      if (!this.error.textContent) this.controls.show(null);
    });
    this.update(controls.state);
  }

  update({ first, last }) {
    Object.assign(this.input, { min: first, max: last });
    this.go.disabled = last <= first;
  }

  focus() {
    this.input.focus();
    this.input.select();
  }
}

// A field for one setting: `value()` is what stands in it, as text.
class WbSetting {
  constructor(setting, changed) {
    this.setting = setting;
    this.root = wbElement("div", "wb-setting");
    this.input = setting.choices.length ? wbSelect(setting.name, setting.choices.map((text) => [text, text]), changed) : wbElement("input", "wb-input");
    if (this.input.tagName === "INPUT") {
      this.input.addEventListener("input", changed);
      this.input.spellcheck = false;
    }
    this.input.value = setting.value;
    this.input.disabled = Boolean(setting.fixed);
    this.input.setAttribute("aria-label", setting.name);
    const name = wbElement("code", "wb-setting-name", setting.name);
    name.title = setting.kind;
    this.error = wbElement("p", "wb-setting-error wb-bad", "");
    this.error.hidden = true;
    this.root.append(name, this.input, wbElement("span", "wb-setting-about", setting.fixed ? `${setting.fixed} ${setting.about}` : setting.about), this.error);
    this.root.classList.toggle("wb-fixed", Boolean(setting.fixed));
  }

  get changed() {
    return this.input.value !== this.setting.value;
  }

  trouble(words) {
    this.error.textContent = words;
    this.error.hidden = !words;
    this.input.setAttribute("aria-invalid", String(Boolean(words)));
  }
}

// Where the settings of a message stand that is wrong about some of them: beside the field that it names.
function wbBlame(fields, message, elsewhere) {
  for (const field of fields) field.trouble("");
  elsewhere.textContent = "";
  if (!message) return;
  const changed = fields.filter((field) => field.changed);
  const named = changed.filter((field) => message.includes(field.setting.name));
  const blamed = changed.length === 1 ? changed[0] : named.sort((a, b) => message.indexOf(a.setting.name) - message.indexOf(b.setting.name))[0];
  if (blamed) blamed.trouble(message);
  else elsewhere.textContent = message;
}

class WbSettingsPanel {
  constructor(controls) {
    this.controls = controls;
    this.fields = [];
    this.root = wbElement("form", "wb-form wb-settings");
    this.filter = wbSearch("wb-input wb-filter", "find a setting");
    this.filter.addEventListener("input", () => this.narrow());
    this.apply = wbButton("Apply", () => {}, "From the next step on; noted in the store");
    this.apply.type = "submit";
    this.error = wbElement("span", "wb-bad", "");
    this.list = wbElement("div", "wb-settings-list");
    this.moved = wbKeepsPlace(this.root, [this.list]);
    const line = wbElement("div", "wb-form-line");
    line.append(this.filter, this.apply, this.error);
    this.root.append(line, this.list);
    this.root.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.load();
  }

  focus() {
    this.filter.focus();
  }

  async load() {
    const settings = await this.controls.settings(this.list);
    this.fields = settings.map((setting) => new WbSetting(setting, () => this.count()));
    if (this.controls.state.why) for (const field of this.fields) field.input.disabled = true;
    this.list.replaceChildren(...this.fields.map((field) => field.root));
    this.narrow();
    this.count();
    // the field or button that had the focus is gone, or cannot have it
    if (this.known && [document.body, this.apply].includes(document.activeElement)) this.filter.focus();
    this.known = true;
  }

  narrow() {
    const words = this.filter.value.trim().toLowerCase();
    for (const { root, setting } of this.fields) root.hidden = !`${setting.name} ${setting.about}`.toLowerCase().includes(words);
  }

  count() {
    const changed = this.fields.filter((field) => field.changed);
    for (const field of this.fields) field.root.classList.toggle("wb-changed", field.changed);
    this.apply.disabled = !changed.length || Boolean(this.controls.state.why);
    this.apply.textContent = changed.length > 1 ? `Apply ${changed.length} changes` : "Apply";
  }

  async send() {
    const settings = {};
    for (const field of this.fields) if (field.changed) settings[field.setting.name] = field.input.value;
    if (!Object.keys(settings).length) return;
    const blame = (message) => wbBlame(this.fields, message, this.error);
    blame("");
    blame(await this.controls.act("set", { settings }, (failed) => (failed ? blame(failed) : this.load())));
  }
}

class WbForkPanel {
  constructor(controls) {
    this.controls = controls;
    this.fields = [];
    this.root = wbElement("form", "wb-form wb-settings");
    this.step = wbStepInput(controls.state.last, controls.state);
    this.start = wbElement("input", "");
    Object.assign(this.start, { type: "checkbox", checked: true });
    this.go = wbButton("Fork", () => {}, "The parent's state is not touched");
    this.go.type = "submit";
    this.more = wbElement("span", "");
    this.error = wbElement("span", "wb-bad", "");
    this.list = wbElement("div", "wb-settings-list");
    const start = wbElement("label", "wb-field");
    start.append(this.start, "start it");
    const line = wbElement("div", "wb-form-line");
    line.append(wbLabelled("from the state after step", this.step), this.more, start, this.go, this.error);
    this.root.append(line, this.list);
    this.root.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.load();
  }

  focus() {
    this.step.focus();
  }

  update({ first, last }) {
    Object.assign(this.step, { min: first, max: last });
  }

  async load() {
    const settings = await this.controls.settings(this.list);
    const free = settings.filter((setting) => !setting.fixed);
    const add = (name) => {
      const setting = free.find((one) => one.name === name);
      if (!setting || this.fields.some((field) => field.setting.name === name)) return;
      const field = new WbSetting(setting, () => {});
      this.fields.push(field);
      this.list.append(field.root);
      return field;
    };
    const choose = wbSelect("change another setting", [["", "change another setting …"], ...free.map(({ name }) => [name, name])], (name) => {
      const field = add(name);
      choose.value = "";
      if (field) field.input.focus();
    });
    this.more.replaceChildren(choose);
    add("lr");
  }

  async send() {
    const settings = {};
    for (const field of this.fields) if (field.changed) settings[field.setting.name] = field.input.value;
    const blame = (message) => wbBlame(this.fields, message, this.error);
    blame("");
    const values = { step: Number(this.step.value), settings, start: this.start.checked };
    blame(await this.controls.act("fork", values, (failed) => (failed ? blame(failed) : this.controls.show(null))));
  }
}
