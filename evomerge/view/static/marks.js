// Marks of models, the same in every picture: shapes differ as well as colours.
import { colour, el } from "./dom.js";

export const LOOKS = {
  candidate: { words: "candidate", colour: "dot", shape: "dot", size: 2 },
  other: { words: "front of the other study", colour: "other", shape: "diamond", size: 4 },
  front: { words: "front", colour: "front", shape: "disc", size: 4.5 },
  unseen: { words: "front, unseen examples", colour: "front", shape: "ring", size: 5 },
  reference: { words: "other reference", colour: "reference", shape: "square", size: 5 },
  base: { words: "base", colour: "base", shape: "cross", size: 6 },
  expert: { words: "expert", colour: "expert", shape: "triangle", size: 6 },
  picked: { words: "picked", colour: "picked", shape: "star", size: 8 },
  predicted: { words: "preference", colour: "picked", shape: "plus", size: 8 },
};

export function drawMark(context, look, x, y, size = look.size) {
  context.beginPath();
  const at = (angle, radius) => [x + radius * Math.cos(angle), y + radius * Math.sin(angle)];
  const polygon = (corners, start, inner = 1) => {
    for (let i = 0; i < corners; i++) context.lineTo(...at(start + (2 * Math.PI * i) / corners, i % 2 ? size * inner : size));
    context.closePath();
  };
  if (look.shape === "cross" || look.shape === "plus") {
    for (const angle of look.shape === "cross" ? [Math.PI / 4, (3 * Math.PI) / 4] : [0, Math.PI / 2]) {
      context.moveTo(...at(angle, size));
      context.lineTo(...at(angle, -size));
    }
    context.lineWidth = size / 2.2;
    context.stroke();
    return;
  }
  if (look.shape === "triangle") polygon(3, -Math.PI / 2);
  else if (look.shape === "square") polygon(4, Math.PI / 4);
  else if (look.shape === "diamond") polygon(4, 0);
  else if (look.shape === "star") polygon(10, -Math.PI / 2, 0.45);
  else context.arc(x, y, size, 0, 2 * Math.PI);
  if (look.shape === "ring") {
    context.lineWidth = size / 2.5;
    context.stroke();
  } else context.fill();
}

export function drawMarks(context, points, place, scale) {
  // Candidates first, in one path: there may be ten thousand.
  const pale = points.filter((point) => point.kind === "candidate");
  context.fillStyle = colour("dot");
  context.beginPath();
  const size = LOOKS.candidate.size * scale * (pale.length > 3000 ? 0.7 : 1);
  for (const point of pale) {
    const [x, y] = place(point.values);
    context.rect(x - size, y - size, 2 * size, 2 * size);
  }
  context.fill();
  for (const kind of Object.keys(LOOKS)) {
    if (kind === "candidate") continue;
    context.fillStyle = context.strokeStyle = colour(LOOKS[kind].colour);
    for (const point of points) if (point.kind === kind) drawMark(context, LOOKS[kind], ...place(point.values), LOOKS[kind].size * scale);
  }
}

export function drawRing(context, x, y, scale, dashed) {
  context.beginPath();
  context.setLineDash(dashed ? [3 * scale, 3 * scale] : []);
  context.arc(x, y, 10 * scale, 0, 2 * Math.PI);
  context.strokeStyle = colour("ink");
  context.lineWidth = 2 * scale;
  context.stroke();
  context.setLineDash([]);
}

export function legend(points) {
  const kinds = new Set(points.map((point) => point.kind));
  return el("ul", { class: "legend" }, Object.keys(LOOKS).filter((kind) => kinds.has(kind)).map((kind) => {
    const mark = el("canvas", { width: 32, height: 32, "aria-hidden": "true" });
    mark.style.width = mark.style.height = "16px";
    const context = mark.getContext("2d");
    context.fillStyle = context.strokeStyle = colour(LOOKS[kind].colour);
    drawMark(context, LOOKS[kind], 16, 16, 2 * Math.min(LOOKS[kind].size, 7));
    return el("li", {}, mark, LOOKS[kind].words);
  }));
}
