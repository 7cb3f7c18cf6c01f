/** Holds the token, and asks the application for a new one when the old one was refused or has expired. */
export class TokenSource {
  #source;
  #clock;
  /** @type {string | undefined} */
  #token;
  /** @type {Promise<string> | undefined} */
  #asking;
  #expires = Infinity;

  /**
   * @param {string | (() => string | Promise<string>) | undefined} source
   * @param {import('./clock.js').Clock} clock
   */
  constructor(source, clock) {
    this.#source = source;
    this.#clock = clock;
    if (typeof source === 'string') this.#token = source.trim(); // a token from a file ends in a newline
  }

  /** Whether connections authenticate by `hello` with a token. */
  get used() {
    return this.#source !== undefined;
  }

  /** Whether the application can provide a new token. */
  get renewable() {
    return typeof this.#source === 'function';
  }

  /** Whether `get` has to ask the application. */
  get stale() {
    return this.renewable && (this.#token === undefined || this.#clock.now() >= this.#expires);
  }

  /** The token; rejects as the application's function does. */
  async get() {
    if (!this.stale) return this.#token;
    return this.renew();
  }

  /** Gets a new token; concurrent callers share one call of the application's function. */
  renew() {
    if (typeof this.#source !== 'function') return Promise.reject(new Error('the token is a fixed string'));
    const source = this.#source;
    this.#asking ??= Promise.resolve()
      .then(source)
      .then((given) => {
        const token = typeof given === 'string' ? given.trim() : given;
        this.#token = token;
        this.#expires = Infinity;
        return token;
      })
      .finally(() => {
        this.#asking = undefined;
      });
    return this.#asking;
  }

  /** Marks the token as refused by the service. */
  refused() {
    if (this.renewable) this.#token = undefined;
  }

  /** @param {number | undefined} seconds  until the token expires */
  expiresIn(seconds) {
    this.#expires = seconds === undefined ? Infinity : this.#clock.now() + seconds * 1000;
  }
}
