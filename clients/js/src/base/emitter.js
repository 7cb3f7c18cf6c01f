import { onAbort } from './deferred.js';

/**
 * Listeners by event name. A listener that throws stops neither the others nor the client: its error is reported as an
 * uncaught error of the page, or on the console if there is no page.
 * @template {Record<string, any>} Events
 */
export class Emitter {
  /** @type {Map<keyof Events, Map<object, (value: any) => void>>} each under a key of its own: the same function may listen twice */
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
    const listeners = this.#listeners.get(name) ?? new Map();
    const key = {};
    this.#listeners.set(name, listeners.set(key, listener));
    const remove = () => listeners.delete(key);
    const forget = onAbort(signal, remove);
    return () => {
      remove();
      forget();
    };
  }

  /** @param {keyof Events} name */
  has(name) {
    return this.of(name).length > 0;
  }

  /**
   * The listeners, for a caller that awaits them.
   * @param {keyof Events} name
   */
  of(name) {
    return [...(this.#listeners.get(name)?.values() ?? [])];
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
