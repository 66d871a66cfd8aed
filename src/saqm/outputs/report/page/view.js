// What is looked at: one model, the filters, the order, the active row and the one under the pointer.
const NO_FILTER = { text: "", status: "", verdict: "", finding: "", modality: "", device: "", unlike: false, from: "", to: "", low: null, high: null };
const view = { model: DATA.models[0], ...NO_FILTER, sort: "value", down: lowerIsBetter(DATA.models[0]), rows: [], active: null, hover: null };

const haystacks = [];
const haystack = (i) => (haystacks[i] ??= [
  C.path[i], C.modality[i], C.device[i], C.acquired[i], C.verdict[i], C.uids_instance[i],
  ...(C.reasons[i] ?? []), ...(C.warnings[i] ?? []), ...findingsOf(i).map((finding) => finding.name),
].join("\n").toLowerCase());

function isWanted(i, sought) {
  const value = valueOf(i);
  return modelOf(i) === view.model
    && (!view.status || C.status[i] === view.status)
    && (!view.verdict || C.verdict[i] === view.verdict)
    && (!view.modality || C.modality[i] === view.modality)
    && (!view.device || C.device[i] === view.device)
    && (!view.finding || findingsOf(i).some((finding) => finding.name === view.finding))
    && (!view.unlike || C.out_of_domain_flag[i] === true)
    && (!view.from || (C.acquired[i] !== null && C.acquired[i] >= view.from))
    && (!view.to || (C.acquired[i] !== null && C.acquired[i] <= view.to))
    && (view.low === null || (value !== null && value >= view.low))
    && (view.high === null || (value !== null && value <= view.high))
    && sought.every((word) => haystack(i).includes(word));
}

// What each column is sorted by; null comes last whichever way.
const SORTED_BY = {
  row: (i) => i,
  file: (i) => C.path[i].toLowerCase(),
  value: valueOf,
  interval: (i) => (C.interval_low[i] === null ? null : C.interval_high[i] - C.interval_low[i]),
  verdict: (i) => ({ fail: 0, review: 1, pass: 2 })[C.verdict[i]] ?? null,
  findings: (i) => findingsOf(i).map((finding) => finding.name).join() || null,
  modality: (i) => C.modality[i],
  device: (i) => C.device[i],
  acquired: (i) => C.acquired[i],
  notes: (i) => notesOf(i)[0] ?? null,
};

const notesOf = (i) => [...(C.reasons[i] ?? []), ...(C.warnings[i] ?? [])].map((note) => note.replace(`${C.path[i]}: `, ""));

function select() {
  const sought = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  const key = SORTED_BY[view.sort];
  const keyed = ROWS.filter((i) => isWanted(i, sought)).map((i) => [key(i), i]);
  const turn = view.down ? -1 : 1;
  keyed.sort(([a, i], [b, j]) => {
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    return (a < b ? -turn : a > b ? turn : 0) || i - j;
  });
  view.rows = keyed.map(([, i]) => i);
  if (!view.rows.includes(view.active)) view.active = view.rows[0] ?? null;
}

function change(what) {
  Object.assign(view, what);
  if ("model" in what) Object.assign(view, { low: null, high: null, sort: "value", down: lowerIsBetter(view.model) });
  select();
  tell("rows");
}

function sortBy(key) {
  change(view.sort === key ? { down: !view.down } : { sort: key, down: key === "value" && lowerIsBetter(view.model) });
}

function hover(i) {
  if (view.hover === i) return;
  view.hover = i;
  tell("hover");
}

function activate(i) {
  view.active = i;
  tell("active");
}

const scoredRows = () => view.rows.filter((i) => valueOf(i) !== null);

// From worst to best, whatever the table is sorted by.
const worstFirst = (rows) => [...rows].sort((i, j) => (lowerIsBetter(view.model) ? -1 : 1) * (valueOf(i) - valueOf(j)) || i - j);
