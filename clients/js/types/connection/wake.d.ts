/**
 * Tells when the network or the page goes away and comes back.
 * @typedef {object} WakeHandlers
 * @property {() => void} online  the network is there again
 * @property {() => void} offline
 * @property {() => void} wake  the page or the app runs again after a pause; its connection may be dead
 * @property {() => void} sleep  the page goes into the back/forward cache, which keeps no connection
 *
 * @typedef {{addEventListener: (type: 'change', listener: (state: string) => void) => {remove: () => void}}} AppState
 *   React Native's `AppState`
 */
/**
 * Starts listening, and returns the function that stops it.
 * @param {EventTarget | null | undefined} network  the window, or what a test passes
 * @param {AppState | undefined} appState
 * @param {WakeHandlers} handlers
 * @returns {() => void}
 */
export function watch(network: EventTarget | null | undefined, appState: AppState | undefined, { online, offline, wake, sleep }: WakeHandlers): () => void;
/**
 * Tells when the network or the page goes away and comes back.
 */
export type WakeHandlers = {
    /**
     * the network is there again
     */
    online: () => void;
    offline: () => void;
    /**
     * the page or the app runs again after a pause; its connection may be dead
     */
    wake: () => void;
    /**
     * the page goes into the back/forward cache, which keeps no connection
     */
    sleep: () => void;
};
/**
 * React Native's `AppState`
 */
export type AppState = {
    addEventListener: (type: "change", listener: (state: string) => void) => {
        remove: () => void;
    };
};
