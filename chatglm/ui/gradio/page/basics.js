// The browser's part of the page. It keeps the conversations: each request to the server holds one.
// Gradio gives `element`, `trigger`, `props`, `server` and `watch`.

const CONVERSATION = "chatglm:conversation:";
const SETTINGS = "chatglm:settings";
const THEME = "chatglm:theme";
const SIDE = "chatglm:side";
const SHOWN = "chatglm:shown";
const DRAFT = "chatglm:draft";
const STORE_EVERY_MS = 2000;
const SILENCE_MS = 2500;
const LOST_MS = 20000;

const language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
const texts = props.texts[language];
const find = (selector, root = element) => root.querySelector(selector);
const page = find("#page"), scroller = find("#scroller"), rounds = find("#rounds"), box = find("#question");
const wide = matchMedia("(min-width: 900px)");
const hasKeyboard = matchMedia("(pointer: fine)").matches;

let shown = null; // the conversation on the page: id, title, time, system, settings, rounds
let running = null; // the answer being generated: key, id, action, index, question, before, heard, stored, message, conversation
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

function setName(node, name, keys) {
  node.title = keys ? `${name} (${keys})` : name;
  node.setAttribute("aria-label", name);
}

function localise() {
  for (const node of element.querySelectorAll("[data-text]")) node.textContent = texts[node.dataset.text];
  for (const node of element.querySelectorAll("[data-name]")) {
    if (node.matches("button, summary")) setName(node, texts[node.dataset.name], node.dataset.keys);
    else node.setAttribute("aria-label", texts[node.dataset.name]);
  }
  box.placeholder = hasKeyboard ? texts.placeholder : texts.placeholder_short;
  box.enterKeyHint = hasKeyboard ? "send" : "enter";
}

// Messages to the reader

function notify(text, { undo, isAlert = false, stays = false } = {}) {
  const notices = find("#notices");
  for (const node of [...notices.children]) if (node.dataset.text === text) node.remove();
  const notice = make("div", { className: `notice${isAlert ? " alert" : ""}${stays ? " stays" : ""}`, "data-text": text });
  notice.append(make("span", {}, text));
  const dismiss = () => {
    const hadFocus = notice.contains(document.activeElement);
    notice.remove();
    if (hadFocus) focusBox();
  };
  if (undo) {
    const act = make("button", { type: "button", className: "undo" }, texts.undo);
    act.addEventListener("click", () => (dismiss(), undo()));
    notice.append(act);
  }
  const close = button("close", texts.close);
  close.addEventListener("click", dismiss);
  notice.append(close);
  notices.append(notice);
  if (!stays) setTimeout(dismiss, isAlert ? 20000 : undo ? 10000 : 4000);
}

function announce(text) {
  find("#announcer").textContent = (text || "").slice(0, 3000);
}
