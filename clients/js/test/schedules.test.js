// Property test: whatever the network, the service, the page and the caller do, and in whatever order, the promises of the client hold.

import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { World } from './world.js';

/** The same schedules in every run, unless another seed is given. */
const { TIDEWIRE_SCHEDULES: RUNS = 10_000, TIDEWIRE_SEED: SEED = 1 } = process.env;
/** The steps of a schedule; more frequent ones are named more than once. */
const STEPS = /** @type {const} */ ([
  ...['join', 'join', 'leave', 'publish', 'publish', 'publish', 'call', 'call', 'abort', 'signal', 'connect', 'connect', 'close', 'retry', 'slow'],
  ...['backend', 'backend', 'value', 'flood', 'restart', 'loseStore', 'newEpoch', 'expireTokens', 'unsubscribe', 'refuse', 'refuseConnections', 'garbage', 'stop', 'start'],
  ...['cut', 'end', 'die', 'revive', 'delay', 'loseReply', 'loseEvent', 'repeatEvent', 'swapEvents'],
  ...['offline', 'online', 'sleep', 'wake', 'pass', 'pass', 'pass', 'turn', 'turn', 'turn', 'turn'],
]);

/** @type {fc.Arbitrary<[string, number][]>} */
const schedules = fc.array(fc.tuple(fc.constantFrom(...STEPS), fc.nat(3)), { minLength: 4, maxLength: 24, size: 'max' });

/** Schedules that a client has failed. @type {[[string, number][]][]} */
const KNOWN = [
  [[['slow', 0], ['abort', 2], ['swapEvents', 0], ['join', 0], ['join', 0], ['cut', 0]]],
  [[['pass', 0], ['join', 1], ['backend', 0], ['close', 0], ['join', 0]]],
  [[['pass', 0], ['join', 3], ['join', 0], ['repeatEvent', 3], ['close', 0], ['join', 0], ['join', 0], ['join', 0], ['join', 0]]],
  [[['pass', 0], ['join', 0], ['join', 0], ['leave', 1], ['join', 0]]],
];

/** @type {unknown[]} */
const unhandled = [];
const onUnhandled = (/** @type {unknown} */ reason) => unhandled.push(reason);
let steps = 0;

const property = fc.asyncProperty(schedules, async (schedule) => {
  const world = new World();
  world.connect();
  world.join(0);
  for (const [step, n] of schedule) await /** @type {any} */ (world)[step](n);
  await world.finish();
  steps += schedule.length;
  assert.deepEqual([...new Set(world.faults)], []);
  assert.deepEqual(unhandled, []);
});

// Outside of a test: the hooks by which the runner follows promises would double the time. Nor does it need the stacks of errors.
const { stackTraceLimit } = Error;
Error.stackTraceLimit = 0;
process.on('unhandledRejection', onUnhandled);
const started = performance.now();
const outcome = await fc.check(property, { numRuns: Number(RUNS), includeErrorInReport: true, examples: KNOWN, seed: Number(SEED) });
const seconds = (performance.now() - started) / 1_000;
process.off('unhandledRejection', onUnhandled);
Error.stackTraceLimit = stackTraceLimit;

test(`${RUNS} schedules`, (t) => {
  t.diagnostic(`${steps} steps in ${seconds.toFixed(1)} s`);
  assert.ok(!outcome.failed, fc.defaultReportMessage(outcome));
});
