// One softmax over the data, in the plane.  For points y_j and a noise level σ, by the formulas of lib/kernels:
//
//     log_z  = log Σ_j w_j exp(−‖x − y_j‖²/2σ²),  w_j = 1/N unless given
//     mean   = E[y | x],   spread = tr Cov[y | x],   both under the weights p_j ∝ w_j exp(−‖x − y_j‖²/2σ²)
//
// and, as in lib/posterior, for a path x_t = a x_1 + m x_0, with one call at x/a and σ = m/a:
//
//     log p_t    = log_z − log 2πm²                      (D = 2)
//     score      = (a·mean − x)/m²
//     velocity   = (m′/m) x + (a′ − a m′/m)·mean
//     divergence = 2 m′/m + (a′ − a m′/m)(a/m²)·spread
//
// Points and queries are flat arrays: x₀, y₀, x₁, y₁, …

/** log_z, mean and spread at (x, y); `out` is filled with (log_z, mean x, mean y, spread).
 *  `logW`, logarithms of weights, are used as given; without them every point weighs 1/N. */
export function softmax(x, y, points, sigma, out, logW = null) {
  const scale = -0.5 / (sigma * sigma), length = points.length;
  let top = -Infinity;
  for (let j = 0; j < length; j += 2) {
    const dx = points[j] - x, dy = points[j + 1] - y, square = dx * dx + dy * dy;
    const logit = scale * square + (logW === null ? 0 : logW[j >> 1]);
    if (logit > top) top = logit;
  }
  // averages of y − x, so that nothing cancels where the cloud is far from the origin
  let total = 0, mx = 0, my = 0, second = 0;
  for (let j = 0; j < length; j += 2) {
    const dx = points[j] - x, dy = points[j + 1] - y, square = dx * dx + dy * dy;
    const logit = scale * square + (logW === null ? 0 : logW[j >> 1]) - top;
    if (logit < -40) continue; // under 1e-17 of the heaviest
    const w = Math.exp(logit);
    total += w; mx += w * dx; my += w * dy; second += w * square;
  }
  mx /= total; my /= total;
  out[0] = top + Math.log(logW === null ? 2 * total / length : total);
  out[1] = x + mx;
  out[2] = y + my;
  out[3] = Math.max(0, second / total - mx * mx - my * my);
  return out;
}

/** The weight of each point at (x, y), into `out`; returns the effective number of points, 1/Σp². */
export function weights(x, y, points, sigma, out) {
  const scale = -0.5 / (sigma * sigma);
  let top = -Infinity, total = 0, squares = 0;
  for (let j = 0; j < out.length; j++) {
    const dx = points[2 * j] - x, dy = points[2 * j + 1] - y;
    out[j] = scale * (dx * dx + dy * dy);
    if (out[j] > top) top = out[j];
  }
  for (let j = 0; j < out.length; j++) total += out[j] = Math.exp(out[j] - top);
  for (let j = 0; j < out.length; j++) squares += (out[j] /= total) ** 2;
  return 1 / squares;
}

/** Straight paths from noise to data, a = t and m = 1 − t; quarter circles; the variance-preserving diffusion. */
export const PATHS = {
  straight: (t) => ({ a: t, m: 1 - t, da: 1, dm: -1 }),
  trigonometric: (t) => {
    const angle = Math.PI / 2 * t, a = Math.sin(angle), m = Math.cos(angle);
    return { a, m, da: Math.PI / 2 * m, dm: -Math.PI / 2 * a };
  },
  VP: (t) => {
    const left = 1 - t, logA = -left * left * (20 - 0.1) / 4 - left * 0.1 / 2, a = Math.exp(logA);
    const m = Math.sqrt(-Math.expm1(2 * logA)), da = a * (left * (20 - 0.1) / 2 + 0.1 / 2);
    return { a, m, da, dm: -a * da / m };
  },
};

const seen = new Float64Array(4);

/** Everything at (x, y) on a path's { a, m, da, dm }, into `out`:
 *  (log p, score x, score y, velocity x, velocity y, divergence, posterior mean x, mean y, spread). */
export function field(x, y, points, { a, m, da, dm }, out) {
  const own = dm / m, pull = da - a * own;
  if (a < 1e-12) { // the noise hides everything: the posterior is the data set as it is
    softmax(0, 0, points, 1e12, seen);
    seen[0] = -(x * x + y * y) / (2 * m * m);
  } else {
    softmax(x / a, y / a, points, m / a, seen);
  }
  const [logZ, meanX, meanY, spread] = seen;
  out[0] = logZ - Math.log(2 * Math.PI * m * m);
  out[1] = (a * meanX - x) / (m * m);
  out[2] = (a * meanY - y) / (m * m);
  out[3] = own * x + pull * meanX;
  out[4] = own * y + pull * meanY;
  out[5] = 2 * own + pull * a / (m * m) * spread;
  out[6] = meanX; out[7] = meanY; out[8] = spread;
  return out;
}

/** One Heun step of every particle from t to `next` along the exact velocity, in place. */
export function advance(particles, points, path, t, next, out = new Float64Array(9)) {
  const h = next - t, here = path(t), there = path(next);
  for (let k = 0; k < particles.length; k += 2) {
    const x = particles[k], y = particles[k + 1];
    field(x, y, points, here, out);
    const u = out[3], v = out[4];
    field(x + h * u, y + h * v, points, there, out);
    particles[k] = x + h / 2 * (u + out[3]);
    particles[k + 1] = y + h / 2 * (v + out[4]);
  }
}
