import { MAX_TOLD } from '../base/bounds.js';

/**
 * Decides what to do after a handshake that failed before `open`. A browser can't read the status of an upgrade, so the client
 * sends a plain GET to the same URL, which runs the same checks. Only a problem document of this service stops a client or
 * asks for another token. Everything else is the word of a proxy, and passes.
 * @typedef {{action: 'reconnect' | 'refresh' | 'stop', reason: string, message: string, after?: number, understood: boolean}} Verdict
 *   `after`: the delay that the response asks for, in ms. `understood`: the response came from this service.
 */

/** Codes after which the same upgrade cannot succeed. */
const FINAL = /^(unsupported_version|origin_refused|forbidden|\w+_channel|too_many_subscriptions|invalid_request|not_found|method_not_allowed|uri_too_long|header_too_large)$/;
const REFUSED_TOKEN = /^(unauthenticated|invalid_token|token_expired|invalid_ticket)$/;
const OTHER = /^(upgrade_required|rate_limited|too_many_connections|overloaded|draining|broker_unavailable|deadline|internal)$/;

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
  /** @param {RequestCredentials} credentials */
  const ask = (credentials) =>
    fetch(url.href, { signal, cache: 'no-store', credentials, headers: { accept: 'application/problem+json' } });
  const shownUrl = `${url.origin}${url.pathname}`;
  const unreachable = { action: /** @type {const} */ ('reconnect'), reason: 'unreachable', message: `no answer from ${shownUrl}`, understood: false };
  try {
    // The upgrade carried the cookies, so the probe does.
    return await verdict(await ask(byCookie ? 'include' : 'same-origin'), shownUrl);
  } catch {
    if (!byCookie || signal.aborted) return unreachable;
  }
  try {
    // A page of a refused origin may not read a response to a request with cookies. Without them, it says only that.
    const refusal = await verdict(await ask('omit'), shownUrl);
    return refusal.action === 'stop' ? refusal : unreachable;
  } catch {
    return unreachable;
  }
}

/**
 * @param {Response} response
 * @param {string} url
 * @returns {Promise<Verdict>}
 */
async function verdict(response, url) {
  const after = [429, 503].includes(response.status) ? retryAfter(response) : undefined;
  const problem = await problemOf(response);
  const code = String(problem?.code);
  const understood = FINAL.test(code) || REFUSED_TOKEN.test(code) || OTHER.test(code);
  const reason = understood ? code : `http_${response.status}`;
  const message = `${url} answered ${response.status}${understood ? `: ${problem.detail ?? code}` : ', which is not an answer of the service'}`;
  const action = FINAL.test(code) ? 'stop' : REFUSED_TOKEN.test(code) ? 'refresh' : 'reconnect';
  return { action, reason, message, after, understood };
}

/** The problem document of a response. @param {Response} response @returns {Promise<any>} */
async function problemOf(response) {
  const isProblem = response.headers.get('content-type')?.includes('problem+json');
  if (isProblem) return response.json().catch(() => undefined);
  await response.body?.cancel().catch(() => {});
  return undefined;
}

/** @param {Response} response */
function retryAfter(response) {
  const seconds = Number(response.headers.get('retry-after') ?? NaN);
  return seconds >= 0 ? Math.min(MAX_TOLD, seconds * 1000) : undefined;
}
