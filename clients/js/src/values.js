/**
 * @typedef {import('./messages.js').Event} Event
 * @typedef {import('./subscription.js').Removed} Removed
 * @typedef {{type: string, key: string, rev: number, ends: number}} Value  `ends`: monotonic ms; Infinity without a `ttl`
 */

/** The revs of a channel's state, and when values end by their `ttl`. All times are monotonic milliseconds. */
export class Values {
  /** @type {Map<string, Value>} by type and key */
  #values = new Map();
  #timer;
  #due;
  #wakes = Infinity;

  /**
   * @param {import('./clock.js').Timer} timer
   * @param {() => void} due  called when `expire` has something to do
   */
  constructor(timer, due) {
    this.#timer = timer;
    this.#due = due;
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
  set({ type, key = '', rev = 0, ttl }, at, now) {
    const name = `${type}\n${key}`;
    if (rev <= (this.#values.get(name)?.rev ?? -1)) return false;
    const ends = ttl === undefined ? Infinity : at + ttl;
    this.#values.set(name, { type, key, rev, ends });
    this.#wake(ends, now);
    return true;
  }

  /**
   * Removes a value. Returns undefined if a newer one is known.
   * @param {Event} event
   * @returns {Removed | undefined}
   */
  remove({ type, key = '', rev = 0 }) {
    const name = `${type}\n${key}`;
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
    for (const [name, { type, key, rev, ends }] of this.#values) {
      if (ends <= now) {
        this.#values.delete(name);
        ended.push({ type, key, rev, expired: true });
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
    this.#timer.start(Math.min(MAX_WAIT, Math.max(0, at - now)), () => {
      this.#wakes = Infinity;
      this.#due();
    });
  }
}

/** Milliseconds; timers cannot wait longer than 24.8 days. */
const MAX_WAIT = 2 ** 31 - 1;
