// Tabs of one browser, in memory: what they share, and what becomes of them. Locks and channels behave as in a browser, at the pace of a
// test's clock.

import { createHash } from 'node:crypto';
import { settled } from '../src/testing/clock.js';
import { share } from '../src/upkeep/upkeep.js';
import * as loadedShare from '../src/share/share.js';
import { Page } from '../src/testing/page.js';

share.module = loadedShare; // a test waits for nothing that is loaded

// The platform computes hashes in another thread, so their time would be none that a test controls.
crypto.subtle.digest = async (/** @type {any} */ _, /** @type {any} */ data) => new Uint8Array(createHash('sha256').update(data).digest()).buffer;

/** @typedef {{tab: Tab, grant: () => void, fail: (error: unknown) => void, isOver: boolean}} Claim  of a lock */

export class Browser {
  /** @type {Map<string, Set<any>>} open channels by name */
  channels = new Map();
  /** @type {Map<string, Claim[]>} by the name of a lock; the first one holds it */
  locks = new Map();
  /** @type {{name: string, data: any}[]} what tabs have said to each other */
  posted = [];
  /** @type {Tab[]} */
  tabs = [];
  #clock;

  /** @param {import('../src/base/clock.js').Clock} clock */
  constructor(clock) {
    this.#clock = clock;
  }

  open() {
    const tab = new Tab(this, this.#clock);
    this.tabs.push(tab);
    return tab;
  }

  /** Posts to a channel, as a script of the page may. @param {string} name @param {unknown} data @param {any} [from] */
  post(name, data, from) {
    const text = structuredClone(data);
    this.posted.push({ name, data: text });
    for (const channel of [...(this.channels.get(name) ?? [])]) if (channel !== from) queueMicrotask(() => channel.deliver(structuredClone(text)));
  }

  /** The names of the open channels. */
  get names() {
    return [...this.channels].filter(([, open]) => open.size > 0).map(([name]) => name);
  }

  /** The tab that holds the lock of a group. */
  get leader() {
    const [[holder] = []] = [...this.locks.values()].filter((claims) => claims.length > 0);
    return holder?.tab;
  }

  /** @param {string} name @param {Claim} claim */
  end(name, claim) {
    if (claim.isOver) return;
    claim.isOver = true;
    const claims = /** @type {Claim[]} */ (this.locks.get(name));
    const wasHeld = claims[0] === claim;
    claims.splice(claims.indexOf(claim), 1);
    if (wasHeld) claims[0]?.grant();
  }
}

export class Tab {
  network = new Page();
  isDead = false;
  isFrozen = false;
  /** Milliseconds; timers run at multiples of it, as in a hidden page. */
  timerStep = 1;
  /** @type {(() => void)[]} what happens when the tab runs again */
  #tasks = [];
  /** @type {Set<import('../src/connection/link.js').Link>} */
  #links = new Set();
  #browser;
  #clock;

  /** @param {Browser} browser @param {import('../src/base/clock.js').Clock} clock */
  constructor(browser, clock) {
    this.#browser = browser;
    this.#clock = clock;
  }

  /** Options of a client in this tab. @param {any} options @returns {any} */
  options({ link, ...options }) {
    const share = { locks: this.#locks(), BroadcastChannel: this.#channels(), wall: this.#clock.now };
    return { ...options, share, clock: this.#tabClock(), link: this.#link(link), network: this.network };
  }

  /** Runs something in this tab, now or when it is no longer frozen. @param {() => void} task */
  run(task) {
    if (this.isDead) return;
    if (this.isFrozen) this.#tasks.push(task);
    else task();
  }

  /** The process of the tab ends. */
  kill() {
    this.isDead = true;
    for (const link of this.#links) link.close();
    for (const open of this.#browser.channels.values()) for (const channel of open) if (channel.tab === this) open.delete(channel);
    for (const [name, claims] of this.#browser.locks) for (const claim of [...claims].reverse()) if (claim.tab === this) this.#browser.end(name, claim);
  }

  /** Nothing runs in the tab, and it keeps its locks and connections. */
  freeze() {
    this.isFrozen = true;
  }

  /** The tab runs again: all that waits, one after the other. */
  async thaw() {
    for (let task = this.#tasks.shift(); task; task = this.#tasks.shift()) {
      if (!this.isDead) task();
      await settled();
    }
    this.isFrozen = false;
  }

  #tabClock() {
    const { now, setTimeout, clearTimeout } = this.#clock;
    /** @type {Set<any>} */
    const cleared = new Set();
    return {
      now,
      setTimeout: (/** @type {() => void} */ run, /** @type {number} */ ms) => {
        const at = Math.ceil((now() + ms) / this.timerStep) * this.timerStep;
        const timer = setTimeout(() => this.run(() => cleared.has(timer) || run()), at - now());
        return timer;
      },
      clearTimeout: (/** @type {any} */ timer) => {
        if (this.isFrozen || this.#tasks.length) cleared.add(timer);
        clearTimeout(timer);
      },
    };
  }

  /** @param {import('../src/connection/link.js').OpenLink} open @returns {import('../src/connection/link.js').OpenLink} */
  #link(open) {
    return (address, events) => {
      const link = open(address, {
        opened: () => this.run(() => events.opened()),
        received: (frame) => this.run(() => events.received(frame)),
        ended: (...end) => this.run(() => events.ended(...end)),
      });
      this.#links.add(link);
      return link;
    };
  }

  #channels() {
    const browser = this.#browser;
    const tab = this;
    return class {
      /** @type {((event: {data: any}) => void) | null} */
      onmessage = null;
      tab = tab;

      /** @param {string} name */
      constructor(name) {
        this.name = name;
        const open = browser.channels.get(name) ?? new Set();
        browser.channels.set(name, open.add(this));
      }

      /** @param {any} data */
      postMessage(data) {
        if (tab.isDead) return;
        if (!browser.channels.get(this.name)?.has(this)) throw new DOMException('the channel is closed', 'InvalidStateError');
        browser.post(this.name, data, this);
      }

      /** @param {any} data */
      deliver(data) {
        tab.run(() => browser.channels.get(this.name)?.has(this) && this.onmessage?.({ data }));
      }

      close() {
        browser.channels.get(this.name)?.delete(this);
      }
    };
  }

  #locks() {
    const browser = this.#browser;
    return {
      query: async () => ({}),
      request: (/** @type {string} */ name, /** @type {LockOptions} */ { steal, signal }, /** @type {() => Promise<void>} */ hold) =>
        new Promise((resolve, reject) => {
          const claims = browser.locks.get(name) ?? [];
          browser.locks.set(name, claims);
          /** @type {Claim} */
          const claim = {
            tab: this,
            isOver: false,
            fail: (error) => {
              browser.end(name, claim);
              this.run(() => reject(error));
            },
            grant: () => {
              const granted = () => {
                if (claim.isOver) return;
                void hold().then(() => (browser.end(name, claim), resolve(undefined)));
              };
              queueMicrotask(() => this.run(granted));
            },
          };
          signal?.addEventListener('abort', () => claims[0] !== claim && claim.fail(signal.reason));
          if (!steal) claims.push(claim);
          else {
            const [holder] = claims;
            claims.splice(0, holder ? 1 : 0, claim);
            if (holder) {
              holder.isOver = true;
              holder.tab.run(() => queueMicrotask(() => holder.fail(new DOMException('stolen', 'AbortError'))));
            }
          }
          if (claims[0] === claim) claim.grant();
        }),
    };
  }
}
