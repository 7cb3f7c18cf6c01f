import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { budgetsOf } from './budget.js';

/**
 * A queue of messages of one kind. The sender takes from it when the rates allow, so what waits can still change.
 * @typedef {object} Source
 * @property {'message' | 'subscribe'} budget
 * @property {number} [reserve]  the part of the budget that it leaves to others; then it also waits while the link is busy
 * @property {() => boolean} waiting  whether `next` has a message
 * @property {(maxBytes: number) => string | undefined} next  the JSON of a message
 */

const encoder = new TextEncoder();
/** More bytes that are not on their way make a link busy: signals must not delay anything. */
const MAX_BUFFERED = 16_384;

/** The bytes of a text in UTF-8. @param {string} text */
export const bytesOf = (text) => encoder.encode(text).length;

/**
 * Sends over one link: urgent messages at once, then from the sources in the order of their priority, within the rates. It joins
 * the messages of one tick into frames within the limits of `welcome`.
 */
export class Sender {
  #link;
  #budgets;
  #sources;
  #pace;
  /** @type {string[]} */
  #urgent = [];
  #scheduled = false;
  #stopped = false;
  #batch;
  #bytes;

  /**
   * @param {import('../connection/link.js').Link} link
   * @param {import('../messages.js').Limits} limits
   * @param {Source[]} sources
   * @param {import('../base/clock.js').Clock} clock
   */
  constructor(link, limits, sources, clock) {
    this.#link = link;
    this.#budgets = budgetsOf(limits, clock);
    this.#sources = sources;
    this.#pace = new Timer(clock);
    this.#batch = bounded(limits.batch, 1, 1e5, 100);
    this.#bytes = bounded(limits.message, 128, 1e9, 65_536);
  }

  /**
   * Sends a message before all that waits.
   * @param {import('../messages.js').ClientMessage} message
   * @param {boolean} [isFree]  the service does not count it
   */
  send(message, isFree) {
    if (!isFree) this.#budgets.message.spend();
    this.#urgent.push(JSON.stringify(message));
    this.wake();
  }

  /** Sends what waits in the sources, at the end of this tick. */
  wake() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      if (!this.#stopped) this.#flush();
    });
  }

  stop() {
    this.#stopped = true;
    this.#pace.stop();
  }

  #flush() {
    const texts = this.#urgent.splice(0);
    let wait = Infinity;
    for (const source of this.#sources) {
      const budget = this.#budgets[source.budget];
      while (source.waiting()) {
        const pause = source.reserve && this.#link.buffered() > MAX_BUFFERED ? 50 : budget.wait(source.reserve);
        if (pause) {
          wait = Math.min(wait, pause);
          break;
        }
        budget.spend();
        const text = source.next(this.#bytes);
        if (text) texts.push(text);
      }
    }
    this.#write(texts);
    this.#pace.start(wait, () => this.#flush());
  }

  /** @param {string[]} texts */
  #write(texts) {
    /** @type {string[]} */
    let batch = [];
    let size = 1;
    const end = () => {
      if (batch.length) this.#link.send(batch.length === 1 ? batch[0] : `[${batch}]`);
      batch = [];
      size = 1;
    };
    for (const text of texts) {
      const bytes = bytesOf(text) + 1;
      if (batch.length >= this.#batch || (batch.length && size + bytes > this.#bytes)) end();
      batch.push(text);
      size += bytes;
    }
    end();
  }
}
