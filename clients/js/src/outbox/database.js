import { within } from '../base/clock.js';

/**
 * A publish as it is stored. It has no token.
 * @typedef {object} StoredPublish
 * @property {number} seq  the order over all pages
 * @property {string} service  its address without a query
 * @property {string} user  who published it; nobody else sees or sends it
 * @property {string} id
 * @property {string} text  the JSON of the message
 * @property {number} at  wall clock ms of the call
 * @property {number} maySent  wall clock ms from which on the service may have it; 0: it can't
 * @property {boolean} uncertain  it is not sent again by itself
 * @property {string} owner  the client that sends it; '' for none
 */

/** Milliseconds until a database that does not answer counts as broken. */
const TIMEOUT = 5_000;
/** Milliseconds until a broken database is tried again. */
const PAUSE = 10_000;

/**
 * The IndexedDB database of outboxes. Writes are made in order and joined into transactions. All methods reject if the platform has no
 * database, if it is blocked or broken, or if its quota is used up.
 */
export class Database {
  #name;
  #clock;
  #begin;
  #end;
  /** @type {Promise<IDBDatabase> | undefined} */
  #opening;
  #brokenUntil = -Infinity;
  /** @type {unknown} */
  #fault;
  /** @type {{run: (store: IDBObjectStore) => void, done: (error?: unknown) => void}[]} */
  #writes = [];
  #writing = false;

  /**
   * @param {string} name
   * @param {import('../base/clock.js').Clock} clock
   * @param {() => Promise<void>} begin  awaited before writes
   * @param {() => void} end  called when no write waits
   */
  constructor(name, clock, begin, end) {
    this.#name = name;
    this.#clock = clock;
    this.#begin = begin;
    this.#end = end;
  }

  /**
   * Runs one transaction, and resolves with the result of `work` once it is stored.
   * @template T
   * @param {(store: IDBObjectStore, clock: IDBObjectStore) => T} work
   * @returns {Promise<T>}
   */
  async run(work) {
    if (this.#clock.now() < this.#brokenUntil) throw this.#fault;
    try {
      return await within(this.#clock, TIMEOUT, this.#transact(work), () => new Error(`no answer within ${TIMEOUT / 1000} s`));
    } catch (error) {
      if (/** @type {any} */ (error)?.name !== 'QuotaExceededError') {
        this.#brokenUntil = this.#clock.now() + PAUSE;
        this.#fault = error;
      }
      throw error;
    }
  }

  /**
   * Adds a write behind those that wait. The promise settles when it is stored, or can't be.
   * @param {(store: IDBObjectStore) => void} run
   * @returns {Promise<void>}
   */
  write(run) {
    return new Promise((resolve, reject) => {
      this.#writes.push({ run, done: (error) => (error === undefined ? resolve() : reject(error)) });
      if (!this.#writing) void this.#flush();
    });
  }

  async #flush() {
    this.#writing = true;
    while (this.#writes.length) {
      await this.#begin(); // the writes of one tick go together
      const batch = this.#writes.splice(0);
      const error = await this.#store(batch);
      const isFull = /** @type {any} */ (error)?.name === 'QuotaExceededError';
      // One write that is too large must not fail the others.
      for (const write of batch) write.done(isFull && batch.length > 1 ? await this.#store([write]) : error);
    }
    this.#writing = false;
    this.#end();
  }

  /**
   * Returns the error, if there is one.
   * @param {{run: (store: IDBObjectStore) => void}[]} batch
   */
  #store(batch) {
    return this.run((store) => batch.forEach(({ run }) => run(store))).then(
      () => undefined,
      (error) => error ?? new Error('aborted'),
    );
  }

  /**
   * @template T
   * @param {(store: IDBObjectStore, clock: IDBObjectStore) => T} work
   * @returns {Promise<T>}
   */
  async #transact(work) {
    this.#opening ??= this.#open();
    const database = await this.#opening.catch((error) => {
      this.#opening = undefined;
      throw error;
    });
    return new Promise((resolve, reject) => {
      // Strict: what is marked as sent must be on the disk before it is sent.
      const transaction = database.transaction(['publishes', 'clock'], 'readwrite', { durability: 'strict' });
      const result = work(transaction.objectStore('publishes'), transaction.objectStore('clock'));
      transaction.oncomplete = () => resolve(result);
      transaction.onabort = () => reject(transaction.error ?? new Error('the transaction was aborted'));
    });
  }

  /** @returns {Promise<IDBDatabase>} */
  #open() {
    return new Promise((resolve, reject) => {
      if (!globalThis.indexedDB) throw new Error('this platform has no IndexedDB');
      const request = indexedDB.open(this.#name, 1);
      request.onupgradeneeded = () => {
        const store = request.result.createObjectStore('publishes', { keyPath: 'seq', autoIncrement: true });
        store.createIndex('id', ['service', 'user', 'id'], { unique: true });
        store.createIndex('user', ['service', 'user']);
        store.createIndex('at', 'at');
        request.result.createObjectStore('clock');
      };
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error('another page blocks the database'));
      request.onsuccess = () => {
        const database = request.result;
        const forget = () => {
          this.#opening = undefined;
        };
        database.onclose = forget; // the user has cleared the site's data
        database.onversionchange = () => {
          forget();
          database.close();
        };
        resolve(database);
      };
    });
  }
}

/**
 * Calls `visit` for each record of a request for a cursor.
 * @param {IDBRequest<IDBCursorWithValue | null>} request
 * @param {(cursor: IDBCursorWithValue) => unknown} visit  false ends it
 */
export function each(request, visit) {
  request.onsuccess = () => {
    const cursor = request.result;
    if (cursor && visit(cursor) !== false) cursor.continue();
  };
}
