// The page of one image: what it looks like, what was found, how sure that is, and what was read and how.
function imagePage(i) {
  const model = modelOf(i);
  const [folder, name] = nameOf(i);
  const at = view.rows.indexOf(i);
  const step = (by, text, key) => H("button", { type: "button", disabled: view.rows[at + by] === undefined || at < 0, title: key, onclick: () => open(view.rows[at + by]) }, text);
  return [
    H("nav", { class: "buttons" },
      H("button", { type: "button", onclick: close, title: "Escape" }, "‹ All images"),
      step(-1, "Previous", "←"), step(1, "Next", "→"),
      H("span", { class: "quiet" }, at < 0 ? "not in the selection" : `${(at + 1).toLocaleString("en")} of ${view.rows.length.toLocaleString("en")}`)),
    H("h2", { class: "name" }, folder ? H("span", { class: "quiet" }, folder) : null, name),
    H("div", { class: "sheet" },
      pictureOf(i),
      H("div", { class: "facts" }, scoreOf(i, model), findingsTable(i), domainOf(i, model), list("Warnings", C.warnings[i] ?? []), othersOf(i), stepsOf(i), identityOf(i, model))),
  ];
}

function pictureOf(i) {
  const image = imageOf(i);
  const source = image.picture ?? image.thumbnail;
  const said = [];
  if (!source) said.push(image.note ? `No picture: ${image.note}.` : "No picture of this image in the file: --pictures N has those of the N worst.");
  else {
    if (image.note) said.push(image.note);
    if (!image.picture) said.push("A small picture only: --pictures N has larger ones of the N worst.");
    const reduced = Math.max(...(image.size ?? [Infinity])) > DATA.largest;
    if (image.map && image.map_row === i) said.push("Map: the fainter a colour, the less it counts.");
    said.push(`${reduced ? "Reduced and compressed" : "Compressed"} (JPEG): judge fine detail on the original.`);
  }
  const overlay = image.map && image.map_row === i ? H("img", { src: image.map, alt: "Quality map" }) : null;
  return H("figure", { class: "picture" },
    source ? H("div", { class: "stack", style: { "aspect-ratio": image.aspect } }, H("img", { src: source, alt: nameOf(i)[1] }), overlay) : H("div", { class: "missing" }, "no picture"),
    overlay ? H("div", { class: "map-controls" },
      H("label", {}, "Picture ", H("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": "Opacity of the map",
        oninput: (event) => { overlay.style.opacity = event.target.value / 100; } }), " map"),
      H("span", { class: "ramp" }, "0 bad", H("i", { style: { background: `linear-gradient(to right, ${DATA.ramp.map((code) => `#${code}`).join()})` } }), "100 good")) : null,
    H("figcaption", { class: "quiet" }, said.map((line) => H("p", {}, line))));
}

function scoreOf(i, model) {
  const value = valueOf(i);
  if (value === null) return H("section", {}, H("p", { class: "big" }, "not scored"), list("Why", (C.reasons[i] ?? []).map((note) => note.replace(`${C.path[i]}: `, ""))));
  const others = ROWS.filter((j) => modelOf(j) === model && valueOf(j) !== null);
  const worse = others.filter((j) => (lowerIsBetter(model) ? valueOf(j) > value : valueOf(j) < value)).length;
  const [low, high, coverage] = [C.interval_low[i], C.interval_high[i], C.coverage[i]];
  const interval = low === null ? null : H("p", {}, `Interval ${shown(low, model)} – ${shown(high, model)}`,
    coverage === null ? "; its coverage is not guaranteed for this image." : `: it holds for ${Math.round(coverage * 100)} % of images like those the model was calibrated on.`);
  return H("section", {},
    H("p", { class: "big" }, shown(value, model), H("small", {}, model.has_score ? " of 100" : ` ${model.name}`), " ", verdict(C.verdict[i])),
    gauge(i, { width: 420, height: 44, background: others.map(valueOf) }),
    interval,
    H("p", { class: "quiet" }, others.length > 1 ? `Better than ${worse.toLocaleString("en")} of the ${(others.length - 1).toLocaleString("en")} other scored images here (${lowerIsBetter(model) ? "lower" : "higher"} is better).` : null),
    list("Why this verdict", C.reasons[i] ?? []));
}

function findingsTable(i) {
  const findings = findingsOf(i);
  if (!findings.length) return null;
  return H("section", {}, H("h3", {}, "Findings"), H("table", {},
    H("thead", {}, H("tr", {}, ["What", "Measured", "Limit", "DICOM code"].map((name) => H("th", { scope: "col" }, name)))),
    H("tbody", {}, findings.map((finding) => H("tr", {},
      H("th", { scope: "row" }, label(String(finding.name))),
      H("td", {}, [words(finding.value, 3), finding.unit].filter(Boolean).join(" ")),
      H("td", {}, finding.threshold === undefined ? "–" : `${finding.direction ?? ""} ${words(finding.threshold, 3)}`),
      H("td", { class: "quiet" }, finding.code ? `${finding.code.meaning} (${finding.code.value}, ${finding.code.scheme})` : "–"))))));
}

function domainOf(i, model) {
  const [flag, p, statistic] = [C.out_of_domain_flag[i], C.out_of_domain_p[i], C.out_of_domain_statistic[i]];
  if (flag === null && (valueOf(i) === null || !model.has_score)) return null;
  const often = p === null ? "" : ` Of the images that it knows, at most ${p < 0.001 ? "0.1" : Number((100 * p).toPrecision(2))} % look this strange.`;
  const far = statistic === null ? "" : ` Distance ${statistic.toFixed(2)}; 19 of 20 known images stay within 1.`;
  const said = flag === null ? "This model holds nothing to tell whether it knows such images."
    : (flag ? "No: the image is unlike those that the model knows, so neither score nor interval is to be relied on." : "Yes.") + often + far;
  return H("section", { class: flag ? "alarm" : null }, H("h3", {}, "Does the model know such images?"), H("p", {}, said));
}

function list(title, lines) {
  return lines.length ? H("section", {}, H("h3", {}, title), H("ul", {}, lines.map((line) => H("li", {}, line)))) : null;
}

// What other models say of the same image.
function othersOf(i) {
  const same = ROWS.filter((j) => j !== i && C.path[j] === C.path[i] && C.frame[j] === C.frame[i]);
  if (!same.length) return null;
  return H("section", {}, H("h3", {}, "By other models"), H("table", {}, H("tbody", {}, same.map((j) => H("tr", {},
    H("th", { scope: "row" }, modelOf(j).name ?? "model not named"), H("td", {}, shown(valueOf(j), modelOf(j))),
    H("td", { class: "quiet" }, modelOf(j).direction ?? "higher is better"))))));
}

function stepsOf(i) {
  const steps = C.preparation_steps[i] ?? [];
  if (!steps.length) return null;
  return H("section", {}, H("h3", {}, "What was read, and how"), H("ol", { class: "steps" }, steps.map(({ step, ...details }) => H("li", {},
    H("b", {}, label(String(step))), " ", Object.entries(details).map(([key, value]) => `${label(key)} ${words(value)}`).join("; ")))));
}

function identityOf(i, model) {
  const entries = [
    ["row", `${i + 1} of the result file`], ["frame", C.frame[i]], ["type", C.modality[i]], ["device", C.device[i]], ["day", C.acquired[i]],
    ["size", imageOf(i).size?.join(" × ")],
    ["model", [model.name, model.version].filter(Boolean).join(" ")], ["run by", C.model_engine[i]], ["model SHA-256", C.model_sha256[i]],
    ["raw score", C.score_raw[i] === null ? null : words(C.score_raw[i])],
    ["windows", C.patches_used[i] === null ? null : `${C.patches_used[i]} judged, ${C.patches_masked[i]} left out`],
    ["file SHA-256", C.sha256[i]], ["study", C.uids_study[i]], ["series", C.uids_series[i]], ["instance", C.uids_instance[i]],
    ["software", C.software[i]], ["scored at", C.created[i]],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const path = H("code", { class: "path" }, C.path[i]);
  const copy = H("button", { type: "button", onclick: () => copyPath(path, copy) }, "Copy");
  return H("section", {}, H("h3", {}, "File"), H("p", { class: "copy" }, path, copy),
    H("dl", { class: "identity" }, entries.map(([name, value]) => [H("dt", {}, name), H("dd", {}, String(value))])));
}

// Where the browser gives no clipboard to local files, the path is left selected for Ctrl-C.
async function copyPath(path, button) {
  try {
    await navigator.clipboard.writeText(path.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(path);
    button.textContent = "Selected";
  }
}
