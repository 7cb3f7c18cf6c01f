import assert from 'node:assert/strict';
import test from 'node:test';
import { WELCOME, connected, scene, subscribed } from './support.js';

test('what is sent in one tick travels in one frame', async (t) => {
  const { peer, client } = await connected(t);
  client.subscribe('room:1');
  void client.publish('room:1', 'chat.message', { n: 1 }).catch(() => {});
  client.signal('room:1', 'chat.typing', {});
  await Promise.resolve();
  await peer.frames.next('hello');
  await peer.frames.next('ready');
  const frame = await peer.frames.next();
  assert.deepEqual(frame.map((/** @type {any} */ { type }) => type), ['subscribe', 'chat.message', 'chat.typing']);
  assert.equal('id' in frame[2], false);
});

test('batches stay within limits.batch and limits.message; what no frame can hold is refused', async (t) => {
  const { server, client, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: { ...WELCOME.limits, batch: 3, message: 1024 } });
  await until('open');
  await peer.frames.next('hello');
  await peer.frames.next('ready');
  for (let n = 0; n < 7; n += 1) client.signal('room:1', 'chat.typing', { n });
  const sizes = [];
  for (let n = 0; n < 3; n += 1) sizes.push([await peer.frames.next()].flat().length);
  assert.deepEqual(sizes, [3, 3, 1]);
  for (let n = 0; n < 3; n += 1) client.signal('room:1', 'chat.typing', { pad: 'é'.repeat(200) });
  assert.equal((await peer.frames.next()).length, 2);
  assert.equal((await peer.frames.next()).type, 'chat.typing');
  await assert.rejects(client.publish('room:1', 'chat.message', { pad: 'é'.repeat(600) }), { code: 'too_big' });
});

test('the client stays within the rate', async (t) => {
  const { server, clock, client, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: { ...WELCOME.limits, rate: 10, burst: 5 } });
  await until('open');
  for (let n = 0; n < 5; n += 1) client.signal('room:1', 'chat.typing', { n });
  for (let n = 0; n < 3; n += 1) await peer.expect('chat.typing'); // a burst of 4, less the ready
  assert.equal(peer.messages.length, 0);
  clock.advance(200);
  await peer.expect('chat.typing');
  await peer.expect('chat.typing');
});

const PACED = { ...WELCOME.limits, rate: 10, burst: 5, subscribe_rate: 2, subscribe_burst: 3 };

test('subscribes have a budget of their own; leaving and ready cost nothing', async (t) => {
  const { server, clock, client, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: PACED });
  await until('open');
  for (let n = 0; n < 4; n += 1) client.signal('room:1', 'chat.typing', { n });
  for (let n = 0; n < 4; n += 1) await peer.expect('chat.typing');
  const first = client.subscribe('room:0');
  for (let n = 1; n < 4; n += 1) client.subscribe(`room:${n}`);
  for (let n = 0; n < 3; n += 1) assert.equal((await peer.expect('subscribe')).channel, `room:${n}`);
  void first.unsubscribe();
  assert.equal(peer.messages.length, 0); // in order: it comes behind the subscribe that waits
  clock.advance(500);
  assert.equal((await peer.expect('subscribe')).channel, 'room:3');
  assert.equal((await peer.expect('unsubscribe')).channel, 'room:0');
});

test('a service that tells no budget of subscribing counts all messages alike', async (t) => {
  const { server, client, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: { ...WELCOME.limits, rate: 10, burst: 5 } });
  await until('open');
  for (let n = 0; n < 5; n += 1) client.subscribe(`room:${n}`);
  for (let n = 0; n < 3; n += 1) await peer.expect('subscribe'); // a burst of 4, less the ready
  assert.equal(peer.messages.length, 0);
});

test('an ack settles; a refusal rejects with its code, path and details', async (t) => {
  const { peer, client } = await connected(t);
  const good = client.publish('room:1', 'chat.message', {}, { id: 'mine-1', key: 'k' });
  const again = client.publish('room:1', 'chat.message', {}, { id: 'mine-1', key: 'k' });
  const bad = client.publish('room:1', 'chat.message', {}, { id: 'mine-2' });
  assert.deepEqual(await peer.expect('chat.message'), { type: 'chat.message', id: 'mine-1', channel: 'room:1', data: {}, key: 'k' });
  assert.equal((await peer.expect('chat.message')).id, 'mine-2');
  peer.send([
    { type: 'error', id: 'mine-2', code: 'invalid_data', message: 'no text', retryable: false, details: { path: '$.data' } },
    { type: 'ack', id: 'mine-1', offset: 7, duplicate: true },
  ]);
  assert.deepEqual(await good, { type: 'ack', id: 'mine-1', offset: 7, duplicate: true });
  assert.equal(await again, await good);
  await assert.rejects(bad, { code: 'invalid_data', retryable: false, details: { path: '$.data' } });
});

test('an unanswered publish is sent again with the same id after a reconnect, behind the subscriptions', async (t) => {
  const { server, peer, clock, client, until } = await connected(t);
  client.subscribe('room:1');
  const ack = client.publish('room:1', 'chat.message', { n: 1 });
  await peer.expect('subscribe');
  const { id } = await peer.expect('chat.message');
  peer.terminate();
  clock.advance((await until('waiting')).retryIn ?? 0);
  const offline = client.publish('room:1', 'chat.message', { n: 2 });
  assert.equal(client.signal('room:1', 'chat.typing', {}), false);
  const again = await server.peer();
  assert.equal((await again.welcome()).length, 1);
  assert.equal((await again.expect('chat.message')).id, id);
  const second = await again.expect('chat.message');
  again.send([{ type: 'ack', id, offset: 1 }, { type: 'ack', id: second.id, offset: 2 }]);
  assert.equal((await ack).offset, 1);
  assert.equal((await offline).offset, 2);
});

test('a retryable refusal is retried after the wait it names, with the same id', async (t) => {
  const { peer, clock, client } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {});
  const { id } = await peer.expect('chat.message');
  const marked = new Promise((resolve) => client.on('error', resolve));
  peer.send({ type: 'error', id, code: 'rate_limited', message: 'slow', retryable: true, details: { retry_after: 3 } });
  peer.send({ type: 'error', code: 'malformed', message: 'mark', retryable: false });
  await marked;
  clock.advance(3_499); // half a second of jitter
  assert.equal(peer.messages.length, 0);
  clock.advance(1);
  assert.equal((await peer.expect('chat.message')).id, id);
  peer.send({ type: 'ack', id, offset: 1 });
  assert.equal((await ack).offset, 1);
});

test('a publish that outran its subscription waits for it', async (t) => {
  const { peer, client } = await connected(t);
  client.subscribe('room:1');
  const ack = client.publish('room:1', 'chat.message', {});
  const request = await peer.expect('subscribe');
  const { id } = await peer.expect('chat.message');
  peer.send([{ type: 'error', id, code: 'not_subscribed', message: 'not yet', retryable: false }, subscribed(request)]);
  assert.equal((await peer.expect('chat.message')).id, id);
  peer.send({ type: 'ack', id, offset: 1 });
  await ack;
});

test('a publish without an answer times out, and says that it may have happened', async (t) => {
  const { peer, clock, client } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {}, { timeout: 5_000 });
  await peer.expect('chat.message');
  clock.advance(5_000);
  await assert.rejects(ack, { code: 'timeout', retryable: true });
});

test('a connection closed over a message size does not send that message again', async (t) => {
  const { server, peer, clock, client, until } = await connected(t);
  const small = client.publish('room:1', 'chat.message', { n: 1 });
  const large = client.publish('room:1', 'chat.message', { pad: 'x'.repeat(5_000) });
  await peer.expect('chat.message');
  await peer.expect('chat.message');
  peer.close(1009);
  await assert.rejects(large, { code: 'too_big' });
  clock.advance((await until('waiting')).retryIn ?? 0);
  const again = await server.peer();
  await again.welcome();
  const { id, data } = await again.expect('chat.message');
  assert.deepEqual(data, { n: 1 });
  again.send({ type: 'ack', id, offset: 1 });
  await small;
});
