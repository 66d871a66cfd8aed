// Talks to the service behind the page, and to nobody else. Keys, patience and problems are dealt with here.
import { pause } from "./dom.js";

const KEY = "saqm.key"; // of sessionStorage: gone with the tab
const IMPATIENT = 5; // seconds to wait where the service names none

// What the service refuses, in its own words (RFC 9457).
export class Problem extends Error {
  constructor(message, status, body = {}) {
    super(message);
    Object.assign(this, { status, body });
  }
}

let askForKey = async () => null;
let asking = null; // one dialog for all that wait for a key
export const onKeyWanted = (ask) => { askForKey = ask; };

async function newKey(refused) {
  if (refused !== sessionStorage.getItem(KEY)) return; // another request got a new one meanwhile
  asking ??= askForKey(refused !== null).finally(() => { asking = null; });
  const given = await asking;
  if (given === null) throw new Problem("A key is needed, and none was given.", 401);
  sessionStorage.setItem(KEY, given);
}

async function problemOf(answer) {
  let body = {};
  if (/json/.test(answer.headers.get("Content-Type") ?? "")) body = await answer.json().catch(() => ({}));
  const said = [body.title, body.detail].filter((text) => typeof text === "string" && text).join(": ");
  return new Problem(said || `The service answered ${answer.status}.`, answer.status, body);
}

function secondsToWait(answer) {
  const said = answer.headers.get("Retry-After");
  if (said === null) return IMPATIENT;
  const seconds = /^\d+$/.test(said) ? Number(said) : (Date.parse(said) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 1) : IMPATIENT;
}

// Ask until there is an answer: with another key where one is refused, later where the service is busy.
async function patiently(attempt, { signal, onBusy } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await attempt(key === null ? {} : { Authorization: `Bearer ${key}` });
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw new Problem("The service does not answer. It may have been stopped, or the network is down.", 0);
    }
    if (answer.ok) return answer;
    if (answer.status === 401) await newKey(key);
    else if (answer.status === 429 || (answer.status === 503 && answer.headers.has("Retry-After"))) {
      const seconds = secondsToWait(answer);
      onBusy?.(seconds, (await problemOf(answer)).message);
      await pause(1000 * seconds, signal);
    } else throw await problemOf(answer);
  }
}

export const ask = (path, { method = "GET", signal, keepalive, onBusy } = {}) =>
  patiently((headers) => fetch(path, { method, headers, signal, keepalive, cache: "no-store" }), { signal, onBusy });

// Without patience: the page is being left.
export function forget(job) {
  const key = sessionStorage.getItem(KEY);
  return fetch(`v1/jobs/${job}`, { method: "DELETE", keepalive: true, headers: key === null ? {} : { Authorization: `Bearer ${key}` } }).catch(() => {});
}

// fetch cannot tell how much of a body has left.
function upload(path, form, headers, { signal, onSent }) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    const stop = () => request.abort();
    request.open("POST", path);
    request.responseType = "blob";
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onSent?.(total ? loaded / total : 0);
    request.onload = () => done(new Response(request.response, {
      status: request.status,
      headers: Object.fromEntries(["Content-Type", "Retry-After"].map((name) => [name, request.getResponseHeader(name)]).filter(([, value]) => value !== null)),
    }));
    request.onerror = () => failed(new Error("network"));
    request.onabort = () => failed(new Error("aborted"));
    request.onloadend = () => signal?.removeEventListener("abort", stop);
    signal?.addEventListener("abort", stop, { once: true });
    request.send(form);
  });
}

export async function startJob(files, query, { signal, onSent, onBusy }) {
  const form = new FormData();
  for (const { file, name } of files) form.append("file", file, name);
  const answer = await patiently((headers) => upload(`v1/jobs?${new URLSearchParams(query)}`, form, headers, { signal, onSent }), { signal, onBusy });
  return answer.json();
}

export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  Object.assign(link, { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
