// Operator-informed scores on the line, by the formulas of lib/markov: data y under the Ornstein–Uhlenbeck process,
// X_τ = t y + √(1 − t²) ε with t = e^{−τ}, and Hermite functions ψ_q = He_q/√q!, whose averages only shrink:
//
//     E ψ_q(X_τ) = e^{−qτ} M_q = t^q M_q,     M_q = mean of ψ_q over the data.
//
// The score of order K is −x + f′(x) with f′ = Σ_{i<K} β_i ψ_i and Aβ = b, where, as ψ_i ψ_j = Σ_q c_ijq ψ_q,
//
//     A_ij = E ψ_i ψ_j (X_τ) = Σ_q c_ijq t^q M_q,     b_i = √(i + 1) t^{i+1} M_{i+1}     (lib's α_{i+1} is β_i/√(i + 1)).
//
// Shrinkage s multiplies all moments but M₀ = 1 by 1 − s.  More than three standard deviations of the noise beyond the
// noised data f′ goes on along the line of their Gaussian score.  Points are flat pairs x₀, 0, x₁, 0, …

import { moments } from "./clouds.js";

const TAILS = 3;

/** ψ_0 … ψ_n at x into `out` of length n + 1. */
export function hermite(x, out) {
  out[0] = 1;
  for (let q = 1; q < out.length; q++) {
    out[q] = (x * out[q - 1] - (q > 1 ? Math.sqrt(q - 1) * out[q - 2] : 0)) / Math.sqrt(q);
  }
  return out;
}

/** M_0 … M_n of points. */
export function averages(points, n) {
  const sum = new Float64Array(n + 1), value = new Float64Array(n + 1);
  for (let k = 0; k < points.length; k += 2) hermite(points[k], value).forEach((v, q) => (sum[q] += v));
  return sum.map((total) => 2 * total / points.length);
}

const half = [0]; // log √n!
const root = (n) => (half[n] ??= root(n - 1) + Math.log(n) / 2);

const products = []; // of ψ_i ψ_j, j ≤ i: c_ijq for q = i + j, i + j − 2, … i − j

/** E ψ_i ψ_j from E ψ_q, for j ≤ i. */
function product(i, j, seen) {
  const row = products[i] ??= [];
  row[j] ??= Float64Array.from({ length: j + 1 }, (_, k) =>
    Math.exp(root(i) + root(j) + root(i + j - 2 * k) - 2 * (root(k) + root(i - k) + root(j - k))));
  return row[j].reduce((sum, c, k) => sum + c * seen[i + j - 2 * k], 0);
}

/** The rows of L, lower triangular, with LLᵀ = A. */
function cholesky(a) {
  const rows = [];
  a.forEach((row, i) => {
    rows.push(new Float64Array(i + 1));
    for (let j = 0; j <= i; j++) {
      let left = row[j];
      for (let k = 0; k < j; k++) left -= rows[i][k] * rows[j][k];
      rows[i][j] = i === j ? Math.sqrt(left) : left / rows[j][j];
    }
  });
  return rows;
}

/** The scores of all orders up to `order` at one time: their systems are corners of the largest, and so its factor
 *  serves them all. */
export class Scores {
  constructor(points, order, t, shrinkage, clean = averages(points, Math.max(order, 2 * order - 2))) {
    const seen = clean.map((average, q) => (q ? (1 - shrinkage) * average * t ** q : 1));
    const orders = Array.from({ length: order }, (_, i) => i), { size } = moments(points, 1);
    const rows = cholesky(orders.map((i) => orders.slice(0, i + 1).map((j) => product(i, j, seen))));
    const halfway = new Float64Array(order);
    for (const i of orders) {
      let left = Math.sqrt(i + 1) * seen[i + 1];
      for (let k = 0; k < i; k++) left -= rows[i][k] * halfway[k];
      halfway[i] = left / rows[i][i];
    }
    const noise = Math.sqrt(1 - t * t), places = points.filter((_, k) => k % 2 === 0);
    Object.assign(this, { rows, halfway, value: new Float64Array(order + 1) });
    this.excess = 1 - 1 / (t * t * size * size + noise * noise);
    this.low = t * Math.min(...places) - TAILS * noise;
    this.high = t * Math.max(...places) + TAILS * noise;
    this.betas = orders.map((i) => this.solve(i + 1));
  }

  /** β of order K, from the half that is solved. */
  solve(order) {
    const beta = this.halfway.slice(0, order);
    for (let i = order - 1; i >= 0; i--) {
      for (let k = i + 1; k < order; k++) beta[i] -= this.rows[k][i] * beta[k];
      beta[i] /= this.rows[i][i];
    }
    return beta;
  }

  /** Every order's score at x into `scores`, and log dρ/dπ up to a constant into `logs`; entry K − 1 is order K's. */
  at(x, scores, logs) {
    const { value, betas, low, high, excess } = this, near = Math.min(high, Math.max(low, x)), far = x - near;
    hermite(near, value);
    betas.forEach((beta, k) => {
      let slope = 0, log = 0;
      for (let i = 0; i <= k; i++) {
        slope += beta[i] * value[i];
        log += beta[i] * value[i + 1] / Math.sqrt(i + 1);
      }
      scores[k] = slope + excess * far - x;
      logs[k] = log + far * (slope + excess * far / 2);
    });
  }
}
