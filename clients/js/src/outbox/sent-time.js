import { bounded } from '../base/bounds.js';

/** A part (ms) of the window that is not used: clocks differ, and a message takes time. */
const MARGIN = 30_000;
/** A wall clock that went back by more (ms) was set. */
export const SET_BACK = 10_000;

/** The wall clock time of a send whose time is not known any more. */
export const LONG_AGO = 1;

/**
 * Tells whether the service may have forgotten a publish: then sending it again could store it twice. Where the clocks leave a doubt, it
 * may have.
 * @typedef {{wall: number, monotonic?: number}} SentAt  `monotonic` is known to the page that has sent it
 */
export class SentTime {
  #clock;
  #window;
  #offset;

  /**
   * @param {import('../base/clock.js').Clock} clock  monotonic; it may stop while the machine sleeps, which the wall clock does not
   * @param {unknown} window  ms
   */
  constructor(clock, window) {
    this.#clock = clock;
    this.#window = bounded(window, 60_000, 86_400_000, 300_000);
    this.#offset = this.#drift();
  }

  /** @returns {Required<SentAt>} */
  now() {
    return { wall: Date.now(), monotonic: this.#clock.now() };
  }

  /** @param {SentAt} sent */
  isOld(sent) {
    const { wall, monotonic } = this.now();
    const age = wall - sent.wall;
    if (age < -SET_BACK) return true;
    return Math.max(age, monotonic - (sent.monotonic ?? Infinity)) >= this.#window - MARGIN;
  }

  /** Whether the wall clock was set back since the last call: the stored times of this page count no more. */
  wasSetBack() {
    const drift = this.#drift();
    const changed = drift < this.#offset - SET_BACK;
    this.#offset = drift;
    return changed;
  }

  #drift() {
    return Date.now() - this.#clock.now();
  }
}
