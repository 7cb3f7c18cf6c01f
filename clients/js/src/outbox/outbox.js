import { bounded } from '../base/bounds.js';
import { Timer, within } from '../base/clock.js';
import { TidewireError } from '../errors.js';
import { Database } from './database.js';
import { Owner } from './owner.js';
import { LONG_AGO, SentTime } from './sent-time.js';
import { Stored } from './stored.js';

/**
 * @typedef {import('../sending/publisher.js').Entry} Entry
 * @typedef {import('./database.js').StoredPublish} StoredPublish
 *
 * @typedef {object} OutboxOptions
 * @property {string} [name]  of the database, `tidewire-outbox`; one for each tenant, where user ids of tenants may be the same
 * @property {string} [user]  who is logged in. Without it, publishes before the first connection are kept in memory only.
 * @property {number} [maxEntries]  of a user, 1 000
 * @property {number} [maxAge]  ms until an entry is dropped, 7 days
 * @property {number} [window]  ms, the service's `broker.idempotency_window`, 300 000
 *
 * @typedef {object} Kept  a publish without an answer; frozen
 * @property {string} id
 * @property {string} channel
 * @property {string} type
 * @property {any} data
 * @property {number} at  wall clock ms of the call
 * @property {string} [key]
 * @property {true} [removed]
 *
 * @typedef {Kept & {retry: () => Promise<import('../messages.js').Ack>, discard: () => void}} Uncertain
 *   a publish that the service may have, and may have forgotten. It is not sent again by itself. `retry` may store it twice.
 *
 * @typedef {{id: string, channel: string, type: string, ack: import('../messages.js').Ack}} Published
 *
 * @typedef {object} Item
 * @property {Entry | undefined} entry  undefined while it is uncertain
 * @property {string} text
 * @property {number} at
 * @property {string | undefined} user  undefined before the first connection
 * @property {boolean} stored  in the database, or on its way
 * @property {import('./sent-time.js').SentAt | undefined} sentAt  the first time that the service may have got it
 * @property {number} markedAt  monotonic ms from which on the database says so; Infinity: it does not
 * @property {number} sends
 * @property {boolean} left  stays in the database, for another connection of its user
 * @property {boolean} uncertain
 * @property {Kept} shown
 */

/**
 * What the client loads for its option `outbox`.
 * @param {true | OutboxOptions} options
 * @param {string} service  its address without a query
 * @returns {(core: import('../core.js').Core, publisher: import('../sending/publisher.js').Publisher) => Outbox}
 */
export const outboxFor = (options, service) => (core, publisher) => new Outbox(core, publisher, options, service);

/** Milliseconds for the database before publishes are sent without it. */
const PATIENCE = 5_000;
/** Milliseconds between two looks at clocks, and at what closed pages have left. */
const INTERVAL = 15_000;
/** Publishes that are marked as sent together. */
const BATCH = 32;
/** A mark is made again before the first send if it is older (ms): a page that ends then leaves less in doubt. */
const FRESH = 10_000;
/** Restored publishes go before all others of their channel. */
const FIRST = -(2 ** 52);

/**
 * Keeps publishes in IndexedDB until they are answered, over reloads of the page. An entry belongs to the user of `welcome`, and only
 * a connection of this user sends it. Without a database, publishes wait in memory, as they do without an outbox.
 */
export class Outbox {
  #core;
  #publisher;
  #options;
  #stored;
  #owner;
  #sentTime;
  #tick;
  /** @type {string | undefined} whose publishes these are */
  #user;
  /** Whether what the user has published before the reload is here. */
  #restored = false;
  /** @type {Map<string, Item>} by id */
  #items = new Map();
  /** @type {{entries: readonly Kept[], uncertain: readonly Uncertain[]} | undefined} */
  #view;
  #told = false;
  /** @type {Set<Item>} that wait for a mark */
  #unmarked = new Set();
  #marking = false;
  #run = 0;
  /** The faults that were reported. */
  #reported = '';

  /**
   * @param {import('../core.js').Core} core
   * @param {import('../sending/publisher.js').Publisher} publisher
   * @param {true | OutboxOptions} options
   * @param {string} service  its address without a query
   */
  constructor(core, publisher, options, service) {
    const { clock } = core;
    this.#core = core;
    this.#publisher = publisher;
    this.#options = options === true ? {} : options;
    const { name = 'tidewire-outbox', user, maxEntries, maxAge, window } = this.#options;
    this.#owner = new Owner(name, core.nextId());
    const database = new Database(name, clock, () => this.#owner.live(), () => this.#rest());
    this.#stored = new Stored(database, service, bounded(maxEntries, 1, 100_000, 1_000), bounded(maxAge, 60_000, 31_536_000_000, 604_800_000));
    this.#sentTime = new SentTime(clock, window);
    this.#tick = new Timer(clock);
    this.#user = user || undefined;
  }

  /** Takes over what was published before. */
  start() {
    this.#user ??= this.#core.user; // known, even if the connection was lost while this file was loaded
    for (const entry of this.#publisher.publishes) this.added(entry);
    if (this.#core.sender) this.opened();
  }

  // --- what the application sees ---------------------------------------------------------------------------------------

  /** The publishes of the user without an answer; an array that is replaced when something changes. */
  get entries() {
    return this.#shown().entries;
  }

  /** The publishes of the user that are not sent again by themselves. */
  get uncertain() {
    return this.#shown().uncertain;
  }

  #shown() {
    if (this.#view) return this.#view;
    const items = [...this.#items.values()];
    const entries = items.filter(({ uncertain }) => !uncertain).map(({ shown }) => shown);
    const uncertain = items.filter((item) => item.uncertain).map((item) => {
      return Object.freeze({ ...item.shown, retry: () => this.#retry(item), discard: () => this.#discard(item) });
    });
    this.#view = { entries: Object.freeze(entries), uncertain: Object.freeze(uncertain) };
    return this.#view;
  }

  #changed() {
    this.#view = undefined;
    if (this.#told) return;
    this.#told = true;
    queueMicrotask(() => {
      this.#told = false;
      this.#core.emitter.emit('outbox', undefined);
    });
  }

  /** @param {Item} item */
  #retry(item) {
    if (this.#items.get(item.shown.id) !== item || !item.uncertain) return Promise.reject(new TidewireError('not_sent', `${item.shown.id} is not uncertain`));
    return this.#publisher.add(JSON.parse(item.text), {});
  }

  /** @param {Item} item */
  #discard(item) {
    if (this.#items.get(item.shown.id) === item && item.uncertain) this.#forget(item);
  }

  // --- what the publisher tells ----------------------------------------------------------------------------------------

  /** @param {Entry} entry */
  added(entry) {
    if (!entry.isPublish || entry.type.startsWith('presence.')) return;
    const known = this.#items.get(entry.id);
    if (known?.uncertain === false) {
      known.entry = entry; // restored
      return;
    }
    const item = this.#item(entry.text, Date.now(), entry);
    this.#items.set(entry.id, item);
    this.#changed();
    if (this.#user !== undefined) this.#store(item);
  }

  /**
   * @param {string} text
   * @param {number} at
   * @param {Entry} [entry]
   * @returns {Item}
   */
  #item(text, at, entry) {
    const { id, channel, type, data, key, removed } = JSON.parse(text);
    const shown = Object.freeze({ id, channel, type, data, at, ...(key === undefined ? {} : { key }), ...(removed ? { removed } : {}) });
    return { entry, text, at, user: undefined, stored: false, sentAt: undefined, markedAt: Infinity, sends: 0, left: false, uncertain: false, shown };
  }

  /** Stores an item for the present user. @param {Item} item */
  #store(item) {
    const user = (item.user = /** @type {string} */ (this.#user));
    if (!user) return; // an anonymous user is another one on each connection
    const { text, at, shown, entry } = item;
    const isOpen = this.#core.sender !== undefined;
    const maySent = isOpen || entry?.sent ? Date.now() : 0;
    if (maySent) item.markedAt = this.#core.clock.now();
    item.stored = true;
    void (async () => {
      try {
        if (await this.#stored.add({ user, id: shown.id, text, at, maySent, uncertain: false, owner: this.#owner.id })) {
          this.#reported = '';
          return;
        }
        this.#warn('outbox_full', 'the outbox has as many entries as it may');
      } catch (error) {
        this.#broken(error);
      }
      item.stored = false;
    })();
  }

  /** @param {Entry} entry */
  sending(entry) {
    const item = this.#items.get(entry.id);
    if (!item) return true;
    if (entry.sent) return item.sentAt && this.#sentTime.isOld(item.sentAt) ? this.#doubt(item) : this.#count(item);
    const now = this.#core.clock.now();
    if (item.stored && !(now - item.markedAt <= FRESH)) {
      entry.resting = true;
      this.#unmarked.add(item);
      void this.#mark();
      return false;
    }
    item.sentAt = this.#sentTime.now();
    return this.#count(item);
  }

  /** @param {Item} item */
  #count(item) {
    item.sends += 1;
    return true;
  }

  /** Tells the database which publishes the service may have soon, and then lets them go. */
  async #mark() {
    if (this.#marking) return;
    this.#marking = true;
    while (this.#unmarked.size) {
      const waiting = [...this.#unmarked];
      this.#unmarked.clear();
      await this.#markBatch(waiting);
      for (const { entry } of waiting) if (entry) entry.resting = false;
      this.#core.wake();
    }
    this.#marking = false;
  }

  /** Marks publishes, and those that follow them. @param {Item[]} waiting */
  async #markBatch(waiting) {
    const now = this.#core.clock.now();
    const next = [...this.#items.values()].filter(({ entry, stored }) => entry && !entry.sent && stored).slice(0, BATCH);
    const items = [...new Set([...waiting, ...next])];
    try {
      await this.#stored.change(this.#user ?? '', items.map(({ shown }) => shown.id), { maySent: Date.now() });
      for (const item of items) item.markedAt = now;
    } catch (error) {
      this.#broken(error);
      for (const item of items) item.stored = false;
    }
  }

  /**
   * The service has refused a publish for now. If it never got it before, it does not have it.
   * @param {Entry} entry
   * @param {string} code
   */
  refused(entry, code) {
    const item = this.#items.get(entry.id);
    if (!item || item.sends !== 1 || !['not_subscribed', 'rate_limited'].includes(code) || item.sentAt?.monotonic === undefined) return;
    entry.sent = false;
    item.sends = 0;
    item.sentAt = undefined;
    item.markedAt = Infinity;
    if (item.stored) this.#try(this.#stored.change(item.user ?? '', [item.shown.id], { maySent: 0 }));
  }

  /** @param {Entry} entry */
  settled(entry) {
    const item = this.#items.get(entry.id);
    if (!item || item.entry !== entry) return;
    item.entry = undefined;
    if (item.uncertain) this.#changed();
    else if (item.left) this.#drop(item);
    else this.#forget(item);
  }

  opened() {
    const user = this.#core.welcome?.user ?? '';
    if (this.#user !== undefined && user !== this.#user) this.#leave(`it belongs to the user ${this.#user || 'anonymous'}`, false);
    if (user !== this.#user) this.#restored = false;
    this.#user = user;
    for (const item of this.#items.values()) if (item.user === undefined) this.#store(item);
    if (!user) this.#warn('outbox_unavailable', 'an anonymous user has no outbox');
    this.#publisher.held = !this.#restored;
    this.#tick.start(INTERVAL, () => this.#look());
    void this.#restore();
  }

  /** @param {string} why */
  closed(why) {
    this.#run += 1;
    this.#tick.stop();
    this.#leave(why, true);
    this.#user = this.#options.user || undefined;
    this.#restored = false;
    this.#publisher.held = true; // until the next `opened`
  }

  // --- the life of an item ---------------------------------------------------------------------------------------------

  /** @param {Item} item */
  #drop(item) {
    if (this.#items.get(item.shown.id) === item) this.#items.delete(item.shown.id);
    this.#unmarked.delete(item);
    this.#changed();
  }

  #rest() {
    if (![...this.#items.values()].some(({ stored }) => stored)) this.#owner.rest();
  }

  /** @param {Item} item */
  #forget(item) {
    if (item.stored) this.#try(this.#stored.remove(item.user ?? '', item.shown.id));
    this.#drop(item);
  }

  /** @param {Item} item */
  #doubt(item) {
    const { id, channel, type } = item.shown;
    item.uncertain = true;
    if (item.stored) this.#try(this.#stored.change(item.user ?? '', [id], { uncertain: true }));
    this.#changed();
    const help = 'See `client.outbox.uncertain`; retry() or discard() it.';
    return new TidewireError('uncertain', `${type} ${id} may have happened; the service may have forgotten its id`, { channel, help, details: { id } });
  }

  /**
   * Takes the user's publishes out of this client. What is stored waits for the user's next connection.
   * @param {string} why
   * @param {boolean} isClosed  the publisher fails the others itself
   */
  #leave(why, isClosed) {
    /** @type {string[]} */
    const ids = [];
    const user = this.#user ?? '';
    for (const item of [...this.#items.values()]) {
      const { entry, stored, shown } = item;
      const { id, channel, type } = shown;
      if (stored) {
        item.left = true;
        ids.push(id);
        const help = 'It is sent when its user connects again.';
        if (entry) this.#publisher.fail(entry, new TidewireError('in_outbox', `${type} ${id} stays in the outbox: ${why}`, { channel, help, details: { id } }));
        else this.#drop(item);
      } else if (!isClosed && entry && item.user !== undefined) {
        const code = entry.sent ? 'uncertain' : 'not_sent';
        this.#publisher.fail(entry, new TidewireError(code, `${type} ${id} is not sent: ${why}`, { channel, details: { id } }));
      }
    }
    if (ids.length) this.#try(this.#stored.change(user, ids, { owner: '' }));
  }

  // --- after a reload --------------------------------------------------------------------------------------------------

  /** Takes over what no living page sends, then lets publishes go. */
  async #restore() {
    const user = this.#user;
    this.#run += 1;
    const run = this.#run;
    const isCurrent = () => run === this.#run && user === this.#user;
    try {
      if (user) await within(this.#core.clock, PATIENCE, this.#inherit(user, isCurrent), () => new Error('no answer in time'));
    } catch (error) {
      if (isCurrent()) this.#broken(error);
    }
    if (!isCurrent()) return;
    this.#restored = true;
    this.#publisher.retries.release();
  }

  /**
   * @param {string} user
   * @param {() => boolean} isCurrent
   */
  async #inherit(user, isCurrent) {
    const me = this.#owner.id;
    if (!this.#owner.isExact && this.#restored) return;
    const found = (await this.#stored.read(user)).filter(({ owner }) => owner !== me);
    /** @type {Map<string, StoredPublish[]>} */
    const byOwner = new Map();
    for (const publish of found) byOwner.set(publish.owner, [...(byOwner.get(publish.owner) ?? []), publish]);
    /** @type {StoredPublish[]} */
    const mine = [];
    if (found.length) await this.#owner.live();
    for (const [owner, publishes] of byOwner) {
      if (!isCurrent()) return;
      mine.push(...(await this.#owner.inherit(owner, () => this.#stored.transfer(publishes, owner, me), /** @type {StoredPublish[]} */ ([]))));
    }
    mine.sort((a, b) => a.seq - b.seq);
    if (isCurrent()) this.#take(mine);
    else if (mine.length) await this.#stored.change(user, mine.map(({ id }) => id), { owner: '' });
    this.#rest();
  }

  /** @param {StoredPublish[]} publishes */
  #take(publishes) {
    /** @type {string[]} */
    const expired = [];
    for (const publish of publishes) {
      const { id, user, text, at, seq, maySent } = publish;
      if (this.#items.has(id)) continue; // the application has published it again
      const item = this.#item(text, at);
      Object.assign(item, { user, stored: true, sentAt: maySent ? { wall: maySent } : undefined });
      if (this.#stored.isTooOld(publish)) {
        expired.push(id);
        this.#try(this.#stored.remove(user, id));
        continue;
      }
      this.#items.set(id, item);
      if (publish.uncertain || (item.sentAt && this.#sentTime.isOld(item.sentAt))) {
        const error = this.#doubt(item);
        if (!publish.uncertain) this.#core.report(error);
      } else this.#send(item, FIRST + seq);
    }
    if (expired.length) {
      const message = `${expired.length} publishes were too old and are dropped`;
      this.#core.report(new TidewireError('outbox_expired', message, { help: 'See `maxAge` of the outbox.', details: { ids: expired.slice(0, 100) } }));
    }
    this.#changed();
  }

  /**
   * Publishes what was published before a reload. Nobody awaits it, so events tell of its end.
   * @param {Item} item
   * @param {number} order
   */
  #send(item, order) {
    const { emitter } = this.#core;
    const publisher = this.#publisher;
    const { id, channel, type } = item.shown;
    const ack = publisher.add(JSON.parse(item.text), { order });
    publisher.entries = new Map([...publisher.entries].sort(([, a], [, b]) => (a.order ?? 0) - (b.order ?? 0)));
    if (item.entry && item.sentAt) item.entry.sent = true;
    ack.then(
      (ack) => emitter.emit('published', { id, channel, type, ack }),
      (error) => !item.left && this.#core.report(error),
    );
  }

  /** Looks for what closed pages have left, and at the clocks. */
  #look() {
    this.#tick.start(INTERVAL, () => this.#look());
    const items = [...this.#items.values()];
    for (const item of items) {
      if (item.entry?.sent && item.sentAt && this.#sentTime.isOld(item.sentAt)) this.#publisher.fail(item.entry, this.#doubt(item));
    }
    const marked = items.filter(({ stored, entry, markedAt, sentAt }) => stored && entry && (markedAt < Infinity || sentAt)).map(({ shown }) => shown.id);
    if (this.#sentTime.wasSetBack() && marked.length) this.#try(this.#stored.change(this.#user ?? '', marked, { maySent: LONG_AGO }));
    if (this.#core.sender) void this.#restore();
    else if (items.length) this.#try(this.#stored.tick());
  }

  // --- faults ----------------------------------------------------------------------------------------------------------

  /** @param {Promise<unknown>} work */
  #try(work) {
    work.catch((error) => this.#broken(error));
  }

  /** @param {unknown} error */
  #broken(error) {
    this.#warn('outbox_unavailable', `the outbox cannot be used: ${error}`);
  }

  /** Reports a fault once, until something is stored again. @param {string} code @param {string} message */
  #warn(code, message) {
    if (this.#reported === code) return;
    this.#reported = code;
    this.#core.report(new TidewireError(code, `${message}; publishes are kept in memory only`, { help: 'Publishes are lost if the page is closed before their answers.' }));
  }
}
