/**
 * Exponential backoff with full jitter: the n-th delay is random between 0 and min(cap, base · 2ⁿ), so that the clients of
 * a lost node reconnect spread out.
 */
export class Backoff {
  #base;
  #cap;
  #random;
  attempt = 0;

  /**
   * @param {number} base  ms
   * @param {number} cap  ms
   * @param {() => number} random  in [0, 1)
   */
  constructor(base, cap, random) {
    this.#base = base;
    this.#cap = cap;
    this.#random = random;
  }

  /** The next delay in ms. */
  next() {
    const bound = Math.min(this.#cap, this.#base * 2 ** Math.min(this.attempt, 30));
    this.attempt += 1;
    return this.#random() * bound;
  }
}

/** Maximum jitter (ms) added to a delay that the service asked for. */
const JITTER = 1_000;

/**
 * Adds jitter to a delay (ms) that the service asked for: up to the same again, at most a second. Other clients may have the
 * same delay.
 * @param {number} told
 * @param {() => number} random
 */
export function spread(told, random) {
  return told + random() * Math.min(told, JITTER);
}
