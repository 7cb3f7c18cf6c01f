import { bounded } from '../base/bounds.js';
import { Timer } from '../base/clock.js';

/** Detects a connection that broke silently: after a time without a message, it asks for one. Browsers hide the service's pings. */
export class Heartbeat {
  #timer;
  #clock;
  #interval;
  #timeout;
  #ping;
  #dead;
  #heard;
  #asking = false;

  /**
   * @param {import('../base/clock.js').Clock} clock
   * @param {unknown} seconds  `heartbeat` of `welcome`
   * @param {number} timeout  ms from a ping to its answer
   * @param {() => void} ping
   * @param {() => void} dead
   */
  constructor(clock, seconds, timeout, ping, dead) {
    this.#clock = clock;
    this.#timer = new Timer(clock);
    this.#interval = bounded(seconds, 1, 300, 25) * 1000;
    this.#timeout = timeout;
    this.#ping = ping;
    this.#dead = dead;
    this.#heard = clock.now();
    this.#listen();
  }

  /** A message has come. */
  heard() {
    this.#heard = this.#clock.now();
    if (!this.#asking) return;
    this.#asking = false;
    this.#listen();
  }

  /**
   * Asks now; the connection is dead without an answer in time.
   * @param {number} timeout  ms
   */
  ask(timeout) {
    this.#asking = true;
    this.#ping();
    this.#timer.start(timeout, this.#dead);
  }

  stop() {
    this.#timer.stop();
  }

  #listen() {
    const silent = this.#clock.now() - this.#heard;
    if (silent < this.#interval) this.#timer.start(this.#interval - silent, () => this.#listen());
    else this.ask(this.#timeout);
  }
}
