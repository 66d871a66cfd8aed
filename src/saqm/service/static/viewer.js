// The picture: one pane, or two side by side. Window by dragging, zoom by the wheel; what is linked moves together.
import { brief, byId, clamp, H, pause, tell } from "./dom.js";
import { brightened, coloured, mapOf, pictureOf, throughWindow, valueAt, valuesOf } from "./pictures.js";
import { hasPictures } from "./session.js";

const MOST_ZOOM = 40, LEAST_ZOOM = 0.2; // beside the whole picture
const WHOLE = 0.85; // of the room that a whole factor must fill to be preferred: nothing is smoothed then
const PLAIN = 4; // screen pixels for each of the picture from which pixels are shown as squares
const LATE = 200; // milliseconds after which the picture of another frame is taken away
const SWEEP = 400; // pixels of dragging for the whole default width
const LEVELS = { centre: 127.5, width: 255 }; // of a colour picture

export const viewer = { panes: [], active: 0, linked: true, map: false, opacity: 0.55, drag: "window" };
export const activePane = () => viewer.panes[viewer.active];
const partners = (pane) => (viewer.linked ? viewer.panes.filter((other) => other !== pane && other.item) : []);

export const frameName = (item, k) => (item.records.length > 1 ? `frame ${k + 1} of ${item.records.length}` : "");
export const isUnlike = (record) => Boolean(record.out_of_domain?.flag) || record.warnings.some((text) => text.startsWith("outside the model's domain"));

const drawn = (map) => ({ ...map, drawn: coloured(map) });

export class Pane {
  constructor(letter) {
    Object.assign(this, { letter, item: null, k: 0, ticket: 0, awaits: false, view: { zoom: 1, x: 0.5, y: 0.5 }, window: null, picture: null, values: null, map: null, base: null, pointers: new Map() });
    this.caption = H("p", { class: "caption" });
    this.canvas = H("canvas", { role: "img", "aria-label": "No picture" });
    this.note = H("p", { class: "note", hidden: true });
    this.readout = H("p", { class: "readout", "aria-hidden": "true" });
    this.stage = H("div", { class: "stage" }, this.canvas, this.note, this.readout);
    this.root = H("section", { class: "pane", tabindex: 0, "aria-label": `Picture ${letter}`, onfocus: () => activate(this) }, this.caption, this.stage);
    new ResizeObserver(() => this.draw()).observe(this.stage);
    this.listen();
  }

  get record() { return this.item?.records[this.k]?.record ?? null; }

  // Show a frame. Returns when it is on the screen.
  async show(item, k) {
    this.ticket += 1;
    const ticket = this.ticket;
    if (item !== this.item && !this.goesOn(item)) Object.assign(this, { window: null, view: { zoom: 1, x: 0.5, y: 0.5 } });
    if (item !== this.item) this.blank();
    Object.assign(this, { item, k });
    this.awaits = item !== null && this.record === null;
    this.readout.textContent = "";
    if (item) item.frame = k;
    this.describe();
    this.root.setAttribute("aria-busy", "true");
    // A picture never stands for long under the score of another frame.
    const late = setTimeout(() => { if (ticket === this.ticket) this.blank("Reading …"); }, LATE);
    try {
      const made = await this.fetch();
      if (ticket !== this.ticket) return;
      Object.assign(this, made);
      this.say("");
      this.paint();
    } catch (error) {
      if (ticket !== this.ticket) return;
      this.blank(error.message);
    } finally {
      clearTimeout(late);
    }
    tell("look", this);
    await this.fetchMap(ticket);
    if (ticket === this.ticket) this.root.setAttribute("aria-busy", "false");
  }

  blank(text = "") {
    Object.assign(this, { picture: null, values: null, map: null, base: null });
    this.say(text);
    this.draw();
  }

  // A slice of the series that was shown keeps how it was looked at.
  goesOn(item) {
    const [before, after] = [this.record?.uids?.series, item?.records[0]?.record.uids?.series];
    return before !== undefined && before === after;
  }

  async fetch() {
    const { item, k, record } = this;
    if (record === null) throw new Error(item ? item.problem ?? "Waiting for its turn" : "Choose a second picture from the list");
    if (record.sha256 === null) throw new Error("The service could not read it: there is no picture.");
    const map = this.wantsMap ? mapOf(item, k).then(drawn).catch(() => null) : null;
    const picture = await pictureOf(item, k);
    const values = this.window && !picture.isColour ? await valuesOf(item, k) : null;
    return { picture, values, map: await Promise.race([map, pause(LATE / 2).then(() => null)]) };
  }

  get wantsMap() { return viewer.map && Boolean(this.item) && this.record !== null && this.record.score !== null; }

  // A map that takes its time comes after the picture.
  async fetchMap(ticket) {
    if (!this.wantsMap || !this.picture || this.map) return;
    const { item, k } = this;
    try {
      const map = drawn(await mapOf(item, k));
      if (ticket === this.ticket) this.map = map;
    } catch (error) {
      if (ticket === this.ticket) this.readout.textContent = `No map: ${error.message}`;
    }
    this.draw();
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = text === "";
  }

  describe() {
    const { item, k, record } = this;
    const score = record === null || record.score === null ? "" : `score ${record.score.toFixed(1)}`;
    const around = record?.interval ? ` (${record.interval.map((end) => end.toFixed(0)).join(" to ")})` : "";
    const parts = item ? [["title", item.name], ["frame", frameName(item, k)],
      ["score", record?.status === "not_scored" ? "not scored" : score + around], ["doubt", score && isUnlike(record) ? "no ground for a verdict" : ""]].filter(([, text]) => text) : [];
    this.caption.replaceChildren(viewer.panes.length > 1 ? H("b", {}, this.letter) : "", ...parts.map(([kind, text]) => H("span", { class: kind }, text)));
    this.canvas.setAttribute("aria-label", parts.map(([, text]) => text).join(", ") || "No picture");
  }

  // The window that the score was made in; null where it is not known yet.
  get ownWindow() {
    if (this.picture?.isColour) return LEVELS;
    const told = this.record?.preparation?.window;
    if (told && told.center !== undefined && told.width !== undefined) return { centre: told.center, width: told.width };
    return this.values && this.values.centre !== null ? { centre: this.values.centre, width: this.values.span } : null;
  }

  get unit() { return this.picture?.isColour ? "levels" : this.values?.unit ?? ""; }

  async setWindow(window, { spread = true } = {}) {
    this.window = window;
    if (window !== null && this.picture && !this.picture.isColour && !this.values) {
      const { item, k } = this;
      try {
        const values = await valuesOf(item, k);
        if (item !== this.item || k !== this.k) return;
        this.values = values;
      } catch (error) {
        this.window = null;
        this.say(error.message);
      }
    }
    this.paint();
    tell("look", this);
    if (spread) for (const other of partners(this)) if (other.picture?.isColour === this.picture?.isColour) other.setWindow(window, { spread: false });
  }

  setView(view, { spread = true } = {}) {
    this.view = { zoom: clamp(view.zoom, LEAST_ZOOM, MOST_ZOOM), x: clamp(view.x, 0, 1), y: clamp(view.y, 0, 1) };
    this.draw();
    tell("look", this);
    if (spread) for (const other of partners(this)) other.setView(this.view, { spread: false });
  }

  reset() {
    this.setWindow(null);
    this.setView({ zoom: 1, x: 0.5, y: 0.5 });
  }

  // Screen pixels (of the device) for each pixel of the picture.
  get scale() {
    const room = Math.min(this.canvas.width / this.picture.width, this.canvas.height / this.picture.height);
    const whole = Math.floor(room);
    return (whole >= 1 && whole >= WHOLE * room ? whole : room) * this.view.zoom;
  }

  get isSmoothed() {
    const { scale } = this;
    return scale < PLAIN && Math.abs(scale - Math.round(scale)) > 1e-6;
  }

  // Where a point of the stage (CSS pixels) lies in the picture, in its pixels.
  place(x, y) {
    const { scale } = this, dots = devicePixelRatio;
    return [
      (x * dots - this.canvas.width / 2) / scale + this.view.x * this.picture.width,
      (y * dots - this.canvas.height / 2) / scale + this.view.y * this.picture.height,
    ];
  }

  // Zoom so that the point under (x, y) of the stage stays where it is.
  zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.picture) return;
    const before = this.place(x, y);
    const zoom = clamp(this.view.zoom * factor, LEAST_ZOOM, MOST_ZOOM);
    this.view = { ...this.view, zoom };
    const after = this.place(x, y);
    this.setView({ zoom, x: this.view.x + (before[0] - after[0]) / this.picture.width, y: this.view.y + (before[1] - after[1]) / this.picture.height });
  }

  panBy(right, down) {
    if (!this.picture) return;
    const step = devicePixelRatio / this.scale;
    this.setView({ ...this.view, x: this.view.x - (right * step) / this.picture.width, y: this.view.y - (down * step) / this.picture.height });
  }

  trueSize() {
    if (this.picture) this.setView({ ...this.view, zoom: this.view.zoom / this.scale });
  }

  paint() {
    if (!this.picture) return;
    if (this.window === null) this.base = this.picture.bitmap;
    else if (this.picture.isColour) this.base = brightened(this.picture, this.window);
    else if (this.values) this.base = throughWindow(this.values, this.window);
    this.draw();
  }

  draw() {
    const { canvas, stage, view } = this, dots = devicePixelRatio;
    const [width, height] = [Math.round(stage.clientWidth * dots), Math.round(stage.clientHeight * dots)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!this.picture || !this.base) return;
    const { scale } = this;
    const box = [
      Math.round(width / 2 - view.x * this.picture.width * scale), Math.round(height / 2 - view.y * this.picture.height * scale),
      this.picture.width * scale, this.picture.height * scale,
    ];
    context.imageSmoothingEnabled = this.isSmoothed;
    context.imageSmoothingQuality = "high";
    context.globalAlpha = 1;
    context.drawImage(this.base, ...box);
    if (viewer.map && this.map) {
      context.globalAlpha = viewer.opacity;
      context.drawImage(this.map.drawn, ...box);
    }
  }

  read(x, y) {
    if (!this.picture) return "";
    const [column, row] = this.place(x, y).map(Math.floor);
    if (column < 0 || row < 0 || column >= this.picture.width || row >= this.picture.height) return "";
    const parts = [`column ${column}, row ${row}`];
    if (this.values) parts.push(`${brief(valueAt(this.values, row * this.values.width + column), 4)} ${this.values.unit}`.trim());
    if (viewer.map && this.map) {
      const score = this.map.scores[row * this.map.width + column];
      parts.push(Number.isNaN(score) ? "not judged" : `map ${score.toFixed(0)}`);
    }
    return parts.join(" · ");
  }

  // Pointers: one drags, two zoom and move.
  listen() {
    const { stage } = this;
    let began = null; // of a drag: { x, y, mode, window }
    const at = (event) => {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    stage.addEventListener("pointerdown", (event) => {
      if (!this.picture) return;
      activate(this);
      stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
      const moves = event.shiftKey || event.button === 1 || viewer.drag === "move";
      began = this.pointers.size > 1 ? null : { at: at(event), mode: moves ? "move" : "window", window: this.window ?? this.ownWindow };
      if (event.button === 1) event.preventDefault(); // no scrolling by the middle button
    });
    stage.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      this.readout.textContent = this.read(x, y);
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      if (this.pointers.size === 2) this.pinch(event.pointerId, before, [x, y]);
      else if (began?.mode === "move") this.panBy(x - before[0], y - before[1]);
      else if (began) this.dragWindow(began, x, y);
      this.pointers.set(event.pointerId, [x, y]);
    });
    const end = (event) => { this.pointers.delete(event.pointerId); if (!this.pointers.size) began = null; };
    stage.addEventListener("pointerup", end);
    stage.addEventListener("pointercancel", end);
    stage.addEventListener("pointerleave", () => { this.readout.textContent = ""; });
    stage.addEventListener("dblclick", () => this.reset());
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-clamp(event.deltaY, -100, 100) / 400), ...at(event));
    }, { passive: false });
  }

  pinch(id, before, after) {
    const [other] = [...this.pointers].filter(([each]) => each !== id).map(([, point]) => point);
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    if (apart(before) > 0) this.zoomBy(apart(after) / apart(before), (after[0] + other[0]) / 2, (after[1] + other[1]) / 2);
    this.panBy((after[0] - before[0]) / 2, (after[1] - before[1]) / 2);
  }

  // Across: the width; up and down: the centre, as on other viewers. The values come with the first move.
  async dragWindow(began, x, y) {
    if (Math.hypot(x - began.at[0], y - began.at[1]) < 2 && this.window === null) return;
    if (began.window === null) {
      if (began.reading) return;
      began.reading = true;
      this.values ??= await valuesOf(this.item, this.k).catch((error) => { this.say(error.message); return null; });
      began.window = this.ownWindow;
      if (began.window === null) return;
    }
    const { centre, width } = began.window;
    const whole = (this.ownWindow ?? began.window).width;
    const step = whole / SWEEP;
    this.setWindow({ centre: centre + (y - began.at[1]) * step, width: Math.max(width + (x - began.at[0]) * step, whole / 255) });
  }
}

// What is looked at

export function activate(pane) {
  const place = viewer.panes.indexOf(pane);
  if (place < 0) return;
  const changed = viewer.active !== place;
  viewer.active = place;
  viewer.panes.forEach((each, k) => each.root.classList.toggle("active", k === place && viewer.panes.length > 1));
  if (changed) tell("shown");
}

export async function open(item, k = item?.frame ?? 0) {
  const done = activePane().show(item, clamp(k, 0, Math.max((item?.records.length ?? 1) - 1, 0)));
  tell("shown");
  await done;
}

// Frame k of the active pane; what is linked goes along as far as it has frames.
export async function goTo(k) {
  const pane = activePane();
  if (!pane.item?.records.length) return;
  const wanted = clamp(k, 0, pane.item.records.length - 1);
  const along = partners(pane).filter((other) => other.item.records.length > 1);
  const done = [pane.show(pane.item, wanted), ...along.map((other) => other.show(other.item, Math.min(wanted, other.item.records.length - 1)))];
  tell("frame");
  await Promise.all(done);
}

export function fetchAhead(pane, k) {
  if (pane.item && hasPictures(pane.item) && pane.item.records[k]?.record.sha256) pictureOf(pane.item, k).catch(() => {});
}

export function setMap(on) {
  viewer.map = on;
  for (const pane of viewer.panes) {
    if (on && pane.wantsMap && !pane.map) pane.show(pane.item, pane.k);
    else pane.draw();
  }
  tell("look", activePane());
}

export function setOpacity(opacity) {
  viewer.opacity = opacity;
  viewer.panes.forEach((pane) => pane.draw());
}

// One pane, or two; the second begins with the item given.
export function compare(on, item) {
  if (on) {
    viewer.panes.push(new Pane("B"));
    byId("panes").append(viewer.panes[1].root);
    viewer.panes[0].describe();
    if (byId("panes").contains(document.activeElement)) viewer.panes[1].root.focus({ focusVisible: false });
    activate(viewer.panes[1]);
    open(item);
  } else {
    const hadFocus = byId("panes").contains(document.activeElement);
    viewer.panes.splice(1).forEach((pane) => pane.root.remove());
    if (hadFocus) viewer.panes[0].root.focus({ focusVisible: false });
    activate(viewer.panes[0]);
    viewer.panes[0].describe();
    tell("shown");
  }
}
