import assert from 'node:assert/strict';
import test from 'node:test';
import { WELCOME, connected, room, scene, subscribed, turn } from './support.js';

/** @param {string} id @param {any} [more] */
const limited = (id, more) => ({ type: 'error', id, code: 'rate_limited', message: 'slow', retryable: true, details: { retry_after: 0.3 }, ...more });

test('an ack settles; a refusal rejects with its code, path and details', async (t) => {
  const { peer, client } = await connected(t);
  const good = client.publish('room:1', 'chat.message', {}, { id: 'mine-1', key: 'k' });
  const again = client.publish('room:1', 'chat.message', {}, { id: 'mine-1', key: 'k' });
  const bad = client.publish('room:2', 'chat.message', {}, { id: 'mine-2' });
  assert.deepEqual(await peer.expect('chat.message'), { type: 'chat.message', id: 'mine-1', channel: 'room:1', data: {}, key: 'k' });
  assert.equal((await peer.expect('chat.message')).id, 'mine-2');
  assert.equal(client.pending, 2);
  peer.send([
    { type: 'error', id: 'mine-2', code: 'invalid_data', message: 'no text', retryable: false, details: { path: '$.data' } },
    { type: 'ack', id: 'mine-1', offset: 7, duplicate: true },
  ]);
  assert.deepEqual(await good, { type: 'ack', id: 'mine-1', offset: 7, duplicate: true });
  assert.equal(await again, await good);
  await assert.rejects(bad, { code: 'invalid_data', channel: 'room:2', retryable: false, details: { path: '$.data' } });
  assert.equal(client.pending, 0);
});

test('events of one channel are sent one after the other, so that none overtakes one that is sent again', async (t) => {
  const { peer, client, clock } = await connected(t);
  const acks = [1, 2, 3].map((n) => client.publish('room:1', 'chat.message', { n }, { id: `m-${n}` }));
  void client.publish('room:2', 'chat.message', {}, { id: 'other' }).catch(() => {});
  assert.equal((await peer.expect('chat.message')).id, 'm-1');
  assert.equal((await peer.expect('chat.message')).id, 'other');
  peer.send(limited('m-1'));
  await turn();
  assert.equal(peer.messages.length, 0);
  const ready = (async () => {
    while (peer.messages.length === 0) {
      clock.advance(100);
      await turn();
    }
  })();
  await ready;
  for (const n of [1, 2, 3]) assert.equal((await peer.ack({ offset: n })).id, `m-${n}`);
  assert.deepEqual((await Promise.all(acks)).map(({ offset }) => offset), [1, 2, 3]);
});

test('an unanswered publish is sent again with the same id after a reconnect, behind the subscriptions', async (t) => {
  const { server, peer, client, retry } = await connected(t);
  client.channel('room:1');
  const ack = client.publish('room:1', 'chat.message', { n: 1 });
  await peer.expect('subscribe');
  const { id } = await peer.expect('chat.message');
  peer.terminate();
  await retry();
  const offline = client.publish('room:1', 'chat.message', { n: 2 });
  assert.equal(client.signal('room:1', 'chat.typing', {}), false);
  const again = await server.peer();
  await again.welcome();
  await again.expect('subscribe');
  assert.equal((await again.ack({ offset: 1 })).id, id);
  await again.ack({ offset: 2 });
  assert.equal((await ack).offset, 1);
  assert.equal((await offline).offset, 2);
});

test('publishes of one user are not sent on the connection of another one', async (t) => {
  const { server, peer, client, retry } = await connected(t);
  const sent = client.publish('room:1', 'chat.message', { n: 1 });
  const waiting = client.publish('room:1', 'chat.message', { n: 2 });
  await peer.expect('chat.message');
  peer.terminate();
  await retry();
  const offline = client.publish('room:2', 'chat.message', { n: 3 });
  const other = await server.peer();
  await other.welcome({ ...WELCOME, connection: 'c-2', user: 'ben' });
  await assert.rejects(sent, { code: 'uncertain', channel: 'room:1', message: /another user connected/ });
  for (const ack of [waiting, offline]) await assert.rejects(ack, { code: 'not_sent' });
  const own = client.publish('room:1', 'chat.message', { n: 4 });
  assert.deepEqual((await other.ack({ offset: 1 })).data, { n: 4 });
  assert.equal((await own).offset, 1);
});

test('a retryable refusal is retried after the wait it names, with the same id', async (t) => {
  const { peer, clock, client, errors } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {});
  const { id } = await peer.expect('chat.message');
  peer.send([limited(id, { details: { retry_after: 3 } }), { type: 'error', code: 'malformed', message: 'mark', retryable: false }]);
  await errors.next();
  clock.advance(3_499); // half a second of jitter
  await turn();
  assert.equal(peer.messages.length, 0);
  clock.advance(1);
  assert.equal((await peer.ack()).id, id);
  assert.equal((await ack).offset, 1);
});

for (const [told, wait] of [[1e12, 300_500], [-5, 250], ['soon', 250], [null, 250]]) {
  test(`a wait of ${told} in a refusal is bounded`, async (t) => {
    const { server, client, clock, errors, until } = await scene(t, { requestTimeout: Infinity });
    void client.connect();
    const peer = await server.peer();
    await peer.welcome({ ...WELCOME, heartbeat: 1e9 });
    await until('ready');
    void client.publish('room:1', 'chat.message', {}).catch(() => {});
    const { id } = await peer.expect('chat.message');
    peer.send([limited(id, { details: { retry_after: told } }), { type: 'error', code: 'malformed', message: 'mark', retryable: false }]);
    await errors.next();
    clock.advance(Number(wait));
    while ((await peer.messages.next()).id !== id);
  });
}

test('a publish that outran its subscription waits for it', async (t) => {
  const { peer, client } = await connected(t);
  client.channel('room:1');
  const ack = client.publish('room:1', 'chat.message', {});
  const request = await peer.expect('subscribe');
  const { id } = await peer.expect('chat.message');
  peer.send([{ type: 'error', id, code: 'not_subscribed', message: 'not yet', retryable: false }, subscribed(request)]);
  assert.equal((await peer.ack()).id, id);
  await ack;
});

test('the subscription of a channel lasts until its publishes are answered', async (t) => {
  const { peer, channel, clock } = await room(t);
  const ack = channel.publish('chat.message', {});
  channel.leave();
  clock.advance(10);
  await peer.ack();
  await ack;
  clock.advance(10);
  await peer.expect('unsubscribe');
});

test('a publish without an answer times out, and says that it may have happened', async (t) => {
  const { peer, clock, client } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {}, { timeout: 5_000 });
  await peer.expect('chat.message');
  clock.advance(5_000);
  await assert.rejects(ack, { code: 'timeout', retryable: true, message: /may have happened/ });
});

test('a connection closed over a message size does not send that message again', async (t) => {
  const { server, peer, client, retry } = await connected(t);
  const small = client.publish('room:1', 'chat.message', { n: 1 });
  const large = client.publish('room:2', 'chat.message', { pad: 'x'.repeat(5_000) });
  await peer.expect('chat.message');
  await peer.expect('chat.message');
  peer.close(1009);
  await assert.rejects(large, { code: 'too_big' });
  await retry();
  const again = await server.peer();
  await again.welcome();
  assert.deepEqual((await again.ack()).data, { n: 1 });
  await small;
});

test('a message larger than the service accepts fails at once', async (t) => {
  const { client } = await connected(t);
  await assert.rejects(client.publish('room:1', 'chat.message', { pad: 'x'.repeat(70_000) }), { code: 'too_big', channel: 'room:1' });
});

test('data that is no JSON fails at once', async (t) => {
  const { client } = await scene(t);
  await assert.rejects(client.publish('room:1', 'chat.message', { n: 1n }), { code: 'invalid_data' });
});

test('a publish that is aborted is not sent; the reason of the signal rejects', async (t) => {
  const { client, server, until } = await scene(t);
  const abort = new AbortController();
  const first = client.publish('room:1', 'chat.message', { n: 1 }, { signal: abort.signal });
  const second = client.publish('room:1', 'chat.message', { n: 2 });
  abort.abort();
  await assert.rejects(first, { name: 'AbortError' });
  await assert.rejects(client.publish('room:1', 'chat.message', {}, { signal: abort.signal }), { name: 'AbortError' });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await until('ready');
  assert.deepEqual((await peer.ack()).data, { n: 2 });
  await second;
});

test('more than maxPending requests fail at once, and say so', async (t) => {
  const { client } = await scene(t, { maxPending: 2 });
  const kept = [1, 2].map((n) => client.publish('room:1', 'chat.message', { n }));
  await assert.rejects(client.publish('room:1', 'chat.message', { n: 3 }), { code: 'queue_full', channel: 'room:1', retryable: true });
  assert.equal(client.pending, 2);
  void client.connect().catch(() => {});
  client.close();
  for (const ack of kept) await assert.rejects(ack, { code: 'not_sent' });
});

test('the messages of one tick share frames, within the limits of welcome', async (t) => {
  const { server, client, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: { ...WELCOME.limits, batch: 2 } });
  await until('ready');
  for (let n = 0; n < 5; n += 1) void client.publish(`room:${n}`, 'chat.message', { n }).catch(() => {});
  await peer.frames.next();
  await peer.frames.next();
  const sizes = [await peer.frames.next(), await peer.frames.next(), await peer.frames.next()].map((frame) => (Array.isArray(frame) ? frame.length : 1));
  assert.deepEqual(sizes, [2, 2, 1]);
});

test('publishes keep within the rates of welcome', async (t) => {
  const { server, client, clock, until } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: { ...WELCOME.limits, rate: 10, burst: 5 } });
  await until('ready');
  for (let n = 0; n < 6; n += 1) void client.publish(`room:${n}`, 'chat.message', { n }).catch(() => {});
  for (let n = 0; n < 4; n += 1) await peer.expect('chat.message'); // four fifths of the burst
  await turn();
  assert.equal(peer.messages.length, 0);
  clock.advance(200);
  await peer.expect('chat.message');
  await peer.expect('chat.message');
});

test('options that do not exist change nothing', async (t) => {
  const { peer, client } = await connected(t);
  const options = /** @type {any} */ ({ retry: 3, order: -1, sent: true, flying: true, resting: true, deadline: 5, backoff: 1, text: 'no' });
  const ack = client.publish('room:1', 'chat.message', { n: 1 }, options);
  assert.deepEqual((await peer.ack()).data, { n: 1 });
  await ack;
});
