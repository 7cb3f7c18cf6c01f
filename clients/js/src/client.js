import { Backoff, spread } from './backoff.js';
import { Timer, systemClock } from './clock.js';
import { CLOSE_CODES } from './codes.js';
import { Emitter } from './emitter.js';
import { TidewireError } from './errors.js';
import { announce, plain } from './features.js';
import { Link } from './link.js';
import { isEvent } from './messages.js';
import { probe } from './probe.js';
import { Requests } from './requests.js';
import { Subscription } from './subscription.js';
import { TokenSource } from './token.js';

/**
 * @typedef {object} Options
 * @property {string | (() => string | Promise<string>)} [token]
 *   sent in `hello`. A function is called again when the token expires or is refused. If it rejects with an error whose
 *   `retryable` is `false`, the client stops; after any other error it is called again with backoff.
 * @property {() => string | Promise<string>} [ticket]  instead of a token: a new ticket for each upgrade
 * @property {boolean} [anonymous]  instead of both: `hello` without a token. Without all three a cookie authenticates.
 * @property {string[]} [channels]  subscribed from the start; their events arrive with `on('event', …)`
 * @property {string} [contract]  hash of the contract that the application was made for; `tidewire check` prints it
 * @property {boolean} [autoReady]  false: no event is delivered until `ready()` has been called once
 * @property {new (url: string, protocols: string[]) => any} [WebSocket]
 * @property {typeof globalThis.fetch} [fetch]
 * @property {EventTarget | null} [network]  fires `online` and `offline`; the window by default
 * @property {import('./clock.js').Clock} [clock]
 * @property {() => number} [random]
 * @property {number} [backoffBase]  ms, 500
 * @property {number} [backoffCap]  ms, 20 000
 * @property {number} [connectTimeout]  ms from the start of the connection to `welcome`, 15 000
 * @property {number} [pongTimeout]  ms, 10 000
 * @property {number} [requestTimeout]  ms until history, presence and publishes time out, 60 000; must be below the
 *   service's idempotency window (5 minutes), or a late retry could be delivered twice
 *
 * @typedef {'connecting' | 'open' | 'waiting' | 'refreshing' | 'closed'} State
 * @typedef {{state: State, reason: string, code?: number, retryIn?: number, attempt: number}} StateChange
 *   `reason` is an error code, the name of a close code, or one of: `new`, `connect`, `welcome`, `client`, `offline`,
 *   `online`, `unreachable`, `websocket_refused`, `token_failed`, `http_<status>`, `no_welcome`, `no_pong`. `retryIn`: ms until the next try, in `waiting`.
 *
 * @typedef {object} Events
 * @property {StateChange} state
 * @property {import('./messages.js').Welcome} welcome
 * @property {import('./messages.js').Event} event  every application event of every channel
 * @property {TidewireError} error  errors without a request: a refused signal, a handler that threw, a token function that failed
 */

/** Connections whose events a client still recognises. */
const MAX_CONNECTIONS = 16;
/** After a connection that lasted this long (ms), the next failure starts with the shortest backoff. */
const STABLE = 10_000;

/**
 * A client of one Tidewire service. It keeps one connection, reconnects after errors, and resumes every subscription after
 * the last event that its handlers have processed.
 */
export class Tidewire {
  /** @type {Emitter<Events>} */
  #emitter = new Emitter();
  #address;
  #options;
  #clock;
  #token;
  #backoff;
  #pause;
  #requests;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** @type {Link | undefined} */
  #link;
  /** @type {Set<string>} channels in the URL of the current connection */
  #named = new Set();
  /** @type {Set<string>} what the service of this connection offers */
  #features = new Set();
  /** @type {StateChange} */
  #status = { state: 'closed', reason: 'new', attempt: 0 };
  /** Increases with every step of the lifecycle; results awaited in an older step are ignored. */
  #step = 0;
  #offline = false;
  #ready;
  #welcomedAt = Infinity;
  /** @type {number | undefined} ms, from `reconnect` */
  #told;
  /** @type {AbortController | undefined} */
  #probing;
  /** @type {{promise: Promise<import('./messages.js').Welcome>, resolve: (welcome: any) => void, reject: (error: Error) => void} | undefined} */
  #connected;
  #prefix = unique();
  /** @type {string[]} the newest ids of this client's connections; events on their way may exclude an earlier one */
  #connections = [];
  #user = '';
  #count = 0;

  /**
   * @param {string | URL} url  of the service's `/ws`; may be relative to the page, and http(s) or ws(s)
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    this.#options = {
      backoffBase: 500,
      backoffCap: 20_000,
      connectTimeout: 15_000,
      pongTimeout: 10_000,
      requestTimeout: 60_000,
      autoReady: true,
      WebSocket: globalThis.WebSocket,
      fetch: /** @type {typeof globalThis.fetch} */ ((...request) => globalThis.fetch(...request)),
      random: Math.random,
      network: /** @type {EventTarget | null} */ (typeof globalThis.addEventListener === 'function' ? globalThis : null),
      ...options,
    };
    this.#clock = options.clock ?? systemClock;
    this.#address = webSocketAddress(url);
    this.#ready = this.#options.autoReady;
    this.#token = new TokenSource(options.token, this.#clock);
    this.#backoff = new Backoff(this.#options.backoffBase, this.#options.backoffCap, this.#options.random);
    this.#pause = new Timer(this.#clock);
    this.#requests = new Requests(
      this.#clock,
      this.#options.random,
      (request) => (this.#link?.welcomed ? this.#link.send(request) : 0),
      (channel) => ['waiting', 'joining'].includes(this.#subscriptions.get(channel ?? '')?.state ?? ''),
    );
    const named = this.#address.searchParams.get('channels');
    this.#address.searchParams.delete('channels');
    announce(this.#address, this.#options.contract);
    for (const channel of [...(options.channels ?? []), ...(named ? named.split(',') : [])]) this.subscribe(channel);
  }

  /** The current state. */
  get state() {
    return this.#status.state;
  }

  /** The current state with its reason. */
  get status() {
    return this.#status;
  }

  /** The open subscriptions, by channel. @returns {ReadonlyMap<string, Subscription>} */
  get subscriptions() {
    return this.#subscriptions;
  }

  /**
   * Adds a listener, and returns the function that removes it.
   * @template {keyof Events} Name
   * @param {Name} name
   * @param {(value: Events[Name]) => void} listener
   */
  on(name, listener) {
    return this.#emitter.on(name, listener);
  }

  /**
   * Connects, and reconnects by itself from then on. The promise resolves with the first `welcome` and rejects if the client
   * stops before it. The application may ignore the promise.
   * @returns {Promise<import('./messages.js').Welcome>}
   */
  connect() {
    if (this.#connected) return this.#connected.promise;
    if (!this.#options.WebSocket) throw new TypeError('no WebSocket here: pass one in options.WebSocket');
    this.#connected = deferred();
    this.#options.network?.addEventListener('online', this.#online);
    this.#options.network?.addEventListener('offline', this.#gone);
    this.#backoff.reset();
    void this.#dial('connect');
    return this.#connected.promise;
  }

  /** Closes the connection and does not reconnect. Subscriptions keep their positions for another `connect()`. */
  close() {
    this.#link?.close();
    this.#stop('client', 1000);
  }

  /** Starts deliveries. Needed once, and only with `autoReady: false`. */
  ready() {
    if (this.#ready) return;
    this.#ready = true;
    if (this.#link?.welcomed) this.#link.send({ type: 'ready' });
  }

  /**
   * Subscribes, now or as soon as there is a connection, until `unsubscribe()`. One subscription a channel.
   * @param {string} channel
   * @param {import('./subscription.js').Handlers} [handlers]
   */
  subscribe(channel, handlers = {}) {
    if (this.#subscriptions.has(channel)) {
      throw new TidewireError('already_subscribed', `there is a subscription to ${channel}`);
    }
    const subscription = new Subscription(channel, handlers, this.#connection);
    this.#subscriptions.set(channel, subscription);
    this.#requests.subscribing(channel);
    if (this.#link?.welcomed) subscription.join();
    return subscription;
  }

  /**
   * Publishes a durable or latest event. The promise resolves with the service's `ack`. Until then the event is sent again
   * with the same id after every reconnect, and is delivered once. It rejects if the event is refused or after `timeout` ms.
   * Your own retries must pass the same `id`.
   * @param {string} channel
   * @param {string} type
   * @param {unknown} data
   * @param {import('./subscription.js').PublishOptions} [options]
   * @returns {Promise<import('./messages.js').Ack>}
   */
  publish(channel, type, data, { id = this.#nextId(), key, ifRev, timeout = this.#options.requestTimeout } = {}) {
    return this.#requests.ask({ type, id, channel, data, key, if_rev: ifRev }, { timeout, repeat: true });
  }

  /**
   * Removes the value of a key, as `publish` publishes one. Needs a service with the feature `removal`.
   * @param {string} channel
   * @param {string} type
   * @param {string} key
   * @param {import('./subscription.js').RemoveOptions} [options]
   * @returns {Promise<import('./messages.js').Ack>}
   */
  remove(channel, type, key, { id = this.#nextId(), ifRev, timeout = this.#options.requestTimeout } = {}) {
    return this.#requests.ask({ type, id, channel, key, removed: true, if_rev: ifRev }, { timeout, repeat: true });
  }

  /**
   * Sends an ephemeral event once, if there is a connection. Returns false if there is none.
   * @param {string} channel
   * @param {string} type
   * @param {unknown} data
   */
  signal(channel, type, data) {
    if (!this.#link?.welcomed) return false;
    this.#link.send({ type, channel, data });
    return true;
  }

  // --- connecting -----------------------------------------------------------------------------------------------------

  /** @param {string} reason */
  async #dial(reason) {
    const step = this.#next();
    this.#told = undefined;
    const address = new URL(this.#address);
    if (this.#token.stale || this.#options.ticket) this.#become({ state: 'refreshing', reason });
    let hello;
    try {
      hello = await this.#credentials(address);
    } catch (error) {
      if (step === this.#step) this.#tokenFailed(error);
      return;
    }
    if (step !== this.#step) return;
    this.#become({ state: 'connecting', reason });
    if (!hello) this.#nameChannels(address);
    plain(address);
    try {
      this.#link = this.#open(address, hello);
    } catch (cause) {
      // Not a network error: the page's security policy, or a URL that no browser connects to.
      this.#report(new TidewireError('closed', `no WebSocket to ${this.#address.host}: ${cause}`, { cause }));
      this.#stop('websocket_refused');
    }
  }

  /**
   * @param {URL} address
   * @param {import('./messages.js').ClientMessage | undefined} hello
   */
  #open(address, hello) {
    return new Link(address.href, {
      WebSocket: this.#options.WebSocket,
      clock: this.#clock,
      hello,
      connectTimeout: this.#options.connectTimeout,
      pongTimeout: this.#options.pongTimeout,
      nextId: () => this.#nextId(),
      onWelcome: (welcome) => this.#welcome(welcome),
      onMessage: (message) => this.#receive(message),
      onEnd: (end) => this.#ended(end, address),
    });
  }

  /**
   * Adds a ticket to the URL, or returns the `hello` to send.
   * @param {URL} address
   */
  async #credentials(address) {
    if (this.#token.used) return { type: 'hello', token: await this.#token.get() };
    if (this.#options.ticket) address.searchParams.set('ticket', await this.#options.ticket());
    else if (this.#options.anonymous) return { type: 'hello' };
    return undefined;
  }

  /**
   * Channels without a position, a tail and a token can be part of the upgrade; the others need `subscribe`.
   * @param {URL} address
   */
  #nameChannels(address) {
    const fresh = [...this.#subscriptions.values()].filter(({ needsCommand }) => !needsCommand);
    this.#named = new Set((this.#options.channels ?? []).filter((name) => fresh.some(({ channel }) => channel === name)));
    if (this.#named.size > 0) address.searchParams.set('channels', [...this.#named].join(','));
  }

  /** @param {import('./messages.js').Welcome} welcome */
  #welcome(welcome) {
    this.#welcomedAt = this.#clock.now();
    this.#offline = false; // even if the browser reports offline
    this.#token.expiresIn(welcome.expires_in);
    this.#features = new Set(welcome.features);
    this.#user = welcome.user;
    this.#connections = [...this.#connections, welcome.connection].slice(-MAX_CONNECTIONS);
    for (const subscription of this.#subscriptions.values()) {
      if (this.#named.has(subscription.channel)) subscription.joinedByAddress();
      else subscription.join();
    }
    this.#named.clear();
    if (this.#ready) this.#link?.send({ type: 'ready' });
    this.#requests.resume();
    this.#become({ state: 'open', reason: 'welcome' });
    this.#emitter.emit('welcome', welcome);
    this.#connected?.resolve(welcome);
  }

  // --- closing and reconnecting -------------------------------------------------------------------------------------------

  /**
   * @param {import('./link.js').End} end
   * @param {URL} address
   */
  async #ended({ code, reason, opened }, address) {
    const step = this.#next();
    const asked = this.#told;
    this.#link = undefined;
    this.#requests.interrupted(code === 1009);
    for (const subscription of this.#subscriptions.values()) subscription.interrupted();
    if (this.#clock.now() - this.#welcomedAt >= STABLE) this.#backoff.reset();
    this.#welcomedAt = Infinity;
    if (this.#offline || reason === 'offline') {
      this.#wait(this.#options.backoffCap, 'offline');
      return;
    }
    if (opened) {
      const { action, name } = CLOSE_CODES[code] ?? { action: 'reconnect', name: `CLOSE_${code}` };
      this.#act(action, name === 'ABNORMAL' && reason ? reason : name, code, asked);
      return;
    }
    this.#probing = new AbortController();
    const deadline = new Timer(this.#clock);
    deadline.start(this.#options.connectTimeout, () => this.#probing?.abort());
    const verdict = await probe(address, this.#options.fetch, this.#probing.signal);
    deadline.stop();
    // The service sends whole seconds: without jitter, all clients with the same delay would reconnect at once.
    const told = verdict.after === undefined ? undefined : spread(verdict.after, this.#options.random);
    if (step === this.#step) this.#act(verdict.action, verdict.reason, undefined, told);
  }

  /**
   * @param {'reconnect' | 'refresh' | 'stop'} action
   * @param {string} reason
   * @param {number} [code]
   * @param {number} [told]  ms that the service asked to wait
   */
  #act(action, reason, code, told) {
    if (action === 'refresh' && (this.#token.renewable || this.#options.ticket)) {
      this.#token.refused();
      // The first refusal means an expired token. A second one in a row is an error, so the client backs off.
      if (this.#backoff.attempt === 0) {
        this.#backoff.attempt = 1;
        void this.#dial(reason);
      } else this.#wait(this.#backoff.next(), reason, code);
    } else if (action === 'reconnect') {
      const own = this.#backoff.next();
      this.#wait(told ?? own, reason, code);
    } else this.#stop(reason, code);
  }

  /** @param {any} error */
  #tokenFailed(error) {
    this.#report(new TidewireError('token_failed', `the token function failed: ${error?.message ?? error}`, { cause: error }));
    if (error?.retryable === false) this.#stop('token_failed');
    else this.#wait(this.#backoff.next(), 'token_failed');
  }

  /**
   * @param {number} ms
   * @param {string} reason
   * @param {number} [code]
   */
  #wait(ms, reason, code) {
    this.#pause.start(ms, () => void this.#dial(reason));
    this.#become({ state: 'waiting', reason, code, retryIn: ms });
  }

  /**
   * @param {string} reason
   * @param {number} [code]
   */
  #stop(reason, code) {
    this.#next();
    this.#link = undefined;
    this.#options.network?.removeEventListener('online', this.#online);
    this.#options.network?.removeEventListener('offline', this.#gone);
    this.#offline = false;
    const error = new TidewireError('closed', `the client is closed: ${reason}`, { details: { reason, code } });
    for (const subscription of this.#subscriptions.values()) subscription.interrupted();
    this.#requests.abandon(error);
    this.#connected?.reject(error);
    this.#connected = undefined;
    if (this.#status.state !== 'closed') this.#become({ state: 'closed', reason, code });
  }

  #online = () => {
    this.#offline = false;
    if (this.#link) return; // the connection survived
    this.#backoff.reset();
    void this.#dial('online');
  };

  #gone = () => {
    this.#offline = true;
    if (this.#link) this.#link.drop('offline');
    else {
      this.#next();
      this.#wait(this.#options.backoffCap, 'offline');
    }
  };

  /** Starts a step of the lifecycle: results awaited in the previous step are ignored. */
  #next() {
    this.#pause.stop();
    this.#probing?.abort();
    this.#probing = undefined;
    this.#step += 1;
    return this.#step;
  }

  // --- while open -------------------------------------------------------------------------------------------------------

  /** @param {import('./messages.js').ServerMessage} message */
  #receive(message) {
    if (isEvent(message)) {
      this.#subscriptions.get(message.channel)?.event(message);
      return;
    }
    switch (message.type) {
      case 'subscribed':
        this.#subscriptions.get(message.channel)?.subscribed(message);
        break;
      case 'unsubscribed':
        if (!this.#requests.settle(message)) this.#subscriptions.get(message.channel)?.unsubscribed(message);
        break;
      case 'presence':
        if (!this.#requests.settle(message)) this.#subscriptions.get(message.channel)?.presenceChanged(message);
        break;
      case 'ack':
      case 'history':
        this.#requests.settle(message);
        break;
      case 'error':
        this.#refused(message);
        break;
      case 'expiring':
        if (message.channel === undefined) void this.#refresh();
        else void this.#subscriptions.get(message.channel)?.refresh();
        break;
      case 'reconnect':
        this.#told = message.after * 1000;
        break;
      default: // a pong needs no action; a newer service may send messages that this client does not know
    }
  }

  /** @param {import('./messages.js').ErrorMessage} message */
  #refused(message) {
    if (this.#requests.settle(message)) return;
    for (const subscription of [...this.#subscriptions.values()]) if (subscription.refused(message)) return;
    this.#report(TidewireError.from(message));
  }

  /** Refreshes the token in place. If that fails, the service closes with 4401, and the client gets another token. */
  async #refresh() {
    if (!this.#token.renewable) return;
    try {
      const token = await this.#token.renew();
      if (!this.#link?.welcomed) return;
      const request = { type: 'refresh', id: this.#nextId(), token };
      await this.#requests.ask(request, { timeout: this.#options.requestTimeout, repeat: false });
    } catch (cause) {
      if (this.#link?.welcomed) this.#report(new TidewireError('token_failed', `no refresh: ${cause}`, { cause }));
    }
  }

  /** @param {TidewireError} error */
  #report(error) {
    this.#emitter.emit('error', error);
  }

  /** @param {Omit<StateChange, 'attempt'>} change */
  #become(change) {
    this.#status = { ...change, attempt: this.#backoff.attempt };
    this.#emitter.emit('state', this.#status);
  }

  #nextId() {
    this.#count += 1;
    return `${this.#prefix}-${this.#count.toString(36)}`;
  }

  /** @type {import('./subscription.js').Connection} */
  #connection = {
    open: () => this.#link?.welcomed ?? false,
    nextId: () => this.#nextId(),
    send: (message) => this.#link?.send(message),
    offers: (feature) => this.#features.has(feature),
    ask: (message, repeat) => this.#requests.ask(message, { timeout: this.#options.requestTimeout, repeat }),
    publish: (channel, type, data, options) => this.publish(channel, type, data, options),
    remove: (channel, type, key, options) => this.remove(channel, type, key, options),
    signal: (channel, type, data) => this.signal(channel, type, data),
    joined: ({ channel }) => this.#requests.joined(channel),
    forget: (subscription) => {
      if (this.#subscriptions.get(subscription.channel) === subscription) this.#subscriptions.delete(subscription.channel);
    },
    excluded: ({ exclude, from }) =>
      exclude !== undefined && this.#connections.includes(exclude) && from === (this.#user || `anonymous-${exclude}`),
    heard: (event) => this.#emitter.emit('event', event),
    report: (error) => this.#report(error),
    timer: () => new Timer(this.#clock),
    now: () => this.#clock.now(),
    random: () => this.#options.random(),
  };
}

/** @param {string | URL} url */
function webSocketAddress(url) {
  const address = new URL(url, globalThis.location?.href);
  if (address.protocol === 'http:') address.protocol = 'ws:';
  if (address.protocol === 'https:') address.protocol = 'wss:';
  if (address.protocol !== 'ws:' && address.protocol !== 'wss:') throw new TypeError(`${address.protocol} is not a WebSocket address`);
  address.hash = '';
  return address;
}

/** A random id prefix that is unique for each client; `crypto.randomUUID` would need a secure context. */
function unique() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, '0')).join('');
}

function deferred() {
  /** @type {(value: any) => void} */
  let resolve = () => {};
  /** @type {(error: Error) => void} */
  let reject = () => {};
  const promise = new Promise((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => {}); // the application may ignore it
  return { promise, resolve, reject };
}
