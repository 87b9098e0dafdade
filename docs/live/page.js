// What every figure shares: its box, its controls, the theme, the address, and a clock that rests when nobody looks.

import { Hands } from "./hands.js";
import { View } from "./view.js";

const SECONDS = 3, PAUSE = 2; // that a figure takes to its last picture, and rests there

/** The value, or the bound that it passes. */
export const between = (low, value, high) => Math.max(low, Math.min(high, value));

/** An element; `set` are its properties, with `data` and `on` for data-* and listeners. */
export function make(tag, { data = {}, on = {}, ...set } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), set);
  Object.assign(element.dataset, data);
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  element.append(...children);
  return element;
}

/** Buttons of which one is pressed. */
export function choice(label, options, chosen, choose) {
  const box = make("div", { className: "live-choice", role: "group", ariaLabel: label });
  const press = (name) => {
    for (const button of box.children) button.ariaPressed = String(button.dataset.name === name);
  };
  for (const [name, text] of Object.entries(options)) {
    box.append(make("button", { type: "button", textContent: text, data: { name }, on: {
      click: () => {
        press(name);
        choose(name);
      } } }));
  }
  press(chosen);
  return Object.assign(box, { press });
}

/** A labelled slider; its label says what `say` makes of the value. */
export function slider(label, { min, max, step, value }, say, move) {
  const told = make("output"), input = make("input", { type: "range", min, max, step, ariaLabel: label });
  const show = (now) => {
    input.value = now;
    told.textContent = say(+now);
    input.ariaValueText = say(+now);
  };
  input.addEventListener("input", () => {
    show(input.value);
    move(+input.value);
  });
  show(value);
  return Object.assign(make("label", { className: "live-slider" }, input, told), { show, input });
}

/** Call `use` with "light" or "dark", now and when it changes. */
function theme(use) {
  const system = matchMedia("(prefers-color-scheme: dark)"), page = document.documentElement;
  const tell = () => use(["light", "dark"].find((name) => name === page.dataset.theme) ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", tell);
  new MutationObserver(tell).observe(page, { attributeFilter: ["data-theme"] });
  tell();
}

/** What the address says after #; writing keeps what is already there. */
export const address = {
  read: () => Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
  write: (state) => {
    const now = new URLSearchParams(state);
    history.replaceState(null, "", `#${now}`);
  },
};

export const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Call `frame(seconds since the last)` while the element can be seen and `frame` answers true; returns a waker. */
function clock(element, frame) {
  let asked = 0, last = 0, seen = true;
  const tick = (now) => {
    asked = 0;
    const more = frame(Math.min(0.1, last ? (now - last) / 1000 : 0));
    last = more ? now : 0;
    if (more) wake();
  };
  const wake = () => {
    if (seen && !asked) asked = requestAnimationFrame(tick);
  };
  new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    if (seen) wake();
  }).observe(element);
  return wake;
}

/** A picture with a sentence about it, a play button and rows of controls.  A figure has a `title`, what is `told` to
 *  those who do not see it, and the `sight` of its view; controls() → rows of elements; prepare() what is drawn with;
 *  restore() what the address says, or a start; keep() writes it there; `index`, how far it has played; frame(seconds)
 *  → whether another picture will be needed. */
export class Figure {
  constructor(root) {
    const { title, told, sight } = this.constructor;
    dress();
    this.root = root;
    this.canvas = make("canvas", { tabIndex: 0, role: "application", ariaLabel: `${title}. ${told}` });
    this.said = make("p", { className: "live-said", ariaLive: "polite" });
    this.play = this.button("", "live-play", () => this.toggle());
    this.stage = make("div", { className: "live-stage" }, this.canvas, this.said);
    const rows = this.controls().map((parts) => make("div", { className: "live-row" }, ...parts));
    root.replaceChildren(this.stage, ...rows);
    this.views = [this.view = new View(this.canvas, sight)];
    this.prepare();
    this.restore();
    this.enliven();
  }

  button(textContent, className, click) {
    return make("button", { type: "button", className, textContent, on: { click } });
  }

  /** Hands on a view; where they are becomes the lens. */
  take(view, what) {
    return new Hands(view, { done: () => this.keep(), look: (place) => {
      this.lens = place;
      this.wake();
    }, ...what });
  }

  /** Follow the theme and the size on the page; from now on `wake` asks for a picture. */
  enliven() {
    theme((name) => {
      this.root.dataset.theme = name;
      for (const view of this.views) view.show(name);
      this.wake();
    });
    this.wake = clock(this.root, (seconds) => this.frame(seconds));
    const fit = new ResizeObserver(() => {
      for (const view of this.views) view.fit();
      this.wake();
    });
    for (const view of this.views) fit.observe(view.canvas);
    this.wake();
  }

  wake() {}

  toggle() {
    this.playing = !this.playing;
    this.keep();
  }

  seek(k) {
    this.index = k;
    this.playing = false;
    this.keep();
  }

  /** From the first index to the last and back, with a rest at both. */
  sway(seconds, last) {
    const goal = this.back ? 0 : last;
    if (this.index === goal) this.rest = (this.rest ?? PAUSE) + seconds;
    else [this.index, this.rest] = [between(0, this.index + (this.back ? -1 : 1) * seconds / SECONDS * last, last), 0];
    if (this.rest > PAUSE) this.back = !this.back;
  }

  /** The play button says what it does next. */
  showPlay() {
    this.play.textContent = this.playing ? "❚❚" : "▶";
    this.play.ariaLabel = this.playing ? "pause" : "play";
  }

  /** Figures in all boxes of that number. */
  static fill(number) {
    for (const root of document.querySelectorAll(`.live[data-figure="${number}"]`)) root.figure = new this(root);
  }
}

/** The stylesheet beside the modules, once. */
function dress() {
  const href = new URL("live.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) document.head.append(make("link", { rel: "stylesheet", href }));
}
