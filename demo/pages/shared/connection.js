// The pill that shows the state of the connection, in words.

import { h, setText } from './dom.js';

const WORDS = { connecting: 'Connecting', ready: 'Online', reconnecting: 'Reconnecting', offline: 'Offline', closed: 'Disconnected' };
const LOOKS = { connecting: 'connecting', ready: 'open', reconnecting: 'waiting', offline: 'offline', closed: 'closed' };
const TRANSPORTS = { stream: ' over HTTP', poll: ' over HTTP polls', shared: ' through another tab' };

/** @param {import('/client/tidewire.js').Status} status @param {number} [left]  ms until the next try */
export function wordsOf({ state, transport, reason }, left) {
  if (state === 'ready') return WORDS.ready + (TRANSPORTS[transport] ?? '');
  if (state === 'closed' && reason === 'REPLACED') return 'Replaced by a newer window';
  const seconds = Math.ceil((left ?? 0) / 1000);
  return state === 'reconnecting' && seconds > 0 ? `Reconnecting in ${seconds} s` : WORDS[state];
}

/** Makes the pill. @param {import('/client/tidewire.js').Tidewire} client */
export function connectionPill(client) {
  const text = h('span', { role: 'status' }, 'Starting');
  const again = h('button', { type: 'button', class: 'link', hidden: true, onclick: () => client.connect() }, 'Reconnect');
  const pill = h('div', { class: 'connection', 'data-testid': 'connection', dataset: { state: 'closed' } }, h('span', { class: 'dot', 'aria-hidden': 'true' }), text, again);
  let due = 0;
  const show = () => {
    pill.dataset.state = LOOKS[client.status.state];
    setText(text, wordsOf(client.status, client.status.retryIn === undefined ? undefined : due - performance.now()));
    again.hidden = client.status.state !== 'closed';
  };
  client.on('state', ({ retryIn = 0 }) => {
    due = performance.now() + retryIn;
    show();
  });
  setInterval(show, 500);
  return pill;
}
