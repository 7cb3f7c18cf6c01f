import { ERROR_CODES } from '../../codes.js';
import { TidewireError } from '../../errors.js';

/**
 * A refusal of the service, with what its code says about retries.
 * @param {string} code
 * @param {string} message
 * @param {Record<string, any>} [details]
 */
export function refusal(code, message, details = {}) {
  return new TidewireError(code, message, { retryable: ERROR_CODES[code]?.retryable ?? false, details });
}
