// Points drawn, moved and taken away by mouse, finger or keyboard, and the place that is looked at.

const CLOSE = 8, APART = 0.07; // pixels within which a point is taken hold of; distance between points of one stroke
export const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Where the pair stands that is nearest to (x, y) and nearer than `reach`, or −1. */
export function nearest(pairs, x, y, reach) {
  let best = -1, least = reach * reach;
  for (let k = 0; k < pairs.length; k += 2) {
    const square = (pairs[k] - x) ** 2 + (pairs[k + 1] - y) ** 2;
    if (square < least) [best, least] = [k, square];
  }
  return best;
}

export class Hands {
  /** get() and set(points) the points that are drawn, done() after each stroke, look(place or null) in between. */
  constructor(view, { get, set, done, look, most = 500, apart = APART, close = CLOSE }) {
    Object.assign(this, { view, get, set, done, look, most, apart, close, drawing: false });
    const { canvas } = view, place = (event) => view.toPlane(event.offsetX, event.offsetY);
    canvas.addEventListener("pointerdown", (event) => {
      if (this.drawing) this.grasp(event.pointerId, ...place(event));
      this.see(place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.held !== undefined) this.trace(...place(event));
      this.see(place(event));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.release());
    canvas.addEventListener("pointerleave", ({ pointerType }) => { // a finger that is lifted leaves what it looked at
      if (pointerType !== "touch") this.see(null);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** Whether a finger draws, or scrolls the page. */
  draw(on) {
    this.drawing = on;
    this.view.canvas.style.touchAction = on ? "none" : "pan-y";
  }

  see(place) {
    this.place = place;
    this.look(place);
  }

  /** A point under the finger is moved, else points are drawn. */
  grasp(pointer, x, y) {
    this.view.canvas.setPointerCapture(pointer);
    this.held = nearest(this.get(), x, y, this.close / this.view.unit);
    if (this.held < 0) this.add(x, y);
  }

  trace(x, y) {
    const points = this.get();
    if (this.held >= 0) {
      const moved = points.slice();
      moved.set([x, y], this.held);
      this.set(moved);
    } else if (Math.hypot(x - points.at(-2), y - points.at(-1)) > this.apart) {
      this.add(x, y);
    }
  }

  release() {
    if (this.held !== undefined) this.done();
    this.held = undefined;
  }

  add(x, y) {
    if (this.get().length < 2 * this.most) this.set(Float64Array.of(...this.get(), x, y));
  }

  take(x, y) {
    const k = nearest(this.get(), x, y, Infinity);
    if (k >= 0) this.set(this.get().filter((_, i) => i !== k && i !== k + 1));
  }

  key(event) {
    const [x, y] = this.place ?? [0, 0];
    if (event.key in MOVES) this.see(MOVES[event.key].map((step, k) => [x, y][k] + 0.1 * step));
    else if (event.key === "Enter") this.add(x, y);
    else if (["Delete", "Backspace"].includes(event.key)) this.take(x, y);
    else return;
    if (!(event.key in MOVES)) this.done();
    event.preventDefault();
  }
}

/** Hands that move places given, and neither add nor take any; with `free`, Enter also comes by the lens. */
export class Grips extends Hands {
  constructor(view, what) {
    super(view, what);
    Object.assign(this, { drawing: true, chosen: 0, free: Boolean(what.free) });
    view.canvas.addEventListener("touchstart", (event) => { // elsewhere a finger scrolls the page
      const box = view.canvas.getBoundingClientRect(), [{ clientX, clientY }] = event.touches;
      const place = view.toPlane(clientX - box.left, clientY - box.top);
      if (nearest(this.get(), ...place, this.close / view.unit) >= 0) event.preventDefault();
    }, { passive: false });
  }

  grasp(pointer, x, y) {
    super.grasp(pointer, x, y);
    if (this.held >= 0) this.chosen = this.held / 2;
  }

  add() {}

  key(event) {
    const moved = this.get().slice(), count = moved.length / 2;
    if (event.key === "Enter") this.chosen = (this.chosen + 1) % (count + this.free);
    else if (!(event.key in MOVES)) return;
    if (this.chosen === count) {
      super.key(event);
      return;
    }
    MOVES[event.key]?.forEach((step, c) => (moved[2 * this.chosen + c] += 0.02 * step));
    this.set(moved);
    this.see(this.get().slice(2 * this.chosen, 2 * this.chosen + 2));
    this.done();
    event.preventDefault();
  }
}
