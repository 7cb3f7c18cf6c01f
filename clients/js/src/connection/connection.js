import { bounded, MAX_TOLD } from '../base/bounds.js';
import { Timer, within } from '../base/clock.js';
import { deferred } from '../base/deferred.js';
import { CLOSE_ACTIONS } from '../close-actions.js';
import { TidewireError, helpFor } from '../errors.js';
import { parse } from '../messages.js';
import { Backoff, spread } from './backoff.js';
import { isRemembered, remember } from './blocked.js';
import { announce, plain } from './features.js';
import { Heartbeat } from './heartbeat.js';
import { probe } from './probe.js';
import { askToken, TokenSource } from './token.js';
import { watch } from './wake.js';

/**
 * @typedef {import('../messages.js').Welcome} Welcome
 * @typedef {'connecting' | 'ready' | 'reconnecting' | 'offline' | 'closed'} State
 * @typedef {object} Status  frozen; replaced only when something changes
 * @property {State} state
 * @property {string} reason  an error code, the name of a close code, or one of: `new`, `connect`, `retry`, `online`, `wake`, `welcome`,
 *   `client`, `offline`, `sleep`, `blocked`, `websocket`, `stream_cut`, `unreachable`, `token_failed`, `http_<status>`, `no_welcome`, `no_pong`
 * @property {number} [code]  of the close
 * @property {string} [help]  what to do
 * @property {number} [retryIn]  ms until the next try; absent while one is made
 * @property {number} attempt  tries since the last connection that lasted
 * @property {'websocket' | 'stream' | 'poll'} transport  how the client is connected, or tries to be
 *
 * @typedef {object} ConnectionEvents
 * @property {(status: Status) => void} changed
 * @property {(line: string) => void} log
 * @property {((context: import('../fallback/fallback.js').Context) => Promise<import('../fallback/fallback.js').Fallback>) | undefined} loadFallback
 */

/** After a connection that lasted this long (ms), the next failure starts with the shortest backoff. */
const STABLE = 10_000;
/** Milliseconds in which a link must answer after a pause of the page. */
const WAKE_TIMEOUT = 1_800;
/** A try that is younger (ms) than this is not started again by `connect()`, `retryNow()` or a page that wakes. */
const YOUNG = 2_000;
/** Milliseconds for the plain GET. */
const PROBE_TIMEOUT = 8_000;
/** Failed tries after which an address is reported that nothing answers. Once the client was ready, the state says enough. */
const SILENT_TRIES = 3;
/** Milliseconds without `welcome` after which the client asks whether WebSockets are blocked. */
const SLOW = 1_500;
/** Milliseconds that a WebSocket has at least, once the service has answered that. */
const LAST_CHANCE = 500;
/** Tries that fail while the service answers, until WebSockets count as blocked. */
const BLOCKED_TRIES = 2;
/** Closes before `welcome` that may come from a proxy. */
const PROXY_CODES = [1000, 1002, 1005, 1006];

/**
 * The state of the connection. Each step of its life has a number; what was awaited in an older step is ignored, so every
 * listener may call `connect()` and `close()`.
 */
export class Connection {
  /** @type {Status} */
  status = Object.freeze({ state: 'closed', reason: 'new', attempt: 0, transport: 'websocket' });
  #resolve;
  #openLink;
  #options;
  #core;
  #events;
  #token;
  #cap;
  #backoff;
  #pongTimeout;
  #pause;
  /** @type {import('./link.js').Link | undefined} */
  #link;
  /** @type {Heartbeat | undefined} of the welcomed link */
  #heartbeat;
  #step = 0;
  #refreshing = false;
  #stepAt = 0;
  #welcomedAt = Infinity;
  #wasReady = false;
  #offline = false;
  /** @type {number | undefined} ms, from `reconnect` */
  #told;
  #doubt;
  /** @type {import('../fallback/fallback.js').Fallback | undefined} */
  #fallback;
  /** Whether the fallback is used, because WebSockets are blocked. */
  #isBlocked = false;
  #blockedTries = 0;
  /** @type {AbortController | undefined} */
  #probing;
  /** @type {(() => void) | undefined} */
  #unwatch;
  /** The last failure that was reported; each one is reported once. */
  #reported = '';
  /** @type {import('../base/deferred.js').Deferred<Welcome> | undefined} */
  #connected;

  /**
   * @param {() => URL | undefined} resolve  the address
   * @param {import('./link.js').OpenLink | undefined} openLink
   * @param {import('../client.js').Options} options
   * @param {import('../core.js').Core} core
   * @param {ConnectionEvents} events
   */
  constructor(resolve, openLink, options, core, events) {
    this.#resolve = resolve;
    this.#openLink = openLink;
    this.#options = options;
    this.#core = core;
    this.#events = events;
    this.#token = new TokenSource(options.token, core.clock);
    this.#cap = bounded(options.backoffCap, 0, 3_600_000, 20_000);
    this.#backoff = new Backoff(bounded(options.backoffBase, 0, 3_600_000, 500), this.#cap, core.random);
    this.#pongTimeout = bounded(options.pongTimeout, 1, 3_600_000, 10_000);
    this.#pause = new Timer(core.clock);
    this.#doubt = new Timer(core.clock);
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
    const { appState, network = typeof globalThis.addEventListener === 'function' ? globalThis : null } = this.#options;
    this.#unwatch = watch(network, appState, { online: this.#online, offline: this.#gone, wake: this.#wake, sleep: this.#sleep });
    this.#backoff.reset();
    this.#wasReady = this.#offline = false;
    void this.#dial('connect');
    return promise;
  }

  /** Tries now, if there is no connection and no try has just begun. */
  retryNow() {
    if (this.#connected && !this.#heartbeat && !this.#isYoung()) this.#restart('retry');
  }

  close() {
    this.#dropLink();
    this.#stop('client', undefined, 1000);
  }

  // --- connecting -------------------------------------------------------------------------------------------------------

  /** @param {string} reason */
  async #dial(reason) {
    const step = this.#next();
    this.#told = undefined;
    this.#become({ reason });
    if (step !== this.#step) return;
    let address;
    let hello;
    try {
      address = this.#resolve();
      if (!address) throw new TidewireError('invalid_url', 'the address is not valid; without a page it must be absolute');
      address.searchParams.delete('channels'); // they have been subscribed to
      announce(address, this.#options.contract);
      hello = await this.#credentials(address);
    } catch (error) {
      if (step === this.#step) this.#failed(error);
      return;
    }
    if (step !== this.#step) return;
    plain(address);
    if (this.#mayFallBack && isRemembered(address)) {
      void this.#fallBack(address);
      return;
    }
    if (this.#mayFallBack) this.#doubt.start(SLOW, () => void this.#ask(step, address));
    this.#pause.start(bounded(this.#options.connectTimeout, 1, 3_600_000, 15_000), () => this.#drop('no_welcome', address));
    try {
      this.#link = this.#open(address, hello, step);
    } catch (cause) {
      // Not a network error: the page's security policy, or a URL that no browser connects to.
      const code = this.#openLink ? 'websocket_refused' : 'no_websocket';
      this.#stop(code, new TidewireError(code, `no WebSocket to ${address.host}: ${cause}`, { cause }));
    }
  }

  /**
   * Adds a ticket to the URL, or returns the `hello` to send.
   * @param {URL} address
   */
  async #credentials(address) {
    const { ticket, anonymous } = this.#options;
    if (this.#token.used) return { type: 'hello', token: await this.#token.get() };
    if (ticket) address.searchParams.set('ticket', await askToken(ticket, 'ticket', this.#core.clock));
    else if (anonymous) return { type: 'hello' };
    return undefined;
  }

  /**
   * @param {URL} address
   * @param {import('../messages.js').ClientMessage | undefined} hello
   * @param {number} step
   */
  #open(address, hello, step) {
    const openLink = this.#isBlocked ? this.#fallback?.open : this.#openLink;
    if (!openLink) throw new TypeError('this platform has none');
    let opened = false;
    const link = openLink(address, {
      opened: () => {
        if (step !== this.#step) return;
        opened = true;
        // Nothing has to be prepared here, so deliveries may start with the subscriptions.
        for (const message of hello ? [hello, READY] : [READY]) this.#send(link, JSON.stringify(message));
      },
      received: (frame) => {
        if (step === this.#step) this.#receive(link, frame);
      },
      ended: (code, reason, verdict) => {
        if (step === this.#step) void this.#ended({ code, reason, opened, verdict }, address);
      },
    });
    return link;
  }

  /** @param {import('./link.js').Link} link @param {string} frame */
  #send(link, frame) {
    this.#events.log(`→ ${frame}`);
    link.send(frame);
  }

  /** @param {import('./link.js').Link} link @param {unknown} frame */
  #receive(link, frame) {
    const step = this.#step;
    this.#events.log(`← ${frame}`);
    this.#heartbeat?.heard();
    for (const message of parse(frame)) {
      if (step !== this.#step) return;
      if (message.type === 'welcome') this.#start(link, /** @type {Welcome} */ (message));
      else if (message.type === 'reconnect') {
        this.#told = bounded(/** @type {import('../messages.js').Reconnect} */ (message).after, 0, MAX_TOLD / 1000, 0) * 1000;
      } else if (message.type === 'expiring' && !('channel' in message)) void this.#refresh();
      else this.#core.received(message);
    }
  }

  /** @param {import('./link.js').Link} link @param {Welcome} welcome */
  #start(link, welcome) {
    const { clock } = this.#core;
    this.#token.expiresIn(welcome.expires_in);
    if (this.#heartbeat) {
      this.#core.renewed(welcome);
      return;
    }
    const step = this.#step;
    this.#pause.stop();
    this.#doubt.stop();
    if (!this.#isBlocked) this.#blockedTries = 0;
    this.#welcomedAt = clock.now();
    this.#offline = false; // even if the browser reports offline
    this.#heartbeat = new Heartbeat(clock, welcome.heartbeat, this.#pongTimeout, () => this.#core.sender?.send({ type: 'ping', id: this.#core.nextId() }), () => this.#drop('no_pong'));
    this.#wasReady = true;
    this.#reported = '';
    this.#core.welcomed({ send: (frame) => this.#send(link, frame), buffered: () => link.buffered(), close: () => link.close() }, welcome);
    if (step !== this.#step) return;
    this.#connected?.resolve(welcome);
    this.#become({ state: 'ready', reason: 'welcome' });
  }

  // --- closing and reconnecting -------------------------------------------------------------------------------------------

  /** Drops the link as broken. @param {string} reason @param {URL} [address] */
  #drop(reason, address) {
    this.#dropLink();
    void this.#ended({ code: 1006, reason, opened: true }, address);
  }

  #dropLink() {
    const link = this.#link;
    this.#link = undefined;
    link?.close();
  }

  /** The connection is over, or the try. @returns {number} the new step */
  #lose(tooBig = false) {
    const step = this.#next();
    this.#dropLink();
    this.#heartbeat?.stop();
    this.#heartbeat = undefined;
    if (this.#core.clock.now() - this.#welcomedAt >= STABLE) this.#backoff.reset();
    this.#welcomedAt = Infinity;
    this.#core.lost(tooBig);
    return step;
  }

  /**
   * @param {{code: number, reason: string, opened: boolean, verdict?: import('./probe.js').Verdict}} end
   * @param {URL} [address]
   */
  async #ended({ code, reason, opened, verdict }, address) {
    const told = this.#told;
    // After a time without `welcome`, it has asked already.
    const isDoubtful = this.#mayFallBack && !this.#heartbeat && PROXY_CODES.includes(code) && reason !== 'no_welcome' && address !== undefined;
    const step = this.#lose(code === 1009);
    if (step !== this.#step) return;
    if (this.#offline) {
      this.#wait(this.#cap, 'offline');
      return;
    }
    if (verdict) {
      this.#conclude(verdict);
      return;
    }
    const isRefused = !opened && code === 1006;
    if (address && (isRefused || isDoubtful)) {
      this.#pause.start(PROBE_TIMEOUT, () => this.#probing?.abort());
      const found = await this.#probe(address);
      if (step !== this.#step) return;
      this.#pause.stop();
      if (isDoubtful && found.reason === 'upgrade_required' && (this.#blockedTries += 1) >= BLOCKED_TRIES) {
        void this.#fallBack(address);
        return;
      }
      if (isRefused) {
        this.#conclude(found);
        return;
      }
    }
    const [name, action] = CLOSE_ACTIONS[code] ?? [`CLOSE_${code}`, 'reconnect'];
    this.#act(action, name === 'ABNORMAL' && reason ? reason : name, { code, told, message: reason });
  }

  /** @param {URL} address */
  #probe(address) {
    const probing = (this.#probing = new AbortController());
    return probe(address, this.#fetch, probing.signal, this.#byCookie);
  }

  /** @type {typeof globalThis.fetch} */
  #fetch = (...call) => (this.#options.fetch ?? globalThis.fetch)(...call);

  get #byCookie() {
    return !this.#token.used && !this.#options.ticket && !this.#options.anonymous;
  }

  /** Does what an answer to a request says. @param {import('./probe.js').Verdict} verdict */
  #conclude(verdict) {
    const { action, reason, after, message } = verdict;
    const step = this.#step;
    this.#warn(verdict);
    if (step !== this.#step) return;
    // The service sends whole seconds: without jitter, all clients with the same delay would reconnect at once.
    const wait = after === undefined ? undefined : spread(after, this.#core.random);
    this.#act(action, reason, { told: wait, message });
  }

  // --- where WebSockets are blocked ---------------------------------------------------------------------------------------

  /** Whether blocked WebSockets would matter now. */
  get #mayFallBack() {
    return this.#events.loadFallback !== undefined && !this.#isBlocked;
  }

  /** The connection takes long: are WebSockets blocked, or is the network slow? @param {number} step @param {URL} address */
  async #ask(step, address) {
    const { clock } = this.#core;
    const askedAt = clock.now();
    const { reason } = await this.#probe(address);
    if (step !== this.#step || this.#heartbeat || reason !== 'upgrade_required') return;
    this.#doubt.start(Math.max(LAST_CHANCE, clock.now() - askedAt), () => void this.#fallBack(address));
  }

  /** WebSockets are blocked, and the service can be reached: connects over HTTP. @param {URL} address */
  async #fallBack(address) {
    const step = this.#lose();
    try {
      this.#fallback ??= await within(this.#core.clock, PROBE_TIMEOUT, this.#loadFallback(), () => new Error('it does not arrive'));
    } catch (cause) {
      if (step !== this.#step) return;
      remember(address, false); // WebSockets are tried again
      this.#core.report(new TidewireError('fallback_failed', `WebSockets are blocked, and the fallback was not loaded: ${cause}`, { cause, retryable: true }));
      if (step === this.#step) this.#wait(this.#backoff.next(), 'blocked');
      return;
    }
    if (step !== this.#step) return;
    this.#isBlocked = true;
    void this.#dial('blocked');
  }

  async #loadFallback() {
    const load = /** @type {NonNullable<ConnectionEvents['loadFallback']>} */ (this.#events.loadFallback);
    const openWebSocket = /** @type {import('./link.js').OpenLink} */ (this.#openLink);
    return load({ core: this.#core, fetch: this.#fetch, byCookie: this.#byCookie, openWebSocket, back: this.#back });
  }

  /** WebSockets work again. One failure shows that they do not. */
  #back = () => {
    const address = this.#resolve();
    if (address) remember(address, false);
    this.#isBlocked = false;
    this.#blockedTries = BLOCKED_TRIES - 1;
    this.#restart('websocket');
  };

  /** Why the client uses no WebSocket; undefined if it does. */
  get detour() {
    return this.#isBlocked ? this.#fallback?.explain() : undefined;
  }

  /** Reports, once for each outage, that something other than the service answers, or nothing does. @param {import('./probe.js').Verdict} verdict */
  #warn({ reason, message, understood }) {
    const isSilent = reason === 'unreachable';
    if (understood || this.#reported === reason || (isSilent && (this.#wasReady || this.#backoff.attempt + 1 < SILENT_TRIES))) return;
    this.#reported = reason;
    const error = new TidewireError(isSilent ? 'unreachable' : 'unexpected_response', `${message}; trying again`, { retryable: true, details: { reason } });
    this.#core.report(error);
  }

  /**
   * @param {'reconnect' | 'refresh' | 'stop'} action
   * @param {string} reason
   * @param {{code?: number, told?: number, message?: string}} more  `told`: ms that the service asked to wait
   */
  #act(action, reason, { code, told, message }) {
    if (action === 'refresh' && (this.#token.renewable || this.#options.ticket)) {
      this.#token.refused();
      // The first refusal means an expired token. A second one in a row is an error, so the client backs off.
      if (this.#backoff.attempt === 0) {
        this.#backoff.attempt = 1;
        void this.#dial(reason);
        return;
      }
      const step = this.#step;
      this.#core.report(new TidewireError(reason, `the service refuses the token: ${message || reason}`, { retryable: true }));
      if (step === this.#step) this.#wait(this.#backoff.next(), reason, code);
    } else if (action === 'reconnect') {
      const own = this.#backoff.next();
      this.#wait(told ?? own, reason, code);
    } else this.#stop(reason, new TidewireError(reason, `the connection is refused: ${message || reason}`, { details: { code } }), code);
  }

  /** There is no address or no token. @param {any} error */
  #failed(error) {
    const step = this.#step;
    if (!error?.retryable || (!this.#token.renewable && !this.#options.ticket)) {
      const known = error instanceof TidewireError;
      this.#stop(known ? error.code : 'internal', known ? error : new TidewireError('internal', String(error), { cause: error }));
      return;
    }
    this.#core.report(error);
    if (step === this.#step) this.#wait(this.#backoff.next(), 'token_failed');
  }

  /**
   * @param {number} ms
   * @param {string} reason
   * @param {number} [code]
   */
  #wait(ms, reason, code) {
    this.#pause.start(ms, () => void this.#dial(reason));
    this.#become({ reason, code, retryIn: ms });
  }

  /**
   * @param {string} reason
   * @param {TidewireError} [error]
   * @param {number} [code]
   */
  #stop(reason, error, code) {
    const connected = this.#connected;
    if (!connected) return;
    this.#connected = undefined;
    this.#unwatch?.();
    this.#fallback?.stop();
    this.#token.forget();
    this.#lose();
    this.#offline = false;
    this.#core.closed(reason);
    connected.reject(new TidewireError('closed', `the client is closed: ${error?.message ?? reason}`, { details: { reason, code }, cause: error }));
    if (this.#connected) return; // a listener has connected again
    this.#become({ state: 'closed', reason, code });
    if (error) this.#core.report(error);
  }

  // --- the network and the page ---------------------------------------------------------------------------------------------

  #online = () => {
    this.#offline = false;
    if (this.#isBlocked) this.#fallback?.retry();
    if (this.#heartbeat) this.#wake();
    else {
      this.#backoff.reset();
      this.#restart('online');
    }
  };

  #gone = () => {
    this.#offline = true;
    this.#leave('offline');
  };

  #sleep = () => this.#leave('sleep');

  /** @param {string} reason */
  #leave(reason) {
    this.#lose();
    if (this.#connected) this.#wait(this.#cap, reason);
  }

  /** The link may be dead, or a try may hang: the page has not run for a while. */
  #wake = () => {
    if (this.#heartbeat) this.#heartbeat.ask(Math.min(WAKE_TIMEOUT, this.#pongTimeout));
    else if (!this.#isYoung()) this.#restart('wake');
  };

  /** Whether a try has just begun. */
  #isYoung() {
    return this.status.retryIn === undefined && this.#core.clock.now() - this.#stepAt < YOUNG;
  }

  /** Gives up what is going on, and tries now. @param {string} reason */
  #restart(reason) {
    this.#lose();
    if (this.#connected) void this.#dial(reason);
  }

  // --- while ready ------------------------------------------------------------------------------------------------------------

  /** Refreshes the token in place. Without a new one, the service closes with 4401 at the end. */
  async #refresh() {
    if (!this.#token.renewable || this.#refreshing) return;
    this.#refreshing = true;
    const step = this.#step;
    try {
      const token = await this.#token.renew();
      if (step === this.#step) await this.#core.read({ type: 'refresh', token });
    } catch (/** @type {any} */ cause) {
      if (step !== this.#step) return;
      const error = cause?.code === 'token_failed' ? cause : new TidewireError('token_failed', `the token was not refreshed: ${cause?.message}`, { cause });
      this.#core.report(error);
      if (step === this.#step && cause?.retryable) this.#pause.start(5_000 + this.#backoff.next(), () => void this.#refresh());
    }
    this.#refreshing = false;
  }

  /** Starts a step: what was awaited in the previous one is ignored. */
  #next() {
    this.#pause.stop();
    this.#doubt.stop();
    this.#probing?.abort();
    this.#probing = undefined;
    this.#stepAt = this.#core.clock.now();
    this.#step += 1;
    return this.#step;
  }

  /** @param {{state?: State, reason: string, code?: number, retryIn?: number}} change */
  #become({ state, ...change }) {
    const trying = this.#offline ? 'offline' : this.#wasReady || this.#backoff.attempt > 0 ? 'reconnecting' : 'connecting';
    const help = helpFor(change.reason);
    const transport = this.#isBlocked && this.#fallback ? this.#fallback.transport : 'websocket';
    this.status = Object.freeze({ state: state ?? trying, ...change, help, attempt: this.#backoff.attempt, transport });
    this.#events.log(`${this.status.state} (${change.reason})`);
    this.#events.changed(this.status);
  }
}

const READY = { type: 'ready' };
