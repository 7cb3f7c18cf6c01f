// Counts what has arrived of the numbers 1, 2, 3 …

export class Tally {
  /** @type {Map<number, 'live' | 'recovered'>} what has arrived, and how */
  seen = new Map();
  first = 0;
  last = 0;
  received = 0;
  repeated = 0;
  disordered = 0;
  recovered = 0;
  /** The longest time without events (ms), since `listen`. */
  silence = 0;
  #at = performance.now();
  #missed = 0;

  /** The next events are those that were missed. @param {number} count */
  resume(count) {
    this.#missed = count;
  }

  /** @param {number} n */
  take(n) {
    this.#measure();
    this.received += 1;
    const isRecovered = this.#missed > 0;
    if (isRecovered) this.#missed -= 1;
    if (this.seen.has(n)) {
      this.repeated += 1;
      return;
    }
    if (isRecovered) this.recovered += 1;
    if (n < this.last) this.disordered += 1;
    this.first ||= n;
    this.last = Math.max(this.last, n);
    this.seen.set(n, isRecovered ? 'recovered' : 'live');
  }

  /** Numbers between the first and the newest one that have not arrived. */
  get missing() {
    return this.first ? this.last - this.first + 1 - this.seen.size : 0;
  }

  /** Measures the time without events from now on. */
  listen() {
    this.#measure();
    this.silence = 0;
  }

  #measure() {
    const now = performance.now();
    this.silence = Math.max(this.silence, now - this.#at);
    this.#at = now;
  }
}
