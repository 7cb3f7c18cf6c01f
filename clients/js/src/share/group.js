/**
 * Which tabs share one connection: those whose tokens have the same claims, apart from the ones below, and that would open the same
 * address. So a tab never gets more through another one than its own token grants. The name holds no token.
 */

/** The version of what tabs say to each other. Another one makes another group. */
const VERSION = 1;
/** Claims that differ between the tokens of one login, and grant nothing. */
const PASSING = ['iat', 'nbf', 'exp', 'jti'];

/**
 * @typedef {Record<string, unknown> & {sub: string, exp?: unknown}} Claims
 */

/**
 * The claims of a JWT; undefined for another kind of token, and for one that names no user. The service checks the signature.
 * @param {unknown} token
 * @returns {Claims | undefined}
 */
export function claimsOf(token) {
  const parts = String(token).split('.');
  if (parts.length !== 3) return undefined;
  try {
    const bytes = atob(parts[1].replaceAll('-', '+').replaceAll('_', '/'));
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0))));
    return typeof claims?.sub === 'string' && claims.sub ? claims : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The name of the group.
 * @param {URL} address
 * @param {Claims} claims
 */
export async function nameOf({ href }, claims) {
  const counted = Object.entries(claims).filter(([name]) => !PASSING.includes(name));
  const text = JSON.stringify([VERSION, href, Object.fromEntries(counted)], sorted);
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
  return `tidewire-share:${VERSION}:${Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

/** Makes the order of fields irrelevant. @param {string} _ @param {any} value */
function sorted(_, value) {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Random characters that no other tab has. @param {number} length */
export function randomName(length) {
  const letters = 'abcdefghijklmnopqrstuvwxyz012345';
  return Array.from(crypto.getRandomValues(new Uint8Array(length)), (byte) => letters[byte % 32]).join('');
}
