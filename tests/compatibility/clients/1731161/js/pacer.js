/**
 * Keeps a connection within the rates of `welcome.limits`, so that the service refuses nothing. Subscribes have their own
 * budget; `unsubscribe` and `ready` cost nothing.
 */
export class Pacer {
  #messages;
  #subscribes;

  /**
   * @param {import('./messages.js').Limits} limits
   * @param {import('./clock.js').Clock} clock
   */
  constructor({ rate, burst, subscribe_rate: subscribeRate, subscribe_burst: subscribeBurst }, clock) {
    // The network can merge two bursts; the reserve absorbs that.
    const kept = Math.max(1, Math.floor(burst * 0.8));
    this.#messages = new Budget(rate, kept, kept, clock);
    if (subscribeRate === undefined || subscribeBurst === undefined) return; // a service with one budget for all messages
    // The connection is new, so the service has its whole burst.
    this.#subscribes = new Budget(subscribeRate, Math.max(1, Math.floor(subscribeBurst * 0.8)), subscribeBurst, clock);
  }

  /**
   * Consumes the budget for one message, if the rates allow it now.
   * @param {string} type
   */
  take(type) {
    const budget = this.#budget(type);
    return budget === undefined || budget.take();
  }

  /**
   * Milliseconds until the rates allow a message of this type.
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
   * @param {number} first  initial tokens
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
