/**
 * Returns the segment of channel names for a user, where the contract has `{user}`. Characters that names cannot contain are
 * percent-encoded. `inbox:${encodeUser('auth0|ann')}` is `inbox:auth0%7Cann`.
 * @param {string} user  the id in the token's `sub`
 */
export function encodeUser(user: string): string;
