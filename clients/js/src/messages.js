// The messages of `tidewire.v1` as types. docs/protocol.md is the normative text.

import { MAX_FRAME } from './base/bounds.js';

/**
 * @typedef {{epoch: string, offset: number, id?: string}} Position
 *   A client's position in a channel: `id` is the event at `offset`, absent at offset 0.
 *
 * @typedef {{type: string, channel: string, id: string, at: number, from: string | null, data: any,
 *            offset?: number, rev?: number, key?: string, ttl?: number, removed?: true, exclude?: string}} Event
 *   Durable events have an `offset`, latest ones a `rev` and a `key`, ephemeral ones neither. `ttl`: milliseconds until a value ends.
 *   A removal has `removed`, and no `data`. `exclude`: the connection of `from` that drops the event.
 *
 * @typedef {{user: string, connections?: number, info?: any, updated?: boolean}} Member
 *   `updated`: the user's client has set `info` with `presence.update`; else it is that of the token.
 * @typedef {{count: number, members?: Member[]}} Presence
 *   `members` is absent in channels too large to list.
 *
 * @typedef {{connections: number, rate: number, burst: number, subscribe_rate: number, subscribe_burst: number,
 *            connect_rate?: number, connect_burst?: number}} SharedLimits
 * @typedef {{message: number, batch: number, subscriptions: number, rate: number, burst: number, subscribe_rate?: number,
 *            subscribe_burst?: number, calls?: number, violations?: number, user?: SharedLimits, address?: SharedLimits}} Limits
 *   Older services omit the optional ones; `user` is also absent for an anonymous connection.
 * @typedef {{type: 'welcome', connection: string, user: string, heartbeat: number, limits: Limits, expires_in?: number,
 *            features?: string[], data?: any}} Welcome
 *   `data`: what the backend says to the client that it has authenticated (hook `connect`).
 * @typedef {{type: 'subscribed', id: string | null, channel: string, epoch: string, offset: number, last?: string,
 *            events: Event[], state: Event[], recovered?: boolean, presence?: Presence,
 *            tail?: Event[]}} Subscribed
 * @typedef {{type: 'unsubscribed', channel: string, code: string, id?: string}} Unsubscribed
 * @typedef {{type: 'ack', id: string, offset?: number, rev?: number, duplicate?: boolean}} Ack
 * @typedef {{type: 'error', id?: string, code: string, message: string, retryable: boolean, details?: Record<string, any>}} ErrorMessage
 * @typedef {{type: 'history', id: string, channel: string, epoch: string, offset: number, last?: string,
 *            events: Event[], more: boolean, older?: string, newer?: string}} HistoryPage
 *   `older` and `newer`: paths of pages that caches may keep, to read with `fetch`.
 * @typedef {{type: 'presence', id: string | null, channel: string, presence: Presence | null}} PresenceReply
 *   Without an id: the rights of a live subscription changed; `presence` is null if it lost the right to presence.
 * @typedef {{type: 'expiring', in: number, channel?: string}} Expiring
 *   With a channel: the token of this subscription.
 * @typedef {{type: 'reconnect', after: number, reason: string}} Reconnect
 * @typedef {{type: 'pong', id?: string}} Pong
 * @typedef {{type: 'reply', id: string, data: any}} Reply  of the backend to a `call`
 *
 * @typedef {Welcome | Subscribed | Unsubscribed | Ack | ErrorMessage | HistoryPage | PresenceReply | Expiring
 *           | Reconnect | Pong | Reply} SystemMessage
 * @typedef {SystemMessage | Event} ServerMessage
 *
 * @typedef {{type: string, id?: string, channel?: string, [field: string]: any}} ClientMessage
 */

/** The WebSocket subprotocol. */
export const SUBPROTOCOL = 'tidewire.v1';

/**
 * Whether a message is an event: only their types contain a dot.
 * @param {ServerMessage} message
 * @returns {message is Event}
 */
export function isEvent(message) {
  return message.type.includes('.');
}

/**
 * Returns the messages of a frame. What breaks the protocol is ignored: a client must survive the messages of a newer service, of
 * a proxy, or of a service with a fault.
 * @param {unknown} frame
 * @returns {ServerMessage[]}
 */
export function parse(frame) {
  if (typeof frame !== 'string' || frame.length > MAX_FRAME) return [];
  let content;
  try {
    content = JSON.parse(frame);
  } catch {
    return [];
  }
  return (Array.isArray(content) ? content : [content]).filter(isMessage);
}

/** @param {any} value */
const isObject = (value) => value !== null && typeof value === 'object';
/** @param {unknown} value */
const isText = (value) => typeof value === 'string';
/** @param {unknown} value */
const isCount = (value) => Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;
/** @param {any} list @param {string} channel */
const eventsOf = (list, channel) => (Array.isArray(list) ? list.filter((event) => isMessage(event) && isEvent(event) && event.channel === channel) : []);

/** @type {Record<string, (message: any) => boolean>} */
const CHECKS = {
  // @ts-expect-error the prototype, so that no other name is found
  __proto__: null,
  welcome: ({ connection, user, limits, features }) => isText(connection) && isText(user) && isObject(limits) && (features === undefined || Array.isArray(features)),
  subscribed: (message) => {
    message.events = eventsOf(message.events, message.channel);
    message.state = eventsOf(message.state, message.channel);
    if (message.tail) message.tail = eventsOf(message.tail, message.channel);
    if (!isObject(message.presence)) delete message.presence;
    return isText(message.epoch) && isCount(message.offset);
  },
  presence: ({ presence }) => typeof presence === 'object',
  history: (message) => Boolean((message.events = eventsOf(message.events, message.channel))),
  unsubscribed: ({ code }) => isText(code),
  error: (message) => {
    const { code, details } = message;
    if (!isText(message.message)) message.message = '';
    if (!isObject(details) || !isText(details.channel ?? '') || !isText(details.suggestion ?? '')) delete message.details;
    return isText(code);
  },
};

/** @param {any} message @returns {boolean} */
function isMessage(message) {
  if (!isObject(message) || !isText(message.type)) return false;
  if (!isEvent(message)) return CHECKS[message.type]?.(message) ?? true;
  const { channel, key = '', offset, rev, ttl } = message;
  return isText(channel) && isText(key) && [offset, rev, ttl].every((count) => count === undefined || isCount(count));
}
