import { Emitter } from './base/emitter.js';
import { onAbort } from './base/deferred.js';
import { TidewireError } from './errors.js';

/**
 * @typedef {import('./contract-types.js').ContractLike} ContractLike
 * @typedef {import('./contract-types.js').AnyContract} AnyContract
 * @typedef {import('./messages.js').Event} Event
 * @typedef {import('./messages.js').Position} Position
 * @typedef {import('./messages.js').Ack} Ack
 * @typedef {import('./messages.js').HistoryPage} HistoryPage
 * @typedef {import('./messages.js').Presence} Presence
 * @typedef {import('./subscriptions/delivery.js').Info} SubscribedInfo
 * @typedef {import('./subscriptions/values.js').Removed} Removed
 * @typedef {import('./subscriptions/presence-list.js').PresenceChange} PresenceChange
 * @typedef {import('./subscriptions/subscription.js').ChannelOptions} ChannelOptions
 * @typedef {import('./subscriptions/subscription.js').ChannelState} ChannelState
 * @typedef {import('./subscriptions/subscription.js').ChannelStatus} ChannelStatus
 * @typedef {import('./sending/signals.js').SignalOptions} SignalOptions
 *
 * @typedef {object} PublishOptions
 * @property {string} [id]  of your own, for retries of your own; the service delivers an id once
 * @property {string} [key]
 * @property {number} [ifRev]  only if the value of the key has this `rev`, 0 for no value; else the error `conflict`, with `details.rev`
 * @property {number} [timeout]  ms with a connection until it fails, 60 000; also over reconnects
 * @property {AbortSignal} [signal]  stops waiting, and does not send what was not sent
 * @typedef {Omit<PublishOptions, 'key'>} RemoveOptions
 * @typedef {{after?: number, before?: number, limit?: number, signal?: AbortSignal}} HistoryOptions
 *
 * @typedef {object} ChannelEvents
 *   The names without a dot; all other names are event types. A returned promise is awaited before the next event.
 * @property {SubscribedInfo} subscribed  first after each (re)subscribe
 * @property {{code: string}} unsubscribed  the service ended the subscription: `forbidden` or `removed`
 * @property {Event[]} values  the newest event of every key; replaces the previous values
 * @property {Removed} removed  a value has ended
 * @property {PresenceChange} presence
 * @property {Event[]} tail  the last events, after `subscribed`; the live events continue them
 * @property {ChannelStatus} state
 * @property {TidewireError} error  a refused subscription, which ends it, or a listener that failed
 */

/**
 * What entry points that add to channels use of a handle.
 * @type {(channel: Channel<any, any>) => {core: import('./core.js').Core, handle: import('./subscriptions/subscription.js').Handle,
 *   subscription: import('./subscriptions/subscription.js').Subscription, emitter: Emitter<any>, left: boolean}}
 */
export let partsOf;

/**
 * A handle of one channel. All handles of a channel share one subscription, which lasts until the last of them has left.
 * @template {ContractLike} [C=AnyContract]
 * @template {string} [N=string]
 */
export class Channel {
  #name;
  #core;
  #subscription;
  /** @type {Emitter<any>} */
  #emitter = new Emitter();
  #handle;
  #left = false;
  #forget;

  static {
    partsOf = (channel) => ({
      core: channel.#core,
      handle: channel.#handle,
      subscription: channel.#subscription,
      emitter: channel.#emitter,
      left: channel.#left,
    });
  }

  /**
   * Applications call `client.channel(name)`.
   * @param {N} name
   * @param {ChannelOptions} options
   * @param {import('./core.js').Core} core
   */
  constructor(name, options, core) {
    this.#name = name;
    this.#core = core;
    this.#handle = { options, tail: options.tail ?? 0, listeners: (/** @type {string} */ event) => this.#emitter.of(event) };
    this.#subscription = core.registry.enter(name, this.#handle);
    if (options.tail && this.#subscription.told) void this.#lateTail();
    this.#forget = onAbort(options.signal, () => this.leave());
  }

  get name() {
    return this.#name;
  }

  /** `waiting` (no connection, or not its turn), `subscribing`, `subscribed` or `ended`. */
  get state() {
    return this.status.state;
  }

  /** The state with its reason: an object that is replaced only when something changes. @returns {ChannelStatus} */
  get status() {
    return this.#left ? LEFT : this.#subscription.status;
  }

  /** The position of the last handled event. Pass it as `since` to resume after a reload of the page. @returns {Position | undefined} */
  get position() {
    return this.#subscription.delivery.position;
  }

  /** The newest event of every key, as far as they have been handed to listeners. @returns {Event[]} */
  get values() {
    return this.#subscription.delivery.values;
  }

  /** Settles with the first `subscribed`; rejects if the subscription is refused, left or closed before. @returns {Promise<SubscribedInfo>} */
  get subscribed() {
    return this.#subscription.joined.promise;
  }

  /**
   * Adds a listener of an event type, of every event (`'*'`), or of one of the `ChannelEvents`. Returns the function that removes
   * it. A late listener of `subscribed`, `values` or `presence` gets what is known.
   * @template {import('./contract-types.js').EventType<C, N> | keyof ChannelEvents | '*' | 'event.removed'} T
   * @param {T} name
   * @param {(value: T extends keyof ChannelEvents ? ChannelEvents[T] : T extends '*' ? import('./contract-types.js').EventOf<C, N>
   *   : import('./contract-types.js').EventOf<C, N, T>) => unknown} listener
   * @param {{signal?: AbortSignal}} [options]
   * @returns {() => void}
   */
  on(name, listener, { signal } = {}) {
    if (this.#left) return () => {};
    const subscription = this.#subscription;
    const { delivery } = subscription;
    const remove = this.#emitter.on(name, /** @type {any} */ (listener), signal);
    const known = () => delivery.info && /** @type {any} */ ({ subscribed: delivery.info, values: delivery.values, presence: delivery.presence })[name];
    const run = () => this.#emitter.of(name).includes(/** @type {any} */ (listener)) && subscription.run(name, /** @type {any} */ (listener), known());
    if (this.state === 'subscribed' && known()) queueMicrotask(() => delivery.add({ run }));
    return remove;
  }

  /**
   * The events in order. The position moves when the loop asks for the next one. The loop ends with the signal, `leave()` or
   * `close()`, and throws if the service ends the subscription.
   * @template {import('./contract-types.js').EventType<C, N>} T
   * @param {{signal?: AbortSignal, types?: T[]}} [options]
   * @returns {AsyncGenerator<import('./contract-types.js').EventOf<C, N, T>, void, void>}
   */
  async *events({ signal, types = /** @type {any} */ (['*']) } = {}) {
    if (this.#left) return;
    /** @type {{event: any, done: (value?: any) => void}[]} */
    const queue = [];
    let wake = () => {};
    /** @type {{error: any} | undefined} */
    let over;
    const end = (/** @type {any} */ error) => {
      over ??= { error };
      wake();
    };
    const hear = (/** @type {any} */ event) =>
      new Promise((done) => {
        queue.push({ event, done });
        wake();
      });
    const stops = [...types.map((/** @type {string} */ type) => this.#emitter.on(type, hear)), this.#emitter.on('ended', end), onAbort(signal, () => end(undefined))];
    if (this.#subscription.state === 'ended') this.#subscription.joined.promise.catch(end);
    let next;
    try {
      while (!over) {
        if ((next = queue[0])) {
          yield next.event;
          queue.shift()?.done();
        } else await new Promise((/** @type {(value: void) => void} */ resolve) => (wake = resolve));
      }
      const { error } = over;
      if (error && !['left', 'closed'].includes(error.code)) throw error;
    } finally {
      for (const stop of stops) stop();
      for (const { done } of queue) done();
    }
  }

  /**
   * Publishes in this channel; see `Tidewire.publish`.
   * @template {import('./contract-types.js').PublishedType<C, N, 'durable' | 'latest'>} T
   * @param {T} type
   * @param {import('./contract-types.js').DataOf<C, N, T>} data
   * @param {PublishOptions} [options]
   */
  publish(type, data, options) {
    return this.#core.publish(this.#name, type, data, options);
  }

  /**
   * Removes the value of a key in this channel; see `Tidewire.remove`.
   * @template {import('./contract-types.js').PublishedType<C, N, 'latest'>} T
   * @param {T} type
   * @param {string} key
   * @param {RemoveOptions} [options]
   */
  remove(type, key, options) {
    return this.#core.publish(this.#name, type, undefined, { ...options, key }, true);
  }

  /**
   * Sends an ephemeral event in this channel; see `Tidewire.signal`.
   * @template {import('./contract-types.js').PublishedType<C, N, 'ephemeral'>} T
   * @param {T} type
   * @param {import('./contract-types.js').DataOf<C, N, T>} data
   * @param {SignalOptions} [options]
   */
  signal(type, data, options) {
    return this.#core.signal(this.#name, type, data, options);
  }

  /**
   * A page of durable events, oldest first.
   * @param {HistoryOptions} [page]
   * @returns {Promise<HistoryPage>}
   */
  history({ after, before, limit, signal } = {}) {
    return this.#core.read({ type: 'history', channel: this.#name, after, before, limit }, signal);
  }

  /**
   * Asks the service who is here.
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Presence>}
   */
  async members({ signal } = {}) {
    return (await this.#core.read({ type: 'presence', channel: this.#name }, signal)).presence;
  }

  /**
   * Sets what presence shows of the user in this channel, where the contract allows it.
   * @param {Partial<import('./contract-types.js').PresenceInfo<C, N>>} info
   * @param {{timeout?: number, signal?: AbortSignal}} [options]
   */
  updatePresence(info, options) {
    return this.#core.publish(this.#name, 'presence.update', info, options);
  }

  /** Leaves: no listener of this handle runs any more. */
  leave() {
    if (this.#left) return;
    this.#left = true;
    this.#forget?.();
    this.#emitter.emit('ended', { code: 'left' });
    this.#emitter.clear();
    this.#core.registry.leave(this.#subscription, this.#handle);
  }

  /** The last events for a handle that came after the subscribe. */
  async #lateTail() {
    (await this.#core.loadUpkeep())?.readTail(partsOf(this));
  }

  /** Leaves at the end of a `using` block. */
  [/** @type {any} */ (Symbol).dispose ?? Symbol.for('Symbol.dispose')]() {
    this.leave();
  }
}

for (const name of ['list', 'map', 'presence']) {
  Object.defineProperty(Channel.prototype, name, {
    configurable: true,
    get() {
      throw new TidewireError('not_imported', `${name}: add import 'tidewire/collections'`);
    },
  });
}

/** @type {ChannelStatus} */
const LEFT = Object.freeze({ state: 'ended', code: 'left' });
