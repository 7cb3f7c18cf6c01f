// Whatever a network and a service do, in the end a list, a map and presence show what the service has.

import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import '../../src/collections/index.js';
import { Tidewire } from '../../src/tidewire.js';
import { ModelService } from './model.js';
import { TestClock, turn } from '../support.js';

const TYPE = 'chat.message';
const key = fc.constantFrom('a', 'b', 'c', 'd');

/** What may happen, as [name, argument]. */
const step = fc.oneof(
  { weight: 8, arbitrary: fc.tuple(fc.constant('publish'), key) },
  { weight: 3, arbitrary: fc.tuple(fc.constant('publishOther'), key) },
  { weight: 3, arbitrary: fc.tuple(fc.constant('takeBack'), fc.nat(20)) },
  { weight: 8, arbitrary: fc.tuple(fc.constant('deliver'), fc.integer({ min: 1, max: 6 })) },
  { weight: 3, arbitrary: fc.tuple(fc.constant('reorder'), fc.constantFrom('first', 'last')) },
  { weight: 2, arbitrary: fc.tuple(fc.constantFrom('lose', 'repeat', 'cut', 'older', 'late', 'wait'), fc.nat(5)) },
  { weight: 1, arbitrary: fc.tuple(fc.constantFrom('purge', 'keep', 'close', 'store'), fc.nat(6)) },
  { weight: 3, arbitrary: fc.tuple(fc.constantFrom('set', 'unset', 'joined', 'left'), key) },
);

/** A client of a model, and everything that it shows. @param {{tail: number, max: number, keyed: boolean, snapshot: boolean}} options */
function world({ tail, max, keyed, snapshot }) {
  const clock = new TestClock();
  const service = new ModelService();
  const client = new Tidewire('ws://model/ws', { token: 't', clock, link: service.open, network: null, random: () => 0.5 });
  client.on('error', () => {});
  const database = { store: () => (database.stored = { items: alive(service), position: service.position }), stored: /** @type {any} */ ({}) };
  database.store();
  const key = keyed ? (/** @type {any} */ { data }) => data.key : undefined;
  const options = { tail, max, key, snapshot: snapshot ? async () => database.stored : undefined };
  const room = client.channel('room:1');
  /** @type {ReturnType<typeof room.list>[]} */
  const lists = [room.list(TYPE, options)];
  const map = room.map('doc.cursor');
  void client.connect();
  return { clock, service, database, client, options, room, lists, map, presence: room.presence };
}

/** The events that a list may show. @param {ModelService} service */
const alive = (service) => service.events.filter(({ type, gone }) => type === TYPE && !gone).map(({ gone, ...event }) => event);

/** @param {ReturnType<typeof world>} world @param {[string, any]} step */
function run({ clock, service, database, client, options, room, lists }, [name, argument]) {
  if (name === 'publish') service.publish(TYPE, argument);
  else if (name === 'publishOther') service.publish('chat.note', argument);
  else if (name === 'takeBack') service.takeBack(argument);
  else if (name === 'reorder') service.reorder(argument);
  else if (name === 'store') database.store();
  else if (name === 'deliver') service.deliver(argument);
  else if (name === 'lose' || name === 'repeat') service.fault(name);
  else if (name === 'cut') service.cut();
  else if (name === 'older') lists.at(-1)?.loadOlder(argument + 1).catch(() => {});
  else if (name === 'late' && lists.length < 4) lists.push((argument % 2 ? client.channel('room:1') : room).list(TYPE, options));
  else if (name === 'wait') clock.advance(500 * argument);
  else if (name === 'purge') service.purge();
  else if (name === 'keep') service.keep(argument);
  else if (name === 'close') {
    client.close();
    void client.connect();
  } else if (name === 'set') service.set(argument);
  else if (name === 'unset') service.unset(argument);
  else if (name === 'joined') service.presence(argument, true);
  else if (name === 'left') service.presence(argument, false);
}

/** Holds at any time. @param {ReturnType<typeof world>} world @param {number} max */
function check({ lists, map }, max) {
  for (const list of lists) {
    const { items } = list;
    assert.ok(Object.isFrozen(items) && items.length <= max);
    assert.equal(new Set(items.map(({ id }) => id)).size, items.length, 'no item twice');
    assert.equal(list.items, items);
    assert.equal(list.getSnapshot(), list.getSnapshot());
    assert.equal(list.getSnapshot().items, items);
  }
  assert.equal(map.getSnapshot(), map.getSnapshot());
}

/** Until nothing happens any more. @param {ReturnType<typeof world>} world */
async function settle({ clock, service, database, client, lists, map, presence }) {
  const all = [...lists, map, presence];
  service.publish('chat.note', 'a'); // shows the client that it lacks an event
  database.store();
  for (let round = 0; round < 200; round += 1) {
    service.deliver(100);
    await turn();
    if (client.state === 'ready' && !service.waits && all.every(({ status }) => status === 'live')) return;
    if (!service.waits) clock.advance(1_000);
    await turn();
  }
  assert.fail(`not live: ${all.map(({ status }) => status)}, ${client.state}`);
}

/** What a list with keys shows of events: each key once, at its first place, with its newest event. @param {any[]} events */
function folded(events) {
  const places = new Map();
  for (const event of events) places.set(event.data.key, event);
  return [...places.values()];
}

const scenario = fc.record({
  tail: fc.nat(6),
  max: fc.constantFrom(3, 8, 100),
  keyed: fc.boolean(),
  snapshot: fc.boolean(),
  steps: fc.array(step, { minLength: 5, maxLength: 60 }),
});

/** Schedules in which a list was wrong once. @type {[{tail: number, max: number, keyed: boolean, snapshot: boolean, steps: any[]}][]} */
const FOUND = [
  // an event is taken back after `subscribed`, before a snapshot that has it is read
  [{ tail: 0, max: 3, keyed: false, snapshot: true, steps: [['publish', 'a'], ['deliver', 1], ['store', 0], ['takeBack', 0], ['reorder', 'first'], ['close', 0], ['deliver', 1], ['deliver', 1], ['set', 'a']] }],
  // a full list drops events while those between a snapshot and the list are read
  [{ tail: 0, max: 3, keyed: false, snapshot: true, steps: [['publish', 'a'], ['publish', 'a'], ['publish', 'a'], ['publish', 'a'], ['set', 'a'], ['publish', 'a'], ['deliver', 1], ['keep', 1], ['takeBack', 0]] }],
];

test('lists, maps and presence show what the service has, over any schedule', async () => {
  const property = fc.asyncProperty(scenario, async ({ steps, ...options }) => {
    if (options.keyed) options.max = 100; // what is dropped with keys is in collections.test.js
    options.tail = Math.min(options.tail, options.max);
    const here = world(options);
    try {
      for (const one of steps) {
        run(here, /** @type {[string, any]} */ (one));
        await turn();
        check(here, options.max);
      }
      await settle(here);
      const { service, lists, map, presence } = here;
      const whole = alive(service);
      const takenBack = service.events.filter(({ gone }) => gone).length;
      const kept = whole.filter(({ offset }) => offset >= service.first);
      for (const { items, hasOlder } of lists) {
        const ids = items.map(({ id }) => id);
        if (options.keyed) {
          const fits = [...whole.keys(), whole.length].some((from) => String(folded(whole.slice(from)).map(({ id }) => id)) === String(ids));
          assert.ok(fits, `${ids} is of ${whole.map(({ id, data }) => `${id}:${data.key}`)}`);
        } else {
          assert.deepEqual(ids, whole.slice(whole.length - ids.length).map(({ id }) => id), 'the newest, without a gap');
          assert.ok(ids.length >= Math.min(options.tail, kept.length) - takenBack, `${ids.length} items`);
          if (!hasOlder && !options.snapshot) assert.ok(ids.length >= kept.length, 'nothing older is left');
        }
      }
      assert.deepEqual([...map.entries()].map(([name, { rev }]) => [name, rev]).sort(), [...service.state].map(([name, { rev }]) => [name, rev]).sort());
      assert.deepEqual(presence.members.map(({ user }) => user).sort(), [...service.members.keys()].sort());
    } finally {
      here.client.close();
    }
  });
  await fc.assert(property, { examples: FOUND, numRuns: Number(process.env.RUNS ?? 400), includeErrorInReport: true });
});
