// One connection for all tabs of one user. The client loads this module for the option `share`.
//
// One tab holds a Web Lock, and leads: it has the connection. The others follow: for their clients, a link to the leader takes the place
// of a WebSocket (`link.js`). The leader (`leader.js`) answers their messages as the service would. When it is gone, another tab gets the
// lock; when it hangs, another tab steals the lock. Then all tabs connect again, and resume at their own positions.

import { SharedLink } from './link.js';

/**
 * @typedef {import('../connection/link.js').OpenLink} OpenLink
 *
 * @typedef {object} ShareOptions  for tests: what a page has as globals
 * @property {LockManager} [locks]
 * @property {typeof globalThis.BroadcastChannel} [BroadcastChannel]
 * @property {() => number} [wall]  ms, the same for all tabs
 *
 * @typedef {{name: string, release: () => void, isLost: boolean, lost: () => void}} Lock  of a leader
 */

/** Ids of publishes that a tab still recognises as its own. */
const MAX_PUBLISHED = 1_000;
/** Milliseconds for which a tab keeps the lock that it got as a follower, until its client connects again. */
const KEEP = 1_000;

/** What the links of one client share. */
export class Share {
  core;
  clock;
  locks;
  BroadcastChannel;
  wall;
  network;
  /** Whether WebSockets are blocked for this tab. */
  isBlocked = false;
  /** @type {SharedLink | undefined} */
  #link;
  /** @type {Lock | undefined} */
  #kept;
  /** @type {Set<string>} ids, the newest last */
  #published = new Set();

  /**
   * @param {import('../core.js').Core} core
   * @param {import('../client.js').Options} options
   */
  constructor(core, { share, network }) {
    const given = typeof share === 'object' ? share : {};
    this.core = core;
    this.clock = core.clock;
    this.locks = given.locks ?? globalThis.navigator?.locks;
    this.BroadcastChannel = given.BroadcastChannel ?? globalThis.BroadcastChannel;
    this.wall = given.wall ?? Date.now;
    this.network = network ?? (typeof globalThis.addEventListener === 'function' ? globalThis : undefined);
  }

  /** Opens links that share one of these. @param {OpenLink} open @param {boolean} isBlocked @returns {OpenLink} */
  over(open, isBlocked) {
    this.isBlocked = isBlocked;
    return (address, events, hello) => {
      this.#link = new SharedLink(this, open, address, events, hello);
      return this.#link;
    };
  }

  /** Why this tab can share no connection now; undefined if it can. @param {unknown} claims */
  obstacle(claims) {
    if (!this.locks || !this.BroadcastChannel || !globalThis.crypto?.subtle) return 'this page has no Web Locks, BroadcastChannel or secure context';
    if (!claims) return 'only a JWT with `sub` as `token` tells whose connection it is';
    if ([...this.core.registry.subscriptions.values()].some(({ tokenFunction }) => tokenFunction)) return 'a channel has a token of its own';
    return undefined;
  }

  /** Whether another tab has the connection, or may have it. */
  get follows() {
    return this.#link?.follows === true;
  }

  explain() {
    return this.#link?.explain() ?? 'not connected yet';
  }

  /** Keeps a lock for the next link. @param {Lock} lock */
  keep(lock) {
    this.#kept = lock;
    const late = () => {
      if (this.#kept === lock) this.kept('');
    };
    this.core.clock.setTimeout(late, KEEP);
  }

  /** The kept lock, if it has this name; else it is released. @param {string} name */
  kept(name) {
    const lock = this.#kept;
    this.#kept = undefined;
    if (lock?.name === name && !lock.isLost) return lock;
    lock?.release();
    return undefined;
  }

  /** This tab publishes an event with this id. @param {string} id */
  publishes(id) {
    this.#published.delete(id);
    this.#published.add(id);
    if (this.#published.size > MAX_PUBLISHED) this.#published.delete(/** @type {string} */ (this.#published.values().next().value));
  }

  /**
   * Marks the events that this tab has published, if their sender does not want them back. The service names the shared connection, which
   * is that of the other tabs, too.
   * @param {string} frame
   * @param {string} connection  that of the tab
   */
  marked(frame, connection) {
    if (!frame.includes('"exclude"')) return frame;
    const mark = (/** @type {any} */ message) => {
      if (message.exclude !== undefined && this.#published.has(message.id)) message.exclude = connection;
      for (const list of [message.events, message.tail]) list?.forEach?.(mark);
      return message;
    };
    const content = JSON.parse(frame);
    return JSON.stringify(Array.isArray(content) ? content.map(mark) : mark(content));
  }
}
