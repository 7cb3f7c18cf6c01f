/**
 * Something that a channel keeps up to date: a collection, or the channel's own status.
 * @typedef {{subscribe: (listener: () => void) => () => void, getSnapshot: () => any, channel: import('../channel.js').Channel<any, any>}} Source
 * @typedef {{source: Source, users: number, timer: any}} Entry
 */

/** @type {WeakMap<object, Map<unknown, Entry>>} the sources in use, by client and key */
const sources = new WeakMap();

/**
 * One source for all components that ask for the same. It is made when the first of them is mounted, and its handle leaves in the
 * tick after the last one is unmounted: StrictMode and a moved component keep it.
 */
export class Shared {
  #client;
  #key;
  #make;
  #empty;

  /**
   * @param {import('../client.js').Tidewire<any>} client
   * @param {unknown} key
   * @param {() => Source} make
   * @param {any} empty  the snapshot before there is a source
   */
  constructor(client, key, make, empty) {
    this.#client = client;
    this.#key = key;
    this.#make = make;
    this.#empty = empty;
  }

  /** The source, while a component is mounted that uses it. */
  get source() {
    return this.#entry?.source;
  }

  get #entry() {
    return sources.get(this.#client)?.get(this.#key);
  }

  getSnapshot = () => this.source?.getSnapshot() ?? this.#empty;

  getServerSnapshot = () => this.#empty;

  /** @param {() => void} listener */
  subscribe = (listener) => {
    const entry = this.#entry ?? this.#open();
    clearTimeout(entry.timer);
    entry.users += 1;
    const stop = entry.source.subscribe(listener);
    return () => {
      stop();
      entry.users -= 1;
      if (!entry.users) entry.timer = setTimeout(() => this.#close(entry));
    };
  };

  #open() {
    const entries = sources.get(this.#client) ?? new Map();
    sources.set(this.#client, entries);
    const entry = { source: this.#make(), users: 0, timer: undefined };
    entries.set(this.#key, entry);
    return entry;
  }

  /** @param {Entry} entry */
  #close(entry) {
    if (this.#entry === entry) sources.get(this.#client)?.delete(this.#key);
    entry.source.channel.leave();
  }
}
