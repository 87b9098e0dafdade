// Entropic transport between two clouds of equal weights in the plane, as lib/transport/couplings has it: cost ‖x − y‖²,
//
//     plan_ij = a_i b_j exp((f_i + g_j − c_ij)/ε),    f_i = −ε log Σ_j b_j exp((g_j − c_ij)/ε),    g alike.
//
// The sum is the log_z of the one softmax, with σ² = ε/2 and the log-weights log b_j + g_j/ε.

import { softmax } from "./softmax.js";

const seen = new Float64Array(4);

/** The potential on `here` that gives its points their marginal, from the potential on `there`. */
function fitted(here, there, potential, epsilon) {
  const logW = potential.map((value) => value / epsilon - Math.log(potential.length)), found = new Float64Array(here.length / 2);
  for (let i = 0; i < found.length; i++) {
    found[i] = -epsilon * softmax(here[2 * i], here[2 * i + 1], there, Math.sqrt(epsilon / 2), seen, logW)[0];
  }
  return found;
}

export class Sinkhorn {
  constructor(x, y, epsilon) {
    Object.assign(this, { x, y, epsilon, steps: 0, f: new Float64Array(x.length / 2), g: new Float64Array(y.length / 2) });
    this.half();
  }

  /** Half an iteration: one end is made right, at the cost of the other. */
  half() {
    const { x, y, epsilon } = this;
    if (this.steps % 2) this.g = fitted(y, x, this.f, epsilon);
    else this.f = fitted(x, y, this.g, epsilon);
    this.steps++;
  }

  /** How much of x_i goes to each y, into `out`; the sum is 1/N when x has its marginal. */
  row(i, out) {
    const { x, y, f, g, epsilon } = this, each = -Math.log(f.length * g.length);
    for (let j = 0; j < g.length; j++) {
      const cost = (x[2 * i] - y[2 * j]) ** 2 + (x[2 * i + 1] - y[2 * j + 1]) ** 2;
      out[j] = Math.exp((f[i] + g[j] - cost) / epsilon + each);
    }
    return out;
  }

  /** What is wrong at both ends, Σ|marginal − 1/N|, and the value ⟨cost, plan⟩ + ε KL(plan | a⊗b). */
  state() {
    const { f, g } = this, row = new Float64Array(g.length), columns = new Float64Array(g.length);
    let source = 0, value = 0;
    for (let i = 0; i < f.length; i++) {
      this.row(i, row);
      let sum = 0;
      for (let j = 0; j < row.length; j++) {
        sum += row[j];
        columns[j] += row[j];
        value += row[j] * (f[i] + g[j]);
      }
      source += Math.abs(sum - 1 / f.length);
    }
    const target = columns.reduce((total, sum) => total + Math.abs(sum - 1 / g.length), 0);
    return { source, target, value };
  }
}
