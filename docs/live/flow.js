// Particles and the way they came: their places at a list of times, computed only as far as anybody has looked.

import { advance } from "./softmax.js";

/** Times from 0 to 1 − rest; the steps shrink with the noise that is left. */
export function times(count, rest = 0.006) {
  return Float64Array.from({ length: count + 1 }, (_, k) => 1 - rest - (1 - rest) * (1 - k / count) ** 2);
}

export class Flow {
  constructor(start, points, path, at) {
    Object.assign(this, { points, path, at, states: [start] });
  }

  /** The places after the last ones. */
  next() {
    const { states, at } = this, next = states.at(-1).slice();
    advance(next, this.points, this.path, at[states.length - 1], at[states.length]);
    return next;
  }

  /** Compute on towards index `k` for at most `budget` milliseconds; the index that is reached. */
  reach(k, budget = 12) {
    const { states } = this, until = performance.now() + budget;
    while (states.length <= k && performance.now() < until) states.push(this.next());
    return Math.min(k, states.length - 1);
  }
}
