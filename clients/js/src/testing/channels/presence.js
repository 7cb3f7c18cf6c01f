/**
 * @typedef {{connections: Set<string>, info?: any, updated?: boolean}} Present
 * @typedef {import('../../messages.js').Presence} View
 */

/** The users of one channel. A user is announced once, and leaves a while after the last connection. */
export class Presence {
  /** @type {Map<string, Present>} */
  #users = new Map();
  /** @type {Map<string, any>} timers by user and connection */
  #leaving = new Map();
  #clock;
  #debounce;
  #announce;

  /**
   * @param {import('../../base/clock.js').Clock} clock
   * @param {number} debounce  ms
   * @param {(type: string, user: string, data: any) => void} announce
   */
  constructor(clock, debounce, announce) {
    this.#clock = clock;
    this.#debounce = debounce;
    this.#announce = announce;
  }

  /** @returns {View} */
  get view() {
    const members = [...this.#users].map(([user, { connections, info, updated }]) => ({ user, connections: connections.size, info, updated }));
    return { count: members.length, members: members.sort((a, b) => (a.user < b.user ? -1 : 1)) };
  }

  /** Adds a connection, or brings the info of its new token. @param {string} user @param {string} connection @param {any} info */
  join(user, connection, info) {
    this.#clock.clearTimeout(this.#leaving.get(`${user}\n${connection}`));
    this.#leaving.delete(`${user}\n${connection}`);
    const known = this.#users.get(user);
    known?.connections.add(connection);
    if (!known) this.#users.set(user, { connections: new Set([connection]), info });
    if (known && (info === undefined || known.updated || JSON.stringify(info) === JSON.stringify(known.info))) return;
    if (known) known.info = info;
    this.#announce('presence.joined', user, { user, info });
  }

  /** @param {string} user @param {any} info */
  update(user, info) {
    const known = this.#users.get(user);
    if (!known || (known.updated && JSON.stringify(known.info) === JSON.stringify(info))) return;
    Object.assign(known, { info, updated: true });
    this.#announce('presence.joined', user, { user, info, updated: true });
  }

  /** @param {string} user @param {string} connection */
  leave(user, connection) {
    const name = `${user}\n${connection}`;
    this.#leaving.set(name, this.#clock.setTimeout(() => this.#gone(name, user, connection), this.#debounce));
  }

  /** Announces nothing more. */
  close() {
    for (const timer of this.#leaving.values()) this.#clock.clearTimeout(timer);
  }

  /** @param {string} name @param {string} user @param {string} connection */
  #gone(name, user, connection) {
    this.#leaving.delete(name);
    const known = this.#users.get(user);
    known?.connections.delete(connection);
    if (!known || known.connections.size) return;
    this.#users.delete(user);
    this.#announce('presence.left', user, { user });
  }
}
