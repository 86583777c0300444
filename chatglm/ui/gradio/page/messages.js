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
  (hasKeyboard ? box : scroller).focus(); // elsewhere the box opens a keyboard over half of the page
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

// Keyboards on a screen have no Shift+Enter.
function sends(event) {
  return event.key === "Enter" && !event.shiftKey && (hasKeyboard || event.ctrlKey || event.metaKey);
}

function onBoxKey(event) {
  if (event.isComposing || event.keyCode === 229) return;
  if (sends(event)) {
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
  form.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      leave();
    } else if (event.target === area && sends(event)) {
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
  announce(`${version + 1}/${changed[index].versions.length}`);
  showRounds();
}

async function showRounds() {
  const { id } = shown, reply = await call("show", { conversation: shown });
  if (reply && shown.id === id) draw(() => drawRound({ index: 0, html: reply.html }));
}

function takeBack(index) {
  const before = shown, { question } = shown.rounds[index];
  const kept = { ...shown, rounds: shown.rounds.slice(0, index) };
  keep(kept);
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
