// Shows the state of the connection.

import { byId, setText } from '../shared/dom.js';
import { client } from '../shared/session.js';

const pill = /** @type {HTMLElement} */ (document.querySelector('.connection'));
const text = byId('connection-text');
const again = byId('reconnect');

/** Time of the next attempt. */
let due = 0;
let dropped = false;
let missed = 0;
let lost = false;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let settle;

/** @param {string} state @param {string} words */
function show(state, words) {
  pill.dataset.state = state;
  setText(text, words);
  again.hidden = state !== 'closed';
}

function countdown() {
  const { state, retryIn } = client.status;
  if (retryIn === undefined) return;
  const seconds = Math.ceil((due - performance.now()) / 1000);
  if (state === 'offline') show('offline', 'Offline');
  else show('waiting', seconds > 0 ? `Reconnecting in ${seconds} s` : 'Reconnecting');
}

/** Shows the result of a resume. @param {{resumed: boolean, recovered?: boolean, missed: number}} joined */
export function caughtUp(joined) {
  if (!dropped || !joined.resumed) return;
  missed += joined.missed;
  lost ||= joined.recovered === false;
  clearTimeout(settle);
  settle = setTimeout(settled, 400);
}

function settled() {
  dropped = false;
  if (client.state !== 'ready') return;
  const words = missed === 1 ? 'caught up 1 message' : `caught up ${missed} messages`;
  pill.dataset.caughtUp = String(missed);
  if (lost) show('open', 'Online, some history was lost');
  else show('open', missed > 0 ? `Online, ${words}` : 'Online, nothing missed');
  settle = setTimeout(() => client.state === 'ready' && show('open', 'Online'), 6_000);
}

client.on('state', ({ state, reason, retryIn, attempt }) => {
  due = performance.now() + (retryIn ?? 0);
  if (retryIn !== undefined) {
    clearTimeout(settle);
    if (attempt <= 1) [missed, lost] = [0, false];
    dropped = true;
    countdown();
  } else if (state === 'ready') show('open', 'Online');
  else if (state === 'closed') show('closed', reason === 'REPLACED' ? 'Replaced by a newer window' : 'Disconnected');
  else show('connecting', dropped ? 'Reconnecting' : 'Connecting');
});
again.addEventListener('click', () => client.connect());
setInterval(countdown, 250);
