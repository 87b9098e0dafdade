// The score difference between a target and a crowd, and its relatives, as lib/difference and Chapter 5 have them.
// With D the mean and z = exp(log_z) of the one softmax at σ, over the target p and the crowd q, all three move x by
//
//     a (D_p − x) − b (D_q − x):     a = b = 1         pull and push, σ² times the difference of the scores
//                                    a = 1, b = 0      pull alone, the mean shift
//                                    a = z_p, b = z_q  MMD, σ² times the gradient of p's mean kernel minus q's
//
// A step is that over the largest a or b of all particles: the first two make whole mean shifts, and the MMD goes as far
// as it can without passing a mean.

import { Flow } from "./flow.js";
import { softmax } from "./softmax.js";

/** (a, b) of what the softmax says of p and of q. */
export const MOTIONS = {
  both: () => [1, 1],
  pull: () => [1, 0],
  mmd: (p, q) => [Math.exp(p[0]), Math.exp(q[0])],
};

/** n noise levels from high to low, each the same part of the one before. */
export const levels = (high, low, n) =>
  Float64Array.from({ length: n }, (_, k) => low * (high / low) ** (1 - k / (n - 1)));

const pull = new Float64Array(4), push = new Float64Array(4);

/** Which way (x, y) is moved, into `out`: (x, y, D_p x, D_p y, D_q x, D_q y, a, b). */
export function shift(x, y, target, crowd, sigma, motion, out) {
  softmax(x, y, target, sigma, pull);
  softmax(x, y, crowd, sigma, push);
  const [a, b] = motion(pull, push);
  out[0] = a * (pull[1] - x) - b * (push[1] - x);
  out[1] = a * (pull[2] - y) - b * (push[2] - y);
  out[2] = pull[1]; out[3] = pull[2]; out[4] = push[1]; out[5] = push[2]; out[6] = a; out[7] = b;
  return out;
}

/** Particles in crowds of `crowd`, each of which sees only itself and the target, one step for each noise level. */
export class Crowds extends Flow {
  constructor(start, target, motion, sigmas, crowd = start.length / 2) {
    super(start, target);
    Object.assign(this, { motion, sigmas, crowd, out: new Float64Array(8) });
  }

  /** Those whom the particle that stands at the k-th number of a state sees, itself among them. */
  around(places, k) {
    const size = 2 * this.crowd, first = Math.floor(k / size) * size;
    return places.subarray(first, first + size);
  }

  /** Which way that particle goes after `index` steps. */
  shift(index, k) {
    const places = this.states[index], sigma = this.sigmas[Math.min(index, this.sigmas.length - 1)];
    return shift(places[k], places[k + 1], this.points, this.around(places, k), sigma, this.motion, this.out);
  }

  next() {
    const index = this.states.length - 1, places = this.states[index], moves = new Float64Array(places.length);
    let most = 0;
    for (let k = 0; k < moves.length; k += 2) {
      const [dx, dy, , , , , a, b] = this.shift(index, k);
      moves.set([dx, dy], k);
      most = Math.max(most, a, b);
    }
    return places.map((place, k) => place + moves[k] / most);
  }
}

/** The sum of all distances between two clouds. */
function distances(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i += 2) {
    for (let j = 0; j < y.length; j += 2) sum += Math.sqrt((x[i] - y[j]) ** 2 + (x[i + 1] - y[j + 1]) ** 2);
  }
  return sum;
}

/** The mean distance between two different points of a cloud. */
export const within = (x, n = x.length / 2) => distances(x, x) / (n * (n - 1));

/** 2E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖, unbiased, so it can be below zero; `among` is the last of the three. */
export function energyDistance(x, y, among = within(y)) {
  return 8 * distances(x, y) / (x.length * y.length) - within(x) - among;
}

/** Where particles are heaped: [x, y, how many] of heaps that no particle is farther from than `reach`. */
export function heaps(places, reach) {
  const found = [];
  for (let k = 0; k < places.length; k += 2) {
    const heap = found.find(([x, y]) => (x - places[k]) ** 2 + (y - places[k + 1]) ** 2 < reach * reach);
    if (heap) heap[2]++;
    else found.push([places[k], places[k + 1], 1]);
  }
  return found;
}
