/**
 * Which clients send which stored publishes. A client holds a Web Lock while it has some; when the lock is free, the client is gone, and
 * another one may take them over. Without Web Locks every client takes all over that it finds at its start; their ids keep them from being
 * stored twice.
 */
export class Owner {
  id;
  #prefix;
  /** @type {LockManager | undefined} */
  #locks;
  /** @type {(() => void) | undefined} */
  #release;
  /** @type {Promise<void> | undefined} */
  #held;

  /**
   * @param {string} database
   * @param {string} id  unique among all clients
   */
  constructor(database, id) {
    this.id = id;
    this.#prefix = `tidewire-outbox:${database}:`;
    this.#locks = globalThis.navigator?.locks;
  }

  /** Whether a client that is gone can be told from one that lives. */
  get isExact() {
    return this.#locks !== undefined;
  }

  /** Resolves when others can see that this client lives. @returns {Promise<void>} */
  live() {
    if (!this.#locks) return Promise.resolve();
    this.#held ??= new Promise((resolve) => {
      // Made before the lock is granted, so that `rest` gives up a lock that is still asked for. Otherwise the next one waits for it forever.
      const released = new Promise((/** @type {(value: void) => void} */ release) => {
        this.#release = release;
      });
      const hold = () => {
        resolve();
        return released;
      };
      this.#locks?.request(this.#prefix + this.id, hold).catch(() => {
        this.#locks = undefined; // the page may not use them
        resolve();
      });
    });
    return this.#held;
  }

  /** This client has nothing stored. A page with a lock can't go into the back/forward cache. */
  rest() {
    this.#release?.();
    this.#release = this.#held = undefined;
  }

  /**
   * Runs `take` if the client `owner` is gone; it can't come back before `take` has ended.
   * @template T
   * @param {string} owner
   * @param {() => Promise<T>} take
   * @param {T} otherwise
   * @returns {Promise<T>}
   */
  async inherit(owner, take, otherwise) {
    if (!owner || !this.#locks) return take();
    return this.#locks.request(this.#prefix + owner, { ifAvailable: true }, async (lock) => (lock ? take() : otherwise));
  }
}
