// What the reader sees and presses. All computing is in the worker (engine.js).

const $ = (id) => document.getElementById(id);
const assets = JSON.parse($("assets").textContent);
const KNOWN = 5, TEXTS = ["a brown dog jumping on the grass", "a yellow car parked in the snow",
  "an orange cat standing on the beach", "a white rabbit jumping on the grass", "a red bird standing at night"];
const SIZE = 128, PREVIEW_STEPS = 4;
const state = { drawing: 2, learned: null, compared: {}, training: false, paused: false, ready: false, id: 0 };
const pictures = {}; // pixels by canvas
let worker, model, sheet, got = 0;

// -- assets: files beside the page or, in the single file, texts inside it

for (const [name, asset] of Object.entries(assets)) {
  if (asset.url) { asset.url = new URL(asset.url, location.href).href; continue; }
  const inside = document.querySelector(`[data-asset="${name}"]`), text = atob(inside.textContent);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  asset.blob = new Blob([bytes], { type: asset.type });
  asset.url = URL.createObjectURL(asset.blob);
  inside.remove();
  document.body.classList.add("single");
}
const total = Object.values(assets).reduce((sum, { bytes }) => sum + bytes, 0);

// -- small things

const tell = (sentence) => { $("notice").textContent = sentence; $("notice").hidden = !sentence; };
const put = (id, pixels) => {
  pictures[id] = pixels;
  for (const canvas of document.querySelectorAll(`#${id}, [data-of="${id}"]`))
    canvas.getContext("2d").putImageData(new ImageData(pixels, SIZE, SIZE), 0, 0);
};
const number = (id) => Number($(id).value);
const noise = () => document.querySelector("[name=noise]:checked").value;
const light = (part) => ($("map").dataset.lit = part);
const article = (words) => (/^[aeiou]/.test(words) ? "an " : "a ") + words;

function sentence({ subject, colour, pose, place }) {
  const say = (name, value) => model.phrases[name][value];
  return `${article(`${say("colour", colour)} ${say("subject", subject)}`)} ${say("pose", pose)} ${say("place", place)}`;
}

function named(text) { // the attributes that a text names in plain words, the drawing's where it names none
  const facts = { ...model.drawings[state.drawing] };
  for (const [name, phrases] of Object.entries(model.phrases))
    for (const [value, phrase] of Object.entries(phrases))
      if (new RegExp(`\\b${name === "place" ? value : phrase}\\b`).test(text.toLowerCase())) facts[name] = value;
  return facts;
}

function unknown(text) {
  const words = text.split(/\s+/).map((word) => word.replace(/^[.,;:!?"'()–-]+|[.,;:!?"'()–-]+$/g, "").toLowerCase());
  return [...new Set(words)].filter((word) => word && !model.words.includes(word));
}

// -- the worker

function start() {
  got = 0;
  const phone = /iPhone|iPad|iPod/.test(navigator.userAgent) || (navigator.maxTouchPoints > 1 && /Mac/.test(navigator.userAgent));
  const asked = Number(new URLSearchParams(location.search).get("threads"));
  const threads = !window.crossOriginIsolated || phone ? 1 : asked || Math.min(navigator.hardwareConcurrency || 1, 8);
  try {
    worker = new Worker(assets["engine.js"].url);
  } catch {
    return tell("This browser blocks workers here: open the page in another browser, or from a web server.");
  }
  worker.onmessage = ({ data }) => answers[data.is]?.(data);
  worker.onerror = (event) => { event.preventDefault?.(); lost("The part of the page that computes has stopped."); };
  worker.postMessage({ ask: "load", assets, threads, key: key() });
}

function lost(why) { // a new worker takes over, which knows the last finished training at most
  worker?.terminate();
  Object.assign(state, { learned: null, training: false, paused: false, ready: false });
  $("controls").disabled = true;
  $("train").disabled = false;
  $("train").textContent = "Load again";
  $("progress").textContent = "Stopped.";
  tell(`${why} Press “Load again”, and then train again.`);
}

const reasonOf = (reason) => /memory|alloc|RangeError|out of bounds/i.test(reason)
  ? "The browser has no memory left for this: close other tabs."
  : /fetch|network/i.test(reason) ? "A part of the model could not be downloaded: check the connection." : reason;

const answers = {
  fetched({ bytes }) {
    if (state.ready) return;
    got += bytes;
    $("bar").value = got / total;
    $("progress").textContent = `The model is loading: ${(got / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB.`;
  },
  ready({ threads, learned }) {
    state.ready = true;
    if (learned) state.learned = learned;
    $("bar").value = 0;
    $("progress").textContent = `Ready, with ${threads} thread${threads > 1 ? "s" : ""}.`;
    refresh();
    if (trained()) draw();
    else compare();
  },
  step({ stage, step, of, loss }) {
    const [name, done] = stage === "embedding" ? ["stage 1, the embedding", 0] : ["stage 2, the UNet", 0.25];
    $("bar").value = done + (step / of) * (stage === "embedding" ? 0.25 : 0.75);
    $("progress").textContent = `${state.paused ? "Paused after" : "Training:"} ${name}, step ${step} of ${of}, loss ${loss.toFixed(3)}`;
    light(stage === "embedding" ? "stage1" : "stage2");
  },
  probe({ stage, step, of, probe, preview }) {
    state.curves[stage].push([step, probe]);
    state.curves[`${stage} of`] = of;
    curves();
    if (preview) put("preview", preview);
  },
  trained({ seconds }) {
    Object.assign(state, { training: false, learned: key() });
    $("bar").value = 1;
    refresh();
    $("progress").textContent = `Trained in ${seconds.toFixed(0)} s. Move the sliders.`;
    draw();
  },
  picture({ id, of, pixels, steps }) {
    if (id !== state.id) return;
    put(of, pixels);
    if (of === "picture") show();
    else state.compared[of] = key();
    if (steps < model.drawing.steps) return draw(state.again ? PREVIEW_STEPS : undefined);
    document.body.dataset[of] = id;
    compare();
  },
  look({ id, pixels }) { if (id === state.id) { put("picture", pixels); show(); } },
  error({ during, reason }) {
    if (during === "draw" || during === "look") return (state.rough = 0), tell(reasonOf(reason));
    lost(reasonOf(reason));
  },
};

// -- training

const key = () => JSON.stringify([state.drawing, $("text").value.trim()]);
const trained = () => state.learned === key();

function train() {
  tell("");
  if (!state.ready) return ($("train").disabled = true), start();
  if (state.training) {
    state.paused = !state.paused;
    worker.postMessage({ ask: state.paused ? "pause" : "go on" });
    $("progress").textContent = state.paused ? "Paused: the page keeps what it has learned so far." : "Going on.";
    return refresh();
  }
  const text = $("text").value.trim();
  history.replaceState({ training: true }, "");
  Object.assign(state, { training: true, paused: false, learned: null, curves: { embedding: [], tuning: [] } });
  $("progress").textContent = "The training begins.";
  const steps = new URLSearchParams(location.search).get("steps")?.split(",").map(Number);
  worker.postMessage({ ask: "train", pixels: pictures.input, text, seed: 0, steps, key: key() });
  refresh();
}

function curves() { // probe loss over the steps, stage 1 in the left quarter
  const { embedding, tuning } = state.curves, all = [...embedding, ...tuning].map(([, loss]) => loss);
  const most = Math.max(...all), y = (loss) => 110 - (92 * loss) / most;
  const line = (stage, from, width) => {
    const of = state.curves[`${stage} of`], points = state.curves[stage];
    return points.length ? `<path class="${stage}" d="M${points.map(([s, l]) => `${from + (width * s) / of} ${y(l)}`).join("L")}"/>` : "";
  };
  $("curves").innerHTML = `<line x1="34" x2="296" y1="110" y2="110"/><line x1="34" x2="34" y1="12" y2="110"/>
    <text x="30" y="${y(most) + 4}" text-anchor="end">${most.toFixed(2)}</text><text x="30" y="113" text-anchor="end">0</text>
    <text x="36" y="9">probe loss</text><text class="embedding" x="36" y="124">stage 1</text><text class="tuning" x="104" y="124">stage 2</text>
    ${line("embedding", 36, 62)}${line("tuning", 104, 188)}`;
  $("curves").setAttribute("aria-label", `The probe loss fell from ${all[0].toFixed(3)} to ${all.at(-1).toFixed(3)}.`);
}

// -- drawing

const drawingOf = () => ({ noise: noise(), eta: number("eta"), lambda: number("lambda"), seed: number("seed") });

function draw(steps) {
  if (!trained() || state.training) return;
  Object.assign(state, { rough: steps, again: false });
  $("step").value = model.drawing.steps;
  outputs();
  worker.postMessage({ ask: "draw", id: ++state.id, of: "picture", ...drawingOf(), steps });
  address();
}

function moved() { // a rough picture at once, one after the other; the whole one when the slider rests
  outputs();
  if (state.rough) state.again = true;
  else draw(PREVIEW_STEPS);
}

function compare() { // what other ways give for this picture and text, while nothing else is to be drawn
  const of = ["alone", "inversion"].find((name) => state.compared[name] !== key()), text = $("text").value.trim();
  if (!state.ready || state.training || !of || !text) return;
  const own = { noise: "own", pixels: pictures.input, caption: sentence(model.drawings[state.drawing]) };
  worker.postMessage({ ask: "draw", id: ++state.id, of, text, seed: 0, ...(of === "alone" ? { noise: "random" } : own) });
}

function show() {
  const { eta, lambda, seed } = drawingOf(), step = number("step"), early = step < model.drawing.steps;
  $("shown").textContent = `η = ${eta}, λ = ${lambda}, seed ${seed}, ${noise()} noise` +
    (early ? `: what the UNet expects at step ${step}` : "");
  $("picture").setAttribute("aria-label", `the picture for “${$("text").value}”: ${$("shown").textContent}`);
  light(early ? "stage4" : "stage3");
}

// -- what can be pressed now, and the address

function outputs() {
  for (const output of document.querySelectorAll("output")) output.textContent = $(output.htmlFor).value;
}

function refresh() {
  const words = unknown($("text").value), text = $("text").value.trim();
  $("unknown").textContent = !text ? "Type what the picture should show." : words.length
    ? `The model never saw ${words.map((word) => `“${word}”`).join(", ")}: to it this is noise. Use the words below.` : "";
  $("train").textContent = state.training ? (state.paused ? "Go on" : "Pause") : trained() ? "Train again" : "Train";
  $("train").disabled = !state.ready || !text;
  for (const id of ["text", "lot"]) $(id).disabled = state.training;
  for (const button of document.querySelectorAll("#strip button, #chips button")) button.disabled = state.training;
  $("controls").disabled = !trained();
  if (state.learned) $("progress").textContent = trained() ? "Trained. Move the sliders." : "Another picture or text: train again.";
  const facts = named(text);
  for (const chip of document.querySelectorAll("#chips button")) {
    chip.setAttribute("aria-pressed", facts[chip.dataset.name] === chip.dataset.value);
    if (chip.dataset.name === "pose") chip.hidden = !model.poses[facts.subject].includes(chip.dataset.value);
  }
  outputs();
}

function address() {
  const { eta, lambda, seed } = drawingOf();
  const given = { drawing: state.drawing, text: $("text").value.trim(), eta, lambda, seed, noise: noise() };
  history.replaceState(null, "", `#${new URLSearchParams(given)}`);
}

function restore() {
  const given = new URLSearchParams(location.hash.slice(1)), wanted = Number(given.get("drawing") ?? 2);
  choose(model.drawings[wanted] ? wanted : 2, given.get("text")?.slice(0, 300));
  for (const id of ["eta", "lambda", "seed"]) if (given.has(id) && Number.isFinite(Number(given.get(id)))) $(id).value = given.get(id);
  for (const radio of document.querySelectorAll("[name=noise]")) if (radio.value === given.get("noise")) radio.checked = true;
  outputs();
  draw();
}

function choose(drawing, text) {
  state.drawing = drawing;
  const canvas = $("input").getContext("2d", { willReadFrequently: true });
  canvas.drawImage(sheet, -drawing * SIZE, 0);
  put("input", canvas.getImageData(0, 0, SIZE, SIZE).data);
  $("input").setAttribute("aria-label", `the input: ${sentence(model.drawings[drawing])}`);
  $("text").value = text ?? TEXTS[drawing] ?? sentence(changed(model.drawings[drawing]));
  for (const button of $("strip").children) button.setAttribute("aria-pressed", Number(button.dataset.k) === drawing);
  light("text");
  refresh();
  compare();
}

function changed(facts) { // another colour, as a first suggestion
  const colours = Object.keys(model.phrases.colour).filter((colour) => colour !== facts.colour);
  return { ...facts, colour: colours[Math.floor(Math.random() * colours.length)] };
}

function furnish() {
  for (let k = 0; k < KNOWN; k++) {
    const button = Object.assign(document.createElement("button"), { type: "button", onclick: () => { choose(k); address(); } });
    button.dataset.k = k;
    button.setAttribute("aria-label", sentence(model.drawings[k]));
    Object.assign(button.style, { backgroundImage: `url(${assets["drawings.png"].url})`, backgroundPositionX: `${(100 * k) / (model.drawings.length - 1)}%` });
    $("strip").append(button);
  }
  for (const [name, phrases] of Object.entries(model.phrases)) {
    const row = Object.assign(document.createElement("div"), { role: "group", ariaLabel: name });
    for (const [value, phrase] of Object.entries(phrases)) {
      const chip = Object.assign(document.createElement("button"), { type: "button", textContent: phrase });
      Object.assign(chip.dataset, { name, value });
      chip.onclick = () => {
        const facts = { ...named($("text").value), [name]: value };
        if (!model.poses[facts.subject].includes(facts.pose)) facts.pose = model.poses[facts.subject][0];
        $("text").value = sentence(facts);
        refresh(); compare(); address();
      };
      row.append(chip);
    }
    $("chips").append(row);
  }
}

function listen() {
  $("lot").onclick = () => { choose(KNOWN + Math.floor(Math.random() * (model.drawings.length - KNOWN))); address(); };
  $("text").oninput = refresh;
  $("text").onchange = () => { refresh(); compare(); address(); };
  $("train").onclick = train;
  for (const id of ["eta", "lambda", "seed"]) $(id).oninput = moved;
  $("step").oninput = () => { outputs(); worker.postMessage({ ask: "look", id: state.id, index: number("step") - 1 }); };
  for (const radio of document.querySelectorAll("[name=noise]")) radio.onchange = () => draw();
  $("save").onclick = () => $("picture").toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${$("text").value.trim().replace(/\W+/g, "-")}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  $("share").onclick = async () => {
    address();
    try { await navigator.clipboard.writeText(location.href); $("shared").textContent = "Copied."; }
    catch { $("shared").textContent = "It is in the address bar."; }
  };
  addEventListener("beforeunload", (event) => { if (state.training) event.preventDefault(); });
  addEventListener("hashchange", restore);
}

async function unpacked(name) {
  const content = (await fetch(assets[name].url)).body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(content).json();
}

async function begin() {
  if (typeof WebAssembly !== "object" || typeof DecompressionStream !== "function")
    return tell("This browser is too old for the page, which needs WebAssembly: update it, or use another.");
  sheet = new Image();
  sheet.src = assets["drawings.png"].url;
  try {
    [model] = await Promise.all([unpacked("model.json"), sheet.decode()]);
  } catch {
    return tell("A part of the page could not be downloaded: check the connection, then reload.");
  }
  $("step").max = $("step").value = model.drawing.steps;
  furnish();
  listen();
  restore();
  if (history.state?.training) tell("The tab was closed during the training, which is lost with it: press “Train” to begin again.");
  start();
}

begin();
