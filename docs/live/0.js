// Draw your own data: a data set by hand, its exact density, score and velocity, and particles that fall along them.

import { CLOUDS, decode, encode, generator, normal, word } from "./clouds.js";
import { Flow, times } from "./flow.js";
import { nearest } from "./hands.js";
import { address, choice, Figure, make, slider, still } from "./page.js";
import { field, PATHS, weights } from "./softmax.js";

const STEPS = 150, SECONDS = 7, PAUSE = 2, PARTICLES = 400, AT = times(STEPS), PATH = PATHS.straight;
const ARROWS = { none: "no arrows", score: "score", velocity: "velocity" }, STANDS = { score: 1, velocity: 3 };
const TOLD = "The points are a data set. Noise, in orange, falls onto them along the exact velocity field of the "
  + "noised data; blue shows their density. Move over the picture to see which points own a place. Keys: arrows move "
  + "the lens, Enter adds a point under it, Delete takes the nearest away.";

class Draw extends Figure {
  static title = "Draw your own data";
  static told = TOLD;

  controls() {
    this.time = slider("time t from noise to data", { min: 0, max: STEPS, step: 1, value: 0 }, (k) => {
      const { a, m } = PATH(AT[k]);
      return `t = ${AT[k].toFixed(2)},  σ = ${a ? (m / a).toPrecision(2) : "∞"}`;
    }, (k) => this.seek(k));
    this.cloud = choice("data set", { moons: "moons", spirals: "spirals", rings: "rings", word: "a word", none: "empty" },
      "moons", (name) => this.choose(name));
    this.text = make("input", { type: "text", maxLength: 12, value: "hello", ariaLabel: "the word", hidden: true,
      on: { input: () => this.choose("word") } });
    this.kind = choice("arrows", ARROWS, "none", (name) => {
      this.arrows = name;
      this.keep();
    });
    this.draw = this.button("draw", "live-draw", () => this.drawing(this.draw.ariaPressed !== "true"));
    return [[this.play, this.time], [this.cloud, this.text, this.draw, this.kind]];
  }

  prepare() {
    this.out = new Float64Array(9);
    this.hands = this.take(this.view, { get: () => this.points, set: (points) => this.data(points, "") });
  }

  /** What the address says, or moons in motion. */
  restore() {
    const { data = "moons", t, arrows = "none", word: text, points } = address.read();
    this.arrows = arrows in ARROWS ? arrows : "none";
    this.kind.press(this.arrows);
    if (text) this.text.value = text;
    this.index = t === undefined ? 0 : AT.findLastIndex((at) => at <= +t + 1e-9);
    this.playing = t === undefined && !still.matches;
    if (t === undefined && still.matches) this.index = Math.round(0.8 * STEPS);
    this.index = Math.max(0, this.index);
    this.drawing(matchMedia("(hover: hover)").matches);
    this.data(points ? decode(points) : this.named(data), points ? "" : data);
  }

  named(name) {
    if (name === "word") return word(this.text.value || " ");
    return CLOUDS[name]?.() ?? new Float64Array(0);
  }

  choose(name) {
    if (name === "none") this.drawing(true);
    this.data(this.named(name), name);
    this.index = 0;
    this.playing = !still.matches;
    if (still.matches) this.index = STEPS;
    this.keep();
  }

  /** Take on a data set; the particles start again from the same noise. */
  data(points, name) {
    this.points = points;
    this.name = name;
    this.cloud.press(name);
    this.text.hidden = name !== "word";
    this.shares = new Float64Array(points.length / 2);
    this.noise ??= normal(2 * PARTICLES, generator(5));
    this.flow = new Flow(this.noise, points, PATH, AT);
    this.wake();
  }

  keep() {
    const drawn = this.name ? { data: this.name } : { points: encode(this.points) };
    if (this.name === "word") drawn.word = this.text.value;
    address.write({ ...drawn, arrows: this.arrows, ...(this.playing ? {} : { t: AT[Math.floor(this.index)].toFixed(3) }) });
    this.wake();
  }

  toggle() {
    if (!this.playing && this.index === STEPS) this.index = 0;
    super.toggle();
  }

  drawing(on) {
    this.draw.ariaPressed = String(on);
    this.hands.draw(on);
  }

  // --- pictures ----------------------------------------------------------------------------------------------

  /** Whether the particles are where the slider is. */
  get settled() {
    return this.flow.states.length > this.index;
  }

  /** One picture; whether another will be needed. */
  frame(seconds) {
    const some = this.points.length > 0;
    if (this.playing && some) this.run(seconds);
    const goal = Math.floor(this.index), reached = some ? this.flow.reach(goal) : 0;
    this.paint(PATH(AT[goal]), reached);
    this.time.show(goal);
    this.showPlay();
    return some && (this.playing || reached < goal);
  }

  run(seconds) {
    this.clockwork = (this.clockwork ?? 0) + seconds;
    if (this.index < STEPS) {
      this.index = Math.min(STEPS, this.index + seconds / SECONDS * STEPS, this.flow.states.length);
      this.clockwork = 0;
    } else if (this.clockwork > PAUSE) {
      this.noise = normal(2 * PARTICLES, generator(Math.floor(performance.now())));
      this.data(this.points, this.name);
      this.index = 0;
    }
  }

  paint(path, reached) {
    const { view, points } = this;
    view.clear();
    if (points.length) {
      view.density(points, path);
      if (this.arrows !== "none") view.arrows(points, path, STANDS[this.arrows]);
      view.points(points);
      view.particles(this.flow.states, reached, 16);
    }
    this.said.textContent = points.length ? this.microscope(path, reached) : "Draw here: click or drag.";
  }

  /** Which points own the place under the lens, or the particle beside it. */
  microscope(path, reached) {
    if (!this.lens) return "Hover or tap: which points own this place?";
    const particles = this.flow.states[reached], near = nearest(particles, ...this.lens, 14 / this.view.unit);
    const [x, y] = near < 0 ? this.lens : particles.subarray(near, near + 2);
    field(x, y, this.points, path, this.out);
    const own = path.a ? weights(x / path.a, y / path.a, this.points, path.m / path.a, this.shares)
      : this.shares.fill(2 / this.points.length).length;
    this.view.lens(x, y, this.points, this.shares, [this.out[6], this.out[7]]);
    const top = this.shares.reduce((most, share) => Math.max(most, share), 0);
    return `${near < 0 ? "This place" : "This particle"} belongs to ${own.toFixed(1)} of ${this.shares.length} points, `
      + `the heaviest with ${(100 * top).toFixed(0)} %.  log p = ${this.out[0].toFixed(2)} nats.`;
  }
}

Draw.fill(0);
