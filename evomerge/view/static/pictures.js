// Pictures of more than two objectives, on a canvas: three to rotate, more as parallel coordinates. uPlot has neither.
import { colour, el, number } from "./dom.js";
import { drawMark, drawMarks, drawRing, LOOKS } from "./marks.js";

function sheet(host, height, label) {
  const canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": label });
  const said = el("p", { class: "muted", "aria-live": "polite" }, "");
  host.replaceChildren(canvas, said);
  const scale = devicePixelRatio, width = host.clientWidth || 320;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = "100%";
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { canvas, context, said, width, height };
}

function extents(points, count) {
  return Array.from({ length: count }, (_, i) => {
    const values = points.map((point) => point.values[i]);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    return [low, high > low ? high : low + 1];
  });
}

export function rotatable(host, { points, objectives, shares, marked, pick, turn }) {
  const { canvas, context, said, width, height } = sheet(host, 460, "Three objectives. Drag, or use the arrow keys, to rotate; all models are in the table.");
  const ends = extents(points, 3);
  const unit = points.map((point) => ({ ...point, values: point.values.map((value, i) => (2 * (value - ends[i][0])) / (ends[i][1] - ends[i][0]) - 1) }));
  const reach = Math.min(width, height) * 0.28;
  const place = ([x, y, z]) => {
    const [ca, sa, cb, sb] = [Math.cos(turn.a), Math.sin(turn.a), Math.cos(turn.b), Math.sin(turn.b)];
    return [width / 2 + reach * (x * ca - y * sa), height / 2 - reach * (z * cb - (x * sa + y * ca) * sb)];
  };
  const draw = () => {
    context.clearRect(0, 0, width, height);
    context.strokeStyle = colour("line");
    context.lineWidth = 1;
    const corners = [-1, 1];
    context.beginPath();
    for (const a of corners) for (const b of corners) for (const [from, to] of [[[-1, a, b], [1, a, b]], [[a, -1, b], [a, 1, b]], [[a, b, -1], [a, b, 1]]]) {
      context.moveTo(...place(from));
      context.lineTo(...place(to));
    }
    context.stroke();
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    objectives.forEach((name, i) => {
      const end = [-1, -1, -1], middle = [-1, -1, -1];
      end[i] = 1;
      middle[i] = 1.25;
      context.strokeStyle = colour("muted");
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(...place([-1, -1, -1]));
      context.lineTo(...place(end));
      context.stroke();
      context.fillStyle = colour("ink");
      const [left, up] = place(middle), x = Math.min(Math.max(left, 70), width - 70), y = Math.min(Math.max(up, 14), height - 20);
      context.fillText(name.slice(0, 28), x, y);
      context.fillStyle = colour("muted");
      context.fillText(`${number(ends[i][0], shares[i])} to ${number(ends[i][1], shares[i])}`, x, y + 15);
    });
    drawMarks(context, unit, place, 1);
    for (const point of unit) if (marked.includes(point.name)) drawRing(context, ...place(point.values), 1, marked[1] === point.name);
  };
  const nearest = (event) => {
    let best = 400, found = null;
    for (const point of unit) {
      const [x, y] = place(point.values);
      const distance = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2 + (point.kind === "candidate" ? 30 : 0);
      if (distance < best) [best, found] = [distance, point];
    }
    return found;
  };
  let from = null, moved = 0, waiting = false;
  const later = () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  };
  canvas.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; moved = 0; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) {
      const point = nearest(event);
      said.textContent = point ? `${point.label}: ${point.said}` : "";
      return;
    }
    const dx = event.clientX - from[0], dy = event.clientY - from[1];
    moved += Math.abs(dx) + Math.abs(dy);
    turn.a += dx / 150;
    turn.b = Math.min(Math.max(turn.b + dy / 150, -1.5), 1.5);
    from = [event.clientX, event.clientY];
    later();
  });
  canvas.addEventListener("pointerup", (event) => {
    from = null;
    const point = moved < 4 ? nearest(event) : null;
    if (point) pick(point.name);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!step) return;
    event.preventDefault();
    turn.a += step[0];
    turn.b = Math.min(Math.max(turn.b + step[1], -1.5), 1.5);
    draw();
  });
  draw();
}

export function parallel(host, { points, objectives, shares, marked, pick }) {
  const { canvas, context, said, width, height } = sheet(host, 420, "Each model as a line over all objectives; all models are in the table.");
  const ends = extents(points, objectives.length);
  const left = 30, right = width - 30, top = 46, bottom = height - 28;
  const x = (i) => left + ((right - left) * i) / (objectives.length - 1);
  const y = (value, i) => bottom - ((bottom - top) * (value - ends[i][0])) / (ends[i][1] - ends[i][0]);
  const path = (point) => {
    point.values.forEach((value, i) => (i ? context.lineTo(x(i), y(value, i)) : context.moveTo(x(i), y(value, i))));
  };
  context.font = "12px system-ui, sans-serif";
  objectives.forEach((name, i) => {
    context.textAlign = i === 0 ? "left" : i === objectives.length - 1 ? "right" : "center";
    context.fillStyle = colour("ink");
    const room = Math.max(8, Math.floor((right - left) / objectives.length / 7)), words = name.length > room ? name.split(":")[0] : name; // at least the task
    context.fillText(words.slice(0, room), i === 0 ? 4 : i === objectives.length - 1 ? width - 4 : x(i), 14);
    context.fillStyle = colour("muted");
    context.fillText(number(ends[i][1], shares[i]), x(i), 34);
    context.fillText(number(ends[i][0], shares[i]), x(i), height - 10);
    context.strokeStyle = colour("line");
    context.beginPath();
    context.moveTo(x(i), top);
    context.lineTo(x(i), bottom);
    context.stroke();
  });
  context.strokeStyle = colour("dot");
  context.globalAlpha = 0.15;
  context.beginPath();
  for (const point of points) if (point.kind === "candidate") path(point);
  context.stroke();
  for (const kind of Object.keys(LOOKS)) {
    if (kind === "candidate") continue;
    context.strokeStyle = context.fillStyle = colour(LOOKS[kind].colour);
    for (const point of points.filter((one) => one.kind === kind)) {
      context.globalAlpha = kind === "front" && !marked.includes(point.name) ? 0.55 : 1;
      context.lineWidth = marked.includes(point.name) ? 4 : kind === "picked" ? 2.5 : 1.2;
      context.setLineDash(marked[1] === point.name ? [6, 4] : []);
      context.beginPath();
      path(point);
      context.stroke();
      point.values.forEach((value, i) => drawMark(context, LOOKS[kind], x(i), y(value, i), LOOKS[kind].size * 0.7));
    }
  }
  context.globalAlpha = 1;
  const nearest = (event) => {
    const at = Math.min(Math.max((event.offsetX - left) / ((right - left) / (objectives.length - 1)), 0), objectives.length - 1 - 1e-9), i = Math.floor(at);
    let best = 14, found = null;
    for (const point of points) {
      const height_ = y(point.values[i], i) + (y(point.values[i + 1], i + 1) - y(point.values[i], i)) * (at - i);
      const distance = Math.abs(height_ - event.offsetY) + (point.kind === "candidate" ? 4 : 0);
      if (distance < best) [best, found] = [distance, point];
    }
    return found;
  };
  canvas.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    said.textContent = point ? `${point.label}: ${point.said}` : "";
  });
  canvas.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) pick(point.name);
  });
}
