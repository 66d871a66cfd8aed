// Frames of a cine or slices of a volume: a chart of the score, a slider under it, and play.
import { byId, clamp, H, many, pause, S, watch } from "./dom.js";
import { activePane, fetchAhead, goTo, isUnlike, viewer } from "./viewer.js";

const HEIGHT = 72, EDGE = 4; // pixels of the chart; above and below it
const AHEAD = 4; // frames fetched before they are due
const RATES = [5, 10, 15, 25]; // frames a second

let player = null; // AbortController while frames run
let slider, chart, playButton, told, lowest, rate;

export function buildTimeline() {
  slider = H("input", { type: "range", id: "frame", min: 1, value: 1, "aria-label": "Frame", oninput: () => { stop(); goTo(slider.value - 1); } });
  chart = H("div", { class: "chart", onpointerdown: fromChart, onpointermove: (event) => { if (event.buttons) fromChart(event); } });
  playButton = H("button", { type: "button", id: "play", "aria-pressed": "false", title: "Play (space)", onclick: toggle }, "Play");
  rate = H("select", { "aria-label": "Frames a second" }, RATES.map((each) => H("option", { value: each, selected: each === 10 }, `${each}/s`)));
  told = H("output", { class: "told", for: "frame" });
  lowest = H("button", { type: "button", id: "lowest", class: "link", title: "Go to the frame with the lowest score (l)", onclick: toLowest });
  byId("timeline").append(chart, slider, H("div", { class: "bar" }, H("span", { class: "buttons" }, playButton, rate), told, lowest));
  new ResizeObserver(() => draw()).observe(chart);
  watch("shown", () => { stop(); draw(); });
  watch("records", draw);
  watch("frame", mark);
}

const frames = () => activePane().item?.records ?? [];
const scoreOf = ({ record }) => record.score;

function fromChart(event) {
  stop();
  const box = chart.getBoundingClientRect();
  goTo(Math.round(clamp((event.clientX - box.left) / box.width, 0, 1) * (frames().length - 1)));
}

function lowestFrame() {
  let found = null;
  frames().forEach((each, k) => { if (scoreOf(each) !== null && (found === null || scoreOf(each) < scoreOf(frames()[found]))) found = k; });
  return found;
}

export function toLowest() {
  stop();
  if (lowestFrame() !== null) goTo(lowestFrame());
}

function draw() {
  const all = frames();
  byId("timeline").hidden = all.length < 2;
  if (all.length < 2) return;
  const width = Math.max(chart.clientWidth, 60);
  const x = (k, n = all.length) => (n < 2 ? width / 2 : (k / (n - 1)) * width);
  const y = (score) => EDGE + (1 - score / 100) * (HEIGHT - 2 * EDGE);
  const other = viewer.linked && viewer.panes.length > 1 ? viewer.panes[1 - viewer.active].item?.records ?? [] : [];
  const svg = S("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": summary(all) },
    [0, 50, 100].map((score) => [S("line", { class: "grid", x1: 0, x2: width, y1: y(score), y2: y(score) }),
      S("text", { x: 3, y: y(score) + (score ? 11 : -3) }, score)]),
    runs(all, ({ record }) => record.interval !== null).map((run) => S("path", { class: "interval", d: band(run, all, x, y) })),
    other.length > 1 ? runs(other, (each) => scoreOf(each) !== null).map((run) => S("polyline", { class: "other", points: run.map((k) => `${x(k, all.length)},${y(scoreOf(other[k]))}`).join(" ") })) : null,
    runs(all, (each) => scoreOf(each) !== null).map((run) => S("polyline", { class: "scores", points: run.map((k) => `${x(k)},${y(scoreOf(all[k]))}`).join(" ") })),
    all.map(({ record }, k) => (record.score !== null && isUnlike(record) ? S("circle", { class: "unlike", cx: x(k), cy: y(record.score), r: 2.5 }) : null)),
    S("line", { class: "here", y1: 0, y2: HEIGHT }), S("circle", { class: "here", r: 4.5 }));
  chart.replaceChildren(svg);
  slider.max = all.length;
  const low = lowestFrame();
  lowest.hidden = low === null;
  if (low !== null) lowest.textContent = `Lowest: frame ${low + 1}, ${scoreOf(all[low]).toFixed(1)}`;
  mark();
}

// Stretches of frames without a gap.
function runs(all, has) {
  const found = [];
  all.forEach((each, k) => {
    if (!has(each)) return;
    if (k > 0 && has(all[k - 1])) found.at(-1).push(k);
    else found.push([k]);
  });
  return found;
}

function band(run, all, x, y) {
  const edge = (end) => run.map((k) => `${x(k)},${y(all[k].record.interval[end])}`);
  return `M${edge(1).join("L")}L${edge(0).reverse().join("L")}Z`;
}

function summary(all) {
  const scores = all.map(scoreOf).filter((score) => score !== null);
  if (!scores.length) return "No frame has a score";
  const unlike = all.filter(({ record }) => record.score !== null && isUnlike(record)).length;
  return `Scores of ${many(scores.length, "frame")}, from ${Math.min(...scores).toFixed(1)} to ${Math.max(...scores).toFixed(1)}`
    + (unlike ? `; ${unlike} of them no ground for a verdict` : "");
}

function mark() {
  const all = frames(), { k } = activePane();
  if (all.length < 2) return;
  const score = scoreOf(all[k]);
  const said = `Frame ${k + 1} of ${all.length}`;
  slider.value = k + 1;
  slider.setAttribute("aria-valuetext", `${said}, ${score === null ? "no score" : `score ${score.toFixed(1)}`}`);
  told.textContent = said;
  const [line, dot] = chart.querySelectorAll(".here");
  const width = Math.max(chart.clientWidth, 60);
  const at = (k / (all.length - 1)) * width;
  line.setAttribute("x1", at);
  line.setAttribute("x2", at);
  dot.setAttribute("cx", at);
  dot.setAttribute("cy", score === null ? -20 : EDGE + (1 - score / 100) * (HEIGHT - 2 * EDGE));
}

export function toggle() {
  if (player) return stop();
  if (frames().length < 2) return undefined;
  player = new AbortController();
  playButton.textContent = "Pause";
  playButton.setAttribute("aria-pressed", "true");
  return run(player.signal).catch(() => {});
}

export function stop() {
  player?.abort();
  player = null;
  playButton.textContent = "Play";
  playButton.setAttribute("aria-pressed", "false");
}

async function run(signal) {
  while (!signal.aborted) {
    const due = performance.now() + 1000 / rate.value;
    const n = frames().length, next = (activePane().k + 1) % n;
    for (let ahead = 1; ahead <= AHEAD; ahead += 1) viewer.panes.forEach((pane) => fetchAhead(pane, (next + ahead) % n));
    await goTo(next);
    await pause(Math.max(due - performance.now(), 0), signal);
  }
}
