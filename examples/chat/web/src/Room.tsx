import { useCallback, useEffect, useState } from 'react';
import { useChannel, useEvents, usePresence } from 'tidewire/react';
import { api, messageOf, Refused, type RoomDetails, type RoomSummary } from './api.ts';
import { Composer } from './Composer.tsx';
import { Members } from './Members.tsx';
import { MessageLog } from './MessageLog.tsx';
import { useMarkRead } from './useMarkRead.ts';
import { useMessages } from './useMessages.ts';
import { useOutgoing } from './useOutgoing.ts';
import { useReload } from './useReload.ts';
import { useTyping } from './useTyping.ts';

type Props = { id: string; me: string; summary?: RoomSummary; onLeft: () => Promise<void> };

/** The open room. Whoever is no member sees why there is nothing. */
export function Room({ id, me, summary, onLeft }: Props) {
  const [details, setDetails] = useState<RoomDetails>();
  const [problem, setProblem] = useState('');

  const load = useCallback(async () => {
    try {
      setDetails(await api.room(id));
      setProblem('');
    } catch (error) {
      setProblem(messageOf(error));
      if (error instanceof Refused && error.status === 404) setDetails(undefined);
    }
  }, [id]);
  useReload(load);

  if (details) return <OpenRoom me={me} details={details} summary={summary} onChanged={load} onLeft={onLeft} />;
  return (
    <main className="room nothing">
      {problem && <p role="alert">{problem}</p>}
      {problem && <a href="#">Back to your rooms</a>}
    </main>
  );
}

type OpenProps = { me: string; details: RoomDetails; summary?: RoomSummary; onChanged: () => Promise<void>; onLeft: () => Promise<void> };

function OpenRoom({ me, details, summary, onChanged, onLeft }: OpenProps) {
  const channel = `room:${details.id}` as const;
  const { publish, signal, status } = useChannel(channel);
  const messages = useMessages(details.id);
  const outgoing = useOutgoing(publish, messages.items, me);
  const [text, setText] = useState('');
  const edit = (refused: string, id: string) => (setText(refused), outgoing.remove(id));
  const typing = useTyping(channel, me);
  const { members: present } = usePresence(channel);
  useEvents(channel, 'room.changed', onChanged);
  useMarkRead(details.id, messages.status === 'live' ? summary : undefined);
  // The service has ended the subscription, because the user has left in another page.
  const hasEnded = status.state === 'ended';
  useEffect(() => {
    if (hasEnded) void onChanged();
  }, [hasEnded, onChanged]);

  return (
    <main className="room" aria-labelledby="room-title">
      <header className="room-head">
        <a className="back quiet" href="#" aria-label="Back to all rooms">←</a>
        <h2 id="room-title">{details.title}</h2>
        <Members details={details} present={new Set(present.map(({ user }) => user))} me={me} onLeft={onLeft} />
      </header>
      <MessageLog me={me} messages={messages} outgoing={outgoing.items} onRetry={outgoing.send} onEdit={edit} onRemove={outgoing.remove} />
      <p className="typing" role="status">{typing}</p>
      <Composer title={details.title} text={text} onText={setText} onSend={outgoing.send} onTyping={() => signal('chat.typing', {}, { every: 2000 })} />
    </main>
  );
}
