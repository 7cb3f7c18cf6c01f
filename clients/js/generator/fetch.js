// Gets the AsyncAPI document of a service. The key comes from the environment: arguments are visible to other users of a machine.
import { readFileSync } from 'node:fs';
import { Fault } from './fault.js';

const PATH = '/api/v1/asyncapi.json';
const MAX_BYTES = 16_000_000;
const TIMEOUT = 15_000;

/** @param {string} source */
export function isUrl(source) {
  return /^https?:\/\//i.test(source);
}

/**
 * @param {string} address Of the service, or of the document.
 * @param {NodeJS.ProcessEnv} [environment]
 * @returns {Promise<unknown>}
 */
export async function fetchDescription(address, environment = process.env) {
  let url;
  try {
    url = new URL(address);
  } catch {
    throw new Fault(address, '', 'is not an address');
  }
  if (url.username || url.password) throw new Fault(url.origin, '', 'the address holds a password; set TIDEWIRE_API__KEY instead');
  if (!url.pathname.endsWith('.json')) url.pathname = url.pathname.replace(/\/*$/, PATH);
  const key = findKey(environment);
  const source = url.href;
  try {
    const response = await fetch(url, {
      headers: key ? { authorization: `Bearer ${key}` } : {},
      redirect: 'manual', // the key is for this service only
      signal: AbortSignal.timeout(TIMEOUT),
    });
    if (!response.ok) throw new Fault(source, '', describeRefusal(response.status));
    return JSON.parse(await readText(source, response));
  } catch (error) {
    if (error instanceof Fault) throw error;
    const { message, cause } = /** @type {Error & {cause?: Error}} */ (error);
    throw new Fault(source, '', `no document: ${cause?.message || message}`);
  }
}

/** @param {NodeJS.ProcessEnv} environment */
function findKey(environment) {
  const { TIDEWIRE_API__KEY: key, TIDEWIRE_API__KEY_FILE: file } = environment;
  try {
    return key || (file && readFileSync(file, 'utf8').trim());
  } catch (error) {
    throw new Fault('TIDEWIRE_API__KEY_FILE', '', /** @type {Error} */ (error).message);
  }
}

/** @param {number} status */
function describeRefusal(status) {
  if (status === 401) return 'the API key is missing or wrong: set TIDEWIRE_API__KEY';
  if (status >= 300 && status < 400) return 'answers with another address, which is not followed: give that one';
  return `answers with HTTP status ${status}`;
}

/** @param {string} source @param {Response} response */
async function readText(source, response) {
  const decoder = new TextDecoder();
  const reader = response.body?.getReader();
  let text = '', size = 0;
  for (;;) {
    const { done, value: part } = (await reader?.read()) ?? { done: true };
    if (done) break;
    size += part.byteLength;
    if (size > MAX_BYTES) throw new Fault(source, '', `the document has more than ${MAX_BYTES} bytes`);
    text += decoder.decode(part, { stream: true });
  }
  return text + decoder.decode();
}
