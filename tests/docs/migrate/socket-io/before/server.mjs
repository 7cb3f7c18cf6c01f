// A chat on Socket.IO: rooms, acks, typing, who is here, and the last messages in the memory of this process.
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const MAY_JOIN = { ann: ['lobby'], ben: ['lobby'] };
const history = new Map(); // room → messages
const files = { '/': ['index.html', 'text/html'], '/main.js': ['main.js', 'text/javascript'] };

const http = createServer(async (request, response) => {
  const [name, type] = files[request.url.split('?')[0]] ?? [];
  if (!name) return response.writeHead(404).end();
  response.writeHead(200, { 'Content-Type': type }).end(await readFile(new URL(name, import.meta.url)));
});
const io = new Server(http, { connectionStateRecovery: {} });

io.use((socket, next) => {
  socket.data.user = socket.handshake.auth.user; // in your application: the user of a session or a token
  next(socket.data.user in MAY_JOIN ? undefined : new Error('unauthorized'));
});

io.on('connection', (socket) => {
  const { user } = socket.data;
  socket.on('join', async (room, reply) => {
    if (!MAY_JOIN[user].includes(room)) return reply({ error: 'forbidden' });
    await socket.join(room);
    reply({ messages: history.get(room) ?? [] });
    await tellMembers(room);
  });
  socket.on('message', ({ room, text }, reply) => {
    if (!socket.rooms.has(room) || typeof text !== 'string' || text.length > 2000) return reply({ error: 'refused' });
    const message = { from: user, text };
    history.set(room, [...(history.get(room) ?? []), message].slice(-50));
    io.to(room).emit('message', message);
    reply({ ok: true });
  });
  socket.on('typing', (room) => socket.rooms.has(room) && socket.to(room).emit('typing', user));
  socket.on('disconnecting', () => {
    const rooms = [...socket.rooms];
    setImmediate(() => rooms.forEach(tellMembers));
  });
});

async function tellMembers(room) {
  const sockets = await io.in(room).fetchSockets();
  io.to(room).emit('members', [...new Set(sockets.map(({ data }) => data.user))].sort());
}

http.listen(Number(process.env.PORT ?? 3000), 'localhost', () => console.log('Running on', http.address().port));
process.on('SIGTERM', () => process.exit(0));
