// The page: reads the data, shows one section at a time, and keeps its name in the address.
"use strict";

async function unpack(element) {
  const packed = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// What is needed of every episode at once comes as columns; the rest of an episode is in its part.
async function read() {
  const report = await unpack(document.getElementById("data")), columns = report.episodes;
  report.episodes = (columns.group || []).map((group, at) => ({
    group, task: columns.task[at], outcome: columns.outcome[at], reward: columns.reward[at] ?? undefined,
    recall: columns.recall[at] ? Array.from(columns.recall[at], Number) : undefined,
    counts: { searches: columns.searches[at] ?? undefined, policy_response_tokens: columns.policy_response_tokens[at] ?? undefined },
    failure: columns.failed_at[at] === null ? undefined : [columns.failed_at[at]],
  }));
  report.details = new Parts("episodes", report.part);
  report.passages = new Parts("passages", report.part);
  return report;
}

// A list in parts, of which the last ones that were asked for stay unpacked.
class Parts {
  constructor(name, size) {
    this.name = name;
    this.size = size;
    this.unpacked = new Map();
  }

  async element(number) {
    const id = `${this.name}-${number}`;
    for (;;) {
      const found = document.getElementById(id);
      // While the page loads, the last element may be there in half.
      if (document.readyState !== "loading" || found?.nextElementSibling) return found;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  part(number) {
    const known = this.unpacked.get(number) || this.element(number).then(unpack);
    this.unpacked.delete(number);
    this.unpacked.set(number, known);
    if (this.unpacked.size > 16) this.unpacked.delete(this.unpacked.keys().next().value);
    return known;
  }

  async get(number) {
    return (await this.part(Math.floor(number / this.size)))[number % this.size];
  }
}

function colourOf(names) {
  return (name) => COLOURS[names.indexOf(name) % COLOURS.length];
}

// The largest value if the values differ; null if all are equal.
function leader(values) {
  return Math.max(...values) > Math.min(...values) ? Math.max(...values) : null;
}

function evaluationSection(report, evaluation) {
  const { table, anchors, name } = evaluation;
  const agents = table.agents.map((agent) => agent.agent), colour = colourOf(agents);
  const sources = [...new Set(table.agents.flatMap((agent) => Object.keys(agent.sources)))].sort();
  const body = el("div");
  addSamples(table.agents.flatMap((agent) => Object.keys(agent.overall)));
  const views = [["overall", "All questions"], ...(sources.length > 1 ? [["macro", "Macro average of the data sources"]] : []), ...sources.map((source) => [source, source])];
  const estimates = (agent, view) => (view === "overall" || view === "macro" ? agent[view] : agent.sources[view]) || {};

  function draw(view) {
    const measures = Object.keys(MEASURES).filter((measure) => table.agents.some((agent) => estimates(agent, view)[measure]));
    const best = Object.fromEntries(measures.filter((one) => MEASURES[one].percent).map((one) => [one, leader(table.agents.map((agent) => estimates(agent, view)[one]?.mean ?? -1))]));
    const published = (agent) => anchors[agent]?.scores?.[view];
    const anyPublished = agents.some(published);
    const rows = table.agents.map((agent) => {
      const failed = Object.entries(agent.failed), done = agent.questions * agent.samples - failed.reduce((sum, [, n]) => sum + n, 0);
      const cells = measures.map((measure) => {
        const one = estimates(agent, view)[measure];
        if (!one) return el("td", {}, "–");
        const interval = MEASURES[measure].percent ? el("small", {}, `${shown(measure, one.low)}–${shown(measure, one.high)}`) : null;
        return el("td", { class: one.mean === best[measure] ? "best" : null }, shown(measure, one.mean), interval);
      });
      return el("tr", {}, el("td", {}, el("i", { class: "dot", style: `background:${colour(agent.agent)}` }), agent.agent),
        el("td", { class: failed.length ? "gap" : null }, agent.samples > 1 ? `${done}/${agent.questions}×${agent.samples}` : `${done}/${agent.questions}`, failed.length ? el("small", {}, failed.map(([boundary, n]) => `${n} ${boundary}`).join(", ")) : null),
        cells, anyPublished ? el("td", {}, published(agent.agent) ? `${published(agent.agent)[0]} (${published(agent.agent)[1]})` : "–") : null);
    });
    const points = table.agents.map((agent) => ({ agent: agent.agent, ...estimates(agent, view).gen_acc })).filter((one) => one.mean !== undefined);
    body.replaceChildren(
      el("div", { class: "panel scroll" }, el("table", { id: "results" }, el("thead", {}, el("tr", {}, el("th", {}, "agent"), el("th", {}, "questions"), measures.map((measure) => el("th", {}, MEASURES[measure].name + (MEASURES[measure].percent ? " %" : ""))), anyPublished ? el("th", {}, "published GenAcc (EM)") : null)), el("tbody", {}, rows))),
      el("div", { class: "grid", style: "margin-top:14px" },
        (points.length || null) && chart("GenAcc with its 95 % interval", null, {
          height: points.length * 34 + 60, marginLeft: 150, x: { label: "GenAcc, %", grid: true, zero: true }, y: { label: null, domain: agents },
          marks: [
            Plot.ruleY(points, { y: "agent", x1: (one) => 100 * one.low, x2: (one) => 100 * one.high, stroke: (one) => colour(one.agent), strokeWidth: 3, strokeOpacity: 0.45 }),
            Plot.dot(points, { y: "agent", x: (one) => 100 * one.mean, fill: (one) => colour(one.agent), r: 5 }),
          ],
        }),
        differences(table), evidenceAfter(table, agents, colour)));
  }

  const choice = el("select", { "aria-label": "Questions", onchange: (event) => draw(event.target.value) }, views.map(([value, label]) => el("option", { value }, label)));
  draw("overall");
  const reasons = [...new Set(Object.values(anchors).map((anchor) => anchor.reason).filter(Boolean))];
  const from = [...new Set(Object.values(anchors).filter((anchor) => anchor.method).map((anchor) => anchor.source))];
  return el("section", {},
    el("h2", {}, name),
    el("p", { class: "note" }, `Means over the questions that have a result; 95 % bootstrap intervals. A question without a result is missing, never wrong. ${from.concat(reasons).map((one) => one[0].toUpperCase() + one.slice(1)).join(". ")}.`),
    el("div", { class: "bar" }, choice), body, distributions(report, name, agents, colour));
}

function differences(table) {
  const rows = table.differences.filter((one) => one.measure === "gen_acc");
  if (!rows.length) return null;
  const points = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)}`;
  return el("div", { class: "panel scroll pairs" }, el("h3", {}, "Pairs on the questions that both have"),
    el("table", {}, el("thead", {}, el("tr", {}, ["second − first", "n", "GenAcc, points", "p (Holm)"].map((head) => el("th", {}, head)))),
      el("tbody", {}, rows.map((one) => el("tr", {}, el("td", {}, `${one.second} − ${one.first}`), el("td", {}, String(one.n)),
        el("td", {}, points(one.gain), el("small", {}, `${points(one.low)} to ${points(one.high)}`)), el("td", { class: one.p_holm < 0.05 ? "best" : null }, one.p_holm < 0.0001 ? "< 0.0001" : one.p_holm.toPrecision(2)))))),
    el("p", { class: "note" }, `${rows.some((one) => one.test === "wilcoxon") ? "Signed-rank test of the means over samples, or exact McNemar test of single ones" : "Exact McNemar test"}, corrected for all pairs (Holm).`));
}

function evidenceAfter(table, names, colour) {
  const rows = table.agents.flatMap((agent) => agent.evidence_after.map((one, at) => ({ label: agent.agent, at, mean: 100 * one.mean, low: 100 * one.low, high: 100 * one.high })));
  if (!rows.length) return null;
  const { documents, in_corpus, left_out } = table.coverage;
  const known = in_corpus === null || in_corpus === undefined ? "" : ` The corpus has ${in_corpus} of ${documents} gold documents; ${left_out} questions without any are left out.`;
  return chart("Evidence found", `Recall of the gold documents by retrieval, with 95 % intervals; 0 is the initial one.${known}`, {
    names, colour, x: { label: "retrieval", ticks: d3.range(0, 1 + Math.max(...rows.map((row) => row.at))), tickFormat: "d" }, y: { label: "%", grid: true, domain: [0, 100] },
    marks: [
      Plot.areaY(rows, { x: "at", y1: "low", y2: "high", z: "label", fill: (row) => colour(row.label), fillOpacity: 0.12 }),
      Plot.lineY(rows, { x: "at", y: "mean", z: "label", stroke: (row) => colour(row.label), strokeWidth: 2 }), Plot.dot(rows, { x: "at", y: "mean", fill: (row) => colour(row.label), r: 3.5 }),
    ],
  });
}

function distributions(report, folder, names, colour) {
  const groups = report.groups.map((group, number) => ({ number, label: group.agent, folder: group.folder })).filter((group) => group.folder === folder && names.includes(group.label));
  const own = report.episodes.filter((row) => groups.some((group) => group.number === row.group)), label = (row) => report.groups[row.group].agent;
  const done = own.filter((row) => row.outcome !== "failed");
  const recall = [];
  for (const group of groups) {
    const rows = done.filter((row) => row.group === group.number && row.recall);
    const longest = Math.max(0, ...rows.map((row) => row.recall.length));
    for (let at = 0; at < longest; at++) recall.push({ label: group.label, at, share: 100 * d3.mean(rows, (row) => row.recall[Math.min(at, row.recall.length - 1)]) });
  }
  const failures = d3.rollups(own.filter((row) => row.failure), (rows) => rows.length, label, (row) => row.failure[0]).flatMap(([agent, boundaries]) => boundaries.map(([boundary, n]) => ({ agent, boundary, n })));
  const rewards = done.filter((row) => row.reward !== undefined).map((row) => ({ label: label(row), value: row.reward }));
  const tokens = done.filter((row) => row.counts?.policy_response_tokens).map((row) => ({ label: label(row), value: row.counts.policy_response_tokens }));
  return el("div", { class: "grid", style: "margin-top:14px" },
    steps("Searches a question", "Share of the episodes", shares(done, groups, (row) => row.counts?.searches, 8), { groups, colour, x: "searches", most: 8 }),
    recall.length ? chart("Answer found among what was retrieved", "Share of the episodes by retrieval; 0 is the initial one. An episode that stops keeps what it has.", {
      names, colour,
      x: { label: "retrieval", ticks: d3.range(0, 1 + Math.max(...recall.map((row) => row.at))), tickFormat: "d" }, y: { label: "%", grid: true, domain: [0, 100] }, color: { domain: names, range: names.map(colour) },
      marks: [Plot.lineY(recall, { x: "at", y: "share", z: "label", stroke: "label", strokeWidth: 2 }), Plot.dot(recall, { x: "at", y: "share", fill: "label", r: 3.5 })],
    }) : null,
    histogram("Length of what the policy wrote", "Tokens of all its responses in an episode", tokens, { names, colour, x: "tokens" }),
    histogram("Reward", null, rewards, { names, colour, x: "reward" }),
    failures.length ? chart("Failures by boundary", "These episodes are missing above", {
      height: 80 + 36 * new Set(failures.map((one) => one.boundary)).size, marginLeft: 100, x: { label: "episodes", tickFormat: (n) => (Number.isInteger(n) ? `${n}` : "") }, y: { label: null },
      marks: [Plot.barX(failures, { x: "n", y: "boundary", fill: (row) => colour(row.agent), inset: 3 }), Plot.ruleX([0])],
    }) : null);
}

function runSection(report, run) {
  const phases = report.groups.filter((group) => group.folder === run.name).map((group) => group.agent), colour = colourOf(phases), summary = run.summary;
  const curve = (key) => run.steps.filter((row) => typeof row[key] === "number").map((row) => ({ step: row.step, value: row[key] }));
  const length = curve("response_length/training/avg_by_turn"), turns = run.steps.filter((row) => row["training/n_turns"] && row["training/n_rollouts"]).map((row) => ({ step: row.step, value: row["training/n_turns"] / row["training/n_rollouts"] }));
  const line = (title, note, rows, y) => (rows.length ? chart(title, note, { x: { label: "step", tickFormat: "d" }, y: { label: y, grid: true, zero: true }, marks: [Plot.lineY(rows, { x: "step", y: "value", stroke: COLOURS[0], strokeWidth: 2 }), Plot.dot(rows, { x: "step", y: "value", fill: COLOURS[0], r: 2.5 })] }) : null);
  const gain = summary ? `${(100 * summary.val_before).toFixed(1)} % before, ${(100 * summary.val_after).toFixed(1)} % after on ${summary.val_n} held-out questions (${summary.test === "wilcoxon" ? "Wilcoxon signed rank" : "exact McNemar"} p = ${summary.p_value.toPrecision(2)})${summary.naive_rag === null ? "" : `; naive RAG ${(100 * summary.naive_rag).toFixed(1)} %`}. ${summary.steps} steps, ${summary.rollouts} rollouts, ${summary.lost_rollouts} lost.` : "This run has no summary: it did not end, or did not validate before and after training.";
  return el("section", {}, el("h2", {}, run.name), el("p", { class: "note" }, gain),
    el("div", { class: "grid" },
      signs(run.signs),
      summary ? chart("By hops", "Validation accuracy: naive RAG, before and after training", {
        marginLeft: 60, x: { label: null, domain: ["naive RAG", "before", "after"] }, fx: { label: "hops" }, y: { label: "%", domain: [0, 100], grid: true },
        marks: [Plot.barY(Object.entries(summary.by_hops).flatMap(([hops, part]) => [["naive RAG", part.naive_rag], ["before", part.before], ["after", part.after]].filter(([, value]) => value !== undefined).map(([phase, value]) => ({ hops, phase, value: 100 * value }))), { fx: "hops", x: "phase", y: "value", fill: (row) => ({ "naive RAG": COLOURS[8], before: COLOURS[5], after: COLOURS[0] })[row.phase], inset: 1 }), Plot.ruleY([0])],
      }) : null,
      line("Turns an episode", null, turns, "turns"), line("Tokens a response", null, length, "tokens")),
    distributions(report, run.name, phases, colour));
}

// One panel below the other over the same steps, since their units differ; the steps of the guard go through all of them.
function signs({ panels, guard, sentence }) {
  if (!panels.length) return null;
  const names = panels.flatMap((panel) => panel.curves.map((curve) => curve.name)), colour = colourOf(names);
  const steps = panels.flatMap((panel) => panel.curves.flatMap((curve) => curve.points.map(([step]) => step)));
  // The best step is never after the guard's, so their names do not meet.
  const marked = guard ? [{ step: guard.best_step, name: "best", colour: "var(--soft)", dash: "2 3", anchor: "end" }, { step: guard.step, name: "guard", colour: "var(--ink)", dash: null, anchor: "start" }] : [];
  const domain = d3.extent([...steps, ...marked.map((one) => one.step)]);
  const figures = panels.map((panel, at) => {
    const rows = panel.curves.flatMap((curve) => curve.points.map(([step, value]) => ({ name: curve.name, step, value }))), last = at === panels.length - 1;
    return Plot.plot({
      width: 560, height: last ? 150 : 118, marginLeft: 52, marginTop: at ? 22 : 34, marginBottom: last ? 40 : 8, style: { color: "var(--ink)" },
      x: { domain, label: last ? "step" : null, tickFormat: "d", ticks: last ? undefined : [] }, y: { label: panel.label, grid: true, ticks: 4, nice: true },
      marks: [
        ...marked.map((one) => Plot.ruleX([one], { x: "step", stroke: one.colour, strokeWidth: 1.5, strokeDasharray: one.dash })),
        ...(at ? [] : [marked.map((one) => Plot.text([one], { x: "step", text: "name", fill: one.colour, textAnchor: one.anchor, frameAnchor: "top", dy: -12, fontWeight: 600 }))]),
        Plot.lineY(rows, { x: "step", y: "value", z: "name", stroke: (row) => colour(row.name), strokeWidth: 2 }),
        Plot.dot(rows, { x: "step", y: "value", fill: (row) => colour(row.name), r: 2.5 }),
      ],
    });
  });
  return el("div", { class: "panel signs" }, el("h3", {}, "Signs of a collapse"),
    el("p", { class: "note" }, `The log-prob of correct responses falls first, the reward last. ${sentence}`), legend(names, colour), el("figure", {}, figures));
}

function allRuns(report) {
  const label = (run) => run.name.replace(/-seed\d+$/, ""), names = [...new Set(report.runs.map(label))], colour = colourOf(names);
  const curve = (key) => report.runs.flatMap((run) => run.steps.filter((row) => typeof row[key] === "number").map((row) => ({ run: run.name, label: label(run), step: row.step, value: row[key] })));
  const figure = (title, note, key) => chart(title, note, {
    names, colour, x: { label: "step", tickFormat: "d" }, y: { label: "reward", grid: true, zero: true }, color: { domain: names, range: names.map(colour) },
    marks: [Plot.lineY(curve(key), { x: "step", y: "value", z: "run", stroke: "label", strokeWidth: 1.5 }), Plot.dot(curve(key), { x: "step", y: "value", fill: "label", r: 2.5, title: "run" })],
  });
  return el("section", {}, el("h2", {}, "All runs"), el("div", { class: "grid" },
    figure("Training", "Mean reward of a step's rollouts; a line is a run", "training/reward"), figure("Validation", "Greedy, before and after training; a line is a run", "val/reward")));
}

function settingSection(report) {
  const flat = (value, path = []) => (value !== null && typeof value === "object" ? Object.entries(value).flatMap(([key, inner]) => flat(inner, [...path, key])) : [[path.join("."), String(value)]]);
  const list = (name, value) => el("div", { class: "panel" }, el("h3", {}, name), el("dl", { class: "setting" }, flat(value).map(([key, inner]) => [el("dt", {}, key), el("dd", {}, inner)])));
  return [...report.evaluations.map((one) => list(one.name, one.setting)), ...report.runs.filter((one) => one.summary).map((one) => list(one.name, one.summary))];
}

async function main() {
  const report = await read(), several = report.evaluations.length + report.runs.length > 1;
  const labels = report.groups.map((group) => (several || group.kind !== "evaluation" ? `${group.folder} · ${group.agent}` : group.agent));
  const place = document.getElementById("main"), tabs = document.getElementById("tabs"), root = document.documentElement;
  let viewer = null;
  const parts = {
    results: report.evaluations.length ? ["Results", () => report.evaluations.map((one) => evaluationSection(report, one))] : null,
    training: report.runs.length ? ["Training", () => [...(report.runs.length > 1 ? [allRuns(report)] : []), ...report.runs.map((one) => runSection(report, one))]] : null,
    trajectories: ["Trajectories", () => [(viewer ||= new Viewer(report, labels)).root]],
    setting: ["Setting", () => settingSection(report)],
  };
  function open(part) {
    place.classList.toggle("wide", part === "trajectories");
    place.replaceChildren(...parts[part][1]());
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.part === part));
    if (part === "trajectories") { viewer.draw(); viewer.list.focus({ preventScroll: true }); }
    window.scrollTo(0, 0);
  }
  const known = Object.keys(parts).filter((part) => parts[part]);
  const wanted = () => (known.includes(location.hash.slice(1)) ? location.hash.slice(1) : known[0]);
  tabs.append(...known.map((part) => el("button", { type: "button", role: "tab", "data-part": part, onclick: () => { location.hash = part; } }, parts[part][0])));
  if (report.withheld) place.before(el("p", { class: "note withheld", id: "withheld", role: "note" }, report.withheld));
  document.getElementById("subtitle").textContent = [...report.evaluations, ...report.runs].map((one) => one.name).join(", ");
  root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });
  window.addEventListener("hashchange", () => open(wanted()));
  open(wanted());
  document.body.dataset.ready = "yes";
}

main().catch((error) => { document.getElementById("main").replaceChildren(el("p", { class: "loading" }, `The report can not be read: ${error}`)); throw error; });
