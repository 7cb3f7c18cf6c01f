/**
 * The requests without an answer: publishes, and reads such as `history`. Publishes of one channel are sent one after the other, so
 * that none overtakes another that is sent again. A request is sent again with the same id on every new connection and after a
 * retryable refusal, until it is answered or times out.
 */
export class Publisher {
    /** @param {import('../core.js').Core} core */
    constructor(core: import("../core.js").Core);
    cost: "message";
    /** @type {Outbox | undefined} */
    outbox: Outbox | undefined;
    /** Publishes without an answer. */
    pending: number;
    /**
     * @param {string} channel
     * @param {string} type
     * @param {unknown} data
     * @param {import('../channel.js').PublishOptions} [options]
     * @returns {Promise<import('../messages.js').Ack>}
     */
    publish(channel: string, type: string, data: unknown, options?: import("../channel.js").PublishOptions): Promise<import("../messages.js").Ack>;
    /**
     * @param {string} channel
     * @param {string} type
     * @param {string} key
     * @param {import('../channel.js').RemoveOptions} [options]
     * @returns {Promise<import('../messages.js').Ack>}
     */
    remove(channel: string, type: string, key: string, options?: import("../channel.js").RemoveOptions): Promise<import("../messages.js").Ack>;
    /**
     * Adds a request and returns the promise of its reply. A second call with the id of a pending request returns the same promise.
     * @param {Request} request
     * @param {{timeout?: number, signal?: AbortSignal}} options
     * @param {boolean} [isPublish]
     * @returns {Promise<any>}
     */
    add(request: Request, { timeout, signal }: {
        timeout?: number;
        signal?: AbortSignal;
    }, isPublish?: boolean): Promise<any>;
    /** Whether publishes of this channel have no answer yet. @param {string} channel */
    has(channel: string): boolean;
    waiting(): boolean;
    /** @param {number} maxBytes */
    next(maxBytes: number): string | undefined;
    /**
     * Settles the request of a reply or refusal. Returns false if no request has this id.
     * @param {{type: string, id?: string | null}} message
     */
    settle(message: {
        type: string;
        id?: string | null;
    }): boolean;
    /** There is a connection: everything is sent again. */
    opened(): void;
    /** A new connection is wanted, so requests wait for it. */
    reopened(): void;
    /**
     * The connection ended. If that was because of a message's size, the largest one fails.
     * @param {boolean} tooBig
     */
    interrupted(tooBig: boolean): void;
    /**
     * Sends again what was refused because the channel was not subscribed yet.
     * @param {string} channel
     */
    joined(channel: string): void;
    /**
     * Fails all requests, and those that follow.
     * @param {string} reason
     */
    abandon(reason: string): void;
    #private;
}
export type Request = import("../messages.js").ClientMessage & {
    id: string;
};
export type Entry = {
    id: string;
    type: string;
    channel: string | undefined;
    /**
     * entries of one lane are sent one after the other
     */
    lane: string;
    /**
     * the JSON of the request, made at the call
     */
    text: string;
    bytes: number;
    isPublish: boolean;
    /**
     * whether the service may have it
     */
    sent: boolean;
    /**
     * sent on this connection, without an answer
     */
    flying: boolean;
    /**
     * waits before it is sent again
     */
    resting: boolean;
    /**
     * whether its timeout runs
     */
    timed: boolean;
    timeout: number;
    deadline: Timer;
    retry: Timer;
    backoff: Backoff;
    /**
     * the last retryable one
     */
    refusal?: TidewireError | undefined;
    /**
     * stops listening to the signal
     */
    forget: () => void;
    result: import("../base/deferred.js").Deferred<any>;
};
/**
 * keeps publishes over a reload of the page; all of it is called in order
 */
export type Outbox = {
    added: (entry: Entry) => void;
    /**
     * before the first time that the service may get it
     */
    sent: (entry: Entry) => void;
    settled: (entry: Entry) => void;
};
import { Timer } from '../base/clock.js';
import { Backoff } from '../connection/backoff.js';
import { TidewireError } from '../errors.js';
