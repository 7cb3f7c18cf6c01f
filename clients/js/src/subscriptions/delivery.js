import { channelState } from '../parts.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {import('../messages.js').Position} Position
 * @typedef {import('../messages.js').PresenceReply} PresenceReply
 * @typedef {import('../messages.js').Subscribed} Subscribed
 *
 * @typedef {{recovered?: boolean, missed: number, resumed: boolean, epoch: string, offset: number}} Info
 *   `recovered: false`: events are missing, reload. `missed` events follow. `resumed`: the subscription has had a position before.
 *
 * @typedef {{message: any, at: number}} Queued  `at`: monotonic milliseconds at which it came
 */

/** @param {Event} event */
const isPresence = ({ type }) => type.startsWith('presence.');
/** The name of a value in its channel; undefined for other events. @param {Event} event */
const valueOf = ({ type, key = '', rev }) => (rev === undefined ? undefined : `${type}\n${key}`);

/**
 * Hands the messages of one channel to its listeners, one at a time and in order. The position moves when the listeners of an
 * event have run.
 */
export class Delivery {
  /** @type {Position | undefined} of the last handled event */
  position;
  /** @type {Info | undefined} of the last `subscribed` that was handed out */
  info;
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
  /** @type {import('./state.js').ChannelState | undefined} */
  #state;
  /** Whether values and users are not kept, because the module does not arrive. */
  #stateless = false;
  #subscription;
  #core;

  /**
   * @param {import('./subscription.js').Subscription} subscription  calls the listeners
   * @param {import('../core.js').Core} core
   */
  constructor(subscription, core) {
    this.#subscription = subscription;
    this.#core = core;
  }

  /** The newest event of every key. @returns {Event[]} */
  get values() {
    return this.#state?.values ?? [];
  }

  /** @returns {import('./presence-list.js').PresenceChange | undefined} */
  get presence() {
    return this.#state?.presence;
  }

  /** Takes a message, or something else to do in this order. @param {Event | Subscribed | PresenceReply | {run: () => unknown} | {isExpiry: true}} message */
  add(message) {
    const queued = { message, at: this.#core.clock.now() };
    if ('type' in message) {
      if (message.type === 'subscribed') {
        if (this.#queue.length >= 2 * this.#core.maxQueue) {
          this.#queue = []; // a service that sends one after the other
          return this.#gap();
        }
        this.#full = this.#stateless = false;
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
    const name = valueOf(event);
    const older = name && this.#waiting.get(name);
    if (older) {
      if (older.message.rev < /** @type {number} */ (event.rev)) Object.assign(older, queued);
      return false;
    }
    const isSignal = event.offset === undefined && !name && !isPresence(event);
    if (this.#queue.length >= this.#core.maxQueue / (isSignal ? 2 : 1)) {
      if (!this.#told) this.#subscription.full();
      this.#told = true;
      this.#full = !isSignal; // the others come again with the next `subscribed`
      return false;
    }
    if (name) this.#waiting.set(name, queued);
    return true;
  }

  /** Drops all that waits; the listeners that run now are the last. */
  drop() {
    this.#run += 1;
    this.#queue = [];
    this.#waiting.clear();
    this.#full = this.#draining = false;
  }

  /** Drops all. */
  end() {
    this.drop();
    this.#state?.clear();
  }

  async #drain() {
    this.#draining = true;
    const run = this.#run;
    for (let next = this.#queue.shift(); next; next = this.#queue.shift()) {
      const { message, at } = next;
      if (needsState(message) && !this.#hasState() && !this.#stateless) {
        this.#stateless = !(await this.#core.need(channelState, this.#subscription.channel)); // meanwhile, a newer value may take its place
        if (run !== this.#run) return;
        this.#hasState();
      }
      for (const handled of this.#handle(message, at)) {
        if (handled) await handled; // between listeners that return no promise, nothing else runs
        if (run !== this.#run) return;
      }
    }
    this.#draining = this.#told = false;
    if (this.#full) {
      this.#full = false;
      this.#subscription.gap();
    }
  }

  /** Whether values and users can be kept now. */
  #hasState() {
    const { module } = channelState;
    this.#state ??= module && new module.ChannelState(this.#core.clock, () => this.add({ isExpiry: true }));
    return this.#state;
  }

  /**
   * Calls the listeners, step by step: each promise that they return is awaited before the next step, which does not come if all that waits
   * is dropped.
   * @param {any} message
   * @param {number} at
   * @returns {Generator<unknown, void, void>}
   */
  *#handle(message, at) {
    if (message.run) yield message.run();
    else if (message.isExpiry) yield* this.#callAll(this.#state?.expire());
    else if (message.type === 'subscribed') yield* this.#start(message, at);
    else if (message.type === 'presence') yield* this.#callAll([this.#state?.show(message.presence)]);
    else yield* this.#event(message, at);
  }

  /**
   * @param {Subscribed} message
   * @param {number} at
   */
  *#start({ epoch, offset, last, events, state, recovered, presence, tail }, at) {
    const before = this.position;
    this.info = { recovered, missed: events.length, resumed: before !== undefined, epoch, offset };
    try {
      yield this.#subscription.call('subscribed', this.info);
      if (tail) yield this.#subscription.call('tail', tail);
    } finally {
      if (!events.length && this.position === before) this.position = { epoch, offset, id: last };
    }
    this.#state?.replace(state, at);
    yield this.#subscription.call('values', this.#state ? this.values : state);
    if (presence) yield* this.#callAll([this.#state?.show(presence)]);
    for (const event of events) {
      // Some of them may have arrived before the connection broke, and have been handled since.
      const handled = this.position?.epoch === epoch ? this.position.offset : 0;
      if (event.offset !== undefined && handled < event.offset) yield this.#handDurable(event, epoch);
    }
    this.position = { epoch, offset, id: last };
  }

  /**
   * @param {Event} event
   * @param {number} at
   */
  *#event(event, at) {
    const name = valueOf(event);
    if (event.offset !== undefined) {
      const { epoch, offset } = /** @type {Position} */ (this.position);
      if (event.offset === offset + 1) yield this.#handDurable(event, epoch);
      else if (event.offset > offset) this.#gap();
    } else if (name || isPresence(event)) {
      if (name) this.#waiting.delete(name);
      if (this.#state) yield* this.#callAll([this.#state.apply(event, at)]);
      else if (name && !event.removed) yield this.#hand(event);
    } else yield this.#hand(event);
  }

  /**
   * Hands out an event, and moves the position as soon as its listeners have finished: also if one of them closes the client.
   * @param {Event} event
   * @param {string} epoch
   */
  #handDurable(event, epoch) {
    const before = this.position;
    const move = () => {
      if (this.position === before) this.position = { epoch, offset: /** @type {number} */ (event.offset), id: event.id };
    };
    const handled = this.#hand(event);
    return handled ? handled.then(move) : move();
  }

  /** Events are missing: asks for them, unless a newer `subscribed` that brings them is here already. Durable events are skipped until then. */
  #gap() {
    if (!this.#queue.some(({ message }) => message.type === 'subscribed')) this.#subscription.gap();
  }

  /** @param {(import('./state.js').Call | undefined)[]} [calls] */
  *#callAll(calls = []) {
    for (const call of calls) {
      if (call) yield call[0] ? this.#subscription.call(call[0], call[1]) : this.#hand(call[1]);
    }
  }

  /** Collections hear `excluded`; applications know these events. @param {Event} event */
  #hand(event) {
    return this.#subscription.call(this.#core.excluded(event) ? 'excluded' : event.type, event);
  }
}

/** Whether a message is about values or users. @param {any} message */
function needsState({ type, rev, state, presence }) {
  return rev !== undefined || state?.length || presence !== undefined || type?.startsWith('presence.');
}
