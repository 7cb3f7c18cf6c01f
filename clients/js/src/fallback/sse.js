import { MAX_FRAME } from '../base/bounds.js';

/**
 * Reads `text/event-stream` as it comes. The service sends one line of `data` with each event, so each line counts by itself.
 */
export class SseReader {
  #rest = '';
  #events;

  /** @param {{data: (text: string) => void, retry: (ms: number) => void, comment: () => void}} events */
  constructor(events) {
    this.#events = events;
  }

  /** @param {string} text */
  add(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() ?? '';
    if (this.#rest.length > MAX_FRAME) throw new RangeError('a line of the stream is too long');
    for (const line of lines) this.#line(line);
  }

  /** @param {string} line */
  #line(line) {
    if (line.startsWith('data:')) this.#events.data(line.slice(5));
    else if (line.startsWith('retry:')) this.#events.retry(Number(line.slice(6)));
    else if (line.startsWith(':')) this.#events.comment();
  }
}
