/**
 * @typedef {import('./contract-types.js').ContractLike} ContractLike
 * @typedef {import('./contract-types.js').AnyContract} AnyContract
 * @typedef {import('./channel.js').PublishOptions} PublishOptions
 * @typedef {import('./channel.js').RemoveOptions} RemoveOptions
 * @typedef {import('./channel.js').ChannelOptions} ChannelOptions
 * @typedef {import('./sending/signals.js').SignalOptions} SignalOptions
 * @typedef {import('./connection/connection.js').Status} Status
 * @typedef {import('./connection/connection.js').State} State
 * @typedef {import('./messages.js').Welcome} Welcome
 * @typedef {import('./messages.js').Ack} Ack
 *
 * @typedef {object} Options
 * @property {string | import('./connection/token.js').TokenFunction} [token]
 *   sent in `hello`. A function is called again when the token expires or is refused. If it throws an error whose `retryable` is
 *   `false`, the client closes; after any other error it is called again with backoff.
 * @property {import('./connection/token.js').TokenFunction} [ticket]  instead of a token: a new ticket for each upgrade
 * @property {boolean} [anonymous]  instead of both: `hello` without a token. Without all three a cookie authenticates.
 * @property {string[]} [channels]  subscribed from the start; their events arrive with `on('event', …)`
 * @property {string} [contract]  hash of the contract that the application was made for; `tidewire check` prints it
 * @property {boolean | ((line: string) => void)} [debug]  logs the wire without tokens
 * @property {import('./connection/wake.js').AppState} [appState]  React Native's `AppState`
 * @property {new (url: string, protocols: string[]) => any} [WebSocket]
 * @property {import('./connection/link.js').OpenLink} [link]  opens another kind of connection than a WebSocket
 * @property {typeof globalThis.fetch} [fetch]
 * @property {EventTarget | null} [network]  fires `online` and `offline`; the window by default
 * @property {import('./base/clock.js').Clock} [clock]
 * @property {() => number} [random]
 * @property {number} [backoffBase]  ms, 500
 * @property {number} [backoffCap]  ms, 20 000
 * @property {number} [connectTimeout]  ms from the start of the connection to `welcome`, 15 000
 * @property {number} [pongTimeout]  ms, 10 000
 * @property {number} [requestTimeout]  ms with a connection until publishes and reads time out, 60 000; must be below the
 *   service's idempotency window (5 minutes), or a late retry could be delivered twice
 * @property {number} [maxPending]  publishes and reads without an answer, 1 000; further ones fail with `queue_full`
 * @property {number} [maxQueue]  events of a channel that wait for slow listeners, 500
 *
 * @typedef {object} ClientEvents
 * @property {Status} state
 * @property {Welcome} welcome
 * @property {import('./messages.js').Event} event  every application event of every channel
 * @property {import('./errors.js').TidewireError} error  what nobody awaits: a refused channel or signal, a listener that threw, a token function that
 *   failed, a closed client. Without a listener here or at the channel, they go to the console
 */
/**
 * A client of one Tidewire service. It keeps one connection, reconnects after errors, and resumes every subscription after
 * the last event that its listeners have processed.
 * @template {ContractLike} [C=AnyContract]
 */
export class Tidewire<C extends ContractLike = import("./contract-types.js").AnyContract> {
    /**
     * Connects nowhere yet, so it may run on a server, too.
     * @param {string | URL} url  of the service's `/ws`; may be relative to the page, and http(s) or ws(s)
     * @param {Options} [options]
     */
    constructor(url: string | URL, options?: Options);
    /** `connecting`, `ready`, `reconnecting`, `offline` or `closed`. */
    get state(): import("./connection/connection.js").State;
    /** The state with its reason: an object that is replaced only when something changes. */
    get status(): import("./connection/connection.js").Status;
    /** The number of publishes without an answer. */
    get pending(): number;
    /**
     * Adds a listener, and returns the function that removes it.
     * @template {keyof ClientEvents} Name
     * @param {Name} name
     * @param {(value: ClientEvents[Name]) => void} listener
     * @param {{signal?: AbortSignal}} [options]
     */
    on<Name extends keyof ClientEvents>(name: Name, listener: (value: ClientEvents[Name]) => void, { signal }?: {
        signal?: AbortSignal;
    }): () => void;
    /**
     * Connects now, and reconnects by itself from then on. The promise resolves with `welcome` and rejects if the client closes
     * before it. The application may ignore the promise.
     * @returns {Promise<Welcome>}
     */
    connect(): Promise<Welcome>;
    /** Tries now, instead of after `status.retryIn`. */
    retryNow(): void;
    /** Closes the connection and does not reconnect. No listener of a channel runs afterwards. Channels keep their positions for another `connect()`. */
    close(): void;
    /**
     * A handle of a channel. It subscribes, now or as soon as there is a connection, and until the last handle has left.
     * @template {import('./contract-types.js').ChannelName<C>} N
     * @param {N} name
     * @param {ChannelOptions} [options]
     * @returns {Channel<C, import('./contract-types.js').NameIn<C, N>>}
     */
    channel<N extends import("./contract-types.js").ChannelName<C>>(name: N, options?: ChannelOptions): Channel<C, import("./contract-types.js").NameIn<C, N>>;
    /**
     * Publishes a durable or latest event. The promise resolves with the service's `ack`. Until then the event is sent again
     * with the same id after every reconnect, and is delivered once; events of one channel keep their order. It rejects if the event
     * is refused, after `timeout` ms with a connection, or when the client closes. The data is copied at the call.
     * @template {import('./contract-types.js').ChannelName<C>} N
     * @template {import('./contract-types.js').PublishedType<C, N, 'durable' | 'latest'>} T
     * @param {N} channel
     * @param {T} type
     * @param {import('./contract-types.js').DataOf<C, N, T>} data
     * @param {PublishOptions} [options]
     * @returns {Promise<Ack>}
     */
    publish<N extends import("./contract-types.js").ChannelName<C>, T extends import("./contract-types.js").PublishedType<C, N, "durable" | "latest">>(channel: N, type: T, data: import("./contract-types.js").DataOf<C, N, T>, options?: PublishOptions): Promise<Ack>;
    /**
     * Removes the value of a key, as `publish` publishes one. Needs a service with the feature `removal`.
     * @template {import('./contract-types.js').ChannelName<C>} N
     * @template {import('./contract-types.js').PublishedType<C, N, 'latest'>} T
     * @param {N} channel
     * @param {T} type
     * @param {string} key
     * @param {RemoveOptions} [options]
     * @returns {Promise<Ack>}
     */
    remove<N extends import("./contract-types.js").ChannelName<C>, T extends import("./contract-types.js").PublishedType<C, N, "latest">>(channel: N, type: T, key: string, options?: RemoveOptions): Promise<Ack>;
    /**
     * Sends an ephemeral event now, or drops it and returns false: without a connection, and above the rates. With `replace` it waits
     * for its turn, until a newer one of this name replaces it. It never delays anything else.
     * @template {import('./contract-types.js').ChannelName<C>} N
     * @template {import('./contract-types.js').PublishedType<C, N, 'ephemeral'>} T
     * @param {N} channel
     * @param {T} type
     * @param {import('./contract-types.js').DataOf<C, N, T>} data
     * @param {SignalOptions} [options]
     */
    signal<N extends import("./contract-types.js").ChannelName<C>, T extends import("./contract-types.js").PublishedType<C, N, "ephemeral">>(channel: N, type: T, data: import("./contract-types.js").DataOf<C, N, T>, options?: SignalOptions): boolean;
    /** The state in plain text, for a console or a report: what is connected, what waits, the last errors, and what to do. */
    explain(): string;
    #private;
}
export type ContractLike = import("./contract-types.js").ContractLike;
export type AnyContract = import("./contract-types.js").AnyContract;
export type PublishOptions = import("./channel.js").PublishOptions;
export type RemoveOptions = import("./channel.js").RemoveOptions;
export type ChannelOptions = import("./channel.js").ChannelOptions;
export type SignalOptions = import("./sending/signals.js").SignalOptions;
export type Status = import("./connection/connection.js").Status;
export type State = import("./connection/connection.js").State;
export type Welcome = import("./messages.js").Welcome;
export type Ack = import("./messages.js").Ack;
export type Options = {
    /**
     * sent in `hello`. A function is called again when the token expires or is refused. If it throws an error whose `retryable` is
     * `false`, the client closes; after any other error it is called again with backoff.
     */
    token?: string | import("./connection/token.js").TokenFunction | undefined;
    /**
     * instead of a token: a new ticket for each upgrade
     */
    ticket?: import("./connection/token.js").TokenFunction | undefined;
    /**
     * instead of both: `hello` without a token. Without all three a cookie authenticates.
     */
    anonymous?: boolean | undefined;
    /**
     * subscribed from the start; their events arrive with `on('event', …)`
     */
    channels?: string[] | undefined;
    /**
     * hash of the contract that the application was made for; `tidewire check` prints it
     */
    contract?: string | undefined;
    /**
     * logs the wire without tokens
     */
    debug?: boolean | ((line: string) => void) | undefined;
    /**
     * React Native's `AppState`
     */
    appState?: import("./connection/wake.js").AppState | undefined;
    WebSocket?: (new (url: string, protocols: string[]) => any) | undefined;
    /**
     * opens another kind of connection than a WebSocket
     */
    link?: import("./connection/link.js").OpenLink | undefined;
    fetch?: typeof fetch | undefined;
    /**
     * fires `online` and `offline`; the window by default
     */
    network?: EventTarget | null | undefined;
    clock?: import("./base/clock.js").Clock | undefined;
    random?: (() => number) | undefined;
    /**
     * ms, 500
     */
    backoffBase?: number | undefined;
    /**
     * ms, 20 000
     */
    backoffCap?: number | undefined;
    /**
     * ms from the start of the connection to `welcome`, 15 000
     */
    connectTimeout?: number | undefined;
    /**
     * ms, 10 000
     */
    pongTimeout?: number | undefined;
    /**
     * ms with a connection until publishes and reads time out, 60 000; must be below the
     * service's idempotency window (5 minutes), or a late retry could be delivered twice
     */
    requestTimeout?: number | undefined;
    /**
     * publishes and reads without an answer, 1 000; further ones fail with `queue_full`
     */
    maxPending?: number | undefined;
    /**
     * events of a channel that wait for slow listeners, 500
     */
    maxQueue?: number | undefined;
};
export type ClientEvents = {
    state: Status;
    welcome: Welcome;
    /**
     * every application event of every channel
     */
    event: import("./messages.js").Event;
    /**
     * what nobody awaits: a refused channel or signal, a listener that threw, a token function that
     * failed, a closed client. Without a listener here or at the channel, they go to the console
     */
    error: import("./errors.js").TidewireError;
};
import { Channel } from './channel.js';
