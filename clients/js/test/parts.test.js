// A client whose later parts do not arrive: a server that has other files now, a network that is gone, a policy of the page.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import '../src/collections/index.js';
import { systemClock } from '../src/base/clock.js';
import { deferred } from '../src/base/deferred.js';
import { channelState, sending, upkeep } from '../src/parts.js';
import { Tidewire } from '../src/tidewire.js';
import { connected, Inbox, message, scene, subscribed, turn, value, WELCOME } from './support.js';

/** What is imported later, by how it fails. */
const FAILURES = { rejects: 'throw new Error("gone")', hangs: 'await new Promise(() => {})' };

/** The client with every dynamic import replaced. @param {import('node:test').TestContext} t @param {string} code @returns {Promise<typeof import('../src/tidewire.js')>} */
async function without(t, code) {
  const directory = await mkdtemp(join(tmpdir(), 'tidewire-'));
  t.after(() => rm(directory, { recursive: true }));
  const outfile = join(directory, 'tidewire.mjs');
  const replaced = { path: `data:text/javascript,${encodeURIComponent(code)}`, external: true };
  await build({
    entryPoints: [fileURLToPath(new URL('../src/tidewire.js', import.meta.url))],
    bundle: true,
    format: 'esm',
    outfile,
    plugins: [{ name: 'later', setup: ({ onResolve }) => onResolve({ filter: /./ }, ({ kind }) => (kind === 'dynamic-import' ? replaced : undefined)) }],
  });
  return import(pathToFileURL(outfile).href);
}

for (const [how, code] of Object.entries(FAILURES)) {
  test(`a client whose later parts never arrive (the import ${how}) connects, delivers, and reconnects`, { timeout: 30_000 }, async (t) => {
    const printed = t.mock.method(console, 'error', () => {});
    let tokens = 0;
    const { Tidewire: Bare } = await without(t, code);
    const { server, client, clock, until, retry, errors } = await scene(t, { random: () => 0, token: () => `token-${(tokens += 1)}` }, Bare);
    /** Lets the deadlines of imports pass until a promise settles. @template T @param {Promise<T>} promise @returns {Promise<T>} */
    const patiently = async (promise) => {
      let settled = false;
      const done = () => (settled = true);
      promise.then(done, done);
      for (; !settled; await turn()) clock.advance(100);
      return promise;
    };

    const room = client.channel('room:1');
    const heard = new Inbox();
    room.on('values', (values) => heard.put(`${values.length} values`));
    room.on('chat.message', ({ id }) => heard.put(id));
    room.on('doc.cursor', ({ id }) => heard.put(id));
    room.on('error', ({ code, channel }) => heard.put(`${code} ${channel}`));
    void client.connect();
    assert.match(client.explain(), /^connecting/);

    // Values and users: they are told once, handed on as they are, and delay nothing but themselves.
    let peer = await server.peer();
    await peer.welcome();
    const state = [value('ann', 1)];
    await peer.subscribe({ offset: 7, last: 'm-7', state, presence: { count: 1, members: [{ user: 'ann' }] } });
    peer.send([value('ann', 2), message(8)]);
    for (const expected of ['not_loaded room:1', '1 values', 'ann-2', 'm-8']) assert.equal(await patiently(heard.next()), expected);

    // What sends does not arrive either: each promise says so, and a last handle still leaves.
    const lost = room.publish('chat.message', { n: 1 });
    assert.equal(client.pending, 1);
    await assert.rejects(patiently(lost), { code: 'not_sent', retryable: true, channel: 'room:1' });
    await assert.rejects(patiently(room.history()), { code: 'not_sent' });
    assert.equal(client.pending, 0);

    // So is a channel that needs a token of its own, and waits.
    const own = client.channel('room:2', { token: () => 'token of room:2' });
    const problem = new Promise((resolve) => own.on('error', resolve));
    assert.equal((await patiently(problem)).code, 'not_loaded');
    assert.equal(own.state, 'waiting');
    own.leave();

    // A connection that is lost resumes.
    peer.terminate();
    await retry();
    peer = await server.peer();
    await peer.welcome();
    const request = await peer.expect('subscribe');
    assert.deepEqual(request.since, { epoch: 'e1', offset: 8, id: 'm-8' });
    peer.send(subscribed(request, { offset: 9, last: 'm-9', events: [message(9)], recovered: true }));
    for (const expected of ['0 values', 'm-9']) assert.equal(await heard.next(), expected);

    // A refused upgrade cannot be explained, and is tried again. So is a refused token, with another one.
    await until('ready');
    server.refusal = { status: 503 };
    peer.terminate();
    await retry();
    assert.equal((await until('waiting')).reason, 'CLOSE_1006');
    server.refusal = null;
    clock.advance(0);
    peer = await server.peer();
    await peer.welcome();
    await until('ready');
    peer.close(4401);
    const { reason, code: closeCode, help } = await until('waiting');
    assert.deepEqual([reason, closeCode, help], ['CLOSE_4401', 4401, undefined]);
    const before = tokens;
    clock.advance(0);
    assert.equal((await (await server.peer()).expect('hello')).token, `token-${before + 1}`);

    // An error goes to the console with its code if nobody listens.
    while (errors.length) assert.equal((await errors.next()).code, 'not_loaded');
    assert.equal(printed.mock.callCount(), 0);
    const silent = new Bare(/** @type {string} */ (server.url), {
      token: 'token-1',
      network: null,
      clock,
      link: () => {
        throw new Error('the policy of the page');
      },
    });
    void silent.connect();
    for (; printed.mock.callCount() === 0; await turn()) clock.advance(100);
    assert.match(printed.mock.calls[0].arguments[1].message, /no WebSocket to 127/);
    assert.match(printed.mock.calls[0].arguments[0], /^\[tidewire\] websocket_refused$/);
  });
}

test('a map and presence load what they need before the first value', async (t) => {
  const { module } = channelState;
  t.after(() => (channelState.module = module));
  for (const use of [(/** @type {any} */ room) => room.map('doc.cursor'), (/** @type {any} */ room) => room.presence]) {
    channelState.module = undefined;
    use(new Tidewire('ws://127.0.0.1:1/ws').channel('room:1'));
    for (const started = performance.now(); !channelState.module; await turn()) assert.ok(performance.now() - started < 5_000);
  }
});

/** `upkeep` arrives when the test says so. @param {import('node:test').TestContext} t */
async function lateUpkeep(t) {
  const loaded = await upkeep.get(systemClock);
  const { module } = upkeep;
  const arrival = deferred();
  upkeep.module = undefined;
  t.after(() => (upkeep.module = module));
  t.mock.method(upkeep, 'get', () => arrival.promise);
  return async () => {
    upkeep.module = module;
    arrival.resolve(loaded);
    await turn();
  };
}

test('a token that expires before `upkeep` has arrived is refreshed in place', async (t) => {
  const arrive = await lateUpkeep(t);
  let tokens = 0;
  const { server, client, until } = await scene(t, { token: () => `token-${(tokens += 1)}` });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, expires_in: 59 });
  peer.send({ type: 'expiring', in: 59 });
  await until('ready');
  await arrive();
  assert.equal((await peer.expect('refresh')).token, 'token-2');
});

test('a page that slept while `upkeep` was loading asks whether its connection lives', async (t) => {
  const arrive = await lateUpkeep(t);
  const { clock, peer, until } = await connected(t);
  clock.advance(60_000);
  await arrive();
  await peer.expect('ping');
  clock.advance(1_800);
  assert.equal((await until('waiting')).reason, 'no_pong');
});

test('a publish that is refused for now before `upkeep` has arrived is sent again', async (t) => {
  const arrive = await lateUpkeep(t);
  const { clock, peer, client } = await connected(t);
  const acks = [client.publish('room:1', 'chat.message', { n: 1 }), client.publish('room:1', 'chat.message', { n: 2 })];
  const refuse = async (/** @type {any} */ more) => peer.send({ type: 'error', id: (await peer.expect('chat.message')).id, message: 'no', ...more });
  await refuse({ code: 'rate_limited', retryable: true });
  await turn();
  await turn();
  clock.advance(1_000);
  assert.deepEqual((await peer.ack()).data, { n: 1 });
  assert.equal((await acks[0]).offset, 1);
  await refuse({ code: 'rate_limited', retryable: true });
  await turn();
  await turn();
  await arrive();
  clock.advance(1_000);
  await refuse({ code: 'forbidden', retryable: false });
  await assert.rejects(acks[1], { code: 'forbidden' });
});

test('a request times out that was made before `upkeep` has arrived', async (t) => {
  const arrive = await lateUpkeep(t);
  const { clock, peer, client } = await connected(t);
  const answer = client.publish('room:1', 'chat.message', {}, { timeout: 5_000 });
  await peer.expect('chat.message');
  await arrive();
  clock.advance(5_000);
  await assert.rejects(answer, { code: 'timeout' });
});

test('a frame that is far too long is ignored before `upkeep` has arrived, and ends the connection afterwards', async (t) => {
  const arrive = await lateUpkeep(t);
  const { peer, until, client } = await connected(t);
  const long = JSON.stringify({ type: 'error', code: 'x'.repeat(2 ** 24), message: '', retryable: false });
  const errors = t.mock.fn();
  client.on('error', errors);
  peer.raw(long);
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.ack();
  await ack;
  assert.equal(errors.mock.callCount(), 0);
  await arrive();
  peer.raw(long);
  assert.equal((await until('waiting')).reason, 'frame_too_long');
});

/** What sends requests and signals arrives, or not, when the test says so. @param {import('node:test').TestContext} t */
function lateSending(t) {
  const { module } = sending;
  const arrival = deferred();
  const get = t.mock.method(sending, 'get', () => arrival.promise);
  sending.module = undefined;
  t.after(() => (sending.module = module));
  const settle = (/** @type {any} */ loaded) => {
    sending.module = loaded;
    arrival.resolve(loaded);
  };
  return { get, arrive: () => settle(module), fail: () => settle(undefined) };
}

test('requests wait for the module that sends them, as they were at the call, and are sent in order', async (t) => {
  const { arrive } = lateSending(t);
  const { client, peer } = await connected(t);
  const data = { n: 1 };
  const first = client.publish('room:1', 'chat.message', data);
  data.n = 2;
  const second = client.publish('room:1', 'chat.message', data, { id: 'mine' });
  const same = client.publish('room:1', 'chat.message', data, { id: 'mine' });
  const stop = new AbortController();
  const aborted = client.publish('room:1', 'chat.message', { n: 3 }, { signal: stop.signal });
  const cycle = /** @type {any} */ ({});
  cycle.self = cycle;
  const refused = client.publish('room:1', 'chat.message', cycle);
  stop.abort(new Error('enough'));
  await assert.rejects(aborted, /enough/);
  assert.equal(client.pending, 5);
  assert.equal(peer.messages.length, 0);
  arrive();
  assert.deepEqual((await peer.ack({ offset: 1 })).data, { n: 1 });
  assert.deepEqual((await peer.ack({ offset: 2 })).data, { n: 2 });
  assert.deepEqual((await Promise.all([first, second, same])).map(({ offset }) => offset), [1, 2, 2]);
  await assert.rejects(refused, { code: 'invalid_data' });
  assert.deepEqual([client.pending, peer.messages.length], [0, 0]);
});

test('requests that wait for their module are bounded, and end with the client', async (t) => {
  const { arrive } = lateSending(t);
  const { client, peer, server } = await connected(t, { maxPending: 2 });
  const sent = [1, 2, 3].map((n) => client.publish('room:1', 'chat.message', { n }));
  await assert.rejects(sent[2], { code: 'queue_full', retryable: true });
  client.close();
  for (const promise of sent.slice(0, 2)) await assert.rejects(promise, { code: 'not_sent', retryable: true });
  await assert.rejects(client.publish('room:1', 'chat.message', {}), { code: 'not_sent' });
  void client.connect();
  const last = client.publish('room:1', 'chat.message', { n: 4 });
  const again = await server.peer();
  await again.welcome();
  arrive();
  assert.deepEqual((await again.ack()).data, { n: 4 });
  await last;
  assert.equal(peer.messages.length, 0);
});

test('requests that wait for their module are not sent as another user', async (t) => {
  const { arrive } = lateSending(t);
  const { client, peer, server, retry } = await connected(t);
  const mine = client.publish('room:1', 'chat.message', {});
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome({ ...WELCOME, user: 'ben' });
  await assert.rejects(mine, { code: 'not_sent', retryable: false });
  arrive();
  await turn();
  assert.equal(again.messages.length, 0);
});

test('a request whose module does not arrive fails, and the next one asks for it again', async (t) => {
  const { fail, get } = lateSending(t);
  const { client, peer } = await connected(t);
  const channel = client.channel('room:1');
  await peer.subscribe();
  const lost = channel.publish('chat.message', {});
  channel.leave();
  fail();
  await assert.rejects(lost, { code: 'not_sent', retryable: true });
  await peer.expect('unsubscribe'); // it waited for the publish
  get.mock.restore();
  const next = client.publish('room:1', 'chat.message', { n: 2 });
  assert.deepEqual((await peer.ack()).data, { n: 2 });
  await next;
});

test('what sends requests is loaded soon after `welcome`, because the network may be gone when it is needed', async (t) => {
  const { get } = lateSending(t);
  const { clock } = await connected(t);
  clock.advance(999);
  assert.equal(get.mock.callCount(), 0);
  clock.advance(1);
  assert.equal(get.mock.callCount(), 1);
});

test('signals wait for their module, and are then sent in order, or replaced', async (t) => {
  const { module } = sending;
  const arrival = deferred();
  t.mock.method(sending, 'get', () => arrival.promise);
  sending.module = undefined;
  t.after(() => (sending.module = module));
  const { client, peer, errors } = await connected(t);
  const data = { n: 0 };
  const taken = [];
  for (; data.n < 202; data.n += 1) taken.push(client.signal('room:1', 'cursor.move', data, { replace: true }));
  assert.deepEqual([taken.indexOf(false), taken.lastIndexOf(true)], [200, 199]);
  arrival.resolve(module);
  assert.deepEqual((await peer.expect('cursor.move')).data, { n: 199 });
  client.close();
  await turn();
  assert.deepEqual([client.signal('room:1', 'cursor.move', data), errors.length], [false, 0]);
});

test('a signal is lost, and that is reported, if its module does not arrive', async (t) => {
  const { module } = sending;
  t.mock.method(sending, 'get', async () => undefined);
  sending.module = undefined;
  t.after(() => (sending.module = module));
  const { client, errors } = await connected(t);
  assert.equal(client.signal('room:1', 'cursor.move', {}), true);
  const { code, channel } = await errors.next();
  assert.deepEqual([code, channel], ['not_loaded', 'room:1']);
});

test('without `upkeep`, publishes do not wait for an outbox that has no database', async (t) => {
  t.mock.method(upkeep, 'get', async () => undefined);
  const { module } = upkeep;
  upkeep.module = undefined;
  t.after(() => (upkeep.module = module));
  const { client, peer, errors } = await connected(t, { outbox: true });
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.ack();
  assert.equal((await ack).offset, 1);
  assert.equal((await errors.next()).code, 'outbox_unavailable'); // Node.js has no IndexedDB
});
