import { channelState, ownToken, sending, upkeep } from '../parts.js';
import * as loadedSending from '../sending/publisher.js';
import * as loadedToken from '../subscriptions/own-token.js';
import * as loadedState from '../subscriptions/state.js';
import * as loadedUpkeep from '../upkeep/index.js';

/** Gives a test all parts of the client at once: it waits for nothing that is loaded. */
export function haveParts() {
  channelState.module = loadedState;
  ownToken.module = loadedToken;
  sending.module = loadedSending;
  upkeep.module = loadedUpkeep;
}
