import { ERROR_CODES } from '../codes.js';
import { BACKEND } from './channels/access.js';
import { Contract } from './channels/contract.js';
import { TestClock, settled } from './clock.js';
import { Node } from './node.js';
import { Page } from './page.js';
import { haveParts } from './parts.js';
import { refusal } from './channels/refusal.js';

/**
 * @typedef {import('../contract-types.js').ContractLike} ContractLike
 * @typedef {import('../contract-types.js').AnyContract} AnyContract
 * @typedef {import('./channels/contract.js').Validate} Validate
 * @typedef {import('./channels/contract.js').Delivery} Delivery
 * @typedef {import('./network.js').Filter} Filter
 * @typedef {import('./node.js').Received} Received
 * @typedef {import('./tokens.js').Claims} Claims
 * @typedef {import('../messages.js').Event} Event
 *
 * @typedef {object} TestServiceOptions
 * @property {object} [contract]  the content of a contract file, or an AsyncAPI document of `tidewire asyncapi`. Without it, every
 *   channel and every event is allowed
 * @property {Validate | false} [validate]  checks data against a JSON Schema; `false` accepts all data. Needed if the contract has schemas
 * @property {import('../base/clock.js').Clock} [clock]  a `TestClock` by default
 * @property {Partial<import('../messages.js').Limits>} [limits]  what `welcome` says; the default rates are too high for a test to wait
 * @property {string[]} [features]  those of an older service, for example
 * @property {number} [heartbeat]  s, 25
 * @property {boolean} [anonymous]  whether clients without a token are accepted
 * @property {number} [presenceDebounce]  ms from the last connection of a user to `presence.left`, 5 000
 *
 * @typedef {object} ConnectionRefusal
 * @property {number} [status]  that of the code by default
 * @property {number} [retryAfter]  s
 * @property {number} [times]  connections that are refused; all by default, until `heal()`
 *
 * @typedef {object} BackendOptions
 * @property {string} [id]
 * @property {string} [key]  of a latest event; needed only without a contract
 * @property {Delivery} [delivery]  only without a contract; `durable` by default, `latest` with a key
 * @property {number} [ifRev]
 * @property {string | null} [from]  the user on whose behalf the backend publishes
 * @property {string} [exclude]  the id of a connection that does not show the event
 */

const FEATURES = ['calls', 'echo', 'event_removed', 'if_rev', 'presence_update', 'ready_in_address', 'removal', 'subscription_token', 'tail', 'ttl'];
const SHARED = { connections: 1_000, rate: 10_000, burst: 100_000, subscribe_rate: 10_000, subscribe_burst: 100_000 };
const LIMITS = {
  message: 65_536,
  batch: 100,
  subscriptions: 128,
  calls: 16,
  rate: 10_000,
  burst: 100_000,
  subscribe_rate: 10_000,
  subscribe_burst: 100_000,
  violations: 20,
  address: { ...SHARED, connect_rate: 10_000, connect_burst: 100_000 },
  user: SHARED,
};

/**
 * A service in memory, for tests of applications. It speaks the protocol of the real one, and does to the connections what the
 * test says.
 * @template {ContractLike} [C=AnyContract]
 */
export class TestService {
  /** The address for `new Tidewire(service.url, service.options)`. */
  url = 'ws://tidewire.test/ws';
  #node;
  #page = new Page();
  #isStopped = false;
  /** @type {{status: number, code?: string, retryAfter?: number, left: number} | undefined} */
  #door;
  /** @type {{status: number, code?: string, retryAfter?: number} | undefined} the refusal of the last connection */
  #refused;

  /** @param {TestServiceOptions} [options] */
  constructor({ contract, validate, clock = new TestClock(), limits, features = FEATURES, heartbeat = 25, anonymous = false, presenceDebounce = 5_000 } = {}) {
    haveParts();
    this.#node = new Node({
      clock,
      contract: new Contract(contract, validate),
      limits: { ...LIMITS, ...limits },
      features,
      heartbeat,
      isAnonymousAllowed: anonymous,
      debounce: presenceDebounce,
    });
  }

  // --- clients ----------------------------------------------------------------------------------------------------------

  /** Options for a client of the user `ann` with all rights. */
  get options() {
    return this.optionsFor('ann');
  }

  /**
   * Options for a client of a user.
   * @param {string} user
   * @param {Claims} [claims]
   */
  optionsFor(user, claims) {
    return {
      token: () => this.token(user, claims),
      link: this.#open,
      fetch: /** @type {typeof globalThis.fetch} */ (/** @type {unknown} */ (this.#fetch)),
      clock: this.#node.clock,
      network: /** @type {EventTarget} */ (/** @type {unknown} */ (this.#page)),
      random: () => 0.5,
    };
  }

  /**
   * A token of a user, which also counts as a ticket.
   * @param {string} user
   * @param {Claims} [claims]
   */
  token(user, claims = {}) {
    return this.#node.tokens.issue(user, claims);
  }

  /**
   * A token for the `token` option of a channel.
   * @param {string} user
   * @param {Claims} claims
   */
  subscriptionToken(user, claims) {
    return this.#node.tokens.issue(user, claims, true);
  }

  // --- time -------------------------------------------------------------------------------------------------------------

  /** The time of the service and of its clients, and when timers run. */
  get clock() {
    return this.#node.clock;
  }

  /** Moves the time of the `TestClock`, and runs what becomes due. @param {number} ms */
  async advance(ms) {
    const { clock } = this.#node;
    if (!(clock instanceof TestClock)) throw new TypeError('this service has a clock of its own, which only its owner moves');
    await clock.advance(ms);
  }

  /** Waits until messages and listeners have run that wait for no timer. */
  async settled() {
    await settled();
  }

  // --- the backend --------------------------------------------------------------------------------------------------------

  /**
   * Publishes as the backend does, which may publish every event that the contract declares.
   * @template {import('../contract-types.js').ChannelName<C>} N
   * @template {import('../contract-types.js').EventType<C, N>} T
   * @param {N} channel
   * @param {T} type
   * @param {import('../contract-types.js').DataOf<C, N, T>} data
   * @param {BackendOptions} [options]
   * @returns {{offset?: number, rev?: number, duplicate?: boolean}}
   */
  publish(channel, type, data, { id = this.#node.nextId('b'), key, delivery, ifRev, from = null, exclude } = {}) {
    const message = { type, channel, id, data: JSON.parse(JSON.stringify(data)), key, delivery, if_rev: ifRev, exclude };
    return this.#node.accept(BACKEND, message, from, false);
  }

  /**
   * Removes the value of a key.
   * @template {import('../contract-types.js').ChannelName<C>} N
   * @template {import('../contract-types.js').TypeWith<C, N, 'latest'>} T
   * @param {N} channel
   * @param {T} type
   * @param {string} key
   * @param {{id?: string, ifRev?: number}} [options]
   */
  remove(channel, type, key, { id = this.#node.nextId('b'), ifRev } = {}) {
    return this.#node.accept(BACKEND, { type, channel, id, key, removed: true, if_rev: ifRev }, null, false);
  }

  /**
   * Answers a call of clients, in the place of the backend. Returns the function that removes the handler. A handler refuses a call with
   * `throw new TidewireError('call_failed', message, { details: { reason, data } })`, or with the code `forbidden`. If it throws anything
   * else, and without a handler, clients get `hook_unavailable`.
   * @template {import('../contract-types.js').CallName<C>} N
   * @param {N} name
   * @param {(data: import('../contract-types.js').CallRequest<C, N>, context: import('./calls.js').CallContext)
   *   => import('../contract-types.js').CallReply<C, N> | Promise<import('../contract-types.js').CallReply<C, N>>} handler
   */
  onCall(name, handler) {
    return this.#node.calls.on(name, handler);
  }

  /** Takes back a durable event: subscribers get `event.removed`. @param {string} channel @param {string} id */
  takeBack(channel, id) {
    this.#node.takeBack(channel, id);
  }

  /**
   * Ends subscriptions of a channel.
   * @param {string} channel
   * @param {{user?: string, code?: 'forbidden' | 'removed'}} [which]
   */
  unsubscribe(channel, { user, code = 'removed' } = {}) {
    for (const session of this.#node.sessionsOf(user)) session.unsubscribe(channel, code);
  }

  /** Sends any message, or text that is none. @param {unknown} message @param {{user?: string}} [to] */
  send(message, { user } = {}) {
    for (const session of this.#node.sessionsOf(user)) session.send(message);
  }

  // --- what has happened ----------------------------------------------------------------------------------------------------

  /** The messages of clients, in the order of their arrival: the newest 10 000. @type {readonly Received[]} */
  get received() {
    return this.#node.received;
  }

  /** The connections that are open. */
  get connections() {
    return this.#node.sessionsOf().map(({ id, user }) => ({ id, user }));
  }

  /** The channels that clients are subscribed to. */
  get subscriptions() {
    return this.#node.sessionsOf().flatMap(({ id, user, subscriptions }) => [...subscriptions.keys()].map((channel) => ({ connection: id, user, channel })));
  }

  /** The durable events that a channel keeps. @param {string} channel @returns {Event[]} */
  history(channel) {
    return this.#node.channel(channel).events;
  }

  /** The newest position of a channel, for the option `since`. @param {string} channel */
  position(channel) {
    return this.#node.channel(channel).position;
  }

  /** The values that a channel keeps. @param {string} channel @returns {Event[]} */
  values(channel) {
    return this.#node.channel(channel).state;
  }

  /** Who is present in a channel. @param {string} channel */
  members(channel) {
    return this.#node.presence(channel).view.members ?? [];
  }

  // --- faults ---------------------------------------------------------------------------------------------------------------

  /** Loses messages. Returns the function that ends the fault. @param {Filter} [filter] */
  drop(filter = {}) {
    return this.#node.network.add(filter, (fate) => (fate.copies = 0));
  }

  /** Delays messages, and those behind them. Returns the function that ends the fault. @param {number} ms @param {Filter} [filter] */
  delay(ms, filter = {}) {
    return this.#node.network.add(filter, (fate) => (fate.delay += ms));
  }

  /** Delivers messages twice. Returns the function that ends the fault. @param {Filter} [filter] */
  repeat(filter = {}) {
    return this.#node.network.add(filter, (fate) => (fate.copies *= 2));
  }

  /** Lets the next message overtake each of these. Returns the function that ends the fault. @param {Filter} [filter] */
  reorder(filter = {}) {
    return this.#node.network.add(filter, (fate) => (fate.isHeld = true));
  }

  /**
   * Refuses messages of clients with an error code. Returns the function that ends it.
   * @param {string} code
   * @param {Filter & {details?: Record<string, any>}} [filter]
   */
  refuse(code, { details, ...filter } = {}) {
    const rule = { filter, left: filter.times ?? Infinity, error: refusal(code, `the test refuses it: ${code}`, details) };
    this.#node.refusals.add(rule);
    return () => void this.#node.refusals.delete(rule);
  }

  /**
   * Refuses new connections: with the code of an error, or as a proxy does, with a status.
   * @param {string | number} answer
   * @param {ConnectionRefusal} [options]
   */
  refuseConnections(answer, { status, retryAfter, times = Infinity } = {}) {
    const code = typeof answer === 'string' ? answer : undefined;
    this.#door = { code, status: status ?? (typeof answer === 'number' ? answer : (ERROR_CODES[answer]?.status ?? 400)), retryAfter, left: times };
  }

  /** Ends all faults that wait for messages or connections, and starts a service that was stopped. */
  heal() {
    this.#node.network.clear();
    this.#node.refusals.clear();
    this.#door = undefined;
    this.#isStopped = false;
  }

  /**
   * Ends connections: as a broken network does, or with a close code.
   * @param {{user?: string, code?: number, reason?: string}} [how]
   */
  cut({ user, code = 1006, reason = '' } = {}) {
    for (const session of this.#node.sessionsOf(user)) session.close(code, reason);
  }

  /** Ends all connections, and answers none, until `start()`. */
  stop() {
    this.#isStopped = true;
    this.cut();
  }

  start() {
    this.#isStopped = false;
  }

  /**
   * The node restarts: it closes its connections, and clients come back. With `newEpoch`, everything is lost.
   * @param {{newEpoch?: boolean, after?: number}} [how]  `after`: seconds that clients are asked to wait
   */
  restart({ newEpoch = false, after = 0.5 } = {}) {
    this.send({ type: 'reconnect', after, reason: 'shutdown' });
    this.cut({ code: 1012, reason: 'the node restarts' });
    if (newEpoch) this.#node.forget();
  }

  /** The store loses a channel, or all: live subscriptions continue in a new epoch, and are told. @param {string} [channel] */
  newEpoch(channel) {
    this.#node.beginEpoch(channel);
  }

  /**
   * Ends the tokens that were issued so far. With `in`, clients are told in time; without, their connections end now.
   * @param {{user?: string, in?: number}} [which]  `in`: s
   */
  expireTokens({ user, in: seconds = 0 } = {}) {
    this.#node.tokens.end(user, this.clock.now() + seconds * 1_000);
    for (const session of this.#node.sessionsOf(user)) {
      if (seconds > 0) session.watchToken();
      else session.close(4401, 'the token has expired');
    }
  }

  /** The browser has lost the network, and tells the page. */
  goOffline() {
    this.stop();
    this.#page.fire('offline');
  }

  goOnline() {
    this.start();
    this.#page.fire('online');
  }

  /** The page goes into the back/forward cache, which ends its connection. */
  sleep() {
    this.#page.fire('pagehide', { persisted: true });
  }

  /** The page runs again. */
  wake() {
    this.#page.fire('pageshow');
  }

  // --- links --------------------------------------------------------------------------------------------------------------------

  /** @type {import('../connection/link.js').OpenLink} */
  #open = (address, events) => {
    const door = this.#door;
    const ticket = address.searchParams.get('ticket');
    this.#refused = undefined;
    if (this.#isStopped) return refused(events);
    if (door && door.left > 0) {
      door.left -= 1;
      this.#refused = door;
      return refused(events);
    }
    let identity;
    try {
      identity = ticket === null ? undefined : this.#node.tokens.read(ticket);
    } catch {
      this.#refused = { status: 401, code: 'invalid_ticket' };
      return refused(events);
    }
    const session = this.#node.open(address, events, identity);
    return { send: (frame) => session.take(frame), buffered: () => 0, close: () => session.silence() };
  };

  /** The answer to the plain GET that follows a refused connection. */
  #fetch = async () => {
    if (this.#isStopped) throw new TypeError('the service is stopped');
    const { status, code, retryAfter } = this.#refused ?? { status: 426, code: 'upgrade_required' };
    /** @type {Record<string, string | undefined>} */
    const headers = { 'content-type': code ? 'application/problem+json' : 'text/html', 'retry-after': retryAfter?.toString() };
    return {
      status,
      headers: { get: (/** @type {string} */ name) => headers[name] ?? null },
      body: null,
      json: async () => ({ status, code, detail: `the test refuses the connection: ${code}` }),
    };
  };
}

/**
 * A link that never opens.
 * @param {import('../connection/link.js').LinkEvents} events
 * @returns {import('../connection/link.js').Link}
 */
function refused(events) {
  let isClosed = false;
  queueMicrotask(() => !isClosed && events.ended(1006, ''));
  return { send: () => {}, buffered: () => 0, close: () => void (isClosed = true) };
}
