import { useCallback, useMemo, useState } from 'react';
import { useMap } from 'tidewire/react';
import { api, messageOf, type RoomSummary } from './api.ts';
import { useReload } from './useReload.ts';

/**
 * The rooms of the user. The backend has them; Tidewire brings the numbers of unread messages as they change, in all pages of the user.
 */
export function useRooms(me: string) {
  const [stored, setStored] = useState<RoomSummary[]>();
  const [error, setError] = useState('');
  const { values, status } = useMap(`user:${me}`, 'room.unread');

  const reload = useCallback(async () => {
    try {
      setStored(await api.rooms());
      setError('');
    } catch (cause) {
      setError(messageOf(cause));
    }
  }, []);
  // Another key: the user has joined or left a room in another page.
  useReload(reload, status === 'live' ? [...values.keys()].sort().join(' ') : '');

  const rooms = useMemo(() => stored?.map((room) => ({ ...room, ...values.get(room.id)?.data })), [stored, values]);
  return { rooms, error, reload };
}
