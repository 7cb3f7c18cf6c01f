import { PresenceList } from './presence-list.js';
import { Values } from './values.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {[name: string | undefined, value: any]} Call  of the listeners of `name`; without one, of those of the event
 */

/** What an application sees that may not see who is there. */
const NOBODY = { count: 0, members: [] };

/**
 * What a channel has now: its values and its users. Channels that have neither need no such object, so the client loads this
 * module when the first value or user arrives.
 */
export class ChannelState {
  /** @type {import('./presence-list.js').PresenceChange | undefined} the last one */
  presence;
  #list = new PresenceList();
  #values;
  #clock;

  /**
   * @param {import('../base/clock.js').Clock} clock
   * @param {() => void} due  called when `expire` has something to do
   */
  constructor(clock, due) {
    this.#clock = clock;
    this.#values = new Values(clock, due);
  }

  /** The newest event of every key. */
  get values() {
    return this.#values.events;
  }

  /** Replaces the values. @param {Event[]} state @param {number} at  when it came, in monotonic ms */
  replace(state, at) {
    this.#values.replace(state, at, this.#clock.now());
  }

  /** Replaces the users. @param {import('../messages.js').Presence | null} presence @returns {Call} */
  show(presence) {
    return this.#shown(this.#list.replace(presence ?? NOBODY));
  }

  /**
   * Applies a value, a removal or a change of presence.
   * @param {Event} event
   * @param {number} at  when it came
   * @returns {Call | undefined}  undefined if nothing has changed
   */
  apply(event, at) {
    if (event.rev === undefined) {
      const change = this.#list.apply(event);
      return change && this.#shown(change);
    }
    if (!event.removed) return this.#values.set(event, at, this.#clock.now()) ? [undefined, event] : undefined;
    const removed = this.#values.remove(event);
    return removed && ['removed', removed];
  }

  /** Removes the values whose time is over. @returns {Call[]} */
  expire() {
    return this.#values.expire(this.#clock.now()).map((removed) => ['removed', removed]);
  }

  /** Drops the values. */
  clear() {
    this.#values.clear();
  }

  /** @param {import('./presence-list.js').PresenceChange} change @returns {Call} */
  #shown(change) {
    this.presence = change;
    return ['presence', change];
  }
}
