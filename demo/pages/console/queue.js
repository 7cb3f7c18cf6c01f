// The queue: chats in groups, the longest-waiting first.

import { caughtUp } from './connection.js';
import { byId, h, icon, setText } from '../shared/dom.js';
import { avatar, firstName } from './people.js';
import { client, me } from '../shared/session.js';
import { heardAt, serviceNow, span } from './time.js';

/**
 * @typedef {{chat: string, customer: string, customer_id: string, topic: string, preview: string,
 *            status: 'waiting' | 'claimed' | 'closed' | 'gone', agent?: string, waiting_since: number | null, messages: number}} Chat
 * @typedef {{waiting: number, open: number}} Counts  chats that wait, and that an agent has; everything on the page that counts chats shows these
 */

const GROUPS = /** @type {const} */ (['waiting', 'mine', 'others', 'closed']);
const TITLES = { waiting: 'Waiting', mine: 'Mine', others: 'With others', closed: 'Closed' };
const SEEN = `tidewire.seen.${me}`;

/** @type {Map<string, Chat>} */
export const chats = new Map();
/** @type {Map<string, Row>} */
const rows = new Map();
/** How many messages of each chat this agent has seen. @type {Record<string, number>} */
let seen = JSON.parse(localStorage.getItem(SEEN) ?? '{}');
/** @type {string | undefined} */
let current;
let looking = true;
/** @type {{onOpen: (chat: string) => void, onChange: (chat: Chat) => void, onCounts: (counts: Counts) => void}} */
let page = { onOpen: () => {}, onChange: () => {}, onCounts: () => {} };

/** @param {Chat} chat */
function groupOf({ status, agent }) {
  if (status === 'waiting' || status === 'closed') return status;
  return agent === me ? 'mine' : 'others';
}

/** Counts unread messages of chats that this agent may have to answer. @param {Chat} chat */
function unreadOf(chat) {
  return ['waiting', 'mine'].includes(groupOf(chat)) ? Math.max(0, chat.messages - (seen[chat.chat] ?? 0)) : 0;
}

/** One chat in the list; updates reuse its elements. */
class Row {
  /** @param {Chat} chat */
  constructor({ chat, customer, customer_id: customerId, topic }) {
    this.name = h('span', { class: 'row-name' }, customer);
    this.wait = h('span', { class: 'row-wait' });
    this.preview = h('span', { class: 'row-preview' });
    this.unreadCount = h('span', { 'data-testid': 'unread' });
    this.unread = h('span', { class: 'badge' }, this.unreadCount, h('span', { class: 'sr' }, ' unread'));
    this.owner = h('span', { class: 'row-owner' });
    this.button = h(
      'button',
      { type: 'button', class: 'row', tabindex: '-1', title: topic, dataset: { chat }, 'data-testid': 'queue-item', onclick: () => page.onOpen(chat) },
      avatar(customerId),
      h(
        'span',
        { class: 'row-body' },
        h('span', { class: 'row-top' }, this.name, h('span', { class: 'sr' }, topic), this.wait),
        h('span', { class: 'row-bottom' }, this.preview, this.owner, this.unread),
      ),
    );
    this.element = h('li', {}, this.button);
  }

  /** @param {Chat} chat */
  update(chat) {
    const unread = chat.chat === current ? 0 : unreadOf(chat);
    this.button.dataset.status = chat.status;
    this.button.dataset.agent = chat.agent ?? '';
    setText(this.preview, chat.preview || chat.topic);
    setText(this.owner, groupOf(chat) === 'others' && chat.agent ? firstName(chat.agent) : '');
    this.unread.hidden = unread === 0;
    setText(this.unreadCount, unread > 99 ? '99+' : String(unread));
    if (chat.chat === current) this.button.setAttribute('aria-current', 'true');
    else this.button.removeAttribute('aria-current');
    this.tick(chat);
  }

  /** @param {Chat} chat */
  tick({ waiting_since: since }) {
    const waited = since === null ? 0 : serviceNow() - since;
    setText(this.wait, since === null ? '' : span(waited));
    this.wait.dataset.late = String(waited > 120_000);
  }
}

const sections = new Map(
  GROUPS.map((group) => {
    const count = h('span', { class: 'count' });
    const list = h('ul', { 'aria-label': TITLES[group] });
    const title = group === 'closed' ? h('summary', {}, icon('fold'), TITLES[group], count) : h('h3', {}, TITLES[group], count);
    const element = h(group === 'closed' ? 'details' : 'section', { class: 'group', dataset: { group } }, title, list);
    byId('queue').append(element);
    return [group, { element, list, count }];
  }),
);
const nothing = h('p', { class: 'none', hidden: true }, 'No chat matches.');
byId('queue').append(nothing);
const search = /** @type {HTMLInputElement} */ (byId('search'));

/** @param {Chat} a @param {Chat} b */
function order(a, b) {
  if (a.status === 'waiting' && b.status === 'waiting') return (a.waiting_since ?? Number.MAX_VALUE) - (b.waiting_since ?? Number.MAX_VALUE) || a.chat.localeCompare(b.chat);
  return a.status === 'closed' ? b.chat.localeCompare(a.chat) : a.chat.localeCompare(b.chat);
}

/** Sorts the rows, and moves only those in a wrong place, so that focus and scroll position stay. */
export function arrange() {
  const wanted = search.value.trim().toLowerCase();
  const { activeElement } = document;
  const focusedAt = visible().findIndex((row) => row === activeElement);
  const shown = [...chats.values()].filter(({ customer, topic, preview }) => !wanted || `${customer} ${topic} ${preview}`.toLowerCase().includes(wanted));
  for (const [group, { element, list, count }] of sections) {
    const members = shown.filter((chat) => groupOf(chat) === group).sort(order);
    members.forEach((chat, index) => {
      const { element: item } = /** @type {Row} */ (rows.get(chat.chat));
      if (list.children[index] !== item) moveTo(list, item, index);
    });
    while (list.children.length > members.length) list.lastElementChild?.remove();
    element.hidden = members.length === 0;
    setText(count, String(members.length));
    if (element instanceof HTMLDetailsElement && wanted) element.open = true;
  }
  nothing.hidden = shown.length > 0 || chats.size === 0;
  for (const chat of chats.values()) rows.get(chat.chat)?.update(chat);
  showCounts();
  if (focusedAt >= 0) keepFocus(/** @type {HTMLElement} */ (activeElement), focusedAt);
  rove();
}

function showCounts() {
  const count = (/** @type {string} */ wanted) => [...chats.values()].filter(({ status }) => status === wanted).length;
  const [waiting, open] = [count('waiting'), count('claimed')];
  setText(byId('queue-count'), `${waiting} waiting, ${open} in progress`);
  document.title = waiting ? `(${waiting}) Support console` : 'Support console';
  byId('tab-waiting').hidden = waiting === 0;
  setText(byId('tab-waiting'), String(waiting));
  page.onCounts({ waiting, open });
}

/** Focuses the row that had the focus or, if that is no longer shown, the one in its place. @param {HTMLElement} row @param {number} at */
function keepFocus(row, at) {
  const all = visible();
  if (!all.includes(row)) all[Math.min(at, all.length - 1)]?.focus({ preventScroll: true });
}

/** @param {Element} list @param {HTMLElement} item @param {number} index */
function moveTo(list, item, index) {
  const focused = item.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement) : null;
  list.insertBefore(item, list.children[index] ?? null);
  focused?.focus({ preventScroll: true });
}

/** The rows in visible order. @returns {HTMLElement[]} */
function visible() {
  return /** @type {HTMLElement[]} */ ([...byId('queue').querySelectorAll('.group:not([hidden]) .row')]).filter((row) => row.checkVisibility());
}

/** Puts exactly one row into the Tab order. */
function rove() {
  const all = visible();
  const holder = all.find((row) => row === document.activeElement) ?? all.find((row) => row.dataset.chat === current) ?? all[0];
  for (const row of byId('queue').querySelectorAll('.row')) row.setAttribute('tabindex', row === holder ? '0' : '-1');
}

/** Moves the focus in the list. @param {KeyboardEvent} event */
function onKey(event) {
  const all = visible();
  const at = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const last = all.length - 1;
  /** @type {Record<string, number>} */
  const targets = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last };
  if (!(event.key in targets) || at < 0) return;
  event.preventDefault();
  all[targets[event.key]].focus();
  rove();
}

/** Focuses the open chat's row, or the first one. */
export function focusQueue() {
  const all = visible();
  (all.find((row) => row.dataset.chat === current) ?? all[0])?.focus();
}

/** Sets the open chat; its messages count as seen while it is visible. @param {string | undefined} chat */
export function setCurrent(chat) {
  current = chat;
  markSeen();
  arrange();
}

/** Whether the open conversation is on the screen. @param {boolean} now */
export function setLooking(now) {
  looking = now;
  markSeen();
}

function markSeen() {
  const chat = current && chats.get(current);
  if (!chat || !looking || seen[chat.chat] === chat.messages) return;
  seen[chat.chat] = chat.messages;
  localStorage.setItem(SEEN, JSON.stringify(seen));
}

/** The chat to open first: the agent's own, or the longest-waiting one. */
export function firstChat() {
  const all = [...chats.values()].sort(order);
  return (all.find((chat) => groupOf(chat) === 'mine') ?? all.find((chat) => chat.status === 'waiting'))?.chat;
}

/** @param {Chat} chat */
function apply(chat) {
  if (chat.status === 'gone') {
    chats.delete(chat.chat); // `arrange` removes its row
    rows.delete(chat.chat);
    return;
  }
  chats.set(chat.chat, chat);
  if (!rows.has(chat.chat)) rows.set(chat.chat, new Row(chat));
}

/** @param {typeof page} handlers */
export function startQueue(handlers) {
  page = handlers;
  const queue = client.channel('queue:support');
  queue.on('subscribed', caughtUp);
  queue.on('values', (events) => {
    const known = new Set(events.map(({ data }) => data.chat));
    for (const chat of chats.values()) if (!known.has(chat.chat)) apply({ ...chat, status: 'gone' });
    for (const { data } of events) apply(data);
    seen = Object.fromEntries(Object.entries(seen).filter(([chat]) => chats.has(chat)));
    markSeen();
    arrange();
    for (const chat of chats.values()) page.onChange(chat);
  });
  queue.on('*', ({ at, data }) => {
    heardAt(at);
    apply(data);
    markSeen();
    arrange();
    page.onChange(data);
  });
  byId('queue').addEventListener('keydown', onKey);
  byId('queue').addEventListener('focusin', rove);
  search.addEventListener('input', arrange);
  search.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown' || event.key === 'Enter') {
      event.preventDefault();
      const first = visible()[0];
      if (event.key === 'Enter') first?.click();
      else first?.focus();
    }
  });
  sections.get('closed')?.element.addEventListener('toggle', rove);
  setInterval(() => chats.forEach((chat) => rows.get(chat.chat)?.tick(chat)), 1_000);
}
