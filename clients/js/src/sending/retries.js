import { bounded, toldWait } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { resolve } from '../connection/address.js';
import { Backoff, spread } from '../connection/backoff.js';
import { TidewireError } from '../errors.js';

/**
 * @typedef {import('./publisher.js').Entry} Entry
 *
 * @typedef {object} Retrying  what `Retries` knows of a request without an answer
 * @property {Backoff} [backoff]
 * @property {Timer} [deadline]  while its timeout runs
 *
 * @typedef {object} Outbox  keeps publishes over a reload of the page
 * @property {() => void} start
 * @property {(entry: Entry) => void} added
 * @property {(entry: Entry) => TidewireError | boolean} sending  before each send: whether it may be sent now; an error fails it
 * @property {(entry: Entry, code: string) => void} refused
 * @property {(entry: Entry) => void} settled
 * @property {() => void} opened  there is a connection; publishes wait while `held`
 * @property {(why: string) => void} closed  the client closes
 * @property {readonly import('../outbox/outbox.js').Kept[]} entries
 * @property {readonly import('../outbox/outbox.js').Uncertain[]} uncertain
 */

/** What follows a refusal of a request, when a request times out, and what the option `outbox` keeps. */
export class Retries {
  /** @type {Outbox | undefined} */
  outbox;
  /** @type {Map<string, string>} channels by the id of a pending `unsubscribe` */
  #leaving = new Map();
  #isLoading = false;
  #core;
  #publisher;

  /** @param {import('../core.js').Core} core @param {import('./publisher.js').Publisher} publisher */
  constructor(core, publisher) {
    this.#core = core;
    this.#publisher = publisher;
  }

  /** Loads the outbox, if there should be one. Publishes wait for it. */
  async loadOutbox() {
    const { options, url } = this.#core;
    if (!options.outbox || this.outbox || this.#isLoading) return;
    this.#isLoading = true;
    try {
      const { outboxFor } = await import('../outbox/outbox.js');
      this.outbox = outboxFor(options.outbox, String(resolve(url)).replace(/\?.*/, ''))(this.#core, this.#publisher);
      this.outbox.start();
    } catch (cause) {
      this.#core.report(new TidewireError('outbox_unavailable', `the outbox was not loaded: ${cause}`, { cause }));
      this.release();
    }
    this.#isLoading = false;
  }

  /** Publishes no longer wait for the outbox. */
  release() {
    this.#publisher.held = false;
    this.#time();
    this.#core.wake();
  }

  // --- unsubscribes --------------------------------------------------------------------------------------------------------

  /** An `unsubscribe` was sent. @param {string} id @param {string} channel */
  leaving(id, channel) {
    this.#leaving.set(id, channel);
  }

  /** Handles the answer to an `unsubscribe`. Returns false if the message is something else. @param {any} message */
  settle({ id, type, retryable, details }) {
    const channel = this.#leaving.get(id);
    if (channel === undefined) return false;
    this.#leaving.delete(id);
    const { clock, registry } = this.#core;
    // A refusal that passes is sent again, unless there is a newer subscription, which it would end.
    const again = () => registry.subscriptions.has(channel) || registry.send(channel);
    if (type === 'error' && retryable) new Timer(clock).start(toldWait(details?.retry_after) ?? 1_000, again);
    return true;
  }

  // --- what the publisher tells -------------------------------------------------------------------------------------------

  /** @param {Entry} entry */
  added(entry) {
    this.outbox?.added(entry);
    this.#time([entry]);
  }

  /** Before each send: whether a request may be sent now. @param {Entry} entry */
  maySend(entry) {
    const verdict = this.outbox?.sending(entry) ?? true;
    if (typeof verdict === 'boolean') return verdict;
    this.#publisher.fail(entry, verdict);
    return false;
  }

  /** There is a connection. */
  opened() {
    this.outbox?.opened();
    this.#time();
  }

  /** Milliseconds until a refused request is sent again; undefined if the refusal is final. @param {Entry} entry @param {TidewireError} refusal */
  waitAfter(entry, { code, details, retryable }) {
    const { random, registry } = this.#core;
    const isEarly = code === 'not_subscribed' && (entry.order !== undefined || registry.joining(entry.channel));
    if (!isEarly && !retryable) return undefined;
    this.outbox?.refused(entry, code);
    if (isEarly) return Infinity; // `joined` sends it again
    entry.backoff ??= new Backoff(500, 5_000, random);
    return this.after(details, entry.backoff);
  }

  /** Milliseconds that an error asks to wait, or the next of the backoff. @param {any} details @param {Backoff} backoff */
  after(details, backoff) {
    const told = toldWait(details?.retry_after);
    return told === undefined ? backoff.next() : spread(told, this.#core.random);
  }

  /** A channel is subscribed: sends again what was refused because it was not. @param {string} channel */
  joined(channel) {
    for (const entry of this.#publisher.publishes) if (entry.channel === channel && entry.refusal?.code === 'not_subscribed') entry.resting = false;
    this.#core.wake();
  }

  /** The connection ended. If that was because of a message's size, the largest one fails. @param {boolean} isTooBig */
  interrupted(isTooBig) {
    this.#leaving.clear();
    const entries = [...this.#publisher.entries.values()];
    const [largest] = entries.filter(({ flying }) => flying).sort((a, b) => b.text.length - a.text.length);
    if (isTooBig && largest) this.#publisher.tooBig(largest, 'the service closed the connection');
  }

  /** @param {string} why */
  closed(why) {
    this.outbox?.closed(why);
  }

  /** @param {Entry} entry */
  settled(entry) {
    entry.deadline?.stop();
    this.outbox?.settled(entry);
  }

  /** Starts the timeouts of requests; but for those of calls, they run with a connection only, and not while publishes wait for the outbox. @param {Iterable<Entry>} [entries] */
  #time(entries = this.#publisher.entries.values()) {
    const { clock, requestTimeout, sender } = this.#core;
    const publisher = this.#publisher;
    for (const entry of entries) {
      const { deadline, isCall, isPublish } = entry;
      if (deadline || (!isCall && !sender) || (isPublish && publisher.held)) continue;
      const timeout = entry.timeout === undefined ? (isPublish && this.outbox ? Infinity : requestTimeout) : bounded(entry.timeout, 0, Infinity, Infinity);
      entry.deadline = new Timer(clock);
      entry.deadline.start(timeout, () => {
        if (entry.refusal) publisher.fail(entry, entry.refusal);
        else publisher.giveUp(entry, 'timeout', `no answer within ${timeout / 1000} s`);
      });
    }
  }
}
