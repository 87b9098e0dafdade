// The order is a dial: the score of noised data from moments that only shrink, from a Gaussian's to memory's.

import { decode, encode, generator, normal } from "./clouds.js";
import { seen } from "./mixtures.js";
import { averages, Scores } from "./operator.js";
import { address, between, choice, Figure, make, slider, still } from "./page.js";
import { field } from "./softmax.js";
import { line, View } from "./view.js";

const STEPS = 99, ORDERS = 14, BARS = 2 * ORDERS - 2, MOST = 150, HIGH = 3.1; // t goes to 0.99, points to ±3.1
const LEAST = 1e-4, NOTCHES = 40, SIZE = 0.3; // of shrinkage; standard deviation of the truth's parts
const REACH = 6.4, CELLS = 320, CELL = 2 * REACH / CELLS; // of the grid on which averages and densities are computed
const TALL = 2.4, FLOOR = -2.25, STEEP = 0.17, SPAN = 1.45; // density's height; the score's zero, unit and half-height
const EDGE = { left: 34, right: 10, top: 26, bottom: 22 }, FAR = [1e-3, 10]; // of the panels, in pixels; of distances
const TICKS = [["10", 10], ["1", 1], [".1", 0.1], [".01", 0.01]];
const TRUTHS = { humps: [-1.1, -1.1, 0.1, 0.6, 1.1], three: [-1.6, 0, 1.6], bell: [0.3] };
const STROKES = { memory: [1.6], truth: [2.4, [6, 5]], order: [3] };
const SETS = { ...TRUTHS, outlier: TRUTHS.humps };
const COUNTS = { humps: 30, three: 24, bell: 20, outlier: 30 };
const PRESETS = { humps: "humps", three: "three", bell: "bell", outlier: "outlier", five: "five", own: "own" };
const TOLD = "Points on a line, and under noise of time τ their density, above, and its score, below. Orange is what "
  + "the moments say up to the order of the dial: order 2 a straight line, higher orders bend, until they follow every "
  + "point as blue does, which remembers them all; green dashes are the truth the points come from. Keys: arrows move "
  + "the lens, Enter adds a point, Delete takes the nearest away.";
const BARS_TOLD = "Bars of the moments, from the first on: outlines for clean data, filled for what the noise leaves.";
const DIAL_TOLD = "Distance of each order's score from memory's and from the truth's, the dial's order marked.";

class Dial extends Figure {
  static title = "The order is a dial";
  static told = TOLD;
  static sight = { half: 3.3, centre: [0, -0.7] };

  controls() {
    this.time = slider("time t = exp(−τ), from noise to data", { min: 0, max: STEPS, step: 1, value: 0 },
      (k) => `t = ${(k / 100).toFixed(2)},  τ = ${k ? (-Math.log(k / 100)).toPrecision(2) : "∞"}`, (k) => this.seek(k));
    this.dial = slider("order", { min: 1, max: ORDERS, step: 1, value: 6 }, (k) => `order ${k}`,
      (order) => this.change({ order }));
    this.ridge = slider("shrinkage of the moments", { min: 0, max: NOTCHES, step: 1, value: 0 },
      (k) => `shrinkage ${shrinkage(k).toPrecision(1)}`, (notch) => this.change({ notch }));
    this.cloud = choice("data", PRESETS, "humps", (name) => this.choose(name));
    this.again = this.button("fresh points", "live-step", () => {
      this.draw += 1;
      this.pick(this.truth ? this.name : "humps");
      this.keep();
    });
    this.labels = Object.fromEntries(["order", "memory", "truth"].map((name) => [name, make("span")]));
    const keys = Object.values(this.labels).map((label) => make("span", { className: "live-key" }, make("i"), label));
    return [keys, [this.dial, this.ridge], [this.play, this.time], [this.cloud, this.again]];
  }

  prepare() {
    const panel = (ariaLabel) => new View(make("canvas", { role: "img", ariaLabel }));
    this.bars = panel(BARS_TOLD);
    this.curves = panel(DIAL_TOLD);
    this.views.push(this.bars, this.curves);
    this.stage.classList.add("live-cone");
    this.canvas.after(this.bars.canvas, this.curves.canvas);
    this.hands = this.take(this.view, { get: () => this.points, set: (points) => this.own(points), most: MOST,
      apart: Infinity, close: 16 });
  }

  restore() {
    const { data = "humps", draw, points, order = "6", shrink, t } = address.read();
    this.order = between(1, Math.round(+order) || 6, ORDERS);
    this.notch = between(0, Math.round(+shrink) || 0, NOTCHES);
    this.draw = between(0, Math.round(+draw) || 0, 999);
    this.index = t === undefined ? still.matches ? 90 : 0 : between(0, Math.round(100 * t) || 0, STEPS);
    this.playing = t === undefined && !still.matches;
    this.hands.draw(matchMedia("(hover: hover)").matches);
    this.pick(data in PRESETS ? data : "humps");
    if (points !== undefined) this.own(decode(points).slice(0, 2 * MOST));
  }

  keep() {
    const drawn = this.name === "own" ? { points: encode(this.points) } : { data: this.name, draw: this.draw };
    address.write({ ...drawn, order: this.order, shrink: this.notch,
      ...(this.playing ? {} : { t: (Math.floor(this.index) / 100).toFixed(2) }) });
    this.wake();
  }

  get settled() {
    return true;
  }

  change(settings) {
    Object.assign(this, settings);
    this.keep();
  }

  // --- data ------------------------------------------------------------------------------------------------------

  choose(name) {
    if (name === "own") this.hands.draw(true);
    this.pick(name);
    this.keep();
  }

  /** Points drawn from a truth, in turn from its parts; five that are given; or those that are there. */
  pick(name) {
    const truth = SETS[name];
    if (name === "five") this.data([-1.5, -1.1, -0.2, 1, 1.8], name);
    else if (!truth) this.data(this.points ? this.points.filter((_, k) => k % 2 === 0) : [], name);
    else {
      const draws = normal(COUNTS[name], generator(41 + this.draw));
      const places = [...draws].map((z, k) => truth[k % truth.length] + SIZE * z);
      if (name === "outlier") places[0] = HIGH;
      this.data(places, name, truth);
    }
  }

  own(points) {
    this.data([...points].filter((_, k) => k % 2 === 0), "own");
  }

  data(places, name, truth = null) {
    this.points = Float64Array.from(places.flatMap((x) => [between(-HIGH, x, HIGH), 0]));
    Object.assign(this, { name, truth, moments: places.length ? averages(this.points, BARS) : null });
    this.cloud.press(name);
    this.done = "";
    this.wake();
  }

  // --- what follows from data, time and shrinkage ----------------------------------------------------------------

  get t() {
    return this.index / 100;
  }

  /** Where the truth's parts are under the noise, as `seen` takes them. */
  noised() {
    const { t } = this, places = this.truth.map((x) => t * x);
    return { places, speeds: places, variance: (t * SIZE) ** 2 + 1 - t * t, widening: 0 };
  }

  /** Density and score at x, of memory and of the truth, if there is one. */
  exact(x) {
    const { t } = this, m = Math.sqrt(1 - t * t), out = new Float64Array(9);
    field(x, 0, this.points, { a: t, m, da: 1, dm: -t / m }, out);
    const memory = { density: Math.exp(out[0]) * Math.sqrt(2 * Math.PI) * m, score: out[1] };
    if (!this.truth) return { memory };
    const [logP, score] = seen(x, this.noised(), new Float64Array(3));
    return { memory, truth: { density: Math.exp(logP), score } };
  }

  /** All of it at x: every order's score and log-density up to a constant, and what is exact. */
  at(x) {
    const scores = new Float64Array(ORDERS), logs = new Float64Array(ORDERS);
    this.model.at(x, scores, logs);
    return { x, scores, logs: logs.map((log) => log - x * x / 2), ...this.exact(x) };
  }

  /** Scores of all orders, the exact ones and the distances between them, on a grid. */
  measure() {
    this.model = new Scores(this.points, ORDERS, this.t, shrinkage(this.notch), this.moments);
    const rows = this.rows = Array.from({ length: CELLS + 1 }, (_, k) => this.at(k * CELL - REACH));
    const away = (law, score) => {
      let error = 0, energy = 0;
      for (const row of rows) {
        error += row[law].density * (score(row) - row[law].score) ** 2;
        energy += row[law].density * row[law].score ** 2;
      }
      return error / energy;
    };
    const orders = [...Array(ORDERS).keys()], laws = this.truth ? ["memory", "truth"] : ["memory"];
    this.far = Object.fromEntries(laws.map((law) => [law, orders.map((k) => away(law, (row) => row.scores[k]))]));
    this.gap = this.truth && away("truth", (row) => row.memory.score);
    this.tops = orders.map((k) => Math.max(...rows.map((row) => row.logs[k])));
    this.sums = orders.map((k) => CELL * rows.reduce((sum, row) => sum + Math.exp(row.logs[k] - this.tops[k]), 0));
  }

  /** Density and score of the order on the dial, where `at` has looked. */
  dialled({ scores, logs }) {
    const k = this.order - 1;
    return { density: Math.exp(logs[k] - this.tops[k]) / this.sums[k], score: scores[k] };
  }

  // --- pictures --------------------------------------------------------------------------------------------------

  frame(seconds) {
    if (this.playing) this.sway(seconds, STEPS);
    const wanted = `${this.index} ${this.notch}`, some = this.points.length > 0;
    if (some && this.done !== wanted) {
      this.measure();
      this.done = wanted;
    }
    for (const view of this.views) view.clear();
    this.time.show(Math.floor(this.index));
    this.dial.show(this.order);
    this.ridge.show(this.notch);
    this.showPlay();
    this.said.ariaLive = this.playing ? "off" : "polite";
    this.said.textContent = some ? this.tell() : "Click to set a point.";
    this.label(some);
    if (some) this.paint();
    return some && this.playing;
  }

  tints() {
    const { particle, paths, lens } = this.view.colours;
    return { order: particle, memory: paths.straight, truth: lens };
  }

  label(some) {
    const { far, order, labels, truth, gap } = this, off = (law) => told(far[law][order - 1]);
    const texts = !some ? {} : {
      order: `order ${order}: ${off("memory")} from memory${truth ? `, ${off("truth")} from truth` : ""}`,
      memory: `memory, the points' own score${truth ? `: ${told(gap)} from truth` : ""}`, truth: truth ? "truth" : "",
    };
    for (const [name, tint] of Object.entries(this.tints())) {
      labels[name].textContent = texts[name] ?? "";
      labels[name].parentNode.style.display = texts[name] ? "" : "none";
      labels[name].previousSibling.style.background = tint;
    }
  }

  paint() {
    const { view, rows, truth, lens } = this, { pen, colours } = view, count = this.points.length / 2;
    const laws = truth ? ["memory", "truth"] : ["memory"];
    const high = TALL / Math.max(0.5, ...laws.flatMap((law) => rows.map((row) => row[law].density)));
    line(view, [[-9, FLOOR], [9, FLOOR]], colours.arrow, 0.5);
    for (const name of [...laws, "order"]) {
      const curve = rows.map((row) => [row.x, name === "order" ? this.dialled(row) : row[name]]);
      this.trace(name, curve.map(([x, { density }]) => [x, high * density]), 0, TALL + 0.1);
      this.trace(name, curve.map(([x, { score }]) => [x, FLOOR + STEEP * score]), FLOOR - SPAN, FLOOR + SPAN);
    }
    line(view, [[-9, 0], [9, 0]], colours.arrow, 1);
    if (lens) line(view, [[lens[0], TALL], [lens[0], FLOOR - SPAN]], colours.ink, 1);
    pen.globalAlpha = 0.7;
    view.disks(this.points, count > 60 ? 4 : 5.5, colours.point, colours.ring);
    pen.globalAlpha = 1;
    Object.assign(pen, { font: "13px system-ui, sans-serif", textAlign: "right", fillStyle: colours.ink });
    pen.fillText("density", view.width - 8, view.toScreen(0, TALL)[1] + 8);
    pen.fillText("score", view.width - 8, view.toScreen(0, FLOOR + SPAN)[1] + 14);
    this.moment();
    this.distances();
  }

  /** A curve, as far as it is between two heights. */
  trace(name, places, low, high) {
    const { view } = this, { pen } = view, [, top] = view.toScreen(0, high), [, bottom] = view.toScreen(0, low);
    pen.save();
    pen.beginPath();
    pen.rect(0, top, view.width, bottom - top);
    pen.clip();
    line(view, places, this.tints()[name], ...STROKES[name]);
    pen.restore();
  }

  /** The frame of a panel and what it says; places in it of numbers between 0 and 1. */
  panel({ pen, colours, width, height }, title) {
    const { left, right, top, bottom } = EDGE;
    Object.assign(pen, { font: "13px system-ui, sans-serif", textAlign: "left", fillStyle: colours.ink, lineWidth: 0.5,
      strokeStyle: colours.arrow });
    pen.strokeRect(left, top, width - left - right, height - top - bottom);
    pen.fillText(title, left, 17);
    return [(u) => left + u * (width - left - right), (u) => top + (1 - u) * (height - top - bottom)];
  }

  /** Moments of clean data as outlines, and what noise leaves of them; those that the dial's order uses in colour. */
  moment() {
    const { bars, moments, t, order } = this, { pen, colours, width } = bars, used = Math.max(order, 2 * order - 2);
    const [x, y] = this.panel(bars, width > 260 ? "moments M_q and e^(−qτ) M_q" : "moments");
    const most = Math.max(...moments.slice(1).map(Math.abs)), wide = (x(1) - x(0)) / BARS;
    const box = (q, value) =>
      [x((q - 1) / BARS) + 0.15 * wide, y(0.5), 0.7 * wide, y(0.5 + 0.47 * value / most) - y(0.5)];
    for (let q = 1; q <= BARS; q++) {
      pen.fillStyle = q <= used ? colours.particle : colours.arrow;
      pen.strokeStyle = colours.arrow;
      pen.globalAlpha = q <= used ? 1 : 0.35;
      pen.fillRect(...box(q, t ** q * moments[q]));
      pen.lineWidth = 1;
      pen.strokeRect(...box(q, moments[q]));
    }
    pen.globalAlpha = 1;
    Object.assign(pen, { textAlign: "center", fillStyle: colours.ink });
    for (const q of [1, 10, 20]) pen.fillText(q, x((q - 0.5) / BARS), bars.height - 6);
    pen.textAlign = "right";
    pen.fillText("0", EDGE.left - 6, y(0.5) + 4);
  }

  /** How far the scores of all orders are from memory and from the truth. */
  distances() {
    const { curves, far, order } = this, { pen, colours, width } = curves, tints = this.tints();
    const [x, y] = this.panel(curves, width > 260 ? "distance of the scores, by order" : "distance by order");
    const [least, most] = FAR.map(Math.log10), across = (k) => x((k + 0.5) / ORDERS);
    const up = (value) => y(between(0, (Math.log10(value) - least) / (most - least), 1));
    pen.textAlign = "right";
    for (const [text, value] of TICKS) pen.fillText(text, EDGE.left - 5, up(value) + 4);
    pen.textAlign = "center";
    for (const k of [1, 5, 10]) pen.fillText(k, across(k - 1), curves.height - 6);
    pen.strokeStyle = colours.particle;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.moveTo(across(order - 1), y(0));
    pen.lineTo(across(order - 1), y(1));
    pen.stroke();
    for (const [law, values] of Object.entries(far)) {
      const places = values.map((value, k) => [across(k), up(value)]);
      pen.beginPath();
      for (const place of places) pen.lineTo(...place);
      Object.assign(pen, { strokeStyle: tints[law], fillStyle: tints[law] });
      pen.stroke();
      for (const [px, py] of places) {
        pen.beginPath();
        pen.arc(px, py, 3.2, 0, 2 * Math.PI);
        pen.fill();
      }
    }
  }

  tell() {
    const { lens, order, points, truth, far } = this, used = Math.max(order, 2 * order - 2), count = points.length / 2;
    if (lens) {
      const x = between(-REACH, lens[0], REACH), here = this.at(x);
      const say = ({ score, density }) => `${signed(score)}, density ${density.toFixed(3)}`;
      return `At x = ${signed(x)}: order ${order} has score ${say(this.dialled(here))}; memory ${say(here.memory)}`
        + `${truth ? `; truth ${say(here.truth)}` : ""}.`;
    }
    const start = `From ${used} moment${used > 1 ? "s" : ""} of ${count} point${count > 1 ? "s" : ""}, the same for every τ.`;
    if (order === 1) return `${start} Order 1 knows the mean alone.`;
    if (order === 2) return `${start} Order 2 is the Gaussian: its score is a straight line.`;
    return `${start} ${truth ? `Nearest to the truth now is order ${1 + far.truth.indexOf(Math.min(...far.truth))}.`
      : "The points are all there is: memory is exact."}`;
  }
}

const shrinkage = (notch) => LEAST * 5000 ** (notch / NOTCHES);
const signed = (value) => value.toFixed(2).replace("-", "−");
const told = (value) => (value < 1e-3 ? "< 0.001" : value.toPrecision(2));

Dial.fill(4);
