/** What a client listens to for `online` and `offline`, in place of a window. */
export class Page {
  /** @type {Map<string, Set<(event: any) => void>>} */
  #listeners = new Map();

  /** @param {string} name @param {(event: any) => void} listener */
  addEventListener(name, listener) {
    const known = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, known.add(listener));
  }

  /** @param {string} name @param {(event: any) => void} listener */
  removeEventListener(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  /** @param {string} name @param {Record<string, unknown>} [more] */
  fire(name, more = {}) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) listener({ type: name, ...more });
  }
}
