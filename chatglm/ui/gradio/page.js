// The browser's part of the page. It keeps the conversations: each request to the server holds one.
// Gradio gives `element`, `trigger`, `props`, `server` and `watch`.

const CONVERSATION = "chatglm:conversation:";
const SETTINGS = "chatglm:settings";
const THEME = "chatglm:theme";
const SIDE = "chatglm:side";
const SHOWN = "chatglm:shown";
const DRAFT = "chatglm:draft";
const STORE_EVERY_MS = 2000;
const SILENCE_MS = 5000;
const LOST_MS = 20000;

const language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const texts = props.texts[language];
const find = (selector, root = element) => root.querySelector(selector);
const page = find("#page"), scroller = find("#scroller"), rounds = find("#rounds"), box = find("#question");
const wide = matchMedia("(min-width: 900px)");

let shown = null; // the conversation on the page: id, title, time, system, settings, rounds
let running = null; // the answer being generated: key, id, action, index, before, heard, stored, message
let isLost = false; // whether the server has gone
let follows = true; // whether the page scrolls with the answer
let lastTop = 0;

// Texts and elements

function fill(text, values) {
  return text.replace(/{(\w+)}/g, (_, name) => values[name]);
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node && name !== "list" && name !== "form") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function icon(name) {
  return make("i", { className: `icon ${name}`, "aria-hidden": "true" });
}

function button(action, name, attributes = {}) {
  return make("button", { type: "button", title: name, "aria-label": name, "data-action": action, ...attributes }, icon(action));
}

function setName(node, name) {
  node.title = name;
  node.setAttribute("aria-label", name);
}

function localise() {
  for (const node of element.querySelectorAll("[data-text]")) node.textContent = texts[node.dataset.text];
  for (const node of element.querySelectorAll("[data-name]")) {
    const name = texts[node.dataset.name];
    node.setAttribute("aria-label", name);
    if (node.matches("button, summary")) node.title = name;
  }
  box.placeholder = texts.placeholder;
}

// What the browser keeps

function read(key, storage = localStorage) {
  try {
    return JSON.parse(storage.getItem(key));
  } catch {
    return null;
  }
}

function write(key, value, storage = localStorage) {
  try {
    storage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function forget(key) {
  try {
    localStorage.removeItem(key);
  } catch {
    // There is no storage, hence nothing to forget.
  }
}

function stored(id) {
  const conversation = read(CONVERSATION + id);
  return conversation && Array.isArray(conversation.rounds) ? { ...conversation, id } : null;
}

function storedConversations() {
  let keys = [];
  try {
    keys = Object.keys(localStorage);
  } catch {
    // Without storage there is only the conversation on the page.
  }
  const found = keys.filter((key) => key.startsWith(CONVERSATION)).map((key) => stored(key.slice(CONVERSATION.length)));
  return found.filter(Boolean).sort((one, other) => other.time - one.time);
}

function keep(conversation) {
  if (!write(CONVERSATION + conversation.id, conversation)) notify(texts.storage_full, { isAlert: true });
  drawList();
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (number) => number.toString(36)).join("");
}

function titleOf(conversation) {
  const [question] = conversation.rounds;
  return conversation.title || (question ? question.question.trim().split("\n")[0].slice(0, 80) : "") || texts.untitled;
}

// The list of conversations

function drawList() {
  const list = find("#conversations");
  if (find("input", list)) return;
  const items = storedConversations().map(listItem);
  list.replaceChildren(...(items.length ? items : [make("li", { className: "none" }, texts.no_conversations)]));
}

function listItem(conversation) {
  const title = titleOf(conversation), isShown = conversation.id === shown.id;
  const open = make("button", { type: "button", className: "title", title, "data-action": "show" }, title);
  if (isShown) open.setAttribute("aria-current", "true");
  const buttons = [button("rename", `${texts.rename}: ${title}`), button("delete", `${texts.delete}: ${title}`)];
  const isBusy = running && running.id === conversation.id;
  return make("li", { "data-id": conversation.id, className: isBusy ? "busy" : "" }, open, ...buttons);
}

function rename(item) {
  const conversation = stored(item.dataset.id);
  const input = make("input", { value: titleOf(conversation), "aria-label": texts.rename });
  let isDone = false;
  const finish = (keeps) => {
    if (isDone) return;
    isDone = true;
    const title = input.value.trim();
    input.remove();
    if (keeps && title) change(conversation.id, { title });
    drawList();
    find(`[data-id="${conversation.id}"] .title`)?.focus();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) finish(true);
    if (event.key === "Escape") finish(false);
    event.stopPropagation();
  });
  input.addEventListener("blur", () => finish(true));
  item.replaceChildren(input);
  input.select();
}

function change(id, values) {
  if (shown.id === id) {
    shown = { ...shown, ...values };
    drawTitle();
  }
  const conversation = shown.id === id ? shown : stored(id);
  if (conversation && conversation.rounds.length) keep({ ...conversation, ...values });
}

function remove(id) {
  const conversation = stored(id);
  drop(id);
  forget(CONVERSATION + id);
  if (shown.id === id) start();
  drawList();
  notify(fill(texts.deleted, { title: titleOf(conversation) }), { undo: () => restore(conversation) });
}

function restore(conversation) {
  drop(conversation.id);
  keep(conversation);
  show(conversation);
}

// The conversation on the page

function start() {
  const { system, ...settings } = { ...props.defaults, ...read(SETTINGS) };
  show({ id: newId(), time: Date.now(), system, settings, rounds: [] });
}

async function show(conversation) {
  shown = conversation;
  write(SHOWN, conversation.id, sessionStorage);
  drawTitle();
  drawList();
  fillFields();
  drawState();
  if (!conversation.rounds.length) rounds.replaceChildren();
  else {
    const reply = await call("show", { conversation });
    if (!reply || shown.id !== conversation.id) return;
    rounds.replaceChildren(...parse(reply.html));
  }
  if (isBusy() && running.message) drawRound(running.message);
  toEnd();
}

function drawTitle() {
  find("#title").textContent = titleOf(shown);
}

function drawState() {
  const busy = isBusy(), send = find("#send");
  page.classList.toggle("running", busy);
  send.className = busy ? "stop" : "send";
  setName(send, busy ? texts.stop : texts.send);
  find("#start").hidden = busy || shown.rounds.length > 0;
}

function parse(html) {
  return [...make("template", { innerHTML: html }).content.children];
}

function drawRound({ index, html }) {
  const fresh = parse(html), old = [...rounds.children].filter((node) => Number(node.dataset.round) >= index);
  fresh.forEach((node, place) => (old[place] ? morph(old[place], node) : rounds.append(node)));
  for (const node of old.slice(fresh.length)) node.remove();
}

// What stays the same is left alone, so that selected text stays selected.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.nodeType !== Node.ELEMENT_NODE) {
    const grows = old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE && fresh.data.startsWith(old.data);
    if (grows) old.appendData(fresh.data.slice(old.length));
    else old.replaceWith(fresh);
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((node, place) => (before[place] ? morph(before[place], node) : old.append(node)));
  for (const node of before.slice(after.length)) node.remove();
}

// Answers

function isBusy() {
  return Boolean(running) && running.id === shown.id;
}

async function call(name, data) {
  const reply = await server[name]({ ...data, language });
  if (!reply) lose();
  else if (reply.error) notify(reply.error, { isAlert: true });
  return reply && !reply.error ? reply : null;
}

// Asks the server for the answer to a round; false if that cannot be now.
async function perform(action, index, question) {
  if (isLost) notify(texts.unreachable, { isAlert: true });
  if (isLost || isBusy() || !validFields()) return false;
  if (running) await stop();
  const before = shown, key = newId();
  running = { key, id: before.id, action, index, question, before, heard: Date.now(), stored: 0, message: null };
  if (question !== undefined) shown = withRound({ question, versions: [{ text: "", finish_reason: "cancelled" }], selected: 0 });
  if (question !== undefined) keep(shown);
  const removed = before.rounds.length - index - 1;
  if (removed > 0) notify(fill(texts.later_removed, { rounds: removed }), { undo: () => restore(before) });
  trigger("answer", { key, action, index, question, language, conversation: before });
  drawState();
  drawTitle();
  announce(texts.answering);
  toEnd();
  return true;
}

function withRound(round) {
  const base = shown.id === running.id ? shown : stored(running.id) || running.before;
  return { ...base, time: Date.now(), rounds: [...running.before.rounds.slice(0, running.index), round] };
}

function receive(message) {
  if (!running || !message || message.key !== running.key) return;
  const answer = running, isHere = isBusy(), isLast = !message.running;
  answer.heard = Date.now();
  answer.message = message;
  const conversation = message.round ? withRound(message.round) : isLast ? answer.before : null;
  if (isHere && conversation) shown = conversation;
  if (conversation && (isLast || Date.now() - answer.stored > STORE_EVERY_MS)) {
    answer.stored = Date.now();
    if (conversation.rounds.length) keep(conversation);
    else forget(CONVERSATION + conversation.id);
  }
  if (isHere && message.html) draw(() => drawRound(message));
  if (isLast) finish(message, isHere);
}

function finish(message, isHere) {
  const { before, action, question, finished } = running;
  running = null;
  drawState();
  drawList();
  if (message.error) notify(message.error, { isAlert: true });
  if (isHere && !message.round) {
    show(before);
    if (action === "ask" && !box.value) setBox(question);
  }
  const { text, error } = message.round ? message.round.versions[message.round.selected] : { text: "", error: "" };
  announce(error || text);
  finished?.();
}

function stop() {
  if (!running) return null;
  call("stop", { key: running.key });
  return new Promise((resolve) => (running.finished = resolve));
}

// Ends the answer of a conversation that is being replaced.
function drop(id) {
  if (!running || running.id !== id) return;
  call("stop", { key: running.key });
  running = null;
  drawState();
}

// A server that has gone says nothing: it is looked for when there was no word from it for a while.
async function watchServer() {
  const answer = running;
  if (!answer || isLost || Date.now() - answer.heard < SILENCE_MS) return;
  if (!(await isReachable())) lose();
  else if (running === answer && Date.now() - answer.heard > LOST_MS) {
    receive({ key: answer.key, running: false, round: shown.rounds[answer.index], error: texts.lost });
  }
}

async function isReachable() {
  try {
    return (await fetch("gradio_api/app_id", { cache: "no-store", signal: AbortSignal.timeout(SILENCE_MS) })).ok;
  } catch {
    return false;
  }
}

function lose() {
  if (isLost) return;
  isLost = true;
  storeRunning();
  running = null;
  drawState();
  for (const node of element.querySelectorAll(".wait")) node.replaceWith(make("p", { className: "error" }, texts.unreachable));
  notify(texts.unreachable, { isAlert: true, stays: true });
  setInterval(async () => (await isReachable()) && location.reload(), 2000);
}

function storeRunning() {
  if (running && isBusy() && shown.rounds.length) write(CONVERSATION + shown.id, shown);
}

// Scrolling: the page follows the answer only while the reader is at its end.

function distance() {
  return scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
}

function draw(change) {
  change();
  if (follows) toEnd();
  else drawToEnd();
}

function toEnd() {
  follows = true;
  scroller.scrollTop = scroller.scrollHeight;
  lastTop = scroller.scrollTop;
  drawToEnd();
}

function drawToEnd() {
  find("#to-end").hidden = follows || distance() < 60;
}

function onScroll() {
  const top = scroller.scrollTop;
  if (top < lastTop && distance() > 2) follows = false;
  else if (top > lastTop && distance() < 40) follows = true;
  lastTop = top;
  drawToEnd();
}

// The question box

function setBox(text) {
  box.value = text;
  write(DRAFT, text, sessionStorage);
  grow(box);
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

function focusBox() {
  if (matchMedia("(pointer: fine)").matches) box.focus();
}

async function ask(question) {
  if (!question.trim() || !(await perform("ask", shown.rounds.length, question))) return;
  setBox("");
  drawQuestion(question);
}

// Shows the question at once; the server's drawing follows.
function drawQuestion(question) {
  if (!isBusy() || running.message) return;
  const bubble = make("div", { className: "bubble" }, make("div", { className: "plain" }, question));
  const index = String(running.index);
  rounds.append(make("article", { className: "question", "data-round": index }, make("h2", { className: "unseen" }, texts.you), bubble));
  toEnd();
}

function onBoxKey(event) {
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    if (!isBusy()) ask(box.value);
  }
  const last = shown.rounds.length - 1;
  if (event.key === "ArrowUp" && !box.value && last >= 0 && !isBusy()) {
    event.preventDefault();
    edit(last);
  }
}

// Messages

function edit(index) {
  if (isBusy()) return;
  const article = find(`.question[data-round="${index}"]`), { question } = shown.rounds[index];
  find(".editor textarea")?.closest(".editor").dispatchEvent(new Event("cancel"));
  const area = make("textarea", { value: question, "aria-label": texts.edited, rows: 1 });
  const send = make("button", { className: "primary" }, texts.send);
  const cancel = make("button", { type: "button" }, texts.cancel);
  const form = make("form", { className: "editor" }, area, make("div", {}, cancel, send));
  const close = () => {
    form.remove();
    article.classList.remove("edited");
  };
  const leave = () => {
    close();
    find("[data-action=edit]", article).focus();
  };
  cancel.addEventListener("click", leave);
  form.addEventListener("cancel", close);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!area.value.trim() || !(await perform("edit", index, area.value))) return;
    close();
    focusBox();
  });
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      leave();
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  article.classList.add("edited");
  article.append(form);
  grow(area);
  area.focus();
}

function selectVersion(index, version) {
  const changed = shown.rounds.map((round, place) => (place === index ? { ...round, selected: version } : round));
  change(shown.id, { rounds: changed });
  showRounds();
}

async function showRounds() {
  const { id } = shown, reply = await call("show", { conversation: shown });
  if (reply && shown.id === id) draw(() => drawRound({ index: 0, html: reply.html }));
}

function takeBack(index) {
  const before = shown, { question } = shown.rounds[index];
  const kept = { ...shown, rounds: shown.rounds.slice(0, index) };
  if (index) keep(kept);
  else forget(CONVERSATION + kept.id);
  show(kept);
  setBox(question);
  focusBox();
  notify(texts.taken_back, { undo: () => restore(before) });
}

async function copy(text, source) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyWithoutClipboard(text); // a page without https has no clipboard
  }
  source.classList.add("done");
  setTimeout(() => source.classList.remove("done"), 1500);
  announce(texts.copied);
}

function copyWithoutClipboard(text) {
  const focused = document.activeElement, area = make("textarea", { value: text, className: "unseen" });
  page.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

// Files

async function save(form) {
  find("#save").open = false;
  if (!shown.rounds.length) return notify(texts.nothing);
  const file = await call("save", { form, conversation: shown });
  if (!file) return null;
  const link = make("a", { href: URL.createObjectURL(new Blob([file.text], { type: file.type })), download: file.name });
  link.click();
  return setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function open(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    return notify(texts.not_text, { isAlert: true });
  }
  const reply = await call("open", { file: text });
  if (!reply) return null;
  const settings = { ...shown.settings, ...reply.settings };
  const title = file.name.replace(/\.json$/i, "");
  const conversation = { id: newId(), title, time: Date.now(), system: reply.system || "", settings, rounds: reply.rounds };
  if (reply.rounds.length) keep(conversation);
  show(conversation);
  return notify(fill(texts.opened, { rounds: reply.rounds.length }));
}

// Settings

const FIELDS = [
  { name: "max_length", min: 1, max: props.limit, step: 1 },
  { name: "temperature", min: 0, max: 2, step: 0.01 },
  { name: "top_p", min: 0.01, max: 1, step: 0.01, label: "Top P" },
  { name: "top_k", min: 0, max: 100, step: 1, label: "Top K" },
];

function makeFields() {
  const info = (name) => make("small", { id: `${name}-info` }, texts[`${name}_info`]);
  const label = (name, text) => make("label", { htmlFor: name }, text || texts[name]);
  const common = (name) => ({ id: name, name, "aria-describedby": `${name}-info` });
  for (const { name, label: text, ...range } of FIELDS) {
    const number = make("input", { type: "number", ...range, required: true, ...common(name) });
    const slider = make("input", { type: "range", ...range, "aria-label": text || texts[name], tabIndex: -1 });
    number.addEventListener("input", () => (slider.value = number.value));
    slider.addEventListener("input", () => (number.value = slider.value));
    find("#fields").append(make("div", { className: "field" }, label(name, text), number, slider, info(name)));
  }
  const seed = make("input", { type: "number", min: 0, step: 1, ...common("seed") });
  const system = make("textarea", { rows: 2, ...common("system") });
  find("#fields").append(make("div", { className: "field" }, label("seed"), seed, info("seed")));
  find("#fields").append(make("div", { className: "field" }, label("system"), system, info("system")));
}

function fillFields() {
  for (const { name, min, max } of FIELDS) {
    const value = Math.min(max, Math.max(min, Number(shown.settings[name] ?? props.defaults[name])));
    for (const input of find(`#${name}`).parentElement.querySelectorAll("input")) input.value = value;
  }
  find("#seed").value = shown.settings.seed ?? "";
  find("#system").value = shown.system || "";
}

function readFields() {
  const settings = { ...shown.settings };
  for (const { name } of FIELDS) settings[name] = Number(find(`#${name}`).value);
  settings.seed = find("#seed").value === "" ? null : Number(find("#seed").value);
  const system = find("#system").value;
  write(SETTINGS, { ...settings, system });
  change(shown.id, { settings, system });
}

function validFields() {
  const form = find("#fields");
  if (form.checkValidity()) return true;
  setSide(true);
  find("#settings").open = true;
  form.reportValidity();
  return false;
}

// The side bar and the theme

function setSide(isOpen) {
  page.classList.toggle("side-open", isOpen);
  find("#side").inert = !isOpen;
  for (const node of element.querySelectorAll("button[data-action=menu]")) node.setAttribute("aria-expanded", isOpen);
}

function toggleSide() {
  const isOpen = !page.classList.contains("side-open");
  setSide(isOpen);
  if (wide.matches) write(SIDE, isOpen);
  find(isOpen ? "#side [data-action=menu]" : "#menu").focus();
}

function closeDrawer() {
  if (!wide.matches) setSide(false);
}

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  if (theme) write(THEME, theme);
  else forget(THEME);
}

// Messages to the reader

function notify(text, { undo, isAlert = false, stays = false } = {}) {
  const notices = find("#notices");
  for (const node of [...notices.children]) if (node.dataset.text === text || !node.matches(".stays")) node.remove();
  const notice = make("div", { className: `notice${isAlert ? " alert" : ""}${stays ? " stays" : ""}`, "data-text": text });
  notice.append(make("span", {}, text));
  if (undo) {
    const act = make("button", { type: "button", className: "undo" }, texts.undo);
    act.addEventListener("click", () => (notice.remove(), undo()));
    notice.append(act);
  }
  const close = button("close", texts.close);
  close.addEventListener("click", () => notice.remove());
  notice.append(close);
  notices.append(notice);
  if (!stays) setTimeout(() => notice.remove(), isAlert ? 20000 : 10000);
}

function announce(text) {
  find("#announcer").textContent = (text || "").slice(0, 3000);
}

// Events

const actions = {
  menu: toggleSide,
  new: () => (start(), closeDrawer(), focusBox()),
  show: (node) => (show(stored(node.closest("li").dataset.id)), closeDrawer()),
  rename: (node) => rename(node.closest("li")),
  delete: (node) => remove(node.closest("li").dataset.id),
  open: () => find("#file").click(),
  save: (node) => save(node.dataset.form),
  starter: (node) => ask(node.textContent),
  to_end: () => (toEnd(), focusBox()),
  copy_code: (node) => copy(find("code", node.closest(".code")).textContent, node),
  copy: (node, index, isQuestion) => {
    const { question, versions, selected } = shown.rounds[index];
    copy(isQuestion ? question : versions[selected].text, node);
  },
  edit: (node, index) => edit(index),
  take_back: (node, index) => takeBack(index),
  retry: (node, index) => (perform("retry", index), focusBox()),
  continue: (node, index) => (perform("continue", index), focusBox()),
  earlier: (node, index) => selectVersion(index, Number(node.dataset.version)),
  later: (node, index) => selectVersion(index, Number(node.dataset.version)),
};

function onClick(event) {
  const node = event.target.closest("[data-action]"), article = node?.closest("article");
  if (!find("#save").contains(event.target)) find("#save").open = false;
  if (node) actions[node.dataset.action]?.(node, article && Number(article.dataset.round), article?.matches(".question"));
}

function onKey(event) {
  if (event.key === "Escape" && !event.isComposing) {
    if (find("#save").open) find("#save").open = false;
    else if (!wide.matches && page.classList.contains("side-open")) toggleSide();
    else if (isBusy()) stop();
  } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    actions.new();
  }
}

// Another tab has changed something.
function onStorage(event) {
  drawList();
  if (event.key === CONVERSATION + shown.id && event.newValue && !isBusy()) show(stored(shown.id) || shown);
}

function begin() {
  localise();
  makeFields();
  find("#demo-banner").hidden = !props.model.demo;
  find("#model").textContent = `${props.model.name} · ${props.model.details} · ${fill(texts.limit, { limit: props.limit })}`;
  find("#theme").value = read(THEME) || "";
  find("#starters").append(...props.starters[language].map((text) => make("button", { type: "button", "data-action": "starter" }, text)));
  setSide(wide.matches && read(SIDE) !== false);
  element.addEventListener("click", onClick);
  document.addEventListener("keydown", onKey);
  addEventListener("storage", onStorage);
  addEventListener("pagehide", storeRunning);
  scroller.addEventListener("scroll", onScroll);
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && distance() >= 0 && scroller.scrollTop > 0 && (follows = false), { passive: true });
  new ResizeObserver(() => follows && toEnd()).observe(scroller);
  box.addEventListener("keydown", onBoxKey);
  box.addEventListener("input", () => setBox(box.value));
  find("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isBusy()) stop();
    else ask(box.value);
  });
  find("#fields").addEventListener("input", () => find("#fields").checkValidity() && readFields());
  find("#fields").addEventListener("submit", (event) => event.preventDefault());
  find("#file").addEventListener("change", ({ target }) => {
    if (target.files[0]) open(target.files[0]);
    target.value = "";
  });
  find("#theme").addEventListener("change", ({ target }) => setTheme(target.value));
  wide.addEventListener("change", () => setSide(wide.matches));
  setInterval(watchServer, 1000);
  watch("value", () => receive(props.value));
  const conversation = stored(read(SHOWN, sessionStorage));
  if (conversation) show(conversation);
  else start();
  setBox(read(DRAFT, sessionStorage) || "");
  focusBox();
}

begin();
