import { Collection } from './collection.js';
import { askSnapshot } from './snapshot.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {import('./channel-types.js').MapSnapshot<any>} MapSnapshot
 */

/** Removals while a snapshot is read; after more, it is read again. */
const MAX_REMOVED = 10_000;

/**
 * The latest values of one event type, by key: without those that were removed, or whose `ttl` has passed.
 * @extends {Collection<MapSnapshot>}
 */
export class LiveMap extends Collection {
  /** @type {Map<string, Event>} */
  #values = new Map();
  /** @type {Map<string, number>} the `rev` of keys that were removed while the snapshot is read */
  #removed = new Map();
  /** @type {Set<string>} keys whose value came with a snapshot, and not from the service */
  #given = new Set();
  #snapshotOf;
  /** @type {AbortController | undefined} while the snapshot is read, or waits for that */
  #reading;
  /** @type {ReadonlyMap<string, any> | undefined} */
  #copy;
  #type;

  /**
   * @param {import('../channel.js').Channel<any, any>} channel
   * @param {string} type
   * @param {import('./channel-types.js').MapOptions<any>} options
   */
  constructor(channel, type, { signal, snapshot }) {
    super(channel, signal);
    this.#type = type;
    this.#snapshotOf = snapshot;
    this.hear('values', (events) => this.#replace(events));
    this.hear('removed', (removed) => removed.type === type && this.#remove(removed));
    this.hear('excluded', (event) => event.type === type && this.#set(event));
    this.hear(type, (event) => this.#set(event));
    this.inOrder(() => this.subscription.delivery.info && !this.isLoaded && this.#replace(channel.values));
  }

  /** The newest event of a key. @param {string} key @returns {any} */
  get(key) {
    return this.#values.get(key);
  }

  /** @param {string} key */
  has(key) {
    return this.#values.has(key);
  }

  /** The `rev` of a key, 0 if it has no value: what `ifRev` takes. @param {string} key */
  rev(key) {
    return this.#values.get(key)?.rev ?? 0;
  }

  /** Keys and events. @returns {MapIterator<[string, any]>} */
  entries() {
    return this.#values.entries();
  }

  [Symbol.iterator]() {
    return this.entries();
  }

  get size() {
    return this.#values.size;
  }

  /** A copy, which is replaced only when a value changes. @returns {ReadonlyMap<string, any>} */
  get values() {
    return (this.#copy ??= new Map(this.#values));
  }

  /** @protected @override @returns {MapSnapshot} */
  read() {
    const { values, status, error } = this;
    return { values, status, error };
  }

  /** @protected @override */
  stopped() {
    this.#reading?.abort();
    this.retry.stop();
  }

  /** All values that the service has. Those of the snapshot stay until it is read again. @param {Event[]} events */
  #replace(events) {
    const given = [...this.#values].filter(([key]) => this.#given.has(key));
    this.#values = new Map(given);
    for (const event of events) if (event.type === this.#type) this.#set(event);
    this.#changed();
    this.connected();
    if (this.#snapshotOf) void this.#read();
    else this.loaded();
  }

  /** Reads the snapshot, and after an error again, with backoff. A read that has not ended counts no more. */
  async #read() {
    this.stopped();
    this.isLoaded = false;
    this.#removed.clear();
    const { signal } = (this.#reading = new AbortController());
    try {
      const items = await askSnapshot(this.core.clock, /** @type {any} */ (this.#snapshotOf), signal);
      if (!signal.aborted) this.#merge(items);
    } catch (cause) {
      if (signal.aborted) return;
      this.error = this.failure(cause);
      this.changed();
      this.retry.start(this.backoff.next(), () => void this.#read());
    }
  }

  /** @param {Event} event */
  #set(event) {
    const { key = '', rev } = event;
    if (rev === undefined) return;
    const known = this.#values.get(key);
    if (this.#given.has(key) && (known?.rev ?? -1) > rev) return; // the snapshot is newer
    this.#given.delete(key);
    this.#removed.delete(key);
    this.#values.set(key, event);
    this.#changed();
  }

  /** @param {import('../subscriptions/values.js').Removed} removed */
  #remove({ key, rev }) {
    if (this.#snapshotOf && !this.isLoaded && this.#removed.set(key, rev).size > MAX_REMOVED) void this.#read();
    this.#given.delete(key);
    if (this.#values.delete(key)) this.#changed();
  }

  /** Adds what the application has, except where the service has said something newer. @param {any[]} items */
  #merge(items) {
    if (!items.every(({ key }) => typeof key === 'string')) throw new TypeError('an item has no key');
    for (const key of this.#given) this.#values.delete(key);
    this.#given.clear();
    for (const item of items) {
      const { key, rev = -1 } = item;
      if (rev <= (this.#values.get(key)?.rev ?? -2) || (this.#removed.has(key) && rev <= (this.#removed.get(key) ?? -1))) continue;
      this.#values.set(key, item);
      this.#given.add(key);
    }
    this.#removed.clear();
    this.backoff.attempt = 0;
    this.#changed();
    this.loaded();
  }

  #changed() {
    this.#copy = undefined;
    this.changed();
  }
}
