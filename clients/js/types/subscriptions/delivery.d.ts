/**
 * Hands the messages of one channel to its listeners, one at a time and in order. The position moves when the listeners of an
 * event have run.
 */
export class Delivery {
    /**
     * @param {import('./subscription.js').Subscription} subscription  calls the listeners
     * @param {import('../core.js').Core} core
     */
    constructor(subscription: import("./subscription.js").Subscription, core: import("../core.js").Core);
    /** @type {Position | undefined} of the last handled event */
    position: Position | undefined;
    /** @type {Info | undefined} of the last `subscribed` that was handed out */
    info: Info | undefined;
    /** @type {import('./presence-list.js').PresenceChange | undefined} */
    presence: import("./presence-list.js").PresenceChange | undefined;
    /** The newest event of every key. */
    get values(): import("../messages.js").Event[];
    /** @param {Queued['message']} message */
    add(message: Queued["message"]): void;
    /** Drops all that waits; the listeners that run now are the last. */
    drop(): void;
    /** Drops all. */
    end(): void;
    #private;
}
export type Event = import("../messages.js").Event;
export type Position = import("../messages.js").Position;
export type PresenceReply = import("../messages.js").PresenceReply;
export type Subscribed = import("../messages.js").Subscribed;
/**
 * `recovered: false`: events are missing, reload. `missed` events follow. `resumed`: the subscription has had a position before.
 */
export type Info = {
    recovered?: boolean;
    missed: number;
    resumed: boolean;
    epoch: string;
    offset: number;
};
/**
 * `at`: monotonic milliseconds at which it came. `run`: something else to do in this order.
 */
export type Queued = {
    message: Event | Subscribed | PresenceReply | {
        run: () => unknown;
    };
    at: number;
};
