import { Timer, within } from '../base/clock.js';
import { resolve } from '../connection/address.js';
import { remember } from '../connection/blocked.js';
import { TidewireError } from '../errors.js';
import { probe } from './probe.js';

/**
 * @typedef {import('./probe.js').Verdict} Verdict
 */

/** Milliseconds for the plain GET, and for the fallback to arrive. */
const TIMEOUT = 8_000;
/** Failed tries after which an address is reported that nothing answers. Once the client was ready, the state says enough. */
const SILENT_TRIES = 3;
/** Milliseconds that a WebSocket has at least, once the service has answered that it would work. */
const LAST_CHANCE = 500;
/** Tries that fail while the service answers, until WebSockets count as blocked. */
const BLOCKED_TRIES = 2;

/** What one connection does when its tries fail: it asks the service with a plain GET, and uses streams where WebSockets are blocked. */
export class Rescue {
  /** Whether the fallback is used, because WebSockets are blocked. */
  isUsed = false;
  #connection;
  #byCookie;
  #blockedTries = 0;
  /** The last failure that was reported; each one is reported once. */
  #reported = '';
  /** @type {import('../fallback/fallback.js').Fallback | undefined} */
  #fallback;
  /** @type {AbortController | undefined} */
  #probing;
  #timer;

  /** @param {import('../connection/connection.js').Connection} connection */
  constructor(connection) {
    this.#connection = connection;
    const { token, ticket, anonymous } = connection.options;
    this.#byCookie = token === undefined && !ticket && !anonymous;
    this.#timer = new Timer(connection.core.clock);
  }

  /** @type {typeof globalThis.fetch} */
  #fetch = (...call) => (this.#connection.options.fetch ?? globalThis.fetch)(...call);

  /** Gives up what is going on. */
  cancel() {
    this.#timer.stop();
    this.#probing?.abort();
  }

  /** There is a `welcome`. */
  welcomed() {
    this.cancel();
    this.#reported = '';
    if (!this.isUsed) this.#blockedTries = 0;
  }

  /** What the service answers to a plain GET. @param {URL} address */
  ask(address) {
    const probing = (this.#probing = new AbortController());
    this.#timer.start(TIMEOUT, () => probing.abort());
    return probe(address, this.#fetch, probing.signal, this.#byCookie).finally(() => this.#probing === probing && this.#timer.stop());
  }

  /** Whether a try that failed was the last one over a WebSocket. @param {Verdict} verdict */
  isBlocked({ reason }) {
    return reason === 'upgrade_required' && (this.#blockedTries += 1) >= BLOCKED_TRIES;
  }

  /**
   * A try takes long: are WebSockets blocked, or is the network slow? Calls back if the service has answered, and the try had
   * as much time again.
   * @param {URL} address
   * @param {() => void} blocked
   */
  async doubt(address, blocked) {
    const { clock } = this.#connection.core;
    const askedAt = clock.now();
    const { reason } = await this.ask(address);
    if (reason === 'upgrade_required') this.#timer.start(Math.max(LAST_CHANCE, clock.now() - askedAt), blocked);
  }

  /** Reports, once for each outage, that something other than the service answers, or nothing does. @param {Verdict} verdict @param {number} tries  that failed; 0 once the client was ready */
  warn({ reason, message, understood }, tries) {
    const isSilent = reason === 'unreachable';
    if (understood || this.#reported === reason || (isSilent && tries < SILENT_TRIES)) return;
    this.#reported = reason;
    const code = isSilent ? reason : 'unexpected_response';
    this.#connection.core.report(new TidewireError(code, `${message}; trying again`, { retryable: true, details: { reason } }));
  }

  /** Loads the fallback; rejects if it does not arrive. @param {URL} address */
  async load(address) {
    if (this.#fallback) return;
    const { core, openLink } = this.#connection;
    const openWebSocket = /** @type {import('../connection/link.js').OpenLink} */ (openLink);
    try {
      const { Fallback } = await within(core.clock, TIMEOUT, import('../fallback/fallback.js'), () => new Error('it does not arrive'));
      this.#fallback = new Fallback({ core, fetch: this.#fetch, byCookie: this.#byCookie, openWebSocket, back: this.#back });
    } catch (cause) {
      remember(address, false); // WebSockets are tried again
      throw new TidewireError('fallback_failed', `WebSockets are blocked, and the fallback was not loaded: ${cause}`, { cause, retryable: true });
    }
  }

  /** WebSockets work again. One failure shows that they do not. */
  #back = () => {
    const address = resolve(this.#connection.url);
    if (address) remember(address, false);
    this.isUsed = false;
    this.#blockedTries = BLOCKED_TRIES - 1;
    this.#connection.restart('websocket');
  };

  /** The fallback, while it is used. */
  get fallback() {
    return this.isUsed ? this.#fallback : undefined;
  }

  /** The client is closed. */
  stop() {
    this.#fallback?.stop();
  }
}
