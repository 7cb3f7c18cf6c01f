// The examples of docs/protocol.md, replayed: the Python tests read the same files.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { parse, isEvent } from '../src/messages.js';
import { encodeUser } from '../src/tidewire.js';
import { Inbox, WELCOME, connected, message, scene, subscribed, turn } from './support.js';

/** @param {string} name @returns {{name: string, message: any}[]} */
function vectors(name) {
  return JSON.parse(readFileSync(new URL(`../../../tests/vectors/${name}.json`, import.meta.url), 'utf8'));
}
const server = vectors('server');
const client = vectors('client');

/** @param {{name: string, message: any}[]} list @param {(message: any) => boolean} which @returns {any[]} */
const pick = (list, which) => list.map(({ message }) => message).filter(which);

for (const { name, message } of server) {
  test(`server/${name} parses, alone and in a batch`, () => {
    assert.deepEqual(parse(JSON.stringify(message)), [message]);
    assert.deepEqual(parse(JSON.stringify([message, message])), [message, message]);
    // `welcome` and `reply` have `data`, too, and are no events.
    assert.equal(isEvent(message), !['welcome', 'reply'].includes(message.type) && ('data' in message || 'removed' in message));
  });

  test(`server/${name} disturbs no open client`, async (t) => {
    const { peer, client } = await connected(t, { token: () => 'token-1' });
    const answered = client.publish('room:1', 'chat.message', {}, { id: 'after' });
    await peer.expect('chat.message');
    peer.send([message, { ...message, added_later: true }, { type: 'ack', id: 'after', offset: 1 }]);
    assert.equal((await answered).offset, 1);
    assert.equal(client.state, 'ready');
  });
}

/** @type {{name: string, welcome: any, subscribed: any, frames: any[], events: string[]}[]} */
const newer = JSON.parse(readFileSync(new URL('../../../tests/vectors/newer.json', import.meta.url), 'utf8'));

for (const { name, welcome, subscribed: more, frames, events } of newer) {
  test(`a newer service with ${name} is understood`, async (t) => {
    const { server: service, client, until } = await scene(t);
    /** @type {Inbox<string>} */
    const heard = new Inbox();
    const channel = client.channel('room:1');
    channel.on('*', ({ id }) => heard.put(id));
    channel.on('presence', () => heard.put('presence'));
    void client.connect();
    const peer = await service.peer();
    await peer.welcome({ ...WELCOME, ...welcome });
    await until('ready');
    await peer.subscribe(more);
    for (const frame of frames) peer.send(frame);
    const answered = client.publish('room:1', 'chat.message', {}, { id: 'after' });
    await peer.expect('chat.message');
    peer.send({ type: 'ack', id: 'after', offset: 9 });
    await answered;
    peer.send(message(1, { id: 'last', offset: undefined }));
    for (const id of [...events, 'last']) assert.equal(await heard.next(id), id);
    assert.equal(client.state, 'ready');
  });
}

test('the welcome of the examples opens the client', async (t) => {
  const [welcome] = pick(server, ({ type }) => type === 'welcome');
  const { server: service, client, until } = await scene(t);
  void client.connect();
  await (await service.peer()).welcome(welcome);
  await until('ready');
});

test('every event of the examples reaches its handler', async (t) => {
  const events = pick(server, isEvent);
  assert.ok(events.length >= 3);
  const { peer, client, clock } = await connected(t);
  /** @type {Inbox<any>} */
  const heard = new Inbox();
  for (const event of events) {
    const channel = client.channel(event.channel);
    channel.on('*', heard.put);
    channel.on('removed', heard.put);
    channel.on('presence', ({ count }) => heard.put({ count }));
    const presence = event.type.startsWith('presence.') ? { count: 0, members: [] } : undefined;
    peer.send([subscribed(await peer.expect('subscribe'), { offset: (event.offset ?? 1) - 1, presence }), event]);
    if (presence) {
      assert.deepEqual(await heard.next(), { count: 0 });
      assert.equal(typeof (await heard.next()).count, 'number');
    } else if (event.removed) {
      assert.deepEqual(await heard.next(), { type: event.type, key: event.key, rev: event.rev, expired: false });
    } else assert.deepEqual(await heard.next(), event);
    channel.leave();
    clock.advance(0);
    peer.send({ type: 'unsubscribed', channel: event.channel, code: 'requested', id: (await peer.expect('unsubscribe')).id });
  }
});

test('replies of the examples settle the requests they answer', async (t) => {
  const { peer, client } = await connected(t);
  const replies = pick(server, ({ type, id }) => ['ack', 'error'].includes(type) && id);
  assert.ok(replies.length >= 3);
  for (const reply of replies) {
    const answer = client.publish('room:42', 'chat.message', { text: 'hi' }, { id: reply.id });
    await peer.expect('chat.message');
    peer.send(reply);
    if (reply.type === 'ack') assert.deepEqual(await answer, reply);
    else await assert.rejects(answer, { code: reply.code, message: reply.message, details: reply.details });
  }
});

test('replies of the examples settle the calls they answer', async (t) => {
  const { peer, client } = await connected(t);
  const replies = pick(server, ({ type, code }) => type === 'reply' || code === 'call_failed');
  assert.deepEqual(replies.map(({ type }) => type).sort(), ['error', 'reply']);
  for (const { type, id, data, details } of replies) {
    const answer = client.call('order.quote', {}, { id });
    await peer.expect('call');
    peer.send(pick(server, (message) => message.type === type && message.id === id)[0]);
    if (type === 'reply') assert.deepEqual(await answer, data);
    else await assert.rejects(answer, { code: 'call_failed', details });
  }
});

/** What the client sends for each example, in the words of its API. @type {Record<string, (run: any, message: any) => any>} */
const SAYS = {
  subscribe: ({ client }, { channel, since, tail, token }) => client.channel(channel, { since, tail, token: token && (() => token) }),
  unsubscribe: async ({ client, clock }, { channel }) => {
    const handle = client.channel(channel);
    await turn();
    handle.leave();
    clock.advance(0);
  },
  history: ({ client }, { channel, after, before, limit }) => void client.channel(channel).history({ after, before, limit }).catch(() => {}),
  presence: ({ client }, { channel }) => void client.channel(channel).members().catch(() => {}),
  refresh: async ({ client, peer }, { channel, token }) => {
    if (channel) {
      const handle = client.channel(channel, { token: () => token });
      await peer.subscribe();
      await handle.subscribed;
    }
    peer.send({ type: 'expiring', in: 60, channel });
  },
  call: ({ client }, { call, data, id }) => void client.call(call, data, { id }).catch(() => {}),
  ping: ({ clock }) => clock.advance(WELCOME.heartbeat * 1000),
};

for (const { name, message } of client) {
  test(`client/${name} is what this client sends`, async (t) => {
    if (message.type === 'hello' || message.type === 'ready') {
      const { server: service, client } = await scene(t, { token: message.token ?? 'token-1' });
      void client.connect();
      const peer = await service.peer();
      const hello = await peer.expect('hello');
      assert.deepEqual(message.type === 'hello' ? hello : await peer.expect('ready'), message);
      return;
    }
    const run = await connected(t, { token: () => message.token ?? 'token-1' });
    if (message.removed) run.client.remove(message.channel, message.type, message.key, { id: message.id }).catch(() => {});
    else if (isEvent(message)) {
      run.client.publish(message.channel, message.type, message.data, { id: message.id, key: message.key, ifRev: /** @type {any} */ (message).if_rev }).catch(() => {});
    } else await SAYS[message.type](run, message);
    let sent = await run.peer.messages.next();
    if (sent.type === 'subscribe' && message.type !== 'subscribe') sent = await run.peer.messages.next();
    assert.deepEqual({ ...sent, id: message.id }, message);
  });
}

test('encodeUser makes of every user of the examples its segment', () => {
  /** @type {{user: string, segment: string}[]} */
  const users = JSON.parse(readFileSync(new URL('../../../tests/vectors/users.json', import.meta.url), 'utf8'));
  assert.ok(users.length >= 3);
  for (const { user, segment } of users) assert.equal(encodeUser(user), segment);
});
