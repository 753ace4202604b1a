"use strict";
// What is asked for each task: photos and fields of the form, by the names that the interface has for them.
const IMAGE = [["image", "Photo"]];
const TASKS = {
  answer: { title: "Ask", photos: IMAGE, fields: [["question", "Question", "What colour is the cat?"]] },
  caption: { title: "Caption", photos: IMAGE, fields: [] },
  match: { title: "Match a text", photos: IMAGE, fields: [["text", "Text", "a cat on a sofa"]] },
  sentiment: { title: "Sentiment", photos: IMAGE, fields: [["text", "Text", "so happy today"]] },
  classify: { title: "Classify", photos: IMAGE, fields: [["text", "Text", ""], ["text_b", "Second text", "", "optional"]] },
  true: { title: "True of two photos?", photos: [["left", "Left photo"], ["right", "Right photo"]], fields: [["statement", "Statement", "both are dogs"]] },
  choose: { title: "Choose", photos: IMAGE, fields: [["question", "Question", "", "optional"], ["choices", "Choices", "", "one a line", true]] },
  ground: { title: "Find a phrase", photos: IMAGE, fields: [["text", "Text", "the cat on the left"], ["phrase", "Phrase in it", "", "optional: the whole text without it"]] },
  fill: { title: "Fill in", photos: IMAGE, fields: [["text", "Text with [MASK]", "a [MASK] on a sofa"]] },
  search: { title: "Search", photos: [], fields: [["text", "What the photos show", "a dog on a sofa"]] },
  regions: { title: "Regions", photos: IMAGE, fields: [] },
};
const by = (id) => document.getElementById(id);
const held = {}; // photo by its name in the form: {file, url}
let about, task, asking, last;

function make(tag, attributes = {}, ...inside) {
  const svg = ["svg", "image", "rect", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...inside);
  return made;
}
const percent = (share) => `${(100 * share).toFixed(share > 0.0995 ? 1 : 2)} %`;

/* ---- the form ---- */
function choose(name, words = {}) {
  task = name;
  by(`task-${name}`).checked = true;
  const kept = Object.fromEntries([...by("fields").querySelectorAll("[name]")].map((one) => [one.name, one.value]));
  by("photos").replaceChildren(...TASKS[name].photos.map(slot));
  by("fields").replaceChildren(...TASKS[name].fields.map(([field, label, hint, note, lines]) => {
    const input = make(lines ? "textarea" : "input", { name: field, id: `field-${field}`, placeholder: hint, maxlength: lines ? 20000 : 2000, autocomplete: "off", dir: "auto", ...(lines ? {} : { type: "text" }) });
    input.value = words[field] ?? kept[field] ?? "";
    return make("label", { for: `field-${field}` }, label, note ? make("span", { class: "muted" }, ` (${note})`) : "", input);
  }));
  by("go").textContent = name === "answer" ? "Ask" : TASKS[name].title;
}

function slot([name, label]) {
  const input = make("input", { type: "file", accept: "image/*", id: `photo-${name}`, "aria-describedby": `about-${name}`, onchange: () => input.files[0] && put(name, input.files[0]) });
  const taken = held[name];
  const box = make("div", { class: "slot" },
    ...(taken ? [make("img", { src: taken.url, alt: "" })] : []),
    make("span", {}, make("label", { for: `photo-${name}` }, make("b", {}, label)),
      make("span", { class: "muted small", id: `about-${name}` }, taken ? `${taken.file.name || "pasted"}: choose, drop or paste another` : "Choose a file, drop one here, or paste")),
    input);
  for (const kind of ["dragenter", "dragover"]) box.addEventListener(kind, (event) => (event.preventDefault(), box.classList.add("over")));
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("over");
    if (event.dataTransfer.files[0]) put(name, event.dataTransfer.files[0]);
  });
  return box;
}

function put(name, file) {
  if (held[name]) URL.revokeObjectURL(held[name].url);
  held[name] = { file, url: URL.createObjectURL(file) };
  const focused = document.activeElement?.id;
  by("photos").replaceChildren(...TASKS[task].photos.map(slot));
  if (focused) by(focused)?.focus();
  problem(file.size > about.largest ? `The photo has ${(file.size / 1e6).toFixed(1)} MB; at most ${about.largest / 1e6} MB are read.` : "");
}

document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file || !task || !TASKS[task].photos.length) return;
  event.preventDefault();
  const names = TASKS[task].photos.map(([name]) => name);
  put(names.find((name) => !held[name]) ?? names[0], file);
});

function problem(sentence) {
  by("problem").hidden = !sentence;
  by("problem").textContent = sentence;
}

/* ---- asking ---- */
function filled() {
  const form = new FormData();
  for (const [name, label] of TASKS[task].photos) {
    if (!held[name]) return [null, `photo-${name}`, `${label}: choose one, or click an example.`];
    form.append(name, held[name].file, held[name].file.name || "pasted");
  }
  for (const [name, label, , note, lines] of TASKS[task].fields) {
    const value = by(`field-${name}`).value.trim();
    if (!value && !note?.startsWith("optional")) return [null, `field-${name}`, `${label}: say something.`];
    for (const one of lines ? value.split("\n").map((line) => line.trim()).filter(Boolean) : value ? [value] : []) form.append(name, one);
  }
  return [form];
}

async function post(path, form) {
  asking?.abort();
  const mine = (asking = new AbortController());
  by("go").disabled = true;
  by("state").textContent = "Working…";
  problem("");
  try {
    const response = await fetch(`api/${path}`, { method: "POST", body: form, signal: mine.signal });
    const reply = await response.json();
    if (!response.ok) throw new Error(reply.error);
    by("state").textContent = `${reply.seconds.toFixed(2)} s`;
    return reply;
  } catch (error) {
    if (mine.signal.aborted) return null;
    by("state").textContent = "";
    problem(error instanceof TypeError ? "The server can't be reached: does it still run?" : error.message);
    return null;
  } finally {
    if (asking === mine) by("go").disabled = false;
  }
}

async function ask(event) {
  event?.preventDefault();
  const [form, where, wrong] = filled();
  if (!form) {
    problem(wrong);
    by(where).focus();
    return;
  }
  const urls = TASKS[task].photos.map(([name]) => held[name].url);
  const asked = task;
  const reply = await post(asked, form);
  if (reply) show(asked, form, reply, urls);
}

/* ---- answers ---- */
function show(asked, form, reply, urls) {
  last = { asked, form, reply, urls };
  by("result").hidden = false;
  by("result").classList.toggle("wide", asked === "search");
  by("why").replaceChildren();
  by("seen").hidden = asked === "search";
  const tones = toned(asked, reply);
  by("drawn").replaceChildren(...(reply.photos ?? []).map((photo, k) => drawing(photo, urls[k], k, tones)));
  by("said").replaceChildren(...said(asked, reply));
  if (reply.photos) list(reply);
  if (about.can.includes("explain") && !["search", "regions"].includes(asked) && reply.photos.some((one) => one.regions.length))
    by("why").append(make("button", { type: "button", class: "second", onclick: why }, "Why this answer?"));
  by("result").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

const toned = (asked, reply) => (asked === "ground" ? new Map(reply.found.slice(0, 3).map((one, k) => [one.region, k])) : null);

function answers(rows) {
  return make("ol", { class: "answers" }, ...rows.map((row) => {
    const bar = make("i");
    bar.style.width = `${100 * row.score}%`;
    return make("li", {}, make("span", { dir: "auto" }, row.text), make("b", {}, percent(row.score)), make("div", { class: "bar", "aria-hidden": "true" }, bar));
  }));
}

function said(asked, reply) {
  if (reply.answers) return [answers(reply.answers)];
  if (reply.words && asked === "fill") return reply.words.map(answers);
  if (asked === "caption") return [make("p", { class: "big", dir: "auto" }, reply.caption), make("p", { class: "muted small" }, `mean probability of its word pieces ${percent(reply.score)}`)];
  if (asked === "true") return [make("p", { class: "big" }, reply.true ? "true" : "false"), make("p", { class: "muted small" }, `true with probability ${percent(reply.score)}`)];
  if (asked === "match") return [answers([{ text: "true of the photo", score: reply.score }])];
  if (asked === "ground") return reply.found.length ? [answers(reply.found.slice(0, 5).map((one) => ({ text: one.name || `region ${one.region + 1}`, score: one.score })))] : [make("p", {}, "The model sees no region in this photo.")];
  if (asked === "search") return [...reply.notes.map((note) => make("p", { class: "muted small" }, note)), make("p", { class: "muted small" }, `the best of ${reply.searched.toLocaleString("en")} photos`), make("ol", { class: "found" }, ...reply.found.map(foundPhoto))];
  const count = reply.photos.reduce((sum, one) => sum + one.regions.length, 0);
  return [make("p", { class: "big" }, count === 1 ? "one region" : `${count} regions`)];
}

function foundPhoto(one) {
  const photo = { width: one.width ?? 4, height: one.height ?? 3, regions: one.boxes.map((box) => ({ box, name: "" })) };
  const about = one.score === null ? `cosine ${one.similarity.toFixed(3)}` : `score ${one.score.toFixed(2)}`;
  return make("li", {}, ...(one.picture ? [drawing(photo, one.picture, 0, new Map(one.boxes.map((_, k) => [k, k])), one.image_id)] : []),
    make("p", { class: "name" }, one.image_id), make("p", { class: "muted small" }, about));
}

function drawing(photo, url, number, tones, name) {
  const boxes = photo.regions.map((region, k) => {
    const [x1, y1, x2, y2] = region.box;
    const tone = tones ? tones.get(k) : k;
    return make("rect", { class: `box tone-${(tone ?? 5) % 6}${tone === undefined ? " weak" : ""}`, x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), "data-photo": number, "data-region": k });
  });
  const label = name ?? `photo${number ? " 2" : ""} with ${photo.regions.length} regions`;
  const small = photo.width * photo.height <= 128 * 128 && !name;
  return make("svg", { class: small ? "picture small" : "picture", viewBox: `0 0 ${photo.width} ${photo.height}`, role: "img", "aria-label": label },
    make("image", { href: url, width: photo.width, height: photo.height, preserveAspectRatio: "none" }), ...boxes);
}

const rects = (photo, region) => document.querySelectorAll(`#drawn [data-photo="${photo}"]${region === undefined ? "" : `[data-region="${region}"]`}`);

function list(reply, relevant) {
  const rows = (relevant ?? reply.photos.flatMap((photo, p) => photo.regions.map((_, r) => ({ photo: p, region: r })))).map((one) => ({ ...one, ...reply.photos[one.photo].regions[one.region] }));
  if (relevant) rows.sort((a, b) => b.relevance - a.relevance);
  by("regions").replaceChildren(...rows.map((row) => {
    const lit = (on) => () => rects(row.photo, row.region).forEach((one) => one.classList.toggle("lit", on));
    const value = relevant ? row.relevance.toFixed(3) : row.score === null ? "" : percent(row.score);
    return make("li", { class: relevant ? false : `tone-${row.region % 6}` }, make("button", { type: "button", onmouseenter: lit(true), onmouseleave: lit(false), onfocus: lit(true), onblur: lit(false) },
      make("i"), make("span", { dir: "auto" }, row.name || `region ${row.region + 1}`), make("span", { class: "muted" }, value)));
  }));
}

/* ---- why ---- */
const ASKED = { question: "text", statement: "text", left: "image" }; // the names that these have when they are explained

async function why() {
  const { form, urls, reply: before } = last;
  const sent = new FormData();
  for (const [name, value] of form.entries()) sent.append(ASKED[name] ?? name, value);
  const reply = await post("explain", sent);
  if (!reply || last.reply !== before) return;
  const most = (rows) => Math.max(1e-12, ...rows.map((one) => Math.abs(one.relevance)));
  const [wordMost, regionMost] = [most(reply.words), most(reply.regions)];
  by("drawn").replaceChildren(...reply.photos.map((photo, k) => drawing(photo, urls[k], k, null)));
  const heat = (values) => reply.regions.forEach((one, k) => rects(one.photo, one.region).forEach((rect) => {
    const share = Math.max(0, values[k]);
    rect.classList.add("heat");
    rect.style.fillOpacity = share * 0.62;
    rect.style.strokeOpacity = 0.2 + 0.8 * share;
  }));
  const whole = reply.regions.map((one) => one.relevance / regionMost);
  heat(whole);
  const words = reply.words.map((one) => {
    const share = Math.max(0, one.relevance / wordMost);
    const its = Math.max(1e-12, ...one.regions);
    const on = () => one.regions.length && heat(one.regions.map((value) => value / its));
    const off = () => heat(whole);
    const word = make("button", { type: "button", title: `relevance ${one.relevance.toFixed(3)}`, dir: "auto", onmouseenter: on, onfocus: on, onmouseleave: off, onblur: off }, one.text);
    word.style.setProperty("--share", `${Math.round(share * 55)}%`);
    return word;
  });
  by("why").replaceChildren(make("h3", {}, `Why “${reply.answer}”`), make("p", { class: "words", role: "group", "aria-label": "words by their relevance" }, ...words),
    make("p", { class: "muted small" }, `Relevance by the method ${reply.method}: the darker a word or a box, the more it speaks for this answer. At a word, the boxes show which regions are of it.`));
  list(reply, reply.regions);
  by("seen").open = true;
}

/* ---- examples ---- */
async function take(example) {
  choose(example.task, { ...example.fields, choices: example.fields.choices?.join("\n") });
  for (const [k, [name, label]] of TASKS[example.task].photos.entries()) {
    const bytes = Uint8Array.from(atob(example.pictures[k].split(",")[1]), (one) => one.charCodeAt(0));
    put(name, new File([bytes], `${label.toLowerCase()} of the example.png`, { type: "image/png" }));
  }
  await ask();
  by("result").focus({ preventScroll: true });
}

async function start() {
  about = await (await fetch("api/model")).json();
  const tasks = Object.keys(TASKS).filter((name) => about.can.includes(name) && !(name === "classify" && about.can.includes("sentiment")));
  by("model").textContent = about.title;
  by("tasks").append(...tasks.map((name) => make("label", {}, make("input", { type: "radio", name: "task", id: `task-${name}`, value: name, onchange: () => choose(name) }), make("span", {}, TASKS[name].title))));
  choose(tasks[0]);
  by("examples").hidden = !about.examples.length;
  by("shown").replaceChildren(...about.examples.map((one) => make("li", {}, make("button", { type: "button", onclick: () => take(one) },
    ...one.pictures.map((src) => make("img", { src, alt: "" })), make("span", { class: "say" }, make("span", { class: "muted small" }, `${TASKS[one.task].title}: `), one.title)))));
  by("form").addEventListener("submit", ask);
  document.body.dataset.ready = "";
}
start().catch(() => problem("The server can't be reached: does it still run?"));
