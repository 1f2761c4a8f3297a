// The worker that computes: it loads the networks, trains both stages, and draws. Asked by messages {ask, …}, it answers
// {is, …}; the latest request for a picture wins. What it fetches is listed by the page, each with its size in bytes.

let ort, maths, assets, model, alphas, tokenizer, loaded, tuned, mixed, empty;
const sessions = {}, ranges = {}, feeds = new Map(), paths = new Map();
let edit = null, mixedAt = null, drawn = [], latest = 0, paused = false, waiting = [], queue = Promise.resolve();

const say = (is, more = {}) => postMessage({ is, ...more });
const channel = new MessageChannel(), ticks = [];
channel.port1.onmessage = () => ticks.shift()();
const tick = () => new Promise((go) => { ticks.push(go); channel.port2.postMessage(0); }); // lets messages in

async function bytesOf(name) {
  const reply = await fetch(assets[name].url);
  if (!reply.ok) throw new Error(`${name} could not be fetched (${reply.status}).`);
  const count = new TransformStream({ transform(part, to) { say("fetched", { bytes: part.length }); to.enqueue(part); } });
  const content = reply.body.pipeThrough(count).pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(content).arrayBuffer());
}
const textOf = async (name) => new TextDecoder().decode(await bytesOf(name));

function widened(halves) { // float16 -> float32, by a table of all 65,536 numbers
  const table = Float32Array.from({ length: 65536 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, rest = bits & 1023;
    return sign * (exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : (rest / 1024) * 2 ** -14);
  });
  const wide = new Float32Array(halves.length);
  for (let k = 0; k < halves.length; k++) wide[k] = table[halves[k]]; // many times faster than Float32Array.from
  return wide;
}

async function load(message) {
  assets = message.assets;
  for (const asset of Object.values(assets)) if (asset.blob) asset.url = URL.createObjectURL(asset.blob); // of a file: page
  [ort, maths] = await Promise.all([import(assets["ort.mjs"].url), import(assets["maths.js"].url)]);
  const { Tokenizer } = await import(assets["tokenizers.mjs"].url);
  const halves = bytesOf("weights.bin"); // what doesn't need the weights begins before they are here
  const [facts, words, wasm] = await Promise.all([textOf("model.json"), textOf("tokenizer.json"), bytesOf("ort.wasm")]);
  model = JSON.parse(facts);
  [tokenizer, alphas] = [new Tokenizer(JSON.parse(words), {}), maths.alphasOf(model.process)];
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.numThreads = message.threads;
  ort.env.logLevel = "error";
  const [numbers] = await Promise.all([halves, ...["text", "unet", "decode"].map(session)]);
  loaded = widened(new Uint16Array(numbers.buffer));
  let at = 0;
  for (const [name, shape] of Object.entries(model.weights)) {
    ranges[name] = { from: at, to: (at += maths.numbersIn(shape)), shape };
  }
  empty = await encoded("");
  say("ready", { threads: message.threads, learned: await recalled(message.key) && message.key });
}

function session(name) {
  const options = { executionProviders: ["wasm"] };
  return (sessions[name] ??= bytesOf(`${name}.onnx`).then((graph) => ort.InferenceSession.create(graph, options)));
}

// All weights as inputs by name, once for each array: what is written into the array later is seen
function weightsIn(array) {
  if (!feeds.has(array)) {
    const all = Object.entries(ranges).map(([name, { from, to, shape }]) =>
      [name, new ort.Tensor("float32", array.subarray(from, to), shape)]);
    feeds.set(array, Object.fromEntries(all));
  }
  return feeds.get(array);
}

async function run(name, inputs, array = loaded) {
  const weights = weightsIn(array), given = { ...inputs };
  for (const weight of model.graphs[name]) given[weight] = weights[weight];
  return (await session(name)).run(given);
}
const tensor = (data, ...shape) => new ort.Tensor("float32", data, shape);
const whole = (numbers, ...shape) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
const joined = (parts) => {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
  return all;
};
const latents = (z, count) => tensor(z, count, ...model.latents);
const texts = (e, count) => tensor(e, count, model.tokens, e.length / count / model.tokens);

async function encoded(text) { // text -> e, (tokens, width)
  const found = Array.from(tokenizer.encode(text).ids), end = found.at(-1), ids = [...found.slice(0, model.tokens - 1), end];
  while (ids.length < model.tokens) ids.push(end);
  return (await run("text", { ids: whole(ids, 1, model.tokens) })).answer.data;
}

async function predicted(z, times, e, array) { // the UNet's answers for a batch
  const inputs = { z_t: latents(z, times.length), t: whole(times, times.length), e: texts(e, times.length) };
  return (await run("unet", inputs, array)).answer.data;
}

function guess(e, array, guidance, id) { // guess(z_t, t, …), guided (Ho & Salimans 2022): ε_∅ + s·(ε_text - ε_∅)
  return async (z, ...times) => {
    await tick();
    if (id && id !== latest) throw new Stale();
    const text = joined(times.map(() => e));
    if (guidance === 1) return predicted(z, times, text, array);
    const both = joined([...times.map(() => empty), text]);
    const answer = await predicted(joined([z, z]), [...times, ...times], both, array);
    return maths.mix(answer.subarray(0, z.length), answer.subarray(z.length), guidance);
  };
}
class Stale extends Error {}

async function decoded(z) { // latents -> pixels, RGBA
  const planes = (await run("decode", { z: latents(z, 1) })).answer.data, area = planes.length / 3;
  const pixels = new Uint8ClampedArray(4 * area).fill(255);
  for (let k = 0; k < area; k++) for (let c = 0; c < 3; c++) pixels[4 * k + c] = (planes[c * area + k] + 1) * 127.5;
  return pixels;
}

async function encodedPicture(pixels) {
  const area = pixels.length / 4, planes = new Float32Array(3 * area);
  for (let k = 0; k < area; k++) for (let c = 0; c < 3; c++) planes[c * area + k] = pixels[4 * k + c] / 127.5 - 1;
  return (await run("encode", { x: tensor(planes, 1, 3, model.pixels, model.pixels) })).answer.data;
}

// -- the two trainings

async function train({ pixels, text, seed, steps, key, probeEvery = 5, previewSteps = 5 }) {
  [edit, drawn, paused] = [null, [], false];
  paths.clear();
  const began = performance.now(), stages = [model.embedding, model.tuning].map((s, k) => ({ bias: 0, decay: 0, ...s, steps: steps?.[k] ?? s.steps }));
  const z = await encodedPicture(pixels), e_tgt = await encoded(text), e = e_tgt.slice();
  const probe = maths.probeOf(alphas, z);
  tuned ??= new Float32Array(loaded.length);
  tuned.set(loaded);
  const learning = { embedding: new maths.Adam(e), tuning: new maths.Adam(tuned) };
  const history = { embedding: [], tuning: [] }, generator = new maths.Generator(seed); // one for both, as in Python

  async function look(stage, step, of) {
    const answer = await predicted(probe.z_t, probe.t, joined(probe.t.map(() => e)), tuned);
    history[stage].push([step, maths.meanSquare(answer, probe.target)]);
    const times = maths.timesteps(previewSteps, model.process);
    const start = new maths.Generator(0).normal(z.length);
    const preview = previewSteps ? await decoded(await maths.alongPath(guess(e, tuned, 1), { start }, times, alphas)) : null;
    say("probe", { stage, step, of, probe: history[stage].at(-1)[1], preview });
  }

  for (const [k, stage] of ["embedding", "tuning"].entries()) {
    const { steps: count, lr, batch, bias, decay } = stages[k];
    await session(stage);
    await look(stage, 0, count);
    for (let step = 1; step <= count; step++) {
      while (paused) await new Promise((go) => waiting.push(go));
      const t = maths.stratified(batch, alphas.length, generator, bias), target = generator.normal(batch * z.length);
      const z_t = maths.noised(alphas, z, target, t);
      const inputs = { z_t: latents(z_t, batch), t: whole(t, batch), e: texts(e, 1), target: latents(target, batch) };
      const answer = await run(stage, inputs, tuned), adam = learning[stage];
      if (!Number.isFinite(answer.loss.data[0])) throw new Error("The training diverged: its loss is not a finite number.");
      adam.begin(maths.rateAt(step, count, lr, decay));
      if (stage === "embedding") adam.descend(answer["d e"].data);
      else for (const name of model.graphs.tuning) adam.descend(answer[`d ${name}`].data, ranges[name].from);
      say("step", { stage, step, of: count, loss: answer.loss.data[0] });
      await tick();
      if (step % probeEvery === 0 || step === count) await look(stage, step, count);
    }
  }
  [edit, mixedAt] = [{ z, e_tgt, e_opt: e }, null];
  say("trained", { history, e_opt: e.slice(), seconds: (performance.now() - began) / 1000 });
  await keep(key);
}

// -- a finished training outlives the tab, except in browsers that keep nothing, as for a page from a file

const mark = (key) => encodeURIComponent(`${assets["weights.bin"].bytes} ${key}`); // of this model, picture and text

async function keep(key) {
  try {
    const all = new Blob([edit.z, edit.e_tgt, edit.e_opt, tuned]), headers = { "X-Training": mark(key) };
    await (await caches.open("imagic")).put("training", new Response(all, { headers }));
  } catch { /* it was not kept: then a reload trains again */ }
}

async function recalled(key) {
  const found = await Promise.resolve().then(() => caches.match("training")).catch(() => null);
  if (found?.headers.get("X-Training") !== mark(key)) return false;
  const all = new Float32Array(await found.arrayBuffer()), width = empty.length;
  let at = 0;
  const next = (count) => all.slice(at, (at += count));
  edit = { z: next(maths.numbersIn(model.latents)), e_tgt: next(width), e_opt: next(width) };
  tuned = next(loaded.length);
  return true;
}

// -- drawing

function weightsAt(lambda) { // θ_λ = θ + λ(θ* - θ)
  if (lambda === 0) return loaded;
  if (lambda === 1) return tuned;
  if (lambda !== mixedAt) mixed = maths.mix(loaded, tuned, lambda, mixed);
  mixedAt = lambda;
  return mixed;
}

async function pathOf({ z, e_opt }, array, key, seed, times) { // the picture's own noise at e_opt, kept for the next η
  if (!paths.has(key)) {
    const some = guess(e_opt, array, model.drawing.own_guidance, latest), size = z.length;
    const all = async (levels) => { // five at a time: the levels don't wait for each other
      const answers = [];
      for (let k = 0; k < levels.length; k += 5) {
        const answer = await some(joined(levels.slice(k, k + 5)), ...times.slice(k, k + 5));
        for (let at = 0; at < answer.length; at += size) answers.push(answer.slice(at, at + size));
      }
      return answers;
    };
    const path = await maths.ownNoise(all, z, seed, times, alphas);
    if (paths.size > 40) paths.clear();
    paths.set(key, path);
  }
  return paths.get(key);
}

// An edit, or without training: a text, along the noise that this picture has at its caption, or along random noise
async function draw({ id, of, noise, text, caption, pixels, eta, lambda, seed, steps = model.drawing.steps }) {
  if (id !== latest) return;
  const seen = [], look = (z_0) => seen.push(z_0), size = maths.numbersIn(model.latents);
  const array = text ? loaded : weightsAt(lambda), { guidance_scale, own_guidance } = model.drawing;
  const e = text ? await encoded(text) : maths.mix(edit.e_opt, edit.e_tgt, eta);
  let z;
  if (noise === "own") {
    const from = text ? { z: await encodedPicture(pixels), e_opt: await encoded(caption) } : edit;
    const times = maths.timesteps(steps, model.process), key = `${text ? `untrained ${id}` : lambda} ${seed} ${steps}`;
    const path = await pathOf(from, array, key, seed, times);
    z = await maths.alongPath(guess(e, array, own_guidance, id), path, times, alphas, look);
  } else {
    const times = maths.timesteps(steps, model.process, steps + 1);
    z = await maths.sampled(guess(e, array, guidance_scale, id), seed, size, times, alphas, look);
  }
  if (!text) drawn = [...seen.slice(0, -1), z];
  say("picture", { id, of, pixels: await decoded(z), steps });
}

async function look({ id, index }) { // ẑ_0 as the UNet saw it at this step of the last picture
  if (id === latest && drawn[index]) say("look", { id, index, pixels: await decoded(drawn[index]) });
}

const tasks = { load, train, draw, look };

onmessage = ({ data }) => {
  if (data.ask === "pause") return void (paused = true);
  if (data.ask === "go on") return void ((paused = false), waiting.splice(0).forEach((go) => go()));
  if (data.id) latest = data.id;
  queue = queue.then(() => tasks[data.ask](data)).catch((error) => {
    if (!(error instanceof Stale)) say("error", { during: data.ask, reason: String(error?.message ?? error) });
  });
};
