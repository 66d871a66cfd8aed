// The data as the report was given them. C.NAME[i] is what row i has in column NAME, null where it has nothing.
const DATA = JSON.parse(document.getElementById("data").textContent);

function unpack({ plain, pooled, lists }) {
  const at = (place) => (place === null ? null : DATA.pool[place]);
  if (plain) return plain;
  return pooled ? pooled.map(at) : lists.map((list) => list && list.map(at));
}

const C = {};
for (const [name, column] of Object.entries(DATA.columns)) C[name] = unpack(column);
const ROWS = Array.from({ length: DATA.rows }, (_, i) => i);

// A model's score of 0 to 100; a metric's own value where it has no such score.
const valueOf = (i) => C.score[i] ?? C.score_raw[i];
const modelOf = (i) => DATA.models[C.model[i]];
const lowerIsBetter = (model) => !model.has_score && model.direction === "lower is better";
const imageOf = (i) => (C.image.length && C.image[i] !== null ? DATA.images[C.image[i]] : {});
const findingsOf = (i) => C.findings[i] ?? [];
const isKnown = (name) => C[name].some((value) => value !== null);

const FOLDER = (() => {
  let [shared] = C.path;
  for (const path of C.path) {
    let n = 0;
    while (n < shared.length && shared[n] === path[n]) n += 1;
    shared = shared.slice(0, n);
  }
  return shared.slice(0, Math.max(shared.lastIndexOf("/"), shared.lastIndexOf("\\")) + 1);
})();

// The path below the folder that all share, in two parts: folders, and the file's name with its frame.
function nameOf(i) {
  const path = C.path[i].slice(FOLDER.length);
  const cut = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1;
  const frame = C.frame[i] === null ? "" : ` [${C.frame[i]}]`;
  return [path.slice(0, cut), path.slice(cut) + frame];
}

// The range of a model's axis: 0 to 100 for a score, what was met for a metric.
function rangeOf(model) {
  if (model.has_score) return [0, 100];
  const values = ROWS.filter((i) => modelOf(i) === model && valueOf(i) !== null).map(valueOf);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!values.length) return [0, 1];
  return low < high ? [low, high] : [low - 0.5, high + 0.5];
}

function shown(value, model) {
  if (value === null) return "–";
  return model.has_score ? value.toFixed(1) : String(Number(value.toPrecision(4)));
}

// Numbers, lists and nested objects of a record in words.
function words(value, digits = 6) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return String(Number(value.toPrecision(digits)));
  if (Array.isArray(value)) return value.map((part) => words(part, digits)).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, part]) => `${label(key)} ${words(part, digits)}`).join(", ");
  return String(value);
}

const label = (name) => name.replaceAll("_", " ");
const many = (n, one, several = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : several}`;

function quantile(sorted, share) {
  const at = (sorted.length - 1) * share;
  const below = Math.floor(at);
  return sorted[below] + (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]) * (at - below);
}

// The rows as `saqm score --out F.tsv` writes them, so that every command reads the selection back.
function asTable(rows) {
  const cell = (value, kind) => {
    if (value === null) return "n/a";
    if (kind === "object") return JSON.stringify(value);
    return Array.isArray(value) ? value.join("; ") || "n/a" : String(value);
  };
  const quoted = (text) => (/[\t\n\r"]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = rows.map((i) => DATA.table.map(({ name, kind }) => quoted(cell(C[name][i], kind))).join("\t"));
  return [DATA.table.map(({ name }) => name).join("\t"), ...lines].join("\n") + "\n";
}
