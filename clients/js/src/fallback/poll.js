import { jsonOf } from '../base/body.js';
import { MAX_FRAME, toldWait } from '../base/bounds.js';
import { Timer, within } from '../base/clock.js';
import { Backoff, spread } from '../connection/backoff.js';
import { parse } from '../messages.js';
import { Budget } from '../sending/budget.js';
import { problemOf } from './http.js';

/** Seconds that the service may wait for an event. */
const WAIT = 20;
/** Milliseconds for the way of a poll and its response. */
const WAY_TIME = 10_000;
/** Polls in a row that are refused for a time, until the connection counts as lost. */
const MAX_REFUSED = 5;
/** The part of the rate of messages that polls use, and polls at once. */
const RATE_USED = 0.5;
const BURST = 10;
/** Channels that one message of the rate pays for. */
const CHANNELS_PER_MESSAGE = 16;
/** The close code after which the session goes on at another node. */
const RESTART = 1012;

/**
 * Long polls, one after the other. Each goes on with the receipt of the last one.
 */
export class Polls {
  #http;
  #link;
  #way;
  #core;
  #budget;
  #pause;
  #backoff;
  #ended = new AbortController();
  #wait = 0;
  #isFirst = true;
  #refusals = 0;

  /**
   * @param {import('./http.js').Http} http
   * @param {import('./link.js').HttpLink} link
   * @param {import('./fallback.js').Way} way
   * @param {import('../core.js').Core} core
   */
  constructor(http, link, way, core) {
    this.#http = http;
    this.#link = link;
    this.#way = way;
    this.#core = core;
    this.#budget = new Budget((core.welcome?.limits.rate ?? 20) * RATE_USED, BURST, BURST, core.clock);
    this.#pause = new Timer(core.clock);
    this.#backoff = new Backoff(500, 5_000, core.random);
  }

  start() {
    void this.#run();
  }

  stop() {
    this.#pause.stop();
    this.#ended.abort();
  }

  isFresh() {
    return false;
  }

  async #run() {
    const { signal } = this.#ended;
    try {
      while (!signal.aborted) {
        await this.#pace();
        const isNext = await this.#poll(signal);
        if (!isNext) return;
      }
    } catch {
      if (!signal.aborted) this.#link.end(1006, 'unreachable');
    }
  }

  /** Waits until the rates allow a poll. */
  async #pace() {
    const cost = Math.max(1, Math.ceil(this.#link.channels.entries.size / CHANNELS_PER_MESSAGE));
    for (let paid = 0; paid < cost; ) {
      const wait = this.#budget.wait();
      if (wait) await this.#sleep(wait);
      else {
        this.#budget.spend();
        paid += 1;
      }
    }
  }

  /** @param {number} ms */
  #sleep(ms) {
    return new Promise((resolve) => this.#pause.start(ms, () => resolve(undefined)));
  }

  /** Returns whether another poll follows. @param {AbortSignal} signal */
  async #poll(signal) {
    const { receipt, channels } = this.#link;
    const asked = [...channels.entries.values()];
    const subscriptions = receipt === undefined ? channels.all : this.#isFirst ? channels.changes : undefined;
    const request = { receipt, subscriptions, wait: this.#wait, ...this.#way.announcement };
    const late = () => new Error('no answer to a poll');
    const response = await within(this.#core.clock, this.#wait * 1000 + WAY_TIME, this.#http.post('poll', request, signal), late);
    if (signal.aborted) return false;
    if (!response.ok) return this.#refused(response, signal);
    const body = await within(this.#core.clock, WAY_TIME, jsonOf(response, MAX_FRAME), late);
    if (signal.aborted) return false;
    this.#refusals = 0;
    this.#isFirst = false;
    this.#wait = WAIT;
    for (const entry of asked) entry.known = true;
    this.#pass(body);
    return !signal.aborted;
  }

  /** @param {{messages: unknown, receipt?: string}} body */
  #pass({ messages, receipt }) {
    const all = parse(JSON.stringify(messages ?? [])).filter(({ type, ...more }) => type !== /** @type {string} */ ('closed') || /** @type {any} */ (more).code !== RESTART || !receipt);
    const [first] = all;
    if (first?.type === 'welcome') this.#link.received(all.splice(0, 1));
    if (receipt) this.#link.renewed(receipt);
    this.#link.heard();
    this.#link.received(all);
  }

  /** @param {Response} response @param {AbortSignal} signal */
  async #refused(response, signal) {
    const problem = await problemOf(response);
    if (signal.aborted) return false;
    if (problem?.code === 'invalid_receipt' && this.#link.receipt !== undefined) {
      this.#link.renew();
      return false;
    }
    if (!problem?.retryable || this.#link.receipt === undefined || ++this.#refusals > MAX_REFUSED) {
      this.#link.refused(problem, response);
      return false;
    }
    const told = toldWait(problem.details?.retry_after ?? Number(response.headers.get('retry-after') ?? NaN));
    await this.#sleep(told === undefined ? this.#backoff.next() : spread(told, this.#core.random));
    return true;
  }
}
