import { bounded } from '../base/bounds.js';

/**
 * What a message costs. `free`: nothing (`unsubscribe`). `urgent`: never waits for the rate (pings, refreshes). `subscribe` has a
 * budget of its own. `signal` leaves a part of the budget to messages.
 * @typedef {'free' | 'urgent' | 'subscribe' | 'message' | 'signal'} Cost
 */

/** The part of a burst that the client uses: the network can merge two bursts, and the reserve absorbs that. */
const USED = 0.8;
/** The part of the budget that signals leave to messages. */
const LEFT = 0.3;

/** Keeps a connection within the rates of `welcome.limits`, so that the service refuses nothing. */
export class Pacer {
  #messages;
  #subscribes;
  #reserve;

  /**
   * @param {import('../messages.js').Limits} limits
   * @param {import('../base/clock.js').Clock} clock
   */
  constructor({ rate, burst, subscribe_rate: subscribeRate, subscribe_burst: subscribeBurst }, clock) {
    const most = bounded(burst, 1, 1e6, 100);
    const used = Math.max(1, Math.floor(most * USED));
    this.#messages = new Budget(bounded(rate, 0.01, 1e6, 20), used, used, clock);
    this.#reserve = Math.floor(used * LEFT);
    if (subscribeRate === undefined || subscribeBurst === undefined) return; // a service with one budget for all messages
    // The connection is new, so the service has its whole burst.
    const first = bounded(subscribeBurst, 1, 1e6, 128);
    this.#subscribes = new Budget(bounded(subscribeRate, 0.01, 1e6, 20), Math.max(1, Math.floor(first * USED)), first, clock);
  }

  /** The budget of a cost, and what it must leave of that. @param {Cost} cost @returns {[Budget, number]} */
  #of(cost) {
    if (cost === 'subscribe' && this.#subscribes) return [this.#subscribes, 0];
    return [this.#messages, cost === 'signal' ? this.#reserve : cost === 'urgent' ? -Infinity : 0];
  }

  /** Consumes the budget for one message, if the rates allow it now. @param {Cost} cost */
  take(cost) {
    const [budget, reserve] = this.#of(cost);
    return cost === 'free' || budget.take(reserve);
  }

  /** Milliseconds until the rates allow a message. @param {Cost} cost */
  wait(cost) {
    const [budget, reserve] = this.#of(cost);
    return budget.wait(reserve);
  }
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

  /** @param {number} reserve  tokens that stay */
  take(reserve) {
    this.#refill();
    if (this.#tokens < 1 + reserve) return false;
    this.#tokens -= 1;
    return true;
  }

  /** @param {number} reserve */
  wait(reserve) {
    this.#refill();
    return Math.max(1, Math.ceil(((1 + reserve - this.#tokens) / this.#rate) * 1000));
  }

  #refill() {
    const now = this.#clock.now();
    const earned = ((now - this.#updated) / 1000) * this.#rate;
    this.#tokens = Math.max(this.#tokens, Math.min(this.#burst, this.#tokens + earned));
    this.#updated = now;
  }
}
