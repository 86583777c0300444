// Files

async function save(form) {
  closePopup();
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
  const own = Object.entries(shown.settings).filter(([name]) => name in DEFAULTS); // the rest came from another file
  const settings = { ...Object.fromEntries(own), ...reply.settings }, system = reply.system ?? shown.system;
  const title = file.name.replace(/\.json$/i, "");
  const conversation = { id: newId(), title, time: Date.now(), system, settings, rounds: reply.rounds };
  keep(conversation);
  show(conversation);
  closeDrawer();
  return notify(fill(texts.opened, { rounds: reply.rounds.length }));
}
