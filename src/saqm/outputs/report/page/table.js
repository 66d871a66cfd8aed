// The table holds the rows in sight and a few more: ten thousand scroll as lightly as ten.
const ROW_HEIGHT = 44; // pixels, as in the style
const AROUND = 8; // rows drawn above and below those in sight
const PRINTED = 100;

const TABLE = [
  { key: "picture", label: "", width: "52px", when: () => DATA.images.some((image) => image.thumbnail), cell: (i) => thumbnail(i) },
  { key: "file", label: "Image", width: "minmax(160px, 2.2fr)", cell: (i) => {
    const [folder, name] = nameOf(i);
    return H("span", { class: "file", title: C.path[i] }, H("span", {}, name), folder ? H("span", { class: "quiet" }, folder) : null);
  } },
  { key: "value", label: "Score", width: "172px", cell: (i) => (valueOf(i) === null ? H("span", { class: "tag none" }, "not scored")
    : [H("b", {}, shown(valueOf(i), view.model)), gauge(i, { width: 100, height: 16 })]) },
  { key: "interval", label: "Interval", width: "118px", when: () => isKnown("interval_low"), cell: intervalCell },
  { key: "verdict", label: "Verdict", width: "92px", when: () => isKnown("verdict"), cell: (i) => verdict(C.verdict[i]) },
  { key: "findings", label: "Findings", width: "minmax(110px, 1.2fr)", when: () => C.findings.some((list) => list?.length),
    cell: findingsCell },
  { key: "modality", label: "Type", width: "56px", when: () => isKnown("modality"), cell: (i) => C.modality[i] ?? "–" },
  { key: "device", label: "Device", width: "minmax(90px, 1.2fr)", when: () => isKnown("device"), cell: (i) => clipped(C.device[i]) },
  { key: "acquired", label: "Day", width: "92px", when: () => isKnown("acquired"), cell: (i) => C.acquired[i] ?? "–" },
  { key: "notes", label: "Notes", width: "minmax(110px, 1.8fr)", when: () => ROWS.some((i) => notesOf(i).length), cell: (i) => clipped(notesOf(i).join(" · ")) },
].filter((column) => !column.when || column.when());

const clipped = (what) => H("span", { class: "clipped", title: what ?? "" }, what || "–");

function thumbnail(i) {
  const { thumbnail: source } = imageOf(i);
  return source ? H("img", { src: source, alt: "", width: 40, height: 40 }) : null;
}

// The worst by its name, the others by their number.
function findingsCell(i) {
  const names = findingsOf(i).map((finding) => label(String(finding.name)));
  if (!names.length) return null;
  return H("span", { title: names.join(", ") }, H("span", { class: "tag" }, names[0]), names.length > 1 ? `+${names.length - 1}` : null);
}

function intervalCell(i) {
  if (C.out_of_domain_flag[i]) return H("span", { class: "tag unlike", title: "Unlike the images the model learnt from: the interval is not guaranteed" }, "unlike training");
  return C.interval_low[i] === null ? "–" : `${shown(C.interval_low[i], view.model)} – ${shown(C.interval_high[i], view.model)}`;
}

const rowOf = (i, k) => H("div", { class: "row", role: "row", id: `row-${i}`, "aria-rowindex": k + 2, "data-row": i },
  TABLE.map((column) => H("div", { role: "gridcell", class: `cell-${column.key}` }, column.cell(i))));

const headings = () => H("div", { class: "row head", role: "row", "aria-rowindex": 1 }, TABLE.map(({ key, label: name }) => {
  const sorted = view.sort === key;
  const attributes = { role: "columnheader", "aria-sort": sorted ? (view.down ? "descending" : "ascending") : "none" };
  if (key === "picture") return H("div", attributes);
  return H("div", attributes, H("button", { type: "button", onclick: () => sortBy(key) }, name, H("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (view.down ? "▼" : "▲") : "")));
}));

function buildTable() {
  const pane = byId("pane");
  pane.style.setProperty("--columns", TABLE.map((column) => column.width).join(" "));
  const head = H("div", { class: "heads", role: "rowgroup" });
  const body = H("div", { class: "rows", role: "rowgroup" });
  pane.append(head, body);
  let drawnFrom = -1;
  let drawnTo = -1;

  const draw = () => {
    const from = Math.max(Math.floor(pane.scrollTop / ROW_HEIGHT) - AROUND, 0);
    const to = Math.min(Math.ceil((pane.scrollTop + pane.clientHeight) / ROW_HEIGHT) + AROUND, view.rows.length);
    if (from === drawnFrom && to === drawnTo) return;
    [drawnFrom, drawnTo] = [from, to];
    body.replaceChildren(...view.rows.slice(from, to).map((i, k) => rowOf(i, from + k)));
    body.style.setProperty("padding-top", `${from * ROW_HEIGHT}px`);
    body.style.setProperty("height", `${view.rows.length * ROW_HEIGHT}px`);
    mark();
  };
  const mark = () => {
    for (const row of body.children) {
      const i = Number(row.dataset.row);
      row.setAttribute("aria-selected", i === view.active);
      row.classList.toggle("hovered", i === view.hover);
    }
    if (view.active === null) pane.removeAttribute("aria-activedescendant");
    else pane.setAttribute("aria-activedescendant", `row-${view.active}`);
  };
  const redraw = () => {
    drawnFrom = -1;
    head.replaceChildren(headings());
    pane.setAttribute("aria-rowcount", view.rows.length + 1);
    const all = ROWS.filter((i) => modelOf(i) === view.model).length;
    byId("count").textContent = view.rows.length === all ? many(all, "image") : `${view.rows.length.toLocaleString("en")} of ${many(all, "image")}`;
    draw();
  };
  const reveal = (i) => {
    const top = view.rows.indexOf(i) * ROW_HEIGHT;
    if (top < 0) return;
    if (top < pane.scrollTop) pane.scrollTop = top;
    else if (top + 2 * ROW_HEIGHT > pane.scrollTop + pane.clientHeight) pane.scrollTop = top + 2 * ROW_HEIGHT - pane.clientHeight;
    draw();
    mark();
  };

  pane.addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(draw).observe(pane);
  body.addEventListener("pointerover", (event) => { const row = event.target.closest("[data-row]"); hover(row ? Number(row.dataset.row) : null); });
  body.addEventListener("pointerleave", () => hover(null));
  body.addEventListener("click", (event) => { const row = event.target.closest("[data-row]"); if (row) open(Number(row.dataset.row)); });
  pane.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(pane.clientHeight / ROW_HEIGHT) - 2, 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && event.target === pane && view.active !== null) open(view.active);
    else if (event.key in steps && view.rows.length) {
      const at = view.rows.indexOf(view.active) + steps[event.key];
      activate(view.rows[Math.min(Math.max(at, 0), view.rows.length - 1)]);
    } else return;
    event.preventDefault();
  });
  watch("rows", () => { pane.scrollTop = 0; redraw(); });
  watch("active", () => reveal(view.active));
  watch("pointed", () => reveal(view.hover));
  watch("hover", mark);
  redraw();
}

// Paper cannot scroll: the first rows of the selection are laid out in full while the page is printed.
function layOutForPrint() {
  const rows = view.rows.slice(0, PRINTED);
  const note = view.rows.length > PRINTED ? `The first ${PRINTED} of ${many(view.rows.length, "image")}, sorted as on the screen.` : "";
  byId("list").append(H("div", { id: "printed", style: { "--columns": TABLE.map((column) => column.width).join(" ") } },
    H("p", { class: "quiet" }, note), headings(), rows.map(rowOf)));
}
const tidyAfterPrint = () => byId("printed")?.remove();
