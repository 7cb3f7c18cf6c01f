/**
 * Which messages a fault concerns; each part that is absent allows all.
 * @typedef {object} Filter
 * @property {'client' | 'service'} [to]  who gets the message
 * @property {string} [type]
 * @property {string} [channel]
 * @property {string} [user]
 * @property {(message: any) => boolean} [when]
 * @property {number} [times]  the fault ends after so many messages
 *
 * @typedef {{to: 'client' | 'service', user: string, message: any}} Sent
 * @typedef {{filter: Filter, left: number, act: (fate: Fate) => void}} Rule
 * @typedef {{copies: number, delay: number, isHeld: boolean}} Fate
 */

/** Faults of the network between clients and the service. */
export class Network {
  /** @type {Set<Rule>} */
  #rules = new Set();

  /**
   * Adds a fault, and returns the function that ends it.
   * @param {Filter} filter
   * @param {(fate: Fate) => void} act
   */
  add(filter, act) {
    const rule = { filter, left: filter.times ?? Infinity, act };
    this.#rules.add(rule);
    return () => void this.#rules.delete(rule);
  }

  clear() {
    this.#rules.clear();
  }

  /** What happens to a message. @param {Sent} sent */
  fate(sent) {
    const fate = { copies: 1, delay: 0, isHeld: false };
    for (const rule of this.#rules) if (matches(rule.filter, sent) && use(rule, this.#rules)) rule.act(fate);
    return fate;
  }
}

/** @param {Filter} filter @param {Sent} sent */
export function matches({ to, type, channel, user, when }, sent) {
  const { message } = sent;
  const isWanted = (/** @type {unknown} */ wanted, /** @type {unknown} */ given) => wanted === undefined || wanted === given;
  return isWanted(to, sent.to) && isWanted(type, message?.type) && isWanted(channel, message?.channel) && isWanted(user, sent.user) && (when?.(message) ?? true);
}

/** Uses a rule up. @template {{left: number}} R @param {R} rule @param {Set<R>} rules */
export function use(rule, rules) {
  rule.left -= 1;
  if (rule.left <= 0) rules.delete(rule);
  return rule.left >= 0;
}

/** One direction of a connection. Messages arrive in order, unless a fault says otherwise. */
export class Pipe {
  #network;
  #clock;
  #to;
  #deliver;
  /** @type {{due: number, run: () => void}[]} */
  #queue = [];
  /** @type {any[]} overtaken by the next message */
  #held = [];
  #isScheduled = false;
  #isOpen = true;
  #lastDue = 0;

  /**
   * @param {Network} network
   * @param {import('../base/clock.js').Clock} clock
   * @param {'client' | 'service'} to
   * @param {(message: any) => void} deliver
   */
  constructor(network, clock, to, deliver) {
    this.#network = network;
    this.#clock = clock;
    this.#to = to;
    this.#deliver = deliver;
  }

  /** @param {any} message @param {string} user */
  send(message, user) {
    if (!this.#isOpen) return;
    const { copies, delay, isHeld } = this.#network.fate({ to: this.#to, user, message });
    if (isHeld && copies) {
      this.#held.push(message);
      return;
    }
    for (let copy = 0; copy < copies; copy += 1) this.#put(() => this.#deliver(message), delay);
    if (copies) for (const held of this.#held.splice(0)) this.#put(() => this.#deliver(held), 0);
  }

  /** Runs something after all messages before it. @param {() => void} run */
  then(run) {
    this.#put(run, 0);
  }

  /** Loses what has not arrived. */
  close() {
    this.#isOpen = false;
    this.#queue = [];
  }

  /** @param {() => void} run @param {number} delay */
  #put(run, delay) {
    this.#lastDue = Math.max(this.#lastDue, this.#clock.now() + delay);
    this.#queue.push({ due: this.#lastDue, run });
    this.#schedule();
  }

  #schedule() {
    if (this.#isScheduled || this.#queue.length === 0) return;
    this.#isScheduled = true;
    const next = () => {
      this.#isScheduled = false;
      const head = this.#queue.shift();
      head?.run();
      this.#schedule();
    };
    const wait = this.#queue[0].due - this.#clock.now();
    if (wait > 0) this.#clock.setTimeout(next, wait);
    else queueMicrotask(next);
  }
}
