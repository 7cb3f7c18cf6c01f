import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { WebSocket } from 'ws';
import { CLOSE_CODES } from '../src/codes.js';
import { Tidewire, TidewireError } from '../src/tidewire.js';
import { Backoff } from '../src/connection/backoff.js';
import { FEATURES } from '../src/connection/address.js';
import { Inbox, TestServer, WELCOME, connected, scene, turn } from './support.js';

test('hello carries the token; ready follows at once; welcome opens', async (t) => {
  const { server, client, until } = await scene(t);
  const welcome = client.connect();
  const peer = await server.peer();
  assert.deepEqual(await peer.expect('hello'), { type: 'hello', token: 'token-1' });
  await peer.expect('ready');
  peer.send(WELCOME);
  assert.equal((await welcome).user, 'ann');
  assert.equal((await until('ready')).reason, 'welcome');
});

test('backoff doubles up to its cap, with full jitter', () => {
  const waits = (/** @type {number} */ random) => {
    const backoff = new Backoff(500, 20_000, () => random);
    return Array.from({ length: 8 }, () => backoff.next());
  };
  assert.deepEqual(waits(1), [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000]);
  assert.deepEqual(waits(0), [0, 0, 0, 0, 0, 0, 0, 0]);
});

test('a connection that breaks young keeps backing off; one that was stable starts anew', async (t) => {
  const { server, clock, client, until } = await scene(t, { random: () => 1 });
  void client.connect();
  /** @type {(number | undefined)[]} */
  const waits = [];
  for (const age of [0, 0, 0, 10_000]) {
    const peer = await server.peer();
    await peer.welcome();
    await until('ready');
    clock.advance(age);
    peer.terminate();
    const { retryIn } = await until('waiting');
    waits.push(retryIn);
    clock.advance(retryIn ?? 0);
  }
  assert.deepEqual(waits, [500, 1_000, 2_000, 500]);
});

test('the delay told by reconnect replaces the backoff', async (t) => {
  const { server, peer, clock, until } = await connected(t);
  peer.send({ type: 'reconnect', after: 2.5, reason: 'shutdown' });
  peer.close(1012);
  const { retryIn, reason, code } = await until('waiting');
  assert.deepEqual({ retryIn, reason, code }, { retryIn: 2_500, reason: 'RESTART', code: 1012 });
  clock.advance(2_499);
  assert.equal(server.peers.length, 0);
  clock.advance(1);
  await (await server.peer()).welcome();
});

for (const code of [4400, 4403, 4409]) {
  test(`close ${code} stops the client`, async (t) => {
    const { peer, client, errors, until } = await connected(t);
    const ack = client.publish('room:1', 'chat.message', {});
    await peer.expect('chat.message');
    peer.close(code);
    assert.equal((await until('closed')).code, code);
    await assert.rejects(ack, { code: 'uncertain' });
    await assert.rejects(client.publish('room:1', 'chat.message', {}), { code: 'not_sent' });
    const error = await errors.next();
    assert.deepEqual({ code: error.code, details: error.details }, { code: CLOSE_CODES[code].name, details: { code } });
  });
}

for (const code of [1000, 1001, 1011, 1013, 4408, 4429, 4450, 4999]) {
  test(`close ${code} reconnects`, async (t) => {
    const { peer, until } = await connected(t);
    peer.close(code);
    assert.equal((await until('waiting')).retryIn, 250);
  });
}

test('close 4401 gets a new token first, at once; a second refusal in a row is not hurried', async (t) => {
  let count = 0;
  const { server, client, until } = await scene(t, { token: async () => `token-${(count += 1)}` });
  void client.connect();
  let peer = await server.peer();
  assert.equal((await peer.expect('hello')).token, 'token-1');
  peer.close(4401);
  peer = await server.peer();
  assert.equal((await peer.expect('hello')).token, 'token-2');
  peer.close(4401);
  assert.equal((await until('waiting')).reason, 'UNAUTHORIZED');
});

test('close 4401 with a fixed token stops', async (t) => {
  const { peer, until } = await connected(t);
  peer.close(4401);
  assert.equal((await until('closed')).reason, 'UNAUTHORIZED');
});

test('a token function that fails is asked again after a backoff, unless it says that there is no use', async (t) => {
  /** @type {any[]} */
  const outcomes = [new Error('down'), 'token-9', new TidewireError('forbidden', 'gone', { retryable: false })];
  const token = async () => {
    const outcome = outcomes.shift();
    if (outcome instanceof Error) throw outcome;
    return outcome;
  };
  const { server, clock, client, errors, until } = await scene(t, { token });
  void client.connect();
  const { reason, retryIn } = await until('waiting');
  assert.equal(reason, 'token_failed');
  assert.equal((await errors.next()).code, 'token_failed');
  clock.advance(retryIn ?? 0);
  const peer = await server.peer();
  await peer.welcome();
  await until('ready');
  clock.advance(10_000);
  peer.close(4401);
  assert.equal((await until('closed')).reason, 'token_failed');
});

test('an expired token is replaced before the next connection', async (t) => {
  let count = 0;
  const { server, clock, client, until } = await scene(t, { token: () => `token-${(count += 1)}` });
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ ...WELCOME, expires_in: 60 });
  await until('ready');
  clock.advance(20_000);
  peer.terminate();
  clock.advance((await until('waiting')).retryIn ?? 0);
  const again = await server.peer();
  assert.equal((await again.expect('hello')).token, 'token-1');
  again.send({ ...WELCOME, expires_in: 20 });
  await until('ready');
  clock.advance(21_000);
  again.terminate();
  clock.advance((await until('waiting')).retryIn ?? 0);
  assert.equal((await (await server.peer()).expect('hello')).token, 'token-2');
});

test('a refresh that fails after its connection was lost does not prevent the next one', async (t) => {
  let asked = 0;
  const { server, peer, client, clock, until, retry } = await connected(t, {
    token: () => ((asked += 1) === 2 ? new Promise(() => {}) : `token-${asked}`),
  });
  peer.send({ type: 'expiring', in: 30 });
  while (asked < 2) await turn();
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome();
  await until('ready');
  clock.advance(10_000); // the deadline of the token function
  await turn();
  again.send({ type: 'expiring', in: 30 });
  assert.equal((await again.expect('refresh')).token, 'token-3');
  assert.equal(client.state, 'ready');
});

test('expiring is answered with refresh, in place', async (t) => {
  let count = 0;
  const { peer } = await connected(t, { token: () => `token-${(count += 1)}` });
  peer.send({ type: 'expiring', in: 60 });
  assert.equal((await peer.expect('refresh')).token, 'token-2');
});

test('silence for a heartbeat is questioned with ping; any answer counts', async (t) => {
  const { peer, clock, client } = await connected(t);
  clock.advance(24_999);
  assert.equal(peer.messages.length, 0);
  clock.advance(1);
  const { id } = await peer.expect('ping');
  const heard = new Promise((resolve) => client.on('error', resolve));
  peer.send([{ type: 'pong', id }, { type: 'error', code: 'malformed', message: 'x', retryable: false }]);
  await heard;
  clock.advance(10_000);
  assert.equal(client.state, 'ready');
});

test('no answer to ping within 10 s is a broken connection', async (t) => {
  const { peer, clock, until } = await connected(t);
  clock.advance(25_000);
  await peer.expect('ping');
  clock.advance(9_999);
  assert.equal(peer.messages.length, 0);
  clock.advance(1);
  assert.equal((await until('waiting')).reason, 'no_pong');
});

test('no welcome in time is a broken connection', async (t) => {
  const { server, clock, client, until } = await scene(t);
  void client.connect();
  await (await server.peer()).expect('hello');
  clock.advance(15_000);
  assert.equal((await until('waiting')).reason, 'no_welcome');
});

const refusals = /** @type {const} */ ([
  [426, 'upgrade_required', 'waiting', 250],
  [500, 'internal', 'waiting', 250],
  [503, 'draining', 'waiting', 7_500],
  [429, 'rate_limited', 'waiting', 7_500],
  [403, 'origin_refused', 'closed', undefined],
  [400, 'unsupported_version', 'closed', undefined],
  [404, 'unknown_channel', 'closed', undefined],
]);
for (const [status, code, state, retryIn] of refusals) {
  test(`a refused handshake asks the plain GET: ${status} means ${state}`, async (t) => {
    const { server, client, until } = await scene(t);
    server.refusal = { status, code, headers: { 'retry-after': '7' } };
    void client.connect().catch(() => {});
    const change = await until(state);
    assert.deepEqual({ reason: change.reason, retryIn: change.retryIn }, { reason: code, retryIn });
  });
}

test('a refused handshake with 401 gets a new token', async (t) => {
  let count = 0;
  const { server, client, until } = await scene(t, { token: () => `token-${(count += 1)}` });
  server.refusal = { status: 401, code: 'token_expired' };
  void client.connect();
  await until('connecting');
  assert.equal((await until('reconnecting')).reason, 'token_expired');
  server.refusal = null;
  assert.equal((await (await server.peer()).expect('hello')).token, 'token-2');
});

test('a service that is not there is tried again', async (t) => {
  const { client, until } = await scene(t, { fetch: async () => Promise.reject(new TypeError('no route')) });
  const { server: other } = await scene(t);
  await other.stop();
  void client.connect();
  await until('connecting');
  const lost = new Tidewire(/** @type {string} */ (other.url), { token: 'x', WebSocket, network: null, random: () => 1 });
  const waiting = new Promise((resolve) => lost.on('state', (change) => change.retryIn !== undefined && resolve(change)));
  void lost.connect();
  const { reason } = /** @type {any} */ (await waiting);
  lost.close();
  other.stop = async () => {};
  assert.equal(reason, 'unreachable');
});

test('tickets and anonymous connections; the channels of the options and of the address are subscribed to', async (t) => {
  const ticketed = await scene(t, { token: undefined, ticket: async () => 'tick et', channels: ['room:1'] });
  void ticketed.client.connect().catch(() => {});
  assert.equal((await ticketed.until('waiting')).reason, 'token_failed'); // a ticket has no space
  const good = await scene(t, { token: undefined, ticket: async () => 't', channels: ['room:1'] });
  void good.client.connect();
  let peer = await good.server.peer();
  const { ticket, channels } = Object.fromEntries(new URL(peer.url, 'ws://x').searchParams);
  assert.deepEqual({ ticket, channels }, { ticket: 't', channels: undefined });
  await peer.expect('ready');
  peer.send(WELCOME);
  /** @type {Inbox<any>} */
  const events = new Inbox();
  good.client.on('event', events.put);
  await peer.subscribe();
  peer.send({ type: 'chat.typing', channel: 'room:1', id: 'x', at: 1, from: 'ben', data: {} });
  assert.equal((await events.next()).id, 'x');

  const anonymous = await scene(t, { token: undefined, anonymous: true });
  void anonymous.client.connect();
  peer = await anonymous.server.peer();
  assert.deepEqual(await peer.expect('hello'), { type: 'hello' });
});

test('close ends the connection with 1000 and abandons what is open', async (t) => {
  const { client, peer } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {});
  await peer.expect('chat.message');
  client.close();
  await assert.rejects(ack, { code: 'uncertain' });
  assert.equal((await peer.closed)[0], 1000);
  assert.deepEqual({ ...client.status }, { state: 'closed', reason: 'client', code: 1000, help: undefined, attempt: 0, transport: 'websocket' });
});

test('addresses may be http or https, and nothing else', () => {
  assert.throws(() => new Tidewire('ftp://example.com/ws', { WebSocket }), TypeError);
  assert.ok(new Tidewire('https://example.com/ws', { WebSocket }));
});

test('frames that are no messages are survived', async (t) => {
  const { peer, client } = await connected(t);
  const ack = client.publish('room:1', 'chat.message', {}, { id: 'x' });
  await peer.expect('chat.message');
  for (const frame of [null, 1, [null, {}, { type: 7 }, []], { type: 'from.tomorrow', channel: 'room:1' }, { type: 'tomorrow' }]) peer.send(frame);
  peer.raw('not json');
  peer.raw(Buffer.from([1, 2, 3]));
  peer.send({ type: 'ack', id: 'x', offset: 1 });
  assert.equal((await ack).offset, 1);
});

test('a WebSocket that may not be opened at all stops the client', async (t) => {
  class Refusing {
    constructor() {
      throw new Error('the policy of this page');
    }
  }
  const { client, until } = await scene(t, { WebSocket: Refusing });
  const welcome = client.connect();
  assert.equal((await until('closed')).reason, 'websocket_refused');
  await assert.rejects(welcome, { code: 'closed' });
});

test('a server that speaks another protocol stops the client', async (t) => {
  class Other {
    protocol = 'tidewire.v9';
    /** @type {() => void} */
    onopen = () => {};
    constructor() {
      setImmediate(() => this.onopen());
    }
    close() {}
  }
  const { client, until } = await scene(t, { WebSocket: Other });
  void client.connect();
  assert.deepEqual((await until('closed')).code, 1002);
});

test('a listener that throws stops neither the client nor the other listeners', async (t) => {
  const reported = t.mock.method(console, 'error', () => {});
  const { server, client } = await scene(t);
  client.on('welcome', () => {
    throw new Error('bug');
  });
  const heard = new Promise((resolve) => client.on('welcome', resolve));
  const never = client.on('welcome', () => assert.fail('it was taken away'));
  never();
  void client.connect();
  await (await server.peer()).welcome();
  await heard;
  assert.equal(reported.mock.callCount(), 1);
});

test('a closed client can connect again', async (t) => {
  const { server, client, until } = await connected(t);
  client.close();
  await until('closed');
  void client.connect();
  await (await server.peer()).welcome();
  await until('ready');
});

test('the address announces the client, its features and its contract, without needless escapes', async (t) => {
  const { server, client } = await scene(t, { token: undefined, contract: '0123456789abcdef' });
  void client.connect();
  const { url } = await server.peer();
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  assert.equal(
    url,
    `/ws?client=tidewire-js/${version}&features=${FEATURES.join(',')}&contract=0123456789abcdef`,
  );
});

test('an application that names itself in the address keeps its name', async (t) => {
  const server = await new TestServer().start();
  const client = new Tidewire(`${server.url}?client=shop/2.1%2B7`, { anonymous: true, WebSocket, network: null });
  t.after(() => server.stop());
  t.after(() => client.close());
  void client.connect().catch(() => {});
  const { url } = await server.peer();
  assert.equal(new URL(url, 'ws://x').searchParams.get('client'), 'shop/2.1+7');
});

test('the option `debug` logs states and the wire, without tokens', async (t) => {
  /** @type {string[]} */
  const lines = [];
  const { peer, client } = await connected(t, { token: 'token-secret', debug: (line) => lines.push(line) });
  const ack = client.publish('room:1', 'chat.message', { text: 'hi' });
  await peer.ack();
  await ack;
  client.close();
  assert.ok(lines.every((line) => line.startsWith('[tidewire] ') && !line.includes('token-secret')));
  for (const part of ['connecting (connect)', '→ {"type":"hello","token":"…', '← {"type":"welcome"', 'ready (welcome)', '→ {"type":"chat.message"', '← {"type":"ack"', 'closed (client)']) {
    assert.ok(lines.some((line) => line.includes(part)), part);
  }
});
