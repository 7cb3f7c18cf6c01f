import { once } from 'node:events';
import { createServer } from 'node:http';
import { WebSocket, WebSocketServer } from 'ws';
import { haveParts } from '../src/testing/parts.js';
import { Tidewire } from '../src/tidewire.js';

haveParts(); // parts.test.js has clients without them

/** Rejects rather than hangs: nothing in these tests takes longer. @template T @param {Promise<T>} promise @param {string} what @returns {Promise<T>} */
export async function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within 5 s: ${what}`)), 5_000);
  });
  try {
    return await Promise.race([promise, /** @type {Promise<never>} */ (late)]);
  } finally {
    clearTimeout(timer);
  }
}

/** A queue whose `next` waits for what has not arrived yet. @template T */
export class Inbox {
  /** @type {T[]} */
  #items = [];
  /** @type {((item: T) => void)[]} */
  #waiting = [];

  /** @param {T} item */
  put = (item) => {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(item);
    else this.#items.push(item);
  };

  /** @param {string} what @returns {Promise<T>} */
  next(what = 'the next item') {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve(item);
    return soon(new Promise((resolve) => this.#waiting.push(resolve)), what);
  }

  get length() {
    return this.#items.length;
  }
}

/** Time that only tests move. */
export class TestClock {
  #now = 1_000;
  #id = 0;
  /** @type {Map<number, {at: number, run: () => void}>} */
  #timers = new Map();

  now = () => this.#now;

  /** @param {() => void} run @param {number} ms */
  setTimeout = (run, ms) => {
    this.#id += 1;
    this.#timers.set(this.#id, { at: this.#now + ms, run });
    return this.#id;
  };

  /** @param {number} id */
  clearTimeout = (id) => {
    this.#timers.delete(id);
  };

  /** Runs every timer due within `ms`, in order. @param {number} ms */
  advance(ms) {
    if (!(ms >= 0)) throw new RangeError(`${ms}`);
    const until = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= until).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1].at);
      due[1].run();
    }
    this.#now = until;
  }
}

export const WELCOME = {
  type: 'welcome',
  connection: 'c-1',
  user: 'ann',
  heartbeat: 25,
  limits: { message: 65536, batch: 100, subscriptions: 128, rate: 20, burst: 100 },
  features: ['calls', 'subscription_token', 'tail'],
};

/** One connection, seen from the service. */
export class Peer {
  /** @type {Inbox<any>} every message, batches taken apart */
  messages = new Inbox();
  /** @type {Inbox<any>} every frame as it came */
  frames = new Inbox();
  #socket;

  /** @param {WebSocket} socket @param {import('node:http').IncomingMessage} request */
  constructor(socket, request) {
    this.#socket = socket;
    this.url = request.url ?? '';
    this.closed = once(socket, 'close');
    socket.on('message', (data) => {
      const frame = JSON.parse(data.toString());
      this.frames.put(frame);
      for (const message of Array.isArray(frame) ? frame : [frame]) this.messages.put(message);
    });
  }

  /** @param {any} message */
  send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  /** @param {string | Buffer} data */
  raw(data) {
    this.#socket.send(data);
  }

  /** @param {string} type @returns {Promise<any>} the next message, which must be of this type */
  async expect(type) {
    const message = await this.messages.next(type);
    if (message.type !== type) throw new Error(`${type} expected, not ${JSON.stringify(message)}`);
    return message;
  }

  /** Takes `hello` and `ready`, and answers `welcome`. @param {any} [welcome] */
  async welcome(welcome = WELCOME) {
    await this.expect('hello');
    await this.expect('ready');
    this.send(welcome);
  }

  /** Answers the next `subscribe`. @param {any} [more] of `subscribed` @returns {Promise<any>} the request */
  async subscribe(more) {
    const request = await this.expect('subscribe');
    this.send(subscribed(request, more));
    return request;
  }

  /** Answers the next publish with `ack`. @param {any} [more] @returns {Promise<any>} the event */
  async ack(more) {
    const event = await this.messages.next('a publish');
    this.send({ type: 'ack', id: event.id, offset: 1, ...more });
    return event;
  }

  /** @param {number} code */
  close(code) {
    this.#socket.close(code);
  }

  terminate() {
    this.#socket.terminate();
  }
}

/** A service that does what the test says. */
export class TestServer {
  /** @type {Inbox<Peer>} */
  peers = new Inbox();
  /** @type {null | {status: number, headers?: Record<string, string>, code?: string, body?: string, isEndless?: boolean}} refuses upgrades and answers plain GETs so */
  refusal = null;
  /** Bytes of endless bodies that were sent. */
  sent = 0;
  #http = createServer((_, response) => {
    const { status, headers, code, body, isEndless } = this.refusal ?? { status: 426, code: 'upgrade_required' };
    response.writeHead(status, { 'content-type': body ? 'text/html' : 'application/problem+json', ...headers });
    if (isEndless) this.#sendForever(response);
    else response.end(body ?? JSON.stringify({ status, code, detail: `refused with ${code}` }));
  });
  #sockets = new WebSocketServer({ noServer: true, handleProtocols: () => 'tidewire.v1' });

  /** @param {import('node:http').ServerResponse} response */
  #sendForever(response) {
    const chunk = Buffer.alloc(65_536, 32);
    const send = () => {
      do this.sent += chunk.length;
      while (response.write(chunk) && !response.destroyed);
    };
    response.on('drain', send);
    send();
  }

  async start() {
    this.#http.on('upgrade', (request, socket, head) => {
      if (this.refusal) {
        socket.end(`HTTP/1.1 ${this.refusal.status} Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
        return;
      }
      this.#sockets.handleUpgrade(request, socket, head, (ws) => this.peers.put(new Peer(ws, request)));
    });
    this.#http.listen(0, '127.0.0.1');
    await once(this.#http, 'listening');
    const { port } = /** @type {import('node:net').AddressInfo} */ (this.#http.address());
    this.url = `ws://127.0.0.1:${port}/ws`;
    return this;
  }

  peer() {
    return this.peers.next('a connection');
  }

  async stop() {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#http.closeAllConnections();
    this.#http.close();
    await once(this.#http, 'close');
  }
}

/**
 * A started server and a client for it; both end with the test.
 * @param {import('node:test').TestContext} t
 * @param {import('../src/client.js').Options} [options]
 * @param {typeof Tidewire} [Client]
 */
export async function scene(t, options = {}, Client = Tidewire) {
  const server = await new TestServer().start();
  const clock = new TestClock();
  const client = new Client(/** @type {string} */ (server.url), {
    token: 'token-1',
    WebSocket,
    clock,
    random: () => 0.5,
    network: null,
    ...options,
  });
  /** @type {Inbox<import('../src/client.js').Status>} */
  const states = new Inbox();
  client.on('state', states.put);
  /** @type {Inbox<import('../src/errors.js').TidewireError>} */
  const errors = new Inbox();
  client.on('error', errors.put);
  t.after(async () => {
    client.close();
    await server.stop();
  });
  /** Waits for a state; `waiting` is any that waits for its next try. @param {string} name */
  const until = async (name) => {
    for (;;) {
      const change = await states.next(`state ${name}`);
      if (name === 'waiting' ? change.retryIn !== undefined : change.state === name) return change;
    }
  };
  /** Waits until the client waits, and makes its next try due. */
  const retry = async () => {
    const change = await until('waiting');
    clock.advance(change.retryIn ?? 0);
    return change;
  };
  return { server, clock, client, states, errors, until, retry };
}

/** The client connected, and the service's side of it. @param {import('node:test').TestContext} t @param {import('../src/client.js').Options} [options] */
export async function connected(t, options) {
  const { server, ...rest } = await scene(t, options);
  void rest.client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await rest.until('ready');
  return { server, peer, ...rest };
}

/** @param {any} request a `subscribe` @param {any} [more] */
export function subscribed({ id, channel }, more = {}) {
  return { type: 'subscribed', id, channel, epoch: 'e1', offset: 0, events: [], state: [], ...more };
}

/** @param {number} offset @param {any} [more] */
export function message(offset, more = {}) {
  return { type: 'chat.message', channel: 'room:1', id: `m-${offset}`, at: 1, from: 'ben', data: { n: offset }, offset, ...more };
}

/** A latest value of `room:1`. @param {string} key @param {number} rev @param {any} [more] */
export function value(key, rev, more = {}) {
  return { type: 'doc.cursor', channel: 'room:1', id: `${key}-${rev}`, at: 1, from: key, data: { rev }, rev, key, ...more };
}

/** A subscribed `room:1` at offset 7. @param {import('node:test').TestContext} t @param {import('../src/client.js').Options} [options] */
export async function room(t, options) {
  const scene = await connected(t, options);
  const channel = scene.client.channel('room:1');
  /** @type {Inbox<any>} */
  const events = new Inbox();
  channel.on('*', ({ id }) => events.put(id));
  await scene.peer.subscribe({ offset: 7, last: 'm-7' });
  await channel.subscribed;
  return { ...scene, channel, events };
}

/** Lets everything run that waits for nothing but its turn. */
export const turn = () => new Promise((resolve) => setImmediate(resolve));
