/**
 * A number from the network or the caller within its bounds; `otherwise` for what is no number.
 * @param {unknown} value
 * @param {number} least
 * @param {number} most
 * @param {number} otherwise
 */
export function bounded(value: unknown, least: number, most: number, otherwise: number): number;
/**
 * The wait (ms) that an error of the service names in `details.retry_after`; undefined if it names none.
 * @param {unknown} seconds
 */
export function toldWait(seconds: unknown): number | undefined;
/** Bounds (ms) of a delay that the service asks for. */
export const MAX_TOLD: 300000;
