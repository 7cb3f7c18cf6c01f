import { MAX_BYTES, MAX_MESSAGES } from './follower.js';

/**
 * @typedef {{id?: string, text: string, bytes: number, send: () => void, refuse: (code: string, message: string) => void}} Waiting
 *   `send`: it goes to the service now. `refuse`: it does not
 */

/** Characters that a tab has not read, above which its link ends: if it reads nothing for a while, and in any case. It resumes when it runs again. */
const MAX_UNREAD = 4_194_304;
const MOST_UNREAD = 16_777_216;
const PATIENCE = 2_000;
/** Characters of what a tab sends at once. */
const MAX_FRAME = 16_777_216;
/** Signals of a tab that wait; further ones replace the oldest. */
const MAX_SIGNALS = 8;

/** One tab, seen from the leader. */
export class Port {
  /** @type {Waiting[]} publishes and reads */
  requests = [];
  /** @type {Waiting[]} */
  signals = [];
  /** When the tab was heard last, and when its last ping without an answer was sent on. */
  heardAt = 0;
  pingAt = -Infinity;
  isOpen = true;
  /** @type {string[]} */
  #texts = [];
  #deliver;

  /** @param {(frame: string) => void} deliver */
  constructor(deliver) {
    this.#deliver = deliver;
  }

  /** A message for the tab; all of one task go together. @param {any} message */
  push(message) {
    this.pushText(JSON.stringify(message));
  }

  /** @param {string} text */
  pushText(text) {
    if (!this.isOpen) return;
    this.#texts.push(text);
    if (this.#texts.length === 1) queueMicrotask(() => this.flush());
  }

  flush() {
    const texts = this.#texts;
    if (!texts.length || !this.isOpen) return;
    this.#texts = [];
    this.#deliver(texts.length === 1 ? texts[0] : `[${texts}]`);
  }

  /** @param {Waiting} signal */
  addSignal(signal) {
    this.signals.push(signal);
    if (this.signals.length > MAX_SIGNALS) this.signals.shift()?.refuse('rate_limited', 'a newer signal took its place');
  }

  /** A message of the tab is on its way, or answered. */
  used() {}
}

/** A tab that follows. */
export class RemotePort extends Port {
  #line;
  #leader;
  #posted = 0;
  #read = 0;
  /** @type {number[]} characters of the messages that have been taken, and not been used */
  #taken = [];
  #used = 0;
  #isTelling = false;

  #readAt;
  #clock;

  /**
   * @param {import('../base/clock.js').Clock} clock
   * @param {BroadcastChannel} line
   * @param {string} leader
   * @param {(port: RemotePort, data: any) => void} heard
   * @param {(port: RemotePort) => void} slow
   */
  constructor(clock, line, leader, heard, slow) {
    super((frame) => {
      const unread = this.#posted - this.#read;
      if (!unread) this.#readAt = clock.now();
      const most = clock.now() - this.#readAt > PATIENCE ? MAX_UNREAD : MOST_UNREAD;
      if (unread && unread + frame.length > most) slow(this);
      else {
        this.#posted += frame.length;
        this.post({ t: 'data', frame });
      }
    });
    this.#clock = clock;
    this.#readAt = clock.now();
    this.#line = line;
    this.#leader = leader;
    line.onmessage = ({ data }) => {
      if (data?.leader === leader && this.isOpen) heard(this, data);
    };
  }

  /** @param {any} message */
  post(message) {
    this.#line.postMessage({ ...message, leader: this.#leader });
  }

  /** The tab has read so much. @param {unknown} count */
  read(count) {
    if (typeof count !== 'number' || !(count > this.#read && count <= this.#posted)) return;
    this.#read = count;
    this.#readAt = this.#clock.now();
  }

  /** The messages of a frame; undefined if it is none. @param {string} frame */
  parse(frame) {
    if (frame.length > MAX_FRAME) return undefined;
    try {
      const messages = JSON.parse(frame);
      return Array.isArray(messages) ? messages : undefined;
    } catch {
      return undefined;
    }
  }

  /** Takes messages of so many characters. Returns false if the tab sends more than it may. @param {number[]} lengths */
  take(lengths) {
    this.#taken.push(...lengths);
    const count = this.#taken.length;
    return count <= MAX_MESSAGES && (count === 1 || this.#taken.reduce((sum, length) => sum + length, 0) <= MAX_BYTES);
  }

  /** @override */
  used() {
    this.#used += 1;
    if (this.#isTelling) return;
    this.#isTelling = true;
    queueMicrotask(() => {
      this.#isTelling = false;
      this.#taken.splice(0, this.#used);
      if (this.isOpen) this.post({ t: 'used', count: this.#used });
      this.#used = 0;
    });
  }

  close() {
    this.isOpen = false;
    this.#line.close();
  }
}
