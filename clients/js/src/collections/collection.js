import { Timer } from '../base/clock.js';
import { onAbort } from '../base/deferred.js';
import { partsOf } from '../channel.js';
import { Backoff } from '../connection/backoff.js';
import { TidewireError } from '../errors.js';

/** What to do about an error, by its code. @type {Record<string, string>} */
const HELP = {
  not_durable: 'Use `map()` for latest events, and `on()` for ephemeral ones.',
  list_full: 'Raise `max` of the list.',
  snapshot_failed: 'Correct the function, or its backend; it is called again.',
  handler_failed: 'Correct the function `key`.',
};

/**
 * @typedef {'loading' | 'live' | 'stale' | 'error' | 'ended'} CollectionStatus
 *   `loading`: the first state is being read. `stale`: there is no connection, or missed events are being read. `error`: the state
 *   could not be read. `ended`: the channel was left or refused, or the collection was closed.
 */

/**
 * Something that a channel keeps up to date, and that a page shows. `subscribe` and `getSnapshot` are those of React's
 * `useSyncExternalStore`; both may be passed on without their object.
 * @template {object} Snapshot
 */
export class Collection {
  /** Why the state could not be read, or why it has ended. @type {TidewireError | undefined} */
  error;
  /** Whether the connection delivers what changes. */
  isConnected = false;
  /** Whether the state is complete. */
  isLoaded = false;
  /** Whether there has been a complete state. */
  hasLoaded = false;
  #ended = false;
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {Snapshot | undefined} */
  #snapshot;
  #changes;
  #notified = true;
  /** @type {(() => void)[]} */
  #stops = [];

  /**
   * @param {import('../channel.js').Channel<any, any>} channel
   * @param {AbortSignal} [signal]  closes the collection
   */
  constructor(channel, signal) {
    const parts = partsOf(channel);
    this.channel = channel;
    this.core = parts.core;
    this.subscription = parts.subscription;
    this.emitter = parts.emitter;
    this.#changes = new Timer(parts.core.clock);
    /** @protected  until the state is read again */
    this.retry = new Timer(parts.core.clock);
    /** @protected */
    this.backoff = new Backoff(500, 20_000, parts.core.random);
    if (parts.left || channel.state === 'ended') this.#ended = true;
    this.hear('state', ({ state }) => state === 'subscribed' || this.#disconnected());
    this.hear('ended', (error) => this.#end(error));
    this.#stops.push(onAbort(signal, () => this.close()));
  }

  /** @returns {CollectionStatus} */
  get status() {
    if (this.#ended) return 'ended';
    if (this.error) return 'error';
    if (this.isLoaded && this.isConnected) return 'live';
    return this.hasLoaded ? 'stale' : 'loading';
  }

  get isEnded() {
    return this.#ended;
  }

  /** Calls back after changes, once for all changes of one task. Returns the function that stops it. @param {() => void} listener */
  subscribe = (listener) => {
    const entry = () => listener();
    this.#listeners.add(entry);
    return () => {
      this.#listeners.delete(entry);
    };
  };

  /** The state as a frozen object, which is replaced only when something changes. @returns {Snapshot} */
  getSnapshot = () => (this.#snapshot ??= Object.freeze(this.read()));

  /** Stops following the channel. The last state stays; the channel is not left. */
  close() {
    if (this.#ended) return;
    this.#ended = true;
    for (const stop of this.#stops) stop();
    this.#stops = [];
    this.stopped();
    this.changed();
  }

  /** Closes at the end of a `using` block. */
  [/** @type {any} */ (Symbol).dispose ?? Symbol.for('Symbol.dispose')]() {
    this.close();
  }

  // --- for the classes that extend it -----------------------------------------------------------------------------------

  /** Makes the snapshot. @protected @returns {Snapshot} */
  read() {
    throw new Error('not implemented');
  }

  /** The collection has closed, or the client has. @protected */
  stopped() {}

  /** @protected @param {string} name @param {(value: any) => void} listener */
  hear(name, listener) {
    if (!this.#ended) this.#stops.push(this.emitter.on(name, listener));
  }

  /** Runs in the order of the events of the channel. @protected @param {() => void} run */
  inOrder(run) {
    this.subscription.delivery.add({ run: () => this.#ended || run() });
  }

  /** @protected @param {string} code @param {string} message @param {{retryable?: boolean, cause?: unknown}} [more] */
  problem(code, message, more) {
    const { name } = this.channel;
    return new TidewireError(code, `${name}: ${message}`, { channel: name, help: HELP[code], ...more });
  }

  /** The error of a state that could not be read. The first of a row is reported. @protected @param {any} cause */
  failure(cause) {
    const isKnown = cause instanceof TidewireError;
    const error = isKnown ? cause : this.problem('snapshot_failed', `the snapshot failed: ${cause}`, { retryable: true, cause });
    if (this.backoff.attempt === 0 || !error.retryable) this.core.report(error, this.subscription);
    return error;
  }

  /** The state is complete. @protected */
  loaded() {
    this.isLoaded = this.hasLoaded = true;
    this.error = undefined;
    this.changed();
  }

  /** The connection delivers what changes. @protected */
  connected() {
    this.isConnected = this.subscription.state === 'subscribed';
    this.changed();
  }

  /** @protected */
  changed() {
    this.#snapshot = undefined;
    if (!this.#notified) return;
    this.#notified = false;
    this.#changes.start(0, () => {
      this.#notified = true;
      for (const listener of [...this.#listeners]) listener();
    });
  }

  #disconnected() {
    this.isConnected = false;
    this.changed();
  }

  /** The channel has ended, or the client is closed and may connect again. @param {TidewireError} error */
  #end(error) {
    this.isConnected = false;
    if (error.code === 'closed') {
      this.stopped();
      this.changed();
      return;
    }
    if (error.code !== 'left') this.error = error;
    this.close();
  }
}
