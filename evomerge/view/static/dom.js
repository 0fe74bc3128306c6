// Elements, numbers and colours. Data becomes text nodes only: a name can never become markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (key === "class") node.className = value;
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function number(value, share = false) {
  if (value === null || value === undefined) return "–";
  return share ? (100 * value).toFixed(1) : Math.abs(value) >= 1000 ? value.toPrecision(4) : value.toFixed(3);
}

export function within(interval, share) {
  if (!interval) return "–";
  return `${number(interval[0], share)} [${number(interval[1], share)}, ${number(interval[2], share)}]`;
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (!minutes) return `${Math.round(seconds)} s`;
  return minutes < 60 ? `${minutes} min ${Math.round(seconds) % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function table(head, rows, attributes = {}) {
  const cell = (tag, value) => value instanceof Node && ["TD", "TH"].includes(value.tagName) ? value : el(tag, tag === "th" ? { scope: "col" } : {}, value);
  const body = rows.map((row) => row instanceof Node ? row : el("tr", {}, row.map((value) => cell("td", value))));
  return el("div", { class: "scroll", tabindex: "0" },
    el("table", attributes, el("thead", {}, el("tr", {}, head.map((value) => cell("th", value)))), el("tbody", {}, body)));
}

export function facts(entries) {
  return el("dl", { class: "facts" }, entries.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, value))));
}

// Cividis (Nuñez, Anderton & Renslow 2018), which suits colour-blind readers, by six of its colours.
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];

export function heatColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const mixed = CIVIDIS[low].map((part, i) => Math.round(part + (CIVIDIS[low + 1][i] - part) * (at - low)));
  const bright = 0.2126 * mixed[0] + 0.7152 * mixed[1] + 0.0722 * mixed[2];
  return [`rgb(${mixed.join(",")})`, bright > 118 ? "#000000" : "#ffffff"];
}

export function heatTable(rows, columns, values, range, label) {
  const [low, high] = range;
  const digits = Math.min(Math.max(1 - Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high)) || 1)), 0), 6);
  const show = (value) => Number(value.toFixed(digits)).toString();
  const written = columns.length <= 16;
  const body = values.map((line, i) => el("tr", {}, el("th", { scope: "row", title: rows[i] }, rows[i] || "all"), line.map((value, j) => {
    if (value === null) return el("td", { class: "none", title: "none" });
    const [back, ink] = heatColour(high > low ? (value - low) / (high - low) : 0.5);
    const cell = el("td", { title: `${rows[i] || "all"}, ${columns[j] || "all"}: ${value}` }, written ? show(value) : el("span", { class: "skip" }, show(value)));
    cell.style.backgroundColor = back;
    cell.style.color = ink;
    return cell;
  })));
  const head = columns.length > 1 || columns[0] ? el("thead", {}, el("tr", {}, el("td"), columns.map((name) => el("th", { scope: "col" }, name)))) : null;
  return el("div", { class: "scroll", tabindex: "0" }, el("table", { class: "heat", "aria-label": label }, head, el("tbody", {}, body)));
}
