// Settings

const { system: SYSTEM, ...DEFAULTS } = props.defaults;
const FIELDS = [
  { name: "max_length", min: 1, max: props.limit, step: 1 },
  { name: "temperature", min: 0, max: Math.max(2, DEFAULTS.temperature), step: 0.01 },
  { name: "top_p", min: 0, max: 1, step: 0.01, label: "Top P" },
  { name: "top_k", min: 0, max: Math.max(100, DEFAULTS.top_k), step: 1, label: "Top K" },
];

function makeFields() {
  const info = (name) => make("small", { id: `${name}-info` }, texts[`${name}_info`]);
  const label = (name, text) => make("label", { htmlFor: name }, text || texts[name]);
  const common = (name) => ({ id: name, name, "aria-describedby": `${name}-info` });
  for (const { name, label: text, ...range } of FIELDS) {
    const step = Number.isInteger(range.step) ? range.step : "any";
    const number = make("input", { type: "number", ...range, step, required: true, ...common(name) });
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

// A conversation holds only what differs from the server's defaults, which may be others tomorrow. With all of them:
function complete({ settings, system, ...conversation }) {
  const all = { ...DEFAULTS, ...settings };
  for (const { name, min, max } of FIELDS) all[name] = Math.min(max, Math.max(min, Number(all[name])));
  return { ...conversation, settings: all, system: system ?? SYSTEM ?? "" };
}

function fillFields() {
  const { settings, system } = complete(shown);
  for (const { name } of FIELDS) for (const input of find(`#${name}`).parentElement.querySelectorAll("input")) input.value = settings[name];
  find("#seed").value = settings.seed ?? "";
  find("#system").value = system;
}

function readField(input) {
  if (!input.checkValidity()) return;
  const { name, value } = input, isText = name === "system";
  const given = isText ? value : value === "" ? null : Number(value), initial = complete({});
  const isDefault = given === (isText ? initial.system : initial.settings[name] ?? null);
  const changed = { ...read(SETTINGS), [name]: given }, settings = { ...shown.settings, [name]: given };
  if (isDefault) {
    delete changed[name];
    delete settings[name];
  }
  write(SETTINGS, changed);
  change(shown.id, isText ? { system: isDefault ? undefined : given } : { settings });
}

function resetFields() {
  forget(SETTINGS);
  change(shown.id, { settings: {}, system: undefined });
  fillFields();
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
  if (wide.matches || !page.classList.contains("side-open")) return;
  setSide(false);
  focusBox();
}

function closePopup() {
  const popup = find("#save"), hadFocus = popup.open && popup.contains(document.activeElement);
  popup.open = false;
  if (hadFocus) find("summary", popup).focus();
}

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  if (theme) write(THEME, theme);
  else forget(THEME);
}
