// The cluster of this page: where it is, tokens for it, and its faults.

/** @param {string} path @param {RequestInit} [options] */
async function ask(path, options) {
  const response = await fetch(`/demo/labs${path}`, { cache: 'no-store', ...options });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw Object.assign(new Error(body.detail ?? `${response.status}`), { retryable: response.status >= 429 });
}

/** Starts a cluster. It ends with this page. */
export async function startLab() {
  const { lab, url, kept, plain } = await ask('', { method: 'POST' });
  addEventListener('pagehide', () => void fetch(`/demo/labs/${lab}`, { method: 'DELETE', keepalive: true }));
  addEventListener('pageshow', (event) => event.persisted && location.reload());
  return {
    url,
    kept,
    plain,
    token: async () => (await ask(`/${lab}/token`)).token,
    /** Plays a fault until it is over. @param {string} fault @returns {Promise<{published: number}>} */
    play: (fault) => ask(`/${lab}/faults/${fault}`, { method: 'POST' }),
  };
}
