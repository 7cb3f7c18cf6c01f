import { Collection } from './collection.js';

/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {import('./channel-types.js').MapSnapshot<any>} MapSnapshot
 */

/**
 * The latest values of one event type, by key: without those that were removed, or whose `ttl` has passed.
 * @extends {Collection<MapSnapshot>}
 */
export class LiveMap extends Collection {
  /** @type {Map<string, Event>} */
  #values = new Map();
  /** @type {ReadonlyMap<string, any> | undefined} */
  #copy;
  #type;

  /**
   * @param {import('../channel.js').Channel<any, any>} channel
   * @param {string} type
   * @param {{signal?: AbortSignal}} options
   */
  constructor(channel, type, { signal }) {
    super(channel, signal);
    this.#type = type;
    this.hear('values', (events) => this.#replace(events));
    this.hear('removed', (removed) => removed.type === type && this.#values.delete(removed.key) && this.#changed());
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

  /** @param {Event[]} events */
  #replace(events) {
    this.#values = new Map(events.filter(({ type }) => type === this.#type).map((event) => [event.key ?? '', event]));
    this.#changed();
    this.connected();
    this.loaded();
  }

  /** @param {Event} event */
  #set(event) {
    if (event.rev === undefined) return;
    this.#values.set(event.key ?? '', event);
    this.#changed();
  }

  #changed() {
    this.#copy = undefined;
    this.changed();
  }
}
