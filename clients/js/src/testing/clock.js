// Taken when the module loads: test runners replace the timers of the platform.
const { setTimeout, setImmediate } = /** @type {any} */ (globalThis);

/** Settles when everything has run that waits for nothing but its turn. @returns {Promise<void>} */
export function settled() {
  return new Promise((resolve) => (setImmediate ? setImmediate(resolve) : setTimeout(resolve, 0)));
}

/** Time that only a test moves. Timers that are due at the same time run in the order in which they were started. */
export class TestClock {
  #now = 0;
  #id = 0;
  /** @type {Map<number, {at: number, run: () => void}>} */
  #timers = new Map();

  now = () => this.#now;

  /** @param {() => void} run @param {number} ms */
  setTimeout = (run, ms) => {
    this.#id += 1;
    this.#timers.set(this.#id, { at: this.#now + Math.max(0, ms || 0), run });
    return this.#id;
  };

  /** @param {number} timer */
  clearTimeout = (timer) => {
    this.#timers.delete(timer);
  };

  /**
   * Moves the time. Runs the timers that become due, each at its time, and what follows from them.
   * @param {number} ms
   */
  async advance(ms) {
    if (!(ms >= 0)) throw new RangeError(`a clock moves forward: ${ms} ms`);
    const until = this.#now + ms;
    await settled();
    for (let due = this.#first(until); due; due = this.#first(until)) {
      const [id, { at, run }] = due;
      this.#timers.delete(id);
      this.#now = at;
      run();
      await settled();
    }
    this.#now = until;
  }

  /** The first timer that is due. @param {number} until */
  #first(until) {
    /** @type {[number, {at: number, run: () => void}] | undefined} */
    let first;
    for (const timer of this.#timers) if (timer[1].at <= until && (!first || timer[1].at < first[1].at)) first = timer;
    return first;
  }
}
