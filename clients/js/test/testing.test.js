// The service in memory that applications test with.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { promisify } from 'node:util';
import { TestService } from '../src/testing/index.js';
import { Tidewire, TidewireError } from '../src/tidewire.js';

const CONTRACT = {
  calls: {
    'order.quote': { endpoint: 'shop', request: { required: ['item'] }, reply: { required: ['price'] } },
    'order.list': { endpoint: 'shop', who: 'everyone' },
  },
  channels: {
    'room:{room}': {
      subscribe: 'grant',
      presence: { update: { publish: 'subscriber', schema: true } },
      history: { events: 3, ttl: '1h' },
      events: {
        'chat.message': { publish: 'subscriber', delivery: 'durable', schema: { type: 'object', required: ['text'] } },
        'chat.typing': { publish: 'subscriber', delivery: 'ephemeral', echo: false },
        'chat.edited': { publish: 'subscriber', delivery: 'durable', echo: false },
      },
    },
    'doc:{doc}': {
      subscribe: 'authenticated',
      state: { keys: 2, ttl: '1m' },
      events: { 'doc.cursor': { publish: 'authenticated', delivery: 'latest', key: '/user', ttl: '5s', removable: true } },
    },
    'inbox:{user}': { subscribe: 'owner', history: { events: 10, ttl: '1d' }, events: { 'inbox.item': { publish: 'server', delivery: 'durable' } } },
  },
};

/** @param {any} schema @param {any} data */
const validate = ({ required }, data) => required.filter((/** @type {string} */ name) => !(name in data)).map((/** @type {string} */ name) => ({ instancePath: '', message: `no ${name}` }));

/**
 * A service and a client of `ann` that is connected and subscribed to `room:1`.
 * @param {import('node:test').TestContext} t
 * @param {import('../src/testing/index.js').TestServiceOptions} [options]
 */
async function scene(t, options = { contract: CONTRACT, validate }) {
  const service = new TestService(options);
  const client = clientOf(t, service, 'ann');
  const { connection } = await client.connect();
  const room = client.channel('room:1');
  /** @type {any[]} */
  const heard = [];
  room.on('*', (event) => heard.push(event));
  await room.subscribed;
  return { service, client, room, heard, connection };
}

/** @param {import('node:test').TestContext} t @param {TestService} service @param {string} user @param {import('../src/testing/index.js').Claims} [claims] */
function clientOf(t, service, user, claims) {
  const client = new Tidewire(service.url, service.optionsFor(user, claims));
  client.on('error', () => {});
  t.after(() => client.close());
  return client;
}

test('events go through the service, and can be inspected', async (t) => {
  const { service, room, heard, connection } = await scene(t);
  assert.deepEqual(await room.publish('chat.message', { text: 'hi' }, { id: 'mine' }), { type: 'ack', id: 'mine', offset: 1 });
  service.publish('room:1', 'chat.message', { text: 'hello' }, { id: 'b', from: 'ben' });
  await service.settled();
  assert.deepEqual(heard.map(({ from, offset, data }) => [from, offset, data.text]), [['ann', 1, 'hi'], ['ben', 2, 'hello']]);
  assert.deepEqual(service.history('room:1').map(({ id }) => id), ['mine', 'b']);
  assert.deepEqual(service.subscriptions, [{ connection, user: 'ann', channel: 'room:1' }]);
  assert.deepEqual(service.received.map(({ message }) => message.type), ['hello', 'ready', 'subscribe', 'chat.message']);
  assert.deepEqual(service.received.map(({ user }) => user), ['', 'ann', 'ann', 'ann']);
});

test('without a contract, a key makes a value, and an id a durable event', async (t) => {
  const { service, room } = await scene(t, {});
  assert.equal((await room.publish('any.thing', { n: 1 })).offset, 1);
  assert.equal((await room.publish('any.value', { n: 1 }, { key: 'a' })).rev, 1);
  service.publish('room:1', 'any.signal', {}, { delivery: 'ephemeral' });
  assert.deepEqual([service.history('room:1').length, service.values('room:1').length], [1, 1]);
});

test('the contract is checked: names, types, data, keys, and who may publish', async (t) => {
  const { service, client, room } = await scene(t);
  const refused = [
    [client.publish('romm:1', 'chat.message', {}), 'unknown_channel'],
    [client.publish('room:1 ', 'chat.message', {}), 'invalid_channel'],
    [client.publish('inbox:a%7cb', 'inbox.item', {}), 'unknown_channel'],
    [client.publish('room:2', 'chat.message', { text: 'x' }), 'not_subscribed'],
    [room.publish('chat.nothing', {}), 'unknown_event'],
    [room.publish('chat.message', {}), 'invalid_data'],
    [room.remove('chat.message', 'a'), 'forbidden'],
    [client.publish('doc:1', 'doc.cursor', {}), 'invalid_key'],
    [client.publish('inbox:ann', 'inbox.item', {}), 'forbidden'],
    [client.channel('inbox:ben').subscribed, 'forbidden'],
    [client.channel('doc:1').history(), 'no_history'],
  ];
  for (const [promise, code] of refused) await assert.rejects(/** @type {Promise<any>} */ (promise), { code });
  assert.throws(() => service.publish('room:1', 'chat.message', {}), { code: 'invalid_data', details: { path: '$.data', errors: [{ path: '$.data', message: 'no text' }] } });
});

test('a contract with schemas needs a decision about them', () => {
  assert.throws(() => new TestService({ contract: CONTRACT }), /room:\{room\}.*pass `validate`, or `validate: false`/);
  assert.equal(new TestService({ contract: CONTRACT, validate: false }).publish('room:1', 'chat.message', {}).offset, 1);
});

test('faults of a contract are told with their place', () => {
  const wrong = (/** @type {any} */ channel) => () => new TestService({ contract: { channels: { 'a:{b}': channel } } });
  assert.throws(wrong({ subscribe: 'grnt' }), /a:\{b\}: subscribe is one of everyone, .*"grnt"/);
  assert.throws(wrong({ subscribe: 'grant', history: { events: 1, ttl: 'long' } }), /a:\{b\}: history.ttl: "long" is not a duration/);
  assert.throws(wrong({ subscribe: 'grant', events: { 'c.d': { publish: 'server', delivery: 'now' } } }), /a:\{b\}: c.d: delivery/);
});

test('rights come from the token', async (t) => {
  const { service } = await scene(t);
  const ben = clientOf(t, service, 'ben', { grants: ['room:2', { channel: 'room:3', rights: ['subscribe'] }] });
  await ben.connect();
  await assert.rejects(ben.channel('room:1').subscribed, { code: 'forbidden' });
  await ben.channel('room:2').subscribed;
  const third = ben.channel('room:3');
  await third.subscribed;
  await assert.rejects(third.members(), { code: 'forbidden' });
  const granted = ben.channel('room:4', { token: () => service.subscriptionToken('ben', { grants: ['room:4'] }) });
  await granted.subscribed;
});

test('a user without a token is refused, unless anonymous clients are accepted', async (t) => {
  for (const anonymous of [false, true]) {
    const service = new TestService({ anonymous });
    const client = new Tidewire(service.url, { ...service.options, token: undefined, anonymous: true });
    client.on('error', () => {});
    t.after(() => client.close());
    const connected = client.connect();
    if (anonymous) assert.equal((await connected).user, '');
    else await assert.rejects(connected, { code: 'closed' });
  }
});

test('a ticket is a token of the service', async (t) => {
  const service = new TestService();
  const client = new Tidewire(service.url, { ...service.options, token: undefined, ticket: () => service.token('ann') });
  t.after(() => client.close());
  assert.equal((await client.connect()).user, 'ann');
});

test('values end by the clock, and can be removed', async (t) => {
  const { service, client } = await scene(t);
  const doc = client.channel('doc:1');
  /** @type {any[]} */
  const removed = [];
  doc.on('removed', (value) => removed.push(value));
  await doc.subscribed;
  for (const user of ['a', 'b', 'c']) await doc.publish('doc.cursor', { user });
  assert.deepEqual(service.values('doc:1').map(({ key, ttl }) => [key, ttl]), [['b', 5_000], ['c', 5_000]]);
  await assert.rejects(doc.publish('doc.cursor', { user: 'b' }, { ifRev: 1 }), { code: 'conflict', details: { path: '$.if_rev', rev: 2 } });
  await doc.remove('doc.cursor', 'b');
  await service.advance(5_000);
  assert.deepEqual(service.values('doc:1'), []);
  assert.deepEqual(removed.map(({ key, expired }) => [key, expired]), [['b', false], ['a', true], ['c', true]]);
});

test('history keeps what the contract says, and a tail brings the last events', async (t) => {
  const { service, room } = await scene(t);
  for (const text of ['1', '2', '3', '4']) await room.publish('chat.message', { text });
  const { events, more } = await room.history({ limit: 2 });
  assert.deepEqual([events.map(({ offset }) => offset), more], [[3, 4], true]);
  const ben = clientOf(t, service, 'ben');
  /** @type {any[]} */
  const tail = [];
  const other = ben.channel('room:1', { tail: 2 });
  other.on('tail', (last) => tail.push(...last));
  await ben.connect();
  await other.subscribed;
  await service.settled();
  assert.deepEqual(tail.map(({ offset }) => offset), [3, 4]);
  await service.advance(3_600_000);
  assert.deepEqual(service.history('room:1'), []);
});

test('presence joins at once, is updated, and leaves after the debounce', async (t) => {
  const { service, room } = await scene(t);
  await service.settled();
  /** @type {any[]} */
  const seen = [];
  room.on('presence', ({ joined, left, count }) => seen.push([joined?.user, joined?.info, left?.user, count]));
  const ben = clientOf(t, service, 'ben', { info: { name: 'Ben' } });
  const other = ben.channel('room:1');
  await ben.connect();
  await other.subscribed;
  await other.updatePresence({ name: 'Benjamin' });
  ben.close();
  await service.advance(4_999);
  assert.equal(service.members('room:1').length, 2);
  await service.advance(1);
  assert.deepEqual(seen.slice(1), [['ben', { name: 'Ben' }, undefined, 2], ['ben', { name: 'Benjamin' }, undefined, 2], [undefined, undefined, 'ben', 1]]);
});

test('an event without echo is not shown to its sender', async (t) => {
  const { service, room, heard } = await scene(t);
  room.signal('chat.typing', {});
  await room.publish('chat.edited', { n: 1 });
  service.publish('room:1', 'chat.edited', { n: 2 });
  await service.settled();
  assert.deepEqual(heard.map(({ data }) => data.n), [2]);
  assert.equal(room.position?.offset, 2);
});

test('events that are taken back become tombstones', async (t) => {
  const { service, room, heard } = await scene(t);
  await room.publish('chat.message', { text: 'hi' }, { id: 'mine' });
  service.takeBack('room:1', 'mine');
  await service.settled();
  assert.deepEqual(heard.at(-1).data, { id: 'mine', offset: 1 });
  assert.equal(service.history('room:1')[0].type, 'event.removed');
  assert.throws(() => service.takeBack('room:1', 'another'), { code: 'not_found' });
});

test('a cut loses nothing; a new epoch is told', async (t) => {
  const { service, room, heard } = await scene(t);
  /** @type {any[]} */
  const infos = [];
  room.on('subscribed', ({ recovered, missed }) => infos.push([recovered, missed]));
  await service.settled();
  service.cut();
  service.publish('room:1', 'chat.message', { text: 'missed' });
  await service.advance(1_000);
  service.newEpoch('room:1');
  await service.settled();
  service.restart({ newEpoch: true });
  await service.advance(2_000);
  assert.deepEqual(infos, [[undefined, 0], [true, 1], [false, 0], [false, 0]]);
  assert.deepEqual(heard.map(({ data }) => data.text), ['missed']);
  assert.equal(service.connections.length, 1);
});

test('messages are dropped, delayed, repeated and reordered; the client hands them out once and in order', async (t) => {
  const { service, heard } = await scene(t);
  const publish = (/** @type {string} */ text) => service.publish('room:1', 'chat.message', { text });
  service.repeat({ to: 'client', type: 'chat.message', times: 1 });
  publish('1');
  service.drop({ to: 'client', type: 'chat.message', times: 1 });
  publish('2');
  publish('3');
  await service.settled();
  service.reorder({ to: 'client', type: 'chat.message', times: 1 });
  publish('4');
  publish('5');
  await service.settled();
  service.delay(500, { user: 'ann', times: 1 });
  publish('6');
  await service.advance(499);
  assert.equal(heard.length, 5);
  await service.advance(1);
  assert.deepEqual(heard.map(({ data }) => data.text), ['1', '2', '3', '4', '5', '6']);
});

test('a fault ends with its function, and all of them with heal', async (t) => {
  const { service, client, room } = await scene(t);
  const stop = service.drop({ to: 'service', type: 'chat.message' });
  const lost = room.publish('chat.message', { text: 'lost' }, { timeout: 100 });
  void lost.catch(() => {});
  await service.advance(100);
  await assert.rejects(lost, { code: 'timeout' });
  stop();
  service.refuse('broker_unavailable', { channel: 'room:1' });
  const late = room.publish('chat.message', { text: 'late' });
  await service.settled();
  assert.equal(client.pending, 1);
  service.heal();
  await service.advance(1_000);
  assert.equal((await late).offset, 1);
});

test('a refusal on demand names its details', async (t) => {
  const { service, client } = await scene(t);
  service.refuse('forbidden', { type: 'subscribe', channel: 'room:2', times: 1, details: { why: 'test' } });
  await assert.rejects(client.channel('room:2').subscribed, { code: 'forbidden', details: { why: 'test' } });
  await client.channel('room:2').subscribed;
});

test('connections are refused by the service, or by a proxy', async (t) => {
  const { service, client } = await scene(t);
  service.refuseConnections('too_many_connections', { retryAfter: 2, times: 1 });
  service.cut();
  await service.advance(500);
  assert.deepEqual([client.status.reason, client.status.retryIn], ['too_many_connections', 2_500]);
  service.refuseConnections(502);
  await service.advance(2_500);
  assert.equal(client.status.reason, 'http_502');
  service.refuseConnections('forbidden');
  await service.advance(1_000);
  assert.deepEqual([client.state, client.status.reason], ['closed', 'forbidden']);
});

test('a service that is stopped is unreachable until it starts', async (t) => {
  const { service, client } = await scene(t);
  service.stop();
  await service.advance(1_000);
  assert.deepEqual([client.state, client.status.reason, service.connections], ['reconnecting', 'unreachable', []]);
  service.start();
  await service.advance(5_000);
  assert.equal(client.state, 'ready');
});

test('a page goes offline and comes back, sleeps and wakes', async (t) => {
  const { service, client } = await scene(t);
  service.goOffline();
  assert.equal(client.state, 'offline');
  service.goOnline();
  await service.settled();
  assert.equal(client.state, 'ready');
  service.sleep();
  assert.equal(client.status.reason, 'sleep');
  await service.advance(2_000);
  service.wake();
  await service.settled();
  assert.equal(client.state, 'ready');
});

test('tokens expire, with notice and without', async (t) => {
  const { service, client } = await scene(t);
  let tokens = 0;
  const ben = new Tidewire(service.url, { ...service.options, token: () => service.token('ben', { expiresIn: (tokens += 1) === 1 ? 100 : undefined }) });
  t.after(() => ben.close());
  assert.equal((await ben.connect()).expires_in, 100);
  await service.advance(40_000);
  assert.deepEqual([tokens, ben.state], [2, 'ready']);
  await service.advance(80_000);
  service.expireTokens({ user: 'ann', in: 30 });
  await service.advance(50_000);
  assert.equal(client.state, 'ready');
  service.expireTokens();
  assert.equal(service.connections.length, 0);
  await service.advance(2_000);
  assert.deepEqual(service.connections.map(({ user }) => user).sort(), ['ann', 'ben']);
});

test('the backend ends subscriptions', async (t) => {
  const { service, room } = await scene(t);
  /** @type {any[]} */
  const ended = [];
  room.on('unsubscribed', ({ code }) => ended.push(code));
  service.unsubscribe('room:1', { user: 'ben' });
  service.unsubscribe('room:1', { code: 'forbidden' });
  await service.settled();
  assert.deepEqual([ended, room.state, service.subscriptions], [['forbidden'], 'ended', []]);
});

test('a new token without the right to a channel ends its subscription', async (t) => {
  const service = new TestService({ contract: CONTRACT, validate });
  let grants = ['room:1', 'room:2'];
  const client = new Tidewire(service.url, { ...service.options, token: () => service.token('ann', { grants }) });
  client.on('error', () => {});
  t.after(() => client.close());
  await client.connect();
  const [first, second] = ['room:1', 'room:2'].map((name) => client.channel(name));
  await Promise.all([first.subscribed, second.subscribed]);
  grants = ['room:1'];
  service.send({ type: 'expiring', in: 60 });
  await service.settled();
  assert.deepEqual([first.state, second.status.code], ['subscribed', 'forbidden']);
});

test('an AsyncAPI document is a contract, too', async (t) => {
  const event = { publish: 'server', delivery: 'latest', key: '/name', ttl: 2 };
  const service = new TestService({
    contract: {
      asyncapi: '3.0.0',
      channels: {
        board: { address: 'board:{board}', messages: { 'board.metric': { $ref: '#/components/messages/m' } }, 'x-tidewire': { subscribe: 'everyone', presence: false, state: { keys: 1, ttl: 60 } } },
        'call.board.find': { address: null, messages: { request: { $ref: '#/components/messages/q' }, reply: { $ref: '#/components/messages/r' } }, 'x-tidewire': { call: 'board.find', who: 'everyone', endpoint: 'shop' } },
      },
      components: {
        messages: { q: { payload: { $ref: '#/components/schemas/m' }, 'x-tidewire': {} }, r: { payload: {}, 'x-tidewire': {} }, m: { payload: { $ref: '#/components/schemas/m' }, 'x-tidewire': event } },
        schemas: { m: { required: ['name'], properties: { name: { $ref: '#/components/schemas/name' } } }, name: { type: 'string' } },
      },
    },
    validate: (schema, data) => validate(schema, data).length === 0 && 'components' in schema,
  });
  assert.equal(service.publish('board:1', 'board.metric', { name: 'a' }).rev, 1);
  assert.throws(() => service.publish('board:1', 'board.metric', {}), { code: 'invalid_data' });
  const client = clientOf(t, service, 'ann');
  void client.connect();
  service.onCall('board.find', ({ name }) => [name]);
  assert.deepEqual(await client.call('board.find', { name: 'a' }), ['a']);
  await assert.rejects(client.call('board.find', {}), { code: 'invalid_data' });
  await assert.rejects(client.call('board.other', {}), { code: 'unknown_call' });
});

test('a clock of the application is used, and moved by nobody else', async () => {
  const { now, setTimeout, clearTimeout } = new TestService().clock;
  const service = new TestService({ clock: { now, setTimeout, clearTimeout } });
  await assert.rejects(service.advance(1), /only its owner moves/);
});

test('the example of the README runs', async () => {
  const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8');
  const example = [...readme.matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code).find((code) => code.includes("from 'tidewire/testing'"));
  const cwd = new URL('..', import.meta.url);
  await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', String(example)], { cwd });
});

// --- the wire ---------------------------------------------------------------------------------------------------------------

/** @param {string} name @returns {{name: string, message: any}[]} */
const vectors = (name) => JSON.parse(readFileSync(new URL(`../../../tests/vectors/${name}.json`, import.meta.url), 'utf8'));

/** A connection without a client. @param {TestService} service */
async function rawLink(service) {
  /** @type {any[]} */
  const replies = [];
  /** @type {number[]} */
  const closes = [];
  const link = service.options.link(new URL(service.url), { opened: () => {}, received: (/** @type {any} */ frame) => replies.push(JSON.parse(frame)), ended: (code) => closes.push(code) });
  link.send(JSON.stringify({ type: 'hello', token: service.token('ann') }));
  link.send('{"type":"ready"}');
  await service.settled();
  return { replies, closes, send: async (/** @type {any} */ message) => (link.send(typeof message === 'string' ? message : JSON.stringify(message)), service.settled()) };
}

for (const { name, message } of vectors('client')) {
  if (message.type === 'call') continue; // a feature that this client does not use
  test(`client/${name} is a message for the service; with a wrong field it is none`, async () => {
    const { replies, send } = await rawLink(new TestService());
    const isSecondHello = message.type === 'hello';
    await send(message);
    await send({ ...message, type: message.type, misspelt: 1 });
    const [codes, wrong] = [replies.map(({ code }) => code), replies.at(-1)];
    assert.equal(codes.includes('unknown_type') || codes.slice(0, -1).includes('invalid_message'), isSecondHello);
    assert.deepEqual([wrong.code, wrong.details.path], ['invalid_message', '$.misspelt']);
  });
}

test('what is no message is refused as the service does', async () => {
  const service = new TestService();
  const { replies, closes, send } = await rawLink(service);
  for (const wrong of ['{', '[]', '1', { type: 'tomorrow', id: 'a' }, { type: 'subscribe', id: 'a' }, { type: 'subscribe', id: 'a b', channel: 'x' }, Array(101).fill({ type: 'ping' })]) await send(wrong);
  assert.deepEqual(replies.slice(1).map(({ code }) => code), ['malformed', 'malformed', 'invalid_message', 'unknown_type', 'invalid_message', 'invalid_message', 'invalid_message']);
  await send('x'.repeat(70_000));
  assert.deepEqual([closes, service.connections], [[1009], []]);
});

test('a connection that does not begin with hello is closed', async () => {
  const service = new TestService();
  for (const first of [['{"type":"ready"}', 4400], ['{"type":"hello","token":"another"}', 4401], ['', 4408]]) {
    /** @type {number[]} */
    const closes = [];
    const link = service.options.link(new URL(service.url), { opened: () => {}, received: () => {}, ended: (code) => closes.push(code) });
    if (first[0]) link.send(String(first[0]));
    await service.advance(5_000);
    assert.deepEqual(closes, [first[1]]);
  }
});

test('every message of the service has the fields of an example of the protocol', async (t) => {
  const service = new TestService();
  const { replies, send } = await rawLink(service);
  /** @type {Map<string, Set<string>>} */
  const known = new Map();
  for (const { message } of vectors('server')) {
    const type = message.type.includes('.') && !/^(presence|event)\./.test(message.type) ? 'event' : message.type;
    known.set(type, new Set([...(known.get(type) ?? []), ...Object.keys(message)]));
  }
  known.get('ack')?.add('rev'); // in the text of the page
  const seen = new Set();
  for (const { message } of vectors('client')) await send(message);
  await send({ type: 'subscribe', id: 's', channel: 'room:50' });
  await send({ type: 'a.b', id: 'm', channel: 'room:50', data: {} });
  await send({ type: 'presence.update', id: 'p', channel: 'room:50', data: {} });
  service.publish('room:50', 'a.value', {}, { key: 'k', exclude: 'c' });
  service.takeBack('room:50', 'm');
  service.expireTokens({ in: 30 });
  await service.advance(1);
  service.restart();
  await service.settled();
  for (const message of replies) {
    const type = message.type.includes('.') && !/^(presence|event)\./.test(message.type) ? 'event' : message.type;
    seen.add(type);
    for (const field of Object.keys(message)) assert.ok(known.get(type)?.has(field), `${type} has no ${field}`);
  }
  t.diagnostic([...seen].join(' '));
  assert.ok(seen.size >= 12, [...seen].join(' '));
});

test('the test answers calls in the place of the backend, and the contract checks both sides', async (t) => {
  const { service, client, connection } = await scene(t);
  await assert.rejects(client.call('order.quote', { item: 'tea' }), { code: 'hook_unavailable', details: { reason: 'unreachable' } });
  /** @type {any} */
  let seen;
  const forget = service.onCall('order.quote', async ({ item }, context) => {
    seen = context;
    if (item === 'cake') throw new TidewireError('call_failed', 'no cake left', { details: { reason: 'sold_out', data: { left: 0 } } });
    if (item === 'gold') throw new TidewireError('forbidden', 'not for you', { details: { reason: 'banned' } });
    if (item === 'bug') throw new Error('oh');
    return item === 'air' ? {} : { price: 400 };
  });
  assert.deepEqual(await client.call('order.quote', { item: 'tea' }, { id: 'q-1' }), { price: 400 });
  assert.deepEqual([seen.user, seen.connection, seen.id, seen.signal.aborted], ['ann', connection, 'q-1', false]);
  await assert.rejects(client.call('order.quote', { item: 'cake' }), { code: 'call_failed', message: 'no cake left', details: { reason: 'sold_out', data: { left: 0 } } });
  await assert.rejects(client.call('order.quote', { item: 'gold' }), { code: 'forbidden', details: { path: '$.call', reason: 'banned' } });
  await assert.rejects(client.call('order.quote', { item: 'bug' }), { code: 'hook_unavailable', message: /Error: oh/, details: { reason: 'status' } });
  await assert.rejects(client.call('order.quote', { item: 'air' }), { code: 'hook_unavailable', details: { reason: 'bad_reply' } });
  await assert.rejects(client.call('order.quote', {}), { code: 'invalid_data', message: /order\.quote\.request/ });
  await assert.rejects(client.call('order.qoute', {}), { code: 'unknown_call' });
  assert.throws(() => service.onCall('order.qoute', () => 1), { code: 'unknown_call' });
  forget();
  await assert.rejects(client.call('order.quote', { item: 'tea' }), { code: 'hook_unavailable' });
});

test('a call ends with its connection, and anonymous clients call what everyone may', async (t) => {
  const service = new TestService({ contract: CONTRACT, validate: false, anonymous: true });
  const client = new Tidewire(service.url, { ...service.options, token: undefined, anonymous: true });
  t.after(() => client.close());
  void client.connect();
  await assert.rejects(client.call('order.quote', {}), { code: 'forbidden', details: { path: '$.call' } });
  /** @type {AbortSignal[]} */
  const signals = [];
  service.onCall('order.list', (_, { signal }) => {
    signals.push(signal);
    return new Promise(() => {});
  });
  const lost = client.call('order.list', null);
  await service.settled();
  service.cut();
  await assert.rejects(lost, { code: 'uncertain' });
  assert.deepEqual(signals.map(({ aborted }) => aborted), [true]);
});

test('a connection has a bound of calls, each with an id of its own', async () => {
  const service = new TestService();
  /** @type {any[]} */
  const got = [];
  const events = { opened() {}, received: (/** @type {any} */ frame) => got.push(JSON.parse(frame)), ended() {} };
  const { token, link } = service.options;
  const { send } = link(new URL(service.url), events);
  service.onCall('slow', () => new Promise(() => {}));
  send(JSON.stringify({ type: 'hello', token: token() }));
  for (const n of [0, 0, ...Array.from({ length: 16 }, (_, index) => index + 1)]) send(JSON.stringify({ type: 'call', id: `q-${n}`, call: 'slow', data: null }));
  await service.settled();
  assert.deepEqual(got.filter(({ type }) => type === 'error').map(({ code, id }) => [code, id]), [['invalid_message', 'q-0'], ['too_many_calls', 'q-16']]);
});
