import assert from 'node:assert/strict';
import test from 'node:test';
import { Inbox, WELCOME, connected, message, scene, soon, subscribed, turn } from './support.js';

/** Listeners that write down what they were called with. @param {import('../src/channel.js').Channel} channel */
function recorder(channel) {
  /** @type {Inbox<any>} */
  const calls = new Inbox();
  channel.on('*', ({ id }) => calls.put(['event', id]));
  channel.on('values', (events) => calls.put(['state', events.map(({ id }) => id)]));
  channel.on('subscribed', ({ recovered, missed }) => calls.put(['subscribed', recovered, missed]));
  channel.on('removed', ({ type, key, rev, expired }) => calls.put(['removed', type, key, rev, expired]));
  channel.on('unsubscribed', ({ code }) => calls.put(['unsubscribed', code]));
  channel.on('presence', ({ count, members, joined, left }) => {
    calls.put(['presence', count, members?.map(({ user }) => user), joined?.user, left?.user]);
  });
  channel.on('error', ({ code }) => calls.put(['error', code]));
  return calls;
}

/** A subscribed `room:1` at offset 7. @param {import('node:test').TestContext} t @param {(event: any) => unknown} [onEvent] instead of the recorder's */
async function room(t, onEvent) {
  const scene = await connected(t);
  const channel = scene.client.channel('room:1');
  if (onEvent) channel.on('*', onEvent);
  const calls = onEvent ? new Inbox() : recorder(channel);
  await scene.peer.subscribe({ offset: 7, last: 'm-7' });
  await channel.subscribed;
  if (!onEvent) {
    assert.deepEqual(await calls.next(), ['subscribed', undefined, 0]);
    assert.deepEqual(await calls.next(), ['state', []]);
  }
  return { ...scene, calls, channel };
}

test('events come once and in order; old ones are dropped; the position follows', async (t) => {
  const { peer, calls, channel } = await room(t);
  peer.send([message(8), message(8), message(7), message(9)]);
  assert.deepEqual(await calls.next(), ['event', 'm-8']);
  assert.deepEqual(await calls.next(), ['event', 'm-9']);
  peer.send({ type: 'chat.typing', channel: 'room:1', id: 'e-1', at: 1, from: 'ben', data: {} });
  assert.deepEqual(await calls.next(), ['event', 'e-1']);
  assert.deepEqual(channel.position, { epoch: 'e1', offset: 9, id: 'm-9' });
});

test('an event that excludes this connection moves the position and is not handled', async (t) => {
  const { peer, calls, channel } = await room(t);
  const { connection, user } = WELCOME;
  const own = { exclude: connection, from: user };
  peer.send([
    { ...message(8), ...own },
    { ...message(9), exclude: connection, from: 'somebody else' },
    { ...message(10), exclude: 'another connection', from: user },
    { type: 'chat.typing', channel: 'room:1', id: 'e-1', at: 1, data: {}, ...own },
    { ...message(11), ...own },
    message(12),
    { type: 'chat.typing', channel: 'room:1', id: 'e-2', at: 1, from: 'ben', data: {} },
  ]);
  for (const n of [9, 10, 12]) assert.deepEqual(await calls.next(), ['event', `m-${n}`]);
  assert.deepEqual(await calls.next(), ['event', 'e-2']);
  assert.deepEqual(channel.position, { epoch: 'e1', offset: 12, id: 'm-12' });
});

test('a gap makes the client subscribe again from the last position', async (t) => {
  const { peer, calls } = await room(t);
  peer.send([message(8), message(10), message(11)]);
  assert.deepEqual(await calls.next(), ['event', 'm-8']);
  await peer.expect('unsubscribe');
  const request = await peer.expect('subscribe');
  assert.deepEqual(request.since, { epoch: 'e1', offset: 8, id: 'm-8' });
  peer.send(message(12));
  peer.send(subscribed(request, { offset: 12, last: 'm-12', recovered: true, events: [9, 10, 11, 12].map((n) => message(n)) }));
  assert.deepEqual(await calls.next(), ['subscribed', true, 4]);
  assert.deepEqual(await calls.next(), ['state', []]);
  for (const n of [9, 10, 11, 12]) assert.deepEqual(await calls.next(), ['event', `m-${n}`]);
});

test('the position moves only after an asynchronous handler has run, and handlers do not overlap', async (t) => {
  /** @type {(() => void)[]} */
  const release = [];
  /** @type {Inbox<string>} */
  const begun = new Inbox();
  const { peer, channel } = await room(t, ({ id }) => {
      begun.put(id);
      return new Promise((resolve) => release.push(() => resolve(undefined)));
  });
  peer.send([message(8), message(9)]);
  assert.equal(await begun.next(), 'm-8');
  assert.equal(begun.length, 0);
  assert.equal(channel.position?.offset, 7);
  release[0]();
  assert.equal(await begun.next(), 'm-9');
  assert.equal(channel.position?.offset, 8);
});

test('a reconnect resumes from what was handled; what the old connection brought is not handled twice', async (t) => {
  /** @type {() => void} */
  let release = () => {};
  /** @type {Inbox<string>} */
  const begun = new Inbox();
  const { server, peer, retry, channel } = await room(t, async ({ id }) => {
      begun.put(id);
      if (id === 'm-8') await new Promise((resolve) => (release = () => resolve(undefined)));
  });
  peer.send([message(8), message(9)]);
  await begun.next();
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome();
  const request = await again.expect('subscribe');
  assert.deepEqual(request.since, { epoch: 'e1', offset: 7, id: 'm-7' });
  again.send(subscribed(request, { offset: 10, last: 'm-10', recovered: true, events: [8, 9, 10].map((n) => message(n)) }));
  release();
  assert.equal(await begun.next(), 'm-9');
  assert.equal(await begun.next(), 'm-10');
  again.send(message(11));
  assert.equal(await begun.next(), 'm-11');
  assert.equal(channel.position?.offset, 10);
});

test('events that are lost for good are announced', async (t) => {
  const { server, peer, retry, calls, channel } = await room(t);
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome();
  const request = await again.expect('subscribe');
  again.send(subscribed(request, { epoch: 'e2', offset: 3, last: 'n-3', recovered: false }));
  assert.deepEqual(await calls.next(), ['subscribed', false, 0]);
  assert.deepEqual(await calls.next(), ['state', []]);
  again.send(message(4, { id: 'n-4' }));
  assert.deepEqual(await calls.next(), ['event', 'n-4']);
  assert.equal(channel.position?.epoch, 'e2');
});

test('a listener that throws is reported and does not block the channel', async (t) => {
  /** @type {Inbox<string>} */
  const heard = new Inbox();
  const { peer, errors, channel } = await room(t, ({ id }) => {
    if (id === 'm-8') throw new Error('bug');
    if (id === 'm-9') return Promise.reject(new Error('bug'));
    return heard.put(id);
  });
  const own = new Inbox();
  channel.on('error', own.put);
  peer.send([message(8), message(9), message(10)]);
  for (const list of [errors, own, errors, own]) {
    const { code, channel: of, cause } = await list.next();
    assert.deepEqual([code, of, cause.message], ['handler_failed', 'room:1', 'bug']);
  }
  assert.equal(await heard.next(), 'm-10');
  peer.send(message(11));
  assert.equal(await heard.next(), 'm-11');
  await turn();
  assert.equal(channel.position?.offset, 11);
});

test('a stream that started anew: the channel goes on from the position in the message', async (t) => {
  const { peer, calls, channel } = await room(t);
  peer.send([message(8), subscribed({ id: null, channel: 'room:1' }, { epoch: 'e2', offset: 5, last: 'n-5', recovered: false })]);
  assert.deepEqual(await calls.next(), ['event', 'm-8']);
  assert.deepEqual(await calls.next(), ['subscribed', false, 0]);
  assert.deepEqual(await calls.next(), ['state', []]);
  peer.send([message(5), message(6), message(7)]);
  assert.deepEqual(await calls.next(), ['event', 'm-6']);
  assert.deepEqual(await calls.next(), ['event', 'm-7']);
  await turn();
  assert.deepEqual(channel.position, { epoch: 'e2', offset: 7, id: 'm-7' });
});

test('latest values: a rev that is not newer is dropped; state replaces everything', async (t) => {
  const { peer, client } = await connected(t);
  const calls = recorder(client.channel('board:1'));
  /** @param {string} key @param {number} rev */
  const price = (key, rev) => ({ type: 'x.price', channel: 'board:1', id: `${key}${rev}`, at: 1, from: null, data: {}, rev, key });
  peer.send(subscribed(await peer.expect('subscribe'), { state: [price('a', 5)] }));
  assert.deepEqual(await calls.next(), ['subscribed', undefined, 0]);
  assert.deepEqual(await calls.next(), ['state', ['a5']]);
  for (const newer of [price('a', 5), price('a', 4), price('b', 1), price('a', 6)]) {
    peer.send(newer);
    await turn();
  }
  assert.deepEqual(await calls.next(), ['event', 'b1']);
  assert.deepEqual(await calls.next(), ['event', 'a6']);
  peer.send(subscribed({ id: null, channel: 'board:1' }, { epoch: 'e2', state: [price('a', 2)] }));
  assert.deepEqual(await calls.next(), ['subscribed', undefined, 0]);
  assert.deepEqual(await calls.next(), ['state', ['a2']]);
  peer.send([price('b', 1), price('a', 3)]);
  assert.deepEqual(await calls.next(), ['event', 'b1']);
  assert.deepEqual(await calls.next(), ['event', 'a3']);
});

test('presence: snapshot, joins, leaves, and counts only where the channel is large', async (t) => {
  const { peer, client } = await connected(t);
  const calls = recorder(client.channel('room:2'));
  peer.send(subscribed(await peer.expect('subscribe'), { channel: 'room:2', presence: { count: 1, members: [{ user: 'ann', connections: 1 }] } }));
  await calls.next();
  await calls.next();
  assert.deepEqual(await calls.next(), ['presence', 1, ['ann'], undefined, undefined]);
  const event = { channel: 'room:2', id: 'j', at: 1, from: 'ben', key: 'ben' };
  peer.send({ ...event, type: 'presence.joined', data: { user: 'ben' } });
  assert.deepEqual(await calls.next(), ['presence', 2, ['ann', 'ben'], 'ben', undefined]);
  peer.send({ ...event, type: 'presence.left', data: { user: 'ann' } });
  assert.deepEqual(await calls.next(), ['presence', 1, ['ben'], undefined, 'ann']);
  peer.send({ ...event, type: 'presence.count', data: { count: 1250 } });
  assert.deepEqual(await calls.next(), ['presence', 1250, undefined, undefined, undefined]);
});

test('a token that gains or loses the right to presence changes what is shown', async (t) => {
  const { peer, calls } = await room(t);
  const presence = { count: 2, members: [{ user: 'ann', connections: 1 }, { user: 'ben', connections: 1 }] };
  peer.send({ type: 'presence', id: null, channel: 'room:1', presence });
  assert.deepEqual(await calls.next(), ['presence', 2, ['ann', 'ben'], undefined, undefined]);
  peer.send({ type: 'presence.left', channel: 'room:1', id: 'j', at: 1, from: 'ann', key: 'ann', data: { user: 'ann' } });
  assert.deepEqual(await calls.next(), ['presence', 1, ['ben'], undefined, 'ann']);
  peer.send({ type: 'presence', id: null, channel: 'room:1', presence: null });
  assert.deepEqual(await calls.next(), ['presence', 0, [], undefined, undefined]);
});

/** @param {import('./support.js').Peer} peer @param {Inbox<any>} errors @param {any} refusal */
async function refuse(peer, errors, refusal) {
  peer.send({ type: 'error', code: 'rate_limited', message: 'slow down', retryable: true, details: { retry_after: 2 }, ...refusal });
  peer.send({ type: 'error', code: 'malformed', message: 'marks that the first error was handled', retryable: false });
  while ((await soon(errors.next(), 'the mark')).code !== 'malformed');
}

test('a refused unsubscribe is sent again, so that nobody stays where they are not', async (t) => {
  const { peer, errors, clock, channel } = await room(t);
  channel.leave();
  clock.advance(0);
  await refuse(peer, errors, { id: (await peer.expect('unsubscribe')).id });
  clock.advance(2_500);
  const { id } = await peer.expect('unsubscribe');
  peer.send({ type: 'unsubscribed', channel: 'room:1', code: 'requested', id });
});

test('a refused unsubscribe is not sent again over a newer subscription', async (t) => {
  const { peer, errors, client, clock, channel } = await room(t);
  channel.leave();
  clock.advance(0);
  await refuse(peer, errors, { id: (await peer.expect('unsubscribe')).id });
  client.channel('room:1');
  const { id } = await peer.expect('subscribe');
  peer.send({ type: 'error', id, code: 'already_subscribed', message: 'still there', retryable: false });
  await peer.expect('unsubscribe');
  await peer.subscribe();
  clock.advance(10_000);
  await turn();
  assert.equal(peer.messages.length, 0);
});

test('a refused channel has ended and says why; a retryable refusal is tried again', async (t) => {
  const { peer, client, errors, clock } = await connected(t);
  const channel = client.channel('room:1');
  const { id } = await peer.expect('subscribe');
  await refuse(peer, errors, { id });
  assert.deepEqual({ ...channel.status }, { state: 'waiting', code: 'rate_limited', help: undefined });
  clock.advance(2_500); // half a second of jitter
  const again = await peer.expect('subscribe');
  peer.send({ type: 'error', id: again.id, code: 'forbidden', message: 'no', retryable: false, details: {} });
  await assert.rejects(channel.subscribed, { code: 'forbidden', channel: 'room:1' });
  assert.equal((await errors.next()).code, 'forbidden');
  assert.deepEqual([channel.state, channel.status.code], ['ended', 'forbidden']);
});

test('a subscribe without an answer is sent again', async (t) => {
  const { peer, client, clock } = await connected(t);
  client.channel('room:1');
  await peer.expect('subscribe');
  clock.advance(15_000);
  await peer.expect('unsubscribe');
  await peer.subscribe();
});

test('the service can end a subscription', async (t) => {
  const { peer, calls, client, channel } = await room(t);
  peer.send({ type: 'unsubscribed', channel: 'room:1', code: 'forbidden' });
  assert.deepEqual(await calls.next(), ['unsubscribed', 'forbidden']);
  assert.equal(channel.state, 'ended');
  const again = client.channel('room:1');
  await peer.subscribe();
  await again.subscribed;
});

test('after leave no listener runs, and the channel can be subscribed anew', async (t) => {
  const { peer, calls, client, channel, clock } = await room(t);
  channel.leave();
  clock.advance(0);
  const second = recorder(client.channel('room:1'));
  const { id } = await peer.expect('unsubscribe');
  const request = await peer.expect('subscribe');
  peer.send([message(8), { type: 'unsubscribed', channel: 'room:1', code: 'requested', id }]);
  peer.send([subscribed(request, { offset: 8, last: 'm-8' }), message(9)]);
  assert.deepEqual(await second.next(), ['subscribed', undefined, 0]);
  assert.deepEqual(await second.next(), ['state', []]);
  assert.deepEqual(await second.next(), ['event', 'm-9']);
  assert.equal(calls.length, 0);
});

test('history and presence are asked for and answered, also over a reconnect', async (t) => {
  const { server, peer, retry, channel } = await room(t);
  const page = channel.history({ before: 5, limit: 20 });
  const first = await peer.expect('history');
  assert.deepEqual(first, { type: 'history', id: first.id, channel: 'room:1', before: 5, limit: 20 });
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome();
  await again.subscribe({ offset: 7 });
  const { id } = await again.expect('history');
  again.send({ type: 'history', id, channel: 'room:1', epoch: 'e1', offset: 7, events: [message(4)], more: true });
  assert.equal((await page).events.length, 1);
  const who = channel.members();
  again.send({ type: 'presence', id: (await again.expect('presence')).id, channel: 'room:1', presence: { count: 0, members: [] } });
  assert.deepEqual(await who, { count: 0, members: [] });
});

test('a position kept by the application resumes', async (t) => {
  const { peer, client } = await connected(t);
  const since = { epoch: 'e1', offset: 3, id: 'm-3' };
  client.channel('room:9', { since });
  assert.deepEqual((await peer.expect('subscribe')).since, since);
});

test('a gap that a newer subscribed has closed already is not asked about again', async (t) => {
  /** @type {() => void} */
  let release = () => {};
  /** @type {Inbox<string>} */
  const begun = new Inbox();
  const { server, peer, retry, until } = await room(t, async ({ id }) => {
      begun.put(id);
      if (id === 'm-8') await new Promise((resolve) => (release = () => resolve(undefined)));
  });
  peer.send([message(8), message(10)]);
  await begun.next();
  peer.terminate();
  await retry();
  const again = await server.peer();
  await again.welcome();
  const request = await again.expect('subscribe');
  again.send(subscribed(request, { offset: 10, last: 'm-10', recovered: true, events: [8, 9, 10].map((n) => message(n)) }));
  const heard = new Promise((resolve) => begun.next().then(resolve));
  again.send({ type: 'pong' });
  await until('ready');
  release();
  assert.equal(await heard, 'm-9');
  assert.equal(await begun.next(), 'm-10');
  assert.equal(again.messages.length, 0);
});

test('already_subscribed is put right', async (t) => {
  const { peer, client } = await connected(t);
  const calls = recorder(client.channel('room:1'));
  const { id } = await peer.expect('subscribe');
  peer.send({ type: 'error', id, code: 'already_subscribed', message: 'twice', retryable: false });
  await peer.expect('unsubscribe');
  peer.send(subscribed(await peer.expect('subscribe')));
  assert.deepEqual(await calls.next(), ['subscribed', undefined, 0]);
});

test('a channel publishes and signals in its channel', async (t) => {
  const { peer, channel } = await room(t);
  const ack = channel.publish('chat.message', { text: 'hi' });
  assert.equal(channel.signal('chat.typing', { active: true }), true);
  const { id, channel: of } = await peer.expect('chat.message');
  assert.equal(of, 'room:1');
  assert.deepEqual(await peer.expect('chat.typing'), { type: 'chat.typing', channel: 'room:1', data: { active: true } });
  peer.send({ type: 'ack', id, offset: 8 });
  assert.equal((await ack).offset, 8);
});

test('in a channel too large to list, joins and leaves only count', async (t) => {
  const { peer, client } = await connected(t);
  const calls = recorder(client.channel('room:2'));
  peer.send(subscribed(await peer.expect('subscribe'), { presence: { count: 9 } }));
  await calls.next();
  await calls.next();
  assert.deepEqual(await calls.next(), ['presence', 9, undefined, undefined, undefined]);
  const event = { channel: 'room:2', id: 'j', at: 1, from: 'ben', key: 'ben', data: { user: 'ben' } };
  peer.send([{ ...event, type: 'presence.joined' }, { ...event, type: 'presence.left' }]);
  assert.deepEqual(await calls.next(), ['presence', 10, undefined, 'ben', undefined]);
  assert.deepEqual(await calls.next(), ['presence', 9, undefined, undefined, 'ben']);
});

/** @param {string} key @param {number} rev @param {number} [ttl] */
function cursor(key, rev, ttl) {
  return { type: 'doc.cursor', channel: 'room:1', id: `c-${rev}`, at: 1, from: key, data: { user: key }, rev, key, ttl };
}

test('a value with a ttl ends by the clock of the client, once', async (t) => {
  const { peer, clock, calls } = await room(t);
  peer.send([cursor('ann', 1, 30_000), cursor('ben', 2), cursor('eve', 3, 10_000)]);
  for (const n of [1, 2, 3]) assert.deepEqual(await calls.next(), ['event', `c-${n}`]);
  clock.advance(10_000);
  assert.deepEqual(await calls.next(), ['removed', 'doc.cursor', 'eve', 3, true]);
  peer.send(cursor('ann', 4, 30_000));
  assert.deepEqual(await calls.next(), ['event', 'c-4']);
  clock.advance(29_999);
  peer.send(cursor('ben', 5));
  assert.deepEqual(await calls.next(), ['event', 'c-5']);
  clock.advance(1);
  assert.deepEqual(await calls.next(), ['removed', 'doc.cursor', 'ann', 4, true]);
});

test('a value of the state ends by its remaining ttl, and not after a newer state', async (t) => {
  const { peer, clock, calls } = await connectedRoom(t, [cursor('ann', 1, 5_000), cursor('ben', 2, 9_000)]);
  peer.send({ ...subscribed({ id: null, channel: 'room:1' }, { offset: 0 }), id: null, state: [cursor('ann', 1, 7_000)] });
  assert.deepEqual(await calls.next(), ['subscribed', undefined, 0]);
  assert.deepEqual(await calls.next(), ['state', ['c-1']]);
  clock.advance(6_000);
  peer.send(cursor('eve', 3));
  assert.deepEqual(await calls.next(), ['event', 'c-3']);
  clock.advance(1_000);
  assert.deepEqual(await calls.next(), ['removed', 'doc.cursor', 'ann', 1, true]);
  clock.advance(10_000);
  assert.equal(calls.length, 0);
});

test('a removed value is told once, and a later value comes again', async (t) => {
  const { peer, calls } = await connectedRoom(t, [cursor('ann', 1, 5_000), cursor('ben', 2)]);
  /** @param {string} key @param {number} rev */
  const removal = (key, rev) => ({ type: 'doc.cursor', channel: 'room:1', id: `r-${rev}`, at: 1, from: 'ann', rev, key, removed: true });
  peer.send([removal('ann', 1), removal('ben', 3), cursor('ann', 4, 5_000), removal('eve', 5)]);
  assert.deepEqual(await calls.next(), ['removed', 'doc.cursor', 'ben', 3, false]);
  assert.deepEqual(await calls.next(), ['event', 'c-4']);
  assert.deepEqual(await calls.next(), ['removed', 'doc.cursor', 'eve', 5, false]);
  peer.send(cursor('ben', 6));
  assert.deepEqual(await calls.next(), ['event', 'c-6']);
});

/** A joined `room:1` with a state. @param {import('node:test').TestContext} t @param {any[]} state */
async function connectedRoom(t, state) {
  const scene = await connected(t);
  const calls = recorder(scene.client.channel('room:1'));
  scene.peer.send({ ...subscribed(await scene.peer.expect('subscribe'), { offset: 0 }), state });
  assert.deepEqual(await calls.next(), ['subscribed', undefined, 0]);
  assert.deepEqual(await calls.next(), ['state', state.map(({ id }) => id)]);
  return { ...scene, calls };
}

test('the first subscribe brings the last events, a later one resumes', async (t) => {
  const { server: service, client, retry } = await scene(t);
  /** @type {Inbox<string[]>} */
  const tails = new Inbox();
  client.channel('room:1', { tail: 2 }).on('tail', (events) => tails.put(events.map(({ id }) => id)));
  void client.connect();
  const peer = await service.peer();
  await peer.welcome();
  assert.equal((await peer.subscribe({ offset: 2, last: 'm-2', tail: [message(1), message(2)] })).tail, 2);
  assert.equal((await tails.next()).length, 2);
  peer.close(1012);
  await retry();
  const second = await service.peer();
  await second.welcome();
  const again = await second.expect('subscribe');
  assert.equal(again.since.offset, 2);
  assert.equal('tail' in again, false);
});

test('a service without the feature is not asked for the last events', async (t) => {
  const { server: service, client } = await scene(t);
  client.channel('room:1', { tail: 2 });
  void client.connect();
  const { features, ...old } = WELCOME;
  assert.ok(features.includes('tail'));
  const peer = await service.peer();
  await peer.welcome(old);
  const request = await peer.expect('subscribe');
  assert.equal('tail' in request, false);
});

test('a channel gets its token at each subscribe', async (t) => {
  const { peer, client, errors, clock } = await connected(t);
  const tokens = ['one', 'two'];
  client.channel('room:1', { token: () => tokens.shift() ?? '' });
  const { id, token } = await peer.expect('subscribe');
  assert.equal(token, 'one');
  await refuse(peer, errors, { id, code: 'broker_unavailable', details: { retry_after: 2 } });
  clock.advance(2_500);
  assert.equal((await peer.expect('subscribe')).token, 'two');
});

test('a channel whose token cannot be had tries again', async (t) => {
  const { peer, client, errors, clock } = await connected(t);
  let fails = true;
  client.channel('room:1', {
    token: () => {
      if (!fails) return 'two';
      fails = false;
      throw new Error('the backend is away');
    },
  });
  assert.equal((await errors.next()).code, 'token_failed');
  clock.advance(500);
  assert.equal((await peer.expect('subscribe')).token, 'two');
});

test('`subscribed` settles also for who has asked for it before connect()', async (t) => {
  const { server, client } = await scene(t);
  for (const name of ['room:1', 'room:2']) {
    const early = client.channel(name).subscribed;
    void client.connect();
    const peer = await server.peer();
    await peer.welcome();
    let request = await peer.expect('subscribe');
    for (; request.channel !== name; request = await peer.expect('subscribe')) peer.send(subscribed(request));
    peer.send(subscribed(request, { offset: 3 }));
    assert.equal((await soon(early, name)).offset, 3);
    client.close();
  }
});
