// A service in this process that does what a schedule says, and what a list must show of it.

import { WELCOME, message, value } from '../support.js';

const CHANNEL = 'room:1';

/** One channel of a service. Its answers wait until the schedule lets them go, over a connection that it may cut. */
export class ModelService {
  epoch = 1;
  /** @type {any[]} all durable events of the epoch; those that were taken back have `gone` */
  events = [];
  /** The first offset that is kept. */
  first = 1;
  /** @type {Map<string, any>} */
  state = new Map();
  /** @type {Map<string, any>} */
  members = new Map();
  #rev = 0;
  #count = 0;
  /** @type {{events: import('../../src/connection/link.js').LinkEvents, live: boolean, frames: any[]} | undefined} */
  #link;

  /** @type {import('../../src/connection/link.js').OpenLink} */
  open = (_, events) => {
    const link = { events, live: false, frames: [] };
    this.#link = link;
    queueMicrotask(() => events.opened());
    return {
      send: (frame) => [JSON.parse(frame)].flat().forEach((/** @type {any} */ request) => this.#link === link && this.#answer(request)),
      buffered: () => 0,
      close: () => this.#link === link && (this.#link = undefined),
    };
  };

  get position() {
    return { epoch: `e${this.epoch}`, offset: this.events.length, last: this.events.at(-1)?.id };
  }

  /** Lets the next frames go. @param {number} count */
  deliver(count) {
    for (const frame of this.#link?.frames.splice(0, count) ?? []) this.#link?.events.received(JSON.stringify(frame));
  }

  get waits() {
    return this.#link?.frames.length ?? 0;
  }

  /**
   * A page of history overtakes all other frames, or all overtake it: the service reads it meanwhile.
   * @param {'first' | 'last'} place
   */
  reorder(place) {
    const frames = this.#link?.frames ?? [];
    const at = frames.findIndex(({ type }) => type === 'history');
    if (at < 0) return;
    const [page] = frames.splice(at, 1);
    if (place === 'first') frames.unshift(page);
    else frames.push(page);
  }

  /** @param {'lose' | 'repeat'} fault  of the next frame of an event */
  fault(fault) {
    const frames = this.#link?.frames ?? [];
    const at = frames.findIndex(({ type, offset }) => type.includes('.') && offset !== undefined);
    if (at < 0) return;
    if (fault === 'lose') frames.splice(at, 1);
    else frames.splice(at, 0, frames[at]);
  }

  cut() {
    const link = this.#link;
    this.#link = undefined;
    link?.events.ended(1006, '');
  }

  /** @param {string} type @param {string} key */
  publish(type, key) {
    this.#count += 1;
    const event = { ...message(this.events.length + 1), id: `m-${this.#count}`, type, data: { key, n: this.#count } };
    this.events.push(event);
    this.#live(event);
  }

  /** Takes back one of the kept events. @param {number} nth */
  takeBack(nth) {
    const kept = this.events.filter(({ offset, gone, type }) => offset >= this.first && !gone && type !== 'event.removed');
    if (!kept.length) return;
    const target = kept[nth % kept.length];
    target.gone = true;
    this.#count += 1;
    const { id, offset } = target;
    const event = { ...message(this.events.length + 1), id: `r-${this.#count}`, type: 'event.removed', from: null, data: { id, offset } };
    this.events.push(event);
    this.#live(event);
  }

  /** Keeps only the newest. @param {number} count */
  keep(count) {
    this.first = Math.max(this.first, this.events.length - count + 1);
  }

  purge() {
    this.epoch += 1;
    this.events = [];
    this.first = 1;
    this.state.clear();
    if (this.#link?.live) this.#send({ type: 'subscribed', id: null, channel: CHANNEL, ...this.position, events: [], state: [], recovered: false });
  }

  /** @param {string} key */
  set(key) {
    this.#rev += 1;
    const event = value(key, this.#rev);
    this.state.set(key, event);
    this.#live(event);
  }

  /** @param {string} key */
  unset(key) {
    this.#rev += 1;
    this.state.delete(key);
    this.#live({ ...value(key, this.#rev), data: undefined, removed: true });
  }

  /** @param {string} user @param {boolean} here */
  presence(user, here) {
    if (here) this.members.set(user, { user, connections: 1 });
    else this.members.delete(user);
    this.#live({ type: here ? 'presence.joined' : 'presence.left', channel: CHANNEL, id: `p-${user}`, at: 1, from: user, data: { user }, key: user });
  }

  /** @param {any} event */
  #live(event) {
    if (this.#link?.live) this.#send(event);
  }

  /** @param {any} frame  as it is now */
  #send(frame) {
    this.#link?.frames.push(JSON.parse(JSON.stringify({ ...frame, gone: undefined })));
  }

  /** Kept events as history shows them. @param {(event: any) => boolean} wanted */
  #read(wanted) {
    const tombstone = (/** @type {any} */ event) => ({ ...event, type: 'event.removed', from: null, data: { id: event.id, offset: event.offset } });
    return this.events.filter((event) => event.offset >= this.first && wanted(event)).map((event) => (event.gone ? tombstone(event) : event));
  }

  /** @param {any} request */
  #answer(request) {
    const link = /** @type {any} */ (this.#link);
    const { type, id, since, tail, before = Infinity, after = 0, limit } = request;
    if (type === 'hello') link.events.received(JSON.stringify(WELCOME));
    if (type === 'unsubscribe') {
      link.live = false;
      this.#send({ type: 'unsubscribed', channel: CHANNEL, id, code: 'requested' });
    }
    if (type === 'history') {
      const found = this.#read(({ offset }) => offset > after && offset < before);
      const events = request.after === undefined ? found.slice(-limit) : found.slice(0, limit);
      this.#send({ type, id, channel: CHANNEL, ...this.position, events, more: events.length < found.length });
    }
    if (type === 'subscribe') {
      link.live = true;
      const known = since?.epoch === this.position.epoch && since.offset >= this.first - 1;
      const events = known ? this.#read(({ offset }) => offset > since.offset) : [];
      const recovered = since ? known : undefined;
      const last = tail && !since ? this.#read(() => true).slice(-tail) : undefined;
      const presence = { count: this.members.size, members: [...this.members.values()] };
      this.#send({ type: 'subscribed', id, channel: CHANNEL, ...this.position, events, state: [...this.state.values()], recovered, tail: last, presence });
    }
  }
}
