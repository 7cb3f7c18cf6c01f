// The open conversation: messages, presence, typing, and the composer.

import { caughtUp } from './connection.js';
import { byId, h, setText } from '../shared/dom.js';
import { MessageList } from './messages.js';
import { avatar, firstName, learn, nameOf } from './people.js';
import { chats } from './queue.js';
import { client, me } from '../shared/session.js';

const PAGE = 30;
/** Time after which a typing signal expires (ms). */
const TYPING = 6_000;
/** Minimum interval between our own typing signals (ms). */
const TELL_TYPING = 2_500;
/** Agents that are shown in the header; the others are counted. */
const MAX_FACES = 4;
const NOT_PEOPLE = new Set(['support-bot']);

const composer = /** @type {HTMLTextAreaElement} */ (byId('composer'));
const list = new MessageList();

/** @type {import('/client/tidewire.js').Channel | undefined} */
let room;
/** @type {string | undefined} */
let chat;
/** Unsent text of every chat. @type {Map<string, string>} */
const drafts = new Map();
/** @type {Map<string, ReturnType<typeof setTimeout>>} */
const typists = new Map();
let toldTyping = 0;
/** @type {import('/client/messages.js').Member[]} */
let here = [];
/** The first offset shown; more lies before it if `earlier` is shown. */
let first = 0;
let busy = false;

/** @param {string} id of a chat */
export function openChat(id) {
  if (id === chat) return;
  leave();
  chat = id;
  byId('chat-empty').hidden = true;
  byId('chat-open').hidden = false;
  byId('earlier').hidden = true;
  composer.value = drafts.get(id) ?? '';
  fit();
  list.clear();
  byId('log').setAttribute('aria-busy', 'true');
  const opened = client.channel(`room:${id}`);
  opened.on('subscribed', async (joined) => {
    caughtUp(joined);
    if (!joined.resumed || joined.recovered === false) await load(opened);
  });
  opened.on('*', hear);
  opened.on('presence', ({ members = [], left }) => {
    here = members.filter(({ user }) => !NOT_PEOPLE.has(user));
    for (const { user, info } of here) learn(user, info?.name);
    if (left) stopTyping(left.user);
    showPresence();
  });
  opened.on('error', () => list.note('This conversation cannot be shown.', Date.now()));
  room = opened;
  here = [];
  showPresence();
  refresh();
}

export function leave() {
  if (!chat) return;
  drafts.set(chat, composer.value);
  tellTyping(false);
  for (const timer of typists.values()) clearTimeout(timer);
  typists.clear();
  showTyping();
  room?.leave();
  room = chat = undefined;
}

/** Replaces the shown messages by the newest page of history. @param {import('/client/tidewire.js').Channel} of */
async function load(of) {
  const page = await of.history({ limit: PAGE });
  if (of !== room) return;
  list.clear();
  for (const event of page.events) list.add(event);
  list.toEnd();
  first = page.events[0]?.offset ?? 0;
  byId('earlier').hidden = !page.more;
  byId('log').removeAttribute('aria-busy');
}

async function loadEarlier() {
  const of = room;
  if (!of) return;
  const button = /** @type {HTMLButtonElement} */ (byId('earlier'));
  button.disabled = true;
  try {
    const page = await of.history({ before: first, limit: PAGE });
    if (of !== room) return;
    list.prepend(page.events);
    first = page.events[0]?.offset ?? first;
    button.hidden = !page.more;
  } catch {
    setText(button, 'Could not load, try again');
  } finally {
    button.disabled = false;
  }
}

/** @param {import('/client/messages.js').Event} event */
function hear(event) {
  const from = event.from ?? '';
  if (event.type === 'chat.typing') {
    if (from === me) return;
    if (event.data.active) startTyping(from);
    else stopTyping(from);
    return;
  }
  stopTyping(from);
  if (event.data.status === 'closed') for (const user of [...typists.keys()]) stopTyping(user);
  list.add(event);
}

// --- typing -------------------------------------------------------------------------------------------------------------

/** @param {string} user */
function startTyping(user) {
  clearTimeout(typists.get(user));
  typists.set(user, setTimeout(() => stopTyping(user), TYPING));
  showTyping();
}

/** @param {string} user */
function stopTyping(user) {
  clearTimeout(typists.get(user));
  if (typists.delete(user)) showTyping();
}

function showTyping() {
  const names = [...typists.keys()].map(firstName);
  const element = byId('typing');
  const words = names.length === 0 ? '' : names.length === 1 ? `${names[0]} is typing` : `${names.slice(0, -1).join(', ')} and ${names.at(-1)} are typing`;
  if (element.dataset.words === words) return;
  element.dataset.words = words;
  element.replaceChildren(...(words ? [h('span', { class: 'dots', 'aria-hidden': 'true' }, h('i'), h('i'), h('i')), `${words}…`] : []));
}

/** @param {boolean} active */
function tellTyping(active) {
  const now = Date.now();
  if (active ? now - toldTyping < TELL_TYPING : toldTyping === 0) return;
  toldTyping = active ? now : 0;
  room?.signal('chat.typing', { active });
}

// --- writing ------------------------------------------------------------------------------------------------------------

function submit() {
  const text = composer.value.trim();
  if (!text || !room) return;
  composer.value = '';
  drafts.delete(chat ?? '');
  toldTyping = 0;
  fit();
  send(room, list.write(me, text, (again) => room && send(room, again)));
  list.toEnd();
}

/**
 * Publishes a line and shows the result. A retry has the same id, so the line cannot appear twice.
 * @param {import('/client/tidewire.js').Channel} to
 * @param {import('./messages.js').Line} line
 */
async function send(to, line) {
  list.mark(line, 'pending');
  try {
    await to.publish('chat.message', { text: line.text, client: 'console' }, { id: line.id });
    list.mark(line, 'sent');
  } catch (error) {
    list.mark(line, 'failed', /** @type {Error} */ (error).message);
  }
}

/** Fits the height of the composer to its text, up to a maximum. */
function fit() {
  composer.style.height = 'auto';
  composer.style.height = `${Math.min(composer.scrollHeight + 2, 180)}px`;
}

// --- the header -----------------------------------------------------------------------------------------------------------

function showPresence() {
  const users = here.map(({ user }) => user).sort((a, b) => Number(b === me) - Number(a === me));
  byId('presence').replaceChildren(
    ...users.slice(0, MAX_FACES).map((user) => {
      const face = avatar(user, { label: true });
      face.dataset.testid = 'presence-member';
      face.dataset.user = user;
      return face;
    }),
    ...(users.length > MAX_FACES ? [h('span', { class: 'more', title: users.slice(MAX_FACES).map(nameOf).join(', ') }, `+${users.length - MAX_FACES}`)] : []),
  );
}

/** @type {Record<string, {label: string, status: string, testid: string, primary?: boolean}>} */
const ACTIONS = {
  claim: { label: 'Claim chat', status: 'claimed', testid: 'claim', primary: true },
  take: { label: 'Take over', status: 'claimed', testid: 'take-over' },
  close: { label: 'Close chat', status: 'closed', testid: 'close-chat' },
  reopen: { label: 'Reopen', status: 'reopened', testid: 'reopen', primary: true },
};

/** Shows the queue's facts about the open chat. */
export function refresh() {
  const facts = chat ? chats.get(chat) : undefined;
  if (!facts) return;
  list.customer = facts.customer_id;
  setText(byId('chat-title'), facts.customer);
  const whose = facts.agent === me ? 'yours' : facts.agent ? `with ${nameOf(facts.agent)}` : '';
  const states = { waiting: 'Waiting', claimed: 'In progress', closed: 'Closed', gone: 'Closed' };
  byId('chat-about').replaceChildren(
    h('span', { class: 'status', dataset: { status: facts.status }, 'data-testid': 'chat-status' }, states[facts.status]),
    h('span', { class: 'about-topic' }, facts.topic),
    h('span', { class: 'about-more' }, whose),
  );
  const closed = facts.status === 'closed' || facts.status === 'gone';
  const actions = closed ? ['reopen'] : facts.status === 'waiting' ? ['claim'] : facts.agent === me ? ['close'] : ['take', 'close'];
  const wanted = facts.status === 'gone' ? '' : actions.join();
  if (byId('actions').dataset.shown !== `${chat} ${wanted}`) {
    byId('actions').dataset.shown = `${chat} ${wanted}`;
    byId('actions').replaceChildren(...wanted.split(',').filter(Boolean).map(actionButton));
  }
  setConnected();
  byId('composer-form').hidden = closed;
  byId('closed-note').hidden = !closed;
  composer.placeholder = `Reply to ${nameOf(facts.customer_id)}`;
}

/** Without a connection, the buttons wait for it: who clicks wants to see the result. Lines may be written; they are sent later. */
function setConnected() {
  const isConnected = client.state === 'ready';
  document.body.dataset.connected = String(isConnected);
  for (const button of byId('actions').querySelectorAll('button')) {
    button.disabled = !isConnected || busy;
    button.title = isConnected ? '' : 'There is no connection';
  }
}

/** @param {string} name */
function actionButton(name) {
  const { label, status, testid, primary } = ACTIONS[name];
  const button = /** @type {HTMLButtonElement} */ (h('button', { type: 'button', class: primary ? 'primary' : 'plain', 'data-testid': testid }, label));
  button.addEventListener('click', async () => {
    if (!room || busy) return;
    busy = true;
    setConnected();
    try {
      await room.publish('chat.status', { status }); // the queue shows the result
      if (status === 'claimed') composer.focus();
    } catch (error) {
      list.note(`Not done: ${/** @type {Error} */ (error).message}`, Date.now());
    } finally {
      busy = false;
      setConnected();
    }
  });
  return button;
}

export function startConversation() {
  client.on('state', setConnected);
  byId('earlier').addEventListener('click', () => void loadEarlier());
  byId('jump').addEventListener('click', () => list.toEnd());
  byId('composer-form').addEventListener('submit', (event) => {
    event.preventDefault();
    submit();
  });
  composer.addEventListener('input', () => {
    fit();
    tellTyping(composer.value.trim() !== '');
  });
  composer.addEventListener('blur', () => tellTyping(false));
  composer.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
}

