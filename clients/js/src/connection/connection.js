import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { deferred } from '../base/deferred.js';
import { TidewireError, texts } from '../errors.js';
import { parse } from '../messages.js';
import { upkeep } from '../parts.js';
import { announce, resolve } from './address.js';
import { Backoff } from './backoff.js';
import { isRemembered } from './blocked.js';
import { webSocketLinks } from './link.js';
import { askToken, TokenSource } from './token.js';

/**
 * @typedef {import('../messages.js').Welcome} Welcome
 * @typedef {'connecting' | 'ready' | 'reconnecting' | 'offline' | 'closed'} State
 * @typedef {object} Status  frozen; replaced only when something changes
 * @property {State} state
 * @property {string} reason  an error code, the name of a close code (`CLOSE_<code>` without `upkeep`), or one of: `new`, `connect`, `retry`, `online`, `wake`, `welcome`,
 *   `client`, `offline`, `sleep`, `blocked`, `websocket`, `stream_cut`, `unreachable`, `token_failed`, `http_<status>`, `no_welcome`, `no_pong`, `frame_too_long`
 * @property {number} [code]  of the close
 * @property {string} [help]  what to do
 * @property {number} [retryIn]  ms until the next try; absent while one is made
 * @property {number} attempt  tries since the last connection that lasted
 * @property {'websocket' | 'stream' | 'poll' | 'shared'} transport  how the client is connected, or tries to be; `shared`: over another tab
 *
 * @typedef {{code: number, reason: string, opened: boolean, verdict?: import('../upkeep/probe.js').Verdict}} End
 *   of a link. `opened`: whether there was one. `verdict`: what the service has answered to a request
 */

/** A try that is younger (ms) than this is not started again by `connect()`, `retryNow()` or a page that wakes. */
const YOUNG = 2_000;

/**
 * The way to the service: dials, greets and receives. Each step of its life has a number; what was awaited in an older step is
 * ignored, so every listener may call `connect()` and `close()`. What keeps it alive, and what follows a failure, is up to `Upkeep`.
 * Until that is loaded, or if it cannot be, the client tries again with backoff.
 */
export class Connection {
  /** @type {Status} */
  status = Object.freeze({ state: 'closed', reason: 'new', attempt: 0, transport: 'websocket' });
  step = 0;
  /** Whether `welcome` has come over the link. */
  isReady = false;
  /** Whether it ever has since `connect()`. */
  wasReady = false;
  /** @type {URL | undefined} of the last try */
  address;
  /** @type {import('../upkeep/upkeep.js').Upkeep | undefined} */
  #upkeep;
  /** @type {import('./link.js').Link | undefined} */
  #link;
  changedAt;
  #stepAt = 0;
  #pause;
  /** @type {import('../base/deferred.js').Deferred<Welcome> | undefined} */
  #connected;

  /**
   * @param {string | URL} url
   * @param {import('../client.js').Options} options
   * @param {import('../core.js').Core} core
   */
  constructor(url, options, core) {
    const { WebSocket = globalThis.WebSocket, link } = options;
    this.url = url;
    /** @type {import('./link.js').OpenLink | undefined} */
    this.openLink = link ?? (WebSocket && webSocketLinks(WebSocket));
    this.options = options;
    this.core = core;
    this.token = new TokenSource(options.token, core);
    this.backoffCap = bounded(options.backoffCap, 0, 3_600_000, 20_000);
    this.backoff = new Backoff(bounded(options.backoffBase, 0, 3_600_000, 500), this.backoffCap, core.random);
    this.#pause = new Timer(core.clock);
    this.changedAt = core.clock.now();
  }

  // --- the application's side -----------------------------------------------------------------------------------------

  /** Connects now. @returns {Promise<Welcome>} */
  connect() {
    if (this.#connected) {
      const { promise } = this.#connected;
      this.retryNow();
      return promise;
    }
    const { promise } = (this.#connected = deferred());
    this.core.reopened();
    this.backoff.attempt = 0;
    this.wasReady = false;
    void this.#loadUpkeep();
    void this.dial('connect');
    return promise;
  }

  async #loadUpkeep() {
    const loaded = upkeep.module ?? (await this.core.loadUpkeep());
    if (!this.#connected || !loaded) return;
    this.#upkeep ??= new loaded.Upkeep(this);
    this.#upkeep.start();
  }

  /** Tries now, if there is no connection and no try has just begun. */
  retryNow() {
    if (!this.isReady && !this.isYoung()) this.restart('retry');
  }

  close() {
    this.stop('client', undefined, 1000);
  }

  /** What keeps the connection alive, and knows other ways. */
  get upkeep() {
    return this.#upkeep;
  }

  // --- connecting -------------------------------------------------------------------------------------------------------

  /** @param {string} reason */
  async dial(reason) {
    const step = this.#next();
    this.#become({ reason });
    if (step !== this.step) return;
    const { anonymous, connectTimeout, contract, debug, share, ticket } = this.options;
    try {
      const address = resolve(this.url);
      if (!address) throw new TidewireError('invalid_url', 'the address is not valid; without a page it must be absolute');
      const token = this.token.used ? await this.token.get() : undefined;
      announce(address, contract, !token && ticket ? await askToken(ticket, 'ticket', this.core) : undefined);
      if (!this.#upkeep && (share || debug || isRemembered(address))) await this.#loadUpkeep(); // it opens the links
      await this.#upkeep?.loadShare();
      if (step !== this.step) return;
      this.address = address;
      if (this.#upkeep?.diverts(address)) return;
      this.#pause.start(bounded(connectTimeout, 1, 3_600_000, 15_000), () => this.drop('no_welcome'));
      this.#open(address, token || (anonymous && !ticket) ? { type: 'hello', token } : undefined);
    } catch (/** @type {any} */ error) {
      if (step !== this.step) return;
      if (error.retryable && this.isRenewable) this.complain(error, 'token_failed');
      else this.stop(error.code ?? 'internal', error);
    }
  }

  /** Whether the application can give another token or ticket. */
  get isRenewable() {
    return this.token.renewable || this.options.ticket !== undefined;
  }

  /**
   * @param {URL} address
   * @param {import('../messages.js').ClientMessage | undefined} hello
   */
  #open(address, hello) {
    const { step } = this;
    const { openLink } = this.#upkeep ?? this;
    let opened = false;
    try {
      if (!openLink) throw new TypeError('this platform has none');
      /** @type {import('./link.js').LinkEvents} */
      const events = {
        opened: () => {
          if (step !== this.step) return;
          opened = true;
          if (hello) this.#link?.send(JSON.stringify(hello));
          this.#link?.send('{"type":"ready"}'); // nothing has to be prepared here, so deliveries may start with the subscriptions
        },
        received: (frame) => {
          if (step === this.step) this.#receive(frame);
        },
        ended: (code, reason, verdict) => {
          if (step === this.step) this.#ended({ code, reason, opened, verdict });
        },
      };
      this.#link = openLink(address, events, hello);
    } catch (cause) {
      // Not a network error: the page's security policy, or a URL that no browser connects to.
      throw new TidewireError(openLink ? 'websocket_refused' : 'no_websocket', `no WebSocket to ${address.host}: ${cause}`, { cause });
    }
  }

  /** @param {unknown} frame */
  #receive(frame) {
    const { step } = this;
    this.#upkeep?.heard(frame);
    for (const message of parse(frame)) {
      if (step !== this.step) return;
      if (message.type === 'welcome') this.#welcomed(/** @type {Welcome} */ (message));
      else if (!this.#upkeep?.takes(message)) this.core.received(message);
    }
  }

  /** @param {Welcome} welcome */
  #welcomed(welcome) {
    const { core, step, isReady } = this;
    this.isReady = this.wasReady = true;
    this.#upkeep?.welcomed(welcome, isReady);
    if (isReady) {
      core.renewed(welcome);
      return;
    }
    this.#pause.stop();
    core.welcomed(/** @type {import('./link.js').Link} */ (this.#link), welcome);
    if (step !== this.step) return;
    this.#connected?.resolve(welcome);
    this.#become({ state: 'ready', reason: 'welcome' });
    if (step === this.step && this.isReady) core.emitter.emit('welcome', welcome);
  }

  // --- closing and reconnecting -------------------------------------------------------------------------------------------

  /** @param {End} end */
  #ended(end) {
    if (this.#upkeep) void this.#upkeep.ended(end);
    else {
      this.token.refused(); // perhaps
      void this.#loadUpkeep();
      const step = this.lose(end.code === 1009);
      if (step === this.step) this.wait(this.backoff.next(), end.reason || `CLOSE_${end.code}`, end.code);
    }
  }

  /** Ends the link as broken. @param {string} reason */
  drop(reason) {
    this.#ended({ code: 1006, reason, opened: true });
  }

  /** Starts a step: what was awaited in the previous one is ignored. */
  #next() {
    this.#pause.stop();
    this.#upkeep?.rest();
    this.#stepAt = this.core.clock.now();
    return ++this.step;
  }

  /** The connection is over, or the try. @returns {number} the new step */
  lose(isTooBig = false) {
    const step = this.#next();
    this.#link?.close();
    this.#link = undefined;
    this.isReady = false;
    this.core.lost(isTooBig);
    return step;
  }

  /** Whether a try has just begun. */
  isYoung() {
    return this.status.retryIn === undefined && this.core.clock.now() - this.#stepAt < YOUNG;
  }

  /** Gives up what is going on, and tries now. @param {string} reason */
  restart(reason) {
    this.lose();
    if (this.#connected) void this.dial(reason);
  }

  /**
   * @param {number} ms
   * @param {string} reason
   * @param {number} [code]
   */
  wait(ms, reason, code) {
    if (!this.#connected) return;
    this.#pause.start(ms, () => void this.dial(reason));
    this.#become({ reason, code, retryIn: ms });
  }

  /** Reports an error, and tries again later. @param {TidewireError} error @param {string} reason @param {number} [code] */
  complain(error, reason, code) {
    const { step } = this;
    this.core.report(error);
    if (step === this.step) this.wait(this.backoff.next(), reason, code);
  }

  /**
   * @param {string} reason
   * @param {TidewireError} [error]
   * @param {number} [code]
   */
  stop(reason, error, code) {
    const connected = this.#connected;
    if (!connected) return;
    this.#connected = undefined;
    this.token.forget();
    this.lose();
    this.#upkeep?.stop();
    const closed = new TidewireError('closed', `the client is closed: ${error?.message ?? reason}`, { details: { reason, code }, cause: error });
    this.core.closed(closed);
    connected.reject(closed);
    if (this.#connected) return; // a listener has connected again
    this.#become({ state: 'closed', reason, code });
    if (error) this.core.report(error);
  }

  /** @param {{state?: State, reason: string, code?: number, retryIn?: number}} change */
  #become({ state, ...change }) {
    const { attempt } = this.backoff;
    const trying = this.#upkeep?.isOffline ? 'offline' : this.wasReady || attempt > 0 ? 'reconnecting' : 'connecting';
    this.status = Object.freeze({
      state: state ?? trying,
      ...change,
      get help() {
        return texts.help?.(change.reason);
      },
      attempt,
      transport: this.#upkeep?.transport ?? 'websocket',
    });
    this.changedAt = this.core.clock.now();
    this.core.emitter.emit('state', this.status);
  }
}
