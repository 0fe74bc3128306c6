// The page: which study and which view are shown, and when it asks for more.
import { el } from "./dom.js";
import { ask, frozen } from "./data.js";
import { showFront, updateFront } from "./front.js";
import { redrawAll } from "./plots.js";
import { refresh, reset, state } from "./state.js";
import { showCompare, showGenes, showPopulation, showPreferences, showProgress } from "./views.js";

const FAST = 1500, SLOW = 10000, NEW = 3000; // milliseconds between looks, while a search runs and else, and for new studies
const at = (id) => document.getElementById(id);
const view = at("view"), report = at("report"); // only a saved page has a report, which is there without scripts
const VIEWS = {
  ...(report ? { report: ["Report", () => {}] } : {}),
  front: ["Front", (box) => showFront(box, select)],
  progress: ["Progress", showProgress],
  genes: ["Genes", showGenes],
  ...(frozen && !frozen.population ? {} : { population: ["Population", (box) => showPopulation(box, select)] }),
  ...(frozen ? {} : { preferences: ["Preferences", showPreferences], compare: ["Compare", showCompare] }),
};
let current = Object.keys(VIEWS)[0];

function fail(error) {
  at("error").hidden = false;
  at("error").textContent = error.message;
}

async function show(name) {
  current = name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.setAttribute("aria-selected", String(tab.id === `tab-${name}`));
    tab.tabIndex = tab.id === `tab-${name}` ? 0 : -1;
  }
  at("error").hidden = true;
  view.hidden = name === "report";
  if (report) report.hidden = name !== "report";
  const box = el("div"); // an answer that comes late goes into a box that is no more shown
  view.replaceChildren(box);
  try {
    await VIEWS[name][1](box);
  } catch (error) {
    if (box.isConnected) fail(error);
  }
}

function select(name, against = state.against) {
  state.selected = name;
  state.against = against;
  if (current === "front") updateFront();
  else show("front");
}

function tabs() {
  at("tabs").replaceChildren(...Object.entries(VIEWS).map(([key, [words]]) => el("button", { role: "tab", id: `tab-${key}`, "aria-controls": key === "report" ? "report" : "view", on: { click: () => show(key) } }, words)));
  at("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const keys = Object.keys(VIEWS), next = keys[(keys.indexOf(current) + step + keys.length) % keys.length];
    show(next);
    at(`tab-${next}`).focus();
  });
  for (const panel of [view, report]) panel?.setAttribute("role", "tabpanel");
}

function head() {
  at("title").textContent = state.name;
  document.title = `${state.name}: evomerge`;
  const now = state.status;
  at("state").textContent = `${now.state ? `${now.state}, ` : ""}${Number(now.spent.toPrecision(4))} of ${now.budget} evaluations${now.failed ? `, ${now.failed} failed` : ""}`;
}

async function look() {
  let pause = SLOW;
  try {
    if (!document.hidden) {
      const changed = await refresh();
      at("error").hidden = true;
      head();
      if (changed && current === "front") updateFront();
      else if (changed && current === "progress") await showProgress(view.firstElementChild);
      pause = ["running", "not started"].includes(state.status.state) ? FAST : SLOW;
    } else pause = FAST;
  } catch (error) {
    fail(error instanceof TypeError ? new Error("evomerge view does not answer; start it again") : error);
  }
  if (!frozen) setTimeout(look, pause);
}

function list() {
  const chooser = at("study");
  state.studies.forEach((study, i) => {
    const option = chooser.options[i] || chooser.appendChild(el("option", { value: i })), words = `${study.name} (${study.folder})${study.state ? `, ${study.state}` : ""}`;
    if (option.textContent !== words) option.textContent = words; // an open list stays open
  });
  at("chooser").hidden = state.studies.length < 2;
}

async function lookForStudies() {
  try {
    if (!document.hidden) {
      const before = state.studies.length;
      state.studies = await ask("studies");
      list();
      if (state.studies.length > before && current === "compare") show(current);
    }
  } catch {
    // `look` says why
  }
  setTimeout(lookForStudies, NEW);
}

async function start() {
  tabs();
  if (frozen) at("chooser").hidden = true;
  else {
    state.studies = await ask("studies");
    list();
    setTimeout(lookForStudies, NEW);
    at("study").addEventListener("change", async () => {
      reset(Number(at("study").value));
      await refresh().then(head, fail);
      show(current);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (current === "front" ? show("front") : redrawAll()));
  await show(current);
  look();
}

start().catch(fail);
