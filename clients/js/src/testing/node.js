import { TidewireError } from '../errors.js';
import { Gate } from './channels/access.js';
import { Calls } from './calls.js';
import { Presence } from './channels/presence.js';
import { StoredChannel } from './channels/store.js';
import { Network, matches, use } from './network.js';
import { refusal } from './channels/refusal.js';
import { Session } from './session.js';
import { Tokens } from './tokens.js';

/**
 * @typedef {import('./channels/access.js').Identity} Identity
 * @typedef {import('./network.js').Filter} Filter
 * @typedef {{connection: string, user: string, at: number, message: any}} Received  `at`: ms of the service's clock
 * @typedef {{filter: Filter, left: number, error: TidewireError}} Refusal
 *
 * @typedef {object} NodeOptions
 * @property {import('../base/clock.js').Clock} clock
 * @property {import('./channels/contract.js').Contract} contract
 * @property {import('../messages.js').Limits} limits
 * @property {string[]} features
 * @property {number} heartbeat  s
 * @property {boolean} isAnonymousAllowed
 * @property {number} debounce  ms
 */

/** Messages that `received` keeps. */
const MAX_RECEIVED = 10_000;
/** Milliseconds since the Unix epoch at which the clock is 0. */
const START = 1_795_374_000_000;

/** What all connections of a test service share. */
export class Node {
  network = new Network();
  /** @type {Set<Session>} */
  sessions = new Set();
  /** @type {Received[]} the newest last */
  received = [];
  /** @type {Set<Refusal>} */
  refusals = new Set();
  #options;
  /** @type {Map<string, StoredChannel>} */
  #channels = new Map();
  /** @type {Map<string, Presence>} */
  #presence = new Map();
  #serial = 0;

  /** @param {NodeOptions} options */
  constructor(options) {
    this.#options = options;
    this.gate = new Gate(options.contract);
    this.calls = new Calls(options.contract);
    this.tokens = new Tokens(options.clock.now);
  }

  get clock() {
    return this.#options.clock;
  }

  get limits() {
    return this.#options.limits;
  }

  get features() {
    return this.#options.features;
  }

  get heartbeat() {
    return this.#options.heartbeat;
  }

  get isAnonymousAllowed() {
    return this.#options.isAnonymousAllowed;
  }

  /** @param {string} kind */
  nextId(kind) {
    this.#serial += 1;
    return `${kind}-${this.#serial}`;
  }

  /** @param {URL} address @param {import('../connection/link.js').LinkEvents} events @param {Identity} [identity] */
  open(address, events, identity) {
    const session = new Session(this.nextId('c'), this, address, events, identity);
    this.sessions.add(session);
    return session;
  }

  /** The sessions of a user, or all. @param {string} [user] */
  sessionsOf(user) {
    return [...this.sessions].filter((session) => user === undefined || session.user === user);
  }

  /** @param {Received} received */
  record(received) {
    this.received.push(received);
    if (this.received.length > MAX_RECEIVED) this.received.shift();
  }

  /** Refuses a message that the test wants to be refused. @param {string} user @param {any} message */
  refuseOnDemand(user, message) {
    for (const rule of this.refusals) if (matches(rule.filter, { to: 'service', user, message }) && use(rule, this.refusals)) throw rule.error;
  }

  // --- channels -----------------------------------------------------------------------------------------------------------

  /** @param {string} name */
  channel(name) {
    const known = this.#channels.get(name);
    if (known) return known;
    const made = new StoredChannel(this.gate.ruleOf(name), this.#epoch(), this.clock.now);
    this.#channels.set(name, made);
    return made;
  }

  /** @param {string} name */
  presence(name) {
    const known = this.#presence.get(name);
    if (known) return known;
    const announce = (/** @type {string} */ type, /** @type {string} */ user, /** @type {any} */ data) =>
      this.#broadcast({ type, channel: name, id: this.nextId('j'), at: this.#wall(), from: user, data, key: user });
    const made = new Presence(this.clock, this.#options.debounce, announce);
    this.#presence.set(name, made);
    return made;
  }

  /**
   * Checks a publish or a removal, keeps it, and delivers it.
   * @param {Identity} identity
   * @param {any} message
   * @param {string | null} sender
   * @param {boolean} isSubscribed
   * @param {string} [connection]  the one that publishes
   * @returns {{offset?: number, rev?: number, duplicate?: boolean}}
   */
  accept(identity, message, sender, isSubscribed, connection) {
    const { type, channel, data, removed, exclude } = message;
    const { event: rule, key } = this.gate.validate(identity, message, isSubscribed);
    const stored = this.channel(channel);
    const id = message.id ?? this.nextId('e');
    const isKept = rule.delivery !== 'ephemeral';
    const earlier = isKept ? stored.resultOf(sender ?? '', message.id) : undefined;
    if (earlier) return { ...earlier, duplicate: true };
    /** @type {any} */
    const event = { type, channel, id, at: this.#wall(), from: sender, ...(removed ? { removed } : { data }), key, exclude: rule.echo ? exclude : (exclude ?? connection) };
    if (rule.delivery === 'latest') stored.checkRev(event, message.if_rev);
    const kept = rule.delivery === 'durable' ? stored.append(event) : isKept ? stored.put(event, rule.ttl) : event;
    const { offset, rev } = /** @type {import('../messages.js').Event} */ (kept);
    const ack = rule.delivery === 'durable' ? { offset } : isKept ? { rev } : {};
    if (isKept) stored.remember(sender ?? '', id, ack);
    this.#broadcast(kept);
    return ack;
  }

  /** Takes back a durable event. @param {string} channel @param {string} id */
  takeBack(channel, id) {
    const stored = this.channel(channel);
    const tombstone = stored.takeBack(id);
    if (!tombstone) throw refusal('not_found', `${channel} keeps no event ${id}`);
    this.#broadcast(stored.append({ ...tombstone, id: this.nextId('removed'), at: this.#wall() }));
  }

  /** The store loses a channel, or all of them, and live subscriptions continue in a new epoch. @param {string} [name] */
  beginEpoch(name) {
    for (const [channel, stored] of this.#channels) {
      if (name !== undefined && channel !== name) continue;
      stored.purge(this.#epoch());
      for (const session of this.sessions) session.resync(channel);
    }
  }

  /** The store forgets everything. */
  forget() {
    for (const presence of this.#presence.values()) presence.close();
    this.#presence.clear();
    this.#channels.clear();
  }

  /** @param {any} event */
  #broadcast(event) {
    for (const session of [...this.sessions]) session.deliver(event);
  }

  #epoch() {
    this.#serial += 1;
    return this.#serial.toString(16).padStart(16, '0');
  }

  #wall() {
    return START + Math.round(this.clock.now());
  }
}
