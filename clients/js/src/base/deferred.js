/**
 * @template T
 * @typedef {{promise: Promise<T>, resolve: (value: T) => void, reject: (error: unknown) => void}} Deferred
 */

/**
 * A promise with its functions. The application may ignore it: its rejection is never unhandled.
 * @returns {Deferred<any>}
 */
export function deferred() {
  /** @type {any} */
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}

/**
 * Calls back when a signal aborts, also if it has aborted already. Returns the function that stops listening.
 * @param {AbortSignal | undefined} signal
 * @param {() => unknown} aborted
 */
export function onAbort(signal, aborted) {
  if (signal?.aborted) aborted();
  else signal?.addEventListener('abort', aborted, { once: true });
  return () => signal?.removeEventListener('abort', aborted);
}
