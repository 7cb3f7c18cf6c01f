// A chat on Pusher Channels: a presence channel with client events, and a private channel for each user.
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import Pusher from 'pusher';

const MEMBERS = { ann: 'Ann', ben: 'Ben' };
const { PUSHER_HOST: host = '127.0.0.1', PUSHER_PORT: port = '6001' } = process.env;
const pusher = new Pusher({ appId: 'app-id', key: 'app-key', secret: 'app-secret', host, port, useTLS: false });
const files = { '/': ['index.html', 'text/html'], '/main.js': ['main.js', 'text/javascript'] };
const library = '../../node_modules/pusher-js/dist/web/pusher.min.js';

const http = createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  const user = searchParams.get('user'); // in your application: the user who is logged in
  const send = (status, body = '', type = 'application/json') => response.writeHead(status, { 'Content-Type': type }).end(body);
  if (pathname === '/pusher.min.js') return send(200, await readFile(new URL(library, import.meta.url)), 'text/javascript');
  if (files[pathname]) return send(200, await readFile(new URL(files[pathname][0], import.meta.url)), files[pathname][1]);
  let body = '';
  for await (const chunk of request) body += chunk;

  if (pathname === '/pusher/auth') {
    const { socket_id: socketId, channel_name: channel } = Object.fromEntries(new URLSearchParams(body));
    if (channel === 'presence-lobby' && MEMBERS[user]) {
      const member = { user_id: user, user_info: { name: MEMBERS[user] } };
      return send(200, JSON.stringify(pusher.authorizeChannel(socketId, channel, member)));
    }
    if (channel === `private-user-${user}`) return send(200, JSON.stringify(pusher.authorizeChannel(socketId, channel)));
    return send(403);
  }
  if (pathname === '/messages' && MEMBERS[user]) {
    const { text, socketId } = JSON.parse(body);
    await pusher.trigger('presence-lobby', 'message', { from: user, text }, { socket_id: socketId });
    for (const other of Object.keys(MEMBERS).filter((name) => text.includes(`@${name}`))) {
      await pusher.trigger(`private-user-${other}`, 'mention', { from: user });
    }
    return send(200, '{}');
  }
  return send(404);
});
http.listen(Number(process.env.PORT ?? 3000), 'localhost', () => console.log('Running on', http.address().port));
process.on('SIGTERM', () => process.exit(0));
