/** Users of one channel; a service lists fewer. */
const MAX_MEMBERS = 100_000;

/**
 * The users in a channel, updated from the snapshot and the `presence.*` events.
 * @typedef {import('../messages.js').Member} Member
 * @typedef {{count: number, members?: Member[], joined?: Member, left?: Member}} PresenceChange
 *   `joined` (also for a present user with new `info`) and `left` are what changed; both are absent for a snapshot. The snapshot is
 *   empty if the token lost the right to presence.
 */
export class PresenceList {
  /** @type {Map<string, Member> | undefined} */
  #members;
  #count = 0;

  /** @param {import('../messages.js').Presence} presence */
  replace({ count, members }) {
    this.#count = count;
    this.#members = Array.isArray(members) ? new Map(members.map((member) => [member?.user, member])) : undefined;
    return this.view;
  }

  /**
   * @param {import('../messages.js').Event} event  `presence.joined`, `.left` or `.count`
   * @returns {PresenceChange | undefined}  undefined for a type that this client does not know
   */
  apply({ type, data }) {
    if (type === 'presence.count') return this.replace(data ?? {});
    if (typeof data?.user !== 'string') return undefined;
    if (type === 'presence.joined') {
      if (Number(this.#members?.size) >= MAX_MEMBERS) return undefined;
      const joined = { ...this.#members?.get(data.user), user: data.user, info: data.info, updated: data.updated };
      if (this.#members) this.#members.set(data.user, joined);
      else if (!data.updated) this.#count += 1; // else the user was there before
      return { ...this.view, joined };
    }
    if (type !== 'presence.left') return undefined;
    const left = this.#members?.get(data.user) ?? { user: data.user };
    if (this.#members) this.#members.delete(data.user);
    else this.#count = Math.max(0, this.#count - 1);
    return { ...this.view, left };
  }

  /** @returns {PresenceChange} */
  get view() {
    const members = this.#members && [...this.#members.values()];
    return members ? { count: members.length, members } : { count: this.#count };
  }
}
