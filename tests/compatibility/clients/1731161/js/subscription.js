import { Backoff, spread } from './backoff.js';
import { TidewireError } from './errors.js';
import { PresenceList } from './presence-list.js';

/**
 * @typedef {import('./messages.js').Event} Event
 * @typedef {import('./messages.js').Position} Position
 * @typedef {import('./messages.js').PresenceReply} PresenceReply
 * @typedef {import('./messages.js').Subscribed} Subscribed
 *
 * @typedef {object} Handlers
 *   Handlers of one channel run in order, one at a time; a returned promise is awaited. An error in a handler is
 *   reported (`onError`, and the client's `error` event), and the position still advances: one bad event cannot block
 *   the channel forever.
 * @property {(event: Event) => unknown} [onEvent]  every event, once and in order
 * @property {(state: Event[]) => unknown} [onState]  the newest event of every key; replaces the previous state
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
 * @property {(message: import('./requests.js').Request, repeat: boolean) => Promise<any>} ask
 * @property {(channel: string, type: string, data: unknown, options?: PublishOptions) => Promise<import('./messages.js').Ack>} publish
 * @property {(channel: string, type: string, data: unknown) => boolean} signal
 * @property {(subscription: Subscription) => void} joined
 * @property {(subscription: Subscription) => void} forget
 * @property {(event: Event) => void} heard
 * @property {(error: TidewireError) => void} report
 * @property {() => import('./clock.js').Timer} timer
 * @property {() => number} random
 *
 * @typedef {{id?: string, key?: string, timeout?: number}} PublishOptions
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
  /** @type {(Event | Subscribed | PresenceReply)[]} */
  #queue = [];
  #draining = false;
  /** @type {Map<string, number>} newest rev by type and key */
  #revs = new Map();
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
    this.#backoff = new Backoff(500, 20_000, connection.random);
    this.position = handlers.since;
  }

  get channel() {
    return this.#channel;
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
    this.#connection.send({ type: 'subscribe', id: this.#request, channel: this.#channel, since: this.position });
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

  /** @param {Event | Subscribed | PresenceReply} message */
  #enqueue(message) {
    this.#queue.push(message);
    if (!this.#draining) void this.#drain();
  }

  async #drain() {
    this.#draining = true;
    for (let message = this.#queue.shift(); message; message = this.#queue.shift()) {
      if (isSubscribed(message)) await this.#start(message);
      else if (isPresence(message)) await this.#call('onPresence', this.#presenceList.replace(message.presence ?? NOBODY));
      else if (message.offset !== undefined) await this.#durable(message);
      else if (message.rev !== undefined) await this.#latest(message);
      else if (message.type.startsWith('presence.')) await this.#call('onPresence', this.#presenceList.apply(message));
      else await this.#hand(message);
    }
    this.#draining = false;
  }

  /** @param {Subscribed} message */
  async #start({ epoch, offset, last, events, state, recovered, presence }) {
    const resumed = this.position !== undefined;
    await this.#call('onSubscribed', { recovered, missed: events.length, resumed, epoch, offset });
    this.#revs = new Map(state.map((event) => [revKey(event), event.rev ?? 0]));
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

  /** Events are missing: ask for them, unless a newer `subscribed` that brings them is here already. */
  #gap() {
    const newer = this.#queue.findIndex(isSubscribed);
    this.#queue.splice(0, newer < 0 ? this.#queue.length : newer);
    if (newer < 0 && this.#state === 'joined') this.#rejoin();
  }

  /** @param {Event} event */
  async #latest(event) {
    const rev = /** @type {number} */ (event.rev);
    const key = revKey(event);
    if (rev <= (this.#revs.get(key) ?? -1)) return;
    this.#revs.set(key, rev);
    await this.#hand(event);
  }

  /** @param {Event} event */
  async #hand(event) {
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
    this.#connection.forget(this);
  }

  get #over() {
    return this.#state === 'ended';
  }

  /**
   * @param {'onEvent' | 'onState' | 'onPresence' | 'onSubscribed' | 'onUnsubscribed'} name
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
 * @param {Event | Subscribed | PresenceReply} message
 * @returns {message is Subscribed}
 */
function isSubscribed(message) {
  return message.type === 'subscribed';
}

/** @param {Event} event */
function revKey({ type, key }) {
  return `${type}\n${key}`;
}
