export function bytesOf(text: string): number;
/**
 * Sends over one link: urgent messages at once, then from the sources in the order of their priority, within the rates. It joins
 * the messages of one tick into frames within the limits of `welcome`.
 */
export class Sender {
    /**
     * @param {import('../connection/link.js').Link} link
     * @param {import('../messages.js').Limits} limits
     * @param {Source[]} sources
     * @param {import('../base/clock.js').Clock} clock
     */
    constructor(link: import("../connection/link.js").Link, limits: import("../messages.js").Limits, sources: Source[], clock: import("../base/clock.js").Clock);
    /**
     * Sends a message before all that waits.
     * @param {import('../messages.js').ClientMessage} message
     * @param {'free' | 'urgent'} [cost]
     */
    send(message: import("../messages.js").ClientMessage, cost?: "free" | "urgent"): void;
    /** Sends what waits in the sources, at the end of this tick. */
    wake(): void;
    stop(): void;
    #private;
}
/**
 * A queue of messages of one cost. The sender takes from it when the rates allow, so what waits can still change.
 */
export type Source = {
    cost: import("./pacer.js").Cost;
    /**
     * whether `next` has a message
     */
    waiting: () => boolean;
    /**
     * the JSON of a message
     */
    next: (maxBytes: number) => string | undefined;
};
