// One computation in the plane, bugs that people put into it, and the identities that tell.
//
//     weights     p_j ∝ exp(−‖x − a y_j‖²/2m²),   D = Σ p_j y_j,   V = Σ p_j ‖y_j − D‖²
//     density     log p_t = log Σ_j exp(−‖x − a y_j‖²/2m²)/N − log 2πm²
//     score       s = (a D − x)/m²
//     velocity    v = a′ D + m′ (x − a D)/m
//     divergence  ∇·v = 2 m′/m + (a′ − a m′/m)(a/m²) V
//     diffusion   dX = (v + εs) dt + √(2ε) dW with ε = m; its drift backwards is v − εs
//
// The recipe has a number for each place where one goes astray, and a bug is the recipe with one of them off.  An
// identity compares a computation with itself, or with what everybody knows (a sum is one); none knows the answer.

import { times } from "./flow.js";

export const RECIPE = { two: 2, scaled: 1, score: 1, clean: 1, divergence: 1, clock: 1, root: Math.SQRT2, single: 0 };
export const BUGS = {
  none: {}, sign: { score: -1 }, swap: { clean: 0 }, root: { root: 1 }, half: { two: 1 }, scale: { scaled: 0 },
  divergence: { divergence: -1 }, clock: { clock: 0.5 }, first: { single: 1 },
};
export const BROKEN = 1e-3; // a residual above it; those of the right computation are under a hundredth of it
export const AT = times(90), LATEST = 0.9; // of the particles; identities are looked at no later
const APART = 0.8, FAR = 7; // nodes of an integral, and how far they go beyond the points, in standard deviations
const HALFWAY = 0.5, STEPS = 24; // where likelihood along the flow is integrated, and Runge and Kutta's steps to there
const UNDERFLOW = -149 * Math.LN2; // exponentials of less are zero in single precision
const NEAR = 8; // standard deviations of a data point that a particle ends within

/** All of it at (x, y) by a recipe, into `out`:
 *  (log p, score x, score y, velocity x, velocity y, divergence, posterior mean x, mean y, sum of the weights). */
export function compute(x, y, points, { a, m, da, dm }, recipe, out) {
  const { two, scaled, single } = recipe, count = points.length / 2, scale = scaled ? a : 1;
  const logits = out.logits ??= new Float64Array(count);
  let top = -Infinity, total = 0, sum = 0, dx = 0, dy = 0, second = 0;
  for (let j = 0; j < count; j++) {
    const square = (x - scale * points[2 * j]) ** 2 + (y - scale * points[2 * j + 1]) ** 2;
    logits[j] = -square / (two * m * m);
    if (logits[j] > top) top = logits[j];
  }
  if (single) top = 0;
  for (let j = 0; j < count; j++) {
    total += logits[j] = single && logits[j] < UNDERFLOW ? 0 : Math.exp(logits[j] - top);
  }
  for (let j = 0; j < count; j++) {
    const p = logits[j] / total, px = points[2 * j], py = points[2 * j + 1];
    sum += p; dx += p * px; dy += p * py; second += p * (px * px + py * py);
  }
  const own = recipe.clock * dm / m, rate = recipe.clock * da, pull = rate - a * own, variance = m * m;
  out[0] = top + Math.log(total / count) - Math.log(2 * Math.PI * variance);
  out[1] = recipe.score * (a * dx - x) / variance;
  out[2] = recipe.score * (a * dy - y) / variance;
  out[3] = rate * (recipe.clean ? dx : x) + own * (x - a * dx);
  out[4] = rate * (recipe.clean ? dy : y) + own * (y - a * dy);
  out[5] = recipe.divergence * (2 * own + pull * a / variance * (second - dx * dx - dy * dy));
  out[6] = dx; out[7] = dy; out[8] = sum;
  return out;
}

/** Where particles are at the times `AT`, along the flow, or with `noise` (two numbers of N(0, 1) for each particle
 *  and step) along the diffusion; by Heun's method. */
export function travel(start, points, path, recipe, noise = null) {
  const states = [start], out = new Float64Array(9), drift = new Float64Array(2);
  const push = (x, y, here) => {
    compute(x, y, points, here, recipe, out);
    for (let c = 0; c < 2; c++) drift[c] = out[3 + c] + (noise ? here.m * out[1 + c] : 0);
  };
  for (let k = 0; k + 1 < AT.length; k++) {
    const here = path(AT[k]), there = path(AT[k + 1]), h = AT[k + 1] - AT[k], before = states[k], next = before.slice();
    const jump = recipe.root * Math.sqrt(here.m * h);
    for (let i = 0; i < next.length; i += 2) {
      const x = before[i], y = before[i + 1], at = k * next.length + i;
      const jx = noise ? jump * noise[at] : 0, jy = noise ? jump * noise[at + 1] : 0;
      push(x, y, here);
      const u = drift[0], v = drift[1];
      push(x + h * u + jx, y + h * v + jy, there);
      next[i] = x + h / 2 * (u + drift[0]) + jx;
      next[i + 1] = y + h / 2 * (v + drift[1]) + jy;
    }
    states.push(next);
  }
  return states;
}

/** A derivative at 0 by differences, right to fourth order. */
const slope = (f, h) => (8 * (f(h) - f(-h)) - f(2 * h) + f(-2 * h)) / (12 * h);

/** How far one vector is from another, in units of that other where it is long. */
const off = (found, wanted) =>
  Math.hypot(...found.map((value, c) => value - wanted[c])) / Math.max(1, Math.hypot(...wanted));

/** A computation at a moment, looked at from places x₀, y₀, x₁, y₁, …; `end` is where the flow's particles end. */
export class Bench {
  constructor(points, path, recipe, t, places, end) {
    Object.assign(this, { points, path, recipe, t, places, end, here: path(t), out: new Float64Array(9) });
    this.step = 2e-3 * this.here.m ** 2; // of differences: posteriors turn over within m²
  }

  see(x, y, here = this.here) {
    return compute(x, y, this.points, here, this.recipe, this.out);
  }

  /** The largest of what `residual` says of the places; what is no number counts as infinite. */
  worst(residual) {
    let most = 0;
    for (let k = 0; k < this.places.length; k += 2) {
      const value = residual(this.places[k], this.places[k + 1]);
      most = Math.max(most, Number.isNaN(value) ? Infinity : value);
    }
    return most;
  }

  /** ∇ log p by differences. */
  gradient(x, y) {
    return [slope((d) => this.see(x + d, y)[0], this.step), slope((d) => this.see(x, y + d)[0], this.step)];
  }

  /** ∇·v by differences. */
  outflow(x, y) {
    return slope((d) => this.see(x + d, y)[3], this.step) + slope((d) => this.see(x, y + d)[4], this.step);
  }

  /** a′ or m′ by differences. */
  rate(name) {
    return slope((d) => this.path(this.t + d)[name], this.step);
  }

  /** The integral over the plane of what has the size of p_t. */
  integral(f, { a, m } = this.here) {
    const far = this.points.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const reach = far * (this.recipe.scaled ? a : 1);
    const apart = APART * m, count = Math.ceil((reach + FAR * m) / apart);
    let sum = 0;
    for (let i = -count; i <= count; i++) for (let j = -count; j <= count; j++) sum += f(i * apart, j * apart);
    return apart * apart * sum;
  }

  /** exp of log p_0 where the flow comes from, less the integral of the divergence: the likelihood at (x, y, t). */
  likelihood(x, y, t) {
    const { out } = this, h = -t / STEPS, at = [x, y, 0];
    const rate = (s, u, v) => this.see(u, v, this.path(s)) && [out[3], out[4], out[5]];
    for (let k = 0; k < STEPS; k++) {
      const s = t + k * h, k1 = rate(s, at[0], at[1]);
      const k2 = rate(s + h / 2, at[0] + h / 2 * k1[0], at[1] + h / 2 * k1[1]);
      const k3 = rate(s + h / 2, at[0] + h / 2 * k2[0], at[1] + h / 2 * k2[1]);
      const k4 = rate(s + h, at[0] + h * k3[0], at[1] + h * k3[1]);
      for (const c of [0, 1, 2]) at[c] += h / 6 * (k1[c] + 2 * k2[c] + 2 * k3[c] + k4[c]);
    }
    return Math.exp(at[2] - (at[0] ** 2 + at[1] ** 2) / 2) / (2 * Math.PI);
  }
}

/** What must hold, in the order in which a program computes; `residual` is how far it is from holding, and `timeless`
 *  where the bench's moment does not matter. */
export const IDENTITIES = {
  weights: { name: "weights", says: "Σ p = 1", residual: (it) => it.worst((x, y) => Math.abs(it.see(x, y)[8] - 1)) },
  density: { name: "density", says: "∫ pₜ dx = 1",
    residual: (it) => Math.abs(it.integral((x, y) => Math.exp(it.see(x, y)[0])) - 1) },
  tweedie: { name: "Tweedie’s mean", says: "a D = x + m² ∇log pₜ", residual: (it) => it.worst((x, y) => {
    const { a, m } = it.here, [gx, gy] = it.gradient(x, y), { 6: dx, 7: dy } = it.see(x, y);
    return off([a * dx, a * dy], [x + m * m * gx, y + m * m * gy]);
  }) },
  score: { name: "score", says: "s = ∇log pₜ", residual: (it) => it.worst((x, y) => {
    const wanted = it.gradient(x, y);
    return off(it.see(x, y).slice(1, 3), wanted);
  }) },
  velocity: { name: "velocity", says: "v = E[Δxₜ/Δt | xₜ = x]", residual: (it) => {
    const da = it.rate("a"), dm = it.rate("m"), { a, m } = it.here;
    return it.worst((x, y) => {
      const { 3: u, 4: v, 6: dx, 7: dy } = it.see(x, y);
      return off([u, v], [da * dx + dm * (x - a * dx) / m, da * dy + dm * (y - a * dy) / m]);
    });
  } },
  divergence: { name: "divergence", says: "∇·v by differences", residual: (it) => it.worst((x, y) => {
    const wanted = it.outflow(x, y);
    return off([it.see(x, y)[5]], [wanted]);
  }) },
  continuity: { name: "continuity", says: "∂ₜlog pₜ + v·∇log pₜ + ∇·v = 0", residual: (it) => it.worst((x, y) => {
    const change = slope((d) => it.see(x, y, it.path(it.t + d))[0], it.step), [gx, gy] = it.gradient(x, y);
    const outflow = it.outflow(x, y), { 3: u, 4: v } = it.see(x, y);
    return off([-u * gx - v * gy - outflow], [change]);
  }) },
  nelson: { name: "Nelson", says: "drift forth − back = g² ∇log pₜ", residual: (it) => it.worst((x, y) => {
    const epsilon = it.here.m, square = it.recipe.root ** 2 * epsilon, wanted = it.gradient(x, y);
    return off([...it.see(x, y).slice(1, 3)].map((s) => 2 * epsilon * s), wanted.map((g) => square * g));
  }) },
  end: { name: "the end", says: "particles of the flow on the data", timeless: true, residual: (it) => {
    const { points, end } = it, { a, m } = it.path(AT.at(-1));
    const lost = end.filter((x, k) => k % 2 === 0 && !points.some((y, j) => j % 2 === 0
      && Math.hypot(x - a * y, end[k + 1] - a * points[j + 1]) < NEAR * m));
    return 2 * lost.length / end.length;
  } },
  likelihood: { name: "likelihood", says: "∫ = 1 along the flow to t = ½", timeless: true, residual: (it) => {
    const sum = it.integral((x, y) => it.likelihood(x, y, HALFWAY), it.path(HALFWAY));
    return Number.isNaN(sum) ? Infinity : Math.abs(sum - 1);
  } },
};
