// The public names of the Tidewire client.

export { Tidewire } from './client.js';
export { CLOSE_CODES, ERROR_CODES } from './codes.js';
export { TidewireError } from './errors.js';
export { encodeUser } from './names.js';
export { Subscription } from './subscription.js';
