/**
 * @typedef {object} Facts
 * @property {string} url
 * @property {import('./connection/connection.js').Status} status
 * @property {number} since  ms in this state
 * @property {string | undefined} user
 * @property {{channel: string, status: import('./subscriptions/subscription.js').ChannelStatus, position: any, handles: number}[]} channels
 * @property {number} pending
 * @property {{ago: number, error: import('./errors.js').TidewireError}[]} errors
 */

/** Channels that are listed. */
const MAX_LISTED = 50;

/** @param {number} ms */
const seconds = (ms) => `${Math.round(ms / 100) / 10} s`;

/**
 * A client's state in plain text.
 * @param {Facts} facts
 */
export function explain({ url, status, since, user, channels, pending, errors }) {
  const { state, reason, code, help, retryIn, attempt } = status;
  const lines = [
    `${state} (${reason}${code ? ` ${code}` : ''}) for ${seconds(since)}: ${url.replace(/\?.*/, '')}${user ? `, user ${user}` : ''}`,
    retryIn === undefined ? '' : `next try ${seconds(Math.max(0, retryIn - since))} from now, after ${attempt} failed`,
    help ? `what to do: ${help}` : reason === 'new' ? 'what to do: call connect()' : '',
    `${pending} publishes wait for an answer; ${channels.length} channels`,
    ...channels.slice(0, MAX_LISTED).map((of) => {
      const { state: now, code: why } = of.status;
      return `  ${of.channel}: ${now}${why ? ` (${why})` : ''}, ${of.handles} handles${of.position ? `, at offset ${of.position.offset}` : ''}`;
    }),
    ...errors.map(({ ago, error }) => `${seconds(ago)} ago ${error.code}: ${error.message}. ${error.help}`),
  ];
  return lines.filter(Boolean).join('\n');
}
