import { refusal } from './refusal.js';

/**
 * @typedef {import('../../messages.js').Event} Event
 * @typedef {import('../../messages.js').Position} Position
 * @typedef {import('./contract.js').ChannelRule} ChannelRule
 * @typedef {{at: number, event: Event}} Entry
 * @typedef {{at: number, event: Event, ends: number}} Value
 * @typedef {{at: number, ack: {offset?: number, rev?: number}}} Result
 */

/** Milliseconds in which a repeated id gets its first result. */
const IDEMPOTENCY_WINDOW = 300_000;
/** Results that a channel keeps. */
const MAX_RESULTS = 10_000;

/** What the service keeps of one channel: the stream, the values, and the results of publishes. */
export class StoredChannel {
  epoch;
  offset = 0;
  /** @type {string | undefined} the id of the newest event */
  last;
  #rule;
  #now;
  /** @type {Entry[]} */
  #stream = [];
  /** @type {Map<string, Value>} by type and key, in the order of `rev` */
  #values = new Map();
  #rev = 0;
  /** @type {Map<string, Result>} by user and id */
  #results = new Map();

  /**
   * @param {ChannelRule} rule
   * @param {string} epoch
   * @param {() => number} now
   */
  constructor(rule, epoch, now) {
    this.#rule = rule;
    this.epoch = epoch;
    this.#now = now;
  }

  /** @returns {Position} */
  get position() {
    return { epoch: this.epoch, offset: this.offset, id: this.last };
  }

  /** The events that are kept, oldest first. */
  get events() {
    const { ttl } = this.#rule.history ?? { ttl: 0 };
    while (this.#stream.length && this.#stream[0].at + ttl <= this.#now()) this.#stream.shift();
    return this.#stream.map(({ event }) => event);
  }

  /** The newest event of every key, with the `ttl` that is left. @returns {Event[]} */
  get state() {
    this.#expire();
    return Array.from(this.#values.values(), ({ event, ends }) => (ends === Infinity ? event : { ...event, ttl: Math.max(1, Math.round(ends - this.#now())) }));
  }

  /** The first result of an id. @param {string} user @param {string | undefined} id */
  resultOf(user, id) {
    const result = id === undefined ? undefined : this.#results.get(`${user}\n${id}`);
    return result && result.at + IDEMPOTENCY_WINDOW > this.#now() ? result.ack : undefined;
  }

  /** @param {string} user @param {string} id @param {{offset?: number, rev?: number}} ack */
  remember(user, id, ack) {
    this.#results.set(`${user}\n${id}`, { at: this.#now(), ack });
    if (this.#results.size > MAX_RESULTS) this.#results.delete(/** @type {string} */ (this.#results.keys().next().value));
  }

  /** @param {Event} event */
  append(event) {
    this.offset += 1;
    this.last = event.id;
    const stored = { ...event, offset: this.offset };
    this.#stream.push({ at: this.#now(), event: stored });
    if (this.#stream.length > (this.#rule.history?.entries ?? 0)) this.#stream.shift();
    return stored;
  }

  /** Stores a value, or removes one. @param {Event} event @param {number | undefined} ttl */
  put(event, ttl) {
    this.#expire();
    this.#rev += 1;
    const name = nameOf(event);
    const stored = { ...event, rev: this.#rev, ...(ttl === undefined || event.removed ? {} : { ttl }) };
    this.#values.delete(name);
    if (!event.removed) this.#values.set(name, { at: this.#now(), event: stored, ends: ttl === undefined ? Infinity : this.#now() + ttl });
    if (this.#values.size > this.#rule.state.entries) this.#values.delete(/** @type {string} */ (this.#values.keys().next().value));
    return stored;
  }

  /** Refuses a change of a value that has another `rev`. @param {Event} event @param {number | undefined} wanted */
  checkRev(event, wanted) {
    this.#expire();
    const rev = this.#values.get(nameOf(event))?.event.rev ?? 0;
    if (wanted !== undefined && wanted !== rev) throw refusal('conflict', `the value has rev ${rev}, not ${wanted}`, { path: '$.if_rev', rev });
  }

  /** The events after a position; undefined if some may be missing. @param {Position} since @returns {Event[] | undefined} */
  after(since) {
    const { events } = this;
    if (since.epoch !== this.epoch || since.offset > this.offset) return undefined;
    const known = events.find(({ offset }) => offset === since.offset)?.id;
    if (since.offset === this.offset) return (since.id ?? undefined) === this.last ? [] : undefined;
    const isStart = since.offset === 0 && since.id === undefined && events[0]?.offset === 1;
    return isStart || (known !== undefined && known === since.id) ? events.filter(({ offset = 0 }) => offset > since.offset) : undefined;
  }

  /** A page of events. @param {{after?: number, before?: number, limit?: number}} page */
  page({ after, before = Infinity, limit = 50 }) {
    const found = this.events.filter(({ offset = 0 }) => offset > (after ?? 0) && offset < before);
    return { events: after === undefined ? found.slice(-limit) : found.slice(0, limit), more: found.length > limit };
  }

  /** Replaces an event by its tombstone, and returns it; undefined if it is not kept. @param {string} id */
  takeBack(id) {
    const entry = this.#stream.find(({ event }) => event.id === id);
    if (!entry) return undefined;
    const { channel, at, offset } = entry.event;
    entry.event = { type: 'event.removed', channel, id, at, from: null, data: { id, offset }, offset };
    return entry.event;
  }

  /** Loses everything, and begins an epoch in which the counts continue. @param {string} epoch */
  purge(epoch) {
    this.epoch = epoch;
    this.#stream = [];
    this.#values.clear();
    this.#results.clear();
  }

  #expire() {
    const now = this.#now();
    for (const [name, { at, ends }] of this.#values) if (ends <= now || at + this.#rule.state.ttl <= now) this.#values.delete(name);
  }
}

/** @param {{type: string, key?: string}} event */
const nameOf = ({ type, key = '' }) => `${type}\n${key}`;
