/**
 * The subscriptions of a client by channel. Handles are counted: the last one to leave unsubscribes. Subscribes wait here for
 * their turn, so that what is left meanwhile is never sent.
 */
export class Registry {
    /** @param {import('../core.js').Core} core */
    constructor(core: import("../core.js").Core);
    cost: "subscribe";
    /** @type {Map<string, Subscription>} */
    subscriptions: Map<string, Subscription>;
    /** How far the subscribe of a channel is that is not subscribed yet. @param {string | undefined} channel */
    joining(channel: string | undefined): "waiting" | "subscribing" | undefined;
    /** It waits for its turn to subscribe. @param {Subscription} subscription */
    want(subscription: Subscription): void;
    /**
     * The subscription of a channel with one more handle.
     * @param {string} channel
     * @param {import('./subscription.js').Handle} handle
     */
    enter(channel: string, handle: import("./subscription.js").Handle): Subscription;
    /**
     * One handle less.
     * @param {Subscription} subscription
     * @param {import('./subscription.js').Handle} handle
     */
    leave(subscription: Subscription, handle: import("./subscription.js").Handle): void;
    /** Unsubscribes what nobody uses. Publishes in a channel go first, because many need the subscription. */
    sweep(): void;
    /** @param {import('../messages.js').Welcome} welcome */
    welcomed({ limits }: import("../messages.js").Welcome): void;
    /** The connection is gone. */
    interrupted(): void;
    /** @param {TidewireError} error */
    closed(error: TidewireError): void;
    reopened(): void;
    waiting(): boolean;
    next(): string;
    /**
     * Handles the answer to an `unsubscribe`, and a refusal of a subscription. Returns false if the message is something else.
     * @param {any} message
     */
    settle(message: any): boolean;
    /** @param {Subscription} subscription */
    unsubscribe(subscription: Subscription): void;
    /** @param {Subscription} subscription */
    forget(subscription: Subscription): void;
    #private;
}
import { Subscription } from './subscription.js';
import { TidewireError } from '../errors.js';
