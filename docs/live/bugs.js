// The sandbox of bugs: one exact computation, right and with a bug, and which of its identities breaks first.

import { blobs, CLOUDS, generator, normal } from "./clouds.js";
import { AT, Bench, BROKEN, BUGS, compute, IDENTITIES, LATEST, RECIPE, travel } from "./identities.js";
import { address, between, choice, Figure, make, slider, still } from "./page.js";
import { PATHS } from "./softmax.js";
import { View } from "./view.js";

const STEPS = AT.length - 1, SECONDS = 5, PAUSE = 2, PARTICLES = 120, PLACES = 40, VELOCITY = 3;
const REACH = 2, LEAST = -12; // the size of the places looked at; the residual, as a power of ten, of an empty bar
const TAILS = { flow: 16, diffusion: 5 };
const thinned = (points, every) => points.filter((_, k) => k % (2 * every) < 2);
const DATA = { moons: () => thinned(CLOUDS.moons(), 10), rings: () => thinned(CLOUDS.rings(), 10),
  groups: () => blobs(30, 3) };
const WAYS = { straight: "straight", trigonometric: "quarter circle" }, RUNS = { flow: "flow", diffusion: "diffusion" };
// what a button says, the line as it should be and as it is, how it is looked at, and what would have caught it
const TEXTS = {
  none: { name: "no bug", lesson: "All hold, up to the error of differences. Choose a bug: which breaks first?" },
  sign: { name: "a sign flipped", was: "s = (a D − x)/m²", is: "s = (x − a D)/m²", by: "diffusion",
    lesson: "The score against differences of log p would have caught it. The flow asks for no score, so its samples "
      + "and likelihoods stay right; the diffusion flies apart." },
  swap: { name: "xₜ for x₁", was: "v = a′ D + m′(x − a D)/m", is: "v = a′ xₜ + m′(x − a D)/m",
    lesson: "The velocity against the mean of Δxₜ/Δt would have caught it. Where particles end does not: they still "
      + "land on the data." },
  root: { name: "√2 forgotten", was: "dX = … + √(2ε) dW", is: "dX = … + √ε dW", by: "diffusion",
    lesson: "Nelson’s relation would have caught it, and it alone: it holds the noise against the score. Samples come "
      + "closer to the data than they should, and look cleaner for it." },
  half: { name: "2 forgotten", was: "exp(−‖x − a y‖²/2m²)", is: "exp(−‖x − a y‖²/m²)",
    lesson: "The integral of the density would have caught it: it is one half. The velocity is exact, for another "
      + "level of noise, so mass is conserved and particles land on the data. (Chapter 3: ε = σ² for 2σ².)" },
  scale: { name: "data not scaled", was: "exp(−‖x − a y‖²/2m²)", is: "exp(−‖x − y‖²/2m²)",
    lesson: "Tweedie’s mean would have caught it. The density integrates to one, on the straight path mass is "
      + "conserved besides, and as a goes to one the bug fades away: particles land on the data." },
  divergence: { name: "sign of ∇·v", was: "∇·v = 2m′/m + (a′ − a m′/m)(a/m²)V", is: "∇·v = −(2m′/m + …)",
    lesson: "The divergence against differences of v would have caught it, or the integral of the likelihood. No "
      + "sample changes. (Chapter 2.)" },
  clock: { name: "another clock", was: "a′, m′", is: "a′/2, m′/2",
    lesson: "The velocity against the mean of Δxₜ/Δt would have caught it, and so does the end. Divergence and "
      + "likelihood are right for the wrong flow: the integral is one. (Chapter 4.)" },
  first: { name: "exponentials first", was: "exp(ℓ − max ℓ)", is: "exp ℓ, in single precision", at: LATEST,
    lesson: "The sum of the weights would have caught it, late and far from the data, where every exponential is zero "
      + "and 0/0 is no number. The flow’s particles never go there. (Chapter 0.)" },
};
const TOLD = "Two pictures of particles on their way from noise to a data set: by the right computation on the left, "
  + "with a bug on the right. Blue is the density that both should follow, arrows are the drift. A table below says how far "
  + "each identity is from holding. Keys: arrows move the lens.";
const WRONG = "The same particles by the computation with the bug.";

/** A residual in words. */
function told(residual) {
  if (residual === Infinity) return "no number";
  if (residual >= BROKEN) return `${(100 * residual).toFixed(residual < 0.1 ? 1 : 0)} %`;
  if (residual === 0) return "0";
  const [digit, power] = residual.toExponential(0).split("e-");
  return `${digit}·10⁻${[...power].map((figure) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[figure]).join("")}`;
}

const pair = (x, y) => `(${[x, y].map((value) => value.toFixed(2).replace("-", "−")).join(", ")})`;

class Sandbox extends Figure {
  static title = "The sandbox of bugs";
  static told = TOLD;
  static sight = { half: 2.2 };

  controls() {
    this.time = slider("time t from noise to data", { min: 0, max: STEPS, step: 1, value: 0 }, (k) => {
      const { a, m } = PATHS[this.path ?? "straight"](AT[k]);
      return `t = ${AT[k].toFixed(2)},  σ = ${a > 1e-9 ? (m / a).toPrecision(2) : "∞"}`;
    }, (k) => this.seek(k));
    this.bugs = choice("bug", Object.fromEntries(Object.entries(TEXTS).map(([bug, { name }]) => [bug, name])), "none",
      (bug) => this.choose(bug));
    this.bugs.classList.add("live-wrap");
    this.ways = choice("path", WAYS, "straight", (path) => this.change({ path }));
    this.sets = choice("data set", Object.fromEntries(Object.keys(DATA).map((name) => [name, name])), "moons",
      (data) => this.change({ data }));
    this.motions = choice("particles follow", RUNS, "flow", (by) => this.change({ by }));
    this.lesson = make("p", { className: "live-lesson" });
    return [[this.bugs], [this.lesson], [this.table()], [this.play, this.time], [this.motions, this.ways, this.sets]];
  }

  /** A row for each identity: its name and formula, and how far it is from holding, right and with the bug. */
  table() {
    this.when = make("th", { scope: "col" });
    const head = make("tr", {}, this.when, ...["right", "bug"].map((textContent) =>
      make("th", { scope: "col", textContent })));
    this.rows = Object.fromEntries(Object.entries(IDENTITIES).map(([key, { name, says }]) => [key, make("tr", {},
      make("th", { scope: "row" }, make("b", { textContent: name }), ` ${says}`), make("td"), make("td"))]));
    return make("table", { className: "live-identities" }, head, ...Object.values(this.rows));
  }

  prepare() {
    this.wrong = new View(make("canvas", { role: "img", ariaLabel: WRONG }), Sandbox.sight);
    this.views.push(this.wrong);
    this.stage.classList.add("live-pair");
    this.canvas.after(this.wrong.canvas);
    const random = generator(3);
    this.start = normal(2 * PARTICLES, random);
    this.spots = normal(2 * PLACES, random);
    this.noise = normal(2 * PARTICLES * STEPS, random);
    for (const view of this.views) { // no points are drawn: arrows and pointers look
      this.take(view, { get: () => this.points, set: () => {}, most: 0 }).draw(false);
    }
  }

  restore() {
    const { bug = "sign", path, data, by, t } = address.read();
    const has = (names, name, otherwise) => (Object.hasOwn(names, name ?? "") ? name : otherwise);
    Object.assign(this, { bug: has(BUGS, bug, "sign"), path: has(WAYS, path, "straight"),
      data: has(DATA, data, "moons") });
    this.by = has(RUNS, by, TEXTS[this.bug].by ?? "flow");
    this.index = this.at(t === undefined ? (still.matches ? 0.6 : 0) : +t || 0);
    this.playing = t === undefined && !still.matches;
    this.change({}, false);
  }

  /** The last of the times that is no later than t. */
  at(t) {
    return Math.max(0, AT.findLastIndex((time) => time <= t + 1e-3));
  }

  keep() {
    const { bug, path, data, by } = this;
    address.write({ bug, path, data, by, ...(this.playing ? {} : { t: AT[Math.floor(this.index)].toFixed(3) }) });
    this.wake();
  }

  choose(bug) {
    const { by = "flow", at } = TEXTS[bug];
    if (at && !this.playing) this.index = this.at(at);
    this.change({ bug, by });
  }

  change(settings, keep = true) {
    if (!("bug" in settings || "by" in settings)) this.known = {}; // what was computed is of other points or paths
    Object.assign(this, settings);
    this.points = this.once("points", () => DATA[this.data]());
    if (keep) this.keep();
  }

  toggle() {
    if (!this.playing && this.index === STEPS) this.index = 0;
    super.toggle();
  }

  // --- what follows from the settings ----------------------------------------------------------------------------

  once(key, find) {
    return this.known[key] ??= find();
  }

  recipe(bug) {
    return { ...RECIPE, ...BUGS[bug] };
  }

  states(bug, by) {
    return this.once(`${bug} ${by}`, () => travel(this.start, this.points, PATHS[this.path], this.recipe(bug),
      by === "diffusion" ? this.noise : null));
  }

  /** When identities are looked at. */
  get moment() {
    return Math.min(AT[Math.floor(this.index)], LATEST);
  }

  /** Half of them anywhere, half where the noised data are. */
  places({ a, m }) {
    const { points } = this;
    return this.spots.map((z, k) => (k < PLACES ? REACH * z : a * points[k % points.length] + m * z));
  }

  /** How far each identity is from holding now. */
  residuals(bug) {
    const t = this.moment, path = PATHS[this.path], end = this.states(bug, "flow").at(-1);
    return this.once(`${bug} at ${t}`, () => {
      const bench = new Bench(this.points, path, this.recipe(bug), t, this.places(path(t)), end);
      return Object.fromEntries(Object.entries(IDENTITIES).map(([key, { residual, timeless }]) => [key,
        timeless ? this.once(`${bug} ${key}`, () => residual(bench)) : residual(bench)]));
    });
  }

  get settled() {
    return true;
  }

  // --- pictures --------------------------------------------------------------------------------------------------

  frame(seconds) {
    if (this.playing) this.run(seconds);
    const k = Math.floor(this.index), found = this.residuals(this.bug);
    this.paint(this.view, "none", "right", k);
    this.paint(this.wrong, this.bug, this.bug === "none" ? "no bug yet" : `bug: ${TEXTS[this.bug].name}`, k);
    this.show(k, found);
    this.said.ariaLive = this.playing ? "off" : "polite";
    this.said.textContent = this.lens ? this.look(k) : this.verdict(found);
    return this.playing;
  }

  /** To the end, a rest, and again. */
  run(seconds) {
    this.rest = this.index < STEPS ? 0 : this.rest + seconds;
    this.index = this.rest > PAUSE ? 0 : between(0, this.index + seconds / SECONDS * STEPS, STEPS);
  }

  paint(view, bug, title, k) {
    const path = PATHS[this.path](AT[k]), { pen, colours } = view;
    view.clear();
    view.density(this.points, path);
    view.arrows(this.points, path, VELOCITY, 34, (x, y, points, here, out) => this.drift(x, y, here, bug, out));
    view.points(this.points);
    view.particles(this.states(bug, this.by), k, TAILS[this.by]);
    if (this.lens) view.disks(this.lens, 6, colours.lens, colours.ring);
    Object.assign(pen, { font: "600 14px system-ui, sans-serif", textAlign: "left", textBaseline: "alphabetic",
      lineWidth: 4, strokeStyle: colours.ring, fillStyle: colours.ink });
    pen.strokeText(title, 10, 22);
    pen.fillText(title, 10, 22);
  }

  /** What the particles follow: the velocity, and in a diffusion ε of the score besides. */
  drift(x, y, here, bug, out) {
    compute(x, y, this.points, here, this.recipe(bug), out);
    if (this.by === "diffusion") for (const c of [0, 1]) out[VELOCITY + c] += here.m * out[1 + c];
    return out;
  }

  /** The controls, the lesson and the table as things are. */
  show(k, found) {
    const { bug } = this, [first] = broken(found), right = this.residuals("none");
    this.time.show(k);
    this.bugs.press(bug);
    this.ways.press(this.path);
    this.sets.press(this.data);
    this.motions.press(this.by);
    this.showPlay();
    this.teach(TEXTS[bug]);
    this.when.textContent = `identity, at t = ${this.moment.toFixed(2)}`;
    for (const [key, { children: [, was, is], classList, style }] of Object.entries(this.rows)) {
      const off = found[key], broke = off > BROKEN, wide = 100 * between(0, 1 - Math.log10(off || 1e-99) / LEAST, 1);
      was.textContent = told(right[key]);
      is.textContent = `${broke ? "✗" : "✓"} ${told(off)}`;
      style.setProperty("--wide", `${wide.toFixed(0)}%`);
      classList.toggle("live-broken", broke);
      classList.toggle("live-first", key === first);
    }
  }

  /** The line that is wrong and the sentence that goes with it; only when they change, for those who listen. */
  teach({ was, is, lesson }) {
    if (this.taught === lesson) return;
    this.taught = lesson;
    const code = (textContent) => make("code", { textContent });
    const line = is ? ["It is ", code(is), " and should be ", code(was), ". "] : [];
    this.lesson.replaceChildren(...line, lesson);
  }

  verdict(found) {
    const off = broken(found), count = Object.keys(found).length, [first] = off;
    if (!first) return `All ${count} identities hold at t = ${this.moment.toFixed(2)}.`;
    const how = found[first] === Infinity ? "it is no number" : `off by ${told(found[first])}`;
    const rest = `${off.length} of ${count} break, ${count - off.length} hold.`;
    return `First broken: ${IDENTITIES[first].name}, ${how}. ${rest}`;
  }

  /** Velocity, score and density under the lens, right and with the bug. */
  look(k) {
    const [right, wrong] = ["none", this.bug].map((bug) => compute(...this.lens, this.points, PATHS[this.path](AT[k]),
      this.recipe(bug), new Float64Array(9)));
    const both = (name, say) => `${name} ${say(wrong)}, right ${say(right)}`;
    return [both("Here velocity", (it) => pair(it[3], it[4])), both("score", (it) => pair(it[1], it[2])),
      both("log p", (it) => it[0].toFixed(2).replace("-", "−"))].join(";  ");
  }
}

/** Names of the identities that do not hold, in their order. */
const broken = (found) => Object.keys(found).filter((key) => found[key] > BROKEN);

Sandbox.fill("bugs");
