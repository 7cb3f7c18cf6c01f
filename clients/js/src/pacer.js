/**
 * Keeps a connection within the rates that `welcome.limits` allows, so that the service need not refuse anything. Subscribes
 * have a budget of their own; leaving a channel and `ready` cost nothing.
 */
export class Pacer {
  #messages;
  #subscribes;

  /**
   * @param {import('./messages.js').Limits} limits
   * @param {import('./clock.js').Clock} clock
   */
  constructor({ rate, burst, subscribe_rate: subscribeRate, subscribe_burst: subscribeBurst }, clock) {
    // The network can press two bursts together; what is kept back absorbs that.
    const kept = Math.max(1, Math.floor(burst * 0.8));
    this.#messages = new Budget(rate, kept, kept, clock);
    if (subscribeRate === undefined || subscribeBurst === undefined) return; // a service that counts all messages alike
    // The connection is new, and the service holds the whole burst for it: nothing has gone before.
    this.#subscribes = new Budget(subscribeRate, Math.max(1, Math.floor(subscribeBurst * 0.8)), subscribeBurst, clock);
  }

  /**
   * Takes one message if it may go now.
   * @param {string} type
   */
  take(type) {
    const budget = this.#budget(type);
    return budget === undefined || budget.take();
  }

  /**
   * Milliseconds until a message of this type may go.
   * @param {string} type
   */
  wait(type) {
    return this.#budget(type)?.wait ?? 0;
  }

  /** @param {string} type */
  #budget(type) {
    if (this.#subscribes === undefined) return this.#messages;
    if (type === 'subscribe') return this.#subscribes;
    return type === 'unsubscribe' || type === 'ready' ? undefined : this.#messages;
  }
}

/** A token bucket. */
class Budget {
  #rate;
  #burst;
  #clock;
  #tokens;
  #updated;

  /**
   * @param {number} rate  a second
   * @param {number} burst
   * @param {number} first  tokens to begin with
   * @param {import('./clock.js').Clock} clock
   */
  constructor(rate, burst, first, clock) {
    this.#rate = rate;
    this.#burst = burst;
    this.#clock = clock;
    this.#tokens = first;
    this.#updated = clock.now();
  }

  take() {
    this.#refill();
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  get wait() {
    this.#refill();
    return Math.max(1, Math.ceil(((1 - this.#tokens) / this.#rate) * 1000));
  }

  #refill() {
    const now = this.#clock.now();
    const earned = ((now - this.#updated) / 1000) * this.#rate;
    this.#tokens = Math.max(this.#tokens, Math.min(this.#burst, this.#tokens + earned));
    this.#updated = now;
  }
}
