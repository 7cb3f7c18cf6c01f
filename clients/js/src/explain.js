/** Channels that are listed. */
const MAX_LISTED = 50;

/** @param {number} ms */
const seconds = (ms) => `${Math.round(ms / 100) / 10} s`;

/**
 * A client's state in plain text.
 * @param {string} url
 * @param {import('./connection/connection.js').Status} status
 * @param {import('./core.js').Core} core
 * @param {number} changedAt
 * @param {string} [detour]  what is used where WebSockets are blocked
 */
export function explain(url, { state, reason, code, help, retryIn, attempt }, { clock, welcome, registry, publisher, errors }, changedAt, detour) {
  const now = clock.now();
  const subscriptions = [...registry.subscriptions.values()];
  const lines = [
    `${state} (${reason}${code ? ` ${code}` : ''}) for ${seconds(now - changedAt)}: ${url.replace(/\?.*/, '')}, user ${welcome?.user || 'unknown'}`,
    detour && `WebSockets are blocked: ${detour}`,
    retryIn !== undefined && `next try in ${seconds(changedAt + retryIn - now)}, after ${attempt} failed`,
    (help || reason === 'new') && `what to do: ${help ?? 'call connect()'}`,
    `${publisher.pending} publishes wait for an answer; ${subscriptions.length} channels`,
    ...subscriptions.slice(0, MAX_LISTED).map(({ channel, status, handles, delivery }) => {
      return `  ${channel}: ${status.state} ${status.code ?? ''}, ${handles.size} handles, offset ${delivery.position?.offset ?? 'unknown'}`;
    }),
    ...errors.map(({ at, error }) => `${seconds(now - at)} ago ${error.code}: ${error.message}. ${error.help}`),
  ];
  return lines.filter(Boolean).join('\n');
}
