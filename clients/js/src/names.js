// Channel names.

/**
 * The segment that stands for a user in channel names, where the contract has `{user}`: what names have no character for is
 * percent-encoded. `inbox:${encodeUser('auth0|ann')}` is `inbox:auth0%7Cann`.
 * @param {string} user  its id, as the token names it
 */
export function encodeUser(user) {
  return encodeURIComponent(user)
    .replace(/%(?:40|3D|2B)/g, decodeURIComponent)
    .replace(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
}
