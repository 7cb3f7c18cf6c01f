import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { deferred, onAbort } from '../base/deferred.js';
import { notSent, TidewireError } from '../errors.js';
import { Retries } from './retries.js';
import { bytesOf } from './sender.js';
import { Signals } from './signals.js';

/**
 * @typedef {import('../messages.js').ClientMessage & {id: string}} Request
 * @typedef {object} RequestOptions
 * @property {number} [timeout]  ms with a connection
 * @property {AbortSignal} [signal]
 * @property {number} [order]  only of publishes that a reload has left: negative, so that they are sent before new ones
 * @property {boolean} [retry]  whether a call is sent again
 *
 * @typedef {object} Sending  what the publisher knows of a request without an answer
 * @property {string} id
 * @property {string} type  of a call: its name
 * @property {string | undefined} channel
 * @property {string} text  the JSON of the request, made at the call
 * @property {boolean} isPublish
 * @property {boolean} isCall
 * @property {boolean} isOnce  a call that is not sent again
 * @property {import('../base/deferred.js').Deferred<any>} result
 * @property {() => void} [forget]  stops listening to the signal
 * @property {boolean} [sent]  whether the service may have it
 * @property {boolean} [flying]  sent on this connection, without an answer
 * @property {boolean} [resting]  waits before it is sent again
 * @property {Timer} [retry]  ends its rest
 * @property {TidewireError} [refusal]  the last retryable one
 *
 * @typedef {Sending & Omit<RequestOptions, 'retry'> & import('./retries.js').Retrying} Entry
 */

/** Characters of all requests without an answer. */
const MAX_SIZE = 8_388_608;

/**
 * The requests without an answer: publishes, reads such as `history`, and calls. Publishes of one channel are sent one after the other,
 * so that none overtakes another that is sent again. A request is sent again with the same id on every new connection, until it is
 * answered; a call only if the application says so. What follows a refusal that passes, and when a request times out, is up to `Retries`. Loaded with the first request or
 * signal, or soon after `welcome`.
 */
export class Publisher {
  budget = /** @type {const} */ ('message');
  /** Whether publishes wait for the outbox. */
  held = false;
  /** @type {Map<string, Entry>} by id, in the order of sending */
  entries = new Map();
  #size = 0;
  #core;

  /** @param {import('../core.js').Core} core */
  constructor(core) {
    this.#core = core;
    this.retries = new Retries(core, this);
    this.signals = new Signals(core);
    core.sources.push(this, this.signals);
    this.reopened();
  }

  /**
   * Adds a request and returns the promise of its reply. A second call with the id of a pending request gets the same reply.
   * @param {Request} request
   * @param {RequestOptions} options
   * @param {boolean} [isPublish]
   * @param {import('../base/deferred.js').Deferred<any>} [result]  gets the reply
   * @returns {Promise<any>}
   */
  add(request, options, isPublish = true, result = deferred()) {
    const { id, channel, type } = request;
    const known = this.entries.get(id);
    if (known) result.resolve(known.result.promise);
    else try {
      const { order, retry, signal, timeout } = options;
      const isCall = type === 'call';
      const text = this.#encode(request, options);
      /** @type {Entry} */
      const entry = { id, type: request.call ?? type, channel, text, isPublish, isCall, isOnce: isCall && !retry, order, timeout, result };
      this.entries.set(id, entry);
      this.#size += text.length;
      entry.forget = onAbort(signal, () => this.fail(entry, signal?.reason));
      this.retries.added(entry);
      this.#core.wake();
    } catch (error) {
      result.reject(error);
    }
    return result.promise;
  }

  /** The JSON of a request; throws if it cannot be taken. @param {Request} request @param {RequestOptions} options */
  #encode(request, { order, signal }) {
    const { channel } = request;
    const type = request.call ?? request.type;
    const { size } = this.entries;
    if (signal?.aborted) throw signal.reason;
    let text;
    try {
      text = JSON.stringify(request);
    } catch (cause) {
      throw new TidewireError('invalid_data', `the data of ${type} is not JSON: ${cause}`, { channel, cause });
    }
    if (order === undefined && (size >= this.#core.maxPending || this.#size + text.length > MAX_SIZE)) {
      throw new TidewireError('queue_full', `${type} was not taken: ${size} requests (${this.#size} characters) wait for an answer`, { channel, retryable: true });
    }
    return text;
  }

  /** The publishes without an answer. */
  get publishes() {
    return [...this.entries.values()].filter(({ isPublish }) => isPublish);
  }

  // --- sending ----------------------------------------------------------------------------------------------------------

  waiting() {
    return this.#first() !== undefined;
  }

  /** The first request that can be sent. */
  #first() {
    const busy = new Set();
    for (const entry of this.entries.values()) {
      const { channel, isCall, isPublish } = entry;
      const mustWait = isPublish ? this.held || busy.has(channel) || this.#core.registry.joining(channel) === 'waiting' : isCall && this.#isBusy;
      if (!mustWait && !entry.flying && !entry.resting) return entry;
      if (isPublish) busy.add(channel);
    }
    return undefined;
  }

  /** Whether the connection has as many calls as it may: further ones wait. */
  get #isBusy() {
    const most = bounded(this.#core.welcome?.limits.calls, 1, 1e5, 16);
    return [...this.entries.values()].filter(({ flying, isCall }) => flying && isCall).length >= most;
  }

  /** @param {number} maxBytes */
  next(maxBytes) {
    const entry = /** @type {Entry} */ (this.#first());
    const bytes = bytesOf(entry.text);
    if (bytes > maxBytes) this.tooBig(entry, `it has ${bytes} bytes; the service accepts ${maxBytes}`);
    else if (entry.isCall && !this.#core.offers('calls')) this.fail(entry, new TidewireError('no_calls', 'the service takes no calls: no backend is configured, or it is older'));
    else if (this.retries.maySend(entry)) {
      entry.sent = entry.flying = true;
      return entry.text;
    }
    return undefined;
  }

  /** There is a connection: everything is sent again, unless somebody else has published it. @param {boolean} isOther  another user has connected */
  opened(isOther) {
    this.retries.opened();
    if (isOther) for (const entry of this.entries.values()) if (entry.isPublish || entry.isCall) this.giveUp(entry, 'uncertain', 'another user connected', { retryable: false });
    this.#core.wake();
  }

  // --- answers ----------------------------------------------------------------------------------------------------------

  /**
   * Settles the request of a reply or refusal. Returns false if it answers none.
   * @param {{type: string, id?: string | null}} message
   */
  settle(message) {
    const entry = this.entries.get(message.id ?? '');
    if (!entry) return this.retries.settle(message);
    const { isCall, isPublish, type } = entry;
    if (message.type === 'error') this.#refused(entry, TidewireError.from(/** @type {any} */ (message), entry.channel));
    else if (message.type === (isPublish || type === 'refresh' ? 'ack' : isCall ? 'reply' : type)) this.#finish(entry).result.resolve(isCall ? /** @type {any} */ (message).data : message);
    else return false;
    return true;
  }

  /**
   * @param {Entry} entry
   * @param {TidewireError} refusal
   */
  #refused(entry, refusal) {
    const wait = entry.isOnce ? undefined : this.retries.waitAfter(entry, refusal);
    if (wait === undefined) {
      this.fail(entry, refusal);
      return;
    }
    entry.refusal = refusal;
    entry.flying = false;
    entry.resting = true;
    (entry.retry ??= new Timer(this.#core.clock)).start(wait, () => {
      entry.resting = false;
      this.#core.wake();
    });
  }

  // --- the end ----------------------------------------------------------------------------------------------------------

  /** The connection ended. @param {boolean} isTooBig  because of a message's size */
  interrupted(isTooBig) {
    this.signals.clear();
    this.retries.interrupted(isTooBig);
    for (const entry of this.entries.values()) {
      entry.retry?.stop();
      entry.flying = entry.resting = false;
      if (entry.isOnce && entry.sent) this.giveUp(entry, 'uncertain', 'the connection was lost');
    }
  }

  /** Fails all requests. @param {TidewireError} error */
  closed({ message, details }) {
    this.retries.closed(message);
    for (const entry of this.entries.values()) this.giveUp(entry, 'uncertain', message, { details });
  }

  /** A connection is wanted: publishes wait for the outbox. */
  reopened() {
    this.held = Boolean(this.#core.options.outbox);
    void this.retries.loadOutbox();
  }

  /**
   * Fails a request without an answer.
   * @param {Entry} entry
   * @param {string} code  if it was sent
   * @param {string} why
   * @param {{details?: any, retryable?: boolean}} [more]
   */
  giveUp(entry, code, why, more) {
    const { channel, sent, type } = entry;
    this.fail(entry, sent ? new TidewireError(code, `${type}: ${why}; it may have happened`, { channel, retryable: true, ...more }) : notSent(entry, why, more));
  }

  /** @param {Entry} entry @param {string} why */
  tooBig(entry, why) {
    this.fail(entry, new TidewireError('too_big', `${entry.type} is too big: ${why}`, { channel: entry.channel }));
  }

  /**
   * @param {Entry} entry
   * @param {unknown} error
   */
  fail(entry, error) {
    this.#finish(entry).result.reject(error);
  }

  /** @param {Entry} entry */
  #finish(entry) {
    if (!this.entries.delete(entry.id)) return entry;
    entry.forget?.();
    entry.retry?.stop();
    this.#size -= entry.text.length;
    this.retries.settled(entry);
    if (entry.isPublish) this.#core.registry.sweep();
    this.#core.wake();
    return entry;
  }
}
