import { useEffect } from 'react';
import { api } from './api.ts';
import { Avatar } from './Avatar.tsx';
import { ConnectionState } from './ConnectionState.tsx';
import { Invitation } from './Invitation.tsx';
import { Room } from './Room.tsx';
import { RoomList } from './RoomList.tsx';
import { goTo, useRoute } from './route.ts';
import { useIsVisible } from './useIsVisible.ts';
import { useRooms } from './useRooms.ts';

/** The page of somebody who is logged in: the rooms beside the open one. On a phone, one of the two. */
export function Chat({ me, onLogOut }: { me: string; onLogOut: () => void }) {
  const route = useRoute();
  const { rooms, error, reload } = useRooms(me);
  const isVisible = useIsVisible();
  const open = route.kind === 'room' ? route.id : undefined;
  const unread = rooms?.reduce((sum, { id, unread }) => sum + (isVisible && id === open ? 0 : unread), 0) ?? 0;
  useEffect(() => {
    document.title = unread ? `(${unread > 99 ? '99+' : unread}) Chat` : 'Chat';
  }, [unread]);

  async function logOut() {
    await api.logOut().catch(() => undefined); // the cookie is gone, or the session ends by itself
    goTo('');
    onLogOut();
  }

  return (
    <div className="page" data-open={route.kind !== 'none'}>
      <header className="top">
        <a className="brand" href="#"><h1>Chat</h1></a>
        <ConnectionState />
        <div className="me">
          <Avatar name={me} />
          <span className="my-name">{me}</span>
          <button className="quiet" onClick={logOut}>Log out</button>
        </div>
      </header>
      <RoomList rooms={rooms} error={error} onRetry={reload} open={open} onCreated={reload} />
      {route.kind === 'room' && <Room key={route.id} id={route.id} me={me} summary={rooms?.find(({ id }) => id === route.id)} onLeft={reload} />}
      {route.kind === 'join' && <Invitation key={route.code} code={route.code} onJoined={reload} />}
      {route.kind === 'none' && (
        <main className="room nothing">
          <p>{rooms?.length ? 'Choose a room.' : 'Make a room, then invite others with its link.'}</p>
        </main>
      )}
    </div>
  );
}
