import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { remember } from '../connection/blocked.js';
import { parse } from '../messages.js';
import { bytesOf } from '../sending/sender.js';
import { claimsOf, nameOf, randomName } from './group.js';

/**
 * @typedef {import('../messages.js').ClientMessage} ClientMessage
 * @typedef {import('../upkeep/probe.js').Verdict} Verdict
 * @typedef {{leader: string, term: number, address: URL, claims: import('./group.js').Claims, name: string}} Found
 *   `term`: the leader with the greatest one counts
 *
 * @typedef {object} FollowerEvents
 * @property {(message: any) => void} post  to the leader
 * @property {(frame: string) => void} received
 * @property {(code: number, reason: string, verdict?: Verdict) => void} ended
 */

/** What a tab may have sent to the leader that the leader has not sent on. The rest waits in the tab. */
export const MAX_MESSAGES = 64;
export const MAX_BYTES = 262_144;
/** Messages on their way to the leader above which signals wait in the client, where newer ones replace them. */
const MAX_BUSY = 4;
/** Characters after which the leader is told that they were read. */
const ACK = 65_536;
/** Milliseconds after which the leader is told that this tab lives; timers of a hidden page may run once a minute. */
const ALIVE = 15_000;
/** Seconds before the end of a token at which the client renews it, and after it until the service ends the connection. */
const NOTICE = 60;
const GRACE = 10;

/**
 * The client connects again.
 * @param {string} reason
 * @param {number} [after]  ms; with backoff if absent
 * @returns {Verdict}
 */
export const again = (reason, after) => ({ action: 'reconnect', reason, message: reason, after, understood: true });

/** The link of a tab that follows. For the client, it is a connection to the service. No token is sent over it. */
export class Follower {
  #share;
  #found;
  #events;
  /** The connection as the client knows it. */
  #connection = '';
  /** @type {{text: string, bytes: number}[]} */
  #queue = [];
  /** @type {number[]} bytes of the messages that the leader has not sent on */
  #flying = [];
  #flyingBytes = 0;
  #read = 0;
  #acked = 0;
  #toldAt;
  /** @type {string | undefined} the ping without an answer */
  #ping;
  #isOver = false;
  #expiry;
  /** Seconds by which the service's clock is ahead of this tab's, which starts anywhere. @type {number | undefined} */
  #ahead;

  /**
   * @param {import('./share.js').Share} share
   * @param {Found} found
   * @param {FollowerEvents} events
   */
  constructor(share, found, events) {
    this.#share = share;
    this.#found = found;
    this.#events = events;
    this.#expiry = new Timer(share.clock);
    this.#toldAt = share.clock.now();
  }

  get leader() {
    return this.#found.leader;
  }

  /** Whether another leader has taken over. @param {{id: string, term?: unknown}} other */
  isOlderThan({ id, term }) {
    return id !== this.leader && Number(term) >= this.#found.term;
  }

  buffered() {
    return this.#queue.length + this.#flying.length > MAX_BUSY ? Infinity : 0;
  }

  /** Regularly. */
  tick() {
    if (this.#read > this.#acked || this.#share.clock.now() - this.#toldAt >= ALIVE) this.#acknowledge();
  }

  /** The client ends the link. */
  leave() {
    this.#expiry.stop();
    this.#post({ t: 'bye', isSilent: this.#ping !== undefined });
    this.#isOver = true;
  }

  /** @param {any} message */
  #post(message) {
    if (!this.#isOver) this.#events.post(message);
  }

  // --- from the client --------------------------------------------------------------------------------------------------

  /** @param {ClientMessage} message */
  take(message) {
    const { type, id } = message;
    if (type === 'hello' || type === 'ready') return;
    if (type === 'refresh') {
      void this.#refresh(message);
      return;
    }
    if (type === 'ping') this.#ping = id;
    const text = JSON.stringify(message);
    this.#queue.push({ text, bytes: bytesOf(text) });
    if (this.#queue.length === 1) queueMicrotask(() => this.#flush());
  }

  #flush() {
    const texts = [];
    for (let [next] = this.#queue; next; [next] = this.#queue) {
      const { text, bytes } = next;
      if (this.#flying.length >= MAX_MESSAGES || (this.#flyingBytes && this.#flyingBytes + bytes > MAX_BYTES)) break;
      this.#queue.shift();
      this.#flying.push(bytes);
      this.#flyingBytes += bytes;
      texts.push(text);
    }
    if (texts.length) this.#post({ t: 'send', at: this.#share.wall(), frame: `[${texts}]` });
  }

  // --- from the leader --------------------------------------------------------------------------------------------------

  /** @param {any} data */
  told({ t, frame, count, code, reason, action, after, time, isBlocked }) {
    if (t === 'data' && typeof frame === 'string') this.#receive(frame);
    else if (t === 'welcome' && typeof frame === 'string') this.#welcome(frame, time, isBlocked === true);
    else if (t === 'used') this.#used(count);
    else if (t === 'end') {
      const verdict = again(String(reason), typeof after === 'number' ? bounded(after, 0, 300_000, 0) : undefined);
      if (action === 'stop' || action === 'refresh') verdict.action = action;
      this.#events.ended(bounded(code, 1000, 4999, 1006), String(reason), action === undefined ? undefined : verdict);
    }
  }

  /** @param {string} frame */
  #receive(frame) {
    this.#read += frame.length;
    if (this.#read - this.#acked >= ACK) this.#acknowledge();
    if (this.#ping && frame.includes('"pong"')) this.#ping = undefined;
    this.#events.received(this.#share.marked(frame, this.#connection));
  }

  #acknowledge() {
    this.#acked = this.#read;
    this.#toldAt = this.#share.clock.now();
    this.#post({ t: 'read', count: this.#read });
  }

  /** @param {unknown} count */
  #used(count) {
    for (const bytes of this.#flying.splice(0, Number(count))) this.#flyingBytes -= bytes;
    this.#flush();
  }

  /**
   * @param {string} frame
   * @param {unknown} time  s of the service's clock
   * @param {boolean} isBlocked  whether the leader found WebSockets blocked
   */
  #welcome(frame, time, isBlocked) {
    const welcome = /** @type {import('../messages.js').Welcome | undefined} */ (parse(frame).find(({ type }) => type === 'welcome'));
    if (!welcome) return;
    this.#connection = welcome.connection = aliasOf(welcome.connection);
    this.#ahead = typeof time === 'number' ? time - this.#share.clock.now() / 1_000 : undefined;
    remember(this.#found.address, isBlocked); // if this tab leads one day, it need not find out
    welcome.expires_in = this.#watchExpiry();
    this.#events.received(JSON.stringify(welcome));
  }

  // --- the token of this tab, which the leader has never seen ---------------------------------------------------------------

  /** Ends the link when the token would end a connection. Returns the seconds until then. */
  #watchExpiry() {
    const { exp } = this.#found.claims;
    if (typeof exp !== 'number' || this.#ahead === undefined) return undefined;
    const { clock } = this.#share;
    const left = exp - this.#ahead - clock.now() / 1_000;
    const end = () => this.#events.ended(4401, 'the token has expired');
    const notify = () => {
      this.#expiry.start((Math.min(left, NOTICE) + GRACE) * 1_000, end);
      this.#events.received(JSON.stringify({ type: 'expiring', in: Math.round(Math.min(left, NOTICE)) }));
    };
    this.#expiry.start(Math.max(0, left - NOTICE) * 1_000, notify);
    return Math.max(0, Math.floor(left));
  }

  /** @param {ClientMessage} message */
  async #refresh({ id, token }) {
    const { address, name } = this.#found;
    const claims = claimsOf(token);
    const isSame = claims && (await nameOf(address, claims)) === name;
    if (this.#isOver) return;
    if (!isSame) {
      this.#events.ended(1006, '', again('token_changed', 0)); // to the group of this token
      return;
    }
    this.#found = { ...this.#found, claims };
    this.#watchExpiry();
    this.#events.received(JSON.stringify({ type: 'ack', id }));
  }
}

/** The id by which a tab knows the shared connection: it has the tag of the user, so a backend can name the tab in `exclude`. @param {string} connection */
export function aliasOf(connection) {
  return randomName(16) + connection.slice(16);
}
