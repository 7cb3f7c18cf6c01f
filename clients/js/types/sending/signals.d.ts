/**
 * Ephemeral events: sent now, replaced by their newer self, or dropped. They never wait in a queue, so they delay nothing.
 */
export class Signals {
    /** @param {import('../core.js').Core} core */
    constructor(core: import("../core.js").Core);
    cost: "signal";
    /**
     * Returns false if the signal is dropped.
     * @param {string} channel
     * @param {string} type
     * @param {unknown} data
     * @param {SignalOptions} [options]
     */
    add(channel: string, type: string, data: unknown, { replace, every }?: SignalOptions): boolean;
    waiting(): boolean;
    /** @param {number} maxBytes */
    next(maxBytes: number): string | undefined;
    /** Drops all that waits. */
    clear(): void;
    #private;
}
export type SignalOptions = {
    /**
     * a signal that cannot be sent now waits, until one of the same channel with the same name
     * replaces it; `true` takes the event type as name. Without it, such a signal is dropped
     */
    replace?: string | boolean | undefined;
    /**
     * ms between two signals of this name; implies `replace`
     */
    every?: number | undefined;
};
export type Waiting = {
    text: string;
    channel: string;
};
