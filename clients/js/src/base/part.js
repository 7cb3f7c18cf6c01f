import { within } from './clock.js';

/** Milliseconds in which a part must arrive. */
const LOAD_TIMEOUT = 8_000;

/**
 * A module that is loaded when it is first needed. Where it does not arrive, the client goes on without it.
 * @template M
 */
export class Part {
  /** The module, once it is here. @type {M | undefined} */
  module;
  #load;
  /** @type {Promise<M> | undefined} */
  #loading;

  /** @param {() => Promise<M>} load */
  constructor(load) {
    this.#load = load;
  }

  /**
   * The module; undefined if it does not arrive in time. The next call tries again.
   * @param {import('./clock.js').Clock} clock
   * @returns {Promise<M | undefined>}
   */
  async get(clock) {
    if (this.module) return this.module;
    this.#loading ??= this.#load().finally(() => (this.#loading = undefined));
    try {
      return (this.module = await within(clock, LOAD_TIMEOUT, this.#loading, () => new Error('late')));
    } catch {
      return undefined;
    }
  }
}
