// The list of conversations

function drawList() {
  const list = find("#conversations");
  if (find("input", list)) return;
  const items = storedConversations().map(listItem), fresh = list.cloneNode(false);
  fresh.append(...(items.length ? items : [make("li", { className: "none" }, texts.no_conversations)]));
  morph(list, fresh);
}

function listItem(conversation) {
  const title = titleOf(conversation), isShown = conversation.id === shown.id;
  const open = make("button", { type: "button", className: "title", title, "data-action": "show" }, title);
  if (isShown) open.setAttribute("aria-current", "true");
  const buttons = [button("rename", `${texts.rename}: ${title}`), button("delete", `${texts.delete}: ${title}`)];
  const isBusy = running && running.id === conversation.id;
  const className = `${isShown ? "shown" : ""} ${isBusy ? "busy" : ""}`;
  return make("li", { "data-id": conversation.id, className }, open, ...buttons);
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
  if (conversation) keep({ ...conversation, ...values });
}

function remove(id) {
  if (running?.id === id) storeRunning();
  const conversation = stored(id);
  drop(id);
  forget(CONVERSATION + id);
  if (shown.id === id) start();
  drawList();
  (find("#conversations .title") || find("#new")).focus();
  notify(fill(texts.deleted, { title: titleOf(conversation) }), { undo: () => restore(conversation) });
}

function restore(conversation) {
  drop(conversation.id);
  keep(conversation);
  show(conversation);
}

// The conversation on the page

function start() {
  const { system, ...settings } = read(SETTINGS) || {};
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
  document.title = find("#title").textContent = titleOf(shown);
}

function drawState() {
  const busy = isBusy(), send = find("#send");
  page.classList.toggle("running", busy);
  find(".icon", send).className = busy ? "icon stop" : "icon send";
  setName(send, busy ? texts.stop : texts.send, busy ? "Esc" : "Enter");
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
