// Helpers for all sections of the page: elements whose text is never HTML, and charts by Observable Plot.
"use strict";

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#8c564b", "#5d6670", "#e377c2"];

// Text always becomes a text node: what a model wrote is never parsed as HTML.
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const MEASURES = {
  gen_acc: { name: "GenAcc", percent: true }, exact_match: { name: "EM", percent: true }, f1: { name: "F1", percent: true },
  answer_recall: { name: "answer recall", percent: true },
  evidence_retrieved_recall: { name: "ev. found", percent: true }, evidence_selected_recall: { name: "ev. selected", percent: true },
  evidence_selected_precision: { name: "ev. precision", percent: true }, "evidence_retrieved_ndcg@10": { name: "ev. nDCG@10", percent: true },
  evidence_retrieved_mrr: { name: "ev. MRR", percent: true }, searches: { name: "searches", digits: 2 }, turns: { name: "turns", digits: 2 },
  tokens: { name: "tokens", digits: 0 }, seconds: { name: "seconds", digits: 2 }, cost_usd: { name: "US$ a 1000", digits: 3, scale: 1000 },
};

// avg@n, pass@k and majority@n of evaluations with several samples.
function addSamples(measures) {
  for (const measure of measures) if (/^(avg|pass|majority)@\d+$/.test(measure)) MEASURES[measure] ||= { name: measure, percent: true };
}

function shown(measure, value) {
  const { percent, digits, scale } = MEASURES[measure];
  return percent ? (100 * value).toFixed(1) : (value * (scale || 1)).toFixed(digits);
}

function legend(names, colour) {
  return el("div", { class: "legend" }, names.map((name) => el("span", {}, el("i", { class: "dot", style: `background:${colour(name)}` }), name)));
}

// If `names` and `colour` are given, the chart has a legend.
function chart(title, note, { names, colour, ...options }) {
  const figure = el("figure", {}, Plot.plot({ width: 560, height: 260, marginLeft: 52, marginBottom: 40, style: { color: "var(--ink)" }, ...options }));
  return el("div", { class: "panel" }, el("h3", {}, title), note ? el("p", { class: "note" }, note) : null, names ? legend(names, colour) : null, figure);
}

function shares(episodes, groups, value, most) {
  // The share of each group's episodes at each integer value; values above `most` are counted at `most`.
  const counts = new Map(groups.map((group) => [group.label, new Map()]));
  const totals = new Map();
  for (const episode of episodes) {
    const found = value(episode);
    const group = groups.find((one) => one.number === episode.group);
    if (found === undefined || !group) continue;
    const at = Math.min(found, most), own = counts.get(group.label);
    own.set(at, (own.get(at) || 0) + 1);
    totals.set(group.label, (totals.get(group.label) || 0) + 1);
  }
  return [...counts].flatMap(([label, own]) => [...own].map(([at, n]) => ({ label, at, share: n / totals.get(label), n })));
}

function steps(title, note, rows, { groups, colour, x, most }) {
  if (!rows.length) return null;
  return chart(title, note, {
    height: Math.max(120, groups.length * 46 + 70), marginLeft: 150, x: { label: x, tickFormat: (at) => (at === most ? `${at}+` : `${at}`) },
    y: { label: null, domain: groups.map((group) => group.label) }, opacity: { type: "identity" },
    marks: [
      Plot.cell(rows, { x: "at", y: "label", fill: (row) => colour(row.label), fillOpacity: (row) => 0.06 + 0.5 * row.share, inset: 1, rx: 4 }),
      Plot.text(rows, { x: "at", y: "label", text: (row) => `${Math.round(100 * row.share)}%`, fill: "currentColor" }),
    ],
  });
}

function histogram(title, note, values, { names, colour, x }) {
  const labels = names.filter((name) => values.some((value) => value.label === name));
  if (!labels.length) return null;
  return chart(title, note, {
    height: Math.max(170, labels.length * 74 + 50), marginLeft: 52, marginRight: 130, x: { label: x }, y: { label: "episodes", ticks: 2, grid: true }, fy: { label: null, domain: labels },
    marks: [Plot.rectY(values, Plot.binX({ y: "count" }, { x: "value", fy: "label", fill: (row) => colour(row.label), thresholds: 24, inset: 0.5 })), Plot.ruleY([0])],
  });
}
