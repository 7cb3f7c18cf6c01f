/** Keeps a connection within the rates of `welcome.limits`, so that the service refuses nothing. */
export class Pacer {
    /**
     * @param {import('../messages.js').Limits} limits
     * @param {import('../base/clock.js').Clock} clock
     */
    constructor({ rate, burst, subscribe_rate: subscribeRate, subscribe_burst: subscribeBurst }: import("../messages.js").Limits, clock: import("../base/clock.js").Clock);
    /**
     * Consumes the budget for one message, if the rates allow it now.
     * @param {Cost} cost
     */
    take(cost: Cost): boolean;
    /**
     * Milliseconds until the rates allow a message.
     * @param {Cost} cost
     */
    wait(cost: Cost): number;
    #private;
}
/**
 * What a message costs. `free`: nothing (`unsubscribe`). `urgent`: never waits for the rate (pings, refreshes). `subscribe` has a
 * budget of its own. `signal` leaves a part of the budget to messages.
 */
export type Cost = "free" | "urgent" | "subscribe" | "message" | "signal";
