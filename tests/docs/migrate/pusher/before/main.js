/* global Pusher */
const user = new URLSearchParams(location.search).get('user') ?? 'ann';
const get = (id) => document.getElementById(id);

const pusher = new Pusher('app-key', {
  cluster: 'mt1',
  wsHost: '127.0.0.1',
  wsPort: 6001,
  forceTLS: false,
  enabledTransports: ['ws'],
  channelAuthorization: { endpoint: `/pusher/auth?user=${user}`, transport: 'ajax' },
});

const room = pusher.subscribe('presence-lobby');
const showMembers = () => {
  const names = [];
  room.members.each(({ info }) => names.push(info.name));
  get('members').textContent = names.sort().join(', ');
};
room.bind('pusher:subscription_succeeded', showMembers);
room.bind('pusher:member_added', showMembers);
room.bind('pusher:member_removed', showMembers);
room.bind('message', show);

let timer;
room.bind('client-typing', (_data, { user_id: who }) => {
  clearTimeout(timer);
  get('typing').textContent = `${who} typing …`;
  timer = setTimeout(() => (get('typing').textContent = ''), 4000);
});
get('text').addEventListener('input', () => room.trigger('client-typing', {}));

const own = pusher.subscribe(`private-user-${user}`);
own.bind('mention', () => (get('mentions').textContent = Number(get('mentions').textContent) + 1));

get('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const text = get('text').value;
  get('text').value = '';
  show({ from: user, text }); // the server leaves out this connection
  const body = JSON.stringify({ text, socketId: pusher.connection.socket_id });
  await fetch(`/messages?user=${user}`, { method: 'POST', body });
});

function show({ from, text }) {
  const item = document.createElement('li');
  item.textContent = `${from}: ${text}`;
  get('messages').append(item);
}
