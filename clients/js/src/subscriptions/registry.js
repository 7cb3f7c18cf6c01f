import { bounded, toldWait } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { TidewireError } from '../errors.js';
import { Subscription } from './subscription.js';

/**
 * @typedef {object} Owner  what a subscription uses of its client
 * @property {import('../base/clock.js').Clock} clock
 * @property {() => number} random
 * @property {number} maxQueue
 * @property {() => unknown} link  the open connection; another one after each reconnect
 * @property {() => string} nextId
 * @property {(feature: string) => boolean} offers  whether the service of the open connection has a feature
 * @property {(channel: string, token: string) => Promise<unknown>} refresh
 * @property {(event: import('../messages.js').Event) => boolean} excluded
 * @property {(event: import('../messages.js').Event) => void} heard
 * @property {(error: TidewireError, of?: Subscription) => void} report
 * @property {(subscription: Subscription) => void} wants  it waits for its turn to subscribe
 * @property {(subscription: Subscription) => void} joined
 * @property {(subscription: Subscription) => void} unsubscribe
 * @property {(subscription: Subscription) => void} ended
 *
 * @typedef {object} Hooks  what the registry uses of its client
 * @property {import('../base/clock.js').Clock} clock
 * @property {() => number} random
 * @property {number} maxQueue
 * @property {() => import('../sending/sender.js').Sender | undefined} sender  of the open connection
 * @property {() => string} nextId
 * @property {(feature: string) => boolean} offers
 * @property {(message: import('../messages.js').ClientMessage) => Promise<unknown>} ask
 * @property {(event: import('../messages.js').Event) => boolean} excluded
 * @property {(event: import('../messages.js').Event) => void} heard
 * @property {(error: TidewireError, of?: Subscription) => void} report
 * @property {(channel: string) => void} joined
 * @property {(channel: string) => boolean} publishing  whether publishes of the channel have no answer yet
 */

/**
 * The subscriptions of a client by channel. Handles are counted: the last one to leave unsubscribes. Subscribes wait here for
 * their turn, so that what is left meanwhile is never sent.
 */
export class Registry {
  cost = /** @type {const} */ ('subscribe');
  /** @type {Map<string, Subscription>} */
  subscriptions = new Map();
  /** @type {Set<Subscription>} */
  #wanted = new Set();
  /** @type {Map<string, string>} channels by the id of a pending `unsubscribe` */
  #leaving = new Map();
  /** @type {Set<Subscription>} without a handle, until the grace is over */
  #orphans = new Set();
  #grace;
  #max = Infinity;
  #hooks;
  /** @type {Owner} */
  #owner;

  /** @param {Hooks} hooks */
  constructor(hooks) {
    const { clock, random, maxQueue, sender, nextId, offers, ask, excluded, heard, report } = hooks;
    this.#hooks = hooks;
    this.#grace = new Timer(clock);
    this.#owner = {
      clock,
      random,
      maxQueue,
      link: sender,
      nextId,
      offers,
      refresh: (channel, token) => ask({ type: 'refresh', channel, token }),
      excluded,
      heard,
      report,
      wants: (subscription) => {
        this.#wanted.add(subscription);
        sender()?.wake();
      },
      joined: ({ channel }) => hooks.joined(channel),
      unsubscribe: (subscription) => this.#unsubscribe(subscription),
      ended: (subscription) => this.#forget(subscription),
    };
  }

  /**
   * The subscription of a channel with one more handle.
   * @param {string} channel
   * @param {import('./subscription.js').Handle} handle
   */
  enter(channel, handle) {
    let subscription = this.subscriptions.get(channel);
    if (subscription) {
      subscription.handles.add(handle);
      this.#orphans.delete(subscription);
      return subscription;
    }
    subscription = new Subscription(channel, this.#owner);
    subscription.handles.add(handle);
    subscription.delivery.position = handle.options.since;
    this.subscriptions.set(channel, subscription);
    if (this.#hooks.sender()) this.#start(subscription);
    return subscription;
  }

  /**
   * One handle less.
   * @param {Subscription} subscription
   * @param {import('./subscription.js').Handle} handle
   */
  leave(subscription, handle) {
    subscription.handles.delete(handle);
    if (subscription.handles.size || subscription.state === 'ended') return;
    this.#orphans.add(subscription);
    // A component that is shown again in this tick keeps the subscription.
    this.#grace.start(0, () => this.sweep());
  }

  /** Unsubscribes what nobody uses. Publishes in a channel go first, because many need the subscription. */
  sweep() {
    for (const subscription of [...this.#orphans]) {
      if (this.#hooks.publishing(subscription.channel)) continue;
      this.#orphans.delete(subscription);
      subscription.left();
      this.#unsubscribe(subscription);
    }
  }

  /** @param {import('../messages.js').Welcome} welcome */
  welcomed({ limits }) {
    this.#max = bounded(limits.subscriptions, 1, Infinity, Infinity);
    [...this.subscriptions.values()].forEach((subscription, index) => this.#start(subscription, index));
  }

  /**
   * @param {Subscription} subscription
   * @param {number} before  the number of other subscriptions
   */
  #start(subscription, before = this.subscriptions.size - 1) {
    if (before < this.#max) {
      subscription.join();
      return;
    }
    const { channel } = subscription;
    const message = `${channel}: not subscribed: the connection has ${this.#max} channels, as many as the service allows`;
    queueMicrotask(() => subscription.end(new TidewireError('too_many_subscriptions', message, { channel, details: { limit: this.#max } })));
  }

  /** The connection is gone. */
  interrupted() {
    this.#wanted.clear();
    this.#leaving.clear();
    for (const subscription of this.subscriptions.values()) subscription.interrupted();
  }

  /** @param {TidewireError} error */
  closed(error) {
    for (const subscription of [...this.subscriptions.values()]) subscription.closed(error);
  }

  reopened() {
    for (const subscription of this.subscriptions.values()) subscription.reopened();
  }

  waiting() {
    return this.#wanted.size > 0;
  }

  next() {
    const [subscription] = this.#wanted;
    this.#wanted.delete(subscription);
    return JSON.stringify(subscription.request());
  }

  /**
   * Handles the answer to an `unsubscribe`, and a refusal of a subscription. Returns false if the message is something else.
   * @param {import('../messages.js').Unsubscribed | import('../messages.js').ErrorMessage} message
   */
  settle(message) {
    const { id } = message;
    const channel = this.#leaving.get(id ?? '');
    if (channel !== undefined) {
      this.#leaving.delete(id ?? '');
      // A refusal that passes is sent again, unless there is a newer subscription, which it would end.
      if (message.type === 'error' && message.retryable) {
        const again = () => !this.subscriptions.has(channel) && this.#send(channel);
        new Timer(this.#owner.clock).start(toldWait(message.details?.retry_after) ?? 1_000, again);
      }
      return true;
    }
    if (message.type !== 'error') return false;
    for (const subscription of [...this.subscriptions.values()]) if (subscription.refused(message)) return true;
    return false;
  }

  /** @param {Subscription} subscription */
  #unsubscribe(subscription) {
    if (!subscription.told) return;
    subscription.told = false;
    this.#send(subscription.channel);
  }

  /** @param {string} channel */
  #send(channel) {
    const sender = this.#hooks.sender();
    if (!sender) return;
    const id = this.#hooks.nextId();
    this.#leaving.set(id, channel);
    sender.send({ type: 'unsubscribe', id, channel }, 'free');
  }

  /** @param {Subscription} subscription */
  #forget(subscription) {
    this.#wanted.delete(subscription);
    if (this.subscriptions.get(subscription.channel) === subscription) this.subscriptions.delete(subscription.channel);
  }
}
