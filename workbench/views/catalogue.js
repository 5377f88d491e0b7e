// Methods to search: words in any order, found in names, numbers, papers and what a method does; the chosen one's card
// stands below the list.

class WbCatalogue extends WbView {
  constructor(model, el) {
    super(model, el, "wb-catalogue");
    this.head = model.get("head");
    const tools = wbElement("div", "wb-catalogue-tools");
    this.field = wbSearch("wb-catalogue-search", "search: names, papers, what they do");
    this.field.addEventListener("input", () => this.filter());
    this.kind = wbSelect("kind", [["", "all kinds"], ...this.head.kinds.map((kind) => [kind, kind])], () => this.filter());
    this.count = wbElement("span", "wb-soft");
    this.count.setAttribute("role", "status");
    tools.append(this.field, this.kind, this.count);
    this.list = wbElement("div", "wb-catalogue-list");
    this.list.setAttribute("aria-label", "methods; up and down go from one to the next");
    this.list.addEventListener("keydown", (event) => wbListKey(event, ".wb-catalogue-row"));
    this.rows = this.head.records.map((record) => this.makeRow(record));
    this.list.append(...this.rows.map(({ row }) => row));
    this.card = wbElement("section", "wb-catalogue-card");
    this.card.hidden = true;
    this.root.append(tools, this.list, this.card);
    this.filter();
  }

  makeRow(record) {
    const row = wbButton("", () => this.open(record, row), record.summary);
    row.className = "wb-catalogue-row";
    row.dataset.name = record.name;
    row.setAttribute("aria-expanded", "false");
    const name = wbElement("span", "wb-catalogue-name", record.name);
    const told = wbElement("span", "wb-catalogue-told", record.summary);
    const facts = [record.kind, record.id, record.year, record.status === "works" ? "" : record.status];
    row.append(name, told, wbElement("span", "wb-soft wb-catalogue-facts", facts.filter(Boolean).join(" · ")));
    const words = [record.name, record.id, record.kind, record.paper, record.summary, record.needs, record.year];
    return { row, record, words: words.filter(Boolean).join(" ").toLowerCase().replaceAll("_", " ") };
  }

  filter() {
    const wanted = this.field.value.toLowerCase().replaceAll("_", " ").split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, record, words } of this.rows) {
      const found = wanted.every((word) => words.includes(word)) && (!this.kind.value || record.kind === this.kind.value);
      row.hidden = !found;
      shown += found;
    }
    this.count.textContent = shown ? `${shown} of ${this.rows.length}` : "none found";
    this.root.dataset.shown = shown;
  }

  open(record, row) {
    const same = row.getAttribute("aria-expanded") === "true";
    for (const other of this.rows) other.row.setAttribute("aria-expanded", "false");
    this.card.hidden = same;
    if (same) return;
    row.setAttribute("aria-expanded", "true");
    const call = wbElement("code", "", `wb.method("${record.name}")`);
    const copy = wbButton("copy", async () => {
      copy.textContent = (await wbCopy(call.textContent, this.root)) ? "copied" : "not copied";
    });
    const head = wbElement("div", "wb-catalogue-head");
    head.append(call, copy, wbElement("span", "wb-soft", record.paper));
    const text = wbElement("pre", "wb-text", "…");
    this.card.replaceChildren(head, text);
    this.ask("card", { name: record.name }).then(
      (answer) => row.getAttribute("aria-expanded") === "true" && (text.textContent = answer.card),
      (error) => (text.textContent = error.message),
    );
  }
}
