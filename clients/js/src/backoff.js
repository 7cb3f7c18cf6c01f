/**
 * Exponential backoff with full jitter: the n-th wait is anywhere between 0 and min(cap, base · 2ⁿ), so that the clients of
 * a lost node come back spread out.
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

  /** The next wait in ms. */
  next() {
    const bound = Math.min(this.#cap, this.#base * 2 ** Math.min(this.attempt, 30));
    this.attempt += 1;
    return this.#random() * bound;
  }

  reset() {
    this.attempt = 0;
  }
}

/** Added at most (ms) to a wait that the service asked for. */
const JITTER = 1_000;

/**
 * A wait (ms) that the service asked for, and up to as long again, a second at most: others may have been told the same.
 * @param {number} told
 * @param {() => number} random
 */
export function spread(told, random) {
  return told + random() * Math.min(told, JITTER);
}
