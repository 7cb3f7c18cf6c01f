/** One subscription of the client, which all handles of its channel share: events once and in order, or `recovered: false`. */
export class Subscription {
    /**
     * @param {string} channel
     * @param {import('../core.js').Core} core
     */
    constructor(channel: string, core: import("../core.js").Core);
    /** @type {Set<Handle>} */
    handles: Set<Handle>;
    /** Whether the service is to be told when the subscription ends. */
    told: boolean;
    delivery: Delivery;
    /** @type {ChannelStatus} */
    status: ChannelStatus;
    /** @type {import('../base/deferred.js').Deferred<Info>} settles with the first `subscribed` */
    joined: import("../base/deferred.js").Deferred<Info>;
    get channel(): string;
    get state(): ChannelState;
    /** Asks for a subscribe on the open connection. */
    join(): void;
    /** The token of the subscription expires soon. Without a new one, the service ends the subscription. */
    refresh(): Promise<void>;
    /** The `subscribe` to send now. */
    request(): {
        type: string;
        id: string;
        channel: string;
        since: import("../messages.js").Position | undefined;
        tail: number | undefined;
        token: string | undefined;
    };
    /** The connection is gone. */
    interrupted(): void;
    /** @param {import('../messages.js').Subscribed} message */
    subscribed(message: import("../messages.js").Subscribed): void;
    /** An event, or who is there after a change of rights. @param {import('../messages.js').Event | import('../messages.js').PresenceReply} message */
    received(message: import("../messages.js").Event | import("../messages.js").PresenceReply): void;
    /**
     * Handles a refused `subscribe`. Returns false if the error is about something else.
     * @param {import('../messages.js').ErrorMessage} message
     */
    refused(message: import("../messages.js").ErrorMessage): boolean;
    /** Ends the subscription, and says why. @param {TidewireError} error */
    end(error: TidewireError): void;
    /** The service has ended the subscription. @param {import('../messages.js').Unsubscribed} message */
    unsubscribed({ code, id }: import("../messages.js").Unsubscribed): void;
    /** The last handle has left. */
    left(): void;
    /** The client is closed: no listener runs any more, and the position stays. @param {TidewireError} error */
    closed(error: TidewireError): void;
    /** The client connects again. */
    reopened(): void;
    /** @param {'gap' | 'full'} why */
    missing(why: "gap" | "full"): void;
    /**
     * Calls the listeners of all handles, and waits for their promises.
     * @param {string} name
     * @param {any} value
     * @returns {Promise<void> | undefined}
     */
    call(name: string, value: any): Promise<void> | undefined;
    /**
     * Calls one listener. An error is reported, and counts as its end: one bad event cannot block the channel. So does a promise
     * that does not settle.
     * @param {string} name
     * @param {(value: any) => unknown} listener
     * @param {any} value
     */
    run(name: string, listener: (value: any) => unknown, value: any): Promise<any> | undefined;
    /** Calls listeners that nothing waits for. Returns whether there is one. @param {string} name @param {any} value */
    notify(name: string, value: any): boolean;
    #private;
}
export type Info = import("./delivery.js").Info;
export type Position = import("../messages.js").Position;
export type ChannelState = "waiting" | "subscribing" | "subscribed" | "ended";
/**
 * `code`: why it has ended, or why it is tried again
 */
export type ChannelStatus = {
    readonly state: ChannelState;
    readonly code?: string;
    readonly help?: string;
};
/**
 * what a subscription uses of a `Channel`
 */
export type Handle = {
    listeners: (name: string) => ((value: any) => unknown)[];
    options: ChannelOptions;
};
export type ChannelOptions = {
    /**
     * resumes from this position; counts for the first handle of a channel
     */
    since?: import("../messages.js").Position | undefined;
    /**
     * the number of last events, 1 to 100, that `tail` listeners get, if the service offers it
     */
    tail?: number | undefined;
    /**
     * gets a token that grants this channel, at each subscribe and before it expires
     */
    token?: import("../connection/token.js").TokenFunction | undefined;
    /**
     * leaves the channel
     */
    signal?: AbortSignal | undefined;
};
import { Delivery } from './delivery.js';
import { TidewireError } from '../errors.js';
