// One client, the service in memory, and what must hold whatever happens to them. schedules.test.js drives it.

import { TestService } from '../src/testing/index.js';
import { Tidewire } from '../src/tidewire.js';

const CHANNELS = ['room:1', 'room:2'];
/** Publishes and reads that may wait for an answer. */
const MAX_PENDING = 6;
const MAX_LISTENERS = 5;
/** How a publish may end without an ack; all else is a fault of the client. */
const ENDINGS = ['timeout', 'uncertain', 'not_sent', 'queue_full', 'AbortError', 'forbidden', 'internal', 'rate_limited', 'broker_unavailable'];

/**
 * @typedef {{id: string, channel: string, ack?: number, ended?: string}} Publish
 * @typedef {{id: string, retry: boolean, reply?: any, ended?: string}} Call
 */

/** Follows what one handle hears. */
class Follower {
  /** @type {{epoch: string, offset: number} | undefined} after the last event */
  position;
  hasLeft = false;
  #world;
  #isBusy = false;
  #mayRepeat = false;

  /** @param {World} world @param {import('../src/channel.js').Channel} handle */
  constructor(world, handle) {
    this.#world = world;
    this.handle = handle;
    handle.on('subscribed', (info) => this.#subscribed(info));
    handle.on('chat.message', (event) => this.#event(event));
    for (const name of /** @type {const} */ (['values', 'removed', 'presence', 'chat.typing', 'doc.value'])) handle.on(name, () => this.#mayHear(name));
    for (const name of /** @type {const} */ (['error', 'unsubscribed'])) handle.on(name, () => {});
  }

  /** The client closes: an event whose listener has not finished may come again. */
  closed() {
    this.#mayRepeat = this.#isBusy;
  }

  /** @param {string} name */
  #mayHear(name) {
    this.#world.expect(!this.#world.isClosed, `${name} after close()`);
    this.#world.expect(!this.hasLeft, `${name} after leave()`);
  }

  /** @param {import('../src/tidewire.js').SubscribedInfo} info */
  #subscribed({ recovered, epoch, offset, missed }) {
    this.#mayHear('subscribed');
    const known = this.handle.position;
    const start = known?.epoch === epoch ? Math.max(known.offset, offset - missed) : offset - missed;
    if (!this.position || recovered === false) this.position = { epoch, offset: start };
    else {
      this.#world.expect(epoch === this.position.epoch, 'another epoch, and `recovered` is not false');
      this.#world.expect(offset - missed <= this.position.offset, `events are missing before ${offset - missed}, and \`recovered\` is not false`);
    }
  }

  /** @param {import('../src/messages.js').Event} event */
  #event({ id, offset = 0 }) {
    this.#mayHear('an event');
    const world = this.#world;
    const known = this.handle.position;
    if (!known) return world.expect(false, 'an event before `subscribed`');
    // A handle that came later begins with any event.
    const position = (this.position ??= { epoch: known.epoch, offset: offset - 1 });
    if (this.#mayRepeat && offset === position.offset) position.offset -= 1;
    this.#mayRepeat = false;
    world.expect(offset === position.offset + 1, `offset ${offset} after ${position.offset}`);
    world.expect(world.log.get(this.handle.name, position.epoch, offset) === id, `${id} is not the event at ${offset}`);
    position.offset = offset;
    if (!world.isSlow) return undefined;
    this.#isBusy = true;
    return new Promise((resolve) => {
      world.service.clock.setTimeout(() => {
        this.#isBusy = false;
        resolve(undefined);
      }, 300);
    });
  }
}

/** Every event that the service has stored, also those that its store has lost since. */
export class Log {
  /** @type {Map<string, string>} ids by channel, epoch and offset */
  #ids = new Map();
  /** @type {Map<string, number>} how often the backend was asked, by the id of the call */
  asked = new Map();
  #service;

  /** @param {TestService} service */
  constructor(service) {
    this.#service = service;
    service.onCall('order.quote', ({ n }, { id }) => {
      this.asked.set(id, (this.asked.get(id) ?? 0) + 1);
      return n % 2 ? new Promise((resolve) => service.clock.setTimeout(() => resolve(id), 3_000)) : id;
    });
  }

  /** @param {string} channel @param {string} epoch @param {number} offset */
  get(channel, epoch, offset) {
    const name = `${channel} ${epoch} ${offset}`;
    if (!this.#ids.has(name)) this.read();
    return this.#ids.get(name);
  }

  /** Reads what the service has now. */
  read() {
    for (const channel of CHANNELS) {
      const { epoch } = this.#service.position(channel);
      for (const { id, offset } of this.#service.history(channel)) this.#ids.set(`${channel} ${epoch} ${offset}`, id);
    }
  }

  /** Ids in the order of their offsets, by channel and epoch. @returns {Map<string, string[]>} */
  streams() {
    this.read();
    /** @type {Map<string, string[]>} */
    const streams = new Map();
    for (const [name, id] of this.#ids) {
      const stream = name.slice(0, name.lastIndexOf(' '));
      streams.set(stream, [...(streams.get(stream) ?? []), id]);
    }
    return streams;
  }
}

/** What a schedule acts on: one client. Its methods are the steps. */
export class World {
  service;
  log;
  client;
  tab;
  isClosed = true;
  /** Whether listeners need 300 ms for an event. */
  isSlow = false;
  /** @type {string[]} what did not hold */
  faults = [];
  /** @type {Follower[]} */
  #followers = [];
  #prefix;
  /** @type {Publish[]} in the order of the calls */
  #publishes = [];
  /** @type {Call[]} */
  #calls = [];
  #open = 0;
  /** @type {(() => void) | undefined} ends the dead link */
  #revive;

  /** @param {TestService} [service] @param {Log} [log] @param {import('./browser.js').Tab} [tab]  for a client that shares its connection @param {string} [prefix]  of ids */
  constructor(service = new TestService(), log = new Log(service), tab, prefix = 'p') {
    this.service = service;
    this.log = log;
    this.tab = tab;
    this.#prefix = prefix;
    const options = { ...service.options, maxPending: MAX_PENDING, maxQueue: 4, requestTimeout: 20_000 };
    this.client = new Tidewire(service.url, tab?.options(options) ?? options);
    this.client.on('error', ({ code, message }) => this.expect(!/^(handler_|internal$)/.test(code) || /the test refuses/.test(message), message));
    this.client.on('state', ({ state }) => this.expect(!this.isClosed || state === 'closed', `${state} after close()`));
  }

  /** @param {boolean} holds @param {string} fault */
  expect(holds, fault) {
    if (!holds) this.faults.push(fault);
  }

  // --- the caller -----------------------------------------------------------------------------------------------------------

  /** @param {number} n */
  join(n) {
    if (this.#followers.length < MAX_LISTENERS) this.#followers.push(new Follower(this, this.client.channel(CHANNELS[n % 2])));
  }

  /** @param {number} n */
  leave(n) {
    const [follower] = this.#followers.splice(n, 1);
    follower?.handle.leave();
    if (follower) follower.hasLeft = true;
  }

  /** @param {number} n @param {AbortSignal} [signal] */
  publish(n, signal) {
    const channel = CHANNELS[n % 2];
    /** @type {Publish} */
    const publish = { id: `${this.#prefix}-${this.#publishes.length}`, channel };
    this.#publishes.push(publish);
    this.#open += 1;
    const settle = (/** @type {Partial<Publish>} */ end) => {
      this.expect(publish.ack === undefined && publish.ended === undefined, `${publish.id} has settled twice`);
      Object.assign(publish, end);
      this.#open -= 1;
    };
    const data = { n };
    this.client.publish(channel, 'chat.message', data, { id: publish.id, signal }).then(
      ({ offset }) => settle({ ack: offset }),
      (error) => settle({ ended: error.name === 'AbortError' ? error.name : error.code }),
    );
    data.n = -1; // the data is copied at the call
    this.expect(this.client.pending <= MAX_PENDING, `${this.client.pending} publishes wait`);
  }

  /** Calls the backend, which is slow if `n` is odd. @param {number} n */
  call(n) {
    /** @type {Call} */
    const call = { id: `${this.#prefix}-c${this.#calls.length}`, retry: n > 1 };
    this.#calls.push(call);
    this.#open += 1;
    const settle = (/** @type {Partial<Call>} */ end) => {
      Object.assign(call, end);
      this.#open -= 1;
    };
    this.client.call('order.quote', { n }, { id: call.id, retry: call.retry }).then((reply) => settle({ reply }), ({ code }) => settle({ ended: code }));
  }

  /** @param {number} n */
  async abort(n) {
    const abort = new AbortController();
    this.publish(n, abort.signal);
    if (n > 1) await this.service.settled();
    abort.abort();
  }

  /** @param {number} n */
  signal(n) {
    this.client.signal(CHANNELS[n % 2], 'chat.typing', {}, n > 1 ? { replace: true, every: 50 } : {});
  }

  connect() {
    this.isClosed = false;
    void this.client.connect();
  }

  close() {
    this.client.close();
    this.isClosed = true;
    for (const follower of this.#followers) follower.closed();
    this.expect(this.client.pending === 0, 'publishes wait after close()');
  }

  retry() {
    this.client.retryNow();
  }

  slow() {
    this.isSlow = !this.isSlow;
  }

  // --- the backend and the service ------------------------------------------------------------------------------------------

  /** @param {number} n */
  backend(n) {
    this.service.publish(CHANNELS[n % 2], 'chat.message', { n });
  }

  /** @param {number} n */
  value(n) {
    this.service.publish(CHANNELS[n % 2], 'doc.value', { n }, { key: `${n}` });
  }

  /** More events at once than the queue of a channel takes. @param {number} n */
  flood(n) {
    for (let count = 0; count < 8; count += 1) this.backend(n);
  }

  restart() {
    this.service.restart();
  }

  loseStore() {
    this.log.read();
    this.service.restart({ newEpoch: true });
  }

  /** @param {number} n */
  newEpoch(n) {
    this.log.read();
    this.service.newEpoch(CHANNELS[n % 2]);
  }

  expireTokens() {
    this.service.expireTokens();
  }

  /** @param {number} n */
  unsubscribe(n) {
    this.service.unsubscribe(CHANNELS[n % 2], { code: n > 1 ? 'removed' : 'forbidden' });
  }

  /** @param {number} n */
  refuse(n) {
    const code = ['rate_limited', 'broker_unavailable', 'forbidden', 'internal'][n];
    const isRefused = (/** @type {any} */ { type }) => type !== 'ready' && type !== 'unsubscribe'; // the protocol refuses neither so
    this.service.refuse(code, { when: isRefused, times: 1, details: { retry_after: 1 } });
  }

  /** @param {number} n */
  refuseConnections(n) {
    this.service.refuseConnections([503, 'overloaded', 'rate_limited', 404][n], { times: 1, retryAfter: n });
  }

  /** @param {number} n */
  garbage(n) {
    this.service.send(['{', [], null, [1, { type: 5 }, { type: 'subscribed', channel: 'room:1', id: null }]][n]);
  }

  stop() {
    this.service.stop();
  }

  start() {
    this.service.start();
  }

  // --- the network ----------------------------------------------------------------------------------------------------------

  cut() {
    this.service.cut();
  }

  /** @param {number} n */
  end(n) {
    this.service.cut({ code: [1000, 1012, 1013, 4408][n] });
  }

  /** A link that carries nothing any more, until `revive`. */
  die() {
    this.#revive ??= this.service.drop();
  }

  revive() {
    this.#revive?.();
    if (this.#revive) this.service.cut();
    this.#revive = undefined;
  }

  /** @param {number} n */
  delay(n) {
    this.service.delay(2_000 * (n + 1), { times: 2 });
  }

  /** The answer to a request is lost. @param {number} n */
  loseReply(n) {
    const types = [['ack', 'reply'], ['subscribed'], ['unsubscribed'], ['welcome']][n];
    this.service.drop({ to: 'client', when: (message) => types.includes(message?.type) && (typeof message.id === 'string' || message.type === 'welcome'), times: 1 });
  }

  /** A fault of the service: an event is lost. @param {number} n */
  loseEvent(n) {
    this.#during(this.service.drop({ to: 'client', type: 'chat.message' }), () => this.backend(n));
  }

  /** @param {number} n */
  repeatEvent(n) {
    this.#during(this.service.repeat({ to: 'client', type: 'chat.message' }), () => this.backend(n));
  }

  /** Two events in the wrong order. @param {number} n */
  swapEvents(n) {
    this.#during(this.service.reorder({ to: 'client', type: 'chat.message', times: 1 }), () => {
      this.backend(n);
      this.backend(n);
    });
  }

  /** @param {() => void} stop @param {() => void} act */
  #during(stop, act) {
    act();
    stop();
  }

  // --- the page and the time --------------------------------------------------------------------------------------------------

  offline() {
    this.service.goOffline();
    this.tab?.network.fire('offline');
  }

  online() {
    this.service.goOnline();
    this.tab?.network.fire('online');
  }

  sleep() {
    this.service.sleep();
    this.tab?.network.fire('pagehide', { persisted: true });
  }

  wake() {
    this.service.wake();
    this.tab?.network.fire('pageshow');
  }

  /** @param {number} n */
  async pass(n) {
    await this.service.advance([1, 400, 3_000, 30_000][n]);
  }

  async turn() {
    await this.service.settled();
  }

  // --- the end ------------------------------------------------------------------------------------------------------------------

  /** All faults end. Checks that the client comes to rest, and that nothing was lost, repeated, reordered or kept. */
  async finish() {
    await finishAll(this.service, [this]);
  }

  /** The faults of this client end. */
  heal() {
    this.revive();
    this.online();
    this.isSlow = false;
    this.connect();
  }

  get isSettled() {
    return this.#open === 0 && this.client.state === 'ready' && this.#followers.every(({ handle: { state } }) => state === 'subscribed' || state === 'ended');
  }

  get isUpToDate() {
    return this.#followers.every(({ handle: { name, state }, position }) => {
      const { epoch, offset } = this.service.position(name);
      return state === 'ended' || (position?.epoch === epoch && position.offset === offset);
    });
  }

  leaveAll() {
    while (this.#followers.length) this.leave(0);
  }

  explain() {
    const positions = this.#followers.map(({ handle: { name }, position }) => [name, position, this.service.position(name)]);
    return `${JSON.stringify(positions)}\n${this.client.explain()}`;
  }

  /** @param {boolean} isDead  whether the client has ended without a word */
  checkCalls(isDead = false) {
    for (const { id, retry, reply, ended } of this.#calls) {
      const asked = this.log.asked.get(id) ?? 0;
      this.expect(asked <= 1 || retry, `${id} was sent ${asked} times`);
      if (reply !== undefined) this.expect(reply === id && asked > 0, `${id} got the reply ${reply}`);
      else this.expect(isDead ? ended === undefined || ENDINGS.includes(ended) : ENDINGS.includes(ended ?? ''), `${id} ended with ${ended}`);
      if (ended === 'not_sent' || ended === 'queue_full') this.expect(asked === 0, `${id} was sent, though ${ended}`);
    }
  }

  /** @param {boolean} isDead  whether the client has ended without a word */
  checkPublishes(isDead = false) {
    this.checkCalls(isDead);
    const streams = this.log.streams();
    for (const { id, channel, ack, ended } of this.#publishes) {
      const found = [...streams].filter(([name, ids]) => name.startsWith(channel) && ids.includes(id));
      if (ack !== undefined) this.expect(found.some(([, ids]) => ids[ack - 1] === id || ids.includes(id)), `${id} is acknowledged, and nowhere`);
      else this.expect(isDead ? ended === undefined || ENDINGS.includes(ended) : ENDINGS.includes(ended ?? ''), `${id} ended with ${ended}`);
      if (ended === 'not_sent' || ended === 'queue_full') this.expect(found.length === 0, `${id} is stored, though ${ended}`);
    }
    const order = new Map(this.#publishes.map(({ id }, index) => [id, index]));
    for (const [name, ids] of streams) {
      const own = ids.filter((id) => order.has(id)).map((id) => order.get(id));
      this.expect(new Set(own).size === own.length, `${name}: stored twice: ${own}`);
      this.expect(own.every((index, at) => at === 0 || Number(own[at - 1]) < Number(index)), `${name}: out of order: ${own}`);
    }
  }
}

/**
 * All faults end. Checks that the clients come to rest, and that nothing was lost, repeated, reordered or kept.
 * @param {TestService} service
 * @param {World[]} worlds
 * @param {number} connections  that they need
 */
export async function finishAll(service, worlds, connections = worlds.length) {
  const until = async (/** @type {() => boolean} */ holds, /** @type {string} */ fault) => {
    for (const ms of [0, 1_000, 5_000, 20_000, 20_000, 20_000, 60_000]) {
      await service.advance(ms);
      if (holds()) return;
    }
    worlds[0].expect(false, `${fault}: ${JSON.stringify(service.subscriptions)}\n${worlds.map((world) => world.explain()).join('\n')}`);
  };
  service.heal();
  for (const world of worlds) world.heal();
  await until(() => worlds.every(({ isSettled }) => isSettled), 'a client does not come to rest');
  for (const n of [0, 1]) worlds[0].backend(n); // shows what is missing
  await until(() => worlds.every(({ isUpToDate }) => isUpToDate), 'a handle has not all events');
  // A client may not know yet that a node has closed its connection.
  await until(() => service.connections.length === connections, `not ${connections} connections`);
  for (const world of worlds) {
    world.checkPublishes();
    world.leaveAll();
  }
  await until(() => service.subscriptions.length === 0 && worlds.every(({ client }) => / 0 channels/.test(client.explain())), 'subscriptions stay');
  for (const world of worlds) {
    world.expect(world.client.pending === 0, 'publishes stay');
    world.close();
  }
  await service.settled();
  worlds[0].expect(service.connections.length === 0, 'the connection stays');
}
