// The trajectories: a list that holds only the visible rows, and one or two episodes in full.
"use strict";

const ROW = 62;
const KEPT_CHARACTERS = 1e8; // of lower-case texts, which make a second search quick

class Viewer {
  constructor(report, labels) {
    this.report = report;
    this.labels = labels;
    this.filter = { group: "", source: "", outcome: "", text: "" };
    this.other = "";
    this.texts = new Map();
    this.characters = 0;
    this.searches = 0;
    this.byTask = new Map();
    report.episodes.forEach((row, number) => {
      if (!this.byTask.has(row.task)) this.byTask.set(row.task, []);
      this.byTask.get(row.task).push(number);
    });
    this.root = this.build();
    this.apply();
  }

  build() {
    const options = (first, values) => [el("option", { value: "" }, first), ...values.map(([value, name]) => el("option", { value }, name))];
    const choose = (key) => (event) => { this.filter[key] = event.target.value; this.apply(); };
    const sources = [...new Set(this.report.tasks.map((task) => task.source))].sort();
    this.search = el("input", { type: "search", placeholder: "Question, answer, query or response", "aria-label": "Search text", oninput: choose("text") });
    this.outcomes = el("div", { class: "chips", role: "group", "aria-label": "Outcome" }, ["", "right", "wrong", "failed", ...(this.report.episodes.some((row) => row.outcome === "unscored") ? ["unscored"] : [])].map((outcome) =>
      el("button", { type: "button", "aria-pressed": String(outcome === ""), "data-outcome": outcome, onclick: () => { this.filter.outcome = outcome; this.apply(); } }, outcome || "all")));
    this.count = el("div", { class: "count", role: "status" });
    this.list = el("div", { class: "list", tabindex: "0", role: "listbox", "aria-label": "Episodes", onscroll: () => this.draw() });
    this.inner = el("div", { style: "position:relative" });
    this.list.append(this.inner);
    this.detail = el("div", { class: "detail", tabindex: "-1" });
    const side = el("div", { class: "side" },
      el("div", { class: "filters" },
        this.search,
        el("div", { class: "two" },
          el("select", { "aria-label": "Agent", onchange: choose("group") }, options("Every agent", this.labels.map((label, number) => [String(number), label]))),
          el("select", { "aria-label": "Data source", onchange: choose("source") }, options("Every data source", sources.map((source) => [source, source])))),
        this.outcomes,
        this.count),
      this.list);
    const root = el("div", { class: "viewer" }, side, this.detail);
    root.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.list);
    return root;
  }

  key(event) {
    const typing = /^(INPUT|SELECT)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); this.search.focus(); return; }
    if (event.key === "Escape" && typing) { this.list.focus(); return; }
    if (typing) return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!step || (event.target !== this.list && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    const at = this.found.indexOf(this.chosen);
    const next = Math.max(0, Math.min(this.found.length - 1, at + step));
    if (this.found.length) this.choose(this.found[next]);
    const top = next * ROW;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW - this.list.clientHeight;
  }

  // Filters act at once. A search goes through the parts one after the other, and shows what it has found so far.
  async apply() {
    const { group, source, outcome } = this.filter, text = this.filter.text.trim().toLowerCase();
    const search = ++this.searches, fitting = [];
    this.report.episodes.forEach((row, number) => {
      if (group !== "" && row.group !== Number(group)) return;
      if (outcome && row.outcome !== outcome) return;
      if (source && this.report.tasks[row.task].source !== source) return;
      fitting.push(number);
    });
    for (const chip of this.outcomes.children) chip.setAttribute("aria-pressed", String(chip.dataset.outcome === outcome));
    this.list.scrollTop = 0;
    if (!text) {
      this.list.removeAttribute("aria-busy");
      this.showFound(fitting, this.report.episodes.length);
      return;
    }
    this.list.setAttribute("aria-busy", "true");
    const found = [], size = this.report.details.size;
    let shown = performance.now();
    for (let at = 0; at < fitting.length;) {
      const part = Math.floor(fitting[at] / size), texts = await this.text(part);
      if (search !== this.searches) return;
      for (; at < fitting.length && fitting[at] < (part + 1) * size; at++) {
        if (texts[fitting[at] % size].includes(text)) found.push(fitting[at]);
      }
      if (performance.now() - shown > 100 && at < fitting.length) {
        this.showFound([...found], (part + 1) * size, Math.round((100 * at) / fitting.length));
        shown = performance.now();
      }
    }
    this.list.removeAttribute("aria-busy");
    this.showFound(found, this.report.episodes.length);
  }

  // What a search looks through, for each episode of a part.
  async text(part) {
    const known = this.texts.get(part);
    if (known) return known;
    const rows = await unpack(await this.report.details.element(part)), first = part * this.report.details.size;
    const texts = rows.map((row, at) => {
      const task = this.report.tasks[this.report.episodes[first + at].task];
      return [task.id, task.question, ...task.golds, row.answer || "", ...(row.turns || []).flatMap((turn) => [turn.query || "", turn.response])].join("\n").toLowerCase();
    });
    const characters = texts.reduce((sum, one) => sum + one.length, 0);
    if (this.characters + characters <= KEPT_CHARACTERS) {
      this.characters += characters;
      this.texts.set(part, texts);
    }
    return texts;
  }

  // Episodes before `looked` are decided. The chosen one stays while it may still be found.
  showFound(found, looked, percent) {
    this.found = found;
    const all = this.report.episodes.length, said = percent === undefined ? "" : ` · ${percent} % searched`;
    this.count.replaceChildren(el("span", { id: "found" }, `${found.length} of ${all} episodes${said}`), el("span", {}, el("kbd", {}, "/"), " search ", el("kbd", {}, "j"), el("kbd", {}, "k"), " move"));
    this.inner.style.height = `${found.length * ROW}px`;
    const decided = this.chosen === undefined || this.chosen < looked;
    if (decided && !found.includes(this.chosen) && (found.length || percent === undefined)) this.choose(found[0]);
    else this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 4);
    const last = Math.min(this.found.length, Math.ceil((this.list.scrollTop + (this.list.clientHeight || 800)) / ROW) + 4);
    const rows = [];
    for (let at = first; at < last; at++) {
      const number = this.found[at], row = this.report.episodes[number];
      rows.push(el("div", { class: "item", role: "option", style: `top:${at * ROW}px`, "aria-selected": String(number === this.chosen), onclick: () => this.choose(number) },
        el("div", { class: "q" }, this.report.tasks[row.task].question),
        el("div", { class: "m" }, el("span", { class: `tag ${row.outcome}` }, row.outcome), this.labels[row.group], ` · ${(row.counts || {}).searches ?? 0} searches`)));
    }
    this.inner.replaceChildren(...rows);
  }

  choose(number) {
    this.chosen = number;
    this.draw();
    this.show();
  }

  show() {
    if (this.chosen === undefined) {
      this.detail.replaceChildren(el("p", { class: "empty" }, "No episode fits the filters."));
      return;
    }
    const row = this.report.episodes[this.chosen], task = this.report.tasks[row.task];
    const others = this.byTask.get(row.task).filter((number) => number !== this.chosen);
    const compare = el("select", { "aria-label": "Compare with", disabled: !others.length, onchange: (event) => { this.other = event.target.value; this.show(); } },
      el("option", { value: "" }, others.length ? "Compare with …" : "Nobody else has this question"),
      others.map((number) => el("option", { value: this.name(number), selected: this.name(number) === this.other }, this.name(number))));
    const against = others.find((number) => this.name(number) === this.other);
    const columns = el("div", { class: "columns" });
    this.detail.replaceChildren(
      el("p", { class: "note" }, `${task.source} · ${task.id}`),
      el("h2", {}, task.question),
      el("p", {}, "Gold: ", task.golds.join(" · ") || "none"),
      task.evidence ? el("p", {}, "Evidence: ", task.evidence.join(" · ")) : null,
      el("div", { class: "bar" }, compare),
      columns);
    this.detail.scrollTop = 0;
    this.fill(columns, [this.chosen, against].filter((number) => number !== undefined));
  }

  async fill(columns, numbers) {
    const shown = await Promise.all(numbers.map(async (number) => this.episode(number, await this.whole(number))));
    columns.replaceChildren(...shown);
  }

  // An episode with its passages instead of their numbers.
  async whole(number) {
    const row = { ...(await this.report.details.get(number)) };
    const texts = async (numbers) => numbers && Promise.all(numbers.map(async (one) => [one, ...(await this.report.passages.get(one))]));
    for (const name of ["initial", "shown"]) row[name] = await texts(row[name]);
    row.chosen = new Set(row.selected || []);
    row.selected = await texts(row.selected);
    row.turns = row.turns && await Promise.all(row.turns.map(async (turn) => ({ ...turn, passages: await texts(turn.passages) })));
    return row;
  }

  name(number) {
    const row = this.report.episodes[number], label = this.labels[row.group];
    const twins = this.byTask.get(row.task).filter((one) => this.report.episodes[one].group === row.group);
    return twins.length > 1 ? `${label} (${twins.indexOf(number) + 1} of ${twins.length})` : label;
  }

  episode(number, row) {
    const golds = this.report.tasks[row.task].golds;
    const figures = [...Object.entries(row.scores || {}), ...Object.entries(row.evidence || {}).map(([name, value]) => [`evidence ${name}`, value]), ...Object.entries(row.counts || {})].map(([name, value]) => `${name} ${value}`);
    if (row.reward !== undefined) figures.unshift(`reward ${row.reward}`);
    if (row.stop) figures.push(`stopped: ${row.stop}`);
    const verdict = el("div", { class: `verdict ${row.outcome}` },
      el("div", { class: "who" }, el("span", { class: `tag ${row.outcome}` }, row.outcome), this.name(number)),
      row.failure ? el("div", {}, `No result, failed at ${row.failure[0]}: ${row.failure[1]}`) : el("div", {}, row.answer === undefined ? "No answer was given." : row.answer || "(an empty answer)"),
      el("div", { class: "numbers" }, figures.map((figure) => el("span", {}, figure))));
    const parts = [verdict];
    const selected = row.chosen, gold = new Set(row.gold || []);
    if (row.cut) parts.push(el("p", { class: "note" }, "Its turns are left out, since this page would be too large with all of them; results.jsonl or episodes.jsonl has them."));
    if (row.initial) parts.push(this.passages("Read at the start", row.initial, { selected, gold, golds, open: false }));
    (row.turns || []).forEach((turn, at) => parts.push(this.turn(turn, at, { selected, gold, golds })));
    if (row.shown) parts.push(this.passages("What the generator read", row.shown, { selected: new Set(), gold, golds, open: false }));
    else if (row.selected) parts.push(this.passages("Selected", row.selected, { selected: new Set(), gold, golds, open: false }));
    return el("article", { class: "one" }, parts);
  }

  turn(turn, at, marks) {
    const marked = turn.marked ? ` · marked ${turn.marked.map((one) => `[${one}]`).join(" ")}` : "";
    return el("div", { class: `turn ${turn.action || ""}` },
      el("h3", {}, `Turn ${at + 1} · ${turn.action || "response"}${marked}`, turn.query ? el("b", {}, `“${turn.query}”`) : null),
      el("pre", {}, turn.response),
      turn.said ? el("pre", {}, turn.said) : null,
      turn.passages ? this.passages(turn.passages.length ? "Found" : "Found nothing", turn.passages, { ...marks, open: true }) : null);
  }

  passages(title, numbers, { selected, gold, golds, open }) {
    return el("details", { open }, el("summary", {}, `${title} (${numbers.length})`), numbers.map(([number, name, text], at) => {
      return el("div", { class: `passage ${selected.has(number) ? "marked" : ""}` },
        selected.has(number) ? el("span", { class: "why" }, "selected") : null,
        gold.has(number) ? el("span", { class: "why" }, "evidence") : null,
        el("span", { class: "n" }, String(at + 1)), el("b", {}, name), " ", ...(text === null ? ["(its text is left out, since this page would be too large with all of them)"] : highlighted(text, golds)));
    }));
  }
}

// The text with gold answers underlined; the search ignores case.
function highlighted(text, golds) {
  const wanted = golds.map((gold) => gold.trim().toLowerCase()).filter((gold) => gold.length > 1), lower = text.toLowerCase();
  const parts = [];
  let at = 0;
  while (at < text.length) {
    let start = -1, length = 0;
    for (const gold of wanted) {
      const found = lower.indexOf(gold, at);
      if (found >= 0 && (start < 0 || found < start)) [start, length] = [found, gold.length];
    }
    if (start < 0) break;
    parts.push(text.slice(at, start), el("span", { class: "gold" }, text.slice(start, start + length)));
    at = start + length;
  }
  return [...parts, text.slice(at)];
}
