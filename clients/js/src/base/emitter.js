/**
 * Listeners by event name. A listener that throws stops neither the others nor the client: its error is reported as an
 * uncaught error of the page, or on the console if there is no page.
 * @template {Record<string, any>} Events
 */
export class Emitter {
  /** @type {Map<keyof Events, Set<(value: any) => void>>} */
  #listeners = new Map();

  /**
   * Adds a listener, and returns the function that removes it.
   * @template {keyof Events} Name
   * @param {Name} name
   * @param {(value: Events[Name]) => void} listener
   * @param {AbortSignal} [signal]  removes the listener, too
   * @returns {() => void}
   */
  on(name, listener, signal) {
    if (signal?.aborted) return () => {};
    const entry = (/** @type {any} */ value) => listener(value); // the same function may listen twice
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(entry));
    const remove = () => {
      listeners.delete(entry);
      signal?.removeEventListener('abort', remove);
    };
    signal?.addEventListener('abort', remove);
    return remove;
  }

  /** @param {keyof Events} name */
  has(name) {
    return Boolean(this.#listeners.get(name)?.size);
  }

  /**
   * The listeners, for a caller that awaits them.
   * @param {keyof Events} name
   */
  of(name) {
    return [...(this.#listeners.get(name) ?? [])];
  }

  /**
   * @template {keyof Events} Name
   * @param {Name} name
   * @param {Events[Name]} value
   */
  emit(name, value) {
    for (const listener of this.of(name)) {
      try {
        /** @type {any} */ (listener(value))?.catch?.(report);
      } catch (error) {
        report(error);
      }
    }
  }

  clear() {
    this.#listeners.clear();
  }
}

/** @param {unknown} error */
function report(error) {
  if (typeof reportError === 'function') reportError(error);
  else console.error(error);
}
