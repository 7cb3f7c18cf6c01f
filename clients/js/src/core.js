import { bounded } from './base/bounds.js';
import { systemClock } from './base/clock.js';
import { deferred, onAbort } from './base/deferred.js';
import { Emitter } from './base/emitter.js';
import { notSent, TidewireError } from './errors.js';
import { isEvent } from './messages.js';
import { sending, upkeep } from './parts.js';
import { Sender } from './sending/sender.js';
import { Registry } from './subscriptions/registry.js';

/** Connections whose events a client still recognises. */
const MAX_CONNECTIONS = 16;
/** Signals that wait until the module for them is loaded. */
const MAX_EARLY = 200;
/**
 * @typedef {object} Early  a request that waits until the module that sends it is loaded
 * @property {import('./sending/publisher.js').Request} request
 * @property {string | undefined} channel
 * @property {import('./sending/publisher.js').RequestOptions} options
 * @property {boolean} isPublish
 * @property {import('./base/deferred.js').Deferred<any>} result
 */

/** Errors that `explain()` shows. */
const MAX_ERRORS = 10;

/** What the parts of one client share: what it subscribes to, what it sends, the open connection, and its errors. */
export class Core {
  /** @type {Emitter<import('./client.js').ClientEvents>} */
  emitter = new Emitter();
  /** @type {Sender | undefined} of the open connection */
  sender;
  /** @type {import('./sending/publisher.js').Publisher | undefined} once it is loaded */
  publisher;
  /** @type {string | undefined} who is connected, or was last; undefined until the first connection since `connect()` */
  user;
  /** @type {import('./messages.js').Welcome | undefined} of the last connection */
  welcome;
  /** Whether the token of the connection expires soon, and `upkeep` was not here to renew it. */
  isExpiring = false;
  /** @type {{at: number, error: TidewireError}[]} the newest */
  errors = [];
  #prefix = unique();
  #count = 0;
  /** @type {Early[]} */
  #early = [];
  #earlySignals = 0;
  /** @type {TidewireError | undefined} the end of the client */
  #closed;
  /** @type {string[]} the newest ids of this client's connections; events on their way may exclude an earlier one */
  #connections = [];

  /** @param {import('./client.js').Options} options @param {string | URL} url */
  constructor(options, url) {
    this.options = options;
    this.url = url;
    this.clock = options.clock ?? systemClock;
    this.random = options.random ?? Math.random;
    this.maxPending = bounded(options.maxPending, 1, 1e6, 1_000);
    this.maxQueue = bounded(options.maxQueue, 2, 1e6, 500);
    this.requestTimeout = bounded(options.requestTimeout, 0, Infinity, 60_000);
    this.registry = new Registry(this);
    /** @type {import('./sending/sender.js').Source[]} in the order of their priority */
    this.sources = [this.registry];
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

  // --- requests and signals -------------------------------------------------------------------------------------------

  /** The publishes without an answer. */
  get publishes() {
    return [...this.#early, ...(this.publisher?.entries.values() ?? [])].filter(({ isPublish }) => isPublish);
  }

  /**
   * Sends a request. The first ones wait until the module that does it is loaded; their data is copied now.
   * @param {import('./sending/publisher.js').Request} request
   * @param {import('./sending/publisher.js').RequestOptions} options
   * @param {boolean} [isPublish]
   * @returns {Promise<any>}
   */
  #request(request, options, isPublish = true) {
    const { channel } = request;
    const { signal } = options;
    const result = deferred();
    if (this.#closed) result.reject(notSent(request, this.#closed.message, { details: this.#closed.details }));
    else {
      void this.loadPublisher();
      if (this.publisher) this.publisher.add(request, options, isPublish, result);
      else if (this.#early.length >= this.maxPending) result.reject(notSent(request, 'too many wait', {}, 'queue_full'));
      else {
        try {
          request = JSON.parse(JSON.stringify(request));
        } catch {
          // The publisher says what is wrong.
        }
        this.#early.push({ request, channel, options, isPublish, result });
        onAbort(signal, () => result.reject(signal?.reason));
      }
    }
    return result.promise;
  }

  /** The requests that wait for the module are never sent. @param {string} why @param {{details?: any, retryable?: boolean}} [more] */
  #giveUp(why, more) {
    for (const { request, result } of this.#early.splice(0)) result.reject(notSent(request, why, more));
    this.registry.sweep();
  }

  /**
   * @param {string} channel
   * @param {string} type
   * @param {unknown} data
   * @param {import('./channel.js').PublishOptions} [options]
   * @param {true} [removed]  removes the value of the key
   * @returns {Promise<import('./messages.js').Ack>}
   */
  publish(channel, type, data, { id = this.nextId(), key, ifRev, timeout, signal } = {}, removed) {
    return this.#request({ type, id, channel, data, key, removed, if_rev: ifRev }, { timeout, signal });
  }

  /**
   * @param {string} name
   * @param {unknown} data
   * @param {import('./client.js').CallOptions} [options]
   * @returns {Promise<any>}
   */
  call(name, data = null, { id = this.nextId(), retry, timeout, signal } = {}) {
    return this.#request({ type: 'call', id, call: name, data }, { retry, timeout, signal }, false);
  }

  /**
   * Sends a read, or another request that is no publish.
   * @param {import('./messages.js').ClientMessage} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<any>}
   */
  read(request, signal) {
    return this.#request({ id: this.nextId(), ...request }, { signal }, false);
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
    if (!sender || this.#earlySignals >= MAX_EARLY) return false;
    const text = JSON.stringify({ type, channel, data });
    const add = () => sender === this.sender && this.publisher?.signals.add(channel, type, text, options);
    const loading = this.loadPublisher(channel);
    if (this.publisher) return add() ?? false;
    this.#earlySignals += 1;
    void loading.then(() => {
      this.#earlySignals -= 1;
      add();
    });
    return true;
  }

  /** What sends requests and signals. If it does not arrive, they fail. @param {string} [channel]  of a signal */
  async loadPublisher(channel) {
    if (this.publisher) return;
    const loaded = sending.module ?? (await this.need(sending, channel));
    if (!loaded) this.#giveUp('a file of the client does not arrive');
    else if (!this.publisher) {
      const publisher = (this.publisher = new loaded.Publisher(this));
      for (const { request, options, isPublish, result } of this.#early.splice(0)) publisher.add(request, options, isPublish, result);
    }
  }

  // --- the connection -------------------------------------------------------------------------------------------------

  /**
   * @param {import('./connection/link.js').Link} link
   * @param {import('./messages.js').Welcome} welcome
   */
  welcomed(link, welcome) {
    this.#know(welcome);
    this.isExpiring = false;
    this.sender = new Sender(link, welcome.limits, this.sources, this.clock);
    this.registry.welcomed(welcome);
    const { user } = welcome;
    const isOther = (this.user ??= user) !== user;
    this.user = user;
    if (isOther) this.#giveUp('another user connected', { retryable: false });
    this.publisher?.opened(isOther);
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
    this.registry.interrupted();
    this.publisher?.interrupted(tooBig);
  }

  /** @param {TidewireError} error */
  closed(error) {
    this.#closed = error;
    this.user = undefined;
    this.#giveUp(error.message, { details: error.details });
    this.publisher?.closed(error);
    this.registry.closed(error);
  }

  /** The client connects. */
  reopened() {
    this.#closed = undefined;
    if (this.options.outbox) void this.loadPublisher();
    this.publisher?.reopened();
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
    else if (publisher?.settle(message) || registry.settle(message)) return;
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
   * A part, of which a channel may be told that it does not arrive; then it is undefined.
   * @template M
   * @param {import('./base/part.js').Part<M>} part
   * @param {string} [channel]
   */
  async need(part, channel) {
    const loaded = await part.get(this.clock);
    if (!loaded && channel) this.report(new TidewireError('not_loaded', `${channel}: a file of the client does not arrive`, { channel }), this.registry.subscriptions.get(channel));
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
