import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { Pacer } from './pacer.js';

/**
 * A queue of messages of one cost. The sender takes from it when the rates allow, so what waits can still change.
 * @typedef {object} Source
 * @property {import('./pacer.js').Cost} cost
 * @property {() => boolean} waiting  whether `next` has a message
 * @property {(maxBytes: number) => string | undefined} next  the JSON of a message
 */

const encoder = new TextEncoder();
/** Signals wait while more bytes than this are not on their way: they must not delay anything. */
const MAX_BUFFERED = 16_384;

/** The bytes of a text in UTF-8. @param {string} text */
export const bytesOf = (text) => encoder.encode(text).length;

/**
 * Sends over one link: urgent messages at once, then from the sources in the order of their priority, within the rates. It joins
 * the messages of one tick into frames within the limits of `welcome`.
 */
export class Sender {
  #link;
  #pacer;
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
    this.#pacer = new Pacer(limits, clock);
    this.#sources = sources;
    this.#pace = new Timer(clock);
    this.#batch = bounded(limits.batch, 1, 1e5, 100);
    this.#bytes = bounded(limits.message, 128, 1e9, 65_536);
  }

  /**
   * Sends a message before all that waits.
   * @param {import('../messages.js').ClientMessage} message
   * @param {'free' | 'urgent'} [cost]
   */
  send(message, cost = 'urgent') {
    this.#pacer.take(cost);
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
      const { cost } = source;
      while (source.waiting()) {
        if (cost === 'signal' && this.#link.buffered() > MAX_BUFFERED) {
          wait = Math.min(wait, 50);
          break;
        }
        if (!this.#pacer.take(cost)) {
          wait = Math.min(wait, this.#pacer.wait(cost));
          break;
        }
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
