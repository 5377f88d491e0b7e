// The report's page: charts and rollouts from the data in the file. All text is set by textContent.

const WB_PAGE_OF = 12; // groups, or four times as many single rollouts
const WB_PAINT = { logprob: ["low", "log-prob"], entropy: ["high", "entropy"] };

function wbUnplain(value) {
  return typeof value === "string" ? { nan: NaN, inf: Infinity, "-inf": -Infinity }[value] : value;
}

// Light, dark, or as the reader's system has it.
function wbThemeButton(changed) {
  const dark = () => wbTheme(document.querySelector(".wb-report")).dark;
  const button = wbButton("", () => {
    document.documentElement.style.colorScheme = dark() ? "light" : "dark";
    say();
    changed();
  });
  const say = () => (button.textContent = dark() ? "light page" : "dark page");
  button.classList.add("wb-theme-button");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    say();
    changed();
  });
  say();
  return button;
}

class WbReportCharts {
  constructor(data, tools, host) {
    this.curves = new WbCurves();
    this.curves.line = data.curves.line;
    this.curves.events = data.curves.events;
    for (const { name, branch, x, y } of data.curves.pieces) {
      Object.assign(this.curves.of(name, branch), { x, y: y.map(wbUnplain) });
    }
    this.board = new WbBoard(this.curves, { lazy: true });
    this.board.changed = () => this.later();
    this.board.zoomed = (range) => (this.back.hidden = !range);
    this.lane = new WbLane();
    this.root = document.querySelector(".wb-report");
    this.makeTools(tools);
    host.append(this.lane.root, this.board.root);
    this.board.set(data.charts);
    new ResizeObserver(() => this.later()).observe(host);
    // a chart has the width it was drawn with: draw all of them for the paper, and afterwards for the screen again
    for (const [event, paper] of [["beforeprint", true], ["afterprint", false]]) {
      addEventListener(event, () => {
        this.root.classList.toggle("wb-on-paper", paper);
        // paper is light; charts are drawn before the page's style for paper counts
        const style = document.documentElement.style;
        if (paper) [this.scheme, style.colorScheme] = [style.colorScheme, "light"];
        else style.colorScheme = this.scheme;
        this.board.lazy = !paper;
        this.draw();
      });
    }
    this.draw();
  }

  makeTools(tools) {
    const smoothing = new WbSmoothing((weight) => {
      smoothing.show(weight);
      this.board.smooth = weight;
      this.later();
    });
    this.back = wbButton("Reset zoom", () => this.board.zoom(null));
    this.back.hidden = true;
    tools.className = "wb-toolbar";
    tools.append(smoothing.root, this.back);
  }

  later() {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.draw();
    }, 30);
  }

  draw() {
    this.board.draw(window.Plotly, wbTheme(this.root));
    this.lane.draw(this.curves.events, this.board.range || this.curves.span());
  }
}

// Rollouts by their groups, or one by one; with what was known of each token as a colour.
class WbReportRollouts {
  constructor({ rollouts, pieces }, tools, host) {
    this.rollouts = rollouts;
    this.pieces = pieces.map(([text, special]) => ({ text, special }));
    this.host = host;
    this.shown = WB_PAGE_OF;
    this.scales = {};
    for (const [name, [kind]] of Object.entries(WB_PAINT)) {
      this.scales[name] = new WbTokenScale(kind, rollouts.map((r) => (r[name] || []).map((v) => (v === null ? NaN : v / 100))));
    }
    this.makeTools(tools);
    this.count = wbElement("span", "wb-count", "");
    this.count.setAttribute("role", "status");
    this.legend = wbElement("span", "wb-legends");
    tools.append(this.count, this.legend);
    this.more = wbButton("show more", () => {
      this.shown += WB_PAGE_OF;
      this.draw();
    });
    this.more.classList.add("wb-more");
    host.after(this.more);
    addEventListener("beforeprint", () => this.draw(true));
    addEventListener("afterprint", () => this.draw());
    this.draw();
  }

  makeTools(tools) {
    const anew = () => {
      this.shown = WB_PAGE_OF;
      this.draw();
    };
    const unique = (name) => [...new Set(this.rollouts.map((r) => r[name]))];
    const steps = unique("step").sort((a, b) => a - b);
    this.view = wbSelect("view", [["groups", "by group"], ["single", "one by one"]], anew);
    this.step = wbSelect("step", [["", "all steps"], ...steps.map((s) => [String(s), `step ${s}`])], anew);
    const ends = unique("finish").map((name) => [name, `ended by ${name}`]);
    this.finish = wbSelect("finish reason", [["", "any end"], ...ends], anew);
    this.sort = wbSelect("order", [
      ["stored", "in the order of the run"],
      ["-reward", "highest reward first"], ["reward", "lowest reward first"],
      ["-advantage", "highest advantage first"], ["advantage", "lowest advantage first"],
    ], anew);
    const limit = (label) => {
      const input = wbElement("input", "wb-limit");
      Object.assign(input, { type: "number", step: "any", placeholder: label });
      input.setAttribute("aria-label", `reward ${label}`);
      input.addEventListener("input", anew);
      return input;
    };
    [this.least, this.most] = [limit("from"), limit("to")];
    const range = wbElement("span", "wb-range");
    range.append("reward ", this.least, this.most);
    this.find = wbSearch("wb-find", "find in prompts and completions");
    this.find.addEventListener("input", anew);
    tools.append(this.view, this.step, this.finish, range, this.sort, this.find);
    const paints = Object.entries(WB_PAINT).map(([name, [, said]]) => [name, `colour: ${said}`]);
    this.paint = wbSelect("colour of tokens", [["", "no colours"], ...paints], () => this.draw());
    if (this.rollouts.some((r) => r.tokens)) tools.append(this.paint);
  }

  wanted() {
    const find = this.find.value.toLowerCase();
    const low = this.least.value === "" ? -Infinity : Number(this.least.value);
    const high = this.most.value === "" ? Infinity : Number(this.most.value);
    const ranged = low !== -Infinity || high !== Infinity;
    const kept = this.rollouts.filter((r) => {
      const reward = wbUnplain(r.reward);
      return (!this.step.value || String(r.step) === this.step.value)
        && (!this.finish.value || r.finish === this.finish.value)
        && (!ranged || (reward >= low && reward <= high))
        && (!find || r.prompt.toLowerCase().includes(find) || r.completion.toLowerCase().includes(find));
    });
    return this.sort.value === "stored" ? kept : this.sorted(kept);
  }

  // Those without a number come last.
  sorted(kept) {
    const down = this.sort.value.startsWith("-");
    const name = this.sort.value.replace("-", "");
    const missing = (r) => Number.isNaN(wbUnplain(r[name]));
    return kept.sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * (wbUnplain(a[name]) - wbUnplain(b[name])));
  }

  // A group stands where the first of its rollouts does.
  draw(paper = false) {
    wbTokenColours(document.querySelector(".wb-report"));
    const wanted = this.wanted();
    let cards = wanted.map((r) => [r]);
    if (this.view.value === "groups") {
      const groups = new Map();
      for (const r of wanted) {
        const key = `${r.step} ${r.group}`;
        if (!groups.has(key)) groups.set(key, []);
        groups.get(key).push(r);
      }
      cards = [...groups.values()];
    }
    const some = paper ? cards.length : this.shown * (this.view.value === "groups" ? 1 : 4);
    const shown = cards.slice(0, some);
    this.host.replaceChildren(...shown.map((members) => this.card(members)));
    const n = shown.reduce((sum, members) => sum + members.length, 0);
    this.count.textContent = wanted.length ? `${n} of ${wanted.length} shown` : "none";
    this.more.hidden = cards.length <= some;
    this.say();
  }

  say() {
    this.legend.replaceChildren();
    if (!this.paint.value) return;
    const show = (value) => wbNumber(Number(value.toPrecision(3)));
    this.legend.append(wbLegend(this.scales[this.paint.value], show, "nats"));
  }

  card(members) {
    const card = wbElement("article", "wb-card");
    const rewards = members.map((r) => wbUnplain(r.reward)).filter((v) => !Number.isNaN(v));
    const head = wbElement("div", "wb-card-facts");
    head.append(wbElement("b", "", `step ${members[0].step}`), wbElement("span", "wb-soft", `group ${members[0].group}`));
    if (this.view.value === "groups") {
      const sum = rewards.reduce((a, b) => a + b, 0);
      const mean = rewards.length ? wbNumber(sum / rewards.length) : "–";
      const all = this.rollouts.filter((r) => r.step === members[0].step && r.group === members[0].group).length;
      const many = members.length < all ? `${members.length} of its ${all} rollouts` : `${all} rollout${all > 1 ? "s" : ""}`;
      head.append(wbElement("span", "wb-soft", many), this.fact("mean reward", mean));
    }
    card.append(head, wbElement("div", "wb-text wb-prompt", members[0].prompt));
    for (const member of members) card.append(this.member(member));
    return card;
  }

  member(rollout) {
    const made = wbElement("div", "wb-member");
    const facts = wbElement("div", "wb-card-facts");
    for (const name of ["reward", "advantage"]) {
      facts.append(this.fact(name, wbKnown(wbUnplain(rollout[name]))));
    }
    for (const [name, text] of rollout.parts.length > 1 ? rollout.parts : []) facts.append(this.fact(name, text));
    const end = wbElement("span", rollout.finish === "length" ? "wb-cut" : "wb-soft", rollout.finish);
    facts.append(wbElement("span", "wb-soft", `${rollout.n} tokens`), end);
    made.append(facts, this.text(rollout));
    return made;
  }

  fact(name, text) {
    const fact = wbElement("span", "");
    fact.append(wbElement("bdi", "wb-soft", name), " ", wbElement("b", "", text));
    return fact;
  }

  text(rollout) {
    const paint = this.paint.value;
    if (!paint || !rollout.tokens) return wbElement("div", "wb-text wb-completion", rollout.completion);
    const scale = this.scales[paint];
    const strip = new WbTokenStrip({ label: "completion" });
    strip.root.classList.add("wb-completion");
    strip.show(rollout.tokens.map((at) => this.pieces[at]));
    const values = rollout[paint].map((v) => (v === null ? NaN : v / 100));
    strip.paint(values.map((v) => (Number.isNaN(v) ? null : scale.colour(v))));
    strip.spans.forEach((span, i) => {
      span.title = `log-prob ${wbNumber(this.nats(rollout.logprob[i]))}, entropy ${wbNumber(this.nats(rollout.entropy[i]))} nats`;
    });
    return strip.root;
  }

  nats(hundredths) {
    return hundredths === null ? undefined : hundredths / 100;
  }
}

{
  const data = JSON.parse(document.getElementById("wb-data").textContent);
  const at = (id) => document.getElementById(id);
  const charts = at("wb-charts") && new WbReportCharts(data, at("wb-curve-tools"), at("wb-charts"));
  const list = at("wb-rollouts") && new WbReportRollouts(data, at("wb-tools"), at("wb-rollouts"));
  document.querySelector(".wb-report header").append(wbThemeButton(() => {
    if (charts) charts.draw();
    if (list) wbTokenColours(document.querySelector(".wb-report"));
  }));
}
