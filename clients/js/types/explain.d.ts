/**
 * A client's state in plain text.
 * @param {string} url
 * @param {import('./connection/connection.js').Status} status
 * @param {import('./core.js').Core} core
 * @param {number} changedAt
 */
export function explain(url: string, { state, reason, code, help, retryIn, attempt }: import("./connection/connection.js").Status, { clock, welcome, registry, publisher, errors }: import("./core.js").Core, changedAt: number): string;
