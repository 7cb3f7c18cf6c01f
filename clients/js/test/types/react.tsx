// A strict React application: what must compile, and behind @ts-expect-error what must not.

import { useState } from 'react';
import { Tidewire } from 'tidewire';
import { TidewireProvider, useChannel, useConnection, useEvents, useList, useMap, usePresence, useTidewire } from 'tidewire/react';

interface Contract {
  channels: {
    'room:{room}': {
      events: {
        'chat.message': { data: { text: string }; delivery: 'durable'; publish: true };
        'chat.typing': { data: { active: boolean }; delivery: 'ephemeral'; publish: true };
      };
      presence: { name: string };
    };
    'board:main': {
      events: { 'board.metric': { data: { value: number }; delivery: 'latest'; publish: false } };
    };
  };
}

declare module 'tidewire/react' {
  interface Register {
    contract: Contract;
  }
}

function Room({ id }: { id: string }) {
  const room = useChannel(`room:${id}`);
  const { items, hasOlder, loadOlder, status } = useList(`room:${id}`, 'chat.message', { tail: 20, key: ({ data }) => data.text });
  const { members, count, update } = usePresence(`room:${id}`);
  const { values } = useMap('board:main', 'board.metric');
  const { state, retryIn, retryNow } = useConnection();
  const [typing, setTyping] = useState(false);
  useEvents(`room:${id}`, 'chat.typing', ({ data }) => setTyping(data.active));
  useEvents(`room:${id}`, '*', ({ type }) => type === 'chat.typing');

  // @ts-expect-error no such channel
  useChannel('romm:1');
  // @ts-expect-error no such event
  useList('room:1', 'chat.mesage');
  // @ts-expect-error a signal is in no list
  useList('room:1', 'chat.typing');
  // @ts-expect-error no such channel
  useList('romm:1', 'chat.message');
  // @ts-expect-error not in this channel
  useMap('board:main', 'chat.message');
  // @ts-expect-error not in this channel
  useEvents('board:main', 'chat.message', () => {});
  // @ts-expect-error no such field
  useEvents('room:1', 'chat.message', ({ data }) => data.txt);
  // @ts-expect-error no such channel
  usePresence('romm:1');
  // @ts-expect-error data of another type
  void room.publish('chat.message', { txt: 'hi' });
  // @ts-expect-error info of another type
  void update({ nick: 'Ann' });
  void useTidewire().publish('room:1', 'chat.message', { text: 'hi' });

  const texts: string[] = items.map(({ data }) => data.text);
  const names: (string | undefined)[] = members.map(({ info }) => info?.name);
  const cpu: number | undefined = values.get('cpu')?.data.value;
  return (
    <button onClick={() => (hasOlder ? loadOlder() : room.publish('chat.message', { text: 'hi' }))}>
      {[state, retryIn, status, room.status.state, count, cpu, typing, ...texts, ...names, String(retryNow)].join()}
    </button>
  );
}

export const own = (
  <TidewireProvider url="/ws" options={{ token: () => 'token' }}>
    <Room id="1" />
  </TidewireProvider>
);
export const given = (
  <TidewireProvider client={new Tidewire<Contract>('/ws')}>
    <Room id="1" />
  </TidewireProvider>
);
// @ts-expect-error one of both
export const none = <TidewireProvider>x</TidewireProvider>;
