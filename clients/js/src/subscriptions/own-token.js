import { Timer } from '../base/clock.js';
import { Backoff } from '../connection/backoff.js';
import { askToken } from '../connection/token.js';

/** Gets the tokens of a subscription that has some of its own: for each subscribe, and before one expires. Loaded with the first. */
export class OwnToken {
  #subscription;
  #core;
  #retry;
  #backoff;
  #refreshing = false;

  /**
   * @param {import('./subscription.js').Subscription} subscription
   * @param {import('../core.js').Core} core
   */
  constructor(subscription, core) {
    this.#subscription = subscription;
    this.#core = core;
    this.#retry = new Timer(core.clock);
    this.#backoff = new Backoff(500, 20_000, core.random);
  }

  /** Gets a token, and asks for the subscribe. */
  join() {
    const want = (/** @type {string} */ token) => {
      this.#backoff.attempt = 0;
      this.#core.registry.want(this.#subscription, token);
    };
    void this.#use('waiting', () => this.join(), want);
  }

  /** The token expires soon. Without a new one, the service ends the subscription. */
  async refresh() {
    if (this.#refreshing) return;
    this.#refreshing = true;
    const { channel } = this.#subscription;
    const use = (/** @type {string} */ token) => this.#core.read({ type: 'refresh', channel, token });
    await this.#use('subscribed', () => void this.refresh(), use);
    this.#refreshing = false;
  }

  /**
   * Uses a new token, if connection and state are still the same; tries again after an error that passes.
   * @param {import('./subscription.js').ChannelState} state
   * @param {() => void} again
   * @param {(token: string) => unknown} use
   */
  async #use(state, again, use) {
    const subscription = this.#subscription;
    const { channel, tokenFunction } = subscription;
    const { sender } = this.#core;
    this.#retry.stop();
    if (!tokenFunction) return;
    const isCurrent = () => sender === this.#core.sender && subscription.state === state;
    try {
      const token = await askToken(tokenFunction, 'token', this.#core, channel);
      if (isCurrent()) await use(token);
    } catch (/** @type {any} */ error) {
      if (!isCurrent()) return;
      if (!error.retryable && state === 'waiting') {
        subscription.end(error);
        return;
      }
      this.#core.report(error, subscription);
      if (error.retryable) this.#retry.start(this.#backoff.next(), () => isCurrent() && again());
    }
  }
}
