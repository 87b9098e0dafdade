// Canvas: the plane on the screen, density as colour, arrows, particles with the way they came, points.

import { field } from "./softmax.js";

// Okabe and Ito's colours, which most colour-blind readers tell apart
export const THEMES = {
  light: { ramp: ["#ffffff", "#e3eff8", "#a9d1ec", "#4f9fd4", "#0b5a96"], particle: "#b84a00", trail: "rgba(213,94,0,.3)",
    point: "#10202c", ring: "#ffffff", arrow: "rgba(16,32,44,.55)", lens: "#00694c", ink: "#10202c",
    price: ["#ffffff", "#aab6c0"], paths: { VP: "#8b2f78", trigonometric: "#00694c", straight: "#0b5a96",
      KO: "#b84a00", floored: "#7a5c00", own: "#10202c" } },
  dark: { ramp: ["#0c1118", "#0d2438", "#10507f", "#3397d3", "#b6e3ff"], particle: "#ffb000", trail: "rgba(255,176,0,.3)",
    point: "#f4f7fa", ring: "#0c1118", arrow: "rgba(244,247,250,.5)", lens: "#2fd6a4", ink: "#f4f7fa",
    price: ["#0c1118", "#4b5a68"], paths: { VP: "#f0a0d8", trigonometric: "#2fd6a4", straight: "#7cc4f2",
      KO: "#ff9a66", floored: "#ffd166", own: "#f4f7fa" } },
};
const SHADES = 256, BAND = 1; // how tall the density of a line is drawn
const HALF = 2.6; // of the shorter side, in units of the data's standard deviation

function parse(hex) {
  return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
}

function palette(ramp) {
  const stops = ramp.map(parse), table = new Uint32Array(SHADES);
  for (let k = 0; k < SHADES; k++) {
    const at = k / (SHADES - 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
    const [r, g, b] = stops[i].map((low, c) => Math.round(low + (at - i) * (stops[i + 1][c] - low)));
    table[k] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return table;
}

/** A canvas with the plane on it: what is drawn is in units of the data, y upwards; `half` of the shorter side of what
 *  is seen, around `centre`. */
export class View {
  constructor(canvas, { half = HALF, centre = [0, 0] } = {}) {
    Object.assign(this, { canvas, half, centre });
    this.pen = canvas.getContext("2d");
    this.sheet = document.createElement("canvas");
    this.show("light");
    this.fit();
  }

  show(theme) {
    this.colours = THEMES[theme];
    this.shades = palette(this.colours.ramp);
  }

  /** Take the canvas's size on the page. */
  fit() {
    const dots = Math.min(2, window.devicePixelRatio || 1), { clientWidth: width, clientHeight: height } = this.canvas;
    this.width = width || 300;
    this.height = height || 300;
    this.canvas.width = Math.round(this.width * dots);
    this.canvas.height = Math.round(this.height * dots);
    this.dots = dots;
    this.unit = Math.min(this.width, this.height) / (2 * this.half);
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.centre[0]) * this.unit, this.height / 2 - (y - this.centre[1]) * this.unit];
  }

  toPlane(px, py) {
    return [(px - this.width / 2) / this.unit + this.centre[0], (this.height / 2 - py) / this.unit + this.centre[1]];
  }

  clear() {
    this.pen.setTransform(this.dots, 0, 0, this.dots, 0, 0);
    this.pen.fillStyle = this.colours.ramp[0];
    this.pen.fillRect(0, 0, this.width, this.height);
  }

  /** p_t = Σ_j N(a y_j, m² I) as colour.  A Gaussian is a product over axes, so the picture is a product of matrices.
   *  On a line it is a band. */
  density(points, { a, m }, dimensions = 2) {
    const cell = Math.min(0.16, Math.max(0.035, m / 2.5));
    const columns = Math.ceil(this.width / this.unit / cell);
    const rows = dimensions > 1 ? Math.ceil(this.height / this.unit / cell) : 1;
    const across = profile(points, 0, a, m, columns, -cell * (columns - 1) / 2, cell);
    const down = profile(points, 1, a, m, rows, cell * (rows - 1) / 2, -cell);
    const sum = product(down, across, points.length / 2, rows, columns);
    this.paint(sum, rows, columns, cell, dimensions > 1 ? rows * cell : BAND);
  }

  paint(values, rows, columns, cell, tall) {
    const { sheet, shades, pen } = this, top = values.reduce((most, v) => Math.max(most, v), 1e-300);
    sheet.width = columns;
    sheet.height = rows;
    const ink = sheet.getContext("2d"), image = ink.createImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    for (let k = 0; k < values.length; k++) pixels[k] = shades[Math.round((SHADES - 1) * Math.sqrt(values[k] / top))];
    ink.putImageData(image, 0, 0);
    const [wide, high] = [columns * cell * this.unit, tall * this.unit];
    pen.imageSmoothingQuality = "high";
    pen.drawImage(sheet, (this.width - wide) / 2, (this.height - high) / 2, wide, high);
  }

  /** Arrows of the score or of the velocity on a grid; `of` is where its two numbers stand in what `field` returns. */
  arrows(points, path, of, gap = 34, see = field) {
    const { pen } = this, out = new Float64Array(9);
    pen.strokeStyle = this.colours.arrow;
    pen.lineWidth = 1.2;
    pen.beginPath();
    for (let py = gap / 2; py < this.height; py += gap) {
      for (let px = gap / 2; px < this.width; px += gap) {
        see(...this.toPlane(px, py), points, path, out);
        const size = Math.hypot(out[of], out[of + 1]), length = 0.8 * gap * size / (size + 2);
        if (length > 1) arrow(pen, px, py, length * out[of] / size, -length * out[of + 1] / size);
      }
    }
    pen.stroke();
  }

  disks(points, radius, colour, ring) {
    const { pen } = this;
    pen.beginPath();
    for (let k = 0; k < points.length; k += 2) {
      const [px, py] = this.toScreen(points[k], points[k + 1]);
      pen.moveTo(px + radius, py);
      pen.arc(px, py, radius, 0, 2 * Math.PI);
    }
    if (ring) {
      pen.lineWidth = 2;
      pen.strokeStyle = ring;
      pen.stroke();
    }
    pen.fillStyle = colour;
    pen.fill();
  }

  points(points) {
    this.pen.globalAlpha = 0.75;
    this.disks(points, points.length > 400 ? 1.4 : 2, this.colours.point);
    this.pen.globalAlpha = 1;
  }

  /** Lines between two clouds, as dark as the plan is heavy beside one point's mass. */
  links(x, y, plan) {
    const { pen } = this, mass = 1 / plan.length;
    pen.strokeStyle = this.colours.ramp[3];
    pen.lineWidth = 1;
    plan.forEach((row, i) => row.forEach((part, j) => {
      if (part < 0.02 * mass) return;
      pen.globalAlpha = Math.min(1, 0.06 + 0.7 * part / mass);
      pen.beginPath();
      pen.moveTo(...this.toScreen(x[2 * i], x[2 * i + 1]));
      pen.lineTo(...this.toScreen(y[2 * j], y[2 * j + 1]));
      pen.stroke();
    }));
    pen.globalAlpha = 1;
  }

  particles(states, now, tail) {
    const { pen } = this, from = Math.max(0, now - tail);
    pen.strokeStyle = this.colours.trail;
    pen.lineWidth = 1.3;
    pen.beginPath();
    for (let k = 0; k < states[now].length; k += 2) {
      pen.moveTo(...this.toScreen(states[from][k], states[from][k + 1]));
      for (let s = from + 1; s <= now; s++) pen.lineTo(...this.toScreen(states[s][k], states[s][k + 1]));
    }
    pen.stroke();
    this.disks(states[now], 2.3, this.colours.particle, this.colours.ring);
  }

  /** The microscope: lines from (x, y) to the points that own it, as thick as their weights, and to their mean. */
  lens(x, y, points, weights, mean, tint) {
    const { pen, colours } = this, [px, py] = this.toScreen(x, y), top = weights.reduce((a, b) => Math.max(a, b), 0);
    pen.strokeStyle = pen.fillStyle = tint ?? colours.lens;
    for (let j = 0; j < weights.length; j++) {
      if (weights[j] < 0.004 && weights[j] < top) continue;
      const [qx, qy] = this.toScreen(points[2 * j], points[2 * j + 1]), share = Math.sqrt(weights[j]);
      pen.globalAlpha = 0.25 + 0.6 * share;
      pen.lineWidth = 0.6 + 4 * share;
      pen.beginPath();
      pen.moveTo(px, py);
      pen.lineTo(qx, qy);
      pen.stroke();
      pen.beginPath();
      pen.arc(qx, qy, 2.5 + 7 * share, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.lineWidth = 2;
    pen.strokeStyle = colours.ink;
    pen.beginPath();
    pen.arc(px, py, 9, 0, 2 * Math.PI);
    pen.stroke();
    const [mx, my] = this.toScreen(...mean);
    pen.strokeStyle = colours.ring;
    pen.fillStyle = tint ?? colours.ink;
    pen.beginPath();
    [[0, -7], [7, 0], [0, 7], [-7, 0]].forEach(([dx, dy]) => pen.lineTo(mx + dx, my + dy));
    pen.closePath();
    pen.fill();
    pen.stroke();
  }
}

/** exp(−(grid − a y_j)²/2m²) along one axis: row j of the result is point j's. */
function profile(points, axis, a, m, count, first, step) {
  const found = new Float32Array(points.length / 2 * count), scale = -0.5 / (m * m);
  for (let j = 0, k = 0; j < points.length / 2; j++) {
    for (let i = 0; i < count; i++, k++) {
      const d = first + i * step - a * points[2 * j + axis], logit = scale * d * d;
      found[k] = logit < -30 ? 0 : Math.exp(logit);
    }
  }
  return found;
}

function product(down, across, count, rows, columns) {
  const sum = new Float32Array(rows * columns);
  for (let j = 0; j < count; j++) {
    for (let r = 0; r < rows; r++) {
      const w = down[j * rows + r];
      if (w < 1e-9) continue;
      for (let c = 0, k = r * columns, i = j * columns; c < columns; c++, k++, i++) sum[k] += w * across[i];
    }
  }
  return sum;
}

/** An arrow with its middle at (x, y) into the pen's path; `head` is a part of its length. */
export function arrow(pen, x, y, dx, dy, head = 0.3) {
  const [ex, ey] = [x + dx / 2, y + dy / 2];
  pen.moveTo(x - dx / 2, y - dy / 2);
  pen.lineTo(ex, ey);
  pen.moveTo(ex - head * (dx + 0.6 * dy), ey - head * (dy - 0.6 * dx));
  pen.lineTo(ex, ey);
  pen.lineTo(ex - head * (dx - 0.6 * dy), ey - head * (dy + 0.6 * dx));
}

/** A line through places of the view's plane. */
export function line(view, places, colour, wide, dash = []) {
  const { pen } = view;
  pen.beginPath();
  for (const place of places) pen.lineTo(...view.toScreen(...place));
  Object.assign(pen, { strokeStyle: colour, lineWidth: wide });
  pen.setLineDash(dash);
  pen.stroke();
  pen.setLineDash([]);
}

/** A colour between two. */
export function mixed([from, to], part) {
  return `color-mix(in srgb, ${from}, ${to} ${(100 * part).toFixed(1)}%)`;
}
