// What all views share: elements, numbers, colours, messages, and the place in the page that a view lives in.
// Text of a run or a model is untrusted: it reaches the page by textContent alone, and plotly (which reads a little
// HTML in its texts) only through `wbPlain`.

// Okabe and Ito's colours; on a dark page the two blues change places, as the darker one is hard to see there.
const WB_LIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const WB_DARK = ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2"];

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
  for (const [value, text] of options) {
    const option = wbElement("option", "", text);
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", () => changed(select.value));
  return select;
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

  close() {
    this.closed = true;
    this.model.off("msg:custom", this.heard);
    this.root.remove();
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
    for (const { view, host, place } of this.living) {
      view.close();
      host.remove();
      place.hidden = false;
      if (why) place.prepend(wbElement("p", "wb-lost", why));
    }
    this.living = [];
  }
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

