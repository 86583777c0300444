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
  find("#fields").append(make("button", { type: "button", "data-action": "reset" }, texts.reset));
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

function resetFields() {
  const { system, ...settings } = props.defaults;
  shown = { ...shown, system, settings };
  fillFields();
  readFields();
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
  find("#main").inert = isOpen && !wide.matches;
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
