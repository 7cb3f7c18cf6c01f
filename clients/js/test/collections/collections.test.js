import assert from 'node:assert/strict';
import test from 'node:test';
import '../../src/collections/index.js';
import { WELCOME, connected, message, turn, value } from '../support.js';

/** @typedef {import('../support.js').Peer} Peer */

/** A list of `room:1`, with the events 1 to 3 from the `tail`. @param {import('node:test').TestContext} t @param {any} [options] */
async function chat(t, options = {}) {
  const scene = await connected(t);
  const room = scene.client.channel('room:1');
  const list = room.list('chat.message', { tail: 3, ...options });
  const request = await scene.peer.subscribe({ offset: 3, last: 'm-3', tail: [message(1), message(2), message(3)] });
  await until(list, 'live');
  return { ...scene, room, list, request };
}

/** @param {{status: string}} collection @param {string} status */
async function until(collection, status) {
  for (let turns = 0; turns < 500 && collection.status !== status; turns += 1) await turn();
  assert.equal(collection.status, status);
}

/** @param {{items: readonly {id: string}[]}} list @param {string[]} expected */
async function shows(list, expected) {
  for (let turns = 0; turns < 500 && String(ids(list)) !== String(expected); turns += 1) await turn();
  assert.deepEqual(ids(list), expected);
}

/** @param {{items: readonly {id: string}[]}} list */
const ids = ({ items }) => items.map(({ id }) => id);

/** Answers the next `history`. @param {Peer} peer @param {any[]} events @param {any} [more] @returns {Promise<any>} */
async function history(peer, events, more = {}) {
  const request = await peer.expect('history');
  peer.send({ type: 'history', id: request.id, channel: 'room:1', epoch: 'e1', offset: 9, events, more: false, ...more });
  return request;
}

test('a list comes with the subscribe, and continues live', async (t) => {
  const { peer, list, request } = await chat(t);
  assert.equal(request.tail, 3);
  assert.deepEqual(ids(list), ['m-1', 'm-2', 'm-3']);
  assert.equal(list.hasOlder, false);
  const { items } = list;
  peer.send([message(4), { ...message(5), type: 'chat.note' }, message(6)]);
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4', 'm-6']);
  assert.deepEqual(items.length, 3, 'an array that was given out does not change');
  assert.throws(() => /** @type {any} */ (list.items).push(1), TypeError);
});

test('events between subscribe and ready come after the tail', async (t) => {
  const { client, peer } = await connected(t);
  const list = client.channel('room:1').list('chat.message', { tail: 3 });
  await peer.subscribe({ offset: 3, last: 'm-3', events: [message(2), message(3)], tail: [message(1), message(2), message(3)] });
  await until(list, 'live');
  assert.deepEqual(ids(list), ['m-1', 'm-2', 'm-3']);
  const late = client.channel('room:2').list('chat.message', { tail: 0 });
  await peer.subscribe({ offset: 3, last: 'm-3', events: [2, 3].map((n) => message(n, { channel: 'room:2' })) });
  await shows(late, ['m-2', 'm-3']);
});

test('a list reads on where other types fill the tail', async (t) => {
  const { client, peer } = await connected(t);
  const list = client.channel('room:1').list(['chat.message', 'chat.note'], { tail: 2 });
  await peer.subscribe({ offset: 9, last: 'm-9', tail: [{ ...message(8), type: 'chat.other' }, message(9)] });
  assert.deepEqual((({ before, limit }) => [before, limit])(await history(peer, [message(7)], { more: true })), [8, 1]);
  await until(list, 'live');
  assert.deepEqual(ids(list), ['m-7', 'm-9']);
  assert.equal(list.hasOlder, true);
});

test('listeners are called once for all changes of a task, and the snapshot is replaced only then', async (t) => {
  const { clock, peer, list } = await chat(t);
  clock.advance(0);
  let calls = 0;
  const stop = list.subscribe(() => (calls += 1));
  const before = list.getSnapshot();
  peer.send([message(4), message(5)]);
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4', 'm-5']);
  clock.advance(0);
  assert.equal(calls, 1);
  assert.notEqual(list.getSnapshot(), before);
  const after = list.getSnapshot();
  peer.send([message(5), { ...message(6), type: 'chat.note' }]);
  await turn();
  clock.advance(0);
  assert.equal(list.getSnapshot(), after);
  stop();
  peer.send(message(7));
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4', 'm-5', 'm-7']);
  clock.advance(0);
  assert.equal(calls, 1);
});

test('after missed events the items stay until they are read again', async (t) => {
  const { server, peer, list, retry } = await chat(t);
  peer.terminate();
  await retry();
  assert.equal(list.status, 'stale');
  const next = await server.peer();
  await next.welcome();
  await next.subscribe({ offset: 60, last: 'm-60', recovered: false });
  const request = await next.expect('history');
  next.send(message(61));
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-61']);
  assert.equal(list.status, 'stale');
  next.send({ ...history_(request), events: [message(58), message(59), message(60)], more: true });
  await until(list, 'live');
  assert.deepEqual(ids(list), ['m-58', 'm-59', 'm-60', 'm-61']);
});

/** @param {any} request */
const history_ = ({ id }) => ({ type: 'history', id, channel: 'room:1', epoch: 'e1', offset: 61, more: false });

test('a purge clears the list', async (t) => {
  const { peer, list } = await chat(t);
  peer.send({ type: 'subscribed', id: null, channel: 'room:1', epoch: 'e2', offset: 0, events: [], state: [], recovered: false });
  await shows(list, []);
  peer.send(message(1, { id: 'n-1' }));
  await shows(list, ['n-1']);
  assert.equal(list.status, 'live');
});

test('an event that is taken back leaves, also if a page on its way still has it', async (t) => {
  const { peer, list, room } = await chat(t, { max: 10 });
  const removal = (/** @type {number} */ offset, /** @type {number[]} */ ...gone) => {
    const [data, ...more] = gone.map((n) => ({ id: `m-${n}`, offset: n }));
    return { ...message(offset), id: `r-${offset}`, type: 'event.removed', from: null, data: { ...data, more } };
  };
  peer.send(removal(4, 1, 3));
  await shows(list, ['m-2']);
  const late = room.list('chat.message', { tail: 5 });
  const request = await peer.expect('history');
  peer.send([removal(5, 2), { ...history_(request), events: [message(2), removal(4, 1, 3)] }, message(6)]);
  await until(late, 'live');
  await shows(late, ['m-6']);
  await shows(list, ['m-6']);
});

test('a late list begins after the event that is being handled', async (t) => {
  const { client, peer, room, list } = await chat(t);
  /** @type {(value?: unknown) => void} */
  let finish = () => {};
  room.on('chat.message', () => new Promise((resolve) => (finish = resolve)));
  peer.send([message(4), message(5)]);
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4']);
  const late = client.channel('room:1').list('chat.message', { tail: 3 });
  finish();
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4', 'm-5']);
  assert.equal(peer.messages.length, 0, 'event 5 is still being handled');
  finish();
  const { before } = await history(peer, [message(3), message(4), message(5)], { more: true });
  assert.equal(before, 6);
  peer.send(message(6));
  await shows(late, ['m-3', 'm-4', 'm-5', 'm-6']);
  finish();
});

test('older items are loaded on demand, up to the bound', async (t) => {
  const { client, peer, errors } = await connected(t);
  const list = client.channel('room:1').list('chat.message', { tail: 2, max: 4 });
  await peer.subscribe({ offset: 9, last: 'm-9', tail: [message(8), message(9)] });
  await until(list, 'live');
  const loaded = list.loadOlder(2);
  assert.equal(list.loadOlder(2), loaded);
  assert.equal((await history(peer, [message(6), message(7)], { more: true })).before, 8);
  assert.equal(await loaded, 2);
  assert.deepEqual(ids(list), ['m-6', 'm-7', 'm-8', 'm-9']);
  assert.equal(await list.loadOlder(), 0);
  assert.equal((await errors.next()).code, 'list_full');
  peer.send(message(10));
  await shows(list, ['m-7', 'm-8', 'm-9', 'm-10']);
  assert.equal(list.hasOlder, true);
});

test('an event with the key of an earlier one takes its place, also of one that was dropped', async (t) => {
  const edit = (/** @type {number} */ offset, /** @type {string} */ of) => message(offset, { data: { of } });
  const { client, peer } = await connected(t);
  const list = client.channel('room:1').list('chat.message', { tail: 3, max: 3, key: ({ data }) => data.of });
  await peer.subscribe({ offset: 3, last: 'm-3', tail: [edit(1, 'a'), edit(2, 'b'), edit(3, 'c')] });
  await until(list, 'live');
  peer.send(edit(4, 'a'));
  await shows(list, ['m-4', 'm-2', 'm-3']);
  peer.send([edit(5, 'd'), { ...message(6), id: 'r', type: 'event.removed', from: null, data: { id: 'm-3', offset: 3 } }]);
  await shows(list, ['m-2', 'm-5']);
  const loaded = list.loadOlder(1);
  await history(peer, [edit(1, 'a')]);
  await loaded;
  assert.deepEqual(ids(list), ['m-4', 'm-2', 'm-5']);
  // The edit is taken back, so the first version is needed again.
  peer.send({ ...message(7), id: 'r2', type: 'event.removed', from: null, data: { id: 'm-4', offset: 4 } });
  await history(peer, [edit(1, 'a'), edit(2, 'b'), edit(5, 'd')]);
  await shows(list, ['m-1', 'm-2', 'm-5']);
});

test('own events that are not sent back to listeners are in the list', async (t) => {
  const { peer, list, room } = await chat(t);
  let heard = 0;
  room.on('*', () => (heard += 1));
  peer.send(message(4, { exclude: WELCOME.connection, from: WELCOME.user }));
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4']);
  assert.equal(heard, 0);
});

test('a snapshot comes before the events that arrive meanwhile, and is read again after an error', async (t) => {
  const { client, peer, errors, clock } = await connected(t);
  /** @type {(() => any)[]} */
  const results = [
    () => {
      throw new Error('500');
    },
    () => ({ items: [{ id: 'm-6' }, { id: 'm-7', data: 'stored' }], position: { epoch: 'e1', offset: 7 } }),
  ];
  const list = client.channel('room:1').list('chat.message', { snapshot: async () => results.shift()?.() });
  const { tail } = await peer.subscribe({ offset: 9, last: 'm-9' });
  assert.equal(tail, undefined);
  await until(list, 'error');
  assert.equal((await errors.next()).code, 'snapshot_failed');
  assert.equal(list.error?.code, 'snapshot_failed');
  peer.send(message(10));
  await shows(list, ['m-10']);
  clock.advance(500);
  const { after, before } = await history(peer, [message(8), message(9, { type: 'event.removed', from: null, data: { id: 'm-6', offset: 6 } })]);
  assert.deepEqual([after, before], [7, 10]);
  await until(list, 'live');
  assert.deepEqual(ids(list), ['m-7', 'm-8', 'm-10']);
  assert.equal(list.error, undefined);
  assert.equal(list.hasOlder, false);
});

test('a snapshot without a position is merged by id', async (t) => {
  const { client, peer } = await connected(t);
  /** @type {(items: any) => void} */
  let give = () => {};
  const list = client.channel('room:1').list('chat.message', { snapshot: () => new Promise((resolve) => (give = resolve)) });
  await peer.subscribe({ offset: 7, last: 'm-7' });
  peer.send([message(8), message(9)]);
  await shows(list, ['m-8', 'm-9']);
  give([{ id: 'm-7' }, { id: 'm-8' }]);
  await shows(list, ['m-7', 'm-8', 'm-9']);
  assert.equal(list.items[1].offset, 8);
});

test('a snapshot of a newer position drops what it has', async (t) => {
  const { client, peer } = await connected(t);
  const position = { epoch: 'e1', offset: 8 };
  const list = client.channel('room:1').list('chat.message', { snapshot: async () => ({ items: [{ id: 'all' }], position }) });
  await peer.subscribe({ offset: 6, last: 'm-6' });
  await until(list, 'live');
  peer.send([message(7), message(8), message(9)]);
  await shows(list, ['all', 'm-9']);
});

test('without the right to history a list says so, and shows what is live', async (t) => {
  const { client, peer, errors } = await connected(t);
  const list = client.channel('room:1').list('chat.message');
  await peer.subscribe({ offset: 7, last: 'm-7' });
  const { id } = await peer.expect('history');
  peer.send({ type: 'error', id, code: 'forbidden', message: 'no', retryable: false });
  await until(list, 'error');
  assert.equal((await errors.next()).code, 'forbidden');
  peer.send(message(8));
  await shows(list, ['m-8']);
});

test('a collection ends with its signal, with its channel, and if it has nothing to show', async (t) => {
  const { client, peer, list, room, errors } = await chat(t);
  const stop = new AbortController();
  const other = room.list('chat.message', { signal: stop.signal });
  const map = room.map('doc.cursor');
  await history(peer, [message(1)]);
  await until(other, 'live');
  stop.abort();
  assert.equal(other.status, 'ended');
  const typing = client.channel('room:1').list('chat.typing', { tail: 0 });
  await turn();
  peer.send([{ type: 'chat.typing', channel: 'room:1', id: 'e', at: 1, from: 'ben', data: {} }, message(4)]);
  await shows(list, ['m-1', 'm-2', 'm-3', 'm-4']);
  assert.deepEqual(ids(other), ['m-1']);
  assert.deepEqual([typing.status, typing.error?.code, (await errors.next()).code], ['ended', 'not_durable', 'not_durable']);
  room.leave();
  assert.deepEqual([list.status, map.status, room.list('chat.message').status], ['ended', 'ended', 'ended']);
});

test('a map has the latest values, until they end', async (t) => {
  const { client, peer, clock } = await connected(t);
  const map = client.channel('room:1').map('doc.cursor');
  assert.equal(map.status, 'loading');
  await peer.subscribe({ state: [value('a', 1), value('b', 2, { ttl: 1_000 }), value('a', 3, { type: 'doc.other' })] });
  await until(map, 'live');
  assert.deepEqual([...map].map(([key, { rev }]) => [key, rev]), [['a', 1], ['b', 2]]);
  const { values } = map;
  peer.send([value('a', 4), value('c', 5)]);
  while (map.size < 3) await turn();
  assert.deepEqual([map.rev('a'), map.rev('x'), map.has('b'), map.get('a')?.data], [4, 0, true, { rev: 4 }]);
  assert.equal(values.size, 2, 'a copy that was given out does not change');
  peer.send({ ...value('a', 6), data: undefined, removed: true });
  clock.advance(1_000);
  while (map.size > 1) await turn();
  assert.deepEqual([...map.getSnapshot().values.keys()], ['c']);
  const late = client.channel('room:1').map('doc.cursor');
  await until(late, 'live');
  assert.deepEqual([...late.values.keys()], ['c']);
});

test('a map has what only its snapshot has, until the service says something newer', async (t) => {
  const { server, client, peer, clock } = await connected(t);
  /** @type {((items: any) => void)[]} */
  const asked = [];
  const map = client.channel('room:1').map('doc.cursor', { snapshot: () => new Promise((resolve) => asked.push(resolve)) });
  const revs = () => Object.fromEntries([...map].map(([key, { rev, data }]) => [key, rev ?? data]));
  await peer.subscribe({ state: [value('a', 1), value('b', 5)] });
  for (let turns = 0; turns < 100 && !asked.length; turns += 1) await turn();
  assert.deepEqual([map.status, revs()], ['loading', { a: 1, b: 5 }]);
  peer.send([value('gone', 7, { removed: true, data: undefined }), value('c', 8)]);
  for (let turns = 0; turns < 100 && !map.has('c'); turns += 1) await turn();
  asked[0]([{ key: 'a', data: 'old' }, { key: 'b', rev: 6 }, { key: 'c', rev: 7 }, { key: 'gone', rev: 6 }, { key: 'only', data: 'stored' }]);
  await until(map, 'live');
  assert.deepEqual(revs(), { a: 1, b: 6, c: 8, only: 'stored' });
  peer.send([value('b', 5), value('only', 9, { removed: true, data: undefined })]);
  for (let turns = 0; turns < 100 && map.has('only'); turns += 1) await turn();
  assert.deepEqual(revs(), { a: 1, b: 6, c: 8 });

  // After an interruption it is read again, and shown as it was until then.
  peer.terminate();
  await until(map, 'stale');
  clock.advance(1_000);
  const again = await server.peer();
  await again.welcome();
  await again.subscribe({ state: [value('a', 1)] });
  for (let turns = 0; turns < 100 && asked.length < 2; turns += 1) await turn();
  assert.deepEqual([map.status, revs()], ['stale', { a: 1, b: 6 }]);
  asked[1]([{ key: 'new', data: 'stored' }]);
  await until(map, 'live');
  assert.deepEqual(revs(), { a: 1, new: 'stored' });
});

test('a snapshot of a map that fails is read again', async (t) => {
  const { client, peer, errors, clock } = await connected(t);
  const results = [new Error('500'), [{}], undefined, [{ key: 'a' }]];
  const map = client.channel('room:1').map('doc.cursor', {
    snapshot: async () => {
      const result = /** @type {any} */ (results.shift());
      if (result instanceof Error) throw result;
      return result;
    },
  });
  await peer.subscribe({ state: [] });
  await until(map, 'error');
  assert.equal((await errors.next()).code, 'snapshot_failed');
  for (let tries = 0; tries < 3; tries += 1) {
    for (let turns = 0; turns < 10; turns += 1) await turn();
    clock.advance(2_000);
  }
  await until(map, 'live');
  assert.deepEqual([map.size, map.error, results.length, errors.length], [1, undefined, 0, 0]);
});

test('presence lists the users, and sets its info again after an interruption', async (t) => {
  const { client, server, peer, retry } = await connected(t);
  const room = client.channel('room:1');
  const { presence } = room;
  assert.equal(room.presence, presence);
  const info = { status: 'busy' };
  const member = (/** @type {any} */ more = {}) => ({ user: WELCOME.user, connections: 1, ...more });
  await peer.subscribe({ presence: { count: 1, members: [member()] } });
  await until(presence, 'live');
  const updated = presence.update(info);
  info.status = 'changed afterwards';
  assert.deepEqual((await peer.ack()).data, { status: 'busy' });
  await updated;
  peer.send({ type: 'presence.joined', channel: 'room:1', id: 'p', at: 1, from: 'ben', data: { user: 'ben' }, key: 'ben' });
  while (presence.count < 2) await turn();
  assert.deepEqual(presence.members.map(({ user }) => user), ['ann', 'ben']);
  peer.terminate();
  await retry();
  assert.equal(presence.getSnapshot().status, 'stale');
  const next = await server.peer();
  await next.welcome();
  await next.subscribe({ presence: { count: 1, members: [member()] } });
  const again = await next.ack();
  assert.deepEqual([again.type, again.data], ['presence.update', { status: 'busy' }]);
  await until(presence, 'live');
  next.terminate();
  await retry();
  const last = await server.peer();
  await last.welcome();
  await last.subscribe({ presence: { count: 300 } });
  await last.ack();
  await until(presence, 'live');
  assert.deepEqual([presence.count, presence.isListed, presence.members], [300, false, []]);
  last.terminate();
  await retry();
  const other = await server.peer();
  await other.welcome({ ...WELCOME, user: 'ben' });
  await other.subscribe({ presence: { count: 1, members: [{ user: 'ben', connections: 1 }] } });
  await until(presence, 'live');
  for (let n = 0; n < 5; n += 1) await turn();
  assert.equal(other.messages.length, 0, "the info is the first user's");
});
