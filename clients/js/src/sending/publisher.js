import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { deferred, onAbort } from '../base/deferred.js';
import { resolve } from '../connection/address.js';
import { Backoff } from '../connection/backoff.js';
import { TidewireError } from '../errors.js';
import { bytesOf } from './sender.js';

/**
 * @typedef {import('../messages.js').ClientMessage & {id: string}} Request
 * @typedef {object} Entry
 * @property {string} id
 * @property {string} type
 * @property {string | undefined} channel
 * @property {string} text  the JSON of the request, made at the call
 * @property {boolean} isPublish
 * @property {number} order
 * @property {boolean} restored  published before a reload, so that nobody awaits it
 * @property {number | undefined} timeout
 * @property {import('../base/deferred.js').Deferred<any>} result
 * @property {Timer} retry
 * @property {Backoff} backoff
 * @property {Timer} [deadline]  while its timeout runs
 * @property {() => void} [forget]  stops listening to the signal
 * @property {boolean} [sent]  whether the service may have it
 * @property {boolean} [flying]  sent on this connection, without an answer
 * @property {boolean} [resting]  waits before it is sent again
 * @property {TidewireError} [refusal]  the last retryable one
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

/** Characters of all requests without an answer. */
const MAX_SIZE = 8_388_608;

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
  /** @type {Map<string, Entry>} by id, in the order of sending */
  #entries = new Map();
  #size = 0;
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
   * @param {true} [removed]  removes the value of the key
   * @returns {Promise<import('../messages.js').Ack>}
   */
  publish(channel, type, data, { id = this.#core.nextId(), key, ifRev, timeout, signal } = {}, removed) {
    return this.add({ type, id, channel, data, key, removed, if_rev: ifRev }, { timeout, signal });
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
    const { clock, random } = this.#core;
    let text;
    try {
      if (signal?.aborted) throw signal.reason;
      text = this.#encode(request, restored);
    } catch (error) {
      return Promise.reject(error);
    }
    /** @type {Entry} */
    const entry = {
      id,
      type,
      channel,
      text,
      isPublish,
      order: restored ?? ++this.#order,
      restored: restored !== undefined,
      timeout: timeout === undefined ? undefined : bounded(timeout, 0, Infinity, Infinity),
      result: deferred(),
      retry: new Timer(clock),
      backoff: new Backoff(500, 5_000, random),
    };
    this.#entries.set(id, entry);
    if (entry.restored) this.#entries = new Map([...this.#entries].sort(([, a], [, b]) => a.order - b.order));
    this.#size += text.length;
    entry.forget = onAbort(signal, () => this.fail(entry, signal?.reason));
    this.outbox?.added(entry);
    if (this.#open) this.#time(entry);
    this.#core.wake();
    return entry.result.promise;
  }

  /** The JSON of a request; throws if it cannot be taken. @param {Request} request @param {number} [restored] */
  #encode(request, restored) {
    const { type, channel } = request;
    if (this.#closed) throw this.#closed;
    let text;
    try {
      text = JSON.stringify(request);
    } catch (cause) {
      throw new TidewireError('invalid_data', `the data of ${type} is not JSON: ${cause}`, { channel, cause });
    }
    const { size } = this.#entries;
    if (restored === undefined && (size >= this.#core.maxPending || this.#size + text.length > MAX_SIZE)) {
      throw new TidewireError('queue_full', `${type} was not taken: ${size} requests (${this.#size} characters) wait for an answer`, { channel, retryable: true });
    }
    return text;
  }

  /** The publishes without an answer. */
  get publishes() {
    return [...this.#entries.values()].filter(({ isPublish }) => isPublish);
  }

  /** Whether publishes of this channel have no answer yet. @param {string} name */
  has(name) {
    return this.publishes.some(({ channel }) => channel === name);
  }

  // --- sending ----------------------------------------------------------------------------------------------------------

  waiting() {
    return this.#first() !== undefined;
  }

  /** The first request that can be sent. */
  #first() {
    const busy = new Set();
    for (const entry of this.#entries.values()) {
      const { channel, isPublish } = entry;
      const mustWait = isPublish && (this.held || busy.has(channel) || this.#core.registry.joining(channel) === 'waiting');
      if (!mustWait && !entry.flying && !entry.resting) return entry;
      if (isPublish) busy.add(channel);
    }
    return undefined;
  }

  /** @param {number} maxBytes */
  next(maxBytes) {
    const entry = /** @type {Entry} */ (this.#first());
    const bytes = bytesOf(entry.text);
    const verdict = bytes > maxBytes ? tooBig(entry, `it has ${bytes} bytes; the service accepts ${maxBytes}`) : (this.outbox?.sending(entry) ?? true);
    if (verdict === true) {
      entry.sent = entry.flying = true;
      return entry.text;
    }
    if (verdict) this.fail(entry, verdict);
    return undefined;
  }

  /** There is a connection: everything is sent again, unless somebody else has published it. */
  opened() {
    this.#open = true;
    this.#closed = undefined;
    this.outbox?.opened();
    const user = this.#core.welcome?.user ?? '';
    if ((this.user ??= user) !== user) for (const entry of this.publishes) this.#giveUp(entry, 'uncertain', 'another user connected', false);
    this.user = user;
    this.#go();
  }

  #go() {
    for (const entry of this.#entries.values()) this.#time(entry);
    this.#core.wake();
  }

  /** Starts the timeout of an entry. @param {Entry} entry */
  #time(entry) {
    const { isPublish } = entry;
    if (entry.deadline || (isPublish && this.held)) return;
    const timeout = (entry.timeout ??= isPublish && this.outbox ? Infinity : this.#core.requestTimeout);
    entry.deadline = new Timer(this.#core.clock);
    entry.deadline.start(timeout, () => {
      if (entry.refusal) this.fail(entry, entry.refusal);
      else this.#giveUp(entry, 'timeout', `no answer within ${timeout / 1000} s`, true);
    });
  }

  /** The outbox lets publishes go. */
  release() {
    this.held = false;
    if (this.#open) this.#go();
  }

  // --- answers ----------------------------------------------------------------------------------------------------------

  /**
   * Settles the request of a reply or refusal. Returns false if it answers none.
   * @param {{type: string, id?: string | null}} message
   */
  settle(message) {
    const entry = this.#entries.get(message.id ?? '');
    if (!entry) return false;
    if (message.type === 'error') this.#refused(entry, /** @type {import('../messages.js').ErrorMessage} */ (message));
    else if (message.type === (entry.isPublish || entry.type === 'refresh' ? 'ack' : entry.type)) this.#finish(entry).result.resolve(message);
    else return false;
    return true;
  }

  /**
   * @param {Entry} entry
   * @param {import('../messages.js').ErrorMessage} message
   */
  #refused(entry, message) {
    const { channel } = entry;
    const error = TidewireError.from(message, channel);
    const isEarly = error.code === 'not_subscribed' && (entry.restored || this.#core.registry.joining(channel));
    if (!isEarly && !error.retryable) {
      this.fail(entry, error);
      return;
    }
    this.outbox?.refused(entry, error.code);
    entry.refusal = error;
    entry.flying = false;
    entry.resting = true;
    if (isEarly) return; // `joined` sends it again
    entry.retry.start(entry.backoff.after(error.details.retry_after), () => {
      entry.resting = false;
      this.#core.wake();
    });
  }

  /**
   * Sends again what was refused because the channel was not subscribed yet.
   * @param {string} channel
   */
  joined(channel) {
    for (const entry of this.publishes) if (entry.channel === channel && entry.refusal?.code === 'not_subscribed') entry.resting = false;
    this.#core.wake();
  }

  // --- the end ----------------------------------------------------------------------------------------------------------

  /**
   * The connection ended. If that was because of a message's size, the largest one fails.
   * @param {boolean} isTooBig
   */
  interrupted(isTooBig) {
    this.#open = false;
    const entries = [...this.#entries.values()];
    const [largest] = entries.filter(({ flying }) => flying).sort((a, b) => b.text.length - a.text.length);
    if (isTooBig && largest) this.fail(largest, tooBig(largest, 'the service closed the connection'));
    for (const entry of entries) {
      entry.retry.stop();
      entry.flying = entry.resting = false;
    }
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
    for (const entry of [...this.#entries.values()]) this.#giveUp(entry, 'uncertain', why, true, details);
  }

  /**
   * A connection is wanted, so requests wait for it. If there is an outbox, publishes wait for that first.
   * @param {import('../client.js').Options['outbox']} options
   * @param {string | URL} url
   */
  async reopened(options, url) {
    this.#closed = undefined;
    if (!options || this.held || this.outbox) return;
    this.held = true;
    try {
      const { outboxFor } = await import('../outbox/outbox.js');
      this.outbox = outboxFor(options, String(resolve(url)).replace(/\?.*/, ''))(this.#core);
      this.outbox.start();
    } catch (cause) {
      this.#core.report(new TidewireError('outbox_unavailable', `the outbox was not loaded: ${cause}`, { cause }));
      this.release();
    }
  }

  /**
   * Fails a request without an answer.
   * @param {Entry} entry
   * @param {string} code  if it was sent
   * @param {string} why
   * @param {boolean} retryable
   * @param {any} [details]
   */
  #giveUp(entry, code, why, retryable, details) {
    const { channel, sent, type } = entry;
    const message = `${type}: ${why}; it ${sent ? 'may have happened' : 'was never sent'}`;
    this.fail(entry, new TidewireError(sent ? code : 'not_sent', message, { channel, retryable, details }));
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
    entry.deadline?.stop();
    entry.retry.stop();
    entry.forget?.();
    this.#size -= entry.text.length;
    this.outbox?.settled(entry);
    if (entry.isPublish) this.#core.registry.sweep();
    this.#core.wake();
    return entry;
  }
}

/** @param {Entry} entry @param {string} why */
const tooBig = ({ channel, type }, why) => new TidewireError('too_big', `${type} is too big: ${why}`, { channel });
