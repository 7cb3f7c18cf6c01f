import { io } from '/socket.io/socket.io.esm.min.js';

const user = new URLSearchParams(location.search).get('user') ?? 'ann';
const get = (id) => document.getElementById(id);
const socket = io({ auth: { user } });

socket.on('connect', async () => {
  if (socket.recovered) return; // the missed messages follow
  const { messages } = await socket.emitWithAck('join', 'lobby');
  get('messages').replaceChildren(...messages.map(line));
});
socket.on('message', (message) => get('messages').append(line(message)));
socket.on('members', (members) => (get('members').textContent = members.join(', ')));

let timer;
socket.on('typing', (who) => {
  clearTimeout(timer);
  get('typing').textContent = `${who} typing …`;
  timer = setTimeout(() => (get('typing').textContent = ''), 4000);
});
get('text').addEventListener('input', () => socket.volatile.emit('typing', 'lobby'));
get('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const text = get('text').value;
  get('text').value = '';
  const { error } = await socket.timeout(10_000).emitWithAck('message', { room: 'lobby', text });
  if (error) get('text').value = text;
});

function line({ from, text }) {
  const item = document.createElement('li');
  item.textContent = `${from}: ${text}`;
  return item;
}
