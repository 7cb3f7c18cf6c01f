import { toldWait } from '../base/bounds.js';
import { Timer, within } from '../base/clock.js';
import { deferred } from '../base/deferred.js';
import { Backoff, spread } from '../connection/backoff.js';
import { askToken } from '../connection/token.js';
import { TidewireError } from '../errors.js';
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
  delivery;
  /** @type {ChannelStatus} */
  status = Object.freeze({ state: 'waiting' });
  /** @type {import('../base/deferred.js').Deferred<Info>} settles with the first `subscribed` */
  joined = deferred();
  #channel;
  #core;
  /** @type {string | undefined} the id of the pending `subscribe` */
  #request;
  /** @type {string | undefined} a token of its own, for the next `subscribe` */
  #token;
  #refreshing = false;
  #retry;
  #backoff;

  /**
   * @param {string} channel
   * @param {import('../core.js').Core} core
   */
  constructor(channel, core) {
    this.#channel = channel;
    this.#core = core;
    this.#retry = new Timer(core.clock);
    this.#backoff = new Backoff(500, 20_000, core.random);
    this.delivery = new Delivery(this, core);
  }

  get channel() {
    return this.#channel;
  }

  get state() {
    return this.status.state;
  }

  // --- subscribing --------------------------------------------------------------------------------------------------

  /** Asks for a subscribe on the open connection. */
  join() {
    this.#retry.stop();
    this.#request = undefined;
    this.#become('waiting');
    const want = () => this.#core.registry.want(this);
    if (this.#tokenFunction() && this.#core.offers('subscription_token')) {
      void this.#withToken('waiting', () => this.join(), (token) => ((this.#token = token), want()));
    } else want();
  }

  /** The token of the subscription expires soon. Without a new one, the service ends the subscription. */
  async refresh() {
    if (this.#refreshing) return;
    this.#refreshing = true;
    const use = (/** @type {string} */ token) => this.#core.read({ type: 'refresh', channel: this.#channel, token });
    await this.#withToken('subscribed', () => void this.refresh(), use);
    this.#refreshing = false;
  }

  /** Whether a token of its own grants the channel. */
  get hasToken() {
    return this.#tokenFunction() !== undefined;
  }

  #tokenFunction() {
    for (const { options } of this.handles) if (options.token) return options.token;
    return undefined;
  }

  /**
   * Uses a new token of the subscription, if connection and state are still the same; tries again after an error that passes.
   * @param {ChannelState} state
   * @param {() => void} again
   * @param {(token: string) => unknown} use
   */
  async #withToken(state, again, use) {
    const get = this.#tokenFunction();
    const { sender, clock } = this.#core;
    if (!get) return;
    const isCurrent = () => sender === this.#core.sender && this.state === state;
    try {
      const token = await askToken(get, 'token', clock, this.#channel);
      if (isCurrent()) await use(token);
    } catch (/** @type {any} */ error) {
      if (!isCurrent()) return;
      if (error.retryable) {
        this.#core.report(error, this);
        this.#retry.start(this.#backoff.next(), again);
      } else if (state === 'waiting') this.end(error);
      else this.#core.report(error, this);
    }
  }

  /** Where a subscribe begins now: at a position, or with the last events. */
  get start() {
    const since = this.delivery.position;
    const tails = [...this.handles].map(({ tail }) => tail);
    return { since, tail: since === undefined && this.#core.offers('tail') ? Math.min(100, Math.max(0, ...tails)) || undefined : undefined };
  }

  /** The `subscribe` to send now. */
  request() {
    const id = this.#core.nextId();
    const start = this.start;
    const token = this.#token;
    this.#token = undefined;
    this.#request = id;
    this.told = true;
    this.#become('subscribing');
    this.#retry.start(SUBSCRIBE_TIMEOUT, () => this.#rejoin());
    return { type: 'subscribe', id, channel: this.#channel, ...start, token };
  }

  #rejoin() {
    this.#core.registry.unsubscribe(this);
    this.join();
  }

  /** The connection is gone. */
  interrupted() {
    this.#retry.stop();
    this.told = false;
    this.#request = this.#token = undefined;
    if (this.state !== 'ended') this.#become('waiting');
  }

  // --- messages of the service ----------------------------------------------------------------------------------------

  /** @param {import('../messages.js').Subscribed} message */
  subscribed(message) {
    const isAnswer = this.state === 'subscribing' && message.id === this.#request;
    if (!isAnswer && !(this.state === 'subscribed' && message.id === null)) return; // else a resync: the subscription continues
    if (isAnswer) {
      this.#retry.stop();
      this.#backoff.reset();
      this.#become('subscribed');
      this.#core.publisher.joined(this.#channel);
    }
    this.delivery.add(message);
  }

  /** An event, or who is there after a change of rights. @param {import('../messages.js').Event | import('../messages.js').PresenceReply} message */
  received(message) {
    if (this.state === 'subscribed') this.delivery.add(message);
  }

  /**
   * Handles a refused `subscribe`. Returns false if the error is about something else.
   * @param {import('../messages.js').ErrorMessage} message
   */
  refused(message) {
    if (this.state !== 'subscribing' || message.id !== this.#request) return false;
    this.#retry.stop();
    this.told = false;
    if (message.code === 'already_subscribed') {
      this.told = true;
      this.#rejoin();
    } else if (message.retryable) {
      const told = toldWait(message.details?.retry_after);
      const wait = told === undefined ? this.#backoff.next() : spread(told, this.#core.random);
      this.#become('waiting', message.code);
      this.#retry.start(wait, () => this.join());
    } else this.end(TidewireError.from({ ...message, message: `${this.#channel}: ${message.message}` }, this.#channel));
    return true;
  }

  // --- the end --------------------------------------------------------------------------------------------------------

  /** Ends the subscription, and says why. @param {TidewireError} error */
  end(error) {
    if (this.state === 'ended') return;
    this.#finish(error.code, error.help);
    this.joined.reject(error);
    this.#core.report(error, this);
    this.notify('ended', error);
  }

  /** The service has ended the subscription. @param {import('../messages.js').Unsubscribed} message */
  unsubscribed({ code, id }) {
    if (id || this.state !== 'subscribed') return;
    this.told = false;
    const error = new TidewireError('unsubscribed', `${this.#channel}: the service has ended the subscription: ${code}`, {
      channel: this.#channel,
      details: { code },
    });
    this.#finish(code);
    this.joined.reject(error);
    this.notify('unsubscribed', { code });
    this.notify('ended', error);
  }

  /** The last handle has left. */
  left() {
    this.#finish('left');
    this.joined.reject(new TidewireError('left', `${this.#channel} was left`, { channel: this.#channel }));
  }

  /** The client is closed: no listener runs any more, and the position stays. @param {TidewireError} error */
  closed(error) {
    this.interrupted();
    this.delivery.drop();
    this.joined.reject(error);
    this.notify('ended', error);
  }

  /** The client connects again. */
  reopened() {
    if (!this.delivery.info) this.joined = deferred();
  }

  /**
   * @param {string} code
   * @param {string} [help]
   */
  #finish(code, help) {
    this.#retry.stop();
    this.delivery.end();
    this.#become('ended', code, help);
    this.#core.registry.forget(this);
  }

  // --- listeners --------------------------------------------------------------------------------------------------------

  /** @param {'gap' | 'full'} why */
  missing(why) {
    if (why === 'full') {
      const message = `${this.#channel}: listeners are too slow: ${this.#core.maxQueue} events wait; later ones are read again afterwards, and signals are lost`;
      this.#core.report(new TidewireError('queue_full', message, { channel: this.#channel }), this);
    } else if (this.state === 'subscribed') this.#rejoin();
  }

  /**
   * Calls the listeners of all handles, and waits for their promises.
   * @param {string} name
   * @param {any} value
   * @returns {Promise<void> | undefined}
   */
  call(name, value) {
    if (name === 'subscribed') this.joined.resolve(value);
    if (name.includes('.')) this.#core.emitter.emit('event', value);
    const calls = [];
    for (const handle of [...this.handles]) {
      const listeners = name.includes('.') ? [...handle.listeners(name), ...handle.listeners('*')] : handle.listeners(name);
      for (const listener of listeners) calls.push(this.run(name, listener, value));
    }
    const promises = calls.filter(Boolean);
    return promises.length ? Promise.all(promises).then(() => {}) : undefined;
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
      const slow = cause === HANDLER_TIMEOUT;
      const what = slow ? `has not finished within ${HANDLER_TIMEOUT / 1000} s` : `threw: ${cause}`;
      const message = `${this.#channel}: a listener of ${name} ${what}`;
      this.#core.report(new TidewireError(slow ? 'handler_slow' : 'handler_failed', message, { channel: this.#channel, cause }), this);
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

  /** Calls listeners that nothing waits for. Returns whether there is one. @param {string} name @param {any} value */
  notify(name, value) {
    const listeners = [...this.handles].flatMap((handle) => handle.listeners(name));
    for (const listener of listeners) void this.run(name, listener, value);
    return listeners.length > 0;
  }

  /**
   * @param {ChannelState} state
   * @param {string} [code]
   * @param {string} [help]
   */
  #become(state, code, help) {
    if (this.status.state === state && this.status.code === code) return;
    this.status = Object.freeze({ state, code, help });
    this.notify('state', this.status);
  }
}
