import { PresenceList } from './presence-list.js';
import { Values, nameOf } from './values.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {import('../messages.js').Position} Position
 * @typedef {import('../messages.js').PresenceReply} PresenceReply
 * @typedef {import('../messages.js').Subscribed} Subscribed
 *
 * @typedef {{recovered?: boolean, missed: number, resumed: boolean, epoch: string, offset: number}} Info
 *   `recovered: false`: events are missing, reload. `missed` events follow. `resumed`: the subscription has had a position before.
 *
 * @typedef {{message: Event | Subscribed | PresenceReply | {run: () => unknown}, at: number}} Queued
 *   `at`: monotonic milliseconds at which it came. `run`: something else to do in this order.
 */

/** What an application sees that may not see who is there. */
const NOBODY = { count: 0, members: [] };

/**
 * Hands the messages of one channel to its listeners, one at a time and in order. The position moves when the listeners of an
 * event have run.
 */
export class Delivery {
  /** @type {Position | undefined} of the last handled event */
  position;
  /** @type {Info | undefined} of the last `subscribed` that was handed out */
  info;
  /** @type {import('./presence-list.js').PresenceChange | undefined} */
  presence;
  /** @type {Queued[]} */
  #queue = [];
  /** @type {Map<string, Queued>} values that wait, by type and key */
  #waiting = new Map();
  #draining = false;
  /** Whether events are dropped until the queue is empty. */
  #full = false;
  /** Whether that, or dropped signals, have been told. */
  #told = false;
  /** Increases when all that waits is dropped. */
  #run = 0;
  #values;
  #list = new PresenceList();
  #subscription;
  #core;

  /**
   * @param {import('./subscription.js').Subscription} subscription  calls the listeners
   * @param {import('../core.js').Core} core
   */
  constructor(subscription, core) {
    this.#subscription = subscription;
    this.#core = core;
    this.#values = new Values(core.clock, () => this.add({ run: () => this.#expire() }));
  }

  /** The newest event of every key. */
  get values() {
    return this.#values.events;
  }

  /** @param {Queued['message']} message */
  add(message) {
    const queued = { message, at: this.#core.clock.now() };
    if ('type' in message) {
      if (message.type === 'subscribed') {
        if (this.#queue.length >= 2 * this.#core.maxQueue) {
          this.#queue = []; // a service that sends one after the other
          return this.#gap();
        }
        this.#full = false;
        this.#waiting.clear(); // a later value must not take a place before the new state
      } else if ('id' in message && !this.#accept(/** @type {Event} */ (message), queued)) return;
    }
    this.#queue.push(queued);
    if (!this.#draining) void this.#drain();
  }

  /**
   * Whether there is place for an event. A value takes the place of an older one of its key that waits.
   * @param {Event} event
   * @param {Queued} queued
   */
  #accept(event, queued) {
    if (this.#full) return false;
    const name = event.rev === undefined ? undefined : nameOf(event);
    const older = name === undefined ? undefined : this.#waiting.get(name);
    if (older) {
      if (/** @type {any} */ (older.message).rev < /** @type {number} */ (event.rev)) Object.assign(older, queued);
      return false;
    }
    const isSignal = event.offset === undefined && name === undefined && !event.type.startsWith('presence.');
    if (this.#queue.length >= (isSignal ? this.#core.maxQueue / 2 : this.#core.maxQueue)) {
      if (!this.#told) this.#subscription.missing('full');
      this.#told = true;
      this.#full = !isSignal; // the others come again with the next `subscribed`
      return false;
    }
    if (name !== undefined) this.#waiting.set(name, queued);
    return true;
  }

  /** Drops all that waits; the listeners that run now are the last. */
  drop() {
    this.#run += 1;
    this.#queue = [];
    this.#waiting.clear();
    this.#full = false;
    this.#draining = false;
  }

  /** Drops all. */
  end() {
    this.drop();
    this.#values.clear();
  }

  async #drain() {
    this.#draining = true;
    const run = this.#run;
    for (let next = this.#queue.shift(); next; next = this.#queue.shift()) {
      await this.#handle(next, run);
      if (run !== this.#run) return;
    }
    this.#draining = this.#told = false;
    if (this.#full) {
      this.#full = false;
      this.#subscription.missing('gap');
    }
  }

  /**
   * @param {Queued} queued
   * @param {number} run
   */
  #handle({ message, at }, run) {
    if ('run' in message) return message.run();
    if (message.type === 'subscribed') return this.#start(/** @type {Subscribed} */ (message), at, run);
    if (message.type === 'presence') return this.#showPresence(this.#list.replace(/** @type {PresenceReply} */ (message).presence ?? NOBODY));
    return this.#event(/** @type {Event} */ (message), at);
  }

  /**
   * @param {Subscribed} message
   * @param {number} at
   * @param {number} run
   */
  async #start({ epoch, offset, last, events, state, recovered, presence, tail }, at, run) {
    const before = this.position;
    const call = (/** @type {string} */ name, /** @type {any} */ value) => (run === this.#run ? this.#subscription.call(name, value) : undefined);
    this.info = { recovered, missed: events.length, resumed: before !== undefined, epoch, offset };
    let told = call('subscribed', this.info);
    if (told) await told; // between listeners that return no promise, nothing else runs
    told = tail && call('tail', tail);
    if (told) await told;
    if (!events.length && this.position === before) this.position = { epoch, offset, id: last };
    if (run !== this.#run) return;
    this.#values.replace(state, at, this.#core.clock.now());
    told = call('values', this.values);
    if (told) await told;
    if (presence && run === this.#run) await this.#showPresence(this.#list.replace(presence));
    for (const event of events) {
      // Some of them may have arrived before the connection broke, and have been handled since.
      if (run !== this.#run) return;
      if (event.offset === undefined || this.#after(epoch) >= event.offset) continue;
      await this.#handDurable(event, epoch);
    }
    if (run === this.#run) this.position = { epoch, offset, id: last };
  }

  /**
   * The offset handled last in an epoch.
   * @param {string} epoch
   */
  #after(epoch) {
    return this.position?.epoch === epoch ? this.position.offset : 0;
  }

  /**
   * @param {Event} event
   * @param {number} at
   */
  async #event(event, at) {
    if (event.offset !== undefined) await this.#durable(event);
    else if (event.rev !== undefined) {
      this.#waiting.delete(nameOf(event));
      if (event.removed) {
        const removed = this.#values.remove(event);
        if (removed) await this.#subscription.call('removed', removed);
      } else if (this.#values.set(event, at, this.#core.clock.now())) await this.#hand(event);
    } else if (event.type.startsWith('presence.')) {
      const change = this.#list.apply(event);
      if (change) await this.#showPresence(change);
    } else await this.#hand(event);
  }

  /** @param {Event} event */
  #durable(event) {
    const { epoch, offset } = /** @type {Position} */ (this.position);
    const next = /** @type {number} */ (event.offset);
    if (next === offset + 1) return this.#handDurable(event, epoch);
    if (next > offset) this.#gap();
    return undefined;
  }

  /**
   * Hands out an event, and moves the position as soon as its listeners have finished: also if one of them closes the client.
   * @param {Event} event
   * @param {string} epoch
   */
  async #handDurable(event, epoch) {
    const before = this.position;
    const handled = this.#hand(event);
    if (handled) await handled;
    if (this.position === before) this.position = { epoch, offset: /** @type {number} */ (event.offset), id: event.id };
  }

  /** Events are missing: ask for them, unless a newer `subscribed` that brings them is here already. All but durable events go on. */
  #gap() {
    const newer = this.#queue.findIndex(({ message }) => 'type' in message && message.type === 'subscribed');
    this.#queue = this.#queue.filter(({ message }, index) => (newer >= 0 && index >= newer) || !('offset' in message));
    if (newer >= 0) return; // what was dropped since is read again when the queue is empty
    this.#full = false;
    this.#subscription.missing('gap');
  }

  async #expire() {
    for (const ended of this.#values.expire(this.#core.clock.now())) await this.#subscription.call('removed', ended);
  }

  /** @param {import('./presence-list.js').PresenceChange} change */
  #showPresence(change) {
    this.presence = change;
    return this.#subscription.call('presence', change);
  }

  /** Collections hear `excluded`; applications know these events. @param {Event} event */
  #hand(event) {
    return this.#subscription.call(this.#core.excluded(event) ? 'excluded' : event.type, event);
  }
}
