"use strict";
// Draws the curves of report data that the page carries. No library, no network.
const data = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "step", smooth: 0, log: false, hidden: new Set(), at: null };
const NS = "http://www.w3.org/2000/svg";
const PAD = { left: 50, right: 10, top: 12, bottom: 24 };
const HEIGHT = 190;

const format = {
  plain: (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(4))),
  count: (v) => suffixed(v, [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]),
  bytes: (v) => suffixed(v, [[2 ** 40, " TiB"], [2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"]]),
  percent: (v) => +(100 * v).toPrecision(3) + "%",
  rate: (v) => (v === 0 ? "0" : v.toExponential(2).replace(/\.?0+e/, "e")),
  time: (v) => (v >= 5400 ? (v / 3600).toPrecision(3) + " h" : v >= 120 ? (v / 60).toPrecision(3) + " min" : +v.toPrecision(3) + " s"),
};
function suffixed(v, scales) {
  for (const [scale, suffix] of scales) if (Math.abs(v) >= scale) return +(v / scale).toPrecision(3) + suffix;
  return String(+v.toPrecision(3));
}
const axisFormat = { step: format.count, tokens: format.count, time: format.time };

function element(name, attributes, parent) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
}

// Exponential moving average without the bias of its start (Kingma & Ba 2015); gaps stay gaps.
function smoothed(values, factor) {
  if (!factor) return values;
  let mean = 0, weight = 0;
  return values.map((v) => {
    if (v === null) return null;
    mean = factor * mean + (1 - factor) * v;
    weight = factor * weight + (1 - factor);
    return mean / weight;
  });
}

// Round numbers of the axis: of bytes, those with few binary digits.
function ticks(low, high, wanted, binary) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = binary ? 2 ** Math.ceil(Math.log2(raw)) : [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) { const v = m * 10 ** e; if (v >= low && v <= high) found.push(v); }
  return found.length >= 2 ? (found.length > 6 ? found.filter((v) => /^1/.test(v.toExponential())) : found) : [low, high];
}

function lines(chart) {
  const found = [];
  data.runs.forEach((run, index) => {
    if (state.hidden.has(index)) return;
    const add = (source, kind, column, part) => {
      const values = source && source[column];
      if (!values || !values.some((v) => v !== null)) return;
      const own = chart.columns ? part : kind === "eval" ? 1 : 0;
      const colour = `var(--c${(data.runs.length > 1 ? index : own) % 8})`;
      const label = chart.columns ? column.slice(chart.column.length + 1) : "";
      found.push({ x: source[state.axis], y: values, skipped: chart.skips ? source.skipped : undefined, kind, colour, label, run });
    };
    (chart.columns || [chart.column]).forEach((column, part) => {
      add(run.steps, "step", column, part);
      if (chart.evals) add(run.evals, "eval", column, part);
    });
  });
  return found;
}

// What a spike shows is its mark: the range of the axis follows the steps that counted.
function extent(series, log) {
  const values = [];
  for (const line of series) line.y.forEach((v, i) => { if (v !== null && !(line.skipped && line.skipped[i]) && (!log || v > 0)) values.push(v); });
  if (!values.length) return null;
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - margin < 0 ? 0 : low - margin, high + margin];
}

function draw(figure, chart) {
  const box = figure.querySelector(".chart"), width = box.clientWidth, height = HEIGHT;
  const series = lines(chart), log = chart.log === "always" || (state.log && chart.log);
  box.textContent = "";
  figure.hidden = !series.length;
  const range = extent(series, log);
  if (!range || !width) return;
  const xs = series.flatMap((line) => line.x);
  const x0 = xs.reduce((a, b) => Math.min(a, b));
  let x1 = xs.reduce((a, b) => Math.max(a, b));
  if (x0 === x1) x1 = x0 + 1;
  const place = log ? (v) => Math.log(v) : (v) => v;
  const [low, high] = range.map(place);
  const X = (v) => PAD.left + ((v - x0) / (x1 - x0)) * (width - PAD.left - PAD.right);
  const Y = (v) => height - PAD.bottom - ((place(v) - low) / (high - low)) * (height - PAD.top - PAD.bottom);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title }, box);
  for (const v of log ? logTicks(...range) : ticks(range[0], range[1], 4, chart.format === "bytes")) {
    element("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: Y(v), y2: Y(v) }, svg);
    element("text", { x: PAD.left - 6, y: Y(v) + 4, "text-anchor": "end" }, svg).textContent = format[chart.format](v);
  }
  for (const v of ticks(x0, x1, width < 360 ? 3 : 5))
    element("text", { x: X(v), y: height - 8, "text-anchor": "middle" }, svg).textContent = axisFormat[state.axis](v);
  element("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: height - PAD.bottom, y2: height - PAD.bottom }, svg);
  const inside = (v) => Math.max(range[0], Math.min(range[1], v));
  for (const line of series) {
    const path = (values) => {
      let pen = "", down = false;
      values.forEach((v, i) => {
        if (v === null || (log && v <= 0) || (line.skipped && line.skipped[i])) { down = false; return; }
        pen += `${down ? "L" : "M"}${X(line.x[i]).toFixed(1)} ${Y(inside(v)).toFixed(1)}`;
        down = true;
      });
      return pen;
    };
    if (state.smooth && line.kind === "step") element("path", { class: "raw", d: path(line.y), stroke: line.colour }, svg);
    line.shown = line.kind === "step" ? smoothed(line.y.map((v, i) => (line.skipped && line.skipped[i] ? null : v)), state.smooth) : line.y;
    element("path", { class: line.kind, d: path(line.shown), stroke: line.colour }, svg);
    if (line.kind === "eval" || line.y.length === 1)
      line.y.forEach((v, i) => v !== null && element("circle", { cx: X(line.x[i]), cy: Y(inside(v)), r: 2.6, fill: line.colour }, svg));
    if (line.skipped) line.skipped.forEach((skip, i) => {
      if (skip) element("line", { class: "skip", x1: X(line.x[i]), x2: X(line.x[i]), y1: height - PAD.bottom - 9, y2: height - PAD.bottom }, svg);
    });
  }
  const cross = element("line", { class: "cross", y1: PAD.top, y2: height - PAD.bottom, visibility: "hidden" }, svg);
  figure.drawn = { series, X, x0, x1, width, cross, chart };
  readout(figure);
}

function nearest(xs, at) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < at) low = middle; else high = middle; }
  return Math.abs(xs[low] - at) <= Math.abs(xs[high] - at) ? low : high;
}

// The values at the crosshair, or the last ones.
function readout(figure) {
  const { series, X, x0, x1, cross, chart } = figure.drawn;
  const output = figure.querySelector("output"), shown = state.at !== null && state.at >= x0 && state.at <= x1;
  cross.setAttribute("visibility", shown ? "visible" : "hidden");
  if (shown) { cross.setAttribute("x1", X(state.at)); cross.setAttribute("x2", X(state.at)); }
  output.textContent = "";
  if (shown) output.append(`${axisFormat[state.axis](state.at)} `);
  let before = null;
  for (const line of series) {
    let index = shown ? nearest(line.x, state.at) : line.y.length - 1;
    while (!shown && index > 0 && line.shown[index] === null) index--;
    const value = line.shown[index] ?? line.y[index];
    const b = document.createElement("b");
    b.style.color = line.colour;
    b.textContent = (line.label && `${line.label} `) + (value === null ? "not finite" : format[chart.format](value));
    if (line.skipped && line.skipped[index]) b.textContent += " skipped";
    output.append(before === line.run && !line.label ? "/ " : "", b, " ");  // training / validation
    before = line.run;
  }
}

const figures = data.charts.map((chart) => {
  const figure = document.createElement("figure");
  figure.className = "card";
  figure.id = `chart-${chart.column}`;
  figure.innerHTML = "<figcaption><span></span><output></output></figcaption><div class=chart></div>";
  figure.querySelector("span").textContent = chart.title;
  document.getElementById("charts").append(figure);
  const box = figure.querySelector(".chart");
  const move = (event) => {
    if (!figure.drawn) return;
    const { x0, x1, width } = figure.drawn, left = box.getBoundingClientRect().left;
    const share = (event.clientX - left - PAD.left) / (width - PAD.left - PAD.right);
    state.at = x0 + Math.max(0, Math.min(1, share)) * (x1 - x0);
    for (const other of figures) if (other[0].drawn) readout(other[0]);
  };
  box.addEventListener("pointermove", move);
  box.addEventListener("pointerdown", move);
  box.addEventListener("pointerleave", () => { state.at = null; for (const other of figures) if (other[0].drawn) readout(other[0]); });
  return [figure, chart];
});
const redraw = () => figures.forEach(([figure, chart]) => draw(figure, chart));

document.getElementById("axis").addEventListener("change", (event) => { state.axis = event.target.value; state.at = null; redraw(); });
document.getElementById("smooth").addEventListener("input", (event) => { state.smooth = +event.target.value; redraw(); });
document.getElementById("log").addEventListener("change", (event) => { state.log = event.target.checked; redraw(); });
document.querySelectorAll("[data-run]").forEach((button) => button.addEventListener("click", () => {
  const index = +button.dataset.run, hidden = !state.hidden.delete(index);
  if (hidden) state.hidden.add(index);
  button.setAttribute("aria-pressed", String(!hidden));
  redraw();
}));
document.querySelectorAll("input[type=search]").forEach((field) => field.addEventListener("input", () => {
  const wanted = field.value.toLowerCase();
  field.parentElement.querySelectorAll("tbody tr").forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
}));
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
new ResizeObserver(redraw).observe(document.getElementById("charts"));
redraw();
