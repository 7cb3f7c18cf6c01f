// Who this window is, and its connection. `?user=` names another user.

import { Tidewire } from '/client/tidewire.js';

const params = new URLSearchParams(location.search);
export const me = /^[a-z0-9][a-z0-9-]{0,31}$/.test(params.get('user') ?? '') ? String(params.get('user')) : 'agent-1';

/** The user's info in the newest token. @type {{name?: string}} */
export let info = {};

async function token() {
  const response = await fetch(`/demo/token?user=${encodeURIComponent(me)}`, { cache: 'no-store' });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail ?? `no token: ${response.status}`), { retryable: response.status >= 429 });
  }
  const { token } = await response.json();
  info = claims(token).info ?? {};
  return token;
}

/** The claims of a token, not verified: only the service can verify them. @param {string} token */
function claims(token) {
  try {
    const bytes = Uint8Array.from(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return {};
  }
}

export const client = new Tidewire('/ws', { token });

/** The address of this page as another user. @param {string} [other] */
export const asOther = (other = me === 'agent-1' ? 'agent-2' : 'agent-1') => `?user=${other}`;

addEventListener('pageshow', (event) => event.persisted && location.reload());
// For use in the browser's console.
Object.assign(globalThis, { tidewire: client });
