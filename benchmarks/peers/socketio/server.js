'use strict';

// Rooms on Socket.IO: what comes from one member goes to all of its room, itself too.

const { createServer } = require('node:http');
const { Server } = require('socket.io');

const { PORT, PING } = process.env;
const http = createServer();

const io = new Server(http, {
  transports: ['websocket'],
  serveClient: false,
  perMessageDeflate: false,
  httpCompression: false,
  pingInterval: Number(PING) * 1000,
});

io.on('connection', (socket) => {
  const room = `room:${socket.handshake.query.room}`;
  // Its guide to memory says so: the first request of a connection is not kept. Before this the query would be gone.
  socket.conn.request = null;
  socket.join(room);
  socket.on('event', (data) => io.to(room).emit('event', data));
});

http.listen({ host: '127.0.0.1', port: Number(PORT), backlog: 4096 });
