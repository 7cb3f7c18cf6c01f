/**
 * The state of the connection. Each step of its life has a number; what was awaited in an older step is ignored, so every
 * listener may call `connect()` and `close()`.
 */
export class Connection {
    /**
     * @param {() => URL | undefined} resolve  the address
     * @param {import('./link.js').OpenLink | undefined} openLink
     * @param {import('../client.js').Options} options
     * @param {import('../core.js').Core} core
     * @param {ConnectionEvents} events
     */
    constructor(resolve: () => URL | undefined, openLink: import("./link.js").OpenLink | undefined, options: import("../client.js").Options, core: import("../core.js").Core, events: ConnectionEvents);
    /** @type {Status} */
    status: Status;
    /** Connects now. @returns {Promise<Welcome>} */
    connect(): Promise<Welcome>;
    /** Tries now, if there is no connection and no try has just begun. */
    retryNow(): void;
    close(): void;
    #private;
}
export type Welcome = import("../messages.js").Welcome;
export type State = "connecting" | "ready" | "reconnecting" | "offline" | "closed";
/**
 * frozen; replaced only when something changes
 */
export type Status = {
    state: State;
    /**
     * an error code, the name of a close code, or one of: `new`, `connect`, `retry`, `online`, `wake`, `welcome`,
     * `client`, `offline`, `sleep`, `unreachable`, `token_failed`, `http_<status>`, `no_welcome`, `no_pong`
     */
    reason: string;
    /**
     * of the close
     */
    code?: number | undefined;
    /**
     * what to do
     */
    help?: string | undefined;
    /**
     * ms until the next try; absent while one is made
     */
    retryIn?: number | undefined;
    /**
     * tries since the last connection that lasted
     */
    attempt: number;
};
export type ConnectionEvents = {
    changed: (status: Status) => void;
    log: (line: string) => void;
};
