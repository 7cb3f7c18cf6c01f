/** Keeps a connection within the rate that `welcome.limits` allows, so that the service need not refuse anything. */
export class Pacer {
  #rate;
  #burst;
  #clock;
  #tokens;
  #updated;

  /**
   * @param {{rate: number, burst: number}} limits
   * @param {import('./clock.js').Clock} clock
   */
  constructor({ rate, burst }, clock) {
    this.#rate = rate;
    // The network can press two bursts together; what is kept back absorbs that.
    this.#burst = Math.max(1, Math.floor(burst * 0.8));
    this.#clock = clock;
    this.#tokens = this.#burst;
    this.#updated = clock.now();
  }

  /** How many messages may go now. */
  get available() {
    const now = this.#clock.now();
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#updated) / 1000) * this.#rate);
    this.#updated = now;
    return Math.floor(this.#tokens);
  }

  /** Milliseconds until one more may go. */
  get wait() {
    return Math.max(1, Math.ceil(((1 - this.#tokens) / this.#rate) * 1000));
  }

  /** @param {number} messages */
  take(messages) {
    this.#tokens -= messages;
  }
}
