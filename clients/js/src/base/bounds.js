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

/** Characters of a frame, or bytes of a body: far above the largest of a service. */
export const MAX_FRAME = 16_777_216;
/** Bytes of a problem document. */
export const MAX_PROBLEM = 65_536;
/** Bounds (ms) of a delay that the service asks for. */
export const MAX_TOLD = 300_000;

/**
 * The wait (ms) that an error of the service names in `details.retry_after`; undefined if it names none.
 * @param {unknown} seconds
 */
export function toldWait(seconds) {
  return typeof seconds === 'number' && seconds >= 0 ? Math.min(MAX_TOLD, seconds * 1000) : undefined;
}
