/**
 * Settles as the promise does, or rejects after `ms` with the error of `late`.
 * @template T
 * @param {Clock} clock
 * @param {number} ms
 * @param {Promise<T>} promise
 * @param {() => Error} late
 * @returns {Promise<T>}
 */
export function within<T>(clock: Clock, ms: number, promise: Promise<T>, late: () => Error): Promise<T>;
/**
 * The client's time source; tests replace it.
 * @typedef {object} Clock
 * @property {() => number} now  monotonic milliseconds
 * @property {(run: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 */
/** @type {Clock} */
export const systemClock: Clock;
/** A timer; starting it again replaces the previous time. */
export class Timer {
    /** @param {Clock} clock */
    constructor(clock: Clock);
    /**
     * @param {number} ms  any number; Infinity never fires
     * @param {() => void} run
     */
    start(ms: number, run: () => void): void;
    stop(): void;
    #private;
}
/**
 * The client's time source; tests replace it.
 */
export type Clock = {
    /**
     * monotonic milliseconds
     */
    now: () => number;
    setTimeout: (run: () => void, ms: number) => any;
    clearTimeout: (timer: any) => void;
};
