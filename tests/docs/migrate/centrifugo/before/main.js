/* global Centrifuge */
const user = new URLSearchParams(location.search).get('user') ?? 'ann';
const get = (id) => document.getElementById(id);

const centrifuge = new Centrifuge('ws://127.0.0.1:8000/connection/websocket', {
  getToken: async () => {
    const response = await fetch(`/token?user=${user}`);
    if (response.status === 403) throw new Centrifuge.UnauthorizedError();
    return response.text();
  },
});
centrifuge.on('state', ({ newState }) => (get('state').textContent = newState));

const board = centrifuge.newSubscription('board:main');
const viewers = new Map(); // client → user
let samples = [];
board.on('publication', ({ data }) => {
  samples = [...samples, data.value].slice(-300);
  show();
});
board.on('join', ({ info }) => showViewers(viewers.set(info.client, info.user)));
board.on('leave', ({ info }) => showViewers(viewers.delete(info.client)));
board.on('subscribed', async ({ wasRecovering, recovered }) => {
  if (!wasRecovering || !recovered) {
    const { publications } = await board.history({ limit: 300 });
    samples = publications.map(({ data }) => data.value);
  }
  const { clients } = await board.presence();
  viewers.clear();
  for (const { client, user } of Object.values(clients)) viewers.set(client, user);
  showViewers();
  show();
});
board.subscribe();
centrifuge.connect();

function showViewers() {
  get('viewers').textContent = [...new Set(viewers.values())].sort().join(', ');
}
function show() {
  get('load').textContent = samples.at(-1) ?? '';
  get('samples').replaceChildren(
    ...samples.map((value) => Object.assign(document.createElement('li'), { textContent: value })),
  );
}
