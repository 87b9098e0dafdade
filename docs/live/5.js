// Pull and push: a crowd moves to a target along the difference of two scores, or by mean shift, or down the MMD.

import { blobs, CLOUDS, decode, encode, generator, moments, normal, normalised } from "./clouds.js";
import { Crowds, energyDistance, heaps, levels, MOTIONS, within } from "./difference.js";
import { nearest } from "./hands.js";
import { address, between, choice, Figure, make, slider, still } from "./page.js";
import { weights } from "./softmax.js";
import { arrow } from "./view.js";

const STEPS = 100, SECONDS = 6, PAUSE = 2, PARTICLES = 240, AROUND = 0.15, MOST = 300, NOTCHES = 40, TAIL = 12;
const NEAR = 0.03, HEAP = 4; // how near particles are in a heap, and how many of them are drawn as one
const CROWDS = [1, 2, 3, 4, 8, 15, 30, 60, 120, PARTICLES];
const NAMES = { both: "pull and push", pull: "pull alone", mmd: "MMD gradient" };
const PRESETS = [ // of the start, of the target
  { corner: () => Float64Array.of(-1.9, -1.9), noise: () => normal(400, generator(3)), ring: () => blobs(60, 60, 2.2) },
  { eight: () => normalised(blobs(200, 8)), moons: CLOUDS.moons, rings: CLOUDS.rings }];
const FIRST = ["corner", "eight"], EMPTY = ["Draw a start: click or drag.", "Draw a target: click or drag."];
const SCHEDULES = { falls: [40, 10], large: [40, 40], small: [14, 14] };
const TOLD = "A crowd of orange particles moves to a target of dark points; shade is the target, blurred by the noise "
  + "level σ of the step. Pulled to the mean of the target near them and pushed from that of their own crowd, they "
  + "spread like the target; pulled alone they collapse. Move over the picture to see what moves a particle. Keys: "
  + "arrows move the lens, Enter adds a point, Delete takes the nearest away.";
const LEGEND = "Energy distance: 0 for fresh points of the target's density, less for copies of its points. Hover or "
  + "tap: what pulls this particle, what pushes it?";
const COLUMNS = ["energy distance", "variance over the target's", `places taken by ${PARTICLES}`];
const noise = (k) => 0.03 * 100 ** (k / NOTCHES);
const minus = (text) => text.replace("-", "−");
const told = (value) => minus((Math.round(1000 * value) / 1000 || 0).toFixed(3));

class PullAndPush extends Figure {
  static title = "Pull and push";
  static told = TOLD;

  controls() {
    this.sigmas = levels(1, 1, STEPS); // until the address is read
    const notches = { min: 0, max: NOTCHES, step: 1, value: 0 };
    this.time = slider("part of the steps done", { min: 0, max: STEPS, step: 1, value: 0 },
      (k) => `done = ${(k / STEPS).toFixed(2)},  σ = ${this.sigma(k).toPrecision(2)}`, (k) => this.seek(k));
    this.motions = choice("motion", NAMES, "both", (motion) => {
      this.motion = motion;
      this.keep();
    });
    this.crowds = slider("size of a crowd", { min: 0, max: CROWDS.length - 1, step: 1, value: 0 },
      (k) => `${CROWDS[k] < PARTICLES ? "crowds" : "one crowd"} of ${CROWDS[k]}`,
      (k) => this.change({ crowd: CROWDS[k] }));
    this.schedules = choice("schedule", { falls: "σ falls", large: "σ large", small: "σ small" }, "falls",
      (name) => this.change({ high: SCHEDULES[name][0], low: SCHEDULES[name][1] }));
    this.highs = slider("first σ", notches, (k) => `first σ = ${noise(k).toPrecision(2)}`,
      (high) => this.change({ high, low: Math.min(high, this.low) }));
    this.lows = slider("last σ", notches, (k) => `last σ = ${noise(k).toPrecision(2)}`,
      (low) => this.change({ low, high: Math.max(low, this.high) }));
    this.presets = PRESETS.map((preset, side) => choice(["start", "target"][side],
      { ...Object.fromEntries(Object.keys(preset).map((name) => [name, name])), none: "empty" }, "", (name) => {
        this.fill(side, name);
        this.change({});
      }));
    this.pens = choice("what is drawn", { look: "look", 0: "draw start", 1: "draw target" }, "look",
      (name) => this.draw(name));
    const named = (...parts) => make("span", { className: "live-key" }, ...parts);
    const ends = [named("from", this.presets[0]), named("to", this.presets[1]), this.pens];
    return [[this.table()], [this.play, this.time], [this.motions, this.crowds], [this.schedules, this.highs, this.lows],
      ends];
  }

  /** A row for each motion, a column for each number. */
  table() {
    const head = make("tr", {}, make("td"), ...COLUMNS.map((textContent) => make("th", { scope: "col", textContent })));
    this.rows = Object.fromEntries(Object.entries(NAMES).map(([name, textContent]) => [name,
      make("tr", {}, make("th", { scope: "row", textContent }), ...COLUMNS.map(() => make("td")))]));
    return make("table", {}, head, ...Object.values(this.rows));
  }

  prepare() {
    this.said.ariaLive = "off";
    this.stage.classList.add("live-strip");
    const random = generator(11);
    this.chances = Float64Array.from({ length: PARTICLES }, random);
    this.jitter = normal(2 * PARTICLES, random);
    this.hands = this.take(this.view,
      { get: () => this.clouds[this.side], set: (points) => this.set(points), most: MOST });
  }

  /** What the address says, or a crowd from the corner to eight groups, in motion. */
  restore() {
    const { from = FIRST[0], to = FIRST[1], start, target, motion, crowd, high, low, done } = address.read();
    const [first, last] = SCHEDULES.falls, notch = (text, k) => between(0, Math.round(+(text ?? k)) || 0, NOTCHES);
    Object.assign(this, { clouds: [], names: [], high: notch(high, first), motion: motion in NAMES ? motion : "both",
      crowd: CROWDS.includes(+crowd) ? +crowd : PARTICLES });
    this.low = Math.min(this.high, notch(low, last));
    this.index = done === undefined ? still.matches ? STEPS : 0 : Math.round(between(0, +done || 0, 1) * STEPS);
    this.playing = done === undefined && !still.matches;
    this.draw("look");
    [from, to].forEach((name, side) => this.fill(side, name in PRESETS[side] ? name : FIRST[side]));
    [start, target].forEach((points, side) => {
      if (points !== undefined) this.own(side, decode(points).slice(0, 2 * MOST));
    });
    this.go();
  }

  keep() {
    const [start, target] = this.clouds.map(encode), [from, to] = this.names;
    address.write({ ...(from ? { from } : { start }), ...(to ? { to } : { target }), motion: this.motion,
      crowd: this.crowd, high: this.high, low: this.low,
      ...(this.playing ? {} : { done: (Math.floor(this.index) / STEPS).toFixed(2) }) });
    this.wake();
  }

  /** Take on some settings; a run that plays begins again. */
  change(settings) {
    Object.assign(this, settings);
    this.go();
    this.keep();
  }

  draw(name) {
    this.side = name === "0" ? 0 : 1;
    this.pens.press(name);
    this.hands.draw(name !== "look");
  }

  own(side, points) {
    this.clouds[side] = points;
    this.names[side] = "";
    this.presets[side].press("");
  }

  /** Take on a start or a target by its name; into an empty one the reader draws. */
  fill(side, name) {
    this.own(side, PRESETS[side][name]?.() ?? new Float64Array(0));
    this.names[side] = name === "none" ? "" : name;
    this.presets[side].press(name);
    if (name === "none") this.draw(String(side));
  }

  set(points) {
    this.own(this.side, points);
    this.go();
  }

  // --- what follows from start, target and settings --------------------------------------------------------------

  /** The noise level of the step after `index` steps. */
  sigma(index) {
    return this.sigmas[Math.min(index, STEPS - 1)];
  }

  /** The particles are drawn from the start, with a little noise, and go their three ways. */
  go() {
    const [start, target] = this.clouds, some = start.length && target.length > 2;
    this.sigmas = levels(noise(this.high), noise(this.low), STEPS);
    const places = Float64Array.from(this.jitter, (jump, k) =>
      start[2 * Math.floor(this.chances[k >> 1] * start.length / 2) + k % 2] + AROUND * jump);
    this.runs = some && Object.fromEntries(Object.entries(MOTIONS).map(([name, motion]) =>
      [name, new Crowds(places, target, motion, this.sigmas, this.crowd)]));
    this.among = some && within(target);
    this.compared = {};
    if (this.playing) this.index = 0;
    this.wake();
  }

  /** How the three are after `index` steps: energy distance to the target, variance over the target's, and heaps. */
  compare(index) {
    const target = this.clouds[1], size = moments(target).size ** 2;
    return this.compared[index] ??= Object.fromEntries(Object.entries(this.runs).map(([name, { states }]) =>
      [name, { distance: energyDistance(states[index], target, this.among),
        variance: moments(states[index]).size ** 2 / size, heaps: heaps(states[index], NEAR) }]));
  }

  // --- pictures --------------------------------------------------------------------------------------------------

  /** Whether all three have come to where the slider is. */
  get settled() {
    return !this.runs || Object.values(this.runs).every(({ states }) => states.length > this.index);
  }

  frame(seconds) {
    if (this.playing && this.runs) this.run(seconds);
    const goal = Math.floor(this.index), reached = this.runs
      && Math.min(...Object.values(this.runs).map((run) => run.reach(goal, 4)));
    this.paint(reached || 0);
    this.show(goal);
    return Boolean(this.runs) && (this.playing || reached < goal);
  }

  /** To the last step, a rest, and again. */
  run(seconds) {
    this.rest = this.index < STEPS ? 0 : this.rest + seconds;
    if (this.settled) this.index = Math.min(STEPS, this.index + seconds / SECONDS * STEPS);
    if (this.rest > PAUSE) this.index = 0;
  }

  toggle() {
    if (!this.playing && this.index === STEPS) this.index = 0;
    super.toggle();
  }

  /** The controls as the settings are. */
  show(goal) {
    const { high, low } = this;
    this.time.show(goal);
    this.crowds.show(CROWDS.indexOf(this.crowd));
    this.highs.show(high);
    this.lows.show(low);
    this.motions.press(this.motion);
    this.schedules.press(Object.keys(SCHEDULES).find((name) => `${SCHEDULES[name]}` === `${[high, low]}`));
    this.showPlay();
  }

  paint(reached) {
    const { view, clouds: [start, target], runs } = this, { colours, pen } = view;
    view.clear();
    pen.globalAlpha = 0.5;
    if (target.length) view.density(target, { a: 1, m: this.sigma(reached) });
    view.points(target);
    if (!runs || this.hands.drawing) view.disks(start, 4, colours.lens, colours.ring);
    const found = runs && this.compare(reached);
    if (runs) {
      view.particles(runs[this.motion].states, reached, TAIL);
      for (const [x, y, n] of found[this.motion].heaps) {
        if (n >= HEAP) view.disks([x, y], 2.3 * Math.sqrt(n), colours.particle, colours.ring);
      }
    }
    this.said.textContent = runs ? this.look(reached) : EMPTY[start.length ? 1 : 0];
    for (const [name, row] of Object.entries(this.rows)) this.tell(row, name === this.motion, found?.[name]);
  }

  /** One motion's numbers into its row. */
  tell(row, shown, found) {
    const [head, ...cells] = row.children;
    const texts = found ? [told(found.distance), found.variance.toFixed(2), found.heaps.length] : [];
    cells.forEach((cell, k) => (cell.textContent = texts[k] ?? ""));
    head.style.boxShadow = shown ? `inset 4px 0 ${this.view.colours.particle}` : "";
  }

  /** What pulls and pushes the particle nearest to the lens. */
  look(index) {
    if (!this.lens) return LEGEND;
    const { view, clouds: [, target] } = this, run = this.runs[this.motion], sigma = this.sigma(index);
    const places = run.states[index], k = nearest(places, ...this.lens, Infinity), [x, y] = places.subarray(k, k + 2);
    const crowd = run.around(places, k), [dx, dy, px, py, qx, qy, a, b] = run.shift(index, k).slice();
    const shares = [target, crowd].map((cloud) => new Float64Array(cloud.length / 2));
    const [pulls, pushes] = [target, crowd].map((cloud, c) => weights(x, y, cloud, sigma, shares[c]).toFixed(1));
    view.lens(x, y, target, shares[0], [px, py], view.colours.lens);
    if (b) view.lens(x, y, crowd, shares[1], [qx, qy], view.colours.particle);
    run.reach(index + 1, Infinity);
    this.arrow(x, y, run.states[index + 1][k] - x, run.states[index + 1][k + 1] - y);
    const pulled = `Pulled by ${pulls} of ${shares[0].length} points`, itself = shares[1][k / 2 % run.crowd];
    if (this.motion === "pull") return `${pulled}, pushed by nobody.`;
    const pushed = `${pulled}, pushed by ${pushes} of ${shares[1].length}, itself ${(100 * itself).toFixed(0)} %.`;
    return this.motion === "mmd" ? `${pushed}  Pull weighs ${minus(a.toPrecision(2))}, push ${minus(b.toPrecision(2))}.`
      : `${pushed}  Difference of the scores (${told(dx / sigma ** 2)}, ${told(dy / sigma ** 2)}).`;
  }

  /** The next step, from (x, y). */
  arrow(x, y, dx, dy) {
    const { pen, unit, colours } = this.view, [px, py] = this.view.toScreen(x + dx / 2, y + dy / 2);
    for (const [lineWidth, strokeStyle] of [[7, colours.ring], [3.5, colours.ink]]) {
      pen.beginPath();
      arrow(pen, px, py, unit * dx, -unit * dy, 10 / Math.max(10, unit * Math.hypot(dx, dy)));
      Object.assign(pen, { lineWidth, strokeStyle });
      pen.stroke();
    }
  }
}

PullAndPush.fill(5);
