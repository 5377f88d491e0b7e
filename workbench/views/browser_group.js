// A group's members side by side: each with its rewards, and its text against the one it is held against.

class WbGroup {
  constructor(detail) {
    this.detail = detail;
    this.sort = "sample";
    this.sorts = wbSelect("order of the members", [["sample", "as sampled"], ["reward", "best first"]], (value) => {
      this.sort = value;
      this.again();
    });
  }

  wish() {
    return { against: this.against ?? null, sort: this.sort };
  }

  again() {
    this.detail.open(this.detail.id);
  }

  show(group, id) {
    if (!group.members.some((member) => member.id === this.against)) this.against = undefined; // of another group
    const line = wbElement("div", "wb-group-line");
    const names = `${group.members.length + group.more} of one prompt${group.title ? `: ${group.title}` : ""}`;
    const legend = wbElement("span", "wb-key");
    legend.append("against the ", wbElement("b", "", "reference"), ": ", wbElement("ins", "wb-insert", "differs"), " ", wbElement("span", "wb-same", "the same"));
    const only = wbButton("only this group", () => this.only(), "a filter for these rows");
    line.append(wbElement("span", "", names), legend, this.sorts, only);
    if (group.more) line.append(wbElement("span", "wb-soft", `the first ${group.members.length} are shown`));
    const parts = [line];
    if (group.prompt !== null) {
      parts.push(wbElement("h5", "", "prompt"), wbElement("div", "wb-text wb-whole wb-group-prompt", group.prompt));
    }
    if (group.facts.length) parts.push(wbFacts(group.facts, "wb-facts"));
    const scale = wbScale(group.members.flatMap((member) => [...member.parts, ["", member.reward]]));
    const cards = wbElement("div", "wb-cards");
    cards.tabIndex = 0;
    cards.setAttribute("aria-label", "members of the group");
    cards.append(...group.members.map((member) => this.card(member, group.against, id, scale)));
    parts.push(cards);
    return parts;
  }

  card(member, against, id, scale) {
    const card = wbElement("div", `wb-card${member.id === id ? " wb-card-open" : ""}`);
    card.dataset.id = member.id;
    const head = wbElement("div", "wb-card-head");
    const name = member.sample === null ? `rollout ${member.id}` : `sample ${member.sample}`;
    head.append(wbElement("b", "", name));
    if (member.best) head.append(wbElement("span", "wb-badge wb-badge-best", "best"));
    if (member.worst) head.append(wbElement("span", "wb-badge wb-badge-worst", "worst"));
    const reference = member.id === against;
    if (reference) head.append(wbElement("span", "wb-badge", "reference"));
    else {
      const hold = wbButton("compare", () => {
        this.against = member.id;
        this.again();
      }, "show how the others differ from this one");
      hold.classList.add("wb-small");
      head.append(hold);
    }
    const numbers = wbParts([["reward", member.reward], ...member.parts], scale);
    const line = wbElement("div", "wb-card-facts");
    if (member.advantage !== null) {
      const sign = member.advantage > 0 ? "▲ +" : member.advantage < 0 ? "▼ " : "";
      const tone = member.advantage > 0 ? "wb-up" : member.advantage < 0 ? "wb-down" : "";
      line.append(wbElement("span", tone, `${sign}${wbNumber(member.advantage)} advantage`));
    }
    line.append([member.finish, member.tokens === null ? "" : `${member.tokens} tokens`].filter(Boolean).join(", "));
    const text = wbElement("div", "wb-text wb-whole");
    text.append(...wbSegments(member.segments, { dim: !reference }));
    if (!text.textContent) text.textContent = "(nothing)";
    card.append(head, numbers, line, text);
    return card;
  }

  only() {
    const { step, group } = this.detail.now;
    const parts = [step === null || step === undefined ? "" : `step == ${step}`, group === null || group === undefined ? "" : `group == ${group}`];
    const where = parts.filter(Boolean).join(" and ");
    if (where) this.detail.owner.change({ where });
  }
}

