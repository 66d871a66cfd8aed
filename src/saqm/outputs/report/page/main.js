// Puts the page together: summary, filters, addresses (#image=N, N the row in the result file), keys, theme, print.
function buildSummary() {
  const place = byId("summary");
  const tile = (name, value, about = "") => H("div", {}, H("dt", {}, name), H("dd", {}, value, about ? H("small", {}, about) : null));
  const redraw = () => {
    const rows = view.rows;
    const values = scoredRows().map(valueOf).sort((a, b) => a - b);
    const count = (test) => rows.filter(test).length;
    const tiles = [
      tile("Images", rows.length.toLocaleString("en"), values.length < rows.length ? `${(rows.length - values.length).toLocaleString("en")} not scored` : "all scored"),
      tile(view.model.has_score ? "Median score" : `Median ${view.model.name}`, values.length ? shown(quantile(values, 0.5), view.model) : "–",
        values.length ? `middle half ${shown(quantile(values, 0.25), view.model)} – ${shown(quantile(values, 0.75), view.model)}` : ""),
    ];
    if (isKnown("verdict")) tiles.push(H("div", {}, H("dt", {}, "Verdicts"), H("dd", { class: "verdicts" }, Object.keys(VERDICTS).map((name) => [verdict(name), ` ${count((i) => C.verdict[i] === name).toLocaleString("en")} `]))));
    if (isKnown("out_of_domain_flag")) tiles.push(tile("Unlike training", count((i) => C.out_of_domain_flag[i]).toLocaleString("en"), "interval not guaranteed"));
    const found = new Map();
    for (const i of rows) for (const { name } of findingsOf(i)) found.set(name, (found.get(name) ?? 0) + 1);
    const often = [...found].sort((a, b) => b[1] - a[1]);
    if (often.length) tiles.push(tile("Findings", count((i) => findingsOf(i).length).toLocaleString("en"), often.slice(0, 3).map(([name, n]) => `${label(name)} ${n}`).join(", ")));
    if (isKnown("device")) tiles.push(tile("Devices", new Set(rows.map((i) => C.device[i]).filter(Boolean)).size));
    place.replaceChildren(...tiles);
  };
  watch("rows", redraw);
  redraw();
}

function buildFilters() {
  const form = byId("filters");
  const controls = {};
  const choice = (key, name, values, { naming = (value) => value, least = 2 } = {}) => {
    if (values.length < least) return null;
    controls[key] = H("select", { onchange: (event) => change({ [key]: event.target.value }) }, H("option", { value: "" }, "all"), values.map((value) => H("option", { value }, naming(value))));
    return H("label", {}, name, controls[key]);
  };
  const distinct = (column) => [...new Set(C[column].filter((value) => value !== null))].sort();
  const input = (key, type, name, read = (text) => text) => {
    controls[key] = H("input", { type, step: "any", "aria-label": name, oninput: (event) => change({ [key]: read(event.target.value) }) });
    return controls[key];
  };
  const number = (text) => (text === "" ? null : Number(text));
  controls.text = H("input", { type: "search", id: "search", placeholder: "Search ( / )", "aria-label": "Search names, devices, findings, notes", oninput: (event) => change({ text: event.target.value }) });
  const models = DATA.models.length > 1 ? H("label", {}, "Model", H("select", { onchange: (event) => { change({ model: DATA.models[event.target.value] }); tell("model"); } },
    DATA.models.map((model) => H("option", { value: model.number }, `${model.name ?? "not named"} ${model.version ?? ""}`)))) : null;
  const names = [...new Set(C.findings.flatMap((list) => (list ?? []).map((finding) => finding.name)))].sort();
  if (isKnown("out_of_domain_flag")) controls.unlike = H("input", { type: "checkbox", onchange: (event) => change({ unlike: event.target.checked }) });
  form.append(...[
    controls.text, models,
    choice("status", "Status", distinct("status"), { naming: label }),
    choice("verdict", "Verdict", ["fail", "review", "pass"].filter((name) => C.verdict.includes(name))),
    choice("finding", "Finding", names, { naming: label, least: 1 }),
    choice("modality", "Type", distinct("modality")),
    choice("device", "Device", distinct("device")),
    controls.unlike ? H("label", { class: "check" }, controls.unlike, "Unlike training") : null,
    H("label", {}, "Score", H("span", { class: "range" }, input("low", "number", "Lowest score", number), "–", input("high", "number", "Highest score", number))),
    isKnown("acquired") ? H("label", {}, "Day", H("span", { class: "range" }, input("from", "date", "First day"), "–", input("to", "date", "Last day"))) : null,
  ].filter(Boolean));
  byId("actions").append(
    H("button", { type: "button", id: "clear", onclick: () => change({ ...NO_FILTER }) }, "Clear filters"),
    H("button", { type: "button", id: "export", title: "e", onclick: exportSelection }));
  form.addEventListener("submit", (event) => event.preventDefault());
  watch("rows", () => {
    for (const [key, control] of Object.entries(controls)) {
      if (control.type === "checkbox") control.checked = view[key];
      else if (control !== document.activeElement) control.value = view[key] ?? "";
    }
    byId("clear").disabled = Object.keys(NO_FILTER).every((key) => view[key] === NO_FILTER[key]);
    byId("export").textContent = `Export ${many(view.rows.length, "row")} (TSV)`;
  });
}

function exportSelection() {
  const link = H("a", { download: "selection.tsv", href: URL.createObjectURL(new Blob([asTable(view.rows)], { type: "text/tab-separated-values" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Addresses
const go = (hash) => { location.hash = hash; route(); };
const open = (i) => go(`image=${i + 1}`);
const close = () => go("images");
const opened = () => {
  const row = Number(/^#image=(\d+)$/.exec(location.hash)?.[1]) - 1;
  return row in ROWS ? row : null;
};
const kept = { window: 0, pane: 0 };
let routed = null; // the address that is shown: hashchange comes late, and again

function route() {
  if (routed === location.hash) return;
  routed = location.hash;
  const i = opened();
  const [overview, image] = [byId("overview"), byId("image")];
  if (i === null) {
    image.hidden = true;
    const returning = overview.hidden;
    overview.hidden = false;
    if (!returning) return;
    byId("pane").scrollTop = kept.pane;
    scrollTo(0, kept.window);
    tell("active");
    byId("pane").focus({ preventScroll: true });
    return;
  }
  if (!overview.hidden) Object.assign(kept, { window: scrollY, pane: byId("pane").scrollTop });
  if (modelOf(i) !== view.model) { change({ model: modelOf(i) }); tell("model"); }
  view.active = i;
  hover(null);
  overview.hidden = true;
  image.replaceChildren(...imagePage(i));
  image.hidden = false;
  scrollTo(0, 0);
  image.focus({ preventScroll: true });
}

// Keys
const KEYS = [
  ["/", "search"], ["↓ ↑ j k, Page, Home, End", "move in the table"], ["Enter", "open the image"], ["← →", "previous, next image"],
  ["Escape", "close, or leave the search"], ["e", "export the selection"], ["t", "dark or light"], ["?", "this list"],
];

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  const i = opened();
  if (event.key === "Escape") {
    if (byId("keys").open) return;
    if (event.target.id === "search") { change({ text: "" }); event.target.value = ""; }
    if (typing) byId("pane").focus();
    else if (i !== null) close();
    return;
  }
  if (typing) {
    if (event.target.id !== "search" || !["Enter", "ArrowDown"].includes(event.key)) return;
    byId("pane").focus();
    event.preventDefault();
    return;
  }
  const sliding = event.target.matches("input[type=range]");
  const at = view.rows.indexOf(i);
  const actions = {
    "/": () => { if (i !== null) close(); byId("search").focus(); },
    e: exportSelection,
    t: toggleTheme,
    "?": () => byId("keys").showModal(),
    ArrowLeft: () => i !== null && !sliding && at > 0 && open(view.rows[at - 1]),
    ArrowRight: () => i !== null && !sliding && at >= 0 && at + 1 < view.rows.length && open(view.rows[at + 1]),
  };
  if (!(event.key in actions)) return;
  actions[event.key]();
  if (!sliding) event.preventDefault();
}

// Theme: the reader's own, until it is changed here
const darkness = matchMedia("(prefers-color-scheme: dark)");
const setTheme = (name) => {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
};
const toggleTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

function start() {
  setTheme(darkness.matches ? "dark" : "light");
  darkness.addEventListener("change", () => setTheme(darkness.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", toggleTheme);
  byId("keys-open").addEventListener("click", () => byId("keys").showModal());
  byId("keys").append(H("h2", {}, "Keyboard"), H("dl", {}, KEYS.map(([key, what]) => [H("dt", {}, H("kbd", {}, key)), H("dd", {}, what)])),
    H("form", { method: "dialog" }, H("button", {}, "Close")));
  const names = DATA.models.map((model) => [model.name ?? "a model that is not named", model.version].filter(Boolean).join(" "));
  byId("about").textContent = [names.join(", "), FOLDER, DATA.created, DATA.software].filter(Boolean).join(" · ");
  byId("left-out").append(...[...DATA.left_out, "Holds file paths, and devices and days of the headers; no patient names are read. Not a medical device."].map((line) => H("li", {}, line)));
  byId("overview").hidden = false;
  select();
  buildSummary();
  buildFilters();
  buildPlots();
  buildTable();
  buildDrift();
  tell("rows");
  route();
  addEventListener("hashchange", route);
  addEventListener("keydown", onKey);
  let theme = null;
  addEventListener("beforeprint", () => { theme = document.documentElement.dataset.theme; setTheme("light"); layOutForPrint(); });
  addEventListener("afterprint", () => { setTheme(theme); tidyAfterPrint(); });
}
start();
