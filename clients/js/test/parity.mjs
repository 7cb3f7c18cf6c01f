// The same clients against the real service and against `TestService`: what both send must be the same.
//
//   node parity.mjs '{"url": …, "api": …, "key": …, "tokens": {name: token}, "granting": token, "shop": {"url": …, "api": …}}'
//
// Exits with 1, and prints the difference, if they differ. tests/integration/test_sdk_parity.py runs it.

import assert from 'node:assert/strict';
import { WebSocket } from 'ws';
import { systemClock } from '../src/base/clock.js';
import { webSocketLinks } from '../src/connection/link.js';
import { TestService } from '../src/testing/index.js';
import { Tidewire, TidewireError } from '../src/tidewire.js';
import { soon } from './support.js';

/** Milliseconds; the real service is started with the same. */
const DEBOUNCE = 500;
/** Who takes part, and what they may. @type {Record<string, import('../src/testing/index.js').Claims['grants']>} */
const GRANTS = { ann: ['room:*'], ben: ['room:*'], cid: [{ channel: 'room:*', rights: ['subscribe'] }], dan: [] };

/** What goes over the links of one client. */
class Tape {
  /** @type {any[]} */
  messages = [];
  /** @type {{link: import('../src/connection/link.js').Link, events: import('../src/connection/link.js').LinkEvents} | undefined} */
  #open;
  /** @type {(() => void)[]} */
  #waiting = [];

  /** @param {import('../src/connection/link.js').OpenLink} open @returns {import('../src/connection/link.js').OpenLink} */
  recording(open) {
    return (address, events) => {
      const received = (/** @type {any} */ frame) => {
        const content = JSON.parse(frame);
        this.messages.push(...(Array.isArray(content) ? content : [content]));
        events.received(frame);
        for (const wake of this.#waiting.splice(0)) wake();
      };
      const link = open(address, { ...events, received });
      this.#open = { link, events };
      return link;
    };
  }

  /** Cuts the connection, as a broken network does. */
  cut() {
    this.#open?.link.close();
    this.#open?.events.ended(1006, '');
  }

  /** Waits for so many messages of a type. @param {string} type @param {number} [count] */
  async until(type, count = 1) {
    const has = () => this.messages.filter((message) => message.type === type).length >= count;
    while (!has()) await soon(new Promise((resolve) => this.#waiting.push(() => resolve(undefined))), `${count} ${type}`);
  }
}

/**
 * Plays the scenario, and returns what each client has received.
 * @param {{client: (name: string, tape: Tape) => Tidewire, publish: (channel: string, event: any) => Promise<any>,
 *          takeBack: (channel: string, id: string) => Promise<any>, purge: (channel: string) => Promise<any>, granting: string}} world
 */
async function play({ client, publish, takeBack, purge, granting }) {
  const tapes = Object.fromEntries(Object.keys(GRANTS).map((name) => [name, new Tape()]));
  const [ann, ben, cid, dan] = Object.entries(tapes).map(([name, tape]) => client(name, tape));
  /** @type {string[]} */
  const refused = [];
  const attempt = (/** @type {Promise<any>} */ promise) => promise.then(() => {}, ({ code }) => void refused.push(code));
  for (const one of [ann, ben, cid, dan]) one.on('error', ({ code }) => refused.push(code));

  // Durable events: acks, duplicates, refusals, tails.
  await ann.connect();
  const room = ann.channel('room:1');
  await room.subscribed;
  for (const n of [1, 2, 3]) await room.publish('chat.message', { text: `${n}` }, { id: `m-${n}` });
  await room.publish('chat.message', { text: '3' }, { id: 'm-3' });
  await attempt(room.publish('chat.message', { text: 1 }, { id: 'bad-data' }));
  await attempt(room.publish('chat.nothing', {}, { id: 'bad-type' }));
  await attempt(room.publish('chat.pinned', { slot: 'a', text: '' }, { id: 'server-only' }));
  await attempt(room.publish('chat.message', { text: 'x' }, { id: 'bad-key', key: 'a' }));
  await attempt(room.publish('chat.message', { text: 'x' }, { id: 'bad-rev', ifRev: 1 }));
  await attempt(ann.publish('nowhere:1', 'chat.message', {}, { id: 'bad-channel' }));
  await attempt(ann.publish('room 1', 'chat.message', {}, { id: 'bad-name' }));
  await attempt(ann.publish('room:2', 'chat.message', { text: 'x' }, { id: 'not-here' }));
  await ben.connect();
  const other = ben.channel('room:1', { tail: 2 });
  await other.subscribed;
  await tapes.ann.until('presence.joined');

  // Signals and values.
  room.signal('chat.typing', {});
  await tapes.ben.until('chat.typing');
  await publish('room:1', { type: 'chat.pinned', id: 'p-1', data: { slot: 'a', text: 'x' } });
  await tapes.ann.until('chat.pinned');
  const doc = ann.channel('doc:1');
  await doc.subscribed;
  await doc.publish('doc.cursor', { user: 'ann', x: 1 }, { id: 'c-1' });
  await doc.publish('doc.cursor', { user: 'ann', x: 2 }, { id: 'c-2', ifRev: 1 });
  await attempt(doc.publish('doc.cursor', { user: 'ann', x: 3 }, { id: 'c-3', ifRev: 1 }));
  await attempt(doc.publish('doc.cursor', {}, { id: 'c-4' }));
  await attempt(doc.publish('doc.cursor', { user: [] }, { id: 'c-5' }));
  await attempt(doc.publish('doc.cursor', { user: 'ann' }, { id: 'c-6', key: 'ben' }));
  await doc.remove('doc.cursor', 'ann', { id: 'c-7' });
  await attempt(room.remove('chat.message', 'a', { id: 'not-removable' }));
  await doc.publish('doc.cursor', { user: 'ben' }, { id: 'c-8' });
  const late = ben.channel('doc:1');
  await late.subscribed;

  // Reads.
  for (const page of [{}, { limit: 1 }, { after: 1 }, { after: 0, limit: 2 }, { before: 3 }, { after: 1, before: 3 }]) await room.history(page);
  await attempt(doc.history());
  await attempt(doc.members());
  await room.members();
  await attempt(ben.channel('inbox:ann').subscribed);

  // Presence that clients set.
  const desks = [ann.channel('desk:1'), ben.channel('desk:1')];
  await Promise.all(desks.map(({ subscribed }) => subscribed));
  await desks[0].updatePresence({ status: 'busy' });
  await tapes.ben.until('presence.joined');
  await attempt(desks[0].updatePresence({ status: 1 }));
  await attempt(room.updatePresence({}));
  await desks[1].members();

  // A cut, and what happens meanwhile; a position that is lost; an event that is taken back; a channel that is purged.
  const resumed = new Promise((resolve) => room.on('subscribed', (info) => info.resumed && resolve(undefined)));
  await room.history();
  tapes.ann.cut();
  await publish('room:1', { type: 'chat.message', id: 'm-4', from: 'ben', data: { text: '4' } });
  await soon(resumed, 'the resume');
  await ann.channel('room:3', { since: { epoch: 'another', offset: 1, id: 'm' } }).subscribed;
  await takeBack('room:1', 'm-4');
  await tapes.ben.until('event.removed');
  await room.history();
  const before = tapes.ben.messages.filter(({ type }) => type === 'subscribed').length;
  await purge('room:1');
  await tapes.ben.until('subscribed', before + 1);
  await publish('room:1', { type: 'chat.message', id: 'm-5', data: { text: '5' } });
  await tapes.ben.until('chat.message', 2);

  // Fewer rights, and rights of a subscription.
  await cid.connect();
  const seen = cid.channel('room:1', { tail: 5, since: undefined });
  await seen.subscribed;
  await attempt(seen.history());
  await attempt(seen.members());
  await dan.connect();
  await attempt(dan.channel('room:1').subscribed);
  const granted = dan.channel('room:9', { token: () => granting });
  await granted.subscribed;
  await granted.history();
  await granted.publish('chat.message', { text: 'granted' }, { id: 'g-1' });

  // Leaving.
  other.leave();
  await tapes.ben.until('unsubscribed');
  await tapes.ann.until('presence.left');
  for (const one of [ann, ben, cid, dan]) one.close();
  return { refused, tapes: Object.fromEntries(Object.entries(tapes).map(([name, { messages }]) => [name, summary(messages)])) };
}

/** Calls, and what the backend answers to each; tests/integration/test_sdk_parity.py answers the same. @type {[id: string, name: string, data: any][]} */
const CALLS = [
  ['replied', 'order.quote', { item: 'tea' }],
  ['failed', 'order.quote', { item: 'cake' }],
  ['refused', 'order.quote', { item: 'gold' }],
  ['no answer', 'order.quote', { item: 'air' }],
  ['bad data', 'order.quote', {}],
  ['bad name', 'order.qoute', {}],
  ['any data', 'order.place', null],
].map(([id, name, data]) => [String(id).replace(' ', '-'), String(name), data]);

/** @type {Record<string, () => any>} */
const ANSWERS = {
  tea: () => ({ price: 5 }),
  cake: () => {
    throw new TidewireError('call_failed', 'no cake', { details: { reason: 'sold_out', data: { left: 0 } } });
  },
  gold: () => {
    throw new TidewireError('forbidden', 'no', { details: { reason: 'banned' } });
  },
  air: () => ({}),
};

/** Makes the calls, and returns what the client has received. @param {(tape: Tape) => Tidewire} make */
async function playCalls(make) {
  const tape = new Tape();
  const client = make(tape);
  await client.connect();
  const ends = [];
  for (const [id, name, data] of CALLS) ends.push(await client.call(name, data, { id }).catch(({ code }) => code));
  client.close();
  return { ends, ...summary(tape.messages) };
}

/**
 * What must be the same: replies by id, and the other messages in their order. Events and replies may overtake each other.
 * @param {any[]} messages
 */
function summary(messages) {
  /** @type {Map<string, string>} */
  const names = new Map();
  const rename = (/** @type {string} */ kind, /** @type {string} */ value) => {
    const key = `${kind} ${value}`;
    if (!names.has(key)) names.set(key, `${kind}-${names.size}`);
    return names.get(key);
  };
  const plain = (/** @type {any} */ message) => {
    const { type, at, epoch, limits, connection, features, expires_in, details, message: text, presence, ...rest } = message;
    const own = /^[0-9a-z]{16,}-/.test(rest.id ?? '') || type.startsWith('presence.') || type === 'chat.typing' || type === 'event.removed';
    const result = { type, ...rest, id: own ? 'generated' : rest.id };
    if (result.ttl) result.ttl = result.ttl > 29_000;
    if (rest.last?.startsWith('removed-')) result.last = 'generated';
    if (epoch) result.epoch = rename('epoch', epoch);
    if (details) result.details = { ...details, errors: details.errors?.map((/** @type {any} */ { path }) => path), suggestion: undefined };
    if (presence) result.presence = { ...presence, members: presence.members?.map((/** @type {any} */ member) => ({ ...member, connections: undefined })) };
    if (connection) result.connection = typeof connection;
    for (const list of ['events', 'state', 'tail']) if (rest[list]) result[list] = rest[list].map(plain);
    return JSON.parse(JSON.stringify(result));
  };
  const all = messages.map(plain).filter(({ type }) => type !== 'pong');
  const isReply = (/** @type {any} */ { type }) => !type.includes('.');
  return { replies: all.filter(isReply), events: all.filter((message) => !isReply(message)) };
}

/** Checks what the contract for tests needs: types, required and other properties. @param {any} schema @param {any} data */
function validate({ type, required = [], properties = {}, additionalProperties }, data) {
  const faults = [];
  if (type === 'object' && (data === null || typeof data !== 'object')) return [{ path: '$.data', message: 'no object' }];
  for (const name of required) if (!(name in data)) faults.push({ path: '$.data', message: `no ${name}` });
  for (const [name, value] of Object.entries(data)) {
    if (properties[name]?.type === 'string' && typeof value !== 'string') faults.push({ path: `$.data.${name}`, message: 'no text' });
    else if (!(name in properties) && additionalProperties === false) faults.push({ path: '$.data', message: `${name} is unknown` });
  }
  return faults;
}

const { url, api, key, tokens, granting, shop } = JSON.parse(process.argv[2]);

/** @param {string} method @param {string} path @param {any} [body] @param {string} [of]  the API of another service */
async function backend(method, path, body, of = api) {
  const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
  const response = await fetch(`${of}/api/v1/${path}`, { method, headers, body: body && JSON.stringify(body) });
  const content = await response.json();
  assert.ok(response.ok, JSON.stringify(content));
  return content;
}

const options = { backoffBase: 1, network: null };
const real = await play({
  client: (name, tape) => new Tidewire(url, { ...options, token: tokens[name], link: tape.recording(webSocketLinks(/** @type {any} */ (WebSocket))) }),
  publish: (channel, event) => backend('POST', `channels/${channel}/events`, event),
  takeBack: (channel, id) => backend('DELETE', `channels/${channel}/events/${id}`),
  purge: (channel) => backend('DELETE', `channels/${channel}/history`),
  granting,
});

const service = new TestService({ contract: await backend('GET', 'asyncapi.json'), validate, clock: systemClock, presenceDebounce: DEBOUNCE });
const simulated = await play({
  client: (name, tape) => {
    const given = service.optionsFor(name, { grants: GRANTS[name] });
    return new Tidewire(service.url, { ...given, ...options, link: tape.recording(given.link) });
  },
  publish: async (channel, { type, data, id, from }) => service.publish(channel, type, data, { id, from }),
  takeBack: async (channel, id) => service.takeBack(channel, id),
  purge: async (channel) => service.newEpoch(channel),
  granting: service.subscriptionToken('dan', { grants: ['room:9'] }),
});

const called = await playCalls((tape) => new Tidewire(shop.url, { ...options, token: tokens.ann, link: tape.recording(webSocketLinks(/** @type {any} */ (WebSocket))) }));
const store = new TestService({ contract: await backend('GET', 'asyncapi.json', undefined, shop.api), validate, clock: systemClock });
store.onCall('order.quote', ({ item }) => ANSWERS[item]());
store.onCall('order.place', (data) => data);
assert.deepEqual(await playCalls((tape) => new Tidewire(store.url, { ...store.options, ...options, link: tape.recording(store.options.link) })), called);
assert.deepEqual(called.ends, [{ price: 5 }, 'call_failed', 'forbidden', 'hook_unavailable', 'invalid_data', 'unknown_call', null]);

const messages = Object.values(real.tapes).reduce((sum, { replies, events }) => sum + replies.length + events.length, 0);
assert.deepEqual(simulated, real);
assert.ok(messages > 60, `only ${messages} messages were compared`);
console.log(`${messages} messages are the same`);
process.exit(0);
