// What all views share: elements, numbers, colours, messages, and the place in the page that a view lives in.
// Text of a run or a model is untrusted: it reaches the page by textContent alone, and plotly (which reads a little
// HTML in its texts) only through `wbPlain`.

// Okabe and Ito's colours; on a dark page the two blues change places, as the darker one is hard to see there.
const WB_LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const WB_DARK = ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2"];
const WB_BUSY = "The kernel is busy with a cell; it will hear this when it can.";

function wbElement(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function wbButton(text, act, title) {
  const button = wbElement("button", "wb-button", text);
  button.type = "button";
  if (title) button.title = title;
  button.addEventListener("click", act);
  return button;
}

function wbSelect(label, options, changed) {
  const select = wbElement("select", "wb-choice");
  select.setAttribute("aria-label", label);
  wbOptions(select, options);
  select.addEventListener("change", () => changed(select.value));
  return select;
}

// Other options, [value, text] each; what was chosen stays so where it is still among them.
function wbOptions(select, options) {
  const { value } = select;
  select.replaceChildren(...options.map(([of, text]) => Object.assign(wbElement("option", "", text), { value: of })));
  if (options.some(([of]) => of === value)) select.value = value;
}

// A box to tick with its words beside it: {label, box}; `changed(on)` is told.
function wbTick(className, words, changed) {
  const label = wbElement("label", className);
  const box = wbElement("input");
  box.type = "checkbox";
  box.addEventListener("change", () => changed(box.checked));
  label.append(box, wbElement("bdi", "", words));
  return { label, box };
}

function wbSearch(className, words) {
  const field = wbElement("input", className);
  Object.assign(field, { type: "search", placeholder: words, spellcheck: false });
  field.setAttribute("aria-label", words);
  return field;
}

// Pairs of name and text as a list of definitions.
function wbFacts(facts, className) {
  const list = wbElement("dl", className);
  for (const [name, text] of facts) {
    const pair = wbElement("div");
    pair.append(wbElement("dt", "", name), wbElement("dd", "wb-text", text));
    list.append(pair);
  }
  return list;
}

// `act` once nothing has called it for `wait` ms; `.stop()` takes the last call back.
function wbDebounced(wait, act) {
  let timer;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), wait);
  };
  later.stop = () => clearTimeout(timer);
  return later;
}

// Whether the text is in the clipboard now. `root` holds what is copied from, for a moment, in a page without one.
async function wbCopy(text, root) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // a page that is not served over https has no clipboard, or may not use it
    const area = wbElement("textarea", "wb-aside");
    area.value = text;
    root.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// Arrow keys in a list of buttons go from one to the next; none of the keys used there reaches Lab.
function wbListKey(event, selector) {
  const row = event.target.closest(selector);
  const next = row && { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
  if (!["ArrowDown", "ArrowUp", "Enter", " "].includes(event.key)) return;
  event.stopPropagation();
  if (event.key.startsWith("Arrow")) event.preventDefault();
  if (next) next.focus();
}

// No button of a list stands for what is open below any more; the one that did has the focus again.
function wbUnmark(list) {
  const row = list.querySelector("[aria-expanded=true]");
  for (const other of list.children) other.setAttribute("aria-expanded", "false");
  if (row) row.focus();
}

function wbPlain(text) {
  const codes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "%": "&#37;", "{": "&#123;", "$": "&#36;" };
  return text.replace(/[&<>%{$]/g, (char) => codes[char]);
}

function wbShort(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 9)}…${text.slice(-8)}`;
}

function wbNumber(value) {
  if (value === undefined || value === null) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) && size < 1e7) text = String(value);
  else if (size !== 0 && (size < 1e-4 || size >= 1e6)) text = value.toExponential(3).replace(/\.?0+e/, "e");
  else text = String(Number(value.toPrecision(4)));
  return text.replace("-", "−");
}

// With a dash for NaN, too: where NaN means that there is none.
function wbKnown(value) {
  return Number.isNaN(value) ? "–" : wbNumber(value);
}

function wbCount(n) {
  return n.toLocaleString("en");
}

// Colours as the page has them now, so that charts follow its theme.
function wbTheme(root) {
  const style = getComputedStyle(root);
  const ink = style.color;
  const [r, g, b] = (ink.match(/[\d.]+/g) || [90, 90, 90]).map(Number);
  const faint = (alpha) => `rgba(${r},${g},${b},${alpha})`;
  const dark = r + g + b > 384; // light ink
  return {
    dark, ink, grid: faint(0.12), axis: faint(0.45), mark: faint(0.4), font: style.fontFamily,
    paper: dark ? "#1b1d20" : "#ffffff", clear: dark ? "rgba(17,17,17,0)" : "rgba(255,255,255,0)",
    colours: dark ? WB_DARK : WB_LIGHT, band: dark ? "rgba(86,180,233,0.18)" : "rgba(0,114,178,0.13)",
  };
}

// Tells of every change of the page's theme, twice: a theme's style sheet may come after its name.
function wbThemed(act) {
  const seen = new MutationObserver(() => {
    act();
    setTimeout(act, 500);
  });
  seen.observe(document.body, { attributes: true });
  return seen;
}

// Columns as `pack` in base.py wrote them: typed arrays, and arrays of text.
function wbColumns(spec, buffers) {
  const kinds = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u1: Uint8Array };
  const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const made = {};
  let at = 0;
  for (const [name, kind] of spec || []) {
    if (kinds[kind]) {
      made[name] = new kinds[kind](bytes(buffers[at++]));
      continue;
    }
    const ends = new Uint32Array(bytes(buffers[at++]));
    const text = new Uint8Array(bytes(buffers[at++]));
    const decoder = new TextDecoder();
    made[name] = Array.from({ length: ends.length - 1 }, (_, i) => decoder.decode(text.subarray(ends[i], ends[i + 1])));
  }
  return made;
}

// One view in the page: `root` to draw in, `ask` for questions with one answer, `told` for what comes unasked.
class WbView {
  constructor(model, el, className) {
    this.model = model;
    this.view = Math.random().toString(36).slice(2);
    this.asked = 0;
    this.asks = new Map();
    this.closed = false;
    this.root = wbElement("div", `wb ${className}`);
    el.append(this.root);
    // in a notebook plain keys are commands: "d d" would delete the cell. Ctrl+S and the like stay the page's
    this.root.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation());
    this.heard = (content, buffers) => this.receive(content, buffers);
    model.on("msg:custom", this.heard);
  }

  // The answer: its content, with `columns` as arrays and `buffers` as they came. What went wrong is thrown, in words.
  ask(kind, values = {}) {
    const ask = ++this.asked;
    this.model.send({ kind, view: this.view, ask, ...values });
    return new Promise((resolve, reject) => this.asks.set(ask, { resolve, reject }));
  }

  receive(content, buffers) {
    if (this.closed || (content.to && content.to !== this.view)) return;
    const waiting = content.ask !== undefined && this.asks.get(content.ask);
    const answer = content.packed ? { ...content, columns: wbColumns(content.packed, buffers), buffers } : { ...content, buffers };
    if (!waiting) return this.told(answer);
    this.asks.delete(content.ask);
    if (content.trouble) waiting.reject(new Error(content.trouble));
    else waiting.resolve(answer);
  }

  told() {}

  // `act` whenever the view has another width or the page another theme, for as long as the view lives.
  follow(act) {
    this.sized = new ResizeObserver(act);
    this.sized.observe(this.root);
    this.themed = wbThemed(act);
  }

  close() {
    this.closed = true;
    this.sized?.disconnect();
    this.themed?.disconnect();
    this.model.off("msg:custom", this.heard);
    this.root.remove();
  }
}

// The way through a list that comes page by page: ‹ ›, and which part of how many. `turn(start)` asks for another page.
class WbPager {
  constructor(noun, turn) {
    this.noun = noun;
    this.count = wbElement("span", "wb-count", "");
    this.count.setAttribute("role", "status");
    this.before = wbButton("‹", () => turn(this.start - this.size), `${noun}s before these`);
    this.after = wbButton("›", () => turn(this.start + this.size), `${noun}s after these`);
    this.parts = [this.count, this.before, this.after];
  }

  // `shown` of `matched` from `start` on; a page has `size`.
  show({ start, page: size, matched }, shown) {
    Object.assign(this, { start, size });
    const last = start + shown;
    this.count.textContent = matched ? `${wbCount(start + 1)}–${wbCount(last)} of ${wbCount(matched)}` : `no such ${this.noun}`;
    this.before.disabled = start === 0;
    this.after.disabled = last >= matched;
    this.before.hidden = this.after.hidden = matched <= size;
  }

  say(error) {
    this.count.textContent = error.message;
  }
}

// The places where a view was displayed. Outputs come and go as Lab redraws them, so the page is watched; a view whose
// output was replaced by a newer picture of it moves over as it is.
class WbPlaces {
  constructor(model, View) {
    this.model = model;
    this.View = View;
    this.found = document.getElementsByClassName(`wb-place-${model.get("place")}`);
    this.living = []; // {view, host, place, since}: `since` when the place was gone
    this.seen = new MutationObserver(() => this.soon());
    this.seen.observe(document.body, { childList: true, subtree: true });
    this.lost = () => this.close("The kernel that held this view is gone. Run the cell again to have it live.");
    model.on("comm_live_update", this.lost);
    this.heard = (content) => content.kind === "kept" && this.keep(content.data);
    model.on("msg:custom", this.heard);
    this.look();
  }

  soon() {
    this.timer ??= requestAnimationFrame(() => {
      this.timer = undefined;
      this.look();
    });
  }

  look() {
    const now = Date.now();
    for (const place of this.found) {
      if (this.living.some((one) => one.place === place)) continue;
      const free = this.living.find((one) => !one.place.isConnected);
      const one = free || this.open();
      one.place = place;
      one.since = undefined;
      place.before(one.host);
      place.hidden = true;
      if (free && one.view.moved) one.view.moved();
    }
    for (const one of this.living) if (!one.place.isConnected) one.since ??= now;
    this.living = this.living.filter((one) => {
      const gone = one.since !== undefined && now - one.since > 60000;
      if (gone) one.view.close();
      return !gone;
    });
  }

  // A page that was reloaded does not know any more which output an update of the kernel is for, and drops it; so that
  // what is saved then is not an old picture, it is put in here.
  keep(data) {
    for (const { outputs } of this.model.widget_manager?.context?.model?.cells ?? []) {
      for (let i = 0; i < (outputs?.length ?? 0); i++) {
        const html = [outputs.get(i).data?.["text/html"] ?? ""].flat().join("");
        const mine = html.includes(`wb-place-${this.model.get("place")}"`) && html !== data["text/html"];
        if (mine) outputs.set(i, { ...outputs.get(i).toJSON(), data });
      }
    }
  }

  open() {
    const host = wbElement("div", "wb-live");
    const one = { host, view: new this.View(this.model, host) };
    this.living.push(one);
    return one;
  }

  close(why) {
    if (!this.seen) return;
    this.seen.disconnect();
    this.seen = undefined;
    this.model.off("comm_live_update", this.lost);
    this.model.off("msg:custom", this.heard);
    for (const { view, host, place } of this.living) {
      view.close();
      host.remove();
      place.hidden = false;
      if (why) place.prepend(wbElement("p", "wb-lost", why));
    }
    this.living = [];
  }
}

// A view whose picture is made anew is moved to its new place (see WbPlaces), which takes the focus and the scroll
// positions away. `wbKeepsPlace` notes them; what it returns puts them back.

function wbKeepsPlace(root, scrolled = []) {
  let focused = null;
  const tops = new Map();
  root.addEventListener("focusin", (event) => (focused = event.target));
  root.addEventListener("focusout", () => queueMicrotask(() => {
    if (root.isConnected && !root.contains(document.activeElement)) focused = null;
  }));
  for (const part of scrolled) part.addEventListener("scroll", () => root.isConnected && tops.set(part, part.scrollTop));
  return () => {
    for (const [part, top] of tops) part.scrollTop = top;
    const free = document.activeElement === null || document.activeElement === document.body;
    if (focused && free && focused.isConnected) focused.focus({ preventScroll: true });
  };
}

// The module that anywidget loads, for a class that extends WbView.
function wbMount(View) {
  return {
    initialize({ model }) {
      const places = new WbPlaces(model, View);
      return () => places.close();
    },
    render({ model, el }) {
      const view = new View(model, el);
      return () => view.close();
    },
  };
}

