import { Timer } from '../base/clock.js';
import { Follower, again } from './follower.js';
import { claimsOf, nameOf, randomName } from './group.js';
import { Leader } from './leader.js';

/**
 * @typedef {import('../connection/link.js').Link} Link
 * @typedef {import('../connection/link.js').LinkEvents} LinkEvents
 * @typedef {import('../connection/link.js').OpenLink} OpenLink
 * @typedef {import('../upkeep/probe.js').Verdict} Verdict
 * @typedef {import('./share.js').Lock} Lock
 * @typedef {'asking' | 'following' | 'leading' | 'alone' | 'ended'} Role
 */

/** Milliseconds between two looks at whether the leader answers. */
const TICK = 350;
/** Milliseconds by which a look is late if this page has not run: then answers wait to be read. */
const LATE = 250;
/** Milliseconds without an answer after which the leader counts as hanging. */
const MAX_SILENCE = 1_000;
/** Milliseconds that it has for an answer at least. */
const MIN_PATIENCE = 200;
/** Milliseconds until a frozen page tries again by itself; when it runs again, it does so at once. */
const ASLEEP = 20_000;
/** The service ends the connection for a newer one of the user. */
const REPLACED = 4409;

/** The link of a tab: the connection itself if the tab leads, one to the leader if it follows, or a connection of its own. */
export class SharedLink {
  /** @type {Role} */
  role = 'asking';
  #share;
  #open;
  #address;
  #events;
  #hello;
  #id = randomName(20);
  #name = '';
  #why = '';
  #claims;
  /** @type {Link | undefined} the connection of a tab that does not follow */
  #direct;
  /** @type {Leader | undefined} */
  #leader;
  /** @type {Follower | undefined} */
  #follower;
  /** @type {Lock | undefined} */
  #lock;
  #waiting = new AbortController();
  /** @type {BroadcastChannel | undefined} of all tabs of the group */
  #group;
  /** @type {BroadcastChannel | undefined} between this tab and the leader */
  #line;
  #tick;
  #tickAt = 0;
  #heardAt = 0;
  #askedAt = 0;
  /** The leader that was asked for a link. */
  #asked = '';
  #unwatch = () => {};

  /**
   * @param {import('./share.js').Share} share
   * @param {OpenLink} open
   * @param {URL} address
   * @param {LinkEvents} events
   * @param {import('../messages.js').ClientMessage} [hello]
   */
  constructor(share, open, address, events, hello) {
    this.#share = share;
    this.#open = open;
    this.#address = address;
    this.#events = events;
    this.#hello = hello;
    this.#tick = new Timer(share.core.clock);
    const claims = claimsOf(hello?.token);
    const why = share.obstacle(claims);
    this.#claims = claims;
    if (why === undefined) void this.#start();
    else {
      this.#beAlone(why);
      this.#direct = open(address, events, hello);
    }
  }

  /** Whether another tab has the connection, or may have it. */
  get follows() {
    return this.role === 'following' || this.role === 'asking';
  }

  explain() {
    if (this.role === 'leading') return `this tab has the connection; ${this.#leader?.followers} other tabs use it`;
    if (this.role === 'following') return 'another tab has the connection';
    return this.role === 'alone' ? `not shared: ${this.#why}` : 'looking for the tab that has the connection';
  }

  // --- the client's side ------------------------------------------------------------------------------------------------

  /** @param {string} frame */
  send(frame) {
    if (this.role === 'alone') this.#direct?.send(frame);
    if (this.role !== 'leading' && this.role !== 'following') return;
    const content = JSON.parse(frame);
    const messages = Array.isArray(content) ? content : [content];
    if (messages.some(({ type, token }) => type === 'subscribe' && token !== undefined)) {
      this.#end(1006, '', again('subscription_token', 0)); // the next link is not shared
      return;
    }
    for (const { type, channel, id } of messages) if (type.includes('.') && channel && id) this.#share.publishes(id);
    for (const message of messages) {
      this.#leader?.takeOwn(message);
      this.#follower?.take(message);
    }
  }

  buffered() {
    return this.#follower?.buffered() ?? this.#leader?.buffered() ?? this.#direct?.buffered() ?? 0;
  }

  close() {
    if (this.role === 'ended') return;
    this.role = 'ended';
    this.#follower?.leave();
    this.#leader?.stop(again('leader', 0));
    this.#direct?.close();
    this.#release();
  }

  // --- who leads ----------------------------------------------------------------------------------------------------------

  async #start() {
    try {
      this.#name = await nameOf(this.#address, /** @type {import('./group.js').Claims} */ (this.#claims));
      if (this.role === 'asking') this.#enter(this.#name);
    } catch (cause) {
      this.#obstructed(cause);
    }
  }

  /** @param {string} name */
  #enter(name) {
    const { BroadcastChannel, core } = this.#share;
    this.#watch();
    this.#group = new BroadcastChannel(name);
    this.#group.onmessage = ({ data }) => this.#heard(data);
    const kept = this.#share.kept(name);
    if (kept) {
      this.#lead(kept);
      return;
    }
    this.#line = new BroadcastChannel(`${name}:${this.#id}`);
    this.#line.onmessage = ({ data }) => this.#told(data);
    this.#request({ signal: this.#waiting.signal });
    this.#join();
    this.#tickAt = this.#heardAt = core.clock.now();
    this.#tick.start(TICK, () => void this.#look());
  }

  #join() {
    this.#group?.postMessage({ t: 'join', id: this.#id });
  }

  /** @param {LockOptions} options */
  #request(options) {
    /** @type {Lock | undefined} */
    let lock;
    const granted = () =>
      new Promise((resolve) => {
        lock = { name: this.#name, release: () => resolve(undefined), isLost: false, lost: () => {} };
        this.#granted(lock);
      });
    this.#share.locks.request(this.#name, options, granted).catch((cause) => {
      if (lock) {
        lock.isLost = true; // another tab has stolen it
        lock.lost();
      } else if (options.signal?.aborted) return;
      else if (cause?.name === 'AbortError') this.#end(1006, '', again('leader', 0)); // stolen at once
      else this.#obstructed(cause);
    });
  }

  /** @param {Lock} lock */
  #granted(lock) {
    if (this.role === 'asking') this.#lead(lock);
    else if (this.role === 'following') {
      this.#share.keep(lock);
      this.#end(1006, '', again('leader', 0));
    } else lock.release();
  }

  /** Whether the leader answers. A tab asks only if it has heard nothing since its last look, so one asks for all. */
  async #look() {
    const { clock, locks } = this.#share;
    const isLate = clock.now() - this.#tickAt - TICK > LATE;
    if (isLate) await locks.query().catch(() => {}); // answers that have arrived are read before
    if (!this.follows) return;
    const now = (this.#tickAt = clock.now());
    const silence = now - this.#heardAt;
    if (silence > MAX_SILENCE && this.#askedAt > this.#heardAt && now - this.#askedAt >= MIN_PATIENCE) this.#steal();
    else if (silence >= TICK || this.role === 'asking') {
      this.#askedAt = now;
      this.#group?.postMessage({ t: 'ask' });
      if (this.role === 'asking') this.#join();
    }
    this.#follower?.tick();
    this.#tick.start(TICK, () => void this.#look());
  }

  #steal() {
    this.#heardAt = this.#share.clock.now();
    this.#waiting.abort();
    this.#waiting = new AbortController();
    this.#request({ steal: true });
  }

  /** @param {any} data  from any script of the origin */
  #heard(data) {
    if (data?.t === 'here' && typeof data.id === 'string') {
      if (this.role === 'following' && this.#follower?.isOlderThan(data)) this.#end(1006, '', again('leader', 0));
      else if (this.role === 'asking') {
        this.#hears();
        if (this.#asked !== data.id) this.#join();
        this.#asked = data.id;
      } else if (this.#follower?.leader === data.id) this.#hears();
    } else if (data?.t === 'ask') this.#leader?.announce();
    else if (data?.t === 'join') this.#leader?.join(data.id);
  }

  #hears() {
    this.#heardAt = this.#share.clock.now();
  }

  // --- following ------------------------------------------------------------------------------------------------------------

  /** @param {any} data  from the leader, or from any script of the origin */
  #told(data) {
    if (typeof data?.leader !== 'string') return;
    if (this.role === 'asking') {
      if (data.t === 'ok' && typeof data.term === 'number') this.#follow(data);
      else if (data.t === 'full') this.#goAlone('as many tabs share the connection as can');
      return;
    }
    const follower = this.#follower;
    if (follower?.leader !== data.leader) return;
    this.#hears();
    follower?.told(data);
  }

  /** @param {{leader: string, term: number}} found */
  #follow({ leader, term }) {
    this.role = 'following';
    this.#hears();
    const line = /** @type {BroadcastChannel} */ (this.#line);
    this.#follower = new Follower(this.#share, { leader, term, address: this.#address, claims: /** @type {any} */ (this.#claims), name: this.#name }, {
      post: (message) => line.postMessage({ ...message, leader }),
      received: (frame) => this.#events.received(frame),
      ended: (code, reason, verdict) => this.#end(code, reason, verdict),
    });
    this.#events.opened();
  }

  // --- leading ----------------------------------------------------------------------------------------------------------------

  /** @param {Lock} lock */
  #lead(lock) {
    const { BroadcastChannel } = this.#share;
    this.role = 'leading';
    this.#lock = lock;
    lock.lost = () => this.#end(1006, '', again('leader', 0));
    this.#tick.stop();
    this.#line?.close();
    this.#line = undefined;
    this.#leader = new Leader(this.#share, {
      id: this.#id,
      name: this.#name,
      address: this.#address,
      claims: /** @type {any} */ (this.#claims),
      line: (id) => new BroadcastChannel(`${this.#name}:${id}`),
      announce: (message) => this.#group?.postMessage(message),
      received: (frame) => this.#events.received(frame),
      send: (frame) => this.#direct?.send(frame),
      buffered: () => this.#direct?.buffered() ?? 0,
      ended: (code, reason, verdict) => this.#end(code, reason, verdict),
    });
    this.#leader.announce();
    const leader = this.#leader;
    this.#dial({
      opened: this.#events.opened,
      received: (frame) => leader.received(frame),
      ended: (code, reason, verdict) => void this.#cut(code, reason, verdict),
    });
  }

  /** The connection has ended. @param {number} code @param {string} reason @param {Verdict} [verdict] */
  async #cut(code, reason, verdict) {
    // A tab that took over while this one hung may have replaced its connection; then the lock is lost, too.
    if (code === REPLACED) await this.#share.locks.query().catch(() => {});
    if (this.role === 'leading') this.#end(code, reason, verdict);
  }

  /** @param {LinkEvents} events */
  #dial(events) {
    try {
      this.#direct = this.#open(this.#address, events, this.#hello);
    } catch (cause) {
      const message = `no WebSocket to ${this.#address.host}: ${cause}`;
      this.#end(1006, '', { action: 'stop', reason: 'websocket_refused', message, understood: true });
    }
  }

  // --- alone, and the end -----------------------------------------------------------------------------------------------------

  /** The page may not use locks or channels. @param {unknown} cause */
  #obstructed(cause) {
    if (this.role === 'asking') this.#goAlone(String(cause));
    else if (this.role === 'following') this.#end(1006, '', again('leader'));
  }

  /** @param {string} why */
  #goAlone(why) {
    this.#beAlone(why);
    this.#dial(this.#events);
  }

  /** This tab gets a connection of its own. @param {string} why */
  #beAlone(why) {
    this.#release();
    this.role = 'alone';
    this.#why = why;
  }

  /** @param {number} code @param {string} reason @param {Verdict} [verdict] @param {Verdict} [others]  for the tabs that follow */
  #end(code, reason, verdict, others = verdict) {
    if (this.role === 'ended') return;
    const leader = this.#leader;
    this.role = 'ended';
    leader?.stop(others, code, reason);
    this.#follower?.leave();
    this.#direct?.close();
    this.#release();
    this.#events.ended(code, reason, verdict);
  }

  #release() {
    this.#tick.stop();
    this.#unwatch();
    this.#waiting.abort();
    this.#lock?.release();
    this.#group?.close();
    this.#line?.close();
  }

  /** A page that is frozen or left sends no answers. */
  #watch() {
    const page = globalThis.document;
    const { network } = this.#share;
    const freeze = () => this.#end(1006, '', again('sleep', ASLEEP), again('leader', 0));
    const hide = () => this.close();
    page?.addEventListener('freeze', freeze);
    network?.addEventListener('pagehide', hide);
    network?.addEventListener('freeze', freeze);
    this.#unwatch = () => {
      page?.removeEventListener('freeze', freeze);
      network?.removeEventListener('pagehide', hide);
      network?.removeEventListener('freeze', freeze);
    };
  }
}
