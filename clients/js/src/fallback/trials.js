import { Timer } from '../base/clock.js';
import { parse } from '../messages.js';

/** Milliseconds until the first trial; each further one waits twice as long, up to the second number. */
const FIRST = 20_000;
const LONGEST = 600_000;
/** Milliseconds for a trial. */
const TRIAL_TIMEOUT = 8_000;
/** Milliseconds between two trials, whatever the network tells. */
const SHORTEST = 1_000;
/** Milliseconds without a trial after which the intervals are short again. */
const CALM = 1_800_000;

/**
 * Tries WebSockets in the background while the client uses HTTP. A trial does not log in, so it takes no place of the user: it opens
 * a connection and sends a message, and any message that comes back says that both ways are open.
 */
export class Trials {
  #core;
  #open;
  #works;
  #timer;
  #deadline;
  #attempt = 0;
  #at = -Infinity;
  #nextAt = Infinity;
  /** @type {URL | undefined} */
  #address;
  /** @type {import('../connection/link.js').Link | undefined} */
  #link;
  #connection = /** @type {any} */ (globalThis.navigator)?.connection;

  /**
   * @param {import('../core.js').Core} core
   * @param {import('../connection/link.js').OpenLink} open
   * @param {() => void} works
   */
  constructor(core, open, works) {
    this.#core = core;
    this.#open = open;
    this.#works = works;
    this.#timer = new Timer(core.clock);
    this.#deadline = new Timer(core.clock);
  }

  /** Tries from now on. @param {URL} address */
  start(address) {
    if (this.#address) return;
    this.#address = address;
    this.#connection?.addEventListener?.('change', this.now);
    if (this.#core.clock.now() - this.#at > CALM) this.#attempt = 0;
    this.#schedule();
  }

  stop() {
    this.#address = undefined;
    this.#connection?.removeEventListener?.('change', this.now);
    this.#timer.stop();
    this.#end();
  }

  /** Tries now, unless it has just tried. */
  now = () => {
    if (!this.#address || this.#link) return;
    const rest = this.#at + SHORTEST - this.#core.clock.now();
    if (rest > 0) this.#timer.start(rest, () => this.#try());
    else this.#try();
  };

  explain() {
    const wait = Math.round(Math.max(0, this.#nextAt - this.#core.clock.now()) / 1000);
    return this.#link ? 'a WebSocket is tried now' : `the next try of a WebSocket is in ${wait} s, after ${this.#attempt} failed`;
  }

  #schedule() {
    const wait = Math.min(LONGEST, FIRST * 2 ** Math.min(this.#attempt, 10)) * (0.5 + this.#core.random() / 2);
    this.#nextAt = this.#core.clock.now() + wait;
    this.#timer.start(wait, () => this.#try());
  }

  #try() {
    const { clock } = this.#core;
    this.#timer.stop();
    this.#at = clock.now();
    this.#deadline.start(TRIAL_TIMEOUT, () => this.#failed());
    try {
      const address = new URL(/** @type {URL} */ (this.#address));
      this.#link = this.#open(address, {
        opened: () => this.#link?.send(JSON.stringify({ type: 'ping' })),
        received: (frame) => parse(frame).length && this.#succeeded(),
        ended: () => this.#failed(),
      });
    } catch {
      this.#failed();
    }
  }

  #end() {
    this.#deadline.stop();
    const link = this.#link;
    this.#link = undefined;
    link?.close();
  }

  #failed() {
    this.#end();
    if (!this.#address) return;
    this.#attempt += 1;
    this.#schedule();
  }

  #succeeded() {
    this.#attempt += 1; // counts until WebSockets have worked for a while
    this.stop();
    this.#works();
  }
}
