import { jsonOf } from '../base/body.js';
import { MAX_PROBLEM } from '../base/bounds.js';
import { TidewireError } from '../errors.js';

/**
 * @typedef {{code: string, detail?: string, details?: Record<string, any>, retryable?: boolean}} Problem  of this service
 * @typedef {import('../upkeep/probe.js').Verdict} Verdict
 */

/** The requests of one link: the paths beside `/ws`, with the credentials that an upgrade would have. */
export class Http {
  /** @type {string | undefined} */
  token;
  #address;
  #fetch;
  #credentials;

  /**
   * @param {URL} address  of the WebSocket
   * @param {typeof globalThis.fetch} fetch
   * @param {boolean} byCookie
   */
  constructor(address, fetch, byCookie) {
    this.#address = new URL(address);
    this.#address.protocol = address.protocol === 'wss:' ? 'https:' : 'http:';
    this.#fetch = fetch;
    this.#credentials = /** @type {RequestCredentials} */ (byCookie ? 'include' : 'same-origin');
  }

  /** The address of a path beside `/ws`. @param {string} path */
  url(path) {
    return new URL(path, this.#address.origin + this.#address.pathname);
  }

  /**
   * @param {string} path
   * @param {unknown} body
   * @param {AbortSignal} signal
   * @returns {Promise<Response>}
   */
  post(path, body, signal) {
    const headers = { ...this.#headers(), 'content-type': 'application/json' };
    return this.#send(this.url(path), { method: 'POST', headers, body: JSON.stringify(body), signal });
  }

  /**
   * @param {string} path
   * @param {Record<string, unknown>} query
   * @param {AbortSignal} signal
   * @returns {Promise<Response>}
   */
  get(path, query, signal) {
    const url = this.url(path);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, String(value));
    return this.#send(url, { headers: this.#headers(), signal });
  }

  /** @returns {Record<string, string>} */
  #headers() {
    return this.token === undefined ? {} : { authorization: `Bearer ${this.token}` };
  }

  /** @param {URL} url @param {RequestInit} init */
  #send(url, init) {
    return this.#fetch(url.href, { ...init, cache: 'no-store', credentials: this.#credentials });
  }
}

/** The problem document of this service in a response; undefined for anything else. @param {Response} response @returns {Promise<Problem | undefined>} */
export async function problemOf(response) {
  if (!response.headers.get('content-type')?.includes('problem+json')) return undefined;
  const problem = await jsonOf(response, MAX_PROBLEM).catch(() => undefined);
  return typeof problem?.code === 'string' ? problem : undefined;
}

/** The answer to a request of the client, as the service would give it over a WebSocket. @param {Problem} problem @param {string | undefined} id */
export function errorMessage({ code, detail, details, retryable }, id) {
  return { type: 'error', id, code, message: detail ?? code, retryable: retryable === true, details: details ?? {} };
}

/**
 * A refusal by the client itself.
 * @param {string | undefined} id
 * @param {string} code
 * @param {string} message
 * @param {boolean} [retryable]
 * @param {number} [after]  seconds until the next try; with backoff if absent
 */
export function refusal(id, code, message, retryable = false, after) {
  return { type: 'error', id, code, message, retryable, details: after === undefined ? {} : { retry_after: after } };
}

/** @param {unknown} cause */
export const textOf = (cause) => (cause instanceof TidewireError || cause instanceof Error ? cause.message : String(cause));
