import { Collection } from './collection.js';

/**
 * @typedef {import('../messages.js').Member} Member
 * @typedef {import('./channel-types.js').PresenceSnapshot<any>} PresenceSnapshot
 */

/** @type {readonly Member[]} */
const NOBODY = Object.freeze([]);

/**
 * The users in a channel. An `info` that was set with `update` is set again after an interruption, if the service has lost it.
 * @extends {Collection<PresenceSnapshot>}
 */
export class Presence extends Collection {
  #count = 0;
  #isListed = true;
  #members = NOBODY;
  /** @type {{info: any, user: string | undefined} | undefined} what this client has set, and as whom */
  #own;

  /** @param {import('../channel.js').Channel<any, any>} channel */
  constructor(channel) {
    super(channel);
    this.hear('presence', (change) => this.#show(change));
    this.hear('subscribed', ({ resumed }) => this.inOrder(() => this.#complete(resumed)));
    this.inOrder(() => {
      const { info, presence } = this.subscription.delivery;
      if (!info || this.isLoaded) return;
      if (presence) this.#show(presence);
      this.#complete(false);
    });
  }

  /** The users; empty if the channel has too many to list. @returns {readonly any[]} */
  get members() {
    return this.#members;
  }

  /** The number of users. */
  get count() {
    return this.#count;
  }

  /** Whether `members` lists all users. */
  get isListed() {
    return this.#isListed;
  }

  /**
   * Sets what presence shows of the user in this channel, where the contract allows it.
   * @param {any} info
   * @param {{timeout?: number, signal?: AbortSignal}} [options]
   */
  async update(info, options) {
    const own = (this.#own = { info: JSON.parse(JSON.stringify(info)), user: this.core.welcome?.user });
    try {
      return await this.channel.updatePresence(info, options);
    } catch (/** @type {any} */ error) {
      if (this.#own === own && !error?.retryable) this.#own = undefined;
      throw error;
    }
  }

  /** @protected @override @returns {PresenceSnapshot} */
  read() {
    const { members, count, isListed, status, error } = this;
    return { members, count, isListed, status, error };
  }

  /** @param {import('../subscriptions/presence-list.js').PresenceChange} change */
  #show({ count, members }) {
    this.#count = count;
    this.#isListed = members !== undefined;
    this.#members = members ? Object.freeze(members) : NOBODY;
    this.changed();
  }

  /** All that came with `subscribed` has been shown. @param {boolean} resumed */
  #complete(resumed) {
    this.connected();
    this.loaded();
    const { user } = this.core.welcome ?? {};
    const isKept = this.#members.some((member) => member.user === user && member.updated);
    if (this.#own && (this.#own.user ??= user) !== user) this.#own = undefined; // another user has connected
    if (!resumed || !this.#own || isKept) return;
    this.update(this.#own.info).catch((error) => this.core.report(error, this.subscription));
  }
}
