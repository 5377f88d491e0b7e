// The report's page: charts and rollouts from the data in the file. All text is set by textContent.

const WB_PAGE_OF = 50;

function wbUnplain(value) {
  return typeof value === "string" ? { nan: NaN, inf: Infinity, "-inf": -Infinity }[value] : value;
}

function wbShowCharts(data, host) {
  const curves = new WbCurves();
  curves.line = data.curves.line;
  curves.events = data.curves.events;
  for (const { name, branch, x, y } of data.curves.pieces) {
    if (!curves.series.has(name)) curves.series.set(name, new Map());
    curves.series.get(name).set(branch, { x, y: y.map(wbUnplain) });
  }
  const board = new WbBoard(curves);
  host.append(board.root);
  board.set(data.charts);
  const root = document.querySelector(".wb-report");
  const draw = () => board.draw(window.Plotly, wbTheme(root));
  board.changed = draw;
  draw();
  let timer;
  new ResizeObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(draw, 80);
  }).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // a chart has the width it was drawn with: draw for the paper, and afterwards for the screen again
  for (const [event, paper] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      root.classList.toggle("wb-paper", paper);
      draw();
    });
  }
}

class WbRolloutList {
  constructor(rollouts, tools, host) {
    this.rollouts = rollouts;
    this.host = host;
    this.shown = WB_PAGE_OF;
    const steps = [...new Set(rollouts.map((r) => r.step))].sort((a, b) => a - b);
    this.step = this.choice("step", [["", "all steps"], ...steps.map((s) => [String(s), `step ${s}`])]);
    this.sort = this.choice("order", [
      ["stored", "in the order of the run"],
      ["-reward", "highest reward first"], ["reward", "lowest reward first"],
      ["-advantage", "highest advantage first"], ["advantage", "lowest advantage first"],
    ]);
    this.find = wbElement("input", "wb-find");
    this.find.type = "search";
    this.find.placeholder = "find in prompts and completions";
    this.find.setAttribute("aria-label", this.find.placeholder);
    this.find.addEventListener("input", () => this.draw(true));
    this.count = wbElement("span", "wb-count", "");
    this.more = wbElement("button", "wb-button wb-more", "show more");
    this.more.type = "button";
    this.more.addEventListener("click", () => {
      this.shown += WB_PAGE_OF;
      this.draw();
    });
    tools.append(this.step, this.sort, this.find, this.count);
    host.after(this.more);
    this.draw();
  }

  choice(label, options) {
    const made = wbElement("select", "wb-choice");
    made.setAttribute("aria-label", label);
    for (const [value, text] of options) {
      const option = wbElement("option", "", text);
      option.value = value;
      made.append(option);
    }
    made.addEventListener("change", () => this.draw(true));
    return made;
  }

  wanted() {
    const find = this.find.value.toLowerCase();
    const kept = this.rollouts.filter((r) =>
      (!this.step.value || String(r.step) === this.step.value)
      && (!find || r.prompt.toLowerCase().includes(find) || r.completion.toLowerCase().includes(find)));
    if (this.sort.value === "stored") return kept;
    const down = this.sort.value.startsWith("-");
    const name = this.sort.value.replace("-", "");
    const missing = (r) => Number.isNaN(wbUnplain(r[name]));
    return kept.sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * (wbUnplain(a[name]) - wbUnplain(b[name])));
  }

  draw(anew = false) {
    if (anew) this.shown = WB_PAGE_OF;
    const wanted = this.wanted();
    this.host.replaceChildren(...wanted.slice(0, this.shown).map((r) => this.card(r)));
    this.count.textContent = wanted.length ? `${Math.min(this.shown, wanted.length)} of ${wanted.length} shown` : "none";
    this.more.hidden = wanted.length <= this.shown;
  }

  card(rollout) {
    const card = wbElement("article", "wb-card");
    const facts = wbElement("div", "wb-card-facts");
    facts.append(wbElement("b", "", `step ${rollout.step}`), this.score("reward", rollout.reward), this.score("advantage", rollout.advantage));
    for (const [name, text] of rollout.facts) {
      const fact = wbElement("span", "");
      fact.append(wbElement("bdi", "wb-soft", name), document.createTextNode(" "), wbElement("bdi", "", text));
      facts.append(fact);
    }
    card.append(facts, wbElement("div", "wb-text wb-prompt", rollout.prompt), wbElement("div", "wb-text wb-completion", rollout.completion));
    return card;
  }

  score(name, value) {
    const number = wbUnplain(value);
    const made = wbElement("span", "");
    made.append(wbElement("span", "wb-soft", `${name} `), wbElement("b", "", Number.isNaN(number) ? "–" : wbNumber(number)));
    return made;
  }
}

{
  const data = JSON.parse(document.getElementById("wb-data").textContent);
  const charts = document.getElementById("wb-charts");
  if (charts) wbShowCharts(data, charts);
  const list = document.getElementById("wb-rollouts");
  if (list) new WbRolloutList(data.rollouts, document.getElementById("wb-tools"), list);
}
