// The frames on the wire, the newest first. Frames that only have numbers are counted together. The client has masked tokens.

import { h, setText } from '../shared/dom.js';

const MAX_LINES = 80;
const MAX_LENGTH = 420;

export class Frames {
  #list;
  /** @type {{element: Element, low: number, high: number, count: number} | undefined} */
  #numbers;

  /** @param {Element} list */
  constructor(list) {
    this.#list = list;
  }

  /** @param {string} line  of the option `debug` */
  add = (line) => {
    const [, mark = '', text] = /^\[tidewire\] ([→←] )?([^]*)$/.exec(line) ?? [];
    if (!mark) {
      this.#put('state', text);
      return;
    }
    if (!/^[[{]/.test(text)) return; // a comment in a stream, which keeps it open
    const rest = [JSON.parse(text)].flat().filter((message) => !this.#count(message));
    for (const message of rest) this.#put(mark === '→ ' ? 'sent' : 'got', `${mark}${short(message)}`);
  };

  /** @param {string} text */
  note(text) {
    this.#put('state', text);
  }

  /** @param {any} message */
  #count({ type, data }) {
    if (!/^number\./.test(type)) return false;
    if (!this.#numbers) this.#numbers = { element: this.#put('events', ''), low: data.n, high: data.n, count: 0 };
    const numbers = this.#numbers;
    numbers.low = Math.min(numbers.low, data.n);
    numbers.high = Math.max(numbers.high, data.n);
    numbers.count += 1;
    setText(numbers.element, `← ${numbers.count} events, the numbers ${numbers.low} to ${numbers.high}`);
    return true;
  }

  /** @param {string} look @param {string} text */
  #put(look, text) {
    this.#numbers = undefined;
    const element = h('li', { class: look }, text);
    this.#list.prepend(element);
    while (this.#list.children.length > MAX_LINES) this.#list.lastElementChild?.remove();
    return element;
  }
}

/** @param {any} message */
function short(message) {
  const { events } = message;
  const text = JSON.stringify(events?.length ? { ...message, events: '…' } : message).replace('"events":"…"', () => `"events":[… ${events.length} …]`);
  return text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)}…` : text;
}
