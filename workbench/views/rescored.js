// Rescored rollouts: numbers, a scatter of old against new advantages, groups, and what is in a group.

const WB_WHAT = [["changed", "groups that change"], ["died", "groups that died"], ["alive", "groups that came alive"],
  ["flips", "groups with a flip"], ["best", "groups whose best changed"], ["all", "all groups"]];
const WB_ORDER = [["change", "most changed first"], ["flips", "most flips first"], ["reordered", "most reordered first"], ["rise", "largest rise first"],
  ["fall", "largest fall first"], ["step", "by step"]];

// What the advantages were and are: a dot a rollout, in the shaded corners those that flip.
class WbScatter {
  constructor(open) {
    this.open = open;
    this.root = wbElement("div", "wb-scatter");
    this.canvas = wbElement("canvas", "");
    this.canvas.setAttribute("role", "img");
    this.hint = wbElement("div", "wb-soft wb-small", "");
    this.root.append(this.canvas, this.hint);
    this.points = null;
    this.step = null;
    this.canvas.addEventListener("click", (event) => {
      const at = this.nearest(event);
      if (at !== undefined) this.open(this.points.index[at]);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      this.canvas.style.cursor = this.nearest(event) === undefined ? "" : "pointer";
    });
  }

  set(points, total) {
    this.points = points;
    const some = points.old.length < total ? ` (${wbCount(points.old.length)} of ${wbCount(total)} drawn)` : "";
    this.hint.textContent = `A dot is a rollout${some}; shaded: the sign flips. Click a dot for its group.`;
  }

  shown() {
    const { old, step } = this.points;
    const kept = [];
    for (let i = 0; i < old.length; i++) if (this.step === null || step[i] === this.step) kept.push(i);
    return kept;
  }

  draw(theme) {
    const size = Math.min(380, this.root.clientWidth);
    if (!this.points || !size) return;
    const scale = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: size * scale, height: size * scale });
    Object.assign(this.canvas.style, { width: `${size}px`, height: `${size}px` });
    const c = this.canvas.getContext("2d");
    c.scale(scale, scale);
    this.kept = this.shown();
    const limits = [this.points.old, this.points.new].map((values) => {
      let most = 0;
      for (const i of this.kept) if (Number.isFinite(values[i])) most = Math.max(most, Math.abs(values[i]));
      return most * 1.06 || 1;
    });
    const [pad, inner] = [34, size - 34 - 8];
    const { old, new: now } = this.points;
    this.at = (i) => [pad + ((old[i] / limits[0] + 1) / 2) * inner, 8 + ((1 - now[i] / limits[1]) / 2) * inner];
    c.fillStyle = theme.dark ? "rgba(213,94,0,0.22)" : "rgba(213,94,0,0.11)";
    c.fillRect(pad, 8, inner / 2, inner / 2);
    c.fillRect(pad + inner / 2, 8 + inner / 2, inner / 2, inner / 2);
    this.frame(c, theme, pad, inner, size, limits);
    const many = this.kept.length > 4000;
    for (const flips of [0, 1]) {
      c.fillStyle = theme.colours[flips];
      c.globalAlpha = many ? 0.35 : 0.6;
      for (const i of this.kept) {
        if (this.points.flips[i] !== flips) continue;
        const [x, y] = this.at(i);
        c.beginPath();
        c.arc(x, y, many ? 1.6 : 2.6, 0, 7);
        c.fill();
      }
    }
    c.globalAlpha = 1;
    const flipped = this.kept.filter((i) => this.points.flips[i]).length;
    this.canvas.setAttribute("aria-label", `old against new advantage of ${this.kept.length} rollouts; ${flipped} flip sign`);
    this.root.dataset.dots = this.kept.length;
  }

  frame(c, theme, pad, inner, size, limits) {
    c.strokeStyle = theme.axis;
    c.strokeRect(pad, 8, inner, inner);
    c.strokeStyle = theme.grid;
    c.beginPath();
    const [left, middle, right] = [pad, pad + inner / 2, pad + inner];
    const [top, centre, bottom] = [8, 8 + inner / 2, 8 + inner];
    for (const [a, b] of [[[middle, top], [middle, bottom]], [[left, centre], [right, centre]], [[left, bottom], [right, top]]]) {
      c.moveTo(...a);
      c.lineTo(...b);
    }
    c.stroke();
    c.fillStyle = theme.ink;
    c.font = `11px ${theme.font}`;
    c.textAlign = "center";
    c.fillText("old advantage", pad + inner / 2, size - 6);
    c.fillText("0", pad + inner / 2, size - 18);
    c.fillText(wbNumber(Number((-limits[0]).toPrecision(2))), pad + 12, size - 14);
    c.fillText(wbNumber(Number(limits[0].toPrecision(2))), pad + inner - 12, size - 14);
    c.textAlign = "right";
    c.fillText(wbNumber(Number(limits[1].toPrecision(2))), pad - 4, 18);
    c.fillText("0", pad - 4, 12 + inner / 2);
    c.fillText(wbNumber(Number((-limits[1]).toPrecision(2))), pad - 4, 6 + inner);
    c.save();
    c.translate(10, 8 + inner / 4);
    c.rotate(-Math.PI / 2);
    c.textAlign = "center";
    c.fillText("new advantage", 0, 0);
    c.restore();
    c.globalAlpha = 0.75;
    c.textAlign = "left";
    c.fillText("was bad, is good", pad + 6, 22);
    c.textAlign = "right";
    c.fillText("was good, is bad", pad + inner - 6, 2 + inner);
    c.globalAlpha = 1;
  }

  nearest(event) {
    if (!this.at) return undefined;
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, least] = [undefined, 64];
    for (const i of this.kept) {
      const [a, b] = this.at(i);
      const far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }
}

// Rewards of a group as small bars in one order, before and after; each by its own scale, as two rewards may have.
function wbBars(before, after) {
  const made = wbElement("span", "wb-bars");
  for (const [values, kind] of [[before, "wb-bars-old"], [after, "wb-bars-new"]]) {
    const known = values.filter((v) => v !== null);
    const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
    const half = wbElement("span", kind);
    for (const value of values) {
      const bar = wbElement("i", value === null ? "wb-none" : "");
      bar.style.height = `${value === null || high === low ? 1 : Math.max(1, (20 * (value - low)) / (high - low))}px`;
      half.append(bar);
    }
    made.append(half);
  }
  made.title = "rewards of the group's rollouts, before and now, in the same order; each by its own scale";
  return made;
}

function wbArrow(before, after) {
  return before === after ? wbNumber(after) : `${wbNumber(before)} → ${wbNumber(after)}`;
}

class WbRescored extends WbView {
  constructor(model, el) {
    super(model, el, "wb-rescored");
    this.wish = { against: "run", step: null, what: "changed", sort: "change", start: 0 };
    this.head = wbElement("div", "wb-tiles");
    this.scatter = new WbScatter((rollout) => this.openGroup({ index: 0, rollout }));
    this.list = wbElement("div", "wb-changes");
    this.list.addEventListener("keydown", (event) => wbListKey(event, ".wb-change"));
    this.detail = wbElement("div", "wb-change-detail");
    this.detail.hidden = true;
    this.detail.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      this.shut();
    });
    const side = wbElement("div", "wb-beside");
    const right = wbElement("div", "wb-changes-side");
    right.append(this.makeTools(), this.list);
    side.append(this.scatter.root, right);
    this.title = wbElement("div", "wb-head-line", "");
    this.root.append(this.title, this.head, this.makeSteps(), side, this.detail);
    const first = model.get("first");
    if (first && first.summary) this.showPage(first);
    this.load();
    this.follow(() => this.draw());
  }

  makeTools() {
    const tools = wbElement("div", "wb-tools");
    this.what = wbSelect("which groups", WB_WHAT, (what) => this.want({ what, start: 0 }));
    this.sort = wbSelect("order", WB_ORDER, (sort) => this.want({ sort, start: 0 }));
    this.pager = new WbPager("group", (start) => this.want({ start }));
    tools.append(this.what, this.sort, ...this.pager.parts);
    return tools;
  }

  makeSteps() {
    this.stepsRow = wbElement("div", "wb-tools wb-steps");
    const sides = [["run", "against the run's rewards"], ["before", "against the rescoring before"]];
    this.against = wbSelect("held against", sides, (against) => {
      this.want({ against, start: 0 });
      this.load();
      this.shut();
    });
    this.slider = wbElement("input", "wb-steps-slider");
    Object.assign(this.slider, { type: "range", min: 0, step: 1, value: 0 });
    this.slider.setAttribute("aria-label", "step");
    this.stepSaid = wbElement("span", "wb-step-said", "all steps");
    this.slid = wbDebounced(80, () => this.want({ start: 0 }));
    this.slider.addEventListener("input", () => {
      const at = Number(this.slider.value);
      this.wish.step = this.scatter.step = at ? this.steps[at - 1] : null;
      this.stepSaid.textContent = at ? `step ${this.steps[at - 1]}` : "all steps";
      this.draw();
      this.slid();
    });
    this.stepsRow.append(this.against, this.slider, this.stepSaid);
    return this.stepsRow;
  }

  want(change = {}) {
    Object.assign(this.wish, change);
    const wanted = (this.wanted = (this.wanted || 0) + 1);
    this.ask("groups", this.wish)
      .then((page) => wanted === this.wanted && this.showPage(page), (error) => this.pager.say(error));
  }

  load() {
    const against = this.wish.against;
    this.ask("points", { against }).then((answer) => {
      if (against !== this.wish.against) return;
      this.scatter.set(answer.columns, answer.total);
      this.draw();
    }, (error) => this.pager.say(error));
  }

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = requestAnimationFrame(() => this.closed || this.scatter.draw(wbTheme(this.root)));
  }

  showPage(page) {
    this.wish.start = page.start;
    this.steps = page.steps;
    this.slider.max = page.steps.length;
    this.slider.hidden = this.stepSaid.hidden = page.steps.length < 2;
    this.against.hidden = page.sides.length < 2;
    this.stepsRow.hidden = page.sides.length < 2 && page.steps.length < 2;
    this.title.replaceChildren(wbElement("b", "", "Rescored"), wbElement("bdi", "wb-soft", page.name));
    this.showSummary(page.summary);
    this.list.replaceChildren(...page.groups.map((group) => this.makeGroup(group)));
    this.pager.show(page, page.groups.length);
    this.root.dataset.ask = page.ask || 0;
  }

  showSummary(s) {
    if (!s.rollouts) return this.head.replaceChildren(wbElement("p", "wb-soft", "There are no rollouts to score."));
    const share = (n, of) => (of ? `${wbNumber(Number(((100 * n) / of).toPrecision(2)))} %` : "");
    const tiles = [
      ["advantages that flip", wbCount(s.flips), `${share(s.flips, s.rollouts)} of ${wbCount(s.rollouts)} rollouts`],
      ["groups alive", wbArrow(s.alive_before, s.alive_after), `${wbCount(s.died)} died, ${wbCount(s.came_alive)} came alive`],
      ["best rollout changed", wbCount(s.best_changed), `of ${wbCount(s.groups)} groups`],
      ["mean reward", wbArrow(s.reward_before, s.reward_after), s.unscored ? `${wbCount(s.unscored)} have none now` : "before → now"],
      ["rank correlation", wbNumber(s.rank_correlation), "within groups, Kendall's τ"],
    ];
    this.head.replaceChildren(...tiles.map(([title, value, note]) => {
      const tile = wbElement("div", "wb-tile");
      tile.append(wbElement("div", "", title), wbElement("b", "", value), wbElement("small", "", note));
      return tile;
    }));
  }

  makeGroup(g) {
    const row = wbElement("button", "wb-change");
    row.type = "button";
    row.dataset.index = g.index;
    const state = g.change || (g.alive ? "alive" : "dead");
    const badge = wbElement("span", `wb-badge wb-badge-${g.change === "died" ? "bad" : g.change ? "good" : "plain"}`, state);
    const facts = wbElement("span", "wb-change-facts");
    const said = [`${g.flips} of ${g.size} flip`, `${g.reordered} of ${g.pairs} pairs reordered`, `reward ${wbArrow(g.reward, g.new_reward)}`];
    facts.append(badge, ...said.map((text) => wbElement("span", "", text)));
    if (g.best_changed) facts.append(wbElement("span", "wb-accented", "best changed"));
    const text = wbElement("span", "wb-change-text");
    const line = wbElement("span", "wb-change-prompt");
    line.append(wbElement("span", "wb-soft", `step ${g.step} `), wbElement("bdi", "", g.prompt));
    text.append(line, facts);
    row.append(text, wbBars(g.bars, g.new_bars));
    row.addEventListener("click", () => this.openGroup({ index: g.index }));
    return row;
  }

  openGroup(which) {
    const opened = (this.opened = (this.opened || 0) + 1);
    for (const row of this.list.children) {
      const here = which.rollout === undefined && Number(row.dataset.index) === which.index;
      row.setAttribute("aria-expanded", String(here));
    }
    this.ask("group", { against: this.wish.against, ...which })
      .then((answer) => opened === this.opened && this.showGroup(answer, which.rollout), (error) => this.pager.say(error));
  }

  showGroup({ group, prompt, members, more }, wanted) {
    const close = wbButton("close", () => this.shut());
    close.classList.add("wb-close");
    const table = wbElement("table", "wb-changed-members");
    const head = wbElement("tr");
    const parts = members.length ? members[0].parts.map(([name]) => [name, `the reward ${name}, before → now`]) : [];
    const numbers = [["rank", "1 is the best of the group"], ["advantage", "before → now"], ["reward", "before → now"]];
    for (const [name, title] of [...numbers, ...parts, ["completion", "click for the whole rollout"]]) {
      const cell = wbElement("th");
      cell.title = title;
      cell.append(wbElement("bdi", "", name));
      head.append(cell);
    }
    const body = wbElement("tbody");
    for (const member of members) body.append(this.makeMember(member, wanted));
    const top = wbElement("thead");
    top.append(head);
    table.append(top, body);
    const frame = wbElement("div", "wb-scroll");
    frame.append(table);
    const title = wbElement("h5", "", `Step ${group.step}, group ${group.group_id}`);
    this.detail.replaceChildren(close, title, wbElement("div", "wb-text wb-whole", prompt), frame);
    if (more) this.detail.append(wbElement("p", "wb-soft", `and ${wbCount(more)} more rollouts`));
    this.detail.hidden = false;
    this.detail.scrollIntoView({ block: "nearest" });
    const chosen = body.querySelector(".wb-chosen");
    if (chosen) this.openRollout(chosen, Number(chosen.dataset.index));
  }

  makeMember(m, wanted) {
    const row = wbElement("tr", m.index === wanted ? "wb-chosen" : "");
    row.tabIndex = 0;
    row.dataset.index = m.index;
    const part = ([, before, after]) => (before === null ? wbNumber(after) : wbArrow(before, after));
    const cells = [wbArrow(m.rank, m.new_rank), wbArrow(m.advantage, m.new_advantage), wbArrow(m.reward, m.new_reward), ...m.parts.map(part)];
    cells.forEach((text, i) => row.append(wbElement("td", i === 1 && m.flips ? "wb-number wb-flip" : "wb-number", text)));
    const text = wbElement("td", "wb-long");
    text.append(wbElement("bdi", "", m.text));
    row.append(text);
    row.addEventListener("click", () => String(getSelection()) || this.openRollout(row, m.index));
    row.addEventListener("keydown", (event) => {
      const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
      if (next && next.tabIndex === 0) next.focus();
      else if (event.key === "Enter" || event.key === " ") this.openRollout(row, m.index);
      else if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      event.stopPropagation();
    });
    return row;
  }

  // The whole rollout unfolds under its row; a second click folds it.
  openRollout(row, index) {
    const below = row.nextElementSibling;
    if (below && below.classList.contains("wb-unfolded")) return below.remove();
    this.ask("rollout", { against: this.wish.against, index }).then((r) => {
      if (!row.isConnected || row.nextElementSibling?.classList.contains("wb-unfolded")) return;
      const more = wbElement("tr", "wb-unfolded");
      const cell = wbElement("td");
      cell.colSpan = row.children.length;
      const where = wbElement("div", "wb-soft wb-small", `rollout ${r.id}, step ${r.step}`);
      cell.append(wbElement("div", "wb-text wb-whole", r.completion), where);
      more.append(cell);
      row.after(more);
    }, (error) => this.pager.say(error));
  }

  shut() {
    this.detail.hidden = true;
    this.opened = (this.opened || 0) + 1;
    wbUnmark(this.list);
  }

  close() {
    super.close();
    this.slid.stop();
  }
}
