// Data sets in the plane to start from, centred, with unit variance on average; each a Float64Array x₀, y₀, x₁, y₁, …

/** Numbers in [0, 1) that are the same every time (mulberry32). */
export function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let z = Math.imul(seed ^ (seed >>> 15), seed | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
}

/** `count` numbers from N(0, 1). */
export function normal(count, random) {
  return Float64Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()));
}

/** The mean of points, and the root of their variance a dimension. */
export function moments(points, dimensions = 2) {
  const count = points.length / 2, mean = [0, 0];
  points.forEach((value, k) => (mean[k % 2] += value / count));
  const square = points.reduce((sum, value, k) => sum + (value - mean[k % 2]) ** 2, 0);
  return { mean, size: Math.sqrt(square / (dimensions * count)) };
}

/** The points about their mean, with unit variance a dimension. */
export function normalised(points, dimensions = 2) {
  const { mean, size } = moments(points, dimensions);
  return points.map((value, k) => (value - mean[k % 2]) / (size || 1));
}

/** Points along a curve: (k, u) → [x, y] for the k-th of `count`, with noise. */
function along(curve, count, noise, seed) {
  const random = generator(seed), jitter = normal(2 * count, random), points = new Float64Array(2 * count);
  for (let k = 0; k < count; k++) points.set(curve(k, (k + random()) / count), 2 * k);
  return normalised(points.map((value, k) => value + noise * jitter[k]));
}

const circle = (radius, angle) => [radius * Math.cos(angle), radius * Math.sin(angle)];

export const CLOUDS = {
  moons: () => along((k, u) => {
    const [x, y] = circle(1, 2 * Math.PI * u % Math.PI);
    return u < 0.5 ? [x, y] : [1 - x, 0.5 - y];
  }, 300, 0.06, 1),
  spirals: () => along((k, u) => {
    const s = 0.12 + 0.88 * Math.sqrt(2 * u % 1), [x, y] = circle(s, 3.3 * Math.PI * s);
    return u < 0.5 ? [x, y] : [-x, -y];
  }, 360, 0.018, 2),
  rings: () => along((k, u) => circle(u < 0.3 ? 0.4 : 1, 2 * Math.PI * (u < 0.3 ? u / 0.3 : (u - 0.3) / 0.7)), 300, 0.03, 3),
};

/** `count` points in so many small groups around the origin, or in one at it. */
export function blobs(count, around, radius = 1.2) {
  const random = generator(6), jitter = normal(2 * count, random);
  return jitter.map((value, k) => {
    const angle = 2 * Math.PI * Math.floor(k / 2) / around;
    return 0.12 * value + (around > 1 ? radius * (k % 2 ? Math.sin(angle) : Math.cos(angle)) : 0);
  });
}

/** A word as at most `count` points, from the letters as the browser paints them. */
export function word(text, count = 480) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  const size = 90, font = `800 ${size}px system-ui, sans-serif`;
  pen.font = font;
  canvas.width = Math.ceil(pen.measureText(text).width) + 20;
  canvas.height = 1.4 * size;
  pen.font = font;
  pen.fillText(text, 10, size);
  const { data, width } = pen.getImageData(0, 0, canvas.width, canvas.height), random = generator(4), ink = [];
  for (let k = 3; k < data.length; k += 4) if (data[k] > 127) ink.push((k - 3) / 4);
  const points = [];
  for (let k = 0; k < Math.min(count, ink.length); k++) {
    const at = ink[Math.floor((k + random()) * ink.length / count) % ink.length];
    points.push(at % width + random(), -Math.floor(at / width) - random());
  }
  return points.length > 2 ? fitted(points) : new Float64Array(points.map(() => 0));
}

/** As wide as the view allows, with the letters' own proportions. */
function fitted(points) {
  const unit = normalised(Float64Array.from(points));
  const reach = Math.max(...unit.filter((_, k) => k % 2 === 0).map(Math.abs));
  return unit.map((value) => value * Math.min(1.35, 2.7 / reach));
}

/** Points as text for the address, four letters each, and back. */
export const encode = (points) => [...points].map((value) =>
  Math.round((Math.max(-4, Math.min(4, value)) + 4) / 8 * 1295).toString(36).padStart(2, "0")).join("");
export const decode = (text) => Float64Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 36) / 1295 * 8 - 4)
  .filter(Number.isFinite);
