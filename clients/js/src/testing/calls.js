import { TidewireError } from '../errors.js';
import { refusal } from './channels/refusal.js';

/**
 * @typedef {import('./channels/access.js').Identity} Identity
 * @typedef {object} CallContext
 * @property {string} user  empty for an anonymous client
 * @property {string} connection
 * @property {string} id  of the call; the same if the client repeats it
 * @property {AbortSignal} signal  aborts when the connection ends
 *
 * @typedef {(data: any, context: CallContext) => unknown} CallHandler
 *   Returns the data of the reply, or a promise of it. An error with the code `call_failed` or `forbidden` reaches the client; any other one
 *   is a backend that gives no answer.
 */

/** Answers calls in the place of the backend. */
export class Calls {
  #contract;
  /** @type {Map<string, CallHandler>} */
  #handlers = new Map();

  /** @param {import('./channels/contract.js').Contract} contract */
  constructor(contract) {
    this.#contract = contract;
  }

  /** @param {string} name @param {CallHandler} handler */
  on(name, handler) {
    this.#contract.callOf(name);
    this.#handlers.set(name, handler);
    return () => void (this.#handlers.get(name) === handler && this.#handlers.delete(name));
  }

  /**
   * Takes a call, or refuses it. `answered` is called once, unless the connection ends before.
   * @param {Identity} identity
   * @param {any} message
   * @param {{connection: string, underWay: Map<string, AbortController>, most: number | undefined}} session  `most`: its calls without a reply
   * @param {(answer: {data?: any, error?: TidewireError}) => void} answered
   */
  take(identity, { id, call, data }, { connection, underWay, most = 16 }, answered) {
    const contract = this.#contract;
    const rule = contract.callOf(call);
    if (rule.who === 'authenticated' && !identity.user) throw refusal('forbidden', `only users may call ${call}`, { path: '$.call' });
    contract.checkData(rule.request, data);
    if (underWay.has(id)) throw refusal('invalid_message', `a call with the id ${id} is under way`, { path: '$.id' });
    if (underWay.size >= most) throw refusal('too_many_calls', `a connection has at most ${most} calls under way`);
    const asking = new AbortController();
    underWay.set(id, asking);
    const { signal } = asking;
    const end = (/** @type {{data?: any, error?: TidewireError}} */ answer) => {
      if (signal.aborted) return;
      underWay.delete(id);
      answered(answer);
    };
    void this.#ask(rule, data, { user: identity.user, connection, id, signal }).then((reply) => end({ data: reply }), (error) => end({ error }));
  }

  /** @param {import('./channels/contract.js').CallRule} rule @param {unknown} data @param {CallContext} context */
  async #ask({ name, reply }, data, context) {
    const handler = this.#handlers.get(name);
    if (!handler) throw noAnswer(`the test has no onCall for ${name}`, 'unreachable');
    let given;
    try {
      given = JSON.parse(JSON.stringify((await handler(data, context)) ?? null));
    } catch (/** @type {any} */ error) {
      if (error instanceof TidewireError && error.code === 'call_failed') throw refusal(error.code, error.message, error.details);
      if (error instanceof TidewireError && error.code === 'forbidden') throw refusal(error.code, error.message, { path: '$.call', ...error.details });
      throw noAnswer(`onCall of ${name} threw: ${error}`, 'status');
    }
    try {
      this.#contract.checkData(reply, given);
    } catch (/** @type {any} */ error) {
      throw noAnswer(`the reply to ${name}: ${error.message}`, 'bad_reply');
    }
    return given;
  }
}

/** @param {string} message @param {string} reason */
const noAnswer = (message, reason) => refusal('hook_unavailable', message, { reason });
