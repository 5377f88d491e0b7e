// Tokens in a row, painted: an element a token, in blocks that the browser lays out only when they come into sight.
// Used by the token microscope; any view that colours tokens can use it (with tokens.css).

const WB_BLOCK = 300; // tokens of a block, or fewer where a line ends

// Colours: `--wb-high` and `--wb-low` follow the page's theme (see wbTokenColours), so that a change of theme paints
// nothing anew. Nothing beyond 60 %, or text on a colour would be hard to read.
const WB_LEVELS = ["--wb-low", "--wb-high"].map((name) =>
  Array.from({ length: 41 }, (_, i) => (i ? `color-mix(in srgb, var(${name}) ${1.5 * i}%, transparent)` : "")));

function wbTokenColours(root) {
  const dark = wbTheme(root).dark;
  root.style.setProperty("--wb-high", dark ? "#56b4e9" : "#0072b2");
  root.style.setProperty("--wb-low", "#d55e00");
}

function wbQuantile(sorted, q) {
  if (!sorted.length) return NaN;
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

// From numbers to colours, one scale for all the strips that are compared.
// kinds: "low" (0 is no colour, the most negative the full one), "high" (0 and up), "both" (two colours around 0)
// floor: what the full colour stands for at least, so that rounding is not painted as if it were a difference
class WbTokenScale {
  constructor(kind, parts, floor = 0) {
    this.kind = kind;
    const all = Float32Array.from(parts.flatMap((part) => Array.from(part)).filter(Number.isFinite)).sort();
    this.count = all.length;
    this.least = all.length ? all[0] : NaN;
    this.most = all.length ? all[all.length - 1] : NaN;
    const sizes = kind === "both" ? all.map(Math.abs).sort() : all;
    // a few outliers would leave all others without colour: it stops at the 98th percentile
    const full = kind === "low" ? -wbQuantile(sizes, 0.02) : wbQuantile(sizes, 0.98);
    const whole = kind === "low" ? -this.least : sizes[sizes.length - 1];
    this.full = Math.max(full > 0 ? full : whole > 0 ? whole : 0, floor);
    this.clipped = this.full < whole;
  }

  // A CSS colour; "" for none.
  colour(value) {
    if (!Number.isFinite(value) || !this.full) return "";
    const share = this.kind === "low" ? -value / this.full : value / this.full;
    const level = Math.round(40 * Math.min(1, Math.abs(share)));
    return this.kind !== "both" && share < 0 ? "" : WB_LEVELS[share < 0 ? 0 : 1][level];
  }

  // [value, colour] from one end of the scale to the other
  stops() {
    const ends = this.kind === "low" ? [-this.full, 0] : this.kind === "high" ? [0, this.full] : [-this.full, this.full];
    return Array.from({ length: 9 }, (_, i) => ends[0] + (i / 8) * (ends[1] - ends[0])).map((value) => [value, this.colour(value)]);
  }
}

function wbLegend(scale, show, unit) {
  const legend = wbElement("span", "wb-scale");
  if (!scale.count) {
    legend.textContent = "no numbers";
    return legend;
  }
  const bar = wbElement("span", "wb-scale-bar");
  const stops = scale.stops();
  bar.style.backgroundImage = `linear-gradient(to right, ${stops.map(([, colour]) => colour || "transparent").join(", ")})`;
  legend.append(wbElement("span", "", show(stops[0][0])), bar, wbElement("span", "", `${show(stops[8][0])}${unit ? ` ${unit}` : ""}`));
  if (scale.clipped) {
    const said = wbElement("span", "wb-soft", "outer 2 % clipped");
    said.title = `The full colour is that of the ${scale.kind === "low" ? "2nd" : "98th"} percentile; the numbers reach from `
      + `${show(scale.least)} to ${show(scale.most)}.`;
    legend.append(said);
  }
  return legend;
}

// `hovered(i)` and `chosen(i)` are told of the token under the pointer (-1: none) and of a click.
class WbTokenStrip {
  constructor({ hovered = () => {}, chosen = () => {}, label = "tokens" } = {}) {
    this.root = wbElement("div", "wb-strip");
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", label);
    this.spans = [];
    this.marked = -1;
    const at = (event) => event.target.wbAt ?? event.target.parentNode?.wbAt ?? -1;
    this.root.addEventListener("pointermove", (event) => {
      if (this.over !== at(event)) hovered((this.over = at(event)));
    });
    this.root.addEventListener("pointerleave", () => hovered((this.over = -1)));
    this.root.addEventListener("click", (event) => {
      if (at(event) >= 0 && !String(getSelection())) chosen(at(event));
    });
  }

  // `tokens`: {text, special, id} each, the text as Python made it visible; the first `prompt` of them are context.
  show(tokens, prompt = 0) {
    this.spans = new Array(tokens.length);
    const blocks = [];
    for (let from = 0; from < tokens.length; ) {
      const to = this.end(tokens, from, prompt);
      blocks.push(this.block(tokens, from, to, prompt));
      from = to;
    }
    this.root.replaceChildren(...blocks);
    this.marked = -1;
  }

  // Where a block ends: where the prompt does, at the end of a line if there is one, else when it is full.
  end(tokens, from, prompt) {
    const most = Math.min(from + WB_BLOCK, from < prompt ? prompt : tokens.length);
    if (most === tokens.length || most === prompt) return most;
    for (let i = most; i > from + WB_BLOCK / 3; i--) if (tokens[i - 1].text.endsWith("\n")) return i;
    return most;
  }

  block(tokens, from, to, prompt) {
    const block = wbElement("div", from < prompt ? "wb-block wb-context" : "wb-block");
    let lines = 1;
    let width = 0;
    for (let i = from; i < to; i++) {
      const { text, special, id } = tokens[i];
      const span = (this.spans[i] = document.createElement("span"));
      span.wbAt = i;
      if (special) span.className = "wb-special";
      span.dataset.id = id;
      span.textContent = wbPieceShown(text);
      width += text.length;
      if (text.includes("\n")) lines += 1 + Math.floor(width / 90), (width = 0);
      block.append(span);
    }
    block.style.containIntrinsicBlockSize = `auto ${22 * (lines + Math.floor(width / 90))}px`;
    return block;
  }

  // A colour for each token from `first` on; null: there is no number, which is hatched. The ones before have none.
  paint(colours, first = 0) {
    this.spans.forEach((span, i) => {
      const colour = i < first ? "" : colours[i - first];
      span.style.background = colour === null ? "var(--wb-hatch)" : colour;
    });
  }

  mark(i) {
    if (this.marked === i) return;
    this.spans[this.marked]?.classList.remove("wb-marked");
    this.marked = i;
    this.spans[i]?.classList.add("wb-marked");
  }

  // Bring token `i` into sight, within what scrolls the strip.
  reveal(i) {
    const span = this.spans[i];
    if (!span) return;
    const frame = this.root.closest(".wb-scrolls") ?? this.root;
    const at = span.getBoundingClientRect();
    const room = frame.getBoundingClientRect();
    if (at.top < room.top || at.bottom > room.bottom) frame.scrollTop += at.top - room.top - room.height / 3;
  }
}

// A piece as it stands in a strip: a line's end can be seen, and ends the line.
function wbPieceShown(text) {
  return text.replace(/\t/g, "⇥\t").replace(/\n/g, "↵\n");
}
