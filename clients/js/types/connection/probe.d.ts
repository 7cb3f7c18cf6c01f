/**
 * @param {URL} address  of the WebSocket
 * @param {typeof globalThis.fetch} fetch
 * @param {AbortSignal} signal
 * @param {boolean} byCookie  whether a cookie authenticates
 * @returns {Promise<Verdict>}
 */
export function probe(address: URL, fetch: typeof globalThis.fetch, signal: AbortSignal, byCookie: boolean): Promise<Verdict>;
/**
 * `after`: the delay that the response asks for, in ms. `understood`: the response came from this service.
 */
export type Verdict = {
    action: "reconnect" | "refresh" | "stop";
    reason: string;
    message: string;
    after?: number;
    understood: boolean;
};
