// The page of `saqm serve`: takes files, shows pictures, tells scores. Puts the parts together.
import { byId, clamp, H, many, tell, watch } from "./dom.js";
import { drawRamp, forgetAll } from "./pictures.js";
import { buildPanel } from "./result.js";
import { ask, forget, onKeyWanted } from "./service.js";
import { add, clear, filesOf, inOrder, isRunning, items, named, session } from "./session.js";
import { buildTimeline, stop, toggle as togglePlay, toLowest } from "./timeline.js";
import { activate, activePane, compare, goTo, isUnlike, open, Pane, setMap, setOpacity, viewer } from "./viewer.js";

const SETTINGS = "saqm.settings", LETTERS = "saqm.keys"; // of sessionStorage
const PAN = 60; // pixels for each press of an arrow
const ZOOM = 1.25; // for each press of + or -
const WINDOW_STEPS = 20; // for each press, this part of the own window's width

const say = (text) => { byId("live").textContent = text; };
const problem = (text, isNote = false) => {
  byId("problem").textContent = text;
  byId("problem").classList.toggle("quiet", isNote);
};
watch("problem", (text) => problem(text));

// Files come in

async function take(found, hidden = 0) {
  problem("");
  if (!found.length) return problem(hidden ? `Only hidden files (${hidden}) are in there.` : "There was no file in it.");
  if (hidden) problem(`${many(hidden, "hidden file")} left out.`, true);
  stop();
  await known;
  const first = add(named(found), query())[0];
  byId("empty").hidden = true;
  if (byId("empty").contains(document.activeElement) || document.activeElement === document.body) activePane().root.focus({ focusVisible: false });
  await open(first, 0);
  return first;
}

function buildIntake() {
  const chosen = (input) => () => {
    const { found, hidden } = inOrder([...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
    input.value = "";
    take(found, hidden);
  };
  for (const [id, buttons] of [["files", ["open", "choose"]], ["folder", ["open-folder", "choose-folder"]]]) {
    byId(id).addEventListener("change", chosen(byId(id)));
    for (const button of buttons) byId(button).addEventListener("click", () => byId(id).click());
  }
  let depth = 0; // dragenter and dragleave come for every element on the way
  const dragging = (on) => document.body.classList.toggle("dragging", on);
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; dragging(true); } });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth -= 1; dragging(depth > 0); } });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    dragging(false);
    const { found, hidden } = await filesOf(event.dataTransfer);
    take(found, hidden);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    take(files.map((file) => ({ file, path: file.name })));
  });
}

// What is asked

const asked = () => JSON.parse(sessionStorage.getItem(SETTINGS) ?? "{}");
const query = () => Object.fromEntries(Object.entries(asked()).filter(([, value]) => value !== "" && value !== false));

function buildSettings() {
  const dialog = byId("settings"), form = dialog.querySelector("form"), { elements } = form;
  const controls = () => [...elements].filter((control) => control.name);
  const unlock = () => { elements.sure.disabled = elements.fail_below.disabled = elements.pass_at.value === ""; };
  const keep = () => {
    unlock();
    sessionStorage.setItem(SETTINGS, JSON.stringify(Object.fromEntries(controls().filter((control) => !control.disabled).map((control) =>
      [control.name, control.type === "checkbox" ? control.checked : control.value]))));
  };
  const show = () => {
    for (const control of controls()) {
      const value = asked()[control.name];
      if (value === undefined) continue;
      if (control.type === "checkbox") control.checked = value;
      else control.value = value;
    }
    unlock();
    byId("again").disabled = !activePane().item?.file;
  };
  form.addEventListener("input", keep);
  byId("again").addEventListener("click", () => { dialog.close(); again(); });
  byId("settings-open").addEventListener("click", () => { show(); dialog.showModal(); });
}

// The file that is open, once more, with the settings as they are now.
function again() {
  const { item } = activePane();
  if (item?.file) take([{ file: item.file, path: item.name }]);
}

function buildKeyDialog() {
  const dialog = byId("key"), field = byId("key-field");
  byId("key-cancel").addEventListener("click", () => dialog.close());
  onKeyWanted((wasRefused) => new Promise((done) => {
    byId("key-why").textContent = wasRefused ? "The key was refused. It may be mistyped, or withdrawn." : "Whoever runs it gives keys out. It is kept in this tab only.";
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => done(dialog.returnValue === "send" && field.value.trim() ? field.value.trim() : null), { once: true });
    dialog.showModal();
  }));
}

// What the service takes, and with which model
async function meet() {
  const limits = await (await ask("v1/limits")).json();
  session.limits = limits;
  const { models } = limits;
  byId("model").textContent = models.length === 1 ? models[0] : many(models.length, "model");
  const select = byId("settings").querySelector("[name=model]");
  select.replaceChildren(...models.map((name, k) => H("option", { value: k ? name : "" }, name)));
  select.closest("label").hidden = models.length < 2;
}
const known = meet().catch((error) => problem(error.message));

// How the picture is shown

function buildTools() {
  const mapButton = H("button", { type: "button", id: "map", "aria-pressed": "false", title: "Where the score comes from (m)", onclick: () => setMap(!viewer.map) }, "Map");
  const opacity = H("input", { type: "range", id: "opacity", min: 0, max: 100, value: 100 * viewer.opacity, "aria-label": "Opacity of the map",
    oninput: () => { if (!viewer.map) setMap(true); setOpacity(opacity.value / 100); } });
  const ramp = H("canvas", { width: 96, height: 9, role: "img", "aria-label": "Colours of the map: dark red is 0, bad; pale yellow is 100, good; what was not judged is dimmed" });
  drawRamp(ramp);
  const legend = H("span", { class: "ramp", hidden: true }, "0 bad", ramp, "100 good", H("span", { class: "quiet" }, "dimmed: not judged"));
  const number = (name) => H("input", { type: "number", step: "any", id: name, "aria-label": name === "centre" ? "Window centre" : "Window width", onchange: typed });
  const centre = number("centre"), width = number("width");
  const unit = H("span", { class: "unit quiet" });
  const drag = H("button", { type: "button", id: "drag", "aria-pressed": "false", title: "Dragging moves the picture (d); with Shift it always does", onclick: () => { viewer.drag = viewer.drag === "move" ? "window" : "move"; tell("look", activePane()); } }, "Move");
  const zoomed = H("output", { class: "zoomed" });
  const press = (text, title, act, id) => H("button", { type: "button", title, "aria-label": title, id, onclick: act }, text);
  const linked = H("button", { type: "button", id: "link", "aria-pressed": "true", title: "Window, zoom and frame go together (k)", onclick: toggleLink }, "Linked");
  const viewing = H("p", { class: "viewing quiet", hidden: true }, "Window changed for viewing only: the score is of the picture as it was.");
  function typed() {
    const given = { centre: Number(centre.value), width: Number(width.value) };
    if (centre.value !== "" && given.width > 0) activePane().setWindow(given);
  }
  byId("tools").append(
    H("div", { class: "group" }, mapButton, opacity),
    H("div", { class: "group" }, H("span", {}, "Window"), H("label", {}, "C ", centre), H("label", {}, "W ", width), unit),
    H("div", { class: "group" }, drag, press("−", "Zoom out (-)", () => activePane().zoomBy(1 / ZOOM)), zoomed, press("+", "Zoom in (+)", () => activePane().zoomBy(ZOOM)),
      press("1 : 1", "True pixels (1)", () => activePane().trueSize()), press("Reset", "Reset window and zoom (r)", () => activePane().reset(), "reset")),
    linked);
  byId("over").append(viewing, legend); // over the picture, which must not move when they come
  const redraw = () => {
    const pane = activePane(), shown = pane.window ?? pane.ownWindow;
    mapButton.setAttribute("aria-pressed", String(viewer.map));
    legend.hidden = !viewer.map;
    drag.setAttribute("aria-pressed", String(viewer.drag === "move"));
    for (const [input, key] of [[centre, "centre"], [width, "width"]]) {
      input.disabled = !pane.picture;
      if (input !== document.activeElement) input.value = shown ? Number(shown[key].toFixed(shown.width < 10 ? 3 : 0)) : "";
    }
    unit.textContent = pane.unit;
    viewing.hidden = pane.window === null;
    zoomed.textContent = pane.picture ? `${Math.round(100 * pane.scale)} %` : "";
    zoomed.title = pane.picture && pane.isSmoothed ? "Smoothed: screen and picture pixels do not match. 1 : 1 shows them as they are." : "";
    linked.hidden = viewer.panes.length < 2;
    linked.setAttribute("aria-pressed", String(viewer.linked));
  };
  watch("look", (pane) => { if (pane === activePane()) redraw(); });
  watch("shown", redraw);
}

function toggleLink() {
  viewer.linked = !viewer.linked;
  if (viewer.linked && viewer.panes.length > 1) {
    const pane = activePane();
    pane.setView(pane.view);
    pane.setWindow(pane.window);
    goTo(pane.k);
  }
  tell("shown");
}

function toggleCompare() {
  const on = viewer.panes.length < 2;
  if (on) {
    const all = items(), at = all.indexOf(activePane().item);
    compare(true, all[at + 1] ?? all[at - 1] ?? all[at]);
  } else compare(false);
  byId("compare").setAttribute("aria-pressed", String(on));
}

function step(by) {
  const all = items(), at = all.indexOf(activePane().item);
  if (all.length) open(all[clamp(at + by, 0, all.length - 1)]);
}

function redrawFrame() {
  const any = session.drops.length > 0;
  byId("empty").hidden = any;
  byId("tools").hidden = !any;
  byId("compare").disabled = !any;
}

// News

function buildNews() {
  const told = new Set();
  watch("records", (drop) => {
    for (const pane of viewer.panes) {
      if (pane.item?.drop !== drop || !pane.awaits || pane.record === null) continue;
      pane.show(pane.item, pane.k);
      if (pane === activePane()) tell("shown");
    }
  });
  watch("drop", (drop) => {
    for (const pane of viewer.panes) if (pane.item?.drop === drop && pane.item.problem && !pane.item.records.length) pane.say(pane.item.problem);
    if (isRunning(drop) || told.has(drop)) return;
    told.add(drop);
    say(drop.items.length === 1 ? inWords(drop.items[0]) : `${many(drop.items.length, "file")}: ${drop.state === "done" ? "scored" : drop.state}. ${
      many(drop.items.filter((item) => item.problem || item.records.every(({ record }) => record.status !== "scored")).length, "file")} without a score.`);
  });
}

function inWords(item) {
  const record = item.records[item.frame]?.record;
  if (!record) return `${item.name}: ${item.problem ?? "no answer"}`;
  if (record.status !== "scored") return `${item.name}: not scored. ${record.reasons.join(". ")}`;
  const value = record.score === null ? `value ${record.score_raw}` : `score ${record.score.toFixed(1)} of 100`;
  const around = record.interval ? `, interval ${record.interval.map((end) => end.toFixed(1)).join(" to ")}` : "";
  return `${item.name}: ${value}${around}.${record.verdict ? ` Verdict: ${record.verdict}.` : ""}${isUnlike(record) ? " The score is no ground for a verdict here." : ""}`;
}

// Keys

const window_ = (across, up) => {
  const pane = activePane(), own = pane.ownWindow;
  if (!pane.picture || !own) return;
  const { centre, width } = pane.window ?? own, by = own.width / WINDOW_STEPS;
  pane.setWindow({ centre: centre + up * by, width: Math.max(width + across * by, by / WINDOW_STEPS) });
};
const KEYS = [
  ["o, O", "choose files, a folder", { o: () => byId("files").click(), O: () => byId("folder").click() }],
  ["← →, Home, End", "frames of a cine, slices of a volume", {
    ArrowLeft: () => { stop(); goTo(activePane().k - 1); }, ArrowRight: () => { stop(); goTo(activePane().k + 1); },
    Home: () => { stop(); goTo(0); }, End: () => { stop(); goTo(Infinity); },
  }],
  ["Space", "play, stop", { " ": () => togglePlay() }],
  ["l", "the frame with the lowest score", { l: toLowest }],
  ["↑ ↓", "files of this session", { ArrowUp: () => step(-1), ArrowDown: () => step(1) }],
  ["m", "map on, off", { m: () => setMap(!viewer.map) }],
  ["[ ] , .", "window narrower, wider; lower, higher", { "[": () => window_(-1, 0), "]": () => window_(1, 0), ",": () => window_(0, -1), ".": () => window_(0, 1) }],
  ["+ − 1", "zoom in, out, true pixels", { "+": () => activePane().zoomBy(ZOOM), "=": () => activePane().zoomBy(ZOOM), "-": () => activePane().zoomBy(1 / ZOOM), 1: () => activePane().trueSize() }],
  ["Shift and arrows", "move the picture", {}],
  ["d", "dragging moves, or changes the window", { d: () => byId("drag").click() }],
  ["r", "reset window and zoom", { r: () => activePane().reset() }],
  ["c, k, Tab", "compare two; linked or not; the other one", { c: toggleCompare, k: () => byId("link").click() }],
  ["s, ?", "settings, this list", { s: () => byId("settings-open").click(), "?": () => byId("keys-open").click() }],
  ["Drag, wheel", "window; zoom", {}],
  ["Double click", "reset", {}],
];
const ACTS = Object.assign({}, ...KEYS.map(([, , acts]) => acts));
const SHIFTED = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]") || sessionStorage.getItem(LETTERS) === "off") return;
  const { target, key } = event;
  if (target.matches("input, select, textarea")) return;
  if (key === " " && target.matches("button, summary, a")) return;
  const moved = event.shiftKey && SHIFTED[key];
  if (moved) activePane().panBy(...moved);
  else if (ACTS[key] && (session.drops.length || "oOs?".includes(key))) ACTS[key]();
  else return;
  event.preventDefault();
}

function buildKeys() {
  byId("keys").querySelector("dl").append(...KEYS.flatMap(([keys, does]) => [H("dt", {}, keys), H("dd", {}, does)]));
  byId("keys-open").addEventListener("click", () => byId("keys").showModal());
  byId("letters").checked = sessionStorage.getItem(LETTERS) !== "off";
  byId("letters").addEventListener("change", (event) => sessionStorage.setItem(LETTERS, event.target.checked ? "on" : "off"));
  addEventListener("keydown", onKey);
}

// Together

viewer.panes.push(new Pane("A"));
byId("panes").append(viewer.panes[0].root);
byId("host").textContent = location.host;
buildTools();
buildTimeline();
buildPanel();
buildIntake();
buildSettings();
buildKeyDialog();
buildKeys();
buildNews();
watch("drops", redrawFrame);
byId("compare").addEventListener("click", toggleCompare);
byId("clear").addEventListener("click", () => {
  stop();
  if (viewer.panes.length > 1) toggleCompare();
  clear();
  forgetAll();
  open(null);
  byId("choose").focus();
  say("Nothing is kept.");
});
activate(viewer.panes[0]);
addEventListener("pagehide", () => { for (const { job } of session.drops) if (job !== null) forget(job); });
