import { Backoff, spread } from './backoff.js';
import { Timer } from './clock.js';
import { TidewireError } from './errors.js';

/**
 * @typedef {import('./messages.js').ClientMessage & {id: string}} Request
 * @typedef {object} Entry
 * @property {Request} request
 * @property {boolean} repeat
 * @property {Promise<any>} promise
 * @property {(reply: any) => void} resolve
 * @property {(error: Error) => void} reject
 * @property {Timer} deadline
 * @property {Timer} retry
 * @property {Backoff} backoff
 * @property {number} sent  bytes sent on the current connection; otherwise 0
 * @property {TidewireError} [refusal]  the last retryable one
 */

/**
 * The pending requests, in order. A repeatable request is sent again with the same id on every new connection and after a
 * retryable refusal, until it is answered or times out.
 */
export class Requests {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #clock;
  #random;
  #send;
  #joining;

  /**
   * @param {import('./clock.js').Clock} clock
   * @param {() => number} random
   * @param {(request: Request) => number} send  returns the bytes sent, 0 while there is no connection; may throw TidewireError
   * @param {(channel: string | undefined) => boolean} joining  whether the channel is being subscribed
   */
  constructor(clock, random, send, joining) {
    this.#clock = clock;
    this.#random = random;
    this.#send = send;
    this.#joining = joining;
  }

  /**
   * Sends a request and returns the promise of its reply. A second call with the id of a pending request returns the same promise.
   * @param {Request} request
   * @param {{timeout: number, repeat: boolean}} options
   * @returns {Promise<any>}
   */
  ask(request, { timeout, repeat }) {
    const open = this.#entries.get(request.id);
    if (open) return open.promise;
    /** @type {Entry} */
    const entry = {
      request,
      repeat,
      sent: 0,
      promise: Promise.resolve(),
      resolve: () => {},
      reject: () => {},
      deadline: new Timer(this.#clock),
      retry: new Timer(this.#clock),
      backoff: new Backoff(500, 5_000, this.#random),
    };
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    this.#entries.set(request.id, entry);
    entry.deadline.start(timeout, () => this.#fail(entry, entry.refusal ?? late(request, timeout)));
    this.#dispatch(entry);
    return entry.promise;
  }

  /**
   * Settles the request of a reply or refusal. Returns false if no request has this id.
   * @param {{type: string, id?: string | null}} message
   */
  settle(message) {
    const entry = message.id ? this.#entries.get(message.id) : undefined;
    if (!entry) return false;
    if (message.type === 'error') this.#refused(entry, /** @type {import('./messages.js').ErrorMessage} */ (message));
    else this.#finish(entry).resolve(message);
    return true;
  }

  /** Sends all requests again on a new connection. */
  resume() {
    for (const entry of [...this.#entries.values()]) this.#dispatch(entry);
  }

  /**
   * Sends publishes again that were refused because the channel was not subscribed yet.
   * @param {string} channel
   */
  joined(channel) {
    for (const entry of [...this.#entries.values()]) {
      if (entry.request.channel === channel && entry.refusal?.code === 'not_subscribed') this.#dispatch(entry);
    }
  }

  /**
   * Drops a refused `unsubscribe` that would be sent again, because it would end a newer subscription.
   * @param {string} channel
   */
  subscribing(channel) {
    for (const entry of [...this.#entries.values()]) {
      const { type, channel: of } = entry.request;
      if (type === 'unsubscribe' && of === channel && entry.refusal) this.#fail(entry, entry.refusal);
    }
  }

  /**
   * Fails the requests that may not be repeated after the connection ended. If it ended because of a message's size, the
   * largest pending request fails too.
   * @param {boolean} tooBig
   */
  interrupted(tooBig) {
    const entries = [...this.#entries.values()];
    if (tooBig) {
      const largest = entries.reduce((most, entry) => (entry.sent > most.sent ? entry : most), entries[0]);
      if (largest?.sent) this.#fail(largest, new TidewireError('too_big', 'the service closed the connection over its size'));
    }
    for (const entry of entries) {
      entry.retry.stop();
      entry.sent = 0;
      if (!entry.repeat) this.#fail(entry, new TidewireError('closed', 'the connection ended', { retryable: true }));
    }
  }

  /**
   * Fails all requests.
   * @param {TidewireError} error
   */
  abandon(error) {
    for (const entry of [...this.#entries.values()]) this.#fail(entry, error);
  }

  /** @param {Entry} entry */
  #dispatch(entry) {
    entry.retry.stop();
    try {
      entry.sent = this.#send(entry.request);
    } catch (error) {
      this.#fail(entry, /** @type {Error} */ (error));
    }
  }

  /**
   * @param {Entry} entry
   * @param {import('./messages.js').ErrorMessage} message
   */
  #refused(entry, message) {
    const error = TidewireError.from(message);
    const joining = this.#joining(entry.request.channel);
    const early = error.code === 'not_subscribed' && joining;
    // A rate-limited request had no effect and may be sent again on this connection, unless there is a newer subscription.
    const again = entry.repeat ? early || error.retryable : error.code === 'rate_limited' && !joining;
    if (!again) {
      this.#fail(entry, error);
      return;
    }
    entry.refusal = error;
    if (early) return; // `joined` sends it again
    const told = error.details.retry_after;
    const wait = typeof told === 'number' ? spread(told * 1000, this.#random) : entry.backoff.next();
    entry.retry.start(wait, () => this.#dispatch(entry));
  }

  /**
   * @param {Entry} entry
   * @param {Error} error
   */
  #fail(entry, error) {
    this.#finish(entry).reject(error);
  }

  /** @param {Entry} entry */
  #finish(entry) {
    this.#entries.delete(entry.request.id);
    entry.deadline.stop();
    entry.retry.stop();
    return entry;
  }
}

/**
 * @param {Request} request
 * @param {number} timeout
 */
function late(request, timeout) {
  return new TidewireError('timeout', `no answer to ${request.type} within ${timeout / 1000} s; it may still have happened`, {
    retryable: true,
  });
}
