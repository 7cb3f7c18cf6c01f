/** Texts that are loaded with `connect()`. @type {{help?: (code: string) => string | undefined}} */
export const texts = {};

/**
 * A refusal by the service (its codes are in `tidewire/codes`), or by the client itself. `help` says what to do in short; docs/errors.md
 * of this package has every code.
 */
export class TidewireError extends Error {
  #help;

  /**
   * @param {string} code
   * @param {string} message
   * @param {{channel?: string, help?: string, retryable?: boolean, details?: Record<string, any>, cause?: unknown}} [more]
   */
  constructor(code, message, { channel, help, retryable = false, details = {}, cause } = {}) {
    super(message, /** @type {any} */ (cause && { cause }));
    this.name = 'TidewireError';
    this.code = code;
    this.channel = channel;
    this.#help = help;
    /** Whether the same request can succeed later, unchanged. */
    this.retryable = retryable;
    this.details = details;
  }

  /** What to do. The texts are loaded with `connect()`. @returns {string} */
  get help() {
    return this.#help ?? texts.help?.(this.code) ?? '';
  }

  /**
   * @param {import('./messages.js').ErrorMessage} message
   * @param {string} [channel]
   */
  static from({ code, message, retryable, details }, channel = details?.channel) {
    const hint = details?.suggestion ? `; did you mean ${details.suggestion}?` : '';
    return new TidewireError(code, `${message}${hint}`, { channel, retryable: retryable === true, details: details ?? {} });
  }
}

/**
 * The error of a request that the service does not have.
 * @param {{type: string, channel?: string, call?: string}} request
 * @param {string} why
 * @param {{details?: any, retryable?: boolean}} [more]
 * @param {string} [code]
 */
export function notSent({ type, channel, call = type }, why, more, code = 'not_sent') {
  return new TidewireError(code, `${call}: ${why}; it was never sent`, { channel, retryable: true, ...more });
}
