/**
 * Adds jitter to a delay (ms) that the service asked for: up to the same again, at most a second. Other clients may have the
 * same delay.
 * @param {number} told
 * @param {() => number} random
 */
export function spread(told: number, random: () => number): number;
/**
 * Exponential backoff with full jitter: the n-th delay is random between 0 and min(cap, base · 2ⁿ), so that the clients of
 * a lost node reconnect spread out.
 */
export class Backoff {
    /**
     * @param {number} base  ms
     * @param {number} cap  ms
     * @param {() => number} random  in [0, 1)
     */
    constructor(base: number, cap: number, random: () => number);
    attempt: number;
    /** The next delay in ms. */
    next(): number;
    reset(): void;
    #private;
}
