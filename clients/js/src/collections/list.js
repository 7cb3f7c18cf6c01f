import { bounded } from '../base/bounds.js';
import { TidewireError } from '../errors.js';
import { Collection } from './collection.js';
import { askSnapshot } from './snapshot.js';
import { Timeline } from './timeline.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {import('./channel-types.js').ListOptions<any>} ListOptions
 * @typedef {import('./channel-types.js').ListSnapshot<any>} ListSnapshot
 */

/** Events of a page where earlier pages had too few of the types of the list. */
const PAGE = 100;
/** Pages that are read at once, until there are as many items as wanted. */
const MAX_PAGES = 10;

/**
 * The newest durable events of a channel, in order and without a gap. Where events are missing, it reads them again, and shows the
 * earlier items until then.
 * @extends {Collection<ListSnapshot>}
 */
export class List extends Collection {
  /** @type {Timeline | undefined} since the first `subscribed` */
  #timeline;
  /** @type {Event[]} items from before events were missing */
  #stale = [];
  /** @type {readonly Event[]} */
  #items = Object.freeze([]);
  #isDirty = false;
  #types;
  #keyOf;
  #tail;
  #max;
  #snapshotOf;
  /** @type {AbortController | undefined} while the first items are read, or wait for that */
  #reading;
  /** @type {AbortController | undefined} ends all reads for the timeline */
  #window;
  /** @type {Promise<number> | undefined} */
  #older;

  /**
   * @param {import('../channel.js').Channel<any, any>} channel
   * @param {string | readonly string[]} types
   * @param {ListOptions} options
   * @param {import('../subscriptions/subscription.js').Handle} handle
   */
  constructor(channel, types, { tail = 50, max = 1_000, key = ({ id }) => id, snapshot, signal }, handle) {
    super(channel, signal);
    this.#types = new Set([types].flat());
    this.#keyOf = key;
    this.#max = bounded(max, 1, 1e6, 1_000);
    this.#tail = bounded(tail, 0, this.#max, 50);
    this.#snapshotOf = snapshot;
    if (this.isEnded) return;
    if (!snapshot) handle.tail = Math.max(handle.tail, this.#tail);
    this.hear('subscribed', (info) => this.#subscribed(info));
    this.hear('tail', (events) => this.#tailed(events));
    this.hear('event.removed', (event) => this.#removed(event));
    this.hear('excluded', (event) => this.#types.has(event.type) && this.#event(event));
    for (const type of this.#types) this.hear(type, (event) => this.#event(event));
    this.inOrder(() => this.#join());
  }

  /** The events, oldest first: a frozen array, which is replaced only when it changes. @returns {readonly any[]} */
  get items() {
    if (!this.#isDirty) return this.#items;
    this.#isDirty = false;
    const items = this.#merged();
    const isSame = items.length === this.#items.length && items.every((item, index) => item === this.#items[index]);
    if (!isSame) this.#items = Object.freeze(items);
    return this.#items;
  }

  /** Whether the channel keeps older events than those in `items`; `loadOlder` reads them. */
  get hasOlder() {
    return !this.#snapshotOf && Boolean(this.#timeline?.hasOlder);
  }

  /**
   * Reads older items. Resolves with the number of items that were added: 0 if there are no older ones, or if the list is loading again.
   * @param {number} [count]
   * @returns {Promise<number>}
   */
  loadOlder(count = 50) {
    this.#older ??= this.#readOlder(bounded(count, 1, this.#max, 50)).finally(() => (this.#older = undefined));
    return this.#older;
  }

  /** @protected @override @returns {ListSnapshot} */
  read() {
    const { items, status, hasOlder, error } = this;
    return { items, status, hasOlder, error };
  }

  /** @protected @override */
  stopped() {
    this.#window?.abort();
    this.#reading = undefined;
    this.retry.stop();
  }

  // --- the channel ------------------------------------------------------------------------------------------------------

  /** Joins a subscription that is there already, after the events that it has handed out. */
  #join() {
    const { position, info } = this.subscription.delivery;
    if (this.#timeline || !position || !info) return;
    this.#start(position.epoch, position.offset);
    this.#complete();
  }

  /** @param {import('../subscriptions/delivery.js').Info} info */
  #subscribed({ recovered, epoch, offset, missed }) {
    const { position } = this.subscription.delivery;
    const resumes = recovered === true && position?.epoch === epoch;
    if (!resumes || this.#timeline?.epoch !== epoch) this.#start(epoch, resumes ? position.offset : offset - missed);
    this.inOrder(() => this.#complete());
  }

  /** Loads the list again from this offset on. It shows the old items until the new ones are read. @param {string} epoch @param {number} low */
  #start(epoch, low) {
    this.stopped();
    this.#stale = this.#merged();
    this.#window = new AbortController();
    this.#timeline = new Timeline(epoch, low, this.#keyOf, this.#max);
    this.isLoaded = false;
    this.error = undefined;
    this.#changed();
  }

  /** All that came with `subscribed` has been handed out. */
  #complete() {
    this.connected();
    if (this.#window?.signal.aborted) this.#window = new AbortController(); // the client was closed
    if (!this.isLoaded && !this.#reading) void this.#read();
  }

  /** The last events, which came with `subscribed`. @param {Event[]} events */
  #tailed(events) {
    const timeline = this.#timeline;
    if (!timeline || this.#snapshotOf || this.isLoaded) return;
    const older = ordered(events, 0, timeline.low);
    const low = older.length ? /** @type {number} */ (older[0].offset) - 1 : events.length ? timeline.low : 0;
    timeline.prepend(this.#chosen(older), low, low > 0);
    this.#changed();
  }

  /** @param {Event} event */
  #event(event) {
    if (event.offset === undefined) {
      this.error = this.problem('not_durable', `${event.type} is not durable, so a list does not show it`);
      this.core.report(this.error, this.subscription);
      this.close();
      return;
    }
    this.#timeline?.append(event);
    this.#changed();
  }

  /** @param {Event} event */
  #removed({ data }) {
    const removals = [data, ...(Array.isArray(data?.more) ? data.more : [])].filter((one) => one);
    const ids = new Set(removals.map(({ id }) => id));
    this.#stale = this.#stale.filter(({ id }) => !ids.has(id));
    const timeline = this.#timeline;
    const isWhole = timeline?.remove(removals) ?? true;
    if (timeline && !isWhole) {
      this.#start(timeline.epoch, this.subscription.delivery.position?.offset ?? timeline.low);
      this.#timeline?.remove(removals); // a snapshot may be older
      this.inOrder(() => this.#complete());
    } else if (this.isLoaded && !this.#reading && !this.#older) timeline?.settled();
    this.#changed();
  }

  // --- reading ----------------------------------------------------------------------------------------------------------

  /** Reads the first items; after an error that can pass again, with backoff. */
  async #read() {
    const { signal } = (this.#reading = /** @type {AbortController} */ (this.#window));
    /** @type {TidewireError | undefined} */
    let error;
    try {
      await (this.#snapshotOf ? this.#takeSnapshot(signal) : this.#readPages(this.#tail, signal));
    } catch (cause) {
      if (!signal.aborted) error = this.#failure(cause);
    }
    if (signal.aborted) return;
    if (error?.retryable) {
      this.error = error;
      this.changed();
      this.retry.start(this.backoff.next(), () => void this.#read());
      return;
    }
    this.backoff.attempt = 0;
    this.#reading = undefined;
    this.#stale = [];
    this.#timeline?.settled();
    this.#changed();
    this.loaded();
    this.error = error;
  }

  /** The error to show. The first of a row is reported. @param {any} cause */
  #failure(cause) {
    if (this.#snapshotOf || cause instanceof TidewireError) return this.failure(cause);
    return this.failure(this.problem('handler_failed', `the key function threw: ${cause}`, { cause }));
  }

  /**
   * Reads older events until there are as many items as wanted, or no older events.
   * @param {number} wanted
   * @param {AbortSignal} signal
   */
  async #readPages(wanted, signal) {
    const timeline = /** @type {Timeline} */ (this.#timeline);
    const pages = MAX_PAGES + wanted / PAGE;
    for (let read = 0; read < pages && timeline.hasOlder && timeline.entries.length < wanted; read += 1) {
      const { low } = timeline;
      const limit = read ? PAGE : Math.min(PAGE, wanted - timeline.entries.length);
      const { epoch, events, more } = await this.channel.history({ before: low + 1, limit, signal });
      if (signal.aborted) return;
      if (epoch !== timeline.epoch) throw this.#moved();
      if (low !== timeline.low) continue; // newer events have pushed older ones out meanwhile
      const older = ordered(events, 0, low);
      timeline.prepend(this.#chosen(older), (older[0]?.offset ?? 1) - 1, more && older.length > 0);
      this.#changed();
    }
  }

  /** @param {number} count */
  async #readOlder(count) {
    const timeline = this.#timeline;
    const signal = this.#window?.signal;
    if (!timeline || !signal || !this.isLoaded || !this.hasOlder) return 0;
    const { low, entries } = timeline;
    if (entries.length >= this.#max) {
      this.core.report(this.problem('list_full', `the list has ${this.#max} items, as many as it may`), this.subscription);
      return 0;
    }
    try {
      await this.#readPages(Math.min(this.#max, entries.length + count), signal);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
    if (signal.aborted) return 0;
    if (!this.#reading) timeline.settled();
    return timeline.entries.filter(({ place }) => place <= low).length;
  }

  /** @param {AbortSignal} signal */
  async #takeSnapshot(signal) {
    const timeline = /** @type {Timeline} */ (this.#timeline);
    const result = await askSnapshot(this.core.clock, /** @type {any} */ (this.#snapshotOf), signal);
    /** @type {{items: any, position?: import('../messages.js').Position}} */
    const { items, position } = Array.isArray(result) ? { items: result } : (result ?? {});
    if (!Array.isArray(items)) throw new TypeError('it must return an array, or {items, position}');
    if (items.some((item) => typeof this.#keyOf(item) !== 'string')) throw new TypeError('an item has no id');
    const included = position?.offset ?? timeline.low;
    if (position && position.epoch !== timeline.epoch) throw this.#moved();
    /** @type {Event[]} */
    const missing = [];
    for (let last = included; last < timeline.low; ) {
      const { low } = timeline; // newer events may push older ones out meanwhile
      missing.push(...(await this.#between(last, low, signal)));
      if (signal.aborted) return;
      if (missing.length > MAX_PAGES * PAGE) throw tooOld(missing.length);
      last = low;
    }
    const removed = new Set(missing.filter(isRemoval).flatMap(({ data }) => [data, ...(data?.more ?? [])].map((one) => one?.id)));
    const current = items.filter(({ id }) => !removed.has(id));
    timeline.base([...current, ...this.#chosen(missing)], Math.max(included, timeline.low));
  }

  /**
   * The events after a position that the application has read, until those of the timeline.
   * @param {number} after
   * @param {number} until
   * @param {AbortSignal} signal
   */
  async #between(after, until, signal) {
    /** @type {Event[]} */
    const all = [];
    for (let last = after; last < until; last = /** @type {number} */ (all[all.length - 1].offset)) {
      const page = await this.channel.history({ after: last, before: until + 1, limit: PAGE, signal });
      const events = ordered(page.events, last, until);
      if (page.epoch !== this.#timeline?.epoch) throw this.#moved();
      if (events[0]?.offset !== last + 1 || all.length > MAX_PAGES * PAGE) throw tooOld(until - after);
      all.push(...events);
    }
    return all;
  }

  #moved() {
    return this.problem('conflict', 'the channel has a new epoch meanwhile', { retryable: true });
  }

  /** Those of the types of the list. @param {Event[]} events */
  #chosen(events) {
    return events.filter(({ type }) => this.#types.has(type));
  }

  /** @returns {Event[]} */
  #merged() {
    const timeline = this.#timeline;
    const stale = this.#stale.filter((event) => !timeline?.has(this.#keyOf(event)));
    return [...stale, ...(timeline?.entries ?? []).map(({ event }) => event)].slice(-this.#max);
  }

  /** The items may be others. */
  #changed() {
    this.#isDirty = true;
    this.changed();
  }
}

/** @param {number} count  events that came after a snapshot */
function tooOld(count) {
  return new Error(`it is too old: ${count} events behind`);
}

/** @param {Event} event */
function isRemoval({ type }) {
  return type === 'event.removed';
}

/**
 * The events between two offsets, the second included, without those that are out of order.
 * @param {Event[]} events
 * @param {number} after
 * @param {number} until
 */
function ordered(events, after, until) {
  let last = after;
  return events.filter(({ offset = 0 }) => {
    if (offset <= last || offset > until) return false;
    last = offset;
    return true;
  });
}
