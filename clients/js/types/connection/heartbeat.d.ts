/** Detects a connection that broke silently: after a time without a message, it asks for one. Browsers hide the service's pings. */
export class Heartbeat {
    /**
     * @param {import('../base/clock.js').Clock} clock
     * @param {unknown} seconds  `heartbeat` of `welcome`
     * @param {number} timeout  ms from a ping to its answer
     * @param {() => void} ping
     * @param {() => void} dead
     */
    constructor(clock: import("../base/clock.js").Clock, seconds: unknown, timeout: number, ping: () => void, dead: () => void);
    /** A message has come. */
    heard(): void;
    /**
     * Asks now; the connection is dead without an answer in time.
     * @param {number} timeout  ms
     */
    ask(timeout: number): void;
    stop(): void;
    #private;
}
