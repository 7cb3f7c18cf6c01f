// A service, or something in its place, that sends anything.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { WELCOME, connected, room, scene, turn } from './support.js';

/** A repeatable source of numbers in [0, 1). @param {number} seed */
function numbers(seed) {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 2 ** 32;
    return state / 2 ** 32;
  };
}

/** @type {{message: any}[]} */
const EXAMPLES = JSON.parse(readFileSync(new URL('../../../tests/vectors/server.json', import.meta.url), 'utf8'));
const VALUES = [null, true, false, 0, -1, 1.5, 1e300, '', 'x', 'room:1', [], [null], {}, { offset: null }, '\u0000', 'constructor', '__proto__'];

/** An example with fields that are missing or have anything in them. @param {() => number} random */
function mangled(random) {
  const pick = (/** @type {any[]} */ list) => list[Math.floor(random() * list.length)];
  const message = { ...pick(EXAMPLES).message };
  if (typeof message.channel === 'string') message.channel = 'room:1';
  if (message.type === 'reconnect' || message.type === 'closed') message.after = pick(VALUES);
  for (const field of [...Object.keys(message), 'id', 'details', 'events']) {
    const chance = random();
    if (field === 'type' ? chance < 0.05 : chance < 0.2) message[field] = pick(VALUES);
    else if (chance < 0.3 && field !== 'type') delete message[field];
  }
  return message;
}

for (const seed of [1, 2, 3, 4]) {
  test(`anything that a service sends is survived (seed ${seed})`, async (t) => {
    const random = numbers(seed);
    const { peer, client, channel, clock } = await room(t, { token: () => 'token-1' });
    for (const name of /** @type {const} */ (['values', 'removed', 'presence', 'tail', 'subscribed'])) channel.on(name, () => {});
    const reading = channel.history().catch(() => {});
    for (let n = 0; n < 500; n += 1) {
      peer.send(random() < 0.5 ? mangled(random) : [mangled(random), mangled(random)]);
      if (n % 50 === 0) {
        await turn();
        clock.advance(10);
      }
    }
    peer.raw('[');
    peer.raw(Buffer.from([0xff]));
    peer.send({ type: 'ack', id: 'mine', offset: 1 });
    const ack = client.publish('room:2', 'chat.message', {}, { id: 'mine' });
    for (;;) {
      const { id, type } = await peer.messages.next('the publish');
      if (type === 'chat.message' && id === 'mine') break;
    }
    peer.send({ type: 'ack', id: 'mine', offset: 1 });
    await ack;
    assert.equal(client.state, 'ready');
    client.close();
    await reading;
  });
}

test('a welcome that is none is a connection without one', async (t) => {
  const { server, client, clock, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.expect('hello');
  for (const welcome of [{}, { connection: 1 }, { connection: 'c', user: 'ann' }, { connection: 'c', user: 'ann', limits: null }]) peer.send({ type: 'welcome', ...welcome });
  clock.advance(15_000);
  assert.equal((await until('waiting')).reason, 'no_welcome');
});

test('a second welcome changes nothing', async (t) => {
  const { peer, client } = await connected(t);
  peer.send({ ...WELCOME, connection: 'c-2', limits: { ...WELCOME.limits, message: 1 } });
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.ack();
  await ack;
});

test('offsets that repeat or go back are dropped', async (t) => {
  const { peer, events } = await room(t);
  for (const offset of [8, 8, 3, 9, 1]) peer.send({ type: 'chat.message', channel: 'room:1', id: `m-${offset}`, at: 1, from: 'ben', data: {}, offset });
  assert.deepEqual([await events.next(), await events.next()], ['m-8', 'm-9']);
  await turn();
  assert.equal(events.length, 0);
});
