// The selected model: scores, recipe, examples against another model, lineage, export.
import { el, heatTable, number, svg, table, within } from "./dom.js";
import { ask, frozen, post } from "./data.js";
import { model, state } from "./state.js";

let asked = 0;

export async function showModel(host, select) {
  if (state.selected === null) {
    host.replaceChildren(el("p", { class: "muted" }, "No candidate has been evaluated yet."));
    return;
  }
  const mine = ++asked;
  try {
    const found = await model(state.selected, state.against || "");
    if (mine === asked && (host.dataset.shown !== `${state.study} ${found.name} ${state.against} ${state.reported}` || !host.childElementCount)) {
      host.dataset.shown = `${state.study} ${found.name} ${state.against} ${state.reported}`;
      host.replaceChildren(...describe(found, select));
    }
  } catch (error) {
    if (mine === asked) host.replaceChildren(el("h2", {}, state.selected), el("p", { class: "warning" }, error.message));
  }
}

function describe(found, select) {
  const numbered = found.name.startsWith("#");
  const tags = [numbered && state.front.has(Number(found.name.slice(1))) ? "on the front" : "", state.report?.picked === found.name ? "picked" : ""].filter(Boolean);
  const parts = [el("h2", { id: "selected" }, found.name, tags.length ? el("small", { class: "muted" }, ` ${tags.join(", ")}`) : "")];
  if (found.error) parts.push(el("p", { class: "warning" }, `Failed: ${found.error}`));
  else {
    parts.push(table(["task", "search examples", "unseen examples"], found.scores.map((score, i) => {
      const objective = state.objectives[i];
      const cell = (interval, metric, share) => el("td", {}, within(interval, share), interval ? el("small", {}, ` ${metric}${share ? " (%)" : ""}`) : "");
      return el("tr", {}, el("td", {}, score.task), cell(score.search, objective.search, objective.share[0]), cell(score.unseen, objective.report, objective.share[1]));
    })));
  }
  parts.push(el("h3", {}, "Recipe"), ...heatMaps(found.panels));
  parts.push(el("details", {}, el("summary", {}, "Recipe as YAML"), el("pre", {}, found.yaml)));
  if (found.genes.length) {
    parts.push(el("details", {}, el("summary", {}, `Genes: ${found.genes.length}`), table(["gene", "value", "range"],
      found.genes.map((gene) => [gene.name, typeof gene.value === "number" ? Number(gene.value.toPrecision(4)).toString() : JSON.stringify(gene.value), gene.kind === "choice" ? "" : `${gene.low} to ${gene.high}`]))));
  }
  parts.push(...examples(found, select));
  if (found.family.length) parts.push(el("h3", {}, `Lineage: ${found.family.length - 1} ancestors`), tree(found.family, select));
  parts.push(...exporting(found));
  return parts;
}

export function heatMaps(panels) {
  if (!panels.length) return [el("p", { class: "muted" }, "The recipe has no numbers.")];
  return panels.flatMap((panel) => {
    const all = Object.values(panel.values).flat(2).filter((value) => value !== null);
    if (all.length === 1) return [el("p", {}, `${panel.name}: ${Number(all[0].toPrecision(4))}`)];
    const range = [Math.min(...all), Math.max(...all)];
    const words = panel.columns.length > 1 ? ", by block from left to right" : "";
    return [el("h3", {}, `${panel.name}${words}`, el("small", { class: "muted" }, ` ${Number(range[0].toPrecision(3))} to ${Number(range[1].toPrecision(3))}`)),
      ...Object.entries(panel.values).flatMap(([kind, values]) => [kind ? el("div", { class: "muted" }, kind) : "", heatTable(panel.rows, panel.columns, values, range, `${panel.name} ${kind}`)])];
  });
}

function examples(found, select) {
  const names = [...(state.report ? [state.report.picked, ...state.report.references.map((one) => one.name)] : []), ...[...state.front].map((numbered) => `#${numbered}`)];
  const options = [...new Set(names)].filter((name) => name !== found.name);
  const input = el("select", { id: "against", on: { change: () => select(state.selected, input.value || null) } },
    el("option", { value: "" }, "choose a model"), options.map((name) => el("option", { value: name, selected: name === state.against }, name)));
  if (frozen) return [];
  const parts = [el("h3", {}, "Examples that it gains and loses"), el("label", {}, "against ", input)];
  if (!found.against) return parts;
  const listed = (pairs) => pairs.map(([i, gap]) => `${i}${Math.abs(gap) === 1 ? "" : ` (${gap > 0 ? "+" : ""}${gap.toFixed(2)})`}`).join(", ") || "none";
  if (!found.against.tasks.length) parts.push(el("p", { class: "muted" }, "There are no scores of both on the search examples."));
  parts.push(table(["task", "gained", "lost", "of"], found.against.tasks.map((one) => [one.task, one.gained, one.lost, one.examples])));
  for (const one of found.against.tasks) {
    parts.push(el("details", {}, el("summary", {}, `${one.task}: which`), el("p", {}, `Gained: ${listed(one.most_gained)}`), el("p", {}, `Lost: ${listed(one.most_lost)}`),
      el("p", { class: "muted" }, "Numbers of search examples, from 0; at most 50 each, those that differ most first.")));
  }
  return parts;
}

export function tree(family, select) {
  const known = new Map(family.map((one) => [one.id, one])), depth = new Map();
  const deep = (one) => {
    if (!depth.has(one.id)) depth.set(one.id, 1 + Math.max(-1, ...one.parents.filter((id) => known.has(id)).map((id) => deep(known.get(id)))));
    return depth.get(one.id);
  };
  family.forEach(deep);
  const columns = [];
  for (const one of family) (columns[depth.get(one.id)] ||= []).push(one);
  const height = 30 * Math.max(...columns.map((column) => column.length)) + 20, width = 110 * columns.length;
  const places = new Map(columns.flatMap((column, x) => column.map((one, i) => [one.id, [20 + 110 * x, (height * (i + 1)) / (column.length + 1)]])));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Ancestors, the oldest at the left" });
  for (const one of family) for (const id of one.parents) {
    if (!places.has(id)) continue;
    const [[x1, y1], [x2, y2]] = [places.get(id), places.get(one.id)];
    picture.append(svg("line", { x1, y1, x2, y2, stroke: "var(--line)" }));
  }
  const named = (one) => (one.number === null ? one.id.slice(0, 6) : `#${one.number}`) + (one.parents.length ? "" : ` ${one.experts.join(" ") || "base"}`);
  for (const one of family) {
    const [x, y] = places.get(one.id);
    const words = svg("text", { x: x + 8, y: y + 4 });
    words.textContent = named(one);
    picture.append(svg("circle", { cx: x, cy: y, r: 5, fill: one === family[0] ? "var(--picked)" : one.parents.length ? "var(--front)" : "var(--expert)" }), words);
  }
  const rows = family.map((one) => [one.number === null || frozen ? named(one) : el("button", { class: "link", on: { click: () => select(`#${one.number}`) } }, named(one)),
    one.parents.map((id) => (known.has(id) ? named(known.get(id)) : id.slice(0, 6))).join(", ")]);
  return el("div", {}, el("div", { class: "scroll", tabindex: "0" }, picture), el("details", {}, el("summary", {}, "Table"), table(["model", "parents"], rows)));
}

function exporting(found) {
  if (!found.command) return [];
  const parts = [el("h3", {}, "Export"), el("pre", { id: "command", class: "command" }, found.command)];
  const copy = el("button", { on: { click: () => navigator.clipboard.writeText(found.command).then(() => { copy.textContent = "Copied"; }) } }, "Copy");
  if (frozen) return parts;
  parts.push(el("div", { class: "controls" }, copy, el("button", { id: "export-button", on: { click: () => askToken(Number(found.name.slice(1))) } }, "Export here")));
  return parts;
}

function askToken(numbered) {
  const dialog = document.getElementById("export"), study = state.study;
  const token = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const said = el("div", { role: "status" }), start = el("button", { type: "submit", id: "start-export" }, "Export");
  const follow = async () => {
    const now = await ask("export", { study, number: numbered });
    said.replaceChildren(el("p", {}, { running: "Exporting …", done: `Written: ${now.out}`, failed: "Failed:", none: "" }[now.state]), now.state === "done" ? "" : el("pre", {}, now.lines.slice(-8).join("\n")));
    said.dataset.state = now.state;
    if (now.state === "running" && dialog.open) setTimeout(() => follow().catch(fail), 700);
    else start.disabled = false;
  };
  const fail = (error) => {
    said.replaceChildren(el("p", { class: "warning" }, error.message));
    start.disabled = false;
  };
  const form = el("form", { on: { submit: (event) => {
    event.preventDefault();
    start.disabled = true;
    post({ study, number: numbered }, token.value).then(follow).catch(fail);
  } } },
  el("h2", {}, `Export #${numbered}`), el("p", {}, "Writes a checkpoint into the study's folder. The terminal that runs evomerge view shows the token."),
  el("p", {}, el("label", {}, "Token ", token)), said,
  el("div", { class: "controls" }, start, el("button", { type: "button", on: { click: () => dialog.close() } }, "Close")));
  dialog.replaceChildren(form);
  dialog.showModal();
}

export function scoresOf(scores, shares) {
  return scores.map(([mean, half], i) => `${number(mean, shares[i])} ± ${number(half, shares[i])}`);
}
