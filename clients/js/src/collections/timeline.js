/**
 * @typedef {import('../messages.js').Event} Event
 * @typedef {{key: string, place: number, event: Event}} Entry
 *   `place`: the offset of the first event with this key, which gives the order. `event`: the newest one.
 */

/** Removals that are remembered while older events are read. */
const MAX_REMOVALS = 10_000;

/**
 * The events of one epoch after an offset, without a gap: older ones come in pages, newer ones one by one. An event with the
 * key of an earlier one takes its place.
 */
export class Timeline {
  /** @type {Entry[]} in order */
  entries = [];
  /** Whether there are older events. */
  hasOlder;
  /** @type {Map<string, Entry>} */
  #byKey = new Map();
  /** @type {Map<string, Event>} the newest events of dropped entries, where the event at the place is an older one */
  #newer = new Map();
  /** @type {Set<number | string>} offsets and ids of removed events, which a page on its way may still have */
  #removed = new Set();
  #keyOf;
  #max;

  /**
   * @param {string} epoch
   * @param {number} low  it has the events after this offset
   * @param {(event: any) => string} keyOf
   * @param {number} max  entries
   */
  constructor(epoch, low, keyOf, max) {
    this.epoch = epoch;
    this.low = low;
    this.hasOlder = low > 0;
    this.#keyOf = keyOf;
    this.#max = max;
  }

  /** @param {string} key */
  has(key) {
    return this.#byKey.has(key);
  }

  /** Adds a live event. @param {Event} event */
  append(event) {
    const offset = /** @type {number} */ (event.offset);
    if (offset <= this.low) return;
    const key = this.#keyOf(event);
    const known = this.#byKey.get(key);
    this.#newer.delete(key);
    if (known) known.event = event;
    else this.#put([{ key, place: offset, event }], []);
    this.#trim();
  }

  /**
   * Adds older events.
   * @param {Event[]} events  from after `low` to before the oldest that it has
   * @param {number} low
   * @param {boolean} hasOlder
   */
  prepend(events, low, hasOlder) {
    /** @type {Map<string, Entry>} */
    const older = new Map();
    for (const event of events) {
      const { offset, id } = event;
      if (this.#removed.has(offset ?? id)) continue;
      const key = this.#keyOf(event);
      const known = older.get(key);
      if (known) known.event = event;
      else older.set(key, { key, place: offset ?? 0, event });
    }
    const later = [];
    for (const entry of this.entries) {
      const moved = older.get(entry.key);
      if (moved) moved.event = entry.event;
      else later.push(entry);
    }
    for (const [key, entry] of older) {
      entry.event = this.#newer.get(key) ?? entry.event;
      this.#newer.delete(key);
    }
    this.low = low;
    this.hasOlder = hasOlder;
    this.entries = [];
    this.#put([...older.values()], later);
    this.#trim();
  }

  /**
   * Puts a state that the application read before the events that it has.
   * @param {Event[]} items  events, or other objects with an `id`
   * @param {number} low  the state includes the events up to this offset
   */
  base(items, low) {
    this.entries = this.entries.filter(({ key, event }) => (event.offset ?? 0) > low || !this.#byKey.delete(key));
    this.prepend(items, low, false);
  }

  /**
   * Takes events back. Returns false if older versions of them are needed, so that the events must be read again.
   * @param {{id: string, offset: number}[]} removals
   */
  remove(removals) {
    const offsets = new Set(removals.map(({ offset }) => offset));
    const ids = new Set(removals.map(({ id }) => id));
    for (const name of [...offsets, ...ids]) this.#removed.add(name);
    for (const [key, { offset = 0 }] of this.#newer) if (offsets.has(offset)) this.#newer.delete(key);
    let isWhole = this.#removed.size <= MAX_REMOVALS;
    this.entries = this.entries.filter(({ key, place, event }) => {
      const { id, offset } = event;
      const isNewest = offset === undefined ? ids.has(id) : offsets.has(offset);
      if (isNewest) this.#byKey.delete(key);
      if ((isNewest || offsets.has(place)) && place !== (offset ?? place)) isWhole = false;
      return !isNewest;
    });
    return isWhole;
  }

  /** No page is on its way. */
  settled() {
    this.#removed.clear();
  }

  /**
   * Appends to the entries.
   * @param {Entry[]} added
   * @param {Entry[]} after
   */
  #put(added, after) {
    for (const entry of added) this.#byKey.set(entry.key, entry);
    this.entries.push(...added, ...after);
  }

  #trim() {
    for (const { key, place, event } of this.entries.splice(0, this.entries.length - this.#max)) {
      this.#byKey.delete(key);
      if ((event.offset ?? 0) > place) this.#newer.set(key, event);
      this.low = Math.max(this.low, place);
      this.hasOlder = true;
    }
    for (const key of this.#newer.keys()) {
      if (this.#newer.size <= this.#max) break;
      this.#newer.delete(key);
    }
  }
}
