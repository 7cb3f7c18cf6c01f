import { bounded, MAX_FRAME, MAX_TOLD } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { Part } from '../base/part.js';
import { spread } from '../connection/backoff.js';
import { isRemembered } from '../connection/blocked.js';
import { TidewireError } from '../errors.js';
import { CLOSE_ACTIONS } from './close-actions.js';
import { Heartbeat } from './heartbeat.js';
import { logged, logger } from './print.js';
import { Rescue } from './rescue.js';
import { watch } from './wake.js';

/** After a connection that lasted this long (ms), the next failure starts with the shortest backoff. */
const STABLE = 10_000;
/** Milliseconds in which a link must answer after a pause of the page. */
const WAKE_TIMEOUT = 1_800;
/** Milliseconds without `welcome` after which the client asks whether WebSockets are blocked. */
const SLOW = 1_500;
/** Milliseconds from `welcome` after which the first connection is asked whether it lives, because this was loaded late. */
const LATE = 2_000;
/** Milliseconds from `welcome` after which what sends requests and signals is loaded, if nothing has needed it. */
const QUIET = 1_000;
/** Closes before `welcome` that may come from a proxy. */
const PROXY_CODES = [1000, 1002, 1005, 1006];

/** One connection for all tabs, for the option `share`. */
export const share = new Part(() => import('../share/share.js'));

/** What keeps a connection alive, and what follows a failure. It is loaded beside the first connection, and acts on it. */
export class Upkeep {
  /** Whether the browser says that there is no network. */
  isOffline = false;
  /** @type {import('../share/share.js').Share | undefined} one connection for all tabs */
  share;
  #connection;
  #rescue;
  #slow;
  #pause;
  #pongTimeout;
  /** @type {((line: string) => void) | undefined} for the option `debug` */
  #log;
  /** @type {Heartbeat | undefined} of the welcomed link */
  #heartbeat;
  #welcomedAt = Infinity;
  #refreshing = false;
  /** @type {number | undefined} ms, from `reconnect` */
  #told;
  /** @type {(() => void) | undefined} */
  #unwatch;

  /** @param {import('../connection/connection.js').Connection} connection */
  constructor(connection) {
    this.#connection = connection;
    const { clock } = connection.core;
    this.#rescue = new Rescue(connection);
    this.#slow = new Timer(clock);
    this.#pause = new Timer(clock);
    if (connection.options.debug) this.#logWith(connection.options.debug);
    this.#pongTimeout = bounded(connection.options.pongTimeout, 1, 3_600_000, 10_000);
  }

  /** The client connects; it may have begun before this was loaded. */
  start() {
    const { address, changedAt, core, isReady, options } = this.#connection;
    const { welcome } = core;
    const { appState, network = 'addEventListener' in globalThis ? globalThis : null } = options;
    this.#unwatch ??= watch(network, appState, { online: this.#online, offline: this.#gone, wake: this.#wake, sleep: this.#sleep });
    if (isReady && welcome) {
      this.welcomed(welcome, false);
      if (core.clock.now() - changedAt > LATE) this.#wake(); // the page may have slept meanwhile
      if (core.isExpiring) void this.#refresh(); // `expiring` came before this module
    } else if (address && this.#connection.status.retryIn === undefined) this.diverts(address);
  }

  /** @param {true | ((line: string) => void)} debug  the option */
  #logWith(debug) {
    const log = (this.#log = logger(debug));
    const show = (/** @type {import('../connection/connection.js').Status} */ { state, reason }) => log(`${state} (${reason})`);
    show(this.#connection.status);
    this.#connection.core.emitter.on('state', show);
  }

  /** The client is closed. */
  stop() {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#rescue.stop();
    this.isOffline = false;
  }

  // --- while there is a connection ----------------------------------------------------------------------------------------

  /** Another step begins: what was for the previous one ends. */
  rest() {
    const { backoff, core } = this.#connection;
    if (core.clock.now() - this.#welcomedAt >= STABLE) backoff.attempt = 0;
    this.#welcomedAt = Infinity;
    this.#told = undefined;
    this.#slow.stop();
    this.#pause.stop();
    this.#rescue.cancel();
    this.#heartbeat?.stop();
    this.#heartbeat = undefined;
  }

  /** @param {import('../messages.js').Welcome} welcome @param {boolean} again  on this link */
  welcomed(welcome, again) {
    const { core, token } = this.#connection;
    token.expiresIn(welcome.expires_in);
    if (again) return;
    this.#slow.start(QUIET, () => void core.loadPublisher()); // when it is needed, the network may be gone
    this.#rescue.welcomed();
    this.#welcomedAt = core.clock.now();
    this.isOffline = false; // even if the browser reports offline
    const ping = () => core.sender?.send({ type: 'ping', id: core.nextId() });
    this.#heartbeat = new Heartbeat(core.clock, welcome.heartbeat, this.#pongTimeout, ping, () => this.#connection.drop('no_pong'));
  }

  /** A frame has come. One that is too long ends the link. @param {any} frame */
  heard({ length }) {
    this.#heartbeat?.heard();
    if (length > MAX_FRAME) this.#connection.drop('frame_too_long');
  }

  /** Whether a message was for the connection. @param {any} message */
  takes({ type, after, channel }) {
    if (type === 'reconnect') this.#told = bounded(after, 0, MAX_TOLD / 1000, 0) * 1000;
    else if (type === 'expiring' && channel === undefined) void this.#refresh();
    else return false;
    return true;
  }

  /** Refreshes the token in place. Without a new one, the service closes with 4401 at the end. */
  async #refresh() {
    const connection = this.#connection;
    const { backoff, core, step, token } = connection;
    if (!token.renewable || this.#refreshing) return;
    this.#refreshing = true;
    const isCurrent = () => step === connection.step;
    try {
      const renewed = await token.renew();
      if (isCurrent()) await core.read({ type: 'refresh', token: renewed });
    } catch (/** @type {any} */ cause) {
      if (isCurrent()) {
        core.report(cause?.code === 'token_failed' ? cause : new TidewireError('token_failed', `the token was not refreshed: ${cause?.message}`, { cause }));
      }
      if (isCurrent() && cause?.retryable) this.#pause.start(5_000 + backoff.next(), () => void this.#refresh());
    }
    this.#refreshing = false;
  }

  // --- the network and the page ---------------------------------------------------------------------------------------------

  #online = () => {
    this.isOffline = false;
    this.fallback?.retry();
    if (this.#heartbeat) this.#wake();
    else {
      this.#connection.backoff.attempt = 0;
      this.#connection.restart('online');
    }
  };

  #gone = () => {
    this.isOffline = true;
    this.#leave('offline');
  };

  #sleep = () => this.#leave('sleep');

  /** @param {string} reason */
  #leave(reason) {
    this.#connection.lose();
    this.#connection.wait(this.#connection.backoffCap, reason);
  }

  /** The link may be dead, or a try may hang: the page has not run for a while. */
  #wake = () => {
    if (this.#heartbeat) this.#heartbeat.ask(Math.min(WAKE_TIMEOUT, this.#pongTimeout));
    else if (!this.#connection.isYoung()) this.#connection.restart('wake');
  };

  // --- when a connection or a try fails ---------------------------------------------------------------------------------------

  /** @param {import('../connection/connection.js').End} end */
  async ended({ code, reason, opened, verdict }) {
    const connection = this.#connection;
    const { address, backoff, backoffCap, core, isReady } = connection;
    const told = this.#told;
    const isRefused = !opened && code === 1006;
    // After a time without `welcome`, it has asked already.
    const isDoubtful = this.#mayFallBack && !isReady && PROXY_CODES.includes(code) && reason !== 'no_welcome';
    const step = connection.lose(code === 1009);
    if (step !== connection.step) return;
    if (this.isOffline) {
      connection.wait(backoffCap, 'offline');
      return;
    }
    if (!verdict && address && (isRefused || isDoubtful)) {
      const found = await this.#rescue.ask(address);
      if (step !== connection.step) return;
      if (isDoubtful && this.#rescue.isBlocked(found)) {
        void this.#fallBack(address);
        return;
      }
      if (isRefused) verdict = found;
    }
    if (verdict) {
      this.#rescue.warn(verdict, connection.wasReady ? 0 : backoff.attempt + 1);
      if (step !== connection.step) return;
      // The service sends whole seconds: without jitter, all clients with the same delay would reconnect at once.
      const wait = verdict.after === undefined ? undefined : spread(verdict.after, core.random);
      this.#act(verdict.action, verdict.reason, verdict.message, wait);
      return;
    }
    const [name, action] = CLOSE_ACTIONS[code] ?? [`CLOSE_${code}`, 'reconnect'];
    this.#act(action, code === 1006 && reason ? reason : name, reason, told, code);
  }

  /**
   * @param {'reconnect' | 'refresh' | 'stop'} action
   * @param {string} reason
   * @param {string} message
   * @param {number} [told]  ms that the service asked to wait
   * @param {number} [code]
   */
  #act(action, reason, message, told, code) {
    const connection = this.#connection;
    const { backoff, token } = connection;
    if (action === 'refresh' && connection.isRenewable) {
      token.refused();
      // The first refusal means an expired token. A second one in a row is an error, so the client backs off.
      if (backoff.attempt === 0) {
        backoff.attempt = 1;
        void connection.dial(reason);
      } else connection.complain(new TidewireError(reason, `the service refuses the token: ${message || reason}`, { retryable: true }), reason, code);
    } else if (action === 'reconnect') {
      const own = backoff.next();
      connection.wait(told ?? own, reason, code);
    } else connection.stop(reason, new TidewireError(reason, `the connection is refused: ${message || reason}`, { details: { code } }), code);
  }

  // --- one connection for all tabs ----------------------------------------------------------------------------------------

  /** Loads what the tabs share, if they should. Without it, this tab has a connection of its own. */
  async loadShare() {
    const { core, options } = this.#connection;
    if (!options.share || this.share) return;
    const loaded = share.module ?? (await share.get(core.clock));
    if (loaded) this.share ??= new loaded.Share(core, options);
    else core.report(new TidewireError('not_loaded', 'not shared: the module for it was not loaded'));
  }

  /** Opens links: over the connection that the tabs share, over HTTP where WebSockets are blocked, or over a WebSocket. */
  get openLink() {
    const open = this.fallback?.open ?? this.#connection.openLink;
    const shared = open && this.share ? this.share.over(open, this.fallback !== undefined) : open;
    return shared && this.#log ? logged(shared, this.#log) : shared;
  }

  /** How the client is connected, or tries to be. */
  get transport() {
    return this.share?.follows ? 'shared' : this.fallback?.transport;
  }

  // --- where WebSockets are blocked ---------------------------------------------------------------------------------------

  /** The fallback, while it is used. */
  get fallback() {
    return this.#rescue.fallback;
  }

  /** Whether blocked WebSockets would matter now. */
  get #mayFallBack() {
    const { fallback = true, link, ticket, WebSocket = globalThis.WebSocket } = this.#connection.options;
    return fallback && WebSocket && !link && !ticket && !this.fallback; // a ticket opens a WebSocket only
  }

  /** A try begins: returns true if there is a better way. @param {URL} address */
  diverts(address) {
    if (!this.#mayFallBack) return false;
    if (isRemembered(address)) {
      void this.#fallBack(address);
      return true;
    }
    const doubt = () => {
      if (!this.share?.follows) void this.#rescue.doubt(address, () => void this.#fallBack(address));
    };
    this.#slow.start(SLOW, doubt);
    return false;
  }

  /** WebSockets are blocked, and the service can be reached: connects over HTTP. @param {URL} address */
  async #fallBack(address) {
    const connection = this.#connection;
    const step = connection.lose();
    try {
      await this.#rescue.load(address);
      if (step !== connection.step) return;
      this.#rescue.isUsed = true;
      void connection.dial('blocked');
    } catch (/** @type {any} */ error) {
      if (step === connection.step) connection.complain(error, 'blocked');
    }
  }
}
