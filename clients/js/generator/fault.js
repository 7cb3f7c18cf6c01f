// Errors of a contract, with the place.

/** A fault of a contract, or of how the generator is used. */
export class Fault extends Error {
  /**
   * @param {string} source The file or address.
   * @param {string} path The JSON path in it, such as `$.channels`; empty for the whole.
   * @param {string} reason A sentence without the place.
   */
  constructor(source, path, reason) {
    super(`${source}: ${path ? `${path}: ` : ''}${reason}`);
    this.name = 'Fault';
  }
}

/**
 * Returns a path to a value in JSON, such as `$.data.items[0]`. Control characters are escaped.
 * @param {readonly (string | number)[]} steps
 */
export function jsonPath(steps) {
  const texts = steps.map((step) => {
    if (typeof step === 'number') return `[${step}]`;
    return /^[A-Za-z_$][\w$]*$/.test(step) ? `.${step}` : `[${JSON.stringify(step.slice(0, 80))}]`;
  });
  return `$${texts.join('')}`;
}
