import { jsonOf } from '../base/body.js';
import { MAX_FRAME } from '../base/bounds.js';
import { within } from '../base/clock.js';
import { errorMessage, problemOf, refusal, textOf } from './http.js';

/** Requests at a time: over HTTP/1.1 a browser has six connections to a host, and the stream is one of them. */
const MAX_AT_ONCE = 4;
/** Milliseconds for one request. */
const REQUEST_TIMEOUT = 15_000;
/** Receipts with which an emit is tried: a newer one may have come while it was on its way. */
const MAX_TRIES = 3;

/**
 * @typedef {import('../messages.js').ClientMessage} ClientMessage
 *
 * @typedef {object} Session  what requests need of the stream or of the polls
 * @property {() => string | undefined} receipt  the newest
 * @property {(channel: string) => boolean} has  whether the client wants a channel
 * @property {(message: any) => void} answer  passes a message on to the client
 * @property {(problem: import('./http.js').Problem, status: number) => void} refused  the service refuses the token
 * @property {() => void} renew  the receipt counts no more
 */

/** Sends the messages of a client as requests: `POST /emit` and `GET /history`. */
export class Requests {
  /** Requests that were sent. */
  count = 0;
  /** @type {ClientMessage[]} */
  #queue = [];
  #running = 0;
  #ended = new AbortController();
  #http;
  #session;
  #core;

  /**
   * @param {import('./http.js').Http} http
   * @param {Session} session
   * @param {import('../core.js').Core} core
   */
  constructor(http, session, core) {
    this.#http = http;
    this.#session = session;
    this.#core = core;
  }

  /** Whether further requests would wait. */
  get isFull() {
    return this.#running >= MAX_AT_ONCE;
  }

  /** @param {ClientMessage} message  an event, a removal, or `history` */
  add(message) {
    this.#queue.push(message);
    if (!this.isFull) void this.#run();
  }

  /** Ends all requests. The client sends again what has no answer. */
  stop() {
    this.#queue = [];
    this.#ended.abort();
  }

  async #run() {
    this.#running += 1;
    for (let next = this.#queue.shift(); next; next = this.#queue.shift()) {
      const answer = await (next.type === 'history' ? this.#history(next) : this.#emit(next));
      if (this.#ended.signal.aborted) return;
      if (answer) this.#session.answer(answer);
    }
    this.#running -= 1;
  }

  /** @param {ClientMessage} message */
  async #emit(message) {
    const id = message.id ?? this.#core.nextId();
    for (let tries = 1; ; tries += 1) {
      const receipt = this.#session.receipt();
      if (receipt === undefined) return message.id === undefined ? undefined : refusal(message.id, 'invalid_receipt', 'the session is renewed', true, 1);
      const { body, problem, error } = await this.#ask((signal) => this.#http.post('emit', { ...message, id, receipt }, signal), message.id);
      if (!problem) return message.id === undefined ? undefined : (error ?? body);
      const isStale = problem.code === 'not_subscribed' && this.#session.has(String(message.channel)) && receipt !== this.#session.receipt();
      if (!isStale || tries >= MAX_TRIES) return this.#refused(problem, message.id);
    }
  }

  /** @param {import('./http.js').Problem} problem @param {string | undefined} id */
  #refused(problem, id) {
    if (problem.code !== 'invalid_receipt') return errorMessage(problem, id);
    this.#session.renew();
    return id === undefined ? undefined : refusal(id, 'invalid_receipt', 'the session is renewed', true, 1);
  }

  /** @param {ClientMessage} message */
  async #history({ id, channel, after, before, limit }) {
    if (!this.#core.offers('history_pages')) return refusal(id, 'needs_websocket', 'this service gives history only over WebSockets');
    const { body, problem, error } = await this.#ask((signal) => this.#http.get('history', { channel, after, before, limit }, signal), id);
    return problem ? errorMessage(problem, id) : (error ?? { ...body, type: 'history', id });
  }

  /**
   * @param {(signal: AbortSignal) => Promise<Response>} send
   * @param {string | undefined} id
   * @returns {Promise<{body?: any, problem?: import('./http.js').Problem, error?: any}>}
   */
  async #ask(send, id) {
    this.count += 1;
    const asking = new AbortController();
    const end = () => asking.abort();
    this.#ended.signal.addEventListener('abort', end);
    const answered = (async () => {
      const response = await send(asking.signal);
      if (response.ok) return { body: await jsonOf(response, MAX_FRAME) };
      const problem = await problemOf(response);
      if (problem && response.status === 401) this.#session.refused(problem, response.status);
      if (problem) return { problem };
      await response.body?.cancel();
      return { error: refusal(id, 'unexpected_response', `the answer is ${response.status}, and not of the service`, true) };
    })();
    try {
      return await within(this.#core.clock, REQUEST_TIMEOUT, answered, () => new Error(`no answer within ${REQUEST_TIMEOUT / 1000} s`));
    } catch (cause) {
      return { error: refusal(id, 'unreachable', textOf(cause), true) };
    } finally {
      end();
      this.#ended.signal.removeEventListener('abort', end);
    }
  }
}
