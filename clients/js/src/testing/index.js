// A service in memory, for tests of applications.

export { TestClock } from './clock.js';
export { TestService } from './service.js';

/**
 * @typedef {import('./service.js').TestServiceOptions} TestServiceOptions
 * @typedef {import('./service.js').BackendOptions} BackendOptions
 * @typedef {import('./calls.js').CallContext} CallContext
 * @typedef {import('./service.js').ConnectionRefusal} ConnectionRefusal
 * @typedef {import('./service.js').Filter} Filter
 * @typedef {import('./service.js').Received} Received
 * @typedef {import('./service.js').Claims} Claims
 * @typedef {import('./service.js').Validate} Validate
 */
