/**
 * Whether a message is an event: only their types contain a dot.
 * @param {ServerMessage} message
 * @returns {message is Event}
 */
export function isEvent(message: ServerMessage): message is Event;
/**
 * Returns the messages of a frame. What breaks the protocol is ignored: a client must survive the messages of a newer service, of
 * a proxy, or of a service with a fault.
 * @param {unknown} frame
 * @returns {ServerMessage[]}
 */
export function parse(frame: unknown): ServerMessage[];
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
 *            subscribe_burst?: number, violations?: number, user?: SharedLimits, address?: SharedLimits}} Limits
 *   Older services omit the optional ones; `user` is also absent for an anonymous connection.
 * @typedef {{type: 'welcome', connection: string, user: string, heartbeat: number, limits: Limits, expires_in?: number,
 *            features?: string[]}} Welcome
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
 *
 * @typedef {Welcome | Subscribed | Unsubscribed | Ack | ErrorMessage | HistoryPage | PresenceReply | Expiring
 *           | Reconnect | Pong} SystemMessage
 * @typedef {SystemMessage | Event} ServerMessage
 *
 * @typedef {{type: string, id?: string, channel?: string, [field: string]: any}} ClientMessage
 */
/** The WebSocket subprotocol. */
export const SUBPROTOCOL: "tidewire.v1";
/**
 * A client's position in a channel: `id` is the event at `offset`, absent at offset 0.
 */
export type Position = {
    epoch: string;
    offset: number;
    id?: string;
};
/**
 * Durable events have an `offset`, latest ones a `rev` and a `key`, ephemeral ones neither. `ttl`: milliseconds until a value ends.
 * A removal has `removed`, and no `data`. `exclude`: the connection of `from` that drops the event.
 */
export type Event = {
    type: string;
    channel: string;
    id: string;
    at: number;
    from: string | null;
    data: any;
    offset?: number;
    rev?: number;
    key?: string;
    ttl?: number;
    removed?: true;
    exclude?: string;
};
/**
 * `updated`: the user's client has set `info` with `presence.update`; else it is that of the token.
 */
export type Member = {
    user: string;
    connections?: number;
    info?: any;
    updated?: boolean;
};
/**
 * `members` is absent in channels too large to list.
 */
export type Presence = {
    count: number;
    members?: Member[];
};
export type SharedLimits = {
    connections: number;
    rate: number;
    burst: number;
    subscribe_rate: number;
    subscribe_burst: number;
    connect_rate?: number;
    connect_burst?: number;
};
/**
 * Older services omit the optional ones; `user` is also absent for an anonymous connection.
 */
export type Limits = {
    message: number;
    batch: number;
    subscriptions: number;
    rate: number;
    burst: number;
    subscribe_rate?: number;
    subscribe_burst?: number;
    violations?: number;
    user?: SharedLimits;
    address?: SharedLimits;
};
export type Welcome = {
    type: "welcome";
    connection: string;
    user: string;
    heartbeat: number;
    limits: Limits;
    expires_in?: number;
    features?: string[];
};
export type Subscribed = {
    type: "subscribed";
    id: string | null;
    channel: string;
    epoch: string;
    offset: number;
    last?: string;
    events: Event[];
    state: Event[];
    recovered?: boolean;
    presence?: Presence;
    tail?: Event[];
};
export type Unsubscribed = {
    type: "unsubscribed";
    channel: string;
    code: string;
    id?: string;
};
export type Ack = {
    type: "ack";
    id: string;
    offset?: number;
    rev?: number;
    duplicate?: boolean;
};
export type ErrorMessage = {
    type: "error";
    id?: string;
    code: string;
    message: string;
    retryable: boolean;
    details?: Record<string, any>;
};
/**
 * `older` and `newer`: paths of pages that caches may keep, to read with `fetch`.
 */
export type HistoryPage = {
    type: "history";
    id: string;
    channel: string;
    epoch: string;
    offset: number;
    last?: string;
    events: Event[];
    more: boolean;
    older?: string;
    newer?: string;
};
/**
 * Without an id: the rights of a live subscription changed; `presence` is null if it lost the right to presence.
 */
export type PresenceReply = {
    type: "presence";
    id: string | null;
    channel: string;
    presence: Presence | null;
};
/**
 * With a channel: the token of this subscription.
 */
export type Expiring = {
    type: "expiring";
    in: number;
    channel?: string;
};
export type Reconnect = {
    type: "reconnect";
    after: number;
    reason: string;
};
export type Pong = {
    type: "pong";
    id?: string;
};
export type SystemMessage = Welcome | Subscribed | Unsubscribed | Ack | ErrorMessage | HistoryPage | PresenceReply | Expiring | Reconnect | Pong;
export type ServerMessage = SystemMessage | Event;
export type ClientMessage = {
    type: string;
    id?: string;
    channel?: string;
    [field: string]: any;
};
