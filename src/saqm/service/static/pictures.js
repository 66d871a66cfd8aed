// Pictures, values and maps of frames: fetched once, kept while there is room, turned into what a canvas draws.
import { clamp } from "./dom.js";
import { ask } from "./service.js";
import { hasPictures } from "./session.js";

const ROOM = 384 * 1024 * 1024; // bytes of pictures kept

// Score 0 to 100: the colours of saqm's heat maps (ColorBrewer's YlOrRd reversed); dark red is bad, pale yellow good.
export const RAMP = ["800026", "bd0026", "e31a1c", "fc4e2a", "fd8d3c", "feb24c", "fed976", "ffeda0", "ffffcc"];
const UNJUDGED = 0x8c000000; // black, 55 %: what was not judged is dimmed
const LEVELS = 65536; // of the values the service sends

const kept = new Map(); // "job/n/what" -> { promise, bytes }, least recently used first

function once(item, k, what, make) {
  if (!hasPictures(item)) return Promise.reject(new Error("Its job was cancelled: the service no longer has the picture."));
  const address = `v1/jobs/${item.drop.job}/images/${item.records[k].n}/${what}`;
  let entry = kept.get(address);
  if (entry) kept.delete(address);
  else {
    entry = { bytes: 0 };
    entry.promise = ask(address).then(make).then((made) => { entry.bytes = made.bytes; makeRoom(); return made; });
    entry.promise.catch(() => kept.delete(address));
  }
  kept.set(address, entry);
  return entry.promise;
}

function makeRoom() {
  let total = 0;
  for (const { bytes } of kept.values()) total += bytes;
  for (const [address, { bytes }] of kept) {
    if (total <= ROOM || kept.size <= 8) return;
    kept.delete(address);
    total -= bytes;
  }
}

export const forgetAll = () => kept.clear();

// The picture as the scorer saw it: { width, height, isColour, bitmap }.
export const pictureOf = (item, k) => once(item, k, "picture", async (answer) => {
  const blob = await answer.blob();
  const head = new DataView(await blob.slice(0, 26).arrayBuffer());
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const isColour = (head.getUint8(25) & 2) !== 0; // PNG's colour type: bit 1 says that colour is used
  return { width: bitmap.width, height: bitmap.height, isColour, bitmap, bytes: 4 * bitmap.width * bitmap.height };
});

// The values behind it, in units of the file: { width, height, values, low, high, centre, span, unit, isInverted }.
export const valuesOf = (item, k) => once(item, k, "values", async (answer) => {
  const head = (name) => answer.headers.get(`X-${name}`);
  const number = (name) => (head(name) === null ? null : Number(head(name)));
  const values = new Uint16Array(await answer.arrayBuffer()); // little-endian, as every machine with a browser is
  return {
    width: number("Columns"), height: number("Rows"), values, low: number("Low"), high: number("High"),
    centre: number("Center"), span: number("Width"), unit: head("Unit") ?? "", isInverted: head("Inverted") === "true", bytes: values.byteLength,
  };
});

// The quality map, NaN where nothing was judged: { width, height, scores }.
export const mapOf = (item, k) => once(item, k, "map", async (answer) => {
  const scores = new Float32Array(await answer.arrayBuffer());
  return { width: Number(answer.headers.get("X-Columns")), height: Number(answer.headers.get("X-Rows")), scores, bytes: 3 * scores.byteLength };
});

export const valueAt = (source, place) => source.low + ((source.high - source.low) * source.values[place]) / (LEVELS - 1);

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

// Values through a window, as grey levels of 8 bits; linear between its ends.
export function throughWindow(source, { centre, width }) {
  const canvas = canvasOf(source.width, source.height);
  const context = canvas.getContext("2d");
  const made = context.createImageData(source.width, source.height);
  const pixels = new Uint32Array(made.data.buffer);
  const table = new Uint32Array(LEVELS);
  const step = (source.high - source.low) / (LEVELS - 1);
  for (let v = 0; v < LEVELS; v += 1) {
    let level = clamp((source.low + step * v - centre) / width + 0.5, 0, 1);
    if (source.isInverted) level = 1 - level;
    table[v] = 0xff000000 + Math.round(255 * level) * 0x010101;
  }
  for (let place = 0; place < pixels.length; place += 1) pixels[place] = table[source.values[place]];
  context.putImageData(made, 0, 0);
  return canvas;
}

// A colour picture through a window of its own levels, 0 to 255: each channel alike.
export function brightened(picture, { centre, width }) {
  const canvas = canvasOf(picture.width, picture.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture.bitmap, 0, 0);
  const made = context.getImageData(0, 0, picture.width, picture.height);
  const table = Uint8ClampedArray.from({ length: 256 }, (_, level) => 255 * ((level - centre) / width + 0.5));
  for (let place = 0; place < made.data.length; place += 1) if (place % 4 !== 3) made.data[place] = table[made.data[place]];
  context.putImageData(made, 0, 0);
  return canvas;
}

// The map's colours. Scores beyond 0 and 100 have the colour of the end.
export function coloured(map) {
  const canvas = canvasOf(map.width, map.height);
  const context = canvas.getContext("2d");
  const made = context.createImageData(map.width, map.height);
  const pixels = new Uint32Array(made.data.buffer);
  for (let place = 0; place < pixels.length; place += 1) {
    const score = map.scores[place];
    pixels[place] = Number.isNaN(score) ? UNJUDGED : PACKED[Math.round(10 * clamp(score, 0, 100))];
  }
  context.putImageData(made, 0, 0);
  return canvas;
}

// The scale of the map's colours, 0 on the left.
export function drawRamp(canvas) {
  const scores = Float32Array.from({ length: canvas.width }, (_, place) => (100 * place) / (canvas.width - 1));
  const context = canvas.getContext("2d");
  context.drawImage(coloured({ width: canvas.width, height: 1, scores }), 0, 0, canvas.width, canvas.height);
}

const channels = RAMP.map((code) => [0, 2, 4].map((at) => parseInt(code.slice(at, at + 2), 16)));
const PACKED = Uint32Array.from({ length: 1001 }, (_, tenth) => { // the colour of each tenth of a point, as a canvas has it
  const at = (tenth / 1000) * (RAMP.length - 1);
  const below = Math.min(Math.floor(at), RAMP.length - 2);
  const [red, green, blue] = channels[below].map((value, channel) => Math.round(value + (at - below) * (channels[below + 1][channel] - value)));
  return 0xff000000 + 0x10000 * blue + 0x100 * green + red;
});
