// Elements are made here, and only so: text goes in as text, never as HTML.
const H = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const S = (tag, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) node.style.setProperty(key, part);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const scale = (from, to, low, high) => (value) => low + ((value - from) / (to - from)) * (high - low);

// About n round numbers between low and high.
function ticks(low, high, n) {
  const rough = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

const DAY = 86400000;
const dayOf = (date) => Date.parse(`${date}T00:00:00Z`) / DAY;
const dateOf = (day) => new Date(day * DAY).toISOString().slice(0, 10);

// The verdict as a sign and a word: colour only adds to it.
const VERDICTS = { pass: "✓ pass", review: "? review", fail: "✕ fail" };
const verdict = (name) => (name === null ? null : H("span", { class: `tag ${name}` }, VERDICTS[name] ?? name));

// A value on its scale with its interval; `background` are the values of the others, drawn faintly.
function gauge(i, { width, height, background = null }) {
  const model = modelOf(i);
  const value = valueOf(i);
  const x = scale(...rangeOf(model), 1, width - 1);
  const [low, high] = [C.interval_low[i], C.interval_high[i]];
  const parts = [S("rect", { class: "track", x: 0, y: height - 8, width, height: 6, rx: 3 })];
  if (background) {
    const bars = counted(background, rangeOf(model), 50);
    const tallest = Math.max(...bars, 1);
    parts.push(...bars.map((n, k) => S("rect", {
      class: "ghost", x: (k * width) / 50, width: width / 50 - 1, y: (height - 12) * (1 - n / tallest), height: ((height - 12) * n) / tallest,
    })));
  }
  if (low !== null) parts.push(S("rect", { class: "interval", x: x(low), y: height - 8, width: Math.max(x(high) - x(low), 2), height: 6, rx: 3 }));
  if (value !== null) parts.push(S("rect", { class: "here", x: x(value) - 1.5, y: background ? 0 : height - 11, width: 3, height: background ? height : 12, rx: 1 }));
  return S("svg", { class: "gauge", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, parts);
}

function counted(values, [low, high], bins) {
  const counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(Math.max(Math.floor(((value - low) / (high - low)) * bins), 0), bins - 1)] += 1;
  return counts;
}

// The page only redraws what it must: `watch` a thing that changed, `tell` that it did.
const watchers = {};
const watch = (what, react) => (watchers[what] ??= []).push(react);
const tell = (what) => (watchers[what] ?? []).forEach((react) => react());
