import { bounded } from '../base/bounds.js';

/** The part of a burst that the client uses: the network can merge two bursts, and the rest absorbs that. */
const USED = 0.8;
/** The part of the budget that signals leave to other messages. */
export const SIGNAL_RESERVE = 0.3;

/**
 * The budgets of a connection within the rates of `welcome.limits`, so that the service refuses nothing: one for messages, and one for
 * subscribes if the service has that.
 * @param {import('../messages.js').Limits} limits
 * @param {import('../base/clock.js').Clock} clock
 * @returns {Record<'message' | 'subscribe', Budget>}
 */
export function budgetsOf({ rate, burst, subscribe_rate: subscribeRate, subscribe_burst: subscribeBurst }, clock) {
  const used = (/** @type {number} */ most) => Math.max(1, Math.floor(most * USED));
  const most = used(bounded(burst, 1, 1e6, 100));
  const message = new Budget(bounded(rate, 0.01, 1e6, 20), most, most, clock);
  if (subscribeRate === undefined || subscribeBurst === undefined) return { message, subscribe: message };
  // The connection is new, so the service has its whole burst.
  const first = bounded(subscribeBurst, 1, 1e6, 128);
  return { message, subscribe: new Budget(bounded(subscribeRate, 0.01, 1e6, 20), used(first), first, clock) };
}

/** A token bucket. */
export class Budget {
  #rate;
  #burst;
  #clock;
  #tokens;
  #updated;

  /**
   * @param {number} rate  a second
   * @param {number} burst
   * @param {number} first  initial tokens
   * @param {import('../base/clock.js').Clock} clock
   */
  constructor(rate, burst, first, clock) {
    this.#rate = rate;
    this.#burst = burst;
    this.#clock = clock;
    this.#tokens = first;
    this.#updated = clock.now();
  }

  /** Milliseconds until a message may be sent; 0 if it may be sent now. @param {number} [reserve]  the part of the burst that stays */
  wait(reserve = 0) {
    const now = this.#clock.now();
    const earned = ((now - this.#updated) / 1000) * this.#rate;
    this.#tokens = Math.max(this.#tokens, Math.min(this.#burst, this.#tokens + earned));
    this.#updated = now;
    const missing = 1 + Math.floor(this.#burst * reserve) - this.#tokens;
    return missing > 0 ? Math.max(1, Math.ceil((missing / this.#rate) * 1000)) : 0;
  }

  /** Consumes the budget for one message, even if it is empty. */
  spend() {
    this.#tokens -= 1;
  }
}
