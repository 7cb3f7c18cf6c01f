// What is not needed for the first events, and is loaded later.

import { Part } from './base/part.js';

/** What keeps a connection alive, and what to say and do when something fails. Loaded with `connect()`: later, the network may be gone. */
export const upkeep = new Part(() => import('./upkeep/index.js'));

/** The values and users of channels that have some. */
export const channelState = new Part(() => import('./subscriptions/state.js'));

/** Publishes, reads, and ephemeral events. */
export const sending = new Part(() => import('./sending/publisher.js'));

/** The tokens of channels that have some of their own. */
export const ownToken = new Part(() => import('./subscriptions/own-token.js'));
