// A strict application: what must compile, and behind @ts-expect-error what must not.

import { Tidewire, TidewireError, encodeUser } from 'tidewire';
import type { Ack, Channel, ChannelOptions, Event, Options, Position, State, Status } from 'tidewire';
import type { CollectionStatus } from 'tidewire/collections';
import 'tidewire/collections';
import { CLOSE_CODES, ERROR_CODES } from 'tidewire/codes';
import { TestClock, TestService } from 'tidewire/testing';

interface ChatMessage {
  text: string;
}

interface Contract {
  channels: {
    'room:{room}': {
      events: {
        'chat.message': { data: ChatMessage; delivery: 'durable'; publish: true };
        'chat.typing': { data: { active: boolean }; delivery: 'ephemeral'; publish: true };
        'chat.closed': { data: { by: string }; delivery: 'durable'; publish: false };
      };
      presence: { name: string };
    };
    'room:{room}:notes': {
      events: { 'note.line': { data: { line: number }; delivery: 'latest'; publish: true } };
    };
    'board:main': {
      events: { 'board.metric': { data: { value: number }; delivery: 'latest'; publish: false } };
    };
  };
  calls: {
    'order.quote': { request: { item: string }; reply: { price: number } };
  };
}

const options: Options = { token: async ({ signal }) => (await fetch('/token', { signal })).text() };
const client = new Tidewire<Contract>('/ws', options);
const id: string = 'x';

const room = client.channel(`room:${id}`, { tail: 20 });
room.on('chat.message', (event) => {
  const text: string = event.data.text;
  const offset: number | undefined = event.offset;
  return [text, offset, event.from];
});
room.on('*', (event) => {
  if (event.type === 'chat.typing') return event.data.active;
  // @ts-expect-error what is left has no such field
  return event.data.active;
});
room.on('subscribed', ({ recovered, missed }) => [recovered, missed]);
room.on('presence', ({ count }) => count);
room.on('error', ({ code, help, channel }: TidewireError) => [code, help, channel]);
const ack: Promise<Ack> = room.publish('chat.message', { text: 'hi' }, { signal: AbortSignal.timeout(5_000) });
const sent: boolean = room.signal('chat.typing', { active: true }, { replace: true, every: 50 });
async function read() {
  for await (const event of room.events({ types: ['chat.message'] })) return event.data.text;
  const { offset } = await room.subscribed;
  return [offset, (await room.history({ limit: 5 })).events.length, (await room.members()).count];
}
client.channel('room:1:notes').publish('note.line', { line: 1 }, { ifRev: 0 });
client.channel('room:1:notes').remove('note.line', '1');
client.channel('board:main').on('board.metric', ({ data }) => data.value);
client.publish('room:1', 'chat.message', { text: 'hi' });

const price: Promise<number> = client.call('order.quote', { item: 'tea' }, { timeout: 5_000, retry: true }).then((reply) => reply.price);
const anyReply: Promise<any> = new Tidewire('/ws').call('whatever.it', { n: 1 });
new TestService<Contract>().onCall('order.quote', ({ item }, { user }) => ({ price: item.length + user.length }));

// @ts-expect-error no such call
client.call('order.qoute', { item: 'tea' });
// @ts-expect-error a request of another type
client.call('order.quote', { itm: 'tea' });
// @ts-expect-error a reply of another type
new TestService<Contract>().onCall('order.quote', () => ({ prize: 1 }));
// @ts-expect-error a contract without calls has none
new Tidewire<Omit<Contract, 'calls'>>('/ws').call('order.quote', { item: 'tea' });
// @ts-expect-error no such channel
client.channel('romm:1');
// @ts-expect-error no such event
room.on('chat.mesage', () => {});
// @ts-expect-error not in this channel
room.on('board.metric', () => {});
// @ts-expect-error data of another type
room.publish('chat.message', { txt: 'hi' });
// @ts-expect-error only the backend may publish it
room.publish('chat.closed', { by: 'ann' });
// @ts-expect-error a signal is not published
room.publish('chat.typing', { active: true });
// @ts-expect-error and a durable event is no signal
room.signal('chat.message', { text: 'hi' });
// @ts-expect-error durable events cannot be removed
room.remove('chat.message', 'x');
// @ts-expect-error no such channel
client.publish('romm:1', 'chat.message', { text: 'hi' });
// @ts-expect-error not in this channel
client.publish('room:1', 'note.line', { line: 1 });
// @ts-expect-error another pattern
client.channel('room:1:notes').on('chat.message', () => {});
// @ts-expect-error no such state
const wrong: State = 'open';

const list = room.list('chat.message', { tail: 20, key: ({ data }) => data.text, snapshot: async ({ signal }) => (await fetch('/', { signal })).json() });
const text: string | undefined = list.items[0]?.data.text;
const both: 'chat.message' | 'chat.closed' | undefined = room.list(['chat.message', 'chat.closed']).getSnapshot().items[0]?.type;
const metric: number | undefined = client.channel('board:main').map('board.metric').get('cpu')?.data.value;
const rows = client.channel('board:main').map('board.metric', { snapshot: async () => [{ key: 'cpu', data: { value: 1 } }] }).size;
const name: string | undefined = room.presence.members[0]?.info?.name;
const shownAs: CollectionStatus = room.presence.status;
void room.presence.update({ name: 'Ann' });
// @ts-expect-error an ephemeral event is in no list
room.list('chat.typing');
// @ts-expect-error a durable event is in no map
room.map('chat.message');
// @ts-expect-error not in this channel
room.list('note.line');
// @ts-expect-error info of another type
room.presence.update({ nick: 'Ann' });

const open = new Tidewire(new URL('wss://example.com/ws'), { ticket: () => 't' });
const any: Channel = open.channel('whatever:1');
any.on('some.event', ({ data }: Event) => data.anything);
any.publish('some.event', { anything: 1 });
const status: Status = open.status;
const stop: () => void = open.on('state', ({ state, retryIn }) => [state, retryIn]);
const position: Position | undefined = any.position;
const anyList = any.list('some.event').items[0]?.data.anything;
const choice: ChannelOptions = { since: position };

export { text, both, metric, rows, name, shownAs, anyList, ack, sent, read, wrong, status, stop, choice, encodeUser, CLOSE_CODES, ERROR_CODES };

// The service in memory.
const service = new TestService<Contract>({ clock: new TestClock(), validate: false });
const tested = new Tidewire<Contract>(service.url, service.optionsFor('ben', { grants: ['room:*', { channel: 'board:main', rights: ['subscribe'] }] }));
service.publish('board:main', 'board.metric', { value: 1 }, { key: 'cpu' });
service.remove('board:main', 'board.metric', 'cpu');
service.drop({ to: 'client', type: 'chat.message', times: 1 })();
// @ts-expect-error no such event
service.publish('room:1', 'chat.mesage', { text: 'hi' });
// @ts-expect-error not the data of this event
service.publish('room:1', 'chat.message', { txt: 'hi' });
void [tested, service.received[0]?.message];
