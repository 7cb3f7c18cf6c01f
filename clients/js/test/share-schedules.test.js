// Property test: what schedules.test.js says of one client also holds for tabs that share a connection, whatever becomes of the tabs.

import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { TestService } from '../src/testing/index.js';
import { Browser } from './browser.js';
import { Log, World, finishAll } from './world.js';

/** The same schedules in every run, unless another seed is given. */
const { TIDEWIRE_SCHEDULES: RUNS = 10_000, TIDEWIRE_SEED: SEED = 1 } = process.env;
const TABS = 3;
/** What happens in a tab, or to it. */
const STEPS = /** @type {const} */ ([
  ...['join', 'join', 'leave', 'publish', 'publish', 'publish', 'call', 'call', 'abort', 'signal', 'connect', 'close', 'retry', 'slow'],
  ...['backend', 'backend', 'value', 'flood', 'restart', 'loseStore', 'newEpoch', 'expireTokens', 'unsubscribe', 'refuse', 'refuseConnections', 'garbage', 'stop', 'start'],
  ...['cut', 'end', 'die', 'revive', 'delay', 'loseReply', 'loseEvent', 'repeatEvent', 'swapEvents'],
  ...['offline', 'online', 'sleep', 'wake', 'pass', 'pass', 'pass', 'turn', 'turn', 'turn', 'turn'],
  ...['kill', 'hang', 'hang', 'run', 'run', 'freeze', 'hide'],
]);
/** What needs no tab. */
const OUTSIDE = ['backend', 'value', 'flood', 'restart', 'loseStore', 'newEpoch', 'expireTokens', 'unsubscribe', 'refuse', 'garbage', 'cut', 'end', 'pass', 'turn'];

const ROOM = {
  subscribe: 'authenticated',
  history: { events: 1_000, ttl: '1h' },
  events: {
    'chat.message': { publish: 'authenticated', delivery: 'durable' },
    'chat.typing': { publish: 'authenticated', delivery: 'ephemeral' },
    'doc.value': { publish: 'authenticated', delivery: 'latest', key: '/n' },
  },
};

/** Tabs of one user. */
class Tabs {
  service = new TestService({ contract: { channels: { 'room:{room}': ROOM }, calls: { 'order.quote': {} } } });
  log = new Log(this.service);
  browser = new Browser(this.service.clock);
  /** @type {World[]} */
  worlds = [];
  /** @type {World[]} */
  dead = [];

  constructor() {
    for (let n = 0; n < TABS; n += 1) this.open();
  }

  open() {
    const world = new World(this.service, this.log, this.browser.open(), `p${this.worlds.length}${this.dead.length}`);
    this.worlds.push(world);
    world.connect();
    world.join(0);
  }

  /** @param {typeof STEPS[number]} step @param {number} n @param {number} which */
  async step(step, n, which) {
    const world = this.worlds[which % TABS];
    const tab = /** @type {import('./browser.js').Tab} */ (world.tab);
    if (step === 'kill') {
      tab.kill();
      this.dead.push(world);
      this.worlds.splice(which % TABS, 1);
      this.open();
    } else if (step === 'hang') tab.freeze();
    else if (step === 'run') await tab.thaw();
    else if (tab.isFrozen && !OUTSIDE.includes(step)) return; // nothing runs there
    else if (step === 'freeze') tab.network.fire('freeze');
    else if (step === 'hide') tab.network.fire('pagehide', { persisted: false });
    else await /** @type {any} */ (world)[step](n);
  }

  async finish() {
    for (const { tab } of this.worlds) await tab?.thaw();
    await finishAll(this.service, this.worlds, 1);
    for (const world of this.dead) world.checkPublishes(true);
  }
}

/** @type {fc.Arbitrary<[typeof STEPS[number], number, number][]>} */
const schedules = fc.array(fc.tuple(fc.constantFrom(...STEPS), fc.nat(3), fc.nat(TABS - 1)), { minLength: 4, maxLength: 24, size: 'max' });

/** @type {unknown[]} */
const unhandled = [];
const onUnhandled = (/** @type {unknown} */ reason) => unhandled.push(reason);

const property = fc.asyncProperty(schedules, async (schedule) => {
  const tabs = new Tabs();
  for (const [step, n, which] of schedule) await tabs.step(step, n, which);
  await tabs.finish();
  const faults = [...tabs.worlds, ...tabs.dead].flatMap((world) => world.faults);
  assert.deepEqual([...new Set(faults)], []);
  assert.deepEqual(unhandled, []);
});

const { stackTraceLimit } = Error;
Error.stackTraceLimit = 0;
process.on('unhandledRejection', onUnhandled);
const runs = Math.ceil(Number(RUNS) / 20);
const started = performance.now();
const outcome = await fc.check(property, { numRuns: runs, includeErrorInReport: true, seed: Number(SEED) });
const seconds = (performance.now() - started) / 1_000;
process.off('unhandledRejection', onUnhandled);
Error.stackTraceLimit = stackTraceLimit;

test(`${runs} schedules of ${TABS} tabs`, (t) => {
  t.diagnostic(`${seconds.toFixed(1)} s`);
  assert.ok(!outcome.failed, fc.defaultReportMessage(outcome));
});
