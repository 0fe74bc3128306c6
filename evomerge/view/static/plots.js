// Pictures over uPlot: scatters with intervals, and lines with bands. uPlot has the axes, the zoom and the ticks.
import { colour, el, number } from "./dom.js";
import { drawMarks, drawRing } from "./marks.js";

const plots = new Set();

new ResizeObserver(() => {
  for (const plot of plots) {
    if (!plot.host.isConnected) plots.delete(plot);
    else if (plot.host.clientWidth && plot.host.clientWidth !== plot.u.width) plot.u.setSize({ width: plot.host.clientWidth, height: plot.u.height });
  }
}).observe(document.documentElement);

function axes(xLabel, yLabel, xShare, yShare) {
  const one = (label, share) => ({
    label, labelSize: 22, labelFont: "13px system-ui, sans-serif", font: "12px system-ui, sans-serif",
    stroke: () => colour("muted"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false },
    values: (u, splits) => splits.map((split) => (split === null ? "" : share ? Number((100 * split).toPrecision(6)).toString() : Number(split.toPrecision(6)).toString())),
  });
  return [{ ...one(xLabel, xShare), size: 30 }, { ...one(yLabel, yShare), size: 52 }];
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(high >= low)) return [0, 1];
  const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.05;
  return [low - margin, high + margin];
}

export class Scatter {
  // `pick(name)` is called for a click or Enter, `tell(point)` returns a promise of more text for the hovered point.
  constructor(host, { x, y, xShare, yShare, height, label, pick, tell }) {
    this.host = host;
    this.points = [];
    this.marked = [];
    this.at = -1;
    this.tip = el("div", { class: "tip", hidden: true });
    this.ring = el("div", { class: "ring", hidden: true }); // not drawn: a move of the mouse redraws nothing
    this.pick = pick;
    this.tell = tell;
    const wait = { x: [0, 1], y: [0, 1] };
    this.extent = wait;
    this.u = new uPlot({
      width: host.clientWidth || 320, height, legend: { show: false }, axes: axes(x, y, xShare, yShare),
      scales: { x: { time: false, range: (u, low, high) => (u.zoomed ? [low, high] : this.extent.x) }, y: { range: (u, low, high) => (u.zoomed ? [low, high] : this.extent.y) } },
      series: [{}, { paths: () => null, points: { show: false } }],
      cursor: { drag: { x: true, y: true, uni: 12 }, points: { show: false } },
      hooks: { draw: [() => this.draw()], setSelect: [(u) => { if (u.select.width > 2) u.zoomed = true; }] },
    }, [[0, 1], [0, 1]], host);
    host.append(this.tip, this.ring);
    host.tabIndex = 0;
    host.setAttribute("role", "application");
    host.setAttribute("aria-label", `${label}. Arrow keys go through the marked models, Enter selects one; all are in the table.`);
    const over = this.u.over;
    over.addEventListener("mousemove", (event) => this.hover(this.nearest(event.offsetX, event.offsetY)));
    over.addEventListener("mouseleave", () => this.hover(-1));
    over.addEventListener("click", (event) => {
      const found = this.nearest(event.offsetX, event.offsetY);
      if (found >= 0) this.pick(this.points[found].name);
    });
    over.addEventListener("dblclick", () => { this.u.zoomed = false; this.u.setData(this.u.data); });
    host.addEventListener("keydown", (event) => this.key(event));
    host.addEventListener("blur", () => this.hover(-1));
    plots.add(this);
  }

  set(points, marked) {
    const hovered = this.at >= 0 ? this.points[this.at].name : null;
    this.points = points;
    this.marked = marked;
    if (hovered !== null && points[this.at]?.name !== hovered) this.hover(-1); // rows have moved
    const ends = (i) => points.flatMap((point) => (point.interval ? [point.values[i], point.interval[i][1], point.interval[i][2]] : [point.values[i]]));
    this.extent = { x: range(ends(0)), y: range(ends(1)) };
    this.u.setData([this.extent.x, this.extent.y], !this.u.zoomed);
    if (this.u.zoomed) this.u.redraw(false);
  }

  place(values) {
    return [this.u.valToPos(values[0], "x", true), this.u.valToPos(values[1], "y", true)];
  }

  draw() {
    const { ctx: context, bbox } = this.u, scale = devicePixelRatio;
    context.save();
    context.beginPath();
    context.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    context.clip();
    context.lineWidth = scale;
    for (const point of this.points) {
      if (!point.interval) continue;
      context.strokeStyle = colour(point.tint);
      context.globalAlpha = point.kind === "picked" ? 0.9 : 0.4;
      context.beginPath();
      for (const [from, to] of [[[point.interval[0][1], point.values[1]], [point.interval[0][2], point.values[1]]], [[point.values[0], point.interval[1][1]], [point.values[0], point.interval[1][2]]]]) {
        context.moveTo(...this.place(from));
        context.lineTo(...this.place(to));
      }
      context.stroke();
    }
    context.globalAlpha = 0.5;
    context.strokeStyle = colour("muted");
    for (const point of this.points) {
      if (!point.from) continue;
      context.beginPath();
      context.moveTo(...this.place(point.from));
      context.lineTo(...this.place(point.values));
      context.stroke();
    }
    context.globalAlpha = 1;
    drawMarks(context, this.points, (values) => this.place(values), scale);
    for (const point of this.points) {
      const found = this.marked.indexOf(point.name);
      if (found >= 0) drawRing(context, ...this.place(point.values), scale, found === 1);
    }
    context.restore();
  }

  nearest(x, y) {
    let best = 20 * 20, found = -1;
    for (let i = 0; i < this.points.length; i++) {
      const { values, kind } = this.points[i];
      const dx = this.u.valToPos(values[0], "x") - x, dy = this.u.valToPos(values[1], "y") - y;
      const distance = dx * dx + dy * dy + (kind === "candidate" ? 30 : 0); // of two close ones, the one that is marked
      if (distance < best) [best, found] = [distance, i];
    }
    return found;
  }

  hover(i) {
    if (i === this.at) return;
    this.at = i;
    this.tip.hidden = this.ring.hidden = i < 0;
    if (i < 0) return;
    const point = this.points[i];
    const x = this.u.valToPos(point.values[0], "x") + this.u.over.offsetLeft, y = this.u.valToPos(point.values[1], "y") + this.u.over.offsetTop;
    this.ring.style.left = `${x - 10}px`;
    this.ring.style.top = `${y - 10}px`;
    this.tip.replaceChildren(el("strong", {}, point.label), el("div", {}, point.said));
    const right = x < this.host.clientWidth / 2;
    this.tip.style.left = right ? `${x + 16}px` : "auto";
    this.tip.style.right = right ? "auto" : `${this.host.clientWidth - x + 16}px`;
    this.tip.style.top = `${Math.max(y - 20, 0)}px`;
    this.tell(point).then((text) => { if (this.at === i && text) this.tip.append(el("pre", {}, text)); }, () => {});
  }

  key(event) {
    const order = this.points.map((point, i) => [point, i]).filter(([point]) => point.kind !== "candidate").sort(([a], [b]) => a.values[0] - b.values[0]).map(([, i]) => i);
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step && order.length) {
      event.preventDefault();
      const at = order.indexOf(this.at);
      this.hover(order[at < 0 ? 0 : (at + step + order.length) % order.length]);
    } else if (event.key === "Enter" && this.at >= 0) this.pick(this.points[this.at].name);
    else if (event.key === "Escape") this.hover(-1);
  }
}

export function lines(host, { x, y, xShare = false, yShare = false, height = 260, data, names, halves = null, here = null, steps = false, label }) {
  // `data` is [xs, ys, ...]; `halves` are half widths of bands, one list a line.
  const columns = halves ? [...data, ...data.slice(1).flatMap((line, i) => [line.map((value, j) => value - halves[i][j]), line.map((value, j) => value + halves[i][j])])] : data;
  const count = data.length - 1;
  const tint = (i) => colour(`series-${i % 6}`);
  const series = [{ label: x }, ...names.map((name, i) => ({ label: name, stroke: () => tint(i), width: 2, paths: steps ? uPlot.paths.stepped({ align: 1 }) : undefined, points: { show: data[0].length < 3 } }))];
  const bands = [];
  if (halves) {
    for (let i = 0; i < count; i++) {
      series.push({ label: "", stroke: "transparent", points: { show: false } }, { label: "", stroke: "transparent", points: { show: false } });
      bands.push({ series: [count + 2 + 2 * i, count + 1 + 2 * i], fill: () => `${tint(i)}2e` });
    }
  }
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", label);
  const u = new uPlot({
    width: host.clientWidth || 320, height, legend: { show: false }, bands, series, axes: axes(x, y, xShare, yShare), scales: { x: { time: false } },
    cursor: { points: { size: 6 } },
    hooks: {
      draw: [(plot) => {
        if (here === null) return;
        const context = plot.ctx, at = plot.valToPos(here, "x", true);
        context.save();
        context.setLineDash([4, 4]);
        context.strokeStyle = colour("muted");
        context.beginPath();
        context.moveTo(at, plot.bbox.top);
        context.lineTo(at, plot.bbox.top + plot.bbox.height);
        context.stroke();
        context.restore();
      }],
      setCursor: [(plot) => {
        const i = plot.cursor.idx;
        said.textContent = i === null || i === undefined ? "" : [`${x} ${number(data[0][i], xShare)}`, ...names.map((name, k) => `${name} ${number(data[k + 1][i], yShare)}${halves ? ` ± ${number(halves[k][i], yShare)}` : ""}`)].join(", ");
      }],
    },
  }, columns, host);
  const said = el("div", { class: "muted" });
  host.after(said);
  plots.add({ host, u });
}

export function redrawAll() {
  for (const plot of plots) if (plot.host.isConnected) plot.u.redraw(false, true);
}
