/** Channels that are listed. */
const MAX_LISTED = 50;

/** @param {number} ms */
const seconds = (ms) => `${Math.round(ms / 100) / 10} s`;

/** A client's state in plain text. @param {import('../connection/connection.js').Connection} connection */
export function explain({ changedAt, core, upkeep, status, url }) {
  const { clock, welcome, registry, publishes, errors } = core;
  const { state, reason, code, help, retryIn, attempt } = status;
  const now = clock.now();
  const subscriptions = [...registry.subscriptions.values()];
  const lines = [
    `${state} (${reason}${code ? ` ${code}` : ''}) for ${seconds(now - changedAt)}: ${String(url).replace(/\?.*/, '')}, user ${welcome?.user || 'unknown'}`,
    upkeep?.fallback && `WebSockets are blocked: ${upkeep.fallback.explain()}`,
    upkeep?.share && `shared connection: ${upkeep.share.explain()}`,
    retryIn !== undefined && `next try in ${seconds(changedAt + retryIn - now)}, after ${attempt} failed`,
    (help || reason === 'new') && `what to do: ${help ?? 'call connect()'}`,
    `${publishes.length} publishes wait for an answer; ${subscriptions.length} channels`,
    ...subscriptions.slice(0, MAX_LISTED).map(({ channel, status, handles, delivery }) => {
      return `  ${channel}: ${status.state} ${status.code ?? ''}, ${handles.size} handles, offset ${delivery.position?.offset ?? 'unknown'}`;
    }),
    ...errors.map(({ at, error }) => `${seconds(now - at)} ago ${error.code}: ${error.message}. ${error.help}`),
  ];
  return lines.filter(Boolean).join('\n');
}
