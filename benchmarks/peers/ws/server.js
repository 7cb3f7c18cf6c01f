'use strict';

// Rooms on `ws`: what comes from one member goes to all of its room, itself too.

const { WebSocketServer } = require('ws');

const { PORT, PING, DEFLATE } = process.env;
const rooms = new Map();

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: Number(PORT),
  backlog: 4096,
  clientTracking: true,
  perMessageDeflate: DEFLATE ? { serverNoContextTakeover: true, clientNoContextTakeover: true, threshold: 0 } : false,
});

server.on('connection', (socket, request) => {
  const name = new URL(request.url, 'ws://localhost').searchParams.get('room');
  const room = rooms.get(name) ?? new Set();
  rooms.set(name, room.add(socket));
  socket.on('message', (data) => {
    // Bytes as they came: text would be encoded anew for every member.
    for (const member of room) member.send(data, { binary: false });
  });
  socket.on('error', () => socket.terminate());
  socket.on('close', () => {
    room.delete(socket);
    if (room.size === 0) rooms.delete(name);
  });
});

// The heartbeat of its README, with the pong left to TCP.
setInterval(() => {
  for (const socket of server.clients) socket.ping();
}, Number(PING) * 1000);
