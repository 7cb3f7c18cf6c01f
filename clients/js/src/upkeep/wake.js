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
export function watch(network, appState, { online, offline, wake, sleep }) {
  const page = network && globalThis.document;
  /** @type {Record<string, (event: any) => void>} */
  const listeners = {
    online,
    offline,
    resume: wake,
    pageshow: wake,
    pagehide: ({ persisted }) => persisted && sleep(),
    visibilitychange: () => page?.visibilityState !== 'hidden' && wake(),
  };
  const targets = [...new Set([network, page])];
  for (const target of targets) for (const name in listeners) target?.addEventListener?.(name, listeners[name]);
  const app = appState?.addEventListener('change', (state) => state === 'active' && wake());
  return () => {
    for (const target of targets) for (const name in listeners) target?.removeEventListener?.(name, listeners[name]);
    app?.remove();
  };
}
