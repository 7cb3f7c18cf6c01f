import { Timer } from '../base/clock.js';
import { bounded } from '../base/bounds.js';
import { parse } from '../messages.js';
import { problemOf } from './http.js';
import { SseReader } from './sse.js';

/** Bytes that came within so many ms say that the stream lives. */
const FRESH = 1_000;

/**
 * One `POST /stream`, read as it comes.
 */
export class Stream {
  #http;
  #link;
  #way;
  #clock;
  #deadline;
  #ended = new AbortController();
  #heardAt = -Infinity;
  /** @type {number | undefined} ms */
  #retry;
  #wasTold = false;

  /**
   * @param {import('./http.js').Http} http
   * @param {import('./link.js').HttpLink} link
   * @param {import('./fallback.js').Way} way
   * @param {import('../base/clock.js').Clock} clock
   */
  constructor(http, link, way, clock) {
    this.#http = http;
    this.#link = link;
    this.#way = way;
    this.#clock = clock;
    this.#deadline = new Timer(clock);
  }

  start() {
    this.#deadline.start(this.#way.firstBytes, () => this.#held());
    void this.#run();
  }

  stop() {
    this.#deadline.stop();
    this.#ended.abort();
  }

  isFresh() {
    return this.#clock.now() - this.#heardAt < FRESH;
  }

  async #run() {
    const { signal } = this.#ended;
    try {
      const response = await this.#http.post('stream', { subscriptions: this.#link.channels.all, ...this.#way.announcement }, signal);
      if (signal.aborted) return;
      if (response.ok && response.body) await this.#read(response.body.getReader(), signal);
      else await this.#refused(response, signal);
    } catch (/** @type {any} */ cause) {
      if (!signal.aborted) this.#link.end(1006, 'unreachable');
    }
  }

  /** @param {ReadableStreamDefaultReader<Uint8Array>} reader @param {AbortSignal} signal */
  async #read(reader, signal) {
    const decoder = new TextDecoder();
    const sse = new SseReader({
      data: (text) => this.#received(text),
      retry: (ms) => (this.#retry = bounded(ms, 0, 300_000, 0)),
      comment: () => this.#link.heard(),
    });
    for (;;) {
      const { done, value } = await reader.read();
      if (signal.aborted) return;
      if (done) break;
      this.#heardAt = this.#clock.now();
      sse.add(decoder.decode(value, { stream: true }));
    }
    this.#link.end(1006, 'stream_cut');
  }

  /** @param {string} text */
  #received(text) {
    if (this.#ended.signal.aborted) return;
    const messages = parse(text);
    for (const { type } of messages) {
      if (type === 'welcome') {
        this.#deadline.stop();
        this.#way.streams();
      } else if (type === 'reconnect') this.#wasTold = true;
      // The service spreads what it ends, by `reconnect` or by `retry`.
      else if (type === 'closed' && !this.#wasTold) this.#link.received([{ type: 'reconnect', after: (this.#retry ?? 0) / 1000, reason: 'retry' }]);
    }
    this.#link.received(messages);
  }

  /** @param {Response} response @param {AbortSignal} signal */
  async #refused(response, signal) {
    const problem = await problemOf(response);
    if (signal.aborted) return;
    if (!problem && response.status < 500) this.#held();
    else this.#link.refused(problem, response);
  }

  /** Nothing has come, or something else than a stream: a proxy holds streams back. */
  #held() {
    if (this.#way.holdsStreams()) this.#link.begin();
    else this.#link.end(1006, 'no_welcome');
  }
}
