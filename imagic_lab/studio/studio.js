// The page of the studio. Python has the state (app.py); this file shows it, and sends what the reader does.

const PART = 4 * 2 ** 20; // bytes of a message: every Jupyter server, and Colab, let these through
const LARGEST = 50e6; // bytes of a photo
const LOST = "No answer from Python. Was the kernel restarted? Run the cell again: every edit is kept, and a running one " +
  "can go on. Is another cell running? Wait for it.";

function h(tag, props = {}, ...kids) { // an element, its properties or attributes, and what is in it
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props))
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  node.append(...kids.flat().filter(Boolean));
  return node;
}

function keyed(node, key, make) { // fill it anew only if the key has changed, so that nothing vanishes under the mouse
  if (node.key !== (node.key = JSON.stringify(key))) node.replaceChildren(...[make()].flat().filter(Boolean));
}

const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const picture = (alt = "") => h("img", { alt, draggable: false });
const seed = (row) => `seed ${row.seed}` + (row.scale === "1" ? "" : `, λ = ${row.scale}`);

function wipe() { // two pictures on each other; left of the handle is the input
  const [input, result, handle] = [picture("the input"), picture("the edit"), h("div", { className: "handle" })];
  const knob = h("input", { type: "range", value: 0, "aria-label": "wipe: how much of the input covers the edit" });
  const frame = h("div", { className: "frame wipe empty" }, input, result, knob, handle);
  knob.oninput = () => frame.style.setProperty("--at", knob.value / 100);
  const update = (before, after) => {
    if (frame.key === (frame.key = `${before} ${after}`)) return;
    frame.classList.toggle("empty", !after);
    [input.src, result.src] = after ? [before, after] : ["data:,", "data:,"];
  };
  return { frame, update };
}

const KEYS = { // what they do to a crop: across, down, size
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], "+": [0, 0, 1], "-": [0, 0, -1] };

function cropper(send) { // the whole picture, and the square that will be edited
  const box = h("div", { className: "crop", tabIndex: 0, role: "group", "aria-label":
    "the square to edit: arrow keys move it, plus and minus resize it" }, h("div", { className: "corner" }));
  const whole = picture(), frame = h("div", { className: "frame" }, whole, box);
  let [across, down, size, wide, high] = [0.5, 0.5, 1, 1, 1], grip = null; // wide, high: of the picture, in the frame
  const side = () => size * Math.min(wide, high);
  const corner = () => [across * (wide - side()), down * (high - side())]; // its left top one, in the picture
  const show = () => {
    const place = [(1 - wide) / 2 + corner()[0], (1 - high) / 2 + corner()[1], side(), side()];
    ["left", "top", "width", "height"].forEach((name, at) => { box.style[name] = `${100 * place[at]}%`; });
  };
  const done = () => send({ do: "crop", crop: [across, down, size] });
  const put = (left, top) => {
    const share = (at, room) => (room > 1e-6 ? clamp(at / room) : 0.5);
    [across, down] = [share(left, wide - side()), share(top, high - side())];
    show();
  };
  const move = (e) => {
    const place = frame.getBoundingClientRect(), at = (x, length, part) => clamp(x / length) - (1 - part) / 2;
    const [x, y] = [at(e.clientX - place.left, place.width, wide), at(e.clientY - place.top, place.height, high)];
    if (e.type === "pointerdown") { // a grip beside the square takes its middle
      const [left, top] = corner(), [dx, dy] = box.contains(e.target) ? [x - left, y - top] : [side() / 2, side() / 2];
      grip = { left, top, dx, dy, resize: e.target.className === "corner" };
    }
    if (!grip.resize) return put(x - grip.dx, y - grip.dy);
    const room = Math.min(wide - grip.left, high - grip.top), least = Math.min(wide, high);
    size = clamp(Math.max(x - grip.left, y - grip.top), 0.1 * least, room) / least;
    put(grip.left, grip.top);
  };
  frame.onpointerdown = (e) => { if (!box.hidden && !box.inert) { frame.setPointerCapture(e.pointerId); move(e); frame.onpointermove = move; } };
  frame.onpointerup = () => { if (frame.onpointermove) done(); frame.onpointermove = null; };
  box.addEventListener("keydown", (e) => {
    if (!KEYS[e.key]) return;
    e.preventDefault();
    [across, down, size] = [across, down, size].map((value, at) => clamp(value + KEYS[e.key][at] / 20, at === 2 ? 0.1 : 0));
    show();
    done();
  });
  const update = (info, url, busy) => {
    frame.classList.toggle("empty", !url);
    if (whole.src !== url) whole.src = url || "data:,";
    whole.alt = info ? `the picture to edit: ${info.name}` : "";
    [box.hidden, box.inert] = [!info || info.square, busy || !info?.open]; // inert, it only shows what is edited
    if (!info || frame.onpointermove) return; // not under the mouse
    [across, down, size] = info.crop;
    [wide, high] = info.size.map((length) => length / Math.max(...info.size));
    show();
  };
  return { frame, update };
}

function curves(data) { // the probe loss of both stages on one logarithmic scale
  const all = Object.values(data).flatMap((one) => one.loss).map(Math.log);
  const [low, high] = [Math.min(...all) - 0.05, Math.max(...all) + 0.05];
  const write = (x, y, words, anchor = "end") => `<text x="${x}" y="${y}" text-anchor="${anchor}">${words}</text>`;
  const panels = Object.entries(data).map(([name, one], number) => {
    const [left, y] = [50 + 230 * number, (loss) => 120 - (100 * (Math.log(loss) - low)) / (high - low)];
    const points = one.step.map((x, at) => `${left + (200 * x) / Math.max(1, one.steps)},${y(one.loss[at])}`);
    return `<rect x="${left}" y="20" width="200" height="100"/><polyline points="${points.join(" ")}"/>` +
      write(left, 14, name === "unet" ? "stage 2: the UNet" : "stage 1: the embedding", "start") +
      write(left + 200, 134, `step ${one.steps}`);
  });
  const ends = write(46, 28, Math.exp(high).toFixed(3)) + write(46, 120, Math.exp(low).toFixed(3));
  return `<svg viewBox="0 0 490 138" role="img" aria-label="probe loss of both stages">${panels.join("")}${ends}</svg>`;
}

function render({ model, el }) {
  let last = 0, heard = Date.now(), sent = null, typing = null;
  const get = (name) => model.get(name);
  const send = (message, buffers, id = (last = Math.max(Date.now(), last + 1)), tries = 2) => {
    const again = () => { if (tries) send(message, buffers, id, tries - 1); else lost.textContent = LOST; };
    setTimeout(() => { if (get("now").heard < id) again(); }, buffers ? 20000 : 3000); // a page may lose some on reconnecting
    model.send({ ...message, id }, undefined, buffers); // which may fail after a restart
  };
  const button = (words, message, props) => h("button", { type: "button", onclick: () => send(message()), ...props }, words);
  const act = (words, what, props) => button(words, () => ({ do: what }), props);
  const number = (words, value, what, input = h("input", { type: "number", step: "any", value, "aria-label": words })) =>
    h("span", {}, `${words} `, input, button("Draw", () => ({ do: "draw", [what]: input.valueAsNumber })));
  const alert = () => h("div", { className: "error", role: "alert" });

  // the parts
  const lost = alert(), errors = { picture: alert(), run: alert(), gallery: alert(), history: alert() };
  const file = h("input", { type: "file", hidden: true, accept: "image/*,.heic,.heif", "aria-label": "your own picture" });
  const uploading = h("span", { role: "status", className: "hint" }), surprise = act("Surprise me", "surprise");
  const own = h("button", { type: "button", onclick: () => file.click() }, "Your own picture …");
  const examples = Object.entries(get("examples")).map(([name, src]) => h("button", { type: "button", className: "example",
    "aria-label": `example: ${name.replace(/[-.]|png|jpg/g, " ").trim()}`, onclick: () => send({ do: "example", name }) },
  h("img", { src, alt: "" })));
  const text = h("textarea", { rows: 2, placeholder: "describe the whole picture as it should be", "aria-label": "the text" });
  const chips = h("div", { className: "chips" }), notes = h("ul", { className: "notes", "aria-live": "polite" });
  const [run, goOn, stop] = [act("Run", "run", { title: "Ctrl+Enter" }), act("Go on", "go_on"), act("Stop", "stop")];
  const bar = h("progress", { max: 1, "aria-label": "the whole run" }), words = h("span", { className: "words", role: "status" });
  const source = cropper(send), result = wipe(), [sourceWords, resultWords] = [h("figcaption"), h("figcaption")];
  const resultFigure = h("figure", {}, result.frame, resultWords), link = { className: "link" };
  const dialog = h("dialog", { onclose: () => resultFigure.prepend(result.frame) });
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const enlarge = () => { dialog.replaceChildren(result.frame, close); dialog.showModal(); };
  const gallery = h("div"), galleryWords = h("p");
  const tools = h("div", { className: "row" }, number("new η", 0.9, "eta"), number("new λ", 0.5, "scale"),
    button("Two more seeds", () => ({ do: "draw", seeds: 2 })), act("Download the picture", "save"));
  const galleryBox = h("section", {}, h("h3", {}, "Gallery"), galleryWords, gallery, errors.gallery, tools);
  const training = h("div", { className: "training" });
  const trainingBox = h("details", { open: true }, h("summary", {}, "The training, with sketches at η = 0 and η = 0.8"), training);
  const history = h("div", { className: "history" }), bin = h("div", { className: "row" });
  const historyBox = h("section", {}, h("h3", {}, "Earlier edits"), errors.history, history, bin);
  const root = h("div", { className: "imagic-studio", "data-lm-suppress-shortcuts": "true" }, lost,
    h("section", {}, h("h3", {}, "1 · Choose a picture"), h("div", { className: "row" }, examples, surprise, own,
      uploading), errors.picture),
    h("div", { className: "desk" }, h("section", {}, h("h3", {}, "2 · Say what it should show"), text, chips, notes,
      h("div", { className: "row" }, run, goOn, stop), bar, words, errors.run),
    h("section", { className: "stage" }, h("figure", {}, source.frame, sourceWords), resultFigure)),
    galleryBox, trainingBox, historyBox, file, dialog);
  el.replaceChildren(root);

  // what the reader does
  async function upload(chosen) {
    if (!chosen || get("now").busy) return;
    const named = `${chosen.name}, ${megabytes(chosen.size)}`, most = `the studio takes up to ${megabytes(LARGEST)}`;
    if (chosen.size > LARGEST) return void (errors.picture.textContent = `✗ ${named}: ${most}`);
    uploading.textContent = `uploading ${named} …`;
    const content = await chosen.arrayBuffer(), size = content.byteLength;
    for (let start = 0; start === 0 || start < size; start += PART)
      send({ do: "file", name: chosen.name, size, start }, [content.slice(start, start + PART)]);
  }
  const type = () => { clearTimeout(typing); if (text.value !== sent) send({ do: "text", text: (sent = text.value) }); };
  file.onchange = () => { upload(file.files[0]); file.value = ""; };
  text.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(type, 250); });
  text.addEventListener("blur", type);
  root.addEventListener("dragover", (e) => { e.preventDefault(); root.classList.add("over"); });
  root.addEventListener("dragleave", () => root.classList.remove("over"));
  root.addEventListener("drop", (e) => { e.preventDefault(); root.classList.remove("over"); upload(e.dataTransfer.files[0]); });
  root.addEventListener("paste", (e) => upload(e.clipboardData.files[0]));
  root.addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { type(); if (!run.disabled) run.click(); }
  });

  // what Python says
  function show() {
    const now = get("now"), { busy, picture: info } = now, stage = get("stage");
    [heard, lost.textContent] = [Date.now(), ""];
    if (now.heard >= last) uploading.textContent = "or drop or paste one here";
    if (now.text !== sent) text.value = sent = now.text;
    for (const node of [text, surprise, own, ...examples]) node.disabled = busy;
    [run.disabled, goOn.disabled, stop.disabled] = [busy || !now.can_run, busy || !now.can_go_on, !busy];
    [run.className, goOn.className] = now.first === "run" ? ["first", ""] : ["", "first"];
    keyed(notes, now.notes, () => now.notes.map((note) => h("li", {}, note)));
    keyed(chips, [now.chips, now.named, busy], () => Object.entries(now.chips).map(([kind, values]) =>
      h("div", { role: "group", "aria-label": kind }, values.map((value) => button(value, () => ({ do: "chip", [kind]: value }),
        { className: "chip", disabled: busy, "aria-pressed": now.named[kind] === value })))));
    [bar.value, words.textContent] = [now.share, now.words];
    bar.classList.toggle("idle", !busy);
    for (const at in errors) errors[at].textContent = now.error.at === at ? `✗ ${now.error.text}` : "";
    source.update(info, stage.source, busy);
    const free = info && !info.square && `, ${info.size.join(" × ")} pixels`;
    keyed(sourceWords, [info, busy], () => info ? [info.name, free && info.open ? `${free}: drag the square` : "",
      free && !info.open && !busy ? act("crop anew", "recrop", link) : ""] : "the picture");
    result.update(stage.input, stage.result);
    const tile = now.rows.flatMap((row) => row.tiles.map(([eta, name]) => [name, `η = ${eta}, ${seed(row)}: `]));
    const which = now.sketch ? `a sketch, ${now.sketch}: ` : new Map(tile).get(now.chosen) || "";
    keyed(resultWords, [which, now.edit, !stage.result], () => [now.edit ? `${which}“${now.edit}”` : "the edit",
      stage.result ? h("button", { type: "button", className: "link", onclick: enlarge }, "enlarge") : ""]);
    showGallery(now, get("tiles"));
    trainingBox.hidden = !Object.keys(now.curves).length && !get("sketches").length;
    keyed(training, [now.curves, get("sketches").map((one) => one.label)], () => [
      h("div", { className: "plot", innerHTML: Object.keys(now.curves).length ? curves(now.curves) : "" }),
      ...get("sketches").map((one) => h("figure", {}, one.pictures.map((src, at) =>
        h("img", { src, alt: `a sketch at η = ${["0", "0.8"][at]}, ${one.label}` })), h("figcaption", {}, one.label)))]);
  }
  function showGallery(now, tiles) {
    const [eta, scale, good] = now.suggested || [], open = now.made && !now.busy;
    galleryBox.hidden = !now.rows.length;
    galleryWords.textContent = `“${now.edit}”: click the picture that you like best.` + (!now.suggested ? "" : good
      ? ` Suggested: η = ${eta}, λ = ${scale}.` : " None of the first ones shows what the text says: try other words.");
    for (const node of tools.querySelectorAll("button, input")) node.disabled = !open;
    keyed(gallery, [now.rows, Object.keys(tiles)], () => now.rows.map((row) => h("div", {}, h("h4", {}, seed(row)),
      h("div", { className: "tiles", style: `--n: ${row.tiles.length}` }, row.tiles.map(([eta, name]) => button(
        [h("span", { className: "frame" }, tiles[name] && h("img", { src: tiles[name], alt: "" })), `η = ${eta}`],
        () => ({ do: "choose", name }),
        { className: "tile", name, disabled: !tiles[name], "aria-label": `η = ${eta}, ${seed(row)}` }))))));
    for (const tile of gallery.querySelectorAll(".tile")) tile.setAttribute("aria-pressed", tile.name === now.chosen);
  }
  function showHistory() {
    const { edits, binned, size } = get("history"), begun = edits.filter((one) => one.state === "unfinished");
    historyBox.hidden = !edits.length && !binned;
    history.replaceChildren(...edits.map(({ name, text, state, size, cover }) => {
      const field = h("input", { value: name, "aria-label": `name of “${text}”` });
      field.onchange = () => send({ do: "rename", name, to: field.value });
      const tool = (what, more) => button(what, () => ({ do: what, ...more }), { ...link, "aria-label": `${what} ${name}` });
      return h("article", { className: "card" }, cover && h("img", { src: cover, alt: "" }),
        h("div", {}, h("b", {}, text), field, h("span", { className: "hint" }, `${state} · ${megabytes(size)}`)),
        h("div", { className: "row" }, tool("open", { name }), tool("duplicate", { name }), tool("delete", { names: [name] })));
    }));
    bin.replaceChildren(...[begun.length && button(`Put ${begun.length} unfinished into the bin`,
      () => ({ do: "delete", names: begun.map((one) => one.name) })),
      binned && act("Undo the last deletion", "undo"),
      binned && act(`Empty the bin (${binned}, ${megabytes(size)})`, "empty")].filter(Boolean));
  }
  model.on("msg:custom", ({ file }, buffers) => h("a", { href: URL.createObjectURL(new Blob(buffers)), download: file }).click());
  for (const name of ["now", "stage", "tiles", "sketches"]) model.on(`change:${name}`, show);
  model.on("change:history", showHistory);
  const gone = () => get("now").busy && Date.now() - heard > 12000;
  const pulse = setInterval(() => { if (get("now").elsewhere) send({ do: "look" }); else if (gone()) lost.textContent = LOST; }, 3000);
  show();
  showHistory();
  if (get("now").beat === 1) setTimeout(() => root.scrollIntoView(), 300); // new, and below a long cell
  return () => clearInterval(pulse);
}

export default { render };
