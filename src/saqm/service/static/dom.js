// Elements are made here, and only so: text goes in as text, never as HTML.
export const H = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
export const S = (tag, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
export const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

export const many = (n, one, several = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : several}`;
export const brief = (value, digits = 3) => String(Number(value.toPrecision(digits)));
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const pause = (milliseconds, signal) => new Promise((done, failed) => {
  if (signal?.aborted) return failed(signal.reason);
  const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); done(); }, milliseconds);
  const stop = () => { clearTimeout(timer); failed(signal.reason); };
  signal?.addEventListener("abort", stop, { once: true });
});

// What changed is told; who draws it watches.
const watchers = {};
export const watch = (what, react) => (watchers[what] ??= []).push(react);
export const tell = (what, ...about) => (watchers[what] ?? []).forEach((react) => react(...about));
