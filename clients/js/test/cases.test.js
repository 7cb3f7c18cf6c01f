// What was seen with an earlier client, case by case, with siblings of each.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import test from 'node:test';
import { WebSocket } from 'ws';
import { Tidewire, TidewireError } from '../src/tidewire.js';
import { Inbox, TestServer, WELCOME, connected, message, room, scene, soon, subscribed, turn, value } from './support.js';

/** @param {import('node:test').TestContext} t */
function printed(t) {
  const lines = t.mock.method(console, 'error', () => {});
  return () => lines.mock.calls.map(({ arguments: [line] }) => String(line));
}

// 1 ------------------------------------------------------------------------------------------------------------------------

test('1: signals every 16 ms are sent, replaced or dropped; publishes and pings do not wait for them', async (t) => {
  const { peer, client, clock } = await connected(t);
  let newest = -1;
  for (let n = 0; n < 625; n += 1) {
    client.signal('room:1', 'cursor.move', { n });
    await turn();
    while (peer.messages.length) {
      const sent = await peer.messages.next();
      if (sent.type === 'ping') peer.send({ type: 'pong', id: sent.id });
      else newest = sent.data.n;
    }
    clock.advance(16);
  }
  assert.ok(newest > 615, `the newest cursor is ${625 - newest} signals old`);
  const ack = client.publish('room:1', 'chat.message', {});
  assert.equal((await peer.ack()).type, 'chat.message');
  await ack;
  assert.equal(client.state, 'ready');
});

test('1: a signal with `replace` waits for its turn, and only its newest self is sent', async (t) => {
  const { peer, client, clock } = await connected(t);
  for (let n = 0; n < 200; n += 1) client.signal('room:1', 'chat.reaction', { n }); // uses up the share of signals
  for (let n = 0; n < 10; n += 1) assert.equal(client.signal('room:1', 'cursor.move', { n }, { replace: 'cursor' }), true);
  for (let n = 0; n < 56; n += 1) await peer.expect('chat.reaction'); // of 80, less the share of messages
  clock.advance(1_000);
  assert.deepEqual(await peer.expect('cursor.move'), { type: 'cursor.move', channel: 'room:1', data: { n: 9 } });
  await turn();
  assert.equal(peer.messages.length, 0);
});

test('1: `every` sends the first at once, and then at most one in this time', async (t) => {
  const { peer, client, clock } = await connected(t);
  for (let n = 0; n < 5; n += 1) client.signal('room:1', 'cursor.move', { n }, { replace: 'cursor', every: 50 });
  assert.equal((await peer.expect('cursor.move')).data.n, 4);
  client.signal('room:1', 'cursor.move', { n: 5 }, { replace: 'cursor', every: 50 });
  client.signal('room:1', 'cursor.move', { n: 6 }, { replace: 'other', every: 50 });
  assert.equal((await peer.expect('cursor.move')).data.n, 6);
  clock.advance(49);
  await turn();
  assert.equal(peer.messages.length, 0);
  clock.advance(1);
  assert.equal((await peer.expect('cursor.move')).data.n, 5);
});

test('1: signals wait while the network takes nothing, and are gone after a reconnect', async (t) => {
  const { server, peer, client, retry } = await connected(t);
  for (let n = 0; n < 200; n += 1) client.signal('room:1', 'chat.reaction', { n });
  client.signal('room:1', 'cursor.move', {}, { replace: true });
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome();
  await turn();
  assert.equal(again.messages.length, 0);
});

// 2 ------------------------------------------------------------------------------------------------------------------------

const BUDGETS = { ...WELCOME.limits, subscribe_rate: 20, subscribe_burst: 128 };

test('2: 120 channels cost two round trips, also after a reconnect', async (t) => {
  const { server, client, retry } = await scene(t);
  const channels = Array.from({ length: 120 }, (_, n) => client.channel(`room:${n}`));
  void client.connect();
  for (const round of [1, 2]) {
    const peer = await server.peer();
    await peer.welcome({ ...WELCOME, limits: BUDGETS });
    for (let n = 0; n < 120; n += 1) await peer.subscribe();
    if (round === 1) await Promise.all(channels.map((channel) => soon(channel.subscribed, channel.name)));
    assert.equal((await peer.frames.next()).type, 'hello');
    assert.equal((await peer.frames.next()).type, 'ready');
    assert.equal((await peer.frames.next()).length, 100); // the most of a frame
    peer.terminate();
    if (round === 1) await retry();
  }
});

test('2: a service with one budget gets the first subscribes at once, too', async (t) => {
  const { server, client } = await scene(t);
  for (let n = 0; n < 120; n += 1) client.channel(`room:${n}`);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  for (let n = 0; n < 80; n += 1) await peer.subscribe();
});

test('2: channels above the bound are told at once and by name', async (t) => {
  const { server, client, errors } = await scene(t);
  const channels = Array.from({ length: 1_000 }, (_, n) => client.channel(`room:${n}`));
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, limits: BUDGETS });
  for (let n = 128; n < 1_000; n += 1) {
    const { code, channel } = await errors.next();
    assert.deepEqual([code, channel], ['too_many_subscriptions', `room:${n}`]);
  }
  await assert.rejects(channels[500].subscribed, { code: 'too_many_subscriptions', message: /room:500: .* 128 channels/ });
  for (let n = 0; n < 128; n += 1) assert.equal((await peer.expect('subscribe')).channel, `room:${n}`);
  const late = client.channel('room:late');
  await assert.rejects(late.subscribed, { code: 'too_many_subscriptions', channel: 'room:late' });
  await turn();
  assert.equal(peer.messages.length, 0);
});

// 3 ------------------------------------------------------------------------------------------------------------------------

test('3: a token function that never settles has a deadline, a signal, and a new call', async (t) => {
  /** @type {AbortSignal[]} */
  const signals = [];
  /** @type {any} */
  const token = (/** @type {{signal: AbortSignal}} */ { signal }) => {
    signals.push(signal);
    return signals.length === 1 ? new Promise(() => {}) : 'token-2';
  };
  const { server, client, clock, errors, retry } = await scene(t, { token });
  void client.connect();
  await turn();
  clock.advance(10_000);
  const { code, message } = await errors.next();
  assert.deepEqual([code, message], ['token_failed', 'the function `token` failed: no result within 10 s']);
  assert.equal(signals[0].aborted, true);
  await retry();
  assert.equal((await (await server.peer()).expect('hello')).token, 'token-2');
});

test('3: so has the token function of a channel, and a ticket function', async (t) => {
  const { client, clock, errors, peer } = await connected(t);
  let calls = 0;
  client.channel('room:1', { token: () => ((calls += 1) === 1 ? /** @type {any} */ (new Promise(() => {})) : 'token-2') });
  await turn();
  clock.advance(10_000);
  assert.match((await errors.next()).message, /the function `token` of room:1 failed/);
  clock.advance(500);
  assert.equal((await peer.expect('subscribe')).token, 'token-2');

  const ticketed = await scene(t, { token: undefined, ticket: () => new Promise(() => {}) });
  void ticketed.client.connect().catch(() => {});
  await turn();
  ticketed.clock.advance(10_000);
  assert.match((await ticketed.errors.next()).message, /the function `ticket` failed/);
});

test('3: close() aborts the token function; the next connect() calls it again and ignores what the first call returns', async (t) => {
  /** @type {{signal: AbortSignal, answer: (token: string) => void}[]} */
  const calls = [];
  const token = (/** @type {{signal: AbortSignal}} */ { signal }) => new Promise((/** @type {(token: string) => void} */ answer) => calls.push({ signal, answer }));
  const { server, client } = await scene(t, { token });
  void client.connect().catch(() => {});
  await turn();
  client.close();
  assert.equal(calls[0].signal.aborted, true);
  void client.connect().catch(() => {});
  await turn();
  calls[0].answer('token-of-the-first-user');
  await turn();
  calls[1].answer('token-of-the-second-user');
  assert.equal((await (await server.peer()).expect('hello')).token, 'token-of-the-second-user');
  assert.equal(calls.length, 2);
});

test('3: after close(), connect() uses no token from before, as somebody else may be logged in', async (t) => {
  let user = 'ann';
  const { server, client } = await scene(t, { token: () => user });
  const connecting = client.connect();
  await (await server.peer()).welcome({ ...WELCOME, expires_in: 3_600 });
  assert.equal((await connecting).user, 'ann');
  client.close();
  user = 'ben';
  void client.connect();
  assert.equal((await (await server.peer()).expect('hello')).token, 'ben');
});

// 4 ------------------------------------------------------------------------------------------------------------------------

test('4: closed is closed, in whichever listener close() is called', async (t) => {
  for (const state of ['connecting', 'reconnecting', 'ready']) {
    const { server, client } = await scene(t);
    server.refusal = state === 'reconnecting' ? { status: 503 } : null;
    client.on('state', (status) => status.state === state && client.close());
    const connecting = client.connect();
    if (state === 'ready') await (await server.peer()).welcome();
    await connecting.catch(() => {});
    for (let n = 0; n < 5; n += 1) await turn();
    assert.deepEqual([client.state, client.status.reason], ['closed', 'client'], state);
  }
});

test('4: close() in an error, welcome or channel listener stays', async (t) => {
  const failing = await scene(t, { token: () => Promise.reject(new Error('down')) });
  failing.client.on('error', () => failing.client.close());
  await assert.rejects(failing.client.connect(), { code: 'closed' });
  failing.clock.advance(60_000);
  await turn();
  assert.equal(failing.client.state, 'closed');

  const welcomed = await scene(t);
  welcomed.client.on('welcome', () => welcomed.client.close());
  void welcomed.client.connect();
  const peer = await welcomed.server.peer();
  await peer.welcome();
  await peer.closed;
  assert.equal(welcomed.client.state, 'closed');

  const { peer: other, client, channel, events } = await room(t);
  channel.on('*', () => client.close());
  other.send([message(8), message(9)]);
  await other.closed;
  assert.equal(events.length, 1);
});

test('4: connect() in a listener of `closed` connects', async (t) => {
  const { server, client } = await scene(t);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  const off = client.on('state', ({ state }) => {
    if (state !== 'closed') return;
    off();
    void client.connect();
  });
  peer.close(4403);
  await (await server.peer()).welcome();
});

// 5 ------------------------------------------------------------------------------------------------------------------------

test('5: without a listener, errors are printed with code, channel and what to do', async (t) => {
  const lines = printed(t);
  const server = await new TestServer().start();
  const client = new Tidewire(String(server.url), { token: 'x', WebSocket, network: null });
  t.after(() => (client.close(), server.stop()));
  const channel = client.channel('room:1');
  channel.on('*', () => {
    throw new Error('bug');
  });
  client.channel('room:2').on('error', () => {});
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await peer.subscribe();
  const second = await peer.expect('subscribe');
  peer.send([message(1), { type: 'error', id: second.id, code: 'forbidden', message: 'no', retryable: false }]);
  client.channel('room:3');
  const third = await peer.expect('subscribe');
  peer.send({ type: 'error', id: third.id, code: 'forbidden', message: 'no', retryable: false });
  while (lines().length < 2) await turn();
  assert.deepEqual(lines().sort(), [
    '[tidewire] forbidden room:3: room:3: no. Grant it in the token or in the contract. (tidewire/docs/errors.md#forbidden)',
    '[tidewire] handler_failed room:1: room:1: a listener of chat.message threw: Error: bug. Correct the listener; the event counts as handled. (tidewire/docs/errors.md#handler_failed)',
  ]);
  client.on('error', () => {});
  client.channel('room:4');
  const { id } = await peer.expect('subscribe');
  peer.send({ type: 'error', id, code: 'forbidden', message: 'no', retryable: false });
  await turn();
  assert.equal(lines().length, 2);
});

for (const [code, status] of /** @type {[string, number][]} */ ([['origin_refused', 403], ['not_found', 404], ['unsupported_version', 400]])) {
  test(`5: ${code} is printed`, async (t) => {
    const lines = printed(t);
    const server = await new TestServer().start();
    t.after(() => server.stop());
    server.refusal = { status, code };
    const client = new Tidewire(String(server.url), { token: 'x', WebSocket, network: null });
    await assert.rejects(client.connect(), { code: 'closed', message: new RegExp(code) });
    assert.equal(lines().length, 1);
    assert.match(lines()[0], new RegExp(`^\\[tidewire\\] ${code}: .*/ws answered ${status}: refused with ${code}`));
  });
}

test('5: a flood of errors is not all printed', async (t) => {
  const lines = printed(t);
  const server = await new TestServer().start();
  const client = new Tidewire(String(server.url), { token: 'x', WebSocket, network: null });
  t.after(() => (client.close(), server.stop()));
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  peer.send(Array.from({ length: 5_000 }, () => ({ type: 'error', code: 'malformed', message: 'x', retryable: false })));
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.ack();
  await ack;
  assert.ok(lines().length > 0 && lines().length <= 60);
});

// 6 ------------------------------------------------------------------------------------------------------------------------

test('6: a latest value is replaced while it waits for a slow listener', async (t) => {
  const { peer, client } = await connected(t);
  /** @type {Inbox<any>} */
  const begun = new Inbox();
  /** @type {(() => void)[]} */
  const release = [];
  client.channel('room:1').on('doc.cursor', ({ data }) => {
    begun.put(data.rev);
    return new Promise((resolve) => release.push(() => resolve(undefined)));
  });
  await peer.subscribe();
  peer.send(Array.from({ length: 1_000 }, (_, n) => value('ann', n + 1)));
  peer.send(value('ben', 2_000));
  assert.equal(await begun.next(), 1);
  await peer.messages; // all of them have arrived when the next reply has
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.ack();
  await ack;
  release.shift()?.();
  assert.equal(await begun.next(), 1_000);
  release.shift()?.();
  assert.equal(await begun.next(), 2_000);
});

test('6: a full queue is told, and what is missing is read again', async (t) => {
  const { peer, client, errors } = await connected(t, { maxQueue: 10 });
  /** @type {string[]} */
  const heard = [];
  /** @type {() => void} */
  let release = () => {};
  const channel = client.channel('room:1');
  channel.on('*', ({ id }) => {
    heard.push(id);
    return id === 'm-1' ? new Promise((resolve) => (release = () => resolve(undefined))) : undefined;
  });
  await peer.subscribe();
  peer.send(Array.from({ length: 1_000 }, (_, n) => message(n + 1)));
  const { code, channel: of } = await errors.next();
  assert.deepEqual([code, of], ['queue_full', 'room:1']);
  release();
  await peer.expect('unsubscribe');
  const request = await peer.expect('subscribe');
  assert.equal(request.since.offset, 11);
  const missed = Array.from({ length: 989 }, (_, n) => message(n + 12));
  peer.send(subscribed(request, { offset: 1_000, last: 'm-1000', recovered: true, events: missed }));
  while (heard.length < 1_000) await turn();
  assert.deepEqual(heard, Array.from({ length: 1_000 }, (_, n) => `m-${n + 1}`));
  assert.equal(errors.length, 0);
});

test('6: signals do not take the places of events', async (t) => {
  const { peer, client, errors, clock } = await connected(t, { maxQueue: 10 });
  /** @type {() => void} */
  let release = () => {};
  /** @type {Inbox<string>} */
  const heard = new Inbox();
  const channel = client.channel('room:1');
  channel.on('*', ({ id }) => {
    heard.put(id);
    return id === 'm-1' ? new Promise((resolve) => (release = () => resolve(undefined))) : undefined;
  });
  await peer.subscribe();
  await channel.subscribed;
  await turn();
  const typing = { type: 'chat.typing', channel: 'room:1', id: 'e', at: 1, from: 'ben', data: {} };
  peer.send([message(1), ...Array.from({ length: 100 }, () => typing), message(2)]);
  assert.equal((await errors.next()).code, 'queue_full');
  release();
  assert.equal(await heard.next(), 'm-1');
  for (let n = 0; n < 5; n += 1) assert.equal(await heard.next(), 'e');
  assert.equal(await heard.next(), 'm-2');
  clock.advance(0);
  assert.equal(peer.messages.length, 0);
});

test('6: a listener that never settles is told, and blocks nothing for ever', async (t) => {
  const { peer, client, clock, errors } = await connected(t);
  /** @type {Inbox<string>} */
  const heard = new Inbox();
  client.channel('room:1').on('*', ({ id }) => {
    heard.put(id);
    return new Promise(() => {});
  });
  await peer.subscribe();
  peer.send([message(1), message(2)]);
  await heard.next();
  for (let n = 0; n < 2; n += 1) {
    clock.advance(15_000);
    peer.send({ type: 'pong' });
    const ack = client.publish('room:2', 'chat.message', {});
    while (/** @type {any} */ (await peer.ack()).type !== 'chat.message');
    await ack;
  }
  const { code, channel } = await errors.next();
  assert.deepEqual([code, channel], ['handler_slow', 'room:1']);
  assert.equal(await heard.next(), 'm-2');
});

// 7, 10, 15: wake.test.js ------------------------------------------------------------------------------------------------------

// 8: publish.test.js; over a connection that really refuses: -----------------------------------------------------------------------

test('8: the stream has the order of the calls, whatever is refused', async (t) => {
  const { peer, client, clock } = await connected(t);
  /** @type {number[]} */
  const stream = [];
  const acks = Array.from({ length: 6 }, (_, n) => client.publish('room:1', 'chat.message', { n }));
  for (let refused = 0; stream.length < 6; ) {
    while (peer.messages.length === 0) {
      clock.advance(100);
      await turn();
    }
    const { id, data } = await peer.messages.next();
    if (data.n % 2 === 0 && refused < 10 && (refused += 1) % 3) {
      peer.send({ type: 'error', id, code: ['rate_limited', 'broker_unavailable', 'internal'][refused % 3], message: 'x', retryable: true, details: {} });
    } else {
      stream.push(data.n);
      peer.send({ type: 'ack', id, offset: stream.length });
    }
  }
  await Promise.all(acks);
  assert.deepEqual(stream, [0, 1, 2, 3, 4, 5]);
});

// 9 ------------------------------------------------------------------------------------------------------------------------

test('9: after close() a publish fails at once, and says that it was never sent', async (t) => {
  const { client, peer } = await connected(t);
  const sent = client.publish('room:1', 'chat.message', {});
  const waiting = client.publish('room:1', 'chat.message', {});
  await peer.expect('chat.message');
  client.close();
  await assert.rejects(sent, { code: 'uncertain', message: /may have happened/ });
  await assert.rejects(waiting, { code: 'not_sent', message: /was never sent/ });
  await assert.rejects(client.publish('room:1', 'chat.message', {}), { code: 'not_sent' });
  await assert.rejects(client.remove('room:1', 'doc.cursor', 'ann'), { code: 'not_sent' });
  await assert.rejects(client.channel('room:1').history(), { code: 'not_sent' });
  assert.equal(client.signal('room:1', 'chat.typing', {}), false);
  assert.equal(client.pending, 0);
});

test('9: the time of a publish starts when there is a connection', async (t) => {
  const { server, client, clock, until } = await scene(t);
  const ack = client.publish('room:1', 'chat.message', {}, { timeout: 1_000 });
  clock.advance(3_600_000);
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await until('ready');
  await peer.expect('chat.message');
  clock.advance(999);
  peer.send({ type: 'ack', id: 'nobody' });
  await turn();
  assert.equal(client.pending, 1);
  clock.advance(1);
  await assert.rejects(ack, { code: 'timeout' });
});

test('9: one that waits behind another, or for its channel, was never sent', async (t) => {
  const { peer, client, clock } = await connected(t);
  void client.publish('room:1', 'chat.message', {}).catch(() => {});
  const behind = client.publish('room:1', 'chat.message', {}, { timeout: 1_000 });
  await peer.expect('chat.message');
  clock.advance(1_000);
  await assert.rejects(behind, { code: 'not_sent', message: /within 1 s; it was never sent/ });
});

// 11 ------------------------------------------------------------------------------------------------------------------------

test('11: the probe of a client with a cookie carries credentials; one with a token sends none to other sites', async (t) => {
  for (const [options, credentials] of /** @type {[any, string][]} */ ([
    [{ token: undefined }, 'include'],
    [{ token: 'x' }, 'same-origin'],
    [{ token: undefined, anonymous: true }, 'same-origin'],
  ])) {
    /** @type {any[]} */
    const asked = [];
    const fetch = /** @type {any} */ (async (/** @type {string} */ url, /** @type {any} */ init) => {
      asked.push(init.credentials);
      return globalThis.fetch(url, init);
    });
    const { server, client, until } = await scene(t, { ...options, fetch });
    server.refusal = { status: 503, code: 'draining' };
    void client.connect().catch(() => {});
    await until('waiting');
    assert.deepEqual(asked, [credentials]);
  }
});

test('11: a page that may not read the answer with cookies learns that its origin is refused, and not that it is unauthenticated', async (t) => {
  for (const [code, status, state] of /** @type {[string, number, string][]} */ ([
    ['origin_refused', 403, 'closed'],
    ['unauthenticated', 401, 'waiting'],
  ])) {
    const fetch = /** @type {any} */ (async (/** @type {string} */ url, /** @type {any} */ init) => {
      if (init.credentials === 'include') throw new TypeError('CORS');
      return globalThis.fetch(url, init);
    });
    const { server, client, until } = await scene(t, { token: undefined, fetch });
    server.refusal = { status, code };
    void client.connect().catch(() => {});
    assert.equal((await until(state)).reason, state === 'closed' ? code : 'unreachable');
  }
});

// 12 ------------------------------------------------------------------------------------------------------------------------

test('12: no listener runs after close(), and the position is that of what was handled', async (t) => {
  const { server, peer, client, until } = await connected(t);
  /** @type {Inbox<string>} */
  const heard = new Inbox();
  /** @type {() => void} */
  let release = () => {};
  const channel = client.channel('room:1');
  channel.on('*', ({ id }) => {
    heard.put(id);
    return new Promise((resolve) => (release = () => resolve(undefined)));
  });
  await peer.subscribe();
  peer.send(Array.from({ length: 50 }, (_, n) => message(n + 1)));
  await heard.next();
  client.close();
  release();
  await turn();
  assert.equal(heard.length, 0);
  assert.equal(channel.position?.offset, 1);
  void client.connect();
  const again = await server.peer();
  await again.welcome();
  await until('ready');
  assert.deepEqual((await again.expect('subscribe')).since, { epoch: 'e1', offset: 1, id: 'm-1' });
});

test('12: nor after leave()', async (t) => {
  const { peer, channel, events } = await room(t);
  channel.on('*', () => channel.leave());
  peer.send([message(8), message(9)]);
  await events.next();
  await turn();
  assert.equal(events.length, 0);
});

// 13 ------------------------------------------------------------------------------------------------------------------------

test('13: a relative address is an error only when the client connects', async (t) => {
  const client = new Tidewire('/ws', { token: 'x' });
  const channel = client.channel('room:1');
  assert.deepEqual([client.state, channel.state, client.pending], ['closed', 'waiting', 0]);
  assert.match(client.explain(), /closed \(new\).*\nwhat to do: call connect\(\)/);
  const lines = printed(t);
  await assert.rejects(client.connect(), { code: 'closed', message: /without a page it must be absolute/ });
  await turn();
  assert.equal(lines().length, 1);
});

test('13: without a WebSocket class, connect() says so', async () => {
  const client = new Tidewire('ws://127.0.0.1:1/ws', { token: 'x', WebSocket: undefined, network: null });
  client.on('error', () => {});
  if (!globalThis.WebSocket) await assert.rejects(client.connect(), { code: 'closed', message: /no WebSocket/ });
});

// 14 ------------------------------------------------------------------------------------------------------------------------

test('14: what was given to publish, remove and signal is sent', async (t) => {
  const { server, client, until } = await scene(t);
  const data = { text: 'first', list: [1] };
  const options = { id: 'mine' };
  const ack = client.publish('room:1', 'chat.message', data, options);
  data.text = 'second';
  data.list.push(2);
  options.id = 'other';
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await until('ready');
  const event = await peer.ack();
  assert.deepEqual([event.id, event.data], ['mine', { text: 'first', list: [1] }]);
  await ack;
  const cursor = { x: 1 };
  client.signal('room:1', 'cursor.move', cursor, { replace: true });
  cursor.x = 2;
  assert.deepEqual((await peer.expect('cursor.move')).data, { x: 1 });
});

// 16 ------------------------------------------------------------------------------------------------------------------------

test('16: a channel that is left before welcome is never subscribed to', async (t) => {
  const { server, client, clock, until } = await scene(t, { channels: ['room:1'] });
  const left = client.channel('room:2');
  void client.connect();
  const peer = await server.peer();
  await peer.expect('hello');
  left.leave();
  clock.advance(0);
  await peer.expect('ready');
  peer.send(WELCOME);
  await until('ready');
  assert.equal((await peer.subscribe()).channel, 'room:1');
  await turn();
  assert.equal(peer.messages.length, 0);
  await assert.rejects(left.subscribed, { code: 'left' });
});

test('16: one that is left while it waits for its answer is left', async (t) => {
  const { peer, client, clock } = await connected(t);
  const channel = client.channel('room:1');
  await peer.expect('subscribe');
  channel.leave();
  clock.advance(0);
  await peer.expect('unsubscribe');
});

// 17 ------------------------------------------------------------------------------------------------------------------------

test('17: components share a subscription; the last one to leave ends it, after a grace', async (t) => {
  const { peer, client, clock, channel, events } = await room(t);
  const second = client.channel('room:1');
  assert.equal((await second.subscribed).offset, 7);
  /** @type {Inbox<string>} */
  const heard = new Inbox();
  second.on('chat.message', ({ id }) => heard.put(id));
  second.on('chat.message', ({ id }) => heard.put(`${id} again`));
  peer.send(message(8));
  assert.deepEqual([await events.next(), await heard.next(), await heard.next()], ['m-8', 'm-8', 'm-8 again']);
  channel.leave();
  clock.advance(1_000);
  peer.send(message(9));
  assert.equal(await heard.next(), 'm-9');
  second.leave();
  second.leave();
  const third = client.channel('room:1'); // within the grace: a component that was shown again
  clock.advance(1_000);
  await turn();
  assert.deepEqual([third.state, peer.messages.length], ['subscribed', 0]);
  third.leave();
  clock.advance(0);
  await peer.expect('unsubscribe');
  assert.deepEqual([third.state, events.length], ['ended', 0]);
});

test('17: a late listener gets what is known, and a late handle its tail', async (t) => {
  const { peer, client } = await connected(t);
  client.channel('room:1');
  await peer.subscribe({ offset: 2, last: 'm-2', state: [value('ann', 1)], presence: { count: 1, members: [{ user: 'ann' }] } });
  await turn();
  /** @type {Inbox<any>} */
  const calls = new Inbox();
  const late = client.channel('room:1', { tail: 2 });
  late.on('subscribed', ({ offset }) => calls.put(['subscribed', offset]));
  late.on('values', (values) => calls.put(['values', values.length]));
  late.on('presence', ({ count }) => calls.put(['presence', count]));
  late.on('tail', (events) => calls.put(['tail', events.map(({ id }) => id)]));
  const gone = new AbortController();
  late.on('values', () => calls.put('aborted'), { signal: gone.signal });
  gone.abort();
  late.on('values', () => calls.put('removed'))();
  assert.deepEqual([await calls.next(), await calls.next(), await calls.next()], [['subscribed', 2], ['values', 1], ['presence', 1]]);
  const { id, limit } = await peer.expect('history');
  assert.equal(limit, 2);
  peer.send({ type: 'history', id, channel: 'room:1', epoch: 'e1', offset: 3, events: [message(2), message(3)], more: true });
  assert.deepEqual(await calls.next(), ['tail', ['m-2']]); // the third comes as an event
  assert.equal(calls.length, 0);
});

test('17: handles, listeners and loops end with their signals', async (t) => {
  const { peer, client, clock } = await connected(t);
  const abort = new AbortController();
  const channel = client.channel('room:1', { signal: abort.signal });
  const heard = [];
  const looped = (async () => {
    for await (const { id } of channel.events()) heard.push(id);
  })();
  await peer.subscribe();
  await channel.subscribed;
  peer.send([message(1), message(2)]);
  while (heard.length < 2) await turn();
  assert.equal(channel.position?.offset, 2);
  abort.abort();
  await looped;
  clock.advance(0);
  await peer.expect('unsubscribe');
  assert.equal(client.channel('room:2', { signal: abort.signal }).state, 'ended');
});

test('17: the position waits for the loop, which ends with break, and throws when the service ends the channel', async (t) => {
  const { peer, channel } = await room(t);
  peer.send([message(8), message(9)]);
  for await (const { id } of channel.events()) {
    await turn();
    assert.equal(channel.position?.offset, id === 'm-8' ? 7 : 8);
    if (id === 'm-9') break;
  }
  await turn();
  assert.equal(channel.position?.offset, 9);
  const next = channel.events({ types: ['chat.message'] }).next();
  peer.send({ type: 'unsubscribed', channel: 'room:1', code: 'forbidden' });
  await assert.rejects(next, { code: 'unsubscribed', details: { code: 'forbidden' } });
});

test('17: close() ends loops', async (t) => {
  const { client, channel } = await room(t);
  const next = channel.events().next();
  await turn();
  client.close();
  assert.deepEqual(await next, { value: undefined, done: true });
});

// 18 ------------------------------------------------------------------------------------------------------------------------

for (const given of [{ token: 'eyJhbGciOiJIUzI1NiJ9' }, '', undefined, '<html><title>404</title></html>']) {
  test(`18: a token function that returns ${JSON.stringify(given)} is an error that names it, and is asked again`, async (t) => {
    /** @type {any[]} */
    const outcomes = [given, 'token-2'];
    const { server, client, errors, retry } = await scene(t, { token: () => outcomes.shift() });
    void client.connect();
    const error = await errors.next();
    assert.equal(error.code, 'token_failed');
    assert.match(error.message, /^the function `token` returned .*, which is not a token$/);
    assert.equal(error.help, 'Make the function return the token as a string.');
    assert.equal((await retry()).reason, 'token_failed');
    assert.deepEqual(await (await server.peer()).expect('hello'), { type: 'hello', token: 'token-2' });
  });
}

test('18: a fixed token that is none closes the client', async (t) => {
  const { client, errors } = await scene(t, { token: /** @type {any} */ ('') });
  await assert.rejects(client.connect(), { code: 'closed' });
  assert.equal((await errors.next()).code, 'token_failed');
});

test('18: nor is a refresh without a token an anonymous one; it is tried again', async (t) => {
  /** @type {any[]} */
  const outcomes = ['token-1', undefined, 'token-3'];
  const { server, client, clock, errors, until } = await scene(t, { token: () => outcomes.shift() });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await until('ready');
  peer.send({ type: 'expiring', in: 60 });
  assert.equal((await errors.next()).code, 'token_failed');
  clock.advance(5_500);
  assert.equal((await peer.expect('refresh')).token, 'token-3');
});

// 19, 22 --------------------------------------------------------------------------------------------------------------------

test('19: a wrong path is an error that names the address and the status', async (t) => {
  const { server, client, errors } = await scene(t);
  server.refusal = { status: 404, code: 'not_found' };
  await assert.rejects(client.connect(), { code: 'closed' });
  const { code, message, help } = await errors.next();
  assert.equal(code, 'not_found');
  assert.match(message, /http:\/\/127\.0\.0\.1:\d+\/ws answered 404/);
  assert.equal(help, 'Correct the path of the address; the service listens at /ws.');
});

for (const status of [400, 401, 403, 404, 410, 426, 451, 500, 502, 503, 599]) {
  test(`22: the page of a proxy with ${status} does not stop the client, and is told once`, async (t) => {
    const { server, client, errors, until, retry } = await scene(t);
    server.refusal = { status, body: '<html>a page</html>' };
    void client.connect();
    assert.equal((await retry()).reason, `http_${status}`);
    assert.equal((await until('waiting')).reason, `http_${status}`);
    server.refusal = null;
    client.retryNow();
    await (await server.peer()).welcome();
    await until('ready');
    const error = await errors.next();
    assert.deepEqual([error.code, errors.length], ['unexpected_response', 0]);
    assert.match(error.message, new RegExp(`/ws answered ${status}, which is not an answer of the service`));
  });
}

test('22: neither does JSON of somebody else', async (t) => {
  const { server, client, until } = await scene(t);
  for (const [headers, body] of /** @type {[any, string][]} */ ([
    [{ 'content-type': 'application/problem+json' }, JSON.stringify({ code: 'access_denied' })],
    [{ 'content-type': 'application/json' }, JSON.stringify({ code: 'not_found' })],
    [{ 'content-type': 'application/problem+json' }, '{"code": '],
    [{ 'content-type': 'application/problem+json' }, 'null'],
  ])) {
    server.refusal = { status: 404, headers, body };
    void client.connect();
    assert.equal((await until('waiting')).reason, 'http_404');
  }
});

test('22: a Retry-After of 24 days is bounded', async (t) => {
  const { server, client, until } = await scene(t);
  server.refusal = { status: 503, code: 'draining', headers: { 'retry-after': '2073600' } };
  void client.connect().catch(() => {});
  assert.equal((await until('waiting')).retryIn, 300_500);
});

for (const after of [1e12, -1, 'soon', null]) {
  test(`22: a reconnect after ${after} is bounded`, async (t) => {
    const { peer, until } = await connected(t);
    peer.send({ type: 'reconnect', after, reason: 'shutdown' });
    peer.close(1012);
    const { retryIn = NaN } = await until('waiting');
    assert.ok(retryIn >= 0 && retryIn <= 300_000);
  });
}

// 20 ------------------------------------------------------------------------------------------------------------------------

test('20: the error of an unknown channel names it, and what the service suggests', async (t) => {
  const { peer, client, errors } = await connected(t);
  const channel = client.channel('romm:1');
  const { id } = await peer.expect('subscribe');
  peer.send({ type: 'error', id, code: 'unknown_channel', message: 'no pattern matches', retryable: false, details: { suggestion: 'room:{room}' } });
  const error = await errors.next();
  assert.deepEqual([error.code, error.channel], ['unknown_channel', 'romm:1']);
  assert.equal(error.message, 'romm:1: no pattern matches; did you mean room:{room}?');
  await assert.rejects(channel.subscribed, { code: 'unknown_channel' });
});

// 23 ------------------------------------------------------------------------------------------------------------------------

test('23: timers are bounded, not overflowed', async (t) => {
  const fired = t.mock.method(globalThis, 'setTimeout');
  const { peer, client, clock } = await connected(t, { requestTimeout: 2 ** 40, backoffCap: Infinity });
  for (const timeout of [Infinity, 2 ** 31, 2 ** 52, NaN, -1, /** @type {any} */ ('soon')]) {
    void client.publish(`room:${timeout}`, 'chat.message', {}, { timeout }).catch(() => {});
    await peer.expect('chat.message');
  }
  assert.equal(client.pending, 6);
  clock.advance(0);
  await turn();
  assert.equal(client.pending, 5); // -1
  assert.ok(fired.mock.calls.every(({ arguments: [, ms = 0] }) => ms <= 2 ** 31 - 1));
});

for (const limits of [{}, { message: 'x', batch: -1, subscriptions: null, rate: 0, burst: 1e300, subscribe_rate: NaN, subscribe_burst: {} }]) {
  test(`23: limits of ${JSON.stringify(limits)} are survived`, async (t) => {
    const { server, client, until, clock } = await scene(t);
    void client.connect();
    const peer = await server.peer();
    await peer.welcome({ ...WELCOME, heartbeat: 0, limits });
    await until('ready');
    client.channel('room:1');
    await peer.subscribe();
    const ack = client.publish('room:1', 'chat.message', {});
    await peer.ack();
    await ack;
    clock.advance(999);
    await turn();
    assert.equal(peer.messages.length, 0); // a ping a second at most
  });
}

// 24: lifecycle.test.js -----------------------------------------------------------------------------------------------------

test('24: after its own close() a client hears nothing more of the connection', async (t) => {
  const http = createServer().listen(0, '127.0.0.1');
  await once(http, 'listening');
  t.after(() => http.close());
  const { client, peer, states } = await connected(t);
  client.close();
  peer.close(4401);
  await peer.closed;
  await turn();
  while (states.length > 1) await states.next();
  assert.equal((await states.next()).state, 'closed');
  assert.ok(new TidewireError('x', 'y') instanceof Error);
});

test('19: an address that nothing answers is told once, and an outage of a service that was there is not', async (t) => {
  const fetch = /** @type {any} */ (() => Promise.reject(new TypeError('no route')));
  for (const wasReady of [false, true]) {
    const { server, client, errors, until, retry } = await scene(t, { fetch });
    void client.connect();
    if (wasReady) {
      const peer = await server.peer();
      await peer.welcome();
      await until('ready');
      server.refusal = { status: 503 };
      peer.terminate();
    } else server.refusal = { status: 503 };
    for (let n = 0; n < 5; n += 1) await retry();
    if (!wasReady) assert.match((await errors.next()).message, /no answer from http:.*\/ws; trying again/);
    assert.equal(errors.length, 0);
  }
});

// The siblings of a missing import -----------------------------------------------------------------------------------------

test('what comes with an import says which one', () => {
  const room = /** @type {any} */ (new Tidewire('/ws').channel('room:1'));
  for (const use of [() => room.list('chat.message'), () => room.map('board.metric'), () => room.presence]) {
    assert.throws(use, (/** @type {any} */ error) => error.code === 'not_imported' && error.message.includes("import 'tidewire/collections'"));
  }
});
