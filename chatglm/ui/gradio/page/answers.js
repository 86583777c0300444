// Answers

function isBusy() {
  return Boolean(running) && running.id === shown.id;
}

async function call(name, { conversation, ...data }) {
  const reply = await server[name]({ ...data, conversation: conversation && complete(conversation), language });
  const problem = reply ? reply.error : (await appId()) && texts.not_served;
  if (problem) notify(problem, { isAlert: true });
  else if (!reply) lose();
  return reply && !problem ? reply : null;
}

// Asks the server for the answer to a round; false if that cannot be now.
async function perform(action, index, question) {
  if (isLost) notify(texts.unreachable, { isAlert: true });
  if (isLost || isBusy() || !validFields()) return false;
  const { id } = shown;
  if (running) {
    const title = titleOf(running.conversation || running.before);
    await stop();
    notify(fill(texts.stopped_elsewhere, { title }));
  }
  if (isBusy() || shown.id !== id) return false;
  const before = shown, key = newId();
  running = { key, id, action, index, question, before, heard: Date.now(), stored: 0 };
  if (question !== undefined) {
    shown = running.conversation = withRound(running, { question, versions: [{ text: "", finish_reason: "cancelled" }], selected: 0 });
    keep(shown);
  }
  const removed = before.rounds.length - index - 1;
  if (removed > 0) notify(fill(texts.later_removed, { rounds: removed }), { undo: () => restore(before) });
  trigger("answer", { key, action, index, question, language, conversation: complete(before) });
  drawState();
  drawTitle();
  announce(texts.answering);
  toEnd();
  return true;
}

// The conversation with what was changed during the answer, the rounds as they were before it, or those with its own.
function withRound({ id, before, index }, round) {
  const base = shown.id === id ? shown : stored(id) || before;
  if (!round) return { ...base, time: before.time, rounds: before.rounds };
  return { ...base, time: Date.now(), rounds: [...before.rounds.slice(0, index), round] };
}

function receive(message) {
  if (!message) return;
  const isOurs = message.key === running?.key;
  if (message.running && (!isOurs || running.finished)) call("stop", { key: message.key }); // stopped before it had begun
  if (!isOurs) return;
  const answer = running, isHere = isBusy(), isLast = !message.running;
  answer.heard = Date.now();
  answer.message = message;
  const conversation = message.round || isLast ? withRound(answer, message.round) : null;
  if (conversation) answer.conversation = conversation;
  if (isHere && conversation) shown = conversation;
  if (conversation && (isLast || Date.now() - answer.stored > STORE_EVERY_MS)) {
    answer.stored = Date.now();
    keep(conversation);
  }
  if (isHere && message.html) draw(() => drawRound(message));
  if (isLast) finish(message, isHere);
}

function finish(message, isHere) {
  const { action, question, finished } = running;
  running = null;
  drawState();
  drawList();
  if (message.error) notify(message.error, { isAlert: true });
  if (isHere && !message.round) {
    show(shown);
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

// Takes a question back that still waits in the queue.
function withdraw() {
  if (!isBusy() || !running.message?.place) return;
  const conversation = withRound(running);
  drop(running.id);
  keep(conversation);
}

// A server that has gone says nothing: it is looked for when there was no word from it for a while.
async function watchServer() {
  const answer = running;
  if (!answer || isLost || Date.now() - answer.heard < SILENCE_MS) return;
  const id = await appId();
  if (running !== answer) return;
  const isAnother = id && id !== window.gradio_config.app_id; // which knows nothing of the answer
  if (!id) lose();
  else if (isAnother || Date.now() - answer.heard > LOST_MS) reload();
}

async function appId() {
  try {
    const reply = await fetch("gradio_api/app_id", { cache: "no-store", signal: AbortSignal.timeout(SILENCE_MS) });
    return (await reply.json()).app_id;
  } catch {
    return null;
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
  setInterval(async () => (await appId()) && reload(), 2000);
}

function reload() {
  storeRunning();
  location.reload();
}

function storeRunning() {
  if (running?.conversation?.rounds.length) write(CONVERSATION + running.id, running.conversation);
}
