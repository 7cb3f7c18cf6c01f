import { bounded, toldWait } from '../base/bounds.js';
import { Timer } from '../base/clock.js';
import { isEvent, parse } from '../messages.js';
import { SIGNAL_RESERVE } from '../sending/budget.js';
import { Sender, bytesOf } from '../sending/sender.js';
import { SharedChannel } from './channel.js';
import { Echoes } from './echoes.js';
import { again, aliasOf } from './follower.js';
import { claimsOf, nameOf, randomName } from './group.js';
import { Port, RemotePort } from './port.js';
import { requestOf } from './requests.js';

/**
 * @typedef {import('../messages.js').ClientMessage} ClientMessage
 * @typedef {import('../messages.js').Welcome} Welcome
 * @typedef {import('../upkeep/probe.js').Verdict} Verdict
 *
 * @typedef {object} Lead  what a leader gets from its link
 * @property {string} id
 * @property {string} name  of the group
 * @property {URL} address
 * @property {import('./group.js').Claims} claims
 * @property {(id: string) => BroadcastChannel} line  opens the channel to a tab
 * @property {(message: any) => void} announce  to all tabs of the group
 * @property {(frame: string) => void} received  by the client of this tab
 * @property {(frame: string) => void} send  to the service
 * @property {() => number} buffered
 * @property {(code: number, reason: string, verdict?: Verdict) => void} ended
 */

/** Tabs that share one connection with the leader. */
const MAX_TABS = 64;
/** Milliseconds without a word after which a tab is gone; timers of hidden pages may run once a minute. */
const GONE = 75_000;
const SWEEP = 5_000;
/** Milliseconds after which a message of a tab is too old: this page has hung, and the tab may have sent it over another connection. */
const MAX_AGE = 5_000;
/** Messages of its own client above which signals wait there. */
const MAX_BUSY = 4;

/** The tab that has the connection. It answers the tabs as the service would, and shares the rates among them. */
export class Leader {
  #share;
  #lead;
  #term;
  /** @type {Port} the client of this tab */
  #own;
  /** @type {Map<string, RemotePort>} by the id of the tab */
  #tabs = new Map();
  /** @type {Set<Port>} the one that was served last is the last */
  #ports;
  /** @type {Map<string, SharedChannel>} */
  #channels = new Map();
  /** @type {Set<SharedChannel>} */
  #wanted = new Set();
  /** @type {Map<string, (reply: any) => void>} requests without an answer, by their ids at the service */
  #pending = new Map();
  /** @type {Map<string, Port>} by the id of a publish without an answer */
  #publishers = new Map();
  #echoes;
  /** @type {Sender | undefined} since the `welcome` */
  #sender;
  /** @type {Welcome | undefined} */
  #welcome;
  /** The connection as the client of this tab knows it. */
  #alias = '';
  /** Seconds by which the service's clock is ahead of this tab's. @type {number | undefined} */
  #ahead;
  #heardAt = 0;
  #prefix = randomName(16);
  #count = 0;
  #sweep;
  #isOver = false;

  /**
   * @param {import('./share.js').Share} share
   * @param {Lead} lead
   */
  constructor(share, lead) {
    this.#share = share;
    this.#lead = lead;
    this.#term = share.wall();
    this.#own = new Port((frame) => lead.received(share.marked(frame, this.#alias)));
    this.#ports = new Set([this.#own]);
    this.#echoes = new Echoes(share.clock, (event, port) => this.#channels.get(event.channel)?.show(event, port));
    this.#sweep = new Timer(share.clock);
    this.#sweepLater();
  }

  get followers() {
    return this.#tabs.size;
  }

  // --- the tabs -----------------------------------------------------------------------------------------------------------

  announce() {
    this.#lead.announce({ t: 'here', id: this.#lead.id, term: this.#term });
  }

  /** A tab wants to share the connection. @param {unknown} id */
  join(id) {
    if (typeof id !== 'string' || !/^[a-z0-5]{20}$/.test(id) || id === this.#lead.id || this.#tabs.has(id)) return;
    const { clock } = this.#share;
    const port = new RemotePort(
      clock,
      this.#lead.line(id),
      this.#lead.id,
      (_, data) => this.#told(port, id, data),
      () => this.#drop(id, port, again('slow', 0)),
    );
    if (this.#tabs.size >= MAX_TABS) {
      port.post({ t: 'full' });
      port.close();
      return;
    }
    port.heardAt = clock.now();
    this.#tabs.set(id, port);
    this.#ports.add(port);
    port.post({ t: 'ok', term: this.#term });
    if (this.#welcome) this.#welcomeTab(port);
  }

  /** @param {RemotePort} port @param {string} id @param {any} data  from the tab, or from any script of the origin */
  #told(port, id, { t, at, frame, count, isSilent }) {
    port.heardAt = this.#share.clock.now();
    if (t === 'read') port.read(count);
    else if (t === 'bye') this.#leave(id, port, isSilent === true);
    else if (t === 'send' && typeof frame === 'string' && this.#sender) {
      if (!(Math.abs(this.#share.wall() - at) < MAX_AGE)) this.#drop(id, port, again('late', 0));
      else this.#takeFrame(port, id, frame);
    }
  }

  /** @param {RemotePort} port @param {string} id @param {string} frame */
  #takeFrame(port, id, frame) {
    const messages = port.parse(frame);
    if (!messages) return;
    if (!port.take(messages.map((message) => JSON.stringify(message).length))) this.#drop(id, port, again('too_much'));
    else for (const message of messages) if (port.isOpen) this.#take(port, message);
  }

  /** @param {string} id @param {RemotePort} port @param {boolean} isSilent  a ping of the tab had no answer */
  #leave(id, port, isSilent) {
    this.#forget(id, port);
    if (isSilent && port.pingAt >= this.#heardAt) this.#lead.ended(1006, 'no_pong');
  }

  /** @param {string} id @param {RemotePort} port @param {Verdict} verdict */
  #drop(id, port, verdict) {
    port.post(endOf(verdict));
    this.#forget(id, port);
  }

  /** @param {string} id @param {RemotePort} port */
  #forget(id, port) {
    port.close();
    this.#tabs.delete(id);
    this.#ports.delete(port);
    for (const { id: request = '' } of [...port.requests, ...port.signals]) this.#pending.delete(request);
    for (const [request, publisher] of this.#publishers) if (publisher === port) this.#publishers.delete(request);
    for (const channel of [...this.#channels.values()]) channel.leave(port);
  }

  #sweepLater() {
    this.#sweep.start(SWEEP, () => {
      const oldest = this.#share.clock.now() - GONE;
      for (const [id, port] of [...this.#tabs]) if (port.heardAt < oldest) this.#drop(id, port, again('gone', 0));
      this.#sweepLater();
    });
  }

  /** @param {RemotePort} port */
  #welcomeTab(port) {
    const time = this.#ahead === undefined ? undefined : this.#share.clock.now() / 1_000 + this.#ahead;
    port.post({ t: 'welcome', frame: JSON.stringify({ ...this.#welcome, expires_in: undefined }), time, isBlocked: this.#share.isBlocked });
  }

  // --- what tabs send -----------------------------------------------------------------------------------------------------

  /** A message of this tab's client. @param {ClientMessage} message */
  takeOwn(message) {
    const { type, token } = message;
    if (type === 'hello' || type === 'ready') this.#lead.send(JSON.stringify(message));
    else if (type === 'refresh') void this.#refresh(message, claimsOf(token));
    else this.#take(this.#own, message);
  }

  buffered() {
    return this.#own.requests.length + this.#own.signals.length > MAX_BUSY ? Infinity : this.#lead.buffered();
  }

  /** @param {ClientMessage} message @param {import('./group.js').Claims | undefined} claims */
  async #refresh(message, claims) {
    const { name, address } = this.#lead;
    const isSame = claims && (await nameOf(address, claims)) === name;
    if (this.#isOver) return;
    if (!isSame) this.#lead.ended(1006, '', again('token_changed', 0)); // to the group of this token
    else this.#sender?.send({ ...message, id: this.#forward(this.#own, message.id) });
  }

  /** @param {Port} port @param {unknown} given */
  #take(port, given) {
    const message = requestOf(given);
    const sender = this.#sender;
    if (!message || !sender) {
      port.used();
      return;
    }
    const { type, id, channel = '' } = message;
    if (type.includes('.') || type === 'call') this.#publish(port, message);
    else if (type === 'presence' && this.#share.isBlocked && this.#channels.get(channel)?.presence) {
      port.used(); // over HTTP, only the client of this tab can ask
      port.push({ type, id, channel, presence: this.#channels.get(channel)?.presence });
    } else if (type === 'history' || type === 'presence') this.#read(port, message, (reply) => port.push({ ...reply, id }));
    else {
      port.used();
      if (type === 'ping') {
        port.pingAt = this.#share.clock.now();
        sender.send({ type, id: this.#forward(port, id) });
      } else if (type === 'subscribe') this.#subscribe(port, message);
      else if (this.#channels.has(channel)) {
        this.#channels.get(channel)?.leave(port);
        port.push({ type: 'unsubscribed', id, channel, code: 'requested' });
      } else sender.send({ type, channel, id: this.#forward(port, id) }, true);
    }
  }

  /** @param {Port} port @param {import('./requests.js').Request} message */
  #subscribe(port, { id = '', channel = '', since, tail }) {
    let shared = this.#channels.get(channel);
    const refuse = (/** @type {string} */ code, /** @type {string} */ message) => port.push({ type: 'error', id, code, message, retryable: false, details: { channel } });
    if (shared?.has(port)) {
      refuse('already_subscribed', `${channel} is subscribed already`);
      return;
    }
    const max = bounded(this.#welcome?.limits.subscriptions, 1, Infinity, Infinity);
    if (!shared && this.#channels.size >= max) {
      refuse('too_many_subscriptions', `the tabs of this user have ${max} channels, as many as the service allows for their connection`);
      return;
    }
    shared ??= this.#open(channel);
    shared.subscribe({ port, id, since, tail, timer: new Timer(this.#share.clock), isOver: false, reads: 0 });
  }

  /** @param {string} name */
  #open(name) {
    const shared = new SharedChannel(name, {
      clock: this.#share.clock,
      want: (channel) => {
        this.#wanted.add(channel);
        this.#sender?.wake();
      },
      read: (port, request, answered) => this.#read(port, request, answered),
      nextId: (answered) => this.#ask(answered),
      unsubscribe: (channel) => this.#unsubscribe(channel),
      forget: (channel, isSubscribed) => {
        this.#wanted.delete(channel);
        this.#channels.delete(name);
        if (isSubscribed) this.#unsubscribe(name);
      },
      again: ({ port, id, since, tail }, channel) => this.#subscribe(port, { type: 'subscribe', id, channel, since, tail }),
    });
    this.#channels.set(name, shared);
    return shared;
  }

  /** @param {string} channel */
  #unsubscribe(channel) {
    if (this.#isOver) return;
    const id = this.#ask((reply) => {
      if (reply.retryable !== true) return;
      const later = () => {
        if (!this.#channels.has(channel)) this.#unsubscribe(channel);
      };
      this.#share.clock.setTimeout(later, toldWait(reply.details?.retry_after) ?? 1_000);
    });
    this.#sender?.send({ type: 'unsubscribe', channel, id }, true);
  }

  /** A read waits for its turn. @param {Port} port @param {any} request @param {(reply: any) => void} answered */
  #read(port, request, answered) {
    const id = this.#ask(answered);
    this.#queue(port.requests, port, { ...request, id }, answered);
  }

  /** Publishes and calls keep their ids: with them, the service stores an event once, over whichever connection it comes, and the backend recognises a call. @param {Port} port @param {any} message */
  #publish(port, message) {
    const { type, id, channel, data } = message;
    if (id === undefined) {
      this.#signal(port, { type, channel, data });
      return;
    }
    const answered = (/** @type {any} */ reply) => {
      this.#publishers.delete(id);
      port.push(reply);
    };
    const other = this.#publishers.get(id);
    if (other?.isOpen && other !== port) {
      port.used();
      port.push({ type: 'error', id, code: 'overloaded', message: 'another tab is sending with this id', retryable: true, details: { retry_after: 0.5 } });
      return;
    }
    this.#publishers.set(id, port);
    this.#pending.set(id, answered);
    this.#queue(port.requests, port, message, answered);
  }

  /** @param {Port} port @param {{type: string, channel: string, data: any}} signal */
  #signal(port, signal) {
    const waiting = this.#waiting(port, this.#tabs.size ? { ...signal, id: this.#echoing(port, signal) } : signal, () => {});
    port.addSignal(waiting);
    this.#sender?.wake();
  }

  /** The id of a signal, whose fate matters to other tabs. @param {Port} port @param {{type: string, channel: string, data: any}} signal */
  #echoing(port, { type, channel, data }) {
    const id = this.#ask((reply) => {
      if (reply.type === 'ack') this.#echoes.accepted(id);
      else {
        this.#echoes.refused(id);
        port.push({ ...reply, id: undefined });
      }
    });
    this.#echoes.sent(port, { type, channel, id, at: this.#share.wall(), from: this.#welcome?.user ?? null, data, exclude: this.#welcome?.connection });
    return id;
  }

  /** @param {import('./port.js').Waiting[]} queue @param {Port} port @param {any} message @param {(reply: any) => void} answered */
  #queue(queue, port, message, answered) {
    queue.push(this.#waiting(port, message, answered));
    this.#sender?.wake();
  }

  /** @param {Port} port @param {any} message @param {(reply: any) => void} answered @returns {import('./port.js').Waiting} */
  #waiting(port, message, answered) {
    const text = JSON.stringify(message);
    const { id, channel } = message;
    return {
      id,
      text,
      bytes: bytesOf(text),
      send: () => port.used(),
      refuse: (code, why) => {
        port.used();
        this.#pending.delete(id);
        this.#echoes.refused(id);
        answered({ type: 'error', id, code, message: why, retryable: false, details: { channel } });
      },
    };
  }

  /** A new id, whose reply goes to this function. @param {(reply: any) => void} answered */
  #ask(answered) {
    this.#count += 1;
    const id = `${this.#prefix}-${this.#count.toString(36)}`;
    this.#pending.set(id, answered);
    return id;
  }

  /** A new id for a request of a tab. @param {Port} port @param {string | undefined} id */
  #forward(port, id) {
    return this.#ask((reply) => {
      if (reply.type === 'pong') port.pingAt = -Infinity;
      port.push({ ...reply, id });
    });
  }

  // --- what the service sends ---------------------------------------------------------------------------------------------

  /** @param {unknown} frame */
  received(frame) {
    this.#heardAt = this.#share.clock.now();
    const messages = parse(frame);
    if (!messages.length && typeof frame === 'string') this.#lead.received(frame); // what says that the connection lives
    for (const message of messages) {
      if (this.#isOver) return;
      this.#route(message);
    }
  }

  /** @param {any} message */
  #route(message) {
    const { type, id, channel } = message;
    const shared = this.#channels.get(channel);
    const answered = isEvent(message) || typeof id !== 'string' ? undefined : this.#pending.get(id);
    if (type === 'welcome') this.#start(message);
    else if (isEvent(message)) {
      const only = this.#echoes.returned(message);
      if (only) only.push(message);
      else shared?.received(message);
    } else if (answered) {
      this.#pending.delete(id);
      answered(message);
    } else if (type === 'reconnect') for (const port of this.#ports) port.push(message);
    else if (type === 'subscribed') shared?.resync(message);
    else if (type === 'unsubscribed') shared?.unsubscribed(message);
    else if (type === 'presence') shared?.showPresence(message);
    else this.#own.push(message);
  }

  /** @param {Welcome} welcome */
  #start(welcome) {
    const { clock } = this.#share;
    const { exp } = this.#lead.claims;
    this.#welcome = welcome;
    this.#alias = aliasOf(welcome.connection);
    if (typeof welcome.expires_in === 'number' && typeof exp === 'number') this.#ahead ??= exp - welcome.expires_in - clock.now() / 1_000;
    this.#sender ??= new Sender({ send: this.#lead.send, buffered: this.#lead.buffered, close: () => {} }, welcome.limits, this.#sources(), clock);
    this.#own.push({ ...welcome, connection: this.#alias });
    for (const port of this.#tabs.values()) this.#welcomeTab(port);
  }

  /** What waits to be sent, each tab in turn. @returns {import('../sending/sender.js').Source[]} */
  #sources() {
    const turns = (/** @type {(port: Port) => import('./port.js').Waiting[]} */ queueOf, reserve = 0) => ({
      budget: /** @type {const} */ ('message'),
      reserve,
      waiting: () => [...this.#ports].some((port) => queueOf(port).length > 0),
      next: (/** @type {number} */ maxBytes) => {
        const port = [...this.#ports].find((some) => queueOf(some).length > 0);
        const waiting = port && queueOf(port).shift();
        if (!port || !waiting) return undefined;
        this.#ports.delete(port);
        this.#ports.add(port);
        if (waiting.bytes <= maxBytes) {
          waiting.send();
          return waiting.text;
        }
        waiting.refuse('too_big', `a message has ${waiting.bytes} bytes; the service accepts ${maxBytes}`);
        return undefined;
      },
    });
    const subscribes = {
      budget: /** @type {const} */ ('subscribe'),
      waiting: () => this.#wanted.size > 0,
      next: () => {
        const [channel] = this.#wanted;
        this.#wanted.delete(channel);
        const request = channel.request();
        return request && JSON.stringify(request);
      },
    };
    return [subscribes, turns(({ requests }) => requests), turns(({ signals }) => signals, SIGNAL_RESERVE)];
  }

  // --- the end --------------------------------------------------------------------------------------------------------------

  /**
   * This tab has no connection any more; the others connect again, or end as it does.
   * @param {Verdict} [verdict]
   * @param {number} [code]
   * @param {string} [reason]
   */
  stop(verdict, code = 1006, reason = '') {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#sweep.stop();
    this.#echoes.stop();
    this.#sender?.stop();
    for (const channel of this.#channels.values()) channel.stop();
    this.#own.flush();
    // Without a `welcome`, the end is about this tab only: its token, its network.
    const told = this.#welcome ? verdict : again('leader', verdict?.after);
    for (const port of this.#tabs.values()) {
      port.flush();
      port.post(endOf(told, code, reason));
      port.close();
    }
  }
}

/** @param {Verdict} [verdict] @param {number} [code] @param {string} [reason] */
function endOf(verdict, code, reason) {
  return { t: 'end', code: code ?? 1006, reason: verdict?.reason ?? reason ?? '', action: verdict?.action, after: verdict?.after };
}
