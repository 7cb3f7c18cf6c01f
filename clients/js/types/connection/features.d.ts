/**
 * Adds the client's name, version and features to an address, and the contract's hash if there is one. An application that
 * names itself in the address (`client=shop/2.1`) keeps its name.
 * @param {URL} address
 * @param {string} [contract]
 */
export function announce(address: URL, contract?: string): void;
/**
 * Decodes `/`, `:` and `,` in the query, which `searchParams` encodes needlessly: the service reads a query without `%` faster.
 * @param {URL} address
 */
export function plain(address: URL): void;
/** The features that this client knows. */
export const FEATURES: readonly string[];
