// The other views: progress, genes, populations, preferences, two studies.
import { duration, el, facts, heatTable, number, table, within } from "./dom.js";
import { ask, frozen } from "./data.js";
import { heatMaps, scoresOf, tree } from "./model.js";
import { lines } from "./plots.js";
import { best, labels, model, shares, state } from "./state.js";

export async function showProgress(view) {
  const data = await ask("progress", { study: state.study });
  const now = data.status;
  const plot = el("div", { class: "plot" });
  const parts = [facts([
    ["of the budget", `${Number(now.spent.toPrecision(4))} of ${now.budget}`], ["failed", now.failed], ...(frozen ? [] : [["in progress", now.pending], ["time", duration(now.elapsed)]]),
    ...(frozen || now.left === null ? [] : [["left, about", duration(now.left)]]), ...(frozen || now.idle === null ? [] : [["workers idle", `${(100 * now.idle).toFixed(0)}%`]]),
  ])];
  if (data.hypervolume.length) parts.push(el("h2", {}, "Hypervolume of the front on search examples"), plot, el("p", { class: "muted" }, `Above ${data.corner_is}: ${data.corner.map((value, i) => `${state.objectives[i].task} ${number(value, state.objectives[i].share[0])}`).join(", ")}.`),
    el("details", {}, el("summary", {}, "Table"), table(["evaluations", "hypervolume"], data.hypervolume.map((value, i) => [i + 1, value.toPrecision(5)]).filter((row, i, all) => i === 0 || row[1] !== all[i - 1][1]))));
  const whole = Object.values(now.seconds).reduce((sum, value) => sum + value, 0);
  const bar = (value) => {
    const inner = el("i"), outer = el("span", { class: "bar", "aria-hidden": "true" }, inner);
    inner.style.width = `${(100 * value) / whole}%`;
    return outer;
  };
  parts.push(el("h2", {}, "Where the time went, summed over workers"), table(["part", "time", "share", ""], Object.entries(now.seconds).sort((a, b) => b[1] - a[1]).map(([part, value]) => [part, duration(value), `${((100 * value) / whole).toFixed(0)}%`, bar(value)])));
  if (!frozen) parts.push(el("h2", {}, "Workers"), el("p", {}, `${now.state}${now.process ? `: ${now.process}` : ""}${now.ended ? `, ended: ${now.ended}` : ""}${now.since === null ? "" : `, last result ${duration(now.since)} ago`}`));
  parts.push(el("h2", {}, `Failures: ${now.failed}`));
  if (now.failures.length) parts.push(table(["number", "cause, by its first error"], now.failures.map(([error, count]) => el("tr", {}, el("td", {}, count), el("td", { class: "wrap" }, error)))));
  view.replaceChildren(...parts);
  if (data.hypervolume.length) lines(plot, { x: "evaluations", y: "hypervolume", data: [data.hypervolume.map((_, i) => i + 1), data.hypervolume], names: ["hypervolume"], steps: true, label: "Hypervolume against evaluations; the numbers are in the table" });
}

const SLICES = 8;

export async function showGenes(view) {
  const through = state.selected?.startsWith("#") ? state.selected : best(); // a reference is no point of the space
  if (through === null) return view.replaceChildren(el("p", {}, "No candidate has been evaluated yet."));
  view.replaceChildren(el("p", { class: "muted" }, "Fitting surrogates …"));
  const data = await ask("genes", { study: state.study, name: through });
  const tasks = Object.keys(data.importance);
  if (!tasks.length) return view.replaceChildren(el("p", {}, "No objective varies over the candidates."));
  const at = (task) => state.objectives.findIndex((objective) => objective.task === task);
  const top = data.slices.map((slice, i) => [i, Math.max(...tasks.map((task) => data.importance[task][i][0]))]).sort((a, b) => b[1] - a[1]).map(([i]) => i);
  const longest = Math.max(1, ...tasks.flatMap((task) => data.importance[task].map((three) => three[0])));
  const bar = ([value, low, high]) => {
    const inner = el("i"), ends = el("b"), outer = el("span", { class: "bar", "aria-hidden": "true" }, inner, ends);
    inner.style.width = `${(100 * value) / longest}%`;
    if (low !== null) {
      ends.style.left = `${Math.min((100 * low) / longest, 100)}%`;
      ends.style.width = `${(100 * (Math.min(high, longest) - Math.min(low, longest))) / longest}%`;
    }
    return el("td", {}, outer, `${(100 * value).toFixed(0)}%${low === null ? "" : ` [${(100 * low).toFixed(0)}, ${(100 * high).toFixed(0)}]`}`);
  };
  const plots = el("div", { class: "plots" });
  const draw = (count) => {
    plots.replaceChildren();
    for (const i of top.slice(0, count)) {
      const slice = data.slices[i], host = el("div", { class: "plot" });
      const behind = el("details", {}, el("summary", {}, "Table"), table([slice.name, ...tasks], slice.values.map((value, k) => [slice.labels ? slice.labels[k] : Number(value.toPrecision(3)).toString(),
        ...tasks.map((task) => `${number(slice.scores[task].mean[k], state.objectives[at(task)].share[0])} ± ${number(slice.scores[task].half[k], state.objectives[at(task)].share[0])}`)])));
      plots.append(el("div", {}, el("h3", {}, slice.name), el("div", {}, host), behind));
      const numbers = slice.labels ? slice.labels.map((_, k) => k) : slice.values;
      lines(host, {
        x: slice.name, y: "predicted score", height: 210, data: [numbers, ...tasks.map((task) => slice.scores[task].mean)], halves: tasks.map((task) => slice.scores[task].half),
        names: tasks, here: slice.here, yShare: tasks.every((task) => state.objectives[at(task)].share[0]), label: `Predicted scores along ${slice.name}`,
      });
    }
  };
  view.replaceChildren(
    el("h2", {}, "Importance"), el("p", { class: "muted" }, "Each gene's share of the variance of the predicted score over the space, alone and together with others; 90% intervals over the candidates."),
    table(["gene", ...tasks], top.map((i) => [data.slices[i].name, ...tasks.map((task) => bar(data.importance[task][i]))])),
    el("h2", {}, `Slices through ${data.through}`), el("p", { class: "muted" }, `Predicted scores with 90% intervals where one gene changes and the others stay; the dashed line is ${data.through}. ${tasks.map((task, i) => `${["Blue", "Orange", "Green", "Pink", "Yellow", "Grey"][i % 6]}: ${task}, R² ${data.fits[task].r2.toFixed(2)} on left-out ones of ${data.fits[task].candidates} candidates`).join(". ")}.`),
    plots, ...(top.length > SLICES ? [el("button", { on: { click: (event) => { draw(top.length); event.target.remove(); } } }, `All ${top.length} genes`)] : []));
  draw(SLICES);
}

export async function showPopulation(view, select) {
  const data = await ask("population", { study: state.study });
  const parts = [], plots = [];
  if (data.not_replayed) parts.push(el("p", { class: "warning" }, `The population is not shown: ${data.not_replayed}`));
  if (data.diagnostics) {
    for (const [what, series] of [["coverage of the search examples", data.diagnostics.coverage], ["entropy (bits)", data.diagnostics.entropy]]) {
      if (!series) continue;
      const host = el("div", { class: "plot" });
      parts.push(el("h2", {}, `${what[0].toUpperCase()}${what.slice(1)}: ${series.at(-1).toFixed(3)}`), el("div", {}, host),
        el("details", {}, el("summary", {}, "Table"), table(["evaluations", what], data.diagnostics.evaluations.map((count, i) => [count, series[i].toFixed(3)]))));
      plots.push(() => lines(host, { x: "evaluations", y: what, data: [data.diagnostics.evaluations, series], names: [what], height: 220, steps: true, label: what }));
    }
    parts.push(el("p", {}, `${data.diagnostics.members} members.`));
  }
  for (const cells of data.cells) {
    const [columns, rows] = [cells.shape[0], cells.shape[1] || 1];
    const grid = Array.from({ length: rows }, () => Array(columns).fill(null));
    for (const [cell, , quality] of cells.elites) {
      const [i, j] = [rows - 1 - (cell[1] || 0), cell[0]];
      if (grid[i][j] === null || quality > grid[i][j]) grid[i][j] = quality;
    }
    const edges = (axis, k) => `${cells.edges[axis][k].toPrecision(3)}`;
    const values = cells.elites.map((one) => one[2]);
    parts.push(el("h2", {}, `Cells: best ${cells.quality}, ${cells.elites.length} of ${cells.shape.reduce((a, b) => a * b, 1)} filled`),
      el("p", { class: "muted" }, `To the right ${cells.axes[0]}${cells.axes[1] ? `, upwards ${cells.axes[1]}` : ""}.`),
      heatTable(Array.from({ length: rows }, (_, i) => (cells.axes[1] ? `from ${edges(1, rows - 1 - i)}` : "")), Array.from({ length: columns }, (_, j) => edges(0, j)), grid, [Math.min(...values), Math.max(...values)], cells.quality));
  }
  if (!data.diagnostics && !data.cells.length && !data.not_replayed) parts.push(el("p", {}, "This search has no population: its candidates are merges of the pool's models alone."));
  if (state.selected !== null) {
    const found = await model(state.selected);
    if (found.family.length) parts.push(el("h2", {}, `The family of ${found.name}`), tree(found.family, select));
  }
  view.replaceChildren(...parts);
  plots.forEach((draw) => draw());
}

const wanted = { way: "weights", numbers: {}, best: "" };
let sent = 0;

export function showPreferences(view) {
  const tasks = state.objectives.map((objective) => objective.task), share = shares("search");
  const answer = el("section", { "aria-live": "polite", id: "answer" }), sliders = el("div");
  const values = state.rows.filter((row) => row.means).map((row) => row.means);
  const send = async () => {
    const mine = ++sent;
    try {
      const data = await ask("prefer", { study: state.study, way: wanted.way, numbers: JSON.stringify(wanted.numbers), ...(wanted.way === "floors" && wanted.best ? { best: wanted.best } : {}) });
      if (mine === sent) answer.replaceChildren(...answered(data, share));
    } catch (error) {
      if (mine === sent) answer.replaceChildren(el("p", { class: "warning" }, error.message));
    }
  };
  const draw = () => {
    const floors = wanted.way === "floors";
    wanted.numbers = {};
    sliders.replaceChildren(...tasks.map((task, i) => {
      const column = values.map((row) => row[i]);
      const low = floors ? column.reduce((a, b) => Math.min(a, b), Infinity) : 0, high = floors ? column.reduce((a, b) => Math.max(a, b), -Infinity) : 1;
      const start = floors ? low : 1;
      const shownNumber = el("output", {}, floors ? number(start, share[i]) : start.toFixed(2));
      wanted.numbers[task] = start;
      const input = el("input", { type: "range", id: `slider-${i}`, "aria-label": `${floors ? "At least, for" : "Weight of"} ${task}`, min: low, max: high, step: "any", on: { input: () => {
        wanted.numbers[task] = Number(input.value);
        shownNumber.textContent = floors ? number(wanted.numbers[task], share[i]) : wanted.numbers[task].toFixed(2);
        send();
      } } });
      input.value = start;
      return el("div", { class: "slider" }, el("span", {}, task), input, shownNumber);
    }), floors ? el("label", {}, "best in ", bestOf) : "");
    send();
  };
  const bestOf = el("select", { on: { change: () => { wanted.best = bestOf.value; send(); } } }, el("option", { value: "" }, "the mean of all"), tasks.map((task) => el("option", { value: task, selected: wanted.best === task }, task)));
  const way = el("select", { id: "way", on: { change: () => { wanted.way = way.value; draw(); } } },
    [["weights", "weights: the best weighted mean"], ["tchebycheff", "weights: the smallest largest gap"], ["floors", "floors: at least so much"]].map(([key, words]) => el("option", { value: key, selected: key === wanted.way }, words)));
  view.replaceChildren(el("div", { class: "columns" }, el("section", {}, el("div", { class: "controls" }, el("label", {}, "Preference by ", way)), sliders), answer));
  answer.replaceChildren(el("p", { class: "muted" }, "Asking the surface …"));
  if (values.length) draw();
  else answer.replaceChildren(el("p", {}, "No candidate has been evaluated yet."));
}

function answered(data, share) {
  const names = labels("search");
  if (data.from === "surface") {
    state.preference = { name: "", label: "preference", kind: "predicted", interval: data.scores.map(([mean, half]) => [mean, mean - half, mean + half]), values: data.scores.map(([mean]) => mean), tint: "picked", said: "predicted" };
    return [el("h2", {}, "Predicted by the surface"), el("p", { class: "muted" }, data.evaluated ? "The search evaluated this merge." : `Predicted from ${data.candidates} candidates; nothing was evaluated for this, --verify does. It is marked in the picture of the front.`),
      table(["objective", "predicted, 90% interval"], scoresOf(data.scores, share).map((text, i) => [names[i], text])), ...heatMaps(data.panels), el("pre", { class: "command" }, data.command)];
  }
  state.preference = null;
  return [el("h2", {}, `${data.name}, the best of the measured front`), el("p", { class: "muted" }, `There is no surface to ask: ${data.why}. The front's estimates on search examples choose, by ${data.candidates} candidates.`),
    table(["objective", "measured, 95% interval"], data.intervals.map((interval, i) => [names[i], within(interval, share[i])])), el("pre", { class: "command" }, data.command)];
}

export async function showCompare(view) {
  const others = state.studies.map((study, i) => [i, study]).filter(([i]) => i !== state.study);
  const answer = el("div");
  if (!others.length) return view.replaceChildren(el("p", {}, "There is one study here. Type evomerge view DIR DIR for two."));
  const compareWith = async () => {
    try {
      const data = await ask("compare", { study: state.study, against: input.value });
      state.other = { index: Number(input.value), front: data.front, name: data.runs[1].folder };
      const share = shares("search");
      answer.replaceChildren(data.warning ? el("p", { class: "warning" }, data.warning) : "", table(["", ...data.runs.map((run) => run.folder)], [
        ["driver", ...data.runs.map((run) => run.driver)], ["evaluations", ...data.runs.map((run) => run.evaluations)], ["candidates on its front", ...data.runs.map((run) => run.front)],
        ["of these, on the front of both together", ...data.runs.map((run) => run.on_common_front)],
        ["hypervolume above the lowest scores of both", ...data.runs.map((run) => (run.hypervolume === null ? "–" : run.hypervolume.toPrecision(4)))],
        ...state.objectives.map((objective, i) => [`best ${objective.task}`, ...data.runs.map((run) => number(run.best[i], share[i]))]),
        ["picked, mean on unseen examples", ...data.runs.map((run) => (run.picked ? `${run.picked.name}: ${run.picked.mean.map((value) => number(value, shares("unseen").every(Boolean))).join(", ")}` : "no report"))],
      ]), el("p", { class: "muted" }, "Scores are on each study's own search examples; the picture of the front shows the other study's front too. On the same unseen examples:"), el("pre", { class: "command" }, data.command));
    } catch (error) {
      state.other = null;
      answer.replaceChildren(el("p", { class: "warning" }, error.message));
    }
  };
  const input = el("select", { id: "other", on: { change: compareWith } }, others.map(([i, study]) => el("option", { value: i, selected: state.other?.index === i }, study.folder)));
  view.replaceChildren(el("div", { class: "controls" }, el("label", {}, "with ", input)), answer);
  await compareWith();
}
