/**
 * A function of the application that gets a token. The signal aborts when the client no longer waits.
 * @typedef {(context: {signal: AbortSignal}) => string | Promise<string>} TokenFunction
 */
/**
 * Calls a function of the application that gets a token, and checks what it returned.
 * @param {TokenFunction} get
 * @param {string} name  how the application has passed the function: `token` or `ticket`
 * @param {import('../base/clock.js').Clock} clock
 * @param {string} [channel]
 * @returns {Promise<string>}
 */
export function askToken(get: TokenFunction, name: string, clock: import("../base/clock.js").Clock, channel?: string): Promise<string>;
/**
 * Returns the token, or throws an error that shows what was given instead.
 * @param {unknown} given
 * @param {string} where
 */
export function checkToken(given: unknown, where: string): string;
/** Milliseconds that a function of the application has for a token. */
export const TOKEN_TIMEOUT: 10000;
/** Holds the token, and asks the application for a new one when the old one was refused or has expired. */
export class TokenSource {
    /**
     * @param {string | TokenFunction | undefined} source
     * @param {import('../base/clock.js').Clock} clock
     */
    constructor(source: string | TokenFunction | undefined, clock: import("../base/clock.js").Clock);
    /** Whether connections authenticate by `hello` with a token. */
    get used(): boolean;
    /** Whether the application can provide a new token. */
    get renewable(): boolean;
    /** The token; rejects with `token_failed`. */
    get(): Promise<string>;
    /** Gets a new token; concurrent callers share one call of the application's function. @returns {Promise<string>} */
    renew(): Promise<string>;
    /** Marks the token as refused by the service. */
    refused(): void;
    /** @param {unknown} seconds  until the token expires */
    expiresIn(seconds: unknown): void;
    #private;
}
/**
 * A function of the application that gets a token. The signal aborts when the client no longer waits.
 */
export type TokenFunction = (context: {
    signal: AbortSignal;
}) => string | Promise<string>;
