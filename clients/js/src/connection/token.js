import { within } from '../base/clock.js';
import { TidewireError } from '../errors.js';

/** Milliseconds that a function of the application has for a token. */
export const TOKEN_TIMEOUT = 10_000;

/**
 * A function of the application that gets a token. The signal aborts when the client no longer waits.
 * @typedef {(context: {signal: AbortSignal}) => string | Promise<string>} TokenFunction
 */

/** @typedef {Pick<import('../core.js').Core, 'clock' | 'loadUpkeep'>} Surroundings */

/**
 * Calls a function of the application that gets a token, and checks what it returned.
 * @param {TokenFunction} get
 * @param {string} name  how the application has passed the function: `token` or `ticket`
 * @param {Surroundings} core
 * @param {string} [channel]
 * @param {AbortController} [asking]  the caller may abort it
 * @returns {Promise<string>}
 */
export async function askToken(get, name, core, channel, asking = new AbortController()) {
  const where = `the function \`${name}\`${channel ? ` of ${channel}` : ''}`;
  const late = () => new Error(`no result within ${TOKEN_TIMEOUT / 1000} s`);
  try {
    const call = (async () => get({ signal: asking.signal }))();
    return await checkToken(await within(core.clock, TOKEN_TIMEOUT, call, late), where, core);
  } catch (/** @type {any} */ cause) {
    asking.abort(cause);
    if (cause instanceof TidewireError && cause.code === 'token_failed') throw cause;
    const retryable = cause?.retryable !== false;
    const help = cause?.help;
    throw new TidewireError('token_failed', `${where} failed: ${cause?.message ?? cause}`, { cause, channel, retryable, help });
  }
}

/**
 * Returns the token, or throws an error that shows what was given instead.
 * @param {unknown} given
 * @param {string} where
 * @param {Surroundings} core
 */
export async function checkToken(given, where, core) {
  const token = typeof given === 'string' ? given.trim() : ''; // a token from a file ends in a newline
  if (/^(?!(undefined|null)$)[!#-;=?-Z\\^-z|~]+$/.test(token)) return token;
  const loaded = await core.loadUpkeep();
  throw new TidewireError('token_failed', `${where} returned ${loaded?.shown(given) ?? typeof given}, which is not a token`, { retryable: true });
}

/** Holds the token, and asks the application for a new one when the old one was refused or has expired. */
export class TokenSource {
  #source;
  #core;
  /** @type {string | undefined} */
  #token;
  /** @type {Promise<string> | undefined} */
  #asking;
  /** @type {AbortController | undefined} */
  #stop;
  #expires = Infinity;

  /**
   * @param {string | TokenFunction | undefined} source
   * @param {Surroundings} core
   */
  constructor(source, core) {
    this.#source = source;
    this.#core = core;
  }

  /** Whether connections authenticate by `hello` with a token. */
  get used() {
    return this.#source !== undefined;
  }

  /** Whether the application can provide a new token. */
  get renewable() {
    return typeof this.#source === 'function';
  }

  /** The token; rejects with `token_failed`. */
  async get() {
    if (!this.renewable) return checkToken(this.#source, 'the option `token`', this.#core);
    const known = this.#core.clock.now() < this.#expires ? this.#token : undefined;
    return known ?? this.renew();
  }

  /** Gets a new token; concurrent callers share one call of the application's function. @returns {Promise<string>} */
  renew() {
    if (this.#asking) return this.#asking;
    const stop = (this.#stop = new AbortController());
    const asking = askToken(/** @type {TokenFunction} */ (this.#source), 'token', this.#core, undefined, stop)
      .then((token) => {
        if (asking === this.#asking) [this.#token, this.#expires] = [token, Infinity]; // else it was forgotten meanwhile
        return token;
      })
      .finally(() => {
        if (asking === this.#asking) this.#asking = undefined;
      });
    return (this.#asking = asking);
  }

  /** The client is closed: at its next connection, somebody else may be logged in. */
  forget() {
    this.#token = this.#asking = undefined;
    this.#stop?.abort();
  }

  /** Marks the token as refused by the service. */
  refused() {
    this.#token = undefined;
  }

  /** @param {unknown} seconds  until the token expires */
  expiresIn(seconds) {
    this.#expires = typeof seconds === 'number' ? this.#core.clock.now() + seconds * 1000 : Infinity;
  }
}
