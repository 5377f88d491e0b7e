// What is wrong in the run, as chips that open: what it is, since when, what to try. What was wrong stays as a word.

class WbAlarms {
  // `use`: what a press on the button of an edited reward does.
  constructor(use) {
    this.use = use;
    this.root = wbElement("div", "wb-alarms");
    this.root.hidden = true;
    this.open = new Set();
    this.before = "";
  }

  update(alarms, notices, may) {
    const now = JSON.stringify([alarms, notices, may]);
    if (now === this.before) return;
    this.before = now;
    const held = this.root.contains(document.activeElement) && document.activeElement.closest("details")?.dataset.kind;
    const made = notices.length ? [this.notice(notices, may)] : [];
    for (const alarm of alarms) if (alarm.now) made.push(this.alarm(alarm));
    const was = alarms.filter((alarm) => !alarm.now).map((alarm) => `${alarm.title} (${alarm.steps})`);
    if (was.length) made.push(wbElement("span", "wb-was", `was: ${was.join(", ")}`));
    this.root.replaceChildren(...made);
    this.root.hidden = !made.length;
    if (held) this.root.querySelector(`[data-kind="${held}"] summary`)?.focus();
  }

  chip(kind, severity, mark, title, since) {
    const chip = wbElement("details", `wb-alarm wb-alarm-${severity}`);
    chip.dataset.kind = kind;
    chip.open = this.open.has(kind);
    chip.addEventListener("toggle", () => (chip.open ? this.open.add(kind) : this.open.delete(kind)));
    const summary = wbElement("summary", "");
    const sign = wbElement("span", "wb-alarm-mark", mark);
    sign.setAttribute("aria-hidden", "true");
    summary.append(sign, wbElement("b", "", title));
    if (since) summary.append(wbElement("span", "wb-alarm-since", since));
    chip.append(summary);
    return chip;
  }

  alarm({ kind, severity, title, explanation, attempt, call, first }) {
    const bad = severity === "bad";
    const chip = this.chip(kind, bad ? "bad" : "watch", bad ? "⚠" : "▲", title, `since step ${first}`);
    chip.append(wbElement("p", "", explanation), wbElement("p", "", attempt));
    if (call) chip.append(wbElement("code", "wb-call", call));
    return chip;
  }

  notice(notices, may) {
    const names = notices.map((notice) => notice.variable).join(", ");
    const chip = this.chip("edited", "watch", "✎", `${names}: edited, not used yet`, "");
    chip.append(wbElement("p", "", "The run still rewards with what it was given before. From the next step on:"));
    chip.append(wbElement("code", "wb-call", notices[0].call));
    const use = wbButton("Use it", this.use, "The same as the call");
    use.disabled = !may;
    chip.append(use);
    return chip;
  }
}

