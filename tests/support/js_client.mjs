// The JavaScript client in a process of its own: commands come as JSON lines, and what happens goes out as JSON lines.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { Tidewire } from '../../clients/js/src/tidewire.js';

const { WebSocket } = createRequire(new URL('../../clients/js/package.json', import.meta.url))('ws');
const { url, tokens, ...options } = JSON.parse(process.argv[2]);
const network = new EventTarget();
let connectedAt = performance.now();
const tell = (line) => process.stdout.write(`${JSON.stringify({ ...line, after: (performance.now() - connectedAt) / 1000 })}\n`);
const issue = () => {
  tell({ token: tokens.length });
  return tokens.length > 1 ? tokens.shift() : tokens[0];
};

const print = options.debug && ((line) => tell({ debug: line }));
const client = new Tidewire(url, { token: issue, WebSocket, network, ...options, debug: print });
client.on('state', (status) => tell({ state: status }));
client.on('error', ({ code, message, channel }) => tell({ error: code, message, channel }));
const rooms = new Map();

const COMMANDS = {
  connect: async () => {
    connectedAt = performance.now();
    return (await client.connect()).connection;
  },
  close: () => client.close(),
  explain: () => client.explain(),
  online: () => void network.dispatchEvent(new Event('online')),
  pending: () => client.pending,
  channel: async ({ channel, ...more }) => {
    const room = client.channel(channel, more);
    rooms.set(channel, room);
    room.on('*', ({ id, type, offset, rev, data }) => tell({ event: id, type, channel, offset, rev, data }));
    room.on('subscribed', ({ recovered, missed }) => tell({ subscribed: channel, recovered, missed }));
    room.on('unsubscribed', ({ code }) => tell({ unsubscribed: channel, code }));
    room.on('values', (events) => tell({ values: events.map(({ data }) => data) }));
    room.on('removed', ({ key }) => tell({ removed: key }));
    room.on('presence', ({ count }) => tell({ presence: channel, count }));
    await room.subscribed;
  },
  leave: ({ channel }) => rooms.get(channel).leave(),
  ask: ({ name, data, ...more }) => client.call(name, data, more),
  publish: ({ channel, type, data, ...more }) => client.publish(channel, type, data, more),
  remove: ({ channel, type, key }) => client.remove(channel, type, key),
  signal: ({ channel, type, data }) => client.signal(channel, type, data),
  presence: ({ channel, data }) => rooms.get(channel).updatePresence(data),
  history: ({ channel, ...page }) => rooms.get(channel).history(page),
  members: ({ channel }) => rooms.get(channel).members(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { op, call, ...more } = JSON.parse(line);
  Promise.resolve()
    .then(() => COMMANDS[op](more))
    .then((result) => tell({ call, result: result ?? null }), ({ code, message, details }) => tell({ call, failed: code ?? 'internal', message, details }));
}
client.close();
process.stdout.write('', () => process.exit()); // `ws` waits 30 s for the answer to a close
