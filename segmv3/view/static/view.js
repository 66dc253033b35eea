// The page of `segmv3 view`: layers come as pictures and id maps, colours are put on here.

const $ = (id) => document.getElementById(id);
const about = await (await fetch("about")).json();
const idLayers = Object.keys(about.layers).filter((name) => about.layers[name] !== "picture");
const pictures = Object.keys(about.layers).filter((name) => about.layers[name] === "picture");
const hidden = new Set();
const state = { index: 0, over: idLayers[0] ?? null, base: pictures[0] ?? null, playing: about.live, layers: {} };

$("title").textContent = document.title = about.title;
$("list").hidden = about.live;
$("play").hidden = !about.live;
$("draw").hidden = !("sample" in about.layers);

// ---- theme ----

const dark = localStorage.getItem("dark") ?? matchMedia("(prefers-color-scheme: dark)").matches.toString();
document.documentElement.classList.toggle("dark", dark === "true");
const toggleTheme = () => localStorage.setItem("dark", document.documentElement.classList.toggle("dark"));
$("theme").onclick = toggleTheme;

// ---- drawing ----

const canvases = [0, 1].map(() => $("pictures").appendChild(document.createElement("canvas")));

async function pixels(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function painted(base, over, kind, opacity) {
  const size = base ?? over;
  const out = new ImageData(size.width, size.height);
  const under = base?.data, ids = over?.data, alpha = base ? opacity : 1;
  const fits = over && over.width === out.width && over.height === out.height;
  for (let i = 0; i < out.data.length; i += 4) {
    const id = fits ? ids[i] : 255;
    const color = kind === "confidence" ? [255 - id, id, 60] : about.classes[id]?.color;
    const shown = fits && color && !(kind === "ids" && hidden.has(id));
    for (let c = 0; c < 3; c++) {
      const below = under ? under[i + c] : 0;
      out.data[i + c] = shown ? below + alpha * (color[c] - below) : below;
    }
    out.data[i + 3] = 255;
  }
  return out;
}

function paint() {
  const { base, over, layers } = state;
  const opacity = $("opacity").value / 100, beside = $("beside").checked && base && over;
  const both = [painted(layers[base], beside ? null : layers[over], about.layers[over], opacity)];
  if (beside) both.push(painted(null, layers[over], about.layers[over], 1));
  canvases.forEach((canvas, place) => {
    canvas.hidden = !both[place];
    if (!both[place]) return;
    canvas.width = both[place].width;
    canvas.height = both[place].height;
    canvas.getContext("2d").putImageData(both[place], 0, 0);
  });
  shares(layers[over]);
}

function shares(map) {
  const counts = new Uint32Array(256);
  if (map && about.layers[state.over] === "ids") for (let i = 0; i < map.data.length; i += 4) counts[map.data[i]]++;
  const total = map ? map.data.length / 4 : 1;
  document.querySelectorAll("#classes li").forEach((item) => {
    const share = counts[item.dataset.id] / total;
    item.hidden = about.classes.length > 40 && !share;
    item.querySelector("small").textContent = share ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %` : "";
  });
}

// ---- pictures by number ----

async function layer(index, name) {
  const answer = await fetch(`item/${index}/${encodeURIComponent(name)}`);
  if (!answer.ok) throw new Error(await answer.text());
  return pixels(await answer.blob());
}

async function show(index) {
  state.index = Math.max(0, Math.min(about.names.length - 1, index));
  const wanted = state.index, begun = performance.now();
  document.querySelectorAll("#names button").forEach((button, i) => {
    if (i === wanted) { button.setAttribute("aria-current", "true"); button.scrollIntoView({ block: "nearest" }); }
    else button.removeAttribute("aria-current");
  });
  try {
    const names = [state.base, state.over].filter(Boolean);
    const found = await Promise.all(names.map((name) => layer(wanted, name)));
    if (wanted !== state.index) return;
    names.forEach((name, i) => { state.layers[name] = found[i]; });
    paint();
    const size = found[0];
    $("status").textContent = `${wanted + 1} of ${about.names.length} · ${size.width} x ${size.height} · ${Math.round(performance.now() - begun)} ms`;
  } catch (error) {
    $("status").textContent = error.message;
  }
}

const names = about.names.map((name, index) => {
  const item = document.createElement("li"), button = item.appendChild(document.createElement("button"));
  button.textContent = name;
  button.onclick = () => show(index);
  $("names").append(item);
  return item;
});
const facts = new Map();

$("filter").oninput = async () => {
  const text = $("filter").value, asked = /^\s*(.+?)\s*([<>])\s*(\d+(?:\.\d+)?)\s*%?\s*$/.exec(text);
  for (let i = 0; i < names.length; i++) {
    if (!asked) { names[i].hidden = !about.names[i].toLowerCase().includes(text.toLowerCase()); continue; }
    if (!facts.has(i)) {
      const answer = await fetch(`item/${i}/facts`);
      facts.set(i, answer.ok ? await answer.json() : {});
    }
    if ($("filter").value !== text) return; // typed on meanwhile
    const value = facts.get(i)[asked[1]] ?? 0;
    names[i].hidden = asked[2] === ">" ? value <= Number(asked[3]) : value >= Number(asked[3]);
    $("status").textContent = `${names.slice(0, i + 1).filter((item) => !item.hidden).length} of ${i + 1} pictures: ${text}`;
  }
};

function next(step) {
  let index = state.index + step;
  while (names[index]?.hidden) index += step;
  if (names[index]) show(index);
}

// ---- frames as they come ----

async function play() {
  let number = -1, ended = false, shown = 0, since = performance.now(), rate = 0;
  while (!ended) {
    if (!state.playing) { await new Promise((done) => setTimeout(done, 50)); continue; }
    let answer;
    try { answer = await fetch(`frame?after=${number}`); } catch { $("status").textContent = "segmv3 view has ended"; return; }
    if (!answer.ok) { $("status").textContent = await answer.text(); return; }
    const buffer = await answer.arrayBuffer();
    if (!buffer.byteLength) { $("status").textContent += " · the end"; ended = true; break; }
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    let start = 4 + length;
    const parts = header.sizes.map((size) => new Blob([buffer.slice(start, (start += size))]));
    const [image, labels, confidence] = await Promise.all(parts.map(pixels));
    state.layers = { image, labels, confidence };
    number = header.number;
    paint();
    if (++shown % 10 === 0) { rate = 10000 / (performance.now() - since); since = performance.now(); }
    const times = Object.entries(header.milliseconds).map(([what, ms]) => `${what} ${ms.toFixed(1)} ms`).join(", ");
    $("status").textContent = `frame ${number} at ${header.time.toFixed(2)} s · ${times}` + (rate ? ` · ${rate.toFixed(1)} a second` : "");
  }
}

function pause() {
  state.playing = !state.playing;
  $("play").textContent = state.playing ? "Pause" : "Play";
}
$("play").onclick = pause;

// ---- controls ----

const choices = [...pictures, ...idLayers];
choices.forEach((name) => {
  const button = $("layers").appendChild(document.createElement("button"));
  button.textContent = name;
  button.onclick = () => choose(name);
});

function choose(name) {
  const slot = about.layers[name] === "picture" ? "base" : "over";
  state[slot] = state[slot] === name && !(slot === "base" && !state.over) ? null : name;
  if (!state.base && !state.over) state[slot] = name;
  if (name.startsWith("sample") && about.layers[name] === "picture" && state.base === name) state.over = "sample labels";
  if (name === "image" && state.base === name && state.over?.startsWith("sample")) state.over = "labels";
  pressed();
  about.live ? paint() : show(state.index);
}

function pressed() {
  document.querySelectorAll("#layers button").forEach((button, i) => {
    button.setAttribute("aria-pressed", String([state.base, state.over].includes(choices[i])));
  });
}

about.classes.forEach(({ name, color }, id) => {
  const item = document.createElement("li"), label = item.appendChild(document.createElement("label"));
  item.dataset.id = id;
  const box = label.appendChild(document.createElement("input"));
  box.type = "checkbox";
  box.checked = true;
  box.onchange = () => { box.checked ? hidden.delete(id) : hidden.add(id); paint(); };
  label.appendChild(document.createElement("i")).style.background = `rgb(${color.join()})`;
  label.append(name);
  label.appendChild(document.createElement("small"));
  $("classes").append(item);
});

function allClasses() {
  const boxes = document.querySelectorAll("#classes input");
  const show = hidden.size > 0;
  boxes.forEach((box, id) => { box.checked = show; show ? hidden.delete(id) : hidden.add(id); });
  paint();
}

$("opacity").oninput = $("beside").onchange = paint;
$("draw").onclick = async () => {
  await fetch(`item/${state.index}/draw`);
  [state.base, state.over] = ["sample", "sample labels"];
  pressed();
  show(state.index);
};

addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=search], input[type=range]") || event.ctrlKey || event.metaKey) return;
  const keys = {
    ArrowRight: () => next(1), ArrowLeft: () => next(-1), " ": () => about.live && pause(), a: allClasses, d: toggleTheme,
    s: () => { $("beside").checked = !$("beside").checked; paint(); },
  };
  const number = Number(event.key);
  const act = keys[event.key] ?? (number && choices[number - 1] ? () => choose(choices[number - 1]) : null);
  if (act) { event.preventDefault(); act(); }
});

pressed();
about.live ? play() : show(0);
