// The fallback against a scripted service: what it does with refusals, ends and rubbish. tests/integration/test_js_fallback.py runs it
// against the real service.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Tidewire } from '../src/tidewire.js';
import { Inbox, TestClock, WELCOME, message, soon, subscribed, turn } from './support.js';

/** A WebSocket class that a proxy blocks, or not. */
class Blocked {
  /** @type {any} */
  onclose;
  /** @type {any} */
  onopen;
  /** @type {any} */
  onmessage;
  protocol = 'tidewire.v1';
  static works = false;
  constructor() {
    queueMicrotask(() => (Blocked.works ? this.onopen?.() : this.onclose?.({ code: 1006, reason: '' })));
  }
  /** @param {string} frame */
  send(frame) {
    if (frame.includes('ping')) queueMicrotask(() => this.onmessage?.({ data: '{"type":"error","code":"unauthenticated"}' }));
  }
  close() {}
}

/** Waits for what needs turns of the loop only. @param {() => boolean} holds */
async function until(holds) {
  for (let turns = 0; !holds(); turns += 1) {
    if (turns > 5_000) throw new Error(`not within 5 000 turns: ${holds}`);
    await turn();
  }
}

/** @param {number} status @param {any} body */
const json = (status, body) =>
  new Response(JSON.stringify(body), { status, headers: { 'content-type': status < 300 ? 'application/json' : 'application/problem+json' } });
/** @param {number} status @param {string} code @param {any} [details] @param {boolean} [retryable] */
const problem = (status, code, details = {}, retryable = false) => json(status, { status, code, detail: code, details, retryable });

/** One `POST /stream`, seen from the service. */
class StreamPeer {
  /** @type {any} */
  #controller;
  body = new ReadableStream({ start: (controller) => void (this.#controller = controller) });

  /** @param {any} request @param {AbortSignal} signal */
  constructor(request, signal) {
    this.request = request;
    this.aborted = new Promise((resolve) => signal.addEventListener('abort', resolve));
  }

  /** @param {string} text */
  raw(text) {
    this.#controller.enqueue(new TextEncoder().encode(text));
  }

  /** @param {any[]} messages */
  send(...messages) {
    this.raw(`data: ${JSON.stringify(messages)}\n\n`);
  }

  /** @param {string} receipt */
  welcome(receipt = 'v1.1') {
    this.send({ ...WELCOME, features: ['calls', 'history_pages'] }, { type: 'receipt', receipt, expires_in: 300 });
    for (const { channel } of this.request.subscriptions) this.send(subscribed({ id: null, channel }));
  }

  end() {
    this.#controller.close();
  }
}

/** A client whose WebSockets are blocked. @param {import('node:test').TestContext} t @param {any} [options] */
function scene(t, options = {}) {
  Blocked.works = false;
  const clock = new TestClock();
  /** @type {Inbox<StreamPeer>} */
  const streams = new Inbox();
  /** @type {Inbox<{path: string, body: any, answer: (response: Response) => void}>} */
  const requests = new Inbox();
  /** @type {string[]} */
  const paths = [];
  const plain = { answer: () => problem(426, 'upgrade_required') };
  /** @type {any} */
  const fetch = async (/** @type {string} */ url, /** @type {any} */ { body, signal }) => {
    const path = new URL(url).pathname;
    paths.push(path);
    if (path === '/ws') return plain.answer();
    if (path === '/stream' && !options.answers) {
      const peer = new StreamPeer(JSON.parse(body), signal);
      streams.put(peer);
      return new Response(peer.body, { headers: { 'content-type': 'text/event-stream' } });
    }
    return new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason));
      requests.put({ path, body: body && JSON.parse(body), answer: resolve });
    });
  };
  /** @type {any[]} */
  const errors = [];
  const client = new Tidewire('ws://service.example/ws', { token: 't', WebSocket: Blocked, network: null, clock, random: () => 0.5, fetch, ...options });
  client.on('error', (error) => errors.push(error.code));
  t.after(() => client.close());
  /** Makes the next try due. */
  const retry = async () => {
    await until(() => client.status.retryIn !== undefined);
    clock.advance(client.status.retryIn ?? 0);
  };
  /** The client in `room:1`, over a stream. */
  const ready = async () => {
    const room = client.channel('room:1');
    void client.connect();
    await retry();
    const peer = await streams.next('a stream');
    peer.welcome();
    await soon(room.subscribed, 'subscribed');
    return { room, peer };
  };
  return { client, clock, streams, requests, paths, plain, errors, retry, ready };
}

test('two failed tries and the answer of the service are needed', async (t) => {
  const { client, paths, plain, retry, streams } = scene(t);
  plain.answer = () => new Response('<html>', { status: 403, headers: { 'content-type': 'text/html' } });
  void client.connect();
  for (let n = 0; n < 4; n += 1) await retry();
  await until(() => client.status.retryIn !== undefined);
  assert.deepEqual([...new Set(paths)], ['/ws'], 'the page of a proxy says nothing about the service');
  plain.answer = () => problem(426, 'upgrade_required');
  await retry();
  await retry();
  (await streams.next('a stream')).welcome();
});

test('an emit goes on with the receipt of the next stream, with the same id', async (t) => {
  const { client, requests, streams, ready, clock } = scene(t);
  const { room, peer } = await ready();
  const acked = room.publish('chat.message', { text: 'hi' });
  const first = await requests.next('an emit');
  assert.equal(first.body.receipt, 'v1.1');
  first.answer(problem(403, 'invalid_receipt'));
  clock.advance(1);
  await turn();
  clock.advance(1);
  const next = await streams.next('another stream');
  await peer.aborted;
  assert.deepEqual(next.request.subscriptions, [{ channel: 'room:1', since: { epoch: 'e1', offset: 0 } }]);
  next.welcome('v1.2');
  await turn();
  clock.advance(2_000);
  const second = await requests.next('the emit again');
  assert.deepEqual([second.body.receipt, second.body.id], ['v1.2', first.body.id]);
  second.answer(json(200, { type: 'ack', id: first.body.id, offset: 1 }));
  assert.equal((await soon(acked, 'the ack')).offset, 1);
  assert.equal(client.pending, 0);
});

test('a new token of another user ends the session, and sends nothing that the first user has published', async (t) => {
  let user = 'ann';
  const { client, requests, streams, ready, retry, clock } = scene(t, { token: () => user });
  const { room, peer } = await ready();
  const published = room.publish('chat.message', { text: 'hi' });
  await requests.next('an emit without an answer');
  user = 'ben';
  peer.send({ type: 'expiring', in: 10 });
  await until(() => (clock.advance(1), streams.length > 0));
  const next = await streams.next('a stream of the new token');
  next.send({ ...WELCOME, user: 'ben' }, { type: 'receipt', receipt: 'v1.2', expires_in: 300 });
  await retry();
  const other = await streams.next('a session of its own');
  other.send({ ...WELCOME, user: 'ben' }, { type: 'receipt', receipt: 'v1.3', expires_in: 300 });
  await assert.rejects(soon(published, 'the end of the publish'), { code: 'uncertain', message: /another user/ });
  assert.equal(client.pending, 0);
  void room.publish('chat.message', { text: 'mine' }).catch(() => {});
  await until(() => (clock.advance(100), requests.length > 0));
  assert.deepEqual((await requests.next('an emit')).body.data, { text: 'mine' });
});

test('publishes of a channel go one after the other, and what fails on the way is sent again', async (t) => {
  const { requests, ready, clock } = scene(t);
  const { room } = await ready();
  const acks = [room.publish('chat.message', { n: 1 }), room.publish('chat.message', { n: 2 })];
  const first = await requests.next('the first');
  first.answer(new Response('<html>', { status: 502 }));
  await turn();
  assert.equal(requests.length, 0, 'the second waits');
  clock.advance(1_000);
  const again = await requests.next('the first again');
  assert.equal(again.body.id, first.body.id);
  again.answer(json(200, { type: 'ack', id: again.body.id, offset: 1 }));
  const second = await requests.next('the second');
  assert.equal(second.body.data.n, 2);
  second.answer(problem(422, 'invalid_data'));
  await acks[0];
  await assert.rejects(acks[1], { code: 'invalid_data' });
});

test('codes of `closed` count as over WebSockets, and `retry` spreads returns', async (t) => {
  const { client, streams, ready, clock } = scene(t);
  const { peer } = await ready();
  peer.raw('retry: 700\n\ndata: {"type":"closed","code":1012,"reason":"drain"}\n\n');
  await until(() => client.state !== 'ready');
  assert.deepEqual([client.status.reason, client.status.retryIn], ['RESTART', 700]);
  clock.advance(700);
  const next = await streams.next('a stream');
  next.welcome();
  await until(() => client.state === 'ready');
  next.send({ type: 'closed', code: 4409, reason: 'replaced' });
  await until(() => client.state === 'closed');
  assert.equal(client.status.reason, 'REPLACED');
});

test('a service without streams does not end the client', async (t) => {
  const { client, requests, retry, errors } = scene(t, { answers: 'nothing' });
  void client.connect();
  await retry();
  (await requests.next('a stream')).answer(problem(404, 'not_found'));
  await until(() => client.status.retryIn !== undefined);
  assert.deepEqual([client.state, client.status.reason, errors], ['reconnecting', 'http_404', ['unexpected_response']]);
});

test('a refused channel is named, and the others begin without it', async (t) => {
  const { client, requests, retry } = scene(t, { answers: 'nothing' });
  const [one, two] = ['room:1', 'room:2'].map((name) => client.channel(name));
  void client.connect();
  await retry();
  (await requests.next('a stream')).answer(problem(403, 'forbidden', { channel: 'room:1' }));
  const next = await requests.next('the next stream');
  assert.deepEqual(next.body.subscriptions, [{ channel: 'room:2' }]);
  const messages = [WELCOME, { type: 'receipt', receipt: 'r' }, subscribed({ id: null, channel: 'room:2' })];
  next.answer(new Response(`data: ${JSON.stringify(messages)}\n\n`, { headers: { 'content-type': 'text/event-stream' } }));
  await soon(two.subscribed, 'subscribed');
  await assert.rejects(one.subscribed, { code: 'forbidden' });
});

test('rubbish in a stream is survived, and a cut resumes at the position', async (t) => {
  const { client, streams, ready, retry } = scene(t);
  const { room, peer } = await ready();
  /** @type {Inbox<any>} */
  const events = new Inbox();
  room.on('*', ({ offset }) => events.put(offset));
  for (const text of [': comment\n', 'data: not json\n\n', 'data: [null,{},7]\n\n', 'nonsense\n', 'data:\n\n', 'retry: x\n\n', 'data: {"type":"presence","channel":"room:1"}\n\n']) peer.raw(text);
  const event = `data: ${JSON.stringify(message(1))}\r\n\r\n`;
  peer.raw(event.slice(0, 20));
  peer.raw(event.slice(20));
  assert.equal(await events.next(), 1);
  peer.end();
  await retry();
  const next = await streams.next('a stream');
  assert.deepEqual(next.request.subscriptions, [{ channel: 'room:1', since: { epoch: 'e1', offset: 1, id: 'm-1' } }]);
  next.send({ ...WELCOME }, { type: 'receipt', receipt: 'v1.3' });
  next.send(subscribed({ id: null, channel: 'room:1' }, { offset: 2, last: 'm-2', events: [message(1), message(2)], recovered: true }), message(2), message(3));
  assert.equal(await events.next(), 2);
  assert.equal(await events.next(), 3);
  assert.equal(events.length, 0);
  assert.equal(client.status.transport, 'stream');
});

test('a channel with a token of its own waits for WebSockets, and the way back is tried at growing intervals', async (t) => {
  const { client, ready, clock, errors } = scene(t);
  await ready();
  client.channel('room:9', { token: () => 'u' });
  await turn();
  assert.equal(client.state, 'ready');
  assert.match(client.explain(), /WebSockets are blocked: streams \(\d+ streams, \d+ requests\); the next try of a WebSocket is in 15 s, after 0 failed/);
  clock.advance(15_000);
  await turn();
  assert.match(client.explain(), /in 30 s, after 1 failed/);
  Blocked.works = true;
  clock.advance(30_000);
  await until(() => client.status.transport === 'websocket');
  assert.equal(client.status.reason, 'websocket');
  assert.deepEqual(errors.filter((code) => code !== 'unexpected_response'), []);
});

test('streams that are held back lead to polls, which keep to the rates and go on with their receipts', async (t) => {
  const { client, clock, requests, retry } = scene(t, { answers: 'nothing' });
  const room = client.channel('room:1');
  void client.connect();
  await retry();
  assert.equal((await requests.next('a stream')).path, '/stream');
  clock.advance(1_200);
  const first = await requests.next('a poll');
  assert.deepEqual([first.path, first.body.wait, first.body.subscriptions], ['/poll', 0, [{ channel: 'room:1' }]]);
  first.answer(json(200, { messages: [WELCOME, subscribed({ id: null, channel: 'room:1' })], receipt: 'r1', expires_in: 300 }));
  await soon(room.subscribed, 'subscribed');
  assert.equal(client.status.transport, 'poll');
  const second = await requests.next('the next poll');
  assert.deepEqual([second.body.receipt, second.body.subscriptions, second.body.wait], ['r1', undefined, 20]);
  second.answer(problem(503, 'broker_unavailable', { retry_after: 2 }, true));
  await turn();
  clock.advance(3_000);
  const third = await requests.next('the poll again');
  assert.equal(third.body.receipt, 'r1');
  client.channel('room:2');
  await turn();
  clock.advance(50);
  const changed = await requests.next('a poll with the new list');
  assert.deepEqual([changed.body.receipt, changed.body.subscriptions], ['r1', [{ channel: 'room:1' }, { channel: 'room:2' }]]);
  changed.answer(json(200, { messages: [{ type: 'closed', code: 1012, reason: 'drain' }], receipt: 'r2' }));
  assert.equal((await requests.next('at once')).body.receipt, 'r2');
  assert.equal(client.state, 'ready');
});

test('calls are requests of their own, and slow ones hold up no publishes', async (t) => {
  const { client, requests, ready } = scene(t);
  const { room } = await ready();
  const answers = [1, 2, 3].map((n) => client.call('order.quote', { n }));
  const first = await requests.next('a call');
  assert.deepEqual([first.path, first.body.call, first.body.data, first.body.receipt, typeof first.body.id], ['/call', 'order.quote', { n: 1 }, 'v1.1', 'string']);
  const second = await requests.next('another call');
  const published = room.publish('chat.message', {});
  const emit = await requests.next('an emit');
  assert.equal(emit.path, '/emit', 'the third call waits');
  emit.answer(json(200, { type: 'ack', id: emit.body.id, offset: 1 }));
  await published;
  first.answer(json(200, { type: 'reply', id: first.body.id, data: { price: 1 } }));
  assert.deepEqual(await answers[0], { price: 1 });
  second.answer(problem(422, 'call_failed', { reason: 'sold_out', data: { left: 0 } }));
  await assert.rejects(answers[1], { code: 'call_failed', details: { reason: 'sold_out', data: { left: 0 } } });
  const third = await requests.next('the third call');
  third.answer(new Response('<html>', { status: 502 }));
  await assert.rejects(answers[2], { code: 'uncertain', retryable: true });
  assert.equal(requests.length, 0);
});

test('a call may take as long as a contract allows, and ends with its stream', async (t) => {
  const { client, clock, requests, ready } = scene(t);
  const { peer } = await ready();
  const slow = client.call('order.quote', {}, { timeout: 50_000 });
  const request = await requests.next('a call');
  for (let passed = 0; passed < 35_000; passed += 5_000) {
    peer.raw(': it lives\n\n');
    await turn();
    clock.advance(5_000);
  }
  request.answer(json(200, { type: 'reply', id: request.body.id, data: 'at last' }));
  assert.equal(await slow, 'at last');
  const lost = client.call('order.quote', {});
  await requests.next('another call');
  peer.end();
  await assert.rejects(lost, { code: 'uncertain' });
});
