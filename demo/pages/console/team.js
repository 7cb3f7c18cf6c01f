// The online team, and the agent's inbox.

import { caughtUp } from './connection.js';
import { byId, h, icon, setText, toast } from '../shared/dom.js';
import { avatar, learn, nameOf } from './people.js';
import { client, info, me } from '../shared/session.js';
import { timeOf } from './time.js';

const MOST_ITEMS = 20;

/** @param {{onNames: () => void, onOpen: (chat: string) => void}} page */
export function startTeam({ onNames, onOpen }) {
  client.on('welcome', () => {
    learn(me, info.name);
    showMe();
    onNames();
  });
  showMe();

  client.on('state', ({ state }) => {
    const isConnected = state === 'ready';
    setText(byId('team-title'), isConnected ? 'Team online' : 'Team, before the connection was lost');
  });
  client.channel('team:support').on('presence', ({ count, members = [] }) => {
    for (const { user, info: about } of members) learn(user, about?.name);
    const users = members.map(({ user }) => user).sort((a, b) => Number(b === me) - Number(a === me) || nameOf(a).localeCompare(nameOf(b)));
    byId('team').replaceChildren(...users.map(member));
    byId('team-stack').replaceChildren(...users.filter((user) => user !== me).slice(0, 4).map((user) => avatar(user)));
    setText(byId('team-count'), String(count));
    onNames();
  });

  let fresh = false;
  const inbox = client.channel(`inbox:${me}`);
  inbox.on('subscribed', async (joined) => {
    caughtUp(joined);
    if (joined.resumed && joined.recovered !== false) return;
    byId('inbox').replaceChildren();
    const { events } = await inbox.history({ limit: MOST_ITEMS });
    fresh = false;
    events.forEach(item);
    fresh = true;
  });
  inbox.on('*', (event) => {
    item(event);
    if (fresh) toast(event.data.text, { label: 'Open', run: () => onOpen(event.data.chat) });
  });

  /** @param {any} event */
  function item({ id, at, data }) {
    const list = byId('inbox');
    const open = () => onOpen(data.chat);
    list.prepend(
      h(
        'li',
        { 'data-testid': 'inbox-item', dataset: { id, kind: data.kind } },
        h('button', { type: 'button', onclick: open }, icon(data.kind === 'rated' ? 'check' : 'inbox'), h('span', {}, data.text), h('time', {}, timeOf(at))),
      ),
    );
    while (list.children.length > MOST_ITEMS) list.lastElementChild?.remove();
    byId('inbox-empty').hidden = true;
  }
}

/** @param {string} user */
function member(user) {
  return h(
    'li',
    { 'data-testid': 'team-member', dataset: { user } },
    avatar(user),
    h('span', {}, nameOf(user)),
    user === me ? h('span', { class: 'unit' }, 'you') : null,
  );
}

function showMe() {
  byId('me-avatar').replaceChildren(avatar(me));
  setText(byId('me-name'), nameOf(me));
}
