import { jsonOf } from '../base/body.js';
import { MAX_PROBLEM, toldWait } from '../base/bounds.js';

/**
 * Decides what to do after a handshake that failed before `open`. A browser can't read the status of an upgrade, so the client
 * sends a plain GET to the same URL, which runs the same checks. Only a problem document of this service stops a client or
 * asks for another token. Everything else is the word of a proxy, and passes.
 * @typedef {{action: 'reconnect' | 'refresh' | 'stop', reason: string, message: string, after?: number, understood: boolean}} Verdict
 *   `after`: the delay that the response asks for, in ms. `understood`: the response came from this service.
 */

/** Codes after which the same upgrade cannot succeed, and those that ask for another token. The others pass. */
const FINAL = /^(unsupported_version|origin_refused|forbidden|\w+_channel|too_many_subscriptions|invalid_request|not_found|method_not_allowed|uri_too_long|header_too_large)$/;
const TOKEN = /^(unauthenticated|invalid_token|token_expired|invalid_ticket)$/;
const PASSING = /^(upgrade_required|rate_limited|too_many_connections|overloaded|draining|broker_unavailable|deadline|internal)$/;

/**
 * @param {URL} address  of the WebSocket
 * @param {typeof globalThis.fetch} fetch
 * @param {AbortSignal} signal
 * @param {boolean} byCookie  whether a cookie authenticates
 * @returns {Promise<Verdict>}
 */
export async function probe(address, fetch, signal, byCookie) {
  const url = new URL(address);
  url.protocol = address.protocol === 'wss:' ? 'https:' : 'http:';
  const name = `${url.origin}${url.pathname}`;
  /** @param {RequestCredentials} credentials */
  const ask = async (credentials) =>
    verdict(await fetch(url.href, { signal, cache: 'no-store', credentials, headers: { accept: 'application/problem+json' } }), name);
  try {
    return await ask(byCookie ? 'include' : 'same-origin'); // the upgrade carried the cookies
  } catch {
    // A page of a refused origin may not read a response to a request with cookies. Without them, it says only that.
    const refusal = byCookie && !signal.aborted && (await ask('omit').catch(() => undefined));
    if (refusal && refusal.action === 'stop') return refusal;
    return { action: 'reconnect', reason: 'unreachable', message: `no answer from ${name}`, understood: false };
  }
}

/**
 * @param {Response} response
 * @param {string} name
 * @returns {Promise<Verdict>}
 */
async function verdict(response, name) {
  const isProblem = response.headers.get('content-type')?.includes('problem+json');
  const problem = isProblem ? await jsonOf(response, MAX_PROBLEM).catch(() => undefined) : void response.body?.cancel().catch(() => {});
  return verdictOf(problem, response.status, name, response.headers);
}

/**
 * @param {any} problem  the body, if it is a problem document
 * @param {number} status
 * @param {string} name  of the address
 * @param {Headers} [headers]
 * @returns {Verdict}
 */
export function verdictOf(problem, status, name, headers) {
  const code = String(problem?.code);
  const action = FINAL.test(code) ? 'stop' : TOKEN.test(code) ? 'refresh' : 'reconnect';
  const understood = action !== 'reconnect' || PASSING.test(code);
  const seconds = Number((status === 429 || status === 503) && headers?.get('retry-after')) || undefined;
  return {
    action,
    reason: understood ? code : `http_${status}`,
    message: `${name} answered ${status}${understood ? `: ${problem.detail ?? code}` : ', which is not an answer of the service'}`,
    after: toldWait(seconds),
    understood,
  };
}
