import { bounded } from './base/bounds.js';
import { systemClock } from './base/clock.js';
import { Emitter } from './base/emitter.js';
import { Channel } from './channel.js';
import { Connection } from './connection/connection.js';
import { webSocketLinks } from './connection/link.js';
import { TidewireError } from './errors.js';
import { explain } from './explain.js';
import { isEvent } from './messages.js';
import { Publisher } from './sending/publisher.js';
import { Sender } from './sending/sender.js';
import { Signals } from './sending/signals.js';
import { Registry } from './subscriptions/registry.js';

/**
 * @typedef {import('./contract-types.js').ContractLike} ContractLike
 * @typedef {import('./contract-types.js').AnyContract} AnyContract
 * @typedef {import('./channel.js').PublishOptions} PublishOptions
 * @typedef {import('./channel.js').RemoveOptions} RemoveOptions
 * @typedef {import('./channel.js').ChannelOptions} ChannelOptions
 * @typedef {import('./sending/signals.js').SignalOptions} SignalOptions
 * @typedef {import('./connection/connection.js').Status} Status
 * @typedef {import('./connection/connection.js').State} State
 * @typedef {import('./messages.js').Welcome} Welcome
 * @typedef {import('./messages.js').Ack} Ack
 *
 * @typedef {object} Options
 * @property {string | import('./connection/token.js').TokenFunction} [token]
 *   sent in `hello`. A function is called again when the token expires or is refused. If it throws an error whose `retryable` is
 *   `false`, the client closes; after any other error it is called again with backoff.
 * @property {import('./connection/token.js').TokenFunction} [ticket]  instead of a token: a new ticket for each upgrade
 * @property {boolean} [anonymous]  instead of both: `hello` without a token. Without all three a cookie authenticates.
 * @property {string[]} [channels]  subscribed from the start; their events arrive with `on('event', …)`
 * @property {string} [contract]  hash of the contract that the application was made for; `tidewire check` prints it
 * @property {boolean | ((line: string) => void)} [debug]  logs the wire without tokens
 * @property {import('./connection/wake.js').AppState} [appState]  React Native's `AppState`
 * @property {new (url: string, protocols: string[]) => any} [WebSocket]
 * @property {import('./connection/link.js').OpenLink} [link]  opens another kind of connection than a WebSocket
 * @property {typeof globalThis.fetch} [fetch]
 * @property {EventTarget | null} [network]  fires `online` and `offline`; the window by default
 * @property {import('./base/clock.js').Clock} [clock]
 * @property {() => number} [random]
 * @property {number} [backoffBase]  ms, 500
 * @property {number} [backoffCap]  ms, 20 000
 * @property {number} [connectTimeout]  ms from the start of the connection to `welcome`, 15 000
 * @property {number} [pongTimeout]  ms, 10 000
 * @property {number} [requestTimeout]  ms with a connection until publishes and reads time out, 60 000; must be below the
 *   service's idempotency window (5 minutes), or a late retry could be delivered twice
 * @property {number} [maxPending]  publishes and reads without an answer, 1 000; further ones fail with `queue_full`
 * @property {number} [maxQueue]  events of a channel that wait for slow listeners, 500
 *
 * @typedef {object} ClientEvents
 * @property {Status} state
 * @property {Welcome} welcome
 * @property {import('./messages.js').Event} event  every application event of every channel
 * @property {TidewireError} error  what nobody awaits: a refused channel or signal, a listener that threw, a token function that
 *   failed, a closed client. Without a listener here or at the channel, they go to the console
 */

/** Connections whose events a client still recognises. */
const MAX_CONNECTIONS = 16;
/** Errors that `explain()` shows. */
const MAX_ERRORS = 10;
/** Errors a second that are printed. */
const MAX_PRINTED = 30;

/**
 * A client of one Tidewire service. It keeps one connection, reconnects after errors, and resumes every subscription after
 * the last event that its listeners have processed.
 * @template {ContractLike} [C=AnyContract]
 */
export class Tidewire {
  /** @type {Emitter<ClientEvents>} */
  #emitter = new Emitter();
  #url;
  #options;
  #clock;
  /** @type {Connection} */
  #connection;
  /** @type {Publisher} */
  #publisher;
  /** @type {Signals} */
  #signals;
  /** @type {Registry} */
  #registry;
  /** @type {Sender | undefined} of the open connection */
  #sender;
  /** @type {Welcome | undefined} of the last connection */
  #welcome;
  #prefix = unique();
  #count = 0;
  /** @type {string[]} the newest ids of this client's connections; events on their way may exclude an earlier one */
  #connections = [];
  #changedAt;
  /** @type {{at: number, error: TidewireError}[]} */
  #errors = [];
  #printed = { since: 0, count: 0 };

  /**
   * Connects nowhere yet, so it may run on a server, too.
   * @param {string | URL} url  of the service's `/ws`; may be relative to the page, and http(s) or ws(s)
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    const { WebSocket = globalThis.WebSocket, clock = systemClock } = options;
    this.#url = url;
    this.#clock = clock;
    this.#options = {
      backoffBase: 500,
      backoffCap: 20_000,
      connectTimeout: 15_000,
      pongTimeout: 10_000,
      requestTimeout: 60_000,
      fetch: /** @type {typeof globalThis.fetch} */ ((...request) => globalThis.fetch(...request)),
      random: Math.random,
      network: /** @type {EventTarget | null} */ (typeof globalThis.addEventListener === 'function' ? globalThis : null),
      ...options,
      clock,
      maxPending: bounded(options.maxPending, 1, 1e6, 1_000),
      maxQueue: bounded(options.maxQueue, 2, 1e6, 500),
      openLink: options.link ?? (WebSocket && webSocketLinks(WebSocket)),
    };
    this.#changedAt = clock.now();
    const { random, maxPending, maxQueue } = this.#options;
    const wake = () => {
      this.#sender?.wake();
      return this.#sender !== undefined;
    };
    /** @param {string | undefined} channel @returns {'waiting' | 'subscribing' | undefined} */
    const joining = (channel) => {
      const state = this.#registry.subscriptions.get(channel ?? '')?.state;
      return state === 'waiting' || state === 'subscribing' ? state : undefined;
    };
    this.#publisher = new Publisher({ clock, random, maxPending, wake, joining, idle: () => this.#registry.sweep() });
    this.#signals = new Signals(clock, wake, (channel) => joining(channel) !== undefined);
    this.#registry = new Registry({
      clock,
      random,
      maxQueue,
      sender: () => this.#sender,
      nextId: () => this.#nextId(),
      offers: (feature) => this.#welcome?.features?.includes?.(feature) ?? false,
      ask: (message) => this.#read(message),
      excluded: ({ exclude, from }) =>
        exclude !== undefined && this.#connections.includes(exclude) && from === (this.#welcome?.user || `anonymous-${exclude}`),
      heard: (event) => this.#emitter.emit('event', event),
      report: (error, of) => this.#report(error, of),
      joined: (channel) => this.#publisher.joined(channel),
      publishing: (channel) => this.#publisher.has(channel),
    });
    this.#connection = new Connection(() => resolve(url), this.#options, this.#events());
    const named = resolve(url)?.searchParams.get('channels')?.split(',') ?? [];
    for (const channel of [...(options.channels ?? []), ...named]) this.channel(/** @type {any} */ (channel));
  }

  /** `connecting`, `ready`, `reconnecting`, `offline` or `closed`. */
  get state() {
    return this.#connection.status.state;
  }

  /** The state with its reason: an object that is replaced only when something changes. */
  get status() {
    return this.#connection.status;
  }

  /** The number of publishes without an answer. */
  get pending() {
    return this.#publisher.pending;
  }

  /**
   * Adds a listener, and returns the function that removes it.
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {(value: ClientEvents[Name]) => void} listener
   * @param {{signal?: AbortSignal}} [options]
   */
  on(name, listener, { signal } = {}) {
    return this.#emitter.on(name, listener, signal);
  }

  /**
   * Connects now, and reconnects by itself from then on. The promise resolves with `welcome` and rejects if the client closes
   * before it. The application may ignore the promise.
   * @returns {Promise<Welcome>}
   */
  connect() {
    if (this.state === 'closed') {
      this.#publisher.reopened();
      this.#registry.reopened();
    }
    return this.#connection.connect();
  }

  /** Tries now, instead of after `status.retryIn`. */
  retryNow() {
    this.#connection.retryNow();
  }

  /** Closes the connection and does not reconnect. No listener of a channel runs afterwards. Channels keep their positions for another `connect()`. */
  close() {
    this.#connection.close();
  }

  /**
   * A handle of a channel. It subscribes, now or as soon as there is a connection, and until the last handle has left.
   * @template {import('./contract-types.js').ChannelName<C>} N
   * @param {N} name
   * @param {ChannelOptions} [options]
   * @returns {Channel<C, import('./contract-types.js').NameIn<C, N>>}
   */
  channel(name, options = {}) {
    return new Channel(/** @type {any} */ (name), options, {
      registry: this.#registry,
      publish: (...call) => this.#publish(...call),
      remove: (...call) => this.#remove(...call),
      signal: (...call) => this.#signal(...call),
      read: (request, signal) => this.#read(request, signal),
    });
  }

  /**
   * Publishes a durable or latest event. The promise resolves with the service's `ack`. Until then the event is sent again
   * with the same id after every reconnect, and is delivered once; events of one channel keep their order. It rejects if the event
   * is refused, after `timeout` ms with a connection, or when the client closes. The data is copied at the call.
   * @template {import('./contract-types.js').ChannelName<C>} N
   * @template {import('./contract-types.js').PublishedType<C, N, 'durable' | 'latest'>} T
   * @param {N} channel
   * @param {T} type
   * @param {import('./contract-types.js').DataOf<C, N, T>} data
   * @param {PublishOptions} [options]
   * @returns {Promise<Ack>}
   */
  publish(channel, type, data, options) {
    return this.#publish(channel, type, data, options);
  }

  /**
   * Removes the value of a key, as `publish` publishes one. Needs a service with the feature `removal`.
   * @template {import('./contract-types.js').ChannelName<C>} N
   * @template {import('./contract-types.js').PublishedType<C, N, 'latest'>} T
   * @param {N} channel
   * @param {T} type
   * @param {string} key
   * @param {RemoveOptions} [options]
   * @returns {Promise<Ack>}
   */
  remove(channel, type, key, options) {
    return this.#remove(channel, type, key, options);
  }

  /**
   * Sends an ephemeral event now, or drops it and returns false: without a connection, and above the rates. With `replace` it waits
   * for its turn, until a newer one of this name replaces it. It never delays anything else.
   * @template {import('./contract-types.js').ChannelName<C>} N
   * @template {import('./contract-types.js').PublishedType<C, N, 'ephemeral'>} T
   * @param {N} channel
   * @param {T} type
   * @param {import('./contract-types.js').DataOf<C, N, T>} data
   * @param {SignalOptions} [options]
   */
  signal(channel, type, data, options) {
    return this.#signal(channel, type, data, options);
  }

  /** The state in plain text, for a console or a report: what is connected, what waits, the last errors, and what to do. */
  explain() {
    const now = this.#clock.now();
    return explain({
      url: String(this.#url),
      status: this.status,
      since: now - this.#changedAt,
      user: this.#welcome?.user,
      channels: [...this.#registry.subscriptions.values()].map(({ channel, status, delivery, handles }) => ({ channel, status, position: delivery.position, handles: handles.size })),
      pending: this.pending,
      errors: this.#errors.map(({ at, error }) => ({ ago: now - at, error })),
    });
  }

  // --- requests -------------------------------------------------------------------------------------------------------

  /** @param {string} channel @param {string} type @param {unknown} data @param {PublishOptions} [options] */
  #publish(channel, type, data, { id = this.#nextId(), key, ifRev, timeout = this.#options.requestTimeout, signal } = {}) {
    return this.#publisher.add({ type, id, channel, data, key, if_rev: ifRev }, { timeout, signal, isPublish: true });
  }

  /** @param {string} channel @param {string} type @param {string} key @param {RemoveOptions} [options] */
  #remove(channel, type, key, { id = this.#nextId(), ifRev, timeout = this.#options.requestTimeout, signal } = {}) {
    return this.#publisher.add({ type, id, channel, key, removed: true, if_rev: ifRev }, { timeout, signal, isPublish: true });
  }

  /** @param {string} channel @param {string} type @param {unknown} data @param {SignalOptions} [options] */
  #signal(channel, type, data, options = {}) {
    return this.#signals.add(channel, type, data, options);
  }

  /** @param {import('./messages.js').ClientMessage} request @param {AbortSignal} [signal] @returns {Promise<any>} */
  #read({ type, ...request }, signal) {
    return this.#publisher.add({ type, id: this.#nextId(), ...request }, { timeout: this.#options.requestTimeout, signal, isPublish: false });
  }

  #nextId() {
    this.#count += 1;
    return `${this.#prefix}-${this.#count.toString(36)}`;
  }

  // --- the connection ---------------------------------------------------------------------------------------------------

  /** @returns {import('./connection/connection.js').ConnectionEvents} */
  #events() {
    const { debug } = this.#options;
    const print = typeof debug === 'function' ? debug : (/** @type {string} */ line) => console.debug(line);
    return {
      changed: (status) => {
        this.#changedAt = this.#clock.now();
        this.#emitter.emit('state', status);
        if (status.state === 'ready' && status === this.status) this.#emitter.emit('welcome', /** @type {Welcome} */ (this.#welcome));
      },
      welcomed: (link, welcome) => {
        this.#welcome = welcome;
        this.#connections = [...this.#connections, welcome.connection].slice(-MAX_CONNECTIONS);
        this.#sender = new Sender(link, welcome.limits, [this.#registry, this.#publisher, this.#signals], this.#clock);
        this.#registry.welcomed(welcome);
        this.#publisher.opened();
      },
      received: (message) => this.#receive(message),
      lost: (tooBig) => {
        this.#sender?.stop();
        this.#sender = undefined;
        this.#signals.clear();
        this.#registry.interrupted();
        this.#publisher.interrupted(tooBig);
      },
      closed: (reason) => {
        this.#publisher.abandon(reason);
        this.#registry.closed(new TidewireError('closed', `the client is closed: ${reason}`, { details: { reason } }));
      },
      report: (error) => this.#report(error),
      ping: () => this.#sender?.send({ type: 'ping', id: this.#nextId() }),
      refresh: (token) => this.#read({ type: 'refresh', token }),
      log: (direction, text) => {
        if (debug) print(`[tidewire] ${direction} ${text.replace(/("(?:token|receipt|ticket)":")[^"]*/g, '$1…')}`);
      },
    };
  }

  /** @param {import('./messages.js').ServerMessage} message */
  #receive(message) {
    if (isEvent(message)) {
      this.#registry.subscriptions.get(message.channel)?.received(message);
      return;
    }
    switch (message.type) {
      case 'subscribed':
        this.#registry.subscriptions.get(message.channel)?.subscribed(message);
        break;
      case 'unsubscribed':
        if (!this.#registry.settle(message)) this.#registry.subscriptions.get(message.channel)?.unsubscribed(message);
        break;
      case 'presence':
        if (!this.#publisher.settle(message) && message.id === null) this.#registry.subscriptions.get(message.channel)?.received(message);
        break;
      case 'ack':
      case 'history':
        this.#publisher.settle(message);
        break;
      case 'error':
        if (!this.#publisher.settle(message) && !this.#registry.settle(message)) this.#report(TidewireError.from(message));
        break;
      case 'expiring':
        void this.#registry.subscriptions.get(message.channel ?? '')?.refresh();
        break;
      default: // a pong needs no action; a newer service may send messages that this client does not know
    }
  }

  /**
   * @param {TidewireError} error
   * @param {import('./subscriptions/subscription.js').Subscription} [of]
   */
  #report(error, of) {
    this.#errors = [...this.#errors, { at: this.#clock.now(), error }].slice(-MAX_ERRORS);
    const listeners = [...(of?.handles ?? [])].flatMap((handle) => handle.listeners('error'));
    if (listeners.length === 0 && !this.#emitter.has('error')) this.#print(error);
    for (const listener of listeners) {
      try {
        listener(error);
      } catch (cause) {
        console.error(cause);
      }
    }
    this.#emitter.emit('error', error);
  }

  /** @param {TidewireError} error */
  #print(error) {
    const now = this.#clock.now();
    if (now - this.#printed.since > 1_000) this.#printed = { since: now, count: 0 };
    this.#printed.count += 1;
    if (this.#printed.count <= MAX_PRINTED) console.error(`[tidewire] ${error.code}${error.channel ? ` ${error.channel}` : ''}: ${error.message}. ${error.help}`, ...(error.cause ? [error.cause] : []));
  }
}

/**
 * The address of the service; undefined for a relative one without a page.
 * @param {string | URL} url
 */
function resolve(url) {
  let address;
  try {
    address = new URL(url, globalThis.location?.href);
  } catch {
    return undefined;
  }
  if (address.protocol === 'http:') address.protocol = 'ws:';
  if (address.protocol === 'https:') address.protocol = 'wss:';
  if (address.protocol !== 'ws:' && address.protocol !== 'wss:') throw new TypeError(`${address.protocol} is not a WebSocket address`);
  address.hash = '';
  return address;
}

/** A random id prefix that is unique for each client; `crypto.randomUUID` would need a secure context. */
function unique() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, '0')).join('');
}
