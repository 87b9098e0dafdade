// The bridge: Sinkhorn's iterations between two clouds, the plan, and random paths of the Schrödinger bridge.

import { blobs, CLOUDS, generator, normal } from "./clouds.js";
import { nearest } from "./hands.js";
import { address, choice, Figure, slider, still } from "./page.js";
import { Sinkhorn } from "./sinkhorn.js";

const WALKERS = 120, KNOTS = 60, SECONDS = 5, RATE = 8, ENOUGH = 1e-3, PATIENCE = 4000, MOST = 150, LEVELS = 60;
const TOLD = "Two clouds of points and the entropic plan between them: lines join points that exchange mass. Small ε finds "
  + "the cheapest pairs, large ε forgets them. Walkers go along random paths of the Schrödinger bridge. Keys: arrows move "
  + "the lens, Enter adds a point, Delete takes the nearest away.";
const level = (k) => 0.01 * 1000 ** (k / LEVELS);

/** Every so manieth point of a cloud, smaller and moved to one side. */
function beside(points, count, centre) {
  const every = points.length / 2 / count;
  return Float64Array.from({ length: 2 * count }, (_, k) =>
    (k % 2 ? 1 : 0.55) * points[2 * Math.floor(Math.floor(k / 2) * every) + k % 2] + (k % 2 ? 0 : centre));
}

const PAIRS = {
  moons: () => [beside(CLOUDS.moons(), 100, -1.3), beside(blobs(96, 8), 96, 1.3)],
  rings: () => [beside(CLOUDS.rings(), 100, -1.3), beside(CLOUDS.spirals(), 100, 1.3)],
  blob: () => [beside(blobs(60, 1), 60, -1.3), beside(blobs(60, 3), 60, 1.3)],
};

class Bridge extends Figure {
  static title = "The bridge";
  static told = TOLD;

  controls() {
    this.one = this.button("one half-step", "live-step", () => this.step());
    this.again = this.button("start again", "live-step", () => this.start());
    this.heat = slider("temperature ε", { min: 0, max: LEVELS, step: 1, value: 20 },
      (k) => `ε = ${level(k).toPrecision(2)}`, (k) => this.warm(k));
    this.time = slider("time t from source to target", { min: 0, max: KNOTS, step: 1, value: 0 },
      (k) => `t = ${(k / KNOTS).toFixed(2)}`, (k) => this.seek(k));
    this.pair = choice("clouds", { moons: "moons to eight", rings: "rings to spirals", blob: "one to three" }, "moons",
      (name) => this.choose(name));
    this.pen = choice("what is drawn", { look: "look", source: "draw source", target: "draw target" }, "look", (name) => {
      this.side = name === "target" ? 1 : 0;
      this.hands.draw(name !== "look");
    });
    return [[this.heat, this.one, this.again], [this.play, this.time], [this.pair, this.pen]];
  }

  prepare() {
    this.said.ariaLive = "off";
    this.hands = this.take(this.view,
      { get: () => this.clouds[this.side], set: (points) => this.set(points), most: MOST });
    this.walks();
  }

  /** Brownian bridges from 0 to 0 for the walkers, and the numbers that choose where each goes. */
  walks() {
    const random = generator(7), step = Math.sqrt(1 / KNOTS);
    this.chances = Float64Array.from({ length: WALKERS }, random);
    this.loops = Array.from({ length: 2 * WALKERS }, () => {
      const walk = new Float64Array(KNOTS + 1);
      normal(KNOTS, random).forEach((jump, k) => (walk[k + 1] = walk[k] + step * jump));
      return walk.map((place, k) => place - k / KNOTS * walk[KNOTS]);
    });
  }

  restore() {
    const { pair = "moons", eps = "20", t } = address.read();
    this.side = 0;
    this.hands.draw(false);
    this.level = Math.max(0, Math.min(LEVELS, Math.round(+eps) || 0));
    this.index = t === undefined ? 0 : Math.round(Math.max(0, Math.min(1, +t || 0)) * KNOTS);
    this.playing = t === undefined && !still.matches;
    if (t === undefined && still.matches) this.index = KNOTS / 2;
    this.pick(pair in PAIRS ? pair : "moons");
  }

  pick(name) {
    this.name = name;
    this.pair.press(name);
    this.clouds = PAIRS[name]();
    this.start();
  }

  choose(name) {
    this.pick(name);
    this.keep();
  }

  set(points) {
    this.clouds[this.side] = points;
    this.name = "";
    this.pair.press("");
    this.start();
  }

  warm(k) {
    this.level = k;
    this.start();
    this.keep();
  }

  /** Sinkhorn from the beginning; it goes on by itself until both ends are right. */
  start() {
    const [x, y] = this.clouds;
    this.solver = x.length && y.length ? new Sinkhorn(x, y, level(this.level)) : null;
    this.due = 0;
    this.byHand = false;
    this.changed();
  }

  /** Half a step by hand; the iterations then wait for the next. */
  step() {
    this.byHand = true;
    this.solver?.half();
    this.changed();
  }

  changed() {
    const { solver } = this;
    this.now = solver?.state();
    this.plan = solver && Array.from({ length: solver.f.length }, (_, i) => solver.row(i, new Float64Array(solver.g.length)));
    this.states = solver && this.paths();
    this.wake();
  }

  /** Where every walker is at every knot: a pair drawn from the plan, and a Brownian bridge of variance ε/2 between. */
  paths() {
    const { plan, clouds: [x, y] } = this, states = Array.from({ length: KNOTS + 1 }, () => new Float64Array(2 * WALKERS));
    const sigma = Math.sqrt(level(this.level) / 2);
    for (let k = 0; k < WALKERS; k++) {
      const i = k % plan.length, j = drawn(plan[i], this.chances[k]);
      for (let s = 0; s <= KNOTS; s++) {
        for (let c = 0; c < 2; c++) {
          const straight = x[2 * i + c] + s / KNOTS * (y[2 * j + c] - x[2 * i + c]);
          states[s][2 * k + c] = straight + sigma * this.loops[2 * k + c][s];
        }
      }
    }
    return states;
  }

  keep() {
    address.write({ ...(this.name ? { pair: this.name } : {}), eps: this.level,
      ...(this.playing ? {} : { t: (this.index / KNOTS).toFixed(2) }) });
    this.wake();
  }

  /** Whether Sinkhorn rests: both ends are right, or somebody steps by hand. */
  get settled() {
    const { solver, now } = this;
    return !solver || this.byHand || solver.steps >= PATIENCE || Math.max(now.source, now.target) < ENOUGH;
  }

  /** One picture; whether another will be needed. */
  frame(seconds) {
    if (!this.settled) this.iterate(seconds);
    if (this.playing) this.index = (this.index + seconds / SECONDS * KNOTS) % (KNOTS + 1);
    this.paint(Math.min(KNOTS, Math.floor(this.index)));
    return Boolean(this.solver) && (this.playing || !this.settled);
  }

  /** Slowly at first, so that one sees the ends take turns; then as fast as it goes. */
  iterate(seconds) {
    const { solver } = this, hurry = solver.steps > 12;
    this.due += seconds * RATE;
    if (!hurry && this.due < 1) return;
    this.due = 0;
    const until = performance.now() + 6;
    do solver.half(); while (hurry && performance.now() < until);
    this.changed();
  }

  paint(k) {
    const { view, clouds, solver } = this;
    view.clear();
    if (solver) {
      view.links(clouds[0], clouds[1], this.plan);
      view.disks(clouds[0], 3, view.colours.lens);
      view.disks(clouds[1], 3, view.colours.point);
      view.particles(this.states, k, KNOTS);
    } else {
      for (const cloud of clouds) view.disks(cloud, 3, view.colours.point);
    }
    this.said.textContent = solver ? this.tell() : "Each side needs points: draw some.";
    this.time.show(k);
    this.heat.show(this.level);
    this.showPlay();
  }

  tell() {
    const { solver, now, view, clouds: [x, y], plan } = this;
    const i = this.lens ? nearest(x, ...this.lens, 20 / view.unit) / 2 : -1;
    if (i >= 0) {
      const sum = plan[i].reduce((a, b) => a + b, 0), shares = plan[i].map((mass) => mass / sum), mean = [0, 0];
      shares.forEach((share, j) => [0, 1].forEach((c) => (mean[c] += share * y[2 * j + c])));
      view.lens(x[2 * i], x[2 * i + 1], y, shares, mean);
      return `This point is shared by ${(1 / shares.reduce((a, b) => a + b * b, 0)).toFixed(1)} of ${shares.length} points.`;
    }
    const off = (wrong) => (wrong < 5e-5 ? "right" : `${(50 * wrong).toPrecision(2)} % off`);
    return `After ${solver.steps} half-steps: source ${off(now.source)}, target ${off(now.target)}.  Value ${now.value.toFixed(3)}.`;
  }
}

/** The index that a number in [0, 1) chooses from masses. */
function drawn(masses, chance) {
  let left = chance * masses.reduce((a, b) => a + b, 0);
  const found = masses.findIndex((mass) => (left -= mass) < 0);
  return found < 0 ? masses.length - 1 : found;
}

Bridge.fill(3);
