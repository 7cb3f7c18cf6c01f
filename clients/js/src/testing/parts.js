import { channelState, ownToken, signals, upkeep } from '../parts.js';
import * as loadedSignals from '../sending/signals.js';
import * as loadedToken from '../subscriptions/own-token.js';
import * as loadedState from '../subscriptions/state.js';
import * as loadedUpkeep from '../upkeep/index.js';

/** Gives a test all parts of the client at once: it waits for nothing that is loaded. */
export function haveParts() {
  channelState.module = loadedState;
  ownToken.module = loadedToken;
  signals.module = loadedSignals;
  upkeep.module = loadedUpkeep;
}
