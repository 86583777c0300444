// Events

const actions = {
  menu: toggleSide,
  new: () => (withdraw(), start(), closeDrawer(), focusBox()),
  show: (node) => (show(stored(node.closest("li").dataset.id)), closeDrawer()),
  rename: (node) => rename(node.closest("li")),
  delete: (node) => remove(node.closest("li").dataset.id),
  open: () => find("#file").click(),
  save: (node) => save(node.dataset.form),
  reset: resetFields,
  starter: (node) => (ask(node.textContent), focusBox()),
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
  if (!find("#save").contains(event.target)) closePopup();
  if (node && node.getAttribute("aria-disabled") !== "true") actions[node.dataset.action]?.(node, article && Number(article.dataset.round), article?.matches(".question"));
}

function onKey(event) {
  if (event.key === "Escape" && !event.isComposing) {
    if (find("#save").open) closePopup();
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
  if (event.key !== CONVERSATION + shown.id || isBusy()) return;
  shown = stored(shown.id) || shown;
  drawTitle();
  if (!find("#settings").contains(document.activeElement)) fillFields();
  showRounds();
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
  addEventListener("resize", () => element.querySelectorAll("#question, .editor textarea").forEach(grow));
  box.addEventListener("keydown", onBoxKey);
  box.addEventListener("input", () => setBox(box.value));
  find("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isBusy()) stop();
    else ask(box.value);
  });
  find("#fields").addEventListener("input", ({ target }) => readField(find("[name]", target.closest(".field"))));
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
  if (hasKeyboard) focusBox();
}

begin();
