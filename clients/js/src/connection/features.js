// What the client announces in the address of each upgrade (docs/protocol.md, Versions and features).

import { VERSION } from '../version.js';

/** The features that this client knows. */
export const FEATURES = Object.freeze(['if_rev', 'ready_in_address', 'removal', 'subscription_token', 'tail', 'ttl']);

/**
 * Adds the client's name, version and features to an address, and the contract's hash if there is one. An application that
 * names itself in the address (`client=shop/2.1`) keeps its name.
 * @param {URL} address
 * @param {string} [contract]
 */
export function announce(address, contract) {
  if (!address.searchParams.has('client')) address.searchParams.set('client', `tidewire-js/${VERSION}`);
  address.searchParams.set('features', FEATURES.join(','));
  if (contract) address.searchParams.set('contract', contract);
}

/**
 * Decodes `/`, `:` and `,` in the query, which `searchParams` encodes needlessly: the service reads a query without `%` faster.
 * @param {URL} address
 */
export function plain(address) {
  address.search = address.search.replace(/%(?:2C|2F|3A)/g, decodeURIComponent);
}
