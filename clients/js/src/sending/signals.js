import { Timer } from '../base/clock.js';
import { TidewireError } from '../errors.js';
import { SIGNAL_RESERVE } from './budget.js';
import { bytesOf } from './sender.js';

/**
 * @typedef {object} SignalOptions
 * @property {string | boolean} [replace]  a signal that cannot be sent now waits, until one of the same channel with the same name
 *   replaces it; `true` takes the event type as name. Without it, such a signal is dropped
 * @property {number} [every]  ms between two signals of this name; implies `replace`
 *
 * @typedef {{text: string, channel: string}} Waiting
 */

/** Names of signals that can wait or have an interval. */
const MAX_NAMES = 200;

/**
 * Ephemeral events: sent now, replaced by their newer self, or dropped. They never wait in a queue, so they delay nothing. Loaded with the
 * first one.
 */
export class Signals {
  budget = /** @type {const} */ ('message');
  reserve = SIGNAL_RESERVE;
  /** @type {Map<string, {waiting?: string, channel: string, timer: Timer, resting: boolean}>} by channel and name */
  #named = new Map();
  /** @type {string[]} without a name; sent or dropped at the end of this tick */
  #now = [];
  /** @type {Set<string>} names that can be sent */
  #due = new Set();
  #core;

  /** @param {import('../core.js').Core} core */
  constructor(core) {
    this.#core = core;
  }

  /**
   * Returns false if the signal is dropped.
   * @param {string} channel
   * @param {string} type
   * @param {string} text  the JSON of the message
   * @param {SignalOptions} [options]
   */
  add(channel, type, text, { replace, every } = {}) {
    this.#core.wake();
    if (!replace && !every) {
      if (this.#core.registry.joining(channel) || this.#now.length >= MAX_NAMES) return false;
      this.#now.push(text);
      // What the rates don't allow in this tick is dropped by the microtask behind that of the sender.
      if (this.#now.length === 1) queueMicrotask(() => (this.#now = []));
      return true;
    }
    const name = `${channel}\n${typeof replace === 'string' ? replace : type}`;
    const known = this.#named.get(name);
    if (!known && this.#named.size >= MAX_NAMES) return false;
    const entry = known ?? { channel, timer: new Timer(this.#core.clock), resting: false };
    entry.waiting = text;
    this.#named.set(name, entry);
    if (!entry.resting) this.#due.add(name);
    this.#every(name, entry, every);
    return true;
  }

  /**
   * Starts the interval of a name when its signal is sent.
   * @param {string} name
   * @param {{waiting?: string, timer: Timer, resting: boolean}} entry
   * @param {number | undefined} every
   */
  #every(name, entry, every) {
    if (!every || entry.resting) return;
    entry.resting = true;
    entry.timer.start(every, () => {
      entry.resting = false;
      if (entry.waiting === undefined) this.#named.delete(name);
      else {
        this.#due.add(name);
        this.#every(name, entry, every);
        this.#core.wake();
      }
    });
  }

  waiting() {
    return this.#now.length > 0 || this.#first() !== undefined;
  }

  #first() {
    for (const name of this.#due) if (!this.#core.registry.joining(this.#named.get(name)?.channel)) return name;
    return undefined;
  }

  /** @param {number} maxBytes */
  next(maxBytes) {
    let text = this.#now.shift();
    if (!text) {
      const name = /** @type {string} */ (this.#first());
      const entry = /** @type {any} */ (this.#named.get(name));
      text = /** @type {string} */ (entry.waiting);
      entry.waiting = undefined;
      this.#due.delete(name);
      if (!entry.resting) this.#named.delete(name);
    }
    if (bytesOf(text) <= maxBytes) return text;
    this.#core.report(new TidewireError('too_big', `a signal has more than the ${maxBytes} bytes that the service accepts`));
    return undefined;
  }

  /** Drops all that waits. */
  clear() {
    for (const { timer } of this.#named.values()) timer.stop();
    this.#named.clear();
    this.#due.clear();
    this.#now = [];
  }
}
