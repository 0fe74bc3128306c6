// The front: pictures of all models, and the table behind them.
import { el, number, table, within } from "./dom.js";
import { legend } from "./marks.js";
import { parallel, rotatable } from "./pictures.js";
import { Scatter } from "./plots.js";
import { showModel } from "./model.js";
import { labels, model, points, shares, state } from "./state.js";

const PAGE = 100;
const shown = { scatters: [], key: "", from: 0 };

export function showFront(view, select) {
  const pictures = el("div"), controls = el("div", { class: "controls" }), key = el("div"), below = el("section", { class: "panel", "aria-label": "Tables" });
  const chosen = el("section", { class: "panel", "aria-label": "The selected model" });
  view.replaceChildren(el("div", { class: "columns front" }, el("section", { class: "panel", "aria-label": "The front" }, controls, key, pictures), chosen, below));
  Object.assign(shown, { pictures, controls, legend: key, below, chosen, select, key: "", from: 0 });
  updateFront();
}

function choice(label, value, options, change) {
  const input = el("select", { on: { change: () => change(input.value) } }, options.map(([key, words]) => el("option", { value: key, selected: key === value }, words)));
  return el("label", {}, `${label} `, input);
}

export function updateFront() {
  const count = state.objectives.length;
  if (!count || !shown.pictures) return;
  const same = state.objectives.every((objective) => objective.same);
  const splits = [["search", "search examples"], ...(state.report ? [["unseen", "unseen examples"], ...(same ? [["both", "both: search, and a line to unseen"]] : [])] : [])];
  if (!splits.some(([key]) => key === state.split)) state.split = "search";
  const pictures = count === 3 ? [["pairs", "pairs"], ["rotatable", "one to rotate"], ["parallel", "parallel coordinates"]] : count > 3 ? [["parallel", "parallel coordinates"], ...(count === 4 ? [["pairs", "pairs"]] : [])] : [["pairs", "scatter"]];
  if (!pictures.some(([key]) => key === state.picture)) state.picture = pictures[0][0];
  shown.controls.replaceChildren(
    choice("Scores on", state.split, splits, (value) => { state.split = value; shown.key = ""; updateFront(); }),
    ...(pictures.length > 1 ? [choice("Picture", state.picture, pictures, (value) => { state.picture = value; shown.key = ""; updateFront(); })] : []),
    el("span", { class: "muted" }, count > 1 && state.picture === "pairs" ? "Drag to zoom, double-click to zoom out." : ""));
  const all = points(), marked = [state.selected, state.against].filter(Boolean);
  shown.legend.replaceChildren(legend(all), el("p", { class: "muted" }, said()));
  if (state.picture === "pairs") scatters(all, marked);
  else {
    const host = el("div", { class: "plot" });
    shown.pictures.replaceChildren(host);
    shown.key = "";
    (state.picture === "rotatable" ? rotatable : parallel)(host, { points: all, objectives: labels(), shares: shares(), marked, pick: shown.select, turn: state.turn });
  }
  tables();
  showModel(shown.chosen, shown.select);
}

function said() {
  const intervals = Object.keys(state.intervals).length || state.split !== "search";
  const judged = state.report ? ` The report is of ${state.report.evaluations} evaluations.` : " There is no report yet, so nothing is scored on unseen examples.";
  if (state.picture !== "pairs") return `The 95% intervals are in the tables.${judged}`;
  return (intervals ? "Lines are 95% intervals over the examples." : "Intervals of a selected model are beside the picture.") + judged;
}

function scatters(all, marked) {
  const count = state.objectives.length;
  const pairs = [];
  for (let i = 0; i < count; i++) for (let j = i + 1; j < count; j++) pairs.push([i, j]);
  const key = `${state.study} ${state.split} ${count}`;
  if (shown.key !== key) {
    const names = labels(), share = shares();
    const hosts = (pairs.length ? pairs : [[0]]).map(() => el("div", { class: "plot" }));
    shown.pictures.replaceChildren(el("div", { class: pairs.length > 1 ? "plots" : "" }, hosts));
    const tell = (point) => new Promise((done) => setTimeout(done, 150)).then(() => (point.name ? model(point.name).then((found) => found.yaml) : ""));
    const options = { height: pairs.length > 1 ? 320 : 480, pick: (name) => name && shown.select(name), tell };
    shown.scatters = pairs.length
      ? pairs.map(([i, j], at) => new Scatter(hosts[at], { ...options, x: names[i], y: names[j], xShare: share[i], yShare: share[j], label: `${names[i]} and ${names[j]}` }))
      : [new Scatter(hosts[0], { ...options, x: "candidate", y: names[0], xShare: false, yShare: share[0], label: names[0] })];
    shown.key = key;
  }
  if (!pairs.length) {
    const known = all.map((point) => ({ ...point, values: [point.name.startsWith("#") ? Number(point.name.slice(1)) : 0, point.values[0]] }));
    shown.scatters[0].set(known.map((point) => ({ ...point, from: null, interval: point.interval && [[0, point.values[0], point.values[0]], point.interval[0]] })), marked);
    return;
  }
  pairs.forEach(([i, j], at) => {
    const flat = all.map((point) => ({ ...point, values: [point.values[i], point.values[j]], interval: point.interval && [point.interval[i], point.interval[j]], from: point.from && [point.from[i], point.from[j]] }));
    shown.scatters[at].set(flat, marked);
  });
}

function tables() {
  const name = (label, key = label) => el("td", {}, el("button", { class: "link", on: { click: () => shown.select(key) } }, label));
  const row = (key, label, cells) => el("tr", { "aria-selected": key === state.selected ? "true" : false }, name(label, key), cells.map((cell) => el("td", {}, cell)));
  const share = shares("search"), unseen = shares("unseen");
  const front = state.rows.filter((one) => state.front.has(one.number)).sort((a, b) => b.means[0] - a.means[0]);
  const parts = [el("h2", {}, `The front on search examples: ${front.length}`),
    table(["model", ...labels("search")], front.slice(0, 200).map((one) => row(`#${one.number}`, `#${one.number}`, one.means.map((value, i) => (state.intervals[one.number] ? within(state.intervals[one.number][i], share[i]) : number(value, share[i]))))))];
  if (state.report) {
    const lines = [...state.report.references, ...state.report.front].map((one) => row(one.name, one.label + (one.name === state.report.picked ? " (picked)" : ""), [...one.report.map((interval, i) => within(interval, unseen[i])), one.on_front === null ? "" : `${(100 * one.on_front).toFixed(0)}%`]));
    parts.push(el("h2", {}, "On unseen examples"), table(["model", ...labels("unseen"), "on the front"], lines),
      el("details", {}, el("summary", {}, "What the report says"), state.report.sentences.map((text) => el("p", {}, text))));
  }
  const pages = Math.ceil(state.rows.length / PAGE);
  shown.from = Math.min(shown.from, Math.max(pages - 1, 0));
  const open = shown.below.querySelector("#candidates")?.open;
  const step = (by) => el("button", { disabled: shown.from + by < 0 || shown.from + by >= pages, on: { click: () => { shown.from += by; tables(); } } }, by < 0 ? "Earlier" : "Later");
  const rows = state.rows.slice(shown.from * PAGE, (shown.from + 1) * PAGE);
  parts.push(el("details", { id: "candidates", open: open === true }, el("summary", {}, `All candidates: ${state.rows.length}${state.leftOut ? `, and ${state.leftOut} that this file has no room for` : ""}`),
    table(["model", ...labels("search")], rows.map((one) => row(`#${one.number}`, `#${one.number}`, one.means ? one.means.map((value, i) => number(value, share[i])) : [`failed: ${one.error}`]))),
    pages > 1 ? el("div", { class: "controls" }, step(-1), el("span", {}, `${shown.from + 1} of ${pages}`), step(1)) : null));
  shown.below.replaceChildren(...parts);
}
