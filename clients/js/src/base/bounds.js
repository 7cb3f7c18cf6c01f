/**
 * A number from the network or the caller within its bounds; `otherwise` for what is no number.
 * @param {unknown} value
 * @param {number} least
 * @param {number} most
 * @param {number} otherwise
 */
export function bounded(value, least, most, otherwise) {
  const number = typeof value === 'number' && !Number.isNaN(value) ? value : otherwise;
  return Math.min(most, Math.max(least, number));
}

/** Bounds (ms) of a delay that the service asks for. */
export const MAX_TOLD = 300_000;

/**
 * The wait (ms) that an error of the service names in `details.retry_after`; undefined if it names none.
 * @param {unknown} seconds
 */
export function toldWait(seconds) {
  return typeof seconds === 'number' && seconds >= 0 ? Math.min(MAX_TOLD, seconds * 1000) : undefined;
}
