import { bounded, toldWait } from '../base/bounds.js';
import { PresenceList } from '../subscriptions/presence-list.js';
import { nameOf } from '../subscriptions/values.js';

/**
 * @typedef {import('../base/clock.js').Timer} Timer
 * @typedef {import('../messages.js').Event} Event
 * @typedef {import('../messages.js').Position} Position
 * @typedef {import('../messages.js').Subscribed} Subscribed
 * @typedef {import('./port.js').Port} Port
 * @typedef {{port: Port, id: string, since?: Position, tail?: number, timer: Timer, isOver: boolean, reads: number,
 *   deadline?: number}} Join
 *   The `subscribe` of a tab without an answer. `isOver`: it needs none any more. `deadline`: until then, the tab may be ahead of the leader
 *
 * @typedef {object} Service  what a channel uses of the leader
 * @property {import('../base/clock.js').Clock} clock
 * @property {(channel: SharedChannel) => void} want  to be asked for its `subscribe` when the rates allow it
 * @property {(port: Port, request: any, answered: (reply: any) => void) => void} read
 * @property {(answered: (reply: any) => void) => string} nextId  of a request, whose answer goes to this function
 * @property {(channel: string) => void} unsubscribe
 * @property {(channel: SharedChannel, isSubscribed: boolean) => void} forget
 * @property {(join: Join, channel: string) => void} again  the tab's `subscribe` is handled from the start
 */

/** Durable events that are kept for tabs that come back, and their characters. */
const MAX_RECENT = 128;
const MAX_RECENT_LENGTH = 131_072;
/** Values that are kept; a service keeps fewer, unless its contract says otherwise. */
const MAX_VALUES = 100_000;
/** Events that a tab gets at once. A tab that has missed more is told so. */
const MAX_MISSED = 1_000;
/** Reads of the history for one tab: a busy channel may outrun one. */
const MAX_READS = 3;
/** Milliseconds in which an event must come that a tab has already. */
const MAX_LAG = 5_000;

/**
 * One channel of the shared connection. The first tab subscribes at its own position. For each further tab, the leader makes the answer of
 * the service itself: from what it has seen, and from the history.
 */
export class SharedChannel {
  /** @type {Set<Port>} tabs that get what comes */
  members = new Set();
  /** @type {Set<Join>} */
  #joins = new Set();
  /** @type {'new' | 'wanted' | 'asked' | 'live' | 'over'} */
  #state = 'new';
  /** @type {Join | undefined} the one whose `subscribe` the service has */
  #asked;
  #name;
  #service;
  /** @type {Position} of the last event */
  #position = { epoch: '', offset: 0 };
  /** @type {{event: Event, length: number}[]} durable events without a gap, up to the position */
  #recent = [];
  #recentLength = 0;
  /** @type {{offset: number, id?: string} | undefined} what is before them, as far as it is known */
  #base;
  /** @type {Map<string, {event: Event, ends: number}>} */
  #values = new Map();
  /** @type {PresenceList | undefined} */
  #presence;

  /** @param {string} name @param {Service} service */
  constructor(name, service) {
    this.#name = name;
    this.#service = service;
  }

  // --- tabs come and go ---------------------------------------------------------------------------------------------------

  /** @param {Join} join */
  subscribe(join) {
    this.#joins.add(join);
    if (this.#state === 'live') this.#admit(join);
    else if (this.#state === 'new') this.#want();
  }

  /** @param {Port} port */
  has(port) {
    return this.members.has(port) || [...this.#joins].some((join) => join.port === port);
  }

  /** A tab leaves. @param {Port} port */
  leave(port) {
    if (!this.has(port)) return;
    this.members.delete(port);
    for (const join of this.#joins) if (join.port === port) this.#finish(join);
    this.#sweep();
    if (this.#state !== 'asked' || !this.#asked?.isOver) return;
    this.#service.unsubscribe(this.#name); // no answer: the next tab asks
    this.#want();
  }

  #sweep() {
    if (this.members.size || this.#joins.size || this.#state === 'over') return;
    const isSubscribed = this.#state === 'asked' || this.#state === 'live';
    this.stop();
    this.#service.forget(this, isSubscribed);
  }

  stop() {
    this.#state = 'over';
    for (const join of this.#joins) this.#finish(join);
  }

  /** @param {Join} join */
  #finish(join) {
    join.isOver = true;
    join.timer.stop();
    this.#joins.delete(join);
  }

  #want() {
    this.#state = 'wanted';
    this.#service.want(this);
  }

  /** Who is there, as far as the tabs may know. */
  get presence() {
    return this.#presence?.view;
  }

  // --- the subscription at the service ------------------------------------------------------------------------------------

  /** The `subscribe` to send now, if anybody still wants the channel. */
  request() {
    const [join] = this.#joins;
    if (this.#state !== 'wanted' || !join) return undefined;
    this.#state = 'asked';
    this.#asked = join;
    const id = this.#service.nextId((reply) => this.#answered(join, reply));
    return { type: 'subscribe', id, channel: this.#name, since: join.since, tail: join.tail };
  }

  /** @param {Join} join  the one that has asked @param {any} reply */
  #answered(join, reply) {
    if (this.#state !== 'asked' || join !== this.#asked) return;
    this.#asked = undefined;
    if (reply.type !== 'subscribed') {
      this.#state = 'new';
      if (!join.isOver) this.#refuse(join, reply);
      if (this.#joins.size) this.#want(); // each tab gets an answer of its own
      else this.#sweep();
      return;
    }
    this.#state = 'live';
    this.#start(reply, join.since);
    if (!join.isOver) {
      this.#finish(join);
      this.members.add(join.port);
      join.port.push({ ...reply, id: join.id });
    }
    for (const other of [...this.#joins]) this.#admit(other);
    this.#sweep();
  }

  /** @param {Join} join @param {any} error */
  #refuse(join, error) {
    this.#finish(join);
    join.port.push({ ...error, id: join.id });
  }

  /** @param {Subscribed} message @param {Position} [since] */
  #start({ epoch, offset, last, events, state, presence, recovered }, since) {
    const now = this.#service.clock.now();
    this.#position = { epoch, offset, id: last };
    this.#recent = [];
    this.#recentLength = 0;
    const [first] = events;
    const before = first?.offset === undefined ? offset : first.offset - 1;
    const isKnown = recovered === true && since?.epoch === epoch && since.offset === before;
    this.#base = { offset: before, id: isKnown ? since.id : first ? undefined : last };
    for (const event of events) if (event.offset !== undefined) this.#keep(event, JSON.stringify(event).length);
    this.#values.clear();
    for (const event of state) this.#set(event, now);
    if (presence) {
      this.#presence = new PresenceList();
      this.#presence.replace(presence);
    }
  }

  /** The subscription continues at another place. @param {Subscribed} message */
  resync(message) {
    if (this.#state !== 'live') return;
    this.#start(message);
    this.#pass(JSON.stringify(message));
    this.#admitAhead();
  }

  /** The service has ended the subscription. @param {import('../messages.js').Unsubscribed} message */
  unsubscribed(message) {
    if (this.#state !== 'live') return;
    this.#pass(JSON.stringify(message));
    const joins = [...this.#joins];
    this.stop();
    this.#service.forget(this, false);
    for (const join of joins) this.#service.again(join, this.#name);
  }

  // --- what comes -----------------------------------------------------------------------------------------------------------

  /** @param {Event} event */
  received(event) {
    if (this.#state !== 'live') return;
    const text = JSON.stringify(event);
    if (event.offset !== undefined) this.#durable(event, event.offset, text.length);
    else if (event.rev !== undefined) this.#set(event, this.#service.clock.now());
    else if (event.type.startsWith('presence.')) this.#presence?.apply(event);
    this.#pass(text);
    if (event.offset !== undefined) this.#admitAhead();
  }

  #admitAhead() {
    for (const join of [...this.#joins]) if (join.deadline !== undefined) this.#admit(join);
  }

  /** Who is there, after a change of rights. @param {import('../messages.js').PresenceReply} message */
  showPresence(message) {
    this.#presence = message.presence ? new PresenceList() : undefined;
    if (message.presence) this.#presence?.replace(message.presence);
    this.#pass(JSON.stringify(message));
  }

  /** A signal of one tab, for the others. @param {Event} event @param {Port} port */
  show(event, port) {
    const text = JSON.stringify(event);
    for (const member of this.members) if (member !== port) member.pushText(text);
  }

  /** @param {string} text */
  #pass(text) {
    for (const member of this.members) member.pushText(text);
  }

  /** @param {Event} event @param {number} offset @param {number} length */
  #durable(event, offset, length) {
    const last = this.#position.offset;
    if (offset <= last) return; // a repetition, which each tab drops
    if (offset > last + 1) {
      this.#recent = []; // a gap, which each tab asks for
      this.#recentLength = 0;
      this.#base = { offset: offset - 1 };
    }
    this.#keep(event, length);
    this.#position = { ...this.#position, offset, id: event.id };
  }

  /** @param {Event} event @param {number} length */
  #keep(event, length) {
    this.#recent.push({ event, length });
    this.#recentLength += length;
    while (this.#recent.length > MAX_RECENT || (this.#recentLength > MAX_RECENT_LENGTH && this.#recent.length)) {
      const [{ event: oldest, length: freed }] = this.#recent.splice(0, 1);
      this.#recentLength -= freed;
      this.#base = { offset: Number(oldest.offset), id: oldest.id };
    }
  }

  /** @param {Event} event @param {number} now */
  #set(event, now) {
    const name = nameOf(event);
    const known = this.#values.get(name);
    const { rev = 0, ttl } = event;
    if (rev <= (known?.event.rev ?? -1)) return;
    if (event.removed) this.#values.delete(name);
    else if (known || this.#values.size < MAX_VALUES) this.#values.set(name, { event, ends: ttl === undefined ? Infinity : now + ttl });
  }

  // --- a further tab --------------------------------------------------------------------------------------------------------

  /**
   * Answers a tab that subscribes while others have. Its events are those since its position; without one, it begins here.
   * @param {Join} join
   * @param {any} [page]  of the history
   */
  #admit(join, page) {
    if (join.isOver || this.#state !== 'live') return;
    join.timer.stop();
    const { since, tail = 0 } = join;
    const { epoch, offset } = this.#position;
    if (!since) {
      const last = tail && page ? this.#tail(page, tail) : undefined;
      if (tail && (!page || (last === 'moved' && join.reads < MAX_READS))) this.#read(join, { limit: tail });
      else this.#welcome(join, { events: [], tail: last === 'moved' ? [] : last });
      return;
    }
    if (since.epoch === epoch && since.offset > offset && this.#isAhead(join)) return;
    const events = since.epoch === epoch ? this.#since(since, page) : 'lost';
    if (events === 'lost' && !page) this.#read(join, { limit: 1 }); // are there events to miss?
    else if (events === undefined && join.reads < MAX_READS && offset - since.offset < MAX_MISSED) {
      const after = Math.max(0, since.offset - 1);
      this.#read(join, { after, limit: bounded(offset - after, 1, MAX_MISSED, 1) });
    } else if (Array.isArray(events)) this.#welcome(join, { events, recovered: true });
    else this.#welcome(join, { events: [], recovered: page?.code === 'no_history' ? undefined : false });
  }

  /**
   * The events after a position; undefined if they are not known; `lost` if there are none for this position.
   * @param {Position} since
   * @param {any} page
   * @returns {Event[] | 'lost' | undefined}
   */
  #since(since, page) {
    const { epoch, offset, id } = this.#position;
    const isSame = (/** @type {string | undefined} */ other) => since.id === undefined || other === undefined || other === since.id;
    if (since.offset >= offset) return since.offset === offset && isSame(id) ? [] : 'lost';
    if (page && page.type !== 'history') return 'lost';
    const read = page?.epoch === epoch ? page.events : [];
    const known = new Map([...read, ...this.#recent.map(({ event }) => event)].map((event) => [event.offset, event]));
    const at = known.get(since.offset)?.id ?? (this.#base?.offset === since.offset ? this.#base.id : undefined);
    if (at === undefined && since.offset > 0 && since.id !== undefined) return page ? 'lost' : undefined;
    if (!isSame(at)) return 'lost';
    const events = [];
    for (let next = since.offset + 1; next <= offset; next += 1) {
      const event = known.get(next);
      if (!event) return undefined;
      events.push(event);
    }
    return events;
  }

  /**
   * The last events up to the position, oldest first; undefined without the right to them; `moved` if the channel was faster than the read.
   * @param {any} page
   * @param {number} count
   */
  #tail(page, count) {
    const { epoch, offset } = this.#position;
    if (page.type !== 'history') return undefined;
    const events = new Map([...page.events, ...this.#recent.map(({ event }) => event)].map((event) => [event.offset, event]));
    if (page.epoch !== epoch || (page.events.length && !events.has(offset))) return 'moved';
    /** @type {Event[]} */
    const tail = [];
    for (let next = offset; tail.length < count && events.has(next); next -= 1) tail.unshift(events.get(next));
    return tail;
  }

  /** @param {Join} join @param {any} range */
  #read(join, range) {
    join.reads += 1;
    this.#service.read(join.port, { type: 'history', channel: this.#name, ...range }, (reply) => {
      if (join.isOver) return;
      const wait = reply.retryable === true ? (toldWait(reply.details?.retry_after) ?? 1_000) : undefined;
      if (wait === undefined) this.#admit(join, reply);
      else if (join.reads < MAX_READS) join.timer.start(wait, () => this.#admit(join));
      else {
        this.#refuse(join, reply); // it tries again later
        this.#sweep();
      }
    });
  }

  /** Whether to wait for events that the tab has seen over another connection, and that have not come over this one. @param {Join} join */
  #isAhead(join) {
    const now = this.#service.clock.now();
    join.deadline ??= now + MAX_LAG;
    if (now >= join.deadline) return false;
    join.timer.start(join.deadline - now, () => this.#admit(join));
    return true;
  }

  /** @param {Join} join @param {{events: Event[], recovered?: boolean, tail?: Event[]}} found */
  #welcome(join, found) {
    const { epoch, offset, id: last } = this.#position;
    const now = this.#service.clock.now();
    const state = [];
    for (const { event, ends } of this.#values.values()) {
      if (ends === Infinity) state.push(event);
      else if (ends > now) state.push({ ...event, ttl: Math.ceil(ends - now) });
    }
    this.#finish(join);
    this.members.add(join.port);
    join.port.push({ type: 'subscribed', id: join.id, channel: this.#name, epoch, offset, last, state, presence: this.presence, ...found });
  }
}
