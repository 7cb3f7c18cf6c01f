// One connection for all tabs of a user: against the service in memory, with tabs that close, die and hang.

import assert from 'node:assert/strict';
import test from 'node:test';
import { deferred } from '../src/base/deferred.js';
import { settled } from '../src/testing/clock.js';
import { TestService } from '../src/testing/index.js';
import { Tidewire } from '../src/tidewire.js';
import { Browser } from './browser.js';

const CONTRACT = {
  calls: { 'order.quote': { endpoint: 'shop' } },
  channels: {
    'room:{room}': {
      subscribe: 'grant',
      presence: { read: 'grant' },
      history: { events: 500, ttl: '1h', read: 'grant' },
      events: {
        'chat.message': { publish: 'subscriber', delivery: 'durable' },
        'chat.quiet': { publish: 'subscriber', delivery: 'durable', echo: false },
        'chat.typing': { publish: 'subscriber', delivery: 'ephemeral', echo: false },
        'chat.wave': { publish: 'subscriber', delivery: 'ephemeral' },
        'doc.value': { publish: 'subscriber', delivery: 'latest', key: '/key' },
        'doc.cursor': { publish: 'subscriber', delivery: 'latest', key: '/key', ttl: '30s' },
      },
    },
  },
};

/** One tab and its client. */
class User {
  /** @type {any[]} */
  events = [];
  /** @type {import('../src/tidewire.js').Status[]} */
  states = [];
  /** @type {string[]} */
  errors = [];
  /** @type {any[]} */
  subscribed = [];

  /** @param {import('./browser.js').Tab} tab @param {Tidewire} client */
  constructor(tab, client) {
    this.tab = tab;
    this.client = client;
    client.on('state', (status) => this.states.push(status));
    client.on('error', ({ code }) => this.errors.push(code));
    void client.connect();
  }

  /** @param {string} [name] @param {any} [options] */
  join(name = 'room:1', options) {
    const room = this.client.channel(name, options);
    room.on('*', (event) => this.events.push(event));
    room.on('subscribed', (info) => this.subscribed.push(info));
    return room;
  }

  /** What the listeners have got. */
  get texts() {
    return this.events.map(({ data }) => data.n);
  }
}

/** @param {import('node:test').TestContext} t @param {any} [options] */
function scene(t, options = {}) {
  const service = new TestService({ contract: CONTRACT, ...options });
  const browser = new Browser(service.clock);
  /** @type {User[]} */
  const users = [];
  /** @param {string} [name] @param {any} [claims] @param {any} [more] */
  const open = (name = 'ann', claims = {}, more = {}) => {
    const tab = browser.open();
    const user = new User(tab, new Tidewire(service.url, tab.options({ ...service.optionsFor(name, claims), ...more })));
    users.push(user);
    return user;
  };
  /** Opens tabs one after the other, each in `room:1`. @param {number} count */
  const openRoom = async (count) => {
    for (let n = 0; n < count; n += 1) {
      const user = open();
      user.join();
      await ready(user);
    }
    await service.advance(100);
    return [...users];
  };
  t.after(() => users.forEach(({ client, tab }) => tab.isDead || client.close()));
  /** @param {number} n @param {any} [more] */
  const publish = (n, more) => service.publish('room:1', 'chat.message', { n }, more);
  return { service, browser, users, open, openRoom, publish };
}

/** Waits for what takes no time, such as loading the module. @param {User} user */
async function ready({ client }) {
  for (let turns = 0; client.state !== 'ready'; turns += 1) {
    if (turns > 2_000) throw new Error(client.explain());
    await settled();
  }
}

const range = (/** @type {number} */ count) => Array.from({ length: count }, (_, n) => n);

test('six tabs have one connection, and each gets every event once and the answers to its own requests', async (t) => {
  const { service, openRoom, publish } = scene(t);
  const tabs = await openRoom(6);
  assert.equal(service.connections.length, 1);
  assert.equal(service.subscriptions.length, 1);
  publish(0);
  const acks = await Promise.all([service.advance(10), ...tabs.map(({ client }, n) => client.publish('room:1', 'chat.message', { n: n + 1 }))]);
  assert.deepEqual(acks.slice(1).map((/** @type {any} */ ack) => ack.offset).sort(), [2, 3, 4, 5, 6, 7]);
  await service.advance(10);
  for (const { events, client } of tabs) {
    assert.deepEqual(events.map(({ offset }) => offset), [1, 2, 3, 4, 5, 6, 7]);
    assert.equal(client.state, 'ready');
    const [page] = await Promise.all([client.channel('room:1').history({ limit: 2 }), service.advance(10)]);
    assert.deepEqual(page.events.map(({ offset }) => offset), [6, 7]);
  }
  assert.deepEqual(tabs.map(({ client }) => client.status.transport).sort(), ['shared', 'shared', 'shared', 'shared', 'shared', 'websocket']);
  assert.match(tabs[0].client.explain(), /shared connection: this tab has the connection; 5 other tabs use it/);
  assert.match(tabs[1].client.explain(), /shared connection: another tab has the connection/);
});

for (const end of /** @type {const} */ (['closes', 'dies', 'hangs', 'freezes', 'leaves the page'])) {
  test(`the tab that leads ${end}: another takes over within 2 s, and nothing is lost or repeated`, async (t) => {
    const { service, browser, openRoom, publish } = scene(t);
    const tabs = await openRoom(6);
    const leader = /** @type {User} */ (tabs.find(({ tab }) => tab === browser.leader));
    const others = tabs.filter((user) => user !== leader);
    publish(0);
    await service.advance(1_000);
    // On their way when the leader ends: some are taken by the service, and their answers are lost.
    const stop = service.drop({ to: 'client', type: 'ack' });
    const acks = others.map(({ client }, n) => client.publish('room:1', 'chat.message', { n: 10 + n }));
    if (end === 'hangs') await service.advance(10);
    if (end === 'closes') leader.client.close();
    else if (end === 'dies') leader.tab.kill();
    else if (end === 'hangs') leader.tab.freeze();
    else if (end === 'freezes') leader.tab.network.fire('freeze');
    else leader.tab.network.fire('pagehide', { persisted: true });
    stop();
    publish(1);
    await service.advance(2_000);
    publish(2);
    await service.advance(10);
    await Promise.all(acks);
    const wanted = service.history('room:1').map(({ data }) => data.n);
    assert.equal(new Set(wanted).size, 8);
    for (const { texts, subscribed, client } of others) {
      assert.deepEqual(texts, wanted);
      assert.ok(subscribed.every(({ recovered }) => recovered !== false));
      assert.equal(client.state, 'ready');
    }
    if (end !== 'hangs') assert.equal(service.connections.length, 1);
    else {
      await leader.tab.thaw();
      await service.advance(1_000);
      assert.deepEqual(leader.texts, wanted);
      assert.equal(service.connections.length, 1);
    }
  });
}

test('each tab gets the replies to its own calls, and a call of a tab is lost with the one that leads', async (t) => {
  const { service, browser, openRoom } = scene(t);
  const tabs = await openRoom(3);
  service.onCall('order.quote', ({ n }, { id }) => ({ n, id }));
  const answers = await Promise.all([...tabs.map(({ client }, n) => client.call('order.quote', { n }, { id: `q-${n}` })), service.advance(100)]);
  assert.deepEqual(answers.slice(0, 3), [{ n: 0, id: 'q-0' }, { n: 1, id: 'q-1' }, { n: 2, id: 'q-2' }]);

  const finish = deferred();
  service.onCall('order.quote', () => finish.promise);
  const leader = /** @type {User} */ (tabs.find(({ tab }) => tab === browser.leader));
  const [one, two] = tabs.filter((user) => user !== leader);
  const once = assert.rejects(one.client.call('order.quote', { n: 1 }), { code: 'uncertain', retryable: true });
  const again = two.client.call('order.quote', { n: 2 }, { id: 'again', retry: true });
  await service.advance(100);
  leader.client.close();
  await service.advance(3_000);
  await once;
  finish.resolve('done');
  await service.advance(100);
  assert.equal(await again, 'done');
  assert.deepEqual(service.received.filter(({ message }) => message.id === 'again').length, 2);
  assert.equal(service.connections.length, 1);
});

test('the connection breaks: all tabs resume over one new connection', async (t) => {
  const { service, openRoom, publish } = scene(t);
  const tabs = await openRoom(4);
  for (let n = 0; n < 10; n += 1) {
    service.cut();
    publish(n);
    await service.advance(12_000);
    assert.equal(service.connections.length, 1);
  }
  for (const { texts } of tabs) assert.deepEqual(texts, range(10));
});

test('a later tab gets what a connection of its own would give: values, presence, the last events, and what it has missed', async (t) => {
  const { service, open, openRoom, publish } = scene(t);
  for (const n of range(5)) publish(n);
  const since = /** @type {any} */ (service.position('room:1'));
  await openRoom(1);
  for (const n of range(300)) publish(5 + n);
  service.publish('room:1', 'doc.value', { key: 'a', n: 1 }, { key: 'a' });
  service.publish('room:1', 'doc.value', { key: 'b', n: 2 }, { key: 'b' });
  service.publish('room:1', 'doc.cursor', { key: 'c', n: 3 }, { key: 'c' });
  service.publish('room:1', 'doc.value', { key: 'a', n: 4 }, { key: 'a' });
  await service.advance(10_000);
  const fresh = open();
  const room = fresh.join('room:1', { tail: 3 });
  /** @type {any[]} */
  const tails = [];
  room.on('tail', (events) => tails.push(events.map(({ data }) => data.n)));
  const returning = open();
  returning.join('room:1', { since });
  await ready(fresh);
  await ready(returning);
  await service.advance(100);
  assert.deepEqual(tails, [[302, 303, 304]]);
  assert.deepEqual(room.values.map(({ key, data, ttl }) => [key, data.n, ttl]), [['a', 4, undefined], ['b', 2, undefined], ['c', 3, 20_000]]);
  assert.deepEqual(fresh.texts, []);
  assert.equal(fresh.subscribed[0].recovered, undefined);
  assert.deepEqual(returning.texts, range(300).map((n) => 5 + n));
  assert.deepEqual([returning.subscribed.length, returning.subscribed[0].recovered], [1, true]);
  publish(400);
  await service.advance(10);
  assert.deepEqual([fresh.texts, returning.texts.at(-1)], [[400], 400]);
  const members = await Promise.all([room.members(), service.advance(10)]);
  assert.deepEqual(members[0].members, [{ user: 'ann', connections: 1 }]);
  await service.advance(20_000);
  assert.deepEqual(room.values.map(({ key }) => key), ['a', 'b']); // the time of `c` has passed
});

test('a tab whose position is not of this history is told so', async (t) => {
  const { service, open, openRoom, publish } = scene(t);
  for (const n of range(5)) publish(n);
  await openRoom(1);
  const { epoch } = service.position('room:1');
  const wrong = [{ epoch: 'another', offset: 3 }, { epoch, offset: 3, id: 'another' }, { epoch, offset: 5, id: 'another' }, { epoch, offset: 9, id: 'later' }];
  for (const since of wrong) {
    const user = open();
    user.join('room:1', { since });
    await ready(user);
    await service.advance(6_000);
    assert.deepEqual(user.subscribed.map(({ recovered, offset }) => [recovered, offset]), [[false, 5]], JSON.stringify(since));
    assert.deepEqual(user.texts, []);
  }
});

test('without the right to history, a later tab is told that events are missing, and gets no earlier ones', async (t) => {
  const grants = [{ channel: 'room:*', rights: ['subscribe', 'publish'] }];
  const { service, open, publish } = scene(t);
  publish(0);
  const since = service.position('room:1');
  const first = open('ann', { grants });
  first.join();
  await ready(first);
  for (const n of range(200)) publish(1 + n);
  await service.advance(100);
  const second = open('ann', { grants });
  /** @type {any[]} */
  const tails = [];
  second.join('room:1', { since, tail: 10 }).on('tail', (events) => tails.push(events));
  const third = open('ann', { grants });
  third.join('room:1', { tail: 10 }).on('tail', (events) => tails.push(events));
  await ready(second);
  await ready(third);
  await service.advance(100);
  assert.equal(service.connections.length, 1);
  assert.deepEqual([second.subscribed[0].recovered, second.texts, third.texts, tails], [false, [], [], []]);
});

test('tabs of other users, with other rights, with other kinds of credentials and for other addresses have connections of their own', async (t) => {
  const { service, browser, open, openRoom } = scene(t, { anonymous: true });
  await openRoom(2);
  const others = [
    open('ben'),
    open('ann', { grants: ['room:2'] }),
    open('ann', { info: { name: 'Ann' } }),
    open('ann', {}, { token: undefined, anonymous: true }),
    open('ann', {}, { token: undefined, ticket: () => service.token('ann') }),
    open('ann', {}, { contract: '0123456789abcdef' }),
  ];
  for (const user of others) await ready(user);
  await service.advance(100);
  assert.deepEqual(service.connections.map(({ user }) => user).sort(), ['', 'ann', 'ann', 'ann', 'ann', 'ann', 'ben']);
  assert.match(others[3].client.explain(), /not shared: only a JWT/);
  assert.ok(browser.posted.length > 0);
  assert.doesNotMatch(JSON.stringify(browser.posted), /eyJ|grants/); // no token
  for (const name of [...browser.names, ...browser.locks.keys()]) assert.match(name, /^tidewire-share:1:[0-9a-f]{64}(:[a-z0-5]{20})?$/);
});

test('another user logs in in one tab: only that tab moves', async (t) => {
  const { service, open, publish } = scene(t);
  let login = 'ann';
  const tabs = [open(), open('ann', {}, { token: () => service.token(login) }), open()];
  for (const user of tabs) {
    user.join();
    await ready(user);
  }
  const [first, second, third] = tabs;
  login = 'ben';
  second.client.close();
  void second.client.connect();
  await ready(second);
  await service.advance(2_000);
  publish(0);
  await service.advance(10);
  assert.deepEqual(tabs.map(({ texts }) => texts), [[0], [0], [0]]);
  assert.deepEqual(service.connections.map(({ user }) => user).sort(), ['ann', 'ben']);
  assert.deepEqual([first, third].map(({ states }) => states.at(-1)?.state), ['ready', 'ready']);
  const [{ from }] = await Promise.all([second.client.publish('room:1', 'chat.message', { n: 1 }), service.advance(10)]).then(() => service.history('room:1').slice(-1));
  assert.equal(from, 'ben');
});

test('a channel with a token of its own moves its tab to a connection of its own', async (t) => {
  const { service, openRoom, publish } = scene(t);
  const tabs = await openRoom(3);
  for (const { client } of tabs.slice(0, 2)) {
    const granted = client.channel('room:9', { token: () => service.subscriptionToken('ann', { grants: ['room:9'] }) });
    await Promise.all([granted.subscribed, service.advance(2_000)]);
  }
  publish(0);
  await service.advance(2_000);
  assert.deepEqual(tabs.map(({ texts }) => texts), [[0], [0], [0]]);
  assert.equal(service.connections.length, 3);
  assert.match(tabs[0].client.explain(), /not shared: a channel has a token of its own/);
});

test('events that their tab does not want back reach the other tabs, whichever the delivery', async (t) => {
  const { service, openRoom } = scene(t);
  const tabs = await openRoom(3);
  for (const { client } of tabs) for (const n of range(2)) client.signal('room:1', 'chat.typing', { n });
  await service.advance(1_100); // the first time, the leader has to learn it
  const others = await openRoom(1);
  for (const { events } of others) events.length = 0;
  tabs[1].client.signal('room:1', 'chat.typing', { n: 5 });
  tabs[1].client.signal('room:1', 'chat.wave', { n: 6 });
  await service.advance(1);
  assert.deepEqual(others.map(({ texts }) => texts), [[5, 6], [6], [5, 6], [5, 6]]);
  for (const { events } of others) events.length = 0;
  await Promise.all([tabs[2].client.publish('room:1', 'chat.quiet', { n: 7 }), service.advance(1)]);
  assert.deepEqual(others.map(({ texts }) => texts), [[7], [7], [], [7]]);
  // What the backend publishes for a request of one tab.
  const { connection } = await tabs[1].client.connect();
  service.publish('room:1', 'chat.wave', { n: 8 }, { from: 'ann', exclude: connection });
  await service.advance(1_100);
  assert.deepEqual(others.map(({ texts }) => texts), [[7, 8], [7], [8], [7, 8]]);
});

test('a signal that comes back late is shown once', async (t) => {
  const { service, openRoom } = scene(t);
  const tabs = await openRoom(3);
  const stop = service.delay(1_500, { to: 'client', type: 'chat.wave' });
  for (const n of range(2)) {
    tabs[1].client.signal('room:1', 'chat.wave', { n });
    await service.advance(3_000);
  }
  stop();
  tabs[1].client.signal('room:1', 'chat.wave', { n: 2 });
  await service.advance(3_000);
  assert.deepEqual(tabs.map(({ texts }) => texts), [[0, 1, 2], [0, 1, 2], [0, 1, 2]]);
});

test('a refused signal and refused requests are told to their own tab', async (t) => {
  const { service, openRoom } = scene(t);
  const tabs = await openRoom(3);
  tabs[1].client.signal('room:1', 'chat.nothing', {});
  const refused = tabs[2].client.publish('room:1', 'chat.nothing', {}).catch(({ code }) => code);
  tabs[0].join('lobby:1');
  await service.advance(10);
  assert.equal(await refused, 'unknown_event');
  assert.deepEqual(tabs.map(({ errors }) => errors), [['unknown_channel'], ['unknown_event'], []]);
});

test('two tabs that publish with one id store one event, and both get its offset', async (t) => {
  const { service, openRoom } = scene(t);
  const tabs = await openRoom(3);
  const acks = tabs.map(({ client }) => client.publish('room:1', 'chat.message', { n: 0 }, { id: 'order-1' }));
  await service.advance(3_000);
  assert.deepEqual((await Promise.all(acks)).map(({ offset }) => offset), [1, 1, 1]);
});

test('what other scripts of the origin post is ignored', async (t) => {
  const { service, browser, openRoom, publish } = scene(t);
  const tabs = await openRoom(3);
  const things = [null, 1, 'x', [], {}, { t: 'join' }, { t: 'join', id: 'x' }, { t: 'join', id: {} }, { t: 'here' }, { t: 'ask', id: [] }, { t: 'ok' }, { t: 'end', leader: 5 }];
  const [leader] = browser.posted.filter(({ data }) => data.t === 'ok').map(({ data }) => data.leader);
  const frames = ['', '{', '[]', 'null', '[null, 5, {}]', '[{"type":"hello"},{"type":"ready"},{"type":"refresh","token":"x"}]', '[{"type":"subscribe","id":"a"},{"type":"subscribe","id":"b","channel":5}]'];
  frames.push('[{"type":"subscribe","id":"c","channel":"room:1","since":5},{"type":"__proto__","id":"d","channel":"x"},{"type":"constructor","id":"d","channel":"x"}]');
  for (const name of browser.names) {
    for (const thing of things) browser.post(name, thing);
    for (const frame of frames) browser.post(name, { t: 'send', leader, at: service.clock.now(), frame });
    for (const count of [-1, NaN, Infinity, 'x', 1e9]) for (const kind of ['read', 'used']) browser.post(name, { t: kind, leader, count });
    for (const frame of frames) for (const kind of ['data', 'welcome']) browser.post(name, { t: kind, leader, frame, time: 'x' });
  }
  const before = service.received.length;
  await service.advance(1_000);
  publish(0);
  const acks = tabs.map(({ client }, n) => client.publish('room:1', 'chat.message', { n: 1 + n }));
  await service.advance(3_000);
  await Promise.all(acks);
  for (const { texts } of tabs) assert.deepEqual([...texts].sort(), [0, 1, 2, 3]);
  assert.deepEqual(service.received.slice(before).map(({ message }) => message.type), ['chat.message', 'chat.message', 'chat.message']);
  assert.equal(service.connections.length, 1);
});

test('a tab that hangs or floods does not make the leader keep more and more, and resumes', async (t) => {
  const { service, browser, openRoom, publish } = scene(t);
  const tabs = await openRoom(3);
  const [, hung] = tabs.filter(({ tab }) => tab !== browser.leader);
  hung.tab.freeze();
  const text = 'x'.repeat(60_000);
  for (let n = 0; n < 100; n += 1) {
    service.publish('room:1', 'chat.message', { n, text });
    await service.advance(50);
  }
  const told = browser.posted.filter(({ data }) => data.t === 'data').map(({ name, data }) => [name, data.frame.length]);
  const [line] = browser.posted.filter(({ data }) => data.t === 'end').map(({ name }) => name);
  assert.ok(line);
  const sizes = told.filter(([name]) => name === line).map(([, length]) => Number(length));
  assert.ok(sizes.reduce((sum, length) => sum + length, 0) < 4_500_000);
  await hung.tab.thaw();
  await service.advance(1_000);
  for (const { texts } of tabs) assert.deepEqual(texts, range(100));
  publish(100);
  await service.advance(10);
  assert.equal(hung.texts.at(-1), 100);
  assert.equal(service.connections.length, 1);
  // A script that sends more than a tab may.
  const [{ name, data }] = browser.posted.filter(({ data: { t } }) => t === 'send').slice(-1);
  const flood = JSON.stringify(Array.from({ length: 100 }, (_, n) => ({ type: 'history', id: `h-${n}`, channel: 'room:1' })));
  browser.post(name, { ...data, at: service.clock.now(), frame: flood });
  const before = service.received.length;
  await service.advance(2_000);
  assert.ok(service.received.length - before < 10);
});

test('the number of tabs is bounded', async (t) => {
  const { service, browser, openRoom, open } = scene(t);
  await openRoom(1);
  const [{ name }] = browser.posted;
  for (let n = 0; n < 200; n += 1) browser.post(name, { t: 'join', id: `a${n}`.padEnd(20, 'b').replaceAll(/[6-9]/g, 'c') });
  await service.advance(10);
  assert.ok(browser.names.length < 70);
  const user = open();
  await ready(user);
  assert.match(user.client.explain(), /not shared: as many tabs share the connection as can/);
  await service.advance(90_000); // those that say nothing are gone
  const later = open();
  await ready(later);
  assert.equal(later.client.status.transport, 'shared');
});

test('rates and limits are those of one connection, shared among the tabs', async (t) => {
  const { service, openRoom } = scene(t, { limits: { rate: 10, burst: 10, subscriptions: 3 } });
  const tabs = await openRoom(3);
  const started = service.clock.now();
  /** @type {Promise<any>[]} */
  const reads = [];
  for (let n = 0; n < 60; n += 1) reads.push(tabs[0].client.channel('room:1').history({ limit: 1 }));
  const own = tabs[1].client.publish('room:1', 'chat.message', { n: 0 });
  const other = tabs[2].client.publish('room:1', 'chat.message', { n: 1 });
  await service.advance(1_000);
  await Promise.all([own, other]);
  await service.advance(20_000);
  await Promise.all(reads);
  const at = service.received.filter(({ message }) => message.type === 'history').map((received) => received.at - started);
  for (let from = 0; from < 10_000; from += 1_000) assert.ok(at.filter((time) => time >= from && time < from + 1_000).length <= 20);
  for (const name of ['room:2', 'room:3', 'room:4']) tabs[2].join(name);
  await service.advance(1_000);
  assert.deepEqual(tabs[2].errors, ['too_many_subscriptions']);
});

test('hidden tabs, whose timers run once a minute, stay and get every event', async (t) => {
  const { service, browser, openRoom, publish } = scene(t, { heartbeat: 300 });
  const tabs = await openRoom(3);
  for (const { tab } of tabs) if (tab !== browser.leader) tab.timerStep = 60_000;
  await service.advance(600_000);
  publish(0);
  await service.advance(10);
  assert.deepEqual(tabs.map(({ texts, states }) => [texts, states.length]), [[[0], 2], [[0], 2], [[0], 2]]);
  assert.equal(service.connections.length, 1);
});

test('a token that ends: each tab renews its own, without telling the others', async (t) => {
  const { service, browser, open, publish } = scene(t);
  const calls = [0, 0, 0];
  const tabs = calls.map((_, n) => {
    const token = () => {
      calls[n] += 1;
      return service.token('ann', { expiresIn: 200 + n * 100 });
    };
    return open('ann', {}, { token });
  });
  for (const user of tabs) {
    user.join();
    await ready(user);
  }
  assert.equal(service.connections.length, 1);
  await service.advance(1_000_000);
  publish(0);
  await service.advance(10);
  assert.deepEqual(tabs.map(({ texts, states }) => [texts, states.filter(({ state }) => state === 'ready').length]), [[[0], 1], [[0], 1], [[0], 1]]);
  assert.ok(calls.every((count) => count > 2 && count < 10), `${calls}`);
  assert.doesNotMatch(JSON.stringify(browser.posted), /eyJ/);
});

test('a token that ends without a new one ends its tab only', async (t) => {
  const { service, open, publish } = scene(t);
  const tabs = [open('ann', {}, { token: service.token('ann', { expiresIn: 1_000 }) }), open('ann', {}, { token: service.token('ann', { expiresIn: 100 }) }), open()];
  for (const user of tabs) {
    user.join();
    await ready(user);
  }
  assert.equal(service.connections.length, 1);
  await service.advance(105_000);
  publish(0);
  await service.advance(6_000);
  publish(1);
  await service.advance(10);
  assert.deepEqual(tabs.map(({ client }) => client.state), ['ready', 'closed', 'ready']);
  assert.deepEqual(tabs.map(({ texts }) => texts), [[0, 1], [0], [0, 1]]);
});

test('new rights: a tab whose next token has others leaves the group, also if it leads', async (t) => {
  const { service, open, publish } = scene(t);
  const grants = [['room:*'], ['room:*'], ['room:*']];
  const tabs = grants.map((_, n) => open('ann', {}, { token: () => service.token('ann', { grants: grants[n], expiresIn: 100 }) }));
  for (const user of tabs) {
    user.join();
    await ready(user);
  }
  grants[0] = ['room:1', 'room:2'];
  grants[1] = ['room:2'];
  await service.advance(120_000);
  publish(0);
  await service.advance(10);
  assert.deepEqual(tabs.map(({ texts }) => texts), [[0], [], [0]]);
  assert.equal(service.connections.length, 3);
});

test('a user whose tokens are revoked is revoked in all tabs', async (t) => {
  const { service, open } = scene(t);
  const token = service.token('ann');
  const tabs = [open('ann', {}, { token }), open('ann', {}, { token }), open('ann', {}, { token })];
  for (const user of tabs) {
    user.join();
    await ready(user);
  }
  service.expireTokens();
  await service.advance(100);
  assert.deepEqual(tabs.map(({ client }) => client.state), ['closed', 'closed', 'closed']);
  assert.equal(service.connections.length, 0);
});

test('a dead connection is noticed within 2 s after any of the tabs wakes', async (t) => {
  const { service, browser, openRoom, publish } = scene(t);
  const tabs = await openRoom(3);
  const [follower] = tabs.filter(({ tab }) => tab !== browser.leader);
  const stop = service.drop();
  await service.advance(5_000);
  stop();
  const silence = service.drop({ when: () => service.connections[0]?.id === dead });
  const dead = service.connections[0].id;
  publish(0);
  follower.tab.network.fire('pageshow');
  await service.advance(1_900);
  silence();
  await service.advance(3_000);
  for (const { texts } of tabs) assert.deepEqual(texts, [0]);
  assert.notEqual(service.connections[0].id, dead);
});

test('a tab that hung for long sends nothing that another tab has sent again', async (t) => {
  const { service, browser, openRoom } = scene(t);
  const tabs = await openRoom(3);
  const leader = /** @type {User} */ (tabs.find(({ tab }) => tab === browser.leader));
  const [follower] = tabs.filter((user) => user !== leader);
  leader.tab.freeze();
  const ack = follower.client.publish('room:1', 'chat.message', { n: 0 });
  await service.advance(3_000);
  await ack;
  await service.advance(600_000); // longer than the service remembers ids
  await leader.tab.thaw();
  await service.advance(1_000);
  assert.deepEqual(tabs.map(({ texts }) => texts), [[0], [0], [0]]);
  assert.equal(service.connections.length, 1);
});

test('a tab with a position of an older connection waits for the events that it has', async (t) => {
  const { service, open, openRoom, publish } = scene(t);
  await openRoom(1);
  const stop = service.delay(1_000, { to: 'client', type: 'chat.message' });
  for (const n of range(3)) publish(n);
  const user = open();
  user.join('room:1', { since: service.position('room:1') });
  await ready(user);
  await service.advance(500);
  assert.deepEqual(user.subscribed, []);
  stop();
  await service.advance(2_000);
  publish(3);
  await service.advance(10);
  assert.deepEqual([user.subscribed.map(({ recovered, offset }) => [recovered, offset]), user.texts], [[[true, 3]], [3]]);
});
