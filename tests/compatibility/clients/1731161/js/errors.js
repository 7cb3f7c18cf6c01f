import { ERROR_CODES } from './codes.js';

/** A refusal by the service (its codes are in `ERROR_CODES`), or by the client itself: `timeout`, `closed`, `handler_failed`, `token_failed`. */
export class TidewireError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{retryable?: boolean, details?: Record<string, any>, cause?: unknown}} [more]
   */
  constructor(code, message, { retryable, details = {}, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'TidewireError';
    this.code = code;
    /** Whether the same request can succeed later, unchanged. */
    this.retryable = retryable ?? codes[code]?.retryable ?? false;
    this.details = details;
  }

  /** @param {import('./messages.js').ErrorMessage} message */
  static from({ code, message, retryable, details }) {
    return new TidewireError(code, message, { retryable, details });
  }
}

/** @type {Record<string, {status: number, retryable: boolean, meaning: string}>} */
const codes = ERROR_CODES;
