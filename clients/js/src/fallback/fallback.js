// Streams and polls for where WebSockets are blocked (docs/streams.md). The client loads this module when it needs it.

import { remember } from '../connection/blocked.js';
import { Http } from './http.js';
import { HttpLink } from './link.js';
import { Polls } from './poll.js';
import { Stream } from './stream.js';
import { Trials } from './trials.js';

/**
 * @typedef {object} Context  what the connection gives
 * @property {import('../core.js').Core} core
 * @property {typeof globalThis.fetch} fetch
 * @property {boolean} byCookie  whether a cookie authenticates
 * @property {import('../connection/link.js').OpenLink} openWebSocket
 * @property {() => void} back  WebSockets work again
 *
 * @typedef {object} Way  what receivers share
 * @property {number} firstBytes  ms in which a stream must begin
 * @property {{client?: string, contract?: string, features: string[]}} announcement
 * @property {() => void} streams  a stream has begun
 * @property {() => boolean} holdsStreams  nothing has come of one; returns whether polls are used from now on
 */

/** Milliseconds in which the first stream must begin, and each further one once that was seen. */
const FIRST_BYTES = 1_200;
const LATER_BYTES = 8_000;
/** Milliseconds after which a stream is tried again where one did not begin. */
const POLLS_FOR = 600_000;
/** Characters of a name that the service accepts. */
const MAX_NAME = 65;

/** Opens links over HTTP, and tries WebSockets again in the background. */
export class Fallback {
  /** @type {'stream' | 'poll'} */
  transport = 'stream';
  #context;
  #trials;
  #hasStreamed = false;
  #pollsUntil = 0;
  /** @type {HttpLink | undefined} */
  #link;

  /** @param {Context} context */
  constructor(context) {
    this.#context = context;
    const { core, openWebSocket, back } = context;
    this.#trials = new Trials(core, openWebSocket, back);
  }

  /** @type {import('../connection/link.js').OpenLink} */
  open = (address, events) => {
    const { core, fetch, byCookie } = this.#context;
    if (this.transport === 'poll' && core.clock.now() >= this.#pollsUntil) this.transport = 'stream';
    remember(address, true);
    this.#trials.start(address);
    const http = new Http(address, fetch, byCookie);
    const way = this.#way(address);
    const receive = (/** @type {HttpLink} */ link) => (this.transport === 'poll' ? new Polls(http, link, way, core) : new Stream(http, link, way, core.clock));
    this.#link = new HttpLink(core, events, http, receive);
    return this.#link;
  };

  /** The network has changed: tries a WebSocket now. */
  retry() {
    this.#trials.now();
  }

  /** The client is closed, or uses WebSockets again. */
  stop() {
    this.#trials.stop();
  }

  explain() {
    return `${this.transport === 'poll' ? 'polls, because streams are held back' : 'streams'} (${this.#link?.counts}); ${this.#trials.explain()}`;
  }

  /** @param {URL} address @returns {Way} */
  #way({ searchParams }) {
    const named = (/** @type {string} */ name) => {
      const value = searchParams.get(name) ?? '';
      return value && value.length <= MAX_NAME ? value : undefined;
    };
    const announcement = { client: named('client'), contract: named('contract'), features: (searchParams.get('features') ?? '').split(',') };
    const self = this;
    return {
      announcement,
      get firstBytes() {
        return self.#hasStreamed ? LATER_BYTES : FIRST_BYTES;
      },
      streams: () => {
        this.#hasStreamed = true;
      },
      holdsStreams: () => this.#poll(),
    };
  }

  #poll() {
    if (this.#hasStreamed) {
      this.#hasStreamed = false; // the next one has to prove it
      return false;
    }
    this.transport = 'poll';
    this.#pollsUntil = this.#context.core.clock.now() + POLLS_FOR;
    return true;
  }
}
