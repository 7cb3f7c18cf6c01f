/**
 * @typedef {import('./contract-types.js').ContractLike} ContractLike
 * @typedef {import('./contract-types.js').AnyContract} AnyContract
 * @typedef {import('./messages.js').Event} Event
 * @typedef {import('./messages.js').Position} Position
 * @typedef {import('./messages.js').Ack} Ack
 * @typedef {import('./messages.js').HistoryPage} HistoryPage
 * @typedef {import('./messages.js').Presence} Presence
 * @typedef {import('./subscriptions/delivery.js').Info} SubscribedInfo
 * @typedef {import('./subscriptions/values.js').Removed} Removed
 * @typedef {import('./subscriptions/presence-list.js').PresenceChange} PresenceChange
 * @typedef {import('./subscriptions/subscription.js').ChannelOptions} ChannelOptions
 * @typedef {import('./subscriptions/subscription.js').ChannelState} ChannelState
 * @typedef {import('./subscriptions/subscription.js').ChannelStatus} ChannelStatus
 * @typedef {import('./errors.js').TidewireError} TidewireError
 * @typedef {import('./sending/signals.js').SignalOptions} SignalOptions
 *
 * @typedef {object} PublishOptions
 * @property {string} [id]  of your own, for retries of your own; the service delivers an id once
 * @property {string} [key]
 * @property {number} [ifRev]  only if the value of the key has this `rev`, 0 for no value; else the error `conflict`, with `details.rev`
 * @property {number} [timeout]  ms with a connection until it fails, 60 000; also over reconnects
 * @property {AbortSignal} [signal]  stops waiting, and does not send what was not sent
 * @typedef {Omit<PublishOptions, 'key'>} RemoveOptions
 * @typedef {{after?: number, before?: number, limit?: number, signal?: AbortSignal}} HistoryOptions
 *
 * @typedef {object} ChannelEvents
 *   The names without a dot; all other names are event types. A returned promise is awaited before the next event.
 * @property {SubscribedInfo} subscribed  first after each (re)subscribe
 * @property {{code: string}} unsubscribed  the service ended the subscription: `forbidden` or `removed`
 * @property {Event[]} values  the newest event of every key; replaces the previous values
 * @property {Removed} removed  a value has ended
 * @property {PresenceChange} presence
 * @property {Event[]} tail  the last events, after `subscribed`; the live events continue them
 * @property {ChannelStatus} state
 * @property {TidewireError} error  a refused subscription, which ends it, or a listener that failed
 */
/**
 * A handle of one channel. All handles of a channel share one subscription, which lasts until the last of them has left.
 * @template {ContractLike} [C=AnyContract]
 * @template {string} [N=string]
 */
export class Channel<C extends ContractLike = import("./contract-types.js").AnyContract, N extends string = string> {
    /**
     * Applications call `client.channel(name)`.
     * @param {N} name
     * @param {ChannelOptions} options
     * @param {import('./core.js').Core} core
     */
    constructor(name: N, options: ChannelOptions, core: import("./core.js").Core);
    get name(): N;
    /** `waiting` (no connection, or not its turn), `subscribing`, `subscribed` or `ended`. */
    get state(): import("./subscriptions/subscription.js").ChannelState;
    /** The state with its reason: an object that is replaced only when something changes. @returns {ChannelStatus} */
    get status(): ChannelStatus;
    /** The position of the last handled event. Pass it as `since` to resume after a reload of the page. @returns {Position | undefined} */
    get position(): Position | undefined;
    /** The newest event of every key, as far as they have been handed to listeners. @returns {Event[]} */
    get values(): Event[];
    /** Settles with the first `subscribed`; rejects if the subscription is refused, left or closed before. @returns {Promise<SubscribedInfo>} */
    get subscribed(): Promise<SubscribedInfo>;
    /**
     * Adds a listener of an event type, of every event (`'*'`), or of one of the `ChannelEvents`. Returns the function that removes
     * it. A late listener of `subscribed`, `values` or `presence` gets what is known.
     * @template {import('./contract-types.js').EventType<C, N> | keyof ChannelEvents | '*' | 'event.removed'} T
     * @param {T} name
     * @param {(value: T extends keyof ChannelEvents ? ChannelEvents[T] : T extends '*' ? import('./contract-types.js').EventOf<C, N>
     *   : import('./contract-types.js').EventOf<C, N, T>) => unknown} listener
     * @param {{signal?: AbortSignal}} [options]
     * @returns {() => void}
     */
    on<T extends import("./contract-types.js").EventType<C, N> | keyof ChannelEvents | "*" | "event.removed">(name: T, listener: (value: T extends keyof ChannelEvents ? ChannelEvents[T] : T extends "*" ? import("./contract-types.js").EventOf<C, N> : import("./contract-types.js").EventOf<C, N, T>) => unknown, { signal }?: {
        signal?: AbortSignal;
    }): () => void;
    /**
     * The events in order. The position moves when the loop asks for the next one. The loop ends with the signal, `leave()` or
     * `close()`, and throws if the service ends the subscription.
     * @template {import('./contract-types.js').EventType<C, N>} T
     * @param {{signal?: AbortSignal, types?: T[]}} [options]
     * @returns {AsyncGenerator<import('./contract-types.js').EventOf<C, N, T>, void, void>}
     */
    events<T extends import("./contract-types.js").EventType<C, N>>({ signal, types }?: {
        signal?: AbortSignal;
        types?: T[];
    }): AsyncGenerator<import("./contract-types.js").EventOf<C, N, T>, void, void>;
    /**
     * Publishes in this channel; see `Tidewire.publish`.
     * @template {import('./contract-types.js').PublishedType<C, N, 'durable' | 'latest'>} T
     * @param {T} type
     * @param {import('./contract-types.js').DataOf<C, N, T>} data
     * @param {PublishOptions} [options]
     */
    publish<T extends import("./contract-types.js").PublishedType<C, N, "durable" | "latest">>(type: T, data: import("./contract-types.js").DataOf<C, N, T>, options?: PublishOptions): Promise<import("./messages.js").Ack>;
    /**
     * Removes the value of a key in this channel; see `Tidewire.remove`.
     * @template {import('./contract-types.js').PublishedType<C, N, 'latest'>} T
     * @param {T} type
     * @param {string} key
     * @param {RemoveOptions} [options]
     */
    remove<T extends import("./contract-types.js").PublishedType<C, N, "latest">>(type: T, key: string, options?: RemoveOptions): Promise<import("./messages.js").Ack>;
    /**
     * Sends an ephemeral event in this channel; see `Tidewire.signal`.
     * @template {import('./contract-types.js').PublishedType<C, N, 'ephemeral'>} T
     * @param {T} type
     * @param {import('./contract-types.js').DataOf<C, N, T>} data
     * @param {SignalOptions} [options]
     */
    signal<T extends import("./contract-types.js").PublishedType<C, N, "ephemeral">>(type: T, data: import("./contract-types.js").DataOf<C, N, T>, options?: SignalOptions): boolean;
    /**
     * A page of durable events, oldest first.
     * @param {HistoryOptions} [page]
     * @returns {Promise<HistoryPage>}
     */
    history({ after, before, limit, signal }?: HistoryOptions): Promise<HistoryPage>;
    /**
     * Asks the service who is here.
     * @param {{signal?: AbortSignal}} [options]
     * @returns {Promise<Presence>}
     */
    members({ signal }?: {
        signal?: AbortSignal;
    }): Promise<Presence>;
    /**
     * Sets what presence shows of the user in this channel, where the contract allows it.
     * @param {Partial<import('./contract-types.js').PresenceInfo<C, N>>} info
     * @param {{timeout?: number, signal?: AbortSignal}} [options]
     */
    updatePresence(info: Partial<import("./contract-types.js").PresenceInfo<C, N>>, options?: {
        timeout?: number;
        signal?: AbortSignal;
    }): Promise<import("./messages.js").Ack>;
    /** Leaves: no listener of this handle runs any more. */
    leave(): void;
    #private;
}
export type ContractLike = import("./contract-types.js").ContractLike;
export type AnyContract = import("./contract-types.js").AnyContract;
export type Event = import("./messages.js").Event;
export type Position = import("./messages.js").Position;
export type Ack = import("./messages.js").Ack;
export type HistoryPage = import("./messages.js").HistoryPage;
export type Presence = import("./messages.js").Presence;
export type SubscribedInfo = import("./subscriptions/delivery.js").Info;
export type Removed = import("./subscriptions/values.js").Removed;
export type PresenceChange = import("./subscriptions/presence-list.js").PresenceChange;
export type ChannelOptions = import("./subscriptions/subscription.js").ChannelOptions;
export type ChannelState = import("./subscriptions/subscription.js").ChannelState;
export type ChannelStatus = import("./subscriptions/subscription.js").ChannelStatus;
export type TidewireError = import("./errors.js").TidewireError;
export type SignalOptions = import("./sending/signals.js").SignalOptions;
export type PublishOptions = {
    /**
     * of your own, for retries of your own; the service delivers an id once
     */
    id?: string | undefined;
    key?: string | undefined;
    /**
     * only if the value of the key has this `rev`, 0 for no value; else the error `conflict`, with `details.rev`
     */
    ifRev?: number | undefined;
    /**
     * ms with a connection until it fails, 60 000; also over reconnects
     */
    timeout?: number | undefined;
    /**
     * stops waiting, and does not send what was not sent
     */
    signal?: AbortSignal | undefined;
};
export type RemoveOptions = Omit<PublishOptions, "key">;
export type HistoryOptions = {
    after?: number;
    before?: number;
    limit?: number;
    signal?: AbortSignal;
};
/**
 * The names without a dot; all other names are event types. A returned promise is awaited before the next event.
 */
export type ChannelEvents = {
    /**
     * first after each (re)subscribe
     */
    subscribed: SubscribedInfo;
    /**
     * the service ended the subscription: `forbidden` or `removed`
     */
    unsubscribed: {
        code: string;
    };
    /**
     * the newest event of every key; replaces the previous values
     */
    values: Event[];
    /**
     * a value has ended
     */
    removed: Removed;
    presence: PresenceChange;
    /**
     * the last events, after `subscribed`; the live events continue them
     */
    tail: Event[];
    state: ChannelStatus;
    /**
     * a refused subscription, which ends it, or a listener that failed
     */
    error: TidewireError;
};
