// Calls of the backend: sent once, or again if the application says so.

import assert from 'node:assert/strict';
import test from 'node:test';
import { connected, scene, turn, WELCOME } from './support.js';

/** @param {import('./support.js').Peer} peer @param {any} data @returns {Promise<any>} the call */
async function reply(peer, data) {
  const call = await peer.expect('call');
  peer.send({ type: 'reply', id: call.id, data });
  return call;
}

test('a call resolves with the data of the reply, and its own data is copied at the call', async (t) => {
  const { client, peer } = await connected(t);
  const data = { item: 'tea', count: 3 };
  const price = client.call('order.quote', data, { id: 'mine' });
  data.count = 4;
  const other = client.call('order.list', /** @type {any} */ (undefined));
  assert.deepEqual(await peer.expect('call'), { type: 'call', id: 'mine', call: 'order.quote', data: { item: 'tea', count: 3 } });
  const { id, ...rest } = await peer.expect('call');
  assert.deepEqual(rest, { type: 'call', call: 'order.list', data: null });
  peer.send([{ type: 'reply', id, data: [] }, { type: 'reply', id: 'mine', data: { price: 1250 } }]);
  assert.deepEqual(await Promise.all([price, other]), [{ price: 1250 }, []]);
  assert.equal(client.pending, 0);
});

test('an error of the backend has its reason and data, and a refused call is not sent again', async (t) => {
  const { client, peer, clock } = await connected(t);
  for (const [code, retryable, details] of /** @type {const} */ ([
    ['call_failed', false, { reason: 'sold_out', data: { left: 0 } }],
    ['hook_unavailable', true, { reason: 'timeout' }],
    ['rate_limited', true, { retry_after: 0.1 }],
  ])) {
    const answer = client.call('order.quote', {});
    const { id } = await peer.expect('call');
    peer.send({ type: 'error', id, code, message: 'no', retryable, details });
    await assert.rejects(answer, { name: 'TidewireError', code, retryable, details });
    clock.advance(10_000);
    await turn();
    assert.equal(peer.messages.length, 0);
  }
});

test('a call waits for a connection, until its timeout', async (t) => {
  const { client, clock, server } = await scene(t);
  const late = client.call('order.quote', { n: 1 }, { timeout: 2_000 });
  const patient = client.call('order.quote', { n: 2 }, { timeout: 5_000 });
  clock.advance(2_000);
  await assert.rejects(late, { code: 'not_sent', retryable: true, message: 'order.quote: no answer within 2 s; it was never sent' });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  assert.deepEqual((await peer.expect('call')).data, { n: 2 });
  clock.advance(3_000);
  await assert.rejects(patient, { code: 'timeout', retryable: true });
});

test('a call whose connection is lost rejects as uncertain, and one that was not sent goes on', async (t) => {
  const { client, peer, server, retry } = await connected(t);
  const sent = client.call('order.quote', { n: 1 });
  await peer.expect('call');
  peer.terminate();
  await assert.rejects(sent, { code: 'uncertain', retryable: true });
  const waiting = client.call('order.quote', { n: 2 });
  await retry();
  const next = await server.peer();
  await next.welcome();
  assert.deepEqual((await reply(next, 'yes')).data, { n: 2 });
  assert.equal(await waiting, 'yes');
  assert.equal(next.messages.length, 0);
});

test('with `retry`, a call is sent again with its id: on the next connection, and after a refusal that passes', async (t) => {
  const { client, peer, clock, server, retry } = await connected(t);
  const answer = client.call('order.quote', {}, { retry: true });
  const { id } = await peer.expect('call');
  peer.terminate();
  await retry();
  const next = await server.peer();
  await next.welcome();
  assert.equal((await next.expect('call')).id, id);
  next.send({ type: 'error', id, code: 'too_many_calls', message: 'later', retryable: true, details: { retry_after: 1 } });
  next.send({ type: 'pong' });
  await turn();
  while (next.messages.length === 0) {
    clock.advance(500);
    await turn();
  }
  assert.equal((await reply(next, 7)).id, id);
  assert.equal(await answer, 7);
});

test('with `retry`, a refusal that does not pass ends a call, and so does its timeout', async (t) => {
  const { client, peer, clock } = await connected(t);
  const refused = client.call('order.quote', {}, { retry: true });
  const first = await peer.expect('call');
  peer.send({ type: 'error', id: first.id, code: 'forbidden', message: 'no', retryable: false, details: { reason: 'banned' } });
  await assert.rejects(refused, { code: 'forbidden', details: { reason: 'banned' } });
  const late = client.call('order.quote', {}, { retry: true, timeout: 3_000 });
  const second = await peer.expect('call');
  peer.send({ type: 'error', id: second.id, code: 'hook_unavailable', message: 'no answer', retryable: true, details: { retry_after: 5 } });
  const settled = assert.rejects(late, { code: 'hook_unavailable' });
  for (let passed = 0; passed < 3_000; passed += 500) {
    await turn();
    clock.advance(500);
  }
  await settled;
});

test('an aborted call rejects with the reason, and is not sent if it was not', async (t) => {
  const { client, peer } = await connected(t);
  const stop = new AbortController();
  const sent = client.call('order.quote', { n: 1 }, { signal: stop.signal });
  const { id } = await peer.expect('call');
  const unsent = client.call('order.quote', { n: 2 }, { signal: stop.signal });
  stop.abort(new Error('enough'));
  for (const call of [sent, unsent, client.call('order.quote', { n: 3 }, { signal: stop.signal })]) await assert.rejects(call, /enough/);
  peer.send({ type: 'reply', id, data: 'late' });
  const last = client.call('order.quote', { n: 4 });
  assert.deepEqual((await reply(peer, 'on time')).data, { n: 4 });
  assert.equal(await last, 'on time');
});

test('a node without the feature gets no call', async (t) => {
  const { client, server, until } = await scene(t);
  const answer = client.call('order.quote', {}, { retry: true });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, features: ['tail'] });
  await until('ready');
  await assert.rejects(answer, { code: 'no_calls', retryable: false });
  assert.equal(peer.messages.length, 0);
});

test('a call of one user is not sent as another, even with `retry`', async (t) => {
  const { client, peer, server, retry } = await connected(t);
  const answer = client.call('order.quote', {}, { retry: true });
  await peer.expect('call');
  peer.terminate();
  await retry();
  const next = await server.peer();
  await next.welcome({ ...WELCOME, user: 'ben' });
  await assert.rejects(answer, { code: 'uncertain', retryable: false });
  assert.equal(next.messages.length, 0);
});

for (const [what, most, limits] of /** @type {const} */ ([['16 calls', 16, {}], ['`limits.calls`', 3, { calls: 3 }]])) test(`a connection has at most ${what} at once, which hold up nothing else`, async (t) => {
  const { client, server, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: { ...WELCOME.limits, ...limits } });
  await until('ready');
  const answers = Array.from({ length: most + 1 }, (_, n) => client.call('order.quote', { n }));
  const calls = [];
  while (calls.length < most) calls.push(await peer.expect('call'));
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.ack();
  await ack;
  assert.equal(peer.messages.length, 0);
  peer.send({ type: 'reply', id: calls[1].id, data: 'one' });
  assert.equal(await answers[1], 'one');
  assert.deepEqual((await reply(peer, 'last')).data, { n: most });
  assert.equal(await answers[most], 'last');
});

test('close() ends calls, and a closed client takes none', async (t) => {
  const { client, peer } = await connected(t);
  const sent = client.call('order.quote', {});
  await peer.expect('call');
  client.close();
  await assert.rejects(sent, { code: 'uncertain' });
  await assert.rejects(client.call('order.quote', {}), { code: 'not_sent' });
});

test('a call that is too big or no JSON is refused here', async (t) => {
  const { client, peer } = await connected(t);
  await assert.rejects(client.call('order.quote', 'x'.repeat(70_000)), { code: 'too_big' });
  await assert.rejects(client.call('order.quote', 1n), { code: 'invalid_data' });
  assert.equal(peer.messages.length, 0);
});
