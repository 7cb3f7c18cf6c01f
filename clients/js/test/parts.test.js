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
import { channelState, upkeep } from '../src/parts.js';
import { Tidewire } from '../src/tidewire.js';
import { Inbox, message, scene, subscribed, turn, value, WELCOME } from './support.js';

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

test('a token that expires before `upkeep` has arrived is refreshed in place', async (t) => {
  const arrival = deferred();
  const loaded = await upkeep.get(systemClock);
  const { module } = upkeep;
  upkeep.module = undefined;
  t.after(() => (upkeep.module = module));
  t.mock.method(upkeep, 'get', () => arrival.promise);
  let tokens = 0;
  const { server, client, until } = await scene(t, { token: () => `token-${(tokens += 1)}` });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, expires_in: 59 });
  peer.send({ type: 'expiring', in: 59 });
  await until('ready');
  arrival.resolve(loaded);
  assert.equal((await peer.expect('refresh')).token, 'token-2');
});
