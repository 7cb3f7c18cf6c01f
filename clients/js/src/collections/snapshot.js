import { within } from '../base/clock.js';

/** Milliseconds that a `snapshot` function may take. */
const TIMEOUT = 30_000;

/**
 * Asks the application for the first state of a collection.
 * @param {import('../base/clock.js').Clock} clock
 * @param {(context: {signal: AbortSignal}) => unknown} ask
 * @param {AbortSignal} signal
 * @returns {Promise<any>}
 */
export function askSnapshot(clock, ask, signal) {
  return within(clock, TIMEOUT, Promise.resolve().then(() => ask({ signal })), () => new Error(`no result within ${TIMEOUT / 1000} s`));
}
