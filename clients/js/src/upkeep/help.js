import { texts } from '../errors.js';

const RETRY = 'Send it again with the same `id`: it is then delivered once.';
const TOKEN = 'Check the key, `iss`, `aud` and `exp` of the token.';

/** What to do about an error, by its code. @type {Record<string, string>} */
const HELP = {
  // @ts-expect-error the prototype, so that no other code is found
  __proto__: null,
  unauthenticated: 'Pass `token`, `ticket` or `anonymous: true`, or log in.',
  invalid_token: TOKEN,
  token_expired: TOKEN,
  UNAUTHORIZED: TOKEN,
  token_failed: 'Make the function return the token as a string.',
  origin_refused: "Add the page's origin to `origins` in the settings.",
  forbidden: 'Grant it in the token or in the contract.',
  unknown_channel: 'Correct the name, or declare the channel in the contract.',
  unknown_event: 'Correct the name, or declare the event in the contract.',
  not_subscribed: 'Keep a handle of the channel.',
  not_found: 'Correct the path of the address; the service listens at /ws.',
  too_many_subscriptions: 'Leave other channels, or raise `limits.subscriptions`.',
  handler_failed: 'Correct the listener; the event counts as handled.',
  handler_slow: 'Settle its promise; the event counts as handled.',
  queue_full: 'Do less in listeners, or send less often.',
  not_sent: 'Publish again when the client is ready.',
  uncertain: RETRY,
  timeout: RETRY,
  unreachable: 'Check the address, the network and the proxies.',
  unexpected_response: 'Check the address, the network and the proxies.',
  needs_websocket: 'It works as soon as WebSockets do; see explain().',
  fallback_failed: 'Serve all files of the client, or pass `fallback: false`.',
  not_loaded: 'Serve all files of the client, also those of its previous version.',
  no_websocket: 'Pass the option `WebSocket`.',
  REPLACED: 'Call connect() to take over.',
};

texts.help = (code) => HELP[code];

/** The shortest text that shows what a value is, without secrets: long runs of letters and digits lose their end. @param {unknown} value */
export function shown(value) {
  let text;
  try {
    text = typeof value === 'string' ? `"${value.trim()}"` : (JSON.stringify(value) ?? String(value));
  } catch {
    text = typeof value;
  }
  text = text.replace(/\s+/g, ' ').replace(/[\w.+/=~-]{10,}/g, (run) => `${run.slice(0, 3)}…`);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}
