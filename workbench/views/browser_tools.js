// The lines above and below the table: what to show, and what to do with what is picked.

const WB_FILTERS = [
  ["reward < 0.5 and n_tokens > 200", "numbers are compared"],
  ['finish_reason == "length"', "texts stand in quotes; also step in (3, 4, 5)"],
  ['contains(completion, "sorry") or not startswith(completion, " ")', "contains() takes upper and lower case as one"],
  ['rewards.correct == 1 and rewards["odd name"] is not None', "reward parts; None: there is none"],
  ["len(completion) / n_tokens > 6", "+ - * / and len(), abs(), lower()"],
];

class WbTools {
  constructor(owner) {
    this.owner = owner;
    this.steps = [];
    this.root = wbElement("div", "wb-bars");
    this.trouble = wbElement("div", "wb-trouble wb-bad");
    this.trouble.setAttribute("role", "alert");
    this.trouble.hidden = true;
    this.help = this.makeHelp();
    this.root.append(this.makeWords(), this.help, this.makeChoices(), this.trouble);
    this.foot = this.makeFoot();
  }

  makeField(className, words, title, wait, act) {
    const field = wbSearch(className, words);
    field.title = title;
    const typed = wbDebounced(wait, () => act(field.value));
    field.addEventListener("input", typed);
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") {
        typed.stop();
        act(field.value);
      }
      if (event.key === "Escape" && !field.value) this.owner.grid.root.focus();
    });
    return field;
  }

  makeWords() {
    const line = wbElement("div", "wb-tools");
    this.find = this.makeField("wb-find", "find in prompts and completions", "the key / comes here", 150, (text) =>
      this.owner.change({ find: text }),
    );
    this.where = this.makeField("wb-where", "filter, as in: reward < 0.5 and n_tokens > 200", "columns and comparisons", 300, (text) =>
      this.owner.change({ where: text }),
    );
    const help = wbButton("?", () => (this.help.hidden = !this.help.hidden), "how to write a filter, and the keys");
    line.append(this.find, this.where, help);
    return line;
  }

  makeHelp() {
    const box = wbElement("div", "wb-help");
    box.hidden = true;
    const list = wbElement("dl");
    for (const [code, said] of WB_FILTERS) {
      const example = wbElement("button", "wb-example", code);
      example.type = "button";
      example.title = "take this one";
      example.addEventListener("click", () => this.owner.change({ where: code }));
      const term = wbElement("dt");
      term.append(example);
      list.append(term, wbElement("dd", "", said));
    }
    this.known = wbElement("div", "wb-known");
    const keys = "Keys in the table: ↑ ↓ or k j move, Enter opens, Escape closes, Space picks, / finds, [ ] step.";
    box.append(list, this.known, wbElement("div", "", keys));
    return box;
  }

  makeChoices() {
    const line = wbElement("div", "wb-tools");
    this.stepLine = wbElement("label", "wb-steps");
    this.slider = wbElement("input");
    this.slider.type = "range";
    this.slider.min = this.slider.value = 0;
    this.slider.setAttribute("aria-label", "step");
    const slid = wbDebounced(80, (step) => this.owner.change({ steps: step === null ? null : [step, step] }));
    this.slider.addEventListener("input", () => {
      const at = Number(this.slider.value);
      const step = at ? this.steps[at - 1] : null;
      this.stepText.value = step ?? "";
      slid(step);
    });
    this.stepText = this.makeField("wb-step", "all", "one step, or first-last, as in 3-9; keys [ and ]", 500, (text) => this.typedSteps(text));
    this.stepLine.append(wbElement("span", "", "step"), this.slider, this.stepText);
    this.finish = wbSelect("finish reason", [["", "any finish"]], (value) => this.owner.change({ finish: value || null }));
    this.part = wbSelect("reward part", [["", "any reward"]], (value) => this.choosePart(value));
    this.gone = wbTick("wb-flag", "also steps given up", (gone) => this.owner.change({ gone }));
    this.gone.label.hidden = true;
    this.menu = wbElement("details", "wb-menu");
    this.menu.append(wbElement("summary", "wb-button", "columns"), (this.menuList = wbElement("div", "wb-menu-list")));
    this.menu.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") this.menu.open = false;
    });
    this.count = wbElement("span", "wb-count", "");
    this.count.setAttribute("role", "status");
    this.fresh = wbButton("", () => this.owner.refresh(), "read what came since");
    this.fresh.classList.add("wb-fresh");
    this.fresh.hidden = true;
    line.append(this.stepLine, this.finish, this.part, this.gone.label, this.menu, this.count, this.fresh);
    return line;
  }

  makeFoot() {
    const line = wbElement("div", "wb-tools wb-foot");
    this.picked = wbElement("span", "wb-picked-count", "none picked");
    this.none = wbButton("pick none", () => this.owner.pickAll(false));
    const save = (form) => wbButton(`save for ${form.toUpperCase()}`, () => this.owner.save(form), {
      sft: "rows (prompt, completion) as JSON Lines, into the notebook's folder",
      dpo: "pairs (prompt, chosen, rejected), the best and the worst of each group, into the notebook's folder",
    }[form]);
    const copy = wbButton("copy as Python", () => this.owner.copy(this.owner.line, "the Python line"), "the call that shows these rows");
    this.said = wbElement("span", "wb-said");
    this.said.setAttribute("role", "status");
    line.append(this.picked, this.none, save("sft"), save("dpo"), copy, this.said);
    return line;
  }

  // What there is to choose from, as Python says it.
  offer(about) {
    this.steps = about.steps;
    this.slider.max = about.steps.length;
    this.stepLine.hidden = about.steps.length < 2;
    wbOptions(this.finish, [["", "any finish"], ...about.finish.map(({ value, label }) => [value, label])]);
    this.finish.hidden = about.finish.length < 2;
    const kinds = [["> 0", "> 0"], ["<= 0", "≤ 0"], ["is None", "missing"]];
    const parts = about.parts.flatMap(({ value, label }) =>
      kinds.map(([test, said]) => [`rewards[${JSON.stringify(value)}] ${test}`, `${label} ${said}`]),
    );
    wbOptions(this.part, [["", "any reward"], ...parts]);
    this.part.hidden = !parts.length;
    this.gone.label.hidden = !about.gone;
    this.known.textContent = `Columns: ${about.columns.map(({ name, label }) => (name.startsWith("rewards/") ? `rewards.${label}` : name)).join(", ")}`;
    this.offered = about.columns;
    this.offerColumns();
    this.show(this.owner.wish);
  }

  offerColumns() {
    this.menuList.replaceChildren(
      ...this.offered.map((column) => {
        const { label, box } = wbTick("wb-flag", column.label, () => {
          const boxes = [...this.menuList.querySelectorAll("input")];
          this.owner.choose(this.offered.filter((_, i) => boxes[i].checked).map(({ name }) => name));
        });
        box.checked = this.owner.columns ? this.owner.columns.includes(column.name) : !column.hidden;
        return label;
      }),
    );
  }

  // A condition on a reward part joins the filter as text, where it can be changed, and takes its last one's place.
  choosePart(value) {
    const rest = this.where.value.split(" and ").filter((part) => part && part !== this.lastPart).join(" and ");
    this.lastPart = value;
    const kept = value && / or /.test(rest) && !/^\(.*\)$/.test(rest) ? `(${rest})` : rest;
    this.owner.change({ where: [kept, value].filter(Boolean).join(" and ") });
  }

  typedSteps(text) {
    const [first, last] = text.split(/[-–,: ]+/).filter(Boolean).map(Number);
    if (first === undefined) this.owner.change({ steps: null });
    else if (Number.isInteger(first) && (last === undefined || Number.isInteger(last))) this.owner.change({ steps: [first, last ?? first] });
    else this.complain("A step is a number, a range first-last, as in 3-9.");
  }

  // The next or previous step; before the first one stands "all".
  move(by) {
    const { steps } = this.owner.wish;
    const at = steps ? this.steps.findIndex((step) => step >= steps[0]) : -1;
    const to = Math.max(-1, Math.min(this.steps.length - 1, at + by));
    if (this.steps.length) this.owner.change({ steps: to < 0 ? null : [this.steps[to], this.steps[to]] });
  }

  // The controls as the wish is; a field that is being typed in is left alone.
  show(wish) {
    const set = (field, value) => {
      if (field.value !== value && !(field === document.activeElement && field.value.trim() === value)) field.value = value;
    };
    set(this.find, wish.find);
    set(this.where, wish.where);
    const { steps } = wish;
    set(this.stepText, !steps ? "" : steps[0] === steps[1] ? String(steps[0]) : `${steps[0]}-${steps[1]}`);
    const at = steps ? this.steps.findIndex((step) => step >= steps[0]) : -1;
    if (document.activeElement !== this.slider) this.slider.value = at + 1;
    this.finish.value = wish.finish ?? "";
    if (this.part.value && !wish.where.includes(this.part.value)) this.part.value = "";
    this.gone.box.checked = wish.gone;
  }

  counted(page) {
    const all = page.matched === page.total;
    this.count.textContent = !page.total ? "no rollouts" : all ? `${wbCount(page.total)} rollouts` : `${wbCount(page.matched)} of ${wbCount(page.total)}`;
  }

  countPicked(count) {
    this.picked.textContent = count ? `${wbCount(count)} picked` : "none picked: saving takes all rows shown";
    this.none.hidden = !count;
  }

  complain(text) {
    this.trouble.textContent = text;
    this.trouble.hidden = !text;
  }

  say(text) {
    this.said.textContent = text;
  }
}

