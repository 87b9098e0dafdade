// What every figure shares: its box, its controls, the theme, the address, and a clock that rests when nobody looks.

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

/** Let a figure with `root`, `view` and `frame` follow the theme and its size; it gets `wake`, which asks for a picture. */
export function enliven(figure) {
  const { root, view } = figure;
  theme((name) => {
    root.dataset.theme = name;
    view.show(name);
    figure.wake?.();
  });
  figure.wake = clock(root, (seconds) => figure.frame(seconds));
  new ResizeObserver(() => {
    view.fit();
    figure.wake();
  }).observe(view.canvas);
  figure.wake();
}

/** The stylesheet beside the modules, once. */
export function dress() {
  const href = new URL("live.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) document.head.append(make("link", { rel: "stylesheet", href }));
}
