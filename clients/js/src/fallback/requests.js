import { jsonOf } from '../base/body.js';
import { MAX_FRAME } from '../base/bounds.js';
import { within } from '../base/clock.js';
import { errorMessage, problemOf, refusal, textOf } from './http.js';

/** Requests at a time: over HTTP/1.1 a browser has six connections to a host, and the stream is one of them. */
const MAX_AT_ONCE = 4;
/** Of them, calls: slow ones must not hold up publishes. */
const MAX_CALLS_AT_ONCE = 2;
/** Milliseconds for one request. */
const REQUEST_TIMEOUT = 15_000;
/** Milliseconds for a call. A contract allows the backend 30 s. */
const CALL_TIMEOUT = 40_000;
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

/** Sends the messages of a client as requests: `POST /emit`, `POST /call` and `GET /history`. */
export class Requests {
  /** Requests that were sent. */
  count = 0;
  /** @type {ClientMessage[]} */
  #queue = [];
  /** @type {ClientMessage[]} */
  #calls = [];
  #running = 0;
  #calling = 0;
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

  /** @param {ClientMessage} message  an event, a removal, a call, or `history` */
  add(message) {
    (message.type === 'call' ? this.#calls : this.#queue).push(message);
    if (!this.isFull) void this.#run();
  }

  /** Ends all requests. The client sends again what has no answer, but for calls. */
  stop() {
    this.#queue = [];
    this.#calls = [];
    this.#ended.abort();
  }

  async #run() {
    this.#running += 1;
    for (let next = this.#next(); next; next = this.#next()) {
      const isCall = next.type === 'call';
      if (isCall) this.#calling += 1;
      const answer = await (isCall ? this.#call(next) : next.type === 'history' ? this.#history(next) : this.#emit(next));
      if (isCall) this.#calling -= 1;
      if (this.#ended.signal.aborted) return;
      if (answer) this.#session.answer(answer);
    }
    this.#running -= 1;
  }

  #next() {
    return this.#queue.shift() ?? (this.#calling < MAX_CALLS_AT_ONCE ? this.#calls.shift() : undefined);
  }

  /** An answer that does not come leaves open whether the backend has acted. @param {ClientMessage} message */
  async #call({ id, call, data }) {
    const receipt = this.#session.receipt();
    if (receipt === undefined) return refusal(id, 'invalid_receipt', 'the session is renewed', true, 1);
    const { body, problem, error } = await this.#ask((signal) => this.#http.post('call', { call, id, data, receipt }, signal), id, CALL_TIMEOUT);
    if (problem) return this.#refused(problem, id);
    return error ? { ...error, code: 'uncertain' } : { ...body, type: 'reply', id };
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
   * @param {number} [timeout]  ms
   * @returns {Promise<{body?: any, problem?: import('./http.js').Problem, error?: any}>}
   */
  async #ask(send, id, timeout = REQUEST_TIMEOUT) {
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
      return await within(this.#core.clock, timeout, answered, () => new Error(`no answer within ${timeout / 1000} s`));
    } catch (cause) {
      return { error: refusal(id, 'unreachable', textOf(cause), true) };
    } finally {
      end();
      this.#ended.signal.removeEventListener('abort', end);
    }
  }
}
