// Interpolants x_t = a x₁ + m x₀ + γ z between two mixtures of equal Gaussians on the line, by the formulas of
// lib/interpolant.  Between one pair of components x_t is a Gaussian that moves and widens; with its mean μ, its
// variance V, the same for all pairs, and p, the pair's part of the mass at x,
//
//     log ρ_t  = log (mean of exp(−(x − μ)²/2V) over pairs) − ½ log 2πV
//     score    = −Σ p (x − μ)/V
//     velocity =  Σ p (μ′ + (x − μ) V′/2V),   the mean of the curves' arrows: the flow's arrow.
//
// An end is { means, size }, the size being a standard deviation; a path says { a, m, da, dm } of t, and with a latent
// { latent, growth } = { γ², γγ′ } besides.

import { integral } from "./cone.js";

const FINE = 4, FAR = 7, ALONG = 20; // nodes in a standard deviation, how many are looked at, steps along the map

/** A path with the latent γ² = c t(1 − t). */
export const withLatent = (path, c) => (t) => ({ ...path(t), latent: c * t * (1 - t), growth: c * (1 - 2 * t) / 2 });

/** All pairs of components at a time: where their means are, how fast those move, the variance, and V′/2V. */
export function pairs([start, end], { a, m, da, dm, latent = 0, growth = 0 }) {
  const all = (f, g) => Float64Array.from([...start.means].flatMap((x) => [...end.means].map((y) => f * x + g * y)));
  const variance = (m * start.size) ** 2 + (a * end.size) ** 2 + latent;
  const widening = (m * dm * start.size ** 2 + a * da * end.size ** 2 + growth) / variance;
  return { places: all(m, a), speeds: all(dm, da), variance, widening };
}

/** (log ρ, score, velocity) at x into `out`; and each pair's part of the mass there into `shares`. */
export function seen(x, { places, speeds, variance, widening }, out, shares = null) {
  let top = -Infinity, total = 0, away = 0, along = 0;
  for (let k = 0; k < places.length; k++) top = Math.max(top, -((x - places[k]) ** 2) / (2 * variance));
  for (let k = 0; k < places.length; k++) {
    const r = x - places[k], w = Math.exp(-r * r / (2 * variance) - top);
    total += w; away += w * r; along += w * speeds[k];
    if (shares) shares[k] = w;
  }
  if (shares) shares.forEach((w, k) => (shares[k] = w / total));
  out[0] = top + Math.log(total / places.length) - Math.log(2 * Math.PI * variance) / 2;
  out[1] = -away / total / variance;
  out[2] = (along + widening * away) / total;
  return out;
}

/** Where particles are at `steps` + 1 equal times on dX = (b + εs) dt + √(2ε) dW, by Heun's method, whose laws are
 *  right to second order; `noise` is a number of N(0, 1) for each step and particle. */
export function travel(ends, path, start, steps, epsilon = 0, noise = null) {
  const h = 1 / steps, jump = noise ? Math.sqrt(2 * epsilon * h) : 0, states = [start], out = new Float64Array(3);
  const drift = (x, here) => seen(x, here, out)[2] + epsilon * out[1];
  for (let k = 0, now = pairs(ends, path(0)); k < steps; k++) {
    const next = pairs(ends, path((k + 1) / steps));
    states.push(states[k].map((x, i) => {
      const push = noise ? jump * noise[k * start.length + i] : 0, first = drift(x, now);
      return x + h / 2 * (first + drift(x + h * first + push, next)) + push;
    }));
    now = next;
  }
  return states;
}

/** E|b|², integrated over time: what the flow travels. */
export function flowLength(ends, path) {
  const out = new Float64Array(3);
  return integral((t) => {
    const here = pairs(ends, path(t)), size = Math.sqrt(here.variance), last = Math.max(...here.places) + FAR * size;
    let sum = 0;
    for (let x = Math.min(...here.places) - FAR * size; x <= last; x += size / FINE) {
      seen(x, here, out);
      sum += Math.exp(out[0]) * out[2] ** 2;
    }
    return sum * size / FINE;
  }, 8);
}

/** E|ẋ|², integrated over time: what the curves travel.  Those of a latent are as rough as Brownian motion. */
export function curveLength(ends, path) {
  if (path(0.5).latent) return Infinity;
  const mean = ({ means }) => means.reduce((sum, x) => sum + x / means.length, 0);
  const second = ({ means, size }) => means.reduce((sum, x) => sum + x * x / means.length, size ** 2);
  const [x, y] = ends.map(mean), [xx, yy] = ends.map(second);
  return integral((t) => {
    const { da, dm } = path(t);
    return da * da * yy + dm * dm * xx + 2 * da * dm * x * y;
  }, 8);
}

/** W₂², what no flow between the ends can undercut: the mass at x goes where as much lies below.  Over the sum of both
 *  places it goes on smoothly even where a gap makes x or y jump: x′ = ρ₁/(ρ₀ + ρ₁), mass passes as ρ₀ρ₁/(ρ₀ + ρ₁). */
export function transport(ends) {
  const density = ({ means, size }) => (x) => means.reduce((sum, mean) =>
    sum + Math.exp(-(((x - mean) / size) ** 2) / 2), 0) / (means.length * size * Math.sqrt(2 * Math.PI));
  const [source, target] = ends.map(density), rate = (x, s) => 1 / (1 + source(x) / target(s - x));
  const reach = (sign) => ends.map(({ means, size }) => sign * (Math.max(...means.map((x) => sign * x)) + FAR * size));
  const [low, high] = [reach(-1), reach(1)], h = Math.min(ends[0].size, ends[1].size) / ALONG;
  let x = low[0], cost = 0;
  for (let s = low[0] + low[1]; s < high[0] + high[1]; s += h) {
    const k1 = rate(x, s), k2 = rate(x + h / 2 * k1, s + h / 2), k3 = rate(x + h / 2 * k2, s + h / 2);
    cost += h * source(x) * k1 * (s - 2 * x) ** 2;
    x += h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(x + h * k3, s + h));
  }
  return cost;
}
