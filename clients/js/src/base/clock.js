/**
 * The client's time source; tests replace it.
 * @typedef {object} Clock
 * @property {() => number} now  monotonic milliseconds
 * @property {(run: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 */

/** @type {Clock} */
export const systemClock = {
  now: () => performance.now(),
  setTimeout: (run, ms) => setTimeout(run, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};

/** Milliseconds; a longer timer of the platform fires at once. */
const MAX_TIMER = 2 ** 31 - 1;

/** A timer; starting it again replaces the previous time. */
export class Timer {
  /** @type {any} */
  #timer;
  #clock;

  /** @param {Clock} clock */
  constructor(clock) {
    this.#clock = clock;
  }

  /**
   * @param {number} ms  any number; Infinity never fires
   * @param {() => void} run
   */
  start(ms, run) {
    this.stop();
    if (ms === Infinity) return;
    const step = Math.min(Math.max(0, ms || 0), MAX_TIMER);
    this.#timer = this.#clock.setTimeout(() => {
      if (ms > step) this.start(ms - step, run);
      else run();
    }, step);
  }

  stop() {
    this.#clock.clearTimeout(this.#timer);
  }
}

/**
 * Settles as the promise does, or rejects after `ms` with the error of `late`.
 * @template T
 * @param {Clock} clock
 * @param {number} ms
 * @param {Promise<T>} promise
 * @param {() => Error} late
 * @returns {Promise<T>}
 */
export function within(clock, ms, promise, late) {
  return new Promise((resolve, reject) => {
    const timer = new Timer(clock);
    timer.start(ms, () => reject(late()));
    promise.then(resolve, reject).finally(() => timer.stop());
  });
}
