// The page of `saqm rate`. It knows places in an order, no file names; what it says is kept before the next image comes.

const REST = 300; // milliseconds of an empty stage between two images, so that they cannot be compared by flicker
const STEPS = 100; // of the slider
const $ = (id) => document.getElementById(id);
const stage = $("stage"), picture = $("picture"), slider = $("slider");

let study, reader, place = 0, total = 0;
let busy = true; // between an answer and the next image
let zoomed = false;

// Talking to the program

class Refused extends Error {}

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body && {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The program behind this page has stopped. Every score you gave is kept: start it again, and open the new address.");
  }
  if (answer.ok) return answer;
  throw new Refused((await answer.json()).error);
}

const waiting = new Map(); // place -> promise of the address of its picture
function load(at) {
  if (!waiting.has(at)) {
    const coming = ask(`image/${reader}/${at}`).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob));
    coming.catch(() => waiting.delete(at));
    waiting.set(at, coming);
  }
  return waiting.get(at);
}

function forget(except) {
  for (const [at, coming] of waiting) {
    if (!except.includes(at)) {
      coming.then((address) => URL.revokeObjectURL(address), () => {});
      waiting.delete(at);
    }
  }
}

// Showing

function only(id) {
  for (const each of ["welcome", "farewell", "stage"]) $(each).hidden = each !== id;
  $("controls").hidden = id !== "stage";
}

function problem(text) { $("problem").textContent = text; }
const report = (error) => problem(error.message);

function fit() {
  if (!picture.naturalWidth) return;
  const dots = window.devicePixelRatio; // of the screen, for each pixel of the page
  const room = Math.min(stage.clientWidth * dots / picture.naturalWidth, stage.clientHeight * dots / picture.naturalHeight);
  const fitting = room >= 1 ? Math.floor(room) : room; // enlarged by whole factors only: nothing is smoothed
  const factor = !zoomed ? fitting : fitting >= 1 ? 2 * fitting : 1;
  picture.style.width = `${picture.naturalWidth * factor / dots}px`;
  picture.classList.toggle("whole", factor >= 1);
  stage.classList.toggle("zoomed", zoomed);
  $("zoom").setAttribute("aria-pressed", zoomed);
  $("scale").textContent = factor >= 1 ? `${factor} : 1 pixels` : `reduced to ${Math.round(100 * factor)} %`;
  stage.scrollTo((stage.scrollWidth - stage.clientWidth) / 2, (stage.scrollHeight - stage.clientHeight) / 2);
}

async function show() {
  busy = true;
  picture.removeAttribute("src");
  picture.style.visibility = "hidden";
  $("progress").max = total;
  $("progress").value = place;
  $("undo").disabled = place === 0;
  if (place === total) {
    busy = false;
    return rest(`All ${total} images are rated. Thank you. You may close this page.`, false);
  }
  only("stage");
  $("status").textContent = `${place + 1} of ${total}`;
  unset();
  const [address] = await Promise.all([load(place), new Promise((done) => setTimeout(done, REST))]);
  picture.src = address;
  await picture.decode();
  zoomed = false;
  fit();
  picture.style.visibility = "visible";
  if (study.graded) document.activeElement?.blur();
  else slider.focus({ focusVisible: false });
  busy = false;
  forget([place, place + 1]);
  if (place + 1 < total) load(place + 1).catch(() => {});
}

function rest(text, more) {
  only("farewell");
  $("status").textContent = `${place} of ${total}`;
  $("thanks").textContent = text;
  $("back").textContent = more ? "Go on" : "Take back the last score";
  $("farewell").focus();
}

// Answering

async function step(work) {
  if (busy) return;
  busy = true;
  problem("");
  try {
    ({ place, total } = await work());
  } catch (error) {
    problem(error.message);
    busy = false; // the image is still there
    if (error instanceof Refused) await begin().catch(report);
    return;
  }
  await show().catch(report); // stays busy where the image does not come: nobody rates what he has not seen
}

const rate = (score) => step(async () => (await ask("rating", { number: reader, place, score })).json());
const undo = () => place > 0 && step(async () => (await ask("withdrawal", { number: reader, place: place - 1 })).json());

async function pause() {
  if (busy) return;
  try {
    await ask("pause", {});
    rest(`Kept: ${place} of ${total}. You may close this page, and go on later.`, true);
  } catch (error) {
    report(error);
  }
}

function toggle() {
  zoomed = !zoomed;
  fit();
}

function unset() {
  slider.value = (study.low + study.high) / 2;
  slider.classList.add("unset");
  $("value").textContent = "–";
  $("confirm").disabled = true;
}

function set() {
  slider.classList.remove("unset");
  $("value").textContent = String(slider.valueAsNumber);
  $("confirm").disabled = false;
}

function confirm() {
  if ($("confirm").disabled) problem("Move the slider first.");
  else rate(slider.valueAsNumber);
}

function build() {
  $("question").textContent = document.title = study.question;
  $("grades").hidden = !study.graded;
  $("continuum").hidden = study.graded;
  study.words.forEach((word, index) => {
    if (study.graded) {
      const button = document.createElement("button"), key = document.createElement("kbd");
      button.type = "button";
      key.textContent = index + 1;
      button.append(word, key);
      button.setAttribute("aria-keyshortcuts", index + 1);
      button.addEventListener("click", () => rate(index + 1));
      $("grades").append(button);
    } else {
      $("words").append(Object.assign(document.createElement("span"), { textContent: word }));
    }
  });
  Object.assign(slider, { min: study.low, max: study.high, step: (study.high - study.low) / STEPS });
}

// Keys: 1 to 5 or arrows and Enter, U, Z, P; Shift with arrows moves the enlarged picture

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function choose(by) {
  const buttons = [...$("grades").children], at = buttons.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : buttons.length - 1) : at + by;
  buttons[Math.min(Math.max(next, 0), buttons.length - 1)].focus({ focusVisible: true });
}

function nudge([right, down]) {
  if (right > 0 || down < 0) slider.stepUp();
  else slider.stepDown();
  slider.focus();
  set();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !$("welcome").hidden) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const rating = !stage.hidden;
  let known = true;
  if ((key === "u" || key === "Backspace") && (rating || place === total)) undo();
  else if (!rating) known = false;
  else if (key === "z") toggle();
  else if (key === "p") pause();
  else if (event.shiftKey && key in MOVES) stage.scrollBy(...MOVES[key].map((side) => 60 * side));
  else if (study.graded && /^[1-9]$/.test(key)) {
    if (Number(key) <= study.words.length && !event.repeat) rate(Number(key));
  } else if (study.graded && (key === "ArrowLeft" || key === "ArrowRight")) choose(MOVES[key][0]);
  else if (!study.graded && key in MOVES) nudge(MOVES[key]);
  else if (!study.graded && key === "Enter" && !(document.activeElement instanceof HTMLButtonElement)) confirm();
  else known = false;
  if (known) event.preventDefault();
});

slider.addEventListener("input", set);
slider.addEventListener("pointerup", set); // a click on the middle moves nothing
$("confirm").addEventListener("click", confirm);
$("undo").addEventListener("click", undo);
$("zoom").addEventListener("click", toggle);
$("pause").addEventListener("click", pause);
$("back").addEventListener("click", () => (place === total ? undo() : show().catch(report)));
window.addEventListener("resize", fit);
stage.addEventListener("pointermove", (event) => {
  if (event.buttons === 1) stage.scrollBy(-event.movementX, -event.movementY);
});

// Beginning

async function begin() {
  const name = study.reader ?? $("name").value;
  const state = await (await ask("begin", { reader: name })).json();
  ({ place, total } = state);
  reader = state.number;
  forget([]);
  await show();
}

$("welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  begin().catch((error) => {
    only("welcome");
    $("name").setCustomValidity(error.message);
    $("name").reportValidity();
  });
});
$("name").addEventListener("input", () => $("name").setCustomValidity(""));

study = await (await ask("study")).json();
build();
if (study.reader === null) {
  only("welcome");
  $("name").focus();
} else {
  await begin().catch(report);
}
