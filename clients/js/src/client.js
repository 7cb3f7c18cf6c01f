import { Channel } from './channel.js';
import { resolve } from './connection/address.js';
import { Connection } from './connection/connection.js';
import { Core } from './core.js';
import { upkeep } from './parts.js';

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
 * @property {true | import('./outbox/outbox.js').OutboxOptions} [outbox]  keeps publishes in IndexedDB until they are answered
 * @property {boolean | ((line: string) => void)} [debug]  logs the wire without tokens
 * @property {import('./upkeep/wake.js').AppState} [appState]  React Native's `AppState`
 * @property {new (url: string, protocols: string[]) => any} [WebSocket]
 * @property {true | import('./share/share.js').ShareOptions} [share]  one connection for all tabs of the user
 * @property {boolean} [fallback]  `false`: no streams or polls where WebSockets are blocked
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
 * @property {import('./outbox/outbox.js').Published} published  the service has a publish from before a reload
 * @property {undefined} outbox  `client.outbox` has changed
 * @property {import('./errors.js').TidewireError} error  an error that rejects no promise: a refused channel or signal, a listener that
 *   threw, a token function that failed, a closed client. Without a listener here or at the channel, they go to the console
 */

/**
 * @typedef {object} CallOptions
 * @property {string} [id]  of your own: the backend recognises a repeated call by it
 * @property {number} [timeout]  ms from the call on, 60 000 (`requestTimeout`)
 * @property {AbortSignal} [signal]  stops waiting, and does not send what was not sent. It does not stop the backend
 * @property {boolean} [retry]  sends the call again, with the same id, after a lost connection or a refusal that passes, until `timeout`
 */

/**
 * A client of one Tidewire service. It keeps one connection, reconnects after errors, and resumes every subscription after
 * the last event that its listeners have processed.
 * @template {ContractLike} [C=AnyContract]
 */
export class Tidewire {
  #core;
  #connection;

  /**
   * Connects nowhere yet, so it may run on a server, too.
   * @param {string | URL} url  of the service's `/ws`; may be relative to the page, and http(s) or ws(s)
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    const core = (this.#core = new Core(options, url));
    this.#connection = new Connection(url, options, core);
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
    return this.#core.publishes.length + this.outbox.uncertain.length;
  }

  /** What the option `outbox` keeps for the user. @returns {Pick<import('./outbox/outbox.js').Outbox, 'entries' | 'uncertain'>} */
  get outbox() {
    return this.#core.publisher?.retries.outbox ?? NO_OUTBOX;
  }

  /**
   * Adds a listener, and returns the function that removes it.
   * @template {keyof ClientEvents} Name
   * @param {Name} name
   * @param {(value: ClientEvents[Name]) => void} listener
   * @param {{signal?: AbortSignal}} [options]
   */
  on(name, listener, { signal } = {}) {
    return this.#core.emitter.on(name, listener, signal);
  }

  /**
   * Connects now, and reconnects by itself from then on. The promise resolves with `welcome` and rejects if the client closes
   * before it. The application may ignore the promise.
   * @returns {Promise<Welcome>}
   */
  connect() {
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
    return new Channel(/** @type {any} */ (name), options, this.#core);
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
    return this.#core.publish(channel, type, data, options);
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
    return this.#core.publish(channel, type, undefined, { ...options, key }, true);
  }

  /**
   * Asks the backend, and resolves with its reply. The contract declares the call under `calls`. It waits for a connection, and is sent
   * once: if the connection is lost before the reply, it rejects with `uncertain`, and with `retry` it is sent again with the same id.
   * An error of the backend rejects with `call_failed`, with `details.reason` and `details.data`. The data is copied at the call.
   * @template {import('./contract-types.js').CallName<C>} N
   * @param {N} name
   * @param {import('./contract-types.js').CallRequest<C, N>} data
   * @param {CallOptions} [options]
   * @returns {Promise<import('./contract-types.js').CallReply<C, N>>}
   */
  call(name, data, options) {
    return this.#core.call(name, data, options);
  }

  /**
   * Sends an ephemeral event now, or drops it and returns false: without a connection, and above the rates. With `replace` it waits
   * for its turn, until a newer one of this name replaces it. It never delays anything else. The first ones wait until the module that
   * sends them is loaded.
   * @template {import('./contract-types.js').ChannelName<C>} N
   * @template {import('./contract-types.js').PublishedType<C, N, 'ephemeral'>} T
   * @param {N} channel
   * @param {T} type
   * @param {import('./contract-types.js').DataOf<C, N, T>} data
   * @param {SignalOptions} [options]
   */
  signal(channel, type, data, options) {
    return this.#core.signal(channel, type, data, options);
  }

  /**
   * The state in plain text, for a console or a report: what is connected, what waits, the last errors, and what to do. It is
   * loaded with `connect()`; before, there is only the state.
   */
  explain() {
    const { state, reason } = this.status;
    return upkeep.module?.explain(this.#connection) ?? `${state} (${reason})`;
  }
}

/** @type {{entries: readonly any[], uncertain: readonly any[]}} */
const NO_OUTBOX = Object.freeze({ entries: [], uncertain: [] });
