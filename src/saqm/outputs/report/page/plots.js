// Plots are SVG. Thousands of points are one path, so that the page stays quick; the one under the pointer is a circle.
const MARGIN = { left: 34, right: 10, top: 8, bottom: 24 };
const BINS = 20;
const DEVICES = 6; // that have a colour of their own; the others share one
const NAMED_DAYS = 3; // outside their limits; of more only the number is said
const VERDICT_CLASSES = ["fail", "review", "pass"];

// A plot in its frame: title, picture, and a line below that says what is under the pointer.
function frame(title, about, draw, height = 190) {
  const note = H("figcaption", { class: "quiet" }, about());
  const canvas = H("div", { class: "canvas" });
  const figure = H("figure", {}, H("h2", {}, title), canvas, note);
  const redraw = () => {
    if (!canvas.clientWidth) return;
    canvas.replaceChildren(draw(canvas.clientWidth, height));
    note.textContent = about();
  };
  new ResizeObserver(redraw).observe(canvas);
  watch("rows", redraw);
  watch("hover", () => {
    note.textContent = view.hover === null ? about() : `${nameOf(view.hover)[1]}: ${shown(valueOf(view.hover), view.model)}`;
  });
  return figure;
}

const line = (x1, y1, x2, y2, kind) => S("line", { x1, y1, x2, y2, class: kind });
const text = (x, y, what, anchor = "middle") => S("text", { x, y, "text-anchor": anchor }, what);
const svg = (width, height, name, ...parts) =>
  S("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": name }, parts);
const dots = (points, kind) => S("path", { class: `dots ${kind}`, d: points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("") });

function valueAxis(y, width, [low, high]) {
  return ticks(low, high, 4).map((tick) => [
    line(MARGIN.left, y(tick), width - MARGIN.right, y(tick), "grid"),
    text(MARGIN.left - 5, y(tick) + 4, String(tick), "end"),
  ]);
}

function dateAxis(x, width, height, [from, to]) {
  const step = Math.max((to - from) / Math.max(Math.floor(width / 140), 1), 1);
  const marks = [];
  for (let day = from; day <= to + 1e-9; day += step) marks.push(Math.round(day));
  return marks.map((day) => {
    const at = x(day);
    const anchor = at > width - 45 ? "end" : at < 45 ? "start" : "middle";
    return [line(at, height - MARGIN.bottom, at, height - MARGIN.bottom + 4, "axis"), text(at, height - 7, dateOf(day), anchor)];
  });
}

// The kinds of points: by verdict where there are verdicts, else whether the image is like those the model knows.
function kindOf(i) {
  if (C.verdict[i] !== null) return C.verdict[i];
  return C.out_of_domain_flag[i] ? "unlike" : "plain";
}

function grouped(rows, of) {
  const groups = new Map();
  for (const i of rows) groups.set(of(i), groups.get(of(i)) ?? []).get(of(i)).push(i);
  return groups;
}

// A circle that follows the pointer, in whichever plot it is, and the table.
function follower(place) {
  const ring = S("circle", { class: "ring", r: 5, visibility: "hidden" });
  const move = () => {
    const at = view.hover === null ? null : place(view.hover);
    ring.setAttribute("visibility", at ? "visible" : "hidden");
    if (at) { ring.setAttribute("cx", at[0]); ring.setAttribute("cy", at[1]); }
  };
  ring.follow = move;
  move();
  return ring;
}
watch("hover", () => document.querySelectorAll(".ring").forEach((ring) => ring.follow()));

// Which row is nearest to the pointer, and what happens there.
function pointed(picture, nearest) {
  const rowAt = (event) => {
    const box = picture.getBoundingClientRect();
    return nearest(event.clientX - box.left, event.clientY - box.top);
  };
  picture.addEventListener("pointermove", (event) => { hover(rowAt(event)); tell("pointed"); });
  picture.addEventListener("pointerleave", () => hover(null));
  picture.addEventListener("click", (event) => { const i = rowAt(event); if (i !== null) open(i); });
  picture.classList.add("pointed");
  return picture;
}

function distribution(width, height) {
  const range = rangeOf(view.model);
  const [low, high] = range;
  const all = ROWS.filter((i) => modelOf(i) === view.model && valueOf(i) !== null);
  const chosen = scoredRows();
  const ghost = counted(all.map(valueOf), range, BINS);
  const tallest = Math.max(...ghost, 1);
  const x = scale(low, high, MARGIN.left, width - MARGIN.right);
  const y = scale(0, tallest, height - MARGIN.bottom, MARGIN.top);
  const edge = (k) => x(low + ((high - low) * k) / BINS);
  const bar = (k, from, n, kind) => S("rect", { class: kind, x: edge(k) + 0.5, width: edge(k + 1) - edge(k) - 1, y: y(from + n), height: y(from) - y(from + n) });
  const stacked = ghost.map(() => 0);
  const bars = [...grouped(chosen, kindOf)]
    .sort(([a], [b]) => VERDICT_CLASSES.indexOf(a) - VERDICT_CLASSES.indexOf(b))
    .flatMap(([kind, rows]) => counted(rows.map(valueOf), range, BINS).map((n, k) => {
      stacked[k] += n;
      return n ? bar(k, stacked[k] - n, n, `fill ${kind}`) : null;
    }));
  const picture = svg(width, height, `Distribution of ${many(chosen.length, "score")}`,
    ticks(0, tallest, 3).filter(Number.isInteger).map((n) => [line(MARGIN.left, y(n), width - MARGIN.right, y(n), "grid"), text(MARGIN.left - 5, y(n) + 4, n, "end")]),
    ghost.map((n, k) => bar(k, 0, n, "ghost")),
    bars,
    ticks(low, high, 5).map((tick) => text(x(tick), height - 7, tick)));
  const mark = S("path", { class: "mark", visibility: "hidden", d: `M0 ${MARGIN.top}V${height - MARGIN.bottom}` });
  mark.follow = () => {
    const value = view.hover === null ? null : valueOf(view.hover);
    mark.setAttribute("visibility", value === null ? "hidden" : "visible");
    if (value !== null) mark.setAttribute("transform", `translate(${x(value)})`);
  };
  mark.classList.add("ring");
  mark.follow();
  picture.append(mark);
  brush(picture, (px) => Math.min(Math.max(Math.floor(((px - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * BINS), 0), BINS - 1),
    (first, last) => {
      const from = low + ((high - low) * first) / BINS;
      const to = low + ((high - low) * (last + 1)) / BINS;
      const same = view.low === from && view.high === to;
      change(same ? { low: null, high: null } : { low: from, high: to });
    }, (first, last) => [edge(first), edge(last + 1)], height);
  return picture;
}

// Dragging over bars, or a click on one, chooses their range; the same once more lets it go.
function brush(picture, binAt, chosen, edges, height) {
  const shade = S("rect", { class: "brush", y: MARGIN.top, height: height - MARGIN.top - MARGIN.bottom, visibility: "hidden" });
  picture.append(shade);
  picture.classList.add("pointed");
  let begun = null;
  const bin = (event) => binAt(event.clientX - picture.getBoundingClientRect().left);
  const span = (event) => [Math.min(begun, bin(event)), Math.max(begun, bin(event))];
  picture.addEventListener("pointerdown", (event) => { begun = bin(event); picture.setPointerCapture(event.pointerId); });
  picture.addEventListener("pointermove", (event) => {
    if (begun === null) return;
    const [from, to] = edges(...span(event));
    shade.setAttribute("visibility", "visible");
    shade.setAttribute("x", from);
    shade.setAttribute("width", to - from);
  });
  picture.addEventListener("pointerup", (event) => { if (begun === null) return; const found = span(event); begun = null; chosen(...found); });
}

function ranked(width, height) {
  const rows = worstFirst(scoredRows());
  const range = rangeOf(view.model);
  const x = scale(0, Math.max(rows.length - 1, 1), MARGIN.left + 5, width - MARGIN.right - 5);
  const y = scale(...range, height - MARGIN.bottom, MARGIN.top);
  const place = new Map(rows.map((i, k) => [i, [x(k), y(valueOf(i))]]));
  const whisker = (i) => (C.interval_low[i] === null ? "" : `M${place.get(i)[0].toFixed(1)} ${y(C.interval_low[i]).toFixed(1)}V${y(C.interval_high[i]).toFixed(1)}`);
  const picture = svg(width, height, `${many(rows.length, "image")} from worst to best`,
    valueAxis(y, width, range),
    S("path", { class: "whiskers", d: rows.map(whisker).join("") }),
    [...grouped(rows, kindOf)].map(([kind, those]) => dots(those.map((i) => place.get(i)), kind)),
    text(MARGIN.left, height - 7, "worst", "start"), text(width - MARGIN.right, height - 7, "best", "end"));
  picture.append(follower((i) => place.get(i)));
  return pointed(picture, (px) => rows[Math.min(Math.max(Math.round(((px - MARGIN.left - 5) / (width - MARGIN.left - MARGIN.right - 10)) * (rows.length - 1)), 0), rows.length - 1)] ?? null);
}

const DEVICE_NAMES = [...grouped(ROWS.filter((i) => C.device[i] !== null), (i) => C.device[i])]
  .sort(([, a], [, b]) => b.length - a.length).map(([name]) => name);
const deviceClass = (name) => { const k = DEVICE_NAMES.indexOf(name); return k < 0 || k >= DEVICES ? "device-other" : `device-${k}`; };

function dated(width, height) {
  const rows = scoredRows().filter((i) => C.acquired[i] !== null);
  const days = rows.map((i) => dayOf(C.acquired[i]));
  const [from, to] = days.length ? [days.reduce((a, b) => Math.min(a, b)), days.reduce((a, b) => Math.max(a, b))] : [0, 1];
  const range = rangeOf(view.model);
  const x = scale(from, Math.max(to, from + 1), MARGIN.left + 5, width - MARGIN.right - 5);
  const y = scale(...range, height - MARGIN.bottom, MARGIN.top);
  const place = new Map(rows.map((i, k) => [i, [x(days[k]), y(valueOf(i))]]));
  const picture = svg(width, height, `${many(rows.length, "score")} against the day`,
    valueAxis(y, width, range), rows.length ? dateAxis(x, width, height, [from, to]) : [],
    [...grouped(rows, (i) => deviceClass(C.device[i]))].map(([kind, those]) => dots(those.map((i) => place.get(i)), kind)));
  picture.append(follower((i) => place.get(i)));
  return pointed(picture, (px, py) => {
    let best = null;
    let least = 20 ** 2;
    for (const [i, [cx, cy]] of place) {
      const distance = (cx - px) ** 2 + (cy - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  });
}

function legend(entries) {
  return H("p", { class: "legend" }, entries.map(([kind, name]) => H("span", { title: name }, H("i", { class: kind }), name)));
}

function kindLegend() {
  const names = { fail: "fail", review: "review", pass: "pass", unlike: "unlike training", plain: isKnown("verdict") ? "no verdict" : "scored" };
  const present = Object.keys(names).filter((kind) => ROWS.some((i) => valueOf(i) !== null && kindOf(i) === kind));
  return present.length > 1 ? legend(present.map((kind) => [kind, names[kind]])) : null;
}

function buildPlots() {
  const scoreName = () => (view.model.has_score ? "score" : view.model.name);
  const direction = () => `${scoreName()}, ${lowerIsBetter(view.model) ? "lower" : "higher"} is better`;
  const coverage = C.coverage.find((share) => share !== null);
  const intervals = coverage === undefined ? "" : `; lines: intervals for ${Math.round(100 * coverage)} %`;
  const plots = [
    frame("Distribution", () => `${direction()}; drag to choose`, distribution),
    frame("Every image, worst to best", () => direction() + intervals, ranked),
  ];
  if (isKnown("acquired")) plots.push(frame("By day", () => `${direction()}; colours: devices`, dated));
  plots.slice(0, 2).forEach((figure) => { const shades = kindLegend(); if (shades) figure.append(shades); });
  if (plots[2] && DEVICE_NAMES.length > 1) {
    const named = DEVICE_NAMES.slice(0, DEVICES).map((name, k) => [`device-${k}`, name]);
    plots[2].append(legend(DEVICE_NAMES.length > DEVICES ? [...named, ["device-other", "other devices"]] : named));
  }
  byId("plots").append(...plots);
}

// Control charts: limits were computed over all images of the model, whatever the filters say.
function chart(of, width, height) {
  const days = of.days.map(dayOf);
  const all = [...of.means, ...of.ewma_low, ...of.ewma_high, of.low, of.high];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = (high - low) * 0.05;
  const x = scale(days[0], days.at(-1), MARGIN.left + 5, width - MARGIN.right - 5);
  const y = scale(low - room, high + room, height - MARGIN.bottom, MARGIN.top);
  const path = (values) => values.map((value, k) => `${k ? "L" : "M"}${x(days[k]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const points = of.means.map((mean, k) => [x(days[k]), y(mean)]);
  return svg(width, height, `Control chart of ${of.device}: ${signalsOf(of) || "no signal"}`,
    valueAxis(y, width, [low - room, high + room]), dateAxis(x, width, height, [days[0], days.at(-1)]),
    S("path", { class: "band", d: `${path(of.ewma_high)}${[...of.ewma_low].reverse().map((value, k) => `L${x(days[days.length - 1 - k]).toFixed(1)} ${y(value).toFixed(1)}`).join("")}Z` }),
    [of.low, of.high].map((limit) => line(MARGIN.left, y(limit), width - MARGIN.right, y(limit), "limit")),
    line(MARGIN.left, y(of.centre), width - MARGIN.right, y(of.centre), "centre"),
    of.baseline < days.length ? line(x((days[of.baseline - 1] + days[of.baseline]) / 2), MARGIN.top, x((days[of.baseline - 1] + days[of.baseline]) / 2), height - MARGIN.bottom, "baseline") : null,
    S("path", { class: "means", d: path(of.means) }), dots(points, "plain"),
    S("path", { class: "ewma", d: path(of.ewma) }),
    of.drifting.map((k) => S("rect", { class: "drifting", x: x(days[k]) - 3.5, y: y(of.ewma[k]) - 3.5, width: 7, height: 7 })),
    of.beyond.map((k) => S("circle", { class: "beyond", cx: points[k][0], cy: points[k][1], r: 6 })));
}

function signalsOf(of) {
  const told = (k) => `${of.days[k]}: mean ${shown(of.means[k], DATA.models[of.model])} is ${of.means[k] < of.low ? "below" : "above"} its limits`;
  const said = of.beyond.slice(0, NAMED_DAYS).map(told);
  if (of.beyond.length > NAMED_DAYS) said.push(`and so on ${many(of.beyond.length - NAMED_DAYS, "further day")}`);
  if (of.drifting.length) said.push(`the weighted average is outside its own on ${many(of.drifting.length, "day")}, first on ${of.days[of.drifting[0]]}`);
  return said.join("; ");
}

function buildDrift() {
  const section = byId("drift");
  const redraw = () => {
    const charts = DATA.charts.filter((of) => DATA.models[of.model] === view.model);
    section.hidden = !charts.length;
    const drawn = charts.filter((of) => of.days);
    section.replaceChildren(...[H("h2", {}, "Course of each device"),
      drawn.length ? H("p", { class: "quiet" }, "A point is the mean of a day's images. Dashed: Shewhart's limits, 3 standard deviations from the centre; band and bold line: weighted average (EWMA) with its limits. ○ day outside its limits, □ average outside its own. Filters do not change these charts; a click on one chooses its device.") : null,
      H("div", { class: "charts" }, drawn.map((of) => {
        const canvas = H("div", { class: "canvas pointed", onclick: () => change({ device: view.device === of.device ? "" : of.device }) });
        const signals = signalsOf(of);
        new ResizeObserver(() => canvas.clientWidth && canvas.replaceChildren(chart(of, canvas.clientWidth, 170))).observe(canvas);
        return H("figure", {}, H("h3", {}, of.device), canvas,
          H("figcaption", { class: signals ? "signal" : "quiet" }, signals ? `Signal. ${signals[0].toUpperCase()}${signals.slice(1)}.` : "No signal."),
          H("p", { class: "quiet" }, `${many(of.images, "image")} on ${of.days.length} days. ${of.baseline < of.days.length ? `Limits from the first ${of.baseline} days` : `Limits from all ${of.baseline} days: what was so from the start is not seen`}.`));
      })),
      drawn.length < charts.length ? H("p", { class: "quiet" }, `No control chart: ${charts.filter((of) => of.why_not).map((of) => `${of.device} (${of.why_not})`).join("; ")}.`) : null,
    ].filter(Boolean));
  };
  watch("model", redraw);
  redraw();
}
