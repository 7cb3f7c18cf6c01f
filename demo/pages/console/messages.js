// The message list: stored messages in stream order, then pending ones.

import { byId, h, icon } from '../shared/dom.js';
import { avatar, nameOf } from './people.js';
import { me } from '../shared/session.js';
import { dayOf, fullTimeOf, timeOf } from './time.js';

/** Consecutive lines of one sender within this time (ms) form a group. */
const TOGETHER = 4 * 60_000;
const MOST = 400;

/**
 * @typedef {{id: string, from: string, text: string, at: number, offset?: number, element: HTMLElement, note: boolean,
 *            retry?: (line: Line) => void}} Line
 */

/** Creates the id of a line, so that a retry is recognised. */
function newId() {
  return `line-${Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

export class MessageList {
  /** The customer's user id: their lines are on the left. */
  customer = '';
  #log = byId('log');
  #list = byId('messages');
  #jump = byId('jump');
  /** In the order shown. @type {Line[]} */
  #lines = [];

  constructor() {
    this.#log.addEventListener('scroll', () => {
      if (this.#atEnd()) this.#jump.hidden = true;
    });
    // Keep the newest line visible when something covers part of the log, such as a phone's keyboard.
    let end = true;
    this.#log.addEventListener('scroll', () => (end = this.#atEnd()));
    new ResizeObserver(() => end && this.toEnd()).observe(this.#log);
  }

  clear() {
    this.#lines = [];
    this.#list.replaceChildren();
    this.#jump.hidden = true;
  }

  /** Shows an event of the stream; it replaces our pending line with the same id. @param {any} event */
  add(event) {
    const stick = this.#atEnd();
    const own = this.#lines.find(({ id, from }) => id === event.id && from === (event.from ?? ''));
    if (own?.offset !== undefined) return;
    if (own) this.#lines.splice(this.#lines.indexOf(own), 1);
    const line = own ?? this.#make(event);
    Object.assign(line, { at: event.at, offset: event.offset });
    this.#insert(line);
    if (own) this.mark(own, 'sent');
    else this.#arrange();
    if (this.#lines.length > MOST && stick) this.#lines.splice(0, this.#lines.length - MOST).forEach(({ element }) => element.remove());
    if (stick || event.from === me) this.toEnd();
    else this.#jump.hidden = line.note;
  }

  /** Adds earlier events at the top, and keeps the scroll position. @param {any[]} events */
  prepend(events) {
    const height = this.#log.scrollHeight - this.#log.scrollTop;
    for (const event of events) {
      if (!this.#lines.some(({ id, from, offset }) => id === event.id && from === (event.from ?? '') && offset !== undefined)) this.#insert(this.#make(event));
    }
    this.#arrange();
    this.#log.scrollTop = this.#log.scrollHeight - height;
  }

  /** Adds a pending line of this agent. @param {string} from @param {string} text @param {(line: Line) => void} retry */
  write(from, text, retry) {
    const line = this.#make({ id: newId(), from, at: Date.now(), type: 'chat.message', data: { text } });
    line.retry = retry;
    this.#insert(line);
    this.#arrange();
    return line;
  }

  /** @param {Line} line @param {'pending' | 'sent' | 'failed'} state @param {string} [reason] */
  mark(line, state, reason) {
    const { element } = line;
    if (element.dataset.state === 'sent' && line.offset !== undefined && state !== 'sent') return;
    const place = sign(element, state);
    element.querySelector('.retry')?.remove();
    if (state === 'failed') {
      place.title = reason ?? '';
      place.after(h('button', { type: 'button', class: 'link retry', 'data-testid': 'retry', onclick: () => line.retry?.(line) }, 'Try again'));
    }
    this.#arrange();
  }

  /** @param {string} text @param {number} at */
  note(text, at) {
    const element = h('li', { class: 'note' }, text);
    this.#insert({ id: newId(), from: '', text, at, element, note: true });
    this.toEnd();
  }

  toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#jump.hidden = true;
  }

  #atEnd() {
    return this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 80;
  }

  /** @param {any} event @returns {Line} */
  #make({ id, from: sender, at, offset, type, data }) {
    const from = sender ?? '';
    const note = type === 'chat.status';
    const element = note ? this.#status(id, from, at, data) : this.#bubble(id, from, at, data.text);
    return { id, from, text: data.text ?? '', at, offset, element, note };
  }

  /** @param {string} id @param {string} from @param {number} at @param {string} text */
  #bubble(id, from, at, text) {
    const side = from === me ? 'mine' : from === this.customer ? 'customer' : 'colleague';
    const element = h(
      'li',
      { class: `line ${side}`, 'data-testid': 'message', dataset: { id, from, state: 'sent' } },
      avatar(from),
      h(
        'div',
        { class: 'said' },
        h('span', { class: 'sender' }, nameOf(from)),
        h('p', { class: 'bubble', 'data-testid': 'message-text' }, text),
        h('span', { class: 'meta' }, h('time', { datetime: new Date(at).toISOString(), title: fullTimeOf(at) }, timeOf(at)), h('span', { class: 'delivery' })),
      ),
    );
    if (side === 'mine') sign(element, 'sent');
    return element;
  }

  /** @param {string} id @param {string} from @param {number} at @param {any} data */
  #status(id, from, at, { status, agent }) {
    const who = from === me ? 'You' : nameOf(from);
    const whose = agent === me ? 'you' : nameOf(agent ?? '');
    const words = agent && status === 'claimed' ? `Assigned to ${whose}` : `${who} ${status} the chat`;
    return h('li', { class: 'note', 'data-testid': 'status-note', dataset: { id, status } }, h('span', {}, words), h('time', {}, timeOf(at)));
  }

  /** Sorts lines by offset; pending lines and notes come last. @param {Line} line */
  #insert(line) {
    const rank = (/** @type {Line} */ { offset }) => offset ?? Infinity;
    let at = this.#lines.length;
    while (at > 0 && rank(this.#lines[at - 1]) > rank(line)) at -= 1;
    this.#lines.splice(at, 0, line);
    const after = this.#lines[at + 1]?.element ?? null;
    if (line.element.nextElementSibling !== after || !line.element.isConnected) this.#list.insertBefore(line.element, after);
  }

  /** Groups the lines of one sender and adds day separators. */
  #arrange() {
    this.#list.querySelectorAll('.day').forEach((day) => day.remove());
    this.#lines.forEach((line, index) => {
      const before = this.#lines[index - 1];
      const next = this.#lines[index + 1];
      const day = dayOf(line.at);
      if (!before || dayOf(before.at) !== day) this.#list.insertBefore(h('li', { class: 'day' }, day), line.element);
      if (line.note) return;
      line.element.classList.toggle('follows', together(before, line));
      line.element.classList.toggle('followed', together(line, next) && line.element.dataset.state === 'sent');
    });
  }
}

/** Shows what became of a line of ours. Returns where it does. @param {HTMLElement} element @param {'pending' | 'sent' | 'failed'} state */
function sign(element, state) {
  element.dataset.state = state;
  const place = /** @type {HTMLElement} */ (element.querySelector('.delivery'));
  const words = { pending: 'Sending', sent: 'Sent', failed: 'Not sent' }[state];
  place.replaceChildren(icon({ pending: 'clock', sent: 'check', failed: 'alert' }[state]), h('span', { class: state === 'failed' ? '' : 'sr' }, words));
  return place;
}

/** @param {Line | undefined} a @param {Line | undefined} b */
function together(a, b) {
  return !!a && !!b && !a.note && !b.note && a.from === b.from && Math.abs(b.at - a.at) < TOGETHER && dayOf(a.at) === dayOf(b.at);
}
