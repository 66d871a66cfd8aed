// What was dropped since the page was opened, and what became of it. Nothing of it outlives the tab.
import { pause, tell } from "./dom.js";
import { ask, forget, startJob } from "./service.js";

const FIRST_LOOK = 250, LONGEST = 2000; // milliseconds between two looks at a job
const AROUND = 1024; // bytes that a form puts around a file
const SILENCES = 5; // looks without an answer after which the service counts as gone

// A drop is what came together: a job of the service. An item is a file of it, with a record for each frame.
export const session = { drops: [], limits: { max_body_bytes: Infinity, max_files: Infinity } };
export const items = () => session.drops.flatMap((drop) => drop.items);
export const isRunning = (drop) => ["waiting", "sending", "queued", "running"].includes(drop.state);
export const hasPictures = (item) => item.drop.job !== null && item.drop.state !== "cancelled";

let sending = Promise.resolve(); // one upload after the other

// Files as { file, name }; they are sent in as few jobs as the service's limits allow.
export function add(files, query) {
  const { max_body_bytes: room, max_files: count } = session.limits;
  let drop = null, bytes = 0;
  const made = [];
  for (const { file, name } of files) {
    const size = file.size + AROUND, tooLarge = size > room;
    if (drop === null || drop.items.length >= count || (!tooLarge && bytes + size > room)) {
      drop = { items: [], job: null, state: "waiting", sent: 0, done: 0, taken: 0, busy: null, problem: null, query, at: new Date(), controller: new AbortController() };
      made.push(drop);
      bytes = 0;
    }
    drop.items.push({
      drop, file, name, records: [], frame: 0,
      problem: tooLarge ? `larger than this service takes (${megabytes(file.size)} of ${megabytes(room)})` : null,
    });
    if (!tooLarge) bytes += size;
  }
  session.drops.unshift(...made);
  tell("drops");
  for (const each of made) sending = sending.then(() => run(each));
  return made.flatMap((each) => each.items);
}

const megabytes = (bytes) => `${Math.ceil(bytes / 1e5) / 10} MB`;

function change(drop, what) {
  Object.assign(drop, what);
  tell("drop", drop);
}

async function run(drop) {
  const sendable = drop.items.filter((item) => item.problem === null);
  const { signal } = drop.controller;
  if (signal.aborted) return;
  if (!sendable.length) return change(drop, { state: "failed" });
  change(drop, { state: "sending" });
  try {
    const job = await startJob(sendable, drop.query, {
      signal,
      onSent: (sent) => change(drop, { sent, busy: null }),
      onBusy: (seconds, why) => change(drop, { sent: 0, busy: `${why} Trying again in ${Math.ceil(seconds)} s.` }),
    });
    if (signal.aborted) return void forget(job.id);
    change(drop, { job: job.id, state: "queued", busy: null });
    follow(drop, sendable).catch((error) => fail(drop, error));
  } catch (error) {
    fail(drop, error);
  }
}

function fail(drop, error) {
  if (drop.controller.signal.aborted) return;
  for (const item of drop.items) if (!item.records.length) item.problem ??= error.message;
  change(drop, { state: "failed", busy: null, problem: error.message });
}

async function follow(drop, sent) {
  const { signal } = drop.controller;
  for (let delay = FIRST_LOOK, silences = 0; ; delay = Math.min(1.3 * delay, LONGEST)) {
    try {
      const job = await (await ask(`v1/jobs/${drop.job}`, { signal })).json();
      await take(drop, job, sent);
      silences = 0;
      if (["done", "cancelled", "failed"].includes(job.state)) {
        const why = job.state === "done" ? "the service gave no answer for this file" : job.detail ?? `the job was ${job.state}`;
        for (const item of sent) if (!item.records.length) item.problem ??= why;
        return change(drop, { state: job.state, done: job.files_done });
      }
      change(drop, { state: job.state, done: job.files_done });
    } catch (error) {
      if (signal.aborted) return undefined;
      silences += 1;
      if (error.status !== 0 || silences >= SILENCES) throw error;
    }
    await pause(delay, signal);
  }
}

// Each record says which of the files sent it is of.
async function take(drop, job, sent) {
  while (drop.taken < job.images) {
    const { records } = await (await ask(`v1/jobs/${drop.job}/records?after=${drop.taken}`, { signal: drop.controller.signal })).json();
    if (!records.length) return;
    for (const record of records) {
      sent[record.file].records.push({ n: drop.taken, record });
      drop.taken += 1;
    }
    tell("records", drop);
  }
}

export function cancel(drop) {
  drop.controller.abort(new Error("cancelled"));
  if (drop.job !== null) forget(drop.job);
  for (const item of drop.items) if (!item.records.length) item.problem ??= "cancelled";
  change(drop, { state: "cancelled", busy: null });
}

export function clear() {
  for (const drop of session.drops) {
    drop.controller.abort(new Error("cancelled"));
    if (drop.job !== null) forget(drop.job);
  }
  session.drops = [];
  tell("drops");
}

// Files out of what was dropped, chosen or pasted

const cleaned = (text) => text.replaceAll(/[\u0000-\u001f\u007f/\\]/g, "_");

// Every file of a drop gets a name of its own: where two have the same, the folder is part of it.
export function named(found) {
  const taken = new Set();
  return found.map(({ file, path }) => {
    const short = cleaned(file.name), long = cleaned(path);
    let name = taken.has(short) ? long : short;
    for (let k = 2; taken.has(name); k += 1) name = `${k}_${long}`;
    taken.add(name);
    return { file, name };
  });
}

// Files of a drop, folders opened, in natural order. Hidden ones (".DS_Store") are counted, not taken.
export async function filesOf(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = [];
  for (const entry of entries) if (entry !== null) await collect(entry, found);
  return inOrder(found);
}

export function inOrder(found) {
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const seen = found.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  return { found: seen.sort((a, b) => compare(a.path, b.path)), hidden: found.length - seen.length };
}

async function collect(entry, found) {
  if (entry instanceof File) return void found.push({ file: entry, path: entry.name });
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return void found.push({ file, path: entry.fullPath.slice(1) });
  }
  const reader = entry.createReader();
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return undefined;
    for (const each of some) await collect(each, found);
  }
}
