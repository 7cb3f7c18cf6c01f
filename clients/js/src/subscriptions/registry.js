import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { TidewireError } from '../errors.js';
import { Subscription } from './subscription.js';

/**
 * The subscriptions of a client by channel. Handles are counted: the last one to leave unsubscribes. Subscribes wait here for
 * their turn, so that what is left meanwhile is never sent.
 */
export class Registry {
  budget = /** @type {const} */ ('subscribe');
  /** @type {Map<string, Subscription>} */
  subscriptions = new Map();
  /** @type {Map<Subscription, string | undefined>} with tokens of their own */
  #wanted = new Map();
  #grace;
  #max = Infinity;
  #core;

  /** @param {import('../core.js').Core} core */
  constructor(core) {
    this.#core = core;
    this.#grace = new Timer(core.clock);
  }

  /** How far the subscribe of a channel is that is not subscribed yet. @param {string | undefined} channel */
  joining(channel) {
    const state = this.subscriptions.get(channel ?? '')?.state;
    return state === 'waiting' || state === 'subscribing' ? state : undefined;
  }

  /** It waits for its turn to subscribe. @param {Subscription} subscription @param {string} [token]  of its own */
  want(subscription, token) {
    this.#wanted.set(subscription, token);
    this.#core.wake();
  }

  /**
   * The subscription of a channel with one more handle.
   * @param {string} channel
   * @param {import('./subscription.js').Handle} handle
   */
  enter(channel, handle) {
    const known = this.subscriptions.get(channel);
    const subscription = known ?? new Subscription(channel, this.#core);
    subscription.handles.add(handle);
    if (!known) {
      subscription.delivery.position = handle.options.since;
      this.subscriptions.set(channel, subscription);
      if (this.#core.sender) this.#start(subscription);
    }
    return subscription;
  }

  /**
   * One handle less.
   * @param {Subscription} subscription
   * @param {import('./subscription.js').Handle} handle
   */
  leave(subscription, handle) {
    subscription.handles.delete(handle);
    // A component that is shown again in this tick keeps the subscription.
    this.#grace.start(0, () => this.sweep());
  }

  /** Unsubscribes what nobody uses. Publishes in a channel go first, because many need the subscription. */
  sweep() {
    for (const subscription of [...this.subscriptions.values()]) {
      if (subscription.handles.size || this.#core.publishes.some(({ channel }) => channel === subscription.channel)) continue;
      subscription.left();
      this.unsubscribe(subscription);
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
    const message = `${channel}: the service allows ${this.#max} channels a connection`;
    queueMicrotask(() => subscription.end(new TidewireError('too_many_subscriptions', message, { channel, details: { limit: this.#max } })));
  }

  /** The connection is gone. */
  interrupted() {
    this.#wanted.clear();
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
    const [[subscription, token]] = this.#wanted;
    this.#wanted.delete(subscription);
    return JSON.stringify(subscription.request(token));
  }

  /** Handles the refusal of a subscription. Returns false if the message is something else. @param {any} message */
  settle(message) {
    return message.type === 'error' && [...this.subscriptions.values()].some((subscription) => subscription.refused(message));
  }

  /** @param {Subscription} subscription */
  unsubscribe(subscription) {
    if (!subscription.told) return;
    subscription.told = false;
    this.send(subscription.channel);
  }

  /** Sends an `unsubscribe`. @param {string} channel */
  send(channel) {
    const { sender } = this.#core;
    if (!sender) return;
    const id = this.#core.nextId();
    void this.#core.loadPublisher().then(() => this.#core.publisher?.retries.leaving(id, channel)); // it looks at the answer
    sender.send({ type: 'unsubscribe', id, channel }, true);
  }

  /** @param {Subscription} subscription */
  forget(subscription) {
    this.#wanted.delete(subscription);
    if (this.subscriptions.get(subscription.channel) === subscription) this.subscriptions.delete(subscription.channel);
  }
}
