/**
 * Decides what to do after a handshake that failed before `open`. A browser can't read the status of an upgrade, so the client
 * sends a plain GET to the same URL, which runs the same checks.
 * @typedef {{action: 'reconnect' | 'refresh' | 'stop', reason: string, after?: number}} Verdict
 *   `after`: the service's own delay, in ms
 */

/**
 * @param {URL} address  of the WebSocket
 * @param {typeof globalThis.fetch} fetch
 * @param {AbortSignal} signal
 * @returns {Promise<Verdict>}
 */
export async function probe(address, fetch, signal) {
  const url = new URL(address);
  url.protocol = address.protocol === 'wss:' ? 'https:' : 'http:';
  let response;
  try {
    response = await fetch(url.href, { signal, cache: 'no-store', headers: { accept: 'application/problem+json' } });
  } catch {
    return { action: 'reconnect', reason: 'unreachable' };
  }
  const reason = await codeOf(response);
  switch (response.status) {
    case 401:
      return { action: 'refresh', reason };
    case 400:
    case 403:
    case 404:
      return { action: 'stop', reason };
    case 429:
    case 503:
      return { action: 'reconnect', reason, after: retryAfter(response) };
    default: // 426: an upgrade would succeed now. Any other status comes from a proxy and is temporary.
      return { action: 'reconnect', reason };
  }
}

/** @param {Response} response */
async function codeOf(response) {
  try {
    const problem = await response.json();
    if (typeof problem?.code === 'string') return problem.code;
  } catch {
    // not a problem document: use the status
  }
  return `http_${response.status}`;
}

/** @param {Response} response */
function retryAfter(response) {
  const seconds = Number(response.headers.get('retry-after') ?? NaN);
  return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : undefined;
}
