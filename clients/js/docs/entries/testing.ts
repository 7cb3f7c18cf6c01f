/**
 * A service in memory for unit tests of applications.
 * @module tidewire/testing
 */
export type { Grant } from '../../types/testing/channels/access.js';
export { TestClock } from '../../types/testing/clock.js';
export type { Filter } from '../../types/testing/network.js';
export type { Received } from '../../types/testing/node.js';
export { TestService } from '../../types/testing/service.js';
export type { CallContext } from '../../types/testing/calls.js';
export type { BackendOptions, ConnectionRefusal, TestServiceOptions, Validate } from '../../types/testing/service.js';
export type { Claims } from '../../types/testing/tokens.js';
