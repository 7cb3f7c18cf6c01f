// The address of the service, and what the client announces in it (docs/protocol.md, Versions and features).

import { VERSION } from '../version.js';

/** The features that this client knows. */
export const FEATURES = Object.freeze(['calls', 'if_rev', 'ready_in_address', 'removal', 'subscription_token', 'tail', 'ttl']);

/**
 * The address of the service; undefined for a relative one without a page.
 * @param {string | URL} url
 */
export function resolve(url) {
  let address;
  try {
    address = new URL(url, globalThis.location?.href);
  } catch {
    return undefined;
  }
  address.protocol = address.protocol.replace('http', 'ws');
  if (!/^wss?:$/.test(address.protocol)) throw new TypeError(`${address.protocol} is not a WebSocket address`);
  address.hash = '';
  return address;
}

/**
 * Adds the client's name, version and features to an address, and the contract's hash and a ticket if there are. An application
 * that names itself in the address (`client=shop/2.1`) keeps its name.
 * @param {URL} address
 * @param {string} [contract]
 * @param {string} [ticket]
 */
export function announce(address, contract, ticket) {
  const query = address.searchParams;
  query.delete('channels'); // they have been subscribed to
  if (!query.has('client')) query.set('client', `tidewire-js/${VERSION}`);
  query.set('features', `${FEATURES}`);
  if (contract) query.set('contract', contract);
  if (ticket) query.set('ticket', ticket);
  // The service reads a query without `%` faster.
  address.search = address.search.replace(/%(?:2C|2F|3A)/g, decodeURIComponent);
}
