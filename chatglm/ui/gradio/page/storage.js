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
  if (!conversation.rounds.length) forget(CONVERSATION + conversation.id);
  else if (!write(CONVERSATION + conversation.id, conversation)) notify(texts.storage_full, { isAlert: true });
  drawList();
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (number) => number.toString(36)).join("");
}

function titleOf(conversation) {
  const [question] = conversation.rounds;
  return conversation.title || (question ? question.question.trim().split("\n")[0].slice(0, 80) : "") || texts.untitled;
}
