// What the page knows of the study that it shows, and which models are selected.
import { number, within } from "./dom.js";
import { ask, frozen } from "./data.js";

export const state = {
  studies: [], study: 0, other: null, rows: [], byNumber: new Map(), front: new Set(), intervals: {}, objectives: [], genes: [], report: null,
  status: null, name: "", folder: "", generation: 0, reported: 0, selected: null, against: null, split: "search", picture: null,
  preference: null, turn: { a: 0.7, b: 0.5 },
};

const models = new Map();

export async function refresh() {
  // Returns whether anything has changed.
  const data = await ask("search", frozen ? {} : { study: state.study, since: state.rows.length, generation: state.generation, reported: state.reported });
  if (frozen && state.rows.length) return false;
  if (data.first === 0) {
    state.rows = [];
    state.byNumber.clear();
    models.clear();
  }
  for (const [numbered, means, error] of data.rows) {
    const row = { number: numbered, means, error };
    state.rows.push(row);
    state.byNumber.set(numbered, row);
  }
  const changed = data.first === 0 || data.rows.length > 0 || "report" in data;
  state.front = new Set(data.front);
  for (const key of ["intervals", "objectives", "genes", "status", "name", "folder", "generation", "reported"]) state[key] = data[key];
  state.leftOut = data.left_out || 0;
  if ("report" in data) {
    state.report = data.report;
    models.clear();
  }
  if (!state.reported) state.report = null;
  if (changed && state.selected === null) state.selected = state.report ? state.report.picked : best();
  return changed;
}

export function reset(study) {
  Object.assign(state, { study, other: null, rows: [], front: new Set(), intervals: {}, report: null, generation: 0, reported: 0, selected: null, against: null, split: "search", picture: null, preference: null });
  state.byNumber.clear();
  models.clear();
}

export function best() {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0);
  const found = state.rows.filter((row) => state.front.has(row.number)).sort((a, b) => mean(b.means) - mean(a.means));
  return found.length ? `#${found[0].number}` : null;
}

export function model(name, against = "") {
  const key = `${name}\n${against}`;
  if (!models.has(key)) {
    models.set(key, ask("model", { study: state.study, name, against }));
    models.get(key).catch(() => models.delete(key));
  }
  return models.get(key);
}

export function shares(split = state.split) {
  return state.objectives.map((objective) => objective.share[split === "search" ? 0 : 1]);
}

export function labels(split = state.split) {
  return state.objectives.map((objective) => `${objective.task}: ${split === "search" ? objective.search : objective.report}${objective.share[split === "search" ? 0 : 1] ? " (%)" : ""}`);
}

function kindOf(name) {
  if (state.report && name === state.report.picked) return "picked";
  if (name === "base") return "base";
  return name.startsWith("expert ") ? "expert" : name.startsWith("#") ? "front" : "reference";
}

function point(name, values, kind, interval, split, more = {}) {
  const share = shares(split);
  const said = state.objectives.map((objective, i) => `${objective.task} ${interval ? within(interval[i], share[i]) : number(values[i], share[i])}`).join(", ");
  const tint = { picked: "picked", base: "base", expert: "expert", reference: "reference" }[kind] || "front";
  return { name, label: more.label || name, values, kind, interval, tint, said: `${said} on ${split === "search" ? "search" : "unseen"} examples`, ...more };
}

export function points() {
  const found = [];
  if (state.split !== "unseen") {
    for (const row of state.rows) {
      if (!row.means) continue;
      const name = `#${row.number}`, on = state.front.has(row.number);
      const kind = state.report && state.report.picked === name ? "picked" : on ? "front" : "candidate";
      if (kind === "candidate") found.push({ name, label: name, values: row.means, kind, interval: null, said: state.objectives.map((objective, i) => `${objective.task} ${number(row.means[i], objective.share[0])}`).join(", ") });
      else found.push(point(name, row.means, kind, state.split === "both" ? null : state.intervals[row.number], "search"));
    }
    for (const one of state.report ? state.report.references : []) found.push(point(one.name, one.search, kindOf(one.name), null, "search", { label: one.label }));
  }
  if (state.split !== "search") {
    const from = (one) => (state.split === "both" ? one.search : null);
    for (const one of state.report.front) {
      const kind = kindOf(one.name);
      found.push(point(one.name, one.report.map(([value]) => value), kind === "picked" ? "picked" : state.split === "both" ? "unseen" : "front", one.report, "unseen", { label: one.label, from: from(one) }));
    }
    for (const one of state.split === "unseen" ? state.report.references : []) found.push(point(one.name, one.report.map(([value]) => value), kindOf(one.name), one.report, "unseen", { label: one.label }));
  }
  if (state.split !== "unseen" && state.other) {
    for (const values of state.other.front) found.push({ name: "", label: `front of ${state.other.name}`, values, kind: "other", interval: null, said: state.objectives.map((objective, i) => `${objective.task} ${number(values[i], objective.share[0])}`).join(", ") });
  }
  if (state.split !== "unseen" && state.preference) found.push(state.preference);
  return found;
}
