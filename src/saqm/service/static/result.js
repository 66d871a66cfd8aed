// The panel: what the score is, how sure, whether it counts at all, why it is low, and what came before in this session.
import { CAUSES } from "./causes.js";
import { brief, byId, H, many, S, tell, watch } from "./dom.js";
import { ask, save } from "./service.js";
import { cancel, hasPictures, isRunning, items, session } from "./session.js";
import { activePane, frameName, isUnlike, open } from "./viewer.js";

const VERDICTS = { pass: "✓ pass", review: "? review", fail: "✕ fail" };

const label = (name) => name.replaceAll("_", " ");
const without = (text, name) => (text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text);
const tag = (kind, text) => H("span", { class: `tag ${kind}` }, text);
const verdict = (name) => (name ? tag(name, VERDICTS[name] ?? name) : null);

export function buildPanel() {
  watch("shown", drawResult);
  watch("frame", drawResult);
  watch("drops", drawDrops);
  watch("drop", (drop) => { drawDrop(drop); if (activePane().item?.drop === drop) drawResult(); });
  watch("records", drawDrop);
  watch("shown", markShown);
}

// One frame

function drawResult() {
  const { item, record, k } = activePane();
  const place = byId("result");
  const opened = new Set([...place.querySelectorAll("details[open]")].map((each) => each.className));
  place.hidden = !item;
  if (!item) return;
  const head = [H("h2", { class: "name" }, item.name), H("p", { class: "quiet" }, [frameName(item, k), record?.modality].filter(Boolean).join(" · "))];
  place.replaceChildren(...head, ...(record ? whole(item, record) : [H("p", { class: item.problem ? "wrong" : "quiet" }, item.problem ?? "Waiting for its turn.")]));
  for (const each of place.querySelectorAll("details")) each.open = opened.has(each.className);
}

const whole = (item, record) => [
  record.status === "scored" ? score(record) : notScored(item, record),
  record.status === "scored" ? domain(record) : null,
  record.status === "scored" && record.reasons.length ? list(record.verdict ? "Why this verdict" : "Notes", record.reasons, item.name) : null,
  causes(record),
  folded("warnings", `${many(record.warnings.length, "warning")}`, record.warnings.length ? H("ul", {}, record.warnings.map((text) => H("li", {}, without(text, item.name)))) : null),
  folded("made", "How it was made", made(record)),
  saving(item),
].filter(Boolean);

function score(record) {
  const isScore = record.score !== null;
  const value = isScore ? record.score.toFixed(1) : brief(record.score_raw, 4);
  const of = isScore ? " of 100" : ` ${record.model.name}, ${record.model.direction ?? "no direction told"}`;
  const around = record.interval === null ? null : H("p", { class: "interval" },
    `Interval ${record.interval.map((end) => end.toFixed(1)).join(" – ")}`,
    record.coverage === null ? "; its coverage is not guaranteed for this image." : `: holds for ${Math.round(100 * record.coverage)} % of images like those the model was calibrated on.`);
  return H("section", { class: isUnlike(record) ? "score unsure" : "score" },
    H("p", { class: "big" }, value, H("small", {}, of), " ", verdict(record.verdict)), isScore ? gauge(record, 320, 26) : null, around);
}

function notScored(item, record) {
  return H("section", { class: "score" }, H("p", { class: "big" }, "not scored ", verdict(record.verdict)), list("Why", record.reasons, item.name));
}

function domain(record) {
  if (!isUnlike(record)) return null;
  const { flag, p } = record.out_of_domain ?? {};
  const often = flag && typeof p === "number" ? ` Of the images that it knows, at most ${p < 0.001 ? "0.1" : brief(100 * p, 2)} % look this strange.` : "";
  const other = record.warnings.find((text) => text.startsWith("outside the model's domain"));
  return H("section", { class: "alarm" }, H("h3", {}, "The score is no ground for a verdict here"),
    H("p", {}, flag ? `This image is unlike those that the model knows.${often}` : "This kind of image is not what the model was trained on.", flag && other ? ` It is also ${other}.` : !flag && other ? ` It is ${other}.` : ""));
}

// A value on 0 to 100 with its interval.
function gauge(record, width, height) {
  const x = (value) => 1 + (value / 100) * (width - 2);
  const [low, high] = record.interval ?? [null, null];
  return S("svg", { class: "gauge", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${record.score.toFixed(1)} on a scale of 0 to 100${low === null ? "" : `, interval ${low.toFixed(1)} to ${high.toFixed(1)}`}` },
    S("rect", { class: "track", x: 0, y: 6, width, height: 8, rx: 4 }),
    low === null ? null : S("rect", { class: "around", x: x(low), y: 6, width: Math.max(x(high) - x(low), 2), height: 8, rx: 4 }),
    S("rect", { class: "here", x: x(record.score) - 1.5, y: 0, width: 3, height: 20, rx: 1 }),
    [[0, "start"], [50, "middle"], [100, "end"]].map(([value, anchor]) => S("text", { x: x(value), y: height, "text-anchor": anchor, class: "tick" }, value)));
}

function causes(record) {
  if (record.status !== "scored") return null;
  if (!record.findings.length) return H("section", {}, H("h3", {}, "Findings"), H("p", { class: "quiet" }, "Nothing stands out. That is no proof of quality."));
  return H("section", {}, H("h3", {}, "Findings"), H("ul", { class: "causes" }, record.findings.map((finding) => {
    const known = CAUSES[finding.name];
    const unit = finding.unit && finding.unit !== "ratio" ? ` ${finding.unit}` : "";
    return H("li", {}, H("b", {}, label(finding.name).replaceAll("-", " ")),
      H("p", {}, `${known ? known.measured : "measured"}: ${brief(finding.value)}${unit}, ${finding.direction} the limit of ${brief(finding.threshold)}.`),
      known ? H("p", { class: "quiet" }, known.advice) : null,
      finding.code ? H("p", { class: "quiet code" }, `DICOM: ${finding.code.meaning} (${finding.code.value}, ${finding.code.scheme})`) : null);
  })));
}

function list(title, lines, name) {
  return lines.length ? H("section", {}, H("h3", {}, title), H("ul", {}, lines.map((line) => H("li", {}, without(line, name))))) : null;
}

const folded = (kind, title, content) => (content ? H("details", { class: kind }, H("summary", {}, title), content) : null);

function words(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return brief(value, 6);
  if (Array.isArray(value)) return value.map(words).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, part]) => `${label(key)} ${words(part)}`).join(", ");
  return String(value);
}

function made(record) {
  const entries = [
    ["model", record.model && [record.model.name, record.model.version].join(" ")], ["run by", record.model?.engine], ["model SHA-256", record.model?.sha256],
    ["windows", record.patches && `${record.patches.used} judged, ${record.patches.masked} left out`],
    ...(record.preparation?.steps ?? []).map(({ step, ...details }) => [label(step), words(details)]),
    ["file SHA-256", record.sha256], ["software", record.software], ["scored at", record.created],
  ].filter(([, value]) => value);
  return H("dl", { class: "identity" }, entries.map(([name, value]) => [H("dt", {}, name), H("dd", {}, value)]));
}

const recordsOf = (drop) => drop.items.flatMap(({ records }) => records).sort((a, b) => a.n - b.n).map(({ record }) => record);

function saving(item) {
  const { drop } = item;
  const stem = drop.items.length === 1 ? item.name.replace(/\.[^.]+$/, "") : `${drop.items.length}_files`;
  const address = `v1/jobs/${drop.job}`;
  const isDicom = drop.items.some(({ records }) => records.some(({ record }) => record.uids?.instance));
  const button = (text, what, ready) => {
    const made_ = H("button", { type: "button", disabled: !ready, onclick: async () => {
      made_.disabled = true;
      try { await what(); } catch (error) { tell("problem", `${text}: ${error.message}`); }
      made_.disabled = false;
    } }, text);
    return made_;
  };
  const ready = hasPictures(item) && !isRunning(drop);
  return H("section", { class: "saving" }, H("h3", {}, drop.items.length === 1 ? "Save" : `Save all ${drop.items.length} files of this drop`),
    H("p", { class: "buttons" },
      button("JSON", () => save(new Blob([JSON.stringify({ records: recordsOf(drop) }, null, 2)], { type: "application/json" }), `${stem}.saqm.json`), !isRunning(drop)),
      button("TSV", async () => save(await (await ask(`${address}/records?format=tsv`)).blob(), `${stem}.saqm.tsv`), ready),
      button("DICOM SR", async () => {
        const report = await (await ask(`${address}/report`)).blob();
        save(report, `${stem}.sr${report.type.includes("zip") ? ".zip" : ".dcm"}`);
      }, ready && isDicom)),
    isDicom || !ready ? null : H("p", { class: "quiet" }, "No structured report: none of it is DICOM."));
}

// The session

function drawDrops() {
  byId("session").hidden = session.drops.length === 0;
  byId("drops").replaceChildren(...session.drops.map((drop) => {
    drop.place ??= H("section", { class: "drop" });
    drop.rows ??= new Map();
    return drop.place;
  }));
  session.drops.forEach(drawDrop);
}

function drawDrop(drop) {
  if (!drop.place) return;
  if (!drop.head) {
    drop.said = H("span", { class: "quiet" });
    drop.bar = H("progress", { max: 1, "aria-label": "Progress" });
    drop.stop = H("button", { type: "button", onclick: () => { cancel(drop); byId("session-title").focus(); } }, "Cancel");
    drop.head = H("div", { class: "bar" }, drop.said, drop.stop);
    drop.list = H("ul", { class: "files" });
  }
  if (!drop.head.isConnected) drop.place.append(drop.head, drop.bar, drop.list);
  const at = drop.at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const said = {
    waiting: "waiting", queued: "waiting for the service", sending: drop.busy ?? `sending, ${Math.round(100 * drop.sent)} %`,
    running: `scoring, ${drop.done} of ${drop.items.length}`, cancelled: "cancelled", failed: "failed",
  }[drop.state];
  drop.said.textContent = [at, many(drop.items.length, "file"), said].filter(Boolean).join(" · ");
  const running = isRunning(drop);
  drop.stop.hidden = drop.bar.hidden = !running;
  if (drop.state === "running") drop.bar.value = drop.done / drop.items.length;
  else if (drop.state === "sending" && !drop.busy) drop.bar.value = drop.sent;
  else drop.bar.removeAttribute("value");
  for (const item of drop.items) drawRow(drop, item);
}

function drawRow(drop, item) {
  let row = drop.rows.get(item);
  const state = `${item.records.length} ${item.problem}`;
  if (!row) {
    row = H("button", { type: "button", class: "file", onclick: () => open(item) });
    drop.rows.set(item, row);
    drop.list.append(H("li", {}, row));
  } else if (row.state === state) return;
  row.state = state;
  row.replaceChildren(H("span", { class: "file-name" }, item.name), ...standing(item));
  row.setAttribute("aria-current", String(item === activePane().item));
}

// What became of a file, in a line.
function standing(item) {
  if (item.problem) return [H("span", { class: "wrong" }, item.problem)];
  const records = item.records.map(({ record }) => record);
  if (!records.length) return [H("span", { class: "quiet" }, "waiting")];
  const scored = records.filter((record) => record.status === "scored");
  if (!scored.length) return [H("span", { class: "wrong" }, "not scored: ", without(records[0].reasons[0] ?? "no reason given", item.name))];
  const values = scored.map((record) => record.score ?? record.score_raw).sort((a, b) => a - b);
  const shown = (value) => (scored[0].score === null ? brief(value, 4) : value.toFixed(1));
  const range = values.length > 1 ? `${shown(values[0])} – ${shown(values.at(-1))}` : shown(values[0]);
  const worst = ["fail", "review", "pass"].find((name) => records.some((record) => record.verdict === name));
  return [H("span", { class: "standing" }, scored[0].score === null ? null : bar(scored, values), H("b", {}, range),
    verdict(worst), scored.some(isUnlike) ? tag("unlike", "unlike") : null,
    records.length > 1 ? H("span", { class: "quiet" }, many(records.length, "frame")) : null,
    scored.length < records.length ? H("span", { class: "wrong" }, `${records.length - scored.length} not scored`) : null)];
}

// Where the scores of a file lie on 0 to 100.
function bar(scored, values) {
  const [low, high] = values.length > 1 ? [values[0], values.at(-1)] : scored[0].interval ?? [values[0], values[0]];
  return S("svg", { class: "mini", viewBox: "0 0 100 10", width: 60, height: 10, preserveAspectRatio: "none", "aria-hidden": "true" },
    S("rect", { class: "track", x: 0, y: 3, width: 100, height: 4 }), S("rect", { class: "around", x: low, y: 3, width: Math.max(high - low, 1), height: 4 }),
    values.length > 1 ? null : S("rect", { class: "here", x: Math.min(values[0], 97), y: 0, width: 3, height: 10 }));
}

function markShown() {
  for (const item of items()) item.drop.rows?.get(item)?.setAttribute("aria-current", String(item === activePane().item));
  const row = activePane().item?.drop.rows?.get(activePane().item);
  row?.scrollIntoView({ block: "nearest" });
  byId("result").scrollTop = 0;
}
