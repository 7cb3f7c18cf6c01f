import { each } from './database.js';
import { LONG_AGO, SET_BACK } from './sent-time.js';

/** @typedef {import('./database.js').StoredPublish} StoredPublish */

/** Publishes of all users together, as a multiple of those of one. */
const USERS = 8;
/** A publish that was made later (ms) than now was made by a clock that has been set back since. */
const FUTURE = 86_400_000;

/** What is asked of the database about the publishes of one service. */
export class Stored {
  #database;
  #service;
  #max;
  #maxAge;
  /** @type {WeakMap<IDBTransaction, Map<string, {number: number, then: ((counted: {number: number}) => void)[]}>>} running counts */
  #counts = new WeakMap();

  /**
   * @param {import('./database.js').Database} database
   * @param {string} service
   * @param {number} max  publishes of a user
   * @param {number} maxAge  ms
   */
  constructor(database, service, max, maxAge) {
    this.#database = database;
    this.#service = service;
    this.#max = max;
    this.#maxAge = maxAge;
  }

  /**
   * Stores a publish, unless it is there or the user has too many. Resolves with whether it is stored.
   * @param {Omit<StoredPublish, 'seq' | 'service'>} publish
   */
  async add(publish) {
    let stored = false;
    await this.#database.write((store) => {
      this.#whenCounted(store, publish.user, (counted) => {
        if (counted.number >= this.#max) return;
        counted.number += 1;
        const request = store.add({ service: this.#service, ...publish });
        request.onsuccess = () => (stored = true);
        request.onerror = (event) => {
          if (request.error?.name !== 'ConstraintError') return;
          event.preventDefault(); // the same id is stored already
          event.stopPropagation();
          stored = true;
          this.#visit(store, publish.user, publish.id, (cursor) => cursor.update({ ...cursor.value, ...publish }));
        };
      });
    });
    return stored;
  }

  /**
   * Counts the publishes of a user, once in a transaction: its adds come after all counts.
   * @param {IDBObjectStore} store
   * @param {string} user
   * @param {(counted: {number: number}) => void} then
   */
  #whenCounted(store, user, then) {
    const { transaction } = store;
    const counts = this.#counts.get(transaction) ?? new Map();
    this.#counts.set(transaction, counts);
    const known = counts.get(user);
    if (known) {
      known.then.push(then);
      return;
    }
    const counted = { number: 0, then: [then] };
    counts.set(user, counted);
    const request = store.index('user').count([this.#service, user]);
    request.onsuccess = () => {
      counts.delete(user);
      counted.number = request.result;
      for (const run of counted.then) run(counted);
    };
  }

  /**
   * @param {string} user
   * @param {string[]} ids
   * @param {Partial<StoredPublish>} change
   */
  change(user, ids, change) {
    return this.#database.write((store) => {
      for (const id of ids) this.#visit(store, user, id, (cursor) => cursor.update({ ...cursor.value, ...change }));
    });
  }

  /** @param {string} user @param {string} id */
  remove(user, id) {
    return this.#database.write((store) => this.#visit(store, user, id, (cursor) => cursor.delete()));
  }

  /**
   * @param {IDBObjectStore} store
   * @param {string} user
   * @param {string} id
   * @param {(cursor: IDBCursorWithValue) => unknown} visit
   */
  #visit(store, user, id, visit) {
    const counting = this.#counts.get(store.transaction)?.get(user);
    if (counting) {
      counting.then.push(() => this.#visit(store, user, id, visit)); // behind the adds that wait
      return;
    }
    each(store.index('id').openCursor([this.#service, user, id]), visit);
  }

  /** Notes that the wall clock has come so far. */
  tick() {
    return this.#database.run((_, clock) => void clock.put(Date.now(), 'seen'));
  }

  /**
   * Returns the publishes of a user, oldest first. Removes those of others that are too old or too many. If the wall clock was set back,
   * nobody knows how old the sent ones are.
   * @param {string} user
   * @returns {Promise<StoredPublish[]>}
   */
  async read(user) {
    /** @type {StoredPublish[]} */
    let found = [];
    await this.#database.run((store, clock) => {
      const seen = clock.get('seen');
      seen.onsuccess = () => {
        clock.put(Date.now(), 'seen');
        if (seen.result > Date.now() + SET_BACK) {
          each(store.openCursor(), (cursor) => {
            if (cursor.value.maySent) cursor.update({ ...cursor.value, maySent: LONG_AGO });
          });
        }
        this.#bound(store, user);
        const request = store.index('user').getAll([this.#service, user]);
        request.onsuccess = () => (found = request.result);
      };
    });
    return found.sort((a, b) => a.seq - b.seq);
  }

  /**
   * @param {IDBObjectStore} store
   * @param {string} user
   */
  #bound(store, user) {
    const byAge = store.index('at');
    const now = Date.now();
    const isOther = (/** @type {StoredPublish} */ { service, user: owner }) => service !== this.#service || owner !== user;
    each(byAge.openCursor(IDBKeyRange.upperBound(now - this.#maxAge)), (cursor) => {
      if (isOther(cursor.value)) cursor.delete();
    });
    each(byAge.openCursor(IDBKeyRange.lowerBound(now + FUTURE)), (cursor) => cursor.update({ ...cursor.value, at: now }));
    const count = store.count();
    count.onsuccess = () => {
      let excess = count.result - USERS * this.#max;
      if (excess <= 0) return;
      each(byAge.openCursor(), (cursor) => {
        if (!isOther(cursor.value)) return true;
        cursor.delete();
        excess -= 1;
        return excess > 0;
      });
    };
  }

  /** Whether a publish of the user is too old to be sent. @param {StoredPublish} publish */
  isTooOld({ at }) {
    return Date.now() - at > this.#maxAge;
  }

  /**
   * Gives publishes of one client to another one. Returns those that are still there.
   * @param {StoredPublish[]} publishes
   * @param {string} from
   * @param {string} to
   */
  async transfer(publishes, from, to) {
    /** @type {StoredPublish[]} */
    const moved = [];
    await this.#database.run((store) => {
      for (const { seq } of publishes) {
        each(store.openCursor(seq), (cursor) => {
          if (cursor.value.owner !== from) return;
          cursor.update({ ...cursor.value, owner: to });
          moved.push(cursor.value);
        });
      }
    });
    return moved;
  }
}
