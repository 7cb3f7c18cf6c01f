/** What the parts of one client share: what it subscribes to, what it sends, the open connection, and its errors. */
export class Core {
    /** @param {import('./client.js').Options} options */
    constructor(options: import("./client.js").Options);
    /** @type {Emitter<import('./client.js').ClientEvents>} */
    emitter: Emitter<import("./client.js").ClientEvents>;
    /** @type {Sender | undefined} of the open connection */
    sender: Sender | undefined;
    /** @type {import('./messages.js').Welcome | undefined} of the last connection */
    welcome: import("./messages.js").Welcome | undefined;
    /** @type {{at: number, error: TidewireError}[]} the newest */
    errors: {
        at: number;
        error: TidewireError;
    }[];
    clock: import("./base/clock.js").Clock;
    random: () => number;
    maxPending: number;
    maxQueue: number;
    requestTimeout: number;
    publisher: Publisher;
    signals: Signals;
    registry: Registry;
    nextId(): string;
    /** Whether the service of the open connection has a feature. @param {string} feature @returns {boolean} */
    offers(feature: string): boolean;
    /** Whether this client has published the event and does not want it back. @param {import('./messages.js').Event} event */
    excluded({ exclude, from }: import("./messages.js").Event): boolean;
    /** Sends what waits. Returns false without a connection. */
    wake(): boolean;
    /**
     * Sends a read, or another request that is no publish.
     * @param {import('./messages.js').ClientMessage} request
     * @param {AbortSignal} [signal]
     * @returns {Promise<any>}
     */
    read(request: import("./messages.js").ClientMessage, signal?: AbortSignal): Promise<any>;
    /**
     * @param {import('./connection/link.js').Link} link
     * @param {import('./messages.js').Welcome} welcome
     */
    welcomed(link: import("./connection/link.js").Link, welcome: import("./messages.js").Welcome): void;
    /** @param {boolean} tooBig  the connection ended because of a message's size */
    lost(tooBig: boolean): void;
    /** @param {string} reason */
    closed(reason: string): void;
    /** The client connects again after `closed`. */
    reopened(): void;
    /** @param {import('./messages.js').ServerMessage} message */
    received(message: import("./messages.js").ServerMessage): void;
    /**
     * Reports what nobody awaits: to the listeners, else to the console.
     * @param {TidewireError} error
     * @param {import('./subscriptions/subscription.js').Subscription} [of]
     */
    report(error: TidewireError, of?: import("./subscriptions/subscription.js").Subscription): void;
    #private;
}
import { Emitter } from './base/emitter.js';
import { Sender } from './sending/sender.js';
import { TidewireError } from './errors.js';
import { Publisher } from './sending/publisher.js';
import { Signals } from './sending/signals.js';
import { Registry } from './subscriptions/registry.js';
