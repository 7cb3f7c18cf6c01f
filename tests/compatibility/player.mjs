// Drives a JavaScript client of any age: node player.mjs SOURCE_FOLDER URL TOKEN CHANNEL NAME
//
// Commands come on standard input, one a line, and each is answered by one line of JSON:
//   open           connects and subscribes; answers when `subscribed` has come
//   publish COUNT  publishes so many durable events, each after the `ack` of the one before
//   start, stop    publishes every 20 ms, until stop; stop answers with all ids and offsets that were acknowledged
//   until OFFSET   waits until the handler has had the event; answers with all that it has had
//   history        reads the newest page
//   end            closes the connection

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { setTimeout } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const PACE = 20;
const [folder, url, token, channel, name] = process.argv.slice(2);
const { WebSocket } = createRequire(new URL('../../clients/js/package.json', import.meta.url))('ws');
const { Tidewire } = await import(pathToFileURL(`${folder}/tidewire.js`).href);

const client = new Tidewire(url, { token, WebSocket, network: null, backoffBase: 50, backoffCap: 500 });
const heard = [];
const acknowledged = [];
const troubles = [];
let welcomes = 0;
let features;
let line = 0;
let running;
let room;
let arrived = () => {};

client.on('welcome', (welcome) => {
  welcomes += 1;
  features = welcome.features ?? [];
});
client.on('error', ({ code, message }) => troubles.push(`${code}: ${message}`));

async function publishOne() {
  line += 1;
  const id = `${name}-${line}`;
  const data = { t: 'red', c: channel, line, at: 0 };
  const { offset } = await client.publish(channel, 'talk.line', data, { id });
  acknowledged.push([id, offset]);
}

const commands = {
  async open() {
    const joined = new Promise((resolve, reject) => {
      const onSubscribed = ({ recovered, offset }) => {
        if (recovered === false) troubles.push(`not recovered at ${offset}`);
        resolve();
      };
      const onEvent = ({ id, offset, from }) => {
        heard.push([id, offset, from]);
        arrived();
      };
      if (client.channel) {
        room = client.channel(channel);
        room.on('subscribed', onSubscribed);
        room.on('*', onEvent);
        room.on('error', reject);
      } else room = client.subscribe(channel, { onSubscribed, onEvent, onError: reject }); // a client from before the handles
    });
    void client.connect();
    await joined;
    return { features };
  },
  async publish(count) {
    for (let number = 0; number < count; number += 1) await publishOne();
    return { acknowledged };
  },
  async start() {
    const state = { stopped: false };
    const loop = async () => {
      while (!state.stopped) {
        await publishOne();
        await setTimeout(PACE); // faster, a restart would miss more events than one `subscribed` has
      }
    };
    running = { state, loop: loop() };
    return {};
  },
  async stop() {
    running.state.stopped = true;
    await running.loop;
    return { acknowledged };
  },
  async until(offset) {
    while ((heard.at(-1)?.[1] ?? 0) < offset) await new Promise((resolve) => (arrived = resolve));
    return { heard, welcomes, features, troubles };
  },
  async history() {
    const { events } = await room.history({ limit: 1000 });
    return { events: events.map(({ id, offset }) => [id, offset]) };
  },
  async end() {
    client.close();
    return {};
  },
};

for await (const text of createInterface({ input: process.stdin })) {
  const [command, argument] = text.split(' ');
  let answer;
  try {
    answer = await commands[command](Number(argument));
  } catch (error) {
    answer = { failed: `${command}: ${error?.stack ?? error}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
  if (command === 'end') process.exit(0);
}
