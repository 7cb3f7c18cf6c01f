// The network goes and comes, the page sleeps and wakes, and the application asks for a connection now.

import assert from 'node:assert/strict';
import test from 'node:test';
import { connected, scene, turn } from './support.js';

/** A WebSocket whose handshake never ends. */
class Hanging {
  static opened = 0;
  bufferedAmount = 0;
  constructor() {
    Hanging.opened += 1;
  }
  close() {}
}

/** @param {EventTarget} target @param {string} type @param {any} [more] */
const fire = (target, type, more) => target.dispatchEvent(Object.assign(new Event(type), more));

test('7: when the network comes back, a dial that hangs is started again at once', async (t) => {
  const network = new EventTarget();
  Hanging.opened = 0;
  const { client, clock, until } = await scene(t, { network, WebSocket: Hanging });
  void client.connect().catch(() => {});
  await turn();
  fire(network, 'offline');
  assert.deepEqual([(await until('offline')).reason, client.state], ['offline', 'offline']);
  clock.advance(20_000); // tries nevertheless: browsers are wrong about it at times
  await turn();
  assert.deepEqual([Hanging.opened, client.state], [2, 'offline']);
  clock.advance(100);
  fire(network, 'online');
  await turn();
  assert.deepEqual([Hanging.opened, client.state, client.status.reason], [3, 'connecting', 'online']);
});

test('7: nor does a probe that hangs delay it', async (t) => {
  const network = new EventTarget();
  /** @type {any[]} */
  const signals = [];
  const fetch = /** @type {any} */ ((/** @type {string} */ _url, /** @type {any} */ { signal }) => (signals.push(signal), new Promise(() => {})));
  const { server, client } = await scene(t, { network, fetch });
  server.refusal = { status: 503 };
  void client.connect();
  while (signals.length === 0) await turn();
  server.refusal = null;
  fire(network, 'online');
  await (await server.peer()).welcome();
  assert.equal(signals[0].aborted, true);
});

test('7: a probe has a deadline', async (t) => {
  let asked = 0;
  const fetch = /** @type {any} */ ((/** @type {string} */ _url, /** @type {any} */ { signal }) => {
    asked += 1;
    return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
  });
  const { server, client, clock, until } = await scene(t, { fetch });
  server.refusal = { status: 503 };
  void client.connect();
  while (!asked) await turn();
  clock.advance(8_000);
  assert.equal((await until('waiting')).reason, 'unreachable');
});

test('offline drops at once, online reconnects at once', async (t) => {
  const network = new EventTarget();
  const { server, peer, until } = await connected(t, { network });
  fire(network, 'offline');
  const { reason, retryIn } = await until('offline');
  assert.deepEqual({ reason, retryIn }, { reason: 'offline', retryIn: 20_000 });
  await peer.closed;
  fire(network, 'online');
  await (await server.peer()).welcome();
  await until('ready');
});

for (const call of /** @type {const} */ (['connect', 'retryNow'])) {
  test(`10: ${call}() while the client waits means now`, async (t) => {
    const { server, peer, client, until } = await connected(t);
    const first = client.connect();
    peer.terminate();
    await until('waiting');
    void client[call]();
    assert.equal(client.status.reason, 'retry');
    await (await server.peer()).welcome();
    await until('ready');
    assert.equal(client.connect(), first);
    void client[call](); // nothing to do
    await turn();
    assert.deepEqual([client.state, server.peers.length], ['ready', 0]);
  });
}

test('10: a try that hangs is started again, one that has just begun is not', async (t) => {
  Hanging.opened = 0;
  const { client, clock } = await scene(t, { WebSocket: Hanging });
  void client.connect().catch(() => {});
  await turn();
  client.retryNow();
  await turn();
  assert.equal(Hanging.opened, 1);
  clock.advance(2_000);
  client.retryNow();
  await turn();
  assert.equal(Hanging.opened, 2);
});

test('10: retryNow() of a client that is closed does nothing', async (t) => {
  const { server, client } = await connected(t);
  client.close();
  client.retryNow();
  await turn();
  assert.deepEqual([client.state, server.peers.length], ['closed', 0]);
});

for (const type of ['visibilitychange', 'pageshow', 'resume', 'online']) {
  test(`15: after ${type} a dead link is noticed within 2 s`, async (t) => {
    const network = new EventTarget();
    const { server, peer, clock, until, retry } = await connected(t, { network });
    fire(network, type);
    const { id } = await peer.expect('ping');
    peer.send({ type: 'pong', id });
    await turn();
    await turn();
    clock.advance(2_000);
    fire(network, type);
    await peer.expect('ping');
    clock.advance(1_800);
    assert.equal((await retry()).reason, 'no_pong');
    await (await server.peer()).welcome();
    await until('ready');
  });
}

test('15: the application of React Native becomes active', async (t) => {
  /** @type {((state: string) => void)[]} */
  const listeners = [];
  let removed = 0;
  const appState = {
    addEventListener: (/** @type {string} */ _type, /** @type {(state: string) => void} */ listener) => {
      listeners.push(listener);
      return { remove: () => (removed += 1) };
    },
  };
  const { peer, client } = await connected(t, { appState });
  listeners[0]('background');
  listeners[0]('active');
  await peer.expect('ping');
  client.close();
  assert.deepEqual([listeners.length, removed], [1, 1]);
});

test('15: a page that wakes while the client waits tries at once', async (t) => {
  const network = new EventTarget();
  const { server, peer, until } = await connected(t, { network });
  peer.terminate();
  await until('waiting');
  fire(network, 'visibilitychange');
  await (await server.peer()).welcome();
});

test('a page in the back/forward cache keeps no connection, and has one when it is shown again', async (t) => {
  const network = new EventTarget();
  const { server, peer, client, until } = await connected(t, { network });
  fire(network, 'pagehide', { persisted: false });
  assert.equal(client.state, 'ready');
  fire(network, 'pagehide', { persisted: true });
  await peer.closed;
  assert.equal((await until('waiting')).reason, 'sleep');
  fire(network, 'pageshow', { persisted: true });
  await (await server.peer()).welcome();
});

test('a closed client listens to nothing', async (t) => {
  const network = new EventTarget();
  const { server, client } = await connected(t, { network });
  client.close();
  for (const type of ['online', 'offline', 'pageshow', 'resume', 'visibilitychange']) fire(network, type);
  await turn();
  assert.deepEqual([client.state, server.peers.length], ['closed', 0]);
});

test('a hidden page does not ask', async (t) => {
  const network = new EventTarget();
  const page = Object.assign(new EventTarget(), { visibilityState: 'hidden' });
  Object.assign(globalThis, { document: page });
  t.after(() => Reflect.deleteProperty(globalThis, 'document'));
  const { peer } = await connected(t, { network });
  fire(page, 'visibilitychange');
  await turn();
  assert.equal(peer.messages.length, 0);
  page.visibilityState = 'visible';
  fire(page, 'visibilitychange');
  await peer.expect('ping');
});
