"use strict";
const MAX_BYTES = 10 * 2 ** 20, MAX_SIDE = 2048, CROP = 0.6, TALL = 1200;
const form = document.getElementById("search");
const alertBox = document.querySelector(".alert");
const busy = (on) => document.body.classList.toggle("busy", on);
const complain = (text) => { alertBox.hidden = !text; alertBox.textContent = text; if (text) alertBox.scrollIntoView(); };

// Choosing pictures: a crop of one person is taken as it is, on others a box is drawn.

const chooser = document.getElementById("chooser");
const stage = chooser.querySelector(".stage"), picture = stage.querySelector("img"), box = stage.querySelector(".box");
const useBox = chooser.querySelector("[value=box]");

async function post(address, body) {
  if (body.size > MAX_BYTES) throw new Error("The picture is larger than 10 MB.");
  const answer = await fetch(address, { method: "POST", body });
  if (answer.headers.get("content-type") === "image/jpeg") return answer.blob();
  const value = await answer.json();
  if (value.error) throw new Error(value.error);
  return value.key;
}

async function show(blob) {
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
  await picture.decode();
}

async function choosePart(file) {  // what is sent of a picture; null if the visitor changes their mind
  try { await show(file); } catch { await show(file = await post("/preview", file)); }
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (width <= CROP * height && height < TALL) return file;
  box.hidden = useBox.disabled = true;
  chooser.showModal();
  const chosen = await new Promise((resolve) => {
    chooser.onclick = (event) => { if (event.target.value) resolve(event.target.value); };
    chooser.oncancel = () => resolve("cancel");
  });
  const scale = width / picture.clientWidth;
  const whole = [0, 0, width, height], drawn = [box.offsetLeft, box.offsetTop, box.offsetWidth, box.offsetHeight];
  const [x, y, w, h] = chosen === "box" ? drawn.map((value) => value * scale) : whole;
  chooser.close();
  if (chosen === "cancel") return null;
  const shrink = Math.min(1, MAX_SIDE / Math.max(w, h));
  const canvas = Object.assign(document.createElement("canvas"), { width: w * shrink, height: h * shrink });
  canvas.getContext("2d").drawImage(picture, x, y, w, h, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

async function search(files) {
  complain("");
  const keys = [];
  try {
    for (const [number, file] of [...files].entries()) {
      chooser.querySelector(".note span").textContent = files.length > 1 ? `Picture ${number + 1} of ${files.length}.` : "";
      const part = await choosePart(file);
      busy(true);
      if (part) keys.push(await post("/upload", part));
    }
  } catch (error) {
    complain(error instanceof TypeError ? "The program does not answer. Is it still running?" : error.message);
  }
  busy(false);
  if (!keys.length) return;
  for (const value of keys) form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "q", value }));
  form.requestSubmit();
}

let corner = null;
const inside = (event) => {
  const area = picture.getBoundingClientRect();
  return [Math.min(Math.max(event.clientX - area.left, 0), area.width), Math.min(Math.max(event.clientY - area.top, 0), area.height)];
};
stage.addEventListener("pointerdown", (event) => {
  corner = inside(event);
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
});
stage.addEventListener("pointermove", (event) => {
  if (!corner) return;
  const [x, y] = inside(event), [x0, y0] = corner;
  Object.assign(box.style, { left: `${Math.min(x, x0)}px`, top: `${Math.min(y, y0)}px`, width: `${Math.abs(x - x0)}px`, height: `${Math.abs(y - y0)}px` });
  box.hidden = false;
  useBox.disabled = Math.abs(x - x0) < 8 || Math.abs(y - y0) < 16;
});
stage.addEventListener("pointerup", () => { corner = null; });

if (form) {
  for (const input of form.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", async () => {
      const files = [...input.files];
      input.value = "";  // nothing is left in the field, and the same file can be chosen again
      await search(files);
    });
  }
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    search(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) search(event.clipboardData.files); });
}

// The form is the search: its address is kept up to date, so that it can be sent and reloaded.

const marks = () => [...document.querySelectorAll("input[name=same], input[name=other]")];

function update() {
  const count = (name) => marks().filter((input) => input.name === name && input.checked).length;
  const output = document.querySelector(".bar output");
  if (output) output.textContent = `${count("same")} confirmed, ${count("other")} not the same`;
  history.replaceState(history.state, "", `/?${new URLSearchParams(new FormData(form))}`);
}

for (const each of document.forms) {
  each.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (value === "" || value instanceof File || (name === "order" && value === "similarity")) formData.delete(name);
  });
  each.addEventListener("submit", ({ submitter }) => {
    each.action = submitter?.dataset.anchor ? `/#${submitter.dataset.anchor}` : "/";  // more answers: stay there
    if (!submitter?.formTarget) setTimeout(busy, 300, true);
  });
  each.addEventListener("change", (event) => {
    const { name, value, checked } = event.target;
    if (event.target.dataset.submit !== undefined) each.requestSubmit();
    if (name !== "same" && name !== "other") return;
    const opposite = document.getElementById(`${name === "same" ? "other" : "same"}-${value}`);
    if (checked && opposite) opposite.checked = false;
    update();
  });
}
addEventListener("pageshow", () => { busy(false); if (document.querySelector(".bar")) update(); });
document.getElementById("print")?.addEventListener("click", () => print());
if (matchMedia("(max-width: 52rem)").matches) document.querySelector(".results .filters")?.removeAttribute("open");

// Comparing: the answer beside the query, with the keys S, N and the arrows.

const viewer = document.getElementById("viewer");
const photos = [...document.querySelectorAll("main a.photo")];
let shown = -1;
const mark = (name) => document.getElementById(`${name}-${photos[shown].closest("li").id.slice(2)}`);

function light() {
  for (const name of ["same", "other"]) {
    const button = viewer.querySelector(`[value=${name}]`), input = mark(name);
    button.disabled = !input;
    button.classList.toggle("on", Boolean(input?.checked));
    button.setAttribute("aria-pressed", Boolean(input?.checked));
  }
}

async function view(position, push) {
  shown = (position + photos.length) % photos.length;
  const text = await (await fetch(photos[shown].href)).text();
  const page = new DOMParser().parseFromString(text, "text/html");
  const content = page.querySelector("main") ?? page.querySelector(".alert");
  viewer.firstElementChild.replaceChildren(document.adoptNode(content));
  if (push) history.pushState({ viewer: true }, "");
  if (!viewer.open) viewer.showModal();
  viewer.firstElementChild.scrollTop = viewer.scrollTop = 0;
  light();
}

function act(name) {
  if (name === "close") history.back();
  else if (name === "next" || name === "back") view(shown + (name === "next" ? 1 : -1));
  else if (mark(name)) { mark(name).click(); light(); }
}

if (viewer) {
  photos.forEach((photo, position) => photo.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    view(position, true);
  }));
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) act("close");
    else if (event.target.value) act(event.target.value);
  });
  viewer.addEventListener("cancel", (event) => { event.preventDefault(); act("close"); });
  viewer.addEventListener("keydown", (event) => {
    const name = { ArrowRight: "next", ArrowLeft: "back", s: "same", n: "other" }[event.key];
    if (name) { event.preventDefault(); act(name); }
  });
  addEventListener("popstate", () => {
    if (viewer.open) { viewer.close(); photos[shown]?.scrollIntoView({ block: "nearest" }); update(); }
  });
}
