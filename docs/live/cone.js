// The cone of Gaussian paths from noise to data, by the formulas of lib/kinetic, per dimension:
//
//     λ(s)   = E‖D(s x + ε)‖²/d = 1 − E spread/d,   the spread of the one softmax at x + ε/s with σ = 1/s
//     γ(s)   = λ(1 + s²) − s²,                      the price of turning; s = a/m = tan θ
//     E      = ∫ ṙ² + r²γθ̇² dt,                     the energy of a path (a, m) = r (sin θ, cos θ)
//     Θ(θ)   = ∫ √γ dθ,                             lays the cone flat; the best path is its chord, E = 2 − 2 cos Θ*
//
// The mean over x is over all points, that over the noise ε a sum over an even grid, which is exact to 1e-6 here.

import { softmax } from "./softmax.js";

const NODES = 80, CELLS = 2000, REACH = 6, APART = [0.1, 0.3]; // of the noise's grid, on the line and in the plane
const PANELS = 64, LEGENDRE = [[0.1834346424956498, 0.362683783378362], [0.525532409916329, 0.3137066458778873],
  [0.7966664774136267, 0.2223810344533745], [0.9602898564975363, 0.1012285362903763]];

/** The ratios s at which λ is computed: tan θ at the middles of equal cells of the quarter circle. */
export const RATIOS = Float64Array.from({ length: NODES }, (_, k) => Math.tan(Math.PI / 2 * (k + 0.5) / NODES));

/** Places of the noise ε and their weights, which add up to 1: x₀, y₀, w₀, x₁, … */
export function noise(dimensions) {
  const apart = APART[dimensions - 1], count = Math.round(REACH / apart), found = [];
  for (let i = -count; i <= count; i++) {
    for (let j = dimensions > 1 ? -count : 0; j <= (dimensions > 1 ? count : 0); j++) {
      const square = (i * i + j * j) * apart * apart;
      if (square <= REACH * REACH) found.push(i * apart, j * apart, Math.exp(-square / 2));
    }
  }
  const total = found.reduce((sum, value, k) => sum + (k % 3 === 2 ? value : 0), 0);
  return Float64Array.from(found, (value, k) => (k % 3 === 2 ? value / total : value));
}

/** λ of centred points of unit second moment, computed only as far as there was time: coarse at first. */
export class Separation {
  constructor(points, dimensions) {
    Object.assign(this, { points, dimensions, noise: noise(dimensions), lam: new Float64Array(NODES).fill(NaN) });
    this.left = Array.from(RATIOS.keys()).sort((i, j) => fineness(i) - fineness(j) || j - i);
  }

  get done() {
    return !this.left.length;
  }

  /** Compute on for at most `budget` milliseconds; what a first look needs in any case. */
  reach(budget = 12) {
    const until = performance.now() + budget;
    while (!this.done && (this.left.length > 3 / 4 * NODES || performance.now() < until)) {
      const k = this.left.pop();
      this.lam[k] = this.at(RATIOS[k]);
    }
  }

  at(s) {
    const { points, noise: grid, dimensions } = this, seen = new Float64Array(4);
    let sum = 0;
    for (let i = 0; i < points.length; i += 2) {
      for (let k = 0; k < grid.length; k += 3) {
        sum += grid[k + 2] * softmax(points[i] + grid[k] / s, points[i + 1] + grid[k + 1] / s, points, 1 / s, seen)[3];
      }
    }
    return 1 - 2 * sum / points.length / dimensions;
  }

  /** s → λ(s) through what is known, as lib's `Separation.smooth`: a monotone cubic in s²/(1 + s²), which bounds it. */
  smooth() {
    const known = [...RATIOS.keys()].filter((k) => !Number.isNaN(this.lam[k])), least = (s) => 1 / (1 + s ** -2);
    const bounded = (k) => Math.min(1, Math.max(least(RATIOS[k]), this.lam[k]));
    const through = pchip([0, ...known.map((k) => least(RATIOS[k])), 1], [0, ...known.map(bounded), 1]);
    return (s) => Math.max(least(s), through(least(s))[0]);
  }
}

/** Which power of two, up to 4, divides k. */
const fineness = (k) => (k % 4 === 0 ? 2 : k % 2 === 0 ? 1 : 0);

/** Monotone cubic interpolation (Fritsch, Carlson), constant outside: x → [value, slope]. */
export function pchip(knots, values) {
  const last = knots.length - 1, gap = (k) => knots[k + 1] - knots[k];
  const rise = (k) => (values[k + 1] - values[k]) / gap(k);
  const inner = (k) => {
    const [before, after] = [rise(k - 1), rise(k)], [near, far] = [2 * gap(k) + gap(k - 1), gap(k) + 2 * gap(k - 1)];
    return before * after > 0 ? (near + far) / (near / before + far / after) : 0;
  };
  const outer = (k, next) => {
    const [own, other, near, far] = [rise(k), rise(next), gap(k), gap(next)];
    const slope = ((2 * near + far) * own - near * other) / (near + far);
    if (slope * own <= 0) return 0;
    return own * other < 0 && Math.abs(slope) > 3 * Math.abs(own) ? 3 * own : slope;
  };
  const slopes = Float64Array.from(knots, (_, k) =>
    (k === 0 ? outer(0, 1) : k === last ? outer(last - 1, last - 2) : inner(k)));
  return (x) => {
    if (x <= knots[0] || x >= knots[last]) {
      const end = x <= knots[0] ? 0 : last;
      return [values[end], slopes[end]];
    }
    const k = below(knots, x), h = gap(k), u = (x - knots[k]) / h, line = rise(k);
    const c2 = 3 * line - 2 * slopes[k] - slopes[k + 1], c3 = slopes[k] + slopes[k + 1] - 2 * line;
    return [values[k] + h * u * (slopes[k] + u * (c2 + u * c3)), slopes[k] + u * (2 * c2 + 3 * u * c3)];
  };
}

/** Linear interpolation in an increasing table. */
export function linear(knots, values, x) {
  const k = below(knots, x);
  return values[k] + (x - knots[k]) / (knots[k + 1] - knots[k]) * (values[k + 1] - values[k]);
}

/** The cell of an increasing table in which x lies, or the nearest one. */
function below(knots, x) {
  let [low, high] = [0, knots.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (knots[middle] <= x) low = middle;
    else high = middle;
  }
  return low;
}

/** The price of turning at s, between 0 and 1. */
export function gamma(lam, s) {
  return Math.min(1, Math.max(0, 1 - (1 - lam(s)) * (1 + s * s)));
}

/** ∫₀¹ f by Gauss and Legendre, eight nodes a panel. */
export function integral(f, panels = PANELS) {
  let sum = 0;
  for (let panel = 0; panel < panels; panel++) {
    for (const [z, weight] of LEGENDRE) {
      for (const side of [-z, z]) sum += weight / 2 / panels * f((panel + (side + 1) / 2) / panels);
    }
  }
  return sum;
}

/** ∫ ṙ² + r²γθ̇² dt of a path t → { a, m, da, dm }, over t up to 1 − cutoff, where VP's begins to diverge. */
export function energy(path, lam, cutoff = 1e-5) {
  return integral((u) => {
    const { a, m, da, dm } = path((1 - cutoff) * u ** 3 * (10 - 15 * u + 6 * u * u)); // crowds both ends
    const radial = a * da + m * dm, turning = m * da - a * dm, dt = (1 - cutoff) * 30 * u * u * (1 - u) ** 2;
    return dt * (radial ** 2 + gamma(lam, a / m) * turning ** 2) / (a * a + m * m);
  });
}

/** The flat angle Θ = ∫ √max(γ, floor) dθ as a table: two increasing arrays. */
export function unroll(lam, floor = 0) {
  const theta = Float64Array.from({ length: CELLS + 1 }, (_, k) => Math.PI / 2 * k / CELLS);
  const angle = new Float64Array(CELLS + 1);
  for (let k = 0; k < CELLS; k++) {
    const price = Math.max(floor, 1e-16, gamma(lam, Math.tan((theta[k] + theta[k + 1]) / 2)));
    angle[k + 1] = angle[k] + Math.sqrt(price) * (theta[k + 1] - theta[k]);
  }
  return { theta, angle };
}

/** The chord of the flat cone of max(γ, floor) as a path, its whole angle Θ* as `end`, and the table of `unroll`. */
export function chord(lam, floor = 0) {
  const { theta, angle } = unroll(lam, floor), turn = pchip(angle, theta), end = angle[CELLS];
  const path = polar((t) => {
    const along = 1 - t + t * Math.cos(end), across = t * Math.sin(end), r = Math.hypot(along, across);
    const [at, slope] = turn(Math.atan2(across, along));
    const dr = (along * (Math.cos(end) - 1) + across * Math.sin(end)) / r;
    return { r, theta: at, dr, dtheta: slope * Math.sin(end) / r ** 2 };
  });
  return { path, end, theta, angle };
}

/** A path through places (θ, r) at equal times, from (0, 1) to (π/2, 1): monotone cubics of time. */
export function through(places) {
  const times = Array.from({ length: places.length / 2 + 2 }, (_, k) => k / (places.length / 2 + 1));
  const [turn, far] = [[0, Math.PI / 2], [1, 1]].map(([first, last], c) =>
    pchip(times, [first, ...[...places].filter((_, k) => k % 2 === c), last]));
  return polar((t) => {
    const [theta, dtheta] = turn(t), [r, dr] = far(t);
    return { r, theta, dr, dtheta };
  });
}

function polar(at) {
  return (t) => {
    const { r, theta, dr, dtheta } = at(t), [sin, cos] = [Math.sin(theta), Math.cos(theta)];
    return { a: r * sin, m: r * cos, da: dr * sin + r * cos * dtheta, dm: dr * cos - r * sin * dtheta };
  };
}
