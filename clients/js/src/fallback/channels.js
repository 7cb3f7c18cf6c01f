import { TidewireError } from '../errors.js';
import { refusal } from './http.js';

/**
 * @typedef {import('../messages.js').Position} Position
 * @typedef {object} Entry  a channel that the client wants
 * @property {string} channel
 * @property {Position} [since]  of the last message that was passed on
 * @property {number} [tail]
 * @property {string} [id]  of the `subscribe` without an answer
 * @property {number} from  the first session part (stream, poll) that has this channel; messages of earlier ones belong to a former subscription
 * @property {boolean} known  whether the receipt has it; for polls
 * @property {any[] | undefined} held  messages that came before the client's `subscribe`
 * @property {any} [refusal]  of the service, that came before the client's `subscribe`
 */

/** Messages of one channel that wait for the client's `subscribe`, which follows `welcome`. */
const MAX_HELD = 1_000;

/**
 * The channels of one link, and how far each has been passed on. A stream begins with the channels that the client wants; their
 * messages wait here for the client's `subscribe`, and get its id.
 */
export class Channels {
  /** @type {Map<string, Entry>} */
  entries = new Map();
  #core;
  #pass;

  /**
   * @param {import('../core.js').Core} core
   * @param {(message: any) => void} pass  passes a message on to the client
   */
  constructor(core, pass) {
    this.#core = core;
    this.#pass = pass;
    for (const [channel, subscription] of core.registry.subscriptions) {
      if (subscription.tokenFunction || subscription.state === 'ended') continue;
      this.entries.set(channel, { channel, ...subscription.start, from: 0, known: false, held: [] });
    }
  }

  /** What a request for a stream, or the first poll, asks for. */
  get all() {
    return [...this.entries.values()].filter(({ refusal: refused }) => !refused).map(({ channel, since, tail }) => ({ channel, since, tail }));
  }

  /** The new list of channels of a session of polls: a position only for what is new to it. */
  get changes() {
    return this.all.map(({ channel, since, tail }) => (this.entries.get(channel)?.known ? { channel } : { channel, since, tail }));
  }

  /**
   * The client subscribes. Returns whether that needs a new stream.
   * @param {import('../messages.js').ClientMessage} message
   * @param {number} next  the number of the next session part
   */
  join({ id, channel = '', since, tail, token }, next) {
    if (token !== undefined) {
      const error = refusal(id, 'needs_websocket', `${channel}: a token of its own needs a WebSocket`, true, 30);
      this.#core.report(TidewireError.from(/** @type {any} */ (error), channel), this.#core.registry.subscriptions.get(channel));
      this.#pass(error);
      return false;
    }
    const entry = this.entries.get(channel);
    if (!entry?.held) {
      this.entries.set(channel, { channel, since, tail, id, from: next, known: false, held: undefined });
      return true;
    }
    const { held, refusal: refused } = entry;
    entry.held = undefined;
    entry.id = id;
    if (refused) this.refuse(channel, refused);
    else for (const message of held) this.received(entry, message);
    return false;
  }

  /** Drops the channels that the client has left before it subscribed. Returns whether there are any. */
  dropUnclaimed() {
    const unclaimed = [...this.entries.values()].filter(({ held }) => held);
    for (const { channel } of unclaimed) this.entries.delete(channel);
    return unclaimed.length > 0;
  }

  /** The service refuses a channel. @param {string} channel @param {any} error */
  refuse(channel, error) {
    const entry = this.entries.get(channel);
    if (!entry) return;
    entry.refusal = error;
    if (entry.held) return;
    this.entries.delete(channel);
    if (entry.id) this.#pass({ ...error, id: entry.id });
    else this.#pass({ type: 'unsubscribed', channel, code: error.code });
  }

  /**
   * Passes on a message of a channel, and keeps the position.
   * @param {Entry} entry
   * @param {any} message
   */
  received(entry, message) {
    if (entry.held) {
      if (entry.held.length >= MAX_HELD) throw new RangeError('too many messages before the subscribe');
      entry.held.push(message);
      return;
    }
    if (message.type === 'subscribed') {
      entry.since = { epoch: message.epoch, offset: message.offset, id: message.last };
      this.#pass({ ...message, id: entry.id ?? null });
      entry.id = entry.tail = undefined;
    } else if (message.type === 'unsubscribed') {
      this.entries.delete(entry.channel);
      this.#pass(message);
    } else {
      if (typeof message.offset === 'number' && entry.since) entry.since = { ...entry.since, offset: message.offset, id: message.id };
      this.#pass(message);
    }
  }
}
