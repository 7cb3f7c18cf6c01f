import { Backoff, spread } from './backoff.js';
import { TidewireError } from './errors.js';
import { PresenceList } from './presence-list.js';
import { Values } from './values.js';

/**
 * @typedef {import('./messages.js').Event} Event
 * @typedef {import('./messages.js').Position} Position
 * @typedef {import('./messages.js').PresenceReply} PresenceReply
 * @typedef {import('./messages.js').Subscribed} Subscribed
 *
 * @typedef {{type: string, key: string, rev: number, expired: boolean}} Removed
 *   The value of a key that has ended. `expired`: its `ttl` has passed; else it was removed, with this `rev`.
 *
 * @typedef {{message: Event | Subscribed | PresenceReply | Expiry, at: number}} Queued
 *   `at`: monotonic milliseconds at which it came.
 * @typedef {{expiry: true}} Expiry  the `ttl` of a value may have passed
 *
 * @typedef {object} Handlers
 *   Handlers of one channel run in order, one at a time; a returned promise is awaited. An error in a handler is
 *   reported (`onError`, and the client's `error` event), and the position still advances: one bad event cannot block
 *   the channel forever.
 * @property {(event: Event) => unknown} [onEvent]  every event, once and in order
 * @property {() => string | Promise<string>} [token]  gets a token that grants this subscription, at each subscribe and before it expires
 * @property {number} [tail]  the number of last events, 1 to 100, that the first subscribe brings, if the service offers it
 * @property {(events: Event[]) => unknown} [onTail]  the last events, after `onSubscribed`; the live events continue them
 * @property {(state: Event[]) => unknown} [onState]  the newest event of every key; replaces the previous state
 * @property {(removed: Removed) => unknown} [onRemoved]  a value of the state has ended
 * @property {(presence: import('./presence-list.js').PresenceChange) => unknown} [onPresence]
 * @property {(joined: {recovered?: boolean, missed: number, resumed: boolean, epoch: string, offset: number}) => unknown} [onSubscribed]
 *   first after each (re)subscribe. `recovered: false`: events are missing, reload. `missed` events follow.
 * @property {(left: {code: string}) => unknown} [onUnsubscribed]  the service ended the subscription: `forbidden` or `removed`
 * @property {(error: TidewireError) => unknown} [onError]  a refused subscription, which ends it, or a handler that threw
 * @property {Position} [since]  position to resume from, for applications that store positions
 *
 * @typedef {object} Connection  what a subscription uses of its client, whose links it outlives
 * @property {() => boolean} open
 * @property {() => string} nextId
 * @property {(message: import('./messages.js').ClientMessage) => void} send  only while open
 * @property {(feature: string) => boolean} offers  whether the service of the open connection has a feature
 * @property {(message: import('./requests.js').Request, repeat: boolean) => Promise<any>} ask
 * @property {(channel: string, type: string, data: unknown, options?: PublishOptions) => Promise<import('./messages.js').Ack>} publish
 * @property {(channel: string, type: string, key: string, options?: RemoveOptions) => Promise<import('./messages.js').Ack>} remove
 * @property {(channel: string, type: string, data: unknown) => boolean} signal
 * @property {(subscription: Subscription) => void} joined
 * @property {(subscription: Subscription) => void} forget
 * @property {(event: Event) => boolean} excluded  whether this client has published the event and does not want it back
 * @property {(event: Event) => void} heard
 * @property {(error: TidewireError) => void} report
 * @property {() => import('./clock.js').Timer} timer
 * @property {() => number} now  monotonic milliseconds
 * @property {() => number} random
 *
 * @typedef {{id?: string, key?: string, ifRev?: number, timeout?: number}} PublishOptions
 * @typedef {{id?: string, ifRev?: number, timeout?: number}} RemoveOptions
 *   `ifRev`: only if the value of the key has this `rev`, 0 for no value; else the error `conflict`, with `details.rev`. Needs a service
 *   with the feature `if_rev`.
 */

/** A subscription to one channel: events once and in order, or `recovered: false`. */
export class Subscription {
  /**
   * The position of the last handled event. Pass it as `since` to resume after a reload of the page.
   * @type {Position | undefined}
   */
  position;
  #channel;
  #connection;
  /** @type {Handlers} */
  #handlers;
  /** @type {'waiting' | 'joining' | 'joined' | 'ended'} */
  #state = 'waiting';
  /** @type {string | null | undefined} the id of the pending `subscribe`; null if the URL named the channel */
  #request;
  /** @type {Queued[]} */
  #queue = [];
  #draining = false;
  /** @type {Values} */
  #values;
  #presenceList = new PresenceList();
  #retry;
  #backoff;

  /**
   * @param {string} channel
   * @param {Handlers} handlers
   * @param {Connection} connection
   */
  constructor(channel, handlers, connection) {
    this.#channel = channel;
    this.#handlers = handlers;
    this.#connection = connection;
    this.#retry = connection.timer();
    this.#values = new Values(connection.timer(), () => this.#enqueue({ expiry: true }));
    this.#backoff = new Backoff(500, 20_000, connection.random);
    this.position = handlers.since;
  }

  get channel() {
    return this.#channel;
  }

  /** Whether the next subscribe says more than the address of a connection can. */
  get needsCommand() {
    return this.position !== undefined || Boolean(this.#handlers.tail) || this.#handlers.token !== undefined;
  }

  /** `waiting` (no connection), `joining`, `joined` or `ended`. */
  get state() {
    return this.#state;
  }

  /**
   * Publishes in this channel; see `Tidewire.publish`.
   * @param {string} type
   * @param {unknown} data
   * @param {PublishOptions} [options]
   */
  publish(type, data, options) {
    return this.#connection.publish(this.#channel, type, data, options);
  }

  /**
   * Removes the value of a key in this channel; see `Tidewire.remove`.
   * @param {string} type
   * @param {string} key
   * @param {RemoveOptions} [options]
   */
  remove(type, key, options) {
    return this.#connection.remove(this.#channel, type, key, options);
  }

  /**
   * Sends an ephemeral event in this channel; see `Tidewire.signal`.
   * @param {string} type
   * @param {unknown} data
   */
  signal(type, data) {
    return this.#connection.signal(this.#channel, type, data);
  }

  /**
   * A page of durable events, oldest first.
   * @param {{after?: number, before?: number, limit?: number}} [page]
   * @returns {Promise<import('./messages.js').HistoryPage>}
   */
  history({ after, before, limit } = {}) {
    const id = this.#connection.nextId();
    return this.#connection.ask({ type: 'history', id, channel: this.#channel, after, before, limit }, true);
  }

  /**
   * Asks the service who is here.
   * @returns {Promise<import('./messages.js').Presence>}
   */
  async presence() {
    const id = this.#connection.nextId();
    return (await this.#connection.ask({ type: 'presence', id, channel: this.#channel }, true)).presence;
  }

  /** Unsubscribes. No handler runs afterwards. The promise resolves when the service confirms, or the connection ends. */
  async unsubscribe() {
    if (this.#state === 'ended') return;
    const told = this.#state === 'joining' || this.#state === 'joined';
    this.#end();
    if (!told || !this.#connection.open()) return;
    const request = { type: 'unsubscribe', id: this.#connection.nextId(), channel: this.#channel };
    await this.#connection.ask(request, false).catch(() => {}); // refused or interrupted: the subscription has ended either way
  }

  // --- the client's side --------------------------------------------------------------------------------------------

  /** Subscribes on the open connection, resuming from the position. */
  join() {
    this.#retry.stop();
    this.#state = 'joining';
    this.#request = this.#connection.nextId();
    if (this.#handlers.token && this.#connection.offers('subscription_token')) void this.#joinWithToken(this.#request);
    else this.#subscribe(this.#request, undefined);
  }

  /** @param {string} request */
  async #joinWithToken(request) {
    try {
      const token = await this.#handlers.token?.();
      if (this.#request === request && this.#state === 'joining' && this.#connection.open()) this.#subscribe(request, token);
    } catch (cause) {
      if (this.#request !== request || this.#state !== 'joining') return;
      this.#connection.report(new TidewireError('token_failed', `no token for ${this.#channel}: ${cause}`, { cause }));
      this.#retry.start(this.#backoff.next(), () => this.join());
    }
  }

  /** @param {string} id @param {string | undefined} token */
  #subscribe(id, token) {
    const tail = this.position === undefined && this.#connection.offers('tail') ? this.#handlers.tail : undefined;
    this.#connection.send({ type: 'subscribe', id, channel: this.#channel, since: this.position, tail, token });
  }

  /** The token of the subscription expires soon. Without a new one, the service ends the subscription. */
  async refresh() {
    try {
      const token = await this.#handlers.token?.();
      if (token === undefined || this.#state === 'ended' || !this.#connection.open()) return;
      await this.#connection.ask({ type: 'refresh', id: this.#connection.nextId(), channel: this.#channel, token }, false);
    } catch (cause) {
      this.#connection.report(new TidewireError('token_failed', `no token for ${this.#channel}: ${cause}`, { cause }));
    }
  }

  /** Waits for `subscribed` of a channel that the connection's URL named. */
  joinedByAddress() {
    this.#state = 'joining';
    this.#request = null;
  }

  /** The connection is gone. */
  interrupted() {
    this.#retry.stop();
    if (this.#state !== 'ended') this.#state = 'waiting';
  }

  /** @param {Subscribed} message */
  subscribed(message) {
    if (this.#state === 'joined' && message.id === null) {
      this.#enqueue(message); // a resync: the subscription continues
      return;
    }
    if (this.#state !== 'joining' || message.id !== this.#request) return;
    this.#state = 'joined';
    this.#backoff.reset();
    this.#connection.joined(this);
    this.#enqueue(message);
  }

  /**
   * The token has gained or lost the right to see who is here.
   * @param {PresenceReply} message
   */
  presenceChanged(message) {
    if (this.#state === 'joined' && message.id === null) this.#enqueue(message);
  }

  /** @param {Event} event */
  event(event) {
    if (this.#state === 'joined') this.#enqueue(event);
  }

  /**
   * Handles a refused `subscribe`. Returns false if the error is about something else.
   * @param {import('./messages.js').ErrorMessage} message
   */
  refused(message) {
    if (this.#state !== 'joining' || !this.#isOurs(message)) return false;
    if (message.code === 'already_subscribed') {
      this.#rejoin();
    } else if (message.retryable) {
      const told = message.details?.retry_after;
      const wait = typeof told === 'number' ? spread(told * 1000, this.#connection.random) : this.#backoff.next();
      this.#retry.start(wait, () => this.join());
    } else {
      this.#end();
      this.#fail(TidewireError.from(message));
    }
    return true;
  }

  /**
   * Whether a refusal answers the pending `subscribe`. The refusal of a channel in the URL has no id, but names the channel.
   * @param {import('./messages.js').ErrorMessage} message
   */
  #isOurs({ id, details }) {
    return this.#request === null ? !id && details?.channel === this.#channel : id === this.#request;
  }

  /** @param {import('./messages.js').Unsubscribed} message */
  unsubscribed({ code, id }) {
    if (id || this.#state === 'ended') return;
    this.#end();
    void this.#call('onUnsubscribed', { code });
  }

  // --- in order -----------------------------------------------------------------------------------------------------

  /** @param {Event | Subscribed | PresenceReply | Expiry} message */
  #enqueue(message) {
    this.#queue.push({ message, at: this.#connection.now() });
    if (!this.#draining) void this.#drain();
  }

  async #drain() {
    this.#draining = true;
    for (let next = this.#queue.shift(); next; next = this.#queue.shift()) {
      const { message, at } = next;
      if ('expiry' in message) await this.#expire();
      else if (isSubscribed(message)) await this.#start(message, at);
      else if (isPresence(message)) await this.#call('onPresence', this.#presenceList.replace(message.presence ?? NOBODY));
      else if (message.offset !== undefined) await this.#durable(message);
      else if (message.rev !== undefined) await this.#latest(message, at);
      else if (message.type.startsWith('presence.')) await this.#presence(message);
      else await this.#hand(message);
    }
    this.#draining = false;
  }

  /**
   * @param {Subscribed} message
   * @param {number} at
   */
  async #start({ epoch, offset, last, events, state, recovered, presence, tail }, at) {
    const resumed = this.position !== undefined;
    await this.#call('onSubscribed', { recovered, missed: events.length, resumed, epoch, offset });
    if (tail) await this.#call('onTail', tail);
    this.#values.replace(state, at, this.#connection.now());
    await this.#call('onState', state);
    if (presence) await this.#call('onPresence', this.#presenceList.replace(presence));
    for (const event of events) {
      // Some of them may have arrived before the connection broke, and have been handled since.
      if (event.offset === undefined || this.#after(epoch) >= event.offset) continue;
      await this.#hand(event);
      if (this.#over) return;
      this.position = { epoch, offset: event.offset, id: event.id };
    }
    if (!this.#over) this.position = { epoch, offset, id: last };
  }

  /**
   * The offset handled last in an epoch.
   * @param {string} epoch
   */
  #after(epoch) {
    return this.position?.epoch === epoch ? this.position.offset : 0;
  }

  /** @param {Event} event */
  async #durable(event) {
    const { epoch, offset } = /** @type {Position} */ (this.position);
    const next = /** @type {number} */ (event.offset);
    if (next <= offset) return;
    if (next > offset + 1) {
      this.#gap();
      return;
    }
    await this.#hand(event);
    if (!this.#over) this.position = { epoch, offset: next, id: event.id };
  }

  /** @param {Event} event */
  async #presence(event) {
    const change = this.#presenceList.apply(event);
    if (change) await this.#call('onPresence', change);
  }

  /** Events are missing: ask for them, unless a newer `subscribed` that brings them is here already. */
  #gap() {
    const newer = this.#queue.findIndex(({ message }) => isSubscribed(message));
    this.#queue.splice(0, newer < 0 ? this.#queue.length : newer);
    if (newer < 0 && this.#state === 'joined') this.#rejoin();
  }

  /**
   * @param {Event} event
   * @param {number} at
   */
  async #latest(event, at) {
    if (event.removed) {
      const removed = this.#values.remove(event);
      if (removed) await this.#call('onRemoved', removed);
    } else if (this.#values.set(event, at, this.#connection.now())) await this.#hand(event);
  }

  async #expire() {
    for (const ended of this.#values.expire(this.#connection.now())) await this.#call('onRemoved', ended);
  }

  /** @param {Event} event */
  async #hand(event) {
    if (this.#connection.excluded(event)) return;
    this.#connection.heard(event);
    await this.#call('onEvent', event);
  }

  #rejoin() {
    this.#connection.send({ type: 'unsubscribe', id: this.#connection.nextId(), channel: this.#channel });
    this.join();
  }

  #end() {
    this.#state = 'ended';
    this.#queue.length = 0;
    this.#retry.stop();
    this.#values.clear();
    this.#connection.forget(this);
  }

  get #over() {
    return this.#state === 'ended';
  }

  /**
   * @param {'onEvent' | 'onTail' | 'onState' | 'onRemoved' | 'onPresence' | 'onSubscribed' | 'onUnsubscribed'} name
   * @param {any} argument
   */
  async #call(name, argument) {
    if (this.#over && name !== 'onUnsubscribed') return;
    try {
      await this.#handlers[name]?.(argument);
    } catch (cause) {
      this.#fail(new TidewireError('handler_failed', `${name} of ${this.#channel} threw: ${cause}`, { cause }));
    }
  }

  /** @param {TidewireError} error */
  #fail(error) {
    this.#connection.report(error);
    try {
      this.#handlers.onError?.(error);
    } catch (cause) {
      this.#connection.report(new TidewireError('handler_failed', `onError of ${this.#channel} threw: ${cause}`, { cause }));
    }
  }
}

/** What an application sees that may not see who is there. */
const NOBODY = { count: 0, members: [] };

/**
 * @param {Event | PresenceReply} message
 * @returns {message is PresenceReply}
 */
function isPresence(message) {
  return message.type === 'presence';
}

/**
 * @param {Event | Subscribed | PresenceReply | Expiry} message
 * @returns {message is Subscribed}
 */
function isSubscribed(message) {
  return 'type' in message && message.type === 'subscribed';
}
