import { Timer, within } from '../base/clock.js';
import { deferred } from '../base/deferred.js';
import { Backoff } from '../connection/backoff.js';
import { TidewireError } from '../errors.js';
import { ownToken } from '../parts.js';
import { Delivery } from './delivery.js';

/**
 * @typedef {import('./delivery.js').Info} Info
 * @typedef {import('../messages.js').Position} Position
 *
 * @typedef {'waiting' | 'subscribing' | 'subscribed' | 'ended'} ChannelState
 * @typedef {{readonly state: ChannelState, readonly code?: string, readonly help?: string}} ChannelStatus
 *   `code`: why it has ended, or why it is tried again
 *
 * @typedef {object} Handle  what a subscription uses of a `Channel`
 * @property {(name: string) => ((value: any) => unknown)[]} listeners
 * @property {ChannelOptions} options
 * @property {number} tail  the number of last events that it wants with the first `subscribed`
 *
 * @typedef {object} ChannelOptions
 * @property {Position} [since]  resumes from this position; counts for the first handle of a channel
 * @property {number} [tail]  the number of last events, 1 to 100, that `tail` listeners get, if the service offers it
 * @property {import('../connection/token.js').TokenFunction} [token]
 *   gets a token that grants this channel, at each subscribe and before it expires
 * @property {AbortSignal} [signal]  leaves the channel
 */

/** Milliseconds until a subscribe without an answer is sent again. */
const SUBSCRIBE_TIMEOUT = 15_000;
/** Milliseconds until the promise of a listener counts as settled. */
const HANDLER_TIMEOUT = 30_000;

/** One subscription of the client, which all handles of its channel share: events once and in order, or `recovered: false`. */
export class Subscription {
  /** @type {Set<Handle>} */
  handles = new Set();
  /** Whether the service is to be told when the subscription ends. */
  told = false;
  /** @type {ChannelStatus} */
  status = Object.freeze({ state: 'waiting' });
  /** @type {import('../base/deferred.js').Deferred<Info>} settles with the first `subscribed` */
  joined = deferred();
  #core;
  /** Whether the client was closed, and `joined` rejected if it was pending. */
  #wasClosed = false;
  /** @type {string | undefined} the id of the pending `subscribe` */
  #request;
  /** @type {import('./own-token.js').OwnToken | undefined} */
  #ownToken;
  #retry;
  #backoff;

  /**
   * @param {string} channel
   * @param {import('../core.js').Core} core
   */
  constructor(channel, core) {
    this.channel = channel;
    this.delivery = new Delivery(this, core);
    this.#core = core;
    this.#retry = new Timer(core.clock);
    this.#backoff = new Backoff(500, 20_000, core.random);
  }

  get state() {
    return this.status.state;
  }

  /** @param {ChannelState} state @param {string} [code] @param {string} [help] */
  #become(state, code, help) {
    if (this.state === state && this.status.code === code) return;
    this.status = Object.freeze({ state, code, help });
    this.notify('state', this.status);
  }

  // --- subscribing --------------------------------------------------------------------------------------------------

  /** Asks for a subscribe on the open connection. */
  join() {
    this.#retry.stop();
    this.#request = undefined;
    this.#become('waiting');
    if (this.tokenFunction && this.#core.offers('subscription_token')) void this.#withToken('join');
    else this.#core.registry.want(this);
  }

  /** The token of the subscription expires soon. */
  refresh() {
    void this.#withToken('refresh');
  }

  /** Without the module, the subscription waits, or ends with its token. @param {'join' | 'refresh'} what */
  async #withToken(what) {
    const loaded = ownToken.module ?? (await this.#core.need(ownToken, this.channel));
    if (loaded) (this.#ownToken ??= new loaded.OwnToken(this, this.#core))[what]();
    else this.#retry.start(this.#backoff.next(), () => this.state === 'waiting' && this.join());
  }

  /** What gets a token of its own that grants the channel. */
  get tokenFunction() {
    return [...this.handles].find(({ options }) => options.token)?.options.token;
  }

  /** Where a subscribe begins now: at a position, or with the last events. */
  get start() {
    const since = this.delivery.position;
    const tail = !since && this.#core.offers('tail') && Math.min(100, Math.max(...[...this.handles].map((handle) => handle.tail), 0));
    return { since, tail: tail || undefined };
  }

  /** The `subscribe` to send now. @param {string} [token]  of its own */
  request(token) {
    this.#request = this.#core.nextId();
    this.told = true;
    this.#become('subscribing');
    this.#retry.start(SUBSCRIBE_TIMEOUT, () => this.#rejoin());
    return { type: 'subscribe', id: this.#request, channel: this.channel, ...this.start, token };
  }

  #rejoin() {
    this.#core.registry.unsubscribe(this);
    this.join();
  }

  /** The connection is gone. */
  interrupted() {
    this.#retry.stop();
    this.told = false;
    this.#request = undefined;
    if (this.state !== 'ended') this.#become('waiting');
  }

  // --- messages of the service ----------------------------------------------------------------------------------------

  /** @param {import('../messages.js').Subscribed} message */
  subscribed(message) {
    if (this.state === 'subscribing' && message.id === this.#request) {
      this.#retry.stop();
      this.#backoff.attempt = 0;
      this.#become('subscribed');
      this.#core.publisher?.retries.joined(this.channel);
      this.#core.wake();
    } else if (message.id !== null) return; // else a resync: the subscription continues
    this.received(message);
  }

  /** An event, a new beginning, or who is there after a change of rights. @param {import('../messages.js').Event | import('../messages.js').Subscribed | import('../messages.js').PresenceReply} message */
  received(message) {
    if (this.state === 'subscribed') this.delivery.add(message);
  }

  /**
   * Handles a refused `subscribe`. Returns false if the error is about something else.
   * @param {import('../messages.js').ErrorMessage} message
   */
  refused(message) {
    const { code, details, id, retryable } = message;
    if (this.state !== 'subscribing' || id !== this.#request) return false;
    this.#retry.stop();
    if (code === 'already_subscribed') {
      this.#rejoin();
      return true;
    }
    this.told = false;
    if (retryable) {
      this.#become('waiting', code);
      this.#retry.start(this.#core.publisher?.retries.after(details, this.#backoff) ?? this.#backoff.next(), () => this.join());
    } else this.end(TidewireError.from({ ...message, message: `${this.channel}: ${message.message}` }, this.channel));
    return true;
  }

  // --- the end --------------------------------------------------------------------------------------------------------

  /** Ends the subscription, and says why. @param {TidewireError} error */
  end(error) {
    if (this.state !== 'ended') this.#finish(error, error.code, () => this.#core.report(error, this));
  }

  /** The service has ended the subscription. @param {import('../messages.js').Unsubscribed} message */
  unsubscribed({ code, id }) {
    if (id || this.state !== 'subscribed') return;
    this.told = false;
    this.#finish(this.#error('unsubscribed', `the service has ended the subscription: ${code}`, { code }), code, () => this.notify('unsubscribed', { code }));
  }

  /** The last handle has left. */
  left() {
    this.#finish(this.#error('left', 'it was left'), 'left');
  }

  /**
   * @param {TidewireError} error
   * @param {string} code
   * @param {() => void} [tell]
   */
  #finish(error, code, tell) {
    this.#retry.stop();
    this.delivery.end();
    this.#become('ended', code, error.help || undefined);
    this.#core.registry.forget(this);
    this.joined.reject(error);
    tell?.();
    this.notify('ended', error);
  }

  /** The client is closed: no listener runs any more, and the position stays. @param {TidewireError} error */
  closed(error) {
    this.interrupted();
    this.delivery.drop();
    this.joined.reject(error);
    this.#wasClosed = true;
    this.notify('ended', error);
  }

  /** The client connects. Who has asked for `subscribed` before still waits for it, unless it was rejected. */
  reopened() {
    if (this.#wasClosed && !this.delivery.info) this.joined = deferred();
    this.#wasClosed = false;
  }

  /** @param {string} code @param {string} what @param {any} [details] @param {unknown} [cause] */
  #error(code, what, details, cause) {
    return new TidewireError(code, `${this.channel}: ${what}`, { channel: this.channel, details, cause });
  }

  // --- listeners --------------------------------------------------------------------------------------------------------

  /** Listeners are too slow. */
  full() {
    this.#core.report(this.#error('queue_full', `${this.#core.maxQueue} events wait for listeners; later ones are read again, but for signals`), this);
  }

  /** Events are missing. */
  gap() {
    if (this.state === 'subscribed') this.#rejoin();
  }

  /**
   * Calls the listeners of all handles, and waits for their promises.
   * @param {string} name
   * @param {any} value
   * @returns {Promise<unknown> | undefined}
   */
  call(name, value) {
    if (name === 'subscribed') this.joined.resolve(value);
    if (name.includes('.')) this.#core.emitter.emit('event', value);
    const promises = this.#listeners(name)
      .map((listener) => this.run(name, listener, value))
      .filter(Boolean);
    return promises.length ? Promise.all(promises) : undefined;
  }

  /** Calls listeners that nothing waits for. Returns whether there is one. @param {string} name @param {any} value */
  notify(name, value) {
    const { length } = this.#listeners(name);
    void this.call(name, value);
    return length > 0;
  }

  /** @param {string} name */
  #listeners(name) {
    const names = name.includes('.') ? [name, '*'] : [name];
    return [...this.handles].flatMap(({ listeners }) => names.flatMap(listeners));
  }

  /**
   * Calls one listener. An error is reported, and counts as its end: one bad event cannot block the channel. So does a promise
   * that does not settle.
   * @param {string} name
   * @param {(value: any) => unknown} listener
   * @param {any} value
   */
  run(name, listener, value) {
    const failed = (/** @type {any} */ cause) => {
      if (!this.#core.sender && ['not_sent', 'uncertain'].includes(cause?.code)) return; // it has read or published, and the client closed
      const isSlow = cause === HANDLER_TIMEOUT;
      const what = isSlow ? `has not finished within ${HANDLER_TIMEOUT / 1000} s` : `threw: ${cause}`;
      this.#core.report(this.#error(isSlow ? 'handler_slow' : 'handler_failed', `a listener of ${name} ${what}`, undefined, cause), this);
    };
    try {
      const result = /** @type {any} */ (listener(value));
      if (typeof result?.then !== 'function') return undefined;
      const late = /** @type {any} */ (() => HANDLER_TIMEOUT);
      return within(this.#core.clock, HANDLER_TIMEOUT, Promise.resolve(result), late).catch(failed);
    } catch (cause) {
      failed(cause);
      return undefined;
    }
  }
}
