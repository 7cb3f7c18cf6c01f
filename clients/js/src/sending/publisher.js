import { bounded, toldWait } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { deferred, onAbort } from '../base/deferred.js';
import { Backoff, spread } from '../connection/backoff.js';
import { TidewireError } from '../errors.js';
import { bytesOf } from './sender.js';

/**
 * @typedef {import('../messages.js').ClientMessage & {id: string}} Request
 * @typedef {object} Entry
 * @property {string} id
 * @property {string} type
 * @property {string | undefined} channel
 * @property {string} lane  entries of one lane are sent one after the other
 * @property {string} text  the JSON of the request, made at the call
 * @property {number} bytes
 * @property {boolean} isPublish
 * @property {boolean} sent  whether the service may have it
 * @property {boolean} flying  sent on this connection, without an answer
 * @property {boolean} resting  waits before it is sent again
 * @property {boolean} timed  whether its timeout runs
 * @property {number | undefined} timeout
 * @property {number} order  within its lane
 * @property {boolean} restored  published before a reload, so that nobody awaits it
 * @property {Timer} deadline
 * @property {Timer} retry
 * @property {Backoff} backoff
 * @property {TidewireError} [refusal]  the last retryable one
 * @property {() => void} forget  stops listening to the signal
 * @property {import('../base/deferred.js').Deferred<any>} result
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

/** Bytes of all requests without an answer. */
const MAX_BYTES = 8_388_608;

/**
 * The requests without an answer: publishes, and reads such as `history`. Publishes of one channel are sent one after the other, so
 * that none overtakes another that is sent again. A request is sent again with the same id on every new connection and after a
 * retryable refusal, until it is answered or times out.
 */
export class Publisher {
  cost = /** @type {const} */ ('message');
  /** @type {Outbox | undefined} */
  outbox;
  /** Whether publishes wait for the outbox. */
  held = false;
  /** Publishes without an answer. */
  pending = 0;
  /** @type {Map<string, Entry>} by id, in the order of the calls */
  #entries = new Map();
  /** @type {Map<string, Entry[]>} */
  #lanes = new Map();
  #bytes = 0;
  #order = 0;
  #open = false;
  /** @type {TidewireError | undefined} why nothing can be sent */
  #closed;
  /** @type {string | undefined} who is connected, or was last; undefined until the first connection since `connect()` */
  user;
  #core;

  /** @param {import('../core.js').Core} core */
  constructor(core) {
    this.#core = core;
  }

  /**
   * @param {string} channel
   * @param {string} type
   * @param {unknown} data
   * @param {import('../channel.js').PublishOptions} [options]
   * @returns {Promise<import('../messages.js').Ack>}
   */
  publish(channel, type, data, options = {}) {
    const { id = this.#core.nextId(), key, ifRev } = options;
    return this.add({ type, id, channel, data, key, if_rev: ifRev }, options);
  }

  /**
   * @param {string} channel
   * @param {string} type
   * @param {string} key
   * @param {import('../channel.js').RemoveOptions} [options]
   * @returns {Promise<import('../messages.js').Ack>}
   */
  remove(channel, type, key, options = {}) {
    const { id = this.#core.nextId(), ifRev } = options;
    return this.add({ type, id, channel, key, removed: true, if_rev: ifRev }, options);
  }

  /**
   * Adds a request and returns the promise of its reply. A second call with the id of a pending request returns the same promise.
   * @param {Request} request
   * @param {{timeout?: number, signal?: AbortSignal}} options
   * @param {boolean} [isPublish]
   * @param {number} [restored]  its order, for a publish from before a reload: negative, so that it goes before the others
   * @returns {Promise<any>}
   */
  add(request, { timeout, signal }, isPublish = true, restored) {
    const { id, channel, type } = request;
    const known = this.#entries.get(id);
    if (known) return known.result.promise;
    const refuse = (/** @type {unknown} */ error) => Promise.reject(error);
    if (signal?.aborted) return refuse(signal.reason);
    if (this.#closed) return refuse(this.#closed);
    let text;
    try {
      text = JSON.stringify(request);
    } catch (cause) {
      return refuse(new TidewireError('invalid_data', `the data of ${type} is not JSON: ${cause}`, { channel, cause }));
    }
    const bytes = bytesOf(text);
    const { clock, random, maxPending } = this.#core;
    if (restored === undefined && (this.#entries.size >= maxPending || this.#bytes + bytes > MAX_BYTES)) {
      const message = `${this.#entries.size} requests (${this.#bytes} bytes) wait for an answer, so ${type} was not taken`;
      return refuse(new TidewireError('queue_full', message, { channel, retryable: true }));
    }
    /** @type {Entry} */
    const entry = {
      id,
      type,
      channel,
      lane: isPublish ? `c ${channel}` : `r ${id}`,
      text,
      bytes,
      isPublish,
      sent: false,
      flying: false,
      resting: false,
      timed: false,
      timeout: timeout === undefined ? timeout : bounded(timeout, 0, Infinity, Infinity),
      order: restored ?? ++this.#order,
      restored: restored !== undefined,
      deadline: new Timer(clock),
      retry: new Timer(clock),
      backoff: new Backoff(500, 5_000, random),
      forget: () => {},
      result: deferred(),
    };
    this.#entries.set(id, entry);
    this.#bytes += bytes;
    if (isPublish) this.pending += 1;
    this.#lanes.set(entry.lane, [...(this.#lanes.get(entry.lane) ?? []), entry].sort((a, b) => a.order - b.order));
    entry.forget = onAbort(signal, () => this.fail(entry, signal?.reason));
    this.outbox?.added(entry);
    if (this.#open) this.#time(entry);
    this.#core.wake();
    return entry.result.promise;
  }

  /** Whether publishes of this channel have no answer yet. @param {string} channel */
  has(channel) {
    return this.#lanes.has(`c ${channel}`);
  }

  waiting() {
    return this.#head() !== undefined;
  }

  /** The first entry that can be sent. */
  #head() {
    for (const [head] of this.#lanes.values()) if (this.#isDue(head)) return head;
    return undefined;
  }

  /** @param {Entry} entry */
  #isDue({ flying, resting, channel, isPublish }) {
    return !flying && !resting && !(isPublish && (this.held || this.#core.registry.joining(channel) === 'waiting'));
  }

  /** @param {number} maxBytes */
  next(maxBytes) {
    const entry = /** @type {Entry} */ (this.#head());
    if (entry.bytes > maxBytes) {
      const message = `${entry.type} has ${entry.bytes} bytes; the service accepts ${maxBytes}`;
      this.fail(entry, new TidewireError('too_big', message, { channel: entry.channel }));
      return undefined;
    }
    const verdict = this.outbox?.sending(entry) ?? true;
    if (verdict !== true) {
      if (verdict) this.fail(entry, verdict);
      return undefined;
    }
    entry.sent = entry.flying = true;
    return entry.text;
  }

  /**
   * Settles the request of a reply or refusal. Returns false if it answers none.
   * @param {{type: string, id?: string | null}} message
   */
  settle(message) {
    const entry = message.id ? this.#entries.get(message.id) : undefined;
    if (!entry || !['error', entry.isPublish || entry.type === 'refresh' ? 'ack' : entry.type].includes(message.type)) return false;
    if (message.type === 'error') this.#refused(entry, /** @type {import('../messages.js').ErrorMessage} */ (message));
    else this.#finish(entry).result.resolve(message);
    return true;
  }

  /** There is a connection: everything is sent again, unless somebody else has published it. */
  opened() {
    this.#open = true;
    this.#closed = undefined;
    this.outbox?.opened();
    const user = this.#core.welcome?.user ?? '';
    if ((this.user ??= user) !== user) this.#giveUp(this.publishes, 'another user connected');
    this.user = user;
    this.#go();
  }

  /**
   * Publishes wait until the outbox is here.
   * @param {() => Promise<(core: import('../core.js').Core) => Outbox>} load
   */
  async keep(load) {
    if (this.held || this.outbox) return;
    this.held = true;
    try {
      this.outbox = (await load())(this.#core);
      this.outbox.start();
    } catch (cause) {
      this.#core.report(new TidewireError('outbox_unavailable', `the outbox was not loaded: ${cause}`, { cause }));
      this.release();
    }
  }

  /** The outbox lets publishes go. */
  release() {
    this.held = false;
    if (this.#open) this.#go();
  }

  #go() {
    for (const entry of this.#entries.values()) this.#time(entry);
    this.#core.wake();
  }

  /** A new connection is wanted, so requests wait for it. */
  reopened() {
    this.#closed = undefined;
  }

  /**
   * The connection ended. If that was because of a message's size, the largest one fails.
   * @param {boolean} tooBig
   */
  interrupted(tooBig) {
    this.#open = false;
    const flying = [...this.#entries.values()].filter((entry) => entry.flying);
    if (tooBig && flying.length) {
      const largest = flying.reduce((most, entry) => (entry.bytes > most.bytes ? entry : most));
      this.fail(largest, new TidewireError('too_big', 'the service closed the connection over its size', { channel: largest.channel }));
    }
    for (const entry of this.#entries.values()) {
      entry.retry.stop();
      entry.flying = entry.resting = false;
    }
  }

  /**
   * Sends again what was refused because the channel was not subscribed yet.
   * @param {string} channel
   */
  joined(channel) {
    for (const entry of this.#lanes.get(`c ${channel}`) ?? []) if (entry.refusal?.code === 'not_subscribed') entry.resting = false;
    this.#core.wake();
  }

  /**
   * Fails all requests, and those that follow.
   * @param {string} reason
   */
  abandon(reason) {
    const why = `the client is closed: ${reason}`;
    const details = { reason };
    this.#closed = new TidewireError('not_sent', `it was never sent: ${why}`, { retryable: true, details });
    this.user = undefined;
    this.outbox?.closed(why);
    this.#giveUp([...this.#entries.values()], why, details);
  }

  /** @param {Entry[]} entries @param {string} why @param {any} [details] */
  #giveUp(entries, why, details) {
    for (const entry of entries) {
      const { type, channel } = entry;
      const [code, what] = fate(entry, 'uncertain');
      this.fail(entry, new TidewireError(code, `${type}: ${why}; ${what}`, { channel, retryable: details !== undefined, details }));
    }
  }

  /** Starts the timeout of an entry. @param {Entry} entry */
  #time(entry) {
    const { isPublish, timed } = entry;
    if (timed || (isPublish && this.held)) return;
    entry.timed = true;
    const timeout = (entry.timeout ??= isPublish && this.outbox ? Infinity : this.#core.requestTimeout);
    entry.deadline.start(timeout, () => this.fail(entry, entry.refusal ?? late(entry)));
  }

  /**
   * @param {Entry} entry
   * @param {import('../messages.js').ErrorMessage} message
   */
  #refused(entry, message) {
    const { channel } = entry;
    const error = TidewireError.from(message, channel);
    const early = error.code === 'not_subscribed' && (entry.restored || this.#core.registry.joining(channel) !== undefined);
    if (!early && !error.retryable) {
      this.fail(entry, error);
      return;
    }
    this.outbox?.refused(entry, error.code);
    entry.refusal = error;
    entry.flying = false;
    entry.resting = true;
    if (early) return; // `joined` sends it again
    const told = toldWait(error.details.retry_after);
    const wait = told === undefined ? entry.backoff.next() : spread(told, this.#core.random);
    entry.retry.start(wait, () => {
      entry.resting = false;
      this.#core.wake();
    });
  }

  /** The publishes without an answer. */
  get publishes() {
    return [...this.#entries.values()].filter(({ isPublish }) => isPublish);
  }

  /**
   * @param {Entry} entry
   * @param {unknown} error
   */
  fail(entry, error) {
    this.#finish(entry).result.reject(error);
  }

  /** @param {Entry} entry */
  #finish(entry) {
    if (!this.#entries.delete(entry.id)) return entry;
    entry.deadline.stop();
    entry.retry.stop();
    entry.forget();
    this.#bytes -= entry.bytes;
    if (entry.isPublish) this.pending -= 1;
    this.outbox?.settled(entry);
    const left = this.#lanes.get(entry.lane)?.filter((other) => other !== entry) ?? [];
    if (left.length) this.#lanes.set(entry.lane, left);
    else {
      this.#lanes.delete(entry.lane);
      if (entry.isPublish) this.#core.registry.sweep();
    }
    this.#core.wake();
    return entry;
  }
}

/** @param {Entry} entry */
function late(entry) {
  const { type, channel, timeout = 0 } = entry;
  const [code, what] = fate(entry, 'timeout');
  return new TidewireError(code, `no answer to ${type} within ${timeout / 1000} s; ${what}`, { channel, retryable: true });
}

/** What is known of an entry without an answer. @param {Entry} entry @param {string} code  if it was sent */
const fate = ({ sent }, code) => (sent ? [code, 'it may have happened'] : ['not_sent', 'it was never sent']);
