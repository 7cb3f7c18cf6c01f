/** The name of a value in its channel. @param {{type: string, key?: string}} event */
export function nameOf({ type, key }: {
    type: string;
    key?: string;
}): string;
/** The newest event of every key of a channel, until its `ttl` has passed. All times are monotonic milliseconds. */
export class Values {
    /**
     * @param {import('../base/clock.js').Clock} clock
     * @param {() => void} due  called when `expire` has something to do
     */
    constructor(clock: import("../base/clock.js").Clock, due: () => void);
    /** The events, newest per key. */
    get events(): import("../messages.js").Event[];
    /**
     * Replaces all values.
     * @param {Event[]} state
     * @param {number} at  when it came
     * @param {number} now
     */
    replace(state: Event[], at: number, now: number): void;
    /**
     * Returns false if the event is not newer than what is known.
     * @param {Event} event
     * @param {number} at  when it came
     * @param {number} now
     */
    set(event: Event, at: number, now: number): boolean;
    /**
     * Removes a value. Returns undefined if a newer one is known.
     * @param {Event} event
     * @returns {Removed | undefined}
     */
    remove(event: Event): Removed | undefined;
    /**
     * Removes and returns the values that have ended.
     * @param {number} now
     * @returns {Removed[]}
     */
    expire(now: number): Removed[];
    clear(): void;
    #private;
}
export type Event = import("../messages.js").Event;
/**
 * The value of a key that has ended. `expired`: its `ttl` has passed; else it was removed, with this `rev`.
 */
export type Removed = {
    type: string;
    key: string;
    rev: number;
    expired: boolean;
};
/**
 * `ends`: monotonic ms; Infinity without a `ttl`
 */
export type Value = {
    event: Event;
    rev: number;
    ends: number;
};
