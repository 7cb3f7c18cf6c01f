import { Timer } from '../base/clock.js';

/**
 * @typedef {import('./port.js').Port} Port
 * @typedef {{port: Port, event: import('../messages.js').Event, isShown: boolean, timer: Timer}} Sent  `isShown`: the other tabs have it
 */

/** Milliseconds in which the service sends a signal back, if it does. */
const ECHO_TIME = 1_000;
/** Signals that are followed, and types that are known. */
const MAX_SENT = 1_000;
const MAX_TYPES = 500;

/**
 * Brings signals of one tab to the others. Where the contract says `echo: false`, the service sends a signal to all connections but the one
 * that it came from, which is that of the other tabs, too. The leader does not know the contract, so it learns which signals come back.
 */
export class Echoes {
  /** @type {Map<string, Sent>} by id */
  #sent = new Map();
  /** @type {Map<string, boolean>} whether the service sends signals back, by channel and type */
  #returns = new Map();
  #clock;
  #show;

  /**
   * @param {import('../base/clock.js').Clock} clock
   * @param {(event: import('../messages.js').Event, port: Port) => void} show  to all tabs but this one
   */
  constructor(clock, show) {
    this.#clock = clock;
    this.#show = show;
  }

  /** A signal goes to the service. @param {Port} port @param {import('../messages.js').Event} event */
  sent(port, event) {
    const timer = new Timer(this.#clock);
    if (this.#sent.size < MAX_SENT) this.#sent.set(event.id, { port, event, isShown: false, timer });
  }

  /** The service has accepted a signal. @param {string} id */
  accepted(id) {
    const sent = this.#sent.get(id);
    if (!sent) return;
    if (this.#returns.get(nameOf(sent.event)) === false) this.#showNow(sent);
    sent.timer.start(ECHO_TIME, () => {
      this.#sent.delete(id);
      this.#learn(sent.event, false);
      if (!sent.isShown) this.#showNow(sent);
    });
  }

  /** @param {string} id */
  refused(id) {
    this.#sent.delete(id);
  }

  /** An event has come. Returns the only tab that has yet to get it, if the others have it. @param {import('../messages.js').Event} event */
  returned({ id }) {
    const sent = this.#sent.get(id);
    if (!sent) return undefined;
    sent.timer.stop();
    this.#sent.delete(id);
    this.#learn(sent.event, true);
    return sent.isShown ? sent.port : undefined;
  }

  stop() {
    for (const { timer } of this.#sent.values()) timer.stop();
    this.#sent.clear();
  }

  /** @param {Sent} sent */
  #showNow(sent) {
    sent.isShown = true;
    this.#show(sent.event, sent.port);
  }

  /** @param {import('../messages.js').Event} event @param {boolean} returns */
  #learn(event, returns) {
    if (this.#returns.size >= MAX_TYPES) this.#returns.clear();
    this.#returns.set(nameOf(event), returns);
  }
}

/** @param {import('../messages.js').Event} event */
const nameOf = ({ channel, type }) => `${channel}\n${type}`;
