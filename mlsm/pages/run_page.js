// The curves of the page, drawn from the JSON in it: runs that are switched on and off, three axes, smoothing,
// zoom, and the values under the pointer. Names of runs are written as text only.
"use strict";
const $ = id => document.getElementById(id);
const {measures, runs} = JSON.parse($("data").textContent);
const BOX = {width: 400, height: 220, left: 48, right: 390, top: 8, bottom: 196}; // of a drawing, in its units
const LEAST_PIXELS = 5; // a pointer that moves less chooses no part of the axis
const NEAR = 0.05; // of the axis: a curve without a point so near to the pointer shows no value
const ZOOM_STEP = 0.1; // of the axis, for an arrow key

// Short runs have their time in minutes.
const longest = Math.max(0, ...runs.flatMap(run => run.training.axes.hours));
const TIME = longest < 2 ? {title: "minutes", scale: 60} : {title: "hours", scale: 1};
const AXES = {step: {title: "update", scale: 1}, words: {title: "words seen", scale: 1}, hours: TIME};
const state = {axis: "step", smoothing: 0, zoom: null, hidden: new Set(), cursor: null};

const short = x => x.toLocaleString("en", {notation: "compact", maximumSignificantDigits: 3});
const exact = x => x.toLocaleString("en", {maximumSignificantDigits: 5});

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const make = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const strokeOf = ({stroke}) => ({stroke: stroke.color, "stroke-dasharray": stroke.dashes.map(length => 2 * length).join(" ") || "none"});

// The points [x, y] of a measure on the axis that is shown. A line of a run without words or times has no place.
function pointsOf(part, measure) {
  const xs = part.axes[state.axis], ys = part.values[measure] ?? [];
  return ys.flatMap((y, i) => y === null || xs[i] === null ? [] : [[xs[i] * AXES[state.axis].scale, y]]);
}

// Means over `reach` neighbours on either side, fewer of them at both ends.
function smoothed(points, reach) {
  const sums = [0];
  for (const [, y] of points) sums.push(sums.at(-1) + y);
  return points.map(([x], i) => {
    const near = Math.min(reach, i, points.length - 1 - i);
    return [x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)];
  });
}
const reachOf = smoothing => smoothing && 2 ** (smoothing - 1);

// About `count` round numbers between two values.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1)}, (_, i) => (first + i) * step);
}

const shownRuns = () => runs.filter((_, i) => !state.hidden.has(i));
function wholeAxis() {
  const scale = AXES[state.axis].scale;
  const xs = shownRuns().flatMap(run => [...run.training.axes[state.axis], ...run.heldout.axes[state.axis]]).map(x => x * scale);
  return [0, Math.max(0, ...xs) || 1];
}
const shownAxis = () => state.zoom ?? wholeAxis();

class Panel {
  constructor(figure, measure) {
    Object.assign(this, {figure, measure, svg: figure.querySelector("svg")});
    figure.querySelector("p").remove();
    this.tip = make("div", {class: "tip", hidden: ""});
    figure.append(this.tip);
    this.svg.setAttribute("viewBox", `0 0 ${BOX.width} ${BOX.height}`);
    this.svg.setAttribute("tabindex", "0");
    this.svg.addEventListener("pointerdown", event => this.start = this.xAt(event));
    this.svg.addEventListener("pointermove", event => this.point(this.xAt(event)));
    this.svg.addEventListener("pointerup", event => this.choose(this.xAt(event)));
    this.svg.addEventListener("pointerleave", () => { this.start = undefined; this.point(null); });
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("dblclick", () => zoomTo(null));
    this.svg.addEventListener("keydown", event => this.move(event));
  }

  xAt({clientX}) {
    const {left, width} = this.svg.getBoundingClientRect(), [low, high] = shownAxis();
    const share = ((clientX - left) / width * BOX.width - BOX.left) / (BOX.right - BOX.left);
    return low + (high - low) * Math.min(1, Math.max(0, share));
  }

  // Arrow keys move the cursor, + and - change the part of the axis around it, Escape shows everything.
  move(event) {
    const [low, high] = shownAxis(), at = state.cursor ?? (low + high) / 2;
    const moves = {ArrowLeft: -1, ArrowRight: 1}, zooms = {"+": 0.5, "-": 2};
    if (event.key in moves) this.point(Math.min(high, Math.max(low, at + moves[event.key] * ZOOM_STEP * (high - low))));
    else if (event.key in zooms) zoomTo([at + zooms[event.key] * (low - at), at + zooms[event.key] * (high - at)]);
    else if (event.key === "Escape") zoomTo(null);
    else return;
    event.preventDefault();
  }

  choose(x) {
    const [low, high] = shownAxis(), width = this.svg.getBoundingClientRect().width;
    const ends = [this.start, x].sort((a, b) => a - b);
    if (this.start !== undefined && (ends[1] - ends[0]) / (high - low) * width > LEAST_PIXELS) zoomTo(ends);
    this.start = undefined;
  }

  render() {
    const [low, high] = shownAxis(), inside = ([x]) => x >= low && x <= high;
    this.lines = shownRuns().map(run => {
      const raw = pointsOf(run.training, this.measure.name);
      return {run, raw, points: smoothed(raw, reachOf(state.smoothing)), heldout: pointsOf(run.heldout, this.measure.name)};
    });
    const ys = this.lines.flatMap(({raw, heldout}) => [...raw, ...heldout].filter(inside).map(([, y]) => y));
    this.figure.hidden = !ys.length;
    const top = Math.max(...ys), bottom = this.measure.from_zero ? Math.min(0, ...ys) : Math.min(...ys);
    const margin = (top - bottom || Math.abs(top) || 1) * 0.05, [least, most] = [bottom - (bottom && margin), top + margin];
    this.left = x => BOX.left + (x - low) / (high - low) * (BOX.right - BOX.left);
    this.height = y => BOX.bottom - (y - least) / (most - least) * (BOX.bottom - BOX.top);
    const path = points => points.map(([x, y]) => `${this.left(x).toFixed(1)},${this.height(y).toFixed(1)}`).join(" ");
    const id = "clip-" + this.measure.name;
    const curves = draw("g", {"clip-path": `url(#${id})`});
    for (const {run, raw, points, heldout} of this.lines) {
      if (state.smoothing) curves.append(draw("polyline", {class: "raw", points: path(raw), stroke: run.stroke.color}));
      curves.append(draw("polyline", {points: path(points), ...strokeOf(run)}));
      curves.append(...heldout.map(([x, y]) => draw("circle", {cx: this.left(x), cy: this.height(y), r: 4, stroke: run.stroke.color})));
    }
    const grid = [
      ...ticks(least, most, 5).flatMap(y => [draw("path", {d: `M${BOX.left} ${this.height(y)}H${BOX.right}`}),
        draw("text", {x: BOX.left - 6, y: this.height(y) + 4, "text-anchor": "end"}, short(y))]),
      ...ticks(low, high, 6).flatMap(x => [draw("path", {d: `M${this.left(x)} ${BOX.top}V${BOX.bottom}`}),
        draw("text", {x: this.left(x), y: BOX.bottom + 15, "text-anchor": "middle"}, short(x))]),
    ];
    const clip = draw("rect", {x: BOX.left, y: 0, width: (state.zoom ? BOX.right : BOX.width) - BOX.left, height: BOX.height});
    this.marks = draw("g", {class: "marks"});
    this.svg.replaceChildren(draw("clipPath", {id}, clip), draw("g", {class: "grid"}, ...grid), curves, this.marks);
  }

  // Show the values of all curves nearest to x, here in words and in the other drawings as a line.
  point(x) {
    state.cursor = x;
    for (const panel of panels) panel.mark(x, panel === this);
  }

  mark(x, isHere) {
    this.tip.hidden = true;
    this.marks.replaceChildren();
    if (x === null || this.figure.hidden) return;
    this.marks.append(draw("path", {d: `M${this.left(x)} ${BOX.top}V${BOX.bottom}`}));
    if (isHere && this.start !== undefined) {
      const ends = [this.left(this.start), this.left(x)].sort((a, b) => a - b);
      this.marks.append(draw("rect", {x: ends[0], y: BOX.top, width: ends[1] - ends[0], height: BOX.bottom - BOX.top}));
    }
    if (!isHere) return;
    const nearest = points => points.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best);
    const [low, high] = shownAxis(), isNear = ([, px]) => Math.abs(px - x) <= NEAR * (high - low);
    const rows = this.lines.filter(({points}) => points.length).map(({run, points}) => [run, ...nearest(points)]).filter(isNear);
    this.marks.append(...rows.map(([run, px, y]) => draw("circle", {cx: this.left(px), cy: this.height(y), r: 2, stroke: run.stroke.color})));
    this.tip.replaceChildren(make("b", {}, `${AXES[state.axis].title} ${exact(Math.round(x * 100) / 100)}`),
      ...rows.sort((a, b) => b[2] - a[2]).map(([run, , y]) => make("div", {}, swatch(run), ` ${exact(y)} `, run.name)));
    this.tip.hidden = false;
    this.tip.classList.toggle("right", this.left(x) < BOX.width / 2);
  }
}

const swatch = run => {
  const line = draw("line", {x1: 0, y1: 5, x2: 30, y2: 5, ...strokeOf(run)});
  return draw("svg", {class: "swatch", viewBox: "0 0 30 10", "aria-hidden": "true"}, line);
};
const panels = measures.map(measure => new Panel(document.querySelector(`[data-measure="${measure.name}"]`), measure));
function render() {
  $("all").disabled = state.zoom === null;
  panels.forEach(panel => panel.render());
}
function zoomTo(ends) {
  const [low, high] = wholeAxis();
  state.zoom = ends && [Math.max(low, ends[0]), Math.min(high, ends[1])];
  render();
}

for (const [number, run] of runs.entries()) {
  const box = make("input", {type: "checkbox", checked: ""});
  box.addEventListener("change", () => { state.hidden[box.checked ? "delete" : "add"](number); render(); });
  $("runs").append(make("label", {}, box, swatch(run), " ", make("bdi", {}, run.name)));
}
for (const [name, {title}] of Object.entries(AXES)) {
  if (runs.some(run => run.training.axes[name].some(x => x !== null))) $("axis").append(make("option", {value: name}, title));
}
$("axis").addEventListener("change", event => { state.axis = event.target.value; zoomTo(null); });
$("smoothing").addEventListener("input", event => {
  state.smoothing = Number(event.target.value);
  $("reach").textContent = state.smoothing ? `mean of ${2 * reachOf(state.smoothing) + 1} values` : "none";
  render();
});
$("all").addEventListener("click", () => zoomTo(null));
$("controls").hidden = false;
$("legend").remove();
render();
