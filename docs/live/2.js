// Crossing to flow: curves between two mixtures cross; the flow of their average arrow never does, and arrives the same.

import { decode, encode, generator, normal } from "./clouds.js";
import { Grips } from "./hands.js";
import { curveLength, flowLength, pairs, seen, transport, travel, withLatent } from "./mixtures.js";
import { address, between, choice, Figure, make, slider, still } from "./page.js";
import { PATHS } from "./softmax.js";
import { arrow, line, mixed } from "./view.js";

const STEPS = 60, KNOTS = 160, CURVES = 30, MARKED = 1, SIZE = 0.3, HIGH = 2, EDGE = 0.35, GRID = [160, 120];
const SPAN = 0.2, HEAD = 11; // of an arrow: how much time it covers, and pixels
const ENDS = { two: [[-1.1, 1.1], [-1.5, 0.1, 1.4]], one: [[0], [-1.6, 1.6, 0]],
  four: [[-1.4, 0.2, 1.3], [-1.8, -0.5, 0.7, 1.9]] };
const KINDS = { linear: "linear", trigonometric: "trigonometric", latent: "linear + latent" };
const NAMES = { curves: "curves, E|ẋ|²", flow: "flow, E|b|²", least: "least possible, W₂²" };
const TINTS = { curves: 0, flow: 1 }; // orange is for curves, ink for their average
const TOLD = "Time goes from left to right, the place on a line is upwards; shade is the exact density. Thirty curves "
  + "between random places at both ends cross. Turned into the flow of their average arrow they cross no more and "
  + "arrive at the same density. At the lens stand the arrows of the curves that pass, and their mean. Keys: Enter "
  + "takes the next mean of the mixtures, and after the last the lens; arrows move it.";

class Crossing extends Figure {
  static title = "Crossing to flow";
  static told = TOLD;
  static sight = { half: 2.6 };

  controls() {
    this.morph = slider("from the curves to the flow of their average", { min: 0, max: STEPS, step: 1, value: 0 },
      (k) => `flow = ${(k / STEPS).toFixed(2)}`, (k) => this.seek(k));
    this.heat = slider("noise ε of the diffusion", { min: 0, max: 1, step: 0.02, value: 0 },
      (value) => `ε = ${value.toFixed(2)}`, (value) => {
        this.epsilon = value;
        this.follow();
        this.seek(STEPS);
      });
    this.blur = slider("latent c", { min: 0, max: 2, step: 0.05, value: 0.5 },
      (c) => (c ? `γ² = ${c.toFixed(2)} t(1 − t)` : "no latent"), (c) => this.shape("latent", c));
    this.kinds = choice("interpolant", KINDS, "linear", (name) => this.shape(name, this.c || 0.5));
    this.pair = choice("ends", { two: "two to three", one: "one to three", four: "three to four" }, "two", (name) => {
      this.span(ENDS[name], name);
      this.keep();
    });
    this.labels = Object.fromEntries(Object.keys(NAMES).map((name) => [name, make("span")]));
    const keys = Object.entries(this.labels).map(([name, label]) =>
      make("span", { className: "live-key" }, ...(name in TINTS ? [make("i")] : []), label));
    return [keys, [this.play, this.morph], [this.kinds, this.pair], [this.blur, this.heat]];
  }

  prepare() {
    const random = generator(8);
    this.stage.classList.add("live-strip");
    this.draws = normal(3 * CURVES, random);
    this.noise = normal(CURVES * KNOTS, random);
    this.place = [0.5, 0];
    this.grips = new Grips(this.view, { get: () => this.grip(), set: (moved) => this.drag(moved), close: 24, free: true,
      done: () => this.keep(), look: (at) => this.aim(at) });
  }

  restore() {
    const { ends = "two", from, to, kind, c = "0.5", eps, flow } = address.read();
    const read = (text) => decode(text ?? "").slice(0, 6).map((x) => between(-HIGH, x, HIGH));
    this.kind = kind in KINDS ? kind : "linear";
    this.c = between(0, +c || 0, 2);
    this.epsilon = between(0, +eps || 0, 1);
    this.index = flow === undefined ? still.matches ? STEPS : 0 : Math.round(between(0, +flow || 0, 1) * STEPS);
    this.playing = flow === undefined && !still.matches;
    const own = [read(from), read(to)];
    if (own.every((means) => means.length)) this.span(own, "");
    else this.span(ENDS[ends] ?? ENDS.two, ends in ENDS ? ends : "two");
  }

  keep() {
    const own = { from: encode(this.ends[0].means), to: encode(this.ends[1].means) };
    address.write({ ...(this.name ? { ends: this.name } : own), kind: this.kind, c: this.c, eps: this.epsilon,
      ...(this.playing ? {} : { flow: (this.index / STEPS).toFixed(2) }) });
    this.wake();
  }

  get settled() {
    return true;
  }

  // --- what follows from ends, interpolant and ε -----------------------------------------------------------------

  /** Take on the means of both ends. */
  span(means, name) {
    this.ends = means.map((list) => ({ means: Float64Array.from(list), size: SIZE }));
    this.name = name;
    this.pair.press(name);
    this.shape(this.kind, this.c, false);
  }

  /** Take on an interpolant; curves, density and numbers follow. */
  shape(kind, c, kept = true) {
    Object.assign(this, { kind, c });
    this.kinds.press(kind);
    this.path = kind === "latent" ? withLatent(PATHS.straight, c) : PATHS[kind === "linear" ? "straight" : kind];
    this.curves = this.bend();
    this.shade = this.density();
    this.spent = { curves: curveLength(this.ends, this.path), flow: flowLength(this.ends, this.path),
      least: transport(this.ends) };
    this.follow();
    if (kept) this.keep();
  }

  /** Curves between the components in turn, so that every pair has its share: where each is at every knot. */
  bend() {
    const { draws, ends: [start, end] } = this;
    const pick = ({ means, size }, k, i) => means[k % means.length] + size * draws[i];
    return Array.from({ length: KNOTS + 1 }, (_, s) => {
      const { a, m, latent = 0 } = this.path(s / KNOTS);
      return Float64Array.from({ length: CURVES }, (_, k) => m * pick(start, k, 3 * k)
        + a * pick(end, Math.floor(k / start.means.length), 3 * k + 1) + Math.sqrt(latent) * draws[3 * k + 2]);
    });
  }

  /** ρ_t over the picture, a column for each time. */
  density() {
    const [columns, rows] = GRID, { half } = this.view;
    const found = new Float32Array(columns * rows), out = new Float64Array(3);
    for (let c = 0; c < columns; c++) {
      const here = pairs(this.ends, this.path((c + 0.5) / columns));
      for (let r = 0; r < rows; r++) {
        found[r * columns + c] = Math.exp(seen(half * (1 - (2 * r + 1) / rows), here, out)[0]);
      }
    }
    return found;
  }

  /** The same starts along the average, with the noise ε. */
  follow() {
    this.flow = travel(this.ends, this.path, this.curves[0], KNOTS, this.epsilon, this.noise);
    this.wake();
  }

  // --- hands -----------------------------------------------------------------------------------------------------

  /** Half of the picture's width, in units of its plane: there t is 0 and 1. */
  get wide() {
    return this.view.width / this.view.unit / 2 - EDGE;
  }

  across(t) {
    return (2 * t - 1) * this.wide;
  }

  grip() {
    return Float64Array.from(this.ends.flatMap(({ means }, t) => [...means].flatMap((x) => [this.across(t), x])));
  }

  drag(moved) {
    const places = [...moved].filter((_, k) => k % 2).map((x) => between(-HIGH, x, HIGH));
    const count = this.ends[0].means.length;
    this.span([places.slice(0, count), places.slice(count)], "");
  }

  /** The lens stays where one looked last. */
  aim(at) {
    if (at) this.place = [between(0, at[0] / this.wide / 2 + 0.5, 1), between(-this.view.half, at[1], this.view.half)];
    this.wake();
  }

  // --- pictures --------------------------------------------------------------------------------------------------

  frame(seconds) {
    if (this.playing) this.sway(seconds, STEPS);
    this.paint(this.index / STEPS);
    this.morph.show(Math.round(this.index));
    this.heat.show(this.epsilon);
    this.blur.show(this.kind === "latent" ? this.c : 0);
    this.showPlay();
    for (const [name, cost] of Object.entries(this.spent)) {
      this.labels[name].textContent = `${NAMES[name]} ${cost === Infinity ? "∞" : cost.toFixed(3)}`;
    }
    for (const [name, part] of Object.entries(TINTS)) {
      this.labels[name].previousSibling.style.background = this.tint(part);
    }
    return this.playing;
  }

  tint(part) {
    const { particle, ink } = this.view.colours;
    return mixed([particle, ink], part);
  }

  paint(part) {
    const { view, curves, flow } = this, { pen, colours } = view, [columns, rows] = GRID;
    view.clear();
    pen.globalAlpha = 0.6;
    view.paint(this.shade, rows, columns, 2 * this.wide / columns, 2 * view.half);
    const path = (k) => curves.map((row, s) => [this.across(s / KNOTS), (1 - part) * row[k] + part * flow[s][k]]);
    pen.globalAlpha = 0.7;
    for (let k = 0; k < CURVES; k++) if (k !== MARKED) line(view, path(k), this.tint(part), 1.4);
    pen.globalAlpha = 1;
    line(view, path(MARKED), colours.ring, 6);
    line(view, path(MARKED), colours.lens, 3);
    view.disks(this.grip(), 8, colours.point, colours.ring);
    Object.assign(pen, { font: "15px system-ui, sans-serif", fillStyle: colours.ink });
    for (const [t, textAlign] of [[0, "left"], [1, "right"]]) {
      pen.textAlign = textAlign;
      pen.fillText(`t = ${t}`, view.toScreen(this.across(t), 0)[0], 20);
    }
    this.look();
    const { chosen } = this.grips, lens = [this.across(this.place[0]), this.place[1]];
    view.disks([...this.grip(), ...lens].slice(2 * chosen, 2 * chosen + 2), 3.5, colours.ring);
  }

  /** The arrows at the lens: of the curves between each pair of components, as thick as their part; and their mean. */
  look() {
    const { view, place: [t, x] } = this, { pen, colours } = view, here = pairs(this.ends, this.path(t));
    const shares = new Float64Array(here.places.length), [logP, score, mean] = seen(x, here, new Float64Array(3), shares);
    const at = [this.across(t), x], [px, py] = view.toScreen(...at), draw = (slope, wide, colour) => {
      const [dx, dy] = [2 * this.wide * SPAN * view.unit, -slope * SPAN * view.unit];
      pen.beginPath();
      arrow(pen, px + dx / 2, py + dy / 2, dx, dy, HEAD / Math.hypot(dx, dy));
      Object.assign(pen, { lineWidth: wide, strokeStyle: colour });
      pen.stroke();
    };
    const slopes = here.places.map((place, k) => here.speeds[k] + here.widening * (x - place));
    const heavy = [...shares.keys()].filter((k) => shares[k] > 0.01).sort((i, j) => shares[j] - shares[i]);
    for (const k of heavy) draw(slopes[k], 1 + 3 * Math.sqrt(shares[k]), colours.particle);
    draw(mean, 7, colours.ring);
    draw(mean, 3.5, colours.ink);
    view.disks(at, 6, colours.ink, colours.ring);
    const list = heavy.slice(0, 3).map((k) => `${signed(slopes[k])} (${(100 * shares[k]).toFixed(0)} %)`).join(", ");
    this.said.textContent = `At t = ${t.toFixed(2)}, x = ${signed(x)} curves have slopes ${list}`
      + `${heavy.length > 3 ? " and others" : ""}; their mean is b = ${signed(mean)}. Score ${signed(score)}, `
      + `log ρ = ${signed(logP)} nats.`;
  }
}

const signed = (value) => value.toFixed(2).replace("-", "−");

Crossing.fill(2);
