// The cone: what it costs to turn from noise to data, the disc of all paths laid flat by it, and a path of one's own.

import { decode, encode, moments, normalised } from "./clouds.js";
import { chord, energy, gamma, linear, Separation, through } from "./cone.js";
import { Grips } from "./hands.js";
import { address, choice, Figure, make, slider, still } from "./page.js";
import { PATHS } from "./softmax.js";
import { line, mixed, View } from "./view.js";

const STEPS = 60, MOST = 16, FLOOR = 0.1, WEDGES = 90, SAMPLES = 160, QUARTER = Math.PI / 2;
const NAMES = { trigonometric: "trigonometric", VP: "VP", straight: "Cond-OT", floored: "KO, floor 0.1", KO: "KO",
  own: "yours" };
const DASHES = { VP: [7, 5], floored: [2, 4] }, START = [0.5, 0.85, 0.9, 0.75, 1.25, 0.85]; // θ and r of three places
const TOLD = "Paths from noise, at the top of a quarter disc, to data, at the right; grey says what turning costs "
  + "there. Wedges narrow by the root of that price until the disc lies flat, and the cheapest path is a straight "
  + "line. Dots mark equal times. Keys: Enter takes the next place of your path, arrows move it.";
const EDGE = { left: 26, right: 10, top: 22, bottom: 22 }; // of the chart, in pixels
const TICKS = { "s = 0": 0, "½": 0.5, 1: 1, 2: 2, "∞": Infinity };
const POINTS = "The data set. Keys: arrows move the cross, Enter adds a point there, Delete takes the nearest away.";

const around = (count, radius, [x, y] = [0, 0], turned = 0) => Array.from({ length: count }, (_, k) =>
  [Math.cos, Math.sin].map((part, c) => [x, y][c] + radius * part(2 * Math.PI * k / count + turned))).flat();
const pairs = (flat) => Array.from({ length: flat.length / 2 }, (_, k) => flat.subarray(2 * k, 2 * k + 2));

const SETS = {
  two: [1, [-1, 0, 1, 0]],
  five: [1, [-1.5, 0, -1.1, 0, -0.2, 0, 1, 0, 1.8, 0]],
  ring: [2, around(12, 1.4)],
  eight: [2, pairs(Float64Array.from(around(8, 1.4))).flatMap((centre, k) => around(2, 0.16, centre, k))],
};

class Cone extends Figure {
  static title = "The cone";
  static told = TOLD;
  static sight = { half: 0.6, centre: [0.52, 0.5] };

  controls() {
    this.flat = slider("unrolled, from quarter disc to flat sector", { min: 0, max: STEPS, step: 1, value: 0 },
      (k) => `flat = ${(k / STEPS).toFixed(2)},  ${degrees(this.shown?.(QUARTER) ?? QUARTER)}°`, (k) => this.seek(k));
    this.cloud = choice("data set", { two: "two points", five: "five points", ring: "ring", eight: "eight clusters",
      own: "your own" }, "five", (name) => this.choose(name));
    this.space = choice("dimensions", { 1: "1-D", 2: "2-D" }, "1", (name) => {
      this.data(this.points, +name, "own");
      this.keep();
    });
    this.again = this.button("my path again", "live-step", () => {
      this.places = Float64Array.from(START);
      if (this.best) this.own();
      this.keep();
    });
    this.labels = Object.fromEntries(Object.keys(NAMES).map((name) => [name, make("span")]));
    const keys = Object.values(this.labels).map((label) => make("span", { className: "live-key" }, make("i"), label));
    return [keys, [this.play, this.flat, this.again], [this.cloud, this.space]];
  }

  prepare() {
    const panel = (role, ariaLabel, set) => make("canvas", { role, ariaLabel, ...set });
    this.cards = new View(panel("application", `Data. ${POINTS}`, { tabIndex: 0 }));
    this.curves = new View(panel("img", "Curves of λ and γ over the direction θ, from noise to data."));
    this.views.push(this.cards, this.curves);
    this.stage.classList.add("live-cone");
    this.canvas.after(this.cards.canvas, this.curves.canvas);
    this.grips = new Grips(this.view, { get: () => this.grip(), set: (moved) => this.bend(moved), close: 24,
      done: () => this.keep(), look: (place) => this.aim(place && this.direction(...place)) });
    this.hands = this.take(this.cards, { get: () => this.points, most: MOST, apart: Infinity, close: 16,
      set: (points) => this.data(points, this.dimensions, "own") });
  }

  restore() {
    const { data = "five", points, dim, flat, path } = address.read();
    this.index = flat === undefined ? 0 : Math.round(Math.max(0, Math.min(1, +flat || 0)) * STEPS);
    this.playing = flat === undefined && !still.matches;
    if (flat === undefined && still.matches) this.index = STEPS;
    const places = decode(path ?? "");
    this.places = places.length === START.length ? bounded(places) : Float64Array.from(START);
    this.hands.draw(matchMedia("(hover: hover)").matches);
    if (points) this.data(decode(points).slice(0, 2 * MOST), dim === "1" ? 1 : 2, "own");
    else this.pick(data in SETS ? data : "five");
  }

  pick(name) {
    const [dimensions, points] = SETS[name] ?? [this.dimensions, this.points];
    this.data(Float64Array.from(points), dimensions, name);
  }

  choose(name) {
    if (name === "own") this.hands.draw(true);
    this.pick(name);
    this.keep();
  }

  /** Take on a data set as it is drawn; its λ is that of the same points about their mean, of unit size. */
  data(points, dimensions, name) {
    this.points = dimensions > 1 ? points : points.map((value, k) => (k % 2 ? 0 : value));
    Object.assign(this, { dimensions, name });
    this.cloud.press(name);
    this.space.press(String(dimensions));
    const apart = this.points.some((value, k) => Math.abs(value - this.points[k % 2]) > 0.02);
    this.separation = apart ? new Separation(normalised(this.points, dimensions), dimensions) : null;
    this.best = null;
    this.wake();
  }

  keep() {
    const drawn = this.name === "own" ? { points: encode(this.points), dim: this.dimensions } : { data: this.name };
    const moved = this.places.some((value, k) => value !== START[k]) ? { path: encode(this.places) } : {};
    address.write({ ...drawn, ...moved, ...(this.playing ? {} : { flat: (this.index / STEPS).toFixed(2) }) });
    this.wake();
  }

  // --- the cone ----------------------------------------------------------------------------------------------

  get settled() {
    return !this.separation || this.separation.done;
  }

  /** What follows from λ as far as it is known. */
  measure() {
    this.lam = this.separation.smooth();
    this.best = chord(this.lam);
    this.least = 2 - 2 * Math.cos(this.best.end);
    this.paths = { VP: PATHS.VP, trigonometric: PATHS.trigonometric, straight: PATHS.straight,
      floored: chord(this.lam, FLOOR).path, KO: this.best.path };
    this.spent = Object.fromEntries(Object.entries(this.paths).map(([name, path]) => [name, energy(path, this.lam)]));
    this.spent.KO = this.least;
    this.own();
  }

  /** The reader's path and its energy. */
  own() {
    this.paths.own = through(this.places);
    this.spent.own = energy(this.paths.own, this.lam);
    this.label();
  }

  label() {
    for (const [name, label] of Object.entries(this.labels)) {
      const cost = this.spent[name].toFixed(3);
      label.textContent = `${NAMES[name]} ${name === "VP" ? `∞ (${cost} until t = 1 − 10⁻⁵)` : cost}`;
    }
  }

  /** The angle at which the direction θ is drawn, from θ itself to the flat Θ; and the direction drawn at a place. */
  shown(theta) {
    if (!this.best) return theta;
    return theta + this.index / STEPS * (linear(this.best.theta, this.best.angle, theta) - theta);
  }

  direction(x, y) {
    const { theta } = this.best ?? {}, at = Math.atan2(x, y);
    if (!theta) return null;
    return Math.max(0, Math.min(QUARTER, linear(theta.map((value) => this.shown(value)), theta, at)));
  }

  place(theta, r) {
    const at = this.shown(theta);
    return [r * Math.sin(at), r * Math.cos(at)];
  }

  /** Where the reader's three places are drawn; and where they are once one has been moved there. */
  grip() {
    return Float64Array.from(pairs(this.places).flatMap((place) => this.place(...place)));
  }

  bend(moved) {
    if (!this.best) return;
    const before = this.grip();
    this.places = bounded(this.places.map((value, k) => {
      const [x, y] = moved.subarray(k - k % 2, k - k % 2 + 2);
      if (x === before[k - k % 2] && y === before[k - k % 2 + 1]) return value;
      return k % 2 ? Math.hypot(x, y) : this.direction(x, y);
    }));
    this.own();
    this.wake();
  }

  /** Whether somebody looks into a direction of the disc. */
  get looked() {
    return typeof this.theta === "number";
  }

  aim(theta) {
    this.theta = theta;
    this.wake();
  }

  // --- pictures ----------------------------------------------------------------------------------------------

  /** One picture; whether another will be needed. */
  frame(seconds) {
    if (this.separation && !(this.best && this.settled)) {
      this.separation.reach(24);
      this.measure();
    }
    if (this.playing) this.sway(seconds, STEPS);
    for (const view of this.views) view.clear();
    this.flat.show(Math.round(this.index));
    this.showPlay();
    if (this.best) this.paint();
    this.card();
    this.said.textContent = this.best ? this.tell() : "At least two different points: click to add them.";
    return Boolean(this.separation) && (this.playing || !this.settled);
  }

  paint() {
    this.disc();
    for (const name of Object.keys(NAMES)) {
      this.road(name);
      this.labels[name].previousSibling.style.background = this.view.colours.paths[name];
    }
    const { view: { colours }, grips } = this, held = this.grip();
    this.view.disks(held, 8, colours.paths.own, colours.ring);
    this.view.disks(held.subarray(2 * grips.chosen, 2 * grips.chosen + 2), 4, colours.ring);
    this.chart();
  }

  /** The wedges, as dark as turning is dear, each painted over the rest of the last. */
  disc() {
    const { view } = this, { pen, colours } = view, [px, py] = view.toScreen(0, 0), end = this.shown(QUARTER);
    const wedge = (from) => {
      pen.beginPath();
      pen.moveTo(px, py);
      pen.arc(px, py, view.unit, from - QUARTER, end - QUARTER);
      pen.closePath();
    };
    for (let k = 0; k < WEDGES; k++) {
      wedge(this.shown(k / WEDGES * QUARTER));
      pen.fillStyle = mixed(colours.price, gamma(this.lam, Math.tan((k + 0.5) / WEDGES * QUARTER)));
      pen.fill();
    }
    pen.strokeStyle = colours.arrow;
    pen.lineWidth = 0.5;
    for (let k = 0; k < WEDGES; k += 10) {
      wedge(this.shown(k / WEDGES * QUARTER));
      pen.stroke();
    }
    if (this.looked) line(view, [[0, 0], this.place(this.theta, 1)], colours.lens, 2);
    pen.fillStyle = colours.ink;
    pen.font = "15px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.fillText("noise", ...view.toScreen(0.02, 1.03));
    pen.fillText("data", ...view.toScreen(1.06 * Math.sin(end), 1.06 * Math.cos(end)));
    pen.fillText(`${degrees(end)}°`, ...view.toScreen(0.16 * Math.sin(end / 2), 0.16 * Math.cos(end / 2)));
  }

  /** A path, and dots on it at equal times; the samples crowd at the start, where the best path turns at once. */
  road(name) {
    const { view } = this, { colours } = view, at = (t) => {
      const { a, m } = this.paths[name](t);
      return this.place(Math.atan2(a, m), Math.hypot(a, m));
    };
    const places = Array.from({ length: SAMPLES + 1 }, (_, k) => at((k / SAMPLES) ** 4));
    line(view, places, colours.paths[name], name === "KO" || name === "own" ? 3.2 : 2, DASHES[name]);
    view.disks(Array.from({ length: 11 }, (_, k) => at(k / 10)).flat(), 3.4, colours.paths[name], colours.ring);
  }

  /** λ and γ over the direction. */
  chart() {
    const { curves: { pen, colours, width, height }, lam } = this, { left, right, top, bottom } = EDGE;
    const x = (theta) => left + theta / QUARTER * (width - left - right);
    const y = (value) => top + (1 - value) * (height - top - bottom);
    const trace = (f, strokeStyle, dash) => {
      pen.beginPath();
      for (let k = 0; k <= SAMPLES; k++) {
        const theta = Math.min(k, SAMPLES - 0.5) / SAMPLES * QUARTER; // s = ∞ is no number
        pen.lineTo(x(theta), y(f(Math.tan(theta))));
      }
      Object.assign(pen, { strokeStyle, lineWidth: 2 });
      pen.setLineDash(dash);
      pen.stroke();
      pen.setLineDash([]);
    };
    const say = (text, px, py, textAlign, fillStyle = colours.ink) => {
      Object.assign(pen, { textAlign, fillStyle });
      pen.fillText(text, px, py);
    };
    pen.font = "13px system-ui, sans-serif";
    pen.strokeStyle = colours.arrow;
    pen.lineWidth = 0.5;
    pen.strokeRect(left, top, width - left - right, height - top - bottom);
    const roomy = width > 280;
    for (const [text, s] of Object.entries(TICKS)) {
      if (roomy || s !== 0.5) say(text, x(Math.atan(s)), height - 6, s === Infinity ? "right" : s ? "center" : "left");
    }
    for (const value of [0, 1]) say(String(value), left - 6, y(value) + 4, "right");
    trace((s) => s * s / (1 + s * s), colours.arrow, [2, 4]);
    trace(lam, colours.paths.straight, []);
    trace((s) => gamma(lam, s), colours.paths.KO, []);
    say(roomy ? "λ, data seen" : "λ", left, 15, "left", colours.paths.straight);
    say(roomy ? "γ, price of turning" : "γ, price", width - right, 15, "right", colours.paths.KO);
    if (this.looked) {
      Object.assign(pen, { strokeStyle: colours.lens, lineWidth: 2 });
      pen.beginPath();
      pen.moveTo(x(this.theta), top);
      pen.lineTo(x(this.theta), height - bottom);
      pen.stroke();
    }
  }

  /** The data, under the noise that hides them in the direction that is looked at. */
  card() {
    const { cards, points, dimensions, lens, theta } = this, { pen, colours } = cards;
    if (this.best && theta > 0) {
      cards.density(points, { a: 1, m: moments(points, dimensions).size / Math.tan(theta) }, dimensions);
    }
    if (dimensions === 1) line(cards, [[-9, 0], [9, 0]], colours.arrow, 1);
    cards.disks(points, 5, colours.point, colours.ring);
    if (lens) {
      const [x, y] = lens, arm = 8 / cards.unit;
      line(cards, [[x - arm, y], [x + arm, y]], colours.lens, 2);
      line(cards, [[x, y - arm], [x, y + arm]], colours.lens, 2);
    }
    Object.assign(pen, { font: "13px system-ui, sans-serif", textAlign: "left", fillStyle: colours.ink });
    pen.fillText(theta > 0 ? "data under that noise" : `${points.length / 2} points`, 8, 17);
  }

  tell() {
    const { theta, lam, least, spent } = this;
    if (this.looked) {
      const s = Math.tan(theta);
      return `Here s = a/m = ${s > 99 ? "∞" : s.toFixed(2)}: λ = ${lam(s).toFixed(3)}, and turning costs `
        + `γ = ${gamma(lam, s).toFixed(3)}.`;
    }
    const more = 100 * (spent.own / least - 1), end = degrees(this.best.end);
    return `Laid flat, 90° become ${end}°. No path costs less than 2 − 2 cos ${end}° = ${least.toFixed(3)}; yours `
      + `costs ${spent.own.toFixed(3)}, ${more.toFixed(more < 10 ? 1 : 0)} % more. Drag its three places.`;
  }
}

const degrees = (angle) => (angle * 180 / Math.PI).toFixed(0);

/** Places (θ, r) inside the quarter disc, and not at its tip. */
function bounded(places) {
  const [least, most] = [[0, 0.1], [QUARTER, 1.05]];
  return places.map((value, k) => Math.max(least[k % 2], Math.min(most[k % 2], value)));
}

Cone.fill(1);
