// What is known about one token: its text, id and bytes, its numbers, and what else the policy might have said.

class WbTokenCard {
  constructor(tokens) {
    this.tokens = tokens;
    this.root = wbElement("div", "wb-token-card");
    this.at = new WbWeights("likely at", "sampled", () => this.show(this.completion, this.i));
    this.root.append(wbElement("p", "wb-soft", "Point at a token. A click pins it; arrow keys move on."));
  }

  show(completion, i) {
    clearTimeout(this.resting);
    this.completion = completion;
    this.i = i;
    const token = completion?.tokens[i + completion.prompt];
    if (!token) return;
    const piece = wbElement("div", token.special ? "wb-token-piece wb-special" : "wb-token-piece", wbQuoted(token.text));
    const facts = wbElement("dl", "wb-token-facts");
    for (const [name, value] of this.facts(completion, i, token)) facts.append(wbElement("dt", "", name), wbElement("dd", "", value));
    this.others = wbElement("div", "wb-token-likely");
    const asks = i >= 0 && this.tokens.model?.able;
    if (asks && this.at.root.parentNode === this.root) {
      // the select stays in the page, or it would lose the focus
      this.root.firstChild.replaceWith(piece);
      this.root.children[1].replaceWith(facts);
      this.root.lastChild.replaceWith(this.others);
    } else this.root.replaceChildren(piece, facts, ...(asks ? [this.at.root] : []), this.others);
    if (asks) this.alternatives(completion, i, token);
  }

  facts(completion, i, token) {
    const measure = WB_MEASURES[this.tokens.measure];
    const show = measure.show ?? wbNumber;
    const made = [["id", `${token.id}${token.special ? ", special" : ""}`], ["bytes", wbBytes(token.text)]];
    const character = wbCharacter(completion.tokens, i + completion.prompt);
    if (character) made.push(["with its neighbours", character]);
    if (i < 0) return [...made, ["position", `${i + completion.prompt} of the prompt's ${completion.prompt}`]];
    const value = completion.values?.[i];
    const share = completion.logprob[i];
    return [
      ...made,
      ["position", `${i} of ${completion.n}`],
      ["probability", Number.isFinite(share) ? `${wbNumber(100 * Math.exp(share))} %` : "–"],
      ["log-prob", wbKnown(share)],
      ["entropy", wbKnown(completion.entropy[i])],
      ...(["logprob", "entropy"].includes(this.tokens.measure) ? [] : [[measure.label, Number.isFinite(value) ? `${show(value)} ${measure.unit}`.trim() : "–"]]),
      ...(this.tokens.measure === "kl" && value !== undefined && completion.estimate ? [["estimate k3", `${wbKnown(completion.estimate[i])} nats`]] : []),
    ];
  }

  // Asked when the pointer rests, if the weights are at hand; else when a button is pressed, as it may take long.
  alternatives(completion, i, token) {
    const { model } = this.tokens;
    const weights = this.at.value;
    const found = completion.looked(weights);
    if (found) return this.bars(found, completion, i, token);
    const ask = () => {
      this.others.replaceChildren(wbElement("p", "wb-soft", "asked the model …"));
      completion.look(weights).then(
        () => this.completion === completion && this.show(completion, this.i),
        (error) => this.others.replaceChildren(wbElement("p", "wb-bad", error.message)),
      );
    };
    const step = completion.weights(weights);
    if (typeof step !== "number" || model.near.includes(step)) this.resting = setTimeout(ask, WB_REST);
    else this.others.replaceChildren(wbButton("what else was likely?", ask, `asks the model of step ${step}, which has to be made again first`));
  }

  bars({ columns }, completion, i, token) {
    const most = columns.top_id.length / completion.n;
    const known = new Map(Array.from(columns.piece_id, (id, k) => [id, k]));
    const made = [];
    for (let k = 0; k < most; k++) {
      const id = columns.top_id[i * most + k];
      const at = known.get(id);
      made.push(this.bar(columns.piece[at], columns.special[at] === 1, Math.exp(columns.top_logprob[i * most + k]), id === token.id));
    }
    if (columns.rank[i] >= most) made.push(this.bar(token.text, token.special, Math.exp(columns.logprob[i]), true, columns.rank[i] + 1));
    this.others.replaceChildren(...made);
  }

  bar(text, special, share, own, rank) {
    const line = wbElement("div", own ? "wb-token-bar wb-token-own" : "wb-token-bar");
    const fill = wbElement("span", "wb-token-fill");
    fill.style.width = `${100 * share}%`;
    const piece = wbElement("bdi", special ? "wb-special" : "", wbQuoted(text));
    line.append(fill, piece, wbElement("span", "wb-token-share", `${rank ? `#${rank} ` : ""}${wbShare(share)}`));
    line.title = own ? "the token itself" : "";
    return line;
  }
}

// A piece in which spaces and line ends can be seen.
function wbQuoted(text) {
  return text.replace(/ /g, "·").replace(/\t/g, "⇥").replace(/\n/g, "↵") || "(nothing)";
}

const WB_BYTES = /(⟨[0-9A-F]{2}(?: [0-9A-F]{2})*⟩)/; // a part of a character stands as its bytes

// The bytes of a piece, as hexadecimal numbers.
function wbHex(text) {
  const hex = (part) => Array.from(new TextEncoder().encode(part), (byte) => byte.toString(16).toUpperCase().padStart(2, "0"));
  return text.split(WB_BYTES).filter(Boolean).flatMap((part) => (WB_BYTES.test(part) ? part.slice(1, -1).split(" ") : hex(part)));
}

function wbBytes(text) {
  const whole = wbHex(text);
  return whole.length > 20 ? `${whole.slice(0, 20).join(" ")} …` : whole.join(" ");
}

// The text that a part of a character makes together with the parts beside it; "" for whole characters.
function wbCharacter(tokens, k) {
  const broken = (i) => i >= 0 && i < tokens.length && WB_BYTES.test(tokens[i].text);
  if (!broken(k)) return "";
  let [from, to] = [k, k + 1];
  while (broken(from - 1) && k - from < 3) from--;
  while (broken(to) && to - k < 4) to++;
  const bytes = tokens.slice(from, to).flatMap(({ text }) => wbHex(text));
  return wbQuoted(new TextDecoder().decode(Uint8Array.from(bytes, (hex) => parseInt(hex, 16))));
}

// A number for an axis, where room is little.
function wbBrief(value) {
  return wbNumber(Math.abs(value) < 1e-3 && Math.abs(value) > 0 ? Number(value.toPrecision(1)) : Number(value.toPrecision(3)));
}

function wbShare(share) {
  return share >= 0.0995 ? `${(100 * share).toFixed(0)} %` : share >= 0.001 ? `${(100 * share).toFixed(1)} %` : `${(100 * share).toExponential(0)} %`.replace("-", "−");
}
