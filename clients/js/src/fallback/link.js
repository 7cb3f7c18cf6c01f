import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { verdictOf } from '../upkeep/probe.js';
import { Budget } from '../sending/budget.js';
import { Channels } from './channels.js';
import { errorMessage, refusal } from './http.js';
import { Requests } from './requests.js';

/**
 * @typedef {import('../messages.js').ClientMessage} ClientMessage
 *
 * @typedef {object} Receiver  a stream, or polls
 * @property {() => void} start  receives from now on, with the channels and the receipt of now
 * @property {() => void} stop
 * @property {() => boolean} isFresh  whether bytes have come just now
 */

/** Milliseconds in which further subscribes join the same new stream. */
const JOIN_DELAY = 50;
/** The same for channels that were left: until then, their messages are dropped here. */
const LEAVE_DELAY = 1_000;
/** Milliseconds after `welcome` in which the client subscribes to what it wants. */
const CLAIM_TIME = 5_000;
/** Codes of a service that has no streams. They do not end the client: WebSockets may work again. */
const MISSING = ['not_found', 'method_not_allowed'];
/** New streams for changes of the channels: a second over time, and at once. */
const CHANGE_RATE = 0.5;
const CHANGE_BURST = 4;

/**
 * A link over HTTP: what the client sends as messages over a WebSocket becomes requests, and what a stream or polls bring becomes
 * messages. For other channels, or another token, it begins a new stream at the last positions.
 */
export class HttpLink {
  #core;
  #events;
  #http;
  #channels;
  #requests;
  #makeReceiver;
  /** @type {Receiver | undefined} */
  #receiver;
  /** The number of the stream, or of the list of channels of the polls. */
  #part = 0;
  /** @type {string | undefined} */
  #receipt;
  /** @type {any} waits for the receipt, without which nothing can be published */
  #welcome;
  #isWelcomed = false;
  #ended = false;
  #change;
  #claim;
  #changeAt = Infinity;
  #changes;
  /** @type {(() => void)[]} */
  #pongs = [];

  /**
   * @param {import('../core.js').Core} core
   * @param {import('../connection/link.js').LinkEvents} events
   * @param {import('./http.js').Http} http
   * @param {(link: HttpLink) => Receiver} makeReceiver
   */
  constructor(core, events, http, makeReceiver) {
    this.#core = core;
    this.#events = events;
    this.#http = http;
    this.#makeReceiver = makeReceiver;
    this.#change = new Timer(core.clock);
    this.#claim = new Timer(core.clock);
    this.#changes = new Budget(CHANGE_RATE, CHANGE_BURST, CHANGE_BURST, core.clock);
    this.#channels = new Channels(core, (message) => this.#pass(message));
    this.#requests = new Requests(http, this.#session(), core);
    queueMicrotask(() => {
      if (!this.#ended) events.opened();
    });
  }

  /** @returns {import('./requests.js').Session} */
  #session() {
    return {
      receipt: () => this.#receipt,
      has: (channel) => this.#channels.entries.has(channel),
      answer: (message) => this.#pass(message),
      refused: (problem, status) => this.end(1006, problem.code, verdictOf(problem, status, this.#http.url('emit').href)),
      renew: () => this.renew(),
    };
  }

  /** For `explain()`. */
  get counts() {
    return `${this.#part} streams, ${this.#requests.count} requests`;
  }

  get channels() {
    return this.#channels;
  }

  get receipt() {
    return this.#receipt;
  }

  // --- the client's side -------------------------------------------------------------------------------------------------

  /** @param {string} frame */
  send(frame) {
    const content = JSON.parse(frame);
    for (const message of Array.isArray(content) ? content : [content]) this.#take(message);
  }

  /** Signals wait here for nothing: the client replaces or drops them while all requests are on their way. */
  buffered() {
    return this.#requests.isFull ? Infinity : 0;
  }

  close() {
    this.#ended = true;
    this.#change.stop();
    this.#claim.stop();
    this.#receiver?.stop();
    this.#requests.stop();
  }

  /** @param {ClientMessage} message */
  #take(message) {
    const { type, id, channel = '' } = message;
    if (type === 'hello') this.#http.token = message.token;
    else if (type === 'ready') this.begin();
    else if (type === 'subscribe') {
      if (this.#channels.join(message, this.#part + 1)) this.#changeIn(JOIN_DELAY);
    } else if (type === 'unsubscribe') {
      this.#channels.entries.delete(channel);
      this.#changeIn(LEAVE_DELAY);
      this.#pass({ type: 'unsubscribed', id, channel, code: 'requested' });
    } else if (type === 'ping') this.#check(id);
    else if (type === 'refresh') this.#refresh(message);
    else if (type === 'presence') this.#showPresence(id, channel);
    else this.#requests.add(message);
  }

  /** @param {ClientMessage} message */
  #refresh({ id, token }) {
    const isNew = this.#http.token !== token;
    this.#http.token = token;
    this.#pass({ type: 'ack', id });
    if (isNew) this.#changeIn(0); // until then, the receipt counts
  }

  /** Who is in a channel is asked over WebSockets only; a subscriber knows it. @param {string | undefined} id @param {string} channel */
  #showPresence(id, channel) {
    const known = this.#core.registry.subscriptions.get(channel)?.delivery.presence;
    if (!known) this.#pass(refusal(id, 'needs_websocket', `without a WebSocket, ${channel} shows its members only to subscribers`));
    else this.#pass({ type: 'presence', id, channel, presence: { count: known.count, members: known.members } });
  }

  /** Asks whether the service is still there: a new stream, or the next poll, answers. @param {string | undefined} id */
  #check(id) {
    const pong = () => this.#pass({ type: 'pong', id });
    if (this.#receiver?.isFresh()) pong();
    else {
      this.#pongs.push(pong);
      this.begin();
    }
  }

  // --- receiving ---------------------------------------------------------------------------------------------------------

  /** Begins the next stream, or polls with the channels of now. */
  begin() {
    this.#part += 1;
    this.#changeAt = Infinity;
    this.#change.stop();
    this.#receiver?.stop();
    this.#receiver = this.#makeReceiver(this);
    this.#receiver.start();
  }

  /** The receipt counts no more: begins a new session at the last positions. */
  renew() {
    this.#receipt = undefined;
    for (const entry of this.#channels.entries.values()) entry.known = false;
    this.#changeIn(0);
  }

  /** @param {number} ms */
  #changeIn(ms) {
    const { clock } = this.#core;
    const at = clock.now() + ms;
    if (!this.#isWelcomed || at >= this.#changeAt) return;
    this.#changeAt = at;
    this.#change.start(ms, () => this.#changeNow());
  }

  #changeNow() {
    const wait = this.#changes.wait();
    if (wait) this.#change.start(wait, () => this.#changeNow());
    else {
      this.#changes.spend();
      this.begin();
    }
  }

  /** @param {any[]} messages */
  received(messages) {
    for (const message of messages) {
      if (this.#ended) return;
      this.#receive(message);
    }
  }

  /** @param {string} receipt */
  renewed(receipt) {
    this.#receipt = receipt;
    for (const pong of this.#pongs.splice(0)) pong();
    const welcome = this.#welcome;
    this.#welcome = undefined;
    if (!welcome || this.#ended) return;
    if (this.#isWelcomed && welcome.user !== this.#core.welcome?.user) {
      this.end(1012, 'another user'); // what waits here was published by somebody else
      return;
    }
    const isFirst = !this.#isWelcomed;
    this.#isWelcomed = true;
    this.#pass(welcome);
    if (isFirst && !this.#ended) this.#claim.start(CLAIM_TIME, () => this.#channels.dropUnclaimed() && this.#changeIn(LEAVE_DELAY));
  }

  /** Bytes have come that are no message. */
  heard() {
    this.#events.received(':');
  }

  /** @param {any} message */
  #receive(message) {
    const { type, channel, details } = message;
    if (type === 'welcome') this.#welcome = message;
    else if (type === 'receipt') this.renewed(String(message.receipt));
    else if (type === 'closed') this.end(bounded(message.code, 1000, 4999, 1006), String(message.reason));
    else if (type === 'error' && details?.channel !== undefined) this.#failed(message);
    else if (channel === undefined) this.#pass(message);
    else {
      const entry = this.#channels.entries.get(channel);
      if (entry && entry.from <= this.#part) this.#channels.received(entry, message);
    }
  }

  /** The service could not serve a channel. @param {any} error */
  #failed(error) {
    const { channel } = error.details;
    const entry = this.#channels.entries.get(channel);
    if (!entry) return;
    if (!error.retryable || entry.id || entry.held) this.#channels.refuse(channel, error);
    else {
      entry.known = false; // the client has it; it is asked for again
      this.#changeIn(bounded(error.details.retry_after, 1, 300, 5) * 1000);
    }
  }

  /**
   * The service refuses a stream or a poll. A channel that it names is left out.
   * @param {import('./http.js').Problem | undefined} problem
   * @param {Response} response
   */
  refused(problem, response) {
    const channel = problem?.details?.channel;
    const isMissing = MISSING.includes(problem?.code ?? '');
    if (problem && this.#channels.entries.has(channel)) {
      this.#channels.refuse(channel, errorMessage(problem, undefined));
      if (!this.#ended) this.begin();
    } else if (problem && channel !== undefined) this.end(1006, problem.code); // the client has left it meanwhile
    else this.end(1006, '', verdictOf(isMissing ? undefined : problem, response.status, this.#http.url('stream').href, response.headers));
  }

  /**
   * @param {number} code
   * @param {string} reason
   * @param {import('../upkeep/probe.js').Verdict} [verdict]
   */
  end(code, reason, verdict) {
    if (this.#ended) return;
    this.close();
    this.#events.ended(code, reason, verdict);
  }

  /** @param {any} message */
  #pass(message) {
    if (!this.#ended) this.#events.received(JSON.stringify(message));
  }
}
