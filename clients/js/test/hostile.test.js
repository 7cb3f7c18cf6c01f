// A service, or something in its place, that sends anything.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import test from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { WebSocket } from 'ws';
import { Tidewire } from '../src/tidewire.js';
import { Inbox, TestClock, WELCOME, connected, message, room, scene, subscribed, turn, value } from './support.js';

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
  for (const welcome of [{}, { connection: 1 }, { connection: 'c', user: 'ann' }, { connection: 'c', user: 'ann', limits: null }, { ...WELCOME, features: { includes: 1 } }]) peer.send({ type: 'welcome', ...welcome });
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

test('a frame that is far too long ends the connection', async (t) => {
  const { server, peer, client, clock, until } = await connected(t);
  const failed = until('waiting');
  peer.raw('x'.repeat(2 ** 24 + 1));
  assert.equal((await failed).reason, 'frame_too_long');
  clock.advance(20_000);
  await (await server.peer()).welcome();
  await until('ready');
  client.close();
});

test('a refusal without an end is read no further than a problem document is long', async (t) => {
  const { server, client, until } = await scene(t);
  server.refusal = { status: 403, isEndless: true };
  void client.connect();
  assert.equal((await until('waiting')).reason, 'http_403');
  assert.ok(server.sent < 2 ** 24, `${server.sent} bytes`);
});

// --- each field of each message -----------------------------------------------------------------------------------------

/** What JSON can hold in the place of anything. `toString` makes an object that no text can be made of. */
const WRONG = [null, true, -1, 0.5, 1e308, 2 ** 53, '', 'x'.repeat(10_000), [], [[]], {}, { toString: 1 }, { includes: 1, length: 1e9 }, JSON.parse('{"__proto__": {"polluted": true}}'), nested(200)];

/** @param {number} depth */
function nested(depth) {
  return JSON.parse('['.repeat(depth) + ']'.repeat(depth));
}

/**
 * Every copy of a value in which one place has something else, or is missing.
 * @param {any} value
 * @returns {Generator<any>}
 */
function* mutations(value) {
  if (value === null || typeof value !== 'object') return;
  for (const field of Object.keys(value)) {
    const copy = () => (Array.isArray(value) ? [...value] : { ...value });
    for (const wrong of WRONG) yield Object.assign(copy(), { [field]: wrong });
    const without = copy();
    delete without[field];
    yield without;
    for (const inner of mutations(value[field])) yield Object.assign(copy(), { [field]: inner });
  }
}

/** @type {{name: string, message: any}[]} */
const VECTORS = JSON.parse(readFileSync(new URL('../../../tests/vectors/server.json', import.meta.url), 'utf8'));

/** Fails the test at a rejection that nobody handles, and at an exception in a callback. @param {import('node:test').TestContext} t */
function watchProcess(t) {
  /** @type {unknown[]} */
  const faults = [];
  const put = (/** @type {unknown} */ fault) => faults.push(fault);
  for (const name of ['unhandledRejection', 'uncaughtException']) {
    process.on(name, put);
    t.after(() => process.off(name, put));
  }
  return faults;
}

for (const { name, message } of VECTORS) {
  test(`server/${name} with anything in each field is survived`, async (t) => {
    const faults = watchProcess(t);
    const { peer, client, channel, clock } = await room(t, { token: () => 'token-1' });
    channel.on('error', () => {});
    for (const event of /** @type {const} */ (['values', 'removed', 'presence', 'tail', 'subscribed', 'unsubscribed'])) channel.on(event, () => {});
    /** @type {[string | undefined, number][]} */
    const offsets = [];
    channel.on('*', ({ offset }) => void (offset && offsets.push([channel.position?.epoch, offset])));
    const reading = [channel.history(), channel.members()].map((read) => read.catch(() => {}));
    // `mine` waits for its ack meanwhile; the ids of the examples answer nothing.
    const mine = client.publish('room:2', 'chat.message', {}, { id: 'mine' });
    let count = 0;
    for (const mutation of mutations(message)) {
      if (mutation.type === 'reconnect' || mutation.type === 'ack') mutation.id = 'nobody';
      peer.send({ ...mutation, ...(mutation.channel === message.channel && message.channel && { channel: 'room:1' }) });
      if ((count += 1) % 100 === 0) await turn();
    }
    clock.advance(100);
    peer.send({ type: 'ack', id: 'mine', offset: 1 });
    assert.equal((await mine).offset, 1);
    assert.equal(client.state, 'ready');
    assert.ok(offsets.every(([epoch, offset], at) => at === 0 || offsets[at - 1][0] !== epoch || offsets[at - 1][1] < offset), JSON.stringify(offsets.slice(0, 50)));
    client.close();
    await Promise.all(reading);
    await turn();
    assert.deepEqual(faults, []);
    assert.equal(/** @type {any} */ ({}).polluted, undefined);
    t.diagnostic(`${count} mutations`);
  });
}

test('a message of another type does not answer a publish', async (t) => {
  const { peer, client } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {}, { id: 'mine' });
  await peer.expect('chat.message');
  for (const type of ['pong', 'history', 'tomorrow', 'presence', 'unsubscribed', 'subscribed']) peer.send({ type, id: 'mine', channel: 'room:1', code: 'requested', presence: null });
  peer.send({ type: 'ack', id: 'mine', offset: 5 });
  assert.equal((await ack).offset, 5);
});

test('a flood of `expiring` asks for one token at a time', async (t) => {
  const calls = { client: 0, channel: 0 };
  const { peer, client } = await connected(t, { token: () => `token-${(calls.client += 1)}` });
  const granted = client.channel('room:1', { token: () => `granted-${(calls.channel += 1)}` });
  await peer.subscribe();
  await granted.subscribed;
  for (let n = 0; n < 500; n += 1) peer.send([{ type: 'expiring', in: 60 }, { type: 'expiring', in: 60, channel: 'room:1' }]);
  const tokens = [await peer.expect('refresh'), await peer.expect('refresh')].map(({ token }) => token);
  await turn();
  assert.deepEqual([tokens.sort(), calls, peer.messages.length], [['granted-2', 'token-2'], { client: 2, channel: 2 }, 0]);
});

// --- floods -----------------------------------------------------------------------------------------------------------------

const FILL = 'x'.repeat(2_000);
/** What a service can send without end. @type {Record<string, (n: number) => any>} */
const FLOODS = {
  'durable events': (n) => message(n + 8, { data: { n, fill: FILL } }),
  'events of one offset': () => message(8, { data: { fill: FILL } }),
  'values of other keys': (n) => value(`k-${n}`, n + 1, { data: { fill: FILL } }),
  signals: (n) => ({ type: 'chat.typing', channel: 'room:1', id: `s-${n}`, at: 1, from: 'ben', data: { fill: FILL } }),
  snapshots: (n) => ({ type: 'subscribed', id: null, channel: 'room:1', epoch: `e-${n}`, offset: n, events: [], state: [value('a', n, { data: { fill: FILL } })], recovered: false }),
  presence: (n) => ({ type: 'presence', id: null, channel: 'room:1', presence: { count: 1, members: [{ user: `u-${n}`, info: FILL }] } }),
  joins: (n) => ({ type: 'presence.joined', channel: 'room:1', id: `j-${n}`, at: 1, from: 'ben', data: { user: `u-${n % 50}`, info: FILL }, key: 'ben' }),
  errors: (n) => ({ type: 'error', code: `code-${n}`, message: FILL, retryable: false }),
  'events of other channels': (n) => message(n, { channel: `room:${n + 2}`, data: { fill: FILL } }),
  'unknown messages': (n) => ({ type: 'tomorrow', id: `t-${n}`, data: FILL }),
};
const FLOOD = 20_000;

for (const [name, make] of Object.entries(FLOODS)) {
  test(`a flood of ${name} takes no memory while a listener is busy`, async (t) => {
    const faults = watchProcess(t);
    const { service, client, room, release } = await busyRoom(t);
    collect();
    const before = process.memoryUsage().heapUsed;
    for (let n = 0; n < FLOOD; n += 1) {
      service.received(JSON.stringify(make(n)));
      if (n % 500 === 0) await turn();
    }
    await turn();
    collect();
    const grown = (process.memoryUsage().heapUsed - before) / 2 ** 20;
    t.diagnostic(`${grown.toFixed(1)} MiB after ${((FLOOD * FILL.length) / 2 ** 20).toFixed(0)} MiB`);
    assert.ok(grown < 8, `${grown.toFixed(1)} MiB`);
    assert.equal(room.state === 'ended', false);
    release();
    client.close();
    assert.deepEqual(faults, []);
  });
}

setFlagsFromString('--expose-gc');
const collect = /** @type {() => void} */ (runInNewContext('gc'));

/** A subscribed `room:1` whose listener does not finish, over a link that the test holds. @param {import('node:test').TestContext} t */
async function busyRoom(t) {
  /** @type {import('../src/connection/link.js').LinkEvents | undefined} */
  let service;
  let release = () => {};
  const client = new Tidewire('ws://hostile.test/ws', {
    token: 'token-1',
    network: null,
    clock: new TestClock(),
    link: (_, events) => {
      service = events;
      queueMicrotask(() => events.opened());
      return { send: (frame) => void answer(frame), buffered: () => 0, close: () => {} };
    },
  });
  const answer = (/** @type {string} */ frame) => {
    const content = JSON.parse(frame);
    for (const request of Array.isArray(content) ? content : [content]) {
      if (request.type === 'hello') queueMicrotask(() => service?.received(JSON.stringify(WELCOME)));
      if (request.type === 'subscribe') queueMicrotask(() => service?.received(JSON.stringify(subscribed(request, { offset: 7, last: 'm-7' }))));
    }
  };
  client.on('error', () => {});
  t.after(() => client.close());
  const room = client.channel('room:1');
  const busy = () => new Promise((resolve) => (release = () => resolve(undefined)));
  for (const name of /** @type {const} */ (['*', 'values', 'presence'])) room.on(name, busy);
  await client.connect();
  await room.subscribed;
  return { service: /** @type {import('../src/connection/link.js').LinkEvents} */ (service), client, room, release: () => release() };
}

// --- before the connection ----------------------------------------------------------------------------------------------

test('a page of HTML for any status is a reason to come back', async (t) => {
  const faults = watchProcess(t);
  const { server, client, clock, until, errors } = await scene(t);
  server.refusal = { status: 400, body: '<h1>no</h1>' };
  void client.connect();
  for (let status = 400; status < 600; status += 1) {
    server.refusal = { status, body: `<html><h1>${status}</h1></html>` };
    const { reason, retryIn = 0 } = await until('waiting');
    assert.match(reason, status === 407 ? /^unreachable$/ : new RegExp(`^http_${status}$`)); // fetch gives nobody a 407
    assert.ok(retryIn <= 20_000);
    if (status === 599) server.refusal = null;
    clock.advance(retryIn);
  }
  assert.ok(errors.length > 150, 'each status is reported once');
  await (await server.peer()).welcome();
  await until('ready');
  assert.deepEqual(faults, []);
});

for (const retryAfter of ['2073600', '1e400', '-5', 'Fri, 31 Dec 9999 23:59:59 GMT', 'NaN', '0']) {
  test(`Retry-After: ${retryAfter} is a wait of at most five minutes`, async (t) => {
    const { server, client, until } = await scene(t);
    server.refusal = { status: 503, code: 'overloaded', headers: { 'retry-after': retryAfter } };
    void client.connect();
    const { retryIn = Infinity } = await until('waiting');
    assert.ok(retryIn >= 0 && retryIn <= 301_000, `${retryIn}`);
  });
}

for (const [name, content] of /** @type {[string, string][]} */ ([['no JSON', '{'], ['a list', '[]'], ['null', 'null'], ['a code that is no text', '{"code": {"toString": 1}}'], ['an inherited name', '{"code": "constructor"}'], ['a deep one', '['.repeat(50_000)]])) {
  test(`a problem document that is none does not stop the client: ${name}`, async (t) => {
    const { server, client, until } = await scene(t);
    server.refusal = { status: 403, body: content, headers: { 'content-type': 'application/problem+json' } };
    void client.connect();
    assert.notEqual((await until('waiting')).state, 'closed');
  });
}

for (const [name, answer] of /** @type {[string, string | undefined][]} */ ([['nothing', undefined], ['half a response', 'HTTP/1.1 101 Switching Pro'], ['garbage', '\u0000\u0001\u0002\r\n\r\n'], ['no subprotocol', 'HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n']])) {
  test(`${name} in place of a handshake is given up, and tried again`, async (t) => {
    const faults = watchProcess(t);
    /** @type {Set<import('node:net').Socket>} */
    const sockets = new Set();
    const server = createServer((socket) => {
      sockets.add(socket.on('error', () => {}));
      socket.once('data', () => answer && socket.write(answer));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const clock = new TestClock();
    const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
    const client = new Tidewire(`ws://127.0.0.1:${port}/ws`, { token: 'token-1', WebSocket, clock, network: null });
    /** @type {Inbox<any>} */
    const states = new Inbox();
    client.on('state', states.put);
    client.on('error', () => {});
    t.after(() => {
      client.close();
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    void client.connect().catch(() => {});
    for (let tries = 0; tries < 2; tries += 1) {
      let status = await states.next();
      for (; status.retryIn === undefined; status = await states.next()) {
        // The timers of the try and of the plain GET.
        for (let turns = 0; turns < 20 && states.length === 0; turns += 1) {
          await turn();
          clock.advance(1_000);
        }
      }
      clock.advance(status.retryIn);
    }
    assert.deepEqual(faults, []);
  });
}

test('messages in any order before `welcome` change nothing', async (t) => {
  const { server, client, until } = await scene(t);
  const channel = client.channel('room:1');
  void client.connect();
  const peer = await server.peer();
  await peer.expect('hello');
  for (const { message: early } of VECTORS) if (!['welcome', 'reconnect'].includes(early.type)) peer.send({ ...early, ...(early.channel && { channel: 'room:1' }) });
  peer.send(WELCOME);
  await until('ready');
  await peer.expect('ready');
  await peer.subscribe({ offset: 3, last: 'm-3' });
  assert.deepEqual(await channel.subscribed, { recovered: undefined, missed: 0, resumed: false, epoch: 'e1', offset: 3 });
});
