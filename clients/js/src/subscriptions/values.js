import { Timer } from '../base/clock.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {{type: string, key: string, rev: number, expired: boolean}} Removed
 *   The value of a key that has ended. `expired`: its `ttl` has passed; else it was removed, with this `rev`.
 * @typedef {{event: Event, rev: number, ends: number}} Value  `ends`: monotonic ms; Infinity without a `ttl`
 */

/** Values of one channel; a service keeps fewer, unless its contract says otherwise. */
const MAX_VALUES = 100_000;

/** The newest event of every key of a channel, until its `ttl` has passed. All times are monotonic milliseconds. */
export class Values {
  /** @type {Map<string, Value>} by type and key */
  #values = new Map();
  #timer;
  #due;
  #wakes = Infinity;

  /**
   * @param {import('../base/clock.js').Clock} clock
   * @param {() => void} due  called when `expire` has something to do
   */
  constructor(clock, due) {
    this.#timer = new Timer(clock);
    this.#due = due;
  }

  /** The events, newest per key. */
  get events() {
    return Array.from(this.#values.values(), ({ event }) => event);
  }

  /**
   * Replaces all values.
   * @param {Event[]} state
   * @param {number} at  when it came
   * @param {number} now
   */
  replace(state, at, now) {
    this.clear();
    for (const event of state) this.set(event, at, now);
  }

  /**
   * Returns false if the event is not newer than what is known.
   * @param {Event} event
   * @param {number} at  when it came
   * @param {number} now
   */
  set(event, at, now) {
    const { rev = 0, ttl } = event;
    const name = nameOf(event);
    const known = this.#values.get(name);
    if (rev <= (known?.rev ?? -1) || (!known && this.#values.size >= MAX_VALUES)) return false;
    const ends = ttl === undefined ? Infinity : at + ttl;
    this.#values.set(name, { event, rev, ends });
    this.#wake(ends, now);
    return true;
  }

  /**
   * Removes a value. Returns undefined if a newer one is known.
   * @param {Event} event
   * @returns {Removed | undefined}
   */
  remove(event) {
    const { type, key = '', rev = 0 } = event;
    const name = nameOf(event);
    if (rev <= (this.#values.get(name)?.rev ?? -1)) return undefined;
    this.#values.delete(name);
    return { type, key, rev, expired: false };
  }

  /**
   * Removes and returns the values that have ended.
   * @param {number} now
   * @returns {Removed[]}
   */
  expire(now) {
    /** @type {Removed[]} */
    const ended = [];
    let next = Infinity;
    for (const [name, { event, rev, ends }] of this.#values) {
      if (ends <= now) {
        this.#values.delete(name);
        ended.push({ type: event.type, key: event.key ?? '', rev, expired: true });
      } else next = Math.min(next, ends);
    }
    this.#wake(next, now);
    return ended;
  }

  clear() {
    this.#values.clear();
    this.#timer.stop();
    this.#wakes = Infinity;
  }

  /**
   * @param {number} at
   * @param {number} now
   */
  #wake(at, now) {
    if (at >= this.#wakes) return;
    this.#wakes = at;
    this.#timer.start(at - now, () => {
      this.#wakes = Infinity;
      this.#due();
    });
  }
}

/** The name of a value in its channel. @param {{type: string, key?: string}} event */
export function nameOf({ type, key = '' }) {
  return `${type}\n${key}`;
}
