/**
 * @template T
 * @typedef {{promise: Promise<T>, resolve: (value: T) => void, reject: (error: unknown) => void}} Deferred
 */
/**
 * A promise with its functions. The application may ignore it: its rejection is never unhandled.
 * @returns {Deferred<any>}
 */
export function deferred(): Deferred<any>;
/**
 * Calls back when a signal aborts, also if it has aborted already. Returns the function that stops listening.
 * @param {AbortSignal | undefined} signal
 * @param {() => void} aborted
 */
export function onAbort(signal: AbortSignal | undefined, aborted: () => void): () => void | undefined;
export type Deferred<T> = {
    promise: Promise<T>;
    resolve: (value: T) => void;
    reject: (error: unknown) => void;
};
