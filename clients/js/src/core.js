import { bounded } from './base/bounds.js';
import { systemClock } from './base/clock.js';
import { Emitter } from './base/emitter.js';
import { TidewireError } from './errors.js';
import { isEvent } from './messages.js';
import { signals, upkeep } from './parts.js';
import { Publisher } from './sending/publisher.js';
import { Sender } from './sending/sender.js';
import { Registry } from './subscriptions/registry.js';

/** Connections whose events a client still recognises. */
const MAX_CONNECTIONS = 16;
/** Signals that wait until the module for them is loaded. */
const MAX_EARLY = 200;
/** Errors that `explain()` shows. */
const MAX_ERRORS = 10;

/** What the parts of one client share: what it subscribes to, what it sends, the open connection, and its errors. */
export class Core {
  /** @type {Emitter<import('./client.js').ClientEvents>} */
  emitter = new Emitter();
  /** @type {Sender | undefined} of the open connection */
  sender;
  /** @type {import('./upkeep/retries.js').Retries | undefined} once it is loaded */
  retries;
  /** @type {import('./messages.js').Welcome | undefined} of the last connection */
  welcome;
  /** Whether the token of the connection expires soon, and `upkeep` was not here to renew it. */
  isExpiring = false;
  /** @type {{at: number, error: TidewireError}[]} the newest */
  errors = [];
  #prefix = unique();
  #count = 0;
  /** @type {import('./sending/signals.js').Signals | undefined} */
  #signals;
  #early = 0;
  /** @type {string[]} the newest ids of this client's connections; events on their way may exclude an earlier one */
  #connections = [];

  /** @param {import('./client.js').Options} options */
  constructor(options) {
    this.clock = options.clock ?? systemClock;
    this.random = options.random ?? Math.random;
    this.maxPending = bounded(options.maxPending, 1, 1e6, 1_000);
    this.maxQueue = bounded(options.maxQueue, 2, 1e6, 500);
    this.requestTimeout = bounded(options.requestTimeout, 0, Infinity, 60_000);
    this.publisher = new Publisher(this);
    this.registry = new Registry(this);
    /** @type {import('./sending/sender.js').Source[]} in the order of their priority */
    this.sources = [this.registry, this.publisher];
  }

  nextId() {
    this.#count += 1;
    return `${this.#prefix}-${this.#count.toString(36)}`;
  }

  /** Whether the service of the open connection has a feature. @param {string} feature @returns {boolean} */
  offers(feature) {
    return this.welcome?.features?.includes?.(feature) ?? false;
  }

  /** Whether this client has published the event and does not want it back. @param {import('./messages.js').Event} event */
  excluded({ exclude, from }) {
    return exclude !== undefined && this.#connections.includes(exclude) && from === (this.welcome?.user || `anonymous-${exclude}`);
  }

  /** Sends what waits. Returns false without a connection. */
  wake() {
    this.sender?.wake();
    return Boolean(this.sender);
  }

  /**
   * Sends a read, or another request that is no publish.
   * @param {import('./messages.js').ClientMessage} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<any>}
   */
  read(request, signal) {
    return this.publisher.add({ id: this.nextId(), ...request }, { signal }, false);
  }

  /**
   * Sends an ephemeral event, or returns false. The first ones wait until the module for them is loaded.
   * @param {string} channel
   * @param {string} type
   * @param {unknown} data
   * @param {import('./sending/signals.js').SignalOptions} [options]
   */
  signal(channel, type, data, options) {
    const { sender } = this;
    if (!sender) return false;
    const text = JSON.stringify({ type, channel, data });
    const add = (/** @type {typeof import('./sending/signals.js')} */ { Signals }) => {
      if (!this.#signals) this.sources.push((this.#signals = new Signals(this)));
      return this.#signals.add(channel, type, text, options);
    };
    if (signals.module) return add(signals.module);
    if (this.#early >= MAX_EARLY) return false;
    this.#early += 1;
    void this.need(signals, channel).then((loaded) => {
      this.#early -= 1;
      if (loaded && sender === this.sender) add(loaded);
    });
    return true;
  }

  /**
   * @param {import('./connection/link.js').Link} link
   * @param {import('./messages.js').Welcome} welcome
   */
  welcomed(link, welcome) {
    this.#know(welcome);
    this.isExpiring = false;
    this.sender = new Sender(link, welcome.limits, this.sources, this.clock);
    this.registry.welcomed(welcome);
    this.publisher.opened();
  }

  /** The session goes on under another name: over HTTP, other channels or another token need a new one. @param {import('./messages.js').Welcome} welcome */
  renewed(welcome) {
    this.#know(welcome);
    this.emitter.emit('welcome', welcome);
  }

  /** @param {import('./messages.js').Welcome} welcome */
  #know(welcome) {
    this.welcome = welcome;
    this.#connections = [...this.#connections, welcome.connection].slice(-MAX_CONNECTIONS);
  }

  /** @param {boolean} tooBig  the connection ended because of a message's size */
  lost(tooBig) {
    this.sender?.stop();
    this.sender = undefined;
    this.#signals?.clear();
    this.registry.interrupted();
    this.publisher.interrupted(tooBig);
  }

  /** @param {TidewireError} error */
  closed(error) {
    this.publisher.closed(error);
    this.registry.closed(error);
  }

  /** The client connects. @param {boolean} held  publishes wait for the outbox */
  reopened(held) {
    this.publisher.reopened(held);
    this.registry.reopened();
  }

  /** @param {import('./messages.js').ServerMessage} message */
  received(message) {
    const { publisher, registry } = this;
    const subscription = registry.subscriptions.get(/** @type {any} */ (message).channel);
    if (isEvent(message)) subscription?.received(message);
    else if (message.type === 'subscribed') subscription?.subscribed(message);
    else if (message.type === 'expiring' && subscription) subscription.refresh();
    else if (message.type === 'expiring') this.isExpiring = true;
    else if (publisher.settle(message) || this.retries?.settle(message) || registry.settle(message)) return;
    else if (message.type === 'unsubscribed') subscription?.unsubscribed(message);
    else if (message.type === 'presence' && message.id === null) subscription?.received(message);
    else if (message.type === 'error') this.report(TidewireError.from(message));
    // A pong needs no action. A newer service may send messages that this client does not know.
  }

  /** What keeps a connection alive, if it arrives. */
  loadUpkeep() {
    return upkeep.get(this.clock);
  }

  /**
   * A part that a channel needs; undefined, and reported, if it does not arrive.
   * @template M
   * @param {import('./base/part.js').Part<M>} part
   * @param {string} channel
   */
  async need(part, channel) {
    const loaded = await part.get(this.clock);
    if (!loaded) this.report(new TidewireError('not_loaded', `${channel}: a file of the client does not arrive`, { channel }), this.registry.subscriptions.get(channel));
    return loaded;
  }

  /**
   * Reports an error that rejects no promise: to the listeners, else to the console.
   * @param {TidewireError} error
   * @param {import('./subscriptions/subscription.js').Subscription} [of]
   */
  report(error, of) {
    const now = this.clock.now();
    this.errors = [...this.errors, { at: now, error }].slice(-MAX_ERRORS);
    const heard = of?.notify('error', error) || this.emitter.has('error');
    this.emitter.emit('error', error);
    if (heard) return;
    void this.loadUpkeep().then((loaded) => (loaded ? loaded.print(this, error) : console.error(`[tidewire] ${error.code}`, error)));
  }
}

/** A random prefix of ids. Others see it in events, so it need not be a secret. */
const unique = () => `${Math.random().toString(36)}${Math.random().toString(36)}`.replace(/0\./g, '');
